//! Differences that are read page by page while everything around them changes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use quarry_contract::conformance::SplitMix;
use quarry_contract::{
    DataSource, DriverError, Durability, ErrorKind, OpenMode, SnapshotId, SnapshotSpec, VersionId, VolumeId,
    VolumeSpec,
};
use quarry_thin::sim::SimDevice;
use quarry_thin::{FormatOptions, OpenOptions, Pool};
use uuid::Uuid;

const CHUNK: u64 = 64 << 10;
/// 512 chunks each.
const LEAVES: u64 = 24;
const CHUNKS: u64 = LEAVES * 512;

fn volume_id(number: u128) -> VolumeId {
    VolumeId(Uuid::from_u128(number))
}

fn snapshot_id(number: u128) -> SnapshotId {
    SnapshotId(Uuid::from_u128(number << 64))
}

const VOLUME: u128 = 1;
const OTHER: u128 = 2;
const SINCE: u128 = 1;
/// Between the two, and deleted on the way.
const BETWEEN: u128 = 2;
const OF: u128 = 3;

/// A volume with three snapshots, and another one.
struct Bench {
    pool: Arc<Pool>,
    /// What was written between the first and the last snapshot, by chunk.
    changed: BTreeSet<u64>,
}

impl Bench {
    fn new() -> Self {
        let device = SimDevice::new(4 << 30, 1);
        let format = FormatOptions {
            log_bytes: 1 << 20,
            ..FormatOptions::default()
        };
        Pool::format(device.as_ref(), &format).unwrap();
        let options = OpenOptions {
            // Pages of maps come and go.
            cache_bytes: 64 << 10,
            ..OpenOptions::default()
        };
        let pool = Pool::open(device, options).unwrap();
        for volume in [VOLUME, OTHER] {
            pool.create_volume(&VolumeSpec::new(
                volume_id(volume),
                CHUNKS * CHUNK,
                DataSource::Blank,
            ))
            .unwrap();
        }
        let mut bench = Self {
            pool,
            changed: BTreeSet::new(),
        };
        let mut random = SplitMix::new(1);
        for _ in 0..500 {
            bench.write(VOLUME, random.below(CHUNKS));
        }
        bench.snapshot(VOLUME, SINCE);
        for round in 0..2 {
            for _ in 0..150 {
                let chunk = random.below(CHUNKS);
                bench.write(VOLUME, chunk);
                bench.changed.insert(chunk);
            }
            bench.snapshot(VOLUME, [BETWEEN, OF][round]);
        }
        bench
    }

    fn write(&self, volume: u128, chunk: u64) {
        let version = VersionId::Volume(volume_id(volume));
        let handle = self.pool.open_version(version, OpenMode::ReadWrite).unwrap();
        handle
            .write(chunk * CHUNK, &[7; 4096], Durability::Cached)
            .unwrap();
    }

    fn snapshot(&self, volume: u128, number: u128) {
        let volume = volume_id(volume);
        let id = snapshot_id(number);
        self.pool
            .create_snapshots(&[SnapshotSpec { id, volume }])
            .unwrap();
    }

    /// Reads all differences, a few at a time, and calls `between` after each page.
    fn stream(
        &self,
        of: VersionId,
        most: usize,
        mut between: impl FnMut(),
    ) -> Result<BTreeSet<u64>, DriverError> {
        let since = Some(VersionId::Snapshot(snapshot_id(SINCE)));
        let (mut found, mut from) = (BTreeSet::new(), 0);
        loop {
            let page = self.pool.differences(of, since, from, most)?;
            assert!(page.runs.len() <= most);
            for run in &page.runs {
                found.extend(run.offset / CHUNK..(run.offset + run.length).div_ceil(CHUNK));
            }
            match page.next_bytes {
                Some(next) => {
                    assert!(next > from, "it goes on");
                    from = next;
                }
                None => return Ok(found),
            }
            between();
        }
    }
}

/// Ends the threads beside when the test ends, be it by a panic.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `body` while a thread writes, one takes and deletes snapshots and clones, and one does the background work.
fn beside_everything<R>(bench: &Bench, body: impl FnOnce() -> R) -> R {
    let stop = AtomicBool::new(false);
    let running = || !stop.load(Ordering::Relaxed);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = SplitMix::new(2);
            while running() {
                // In few places, or the pool gets full.
                bench.write(VOLUME, random.below(CHUNKS / 16) * 16);
                bench.write(OTHER, random.below(CHUNKS / 16) * 16);
            }
        });
        scope.spawn(|| {
            for number in (100..).step_by(4) {
                if !running() {
                    break;
                }
                // Of the volume, of the other one, and a clone of the end of the difference, written to.
                bench.snapshot(VOLUME, number);
                bench.snapshot(OTHER, number + 1);
                let clone = volume_id(number + 2);
                let source = DataSource::Snapshot(snapshot_id(OF));
                let made = bench
                    .pool
                    .create_volume(&VolumeSpec::new(clone, CHUNKS * CHUNK, source));
                if made.is_ok() {
                    bench.write(number + 2, (number as u64 * 37) % CHUNKS);
                    bench.pool.delete_volume(clone).unwrap();
                }
                bench.pool.delete_snapshot(snapshot_id(number)).unwrap();
                bench.pool.delete_snapshot(snapshot_id(number + 1)).unwrap();
            }
        });
        scope.spawn(|| {
            while running() {
                bench.pool.maintain().unwrap();
            }
        });
        let _ending = StopOnDrop(&stop);
        body()
    })
}

#[test]
fn no_difference_is_missed_or_made_up_while_everything_changes() {
    let bench = Bench::new();
    let of = VersionId::Snapshot(snapshot_id(OF));
    let volume = VersionId::Volume(volume_id(VOLUME));
    beside_everything(&bench, || {
        for (pass, most) in [1, 7, 3, 64, 2, 5, 1, 11]
            .into_iter()
            .cycle()
            .take(200)
            .enumerate()
        {
            let mut pages = 0;
            let found = bench.stream(of, most, || {
                pages += 1;
                // On the way, and reclaimed soon.
                if pass == 3 && pages == 2 {
                    bench.pool.delete_snapshot(snapshot_id(BETWEEN)).unwrap();
                }
            });
            assert!(found.unwrap() == bench.changed, "pass {pass}, at most {most}");
            // Of what is written to, more may be found, but no less.
            let found = bench.stream(volume, 50, || {}).unwrap();
            assert!(found.is_superset(&bench.changed), "pass {pass}: of the volume");
        }
    });
    assert_eq!(bench.pool.check().unwrap().problems, Vec::<String>::new());
}

#[test]
fn differences_one_end_of_which_is_deleted_on_the_way_end_with_not_found() {
    for deleted in [SINCE, OF] {
        let bench = Bench::new();
        let of = VersionId::Snapshot(snapshot_id(OF));
        beside_everything(&bench, || {
            let pages = AtomicU64::new(0);
            let ended = bench.stream(of, 4, || {
                if pages.fetch_add(1, Ordering::Relaxed) == 3 {
                    bench.pool.delete_snapshot(snapshot_id(deleted)).unwrap();
                }
            });
            assert_eq!(ended.unwrap_err().kind(), ErrorKind::NotFound);
            assert_eq!(pages.load(Ordering::Relaxed), 4, "no page after that");
        });
        assert_eq!(bench.pool.check().unwrap().problems, Vec::<String>::new());
    }
}
