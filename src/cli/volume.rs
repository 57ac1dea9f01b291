//! `quarry volume`: thin block volumes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Subcommand;
use quarry_proto::v1::version::Version as Chosen;
use quarry_proto::v1::volumes_client::VolumesClient;
use quarry_proto::v1::{
    ChangeVolumeKeyRequest, CreateVolumeRequest, DeleteVolumeRequest, ExtendVolumeRequest, GetVolumeRequest,
    LimitVolumeRequest, ListVolumesRequest, LockVolumeRequest, ReserveVolumeRequest, RevertVolumeRequest,
    UnlockVolumeRequest, UpdateVolumeRequest, Volume, VolumeSource, volume_source,
};
use serde::Serialize;
use tonic::transport::Channel;
use uuid::Uuid;

use super::answer::{Answer, show_labels, show_text, show_time, sorted_labels};
use super::argument::{Source, id_or_new, parse_id, parse_label, parse_source};
use super::extents;
use super::failure::Failure;
use super::key;
use super::limit::{self, Limit, LimitsRecord, parse_limit};
use super::mutation::MutationArgs;
use super::paging::{PAGE_SIZE, all_pages};
use super::word::word;
use crate::size::{parse_size, show_size};

/// The verbs of `quarry volume`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a volume, blank or as a clone
    #[command(after_help = "\
Examples:
  quarry volume create --size 2GiB
  quarry volume create --from snapshot:SNAPSHOT_ID
  quarry volume create --from volume:VOLUME_ID --size 20GiB
  quarry volume create --size 2GiB --limit iops=1000:5000 --limit bytes=100MiB

  head -c 32 /dev/urandom > KEY; quarry volume create --size 2GiB --key-file KEY

A clone costs no space until it is written, and lives on when what it was made from is deleted.")]
    Create {
        /// The size: 2GiB, 512MiB or plain bytes; a clone may leave it out and gets its source's
        #[arg(long, value_parser = parse_size, required_unless_present = "from")]
        size: Option<u64>,
        /// The volume's id, a UUID; a new one is made and shown when left out. Repeating a create with the same
        /// id is safe
        #[arg(long, value_parser = parse_id)]
        id: Option<Uuid>,
        /// The pool to create it in; needed when there are several
        #[arg(long, value_name = "NAME")]
        pool: Option<String>,
        /// What it begins with: snapshot:ID or volume:ID
        #[arg(long, value_parser = parse_source, value_name = "KIND:ID")]
        from: Option<Source>,
        /// A label of your own, key=value; may be given several times
        #[arg(long = "label", value_parser = parse_label, value_name = "KEY=VALUE")]
        labels: Vec<(String, String)>,
        /// How fast it may be used, as in `volume limit`; may be given several times
        #[arg(long = "limit", value_parser = parse_limit, value_name = "WHAT=RATE[:BURST]")]
        limits: Vec<Limit>,
        /// Encrypt it with the key in this file, 32 bytes or 64 hexadecimal digits; - is standard input. What is made of
        /// an encrypted volume is encrypted without this
        #[arg(long, value_name = "FILE", conflicts_with = "from")]
        key_file: Option<PathBuf>,
        /// Keep a checksum of each 4 KiB of its data and verify it at each read, for the volume's life. Overwrites take space,
        /// as after a snapshot. What is made of a volume with checksums has them without this
        #[arg(long)]
        checksums: bool,
        /// Make it a reserved volume, as `volume reserve` does
        #[arg(long)]
        reserved: bool,
        #[command(flatten)]
        mutation: MutationArgs,
    },
    /// List volumes
    List {
        /// Only volumes in this pool
        #[arg(long, value_name = "NAME")]
        pool: Option<String>,
        /// Only volumes with this label; may be given several times
        #[arg(long = "label", value_parser = parse_label, value_name = "KEY=VALUE")]
        labels: Vec<(String, String)>,
    },
    /// Show one volume in full
    Show {
        /// The volume's id
        #[arg(value_parser = parse_id)]
        id: Uuid,
    },
    /// Show where data is, or what has changed since another version
    #[command(after_help = "\
Examples:
  quarry volume extents VOLUME_ID                          where anything but zeros may be
  quarry volume extents VOLUME_ID --since snapshot:ID      where it may differ from that snapshot

What lies between the extents is equal. Finding them takes as long as there are differences, not as long as the
volume is. For an exact copy of a volume in use, take a snapshot and ask for that.")]
    Extents {
        /// The volume's id
        #[arg(value_parser = parse_id)]
        id: Uuid,
        /// What is there already: snapshot:ID or volume:ID of the same pool
        #[arg(long, value_parser = parse_source, value_name = "KIND:ID")]
        since: Option<Source>,
    },
    /// Make a volume larger, attached or not
    Extend {
        /// The volume's id
        #[arg(value_parser = parse_id)]
        id: Uuid,
        /// The size it shall have (not what to add)
        #[arg(long, value_parser = parse_size)]
        size: u64,
        #[command(flatten)]
        mutation: MutationArgs,
    },
    /// Take a volume's contents back to one of its snapshots; what was written since is lost
    Revert {
        /// The volume's id; it must not be attached
        #[arg(value_parser = parse_id)]
        id: Uuid,
        /// The snapshot's id
        #[arg(long, value_parser = parse_id, value_name = "ID")]
        to_snapshot: Uuid,
        #[command(flatten)]
        mutation: MutationArgs,
    },
    /// Replace a volume's limits; without --limit, remove them all
    #[command(after_help = "\
Examples:
  quarry volume limit VOLUME_ID --limit iops=1000
  quarry volume limit VOLUME_ID --limit read-bytes=200MiB --limit write-bytes=50MiB:1GiB
  quarry volume limit VOLUME_ID

WHAT is iops or bytes, of reads and writes together, or one of read-iops, read-bytes, write-iops, write-bytes. RATE is
what a second allows in the long run, over all hosts; BURST what may be saved up while less is used, and then goes at
once. What is over a limit waits. The new limits hold when the command returns, for hosts that are logged in too.")]
    Limit {
        /// The volume's id
        #[arg(value_parser = parse_id)]
        id: Uuid,
        /// A limit it shall have; may be given several times
        #[arg(long = "limit", value_parser = parse_limit, value_name = "WHAT=RATE[:BURST]")]
        limits: Vec<Limit>,
        #[command(flatten)]
        mutation: MutationArgs,
    },
    /// Make a volume a reserved one: it still takes space when its pool is nearly full and others may not
    Reserve {
        /// The volume's id
        #[arg(value_parser = parse_id)]
        id: Uuid,
        /// Make it an ordinary one again
        #[arg(long)]
        off: bool,
        #[command(flatten)]
        mutation: MutationArgs,
    },
    /// Hand in the key of an encrypted volume, its snapshots and its clones; needed after each start of the agent
    #[command(after_help = "\
Examples:
  quarry volume unlock VOLUME_ID --key-file KEY
  fetch-key VOLUME_ID | quarry volume unlock VOLUME_ID --key-file -

What is attached and waits for the key is there for its hosts when the command returns. The agent keeps the key in
memory only.")]
    Unlock {
        /// The volume's id
        #[arg(value_parser = parse_id)]
        id: Uuid,
        /// The file with its key, 32 bytes or 64 hexadecimal digits; - is standard input
        #[arg(long, value_name = "FILE")]
        key_file: PathBuf,
    },
    /// Forget the key of an encrypted volume, its snapshots and its clones
    Lock {
        /// The volume's id; neither it nor its clones may be attached
        #[arg(value_parser = parse_id)]
        id: Uuid,
    },
    /// Replace the key of an encrypted volume, its snapshots and its clones; the data stays as it is
    ChangeKey {
        /// The volume's id
        #[arg(value_parser = parse_id)]
        id: Uuid,
        /// The file with its key; - is standard input
        #[arg(long, value_name = "FILE")]
        key_file: PathBuf,
        /// The file with the key that it shall have
        #[arg(long, value_name = "FILE")]
        new_key_file: PathBuf,
    },
    /// Replace a volume's labels; without --label, remove them all
    Label {
        /// The volume's id
        #[arg(value_parser = parse_id)]
        id: Uuid,
        /// A label it shall have, key=value; may be given several times
        #[arg(long = "label", value_parser = parse_label, value_name = "KEY=VALUE")]
        labels: Vec<(String, String)>,
        #[command(flatten)]
        mutation: MutationArgs,
    },
    /// Delete a volume; one that is not there is fine
    Delete {
        /// The volume's id; it must not be attached
        #[arg(value_parser = parse_id)]
        id: Uuid,
        /// Delete its snapshots too; clones live on
        #[arg(long)]
        cascade: bool,
        #[command(flatten)]
        mutation: MutationArgs,
    },
}

/// Runs one verb.
pub async fn run(command: Command, channel: Channel) -> Result<Answer, Failure> {
    let mut client = VolumesClient::new(channel.clone());
    match command {
        Command::Create {
            size,
            id,
            pool,
            from,
            labels,
            limits,
            key_file,
            checksums,
            reserved,
            mutation,
        } => {
            let request = CreateVolumeRequest {
                id: id_or_new(id),
                pool: pool.unwrap_or_default(),
                size_bytes: size.unwrap_or_default(),
                source: from.map(VolumeSource::from),
                labels: labels.into_iter().collect(),
                limits: limit::joined(&limits)?,
                key: key_file.as_deref().map(key::read).transpose()?,
                checksums,
                reserved,
                mutation: mutation.into(),
            };
            Ok(shown(&client.create_volume(request).await?.into_inner()))
        }
        Command::List { pool, labels } => {
            let volumes = all_pages(async |page_token| {
                let request = ListVolumesRequest {
                    page_size: PAGE_SIZE,
                    page_token,
                    pool: pool.clone().unwrap_or_default(),
                    labels: labels.iter().cloned().collect(),
                };
                let page = client.list_volumes(request).await?.into_inner();
                Ok((page.volumes, page.next_page_token))
            })
            .await?;
            Ok(listed(&volumes))
        }
        Command::Show { id } => {
            let request = GetVolumeRequest { id: id.to_string() };
            Ok(shown(&client.get_volume(request).await?.into_inner()))
        }
        Command::Extents { id, since } => {
            extents::list(Chosen::VolumeId(id.to_string()), since, channel).await
        }
        Command::Extend { id, size, mutation } => {
            let request = ExtendVolumeRequest {
                id: id.to_string(),
                size_bytes: size,
                mutation: mutation.into(),
            };
            Ok(shown(&client.extend_volume(request).await?.into_inner()))
        }
        Command::Revert {
            id,
            to_snapshot,
            mutation,
        } => {
            let request = RevertVolumeRequest {
                id: id.to_string(),
                snapshot_id: to_snapshot.to_string(),
                mutation: mutation.into(),
            };
            Ok(shown(&client.revert_volume(request).await?.into_inner()))
        }
        Command::Limit { id, limits, mutation } => {
            let request = LimitVolumeRequest {
                id: id.to_string(),
                limits: limit::joined(&limits)?,
                mutation: mutation.into(),
            };
            Ok(shown(&client.limit_volume(request).await?.into_inner()))
        }
        Command::Reserve { id, off, mutation } => {
            let request = ReserveVolumeRequest {
                id: id.to_string(),
                reserved: !off,
                mutation: mutation.into(),
            };
            Ok(shown(&client.reserve_volume(request).await?.into_inner()))
        }
        Command::Unlock { id, key_file } => {
            let request = UnlockVolumeRequest {
                id: id.to_string(),
                key: Some(key::read(&key_file)?),
            };
            Ok(shown(&client.unlock_volume(request).await?.into_inner()))
        }
        Command::Lock { id } => {
            let request = LockVolumeRequest { id: id.to_string() };
            Ok(shown(&client.lock_volume(request).await?.into_inner()))
        }
        Command::ChangeKey {
            id,
            key_file,
            new_key_file,
        } => {
            let request = ChangeVolumeKeyRequest {
                id: id.to_string(),
                key: Some(key::read(&key_file)?),
                new_key: Some(key::read(&new_key_file)?),
            };
            Ok(shown(&client.change_volume_key(request).await?.into_inner()))
        }
        Command::Label { id, labels, mutation } => {
            let request = UpdateVolumeRequest {
                id: id.to_string(),
                labels: labels.into_iter().collect(),
                mutation: mutation.into(),
            };
            Ok(shown(&client.update_volume(request).await?.into_inner()))
        }
        Command::Delete {
            id,
            cascade,
            mutation,
        } => {
            let request = DeleteVolumeRequest {
                id: id.to_string(),
                cascade,
                mutation: mutation.into(),
            };
            client.delete_volume(request).await?;
            Ok(Answer::deleted("volume", id))
        }
    }
}

impl From<Source> for VolumeSource {
    fn from(source: Source) -> Self {
        VolumeSource {
            source: Some(match source {
                Source::Snapshot(id) => volume_source::Source::SnapshotId(id.to_string()),
                Source::Volume(id) => volume_source::Source::VolumeId(id.to_string()),
            }),
        }
    }
}

/// A volume as JSON.
#[derive(Serialize)]
struct Record<'a> {
    id: &'a str,
    pool: &'a str,
    size_bytes: u64,
    source: Option<SourceRecord<'a>>,
    mapped_bytes: u64,
    snapshot_count: u64,
    attachment_ids: &'a [String],
    target_name: &'a str,
    serial: &'a str,
    limits: LimitsRecord,
    reserved: bool,
    encryption: String,
    checksums: bool,
    labels: BTreeMap<&'a str, &'a str>,
    generation: u64,
    create_time: Option<String>,
    update_time: Option<String>,
}

/// What a volume was created from, as JSON: `{"snapshot_id": …}` or `{"volume_id": …}`.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum SourceRecord<'a> {
    SnapshotId(&'a str),
    VolumeId(&'a str),
}

impl<'a> From<&'a Volume> for Record<'a> {
    fn from(volume: &'a Volume) -> Self {
        Self {
            id: &volume.id,
            pool: &volume.pool,
            size_bytes: volume.size_bytes,
            source: source(volume).map(|source| match source {
                volume_source::Source::SnapshotId(id) => SourceRecord::SnapshotId(id),
                volume_source::Source::VolumeId(id) => SourceRecord::VolumeId(id),
            }),
            mapped_bytes: volume.mapped_bytes,
            snapshot_count: volume.snapshot_count,
            attachment_ids: &volume.attachment_ids,
            target_name: &volume.target_name,
            serial: &volume.serial,
            limits: LimitsRecord::of(volume.limits.as_ref()),
            reserved: volume.reserved,
            encryption: encryption(volume),
            checksums: volume.checksums,
            labels: sorted_labels(&volume.labels),
            generation: volume.generation,
            create_time: volume.create_time.as_ref().map(ToString::to_string),
            update_time: volume.update_time.as_ref().map(ToString::to_string),
        }
    }
}

fn encryption(volume: &Volume) -> String {
    word(volume.encryption().as_str_name(), "ENCRYPTION_")
}

fn source(volume: &Volume) -> Option<&volume_source::Source> {
    volume.source.as_ref().and_then(|source| source.source.as_ref())
}

fn listed(volumes: &[Volume]) -> Answer {
    let rows = volumes
        .iter()
        .map(|volume| {
            vec![
                volume.id.clone(),
                volume.pool.clone(),
                show_size(volume.size_bytes),
                show_size(volume.mapped_bytes),
                volume.snapshot_count.to_string(),
                volume.attachment_ids.len().to_string(),
                show_time(volume.create_time.as_ref()),
            ]
        })
        .collect();
    let records: Vec<Record<'_>> = volumes.iter().map(Record::from).collect();
    let headers = [
        "ID",
        "POOL",
        "SIZE",
        "MAPPED",
        "SNAPSHOTS",
        "ATTACHMENTS",
        "CREATED",
    ];
    Answer::list(&headers, rows, &records)
}

fn shown(volume: &Volume) -> Answer {
    let source = match source(volume) {
        None => "-".to_owned(),
        Some(volume_source::Source::SnapshotId(id)) => format!("snapshot:{id}"),
        Some(volume_source::Source::VolumeId(id)) => format!("volume:{id}"),
    };
    let properties = vec![
        ("id", volume.id.clone()),
        ("pool", volume.pool.clone()),
        (
            "size",
            format!("{} ({} bytes)", show_size(volume.size_bytes), volume.size_bytes),
        ),
        ("from", source),
        ("mapped", show_size(volume.mapped_bytes)),
        ("snapshots", volume.snapshot_count.to_string()),
        ("attachments", show_text(&volume.attachment_ids.join(", "))),
        ("target", volume.target_name.clone()),
        ("serial", volume.serial.clone()),
        ("limits", limit::show(volume.limits.as_ref())),
        ("reserved", if volume.reserved { "yes" } else { "no" }.to_owned()),
        ("encryption", encryption(volume)),
        (
            "checksums",
            if volume.checksums { "yes" } else { "no" }.to_owned(),
        ),
        ("labels", show_labels(&volume.labels)),
        ("generation", volume.generation.to_string()),
        ("created", show_time(volume.create_time.as_ref())),
        ("updated", show_time(volume.update_time.as_ref())),
    ];
    Answer::show(properties, &Record::from(volume))
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;
    use quarry_proto::v1::Encryption;

    use super::*;
    use crate::cli::golden::assert_golden;

    fn blank() -> Volume {
        Volume {
            id: "00000000-0000-4000-8000-000000000001".into(),
            pool: "default".into(),
            size_bytes: 2 << 30,
            mapped_bytes: 3 << 19,
            target_name: "iqn.2026-11.io.quarry:volume-1".into(),
            serial: "0000000000004000".into(),
            generation: 1,
            encryption: Encryption::None.into(),
            create_time: Some(Timestamp {
                seconds: 1_790_000_000,
                nanos: 500_000_000,
            }),
            update_time: Some(Timestamp {
                seconds: 1_790_000_060,
                nanos: 0,
            }),
            ..Volume::default()
        }
    }

    #[test]
    fn volume_answers_match_their_golden_files() {
        let clone = Volume {
            id: "00000000-0000-4000-8000-000000000002".into(),
            source: Some(Source::Snapshot(Uuid::from_u128(9)).into()),
            snapshot_count: 2,
            reserved: true,
            checksums: true,
            limits: limit::joined(&[
                parse_limit("iops=1000:5000").unwrap(),
                parse_limit("write-bytes=50MiB").unwrap(),
            ])
            .unwrap(),
            attachment_ids: vec!["00000000-0000-4000-8000-0000000000a1".into()],
            labels: [("b".into(), "2".into()), ("a".into(), "1".into())]
                .into_iter()
                .collect(),
            ..blank()
        };
        assert_golden("volume-list", &listed(&[blank(), clone.clone()]));
        assert_golden("volume-show", &shown(&blank()));
        assert_golden("volume-show-clone", &shown(&clone));
        assert_golden("volume-delete", &Answer::deleted("volume", Uuid::from_u128(1)));
    }
}
