//! Scrubbing, an optional capability of a [`VolumeBackend`](crate::VolumeBackend): reading everything that has checksums, and
//! verifying it.

use std::time::SystemTime;

use async_trait::async_trait;

use crate::{DriverError, Outcome, VersionId};

/// Whether a scrub is running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScrubState {
    /// None has been begun.
    #[default]
    Never,
    /// It is; after a restart it goes on where it was.
    Running,
    /// It has verified everything that was there when it began.
    Done,
    /// It was ended before that.
    Stopped,
}

/// How a scrub is, or how the last one was.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScrubStatus {
    /// Whether it is running.
    pub state: ScrubState,
    /// When it was begun, if it was.
    pub begun: Option<SystemTime>,
    /// What has been verified, in bytes.
    pub verified_bytes: u64,
    /// What it had to pass over because what says where it is, or what it holds, is lost: at most so many bytes.
    pub skipped_bytes: u64,
    /// What there is to verify, in bytes, as of now; when it is done, what there was.
    pub total_bytes: u64,
    /// What has no checksums and cannot be verified, in bytes, as of now.
    pub unverifiable_bytes: u64,
    /// How many blocks of 4 KiB it has found damaged.
    pub bad_blocks: u64,
    /// Some of them, in the order in which they were found.
    pub findings: Vec<ScrubFinding>,
}

/// A damaged block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubFinding {
    /// Whose it is; of several that share it, one. `None` when nobody has it any more: it was written anew, or deleted.
    pub version: Option<VersionId>,
    /// Where it begins there, in bytes.
    pub offset: u64,
    /// The unit of allocation that it is in.
    pub chunk: u64,
    /// Where it begins in the pool, in bytes.
    pub pool_offset: u64,
}

/// Reading everything that has checksums.
///
/// Contract
/// - R1: a scrub verifies every block with a checksum that is there from its beginning to its end, at a rate that leaves room
///   for I/O. It needs no keys, and changes nothing.
/// - R2: it goes on after a restart, and what it has found is kept.
/// - R3: what it tells of is damage: no block that is what was written there.
#[async_trait]
pub trait PoolScrub: Send + Sync {
    /// Begins a scrub; `Unchanged` when one is running, or nothing has checksums.
    ///
    /// # Errors
    /// `Full` when the pool has no room to remember it; `Unavailable`.
    async fn start_scrub(&self) -> Result<Outcome<ScrubStatus>, DriverError>;

    /// Ends the running scrub before its time; `Unchanged` when none is running.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn stop_scrub(&self) -> Result<Outcome<ScrubStatus>, DriverError>;

    /// Returns how the running scrub is, or the last one was.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn scrub_status(&self) -> Result<ScrubStatus, DriverError>;
}
