//! Shares. A share exists or does not; being exported is not a state of it but follows from its rules
//! ([`super::share_exports`]).

use std::sync::Arc;

use quarry_contract::{
    DriverError, ErrorKind, ShareBackend, ShareCapability, ShareId, ShareInfo, ShareSnapshotId, ShareSource,
    ShareSpec, ShareUsage, ShareVersion, Squash,
};
use serde::{Deserialize, Serialize};
use tracing::warn;
use uuid::Uuid;

use super::error::{Differences, Object, ObjectKind, ResourceError};
use super::locks::LockKey;
use super::operations::{Done, Intent};
use super::share_exports::AccessInForce;
use super::volumes::{check_generation, refuse_generation};
use super::{Mutation, Page, Resources};
use crate::catalog::Change;
use crate::catalog::record::{Labels, Moment, Request, ShareRecord};

/// A share to create.
#[derive(Debug, Clone)]
pub struct NewShare {
    /// Its id.
    pub id: ShareId,
    /// The pool; `None` for the source's or the only one.
    pub pool: Option<String>,
    /// Its size in bytes; 0 for the source's.
    pub size_bytes: u64,
    /// What it begins with.
    pub source: ShareSource,
    /// Whose user ids the server believes.
    pub squash: Squash,
    /// The caller's own keys.
    pub labels: Labels,
}

/// A share to make of what is in a pool.
#[derive(Debug, Clone)]
pub struct AdoptedShare {
    /// Its id.
    pub id: ShareId,
    /// The pool; `None` for the only one.
    pub pool: Option<String>,
    /// What it has been called there.
    pub name: String,
    /// Whose user ids the server believes.
    pub squash: Squash,
    /// The caller's own keys.
    pub labels: Labels,
}

/// One share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Its id.
    pub id: ShareId,
    /// The pool it lives in.
    pub pool: String,
    /// What clients see as its size, in bytes.
    pub size_bytes: u64,
    /// What it was created from.
    pub source: ShareSource,
    /// What clients see as used, in bytes.
    pub used_bytes: u64,
    /// What it takes of the pool, in bytes.
    pub allocated_bytes: u64,
    /// Whose user ids the server believes.
    pub squash: Squash,
    /// What clients mount.
    pub locations: Vec<ExportLocation>,
    /// The caller's own keys.
    pub labels: Labels,
    /// Grows with every change.
    pub generation: u64,
    /// When it was created.
    pub created: Option<Moment>,
    /// When the generation last grew.
    pub updated: Option<Moment>,
}

/// A way to reach a share or a snapshot of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportLocation {
    /// The same for the same object and path.
    pub id: Uuid,
    /// What a client mounts.
    pub path: String,
    /// Whether the address is of IPv6.
    pub is_ipv6: bool,
    /// Whether it is one to take when there are several of the family.
    pub is_preferred: bool,
    /// Whether it is for administrators. Answers remembered from before had none.
    #[serde(default)]
    pub is_admin_only: bool,
    /// The port.
    pub port: u16,
}

/// What becomes of a share that is all in its mount when it is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WhatIsLeft {
    /// It is deleted, too.
    Goes,
    /// It is not ended.
    Stays,
}

/// One pool's backend, with its name.
#[derive(Clone)]
pub(super) struct SharePool {
    pub(super) name: String,
    pub(super) backend: Arc<dyn ShareBackend>,
}

impl SharePool {
    pub(super) fn object(&self) -> Object {
        Object::new(ObjectKind::SharePool, &self.name)
    }

    /// Refuses what the driver cannot do, before anything is tried.
    pub(super) fn require(&self, capability: ShareCapability) -> Result<(), ResourceError> {
        if self.backend.capabilities().has(capability) {
            return Ok(());
        }
        Err(ResourceError::CapabilityMissing {
            pool: self.object(),
            capability: capability.as_str(),
        })
    }

    /// Refuses a size that no share of this pool can have.
    fn check_size(&self, requested: u64) -> Result<(), ResourceError> {
        let capabilities = self.backend.capabilities();
        let (granularity, limit) = (capabilities.size_granularity_bytes, capabilities.max_share_bytes);
        if requested == 0 || !requested.is_multiple_of(granularity) {
            return Err(ResourceError::SizeUnaligned {
                pool: self.object(),
                requested,
                granularity,
            });
        }
        if requested > limit {
            return Err(ResourceError::SizeTooLarge {
                pool: self.object(),
                requested,
                limit,
            });
        }
        Ok(capabilities.check_size(requested)?)
    }
}

fn if_found<T>(result: Result<T, DriverError>) -> Result<Option<T>, DriverError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(DriverError::NotFound { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

impl Resources {
    pub(super) fn share_pools(&self) -> Vec<SharePool> {
        let each = |(name, backend): (&_, &Arc<dyn ShareBackend>)| SharePool {
            name: ToString::to_string(name),
            backend: Arc::clone(backend),
        };
        self.registry.share_pools().map(each).collect()
    }

    fn share_pool(&self, name: &str) -> Result<SharePool, ResourceError> {
        let found = self.share_pools().into_iter().find(|pool| pool.name == name);
        found.ok_or_else(|| ResourceError::NotFound(Object::new(ObjectKind::SharePool, name)))
    }

    fn only_share_pool(&self) -> Result<SharePool, ResourceError> {
        let mut pools = self.share_pools();
        match pools.len() {
            1 => Ok(pools.remove(0)),
            0 => Err(ResourceError::field(
                "pool",
                "the agent has no pool of shares; add a section [share_pool.NAME] to its configuration",
            )),
            _ => {
                let names: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
                let problem = format!("there are several pools, name one of {}", names.join(", "));
                Err(ResourceError::field("pool", problem))
            }
        }
    }

    /// Finds the pool of a share or a snapshot of one, and its size.
    pub(super) async fn find_share_version(
        &self,
        version: ShareVersion,
    ) -> Result<Option<(SharePool, u64)>, ResourceError> {
        for pool in self.share_pools() {
            let size = match version {
                ShareVersion::Share(id) => {
                    if_found(pool.backend.share(id).await)?.map(|info| info.size_bytes)
                }
                ShareVersion::Snapshot(id) => {
                    if_found(pool.backend.snapshot(id).await)?.map(|info| info.size_bytes)
                }
            };
            if let Some(size) = size {
                return Ok(Some((pool, size)));
            }
        }
        Ok(None)
    }

    /// Finds the pool of one that has to be there.
    pub(super) async fn existing_share_version(
        &self,
        version: ShareVersion,
    ) -> Result<(SharePool, u64), ResourceError> {
        self.find_share_version(version)
            .await?
            .ok_or_else(|| ResourceError::NotFound(Object::share(version)))
    }

    pub(super) fn share_record(&self, version: ShareVersion) -> Result<ShareRecord, ResourceError> {
        Ok(self.catalog.share(version)?.unwrap_or_else(ShareRecord::unknown))
    }

    /// Creates a share, which nobody may use.
    ///
    /// # Errors
    /// `NotFound` for pool and source, `SpecMismatch`, the size errors, and the driver's.
    pub async fn create_share(
        self: &Arc<Self>,
        new: NewShare,
        mutation: Mutation,
    ) -> Result<Share, ResourceError> {
        let mut locks = vec![ShareVersion::Share(new.id).into()];
        locks.extend(new.source.version().map(LockKey::from));
        let NewShare {
            id,
            pool,
            size_bytes,
            source,
            squash,
            labels,
        } = new.clone();
        let request = Request::CreateShare {
            id,
            pool,
            size_bytes,
            source,
            squash,
            labels,
        };
        refuse_generation(&mutation)?;
        self.mutate(locks, request, mutation, |model, intent| {
            Box::pin(model.make_share(new, intent))
        })
        .await
    }

    async fn make_share(&self, new: NewShare, intent: &mut Intent) -> Result<Done<Share>, ResourceError> {
        let version = ShareVersion::Share(new.id);
        if let Some((pool, _)) = self.find_share_version(version).await? {
            let info = pool.backend.share(new.id).await?;
            let mut differences = Differences::default();
            if let Some(requested) = &new.pool {
                differences.compare("pool", pool.name.as_str(), requested);
            }
            if new.size_bytes != 0 || new.source == ShareSource::Blank {
                differences.compare("size_bytes", info.size_bytes, new.size_bytes);
            }
            differences.compare("source", info.source, new.source);
            differences.none_or(Object::share(version))?;
            return Ok(Done::unchanged(self.share_view(&pool, info).await?));
        }
        let (pool, size_bytes) = self.place_share(&new).await?;
        pool.check_size(size_bytes)?;
        intent.open().await?;
        let spec = ShareSpec {
            id: new.id,
            size_bytes,
            source: new.source,
        };
        let info = pool.backend.create_share(&spec).await?.into_inner();
        let record = ShareRecord::created_now(new.labels, new.squash);
        let view = self.share_view_with(&pool, info, record.clone()).await?;
        Ok(Done::changed(view, vec![Change::PutShare(version, record)]))
    }

    /// Decides the pool and the size of a new share.
    async fn place_share(&self, new: &NewShare) -> Result<(SharePool, u64), ResourceError> {
        let Some(source) = new.source.version() else {
            let pool = match &new.pool {
                Some(name) => self.share_pool(name)?,
                None => self.only_share_pool()?,
            };
            return Ok((pool, new.size_bytes));
        };
        let (source_pool, least) = self.existing_share_version(source).await?;
        if let Some(requested) = &new.pool
            && self.share_pool(requested)?.name != source_pool.name
        {
            let problem = format!(
                "{source} is in pool {}, a share made from it cannot be in pool {requested}; leave the pool out",
                source_pool.name
            );
            return Err(ResourceError::field("pool", problem));
        }
        source_pool.require(ShareCapability::Clones)?;
        let size_bytes = if new.size_bytes == 0 {
            least
        } else {
            new.size_bytes
        };
        if size_bytes < least {
            return Err(ResourceError::SizeShrink {
                object: Object::share(source),
                requested: size_bytes,
                least,
            });
        }
        Ok((source_pool, size_bytes))
    }

    /// Makes what is in a pool a share, which nobody may use.
    ///
    /// # Errors
    /// `NotFound` for the pool and the name, `CapabilityMissing`, and the driver's.
    pub async fn adopt_share(
        self: &Arc<Self>,
        adopted: AdoptedShare,
        mutation: Mutation,
    ) -> Result<Share, ResourceError> {
        let AdoptedShare {
            id,
            pool,
            name,
            squash,
            labels,
        } = adopted.clone();
        let request = Request::AdoptShare {
            id,
            pool,
            name,
            squash,
            labels,
        };
        refuse_generation(&mutation)?;
        let locks = vec![ShareVersion::Share(id).into()];
        self.mutate(locks, request, mutation, |model, intent| {
            Box::pin(model.take_share_up(adopted, intent))
        })
        .await
    }

    async fn take_share_up(
        &self,
        adopted: AdoptedShare,
        intent: &mut Intent,
    ) -> Result<Done<Share>, ResourceError> {
        let version = ShareVersion::Share(adopted.id);
        let pool = match &adopted.pool {
            Some(name) => self.share_pool(name)?,
            None => self.only_share_pool()?,
        };
        if let Some((present, _)) = self.find_share_version(version).await? {
            let mut differences = Differences::default();
            differences.compare("pool", present.name.as_str(), &pool.name);
            differences.none_or(Object::share(version))?;
        }
        pool.require(ShareCapability::Adopt)?;
        intent.open().await?;
        let outcome = pool.backend.adopt_share(adopted.id, &adopted.name).await?;
        let (is_changed, info) = (outcome.is_changed(), outcome.into_inner());
        if !is_changed {
            return Ok(Done::unchanged(self.share_view(&pool, info).await?));
        }
        let record = ShareRecord::created_now(adopted.labels, adopted.squash);
        let view = self.share_view_with(&pool, info, record.clone()).await?;
        Ok(Done::changed(view, vec![Change::PutShare(version, record)]))
    }

    /// Gives a share up, with its rules, and leaves its data in the pool under a name.
    ///
    /// # Errors
    /// `NotFound`, `CapabilityMissing`, `StaleGeneration`, and the driver's.
    pub async fn release_share(
        self: &Arc<Self>,
        id: ShareId,
        name: String,
        mutation: Mutation,
    ) -> Result<(), ResourceError> {
        let if_generation = mutation.if_generation;
        let request = Request::ReleaseShare {
            id,
            name: name.clone(),
        };
        let locks = self.access_locks(ShareVersion::Share(id)).await?;
        self.mutate(locks, request, mutation, move |model, intent| {
            Box::pin(async move { model.give_up_share(id, &name, if_generation, intent).await })
        })
        .await
    }

    pub(super) async fn give_up_share(
        &self,
        id: ShareId,
        name: &str,
        if_generation: Option<u64>,
        intent: &mut Intent,
    ) -> Result<Done<()>, ResourceError> {
        let version = ShareVersion::Share(id);
        let Some((pool, _)) = self.find_share_version(version).await? else {
            // Of which pool it was is not known any more: the one that has the name.
            for pool in self.share_pools() {
                if pool.require(ShareCapability::Adopt).is_ok()
                    && if_found(pool.backend.release_share(id, name).await)?.is_some()
                {
                    let is_stale = self.catalog.share(version)?.is_some();
                    let changes = is_stale.then_some(Change::RemoveShare(version));
                    return Ok(Done::changed((), changes.into_iter().collect()));
                }
            }
            return Err(ResourceError::NotFound(Object::share(version)));
        };
        pool.require(ShareCapability::Adopt)?;
        let generation = self.share_record(version)?.generation;
        check_generation(Object::share(version), generation, if_generation)?;
        intent.open().await?;
        self.end_share(&pool, version, WhatIsLeft::Stays, async {
            pool.backend.release_share(id, name).await.map(drop)
        })
        .await
    }

    /// Gives a share another size. Clients see it when this returns.
    ///
    /// # Errors
    /// `NotFound`, the size errors, `CapabilityMissing`, `StaleGeneration`, and the driver's.
    pub async fn resize_share(
        self: &Arc<Self>,
        id: ShareId,
        size_bytes: u64,
        mutation: Mutation,
    ) -> Result<Share, ResourceError> {
        let if_generation = mutation.if_generation;
        let version = ShareVersion::Share(id);
        let request = Request::ResizeShare { id, size_bytes };
        self.mutate(vec![version.into()], request, mutation, move |model, intent| {
            Box::pin(async move {
                let (pool, present) = model.existing_share_version(version).await?;
                let record = model.share_record(version)?;
                check_generation(Object::share(version), record.generation, if_generation)?;
                pool.check_size(size_bytes)?;
                if size_bytes < present {
                    pool.require(ShareCapability::Shrink)?;
                } else if size_bytes > present {
                    pool.require(ShareCapability::Grow)?;
                }
                if size_bytes != present {
                    intent.open().await?;
                }
                // Of the present size, too: a call before may have been cut short.
                let outcome = pool.backend.resize_share(id, size_bytes).await?;
                let is_changed = outcome.is_changed();
                let record = if is_changed { record.changed_now() } else { record };
                let view = model
                    .share_view_with(&pool, outcome.into_inner(), record.clone())
                    .await?;
                Ok(match is_changed {
                    true => Done::changed(view, vec![Change::PutShare(version, record)]),
                    false => Done::unchanged(view),
                })
            })
        })
        .await
    }

    /// Makes a share's contents those of one of its snapshots. Clients lose it for the moment this takes.
    ///
    /// # Errors
    /// `NotFound`, `InvalidField` for another share's snapshot, `StaleGeneration`, and the driver's.
    pub async fn revert_share(
        self: &Arc<Self>,
        id: ShareId,
        snapshot: ShareSnapshotId,
        mutation: Mutation,
    ) -> Result<Share, ResourceError> {
        let (version, origin) = (ShareVersion::Share(id), ShareVersion::Snapshot(snapshot));
        let if_generation = mutation.if_generation;
        let this = Arc::clone(self);
        // To its end, too, when the caller goes away (R3): in between the share is not exported.
        let task = self.running.spawn(async move {
            let request = Request::RevertShare { id, snapshot };
            let result = this
                .mutate(
                    vec![version.into(), origin.into()],
                    request,
                    mutation,
                    move |model, intent| {
                        Box::pin(model.replace_contents(id, snapshot, if_generation, intent))
                    },
                )
                .await;
            // Only now, with the intent closed: what clients write from here on is not reverted again by recovery.
            if let Err(error) = this.restore_share(version).await {
                warn!(%version, %error, "a reverted share is not exported again yet");
            }
            result
        });
        task.await.map_err(|error| ResourceError::Internal {
            detail: format!("a call has panicked: {error}"),
        })?
    }

    pub(super) async fn replace_contents(
        &self,
        id: ShareId,
        snapshot: ShareSnapshotId,
        if_generation: Option<u64>,
        intent: &mut Intent,
    ) -> Result<Done<Share>, ResourceError> {
        let version = ShareVersion::Share(id);
        let (pool, _) = self.existing_share_version(version).await?;
        let record = self.share_record(version)?;
        check_generation(Object::share(version), record.generation, if_generation)?;
        let (snapshot_pool, _) = self
            .existing_share_version(ShareVersion::Snapshot(snapshot))
            .await?;
        let of = snapshot_pool.backend.snapshot(snapshot).await?.share;
        if of != id {
            let problem =
                format!("share snapshot {snapshot} is of share {of}; name one of share {id}, or clone it");
            return Err(ResourceError::field("snapshot_id", problem));
        }
        pool.require(ShareCapability::RevertToAny)?;
        intent.open().await?;
        self.withdraw_share(&pool, version).await?;
        let info = pool.backend.revert_share(id, snapshot).await?.into_inner();
        let record = record.changed_now();
        let view = self.share_view_with(&pool, info, record.clone()).await?;
        Ok(Done::changed(view, vec![Change::PutShare(version, record)]))
    }

    /// Deletes a share or a snapshot of one, with its rules.
    ///
    /// # Errors
    /// `StaleGeneration`, and the driver's.
    pub async fn delete_share_version(
        self: &Arc<Self>,
        version: ShareVersion,
        mutation: Mutation,
    ) -> Result<(), ResourceError> {
        let if_generation = mutation.if_generation;
        let request = match version {
            ShareVersion::Share(id) => Request::DeleteShare { id },
            ShareVersion::Snapshot(id) => Request::DeleteShareSnapshot { id },
        };
        let locks = self.access_locks(version).await?;
        self.mutate(locks, request, mutation, move |model, intent| {
            Box::pin(model.remove_share_version(version, if_generation, intent))
        })
        .await
    }

    pub(super) async fn remove_share_version(
        &self,
        version: ShareVersion,
        if_generation: Option<u64>,
        intent: &mut Intent,
    ) -> Result<Done<()>, ResourceError> {
        let Some((pool, _)) = self.find_share_version(version).await? else {
            let is_stale = self.catalog.share(version)?.is_some();
            let changes = is_stale.then_some(Change::RemoveShare(version));
            return Ok(Done::changed((), changes.into_iter().collect()));
        };
        let generation = self.share_record(version)?.generation;
        check_generation(Object::share(version), generation, if_generation)?;
        intent.open().await?;
        self.end_share(&pool, version, WhatIsLeft::Goes, async {
            match version {
                ShareVersion::Share(id) => pool.backend.delete_share(id).await.map(drop),
                ShareVersion::Snapshot(id) => pool.backend.delete_snapshot(id).await.map(drop),
            }
        })
        .await
    }

    /// Takes a share or a snapshot of one from its clients, ends it, and its rules with it.
    async fn end_share(
        &self,
        pool: &SharePool,
        version: ShareVersion,
        what_is_left: WhatIsLeft,
        end: impl Future<Output = Result<(), DriverError>>,
    ) -> Result<Done<()>, ResourceError> {
        let inheriting = match version {
            ShareVersion::Share(id) => self.inheriting(id).await?,
            ShareVersion::Snapshot(_) => Vec::new(),
        };
        let ended = async {
            if let ShareVersion::Share(id) = version {
                let nobody = AccessInForce::inherited(id, None);
                for snapshot in &inheriting {
                    self.sync_share(*snapshot, &nobody).await?;
                }
            }
            match self.withdraw_share(pool, version).await {
                Err(ResourceError::Driver(error))
                    if what_is_left == WhatIsLeft::Goes && error.kind() == ErrorKind::Corrupt =>
                {
                    warn!(%version, %error, "it is deleted with what is left of it");
                }
                withdrawn => withdrawn?,
            }
            end.await?;
            Ok(Done::changed((), vec![Change::RemoveShare(version)]))
        };
        let result = ended.await;
        if result.is_err() {
            // It is there, and so are its rules.
            for version in [version].into_iter().chain(inheriting) {
                self.export_again(version, "it could not be ended").await;
            }
        }
        result
    }

    /// Returns one share.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn share(&self, id: ShareId) -> Result<Share, ResourceError> {
        let (pool, _) = self.existing_share_version(ShareVersion::Share(id)).await?;
        let info = pool.backend.share(id).await?;
        self.share_view(&pool, info).await
    }

    /// Returns shares, ordered by id: in one pool or in all.
    ///
    /// # Errors
    /// `NotFound` for the pool, and the driver's.
    pub async fn shares(&self, page: Page<ShareId>, pool: Option<&str>) -> Result<Vec<Share>, ResourceError> {
        let pools = match pool {
            Some(name) => vec![self.share_pool(name)?],
            None => self.share_pools(),
        };
        let mut found = Vec::new();
        for (at, pool) in pools.iter().enumerate() {
            let shares = pool.backend.shares().await?.into_iter();
            found.extend(
                shares
                    .filter(|info| page.after.is_none_or(|after| info.id > after))
                    .map(|info| (info, at)),
            );
        }
        found.sort_unstable_by_key(|(info, _)| info.id);
        found.truncate(page.limit);
        let mut shares = Vec::with_capacity(found.len());
        for (info, at) in found {
            shares.push(self.listed_share(&pools[at], info).await?);
        }
        Ok(shares)
    }

    async fn share_view(&self, pool: &SharePool, info: ShareInfo) -> Result<Share, ResourceError> {
        let record = self.share_record(ShareVersion::Share(info.id))?;
        self.share_view_with(pool, info, record).await
    }

    /// Describes a share among others, which one that is damaged or has stopped does not hide: who asks for it alone is told.
    async fn listed_share(&self, pool: &SharePool, info: ShareInfo) -> Result<Share, ResourceError> {
        let version = ShareVersion::Share(info.id);
        let usage = match pool.backend.usage(version).await {
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unavailable) => {
                warn!(%version, %error, "it is listed as if nothing of it were used");
                ShareUsage {
                    used_bytes: 0,
                    allocated_bytes: 0,
                }
            }
            usage => usage?,
        };
        let record = self.share_record(version)?;
        Ok(self.described(pool, info, record, usage))
    }

    async fn share_view_with(
        &self,
        pool: &SharePool,
        info: ShareInfo,
        record: ShareRecord,
    ) -> Result<Share, ResourceError> {
        let usage = pool.backend.usage(ShareVersion::Share(info.id)).await?;
        Ok(self.described(pool, info, record, usage))
    }

    fn described(&self, pool: &SharePool, info: ShareInfo, record: ShareRecord, usage: ShareUsage) -> Share {
        let version = ShareVersion::Share(info.id);
        Share {
            id: info.id,
            pool: pool.name.clone(),
            size_bytes: info.size_bytes,
            source: info.source,
            used_bytes: usage.used_bytes,
            allocated_bytes: usage.allocated_bytes,
            squash: record.squash,
            locations: self.export_locations(version),
            labels: record.labels,
            generation: record.generation,
            created: record.created,
            updated: record.updated,
        }
    }
}
