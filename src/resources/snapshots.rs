//! Snapshots, one or a group of them at one moment.

use std::collections::HashSet;
use std::sync::Arc;

use quarry_contract::{Capability, SnapshotId, SnapshotInfo, SnapshotSpec, VolumeId};

use super::error::{Differences, Object, ResourceError};
use super::operations::{Done, Intent};
use super::pools::PoolBackend;
use super::volumes::{check_generation, refuse_generation};
use super::{Mutation, Page, Resources, Snapshot};
use crate::catalog::Change;
use crate::catalog::record::{Labels, ObjectRecord, Request};

/// The most snapshots that are taken at one moment.
const MAX_GROUP: usize = 100;

impl Resources {
    /// Takes snapshots of one or several volumes at one moment: all or none. The answer is in the order of
    /// `members`.
    ///
    /// # Errors
    /// `NotFound` for a volume, `SpecMismatch`, `InvalidField` for a group that cannot be, and the driver's.
    pub async fn create_snapshots(
        self: &Arc<Self>,
        members: Vec<(SnapshotId, VolumeId)>,
        labels: Labels,
        mutation: Mutation,
    ) -> Result<Vec<Snapshot>, ResourceError> {
        check_group(&members)?;
        refuse_generation(&mutation)?;
        let locks = members
            .iter()
            .flat_map(|(id, volume)| [(*id).into(), (*volume).into()])
            .collect();
        let request = Request::CreateSnapshots {
            members: members.clone(),
            labels: labels.clone(),
        };
        self.mutate(locks, request, mutation, |model, intent| {
            Box::pin(model.take_snapshots(members, labels, intent))
        })
        .await
    }

    async fn take_snapshots(
        &self,
        members: Vec<(SnapshotId, VolumeId)>,
        labels: Labels,
        intent: &mut Intent,
    ) -> Result<Done<Vec<Snapshot>>, ResourceError> {
        if let Some(existing) = self.whole_group(&members).await? {
            return Ok(Done::unchanged(existing));
        }
        let pool = self.pool_of_group(&members).await?;
        pool.require(Capability::Snapshots)?;
        if members.len() > 1 {
            pool.require(Capability::GroupSnapshots)?;
        }
        intent.open().await?;
        let specs: Vec<SnapshotSpec> = members
            .iter()
            .map(|(id, volume)| SnapshotSpec {
                id: *id,
                volume: *volume,
            })
            .collect();
        let taken = pool.backend.create_snapshots(&specs).await?.into_inner();
        let record = ObjectRecord::created_now(labels);
        let changes = members
            .iter()
            .map(|(id, _)| Change::PutSnapshot(*id, record.clone()))
            .collect();
        let mut views = Vec::with_capacity(members.len());
        for (id, _) in &members {
            let info = taken.iter().find(|info| info.id == *id).cloned();
            let info = info.ok_or_else(|| ResourceError::Internal {
                detail: format!(
                    "the driver of pool {} has taken a group without snapshot {id}",
                    pool.name
                ),
            })?;
            views.push(view(&pool, info, record.clone()));
        }
        Ok(Done::changed(views, changes))
    }

    /// Returns the snapshots of a group when all of them exist; refuses when only some do.
    pub(super) async fn whole_group(
        &self,
        members: &[(SnapshotId, VolumeId)],
    ) -> Result<Option<Vec<Snapshot>>, ResourceError> {
        let mut existing = Vec::new();
        for (id, volume) in members {
            if let Some((pool, info)) = self.find_snapshot(*id).await? {
                let mut differences = Differences::default();
                differences.compare("volume_id", info.volume, *volume);
                differences.none_or(Object::snapshot(id))?;
                existing.push(view(&pool, info, self.snapshot_record(*id)?));
            }
        }
        if existing.is_empty() {
            return Ok(None);
        }
        if let Some(first) = existing.first().filter(|_| existing.len() < members.len()) {
            let mut differences = Differences::default();
            differences.compare("members", "in another group", "in this group");
            differences.none_or(Object::snapshot(first.id))?;
        }
        Ok(Some(existing))
    }

    async fn pool_of_group(&self, members: &[(SnapshotId, VolumeId)]) -> Result<PoolBackend, ResourceError> {
        let mut pool: Option<PoolBackend> = None;
        for (_, volume) in members {
            let (found, _) = self.existing_volume(*volume).await?;
            match &pool {
                Some(first) if first.name != found.name => {
                    let problem = format!(
                        "volume {volume} is in pool {}, the others are in pool {}; one group is in one pool",
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

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// `StaleGeneration`, and the driver's.
    pub async fn delete_snapshot(
        self: &Arc<Self>,
        id: SnapshotId,
        mutation: Mutation,
    ) -> Result<(), ResourceError> {
        let if_generation = mutation.if_generation;
        let request = Request::DeleteSnapshot { id };
        self.mutate(vec![id.into()], request, mutation, move |model, intent| {
            Box::pin(model.remove_snapshot(id, if_generation, intent))
        })
        .await
    }

    pub(super) async fn remove_snapshot(
        &self,
        id: SnapshotId,
        if_generation: Option<u64>,
        intent: &mut Intent,
    ) -> Result<Done<()>, ResourceError> {
        let Some((pool, _)) = self.find_snapshot(id).await? else {
            let stale = self.catalog.snapshot(id)?.is_some();
            let changes = if stale {
                vec![Change::RemoveSnapshot(id)]
            } else {
                Vec::new()
            };
            return Ok(Done::changed((), changes));
        };
        check_generation(
            Object::snapshot(id),
            self.snapshot_record(id)?.generation,
            if_generation,
        )?;
        intent.open().await?;
        pool.backend.delete_snapshot(id).await?;
        Ok(Done::changed((), vec![Change::RemoveSnapshot(id)]))
    }

    /// Returns one snapshot.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn snapshot(&self, id: SnapshotId) -> Result<Snapshot, ResourceError> {
        let (pool, info) = self.existing_snapshot(id).await?;
        Ok(view(&pool, info, self.snapshot_record(id)?))
    }

    /// Returns snapshots, ordered by id: of one volume or of all, in one pool or in all.
    ///
    /// # Errors
    /// `NotFound` for the pool, and the driver's.
    pub async fn snapshots(
        &self,
        page: Page<SnapshotId>,
        volume: Option<VolumeId>,
        pool: Option<&str>,
    ) -> Result<Vec<Snapshot>, ResourceError> {
        let pools = match pool {
            Some(name) => vec![self.pool_backend(name)?],
            None => self.pool_backends(),
        };
        let mut found = Vec::new();
        for (at, pool) in pools.iter().enumerate() {
            let snapshots = pool.backend.snapshots(volume, page).await?;
            found.extend(snapshots.into_iter().map(|info| (info, at)));
        }
        found.sort_unstable_by_key(|(info, _)| info.id);
        found.truncate(page.limit);
        found
            .into_iter()
            .map(|(info, at)| {
                let record = self.snapshot_record(info.id)?;
                Ok(view(&pools[at], info, record))
            })
            .collect()
    }

    fn snapshot_record(&self, id: SnapshotId) -> Result<ObjectRecord, ResourceError> {
        Ok(self.catalog.snapshot(id)?.unwrap_or_else(ObjectRecord::unknown))
    }
}

fn check_group(members: &[(SnapshotId, VolumeId)]) -> Result<(), ResourceError> {
    if members.is_empty() || members.len() > MAX_GROUP {
        let problem = format!("a group has 1 to {MAX_GROUP} snapshots, not {}", members.len());
        return Err(ResourceError::field("members", problem));
    }
    let mut ids = HashSet::new();
    let mut volumes = HashSet::new();
    for (id, volume) in members {
        if !ids.insert(id) {
            return Err(ResourceError::field(
                "members",
                format!("snapshot {id} is named twice"),
            ));
        }
        if !volumes.insert(volume) {
            return Err(ResourceError::field(
                "members",
                format!("volume {volume} is named twice"),
            ));
        }
    }
    Ok(())
}

fn view(pool: &PoolBackend, info: SnapshotInfo, record: ObjectRecord) -> Snapshot {
    Snapshot {
        id: info.id,
        volume: info.volume,
        pool: pool.name.to_string(),
        size_bytes: info.size_bytes,
        mapped_bytes: info.mapped_bytes,
        labels: record.labels,
        generation: record.generation,
        created: record.created,
    }
}
