//! Reads and writes of checksummed volumes, and what the background does with their sums and chunks meanwhile.

use std::fs;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use quarry_contract::{DataSource, Durability, OpenMode, VersionId, VolumeId, VolumeSpec};
use quarry_thin::sim::{SimDevice, Stamp, Violation};
use quarry_thin::{FormatOptions, OpenOptions, Pool, VersionHandle};

use crate::gated::{Call, GatedDevice};
use crate::seeds::for_each_seed;

const CHUNK: u64 = 16 << 10;
/// More chunks than have their sums in one page.
const MORE_THAN_A_PAGE: u64 = 300;

fn open(device: &Arc<GatedDevice>) -> Arc<Pool> {
    Pool::open(Arc::clone(device) as _, OpenOptions::default()).unwrap()
}

fn new_device() -> Arc<GatedDevice> {
    let device = GatedDevice::new(SimDevice::new(16 << 20, 1));
    let format = FormatOptions {
        chunk_bytes: CHUNK as u32,
        log_bytes: 64 << 10,
        ..FormatOptions::default()
    };
    Pool::format(&*device, &format).unwrap();
    device
}

/// Volume 1 has checksums, volume 2 has none.
fn writer(pool: &Arc<Pool>, number: u128) -> Arc<VersionHandle> {
    let id = VolumeId(uuid::Uuid::from_u128(number));
    let spec = VolumeSpec {
        checksums: number == 1,
        ..VolumeSpec::new(id, 1 << 30, DataSource::Blank)
    };
    pool.create_volume(&spec).unwrap();
    pool.open_version(VersionId::Volume(id), OpenMode::ReadWrite)
        .unwrap()
}

fn write(handle: &VersionHandle, offset: u64, length: u64, stamp: u64) {
    let data = Stamp(stamp).bytes(offset, length as usize);
    handle.write(offset, &data, Durability::Cached).unwrap();
}

fn holds(handle: &VersionHandle, offset: u64, length: u64, stamp: u64) {
    let mut found = vec![0xa5; length as usize];
    handle.read(offset, &mut found).unwrap();
    assert!(
        found == Stamp(stamp).bytes(offset, length as usize),
        "{offset}+{length}"
    );
}

/// Waits until a thread of this process sleeps: it waits for another.
fn until_it_sleeps(thread: &Path) {
    let stat = Path::new("/proc").join(thread).join("stat");
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let stat = fs::read_to_string(&stat).unwrap();
        // The state is behind the name, which may have anything in it (proc_pid_stat(5)).
        let (_, rest) = stat.rsplit_once(") ").unwrap();
        if rest.starts_with('S') {
            return;
        }
        assert!(Instant::now() < deadline, "it waits for nobody: {rest}");
        thread::yield_now();
    }
}

fn background_work(pool: &Pool) {
    while pool.maintain().unwrap().more {}
}

/// A pool in which chunk 0 of volume 1 was written, then more than a page of sums is for, which is discarded by now.
fn pool_with_a_chunk_far_from_the_next() -> (Arc<GatedDevice>, Arc<Pool>, Arc<VersionHandle>) {
    let device = new_device();
    let pool = open(&device);
    let (handle, other) = (writer(&pool, 1), writer(&pool, 2));
    write(&handle, 0, CHUNK, 1);
    write(&other, 0, MORE_THAN_A_PAGE * CHUNK, 9);
    write(&handle, 4096, 4096, 2);
    other.discard(0, MORE_THAN_A_PAGE * CHUNK).unwrap();
    pool.checkpoint().unwrap();
    (device, pool, handle)
}

#[test]
fn d3_the_sums_of_what_is_being_read_stay_until_it_has_been_verified() {
    let suite = "d3_the_sums_of_what_is_being_read_stay_until_it_has_been_verified";
    for_each_seed(suite, 1, |_| -> Result<(), Violation> {
        let (device, pool, handle) = pool_with_a_chunk_far_from_the_next();
        thread::scope(|scope| {
            let (at_gate, waiting) = device.hold(Call::Read);
            // Lent by a chunk that is nobody's, and whose page of sums is for no other.
            let reading = scope.spawn(|| holds(&handle, 0, 512, 1));
            at_gate.recv().unwrap();
            // The one that borrows is filled, and the lender freed.
            for _ in 0..50 {
                pool.maintain().unwrap();
            }
            assert_eq!(pool.stat().orphan_chunks, 0);
            drop(waiting);
            reading.join().unwrap();
        });
        background_work(&pool);
        holds(&handle, 0, 4096, 1);
        holds(&handle, 4096, 4096, 2);
        assert!(pool.check().unwrap().problems.is_empty());
        Ok(())
    });
}

#[test]
fn a_page_of_sums_that_is_needed_again_while_it_is_looked_for_stays() {
    let suite = "a_page_of_sums_that_is_needed_again_while_it_is_looked_for_stays";
    for_each_seed(suite, 1, |_| -> Result<(), Violation> {
        let (device, pool, handle) = pool_with_a_chunk_far_from_the_next();
        handle.discard(0, CHUNK).unwrap();
        write(&handle, CHUNK, CHUNK, 3);
        pool.checkpoint().unwrap();
        drop((handle, pool));
        // No page of sums is in memory, and any may be of no use.
        let pool = open(&device);
        let handle = writer(&pool, 1);
        thread::scope(|scope| {
            let (at_gate, waiting) = device.hold(Call::Read);
            let working = scope.spawn(|| background_work(&pool));
            at_gate.recv().unwrap();
            write(&handle, 2 * CHUNK, CHUNK, 4);
            drop(waiting);
            working.join().unwrap();
        });
        for (index, stamp) in [(1, 3), (2, 4)] {
            holds(&handle, index * CHUNK, CHUNK, stamp);
        }
        assert!(pool.check().unwrap().problems.is_empty());
        Ok(())
    });
}

/// D2: a write that waited for a chunk to be filled, and had found that its blocks are not there, finds them.
#[test]
fn d2_a_write_that_waited_for_a_chunk_to_be_filled_goes_elsewhere() {
    let suite = "d2_a_write_that_waited_for_a_chunk_to_be_filled_goes_elsewhere";
    for_each_seed(suite, 1, |_| -> Result<(), Violation> {
        let device = new_device();
        let pool = open(&device);
        let handle = writer(&pool, 1);
        write(&handle, 0, 4096, 1);
        thread::scope(|scope| {
            let (at_gate, waiting) = device.hold(Call::Write);
            let filling = scope.spawn(|| background_work(&pool));
            at_gate.recv().unwrap();
            // A part of a block is not planned: it waits for the chunk's fill latch.
            let (tell, told) = mpsc::channel();
            let handle = &handle;
            let writing = scope.spawn(move || {
                tell.send(fs::read_link("/proc/thread-self").unwrap()).unwrap();
                write(handle, 8192, 512, 2);
            });
            until_it_sleeps(&told.recv().unwrap());
            drop(waiting);
            filling.join().unwrap();
            writing.join().unwrap();
        });
        holds(&handle, 0, 4096, 1);
        holds(&handle, 8192, 512, 2);
        let mut rest = [0xa5; 3584];
        handle.read(8704, &mut rest).unwrap();
        assert_eq!(rest, [0; 3584]);
        assert!(pool.check().unwrap().problems.is_empty());
        Ok(())
    });
}
