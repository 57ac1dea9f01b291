//! Pools that were made before a feature: no older Quarry may meet it before a superblock tells it.

use std::sync::Arc;

use quarry_contract::{
    DataSource, Durability, OpenMode, SnapshotId, SnapshotSpec, VersionId, VolumeId, VolumeSpec,
};
use quarry_thin::sim::SimDevice;
use quarry_thin::{Pool, VersionHandle};

use crate::damage::{formatted, open, rewrite_superblocks};

const VOLUME: VolumeId = VolumeId(uuid::Uuid::from_u128(1));

struct OlderPool {
    device: Arc<SimDevice>,
    pool: Arc<Pool>,
    volume: Arc<VersionHandle>,
}

impl OlderPool {
    /// A pool with these features, and a volume.
    fn with(incompat: u64) -> Self {
        let device = formatted();
        rewrite_superblocks(&device, 56, &incompat.to_le_bytes());
        let pool = open(&device).expect("an older pool opens");
        let spec = VolumeSpec::new(VOLUME, 1 << 20, DataSource::Blank);
        pool.create_volume(&spec).unwrap();
        let volume = pool
            .open_version(VersionId::Volume(VOLUME), OpenMode::ReadWrite)
            .unwrap();
        Self { device, pool, volume }
    }

    /// Writes 4 KiB, and returns how many bytes that made the device write.
    fn written_by(&self, offset: u64, byte: u8) -> u64 {
        let before = self.device.counts().written_bytes;
        self.volume
            .write(offset, &[byte; 4096], Durability::Cached)
            .unwrap();
        self.device.counts().written_bytes - before
    }

    fn after_a_power_cut(self) -> Self {
        let Self { device, pool, volume } = self;
        drop((pool, volume));
        let device = device.power_cycle();
        let pool = open(&device).unwrap();
        let volume = pool
            .open_version(VersionId::Volume(VOLUME), OpenMode::ReadWrite)
            .unwrap();
        Self { device, pool, volume }
    }
}

#[test]
fn a_pool_from_before_partial_chunks_gets_them_with_its_first_checkpoint() {
    let older = OlderPool::with(0);
    let chunk_bytes = older.pool.chunk_bytes();
    assert_eq!(older.written_by(0, 7), chunk_bytes, "a whole chunk");
    older.pool.checkpoint().unwrap();
    assert_eq!(older.written_by(chunk_bytes, 7), 4096, "a part of one");
    older.pool.checkpoint().unwrap();
    let older = older.after_a_power_cut();
    let mut bytes = vec![0xa5; 2 * chunk_bytes as usize];
    older.volume.read(0, &mut bytes).unwrap();
    for (at, byte) in bytes.iter().enumerate() {
        let written = at as u64 % chunk_bytes < 4096;
        assert_eq!(*byte, if written { 7 } else { 0 }, "byte {at}");
    }
    assert!(older.pool.check().unwrap().problems.is_empty());
}

#[test]
fn a_pool_from_before_claims_commits_with_one_flush_after_its_first_checkpoint() {
    let partial_chunks_only = 1;
    let older = OlderPool::with(partial_chunks_only);
    let flushes_of_write = |offset| {
        let before = older.device.counts().flushes;
        older
            .volume
            .write(offset, &[7; 4096], Durability::Flushed)
            .unwrap();
        older.device.counts().flushes - before
    };
    assert_eq!(flushes_of_write(0), 2);
    older.pool.checkpoint().unwrap();
    assert_eq!(flushes_of_write(4096), 1);
}

#[test]
fn a_pool_from_before_partial_chunks_could_lend_lets_them_after_its_first_checkpoint() {
    let all_before = 7;
    let older = OlderPool::with(all_before);
    let mut snapshots = 0;
    let mut written_after_a_snapshot = |block: u64| {
        snapshots += 1;
        let id = SnapshotId(uuid::Uuid::from_u128(snapshots));
        let spec = SnapshotSpec { id, volume: VOLUME };
        older.pool.create_snapshots(&[spec]).unwrap();
        older.written_by(block * 4096, block as u8)
    };
    older.volume.write(0, &[9; 64 << 10], Durability::Cached).unwrap();
    assert_eq!(written_after_a_snapshot(1), 4096, "what lends is whole");
    assert_eq!(written_after_a_snapshot(2), 64 << 10, "a copy");
    assert_eq!(written_after_a_snapshot(3), 4096);
    older.pool.checkpoint().unwrap();
    assert_eq!(written_after_a_snapshot(4), 4096);
    let older = older.after_a_power_cut();
    assert!(older.pool.check().unwrap().problems.is_empty());
}

#[test]
fn a_pool_from_before_partial_chunks_could_lend_to_checksummed_ones_lets_them_after_its_first_checkpoint() {
    let device = formatted();
    let pool = open(&device).unwrap();
    let spec = VolumeSpec {
        checksums: true,
        ..VolumeSpec::new(VOLUME, 1 << 20, DataSource::Blank)
    };
    pool.create_volume(&spec).unwrap();
    pool.close().unwrap();
    drop(pool);
    let incompat = u64::from_le_bytes(device.peek(56, 8).try_into().unwrap());
    assert_eq!(incompat & 256, 256);
    rewrite_superblocks(&device, 56, &(incompat - 256).to_le_bytes());
    let pool = open(&device).unwrap();
    let volume = pool
        .open_version(VersionId::Volume(VOLUME), OpenMode::ReadWrite)
        .unwrap();
    let older = OlderPool { device, pool, volume };
    older.volume.write(0, &[9; 64 << 10], Durability::Cached).unwrap();
    for block in [0, 1] {
        assert_eq!(older.written_by(block * 4096, 1), 4096, "what lends is whole");
    }
    assert_eq!(older.written_by(0, 2), 2 * 4096, "what it holds is copied");
    // What an older Quarry logs means what it meant.
    older.volume.flush().unwrap();
    let older = older.after_a_power_cut();
    assert_eq!(older.written_by(4096, 3), 2 * 4096, "what it holds is copied");
    older.pool.checkpoint().unwrap();
    assert_eq!(older.written_by(0, 4), 4096);
    older.volume.flush().unwrap();
    let older = older.after_a_power_cut();
    let mut bytes = vec![0xa5; 64 << 10];
    older.volume.read(0, &mut bytes).unwrap();
    for (block, byte) in bytes.chunks(4096).zip([4, 3].into_iter().chain([9; 14])) {
        assert!(block.iter().all(|found| *found == byte), "{byte}");
    }
    assert!(older.pool.check().unwrap().problems.is_empty());
}
