//! An open pool: the blocking, thread-safe face of the engine.

use std::sync::Arc;

use quarry_contract::{
    DriverError, Durability, IoError, OpenMode, Outcome, PoolStatus, SnapshotId, SnapshotInfo, SnapshotSpec,
    VersionId, VolumeId, VolumeInfo, VolumeSpec, ZeroMode,
};

use crate::plan::Planned;
use crate::{FormatOptions, OpenOptions, PoolDevice, PoolError};

/// An open pool. All calls may be made from any thread; none needs an async runtime.
pub struct Pool {
    options: OpenOptions,
}

/// What a maintenance step left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Maintenance {
    /// Another step would find work now.
    pub more: bool,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// One sentence for each violation; empty when the pool is sound.
    pub problems: Vec<String>,
    /// Chunks that hold data.
    pub data_chunks: u64,
    /// Chunks that hold map pages.
    pub metadata_chunks: u64,
    /// Map pages in use on the medium, both copies counted.
    pub metadata_pages: u64,
}

/// A volume or snapshot, open for I/O. Dropping the last reference closes it.
pub struct VersionHandle {
    pool: Arc<Pool>,
}

const NOT_BUILT: &str = "the engine core is not merged yet";

fn stopped() -> DriverError {
    DriverError::Internal {
        detail: NOT_BUILT.into(),
    }
}

fn io_stopped() -> IoError {
    IoError::Stopped {
        reason: NOT_BUILT.into(),
    }
}

impl Pool {
    /// Writes an empty pool onto a device that holds none.
    ///
    /// # Errors
    /// `InvalidOption` for a bad geometry or a device too small; `AlreadyAPool`; `Device`.
    pub fn format(device: &dyn PoolDevice, options: &FormatOptions) -> Result<(), PoolError> {
        let _ = (device, options);
        Err(PoolError::Stopped {
            reason: NOT_BUILT.into(),
        })
    }

    /// Opens a pool and recovers it.
    ///
    /// # Errors
    /// `NotAPool`, `Truncated`, `NewerFormat`, `Damaged`, `Device`.
    pub fn open(device: Arc<dyn PoolDevice>, options: OpenOptions) -> Result<Arc<Pool>, PoolError> {
        let _ = device;
        Ok(Arc::new(Pool { options }))
    }

    /// Returns the medium.
    pub fn device(&self) -> &Arc<dyn PoolDevice> {
        unreachable!("{NOT_BUILT}: {}", self.options.name)
    }

    /// Returns the pool's state and capacity.
    pub fn status(&self) -> PoolStatus {
        unreachable!("{NOT_BUILT}")
    }

    /// Creates a volume (contract V1, V2).
    ///
    /// # Errors
    /// As [`VolumeBackend::create_volume`](quarry_contract::VolumeBackend::create_volume).
    pub fn create_volume(&self, spec: &VolumeSpec) -> Result<Outcome<VolumeInfo>, DriverError> {
        let _ = spec;
        Err(stopped())
    }

    /// Returns one volume.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn volume(&self, id: VolumeId) -> Result<VolumeInfo, DriverError> {
        let _ = id;
        Err(stopped())
    }

    /// Returns all volumes, ordered by id.
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        Vec::new()
    }

    /// Grows a volume.
    ///
    /// # Errors
    /// As [`VolumeBackend::extend_volume`](quarry_contract::VolumeBackend::extend_volume).
    pub fn extend_volume(&self, id: VolumeId, size_bytes: u64) -> Result<Outcome<VolumeInfo>, DriverError> {
        let _ = (id, size_bytes);
        Err(stopped())
    }

    /// Makes a volume's contents equal to one of its snapshots'.
    ///
    /// # Errors
    /// As [`VolumeBackend::revert_volume`](quarry_contract::VolumeBackend::revert_volume).
    pub fn revert_volume(
        &self,
        id: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<Outcome<VolumeInfo>, DriverError> {
        let _ = (id, snapshot);
        Err(stopped())
    }

    /// Deletes a volume; its space comes back by [`maintain`](Self::maintain).
    ///
    /// # Errors
    /// `Busy` when it is open.
    pub fn delete_volume(&self, id: VolumeId) -> Result<Outcome<()>, DriverError> {
        let _ = id;
        Err(stopped())
    }

    /// Takes snapshots at one point in time.
    ///
    /// # Errors
    /// As [`VolumeBackend::create_snapshots`](quarry_contract::VolumeBackend::create_snapshots).
    pub fn create_snapshots(
        &self,
        group: &[SnapshotSpec],
    ) -> Result<Outcome<Vec<SnapshotInfo>>, DriverError> {
        let _ = group;
        Err(stopped())
    }

    /// Returns one snapshot.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn snapshot(&self, id: SnapshotId) -> Result<SnapshotInfo, DriverError> {
        let _ = id;
        Err(stopped())
    }

    /// Returns all snapshots, ordered by id.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        Vec::new()
    }

    /// Deletes a snapshot; its space comes back by [`maintain`](Self::maintain).
    ///
    /// # Errors
    /// `Busy` when it is open.
    pub fn delete_snapshot(&self, id: SnapshotId) -> Result<Outcome<()>, DriverError> {
        let _ = id;
        Err(stopped())
    }

    /// Opens a volume or snapshot for I/O: at most one read-write handle of a volume.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `InvalidArgument` for a writable snapshot.
    pub fn open_version(
        self: &Arc<Self>,
        id: VersionId,
        mode: OpenMode,
    ) -> Result<Arc<VersionHandle>, DriverError> {
        let _ = (id, mode);
        Err(stopped())
    }

    /// Does one bounded step of background work: a checkpoint when one is due, a part of a deleted version's
    /// reclaim, a discard of freed chunks, eviction of clean map pages.
    ///
    /// # Errors
    /// What a commit or checkpoint hit; the pool has then stopped.
    pub fn maintain(&self) -> Result<Maintenance, PoolError> {
        Ok(Maintenance { more: false })
    }

    /// Makes everything durable in its place, so that the log is empty.
    ///
    /// # Errors
    /// What it hit; the pool has then stopped.
    pub fn checkpoint(&self) -> Result<(), PoolError> {
        Ok(())
    }

    /// Verifies exactly-once ownership of every chunk and map page, the chunk bitmap and all checksums.
    ///
    /// # Errors
    /// When the medium cannot be read.
    pub fn check(&self) -> Result<CheckReport, PoolError> {
        Ok(CheckReport::default())
    }

    /// Commits, checkpoints and refuses everything afterwards.
    ///
    /// # Errors
    /// What the checkpoint hit.
    pub fn close(&self) -> Result<(), PoolError> {
        Ok(())
    }
}

impl VersionHandle {
    /// Returns the pool.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Returns the size in bytes, as of now.
    pub fn size_bytes(&self) -> u64 {
        0
    }

    /// Tells whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        true
    }

    /// Looks up a read without blocking. The range must be inside the volume; else `NeedsSlowPath`, which then
    /// says what is wrong.
    pub fn plan_read(&self, offset: u64, length: usize) -> Planned {
        let _ = (offset, length);
        Planned::NeedsSlowPath
    }

    /// Looks up a write that changes no mapping, without blocking.
    pub fn plan_overwrite(&self, offset: u64, length: usize) -> Planned {
        let _ = (offset, length);
        Planned::NeedsSlowPath
    }

    /// Reads. Blocks.
    ///
    /// # Errors
    /// `OutOfRange`, `Misaligned`, `Medium`, `Closed`.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), IoError> {
        let _ = (offset, buffer);
        Err(io_stopped())
    }

    /// Writes. Blocks.
    ///
    /// # Errors
    /// `OutOfRange`, `Misaligned`, `ReadOnly`, `NoSpace`, `Medium`, `Stopped`, `Closed`.
    pub fn write(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), IoError> {
        let _ = (offset, data, durability);
        Err(io_stopped())
    }

    /// Makes completed writes durable, in one commit shared with all who wait. Blocks.
    ///
    /// # Errors
    /// `Stopped`, `Closed`.
    pub fn flush(&self) -> Result<(), IoError> {
        Err(io_stopped())
    }

    /// Gives the space of a range back. Blocks.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn discard(&self, offset: u64, length: u64) -> Result<(), IoError> {
        let _ = (offset, length);
        Err(io_stopped())
    }

    /// Makes a range read zero. Blocks.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), IoError> {
        let _ = (offset, length, mode);
        Err(io_stopped())
    }
}
