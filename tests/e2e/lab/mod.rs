//! Linux's own initiator against the agent: open-iscsi, the SCSI disk driver, file systems and multipath of a real
//! kernel that runs as a process (User-Mode Linux; docs/testing.md, "The lab").
//!
//! The agent runs on this machine, the initiator in the guest, with two networks between them. With shares the agent runs in
//! the guest, whose kernel is server and client. `scripts/lab/test` runs these tests; without its network they say that
//! they are skipped.

mod guest;
mod host;

mod disk;
mod multipath;
mod protocol;
mod restart;
mod shares;
