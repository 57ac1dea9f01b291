//! The space that a pool needs of the file system that its file is in, taken before it is needed.
//!
//! A pool's file has holes, and whoever else uses the file system may fill it. A write into a hole is refused then. For a volume's
//! data that is an answer like that of a full pool; for a write of the pool's own it would be a failed write, which stops it.
//!
//! Invariant HF1: the fixed areas (superblock copies, log, bitmap and its directory) have their space from the format on, new tail
//! copies before a growth writes them. So commits, and the superblock writes of a checkpoint, are not refused.
//!
//! Failure: a format and a growth are refused, and nothing has changed. The open of an older pool goes on without; the pool
//! says so, and tries again in the background until it has it. A file system that cannot give a range its space beforehand
//! promises nothing: everything goes on as if it had, and a refused write stops the pool.
//! Format: docs/formats/pool.md, "What the medium is assumed to do".

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::device::is_out_of_space;
use crate::format::{BLOCK, Geometry};
use crate::locks::read;
use crate::pool::Pool;
use crate::{PoolDevice, PoolError};

/// What a pool has of its host's space.
#[derive(Debug, Default)]
pub(crate) struct HostSpace {
    /// Whether fixed areas are without their space.
    lacks_fixed: AtomicBool,
}

/// How taking space went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taking {
    /// The range has it, or needs none.
    Taken,
    /// The medium cannot take space beforehand.
    Impossible,
}

/// Takes the space of a range.
///
/// # Errors
/// `HostFull`; `Device`.
pub(crate) fn take_space(device: &dyn PoolDevice, offset: u64, length: u64) -> Result<Taking, PoolError> {
    match device.allocate(offset, length) {
        Ok(()) => Ok(Taking::Taken),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(Taking::Impossible),
        Err(error) if is_out_of_space(&error) => Err(PoolError::HostFull {
            needed_bytes: length,
            source: error,
        }),
        Err(source) => Err(PoolError::Device {
            action: format!("taking space for {length} bytes at byte {offset}"),
            source,
        }),
    }
}

/// Takes the space of the fixed areas (HF1).
///
/// # Errors
/// As [`take_space`].
pub(crate) fn take_fixed_areas(device: &dyn PoolDevice, geometry: &Geometry) -> Result<Taking, PoolError> {
    if take_space(device, 0, geometry.data_start)? == Taking::Impossible {
        tracing::warn!(
            "the file system under the pool cannot give a file space beforehand: keep it from getting full, which would stop the pool"
        );
        return Ok(Taking::Impossible);
    }
    take_tail_copies(device, geometry)
}

/// Takes the space of the superblock's tail copies (HF1).
///
/// # Errors
/// As [`take_space`].
pub(crate) fn take_tail_copies(device: &dyn PoolDevice, geometry: &Geometry) -> Result<Taking, PoolError> {
    take_space(device, geometry.superblock_offset(2), 2 * BLOCK)
}

impl HostSpace {
    /// Takes the space of a pool that is being opened, as far as there is any.
    pub fn at_open(device: &dyn PoolDevice, geometry: &Geometry) -> Self {
        let lacks_fixed = match take_fixed_areas(device, geometry) {
            Ok(_) => false,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the pool's log and bitmap have no space of their own: a write to them may be refused, which stops the pool"
                );
                true
            }
        };
        Self {
            lacks_fixed: AtomicBool::new(lacks_fixed),
        }
    }

    /// Tells whether fixed areas are without their space.
    pub fn lacks_fixed(&self) -> bool {
        self.lacks_fixed.load(Ordering::Relaxed)
    }
}

impl Pool {
    /// Takes the space that the fixed areas are still without.
    pub(crate) fn take_lacking_space(&self) {
        if !self.host.lacks_fixed() {
            return;
        }
        let geometry = read(&self.state).geometry;
        if take_fixed_areas(&*self.device, &geometry).is_ok() {
            self.host.lacks_fixed.store(false, Ordering::Relaxed);
            tracing::info!(pool = %self.options.name, "the pool's log and bitmap have their space now");
        }
    }
}
