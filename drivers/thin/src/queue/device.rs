//! One open volume or snapshot, shared by its queues.

use std::io;
use std::sync::Arc;

use quarry_contract::{BlockDevice, DeviceLimits, Extent, IoError, IoQueue, MediumId};

use super::{VolumeQueue, Workers};
use crate::atomic_write::ATOMIC_WRITE_BYTES;
use crate::{PoolDevice, Submission, VersionHandle};

/// The unit of addressing. 512 bytes is what every initiator and boot loader understands.
const LOGICAL_BLOCK_BYTES: u32 = 512;

/// The unit the medium writes without tearing more than it must, and without a read before.
const PHYSICAL_BLOCK_BYTES: u32 = 4096;

/// The longest request. Long enough to stream, short enough to bound a session's memory.
const MAX_TRANSFER_BYTES: u32 = 8 << 20;

/// What a device that answers after milliseconds needs in flight to stream gigabytes a second.
const USEFUL_IN_FLIGHT_BYTES: u32 = 16 << 20;

/// What fits the processor's caches, for a medium that answers at once.
const USEFUL_AT_ONCE_BYTES: u32 = 1 << 20;

/// A [`BlockDevice`] over a version of a pool.
pub struct VolumeDevice {
    handle: Arc<VersionHandle>,
    workers: Arc<Workers>,
    limits: DeviceLimits,
}

impl VolumeDevice {
    /// Makes a device over an open version, whose blocking work `workers` do. The version is closed when the
    /// device and its queues are dropped.
    pub fn new(handle: Arc<VersionHandle>, workers: Arc<Workers>) -> Arc<Self> {
        let chunk_bytes = u32::try_from(handle.pool().status().chunk_bytes).unwrap_or(MAX_TRANSFER_BYTES);
        let submission = handle.pool().device().direct_file().map(|file| file.submission);
        let limits = DeviceLimits {
            logical_block_bytes: LOGICAL_BLOCK_BYTES,
            physical_block_bytes: PHYSICAL_BLOCK_BYTES,
            optimal_io_bytes: chunk_bytes,
            discard_granularity_bytes: chunk_bytes,
            max_transfer_bytes: MAX_TRANSFER_BYTES,
            atomic_write_bytes: ATOMIC_WRITE_BYTES,
            useful_in_flight_bytes: match submission {
                Some(Submission::Inline) => USEFUL_AT_ONCE_BYTES,
                Some(Submission::Ring) | None => USEFUL_IN_FLIGHT_BYTES,
            },
        };
        Arc::new(Self {
            handle,
            workers,
            limits,
        })
    }

    /// Returns the version it is over.
    pub fn handle(&self) -> &Arc<VersionHandle> {
        &self.handle
    }

    pub(super) fn workers(&self) -> &Arc<Workers> {
        &self.workers
    }
}

impl BlockDevice for VolumeDevice {
    fn size_bytes(&self) -> u64 {
        self.handle.size_bytes()
    }

    fn limits(&self) -> DeviceLimits {
        self.limits
    }

    fn medium(&self) -> MediumId {
        self.handle.pool().device().medium()
    }

    fn is_read_only(&self) -> bool {
        self.handle.is_read_only()
    }

    fn extents(&self, offset: u64, length: u64, most: usize) -> Result<Vec<Extent>, IoError> {
        self.handle.extents(offset, length, most)
    }

    fn open_queue(self: Arc<Self>, depth: u32) -> io::Result<Box<dyn IoQueue>> {
        Ok(Box::new(VolumeQueue::new(self, depth)?))
    }
}
