//! The `lateen-samples` program.
fn main() {}
