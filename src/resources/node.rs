//! The agent itself: what it is made of and how it is.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::PoisonError;
use std::time::Duration;

use quarry_contract::{DriverError, PoolState, SharePoolStatus, ShareVersion};
use uuid::Uuid;

use super::{Page, RecoveryReport, Resources};
use crate::catalog::record::Moment;

/// A pool of shares is reported as nearly full when less than this part of it is free.
const SHARE_POOL_WARN: u64 = 10;

/// How long a pool of shares may take to tell what is damaged in it, and the share server what it exports.
const LOOK_DEADLINE: Duration = Duration::from_secs(10);

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
            if let Ok(SharePoolStatus {
                state: PoolState::ReadOnly { reason },
                ..
            }) = &pool.status
            {
                problems.push(format!("share pool {} takes no writes: {reason}", pool.name));
            }
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
            let problem = match tokio::time::timeout(LOOK_DEADLINE, server.exports()).await {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!(
                    "the share server does not answer within {} s",
                    LOOK_DEADLINE.as_secs()
                )),
            };
            problems.extend(problem.map(|problem| format!("shares are not served: {problem}")));
            drivers.push(Driver {
                role: DriverRole::ShareServer,
                name: server.driver(),
                instance: server.driver().to_owned(),
                capabilities: Vec::new(),
            });
        }
        problems.extend(self.damaged_shares().await);
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

    /// Says what is wrong with shares and their snapshots themselves.
    async fn damaged_shares(&self) -> Vec<String> {
        let (mut problems, mut present) = (Vec::new(), BTreeSet::new());
        for pool in self.share_pools() {
            let looked = async {
                let damaged = pool.backend.damaged().await?;
                let shares = pool.backend.shares().await?.into_iter();
                let snapshots = pool.backend.snapshots().await?.into_iter();
                present.extend(shares.map(|share| ShareVersion::Share(share.id)));
                present.extend(snapshots.map(|snapshot| ShareVersion::Snapshot(snapshot.id)));
                present.extend(damaged.iter().map(|(version, _)| *version));
                Ok::<_, DriverError>(damaged)
            };
            let problem = match tokio::time::timeout(LOOK_DEADLINE, looked).await {
                Ok(Ok(damaged)) => {
                    let each = |(version, problem)| format!("{version} is damaged: {problem}");
                    problems.extend(damaged.into_iter().map(each));
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {} s", LOOK_DEADLINE.as_secs()),
            };
            problems.push(format!(
                "what is damaged in share pool {} is not known: {problem}",
                pool.name
            ));
            // Then what is missing is not known, either.
            return problems;
        }
        for (version, _) in self.catalog.shares_with_access().unwrap_or_default() {
            if !present.contains(&version) && self.is_lost(version).await {
                problems.push(format!(
                    "{version} has access rules and is in no pool of shares: somebody has taken it, or its pool, away; delete it \
                     if that was meant"
                ));
            }
        }
        problems
    }

    /// Tells whether a share is in the catalog and in no pool, while nobody is at work on it.
    async fn is_lost(&self, version: ShareVersion) -> bool {
        let Ok(_held) = self.locks.take([version.into()]).await else {
            return false;
        };
        let is_recorded = matches!(self.catalog.share(version), Ok(Some(_)));
        is_recorded && matches!(self.find_share_version(version).await, Ok(None))
    }
}
