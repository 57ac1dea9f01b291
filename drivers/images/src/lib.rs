//! A store of shares: each is an XFS image of its own, in a pool whose file system shares blocks between files.
//!
//! | module | what it gives |
//! |---|---|
//! | [`backend`] | the driver: [`ImageBackend`], which the control plane calls |
//! | [`store`] | what it does, with calls that block |
//! | [`objects`] | what the pool holds |
//! | [`place`] | where the pool is: a folder, or a file system in a file |
//! | [`layout`] | what lies where in a pool, and the order in which it gets there |
//! | [`image`] | one image: made, copied, given an identity |
//! | [`mounts`] | what of it is mounted |
//! | [`brake`] | keeps what is mounted from meeting the end of the pool |
//!
//! Why so: docs/decisions/0009-share-store.md. What lies where: docs/formats/share-pool.md. Needs root, loop devices and
//! the tools of xfsprogs.

mod backend;
mod brake;
mod error;
mod image;
mod layout;
mod locks;
mod mounts;
mod objects;
mod place;
mod store;
mod superblock;
mod trash;

pub use backend::ImageBackend;
pub use place::{IfAbsent, PoolPlace};
pub use store::{StepHook, StoreOptions};
