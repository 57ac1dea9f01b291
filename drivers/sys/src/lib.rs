//! The one place where Quarry uses unsafe code.
//!
//! | module | what it gives |
//! |---|---|
//! | [`ring`] | asynchronous file I/O through io_uring, in which memory under I/O has one owner: the ring |
//! | [`mod@file`] | what `std` lacks on files and block devices: direct I/O, locks with their holder, holes, discard |
//! | [`filesystem`] | mounting, the table of mounts, freezing, blocks shared between files, growing an XFS |
//! | [`loop_device`] | a file as a block device |
//! | [`device_mapper`] | what the device mapper says of a device |
//! | [`handover`] | listening sockets that a program leaves to the one that takes its place |
//!
//! Nothing here knows of pools or volumes. Everything public is safe to call with any arguments.

pub mod device_mapper;
pub mod file;
pub mod filesystem;
pub mod handover;
pub mod loop_device;
pub mod ring;
