//! `quarry pool`: the pools that volumes are cut from.

use clap::Subcommand;
use quarry_proto::v1::pools_client::PoolsClient;
use quarry_proto::v1::{CheckPoolRequest, GetPoolRequest, ListPoolsRequest, Pool, PoolProblem};
use serde::Serialize;
use tonic::transport::Channel;

use super::answer::{Answer, show_text};
use super::failure::Failure;
use super::findings::Findings;
use super::paging::{PAGE_SIZE, all_pages};
use super::pool_file;
use super::word::word;
use crate::size::show_size;

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
        Command::File(command) => {
            let name = command.pool().expect("what asks no agent is run without one");
            let request = CheckPoolRequest { name: name.clone() };
            let problems = client.check_pool(request).await?.into_inner().problems;
            let left = |problem: &&PoolProblem| !problem.repairable;
            let sentence = |problem: &PoolProblem| problem.sentence.clone();
            let findings = Findings {
                remaining: problems.iter().filter(left).map(sentence).collect(),
                found: problems.iter().map(sentence).collect(),
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
        }
    }
}

fn state(pool: &Pool) -> String {
    word(pool.state().as_str_name(), "POOL_STATE_")
}

fn listed(pools: &[Pool]) -> Answer {
    let rows = pools
        .iter()
        .map(|pool| {
            vec![
                pool.name.clone(),
                pool.driver.clone(),
                state(pool),
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
    use quarry_proto::v1::PoolState;

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
            ..Pool::default()
        }
    }

    #[test]
    fn pool_answers_match_their_golden_files() {
        let stopped = Pool {
            name: "slow".into(),
            state: PoolState::ReadOnly.into(),
            state_reason: "a flush failed; restart the agent".into(),
            ..pool()
        };
        assert_golden("pool-list", &listed(&[pool(), stopped.clone()]));
        assert_golden("pool-show", &shown(&pool()));
        assert_golden("pool-show-read-only", &shown(&stopped));
    }
}
