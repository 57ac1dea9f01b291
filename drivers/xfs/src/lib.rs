//! What stores of shares have in common that keep each share as an XFS on a device of its own, whatever that device is.
//!
//! | module | what it gives |
//! |---|---|
//! | [`backend`] | the driver that the control plane calls, over a store with calls that block |
//! | [`filesystem`] | one file system: made, given an identity |
//! | [`superblock`] | what a file system says of itself that is not mounted |
//! | [`mounts`] | what of a pool is mounted |
//! | [`brake`] | keeps what is mounted from meeting the end of its pool |
//! | [`objects`] | the shares and snapshots of a pool, as known in memory |
//! | [`locks`] | one lock for each of them |
//! | [`error`] | what goes wrong |
//!
//! Nothing here knows what the devices are. Why a file system for each share: docs/decisions/0009-share-store.md. Needs root
//! and the tools of xfsprogs.

pub mod backend;
pub mod brake;
pub mod error;
pub mod filesystem;
pub mod locks;
pub mod mounts;
pub mod objects;
pub mod superblock;
