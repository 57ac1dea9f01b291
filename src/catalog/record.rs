//! What the catalog holds. The structs are what is stored (as JSON with a version around it): fields are added
//! with a default, never renamed or given another meaning.

use std::collections::BTreeMap;
use std::fmt;

use quarry_contract::{
    Access, AccessRule, ChapCredentials, DataSource, IoLimits, ShareId, ShareSnapshotId, ShareSource,
    ShareVersion, SnapshotId, Squash, VolumeId,
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The caller's own keys.
pub type Labels = BTreeMap<String, String>;

/// A moment, in milliseconds since 1970 (UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    /// Returns the present, by the system's clock.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Identifies an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AttachmentId(pub Uuid);

/// Identifies an operation; ids made later sort later (UUID version 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationId(pub Uuid);

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is kept of a volume or a snapshot beside what its backend knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRecord {
    /// Grows with every change; at least 1.
    pub generation: u64,
    /// The caller's own keys.
    pub labels: Labels,
    /// When it was created; absent when the record was lost and made anew.
    pub created: Option<Moment>,
    /// When the generation last grew.
    pub updated: Option<Moment>,
    /// How fast a volume may be used; a snapshot has no limits.
    #[serde(default, skip_serializing_if = "IoLimits::is_none")]
    pub limits: IoLimits,
}

impl ObjectRecord {
    /// The record of something created now.
    pub fn created_now(labels: Labels) -> Self {
        let now = Some(Moment::now());
        Self {
            generation: 1,
            labels,
            created: now,
            updated: now,
            limits: IoLimits::NONE,
        }
    }

    /// The record of something that the backend has and the catalog does not.
    pub fn unknown() -> Self {
        Self {
            generation: 1,
            labels: Labels::new(),
            created: None,
            updated: None,
            limits: IoLimits::NONE,
        }
    }

    /// The record after a change made now.
    #[must_use]
    pub fn changed_now(mut self) -> Self {
        self.generation += 1;
        self.updated = Some(Moment::now());
        self
    }
}

/// What is kept of a share or a snapshot of one beside what its backend knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareRecord {
    /// Grows with every change; at least 1.
    pub generation: u64,
    /// The caller's own keys.
    pub labels: Labels,
    /// When it was created; absent when the record was lost and made anew.
    pub created: Option<Moment>,
    /// When the generation last grew.
    pub updated: Option<Moment>,
    /// Whose user ids the server believes.
    pub squash: Squash,
    /// Who may use it, in the order in which it was said.
    pub rules: Vec<AccessRule>,
    /// Of a snapshot: whether those who may use its share may use it, instead of rules of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inherits: bool,
}

impl ShareRecord {
    /// The record of something created now, which nobody may use.
    pub fn created_now(labels: Labels, squash: Squash) -> Self {
        let now = Some(Moment::now());
        Self {
            generation: 1,
            labels,
            created: now,
            updated: now,
            squash,
            rules: Vec::new(),
            inherits: false,
        }
    }

    /// The record of something that the backend has and the catalog does not.
    pub fn unknown() -> Self {
        Self {
            created: None,
            updated: None,
            ..Self::created_now(Labels::new(), Squash::default())
        }
    }

    /// The record after a change made now.
    #[must_use]
    pub fn changed_now(mut self) -> Self {
        self.generation += 1;
        self.updated = Some(Moment::now());
        self
    }
}

/// The host that attaches, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connector {
    /// Its initiator name, parsed and in lower case; the identity that rights are counted by.
    pub initiator: String,
    /// Its name, for people.
    pub host: String,
    /// Its address, for people.
    pub ip: String,
    /// Whether it uses several paths.
    pub multipath: bool,
    /// Whether it refuses to attach without multipath.
    pub enforce_multipath: bool,
}

/// What a host may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AccessMode {
    /// Reads only.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

impl From<AccessMode> for Access {
    fn from(mode: AccessMode) -> Self {
        match mode {
            AccessMode::ReadOnly => Access::ReadOnly,
            AccessMode::ReadWrite => Access::ReadWrite,
        }
    }
}

/// CHAP credentials as stored. The secret stays out of `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChapRecord {
    /// The user name; not secret.
    pub username: String,
    secret: String,
}

impl fmt::Debug for ChapRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChapRecord")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

impl From<&ChapCredentials> for ChapRecord {
    fn from(chap: &ChapCredentials) -> Self {
        Self {
            username: chap.username.clone(),
            secret: chap.secret.expose_secret().to_owned(),
        }
    }
}

impl From<&ChapRecord> for ChapCredentials {
    fn from(record: &ChapRecord) -> Self {
        Self {
            username: record.username.clone(),
            secret: SecretString::from(record.secret.clone()),
        }
    }
}

/// One attachment. All attachments of one initiator to one volume hold the same credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentRecord {
    /// The volume.
    pub volume: VolumeId,
    /// The host.
    pub connector: Connector,
    /// What this attachment allows.
    pub mode: AccessMode,
    /// How the host proves itself.
    pub chap: ChapRecord,
    /// How the target proves itself to a host that asks; attachments of older versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_chap: Option<ChapRecord>,
    /// The volume's unit of addressing, in bytes.
    pub logical_block_bytes: u32,
    /// The volume's smallest write without read-modify-write, in bytes.
    pub physical_block_bytes: u32,
    /// Whether discarding gives space back to the pool.
    pub discard: bool,
    /// The caller's own keys.
    pub labels: Labels,
    /// Grows with every change; at least 1.
    pub generation: u64,
    /// When it was created.
    pub created: Moment,
}

/// What the target is to remember of a volume's export: initiators were promised it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportStateRecord {
    /// The target's own bytes, in hexadecimal.
    state: String,
}

impl ExportStateRecord {
    /// Takes the target's bytes.
    pub fn of(state: &[u8]) -> Self {
        Self {
            state: hex::encode(state),
        }
    }

    /// Returns the target's bytes; `None` when they are damaged.
    pub fn state(&self) -> Option<Vec<u8>> {
        hex::decode(&self.state).ok()
    }
}

/// What a volume begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Zeros.
    Blank,
    /// The contents of a snapshot.
    Snapshot(SnapshotId),
    /// The contents of a volume.
    Volume(VolumeId),
}

impl From<Source> for DataSource {
    fn from(source: Source) -> Self {
        match source {
            Source::Blank => DataSource::Blank,
            Source::Snapshot(id) => DataSource::Snapshot(id),
            Source::Volume(id) => DataSource::Volume(id),
        }
    }
}

impl From<DataSource> for Source {
    fn from(source: DataSource) -> Self {
        match source {
            DataSource::Blank => Source::Blank,
            DataSource::Snapshot(id) => Source::Snapshot(id),
            DataSource::Volume(id) => Source::Volume(id),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Blank => f.write_str("blank"),
            Source::Snapshot(id) => write!(f, "snapshot {id}"),
            Source::Volume(id) => write!(f, "volume {id}"),
        }
    }
}

/// A mutating call, as the caller made it: what is compared when a request id comes again, and what recovery
/// finishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Create a volume.
    CreateVolume {
        /// The volume.
        id: VolumeId,
        /// The pool, when the caller named one.
        pool: Option<String>,
        /// The size in bytes; 0 for the source's.
        size_bytes: u64,
        /// What it begins with.
        source: Source,
        /// The caller's own keys.
        labels: Labels,
        /// How fast it may be used.
        #[serde(default, skip_serializing_if = "IoLimits::is_none")]
        limits: IoLimits,
        /// Whether it came with a key. The key itself is not kept.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        encrypted: bool,
        /// Whether checksums were asked for.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        checksums: bool,
        /// Whether it is to be a reserved volume.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        reserved: bool,
    },
    /// Grow a volume.
    ExtendVolume {
        /// The volume.
        id: VolumeId,
        /// The size it shall have, in bytes.
        size_bytes: u64,
    },
    /// Make a volume's contents those of a snapshot.
    RevertVolume {
        /// The volume.
        id: VolumeId,
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// Replace a volume's limits.
    LimitVolume {
        /// The volume.
        id: VolumeId,
        /// All limits it shall have.
        limits: IoLimits,
    },
    /// Make a volume a reserved or an ordinary one.
    ReserveVolume {
        /// The volume.
        id: VolumeId,
        /// Whether it shall be reserved.
        reserved: bool,
    },
    /// Replace a volume's labels.
    UpdateVolume {
        /// The volume.
        id: VolumeId,
        /// All labels it shall have.
        labels: Labels,
    },
    /// Delete a volume.
    DeleteVolume {
        /// The volume.
        id: VolumeId,
        /// Whether its snapshots go too.
        cascade: bool,
    },
    /// Take snapshots at one moment.
    CreateSnapshots {
        /// Each snapshot and the volume to take it of.
        members: Vec<(SnapshotId, VolumeId)>,
        /// The labels of every one.
        labels: Labels,
    },
    /// Delete a snapshot.
    DeleteSnapshot {
        /// The snapshot.
        id: SnapshotId,
    },
    /// Attach a volume to a host.
    CreateAttachment {
        /// The attachment.
        id: AttachmentId,
        /// The volume.
        volume: VolumeId,
        /// The host.
        connector: Connector,
        /// What it may do.
        mode: AccessMode,
        /// The caller's own keys.
        labels: Labels,
    },
    /// Detach.
    DeleteAttachment {
        /// The attachment.
        id: AttachmentId,
        /// Whether the host's other attachments of the volume go too.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        force: bool,
    },
    /// Create a share.
    CreateShare {
        /// The share.
        id: ShareId,
        /// The pool, when the caller named one.
        pool: Option<String>,
        /// The size in bytes; 0 for the source's.
        size_bytes: u64,
        /// What it begins with.
        source: ShareSource,
        /// Whose user ids the server believes.
        squash: Squash,
        /// The caller's own keys.
        labels: Labels,
    },
    /// Give a share another size.
    ResizeShare {
        /// The share.
        id: ShareId,
        /// The size it shall have, in bytes.
        size_bytes: u64,
    },
    /// Make a share's contents those of a snapshot.
    RevertShare {
        /// The share.
        id: ShareId,
        /// The snapshot.
        snapshot: ShareSnapshotId,
    },
    /// Make what is in a pool a share.
    AdoptShare {
        /// The share.
        id: ShareId,
        /// The pool, when the caller named one.
        pool: Option<String>,
        /// What it has been called.
        name: String,
        /// Whose user ids the server believes.
        squash: Squash,
        /// The caller's own keys.
        labels: Labels,
    },
    /// Give a share up and leave its data.
    ReleaseShare {
        /// The share.
        id: ShareId,
        /// What its data is called from then on.
        name: String,
    },
    /// Delete a share.
    DeleteShare {
        /// The share.
        id: ShareId,
    },
    /// Take snapshots of shares at one moment.
    CreateShareSnapshots {
        /// Each snapshot and the share to take it of.
        members: Vec<(ShareSnapshotId, ShareId)>,
        /// The labels of every one.
        labels: Labels,
    },
    /// Delete a snapshot of a share.
    DeleteShareSnapshot {
        /// The snapshot.
        id: ShareSnapshotId,
    },
    /// Replace the rules of a share or a snapshot of one.
    SetAccess {
        /// Of what.
        target: ShareVersion,
        /// All rules it shall have.
        rules: Vec<AccessRule>,
        /// Whether a snapshot shall have its share's instead.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        inherits: bool,
    },
}

impl Request {
    /// Returns the object that the call is about; the first of a group.
    pub fn target(&self) -> Uuid {
        match self {
            Request::CreateVolume { id, .. }
            | Request::ExtendVolume { id, .. }
            | Request::RevertVolume { id, .. }
            | Request::LimitVolume { id, .. }
            | Request::ReserveVolume { id, .. }
            | Request::UpdateVolume { id, .. }
            | Request::DeleteVolume { id, .. } => id.0,
            Request::CreateSnapshots { members, .. } => members.first().map_or(Uuid::nil(), |(id, _)| id.0),
            Request::DeleteSnapshot { id } => id.0,
            Request::CreateAttachment { id, .. } | Request::DeleteAttachment { id, .. } => id.0,
            Request::CreateShare { id, .. }
            | Request::ResizeShare { id, .. }
            | Request::RevertShare { id, .. }
            | Request::AdoptShare { id, .. }
            | Request::ReleaseShare { id, .. }
            | Request::DeleteShare { id } => id.0,
            Request::CreateShareSnapshots { members, .. } => {
                members.first().map_or(Uuid::nil(), |(id, _)| id.0)
            }
            Request::DeleteShareSnapshot { id } => id.0,
            Request::SetAccess { target, .. } => match target {
                ShareVersion::Share(id) => id.0,
                ShareVersion::Snapshot(id) => id.0,
            },
        }
    }
}

/// How far an operation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    /// Recorded, and not ended.
    Running,
    /// What was asked for is so.
    Succeeded {
        /// What the caller was answered, for when it asks again under the same request id.
        answer: serde_json::Value,
    },
    /// Nothing has changed.
    Failed {
        /// The reason's name in the API (`POOL_FULL`).
        code: String,
        /// One sentence.
        message: String,
    },
}

/// One operation in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// What was asked for.
    pub request: Request,
    /// The caller's name for the call.
    pub request_id: Option<String>,
    /// How far it is.
    pub progress: Progress,
    /// When it was recorded.
    pub created: Moment,
    /// When it ended.
    pub ended: Option<Moment>,
    /// Whether it was ended by recovery.
    pub recovered: bool,
}
