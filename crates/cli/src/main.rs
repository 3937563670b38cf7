//! The `borealis` program.
fn main() {}
