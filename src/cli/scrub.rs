//! `quarry pool scrub`: reading and verifying everything in a pool that has checksums.

use clap::Args;
use quarry_proto::v1::pools_client::PoolsClient;
use quarry_proto::v1::{GetScrubRequest, Scrub, ScrubFinding, StartScrubRequest, StopScrubRequest};
use serde::Serialize;
use tonic::transport::Channel;

use super::answer::{Answer, show_time};
use super::failure::{Exit, Failure};
use super::word::word;
use crate::size::show_size;

/// What `quarry pool scrub` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quarry pool scrub --pool default             begin, or tell how far the running one is
  quarry pool scrub --pool default --status    only tell
  quarry pool scrub --pool default --stop

It runs in the background and goes on after a restart of the agent. Exit code 5 says that damage has been found.")]
pub struct ScrubArgs {
    /// The pool's name
    #[arg(long = "pool", value_name = "NAME")]
    pool: String,
    /// Only tell how the running one is, or the last one was
    #[arg(long, conflicts_with = "stop")]
    status: bool,
    /// End the running one
    #[arg(long)]
    stop: bool,
}

/// Runs the verb.
pub(super) async fn run(args: ScrubArgs, client: &mut PoolsClient<Channel>) -> Result<Answer, Failure> {
    let pool = args.pool;
    let scrub = match (args.status, args.stop) {
        (true, _) => client.get_scrub(GetScrubRequest { pool }).await?,
        (_, true) => client.stop_scrub(StopScrubRequest { pool }).await?,
        (false, false) => client.start_scrub(StartScrubRequest { pool }).await?,
    };
    Ok(shown(&scrub.into_inner()))
}

/// A scrub as JSON.
#[derive(Serialize)]
struct Record<'a> {
    state: String,
    begin_time: Option<String>,
    verified_bytes: u64,
    skipped_bytes: u64,
    total_bytes: u64,
    unverifiable_bytes: u64,
    bad_blocks: u64,
    findings: Vec<FindingRecord<'a>>,
}

/// A damaged block as JSON.
#[derive(Serialize)]
struct FindingRecord<'a> {
    volume_id: &'a str,
    snapshot_id: &'a str,
    offset_bytes: u64,
    chunk: u64,
    pool_offset_bytes: u64,
}

impl<'a> From<&'a ScrubFinding> for FindingRecord<'a> {
    fn from(finding: &'a ScrubFinding) -> Self {
        Self {
            volume_id: &finding.volume_id,
            snapshot_id: &finding.snapshot_id,
            offset_bytes: finding.offset_bytes,
            chunk: finding.chunk,
            pool_offset_bytes: finding.pool_offset_bytes,
        }
    }
}

fn shown(scrub: &Scrub) -> Answer {
    let record = Record {
        state: word(scrub.state().as_str_name(), "SCRUB_STATE_"),
        begin_time: scrub.begin_time.as_ref().map(ToString::to_string),
        verified_bytes: scrub.verified_bytes,
        skipped_bytes: scrub.skipped_bytes,
        total_bytes: scrub.total_bytes,
        unverifiable_bytes: scrub.unverifiable_bytes,
        bad_blocks: scrub.bad_blocks,
        findings: scrub.findings.iter().map(FindingRecord::from).collect(),
    };
    let verified = match scrub.total_bytes {
        0 => "nothing to do: no volume with checksums holds anything".to_owned(),
        total => format!("{} of {}", show_size(scrub.verified_bytes), show_size(total)),
    };
    let mut properties = vec![
        ("state", record.state.clone()),
        ("begun", show_time(scrub.begin_time.as_ref())),
        ("verified", verified),
    ];
    if scrub.skipped_bytes > 0 {
        let skipped = format!(
            "up to {}, with what says where it is or what it holds; see pool check",
            show_size(scrub.skipped_bytes)
        );
        properties.push(("lost", skipped));
    }
    properties.extend([
        ("no checksums", show_size(scrub.unverifiable_bytes)),
        ("damaged blocks", scrub.bad_blocks.to_string()),
    ]);
    properties.extend(scrub.findings.iter().map(|found| ("damaged", sentence(found))));
    let is_damaged = scrub.bad_blocks > 0 || scrub.skipped_bytes > 0;
    let exit = is_damaged.then_some(Exit::Damaged);
    Answer::show(properties, &record).with_exit(exit)
}

fn sentence(found: &ScrubFinding) -> String {
    let whose = match (&found.volume_id[..], &found.snapshot_id[..]) {
        ("", "") => "nobody's any more".to_owned(),
        ("", id) => format!("byte {} of snapshot {id}", found.offset_bytes),
        (id, _) => format!("byte {} of volume {id}", found.offset_bytes),
    };
    format!(
        "{whose}; byte {} of the pool, chunk {}",
        found.pool_offset_bytes, found.chunk
    )
}

#[cfg(test)]
mod tests {
    use quarry_proto::v1::ScrubState;

    use super::*;
    use crate::cli::golden::assert_golden;

    #[test]
    fn scrubs_match_their_golden_files() {
        let found = |volume_id: &str, snapshot_id: &str| ScrubFinding {
            volume_id: volume_id.into(),
            snapshot_id: snapshot_id.into(),
            offset_bytes: 81920,
            chunk: 7,
            pool_offset_bytes: 67_600_384,
        };
        let mut scrub = Scrub {
            begin_time: Some(prost_types::Timestamp {
                seconds: 1_790_000_000,
                nanos: 0,
            }),
            verified_bytes: 3 << 30,
            total_bytes: 10 << 30,
            skipped_bytes: 32 << 20,
            unverifiable_bytes: 5 << 30,
            bad_blocks: 3,
            findings: vec![
                found("00000000-0000-4000-8000-000000000001", ""),
                found("", "00000000-0000-4000-8000-000000000002"),
                found("", ""),
            ],
            ..Scrub::default()
        };
        scrub.set_state(ScrubState::Running);
        let answer = shown(&scrub);
        assert_eq!(answer.exit(), Some(Exit::Damaged));
        assert_golden("pool-scrub", &answer);
        let mut never = Scrub::default();
        never.set_state(ScrubState::Never);
        let answer = shown(&never);
        assert_eq!(answer.exit(), None);
        assert_golden("pool-scrub-nothing", &answer);
    }
}
