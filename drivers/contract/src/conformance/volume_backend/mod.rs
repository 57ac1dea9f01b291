//! What every [`VolumeBackend`] promises (V1 to V11).
//!
//! The checks are grouped by what they are about: `objects` (V1, errors, lists), `versions` (V4, V5, revert and
//! clone), `openings` (V7 and handles), `space` (V6, V8), `differences` (V9), `endurance`
//! (V2, V3, V10, V11), `encryption` (K1 to K4).

mod differences;
mod encryption;
mod endurance;
mod objects;
mod openings;
mod space;
mod versions;

use std::sync::Arc;

use super::{block_on, eventually};
use crate::{
    BlockDevice, BlockingQueue, DataSource, DriverError, OpenMode, Outcome, PoolStatus, SnapshotId,
    SnapshotInfo, SnapshotSpec, VersionId, VolumeBackend, VolumeId, VolumeInfo, VolumeSpec,
};

/// How the suite gets pools.
pub trait BackendFixture {
    /// Makes an empty pool that can hold between 32 MiB and 512 MiB of data.
    fn fresh(&mut self) -> Arc<dyn VolumeBackend>;

    /// Cuts the power and brings the pool back with what is durable; `None` for a driver that keeps nothing.
    fn power_cut(&mut self, backend: Arc<dyn VolumeBackend>) -> Option<Arc<dyn VolumeBackend>>;
}

/// Runs every check.
///
/// # Panics
/// When the backend breaks its contract; the message begins with the clause.
pub fn run(fixture: &mut dyn BackendFixture) {
    objects::run(fixture);
    versions::run(fixture);
    openings::run(fixture);
    space::run(fixture);
    differences::run(fixture);
    encryption::run(fixture);
    endurance::run(fixture);
}

const MIB: u64 = 1 << 20;

/// A backend with blocking calls and names that are numbers.
struct Subject {
    backend: Arc<dyn VolumeBackend>,
}

fn volume_id(number: u64) -> VolumeId {
    VolumeId(uuid::Uuid::from_u128(0x7000_0000 + u128::from(number)))
}

fn snapshot_id(number: u64) -> SnapshotId {
    SnapshotId(uuid::Uuid::from_u128(0x5000_0000 + u128::from(number)))
}

impl Subject {
    fn fresh(fixture: &mut dyn BackendFixture) -> Self {
        Self {
            backend: fixture.fresh(),
        }
    }

    fn status(&self) -> PoolStatus {
        block_on(self.backend.pool_status()).expect("pool_status")
    }

    fn create(
        &self,
        number: u64,
        size_bytes: u64,
        source: DataSource,
    ) -> Result<Outcome<VolumeInfo>, DriverError> {
        block_on(
            self.backend
                .create_volume(&VolumeSpec::new(volume_id(number), size_bytes, source)),
        )
    }

    fn blank(&self, number: u64, size_bytes: u64) -> VolumeInfo {
        let outcome = self
            .create(number, size_bytes, DataSource::Blank)
            .unwrap_or_else(|error| panic!("V1: creating volume {number} of {size_bytes} bytes: {error}"));
        assert!(outcome.is_changed(), "V1: creating a new volume is Changed");
        outcome.into_inner()
    }

    fn clone_of(&self, number: u64, size_bytes: u64, source: DataSource) {
        let outcome = self
            .create(number, size_bytes, source)
            .unwrap_or_else(|error| panic!("V1: creating volume {number} from {source:?}: {error}"));
        assert!(outcome.is_changed(), "V1: creating a new clone is Changed");
    }

    fn snapshot(&self, number: u64, volume: u64) -> SnapshotInfo {
        let mut infos = self
            .snapshots(&[(number, volume)])
            .unwrap_or_else(|error| panic!("V4: snapshot {number} of volume {volume}: {error}"))
            .into_inner();
        assert_eq!(infos.len(), 1, "V4: one snapshot asked for");
        infos.remove(0)
    }

    fn snapshots(&self, group: &[(u64, u64)]) -> Result<Outcome<Vec<SnapshotInfo>>, DriverError> {
        let group: Vec<SnapshotSpec> = group
            .iter()
            .map(|(snapshot, volume)| SnapshotSpec {
                id: snapshot_id(*snapshot),
                volume: volume_id(*volume),
            })
            .collect();
        block_on(self.backend.create_snapshots(&group))
    }

    fn extend(&self, number: u64, size_bytes: u64) -> Result<Outcome<VolumeInfo>, DriverError> {
        block_on(self.backend.extend_volume(volume_id(number), size_bytes))
    }

    fn reserve(&self, number: u64, reserved: bool) -> Result<Outcome<VolumeInfo>, DriverError> {
        block_on(self.backend.reserve_volume(volume_id(number), reserved))
    }

    fn revert(&self, number: u64, snapshot: u64) -> Result<Outcome<VolumeInfo>, DriverError> {
        block_on(
            self.backend
                .revert_volume(volume_id(number), snapshot_id(snapshot)),
        )
    }

    fn delete(&self, number: u64) -> Result<Outcome<()>, DriverError> {
        block_on(self.backend.delete_volume(volume_id(number)))
    }

    fn delete_snapshot(&self, number: u64) -> Result<Outcome<()>, DriverError> {
        block_on(self.backend.delete_snapshot(snapshot_id(number)))
    }

    fn device(&self, id: VersionId, mode: OpenMode) -> Result<Arc<dyn BlockDevice>, DriverError> {
        block_on(self.backend.open(id, mode))
    }

    /// Opens a volume for writing.
    fn writer(&self, number: u64) -> BlockingQueue {
        let device = self
            .device(VersionId::Volume(volume_id(number)), OpenMode::ReadWrite)
            .unwrap_or_else(|error| panic!("V7: opening volume {number}: {error}"));
        BlockingQueue::open(&device).expect("opening a queue")
    }

    /// Returns all that a volume holds.
    fn contents(&self, number: u64) -> Vec<u8> {
        self.contents_of(VersionId::Volume(volume_id(number)))
    }

    /// Returns all that a snapshot holds.
    fn snapshot_contents(&self, number: u64) -> Vec<u8> {
        self.contents_of(VersionId::Snapshot(snapshot_id(number)))
    }

    fn contents_of(&self, id: VersionId) -> Vec<u8> {
        let device = self
            .device(id, OpenMode::ReadOnly)
            .unwrap_or_else(|error| panic!("V7: opening {id:?} for reading: {error}"));
        let mut queue = BlockingQueue::open(&device).expect("opening a queue");
        queue
            .read(0, device.size_bytes() as usize)
            .unwrap_or_else(|error| panic!("B1: reading {id:?}: {error}"))
    }

    /// Waits until everything deleted has come back.
    fn wait_for_space(&self, allocated_bytes: u64) {
        eventually(
            &format!("V3: allocated_bytes back at {allocated_bytes} after deletes"),
            || self.status().allocated_bytes <= allocated_bytes,
        );
    }
}
