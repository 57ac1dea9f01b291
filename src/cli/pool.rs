//! `quarry pool`: the pools that volumes are cut from.

use clap::Subcommand;
use quarry_proto::v1::pools_client::PoolsClient;
use quarry_proto::v1::{
    CheckPoolRequest, GetPoolRequest, GrowPoolRequest, ListPoolsRequest, Pool, PoolProblem, PoolSpace,
};
use serde::Serialize;
use tonic::transport::Channel;

use super::answer::{Answer, show_text};
use super::failure::Failure;
use super::findings::Findings;
use super::paging::{PAGE_SIZE, all_pages};
use super::pool_file;
use super::scrub;
use super::word::word;
use crate::size::{parse_size, show_size};

/// The verbs of `quarry pool`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List all pools with their free space
    List,
    /// Show one pool in full
    Show {
        /// The pool's name
        name: String,
    },
    /// Make a pool larger while it is in use
    #[command(after_help = "\
Examples:
  quarry pool grow --pool default                    use what its file or block device has become larger by
  quarry pool grow --pool default --size 2TiB        make its file so large
  quarry pool grow --pool default --add /dev/sdc     add a block device that holds nothing
  quarry pool grow --pool default --add /srv/more.pool --size 1TiB

Nothing that the pool holds moves, and nothing is ever taken away again: from then on the pool needs what was added.")]
    Grow {
        /// The pool's name
        #[arg(long = "pool", value_name = "NAME")]
        name: String,
        /// The size that the pool's file shall have; with --add, of the file to be made if there is none
        #[arg(long, value_parser = parse_size)]
        size: Option<u64>,
        /// A file or block device to add: an absolute path on the agent's host
        #[arg(long, value_name = "PATH")]
        add: Option<String>,
    },
    /// Read everything in a pool that has checksums, in the background, and find what is damaged
    Scrub(scrub::ScrubArgs),
    /// What looks into a pool's file.
    #[command(flatten)]
    File(pool_file::Command),
}

/// Runs one verb.
pub async fn run(command: Command, channel: Channel) -> Result<Answer, Failure> {
    let mut client = PoolsClient::new(channel);
    match command {
        Command::List => {
            let pools = all_pages(async |page_token| {
                let request = ListPoolsRequest {
                    page_size: PAGE_SIZE,
                    page_token,
                };
                let page = client.list_pools(request).await?.into_inner();
                Ok((page.pools, page.next_page_token))
            })
            .await?;
            Ok(listed(&pools))
        }
        Command::Show { name } => {
            let pool = client.get_pool(GetPoolRequest { name }).await?.into_inner();
            Ok(shown(&pool))
        }
        Command::Grow { name, size, add } => {
            let request = GrowPoolRequest {
                name,
                size_bytes: size.unwrap_or_default(),
                device_path: add.unwrap_or_default(),
            };
            Ok(shown(&client.grow_pool(request).await?.into_inner()))
        }
        Command::Scrub(args) => scrub::run(args, &mut client).await,
        Command::File(command) => {
            let name = command.pool().expect("what asks no agent is run without one");
            let request = CheckPoolRequest { name: name.clone() };
            let problems = client.check_pool(request).await?.into_inner().problems;
            let left = |problem: &&PoolProblem| !problem.repairable;
            let sentence = |problem: &PoolProblem| problem.sentence.clone();
            let findings = Findings {
                remaining: problems.iter().filter(left).map(sentence).collect(),
                found: problems.iter().map(sentence).collect(),
                rebuilt: Vec::new(),
            };
            Ok(findings.of_check(&format!("pool {name}")))
        }
    }
}

/// A pool as JSON.
#[derive(Serialize)]
struct Record<'a> {
    name: &'a str,
    uuid: &'a str,
    driver: &'a str,
    state: String,
    state_reason: &'a str,
    total_bytes: u64,
    free_bytes: u64,
    allocated_bytes: u64,
    reclaimable_bytes: u64,
    reclaim_debt_bytes: u64,
    provisioned_bytes: u64,
    chunk_bytes: u64,
    volume_count: u64,
    snapshot_count: u64,
    max_volume_bytes: u64,
    size_granularity_bytes: u64,
    capabilities: &'a [String],
    space: Option<SpaceRecord>,
}

/// How full a pool is, as JSON.
#[derive(Serialize)]
struct SpaceRecord {
    level: String,
    available_bytes: u64,
    warn_bytes: u64,
    brake_bytes: u64,
    critical_bytes: u64,
    reserve_bytes: u64,
    waiting_writes: u64,
    first_deadline_ms: u64,
    refused_writes: u64,
}

impl From<&PoolSpace> for SpaceRecord {
    fn from(space: &PoolSpace) -> Self {
        Self {
            level: level(space),
            available_bytes: space.available_bytes,
            warn_bytes: space.warn_bytes,
            brake_bytes: space.brake_bytes,
            critical_bytes: space.critical_bytes,
            reserve_bytes: space.reserve_bytes,
            waiting_writes: space.waiting_writes,
            first_deadline_ms: space.first_deadline_ms,
            refused_writes: space.refused_writes,
        }
    }
}

impl<'a> From<&'a Pool> for Record<'a> {
    fn from(pool: &'a Pool) -> Self {
        Self {
            name: &pool.name,
            uuid: &pool.uuid,
            driver: &pool.driver,
            state: state(pool),
            state_reason: &pool.state_reason,
            total_bytes: pool.total_bytes,
            free_bytes: pool.free_bytes,
            allocated_bytes: pool.allocated_bytes,
            reclaimable_bytes: pool.reclaimable_bytes,
            reclaim_debt_bytes: pool.reclaim_debt_bytes,
            provisioned_bytes: pool.provisioned_bytes,
            chunk_bytes: pool.chunk_bytes,
            volume_count: pool.volume_count,
            snapshot_count: pool.snapshot_count,
            max_volume_bytes: pool.max_volume_bytes,
            size_granularity_bytes: pool.size_granularity_bytes,
            capabilities: &pool.capabilities,
            space: pool.space.as_ref().map(SpaceRecord::from),
        }
    }
}

fn state(pool: &Pool) -> String {
    word(pool.state().as_str_name(), "POOL_STATE_")
}

fn level(space: &PoolSpace) -> String {
    word(space.level().as_str_name(), "SPACE_LEVEL_")
}

/// Tells how full a pool is, and what it does about it.
fn fullness(space: &PoolSpace) -> Vec<(&'static str, String)> {
    let begins = |bytes: u64| match bytes {
        0 => "off".to_owned(),
        bytes => show_size(bytes),
    };
    let mut lines = vec![
        ("level", level(space)),
        ("available", show_size(space.available_bytes)),
        (
            "levels",
            format!(
                "warn {}, brake {}, critical {}, reserve {}",
                begins(space.warn_bytes),
                begins(space.brake_bytes),
                begins(space.critical_bytes),
                show_size(space.reserve_bytes)
            ),
        ),
        ("writes refused", space.refused_writes.to_string()),
    ];
    if space.waiting_writes > 0 {
        let seconds = space.first_deadline_ms.div_ceil(1000);
        lines.push((
            "writes waiting",
            format!("{}, the first for {seconds} s more", space.waiting_writes),
        ));
    }
    lines
}

fn listed(pools: &[Pool]) -> Answer {
    let rows = pools
        .iter()
        .map(|pool| {
            vec![
                pool.name.clone(),
                pool.driver.clone(),
                state(pool),
                pool.space.as_ref().map_or_else(|| "-".to_owned(), level),
                show_size(pool.total_bytes),
                show_size(pool.free_bytes),
                show_size(pool.provisioned_bytes),
                pool.volume_count.to_string(),
                pool.snapshot_count.to_string(),
            ]
        })
        .collect();
    let records: Vec<Record<'_>> = pools.iter().map(Record::from).collect();
    let headers = [
        "NAME",
        "DRIVER",
        "STATE",
        "LEVEL",
        "TOTAL",
        "FREE",
        "PROVISIONED",
        "VOLUMES",
        "SNAPSHOTS",
    ];
    Answer::list(&headers, rows, &records)
}

fn shown(pool: &Pool) -> Answer {
    let mut properties = vec![
        ("name", pool.name.clone()),
        ("uuid", pool.uuid.clone()),
        ("driver", pool.driver.clone()),
        ("state", state(pool)),
    ];
    if !pool.state_reason.is_empty() {
        properties.push(("reason", pool.state_reason.clone()));
    }
    properties.extend(pool.space.iter().flat_map(fullness));
    properties.extend([
        ("total", show_size(pool.total_bytes)),
        ("free", show_size(pool.free_bytes)),
        ("allocated", show_size(pool.allocated_bytes)),
        ("reclaimable", show_size(pool.reclaimable_bytes)),
        ("reclaim debt", show_size(pool.reclaim_debt_bytes)),
        ("provisioned", show_size(pool.provisioned_bytes)),
        ("chunk", show_size(pool.chunk_bytes)),
        ("volumes", pool.volume_count.to_string()),
        ("snapshots", pool.snapshot_count.to_string()),
        ("largest volume", show_size(pool.max_volume_bytes)),
        ("size granularity", show_size(pool.size_granularity_bytes)),
        ("capabilities", show_text(&pool.capabilities.join(", "))),
    ]);
    Answer::show(properties, &Record::from(pool))
}

#[cfg(test)]
mod tests {
    use quarry_proto::v1::{PoolState, SpaceLevel};

    use super::*;
    use crate::cli::golden::assert_golden;

    fn pool() -> Pool {
        Pool {
            name: "default".into(),
            uuid: "0d1e2f30-0000-4000-8000-000000000001".into(),
            driver: "thin".into(),
            state: PoolState::Up.into(),
            total_bytes: 64 << 30,
            free_bytes: 60 << 30,
            allocated_bytes: 4 << 30,
            reclaimable_bytes: 1 << 20,
            reclaim_debt_bytes: 3 << 20,
            provisioned_bytes: 100 << 30,
            chunk_bytes: 64 << 10,
            volume_count: 3,
            snapshot_count: 2,
            max_volume_bytes: 64 << 40,
            size_granularity_bytes: 4096,
            capabilities: vec!["clones".into(), "snapshots".into()],
            space: Some(PoolSpace {
                level: SpaceLevel::Normal.into(),
                available_bytes: 59 << 30,
                warn_bytes: 13 << 30,
                reserve_bytes: 1 << 30,
                ..PoolSpace::default()
            }),
            ..Pool::default()
        }
    }

    #[test]
    fn pool_answers_match_their_golden_files() {
        let stopped = Pool {
            name: "slow".into(),
            state: PoolState::ReadOnly.into(),
            state_reason: "a flush failed; restart the agent".into(),
            space: Some(PoolSpace {
                level: SpaceLevel::Critical.into(),
                available_bytes: 2 << 30,
                warn_bytes: 13 << 30,
                brake_bytes: 6 << 30,
                critical_bytes: 3 << 30,
                reserve_bytes: 1 << 30,
                waiting_writes: 3,
                first_deadline_ms: 41_200,
                refused_writes: 17,
            }),
            ..pool()
        };
        assert_golden("pool-list", &listed(&[pool(), stopped.clone()]));
        assert_golden("pool-show", &shown(&pool()));
        assert_golden("pool-show-read-only", &shown(&stopped));
    }
}
