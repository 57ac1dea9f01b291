//! A store of shares on LVM: each is an XFS on a thin logical volume of its own, in a thin pool of a volume group.
//!
//! | module | what it gives |
//! |---|---|
//! | [`store`] | what the driver does, with calls that block: [`LvmBackend`] is what the control plane calls |
//! | [`place`] | which thin pool it is, and that this process has it |
//! | [`layout`] | what the volumes of the pool are |
//! | [`settle`] | what a process leaves in the middle |
//! | [`pool`] | what the thin pool has left |
//! | [`tools`] | LVM's tools |
//!
//! Why so: docs/decisions/0013-share-volumes.md. What lies where: docs/formats/share-volumes.md. Needs root, lvm2,
//! thin-provisioning-tools and xfsprogs.

mod layout;
mod place;
mod pool;
mod settle;
mod store;
mod tools;

pub use place::{IfAbsent, PoolPlace, is_lvm_name};
pub use quarry_xfs::backend::StepHook;
pub use store::{LvmStore, StoreOptions};

/// The driver.
pub type LvmBackend = quarry_xfs::backend::StoreBackend<LvmStore>;
