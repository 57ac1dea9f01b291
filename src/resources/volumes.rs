//! Volumes. A volume exists or does not; there is no state between, and being attached is not a state of it.

use std::sync::Arc;

use quarry_contract::{
    Capability, Encryption, IoLimits, SnapshotId, VersionId, VolumeId, VolumeInfo, VolumeKey, VolumeSpec,
};
use tracing::warn;
use uuid::Uuid;

use super::error::{Differences, Object, ResourceError};
use super::operations::{Done, Intent};
use super::pools::PoolBackend;
use super::{Mutation, Page, Resources, Volume};
use crate::catalog::Change;
use crate::catalog::record::{Labels, ObjectRecord, Request, Source};

/// A volume to create.
#[derive(Debug, Clone)]
pub struct NewVolume {
    /// Its id.
    pub id: VolumeId,
    /// The pool; `None` for the source's or the only one.
    pub pool: Option<String>,
    /// Its size in bytes; 0 for the source's.
    pub size_bytes: u64,
    /// What it begins with.
    pub source: Source,
    /// The caller's own keys.
    pub labels: Labels,
    /// How fast it may be used.
    pub limits: IoLimits,
    /// What it is encrypted with, if it is.
    pub key: Option<VolumeKey>,
    /// Whether its data shall have checksums.
    pub checksums: bool,
    /// Whether it is a reserved volume from the start.
    pub reserved: bool,
}

impl Resources {
    /// Creates a volume.
    ///
    /// # Errors
    /// `NotFound` for pool and source, `SpecMismatch`, `IdUsedBefore`, the size errors, and the driver's.
    pub async fn create_volume(
        self: &Arc<Self>,
        new: NewVolume,
        mutation: Mutation,
    ) -> Result<Volume, ResourceError> {
        let mut locks = vec![new.id.into()];
        match new.source {
            Source::Blank => {}
            Source::Volume(id) => locks.push(id.into()),
            Source::Snapshot(id) => locks.push(id.into()),
        }
        let NewVolume {
            id,
            pool,
            size_bytes,
            source,
            labels,
            limits,
            key,
            checksums,
            reserved,
        } = new.clone();
        let request = Request::CreateVolume {
            id,
            pool,
            size_bytes,
            source,
            labels,
            limits,
            encrypted: key.is_some(),
            checksums,
            reserved,
        };
        refuse_generation(&mutation)?;
        self.mutate(locks, request, mutation, |model, intent| {
            Box::pin(model.create(new, intent))
        })
        .await
    }

    async fn create(&self, new: NewVolume, intent: &mut Intent) -> Result<Done<Volume>, ResourceError> {
        if let Some((pool, info)) = self.find_volume(new.id).await? {
            let mut differences = Differences::default();
            if let Some(requested) = &new.pool {
                differences.compare("pool", pool.name.as_str(), requested);
            }
            if new.size_bytes != 0 || new.source == Source::Blank {
                differences.compare("size_bytes", info.size_bytes, new.size_bytes);
            }
            differences.compare("source", Source::from(info.source), new.source);
            if new.checksums || new.source == Source::Blank {
                differences.compare("checksums", info.checksums, new.checksums);
            }
            differences.none_or(Object::volume(new.id))?;
            let info = self.check_key(&pool, info, &new).await?;
            return Ok(Done::unchanged(self.volume_view(&pool, info).await?));
        }
        // Its names follow from its id (contract T2), and a host that still knows them would take the one for the other.
        if self.catalog.was_attached(new.id)? {
            return Err(ResourceError::IdUsedBefore(Object::volume(new.id)));
        }
        let (pool, size_bytes) = self.place(&new).await?;
        pool.check_size(size_bytes)?;
        if new.checksums {
            pool.require(Capability::Checksums)?;
        }
        intent.open().await?;
        let spec = VolumeSpec {
            checksums: new.checksums,
            reserved: new.reserved,
            ..VolumeSpec::new(new.id, size_bytes, new.source.into())
        };
        let created = match &new.key {
            None => pool.backend.create_volume(&spec).await?,
            Some(key) => pool.encryption()?.create_encrypted_volume(&spec, key).await?,
        };
        let info = created.into_inner();
        let record = ObjectRecord {
            limits: new.limits,
            ..ObjectRecord::created_now(new.labels)
        };
        let view = self.volume_view_with(&pool, info, record.clone())?;
        Ok(Done::changed(view, vec![Change::PutVolume(new.id, record)]))
    }

    /// Refuses to take an existing volume for the one to be created when it is encrypted otherwise.
    async fn check_key(
        &self,
        pool: &PoolBackend,
        info: VolumeInfo,
        new: &NewVolume,
    ) -> Result<VolumeInfo, ResourceError> {
        let spec = VolumeSpec {
            checksums: info.checksums,
            ..VolumeSpec::new(info.id, info.size_bytes, info.source)
        };
        let same = match &new.key {
            None if info.encryption == Encryption::None => return Ok(info),
            None => pool.backend.create_volume(&spec).await?,
            Some(key) => pool.encryption()?.create_encrypted_volume(&spec, key).await?,
        };
        Ok(same.into_inner())
    }

    /// Decides the pool and the size of a new volume.
    async fn place(&self, new: &NewVolume) -> Result<(PoolBackend, u64), ResourceError> {
        let source = match new.source {
            Source::Blank => None,
            Source::Snapshot(id) => {
                let (pool, info) = self.existing_snapshot(id).await?;
                Some((pool, Object::snapshot(id), info.size_bytes))
            }
            Source::Volume(id) => {
                let (pool, info) = self.existing_volume(id).await?;
                Some((pool, Object::volume(id), info.size_bytes))
            }
        };
        let Some((source_pool, object, least)) = source else {
            let pool = match &new.pool {
                Some(name) => self.pool_backend(name)?,
                None => self.only_pool()?,
            };
            return Ok((pool, new.size_bytes));
        };
        if let Some(requested) = &new.pool {
            let pool = self.pool_backend(requested)?;
            if pool.name != source_pool.name {
                let problem = format!(
                    "{object} is in pool {}, a volume made from it cannot be in pool {requested}; leave the pool out",
                    source_pool.name
                );
                return Err(ResourceError::field("pool", problem));
            }
        }
        source_pool.require(Capability::Clones)?;
        let size_bytes = if new.size_bytes == 0 {
            least
        } else {
            new.size_bytes
        };
        if size_bytes < least {
            return Err(ResourceError::SizeShrink {
                object,
                requested: size_bytes,
                least,
            });
        }
        Ok((source_pool, size_bytes))
    }

    fn only_pool(&self) -> Result<PoolBackend, ResourceError> {
        let mut pools = self.pool_backends();
        match pools.len() {
            1 => Ok(pools.remove(0)),
            0 => Err(ResourceError::field(
                "pool",
                "the agent has no pool; add one to its configuration",
            )),
            _ => {
                let names: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
                let problem = format!("there are several pools, name one of {}", names.join(", "));
                Err(ResourceError::field("pool", problem))
            }
        }
    }

    /// Grows a volume. Initiators can see the new size when this returns.
    ///
    /// # Errors
    /// `NotFound`, the size errors, `StaleGeneration`, and the driver's.
    pub async fn extend_volume(
        self: &Arc<Self>,
        id: VolumeId,
        size_bytes: u64,
        mutation: Mutation,
    ) -> Result<Volume, ResourceError> {
        let if_generation = mutation.if_generation;
        let request = Request::ExtendVolume { id, size_bytes };
        self.mutate(vec![id.into()], request, mutation, move |model, intent| {
            Box::pin(model.extend(id, size_bytes, if_generation, intent))
        })
        .await
    }

    async fn extend(
        &self,
        id: VolumeId,
        size_bytes: u64,
        if_generation: Option<u64>,
        intent: &mut Intent,
    ) -> Result<Done<Volume>, ResourceError> {
        let (pool, info) = self.existing_volume(id).await?;
        let record = self.volume_record(id)?;
        check_generation(Object::volume(id), record.generation, if_generation)?;
        if size_bytes < info.size_bytes && size_bytes != 0 {
            let object = Object::volume(id);
            return Err(ResourceError::SizeShrink {
                object,
                requested: size_bytes,
                least: info.size_bytes,
            });
        }
        if size_bytes == info.size_bytes {
            // The call before may have died between the two steps below.
            self.announce_size(id).await?;
            return Ok(Done::unchanged(self.volume_view(&pool, info).await?));
        }
        pool.check_size(size_bytes)?;
        if self.is_exported(id) {
            pool.require(Capability::OnlineExtend)?;
        }
        intent.open().await?;
        let info = pool.backend.extend_volume(id, size_bytes).await?.into_inner();
        self.announce_size(id).await?;
        self.volume_changed(&pool, info, record).await
    }

    /// Makes a volume's contents those of one of its snapshots.
    ///
    /// # Errors
    /// `NotFound`, `HasAttachments`, `InvalidField` for another volume's snapshot, `StaleGeneration`, and the
    /// driver's.
    pub async fn revert_volume(
        self: &Arc<Self>,
        id: VolumeId,
        snapshot: SnapshotId,
        mutation: Mutation,
    ) -> Result<Volume, ResourceError> {
        let if_generation = mutation.if_generation;
        let request = Request::RevertVolume { id, snapshot };
        self.mutate(
            vec![id.into(), snapshot.into()],
            request,
            mutation,
            move |model, intent| Box::pin(model.revert(id, snapshot, if_generation, intent)),
        )
        .await
    }

    pub(super) async fn revert(
        &self,
        id: VolumeId,
        snapshot: SnapshotId,
        if_generation: Option<u64>,
        intent: &mut Intent,
    ) -> Result<Done<Volume>, ResourceError> {
        let (pool, _) = self.existing_volume(id).await?;
        let record = self.volume_record(id)?;
        check_generation(Object::volume(id), record.generation, if_generation)?;
        let (_, of) = self.existing_snapshot(snapshot).await?;
        if of.volume != id {
            let problem = format!(
                "snapshot {snapshot} is of volume {}; name a snapshot of volume {id}, or create a volume from it",
                of.volume
            );
            return Err(ResourceError::field("snapshot_id", problem));
        }
        pool.require(Capability::RevertToAny)?;
        self.refuse_attached(id)?;
        intent.open().await?;
        let outcome = pool.backend.revert_volume(id, snapshot).await?;
        if !outcome.is_changed() {
            return Ok(Done::unchanged(
                self.volume_view(&pool, outcome.into_inner()).await?,
            ));
        }
        self.volume_changed(&pool, outcome.into_inner(), record).await
    }

    /// Replaces a volume's limits. They hold when this returns.
    ///
    /// # Errors
    /// `NotFound`, `StaleGeneration`, and the target's.
    pub async fn limit_volume(
        self: &Arc<Self>,
        id: VolumeId,
        limits: IoLimits,
        mutation: Mutation,
    ) -> Result<Volume, ResourceError> {
        let if_generation = mutation.if_generation;
        let request = Request::LimitVolume { id, limits };
        self.mutate(vec![id.into()], request, mutation, move |model, intent| {
            Box::pin(model.limit(id, limits, if_generation, intent))
        })
        .await
    }

    async fn limit(
        &self,
        id: VolumeId,
        limits: IoLimits,
        if_generation: Option<u64>,
        intent: &mut Intent,
    ) -> Result<Done<Volume>, ResourceError> {
        let (pool, info) = self.existing_volume(id).await?;
        let record = self.volume_record(id)?;
        check_generation(Object::volume(id), record.generation, if_generation)?;
        if record.limits == limits {
            // A call that failed may have left others at the target.
            self.apply_limits(id, limits).await?;
            return Ok(Done::unchanged(self.volume_view(&pool, info).await?));
        }
        intent.open().await?;
        if let Err(error) = self.apply_limits(id, limits).await {
            if let Err(left) = self.apply_limits(id, record.limits).await {
                warn!(volume = %id, error = %left, "failed limits cannot be taken back; the next limit call tries again");
            }
            return Err(error);
        }
        self.volume_changed(&pool, info, ObjectRecord { limits, ..record })
            .await
    }

    /// Makes a volume a reserved or an ordinary one.
    ///
    /// # Errors
    /// `NotFound`, `StaleGeneration`, and the driver's.
    pub async fn reserve_volume(
        self: &Arc<Self>,
        id: VolumeId,
        reserved: bool,
        mutation: Mutation,
    ) -> Result<Volume, ResourceError> {
        let if_generation = mutation.if_generation;
        let request = Request::ReserveVolume { id, reserved };
        self.mutate(vec![id.into()], request, mutation, move |model, intent| {
            Box::pin(model.reserve(id, reserved, if_generation, intent))
        })
        .await
    }

    async fn reserve(
        &self,
        id: VolumeId,
        reserved: bool,
        if_generation: Option<u64>,
        intent: &mut Intent,
    ) -> Result<Done<Volume>, ResourceError> {
        let (pool, info) = self.existing_volume(id).await?;
        let record = self.volume_record(id)?;
        check_generation(Object::volume(id), record.generation, if_generation)?;
        if info.reserved == reserved {
            return Ok(Done::unchanged(self.volume_view(&pool, info).await?));
        }
        intent.open().await?;
        let info = pool.backend.reserve_volume(id, reserved).await?.into_inner();
        self.volume_changed(&pool, info, record).await
    }

    /// Hands in the key of an encrypted volume, and attaches what waits for it.
    ///
    /// # Errors
    /// `NotFound`, `CapabilityMissing`, and the driver's.
    pub async fn unlock_volume(&self, id: VolumeId, key: &VolumeKey) -> Result<Volume, ResourceError> {
        {
            let _held = self.locks.take([id.into()]).await?;
            let (pool, _) = self.existing_volume(id).await?;
            pool.encryption()?.unlock(VersionId::Volume(id), key).await?;
        }
        self.retry_exports().await?;
        self.volume(id).await
    }

    /// Forgets the key of an encrypted volume.
    ///
    /// # Errors
    /// `NotFound`, `CapabilityMissing`, and the driver's.
    pub async fn lock_volume(&self, id: VolumeId) -> Result<Volume, ResourceError> {
        let _held = self.locks.take([id.into()]).await?;
        let (pool, _) = self.existing_volume(id).await?;
        pool.encryption()?.lock(VersionId::Volume(id)).await?;
        self.volume(id).await
    }

    /// Replaces the key of an encrypted volume.
    ///
    /// # Errors
    /// `NotFound`, `CapabilityMissing`, and the driver's.
    pub async fn change_volume_key(
        &self,
        id: VolumeId,
        key: &VolumeKey,
        new_key: &VolumeKey,
    ) -> Result<Volume, ResourceError> {
        let _held = self.locks.take([id.into()]).await?;
        let (pool, _) = self.existing_volume(id).await?;
        pool.encryption()?
            .change_key(VersionId::Volume(id), key, new_key)
            .await?;
        self.volume(id).await
    }

    /// Replaces a volume's labels.
    ///
    /// # Errors
    /// `NotFound`, `StaleGeneration`.
    pub async fn update_volume(
        self: &Arc<Self>,
        id: VolumeId,
        labels: Labels,
        mutation: Mutation,
    ) -> Result<Volume, ResourceError> {
        let if_generation = mutation.if_generation;
        let request = Request::UpdateVolume {
            id,
            labels: labels.clone(),
        };
        // The whole effect is in the catalog, in the batch that ends the operation: there is no intent to open.
        self.mutate(vec![id.into()], request, mutation, move |model, _| {
            Box::pin(async move {
                let (pool, info) = model.existing_volume(id).await?;
                let record = model.volume_record(id)?;
                check_generation(Object::volume(id), record.generation, if_generation)?;
                if record.labels == labels {
                    return Ok(Done::unchanged(model.volume_view(&pool, info).await?));
                }
                model
                    .volume_changed(&pool, info, ObjectRecord { labels, ..record })
                    .await
            })
        })
        .await
    }

    /// Deletes a volume; with `cascade`, its snapshots too.
    ///
    /// # Errors
    /// `HasAttachments`, `HasSnapshots`, `StaleGeneration`, and the driver's.
    pub async fn delete_volume(
        self: &Arc<Self>,
        id: VolumeId,
        cascade: bool,
        mutation: Mutation,
    ) -> Result<(), ResourceError> {
        let if_generation = mutation.if_generation;
        let request = Request::DeleteVolume { id, cascade };
        self.mutate(vec![id.into()], request, mutation, move |model, intent| {
            Box::pin(model.delete(id, cascade, if_generation, intent))
        })
        .await
    }

    pub(super) async fn delete(
        &self,
        id: VolumeId,
        cascade: bool,
        if_generation: Option<u64>,
        intent: &mut Intent,
    ) -> Result<Done<()>, ResourceError> {
        let Some((pool, _)) = self.find_volume(id).await? else {
            // A record without its volume is what a crash between the two leaves.
            let stale = self.catalog.volume(id)?.is_some();
            let changes = if stale {
                vec![Change::RemoveVolume(id)]
            } else {
                Vec::new()
            };
            return Ok(Done::changed((), changes));
        };
        check_generation(
            Object::volume(id),
            self.volume_record(id)?.generation,
            if_generation,
        )?;
        self.refuse_attached(id)?;
        let snapshots: Vec<SnapshotId> = pool
            .backend
            .snapshots(Some(id), Page::all())
            .await?
            .into_iter()
            .map(|s| s.id)
            .collect();
        if !snapshots.is_empty() && !cascade {
            let snapshots: Vec<Uuid> = snapshots.iter().map(|id| id.0).collect();
            return Err(ResourceError::HasSnapshots {
                volume: Object::volume(id),
                snapshots,
            });
        }
        // The volume's lock keeps new snapshots away; these sort after it.
        let _held = self.locks.take(snapshots.iter().map(|id| (*id).into())).await?;
        intent.open().await?;
        // Snapshots first: as long as the volume is there, a repeated call finds what is left of them.
        let mut changes = Vec::with_capacity(snapshots.len() + 1);
        for snapshot in snapshots {
            pool.backend.delete_snapshot(snapshot).await?;
            changes.push(Change::RemoveSnapshot(snapshot));
        }
        pool.backend.delete_volume(id).await?;
        changes.push(Change::RemoveVolume(id));
        Ok(Done::changed((), changes))
    }

    /// Returns one volume.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn volume(&self, id: VolumeId) -> Result<Volume, ResourceError> {
        let (pool, info) = self.existing_volume(id).await?;
        self.volume_view(&pool, info).await
    }

    /// Returns volumes, ordered by id: of one pool or of all, with all of these labels.
    ///
    /// # Errors
    /// `NotFound` for the pool, and the driver's.
    pub async fn volumes(
        &self,
        page: Page<VolumeId>,
        pool: Option<&str>,
        labels: &Labels,
    ) -> Result<Vec<Volume>, ResourceError> {
        let pools = match pool {
            Some(name) => vec![self.pool_backend(name)?],
            None => self.pool_backends(),
        };
        let mut views = Vec::new();
        let mut rest = page;
        // Of many volumes few may have the labels.
        while views.len() < page.limit {
            let mut found = Vec::new();
            for (at, pool) in pools.iter().enumerate() {
                let volumes = pool.backend.volumes(rest).await?;
                found.extend(volumes.into_iter().map(|info| (info, at)));
            }
            found.sort_unstable_by_key(|(info, _)| info.id);
            found.truncate(rest.limit);
            let is_last = found.len() < rest.limit;
            rest.after = found.last().map(|(info, _)| info.id);
            for (info, at) in found {
                let record = self.volume_record(info.id)?;
                let mut wanted = labels.iter();
                if wanted.all(|(key, value)| record.labels.get(key) == Some(value))
                    && views.len() < page.limit
                {
                    views.push(self.volume_view_with(&pools[at], info, record)?);
                }
            }
            if is_last {
                break;
            }
        }
        Ok(views)
    }

    /// The end of a call that has changed a volume: its next generation, and how it looks now.
    pub(super) async fn volume_changed(
        &self,
        pool: &PoolBackend,
        info: VolumeInfo,
        record: ObjectRecord,
    ) -> Result<Done<Volume>, ResourceError> {
        let record = record.changed_now();
        let id = info.id;
        let view = self.volume_view_with(pool, info, record.clone())?;
        Ok(Done::changed(view, vec![Change::PutVolume(id, record)]))
    }

    pub(super) fn volume_record(&self, id: VolumeId) -> Result<ObjectRecord, ResourceError> {
        Ok(self.catalog.volume(id)?.unwrap_or_else(ObjectRecord::unknown))
    }

    async fn volume_view(&self, pool: &PoolBackend, info: VolumeInfo) -> Result<Volume, ResourceError> {
        let record = self.volume_record(info.id)?;
        self.volume_view_with(pool, info, record)
    }

    fn volume_view_with(
        &self,
        pool: &PoolBackend,
        info: VolumeInfo,
        record: ObjectRecord,
    ) -> Result<Volume, ResourceError> {
        let address = self.registry.target().target.address_of(info.id);
        let attachments = self.catalog.attachments_of(info.id)?;
        Ok(Volume {
            id: info.id,
            pool: pool.name.to_string(),
            size_bytes: info.size_bytes,
            source: info.source.into(),
            mapped_bytes: info.mapped_bytes,
            snapshot_count: info.snapshot_count,
            attachments: attachments.into_iter().map(|(id, _)| id).collect(),
            target_name: address.target_name,
            serial: address.serial,
            labels: record.labels,
            generation: record.generation,
            created: record.created,
            updated: record.updated,
            limits: record.limits,
            reserved: info.reserved,
            encryption: info.encryption.into(),
            checksums: info.checksums,
        })
    }

    fn refuse_attached(&self, id: VolumeId) -> Result<(), ResourceError> {
        let attachments = self.catalog.attachments_of(id)?;
        if attachments.is_empty() {
            return Ok(());
        }
        let attachments = attachments.into_iter().map(|(id, _)| id.0).collect();
        Err(ResourceError::HasAttachments {
            volume: Object::volume(id),
            attachments,
        })
    }
}

/// Refuses a condition on something that does not exist yet.
pub(super) fn refuse_generation(mutation: &Mutation) -> Result<(), ResourceError> {
    match mutation.if_generation {
        None => Ok(()),
        Some(_) => Err(ResourceError::field(
            "mutation.if_generation",
            "what is to be created has no generation yet; leave it out",
        )),
    }
}

/// Refuses a call made for another generation.
pub(super) fn check_generation(
    object: Object,
    present: u64,
    expected: Option<u64>,
) -> Result<(), ResourceError> {
    match expected {
        Some(expected) if expected != present => Err(ResourceError::StaleGeneration {
            object,
            expected,
            present,
        }),
        _ => Ok(()),
    }
}
