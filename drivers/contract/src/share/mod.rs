//! The seam of shared file systems: who keeps them, who serves them, and who may use them.
//!
//! | module | what it gives |
//! |---|---|
//! | [`backend`] | the role of a pool that shares are cut from |
//! | [`adoption`] | what backends answer about names of what is no share |
//! | [`server`] | the role of what exports them to clients |
//! | [`access`] | rules, and the table they come to, the same for every server |
//! | [`network`] | the addresses a rule is about |

mod access;
mod adoption;
mod backend;
mod network;
mod server;

pub use access::{
    AccessEntry, AccessLevel, AccessRule, AccessTable, ClientKind, EnforceableAccess, RefusedRule, RuleState,
    RuleStatus, resolve_access,
};
pub use adoption::{adopted_as_another, name_is_taken, nothing_named};
pub use backend::{
    MountedShare, ShareBackend, ShareCapabilities, ShareCapability, ShareInfo, SharePoolStatus,
    ShareSnapshotInfo, ShareSnapshotSpec, ShareSource, ShareSpec, ShareUsage, ShareVersion,
};
pub use network::Network;
pub use server::{
    LoadedAccess, PortalRole, ShareAddress, ShareClient, ShareExport, SharePortal, ShareServer, Squash,
};
