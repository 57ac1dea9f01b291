//! What a target is told at its start.

use std::net::SocketAddr;
use std::time::Duration;

/// How an [`IscsiTarget`](crate::IscsiTarget) is set up.
#[derive(Debug, Clone)]
pub struct TargetConfig {
    /// Where to listen; port 0 takes a free one.
    pub portals: Vec<SocketAddr>,
    /// Whether connections wait, after the start, until
    /// [`accept_logins`](crate::IscsiTarget::accept_logins): an initiator that comes back while exports are
    /// still being rebuilt would be told that its target does not exist, which some take as final.
    pub hold_logins: bool,
    /// What target names begin with: `iqn.YYYY-MM.reversed.domain`. It must never change for a volume.
    pub name_prefix: String,
    /// I/O threads; 0 means one for each processor.
    pub reactors: usize,
    /// The most sessions at a time, over all exports.
    pub max_sessions: usize,
    /// The most connections that have not logged in yet; beyond it each new one costs the oldest its place.
    pub max_pending_logins: usize,
    /// How long a login may take.
    pub login_timeout: Duration,
    /// How long a connection may be silent before it is pinged, and then before it is given up.
    pub ping_interval: Duration,
    /// How long initiators are given to log out when the target is shut down, in seconds; 0 asks none to. Those that
    /// do not are cut off when what they have under way is answered; those that are silent and have nothing under
    /// way, after a quarter of the time.
    pub logout_seconds: u16,
    /// How much data of all sessions may be in memory, on its way between initiators and devices, in bytes. Beyond it
    /// each session goes on with one request of a few hundred KiB at a time, and one that does not take what it has
    /// asked for is closed after [`ping_interval`](TargetConfig::ping_interval).
    pub max_buffer_bytes: usize,
    /// How fast a sanitize operation may go, in bytes a second, so that it does not slow its neighbours down.
    pub sanitize_bytes_per_second: u64,
}

impl TargetConfig {
    /// Returns the defaults for these portals.
    pub fn listening_on(portals: Vec<SocketAddr>) -> Self {
        Self {
            portals,
            hold_logins: false,
            name_prefix: "iqn.2026-11.io.quarry".to_owned(),
            reactors: 0,
            max_sessions: 4096,
            max_pending_logins: 256,
            login_timeout: Duration::from_secs(15),
            ping_interval: Duration::from_secs(30),
            logout_seconds: 2,
            max_buffer_bytes: 1 << 30,
            sanitize_bytes_per_second: 64 << 20,
        }
    }
}
