//! `quarry agent`: runs the agent in this process.

use std::path::PathBuf;

use clap::Args;

use super::failure::{Exit, Failure, with_causes};
use crate::agent::{self, Options, Source};
use crate::size::parse_size;

/// The options of `quarry agent`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quarry agent --dev /tmp/quarry                     no config, no root, no kernel module
  quarry agent --config /etc/quarry/quarry.toml
  quarry agent --config quarry.toml --check-config   print the config with all defaults, and do nothing else

When calls and logins are answered, one line is printed:
  ready endpoint=unix:/tmp/quarry/quarry.sock iscsi=127.0.0.1:3260

On SIGUSR2 the binary that is at the same path by then takes over, in the same process; see docs/operations/upgrade.md")]
pub struct AgentArgs {
    /// Run with this config file
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "dev",
        conflicts_with = "dev"
    )]
    config: Option<PathBuf>,
    /// Run without a config: keep everything in this folder, with a pool in a sparse file there
    #[arg(long, value_name = "DIR")]
    dev: Option<PathBuf>,
    /// With --dev: the size of the pool when it is made
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "dev")]
    dev_pool_size: Option<u64>,
    /// Print the config with all defaults filled in, and do nothing else
    #[arg(long)]
    check_config: bool,
}

impl From<AgentArgs> for Options {
    fn from(args: AgentArgs) -> Self {
        let source = match (args.config, args.dev) {
            (Some(path), _) => Source::File(path),
            (None, dir) => Source::Dev {
                dir: dir.expect("clap requires --dev where there is no --config"),
                pool_size_bytes: args.dev_pool_size,
            },
        };
        Options {
            source,
            check_config: args.check_config,
        }
    }
}

/// Runs the agent until it is told to stop.
///
/// # Errors
/// Whatever keeps it from starting, with all causes.
pub fn run(args: AgentArgs) -> Result<(), Failure> {
    agent::run(&args.into()).map_err(|error| Failure::new(Exit::Failed, with_causes(&error)))
}
