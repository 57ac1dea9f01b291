//! `quarry node`: the agent itself.

use clap::Subcommand;
use quarry_proto::v1::node_client::NodeClient;
use quarry_proto::v1::{Driver, GetNodeRequest, NodeInfo};
use serde::Serialize;
use tonic::transport::Channel;

use super::answer::{Answer, show_text, show_time};
use super::failure::Failure;
use super::word::word;

/// The verbs of `quarry node`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show who the agent is, what it is made of and how it is
    Show,
}

/// Runs one verb.
pub async fn run(command: Command, channel: Channel) -> Result<Answer, Failure> {
    let mut client = NodeClient::new(channel);
    match command {
        Command::Show => Ok(shown(&client.get_node(GetNodeRequest {}).await?.into_inner())),
    }
}

/// The agent as JSON.
#[derive(Serialize)]
struct Record<'a> {
    id: &'a str,
    hostname: &'a str,
    version: &'a str,
    api_versions: &'a [String],
    start_time: Option<String>,
    drivers: Vec<DriverRecord<'a>>,
    portals: &'a [String],
    share_portals: &'a [String],
    health: HealthRecord<'a>,
    recovery: RecoveryRecord,
}

/// A driver as JSON.
#[derive(Serialize)]
struct DriverRecord<'a> {
    role: String,
    name: &'a str,
    instance: &'a str,
    capabilities: &'a [String],
}

/// The agent's health as JSON.
#[derive(Serialize)]
struct HealthRecord<'a> {
    state: String,
    problems: &'a [String],
}

/// What the last start found and did, as JSON.
#[derive(Serialize)]
struct RecoveryRecord {
    operations_finished: u64,
    operations_undone: u64,
    exports_restored: u64,
    exports_failed: u64,
}

impl<'a> From<&'a NodeInfo> for Record<'a> {
    fn from(node: &'a NodeInfo) -> Self {
        let recovery = node.recovery.unwrap_or_default();
        Self {
            id: &node.id,
            hostname: &node.hostname,
            version: &node.version,
            api_versions: &node.api_versions,
            start_time: node.start_time.as_ref().map(ToString::to_string),
            drivers: node.drivers.iter().map(DriverRecord::from).collect(),
            portals: &node.portals,
            share_portals: &node.share_portals,
            health: HealthRecord {
                state: health(node),
                problems: node.health.as_ref().map_or(&[], |health| &health.problems),
            },
            recovery: RecoveryRecord {
                operations_finished: recovery.operations_finished,
                operations_undone: recovery.operations_undone,
                exports_restored: recovery.exports_restored,
                exports_failed: recovery.exports_failed,
            },
        }
    }
}

impl<'a> From<&'a Driver> for DriverRecord<'a> {
    fn from(driver: &'a Driver) -> Self {
        Self {
            role: word(driver.role().as_str_name(), "DRIVER_ROLE_"),
            name: &driver.name,
            instance: &driver.instance,
            capabilities: &driver.capabilities,
        }
    }
}

fn health(node: &NodeInfo) -> String {
    let state = node
        .health
        .as_ref()
        .map(|health| health.state())
        .unwrap_or_default();
    word(state.as_str_name(), "HEALTH_STATE_")
}

fn shown(node: &NodeInfo) -> Answer {
    let record = Record::from(node);
    let mut properties = vec![
        ("id", node.id.clone()),
        ("host", node.hostname.clone()),
        ("version", node.version.clone()),
        ("api", node.api_versions.join(", ")),
        ("started", show_time(node.start_time.as_ref())),
        ("portals", show_text(&node.portals.join(", "))),
    ];
    if !node.share_portals.is_empty() {
        properties.push(("share portals", node.share_portals.join(", ")));
    }
    for driver in &record.drivers {
        let line = format!("{} for {} {}", driver.name, driver.role, driver.instance);
        properties.push(("driver", line));
    }
    properties.push(("health", record.health.state.clone()));
    for problem in record.health.problems {
        properties.push(("problem", problem.clone()));
    }
    let recovery = &record.recovery;
    properties.push((
        "last start",
        format!(
            "{} operations finished, {} undone; {} exports restored, {} failed",
            recovery.operations_finished,
            recovery.operations_undone,
            recovery.exports_restored,
            recovery.exports_failed
        ),
    ));
    Answer::show(properties, &record)
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;
    use quarry_proto::v1::{DriverRole, Health, HealthState, RecoveryReport};

    use super::*;
    use crate::cli::golden::assert_golden;

    #[test]
    fn node_answers_match_their_golden_files() {
        let driver = |role: DriverRole, name: &str| Driver {
            role: role.into(),
            name: name.into(),
            instance: "default".into(),
            capabilities: vec!["snapshots".into()],
        };
        let node = NodeInfo {
            id: "00000000-0000-4000-8000-0000000000c1".into(),
            hostname: "storage1".into(),
            version: "0.1.0".into(),
            api_versions: vec!["quarry.v1".into()],
            start_time: Some(Timestamp {
                seconds: 1_790_000_000,
                nanos: 0,
            }),
            drivers: vec![
                driver(DriverRole::Volumes, "thin"),
                driver(DriverRole::Target, "iscsi"),
            ],
            portals: vec!["127.0.0.1:3260".into()],
            share_portals: vec!["192.0.2.4:2049".into()],
            health: Some(Health {
                state: HealthState::Degraded.into(),
                problems: vec!["pool default is read-only; restart the agent".into()],
            }),
            recovery: Some(RecoveryReport {
                operations_finished: 1,
                exports_restored: 2,
                ..RecoveryReport::default()
            }),
        };
        assert_golden("node-show", &shown(&node));
    }
}
