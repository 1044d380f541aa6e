//! The `lateen` program.
fn main() {}
