//! The command line: `quarry <noun> <verb>`, each verb one call of the agent's API.
//!
//! One file per noun, and one for the verbs that look into a pool file without an agent. A noun's file has the verbs as
//! clap reads them, `run`, which makes a request of a verb's arguments and an [`Answer`] of the response, and the noun's
//! two shapes of output. Nothing is decided here that the agent decides: arguments are checked only as far as they must be
//! to fill in a request.
//!
//! An answer goes to standard output, a [`Failure`] to standard error and into the exit code: 0 done, 1 refused or
//! failed, 2 wrong usage, 3 not found, 4 nobody answers, 5 a pool file is damaged.

mod access;
mod agent;
mod answer;
mod argument;
mod attachment;
mod endpoint;
mod extents;
mod failure;
mod findings;
#[cfg(test)]
mod golden;
mod key;
mod limit;
mod mutation;
mod node;
mod operation;
mod paging;
mod pool;
mod pool_file;
mod scrub;
mod share;
mod share_snapshot;
mod snapshot;
mod volume;
mod word;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use answer::{Answer, Format};
use endpoint::ConnectionArgs;
use failure::{Exit, Failure};

/// Storage agent: thin volumes over iSCSI and shares over NFS, for an API control plane
#[derive(Debug, Parser)]
#[command(
    name = "quarry",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "\
Examples:
  quarry agent --dev /tmp/quarry &                   try it: everything in one folder
  export QUARRY_ENDPOINT=unix:/tmp/quarry/quarry.sock
  quarry volume create --size 2GiB                   a thin volume
  quarry attachment create --volume ID --initiator iqn.1993-08.org.debian:01:host1 -o json
                                                     reach it from a host
  quarry snapshot create --volume ID                 keep its contents as they are now
  quarry volume create --from snapshot:ID            a writable clone of them
  quarry share create --size 10GiB                   a file system to mount over NFS
  quarry access set share:ID --rule rw:10.0.0.7      who may use it

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 not found, 4 no agent answers,
5 a pool file is damaged."
)]
struct Cli {
    /// How to show the answer
    #[arg(
        short,
        long,
        value_enum,
        default_value = "table",
        value_name = "FORMAT",
        global = true
    )]
    output: Format,

    #[command(flatten)]
    connection: ConnectionArgs,

    #[command(subcommand)]
    noun: Noun,
}

/// What a command is about.
#[derive(Debug, Subcommand)]
enum Noun {
    /// Pools: where volumes are cut from
    #[command(
        subcommand,
        after_help = "\
Examples:
  quarry pool list
  quarry pool show default -o json | jq .free_bytes
  quarry pool check --pool default                   while it is in use
  quarry pool check /var/lib/quarry/default.pool     while no agent has it open"
    )]
    Pool(pool::Command),
    /// Volumes: thin block devices that take space only for what is written
    #[command(
        subcommand,
        after_help = "\
Examples:
  quarry volume create --size 2GiB --label project=web
  quarry volume extend VOLUME_ID --size 4GiB
  quarry volume revert VOLUME_ID --to-snapshot SNAPSHOT_ID
  quarry volume delete VOLUME_ID --cascade"
    )]
    Volume(volume::Command),
    /// Snapshots: the contents of volumes at one moment
    #[command(
        subcommand,
        after_help = "\
Examples:
  quarry snapshot create --volume VOLUME_ID
  quarry snapshot list --volume VOLUME_ID
  quarry snapshot delete SNAPSHOT_ID"
    )]
    Snapshot(snapshot::Command),
    /// Attachments: the right of a host to reach a volume, and how it does
    #[command(
        subcommand,
        after_help = "\
Examples:
  quarry attachment create --volume VOLUME_ID --initiator iqn.1993-08.org.debian:01:host1
  quarry attachment show ATTACHMENT_ID -o json | jq .connection_info
  quarry attachment sessions
  quarry attachment delete ATTACHMENT_ID"
    )]
    Attachment(attachment::Command),
    /// Shares: file systems that clients mount over the network
    #[command(
        subcommand,
        after_help = "\
Examples:
  quarry share create --size 10GiB
  quarry share resize SHARE_ID --size 20GiB
  quarry share revert SHARE_ID --to-snapshot SNAPSHOT_ID
  quarry share pools"
    )]
    Share(share::Command),
    /// Snapshots of shares: their contents at one moment
    #[command(
        subcommand,
        after_help = "\
Examples:
  quarry share-snapshot create --share SHARE_ID
  quarry share-snapshot list --share SHARE_ID"
    )]
    ShareSnapshot(share_snapshot::Command),
    /// Access: who may use a share or a snapshot of one
    #[command(
        subcommand,
        after_help = "\
Examples:
  quarry access set share:SHARE_ID --rule rw:10.0.0.7 --rule ro:10.0.0.0/24
  quarry access explain share:SHARE_ID 10.0.0.9"
    )]
    Access(access::Command),
    /// The agent itself: who it is and how it is
    #[command(
        subcommand,
        after_help = "\
Examples:
  quarry node show
  quarry node show -o json | jq -r .health.problems[]"
    )]
    Node(node::Command),
    /// Operations: the journal of calls that changed something
    #[command(
        subcommand,
        after_help = "\
Examples:
  quarry operation list --failed
  quarry operation list --target VOLUME_ID"
    )]
    Operation(operation::Command),
    /// Run the agent in the foreground until SIGTERM or Ctrl-C
    Agent(agent::AgentArgs),
}

/// What the options of commands that ask an agent are called, which every command inherits.
const ASKING: [&str; 6] = ["output", "endpoint", "ca", "cert", "key", "timeout"];

impl Cli {
    /// Reads a command line. The help of `quarry agent`, which asks nobody, is without the options for that.
    fn read(line: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, clap::Error> {
        let mut command = Cli::command();
        // Only then do commands have what they inherit.
        command.build();
        let matches = command
            .mut_subcommand("agent", |agent| {
                agent.mut_args(|arg| {
                    let asks = ASKING.contains(&arg.get_id().as_str());
                    arg.hide(asks)
                })
            })
            .try_get_matches_from(line)?;
        Cli::from_arg_matches(&matches)
    }
}

/// Runs the command line of this process and returns what to exit with.
pub fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come as "errors" with code 0; a reader that has gone away is no failure.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8));
        }
    };
    match run(cli) {
        Ok(exit) => exit.map_or(ExitCode::SUCCESS, ExitCode::from),
        Err(failure) => {
            eprintln!("{failure}");
            failure.exit.into()
        }
    }
}

/// Runs a command; what it comes to may have an exit code of its own.
fn run(cli: Cli) -> Result<Option<Exit>, Failure> {
    let answer = match cli.noun {
        Noun::Agent(args) => return agent::run(args).map(|()| None),
        Noun::Pool(pool::Command::File(command)) if !command.asks_agent() => pool_file::run(command)?,
        noun => ask(noun, &cli.connection)?,
    };
    answer
        .print(cli.output)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot write to standard output: {error}")))?;
    Ok(answer.exit())
}

/// Makes the call of a command that asks an agent.
fn ask(noun: Noun, connection: &ConnectionArgs) -> Result<Answer, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}")))?;
    runtime.block_on(call(noun, connection))
}

async fn call(noun: Noun, connection: &ConnectionArgs) -> Result<Answer, Failure> {
    let channel = connection.connect().await?;
    match noun {
        Noun::Pool(command) => pool::run(command, channel).await,
        Noun::Volume(command) => volume::run(command, channel).await,
        Noun::Snapshot(command) => snapshot::run(command, channel).await,
        Noun::Attachment(command) => attachment::run(command, channel).await,
        Noun::Share(command) => share::run(command, channel).await,
        Noun::ShareSnapshot(command) => share_snapshot::run(command, channel).await,
        Noun::Access(command) => access::run(command, channel).await,
        Noun::Node(command) => node::run(command, channel).await,
        Noun::Operation(command) => operation::run(command, channel).await,
        Noun::Agent(_) => unreachable!("the agent is run without a connection to one"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_matches_its_golden_files() {
        for path in [
            &["quarry"][..],
            &["quarry", "volume"],
            &["quarry", "volume", "create"],
            &["quarry", "attachment", "create"],
            &["quarry", "agent"],
        ] {
            let line = path.iter().copied().chain(["--help"]);
            let help = Cli::read(line).unwrap_err().to_string();
            golden::assert_golden_text(&format!("help-{}.txt", path.join("-")), help.trim_end());
        }
    }

    #[test]
    fn every_json_key_is_documented() {
        fn keys(value: &serde_json::Value, found: &mut std::collections::BTreeSet<String>) {
            match value {
                serde_json::Value::Array(items) => items.iter().for_each(|item| keys(item, found)),
                serde_json::Value::Object(members) => {
                    for (key, member) in members {
                        found.insert(key.clone());
                        // What is in these is the caller's and Cinder's.
                        if key != "labels" && key != "connection_info" {
                            keys(member, found);
                        }
                    }
                }
                _ => {}
            }
        }
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let page = std::fs::read_to_string(root.join("docs/operations/command-line.md")).unwrap();
        let mut found = std::collections::BTreeSet::new();
        for entry in std::fs::read_dir(root.join("src/cli/golden")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "json") {
                keys(
                    &serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap(),
                    &mut found,
                );
            }
        }
        assert!(found.len() > 50, "{found:?}");
        let missing: Vec<&String> = found
            .iter()
            .filter(|key| !page.contains(&format!("`{key}`")) && !page.contains(&format!("\"{key}\"")))
            .collect();
        assert!(
            missing.is_empty(),
            "not in docs/operations/command-line.md: {missing:?}"
        );
    }

    #[test]
    fn wrong_usage_is_refused_with_what_would_be_right() {
        let id = uuid::Uuid::from_u128(1).to_string();
        let wrong: [(&[&str], &str); 7] = [
            (&["volume", "create"], "--size <SIZE>"),
            (&["volume", "create", "--size", "2GB"], "2GiB"),
            (
                &["volume", "create", "--size", "2GiB", "--from", "image:1"],
                "snapshot:ID",
            ),
            (&["volume", "show", "7"], "\"7\" is not a UUID"),
            (&["volume", "extend", &id], "--size <SIZE>"),
            (&["attachment", "create", "--volume", &id], "--initiator <IQN>"),
            (
                &["--endpoint", "localhost", "pool", "list"],
                "unix:/path/to/quarry.sock",
            ),
        ];
        for (line, right) in wrong {
            let error = Cli::read(["quarry"].iter().chain(line)).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line:?}");
            assert!(error.to_string().contains(right), "{line:?}: {error}");
        }
    }
}
