//! Pools, as a scheduler reads them, and where objects are found in them.

use std::sync::Arc;

use quarry_contract::{
    Capability, DriverError, PoolGrowth, PoolName, PoolProblem, PoolScrub, ScrubStatus, SnapshotId,
    SnapshotInfo, VolumeBackend, VolumeEncryption, VolumeId, VolumeInfo,
};

use tracing::info;

use super::error::{Object, ObjectKind, ResourceError};
use super::{Page, Pool, Resources};

/// One pool's backend, with its name.
#[derive(Clone)]
pub(super) struct PoolBackend {
    pub(super) name: PoolName,
    pub(super) backend: Arc<dyn VolumeBackend>,
}

impl PoolBackend {
    pub(super) fn object(&self) -> Object {
        Object::new(ObjectKind::Pool, &self.name)
    }

    /// Refuses what the driver cannot do, before anything is tried.
    pub(super) fn require(&self, capability: Capability) -> Result<(), ResourceError> {
        if self.backend.capabilities().features.contains(&capability) {
            return Ok(());
        }
        Err(ResourceError::CapabilityMissing {
            pool: self.object(),
            capability: capability.as_str(),
        })
    }

    /// Returns what the driver can do with encrypted volumes.
    pub(super) fn encryption(&self) -> Result<&dyn VolumeEncryption, ResourceError> {
        self.require(Capability::Encryption)?;
        self.backend.encryption().ok_or_else(|| ResourceError::Internal {
            detail: "a driver says that it encrypts, and does not".into(),
        })
    }

    /// Returns what reads and verifies everything with checksums.
    pub(super) fn scrub(&self) -> Result<&dyn PoolScrub, ResourceError> {
        self.require(Capability::Scrub)?;
        self.backend.scrub().ok_or_else(|| ResourceError::Internal {
            detail: "a driver says that it scrubs, and does not".into(),
        })
    }

    /// Refuses a size that no volume of this pool can have.
    pub(super) fn check_size(&self, size_bytes: u64) -> Result<(), ResourceError> {
        let capabilities = self.backend.capabilities();
        let (granularity, limit) = (capabilities.size_granularity_bytes, capabilities.max_volume_bytes);
        if size_bytes == 0 || !size_bytes.is_multiple_of(granularity) {
            let pool = self.object();
            return Err(ResourceError::SizeUnaligned {
                pool,
                requested: size_bytes,
                granularity,
            });
        }
        if size_bytes > limit {
            return Err(ResourceError::SizeTooLarge {
                pool: self.object(),
                requested: size_bytes,
                limit,
            });
        }
        Ok(())
    }
}

/// Turns the absence of something into `None`.
fn if_found<T>(result: Result<T, DriverError>) -> Result<Option<T>, DriverError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(DriverError::NotFound { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

impl Resources {
    /// Returns one pool.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn pool(&self, name: &str) -> Result<Pool, ResourceError> {
        Ok(describe(&self.pool_backend(name)?).await)
    }

    /// Checks a pool while it is in use.
    ///
    /// # Errors
    /// `NotFound`, and the driver's when the check cannot be made.
    pub async fn check_pool(&self, name: &str) -> Result<Vec<PoolProblem>, ResourceError> {
        Ok(self.pool_backend(name)?.backend.check().await?)
    }

    /// Makes a pool larger.
    ///
    /// # Errors
    /// `NotFound`, `CapabilityMissing`, and the driver's.
    pub async fn grow_pool(&self, name: &str, growth: &PoolGrowth) -> Result<Pool, ResourceError> {
        let pool = self.pool_backend(name)?;
        pool.require(Capability::Grow)?;
        let outcome = pool.backend.grow(growth).await?;
        if outcome.is_changed() {
            info!(pool = %pool.name, total_bytes = outcome.into_inner().total_bytes, "the pool is larger");
        }
        Ok(describe(&pool).await)
    }

    /// Begins a scrub of a pool.
    ///
    /// # Errors
    /// `NotFound`, `CapabilityMissing`, and the driver's.
    pub async fn start_scrub(&self, name: &str) -> Result<ScrubStatus, ResourceError> {
        let pool = self.pool_backend(name)?;
        Ok(pool.scrub()?.start_scrub().await?.into_inner())
    }

    /// Ends the running scrub of a pool.
    ///
    /// # Errors
    /// As [`start_scrub`](Self::start_scrub).
    pub async fn stop_scrub(&self, name: &str) -> Result<ScrubStatus, ResourceError> {
        let pool = self.pool_backend(name)?;
        Ok(pool.scrub()?.stop_scrub().await?.into_inner())
    }

    /// Returns how the scrub of a pool is.
    ///
    /// # Errors
    /// As [`start_scrub`](Self::start_scrub).
    pub async fn scrub_status(&self, name: &str) -> Result<ScrubStatus, ResourceError> {
        let pool = self.pool_backend(name)?;
        Ok(pool.scrub()?.scrub_status().await?)
    }

    /// Returns pools, ordered by name.
    pub async fn pools(&self, page: Page<&str>) -> Vec<Pool> {
        let mut found = Vec::new();
        for pool in self.pool_backends() {
            if page.after.is_none_or(|after| pool.name.as_str() > after) && found.len() < page.limit {
                found.push(describe(&pool).await);
            }
        }
        found
    }

    pub(super) fn pool_backends(&self) -> Vec<PoolBackend> {
        let each = |(name, backend): (&PoolName, &Arc<dyn VolumeBackend>)| PoolBackend {
            name: name.clone(),
            backend: Arc::clone(backend),
        };
        self.registry.pools().map(each).collect()
    }

    pub(super) fn pool_backend(&self, name: &str) -> Result<PoolBackend, ResourceError> {
        let found = self.registry.pool(name);
        let (name, backend) =
            found.ok_or_else(|| ResourceError::NotFound(Object::new(ObjectKind::Pool, name)))?;
        Ok(PoolBackend {
            name: name.clone(),
            backend: Arc::clone(backend),
        })
    }

    /// Finds a volume in whichever pool it lives.
    pub(super) async fn find_volume(
        &self,
        id: VolumeId,
    ) -> Result<Option<(PoolBackend, VolumeInfo)>, ResourceError> {
        for pool in self.pool_backends() {
            if let Some(info) = if_found(pool.backend.volume(id).await)? {
                return Ok(Some((pool, info)));
            }
        }
        Ok(None)
    }

    /// Finds a volume that has to be there.
    pub(super) async fn existing_volume(
        &self,
        id: VolumeId,
    ) -> Result<(PoolBackend, VolumeInfo), ResourceError> {
        self.find_volume(id)
            .await?
            .ok_or_else(|| ResourceError::NotFound(Object::volume(id)))
    }

    /// Finds a snapshot in whichever pool it lives.
    pub(super) async fn find_snapshot(
        &self,
        id: SnapshotId,
    ) -> Result<Option<(PoolBackend, SnapshotInfo)>, ResourceError> {
        for pool in self.pool_backends() {
            if let Some(info) = if_found(pool.backend.snapshot(id).await)? {
                return Ok(Some((pool, info)));
            }
        }
        Ok(None)
    }

    /// Finds a snapshot that has to be there.
    pub(super) async fn existing_snapshot(
        &self,
        id: SnapshotId,
    ) -> Result<(PoolBackend, SnapshotInfo), ResourceError> {
        self.find_snapshot(id)
            .await?
            .ok_or_else(|| ResourceError::NotFound(Object::snapshot(id)))
    }
}

async fn describe(pool: &PoolBackend) -> Pool {
    let capabilities = pool.backend.capabilities();
    let mut names: Vec<&'static str> = capabilities.features.iter().map(|c| c.as_str()).collect();
    names.sort_unstable();
    Pool {
        name: pool.name.to_string(),
        driver: capabilities.driver,
        status: pool
            .backend
            .pool_status()
            .await
            .map_err(|error| error.to_string()),
        capabilities: names,
        max_volume_bytes: capabilities.max_volume_bytes,
        size_granularity_bytes: capabilities.size_granularity_bytes,
    }
}
