//! The `lateen-proxy` program.
fn main() {}
