//! What a pool holds, as known in memory.

use std::collections::BTreeMap;

use quarry_contract::{
    DriverError, FieldDifference, Outcome, ShareId, ShareInfo, ShareSnapshotId, ShareSnapshotInfo,
    ShareSource, ShareSpec, ShareVersion,
};
use serde::{Deserialize, Serialize};

use crate::error::{StoreError, corrupt, not_found};

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
pub fn same_or_differs(existing: ShareInfo, spec: &ShareSpec) -> Result<Outcome<ShareInfo>, StoreError> {
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
    }
    .into())
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
