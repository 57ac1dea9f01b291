//! What volumes and snapshots hold, for who copies it.

use quarry_contract::{Capability, Difference, VersionId};

use super::Resources;
use super::error::ResourceError;
use super::pools::PoolBackend;

impl Resources {
    /// Returns where `of` may differ from `since`, or from zeros: at most `most` runs from byte
    /// `from_bytes` on, and where to go on.
    ///
    /// # Errors
    /// `NotFound` for either, `InvalidField` when they are of different pools, `CapabilityMissing`, the driver's.
    pub async fn extents(
        &self,
        of: VersionId,
        since: Option<VersionId>,
        from_bytes: u64,
        most: usize,
    ) -> Result<(Vec<Difference>, Option<u64>), ResourceError> {
        let pool = self.pool_of(of).await?;
        if let Some(since) = since {
            let other = self.pool_of(since).await?;
            if other.name != pool.name {
                return Err(ResourceError::InvalidField {
                    field: "since".into(),
                    problem: format!(
                        "it is in pool {}, of is in pool {}; only what is in one pool can be compared",
                        other.name, pool.name
                    ),
                });
            }
        }
        pool.require(Capability::Differences)?;
        let found = pool.backend.differences(of, since, from_bytes, most).await?;
        Ok((found.runs, found.next_bytes))
    }

    async fn pool_of(&self, version: VersionId) -> Result<PoolBackend, ResourceError> {
        Ok(match version {
            VersionId::Volume(id) => self.existing_volume(id).await?.0,
            VersionId::Snapshot(id) => self.existing_snapshot(id).await?.0,
        })
    }
}
