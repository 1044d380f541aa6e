//! The `lateend` program.
fn main() {}
