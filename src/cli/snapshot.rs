//! `quarry snapshot`: the contents of volumes at one moment.

use std::collections::BTreeMap;

use clap::Subcommand;
use quarry_proto::v1::snapshots_client::SnapshotsClient;
use quarry_proto::v1::version::Version as Chosen;
use quarry_proto::v1::{
    CreateGroupSnapshotRequest, CreateSnapshotRequest, DeleteSnapshotRequest, GetSnapshotRequest,
    GroupMember, ListSnapshotsRequest, Snapshot,
};
use serde::Serialize;
use tonic::transport::Channel;
use uuid::Uuid;

use super::answer::{Answer, show_labels, show_time, sorted_labels};
use super::argument::{Source, id_or_new, parse_id, parse_label, parse_source};
use super::extents;
use super::failure::{Exit, Failure};
use super::mutation::MutationArgs;
use super::paging::{PAGE_SIZE, all_pages};
use crate::size::show_size;

/// The verbs of `quarry snapshot`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take a snapshot of a volume, or of several at one moment
    #[command(after_help = "\
Examples:
  quarry snapshot create --volume VOLUME_ID
  quarry snapshot create --volume DATA_ID --volume LOG_ID

With several --volume, all are caught at one moment, or none is; the answer is then a list.")]
    Create {
        /// The volume to take it of; several make a group
        #[arg(long = "volume", value_parser = parse_id, value_name = "ID", required = true)]
        volumes: Vec<Uuid>,
        /// The snapshot's id, a UUID; a new one is made and shown when left out. In a group: one for each volume,
        /// in the same order
        #[arg(long = "id", value_parser = parse_id, value_name = "ID")]
        ids: Vec<Uuid>,
        /// A label of your own, key=value; may be given several times
        #[arg(long = "label", value_parser = parse_label, value_name = "KEY=VALUE")]
        labels: Vec<(String, String)>,
        #[command(flatten)]
        mutation: MutationArgs,
    },
    /// List snapshots
    List {
        /// Only snapshots of this volume, which may be gone
        #[arg(long, value_parser = parse_id, value_name = "ID")]
        volume: Option<Uuid>,
        /// Only snapshots in this pool
        #[arg(long, value_name = "NAME")]
        pool: Option<String>,
    },
    /// Show one snapshot in full
    Show {
        /// The snapshot's id
        #[arg(value_parser = parse_id)]
        id: Uuid,
    },
    /// Show where data is, or what has changed since another version
    #[command(after_help = "\
Examples:
  quarry snapshot extents SNAPSHOT_ID                          where anything but zeros may be
  quarry snapshot extents SNAPSHOT_ID --since snapshot:ID      where it may differ from that snapshot

What lies between the extents is equal. Finding them takes as long as there are differences, not as long as the
snapshot is.")]
    Extents {
        /// The snapshot's id
        #[arg(value_parser = parse_id)]
        id: Uuid,
        /// What is there already: snapshot:ID or volume:ID of the same pool
        #[arg(long, value_parser = parse_source, value_name = "KIND:ID")]
        since: Option<Source>,
    },
    /// Delete a snapshot; one that is not there is fine, and clones of it live on
    Delete {
        /// The snapshot's id
        #[arg(value_parser = parse_id)]
        id: Uuid,
        #[command(flatten)]
        mutation: MutationArgs,
    },
}

/// Runs one verb.
pub async fn run(command: Command, channel: Channel) -> Result<Answer, Failure> {
    let mut client = SnapshotsClient::new(channel.clone());
    match command {
        Command::Create {
            volumes,
            ids,
            labels,
            mutation,
        } => {
            if !ids.is_empty() && ids.len() != volumes.len() {
                return Err(Failure::new(
                    Exit::Usage,
                    format!(
                        "{} --volume but {} --id: give an id for each volume or none",
                        volumes.len(),
                        ids.len()
                    ),
                ));
            }
            let mut ids = ids.into_iter();
            let mut members: Vec<GroupMember> = volumes
                .iter()
                .map(|volume| GroupMember {
                    snapshot_id: id_or_new(ids.next()),
                    volume_id: volume.to_string(),
                })
                .collect();
            if members.len() > 1 {
                let request = CreateGroupSnapshotRequest {
                    members,
                    labels: labels.into_iter().collect(),
                    mutation: mutation.into(),
                };
                let group = client.create_group_snapshot(request).await?.into_inner();
                return Ok(listed(&group.snapshots));
            }
            let member = members.remove(0);
            let request = CreateSnapshotRequest {
                id: member.snapshot_id,
                volume_id: member.volume_id,
                labels: labels.into_iter().collect(),
                mutation: mutation.into(),
            };
            Ok(shown(&client.create_snapshot(request).await?.into_inner()))
        }
        Command::List { volume, pool } => {
            let volume_id = volume.map(|id| id.to_string()).unwrap_or_default();
            let snapshots = all_pages(async |page_token| {
                let request = ListSnapshotsRequest {
                    page_size: PAGE_SIZE,
                    page_token,
                    volume_id: volume_id.clone(),
                    pool: pool.clone().unwrap_or_default(),
                };
                let page = client.list_snapshots(request).await?.into_inner();
                Ok((page.snapshots, page.next_page_token))
            })
            .await?;
            Ok(listed(&snapshots))
        }
        Command::Show { id } => {
            let request = GetSnapshotRequest { id: id.to_string() };
            Ok(shown(&client.get_snapshot(request).await?.into_inner()))
        }
        Command::Extents { id, since } => {
            extents::list(Chosen::SnapshotId(id.to_string()), since, channel).await
        }
        Command::Delete { id, mutation } => {
            let request = DeleteSnapshotRequest {
                id: id.to_string(),
                mutation: mutation.into(),
            };
            client.delete_snapshot(request).await?;
            Ok(Answer::deleted("snapshot", id))
        }
    }
}

/// A snapshot as JSON.
#[derive(Serialize)]
struct Record<'a> {
    id: &'a str,
    volume_id: &'a str,
    pool: &'a str,
    size_bytes: u64,
    mapped_bytes: u64,
    labels: BTreeMap<&'a str, &'a str>,
    generation: u64,
    create_time: Option<String>,
}

impl<'a> From<&'a Snapshot> for Record<'a> {
    fn from(snapshot: &'a Snapshot) -> Self {
        Self {
            id: &snapshot.id,
            volume_id: &snapshot.volume_id,
            pool: &snapshot.pool,
            size_bytes: snapshot.size_bytes,
            mapped_bytes: snapshot.mapped_bytes,
            labels: sorted_labels(&snapshot.labels),
            generation: snapshot.generation,
            create_time: snapshot.create_time.as_ref().map(ToString::to_string),
        }
    }
}

fn listed(snapshots: &[Snapshot]) -> Answer {
    let rows = snapshots
        .iter()
        .map(|snapshot| {
            vec![
                snapshot.id.clone(),
                snapshot.volume_id.clone(),
                snapshot.pool.clone(),
                show_size(snapshot.size_bytes),
                show_time(snapshot.create_time.as_ref()),
            ]
        })
        .collect();
    let records: Vec<Record<'_>> = snapshots.iter().map(Record::from).collect();
    Answer::list(&["ID", "VOLUME", "POOL", "SIZE", "CREATED"], rows, &records)
}

fn shown(snapshot: &Snapshot) -> Answer {
    let properties = vec![
        ("id", snapshot.id.clone()),
        ("volume", snapshot.volume_id.clone()),
        ("pool", snapshot.pool.clone()),
        (
            "size",
            format!(
                "{} ({} bytes)",
                show_size(snapshot.size_bytes),
                snapshot.size_bytes
            ),
        ),
        ("mapped", show_size(snapshot.mapped_bytes)),
        ("labels", show_labels(&snapshot.labels)),
        ("generation", snapshot.generation.to_string()),
        ("created", show_time(snapshot.create_time.as_ref())),
    ];
    Answer::show(properties, &Record::from(snapshot))
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;
    use crate::cli::golden::assert_golden;

    #[test]
    fn snapshot_answers_match_their_golden_files() {
        let snapshot = Snapshot {
            id: "00000000-0000-4000-8000-0000000000b1".into(),
            volume_id: "00000000-0000-4000-8000-000000000001".into(),
            pool: "default".into(),
            size_bytes: 2 << 30,
            mapped_bytes: 5 << 20,
            labels: [("why".into(), "upgrade".into())].into_iter().collect(),
            generation: 1,
            create_time: Some(Timestamp {
                seconds: 1_790_000_000,
                nanos: 0,
            }),
        };
        assert_golden("snapshot-list", &listed(std::slice::from_ref(&snapshot)));
        assert_golden("snapshot-show", &shown(&snapshot));
    }
}
