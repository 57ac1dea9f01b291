//! End to end: the real `quarry` binary, real sockets, a client nobody here wrote, and `kill -9`.
//!
//! Needs `qemu-io` and `qemu-img` with the iSCSI driver (Debian packages qemu-utils and qemu-block-extra), no
//! root and no kernel module. Each test runs agents of its own in a folder of its own.
//!
//! The tests of `shares` need root, nfs-ganesha and libnfs-utils; they run in name spaces of their own.
//!
//! The tests of `lab` need root and Debian's user-mode-linux, and say so when they are skipped.

mod agent_process;
mod command;
mod config;
mod dice;
mod grpc;
mod initiator;
#[path = "../../drivers/iscsi/tests/client/wire.rs"]
mod scripted_initiator;

mod backup;
mod bad_input;
mod call_sequence;
mod checksums;
mod crash;
mod detach;
mod encryption;
mod fencing;
mod full_pool;
mod garbage;
mod lab;
mod limits;
mod metrics;
mod os_brick;
mod pool_file;
mod pool_tools;
mod shares;
mod shutdown;
mod succession;
mod user_story;
mod without_uring;
