//! What a pool holds, as known in memory.

use std::collections::BTreeMap;

use quarry_contract::{
    DriverError, FieldDifference, Outcome, PoolName, PoolState, ShareCapabilities, ShareId, ShareInfo,
    SharePoolStatus, ShareSnapshotId, ShareSnapshotInfo, ShareSnapshotSpec, ShareSource, ShareSpec,
    ShareVersion,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{corrupt, not_found};

/// What an object was made of. Never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectRecord {
    /// A share.
    Share {
        /// What it was created from.
        source: ShareSource,
    },
    /// A snapshot.
    Snapshot {
        /// The share it is of.
        share: ShareId,
    },
}

/// How a pool is, and what room it has.
#[derive(Debug)]
pub struct PoolSpace {
    /// Whether it works.
    pub state: PoolState,
    /// Its size, in bytes.
    pub total_bytes: u64,
    /// What is free, in bytes.
    pub free_bytes: u64,
    /// What was deleted and is not free yet, in bytes.
    pub reclaimable_bytes: u64,
}

/// The shares and snapshots of a pool.
#[derive(Debug, Default)]
pub struct Objects {
    shares: BTreeMap<ShareId, ShareInfo>,
    snapshots: BTreeMap<ShareSnapshotId, ShareSnapshotInfo>,
}

impl Objects {
    /// Returns one share.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn share(&self, id: ShareId) -> Result<ShareInfo, DriverError> {
        let share = self.shares.get(&id).cloned();
        share.ok_or_else(|| not_found(ShareVersion::Share(id)))
    }

    /// Returns all shares, ordered by id.
    pub fn shares(&self) -> Vec<ShareInfo> {
        self.shares.values().cloned().collect()
    }

    /// Returns one snapshot.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn snapshot(&self, id: ShareSnapshotId) -> Result<ShareSnapshotInfo, DriverError> {
        let snapshot = self.snapshots.get(&id).cloned();
        snapshot.ok_or_else(|| not_found(ShareVersion::Snapshot(id)))
    }

    /// Returns all snapshots, ordered by id.
    pub fn snapshots(&self) -> Vec<ShareSnapshotInfo> {
        self.snapshots.values().cloned().collect()
    }

    /// Returns what there is, ordered.
    pub fn versions(&self) -> Vec<ShareVersion> {
        let shares = self.shares.keys().copied().map(ShareVersion::Share);
        let snapshots = self.snapshots.keys().copied().map(ShareVersion::Snapshot);
        shares.chain(snapshots).collect()
    }

    /// Returns the size of a share or snapshot, in bytes.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn size_bytes(&self, version: ShareVersion) -> Result<u64, DriverError> {
        match version {
            ShareVersion::Share(id) => Ok(self.share(id)?.size_bytes),
            ShareVersion::Snapshot(id) => Ok(self.snapshot(id)?.size_bytes),
        }
    }

    /// Checks what a share is to be made of, and returns the answer when it is there already (S1).
    ///
    /// # Errors
    /// `AlreadyExists` naming in what it differs, `NotFound` for the source, `InvalidArgument` for the size.
    pub fn admit(
        &self,
        spec: &ShareSpec,
        limits: &ShareCapabilities,
    ) -> Result<Option<Outcome<ShareInfo>>, DriverError> {
        if let Ok(existing) = self.share(spec.id) {
            return same_or_differs(existing, spec).map(Some);
        }
        limits.check_size(spec.size_bytes)?;
        if let Some(source) = spec.source.version() {
            let least = self.size_bytes(source)?;
            if spec.size_bytes < least {
                return Err(DriverError::InvalidArgument {
                    field: "size_bytes".into(),
                    problem: format!("{} is below the {least} of {source}", spec.size_bytes),
                });
            }
        }
        Ok(None)
    }

    /// Returns a snapshot of a share.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` when it is another share's.
    pub fn snapshot_of(
        &self,
        share: ShareId,
        snapshot: ShareSnapshotId,
    ) -> Result<ShareSnapshotInfo, DriverError> {
        let found = self.snapshot(snapshot)?;
        if found.share == share {
            return Ok(found);
        }
        Err(DriverError::InvalidArgument {
            field: "snapshot".into(),
            problem: format!("{snapshot} is a snapshot of share {}", found.share),
        })
    }

    /// Returns the snapshots of a group when they are there already.
    ///
    /// # Errors
    /// `InvalidArgument` for the group; `AlreadyExists` when only some are there, or of other shares.
    pub fn group(&self, group: &[ShareSnapshotSpec]) -> Result<Option<Vec<ShareSnapshotInfo>>, DriverError> {
        ShareSnapshotSpec::check_group(group)?;
        let existing: Vec<ShareSnapshotInfo> = group
            .iter()
            .filter_map(|spec| self.snapshot(spec.id).ok())
            .collect();
        Ok(ShareSnapshotSpec::group_exists(group, &existing)?.then_some(existing))
    }

    /// Describes the pool that holds these.
    pub fn status(&self, name: &PoolName, uuid: Uuid, space: PoolSpace) -> SharePoolStatus {
        SharePoolStatus {
            name: name.clone(),
            uuid,
            state: space.state,
            total_bytes: space.total_bytes,
            free_bytes: space.free_bytes,
            reclaimable_bytes: space.reclaimable_bytes,
            provisioned_bytes: self.shares.values().map(|share| share.size_bytes).sum(),
            share_count: self.shares.len() as u64,
            snapshot_count: self.snapshots.len() as u64,
        }
    }

    /// Notes an object that is there now.
    ///
    /// # Errors
    /// `Corrupt` when its record is of another kind.
    pub fn insert(
        &mut self,
        version: ShareVersion,
        record: ObjectRecord,
        size_bytes: u64,
    ) -> Result<(), DriverError> {
        match (version, record) {
            (ShareVersion::Share(id), ObjectRecord::Share { source }) => {
                let info = ShareInfo {
                    id,
                    size_bytes,
                    source,
                };
                self.shares.insert(id, info);
                Ok(())
            }
            (ShareVersion::Snapshot(id), ObjectRecord::Snapshot { share }) => {
                let info = ShareSnapshotInfo {
                    id,
                    share,
                    size_bytes,
                };
                self.snapshots.insert(id, info);
                Ok(())
            }
            _ => Err(corrupt(version, "its record is of another kind")),
        }
    }

    /// Notes that a share has another size now.
    pub fn resize(&mut self, id: ShareId, size_bytes: u64) {
        if let Some(share) = self.shares.get_mut(&id) {
            share.size_bytes = size_bytes;
        }
    }

    /// Notes that an object is not there any more.
    pub fn remove(&mut self, version: ShareVersion) {
        match version {
            ShareVersion::Share(id) => drop(self.shares.remove(&id)),
            ShareVersion::Snapshot(id) => drop(self.snapshots.remove(&id)),
        }
    }
}

/// Answers for a share that is there already (S1).
///
/// # Errors
/// `AlreadyExists` naming in what it differs.
fn same_or_differs(existing: ShareInfo, spec: &ShareSpec) -> Result<Outcome<ShareInfo>, DriverError> {
    let mut differences = Vec::new();
    let mut compare = |field: &str, existing: String, requested: String| {
        if existing != requested {
            differences.push(FieldDifference {
                field: field.into(),
                existing,
                requested,
            });
        }
    };
    compare(
        "size_bytes",
        existing.size_bytes.to_string(),
        spec.size_bytes.to_string(),
    );
    compare("source", existing.source.to_string(), spec.source.to_string());
    if differences.is_empty() {
        return Ok(Outcome::Unchanged(existing));
    }
    Err(DriverError::AlreadyExists {
        object: ShareVersion::Share(spec.id).to_string(),
        differences,
    })
}

/// Returns the name of an object where shares and snapshots lie side by side.
pub fn member_name(version: ShareVersion) -> String {
    match version {
        ShareVersion::Share(id) => format!("share-{id}"),
        ShareVersion::Snapshot(id) => format!("snapshot-{id}"),
    }
}

/// The opposite of [`member_name`].
pub fn parse_member(name: &str) -> Option<ShareVersion> {
    let (kind, id) = name.split_once('-')?;
    match kind {
        "share" => id.parse().ok().map(ShareVersion::Share),
        "snapshot" => id.parse().ok().map(ShareVersion::Snapshot),
        _ => None,
    }
}
