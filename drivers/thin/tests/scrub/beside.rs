//! What happens beside a scrub neither hides damage from it nor looks like any.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use quarry_contract::conformance::SplitMix;
use quarry_contract::{DataSource, Durability, IoError, OpenMode, ScrubState, VersionId, VolumeSpec};
use quarry_thin::sim::SimDevice;
use quarry_thin::{DirectFile, FormatOptions, OpenOptions, Place, Planned, Pool, PoolDevice, VersionHandle};

use crate::{BLOCK, CHUNK, Fixture, MIB, blank, snapshot_id, take_snapshot, volume_id, write};

/// Z1: what passes to another version while a scrub runs is not missed.
#[test]
fn z1_what_changes_its_owner_meanwhile_is_not_missed() {
    for case in 0..4 {
        let fixture = Fixture::new();
        let volume = fixture.writer(1);
        write(&volume, 0, 4 * MIB, 1);
        fixture.snapshot(1, 1);
        write(&volume, 0, CHUNK, 2);
        let late = 4 * MIB - CHUNK;
        fixture.damage(&volume, late);
        while fixture.pool.maintain().unwrap().more {}
        fixture.pool.start_scrub().unwrap();
        let clone = |number, source| {
            let spec = VolumeSpec {
                source,
                checksums: false,
                ..blank(number)
            };
            fixture.pool.create_volume(&spec).unwrap();
        };
        let mut steps = 0;
        loop {
            if steps == 1 {
                match case {
                    0 => {}
                    1 => drop(fixture.pool.delete_snapshot(snapshot_id(1)).unwrap()),
                    2 => fixture.snapshot(2, 1),
                    _ => {
                        clone(2, DataSource::Snapshot(snapshot_id(1)));
                        clone(3, DataSource::Volume(volume_id(1)));
                        fixture.pool.delete_snapshot(snapshot_id(1)).unwrap();
                    }
                }
            }
            steps += 1;
            if !fixture.pool.maintain().unwrap().more {
                break;
            }
        }
        let status = fixture.status();
        assert_eq!(status.state, ScrubState::Done, "case {case}");
        assert!(
            status.findings.iter().any(|found| found.offset == late),
            "case {case}: {status:?}"
        );
        assert!(
            status.findings.iter().all(|found| found.version.is_some()),
            "case {case}"
        );
    }
}

type Meddling = Box<dyn FnOnce() + Send>;

/// A device on which something happens just before each read at an address.
struct Meddled {
    inner: Arc<SimDevice>,
    at: Mutex<(u64, VecDeque<Meddling>)>,
}

impl PoolDevice for Meddled {
    fn size_bytes(&self) -> io::Result<u64> {
        self.inner.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let meddling = {
            let mut at = self.at.lock().unwrap();
            (at.0 == offset).then(|| at.1.pop_front()).flatten()
        };
        if let Some(meddling) = meddling {
            meddling();
        }
        self.inner.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write_at(offset, data)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.inner.write_zeroes(offset, length)
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.inner.discard(offset, length)
    }

    fn flush(&self) -> io::Result<()> {
        self.inner.flush()
    }

    fn direct_file(&self) -> Option<DirectFile<'_>> {
        None
    }
}

/// A pool of 8 MiB with an empty volume 1 that has checksums and a volume 2 that has none.
fn meddled_pool() -> (Arc<Meddled>, Arc<Pool>) {
    let inner = SimDevice::new(8 * MIB, 3);
    let options = FormatOptions {
        log_bytes: 1 << 20,
        ..FormatOptions::default()
    };
    Pool::format(inner.as_ref(), &options).unwrap();
    let at = Mutex::default();
    let device = Arc::new(Meddled { inner, at });
    let options = OpenOptions {
        discard_freed: false,
        ..OpenOptions::default()
    };
    let pool = Pool::open(device.clone(), options).unwrap();
    let plain = VolumeSpec {
        checksums: false,
        ..blank(2)
    };
    pool.create_volume(&blank(1)).unwrap();
    pool.create_volume(&plain).unwrap();
    (device, pool)
}

fn open(pool: &Arc<Pool>, number: u128) -> Arc<VersionHandle> {
    let id = VersionId::Volume(volume_id(number));
    pool.open_version(id, OpenMode::ReadWrite).unwrap()
}

/// Where a chunk is in the pool.
fn address_of(handle: &VersionHandle, offset: u64) -> u64 {
    let Planned::Direct(plan) = handle.plan_read(offset, CHUNK as usize) else {
        panic!("a read of what is in memory is planned");
    };
    match plan.segments[0].place {
        Place::Device(address) => address,
        _ => panic!("nothing is at {offset}"),
    }
}

/// Z2: the chunk is bad when it is read first, and when it is read again it has just been freed and given to a volume without
/// checksums, so that its sums stay as they were.
#[test]
fn z2_a_chunk_that_is_anothers_by_the_time_it_is_read_is_not_damaged() {
    let (device, pool) = meddled_pool();
    let (summed, plain) = (open(&pool, 1), open(&pool, 2));
    write(&summed, 0, CHUNK, 1);
    let address = address_of(&summed, 0);
    while pool.maintain().unwrap().more {}
    let is_taken = Arc::new(AtomicBool::new(false));
    let taken = Arc::clone(&is_taken);
    let damage: Meddling = {
        let inner = Arc::clone(&device.inner);
        Box::new(move || inner.flip_bit(address + 77, 3))
    };
    let take = Box::new(move || {
        write(&summed, 0, CHUNK, 2);
        let before = [0xa5; CHUNK as usize];
        // Chunks are handed out in turn: one after the other is taken, and given back. There is room in the log for that.
        for index in 0..1000 {
            let at = index % 8 * CHUNK;
            plain.discard(at, CHUNK).unwrap();
            plain.write(at, &before, Durability::Flushed).unwrap();
            if address_of(&plain, at) == address {
                return taken.store(true, Ordering::Relaxed);
            }
        }
    });
    *device.at.lock().unwrap() = (address, VecDeque::from([damage, take]));
    assert!(pool.start_scrub().unwrap().is_changed());
    while pool.maintain().unwrap().more {}
    assert!(is_taken.load(Ordering::Relaxed), "the chunk was handed out again");
    let status = pool.scrub_status().unwrap();
    assert_eq!((status.state, status.findings), (ScrubState::Done, Vec::new()));
}

/// What a step has found is not taken for a part of the scrub that begins while it reads.
#[test]
fn z1_a_scrub_that_begins_in_the_middle_of_a_step_of_the_one_before_begins_at_the_first_chunk() {
    let (device, pool) = meddled_pool();
    let volume = open(&pool, 1);
    write(&volume, 0, 4 * MIB, 1);
    device.inner.flip_bit(address_of(&volume, 0) + 77, 3);
    let late = address_of(&volume, 3 * MIB);
    let again = Arc::clone(&pool);
    let restart: Meddling = Box::new(move || {
        assert_eq!(again.scrub_status().unwrap().bad_blocks, 1);
        assert!(again.stop_scrub().unwrap().is_changed());
        assert!(again.start_scrub().unwrap().is_changed());
    });
    while pool.maintain().unwrap().more {}
    *device.at.lock().unwrap() = (late, VecDeque::from([restart]));
    pool.start_scrub().unwrap();
    while pool.maintain().unwrap().more {}
    let status = pool.scrub_status().unwrap();
    assert_eq!((status.state, status.verified_bytes), (ScrubState::Done, 4 * MIB));
    assert_eq!(status.bad_blocks, 1);
}

#[test]
fn a_damaged_block_that_a_scrub_comes_to_again_is_counted_once() {
    let fixture = Fixture::new();
    let volume = fixture.writer(1);
    write(&volume, 0, 6 * MIB, 1);
    fixture.damage(&volume, BLOCK);
    while fixture.pool.maintain().unwrap().more {}
    fixture.pool.start_scrub().unwrap();
    while fixture.status().bad_blocks == 0 {
        fixture.pool.maintain().unwrap();
    }
    // All of it is the snapshot's now, which is gone through from its first chunk on (Z1).
    fixture.snapshot(1, 1);
    let status = fixture.scrub_to_the_end();
    assert!(status.verified_bytes > 6 * MIB, "{status:?}");
    assert_eq!((status.bad_blocks, status.findings.len()), (1, 1));
}

/// Z2: writers, snapshots and deletes beside it, and chunks that are freed and taken again all the time, also by a volume without
/// checksums.
#[test]
fn z2_a_scrub_of_a_pool_in_use_finds_nothing() {
    let fixture = Fixture::new();
    fixture.pool.create_volume(&blank(2)).unwrap();
    let plain = VolumeSpec {
        checksums: false,
        ..blank(3)
    };
    fixture.pool.create_volume(&plain).unwrap();
    let running = AtomicBool::new(true);
    let (pool, running) = (&fixture.pool, &running);
    let found = std::thread::scope(|scope| {
        for number in 1..4u128 {
            let handle = fixture.writer(number);
            scope.spawn(move || {
                let mut random = SplitMix::new(number as u64);
                while running.load(Ordering::Relaxed) {
                    let offset = random.below(40) * CHUNK / 4;
                    let length = [512, BLOCK, 3 * BLOCK, CHUNK][random.below(4) as usize];
                    let data = vec![random.next_u64() as u8; length as usize];
                    // Reclaim is not always fast enough.
                    match handle.write(offset, &data, Durability::Cached) {
                        Ok(()) | Err(IoError::NoSpace) => {}
                        Err(error) => panic!("{error}"),
                    }
                    if random.below(8) == 0 {
                        handle.flush().unwrap();
                    }
                }
            });
        }
        scope.spawn(move || {
            let mut taken = VecDeque::new();
            for number in 0.. {
                if !running.load(Ordering::Relaxed) {
                    return;
                }
                if take_snapshot(pool, number, 1 + number % 3).is_ok() {
                    taken.push_back(snapshot_id(number));
                }
                if taken.len() > 3 {
                    pool.delete_snapshot(taken.pop_front().unwrap()).unwrap();
                }
                std::thread::yield_now();
            }
        });
        let mut found = Vec::new();
        for _ in 0..6 {
            pool.start_scrub().unwrap();
            while pool.scrub_status().unwrap().state == ScrubState::Running {
                pool.maintain().unwrap();
            }
            found.extend(pool.scrub_status().unwrap().findings);
        }
        running.store(false, Ordering::Relaxed);
        found
    });
    assert_eq!(found, []);
    assert!(fixture.pool.check().unwrap().problems.is_empty());
}
