//! `quarry share-snapshot`: the contents of shares at one moment.

use std::collections::BTreeMap;

use clap::Subcommand;
use quarry_proto::v1::share_snapshots_client::ShareSnapshotsClient;
use quarry_proto::v1::{
    CreateShareSnapshotsRequest, DeleteShareSnapshotRequest, GetShareSnapshotRequest,
    ListShareSnapshotsRequest, ShareSnapshot, ShareSnapshotMember,
};
use serde::Serialize;
use tonic::transport::Channel;
use uuid::Uuid;

use super::answer::{Answer, show_labels, show_time, sorted_labels};
use super::argument::{id_or_new, parse_id, parse_label};
use super::failure::{Exit, Failure};
use super::mutation::MutationArgs;
use super::paging::{PAGE_SIZE, all_pages};
use super::share::{LocationRecord, show_location};
use crate::size::show_size;

/// The verbs of `quarry share-snapshot`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take a snapshot of a share, or of several at one moment
    #[command(after_help = "\
Examples:
  quarry share-snapshot create --share SHARE_ID
  quarry share-snapshot create --share DATA_ID --share LOG_ID

With several --share, all are caught at one moment, or none is; the answer is then a list.")]
    Create {
        /// The share to take it of; several make a group
        #[arg(long = "share", value_parser = parse_id, value_name = "ID", required = true)]
        shares: Vec<Uuid>,
        /// The snapshot's id, a UUID; a new one is made and shown when left out. In a group: one for each share, in the
        /// same order
        #[arg(long = "id", value_parser = parse_id, value_name = "ID")]
        ids: Vec<Uuid>,
        /// A label of your own, key=value; may be given several times
        #[arg(long = "label", value_parser = parse_label, value_name = "KEY=VALUE")]
        labels: Vec<(String, String)>,
        #[command(flatten)]
        mutation: MutationArgs,
    },
    /// List snapshots of shares
    List {
        /// Only snapshots of this share, which may be gone
        #[arg(long, value_parser = parse_id, value_name = "ID")]
        share: Option<Uuid>,
    },
    /// Show one snapshot in full
    Show {
        /// The snapshot's id
        #[arg(value_parser = parse_id)]
        id: Uuid,
    },
    /// Delete a snapshot and its rules; one that is not there is fine, and clones of it live on
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
    let mut client = ShareSnapshotsClient::new(channel);
    match command {
        Command::Create {
            shares,
            ids,
            labels,
            mutation,
        } => {
            if !ids.is_empty() && ids.len() != shares.len() {
                let problem = format!(
                    "{} --share but {} --id: give an id for each share or none",
                    shares.len(),
                    ids.len()
                );
                return Err(Failure::new(Exit::Usage, problem));
            }
            let mut ids = ids.into_iter();
            let members = shares
                .iter()
                .map(|share| ShareSnapshotMember {
                    snapshot_id: id_or_new(ids.next()),
                    share_id: share.to_string(),
                })
                .collect();
            let request = CreateShareSnapshotsRequest {
                members,
                labels: labels.into_iter().collect(),
                mutation: mutation.into(),
            };
            let taken = client
                .create_share_snapshots(request)
                .await?
                .into_inner()
                .snapshots;
            match &taken[..] {
                [only] => Ok(shown(only)),
                group => Ok(listed(group)),
            }
        }
        Command::List { share } => {
            let share_id = share.map(|id| id.to_string()).unwrap_or_default();
            let snapshots = all_pages(async |page_token| {
                let request = ListShareSnapshotsRequest {
                    page_size: PAGE_SIZE,
                    page_token,
                    share_id: share_id.clone(),
                };
                let page = client.list_share_snapshots(request).await?.into_inner();
                Ok((page.snapshots, page.next_page_token))
            })
            .await?;
            Ok(listed(&snapshots))
        }
        Command::Show { id } => {
            let request = GetShareSnapshotRequest { id: id.to_string() };
            Ok(shown(&client.get_share_snapshot(request).await?.into_inner()))
        }
        Command::Delete { id, mutation } => {
            let request = DeleteShareSnapshotRequest {
                id: id.to_string(),
                mutation: mutation.into(),
            };
            client.delete_share_snapshot(request).await?;
            Ok(Answer::deleted("share snapshot", id))
        }
    }
}

/// A snapshot as JSON.
#[derive(Serialize)]
struct Record<'a> {
    id: &'a str,
    share_id: &'a str,
    pool: &'a str,
    size_bytes: u64,
    export_locations: Vec<LocationRecord<'a>>,
    labels: BTreeMap<&'a str, &'a str>,
    generation: u64,
    create_time: Option<String>,
}

impl<'a> From<&'a ShareSnapshot> for Record<'a> {
    fn from(snapshot: &'a ShareSnapshot) -> Self {
        Self {
            id: &snapshot.id,
            share_id: &snapshot.share_id,
            pool: &snapshot.pool,
            size_bytes: snapshot.size_bytes,
            export_locations: snapshot
                .export_locations
                .iter()
                .map(LocationRecord::from)
                .collect(),
            labels: sorted_labels(&snapshot.labels),
            generation: snapshot.generation,
            create_time: snapshot.create_time.as_ref().map(ToString::to_string),
        }
    }
}

fn listed(snapshots: &[ShareSnapshot]) -> Answer {
    let row = |snapshot: &ShareSnapshot| {
        vec![
            snapshot.id.clone(),
            snapshot.share_id.clone(),
            snapshot.pool.clone(),
            show_size(snapshot.size_bytes),
            show_time(snapshot.create_time.as_ref()),
        ]
    };
    let records: Vec<Record<'_>> = snapshots.iter().map(Record::from).collect();
    let rows = snapshots.iter().map(row).collect();
    Answer::list(&["ID", "SHARE", "POOL", "SIZE", "CREATED"], rows, &records)
}

fn shown(snapshot: &ShareSnapshot) -> Answer {
    let mut properties = vec![
        ("id", snapshot.id.clone()),
        ("share", snapshot.share_id.clone()),
        ("pool", snapshot.pool.clone()),
        (
            "size",
            format!(
                "{} ({} bytes)",
                show_size(snapshot.size_bytes),
                snapshot.size_bytes
            ),
        ),
    ];
    for location in &snapshot.export_locations {
        properties.push(("location", show_location(location)));
    }
    properties.extend([
        ("labels", show_labels(&snapshot.labels)),
        ("generation", snapshot.generation.to_string()),
        ("created", show_time(snapshot.create_time.as_ref())),
    ]);
    Answer::show(properties, &Record::from(snapshot))
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;
    use crate::cli::golden::assert_golden;

    #[test]
    fn share_snapshot_answers_match_their_golden_files() {
        let snapshot = ShareSnapshot {
            id: "00000000-0000-4000-8000-0000000000e1".into(),
            share_id: "00000000-0000-4000-8000-0000000000d1".into(),
            pool: "shares".into(),
            size_bytes: 10 << 30,
            generation: 1,
            create_time: Some(Timestamp {
                seconds: 1_790_000_000,
                nanos: 0,
            }),
            ..ShareSnapshot::default()
        };
        assert_golden("share-snapshot-list", &listed(std::slice::from_ref(&snapshot)));
        assert_golden("share-snapshot-show", &shown(&snapshot));
    }
}
