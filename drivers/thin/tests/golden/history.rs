//! The history that every golden image holds, played on a pool or on a model. It must never change.

use std::collections::BTreeMap;
use std::sync::Arc;

use quarry_contract::{
    DataSource, Durability, OpenMode, SnapshotId, SnapshotSpec, VersionId, VolumeId, VolumeKey, VolumeSpec,
};
use quarry_thin::{Pool, VersionHandle};
use uuid::Uuid;

const KIB: usize = 1 << 10;

/// What a history is played on. Numbers name volumes and snapshots.
pub trait Subject {
    fn create(&mut self, volume: u128, kib: usize);
    fn clone_snapshot(&mut self, volume: u128, snapshot: u128, kib: usize);
    fn clone_volume(&mut self, volume: u128, source: u128);
    fn write(&mut self, volume: u128, offset_kib: usize, kib: usize, seed: u8);
    fn discard(&mut self, volume: u128, offset_kib: usize, kib: usize);
    fn snapshot(&mut self, snapshot: u128, volume: u128);
    fn delete_snapshot(&mut self, snapshot: u128);
    fn extend(&mut self, volume: u128, kib: usize);
    fn revert(&mut self, volume: u128, snapshot: u128);
    /// What comes before is in a checkpoint, what comes after in the log.
    fn checkpoint(&mut self);
}

/// Plays the history.
pub fn play(subject: &mut impl Subject) {
    subject.create(1, 1024);
    subject.write(1, 0, 256, 1);
    subject.snapshot(11, 1);
    subject.write(1, 32, 64, 2);
    subject.write(1, 512, 4, 3);
    subject.snapshot(12, 1);
    subject.create(4, 256);
    subject.write(4, 0, 32, 40);
    subject.snapshot(14, 4);
    subject.checkpoint();
    subject.discard(1, 0, 16);
    subject.write(1, 100, 4, 4);
    subject.clone_snapshot(2, 11, 2048);
    subject.write(2, 1536, 8, 5);
    subject.write(2, 0, 4, 6);
    subject.clone_volume(3, 1);
    subject.write(3, 64, 16, 7);
    subject.extend(3, 1536);
    subject.write(3, 1500, 20, 8);
    subject.write(4, 0, 64, 41);
    subject.revert(4, 14);
    subject.write(4, 128, 4, 42);
    subject.delete_snapshot(11);
}

fn bytes(kib: usize, seed: u8) -> Vec<u8> {
    // Differs in every sector, so that a wrong place shows.
    (0..kib * KIB)
        .map(|at| seed ^ (at / 512) as u8 ^ (at % 251) as u8)
        .collect()
}

fn volume_id(number: u128) -> VolumeId {
    VolumeId(Uuid::from_u128(number))
}

fn snapshot_id(number: u128) -> SnapshotId {
    SnapshotId(Uuid::from_u128(number))
}

/// What the pool must hold.
#[derive(Default)]
pub struct Model {
    volumes: BTreeMap<u128, Vec<u8>>,
    snapshots: BTreeMap<u128, Vec<u8>>,
}

impl Model {
    fn volume(&mut self, number: u128) -> &mut Vec<u8> {
        self.volumes.get_mut(&number).unwrap()
    }

    /// Compares a pool with the model.
    pub fn compare(&self, pool: &Arc<Pool>, name: &str) {
        assert_eq!(pool.volumes().len(), self.volumes.len(), "{name}");
        assert_eq!(pool.snapshots().len(), self.snapshots.len(), "{name}");
        let volumes = self
            .volumes
            .iter()
            .map(|(number, bytes)| (VersionId::Volume(volume_id(*number)), bytes));
        let snapshots = self
            .snapshots
            .iter()
            .map(|(number, bytes)| (VersionId::Snapshot(snapshot_id(*number)), bytes));
        for (id, expected) in volumes.chain(snapshots) {
            let handle = pool.open_version(id, OpenMode::ReadOnly).unwrap();
            assert_eq!(handle.size_bytes(), expected.len() as u64, "{name}: {id:?}");
            let mut found = vec![0xa5; expected.len()];
            handle.read(0, &mut found).unwrap();
            let wrong = found.iter().zip(expected).position(|(a, b)| a != b);
            assert_eq!(wrong, None, "{name}: {id:?} differs at this byte");
        }
    }
}

impl Subject for Model {
    fn create(&mut self, volume: u128, kib: usize) {
        self.volumes.insert(volume, vec![0; kib * KIB]);
    }

    fn clone_snapshot(&mut self, volume: u128, snapshot: u128, kib: usize) {
        let mut bytes = self.snapshots[&snapshot].clone();
        bytes.resize(kib * KIB, 0);
        self.volumes.insert(volume, bytes);
    }

    fn clone_volume(&mut self, volume: u128, source: u128) {
        let bytes = self.volumes[&source].clone();
        self.volumes.insert(volume, bytes);
    }

    fn write(&mut self, volume: u128, offset_kib: usize, kib: usize, seed: u8) {
        let range = offset_kib * KIB..(offset_kib + kib) * KIB;
        self.volume(volume)[range].copy_from_slice(&bytes(kib, seed));
    }

    fn discard(&mut self, volume: u128, offset_kib: usize, kib: usize) {
        self.volume(volume)[offset_kib * KIB..(offset_kib + kib) * KIB].fill(0);
    }

    fn snapshot(&mut self, snapshot: u128, volume: u128) {
        let bytes = self.volumes[&volume].clone();
        self.snapshots.insert(snapshot, bytes);
    }

    fn delete_snapshot(&mut self, snapshot: u128) {
        self.snapshots.remove(&snapshot);
    }

    fn extend(&mut self, volume: u128, kib: usize) {
        self.volume(volume).resize(kib * KIB, 0);
    }

    fn revert(&mut self, volume: u128, snapshot: u128) {
        let bytes = self.snapshots[&snapshot].clone();
        self.volumes.insert(volume, bytes);
    }

    fn checkpoint(&mut self) {}
}

/// A pool that the history is played on.
pub struct PoolSubject {
    pool: Arc<Pool>,
    /// With a key, blank volumes are encrypted, and so is what is made of them.
    pub key: Option<VolumeKey>,
    /// Whether blank volumes have checksums, and what is made of them.
    pub checksums: bool,
}

impl PoolSubject {
    pub fn of(pool: Arc<Pool>) -> Self {
        Self {
            pool,
            key: None,
            checksums: false,
        }
    }

    fn open(&self, volume: u128) -> Arc<VersionHandle> {
        let id = VersionId::Volume(volume_id(volume));
        self.pool.open_version(id, OpenMode::ReadWrite).unwrap()
    }

    fn create_from(&self, volume: u128, size_bytes: u64, source: DataSource) {
        let spec = VolumeSpec {
            checksums: self.checksums && source == DataSource::Blank,
            ..VolumeSpec::new(volume_id(volume), size_bytes, source)
        };
        match (&self.key, source) {
            (Some(key), DataSource::Blank) => self.pool.create_encrypted_volume(&spec, key),
            _ => self.pool.create_volume(&spec),
        }
        .unwrap();
    }
}

impl Subject for PoolSubject {
    fn create(&mut self, volume: u128, kib: usize) {
        self.create_from(volume, (kib * KIB) as u64, DataSource::Blank);
    }

    fn clone_snapshot(&mut self, volume: u128, snapshot: u128, kib: usize) {
        let source = DataSource::Snapshot(snapshot_id(snapshot));
        self.create_from(volume, (kib * KIB) as u64, source);
    }

    fn clone_volume(&mut self, volume: u128, source: u128) {
        let size_bytes = self.pool.volume(volume_id(source)).unwrap().size_bytes;
        self.create_from(volume, size_bytes, DataSource::Volume(volume_id(source)));
    }

    fn write(&mut self, volume: u128, offset_kib: usize, kib: usize, seed: u8) {
        let offset = (offset_kib * KIB) as u64;
        let handle = self.open(volume);
        handle
            .write(offset, &bytes(kib, seed), Durability::Flushed)
            .unwrap();
    }

    fn discard(&mut self, volume: u128, offset_kib: usize, kib: usize) {
        let handle = self.open(volume);
        handle
            .discard((offset_kib * KIB) as u64, (kib * KIB) as u64)
            .unwrap();
        handle.flush().unwrap();
    }

    fn snapshot(&mut self, snapshot: u128, volume: u128) {
        let spec = SnapshotSpec {
            id: snapshot_id(snapshot),
            volume: volume_id(volume),
        };
        self.pool.create_snapshots(&[spec]).unwrap();
    }

    fn delete_snapshot(&mut self, snapshot: u128) {
        self.pool.delete_snapshot(snapshot_id(snapshot)).unwrap();
    }

    fn extend(&mut self, volume: u128, kib: usize) {
        self.pool
            .extend_volume(volume_id(volume), (kib * KIB) as u64)
            .unwrap();
    }

    fn revert(&mut self, volume: u128, snapshot: u128) {
        self.pool
            .revert_volume(volume_id(volume), snapshot_id(snapshot))
            .unwrap();
    }

    fn checkpoint(&mut self) {
        self.pool.checkpoint().unwrap();
    }
}
