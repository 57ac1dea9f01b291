//! cload: control calls to an agent through its API, by one caller or several.
//!
//! It makes as many volumes as are to be there, and then each kind of call so and so many times. It leaves these volumes and the
//! clones behind. What it is used for: benches/README.md.

mod calls;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Uri};

use calls::Caller;
use report::Report;

/// Measures control calls and prints calls a second and latencies as JSON.
#[derive(Debug, Parser)]
struct Options {
    /// The agent's socket
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// How many volumes are there before anything is measured
    #[arg(long, default_value_t = 10)]
    volumes: usize,
    /// How many calls of each kind are measured
    #[arg(long, default_value_t = 500)]
    calls: usize,
    /// How many calls are under way at a time
    #[arg(long, default_value_t = 1)]
    callers: usize,
}

/// Calls under way while the volumes are made that are not measured.
const FILLERS: usize = 16;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options).await {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cload: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> anyhow::Result<String> {
    let path = options.socket.clone();
    let channel = Channel::builder(Uri::from_static("http://localhost"))
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .with_context(|| format!("connecting to {}", options.socket.display()))?;
    let caller = Caller::new(channel);
    let already = calls::ids(options.volumes);
    calls::repeat(&already, FILLERS, |id| caller.clone().create(id)).await?;

    let volumes = calls::ids(options.calls);
    let snapshots = calls::ids(options.calls);
    let clones = calls::ids(options.calls);
    let attachments = calls::ids(options.calls);
    let numbers: Vec<usize> = (0..options.calls).collect();
    let mut report = Report::default();
    macro_rules! measure {
        ($name:literal, $call:expr) => {
            report.add(
                $name,
                calls::repeat(&numbers, options.callers, $call).await?,
            );
        };
    }
    measure!("create", |n| caller.clone().create(volumes[n]));
    measure!("snapshot", |n| caller.clone().snapshot(snapshots[n], volumes[n]));
    measure!("clone", |n| caller.clone().clone_of(clones[n], snapshots[n]));
    measure!("attach", |n| caller.clone().attach(attachments[n], volumes[n]));
    measure!("list", |_| caller.clone().list());
    measure!("detach", |n| caller.clone().detach(attachments[n]));
    measure!("delete a snapshot", |n| caller
        .clone()
        .delete_snapshot(snapshots[n]));
    measure!("delete a volume", |n| caller.clone().delete(volumes[n]));
    Ok(serde_json::to_string(&report)?)
}
