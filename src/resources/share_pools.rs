//! Pools of shares, as a scheduler reads them.

use quarry_contract::{ShareCapabilities, SharePoolStatus};

use super::Resources;

/// One pool of shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharePoolView {
    /// Its name.
    pub name: String,
    /// The driver's name.
    pub driver: &'static str,
    /// Its figures; or why there are none.
    pub status: Result<SharePoolStatus, String>,
    /// What it can do, ordered.
    pub capabilities: Vec<&'static str>,
    /// Its limits.
    pub limits: ShareCapabilities,
}

impl Resources {
    /// Returns the pools of shares, ordered by name.
    pub async fn list_share_pools(&self) -> Vec<SharePoolView> {
        let mut views = Vec::new();
        for pool in self.share_pools() {
            let limits = pool.backend.capabilities();
            let mut capabilities: Vec<&'static str> =
                limits.features.iter().map(|feature| feature.as_str()).collect();
            capabilities.sort_unstable();
            views.push(SharePoolView {
                name: pool.name,
                driver: limits.driver,
                status: pool
                    .backend
                    .pool_status()
                    .await
                    .map_err(|error| error.to_string()),
                capabilities,
                limits,
            });
        }
        views
    }
}
