//! The role of a pool: volumes and snapshots.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    BlockDevice, DriverError, Encryption, Metric, Outcome, Page, PoolGrowth, PoolName, PoolScrub, PoolSpace,
    SnapshotId, VolumeEncryption, VolumeId,
};

/// One pool that volumes are cut from.
///
/// Contract
/// - V1: a mutating call describes an end state. The same id with the same properties again answers
///   [`Outcome::Unchanged`] with the existing object; with other properties it is
///   [`AlreadyExists`](DriverError::AlreadyExists) naming the differences, and nothing changes. Deleting what is
///   not there is `Unchanged`.
/// - V2: when a mutating call returns `Ok`, its effect survives a power cut. When the process dies in the middle,
///   the pool is as before the call or as after it, never between, and never needs an operator.
/// - V3: metadata calls never wait for data: create, snapshot, clone, revert, extend and delete take time that
///   does not grow with the size of the volume. Space of deleted versions may come back later.
/// - V4: a snapshot holds exactly what was flushed or completed on its volume before the call, nothing that was
///   submitted after it returned, and never changes. Members of a group snapshot are one consistent cut.
/// - V5: any object can be deleted in any order, whatever was cloned from it.
/// - V6: new, extended and discarded ranges read as zeros; no volume ever reads another's old data.
/// - V7: a volume that is open for I/O is neither deleted nor reverted ([`Busy`](DriverError::Busy)); it can be
///   snapshotted, cloned and extended.
/// - V8: in a full pool, deletes and discards work and whatever is mapped stays readable, and writable unless it is shared
///   or has checksums.
/// - V9: differences never leave out a byte that differs. They may name more, up to a unit of allocation around it,
///   and finding them takes time that grows with what differs, not with the size. Of a volume that is written
///   meanwhile they hold at least what differed when they were asked for and is not discarded since.
/// - V10: a check looks at all there is of the pool's own structure while I/O goes on, and changes nothing, but that it may write
///   again what the pool has in memory and is damaged on its medium. What it tells of is damage; a pool without damage never has problems, whatever is going on.
/// - V11: a volume that was created as a reserved one, or made one, is one until it is told otherwise; its snapshots and clones are not. Where the pool knows
///   levels ([`SpaceLevel`](crate::SpaceLevel)), only reserved volumes take space from `critical` on.
/// - V12: a volume that was created with checksums has them for its life, and so have its snapshots, its clones and theirs. What
///   is not what was written there is never read: the answer is [`Corrupt`](crate::IoError::Corrupt), and nothing else
///   ever is.
#[async_trait]
pub trait VolumeBackend: Send + Sync + 'static {
    /// Returns what this backend can do; fixed for its life.
    fn capabilities(&self) -> BackendCapabilities;

    /// Returns the pool's state and live capacity; cheap enough to be polled.
    async fn pool_status(&self) -> Result<PoolStatus, DriverError>;

    /// Creates a volume: blank, or as a writable clone of a snapshot or of a volume's present contents.
    ///
    /// # Errors
    /// `InvalidArgument` for a size that is zero, not a multiple of the allocation's logical block, above the
    /// backend's limit or below the source's, or for checksums of what is made of a volume that has none; `NotFound` for the source; `AlreadyExists` (V1).
    async fn create_volume(&self, spec: &VolumeSpec) -> Result<Outcome<VolumeInfo>, DriverError>;

    /// Returns one volume.
    ///
    /// # Errors
    /// `NotFound`.
    async fn volume(&self, id: VolumeId) -> Result<VolumeInfo, DriverError>;

    /// Returns volumes, ordered by id. What a page costs does not depend on how many others there are.
    async fn volumes(&self, page: Page<VolumeId>) -> Result<Vec<VolumeInfo>, DriverError>;

    /// Grows a volume to `size_bytes`. The new size is visible to open devices before this returns.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` when the size is smaller than the present one or breaks a limit.
    async fn extend_volume(&self, id: VolumeId, size_bytes: u64) -> Result<Outcome<VolumeInfo>, DriverError>;

    /// Makes a volume a reserved one or an ordinary one (V11).
    ///
    /// # Errors
    /// `NotFound`.
    async fn reserve_volume(&self, id: VolumeId, reserved: bool) -> Result<Outcome<VolumeInfo>, DriverError>;

    /// Makes a volume's contents and size equal to one of its snapshots'. Later snapshots survive. The size
    /// stays the volume's present one: what lies beyond the snapshot's end reads zero.
    ///
    /// # Errors
    /// `NotFound` for either; `InvalidArgument` when the snapshot is of another volume; `Busy` (V7).
    async fn revert_volume(
        &self,
        id: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<Outcome<VolumeInfo>, DriverError>;

    /// Deletes a volume. Its snapshots and what was cloned from them live on (V5).
    ///
    /// # Errors
    /// `Busy` (V7).
    async fn delete_volume(&self, id: VolumeId) -> Result<Outcome<()>, DriverError>;

    /// Takes snapshots of one or several volumes at one point in time: all of them or none (V4).
    ///
    /// # Errors
    /// `NotFound` for a volume; `AlreadyExists` when one of the ids is a snapshot of another volume, or when
    /// some of the group exist and others do not; `InvalidArgument` when two members name one volume or one id.
    async fn create_snapshots(
        &self,
        group: &[SnapshotSpec],
    ) -> Result<Outcome<Vec<SnapshotInfo>>, DriverError>;

    /// Returns one snapshot.
    ///
    /// # Errors
    /// `NotFound`.
    async fn snapshot(&self, id: SnapshotId) -> Result<SnapshotInfo, DriverError>;

    /// Returns snapshots, of one volume or of all, ordered by id. What a page costs does not depend on how many others there
    /// are.
    async fn snapshots(
        &self,
        of: Option<VolumeId>,
        page: Page<SnapshotId>,
    ) -> Result<Vec<SnapshotInfo>, DriverError>;

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// `Busy` when it is open for I/O.
    async fn delete_snapshot(&self, id: SnapshotId) -> Result<Outcome<()>, DriverError>;

    /// Checks the pool (V10). Takes as long as reading all of its metadata. Of what it has written again the sentence says so.
    ///
    /// # Errors
    /// When the check itself cannot be made.
    async fn check(&self) -> Result<Vec<PoolProblem>, DriverError>;

    /// Makes the pool larger while it is in use. Never takes anything away, and works when it is full.
    ///
    /// # Errors
    /// `Unsupported`; `InvalidArgument` for a size below the present one, or a device that holds something.
    async fn grow(&self, growth: &PoolGrowth) -> Result<Outcome<PoolStatus>, DriverError>;

    /// Returns where `of` may differ from `since`, a volume or snapshot of this pool, or from zeros: runs in the
    /// order of their offsets, none before `from_bytes`, at most `most` of them (V9). What lies beyond the end of
    /// `since` counts as zeros there; nothing is said of what lies beyond the end of `of`.
    ///
    /// # Errors
    /// `NotFound` for either; `Corrupt` when the map of one cannot be read.
    async fn differences(
        &self,
        of: VersionId,
        since: Option<VersionId>,
        from_bytes: u64,
        most: usize,
    ) -> Result<Differences, DriverError>;

    /// Opens a volume or a snapshot for I/O. At most one [`OpenMode::ReadWrite`] handle of a volume exists at a
    /// time; a snapshot opens only [`OpenMode::ReadOnly`]. The object is open until the last clone of the handle
    /// and every queue on it is dropped.
    ///
    /// # Errors
    /// `NotFound`; `Busy` for a second read-write handle; `InvalidArgument` for a writable snapshot; `Locked`.
    async fn open(&self, id: VersionId, mode: OpenMode) -> Result<Arc<dyn BlockDevice>, DriverError>;

    /// Returns what can be done with encrypted volumes; `None` for a backend that has none.
    fn encryption(&self) -> Option<&dyn VolumeEncryption> {
        None
    }

    /// Returns what the pool counts, with its name as the label `pool`. Does not wait.
    fn metrics(&self) -> Vec<Metric> {
        Vec::new()
    }

    /// Returns what reads and verifies everything that has checksums; `None` for a backend without it.
    fn scrub(&self) -> Option<&dyn PoolScrub> {
        None
    }
}

/// Something wrong with a pool's own structure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolProblem {
    /// What is wrong, and where.
    pub sentence: String,
    /// Whether an offline repair puts it right; if not, only a backup does.
    pub repairable: bool,
}

/// A part of the places where two versions may differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differences {
    /// Runs that do not touch each other unless their kind differs.
    pub runs: Vec<Difference>,
    /// Where to go on; `None` when these are the last.
    pub next_bytes: Option<u64>,
}

/// A run of bytes that may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// Whether the version asked about reads zeros there without reading them.
    pub zeros: bool,
}

impl Differences {
    /// Appends a run behind those that are there, joining what belongs together. False when there is no room for
    /// it; then [`next_bytes`](Self::next_bytes) says where it begins.
    pub fn append(&mut self, run: Difference, most: usize) -> bool {
        let has_room = self.runs.len() < most;
        match self.runs.last_mut() {
            Some(last) if last.offset + last.length == run.offset && last.zeros == run.zeros => {
                last.length += run.length;
            }
            _ if has_room => self.runs.push(run),
            _ => {
                self.next_bytes = Some(run.offset);
                return false;
            }
        }
        true
    }
}

/// Something a backend may or may not be able to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Capability {
    /// Space is taken when written, not when created.
    ThinProvisioning,
    /// Snapshots.
    Snapshots,
    /// Writable clones of snapshots.
    Clones,
    /// Revert to any snapshot of the volume, not only to the latest.
    RevertToAny,
    /// Extend while open for I/O.
    OnlineExtend,
    /// Several volumes snapshotted at one point in time.
    GroupSnapshots,
    /// Discard gives space back.
    Discard,
    /// What has changed between two versions, without reading them.
    Differences,
    /// Volumes that are encrypted at rest.
    Encryption,
    /// The pool grows while it is in use.
    Grow,
    /// Volumes whose data has checksums.
    Checksums,
    /// Reading everything that has checksums.
    Scrub,
}

impl Capability {
    /// Returns the name used in the API and in error messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Capability::ThinProvisioning => "thin-provisioning",
            Capability::Snapshots => "snapshots",
            Capability::Clones => "clones",
            Capability::RevertToAny => "revert-to-any",
            Capability::OnlineExtend => "online-extend",
            Capability::GroupSnapshots => "group-snapshots",
            Capability::Discard => "discard",
            Capability::Differences => "differences",
            Capability::Encryption => "encryption",
            Capability::Grow => "grow",
            Capability::Checksums => "checksums",
            Capability::Scrub => "scrub",
        }
    }
}

/// What a backend can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendCapabilities {
    /// The driver's name, as in the configuration (`thin`).
    pub driver: &'static str,
    /// What it can do, ordered.
    pub features: Vec<Capability>,
    /// The largest volume, in bytes.
    pub max_volume_bytes: u64,
    /// Volume sizes are multiples of this, in bytes.
    pub size_granularity_bytes: u64,
}

/// How a pool is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolState {
    /// Everything works.
    Up,
    /// Reads work, writes are refused; the reason says why and what to do.
    ReadOnly {
        /// Why, and the next step.
        reason: String,
    },
}

/// A pool's live figures. All sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolStatus {
    /// The pool.
    pub name: PoolName,
    /// Its identity on disk.
    pub uuid: uuid::Uuid,
    /// How it is.
    pub state: PoolState,
    /// What can hold data in all.
    pub total_bytes: u64,
    /// What is not allocated.
    pub free_bytes: u64,
    /// Allocated to data and metadata.
    pub allocated_bytes: u64,
    /// Freed by deletes and on its way back, still counted in `allocated_bytes`.
    pub reclaimable_bytes: u64,
    /// Owned by deleted versions and to be gone through by reclaim: it comes back, or passes to what descends from
    /// them. 0 when reclaim has caught up.
    pub reclaim_debt_bytes: u64,
    /// The sum of the sizes of all volumes.
    pub provisioned_bytes: u64,
    /// The unit of allocation.
    pub chunk_bytes: u64,
    /// How many volumes there are.
    pub volume_count: u64,
    /// How many snapshots there are.
    pub snapshot_count: u64,
    /// How full it is.
    pub space: PoolSpace,
}

/// What a volume begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataSource {
    /// Zeros.
    Blank,
    /// The contents of a snapshot.
    Snapshot(SnapshotId),
    /// The contents of a volume as of the call (crash-consistent when it is open).
    Volume(VolumeId),
}

/// A volume, described by its creator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Its id.
    pub id: VolumeId,
    /// Its size in bytes; at least the source's.
    pub size_bytes: u64,
    /// What it begins with.
    pub source: DataSource,
    /// Whether its data shall have checksums (V12). What is made of another volume has them if that one does, asked for or not.
    pub checksums: bool,
    /// Whether it is a reserved volume from the start (V11). Not compared when the call is repeated.
    pub reserved: bool,
}

impl VolumeSpec {
    /// Describes a plain volume: without checksums, and not reserved.
    pub fn new(id: VolumeId, size_bytes: u64, source: DataSource) -> Self {
        Self {
            id,
            size_bytes,
            source,
            checksums: false,
            reserved: false,
        }
    }

    /// Tells whether an existing volume that has checksums, or not, may be the one described.
    pub fn is_met_by_checksums(&self, has_checksums: bool) -> bool {
        let may_inherit = self.source != DataSource::Blank;
        has_checksums == self.checksums || has_checksums && may_inherit
    }
}

/// A volume as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its id.
    pub id: VolumeId,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What it was created from. Remembered as a fact; the source itself may be gone.
    pub source: DataSource,
    /// Mapped bytes, shared with other versions or not.
    pub mapped_bytes: u64,
    /// Whether it takes space from a nearly full pool when others may not (V11).
    pub reserved: bool,
    /// Whether it is encrypted.
    pub encryption: Encryption,
    /// Whether its data has checksums (V12).
    pub checksums: bool,
    /// How many snapshots of it there are.
    pub snapshot_count: u64,
}

/// A snapshot, described by its creator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotSpec {
    /// Its id.
    pub id: SnapshotId,
    /// The volume to take it of.
    pub volume: VolumeId,
}

/// A snapshot as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its id.
    pub id: SnapshotId,
    /// The volume it was taken of. Remembered as a fact; the volume itself may be gone.
    pub volume: VolumeId,
    /// Its size in bytes: the volume's when it was taken.
    pub size_bytes: u64,
    /// Mapped bytes, shared with other versions or not.
    pub mapped_bytes: u64,
}

/// A volume or a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VersionId {
    /// A volume.
    Volume(VolumeId),
    /// A snapshot.
    Snapshot(SnapshotId),
}

/// How a device is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// Reads only; several at a time.
    ReadOnly,
    /// Reads and writes; one at a time.
    ReadWrite,
}
