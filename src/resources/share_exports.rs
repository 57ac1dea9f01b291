//! Makes the share server equal to the rules: a share or snapshot is mounted and exported exactly while a rule of it can
//! be enforced, with exactly the table that its rules come to.
//!
//! Called under the lock of what is exported, by the calls that change it, by recovery, and by the retry of exports that
//! failed. The share server is asked, not remembered: it outlives the agent.
//!
//! Invariants
//! - X1: nothing is exported that is not mounted, and nothing is unmounted that is exported.
//! - X2: what should be exported and is not, is known with its reason, and tried again.
//! - X3: what has stopped, or is exported and was unmounted by somebody else, is mounted and exported anew, by itself.
//! - X4: a snapshot that takes its share's rules is exported by the same as the share, at the end of every call that changes
//!   them. What changes or reads who may use a snapshot has its share's lock, too.
//!
//! Failure: an export that cannot be made is remembered; its rules show as pending.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quarry_contract::{
    AccessRule, AccessTable, DriverError, ErrorKind, PortalRole, ShareExport, ShareId, ShareServer,
    ShareSnapshotId, ShareVersion, Squash, resolve_access,
};
use tokio::task::JoinSet;
use tracing::{info, warn};
use uuid::Uuid;

use super::Resources;
use super::error::ResourceError;
use super::locks::LockKey;
use super::shares::{ExportLocation, SharePool};
use crate::catalog::record::ShareRecord;

/// How many shares are mounted at a time when the agent starts: a mount waits for the disk.
const RESTORED_AT_A_TIME: usize = 8;

/// What should be exported and is not, with the reasons (X2).
#[derive(Default)]
pub(super) struct ShareExports {
    failed: Mutex<BTreeMap<ShareVersion, String>>,
}

impl ShareExports {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ShareVersion, String>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who may use something, and whose rules say so.
pub(super) struct AccessInForce {
    pub(super) rules: Vec<AccessRule>,
    pub(super) squash: Squash,
    /// The share whose rules they are, when they are not its own.
    pub(super) inherited_from: Option<ShareId>,
}

impl AccessInForce {
    /// The rules of a record itself.
    pub(super) fn own(record: &ShareRecord) -> Self {
        Self {
            rules: record.rules.clone(),
            squash: record.squash,
            inherited_from: None,
        }
    }

    /// The rules of a share, for a snapshot of it. The record is `None` when there is no share any more, and nobody has access.
    pub(super) fn inherited(share: ShareId, record: Option<&ShareRecord>) -> Self {
        Self {
            rules: record.map_or_else(Vec::new, |record| record.rules.clone()),
            squash: record.map_or_else(Squash::default, |record| record.squash),
            inherited_from: Some(share),
        }
    }
}

/// Returns what rules come to at a server; a snapshot is read-only whatever they say.
pub(super) fn table_of(version: ShareVersion, rules: &[AccessRule], server: &dyn ShareServer) -> AccessTable {
    let (table, _) = resolve_access(rules, &server.enforceable());
    match version {
        ShareVersion::Share(_) => table,
        ShareVersion::Snapshot(_) => table.read_only(),
    }
}

/// Tells whether something is no longer exported and stays mounted: clients hold files of it, or what is mounted is all there
/// is of it.
fn stays_mounted(error: &ResourceError) -> bool {
    matches!(error, ResourceError::Driver(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::Corrupt))
}

impl Resources {
    pub(super) fn share_server(&self) -> Result<&Arc<dyn ShareServer>, ResourceError> {
        let server = self.registry.share_server();
        server.ok_or_else(|| {
            ResourceError::Driver(DriverError::Unavailable {
                object: "the share server".into(),
                problem: "there is none; add a section [share_server] to the configuration".into(),
                source: None,
            })
        })
    }

    /// Returns what clients mount: one for each address of the server.
    pub(super) fn export_locations(&self, version: ShareVersion) -> Vec<ExportLocation> {
        let Some(server) = self.registry.share_server() else {
            return Vec::new();
        };
        let path = server.path_of(version);
        let portals = server.portals().into_iter();
        portals
            .map(|portal| {
                let location = portal.location(&path);
                ExportLocation {
                    id: Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("nfs://{location}").as_bytes()),
                    path: location,
                    is_ipv6: portal.address.is_ipv6(),
                    is_preferred: portal.role == PortalRole::Preferred,
                    is_admin_only: portal.role == PortalRole::AdminOnly,
                    port: portal.address.port(),
                }
            })
            .collect()
    }

    /// Returns the addresses that clients mount from.
    pub(super) fn share_portals(&self) -> Vec<SocketAddr> {
        let server = self.registry.share_server();
        server.map_or(Vec::new(), |server| {
            server
                .portals()
                .into_iter()
                .map(|portal| portal.address)
                .collect()
        })
    }

    /// Returns the locks of who may use something (X4).
    pub(super) async fn access_locks(&self, version: ShareVersion) -> Result<Vec<LockKey>, ResourceError> {
        let share = match version {
            ShareVersion::Share(_) => None,
            ShareVersion::Snapshot(id) => self.share_of(id).await?,
        };
        let share = share.map(|id| ShareVersion::Share(id).into());
        Ok(share.into_iter().chain([version.into()]).collect())
    }

    /// Returns the share that a snapshot is of; `None` when there is no such snapshot.
    async fn share_of(&self, id: ShareSnapshotId) -> Result<Option<ShareId>, ResourceError> {
        let Some((pool, _)) = self.find_share_version(ShareVersion::Snapshot(id)).await? else {
            return Ok(None);
        };
        Ok(Some(pool.backend.snapshot(id).await?.share))
    }

    /// Returns who may use something by its record. The locks are held.
    pub(super) async fn access_in_force(
        &self,
        version: ShareVersion,
        record: &ShareRecord,
    ) -> Result<AccessInForce, ResourceError> {
        let share = match version {
            ShareVersion::Snapshot(id) if record.inherits => self.share_of(id).await?,
            _ => None,
        };
        Ok(match share {
            Some(share) => {
                let of_share = self.catalog.share(ShareVersion::Share(share))?;
                AccessInForce::inherited(share, of_share.as_ref())
            }
            None => AccessInForce::own(record),
        })
    }

    /// Returns the snapshots of a share that take its rules. Its lock is held.
    pub(super) async fn inheriting(&self, share: ShareId) -> Result<Vec<ShareVersion>, ResourceError> {
        let mut found = Vec::new();
        for pool in self.share_pools() {
            for snapshot in pool.backend.snapshots().await? {
                let version = ShareVersion::Snapshot(snapshot.id);
                if snapshot.share == share && self.share_record(version)?.inherits {
                    found.push(version);
                }
            }
        }
        Ok(found)
    }

    /// Makes the server equal to this. The lock is held.
    pub(super) async fn sync_share(
        &self,
        version: ShareVersion,
        in_force: &AccessInForce,
    ) -> Result<(), ResourceError> {
        let server = self.share_server()?;
        let access = table_of(version, &in_force.rules, &**server);
        let (pool, _) = self.existing_share_version(version).await?;
        if access.is_empty() {
            match self.withdraw_share(&pool, version).await {
                // Nobody may use it any more, which is what was asked for. Who deletes or reverts it is told why it stays
                // mounted.
                Err(error) if stays_mounted(&error) => {
                    info!(%version, %error, "no longer exported, and still mounted")
                }
                withdrawn => withdrawn?,
            }
        } else {
            let mounted = match pool.backend.mount(version).await {
                // What somebody else has unmounted lives on as long as the server holds it, and cannot be mounted again.
                Err(_) if server.unexport(version).await?.is_changed() => pool.backend.mount(version).await?,
                mounted => mounted?,
            };
            let export = ShareExport {
                mounted: mounted.into_inner(),
                access,
                squash: in_force.squash,
            };
            server.export(&export).await?;
        }
        self.share_exports.lock().remove(&version);
        Ok(())
    }

    /// Ends the export, then the mount (X1). The lock is held.
    pub(super) async fn withdraw_share(
        &self,
        pool: &SharePool,
        version: ShareVersion,
    ) -> Result<(), ResourceError> {
        self.share_server()?.unexport(version).await?;
        pool.backend.unmount(version).await?;
        Ok(())
    }

    /// Makes the server equal to the catalog after a call that has failed. The lock is held.
    pub(super) async fn export_again(&self, version: ShareVersion, why: &str) {
        let synced = async {
            let record = self.share_record(version)?;
            let in_force = self.access_in_force(version, &record).await?;
            self.sync_share(version, &in_force).await
        };
        if let Err(error) = synced.await {
            warn!(%version, %error, "{why}, and the server is not as it was; this is tried again");
            self.share_exports.lock().insert(version, error.to_string());
        }
    }

    /// Makes the server equal to the catalog.
    ///
    /// # Errors
    /// The driver's; it is remembered then, and tried again.
    pub(super) async fn restore_share(&self, version: ShareVersion) -> Result<(), ResourceError> {
        let _held = self.locks.take(self.access_locks(version).await?).await?;
        let record = self.share_record(version)?;
        let is_gone = self.find_share_version(version).await?.is_none();
        if is_gone {
            self.share_exports.lock().remove(&version);
            return Ok(());
        }
        let restored = async {
            let in_force = self.access_in_force(version, &record).await?;
            self.sync_share(version, &in_force).await
        };
        let result = restored.await;
        if let Err(error) = &result {
            self.share_exports.lock().insert(version, error.to_string());
        }
        result
    }

    /// Returns why something that should be exported is not.
    pub(super) fn share_export_failure(&self, version: ShareVersion) -> Option<String> {
        self.share_exports.lock().get(&version).cloned()
    }

    /// Returns what should be exported and is not, with the reasons.
    pub(super) fn share_export_failures(&self) -> Vec<(ShareVersion, String)> {
        let failed = self.share_exports.lock();
        failed
            .iter()
            .map(|(version, reason)| (*version, reason.clone()))
            .collect()
    }

    /// Tries once more to make the exports that failed.
    pub(super) async fn retry_share_exports(&self) {
        for (version, _) in self.share_export_failures() {
            if self.restore_share(version).await.is_ok() {
                info!(%version, "exported again");
            }
        }
    }

    /// Mounts and exports anew what has stopped, and what somebody else has unmounted (X3).
    pub(super) async fn revive_shares(&self) {
        let Some(server) = self.registry.share_server() else {
            return;
        };
        // A server that does not answer has its own watcher.
        let mut unmounted = server.exports().await.unwrap_or_default();
        for pool in self.share_pools() {
            let looked = async {
                Ok::<_, DriverError>((pool.backend.stopped().await?, pool.backend.mounted().await?))
            };
            match looked.await {
                Ok((stopped, mounted)) => {
                    for version in stopped {
                        self.report_revived(version, self.revive_share(&pool, version).await);
                    }
                    unmounted.retain(|version| !mounted.iter().any(|one| one.version == *version));
                }
                Err(error) => {
                    warn!(pool = pool.name, %error, "what is mounted of it is not known");
                    return;
                }
            }
        }
        for version in unmounted {
            self.report_revived(version, self.restore_share(version).await);
        }
    }

    fn report_revived(&self, version: ShareVersion, result: Result<(), ResourceError>) {
        match result {
            Ok(()) => info!(%version, "it had stopped or was unmounted, and goes on"),
            Err(error) => warn!(%version, %error, "it has stopped or was unmounted, and does not go on yet"),
        }
    }

    async fn revive_share(&self, pool: &SharePool, version: ShareVersion) -> Result<(), ResourceError> {
        {
            let _held = self.locks.take(self.access_locks(version).await?).await?;
            // Whoever had the lock may have done it.
            if pool.backend.stopped().await?.contains(&version) {
                let withdrawn = self.withdraw_share(pool, version).await;
                if let Err(error) = withdrawn {
                    // It is not exported now (X2).
                    self.share_exports.lock().insert(version, error.to_string());
                    return Err(error);
                }
            }
        }
        self.restore_share(version).await
    }

    /// Makes the server equal to the catalog at the start: ends what no record stands for, makes what does. Returns how
    /// many exports were made and how many could not be.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub(super) async fn recover_shares(self: &Arc<Self>) -> Result<(u64, u64), ResourceError> {
        let Some(server) = self.registry.share_server() else {
            return Ok((0, 0));
        };
        let mut wanted = BTreeSet::new();
        for (version, record) in self.catalog.shares_with_access()? {
            let in_force = self.access_in_force(version, &record).await;
            // What is not known now is found out when it is restored.
            if in_force.is_ok_and(|in_force| in_force.rules.is_empty()) {
                continue;
            }
            wanted.insert(version);
        }
        let is_wanted = |version: ShareVersion| wanted.contains(&version);
        for version in server.exports().await? {
            if !is_wanted(version) {
                server.unexport(version).await?;
                info!(%version, "no longer exported");
            }
        }
        for pool in self.share_pools() {
            for mounted in pool.backend.mounted().await? {
                if !is_wanted(mounted.version)
                    && let Err(error) = pool.backend.unmount(mounted.version).await
                {
                    warn!(version = %mounted.version, %error, "it stays mounted, and is not exported");
                }
            }
        }
        let (mut restored, mut failed) = (0, 0);
        let mut waiting = wanted.into_iter();
        let mut running = JoinSet::new();
        loop {
            for version in waiting.by_ref().take(RESTORED_AT_A_TIME - running.len()) {
                let this = Arc::clone(self);
                running.spawn(async move { (version, this.restore_share(version).await) });
            }
            let Some(ended) = running.join_next().await else {
                break;
            };
            match ended {
                Ok((_, Ok(()))) => restored += 1,
                Ok((version, Err(error))) => {
                    warn!(%version, %error, "it cannot be exported");
                    failed += 1;
                }
                Err(panic) => {
                    return Err(ResourceError::Internal {
                        detail: format!("restoring a share has panicked: {panic}"),
                    });
                }
            }
        }
        Ok((restored, failed))
    }
}
