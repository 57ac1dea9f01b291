//! The NFS server in the kernel: Linux's own, told what to export and asked whether it has understood.
//!
//! | module | what it gives |
//! |---|---|
//! | [`server`] | the driver: [`KnfsdServer`] |
//! | [`writer`] | the table of exports: written, loaded, read back, for all callers at once |
//! | [`release`] | the end of an export: what clients hold of it, and who |
//! | [`launch`] | the start of the server and of its two processes, and what it needs for that |
//! | [`table`] | what is written for an export, and what `exportfs` makes of it |
//! | [`caches`] | what the kernel remembers of the answers it was given |
//! | [`clients`] | the clients that the kernel knows, and what they hold |
//!
//! A machine, or a network name space, has one such server; this driver takes it for itself. The kernel serves on its own;
//! `rpc.mountd` answers what it asks about clients and paths, `nfsdcld` remembers which clients may reclaim their state
//! after a restart of the machine. All of it outlives the agent. NFSv4 only: no portmapper and no other port is needed.
//! Needs root, the kernel's `nfsd` and Debian's nfs-kernel-server.

mod caches;
mod clients;
mod config;
mod launch;
mod release;
mod server;
mod table;
mod writer;

pub use config::{KnfsdConfig, Programs};
pub use launch::StartError;
pub use server::KnfsdServer;
