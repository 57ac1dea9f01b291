//! The role of a share server: exporting mounted shares to clients.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use async_trait::async_trait;

use super::{AccessEntry, AccessLevel, AccessTable, EnforceableAccess, MountedShare, Network, ShareVersion};
use crate::{DriverError, Outcome};

/// Exports file systems over a network protocol.
///
/// An export is a pure function of what its caller holds durably; at start the caller exports everything again with
/// the same arguments and ends what is not among it ([`ShareServer::exports`]), and clients find the same names
/// and handles.
///
/// Contract
/// - N1: a share is reachable only through its export, and only by the clients its table names, each at most at its
///   level. An export without entries is reachable by nobody.
/// - N2: the path a client mounts and the handles it gets depend only on what is exported, and stay valid over
///   restarts of the server, of its caller and of the machine.
/// - N3: calls are idempotent. When `export` returns, its table is what the server enforces, read back from it and
///   not assumed; the next operation of every client is decided by it, also on files that are open.
/// - N4: a change of one export disturbs no client of another, nor a client whose level it does not change.
/// - N5: when `unexport` returns, no operation of any client will reach the share any more, and the server has
///   nothing open on it.
/// - N6: nothing is exported but the file system that was mounted: a path that leads to another device is refused.
/// - N7: when the server dies it is started again, with what was exported and the state that clients may reclaim.
///   A call meanwhile is `Unavailable`; it never leaves a wider grant than one of the tables it came between.
#[async_trait]
pub trait ShareServer: Send + Sync + 'static {
    /// Returns the driver's name, as in the configuration.
    fn driver(&self) -> &'static str;

    /// Returns the addresses that clients mount from.
    fn portals(&self) -> Vec<SharePortal>;

    /// Returns the path that clients mount, or would when it is exported (N2).
    fn path_of(&self, version: ShareVersion) -> String;

    /// Returns what kinds of rules it can enforce.
    fn enforceable(&self) -> EnforceableAccess;

    /// Exports with exactly this table. Repeated for an exported version, it makes the table and the squash equal to
    /// these (N3, N4).
    ///
    /// # Errors
    /// `Corrupt` when the path is not the file system it shall be (N6); `Limit` for too many entries; `Unavailable`
    /// when the server does not answer.
    async fn export(&self, export: &ShareExport) -> Result<Outcome<()>, DriverError>;

    /// Ends an export (N5). `Unchanged` when it is not exported.
    ///
    /// # Errors
    /// `Busy` naming the clients that hold something of it which the server cannot take from them; it is out of their
    /// reach all the same, and no longer exported. `Unavailable` when the server does not answer.
    async fn unexport(&self, version: ShareVersion) -> Result<Outcome<()>, DriverError>;

    /// Returns what is exported, ordered. Also what a process before this one has exported.
    ///
    /// # Errors
    /// `Unavailable` when the server does not answer.
    async fn exports(&self) -> Result<Vec<ShareVersion>, DriverError>;

    /// Returns the table that the server has loaded for an export, asked of it now.
    /// `None` when it is not exported.
    ///
    /// # Errors
    /// `Unavailable` when the server does not answer.
    async fn loaded(&self, version: ShareVersion) -> Result<Option<LoadedAccess>, DriverError>;

    /// Returns the clients that the server knows and that may be using an export, as far as it can tell ([`ShareClient`]),
    /// ordered by address. A client that has gone may be among them for a while.
    ///
    /// # Errors
    /// `Unavailable` when the server does not answer.
    async fn clients(&self, version: ShareVersion) -> Result<Vec<ShareClient>, DriverError>;

    /// Ends all exports and the server.
    async fn shutdown(&self);
}

/// What a server says it enforces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedAccess(pub Vec<(Network, AccessLevel)>);

impl LoadedAccess {
    /// Returns what a table comes to at a server.
    pub fn of(table: &AccessTable) -> Self {
        let each = |entry: &AccessEntry| (entry.network, entry.level);
        Self(table.entries().iter().map(each).collect())
    }

    /// Returns the network that decides for a client, and the client's level.
    pub fn decide(&self, client: IpAddr) -> Option<(Network, AccessLevel)> {
        self.0
            .iter()
            .copied()
            .find(|(network, _)| network.contains(client))
    }
}

/// A client that a server knows. What servers remember differs: what one cannot tell is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareClient {
    /// Where it comes from.
    pub address: IpAddr,
    /// The versions of NFS it was seen to speak, like `4.1`, in their order.
    pub versions: Vec<String>,
    /// When it last did something at the server, with whatever share.
    pub last_seen: Option<SystemTime>,
    /// How many opens, locks and delegations it holds of the export asked about.
    pub held: Option<u64>,
}

/// Something to export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareExport {
    /// What, and where it is mounted.
    pub mounted: MountedShare,
    /// Who may do what.
    pub access: AccessTable,
    /// Whose user ids are believed.
    pub squash: Squash,
}

/// Which of the user ids that clients send are replaced by the anonymous one (65534).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
pub enum Squash {
    /// None: a client's root is root. What control planes expect.
    #[default]
    None,
    /// Root's.
    Root,
    /// Everybody's.
    All,
}

impl fmt::Display for Squash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Squash::None => "none",
            Squash::Root => "root",
            Squash::All => "all",
        })
    }
}

/// An address of a server, and what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ShareAddress {
    /// The address.
    pub ip: IpAddr,
    /// What it is for.
    pub role: PortalRole,
}

/// What an address is for. The server serves all of them alike; it is for who tells clients what to mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PortalRole {
    /// The one to take when there are several of the family.
    Preferred,
    /// Another one.
    Ordinary,
    /// One for administrators, as in a network that users do not reach.
    AdminOnly,
}

/// An address that clients mount from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SharePortal {
    /// The address and the port.
    pub address: SocketAddr,
    /// What it is for.
    pub role: PortalRole,
}

impl SharePortal {
    /// Returns the portal at a server's address.
    pub fn at(address: &ShareAddress, port: u16) -> Self {
        Self {
            address: SocketAddr::new(address.ip, port),
            role: address.role,
        }
    }

    /// Returns what a client mounts: `192.0.2.4:/path`, an IPv6 address in brackets.
    pub fn location(&self, path: &str) -> String {
        match self.address {
            SocketAddr::V4(address) => format!("{}:{path}", address.ip()),
            SocketAddr::V6(address) => format!("[{}]:{path}", address.ip()),
        }
    }
}

impl fmt::Display for SharePortal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}
