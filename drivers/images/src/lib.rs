//! A store of shares: each is an XFS image of its own, in a pool whose file system shares blocks between files.
//!
//! | module | what it gives |
//! |---|---|
//! | [`store`] | what the driver does, with calls that block: [`ImageBackend`] is what the control plane calls |
//! | [`place`] | where the pool is: a folder, or a file system in a file |
//! | [`layout`] | what lies where in a pool, and the order in which it gets there |
//! | [`image`] | one image: made, copied |
//! | [`trash`] | gives the space of what was deleted back |
//!
//! Why so: docs/decisions/0009-share-store.md. What lies where: docs/formats/share-pool.md. Needs root, loop devices and
//! the tools of xfsprogs.

mod image;
mod layout;
mod place;
mod store;
mod trash;

pub use place::{IfAbsent, PoolPlace};
pub use quarry_xfs::backend::StepHook;
pub use store::{ImageStore, StoreOptions};

/// The driver.
pub type ImageBackend = quarry_xfs::backend::StoreBackend<ImageStore>;
