//! Objects as the resource model shows them: what the backend knows and what the catalog keeps, joined.

use std::net::SocketAddr;

use quarry_contract::{ChapCredentials, Encryption, IoLimits, PoolStatus, SnapshotId, VolumeId};
use serde::{Deserialize, Serialize};

use crate::catalog::record::{AccessMode, AttachmentId, Connector, Labels, Moment, Source};

/// How a caller repeats and fences a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mutation {
    /// The caller's name for the call.
    pub request_id: Option<String>,
    /// Carry it out only at this generation.
    pub if_generation: Option<u64>,
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// The pool it lives in.
    pub pool: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What it was created from.
    pub source: Source,
    /// What is mapped, in bytes.
    pub mapped_bytes: u64,
    /// How many snapshots of it there are.
    pub snapshot_count: u64,
    /// Its attachments, ordered.
    pub attachments: Vec<AttachmentId>,
    /// The target name initiators find it under.
    pub target_name: String,
    /// The serial number that its disk shows.
    pub serial: String,
    /// The caller's own keys.
    pub labels: Labels,
    /// Grows with every change.
    pub generation: u64,
    /// When it was created.
    pub created: Option<Moment>,
    /// When the generation last grew.
    pub updated: Option<Moment>,
    /// How fast it may be used.
    #[serde(default)]
    pub limits: IoLimits,
    /// Whether it takes space from a nearly full pool when others may not.
    #[serde(default)]
    pub reserved: bool,
    /// Whether it is encrypted.
    #[serde(default)]
    pub encryption: VolumeEncryption,
    /// Whether its data has checksums.
    #[serde(default)]
    pub checksums: bool,
}

/// Whether a volume is encrypted, and whether its key is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeEncryption {
    /// It is not encrypted.
    #[default]
    None,
    /// It is, and can be attached.
    Unlocked,
    /// It is, and can be attached only when its key has been handed in.
    Locked,
}

impl From<Encryption> for VolumeEncryption {
    fn from(encryption: Encryption) -> Self {
        match encryption {
            Encryption::None => Self::None,
            Encryption::Unlocked => Self::Unlocked,
            Encryption::Locked => Self::Locked,
        }
    }
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// The volume it was taken of.
    pub volume: VolumeId,
    /// The pool it lives in.
    pub pool: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What is mapped, in bytes.
    pub mapped_bytes: u64,
    /// The caller's own keys.
    pub labels: Labels,
    /// Grows with every change.
    pub generation: u64,
    /// When it was taken.
    pub created: Option<Moment>,
}

/// How an attachment is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttachmentState {
    /// The host can log in.
    Ready,
    /// The host is logged in.
    Active,
    /// The volume could not be exported.
    Degraded {
        /// Why, and the next step.
        reason: String,
    },
}

/// One attachment, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Its id.
    pub id: AttachmentId,
    /// The volume.
    pub volume: VolumeId,
    /// The host.
    pub connector: Connector,
    /// What it allows.
    pub mode: AccessMode,
    /// How it is.
    pub state: AttachmentState,
    /// How many sessions the host has open on the volume.
    pub session_count: u32,
    /// Whether the host has another attachment of the volume.
    pub shared_on_host: bool,
    /// The caller's own keys.
    pub labels: Labels,
    /// Grows with every change.
    pub generation: u64,
    /// When it was created.
    pub created: Moment,
}

/// How a host reaches a volume.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// The volume.
    pub volume: VolumeId,
    /// The addresses to log in at; at least one.
    pub portals: Vec<SocketAddr>,
    /// The target's name.
    pub target_name: String,
    /// The LUN.
    pub lun: u16,
    /// How the host proves itself.
    pub chap: ChapCredentials,
    /// How the target proves itself to a host that asks; attachments of older versions have none.
    pub target_chap: Option<ChapCredentials>,
    /// What this attachment allows.
    pub mode: AccessMode,
    /// Whether the host uses several paths.
    pub multipath: bool,
    /// Whether it refuses to attach without multipath.
    pub enforce_multipath: bool,
    /// Whether discarding gives space back.
    pub discard: bool,
    /// The unit of addressing, in bytes.
    pub logical_block_bytes: u32,
    /// The smallest write without read-modify-write, in bytes.
    pub physical_block_bytes: u32,
}

/// One pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// The driver's name.
    pub driver: &'static str,
    /// Its figures; or why there are none.
    pub status: Result<PoolStatus, String>,
    /// What it can do, ordered.
    pub capabilities: Vec<&'static str>,
    /// The largest volume, in bytes.
    pub max_volume_bytes: u64,
    /// Volume sizes are multiples of this, in bytes.
    pub size_granularity_bytes: u64,
}

/// What a start found and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Calls of the process before that were finished.
    pub operations_finished: u64,
    /// Calls of the process before that were undone.
    pub operations_undone: u64,
    /// Exports that were rebuilt.
    pub exports_restored: u64,
    /// Exports that could not be rebuilt.
    pub exports_failed: u64,
}
