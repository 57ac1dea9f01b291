//! A share server that nobody can connect to: it keeps the books of exports and says what a client could do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Mutex;

use async_trait::async_trait;

use super::lock;
use crate::{
    AccessLevel, ClientKind, DriverError, EnforceableAccess, LoadedAccess, Outcome, PortalRole, ShareClient,
    ShareExport, SharePortal, ShareServer, ShareVersion,
};

/// A share server in memory.
pub struct MemoryShareServer {
    portals: Vec<SharePortal>,
    exports: Mutex<BTreeMap<ShareVersion, ShareExport>>,
    is_failing: Mutex<bool>,
    /// Who has attempted something, of whatever export.
    clients: Mutex<BTreeSet<IpAddr>>,
}

impl Default for MemoryShareServer {
    fn default() -> Self {
        Self::at(vec![SharePortal {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 2049)),
            role: PortalRole::Preferred,
        }])
    }
}

impl MemoryShareServer {
    /// Makes a server without exports.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes one with these addresses.
    pub fn at(portals: Vec<SharePortal>) -> Self {
        Self {
            portals,
            exports: Mutex::default(),
            is_failing: Mutex::default(),
            clients: Mutex::default(),
        }
    }

    /// Returns what a client may do now; `None` when it has no access.
    pub fn attempt(&self, version: ShareVersion, client: IpAddr) -> Option<AccessLevel> {
        lock(&self.clients).insert(client);
        let exports = lock(&self.exports);
        exports
            .get(&version)?
            .access
            .decide(client)
            .map(|entry| entry.level)
    }

    /// Returns an export as it was last made.
    pub fn exported(&self, version: ShareVersion) -> Option<ShareExport> {
        lock(&self.exports).get(&version).cloned()
    }

    /// Lets all calls fail, or none, as when the server does not answer.
    pub fn set_failing(&self, is_failing: bool) {
        *lock(&self.is_failing) = is_failing;
    }

    fn check_answering(&self) -> Result<(), DriverError> {
        if !*lock(&self.is_failing) {
            return Ok(());
        }
        Err(DriverError::Unavailable {
            object: "the share server".into(),
            problem: "it was told to fail".into(),
            source: None,
        })
    }
}

#[async_trait]
impl ShareServer for MemoryShareServer {
    fn driver(&self) -> &'static str {
        "memory"
    }

    fn portals(&self) -> Vec<SharePortal> {
        self.portals.clone()
    }

    fn path_of(&self, version: ShareVersion) -> String {
        match version {
            ShareVersion::Share(id) => format!("/share-{id}"),
            ShareVersion::Snapshot(id) => format!("/share-snapshot-{id}"),
        }
    }

    fn enforceable(&self) -> EnforceableAccess {
        EnforceableAccess {
            kinds: vec![ClientKind::Ip],
            ipv4: true,
            ipv6: true,
            refused_ipv6_prefixes: None,
        }
    }

    async fn export(&self, export: &ShareExport) -> Result<Outcome<()>, DriverError> {
        self.check_answering()?;
        let before = lock(&self.exports).insert(export.mounted.version, export.clone());
        Ok(if before.as_ref() == Some(export) {
            Outcome::Unchanged(())
        } else {
            Outcome::Changed(())
        })
    }

    async fn unexport(&self, version: ShareVersion) -> Result<Outcome<()>, DriverError> {
        self.check_answering()?;
        Ok(match lock(&self.exports).remove(&version) {
            Some(_) => Outcome::Changed(()),
            None => Outcome::Unchanged(()),
        })
    }

    async fn exports(&self) -> Result<Vec<ShareVersion>, DriverError> {
        self.check_answering()?;
        Ok(lock(&self.exports).keys().copied().collect())
    }

    async fn loaded(&self, version: ShareVersion) -> Result<Option<LoadedAccess>, DriverError> {
        self.check_answering()?;
        let exports = lock(&self.exports);
        Ok(exports
            .get(&version)
            .map(|export| LoadedAccess::of(&export.access)))
    }

    async fn clients(&self, _: ShareVersion) -> Result<Vec<ShareClient>, DriverError> {
        self.check_answering()?;
        let clients = lock(&self.clients);
        let each = |address: &IpAddr| ShareClient {
            address: *address,
            versions: Vec::new(),
            last_seen: None,
            held: None,
        };
        Ok(clients.iter().map(each).collect())
    }

    async fn shutdown(&self) {
        lock(&self.exports).clear();
    }
}
