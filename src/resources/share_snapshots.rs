//! Snapshots of shares, one or a group of them at one moment.

use std::collections::HashSet;
use std::sync::Arc;

use quarry_contract::{
    ShareCapability, ShareId, ShareSnapshotId, ShareSnapshotInfo, ShareSnapshotSpec, ShareVersion,
};
use serde::{Deserialize, Serialize};

use super::error::{Differences, Object, ResourceError};
use super::operations::{Done, Intent};
use super::shares::{ExportLocation, SharePool};
use super::volumes::refuse_generation;
use super::{Mutation, Page, Resources};
use crate::catalog::Change;
use crate::catalog::record::{Labels, Moment, Request, ShareRecord};

/// The most snapshots that are taken at one moment.
const MAX_GROUP: usize = 100;

/// One snapshot of a share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareSnapshot {
    /// Its id.
    pub id: ShareSnapshotId,
    /// The share it was taken of.
    pub share: ShareId,
    /// The pool it lives in.
    pub pool: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What clients mount, once it has rules.
    pub locations: Vec<ExportLocation>,
    /// The caller's own keys.
    pub labels: Labels,
    /// Grows with every change.
    pub generation: u64,
    /// When it was taken.
    pub created: Option<Moment>,
}

impl Resources {
    /// Takes snapshots of one or several shares at one moment: all or none. The answer is in the order of
    /// `members`.
    ///
    /// # Errors
    /// `NotFound` for a share, `SpecMismatch`, `InvalidField` for a group that cannot be, and the driver's.
    pub async fn create_share_snapshots(
        self: &Arc<Self>,
        members: Vec<(ShareSnapshotId, ShareId)>,
        labels: Labels,
        mutation: Mutation,
    ) -> Result<Vec<ShareSnapshot>, ResourceError> {
        check_group(&members)?;
        refuse_generation(&mutation)?;
        let locks = members
            .iter()
            .flat_map(|(id, share)| {
                [
                    ShareVersion::Snapshot(*id).into(),
                    ShareVersion::Share(*share).into(),
                ]
            })
            .collect();
        let request = Request::CreateShareSnapshots {
            members: members.clone(),
            labels: labels.clone(),
        };
        self.mutate(locks, request, mutation, |model, intent| {
            Box::pin(model.take_share_snapshots(members, labels, intent))
        })
        .await
    }

    async fn take_share_snapshots(
        &self,
        members: Vec<(ShareSnapshotId, ShareId)>,
        labels: Labels,
        intent: &mut Intent,
    ) -> Result<Done<Vec<ShareSnapshot>>, ResourceError> {
        if let Some(existing) = self.whole_share_group(&members).await? {
            return Ok(Done::unchanged(existing));
        }
        let pool = self.pool_of_share_group(&members).await?;
        pool.require(ShareCapability::Snapshots)?;
        if members.len() > 1 {
            pool.require(ShareCapability::GroupSnapshots)?;
        }
        intent.open().await?;
        let specs: Vec<ShareSnapshotSpec> = members
            .iter()
            .map(|(id, share)| ShareSnapshotSpec {
                id: *id,
                share: *share,
            })
            .collect();
        let taken = pool.backend.create_snapshots(&specs).await?.into_inner();
        let (mut snapshots, mut changes) = (Vec::new(), Vec::new());
        for info in taken {
            let record = self.record_of_snapshot(info.share, labels.clone())?;
            changes.push(Change::PutShare(ShareVersion::Snapshot(info.id), record.clone()));
            snapshots.push(self.share_snapshot_view_with(&pool, info, record));
        }
        Ok(Done::changed(snapshots, changes))
    }

    /// Makes the record of a snapshot that has just been taken. It keeps its share's squash: who was not to be believed to be
    /// root there is not to be here.
    pub(super) fn record_of_snapshot(
        &self,
        share: ShareId,
        labels: Labels,
    ) -> Result<ShareRecord, ResourceError> {
        let squash = self.share_record(ShareVersion::Share(share))?.squash;
        Ok(ShareRecord::created_now(labels, squash))
    }

    /// Returns the snapshots of a group when all of them exist; refuses when only some do.
    pub(super) async fn whole_share_group(
        &self,
        members: &[(ShareSnapshotId, ShareId)],
    ) -> Result<Option<Vec<ShareSnapshot>>, ResourceError> {
        let mut existing = Vec::new();
        for (id, share) in members {
            let version = ShareVersion::Snapshot(*id);
            if let Some((pool, _)) = self.find_share_version(version).await? {
                let info = pool.backend.snapshot(*id).await?;
                let mut differences = Differences::default();
                differences.compare("share_id", info.share, *share);
                differences.none_or(Object::share(version))?;
                existing.push(self.share_snapshot_view(&pool, info)?);
            }
        }
        if existing.is_empty() {
            return Ok(None);
        }
        if let Some(first) = existing.first().filter(|_| existing.len() < members.len()) {
            let mut differences = Differences::default();
            differences.compare("members", "in another group", "in this group");
            differences.none_or(Object::share(ShareVersion::Snapshot(first.id)))?;
        }
        Ok(Some(existing))
    }

    async fn pool_of_share_group(
        &self,
        members: &[(ShareSnapshotId, ShareId)],
    ) -> Result<SharePool, ResourceError> {
        let mut pool: Option<SharePool> = None;
        for (_, share) in members {
            let (found, _) = self.existing_share_version(ShareVersion::Share(*share)).await?;
            match &pool {
                Some(first) if first.name != found.name => {
                    let problem = format!(
                        "share {share} is in pool {}, the others are in pool {}; one group is in one pool",
                        found.name, first.name
                    );
                    return Err(ResourceError::field("members", problem));
                }
                Some(_) => {}
                None => pool = Some(found),
            }
        }
        pool.ok_or_else(|| ResourceError::field("members", "name at least one snapshot"))
    }

    /// Returns one snapshot of a share.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn share_snapshot(&self, id: ShareSnapshotId) -> Result<ShareSnapshot, ResourceError> {
        let (pool, _) = self.existing_share_version(ShareVersion::Snapshot(id)).await?;
        let info = pool.backend.snapshot(id).await?;
        self.share_snapshot_view(&pool, info)
    }

    /// Returns snapshots of shares, ordered by id: of one share or of all.
    ///
    /// # Errors
    /// The driver's.
    pub async fn share_snapshots(
        &self,
        page: Page<ShareSnapshotId>,
        share: Option<ShareId>,
    ) -> Result<Vec<ShareSnapshot>, ResourceError> {
        let mut found = Vec::new();
        for pool in self.share_pools() {
            let wanted = |info: &ShareSnapshotInfo| {
                page.after.is_none_or(|after| info.id > after) && share.is_none_or(|id| info.share == id)
            };
            let snapshots = pool.backend.snapshots().await?.into_iter().filter(wanted);
            found.extend(snapshots.map(|info| (info, pool.clone())));
        }
        found.sort_unstable_by_key(|(info, _)| info.id);
        found.truncate(page.limit);
        found
            .into_iter()
            .map(|(info, pool)| self.share_snapshot_view(&pool, info))
            .collect()
    }

    fn share_snapshot_view(
        &self,
        pool: &SharePool,
        info: ShareSnapshotInfo,
    ) -> Result<ShareSnapshot, ResourceError> {
        let record = self.share_record(ShareVersion::Snapshot(info.id))?;
        Ok(self.share_snapshot_view_with(pool, info, record))
    }

    fn share_snapshot_view_with(
        &self,
        pool: &SharePool,
        info: ShareSnapshotInfo,
        record: ShareRecord,
    ) -> ShareSnapshot {
        ShareSnapshot {
            id: info.id,
            share: info.share,
            pool: pool.name.clone(),
            size_bytes: info.size_bytes,
            locations: self.export_locations(ShareVersion::Snapshot(info.id)),
            labels: record.labels,
            generation: record.generation,
            created: record.created,
        }
    }
}

fn check_group(members: &[(ShareSnapshotId, ShareId)]) -> Result<(), ResourceError> {
    if members.is_empty() || members.len() > MAX_GROUP {
        let problem = format!("a group has 1 to {MAX_GROUP} snapshots, not {}", members.len());
        return Err(ResourceError::field("members", problem));
    }
    let (mut ids, mut shares) = (HashSet::new(), HashSet::new());
    for (id, share) in members {
        if !ids.insert(id) {
            let problem = format!("share snapshot {id} is named twice");
            return Err(ResourceError::field("members", problem));
        }
        if !shares.insert(share) {
            return Err(ResourceError::field(
                "members",
                format!("share {share} is named twice"),
            ));
        }
    }
    Ok(())
}
