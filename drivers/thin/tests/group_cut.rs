//! A group snapshot is one cut through all of its volumes (V4), and nobody stops for it.
//!
//! Each writer writes stamps 1, 2, 3, …, each to the next volume, and each only when the one before is acknowledged. So
//! whatever a cut contains of a writer, it contains all that came before: with `last` the highest stamp found,
//! every volume holds exactly the highest stamp up to `last` that was its turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use quarry_contract::{
    DataSource, Durability, OpenMode, SnapshotId, SnapshotSpec, VersionId, VolumeId, VolumeSpec,
};
use quarry_thin::sim::SimDevice;
use quarry_thin::{FormatOptions, OpenOptions, Place, Planned, Pool, PoolDevice, VersionHandle};
use uuid::Uuid;

const CHUNK: u64 = 16 << 10;
const BLOCK: u64 = 4096;
const VOLUMES: u64 = 5;
const WRITERS: u64 = 6;
/// Two writers share a chunk, and one of three writes whole chunks.
const SLOT: u64 = 2 * BLOCK;

fn volume_id(number: u64) -> VolumeId {
    VolumeId(Uuid::from_u128(1 + u128::from(number)))
}

fn fresh() -> (Arc<Pool>, Vec<Arc<VersionHandle>>) {
    let device = SimDevice::new(128 << 20, 1);
    let format = FormatOptions {
        chunk_bytes: CHUNK as u32,
        log_bytes: 1 << 20,
        ..FormatOptions::default()
    };
    Pool::format(&*device, &format).expect("formatting");
    let pool = Pool::open(device, OpenOptions::default()).expect("opening the pool");
    let open = |number| {
        let spec = VolumeSpec::new(volume_id(number), 64 * CHUNK, DataSource::Blank);
        pool.create_volume(&spec).expect("creating a volume");
        pool.open_version(VersionId::Volume(spec.id), OpenMode::ReadWrite)
            .expect("opening a volume")
    };
    let volumes = (0..VOLUMES).map(open).collect();
    (pool, volumes)
}

/// Where a writer writes, the same in every volume, and how much.
fn place_of(writer: u64) -> (u64, usize) {
    match writer % 3 {
        2 => ((16 + writer) * CHUNK, CHUNK as usize),
        _ => (writer * SLOT, BLOCK as usize),
    }
}

/// Writes as a queue does: what needs nobody else at once, anything else by the engine.
fn write(pool: &Pool, handle: &VersionHandle, offset: u64, data: &[u8]) {
    match handle.plan_write(offset, data.len()) {
        Planned::Contended | Planned::NeedsSlowPath => {
            handle.write(offset, data, Durability::Cached).expect("writing")
        }
        Planned::Direct(plan) => {
            for segment in &plan.segments {
                let Place::Device(at) = segment.place else {
                    panic!("a plan for an overwrite has a hole");
                };
                // An acknowledgement that is late by a snapshot is what the cut has to cope with.
                thread::yield_now();
                let part = &data[segment.buffer.clone()];
                pool.device().write_at(at, part).expect("writing");
            }
            plan.guard.finish_blocking(data).expect("finishing");
        }
    }
}

/// Writes stamps by turns until told to stop; counts them.
fn stamp(pool: &Pool, volumes: &[Arc<VersionHandle>], writer: u64, stop: &AtomicBool, count: &AtomicU64) {
    let (offset, length) = place_of(writer);
    for stamp in 1u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let data = stamp.to_le_bytes().repeat(length / 8);
        let handle = &volumes[(stamp % VOLUMES) as usize];
        write(pool, handle, offset, &data);
        count.store(stamp, Ordering::Relaxed);
        if stamp % 64 == writer {
            handle.flush().expect("flushing");
        }
    }
}

/// Reads what a writer's place holds: one stamp, or the write was torn by the cut.
fn stamp_in(snapshot: &VersionHandle, writer: u64) -> u64 {
    let (offset, length) = place_of(writer);
    let mut data = vec![0; length];
    snapshot.read(offset, &mut data).expect("reading");
    let (words, _) = data.as_chunks::<8>();
    let first = u64::from_le_bytes(words[0]);
    assert!(
        words.iter().all(|word| u64::from_le_bytes(*word) == first),
        "V4: a cut through a write of writer {writer}"
    );
    first
}

/// Says in what a cut is not a prefix of what a writer wrote.
fn violation(cut: &[Arc<VersionHandle>]) -> Option<String> {
    (0..WRITERS).find_map(|writer| {
        let found: Vec<u64> = cut.iter().map(|snapshot| stamp_in(snapshot, writer)).collect();
        let last = *found.iter().max().expect("there are volumes");
        let expected: Vec<u64> = (0..VOLUMES)
            .map(|volume| {
                (1..=last)
                    .rev()
                    .find(|stamp| stamp % VOLUMES == volume)
                    .unwrap_or(0)
            })
            .collect();
        (found != expected).then(|| format!("writer {writer}: {found:?}, not {expected:?}"))
    })
}

/// How the volumes are caught.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    AsAGroup,
    /// Not a cut at all.
    OneByOne,
}

/// Takes cuts under load. Returns in how many a violation was seen, and the first.
fn cuts_under_load(kind: Cut, rounds: u64) -> (u64, Option<String>) {
    let (pool, volumes) = fresh();
    let stop = AtomicBool::new(false);
    let counts: Vec<AtomicU64> = (0..WRITERS).map(|_| AtomicU64::new(0)).collect();
    let (mut bad, mut first) = (0, None);
    thread::scope(|scope| {
        let (pool, volumes, stop) = (&pool, &volumes, &stop);
        for (writer, count) in (0..).zip(&counts) {
            scope.spawn(move || stamp(pool, volumes, writer, stop, count));
        }
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let more = pool.maintain().expect("maintaining").more;
                if !more {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        });
        // Ends the threads when a check fails, too.
        let _stop = StopOnDrop(stop);
        for round in 0..rounds {
            let specs: Vec<SnapshotSpec> = (0..VOLUMES)
                .map(|volume| SnapshotSpec {
                    id: SnapshotId(Uuid::from_u128(u128::from(1000 + round * VOLUMES + volume))),
                    volume: volume_id(volume),
                })
                .collect();
            let groups = match kind {
                Cut::AsAGroup => specs.chunks(specs.len()),
                Cut::OneByOne => specs.chunks(1),
            };
            for group in groups {
                pool.create_snapshots(group).expect("taking snapshots");
            }
            let cut: Vec<Arc<VersionHandle>> = specs
                .iter()
                .map(|spec| {
                    pool.open_version(VersionId::Snapshot(spec.id), OpenMode::ReadOnly)
                        .expect("opening a snapshot")
                })
                .collect();
            if let Some(violation) = violation(&cut) {
                bad += 1;
                first.get_or_insert(violation);
            }
            // Snapshots do not change: what was a prefix stays the same one.
            let before: Vec<u64> = cut.iter().map(|snapshot| stamp_in(snapshot, 0)).collect();
            thread::yield_now();
            let after: Vec<u64> = cut.iter().map(|snapshot| stamp_in(snapshot, 0)).collect();
            assert_eq!(before, after, "V4: a snapshot changed");
            drop(cut);
            for spec in &specs {
                pool.delete_snapshot(spec.id).expect("deleting");
            }
        }
    });
    for (writer, count) in counts.iter().enumerate() {
        let stamps = count.load(Ordering::Relaxed);
        assert!(stamps > rounds, "writer {writer} got on by {stamps} stamps only");
    }
    (bad, first)
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_group_snapshot_under_load_is_one_cut_through_all_its_volumes() {
    let (bad, first) = cuts_under_load(Cut::AsAGroup, 600);
    assert_eq!(bad, 0, "V4: {}", first.unwrap_or_default());
}

#[test]
fn control_the_judge_sees_that_snapshots_one_by_one_are_no_cut() {
    let (bad, _) = cuts_under_load(Cut::OneByOne, 200);
    assert!(bad > 20, "only {bad} of 200 were seen to be no cut");
}

#[test]
fn a_group_snapshot_waits_for_a_write_in_flight_and_holds_up_no_other() {
    let (pool, volumes) = fresh();
    for handle in &volumes {
        handle
            .write(0, &[1; 4 * CHUNK as usize], Durability::Cached)
            .expect("writing");
        handle.flush().expect("flushing");
    }
    let Planned::Direct(in_flight) = volumes[2].plan_write(0, BLOCK as usize) else {
        panic!("an overwrite needs nobody");
    };
    let Place::Device(at) = in_flight.segments[0].place else {
        panic!("it is somewhere");
    };
    let specs: Vec<SnapshotSpec> = (0..VOLUMES)
        .map(|volume| SnapshotSpec {
            id: SnapshotId(Uuid::from_u128(u128::from(1000 + volume))),
            volume: volume_id(volume),
        })
        .collect();
    let taken = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            pool.create_snapshots(&specs).expect("taking snapshots");
            taken.store(true, Ordering::SeqCst);
        });
        let deadline = Instant::now() + Duration::from_secs(30);
        while pool.status().snapshot_count < VOLUMES {
            assert!(Instant::now() < deadline, "the snapshots are not taken");
            thread::yield_now();
        }
        // The cut is made; every volume goes on, the one with the write in flight too.
        for round in 0..50u8 {
            for handle in &volumes {
                write(&pool, handle, 2 * CHUNK, &[round; BLOCK as usize]);
                let mut found = [0; BLOCK as usize];
                handle.read(2 * CHUNK, &mut found).expect("reading");
                assert_eq!(found, [round; BLOCK as usize]);
            }
        }
        assert!(
            !taken.load(Ordering::SeqCst),
            "V4: the snapshot is told of before a write of it has landed"
        );
        pool.device().write_at(at, &[7; BLOCK as usize]).expect("writing");
        in_flight
            .guard
            .finish_blocking(&[7; BLOCK as usize])
            .expect("finishing");
    });
    assert!(taken.load(Ordering::SeqCst));
    for (number, spec) in specs.iter().enumerate() {
        let snapshot = pool
            .open_version(VersionId::Snapshot(spec.id), OpenMode::ReadOnly)
            .expect("opening a snapshot");
        let mut found = vec![0; 4 * CHUNK as usize];
        snapshot.read(0, &mut found).expect("reading");
        let mut expected = vec![1; 4 * CHUNK as usize];
        if number == 2 {
            expected[..BLOCK as usize].fill(7);
        }
        assert!(found == expected, "V4: volume {number}");
    }
}
