//! What a pool holds, as known in memory.

use std::collections::BTreeMap;

use quarry_contract::{
    DriverError, FieldDifference, Outcome, ShareId, ShareInfo, ShareSnapshotId, ShareSnapshotInfo,
    ShareSource, ShareSpec, ShareVersion,
};

use crate::error::{StoreError, corrupt, not_found};
use crate::layout::ObjectRecord;

/// The shares and snapshots of a pool.
#[derive(Default)]
pub(crate) struct Objects {
    pub(crate) shares: BTreeMap<ShareId, Share>,
    pub(crate) snapshots: BTreeMap<ShareSnapshotId, Snapshot>,
}

/// A share.
#[derive(Clone, Copy)]
pub(crate) struct Share {
    pub(crate) source: ShareSource,
    pub(crate) size_bytes: u64,
}

/// A snapshot.
#[derive(Clone, Copy)]
pub(crate) struct Snapshot {
    pub(crate) share: ShareId,
    pub(crate) size_bytes: u64,
}

impl Objects {
    pub(crate) fn share(&self, id: ShareId) -> Result<ShareInfo, DriverError> {
        let share = self
            .shares
            .get(&id)
            .ok_or_else(|| not_found(ShareVersion::Share(id)))?;
        Ok(ShareInfo {
            id,
            size_bytes: share.size_bytes,
            source: share.source,
        })
    }

    pub(crate) fn snapshot(&self, id: ShareSnapshotId) -> Result<ShareSnapshotInfo, DriverError> {
        let snapshot = self
            .snapshots
            .get(&id)
            .ok_or_else(|| not_found(ShareVersion::Snapshot(id)))?;
        Ok(ShareSnapshotInfo {
            id,
            share: snapshot.share,
            size_bytes: snapshot.size_bytes,
        })
    }

    pub(crate) fn check(&self, version: ShareVersion) -> Result<(), DriverError> {
        match version {
            ShareVersion::Share(id) => self.share(id).map(drop),
            ShareVersion::Snapshot(id) => self.snapshot(id).map(drop),
        }
    }

    pub(crate) fn insert(
        &mut self,
        version: ShareVersion,
        record: ObjectRecord,
        size_bytes: u64,
    ) -> Result<(), DriverError> {
        match (version, record) {
            (ShareVersion::Share(id), ObjectRecord::Share { source }) => {
                self.shares.insert(id, Share { source, size_bytes });
                Ok(())
            }
            (ShareVersion::Snapshot(id), ObjectRecord::Snapshot { share }) => {
                self.snapshots.insert(id, Snapshot { share, size_bytes });
                Ok(())
            }
            _ => Err(corrupt(version, "its record is of another kind")),
        }
    }
}

/// Answers for a share that is there already (S1).
pub(crate) fn same_or_differs(
    existing: ShareInfo,
    spec: &ShareSpec,
) -> Result<Outcome<ShareInfo>, StoreError> {
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
