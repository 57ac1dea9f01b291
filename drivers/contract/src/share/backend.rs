//! The role of a pool of shares: file systems of a fixed size, and their snapshots.

use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;

use crate::{DriverError, FieldDifference, Outcome, PoolName, PoolState, ShareId, ShareSnapshotId};

/// One pool that shares are cut from.
///
/// Contract
/// - S1: a mutating call describes an end state. The same id with the same properties again answers
///   [`Outcome::Unchanged`] with the existing object; with other properties it is
///   [`AlreadyExists`](DriverError::AlreadyExists) naming the differences, and nothing changes. Deleting what is
///   not there is `Unchanged`.
/// - S2: when a mutating call returns `Ok`, its effect survives a power cut. When the process dies in the middle,
///   the pool is as before the call or as after it, never between, and never needs an operator.
/// - S3: create, snapshot, clone, revert and delete copy no data. Space of what is deleted may come back later.
/// - S4: a snapshot holds what was completed on its share before the call, nothing of what began after it has
///   returned, and never changes. Members of a group snapshot are one consistent cut.
/// - S5: any object can be deleted in any order, whatever was made from it.
/// - S6: a share is a file system of its own: its size is what `statfs` says of it, to the byte; what does not fit
///   fails with `ENOSPC`; and no name or file handle of one share leads into another or out of it.
/// - S7: nothing is mounted that nobody asked for. A mounted share is neither deleted nor reverted
///   ([`Busy`](DriverError::Busy)); it can be snapshotted, cloned and resized. A mounted snapshot is read-only, for
///   everybody, and is not deleted.
/// - S8: what is mounted is the object itself, on a device of its own: a path that leads elsewhere, because
///   something was unmounted or replaced, is never handed out.
/// - S9: every object has a file system identity of its own, as long as it lives: a share keeps its across remount
///   and revert, so that clients' file handles stay valid; a clone or a snapshot never has its origin's.
/// - S10: one process uses a pool at a time; the second is told who has it.
/// - S11: a mounted share whose file system answers nothing but errors any more, as when the device below has failed it,
///   has stopped. It stays mounted; unmounting and mounting it brings back everything that was flushed, as soon as what
///   has stopped it is over.
/// - S12: what is in the pool and not the backend's is left alone, but for [`adopt_share`](ShareBackend::adopt_share). What is
///   released is whole, holds all its data, and is left alone from then on.
/// - S13: a mounted share whose data somebody has taken out of the pool goes on as long as it is mounted, and what is mounted is
///   all there is of it. Nothing but [`delete_share`](ShareBackend::delete_share) unmounts it, the end of the process included.
#[async_trait]
pub trait ShareBackend: Send + Sync + 'static {
    /// Returns what this backend can do; fixed for its life.
    fn capabilities(&self) -> ShareCapabilities;

    /// Returns the pool's state and live capacity; cheap enough to be polled.
    async fn pool_status(&self) -> Result<SharePoolStatus, DriverError>;

    /// Creates a share: empty, or as a writable clone of a snapshot or of a share's present contents. It is not
    /// mounted.
    ///
    /// # Errors
    /// `InvalidArgument` for a size outside the limits of the capabilities or below the source's; `NotFound` for the
    /// source; `AlreadyExists` (S1); `Full`.
    async fn create_share(&self, spec: &ShareSpec) -> Result<Outcome<ShareInfo>, DriverError>;

    /// Returns one share.
    ///
    /// # Errors
    /// `NotFound`.
    async fn share(&self, id: ShareId) -> Result<ShareInfo, DriverError>;

    /// Returns all shares, ordered by id.
    async fn shares(&self) -> Result<Vec<ShareInfo>, DriverError>;

    /// Gives a share another size, mounted or not. Clients see it when this returns.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for a size outside the limits; to a smaller size `Unsupported` without
    /// [`ShareCapability::Shrink`], and `Busy` when less than what is in use is asked for. Nothing has changed then.
    async fn resize_share(&self, id: ShareId, size_bytes: u64) -> Result<Outcome<ShareInfo>, DriverError>;

    /// Makes a share's contents equal to one of its snapshots'. The share keeps its size, the snapshot and all later
    /// ones survive.
    ///
    /// # Errors
    /// `NotFound` for either; `InvalidArgument` when the snapshot is of another share; `Busy` (S7).
    async fn revert_share(
        &self,
        id: ShareId,
        snapshot: ShareSnapshotId,
    ) -> Result<Outcome<ShareInfo>, DriverError>;

    /// Deletes a share. Its snapshots and what was cloned from it live on (S5). One that is left only as it is mounted (S13) is
    /// unmounted by this.
    ///
    /// # Errors
    /// `Busy` (S7).
    async fn delete_share(&self, id: ShareId) -> Result<Outcome<()>, DriverError>;

    /// Makes what is in the pool under a name, and is not the backend's, a share, with all that it holds; only the identity of
    /// its file system becomes the share's (S9). It is not mounted, and what it is made of is [`ShareSource::Blank`]. What a name
    /// means is the backend's affair. `Unchanged` when the share is there and nothing has the name any more.
    ///
    /// # Errors
    /// `NotFound` when nothing has the name; `InvalidArgument` for a name that nothing can have, and for what no share of this
    /// pool can be; `AlreadyExists` when the share is there and something has the name, too; `Busy` when it is in use;
    /// `Corrupt`; `Unsupported` without [`ShareCapability::Adopt`].
    async fn adopt_share(&self, id: ShareId, name: &str) -> Result<Outcome<ShareInfo>, DriverError>;

    /// Gives a share up and leaves all that it holds in the pool, under a name, for others or to be adopted again (S12). Its
    /// snapshots and what was cloned from it live on (S5). `Unchanged` when the share is not there and something has the name.
    ///
    /// # Errors
    /// `NotFound` when neither is there; `InvalidArgument` for a name that nothing can have; `AlreadyExists` when something has
    /// the name; `Busy` (S7); `Unsupported` without [`ShareCapability::Adopt`].
    async fn release_share(&self, id: ShareId, name: &str) -> Result<Outcome<()>, DriverError>;

    /// Takes snapshots of one or several shares at one point in time: all of them or none (S4).
    ///
    /// # Errors
    /// `NotFound` for a share; `AlreadyExists` when one of the ids is a snapshot of another share, or when some of
    /// the group exist and others do not; `InvalidArgument` when two members name one share or one id; `Full`.
    async fn create_snapshots(
        &self,
        group: &[ShareSnapshotSpec],
    ) -> Result<Outcome<Vec<ShareSnapshotInfo>>, DriverError>;

    /// Returns one snapshot.
    ///
    /// # Errors
    /// `NotFound`.
    async fn snapshot(&self, id: ShareSnapshotId) -> Result<ShareSnapshotInfo, DriverError>;

    /// Returns all snapshots, ordered by id.
    async fn snapshots(&self) -> Result<Vec<ShareSnapshotInfo>, DriverError>;

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// `Busy` when it is mounted.
    async fn delete_snapshot(&self, id: ShareSnapshotId) -> Result<Outcome<()>, DriverError>;

    /// Tells how much of a share or snapshot is used.
    ///
    /// # Errors
    /// `NotFound`.
    async fn usage(&self, of: ShareVersion) -> Result<ShareUsage, DriverError>;

    /// Mounts a share for reading and writing, or a snapshot for reading (S8). `Unchanged` when it is mounted.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` for a snapshot without [`ShareCapability::MountSnapshots`]; `Corrupt` when there is
    /// no file system in it.
    async fn mount(&self, of: ShareVersion) -> Result<Outcome<MountedShare>, DriverError>;

    /// Unmounts it. `Unchanged` when it is not mounted. What has been written survives a power cut then.
    ///
    /// # Errors
    /// `Busy` when something is open on it; `Corrupt` when nothing would be left of it (S13).
    async fn unmount(&self, of: ShareVersion) -> Result<Outcome<()>, DriverError>;

    /// Returns all that is mounted, ordered by what it is. Also what a process before this one has left mounted.
    async fn mounted(&self) -> Result<Vec<MountedShare>, DriverError>;

    /// Returns what is mounted and has stopped (S11), ordered. Cheap enough to be polled.
    async fn stopped(&self) -> Result<Vec<ShareVersion>, DriverError>;

    /// Returns what somebody has taken out of the pool or has spoilt there, ordered, with what was found and where. Damage that
    /// shows only when something is read is not looked for.
    async fn damaged(&self) -> Result<Vec<(ShareVersion, String)>, DriverError>;
}

/// A share or a snapshot of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum ShareVersion {
    /// A share.
    Share(ShareId),
    /// A snapshot.
    Snapshot(ShareSnapshotId),
}

impl fmt::Display for ShareVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ShareVersion::Share(id) => write!(f, "share {id}"),
            ShareVersion::Snapshot(id) => write!(f, "share snapshot {id}"),
        }
    }
}

/// What a share begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ShareSource {
    /// An empty file system.
    Blank,
    /// The contents of a snapshot.
    Snapshot(ShareSnapshotId),
    /// The contents of a share as of the call.
    Share(ShareId),
}

impl ShareSource {
    /// Returns what it is the contents of; `None` for an empty file system.
    pub fn version(self) -> Option<ShareVersion> {
        match self {
            ShareSource::Blank => None,
            ShareSource::Share(id) => Some(ShareVersion::Share(id)),
            ShareSource::Snapshot(id) => Some(ShareVersion::Snapshot(id)),
        }
    }
}

impl fmt::Display for ShareSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ShareSource::Blank => f.write_str("blank"),
            ShareSource::Snapshot(id) => write!(f, "share snapshot {id}"),
            ShareSource::Share(id) => write!(f, "share {id}"),
        }
    }
}

/// A share, described by its creator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareSpec {
    /// Its id.
    pub id: ShareId,
    /// What clients see as its size, in bytes; at least the source's.
    pub size_bytes: u64,
    /// What it begins with.
    pub source: ShareSource,
}

/// A share as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareInfo {
    /// Its id.
    pub id: ShareId,
    /// What clients see as its size, in bytes.
    pub size_bytes: u64,
    /// What it was created from. Remembered as a fact; the source itself may be gone.
    pub source: ShareSource,
}

/// A snapshot, described by its creator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareSnapshotSpec {
    /// Its id.
    pub id: ShareSnapshotId,
    /// The share to take it of.
    pub share: ShareId,
}

/// A snapshot as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareSnapshotInfo {
    /// Its id.
    pub id: ShareSnapshotId,
    /// The share it was taken of. Remembered as a fact; the share itself may be gone.
    pub share: ShareId,
    /// Its size in bytes: the share's when it was taken.
    pub size_bytes: u64,
}

/// How much of a share or snapshot is used. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareUsage {
    /// What clients see as used: files and what the file system keeps beside them. Of what is not mounted, as of its
    /// last clean unmount.
    pub used_bytes: u64,
    /// What it takes of the pool, shared with other versions or not.
    pub allocated_bytes: u64,
}

/// A mounted share or snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedShare {
    /// What it is.
    pub version: ShareVersion,
    /// Where its root is.
    pub path: PathBuf,
    /// The device of its root directory (`st_dev`), which no other share has (S8).
    pub device: u64,
    /// The identity of its file system (S9).
    pub filesystem: uuid::Uuid,
}

/// Something a backend may or may not be able to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ShareCapability {
    /// Space is taken when written, not when created.
    ThinProvisioning,
    /// Snapshots.
    Snapshots,
    /// Writable clones of snapshots.
    Clones,
    /// Revert to any snapshot of the share, not only to the latest.
    RevertToAny,
    /// A larger size while mounted.
    Grow,
    /// A smaller size while mounted.
    Shrink,
    /// Several shares snapshotted at one point in time.
    GroupSnapshots,
    /// Snapshots can be mounted, and so be exported.
    MountSnapshots,
    /// What is in the pool already can become a share, and a share can be given up without its data.
    Adopt,
}

impl ShareCapability {
    /// Returns the name used in the API and in error messages.
    pub fn as_str(self) -> &'static str {
        match self {
            ShareCapability::ThinProvisioning => "thin-provisioning",
            ShareCapability::Snapshots => "snapshots",
            ShareCapability::Clones => "clones",
            ShareCapability::RevertToAny => "revert-to-any",
            ShareCapability::Grow => "grow",
            ShareCapability::Shrink => "shrink",
            ShareCapability::GroupSnapshots => "group-snapshots",
            ShareCapability::MountSnapshots => "mount-snapshots",
            ShareCapability::Adopt => "adopt",
        }
    }
}

/// What a backend can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareCapabilities {
    /// The driver's name, as in the configuration.
    pub driver: &'static str,
    /// What it can do, ordered.
    pub features: Vec<ShareCapability>,
    /// The smallest share, in bytes.
    pub min_share_bytes: u64,
    /// The largest share, in bytes.
    pub max_share_bytes: u64,
    /// Sizes are multiples of this, in bytes.
    pub size_granularity_bytes: u64,
}

impl ShareCapabilities {
    /// Tells whether it can do this.
    pub fn has(&self, capability: ShareCapability) -> bool {
        self.features.contains(&capability)
    }

    /// Checks a size against the limits.
    ///
    /// # Errors
    /// `InvalidArgument` naming the limit.
    pub fn check_size(&self, size_bytes: u64) -> Result<(), DriverError> {
        let (least, most, granularity) = (
            self.min_share_bytes,
            self.max_share_bytes,
            self.size_granularity_bytes,
        );
        let problem = if size_bytes < least {
            format!("{size_bytes} is below the least of {least}")
        } else if size_bytes > most {
            format!("{size_bytes} is above the limit of {most}")
        } else if !size_bytes.is_multiple_of(granularity) {
            format!("{size_bytes} is not a multiple of {granularity}")
        } else {
            return Ok(());
        };
        Err(DriverError::InvalidArgument {
            field: "size_bytes".into(),
            problem,
        })
    }
}

/// A pool's live figures. All sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharePoolStatus {
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
    /// Freed by deletes and on its way back, not yet in `free_bytes`.
    pub reclaimable_bytes: u64,
    /// The sum of the sizes of all shares.
    pub provisioned_bytes: u64,
    /// How many shares there are.
    pub share_count: u64,
    /// How many snapshots there are.
    pub snapshot_count: u64,
}

impl ShareSnapshotSpec {
    /// Checks that the members of a group are of different shares and have different ids.
    ///
    /// # Errors
    /// `InvalidArgument` naming what is there twice, or that the group is empty.
    pub fn check_group(group: &[ShareSnapshotSpec]) -> Result<(), DriverError> {
        let problem = |problem: String| DriverError::InvalidArgument {
            field: "group".into(),
            problem,
        };
        if group.is_empty() {
            return Err(problem("it has no members".into()));
        }
        for (index, one) in group.iter().enumerate() {
            for other in &group[..index] {
                if one.id == other.id {
                    return Err(problem(format!("share snapshot {} is there twice", one.id)));
                }
                if one.share == other.share {
                    return Err(problem(format!("share {} is there twice", one.share)));
                }
            }
        }
        Ok(())
    }

    /// Tells whether a group is there already, given those of its members that are, in its order (S1).
    ///
    /// # Errors
    /// `AlreadyExists` when one is of another share, or only some are there.
    pub fn group_exists(
        group: &[ShareSnapshotSpec],
        existing: &[ShareSnapshotInfo],
    ) -> Result<bool, DriverError> {
        let Some(first) = existing.first() else {
            return Ok(false);
        };
        let differs = |object: ShareSnapshotId, field: &str, existing: String, requested: String| {
            let differences = vec![FieldDifference {
                field: field.into(),
                existing,
                requested,
            }];
            DriverError::AlreadyExists {
                object: ShareVersion::Snapshot(object).to_string(),
                differences,
            }
        };
        for present in existing {
            let wanted = group.iter().find(|spec| spec.id == present.id);
            if let Some(spec) = wanted.filter(|spec| spec.share != present.share) {
                let (is, not) = (present.share.to_string(), spec.share.to_string());
                return Err(differs(present.id, "share", is, not));
            }
        }
        if existing.len() == group.len() {
            return Ok(true);
        }
        let (is, not) = (existing.len().to_string(), group.len().to_string());
        Err(differs(first.id, "members", is, not))
    }
}
