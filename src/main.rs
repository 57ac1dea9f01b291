//! The `quarry` binary: agent and command line.
fn main() {}
