//! The agent itself: what it is made of and how it is.

use std::net::SocketAddr;
use std::sync::PoisonError;

use quarry_contract::PoolState;
use uuid::Uuid;

use super::{Page, RecoveryReport, Resources};
use crate::catalog::record::Moment;

/// A pool of shares is reported as nearly full when less than this part of it is free.
const SHARE_POOL_WARN: u64 = 10;

/// What a driver is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverRole {
    /// It cuts volumes from a pool.
    Volumes,
    /// It exports volumes.
    Target,
    /// It cuts shares from a pool.
    Shares,
    /// It exports shares.
    ShareServer,
}

/// One configured driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    /// What it is used for.
    pub role: DriverRole,
    /// Its name.
    pub name: &'static str,
    /// The pool or target that it serves.
    pub instance: String,
    /// What it can do, ordered.
    pub capabilities: Vec<&'static str>,
}

/// The agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its identity.
    pub id: Uuid,
    /// When it began.
    pub started: Moment,
    /// Its drivers.
    pub drivers: Vec<Driver>,
    /// The addresses initiators connect to.
    pub portals: Vec<SocketAddr>,
    /// The addresses clients mount shares from.
    pub share_portals: Vec<SocketAddr>,
    /// One sentence for each thing that is wrong; empty when all is well.
    pub problems: Vec<String>,
    /// What the last start found and did.
    pub recovery: RecoveryReport,
}

impl Resources {
    /// Describes the agent.
    pub async fn node(&self) -> Node {
        let pools = self
            .pools(Page {
                after: None,
                limit: usize::MAX,
            })
            .await;
        let mut problems = Vec::new();
        let mut drivers = Vec::new();
        for pool in pools {
            match &pool.status {
                Ok(status) => {
                    if let PoolState::ReadOnly { reason } = &status.state {
                        problems.push(format!("pool {} takes no writes: {reason}", pool.name));
                    }
                }
                Err(error) => problems.push(format!("pool {} does not answer: {error}", pool.name)),
            }
            drivers.push(Driver {
                role: DriverRole::Volumes,
                name: pool.driver,
                instance: pool.name,
                capabilities: pool.capabilities,
            });
        }
        let target = self.registry.target();
        drivers.push(Driver {
            role: DriverRole::Target,
            name: target.driver,
            instance: target.driver.to_owned(),
            capabilities: Vec::new(),
        });
        for pool in self.list_share_pools().await {
            match &pool.status {
                Err(error) => problems.push(format!("share pool {} does not answer: {error}", pool.name)),
                Ok(status) if status.free_bytes < status.total_bytes / SHARE_POOL_WARN => problems.push(format!(
                    "share pool {} has {} bytes left of {}: writes to its shares fail for lack of space; delete some, or make it larger",
                    pool.name, status.free_bytes, status.total_bytes
                )),
                Ok(_) => {}
            }
            drivers.push(Driver {
                role: DriverRole::Shares,
                name: pool.driver,
                instance: pool.name,
                capabilities: pool.capabilities,
            });
        }
        if let Some(server) = self.registry.share_server() {
            drivers.push(Driver {
                role: DriverRole::ShareServer,
                name: server.driver(),
                instance: server.driver().to_owned(),
                capabilities: Vec::new(),
            });
        }
        for (version, reason) in self.share_export_failures() {
            problems.push(format!("{version} has rules and cannot be exported: {reason}"));
        }
        if self.catalog.has_failed() {
            problems.push(
                "the catalog takes no writes after a failed one, calls that change something fail; see to the disk \
                 of the state folder and restart the agent"
                    .to_owned(),
            );
        }
        for (volume, reason) in self.export_failures() {
            problems.push(format!(
                "volume {volume} is attached and cannot be exported: {reason}"
            ));
        }
        Node {
            id: self.catalog.node(),
            started: self.started,
            drivers,
            portals: target
                .target
                .portals()
                .into_iter()
                .map(|portal| portal.0)
                .collect(),
            share_portals: self.share_portals(),
            problems,
            recovery: *self.recovery.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}
