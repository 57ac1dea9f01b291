//! How many flushes a FLUSH costs, and what may stand in the log until the next.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use quarry_contract::{
    DataSource, Durability, IoError, OpenMode, SnapshotId, SnapshotSpec, VersionId, VolumeId, VolumeSpec,
};
use quarry_thin::sim::{SimDevice, Stamp};
use quarry_thin::{
    DirectFile, FlushStep, FormatOptions, OpenOptions, Planned, PlannedFlush, Pool, PoolDevice, VersionHandle,
};
use uuid::Uuid;

const CHUNK: u64 = 64 << 10;
const VOLUME: VolumeId = VolumeId(Uuid::from_u128(1));

fn pool_with_volume() -> (Arc<SimDevice>, Arc<Pool>, Arc<VersionHandle>) {
    let device = SimDevice::new(64 << 20, 1);
    let format = FormatOptions {
        chunk_bytes: CHUNK as u32,
        log_bytes: 1 << 20,
        ..FormatOptions::default()
    };
    Pool::format(device.as_ref(), &format).unwrap();
    let pool = Pool::open(device.clone(), OpenOptions::default()).unwrap();
    let spec = VolumeSpec::new(VOLUME, 1 << 30, DataSource::Blank);
    pool.create_volume(&spec).unwrap();
    let handle = pool
        .open_version(VersionId::Volume(VOLUME), OpenMode::ReadWrite)
        .unwrap();
    (device, pool, handle)
}

fn write(handle: &VersionHandle, offset: u64, length: u64, stamp: u64) {
    let data = Stamp(stamp).bytes(offset, length as usize);
    handle.write(offset, &data, Durability::Cached).unwrap();
}

/// Returns how many flushes `call` costs.
fn flushes_of(device: &SimDevice, call: impl FnOnce()) -> u64 {
    let before = device.counts().flushes;
    call();
    device.counts().flushes - before
}

#[test]
fn a_flush_is_one_flush_whether_or_not_mappings_changed() {
    let (device, pool, handle) = pool_with_volume();
    let flush = || handle.flush().unwrap();
    write(&handle, 0, 4096, 1);
    assert_eq!(flushes_of(&device, flush), 1, "a part of an unmapped chunk");
    write(&handle, 4096, 4096, 2);
    assert_eq!(flushes_of(&device, flush), 1, "another part of it");
    write(&handle, 4 * CHUNK, 8 * CHUNK, 3);
    assert_eq!(flushes_of(&device, flush), 1, "whole chunks");
    handle.discard(4 * CHUNK, 2 * CHUNK).unwrap();
    assert_eq!(flushes_of(&device, flush), 1, "a discard");
    let id = SnapshotId(Uuid::from_u128(2));
    pool.create_snapshots(&[SnapshotSpec { id, volume: VOLUME }])
        .unwrap();
    write(&handle, 8 * CHUNK, 4096, 4);
    assert_eq!(flushes_of(&device, flush), 1, "over a snapshot");
    while pool.maintain().unwrap().more {}
    assert_eq!(flushes_of(&device, flush), 1, "what the background filled");
    assert_eq!(flushes_of(&device, flush), 1, "nothing");
}

#[test]
fn u2_a_block_is_overwritten_after_its_batch_is_settled_with_one_more_flush_once() {
    let (device, _pool, handle) = pool_with_volume();
    write(&handle, 0, CHUNK, 1);
    handle.flush().unwrap();
    assert!(matches!(handle.plan_write(4096, 4096), Planned::NeedsSlowPath));
    assert_eq!(flushes_of(&device, || write(&handle, 4096, 4096, 2)), 1);
    assert!(matches!(handle.plan_write(0, 4096), Planned::Direct(_)));
    assert_eq!(flushes_of(&device, || write(&handle, 0, 4096, 3)), 0);
    assert_eq!(flushes_of(&device, || handle.flush().unwrap()), 1);
    // A later batch settles it too.
    write(&handle, CHUNK, CHUNK, 4);
    handle.flush().unwrap();
    write(&handle, 2 * CHUNK, CHUNK, 5);
    handle.flush().unwrap();
    assert!(matches!(handle.plan_write(CHUNK, 4096), Planned::Direct(_)));
    assert!(matches!(
        handle.plan_write(2 * CHUNK, 4096),
        Planned::NeedsSlowPath
    ));
}

#[test]
fn u2_a_flush_of_nothing_and_an_idle_pool_settle_the_last_batch() {
    let (device, pool, handle) = pool_with_volume();
    let overwritable = || matches!(handle.plan_write(0, 4096), Planned::Direct(_));
    let maintain = || while pool.maintain().unwrap().more {};
    write(&handle, 0, CHUNK, 1);
    handle.flush().unwrap();
    assert!(!overwritable());
    assert_eq!(flushes_of(&device, || handle.flush().unwrap()), 1);
    assert!(overwritable());
    handle.discard(0, CHUNK).unwrap();
    write(&handle, 0, CHUNK, 2);
    handle.flush().unwrap();
    assert_eq!(flushes_of(&device, maintain), 0, "it may be going on");
    assert!(!overwritable());
    assert_eq!(flushes_of(&device, maintain), 1);
    assert!(overwritable());
    assert_eq!(flushes_of(&device, maintain), 0, "once is enough");
}

#[test]
fn u2_what_is_overwritten_before_its_batch_is_written_is_flushed_first() {
    let (device, _pool, handle) = pool_with_volume();
    write(&handle, 0, CHUNK, 1);
    write(&handle, 4096, 4096, 2);
    assert_eq!(flushes_of(&device, || handle.flush().unwrap()), 2);
    assert_eq!(flushes_of(&device, || write(&handle, 4096, 4096, 3)), 0);
}

#[test]
fn u3_a_chunk_mapped_and_freed_by_one_batch_is_flushed_first() {
    let (device, _pool, handle) = pool_with_volume();
    write(&handle, 0, CHUNK, 1);
    handle.discard(0, CHUNK).unwrap();
    assert_eq!(flushes_of(&device, || handle.flush().unwrap()), 2);
}

/// Carries a planned flush out; returns what its steps were.
fn ride(device: &SimDevice, mut planned: PlannedFlush) -> Vec<&'static str> {
    let mut steps = Vec::new();
    while let Some(step) = planned.next_step() {
        match step {
            FlushStep::Write { address, bytes } => {
                device.write_at(address, &bytes).unwrap();
                steps.push("write");
            }
            FlushStep::Flush => {
                device.flush().unwrap();
                steps.push("flush");
            }
        }
    }
    planned.end(Ok(())).unwrap();
    steps
}

#[test]
fn a_planned_flush_has_the_steps_of_one_that_blocks_and_is_as_durable() {
    let (device, pool, handle) = pool_with_volume();
    let flush = || ride(&device, handle.plan_flush().expect("nobody else flushes"));
    flush();
    write(&handle, 0, CHUNK, 1);
    assert_eq!(flush(), ["write", "flush"], "C1");
    assert_eq!(flush(), ["write", "flush"], "what settles it, U2");
    assert_eq!(flush(), ["flush"]);
    write(&handle, CHUNK, CHUNK, 2);
    write(&handle, CHUNK, 4096, 3);
    assert_eq!(flush(), ["flush", "write", "flush"], "U2");
    drop((handle, pool));
    let pool = Pool::open(device.power_cycle(), OpenOptions::default()).unwrap();
    let reader = pool
        .open_version(VersionId::Volume(VOLUME), OpenMode::ReadOnly)
        .unwrap();
    for (offset, length, stamp) in [(0, CHUNK, 1), (CHUNK, 4096, 3), (CHUNK + 4096, CHUNK - 4096, 2)] {
        let mut bytes = vec![0xa5; length as usize];
        reader.read(offset, &mut bytes).unwrap();
        assert!(
            bytes == Stamp(stamp).bytes(offset, length as usize),
            "at {offset}"
        );
    }
}

#[test]
fn c4_a_planned_flush_that_fails_or_is_given_up_stops_the_pool() {
    for given_up in [false, true] {
        let (_device, pool, handle) = pool_with_volume();
        write(&handle, 0, CHUNK, 1);
        let mut planned = handle.plan_flush().unwrap();
        assert!(matches!(planned.next_step(), Some(FlushStep::Write { .. })));
        match given_up {
            true => drop(planned),
            false => {
                let failed = planned.end(Err(std::io::Error::from_raw_os_error(5)));
                let said = failed.unwrap_err().to_string();
                assert!(said.contains("writing the log"), "{said}");
            }
        }
        assert!(pool.stopped().is_some());
        assert!(handle.plan_flush().is_none());
        assert!(matches!(handle.flush(), Err(IoError::Stopped { .. })));
    }
}

#[test]
fn c2_c3_whoever_flushes_beside_a_planned_flush_waits_for_it_and_then_for_one_of_its_own() {
    let (device, _pool, handle) = pool_with_volume();
    handle.flush().unwrap();
    let planned = handle.plan_flush().unwrap();
    assert!(handle.plan_flush().is_none(), "C2");
    write(&handle, 0, CHUNK, 1);
    let before = device.counts().flushes;
    std::thread::scope(|scope| {
        let other = scope.spawn(|| handle.flush().unwrap());
        while handle.pool().waiting_to_flush() == 0 {
            std::thread::yield_now();
        }
        assert!(!other.is_finished() && device.counts().flushes == before, "C2");
        ride(&device, planned);
    });
    assert_eq!(device.counts().flushes, before + 2, "C3");
    assert_eq!(ride(&device, handle.plan_flush().unwrap()), ["write", "flush"]);
}

/// A device that tells whether it was ever flushed by two at once.
struct OneFlushAtATime {
    device: Arc<SimDevice>,
    flushing: AtomicU32,
    overlapped: AtomicBool,
}

impl PoolDevice for OneFlushAtATime {
    fn size_bytes(&self) -> io::Result<u64> {
        self.device.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.device.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.device.write_at(offset, data)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.device.write_zeroes(offset, length)
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.device.discard(offset, length)
    }

    fn flush(&self) -> io::Result<()> {
        if self.flushing.fetch_add(1, Ordering::SeqCst) > 0 {
            self.overlapped.store(true, Ordering::SeqCst);
        }
        std::thread::sleep(Duration::from_micros(200));
        let flushed = self.device.flush();
        self.flushing.fetch_sub(1, Ordering::SeqCst);
        flushed
    }

    fn direct_file(&self) -> Option<DirectFile<'_>> {
        None
    }
}

/// Whoever flushes second might be told that all is well although the first was told of an error.
#[test]
fn t1_commits_and_checkpoints_never_flush_at_the_same_time() {
    let (inner, pool, handle) = pool_with_volume();
    drop((handle, pool));
    let device = Arc::new(OneFlushAtATime {
        device: inner,
        flushing: AtomicU32::new(0),
        overlapped: AtomicBool::new(false),
    });
    let pool = Pool::open(Arc::clone(&device) as Arc<dyn PoolDevice>, OpenOptions::default()).unwrap();
    let handle = pool
        .open_version(VersionId::Volume(VOLUME), OpenMode::ReadWrite)
        .unwrap();
    std::thread::scope(|scope| {
        for writer in 0..2u64 {
            let handle = &handle;
            scope.spawn(move || {
                for round in 0..50 {
                    write(handle, (writer * 100 + round) * CHUNK, 4096, round);
                    handle.flush().unwrap();
                }
            });
        }
        for round in 0..20 {
            write(&handle, (300 + round) * CHUNK, 4096, round);
            pool.checkpoint().unwrap();
        }
    });
    assert!(!device.overlapped.load(Ordering::SeqCst), "T1");
}

/// Leaves a pool whose last batch claims data, and puts what `corrupt` says in place of a sector of the data.
fn reopened_with(corrupt: bool) -> (Arc<SimDevice>, Arc<Pool>, u8) {
    let (device, pool, handle) = pool_with_volume();
    handle
        .write(0, &[1; CHUNK as usize], Durability::Flushed)
        .unwrap();
    handle.write(CHUNK, &[2; 4096], Durability::Flushed).unwrap();
    drop((handle, pool));
    if corrupt {
        let data = device.written_cells().into_iter();
        let at = data.rev().find(|at| device.peek(*at, 4096) == [2; 4096]);
        device.overwrite(at.expect("what was written"), &[0; 512]);
    }
    let pool = Pool::open(device.clone(), OpenOptions::default()).unwrap();
    let reader = pool
        .open_version(VersionId::Volume(VOLUME), OpenMode::ReadOnly)
        .unwrap();
    let mut bytes = [0xa5; 4096];
    reader.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [1; 4096], "what an earlier batch maps");
    reader.read(CHUNK, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "C1: torn data");
    (device, pool, bytes[0])
}

#[test]
fn c1_the_last_batch_counts_only_with_all_of_its_data() {
    let (_, _, byte) = reopened_with(false);
    assert_eq!(byte, 2);
    let (device, pool, byte) = reopened_with(true);
    assert_eq!(byte, 0, "without a sector of its data the batch is dropped");
    drop(pool);
    // For good: not even when the data comes back does it count again.
    let damaged = device
        .written_cells()
        .into_iter()
        .find(|at| device.peek(*at + 512, 3584) == [2; 3584])
        .expect("the rest of what was written");
    device.overwrite(damaged, &[2; 512]);
    let pool = Pool::open(device.power_cycle(), OpenOptions::default()).unwrap();
    let reader = pool
        .open_version(VersionId::Volume(VOLUME), OpenMode::ReadOnly)
        .unwrap();
    let mut bytes = [0xa5; 4096];
    reader.read(CHUNK, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 4096]);
}

#[test]
fn u2_after_an_open_every_batch_is_settled() {
    let (device, pool, _) = reopened_with(false);
    let handle = pool
        .open_version(VersionId::Volume(VOLUME), OpenMode::ReadWrite)
        .unwrap();
    assert_eq!(flushes_of(&device, || write(&handle, CHUNK, 4096, 7)), 0);
    handle.flush().unwrap();
    drop((handle, pool));
    let pool = Pool::open(device.power_cycle(), OpenOptions::default()).unwrap();
    let reader = pool
        .open_version(VersionId::Volume(VOLUME), OpenMode::ReadOnly)
        .unwrap();
    let mut bytes = vec![0xa5; 4096];
    reader.read(CHUNK, &mut bytes).unwrap();
    assert!(
        bytes == Stamp(7).bytes(CHUNK, 4096),
        "the batch was verified against what has been overwritten since"
    );
}
