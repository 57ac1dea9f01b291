//! The NFS server: a Ganesha of our own, started, watched and told what to export.
//!
//! | module | what it gives |
//! |---|---|
//! | [`server`] | the driver: [`GaneshaServer`] |
//! | [`launch`] | its start, and what it needs for that |
//! | [`export_file`] | what Ganesha is told of an export, and how access rules are written for it |
//! | [`bus`] | the private D-Bus over which it is told, and asked |
//! | [`clients`] | what it says of its clients |
//! | [`export_ids`] | the number of each export, which is in every file handle and never changes |
//!
//! Ganesha and its bus outlive the agent that started them, so that clients do not notice a new agent; the next one takes
//! them up. What is exported is in a file for each export, from which Ganesha starts again after a crash. With NFSv4 only, as it
//! is by default, no portmapper and no other port is needed. Needs root, nfs-ganesha-vfs and dbus-daemon.

mod bus;
mod clients;
mod config;
mod export_file;
mod export_ids;
mod launch;
mod server;

pub use config::{GaneshaConfig, Nfs3, Programs};
pub use launch::StartError;
pub use server::GaneshaServer;
