//! The `quarry` binary: agent and command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    quarry::cli::main()
}
