//! A pool without room, reached at every allocation (contract B6, V8).

use std::sync::Arc;

use quarry_contract::{
    DataSource, Durability, IoError, OpenMode, SnapshotId, SnapshotSpec, VersionId, VolumeId, VolumeSpec,
    ZeroMode,
};
use quarry_thin::sim::{SimDevice, Stamp};
use quarry_thin::{FormatOptions, OpenOptions, Pool, VersionHandle};

const CHUNK: u64 = 16 << 10;

struct Tight {
    device: Arc<SimDevice>,
    pool: Arc<Pool>,
    handle: Arc<VersionHandle>,
}

fn volume_id(number: u128) -> VolumeId {
    VolumeId(uuid::Uuid::from_u128(number))
}

fn create(pool: &Arc<Pool>, number: u128) -> Arc<VersionHandle> {
    let spec = VolumeSpec::new(volume_id(number), 1 << 30, DataSource::Blank);
    pool.create_volume(&spec).expect("creating a volume");
    let id = VersionId::Volume(spec.id);
    pool.open_version(id, OpenMode::ReadWrite).expect("opening it")
}

fn snapshot(pool: &Arc<Pool>, number: u128, volume: u128) {
    let spec = SnapshotSpec {
        id: SnapshotId(uuid::Uuid::from_u128(number)),
        volume: volume_id(volume),
    };
    pool.create_snapshots(&[spec]).expect("taking a snapshot");
}

impl Tight {
    fn new(seed: u64) -> Self {
        let device = SimDevice::new((64 + seed % 5) * CHUNK + (64 << 10), seed);
        let options = FormatOptions {
            chunk_bytes: CHUNK as u32,
            log_bytes: 64 << 10,
            ..FormatOptions::default()
        };
        Pool::format(device.as_ref(), &options).expect("formatting");
        let pool = Pool::open(device.clone(), OpenOptions::default()).expect("opening");
        let handle = create(&pool, 1);
        Self { device, pool, handle }
    }

    /// Maps chunks 0, 1, … until the pool refuses; returns how many fitted.
    fn fill(&self, limit: u64) -> u64 {
        for index in 0..limit {
            match self
                .handle
                .write(index * CHUNK, &bytes(index, 0), Durability::Cached)
            {
                Ok(()) => {}
                Err(IoError::NoSpace) => return index,
                Err(error) => panic!("B6: mapping chunk {index} of a filling pool: {error}"),
            }
        }
        limit
    }

    fn assert_chunk(&self, handle: &VersionHandle, index: u64, expected: &[u8], when: &str) {
        let mut found = vec![0xa5; CHUNK as usize];
        handle
            .read(index * CHUNK, &mut found)
            .unwrap_or_else(|error| panic!("{when}: reading chunk {index}: {error}"));
        assert!(
            found == expected,
            "{when}: chunk {index} is not what it should be"
        );
    }

    fn assert_sound(&self, when: &str) {
        let report = self.pool.check().expect("check");
        assert!(report.problems.is_empty(), "{when}: {:?}", report.problems);
    }

    fn reclaim(&self) {
        for _ in 0..2 {
            while self.pool.maintain().expect("maintenance").more {}
            self.pool.checkpoint().expect("a checkpoint in a full pool");
        }
    }
}

fn bytes(index: u64, version: u64) -> Vec<u8> {
    Stamp(1 + index * 16 + version).bytes(index * CHUNK, CHUNK as usize)
}

#[test]
fn a_refused_write_leaves_no_trace_and_mapped_chunks_stay_writable() {
    let tight = Tight::new(0);
    let fitted = tight.fill(1000);
    assert!(fitted > 8, "only {fitted} chunks fitted");
    let before = tight.pool.volume(volume_id(1)).unwrap();
    let status = tight.pool.status();
    for index in [fitted, fitted + 1, 40_000] {
        for (offset, length) in [(0, CHUNK), (4096, 4096), (512, 512)] {
            let at = index * CHUNK + offset;
            let data = Stamp(999).bytes(at, length as usize);
            for durability in [Durability::Cached, Durability::Flushed] {
                let refused = tight.handle.write(at, &data, durability);
                assert!(matches!(refused, Err(IoError::NoSpace)), "B6: {refused:?}");
            }
        }
        tight.assert_chunk(
            &tight.handle,
            index,
            &vec![0; CHUNK as usize],
            "B6: a refused write",
        );
    }
    assert_eq!(tight.pool.volume(volume_id(1)).unwrap(), before, "B6: no trace");
    assert_eq!(tight.pool.status(), status, "B6: no trace");
    for index in 0..fitted {
        let data = bytes(index, 1);
        tight
            .handle
            .write(index * CHUNK, &data, Durability::Cached)
            .unwrap_or_else(|error| panic!("V8: overwriting chunk {index}: {error}"));
    }
    tight.handle.flush().expect("V8: a flush of a full pool");
    for round in 0..50 {
        let at = round % fitted * CHUNK + 512;
        let data = Stamp(500).bytes(at, 512);
        tight
            .handle
            .write(at, &data, Durability::Flushed)
            .unwrap_or_else(|error| panic!("V8: overwrite {round}: {error}"));
        tight
            .handle
            .write(
                round % fitted * CHUNK,
                &bytes(round % fitted, 1),
                Durability::Cached,
            )
            .expect("V8: overwriting");
    }
    tight
        .handle
        .write_zeroes(0, CHUNK, ZeroMode::KeepMapped)
        .expect("V8: zeroing a mapped chunk");
    tight.pool.checkpoint().expect("V8: a checkpoint of a full pool");
    tight.assert_sound("full");
    for index in 1..fitted {
        tight.assert_chunk(&tight.handle, index, &bytes(index, 1), "V8: full");
    }
}

#[test]
fn a_write_that_finds_room_for_a_part_leaves_each_block_old_or_new() {
    let tight = Tight::new(0);
    let fitted = tight.fill(1000);
    tight.handle.discard(0, 2 * CHUNK).expect("V8: discard");
    tight.handle.flush().expect("V8: flush");
    // Room for two chunks at most, asked for six.
    let start = fitted * CHUNK;
    let data = Stamp(7).bytes(start, 6 * CHUNK as usize);
    let refused = tight.handle.write(start, &data, Durability::Cached);
    assert!(matches!(refused, Err(IoError::NoSpace)), "{refused:?}");
    let mut found = vec![0xa5; data.len()];
    tight.handle.read(start, &mut found).unwrap();
    for (index, sector) in found.chunks(512).enumerate() {
        let zero = sector.iter().all(|byte| *byte == 0);
        assert!(
            zero || *sector == data[index * 512..(index + 1) * 512],
            "B6: sector {index}"
        );
    }
    tight.assert_sound("after a part");
}

/// The pool is brought to every level of fullness, snapshotted, and overwritten until it refuses.
#[test]
fn copy_on_write_is_refused_whole_and_space_comes_back_at_every_level() {
    for level in 1..80 {
        let tight = Tight::new(level);
        let fitted = tight.fill(level);
        if fitted < level {
            break;
        }
        tight.handle.flush().expect("V8: flush");
        snapshot(&tight.pool, 100, 1);
        let mut copied = 0;
        for index in 0..level {
            let at = index * CHUNK + 4096;
            match tight
                .handle
                .write(at, &Stamp(9000).bytes(at, 4096), Durability::Cached)
            {
                Ok(()) => copied += 1,
                Err(IoError::NoSpace) => {
                    tight.assert_chunk(&tight.handle, index, &bytes(index, 0), "B6: a refused copy");
                }
                Err(error) => panic!("B6: level {level}, chunk {index}: {error}"),
            }
        }
        tight.assert_sound("copied as far as it went");
        let id = VersionId::Snapshot(SnapshotId(uuid::Uuid::from_u128(100)));
        let view = tight
            .pool
            .open_version(id, OpenMode::ReadOnly)
            .expect("opening a snapshot");
        for index in 0..level {
            tight.assert_chunk(&view, index, &bytes(index, 0), "V4: the snapshot in a full pool");
        }
        drop(view);
        // All of it goes and comes back, in a pool as full as it can be.
        tight.fill_elsewhere();
        let snapshot = SnapshotId(uuid::Uuid::from_u128(100));
        tight
            .pool
            .delete_snapshot(snapshot)
            .expect("V8: deleting a snapshot");
        tight.handle.flush().expect("V8: flush");
        tight.reclaim();
        if copied > 0 {
            let at = 50_000 * CHUNK;
            tight
                .handle
                .write(at, &Stamp(1).bytes(at, CHUNK as usize), Durability::Flushed)
                .unwrap_or_else(|error| panic!("V8: level {level}: writing after a delete: {error}"));
        }
        tight.assert_sound("after the delete");
        let Tight { device, pool, handle } = tight;
        drop(handle);
        pool.delete_volume(volume_id(1)).expect("V8: deleting a volume");
        drop(pool);
        let pool = Pool::open(device.power_cycle(), OpenOptions::default()).expect("recovery of a full pool");
        let handle = create(&pool, 2);
        let tight = Tight { device, pool, handle };
        tight.reclaim();
        tight.assert_sound("emptied");
        assert!(tight.fill(level) == level, "V8: level {level}: the space is back");
    }
}

impl Tight {
    fn fill_elsewhere(&self) {
        let handle = match self.pool.volume(volume_id(3)) {
            Ok(_) => return,
            Err(_) => create(&self.pool, 3),
        };
        for index in 0..1000 {
            if handle
                .write(index * CHUNK, &bytes(index, 2), Durability::Cached)
                .is_err()
            {
                break;
            }
        }
    }
}

/// Discard gives room at every place, also of what a snapshot shares.
#[test]
fn discards_in_a_full_pool_work_and_give_room() {
    let tight = Tight::new(0);
    let fitted = tight.fill(1000);
    for index in 0..fitted {
        tight
            .handle
            .discard(index * CHUNK, CHUNK)
            .unwrap_or_else(|error| panic!("V8: discarding chunk {index}: {error}"));
        let mut found = vec![0xa5; CHUNK as usize];
        tight.handle.read(index * CHUNK, &mut found).expect("V8: read");
        assert!(
            found.iter().all(|byte| *byte == 0),
            "B4: nobody shares chunk {index}"
        );
        tight.handle.flush().expect("V8: flush");
        let at = (10_000 + index * 700) * CHUNK;
        // Another leaf each time: what the map needs must have been kept back.
        match tight
            .handle
            .write(at, &Stamp(5).bytes(at, CHUNK as usize), Durability::Flushed)
        {
            Ok(()) | Err(IoError::NoSpace) => {}
            Err(error) => panic!("V8: after discard {index}: {error}"),
        }
        if index % 8 == 0 {
            tight.assert_sound("discarding");
        }
    }
    tight.reclaim();
    tight.assert_sound("discarded");
}

/// What zeros would take a chunk is left, and zeroed when it is asked for again and there is space.
#[test]
fn a_discard_of_a_part_of_what_a_snapshot_shares_is_not_refused_in_a_full_pool() {
    let tight = Tight::new(0);
    let fitted = tight.fill(1000);
    snapshot(&tight.pool, 100, 1);
    let holds = |index: u64| {
        let mut found = vec![0xa5; CHUNK as usize];
        tight.handle.read(index * CHUNK, &mut found).expect("V8: read");
        found
    };
    let before: Vec<Vec<u8>> = (0..fitted).map(holds).collect();
    for index in 0..fitted {
        let at = index * CHUNK + 512;
        tight.handle.discard(at, 4096).expect("V8: a discard of a part");
        let zeros = tight.handle.write_zeroes(at, 4096, ZeroMode::MayUnmap);
        assert!(matches!(zeros, Err(IoError::NoSpace)), "{zeros:?}");
        assert!(holds(index) == before[index as usize], "chunk {index}");
    }
    // Parts at both ends, and all between them.
    tight
        .handle
        .discard(CHUNK + 512, (fitted - 2) * CHUNK)
        .expect("V8: discard");
    assert!(holds(1)[512..] == before[1][512..]);
    assert!((2..fitted - 1).all(|index| holds(index).iter().all(|byte| *byte == 0)));
    tight.assert_sound("discarded in part");
    let id = SnapshotId(uuid::Uuid::from_u128(100));
    tight.pool.delete_snapshot(id).expect("V8: delete");
    tight.reclaim();
    tight.handle.discard(512, 4096).expect("discard");
    assert!(holds(0)[512..4608].iter().all(|byte| *byte == 0));
}

/// A pool full of the map pages of many small writes far apart.
#[test]
fn a_pool_full_of_sparse_writes_still_checkpoints_and_deletes() {
    let tight = Tight::new(3);
    let mut written = 0;
    for index in 0..2000u64 {
        let at = index * 513 * CHUNK % (1 << 30);
        match tight
            .handle
            .write(at, &Stamp(5).bytes(at, 512), Durability::Cached)
        {
            Ok(()) => written += 1,
            Err(IoError::NoSpace) => break,
            Err(error) => panic!("V8: sparse write {index}: {error}"),
        }
        if index % 7 == 0 {
            tight.pool.checkpoint().expect("V8: a checkpoint");
        }
    }
    assert!(written > 4, "only {written} sparse writes fitted");
    snapshot(&tight.pool, 100, 1);
    let mut failed = 0;
    for index in 0..written {
        let at = index * 513 * CHUNK % (1 << 30);
        if tight
            .handle
            .write(at, &Stamp(6).bytes(at, 512), Durability::Cached)
            .is_err()
        {
            failed += 1;
        }
    }
    tight.pool.checkpoint().expect("V8: a checkpoint");
    tight.assert_sound(&format!("{failed} copies refused"));
    drop(tight.handle);
    tight.pool.delete_volume(volume_id(1)).expect("V8: delete");
    let snapshot = SnapshotId(uuid::Uuid::from_u128(100));
    tight.pool.delete_snapshot(snapshot).expect("V8: delete");
    for _ in 0..2 {
        while tight.pool.maintain().expect("maintenance").more {}
        tight.pool.checkpoint().expect("a checkpoint");
    }
    let report = tight.pool.check().expect("check");
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    assert_eq!(report.data_chunks, 0, "V8: everything came back");
    assert!(!tight.device.is_cut());
}
