//! `quarry share`: file systems that clients mount over the network.

use std::collections::BTreeMap;

use clap::{Subcommand, ValueEnum};
use quarry_proto::v1::shares_client::SharesClient;
use quarry_proto::v1::{
    AdoptShareRequest, CreateShareRequest, DeleteShareRequest, ExportLocation, GetShareRequest,
    ListSharePoolsRequest, ListSharesRequest, ReleaseShareRequest, ResizeShareRequest, RevertShareRequest,
    Share, SharePool, ShareSource, Squash, share_source,
};
use serde::Serialize;
use tonic::transport::Channel;
use uuid::Uuid;

use super::answer::{Answer, show_labels, show_text, show_time, sorted_labels};
use super::argument::{ShareVersion, id_or_new, parse_id, parse_label, parse_share_version};
use super::failure::Failure;
use super::mutation::MutationArgs;
use super::paging::{PAGE_SIZE, all_pages};
use super::word::word;
use crate::size::{parse_size, show_size};

/// The verbs of `quarry share`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a share, empty or as a clone; nobody may use it until `access set`
    #[command(after_help = "\
Examples:
  quarry share create --size 10GiB
  quarry share create --from snapshot:SNAPSHOT_ID
  quarry share create --from share:SHARE_ID --size 20GiB")]
    Create {
        /// The size that clients see: 10GiB, 512MiB or plain bytes; a clone may leave it out and gets its source's
        #[arg(long, value_parser = parse_size, required_unless_present = "from")]
        size: Option<u64>,
        /// The share's id, a UUID; a new one is made and shown when left out. Repeating a create with the same id is
        /// safe
        #[arg(long, value_parser = parse_id)]
        id: Option<Uuid>,
        /// The pool to create it in; needed when there are several
        #[arg(long, value_name = "NAME")]
        pool: Option<String>,
        /// What it begins with: snapshot:ID or share:ID
        #[arg(long, value_parser = parse_share_version, value_name = "KIND:ID")]
        from: Option<ShareVersion>,
        /// Whose user ids are replaced by that of nobody
        #[arg(long, value_enum, default_value = "none")]
        squash: SquashChoice,
        /// A label of your own, key=value; may be given several times
        #[arg(long = "label", value_parser = parse_label, value_name = "KEY=VALUE")]
        labels: Vec<(String, String)>,
        #[command(flatten)]
        mutation: MutationArgs,
    },
    /// List shares
    List {
        /// Only shares in this pool
        #[arg(long, value_name = "NAME")]
        pool: Option<String>,
    },
    /// Show one share in full
    Show {
        /// The share's id
        #[arg(value_parser = parse_id)]
        id: Uuid,
    },
    /// Give a share another size, in use or not
    Resize {
        /// The share's id
        #[arg(value_parser = parse_id)]
        id: Uuid,
        /// The size it shall have (not what to add)
        #[arg(long, value_parser = parse_size)]
        size: u64,
        #[command(flatten)]
        mutation: MutationArgs,
    },
    /// Take a share's contents back to one of its snapshots; what was written since is lost
    Revert {
        /// The share's id
        #[arg(value_parser = parse_id)]
        id: Uuid,
        /// The snapshot's id
        #[arg(long, value_parser = parse_id, value_name = "ID")]
        to_snapshot: Uuid,
        #[command(flatten)]
        mutation: MutationArgs,
    },
    /// Make what is in a pool already a share, with all that it holds; nobody may use it until `access set`
    #[command(after_help = "\
What NAME is depends on the pool's driver: with images a file in the folder `foreign` of the pool, with lvm a thin volume of the
pool. It holds an XFS with blocks of 4096 bytes and a log of 64 MiB, as shares have that were released.")]
    Adopt {
        /// What it has been called in the pool
        name: String,
        /// The share's id, a UUID; a new one is made and shown when left out
        #[arg(long, value_parser = parse_id)]
        id: Option<Uuid>,
        /// The pool; needed when there are several
        #[arg(long, value_name = "NAME")]
        pool: Option<String>,
        /// Whose user ids are replaced by that of nobody
        #[arg(long, value_enum, default_value = "none")]
        squash: SquashChoice,
        /// A label of your own, key=value; may be given several times
        #[arg(long = "label", value_parser = parse_label, value_name = "KEY=VALUE")]
        labels: Vec<(String, String)>,
        #[command(flatten)]
        mutation: MutationArgs,
    },
    /// Give a share up, and leave all that it holds in its pool under a name; its snapshots and clones live on
    Release {
        /// The share's id
        #[arg(value_parser = parse_id)]
        id: Uuid,
        /// What its data is to be called in the pool
        #[arg(long = "as", value_name = "NAME")]
        name: String,
        #[command(flatten)]
        mutation: MutationArgs,
    },
    /// Delete a share and its rules; one that is not there is fine, and its snapshots and clones live on
    Delete {
        /// The share's id
        #[arg(value_parser = parse_id)]
        id: Uuid,
        #[command(flatten)]
        mutation: MutationArgs,
    },
    /// List the pools that shares are cut from
    Pools,
}

/// Whose user ids are replaced.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SquashChoice {
    /// Nobody's: root on a client is root
    None,
    /// Root's
    Root,
    /// Everybody's
    All,
}

impl From<SquashChoice> for Squash {
    fn from(choice: SquashChoice) -> Self {
        match choice {
            SquashChoice::None => Squash::None,
            SquashChoice::Root => Squash::Root,
            SquashChoice::All => Squash::All,
        }
    }
}

/// Runs one verb.
pub async fn run(command: Command, channel: Channel) -> Result<Answer, Failure> {
    let mut client = SharesClient::new(channel);
    match command {
        Command::Create {
            size,
            id,
            pool,
            from,
            squash,
            labels,
            mutation,
        } => {
            let source = from.map(|from| match from {
                ShareVersion::Share(id) => share_source::Source::ShareId(id.to_string()),
                ShareVersion::Snapshot(id) => share_source::Source::SnapshotId(id.to_string()),
            });
            let request = CreateShareRequest {
                id: id_or_new(id),
                pool: pool.unwrap_or_default(),
                size_bytes: size.unwrap_or_default(),
                source: source.map(|source| ShareSource { source: Some(source) }),
                squash: Squash::from(squash).into(),
                labels: labels.into_iter().collect(),
                mutation: mutation.into(),
            };
            Ok(shown(&client.create_share(request).await?.into_inner()))
        }
        Command::List { pool } => {
            let shares = all_pages(async |page_token| {
                let request = ListSharesRequest {
                    page_size: PAGE_SIZE,
                    page_token,
                    pool: pool.clone().unwrap_or_default(),
                };
                let page = client.list_shares(request).await?.into_inner();
                Ok((page.shares, page.next_page_token))
            })
            .await?;
            Ok(listed(&shares))
        }
        Command::Show { id } => {
            let request = GetShareRequest { id: id.to_string() };
            Ok(shown(&client.get_share(request).await?.into_inner()))
        }
        Command::Resize { id, size, mutation } => {
            let request = ResizeShareRequest {
                id: id.to_string(),
                size_bytes: size,
                mutation: mutation.into(),
            };
            Ok(shown(&client.resize_share(request).await?.into_inner()))
        }
        Command::Revert {
            id,
            to_snapshot,
            mutation,
        } => {
            let request = RevertShareRequest {
                id: id.to_string(),
                snapshot_id: to_snapshot.to_string(),
                mutation: mutation.into(),
            };
            Ok(shown(&client.revert_share(request).await?.into_inner()))
        }
        Command::Adopt {
            name,
            id,
            pool,
            squash,
            labels,
            mutation,
        } => {
            let request = AdoptShareRequest {
                id: id_or_new(id),
                pool: pool.unwrap_or_default(),
                name,
                squash: Squash::from(squash).into(),
                labels: labels.into_iter().collect(),
                mutation: mutation.into(),
            };
            Ok(shown(&client.adopt_share(request).await?.into_inner()))
        }
        Command::Release { id, name, mutation } => {
            let request = ReleaseShareRequest {
                id: id.to_string(),
                name,
                mutation: mutation.into(),
            };
            client.release_share(request).await?;
            Ok(Answer::released("share", id))
        }
        Command::Delete { id, mutation } => {
            let request = DeleteShareRequest {
                id: id.to_string(),
                mutation: mutation.into(),
            };
            client.delete_share(request).await?;
            Ok(Answer::deleted("share", id))
        }
        Command::Pools => {
            let pools = client
                .list_share_pools(ListSharePoolsRequest {})
                .await?
                .into_inner()
                .pools;
            Ok(listed_pools(&pools))
        }
    }
}

/// A share as JSON.
#[derive(Serialize)]
struct Record<'a> {
    id: &'a str,
    pool: &'a str,
    size_bytes: u64,
    source: Option<SourceRecord<'a>>,
    used_bytes: u64,
    allocated_bytes: u64,
    squash: String,
    export_locations: Vec<LocationRecord<'a>>,
    labels: BTreeMap<&'a str, &'a str>,
    generation: u64,
    create_time: Option<String>,
    update_time: Option<String>,
}

/// An export location as JSON.
#[derive(Serialize)]
pub struct LocationRecord<'a> {
    id: &'a str,
    path: &'a str,
    port: u32,
    ipv6: bool,
    preferred: bool,
    admin_only: bool,
}

impl<'a> From<&'a ExportLocation> for LocationRecord<'a> {
    fn from(location: &'a ExportLocation) -> Self {
        Self {
            id: &location.id,
            path: &location.path,
            port: location.port,
            ipv6: location.ipv6,
            preferred: location.preferred,
            admin_only: location.admin_only,
        }
    }
}

/// Shows a location with what has to be known of it: its port where a client has to be told, and whom it is for.
pub fn show_location(location: &ExportLocation) -> String {
    let port = (location.port != 2049).then(|| format!("port {}", location.port));
    let role = location.admin_only.then(|| "for administrators".to_owned());
    let notes: Vec<String> = port.into_iter().chain(role).collect();
    match notes.is_empty() {
        true => location.path.clone(),
        false => format!("{} ({})", location.path, notes.join(", ")),
    }
}

/// Returns the location that a list shows: one to take, and one for users.
pub fn first_location(locations: &[ExportLocation]) -> Option<String> {
    let rank = |location: &&ExportLocation| (location.admin_only, !location.preferred);
    locations.iter().min_by_key(rank).map(show_location)
}

/// What a share was made from, as JSON: one key, the kind.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum SourceRecord<'a> {
    SnapshotId(&'a str),
    ShareId(&'a str),
}

fn source(share: &Share) -> Option<SourceRecord<'_>> {
    Some(match share.source.as_ref()?.source.as_ref()? {
        share_source::Source::SnapshotId(id) => SourceRecord::SnapshotId(id),
        share_source::Source::ShareId(id) => SourceRecord::ShareId(id),
    })
}

fn show_source(share: &Share) -> String {
    match source(share) {
        None => show_text(""),
        Some(SourceRecord::SnapshotId(id)) => format!("snapshot:{id}"),
        Some(SourceRecord::ShareId(id)) => format!("share:{id}"),
    }
}

impl<'a> From<&'a Share> for Record<'a> {
    fn from(share: &'a Share) -> Self {
        Self {
            id: &share.id,
            pool: &share.pool,
            size_bytes: share.size_bytes,
            source: source(share),
            used_bytes: share.used_bytes,
            allocated_bytes: share.allocated_bytes,
            squash: word(share.squash().as_str_name(), "SQUASH_"),
            export_locations: share.export_locations.iter().map(LocationRecord::from).collect(),
            labels: sorted_labels(&share.labels),
            generation: share.generation,
            create_time: share.create_time.as_ref().map(ToString::to_string),
            update_time: share.update_time.as_ref().map(ToString::to_string),
        }
    }
}

fn listed(shares: &[Share]) -> Answer {
    let row = |share: &Share| {
        let location = first_location(&share.export_locations);
        vec![
            share.id.clone(),
            share.pool.clone(),
            show_size(share.size_bytes),
            show_size(share.used_bytes),
            show_text(&location.unwrap_or_default()),
        ]
    };
    let rows = shares.iter().map(row).collect();
    let records: Vec<Record<'_>> = shares.iter().map(Record::from).collect();
    Answer::list(&["ID", "POOL", "SIZE", "USED", "LOCATION"], rows, &records)
}

fn shown(share: &Share) -> Answer {
    let record = Record::from(share);
    let mut properties = vec![
        ("id", share.id.clone()),
        ("pool", share.pool.clone()),
        (
            "size",
            format!("{} ({} bytes)", show_size(share.size_bytes), share.size_bytes),
        ),
        ("from", show_source(share)),
        ("used", show_size(share.used_bytes)),
        ("allocated", show_size(share.allocated_bytes)),
        ("squash", record.squash.clone()),
    ];
    for location in &share.export_locations {
        properties.push(("location", show_location(location)));
    }
    properties.extend([
        ("labels", show_labels(&share.labels)),
        ("generation", share.generation.to_string()),
        ("created", show_time(share.create_time.as_ref())),
        ("updated", show_time(share.update_time.as_ref())),
    ]);
    Answer::show(properties, &record)
}

/// A pool as JSON.
#[derive(Serialize)]
struct PoolRecord<'a> {
    name: &'a str,
    driver: &'a str,
    problem: &'a str,
    uuid: &'a str,
    total_bytes: u64,
    free_bytes: u64,
    reclaimable_bytes: u64,
    provisioned_bytes: u64,
    share_count: u64,
    snapshot_count: u64,
    capabilities: &'a [String],
    min_share_bytes: u64,
    max_share_bytes: u64,
    size_granularity_bytes: u64,
}

impl<'a> From<&'a SharePool> for PoolRecord<'a> {
    fn from(pool: &'a SharePool) -> Self {
        Self {
            name: &pool.name,
            driver: &pool.driver,
            problem: &pool.problem,
            uuid: &pool.uuid,
            total_bytes: pool.total_bytes,
            free_bytes: pool.free_bytes,
            reclaimable_bytes: pool.reclaimable_bytes,
            provisioned_bytes: pool.provisioned_bytes,
            share_count: pool.share_count,
            snapshot_count: pool.snapshot_count,
            capabilities: &pool.capabilities,
            min_share_bytes: pool.min_share_bytes,
            max_share_bytes: pool.max_share_bytes,
            size_granularity_bytes: pool.size_granularity_bytes,
        }
    }
}

fn listed_pools(pools: &[SharePool]) -> Answer {
    let row = |pool: &SharePool| {
        vec![
            pool.name.clone(),
            pool.driver.clone(),
            show_size(pool.total_bytes),
            show_size(pool.free_bytes),
            show_size(pool.provisioned_bytes),
            pool.share_count.to_string(),
            pool.snapshot_count.to_string(),
            show_text(&pool.problem),
        ]
    };
    let records: Vec<PoolRecord<'_>> = pools.iter().map(PoolRecord::from).collect();
    let columns = [
        "NAME",
        "DRIVER",
        "TOTAL",
        "FREE",
        "PROVISIONED",
        "SHARES",
        "SNAPSHOTS",
        "PROBLEM",
    ];
    Answer::list(&columns, pools.iter().map(row).collect(), &records)
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;
    use crate::cli::golden::assert_golden;

    #[test]
    fn share_answers_match_their_golden_files() {
        let id = "00000000-0000-4000-8000-0000000000d1";
        let share = Share {
            id: id.into(),
            pool: "shares".into(),
            size_bytes: 10 << 30,
            source: Some(ShareSource {
                source: Some(share_source::Source::SnapshotId(
                    "00000000-0000-4000-8000-0000000000e1".into(),
                )),
            }),
            used_bytes: 5 << 20,
            allocated_bytes: 70 << 20,
            squash: Squash::Root.into(),
            export_locations: vec![
                ExportLocation {
                    id: "00000000-0000-4000-8000-0000000000f2".into(),
                    path: format!("10.9.0.4:/share-{id}"),
                    port: 2050,
                    admin_only: true,
                    ..ExportLocation::default()
                },
                ExportLocation {
                    id: "00000000-0000-4000-8000-0000000000f1".into(),
                    path: format!("192.0.2.4:/share-{id}"),
                    ipv6: false,
                    preferred: true,
                    port: 2049,
                    admin_only: false,
                },
            ],
            labels: [("team".into(), "web".into())].into_iter().collect(),
            generation: 3,
            create_time: Some(Timestamp {
                seconds: 1_790_000_000,
                nanos: 0,
            }),
            update_time: None,
        };
        assert_golden("share-list", &listed(std::slice::from_ref(&share)));
        assert_golden("share-show", &shown(&share));
        let pool = SharePool {
            name: "shares".into(),
            driver: "images".into(),
            uuid: "00000000-0000-4000-8000-0000000000a9".into(),
            total_bytes: 100 << 30,
            free_bytes: 90 << 30,
            provisioned_bytes: 500 << 30,
            share_count: 12,
            capabilities: vec!["grow".into()],
            ..SharePool::default()
        };
        assert_golden("share-pools", &listed_pools(&[pool]));
    }
}
