//! The scrub: everything with checksums is read, what is damaged is named, and nothing else.

mod beside;
mod lost;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use quarry_contract::{
    DataSource, DriverError, Durability, IoError, MetricValue, OpenMode, ScrubFinding, ScrubState,
    ScrubStatus, SnapshotId, SnapshotSpec, VersionId, VolumeId, VolumeKey, VolumeSpec,
};
use quarry_thin::sim::SimDevice;
use quarry_thin::{FormatOptions, Maintainer, OpenOptions, Place, Planned, Pool, VersionHandle};

const CHUNK: u64 = 64 << 10;
const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;

fn volume_id(number: u128) -> VolumeId {
    VolumeId(uuid::Uuid::from_u128(number))
}

fn snapshot_id(number: u128) -> SnapshotId {
    SnapshotId(uuid::Uuid::from_u128(0x5000 + number))
}

struct Fixture {
    device: Arc<SimDevice>,
    pool: Arc<Pool>,
}

fn blank(number: u128) -> VolumeSpec {
    VolumeSpec {
        checksums: true,
        ..VolumeSpec::new(volume_id(number), 8 * MIB, DataSource::Blank)
    }
}

impl Fixture {
    fn new() -> Self {
        let device = SimDevice::new(96 * MIB, 11);
        Pool::format(device.as_ref(), &FormatOptions::default()).unwrap();
        let pool = Pool::open(device.clone(), OpenOptions::default()).unwrap();
        pool.create_volume(&blank(1)).unwrap();
        Self { device, pool }
    }

    fn open(&self, id: VersionId, mode: OpenMode) -> Arc<VersionHandle> {
        self.pool.open_version(id, mode).unwrap()
    }

    fn writer(&self, number: u128) -> Arc<VersionHandle> {
        self.open(VersionId::Volume(volume_id(number)), OpenMode::ReadWrite)
    }

    fn reader(&self, number: u128) -> Arc<VersionHandle> {
        self.open(VersionId::Snapshot(snapshot_id(number)), OpenMode::ReadOnly)
    }

    fn snapshot(&self, number: u128, volume: u128) {
        take_snapshot(&self.pool, number, volume).unwrap();
    }

    fn cut(self) -> Self {
        let device = self.device.power_cycle();
        drop(self.pool);
        let pool = Pool::open(device.clone(), OpenOptions::default()).unwrap();
        Self { device, pool }
    }

    fn status(&self) -> ScrubStatus {
        self.pool.scrub_status().unwrap()
    }

    fn scrub_to_the_end(&self) -> ScrubStatus {
        while self.pool.maintain().unwrap().more {}
        let status = self.status();
        assert_eq!(status.state, ScrubState::Done);
        assert_eq!(status.verified_bytes, status.total_bytes);
        status
    }

    fn scrub(&self) -> ScrubStatus {
        assert!(self.pool.start_scrub().unwrap().is_changed());
        self.scrub_to_the_end()
    }

    /// Inverts a bit of a block and returns where the block is in the pool.
    fn damage(&self, handle: &VersionHandle, offset: u64) -> u64 {
        let Planned::Direct(plan) = handle.plan_read(offset, BLOCK as usize) else {
            panic!("a read of what is in memory is planned");
        };
        let Place::Device(at) = plan.segments[0].place else {
            panic!("nothing is at {offset}");
        };
        self.device.flip_bit(at + 77, 3);
        at
    }
}

fn take_snapshot(pool: &Pool, number: u128, volume: u128) -> Result<(), DriverError> {
    let snapshot = SnapshotSpec {
        id: snapshot_id(number),
        volume: volume_id(volume),
    };
    pool.create_snapshots(&[snapshot]).map(drop)
}

fn write(handle: &VersionHandle, offset: u64, length: u64, seed: u8) {
    let data: Vec<u8> = (0..length).map(|at| seed ^ (at / 512) as u8 ^ at as u8).collect();
    handle.write(offset, &data, Durability::Flushed).unwrap();
}

fn figure(pool: &Pool, name: &str) -> u64 {
    let metrics = pool.metrics();
    let metric = metrics.iter().find(|metric| metric.name == name).unwrap();
    match metric.samples[0].value {
        MetricValue::Number(value) => value,
        MetricValue::Distribution { .. } => panic!("{name} is a number"),
    }
}

fn places(status: &ScrubStatus) -> Vec<(Option<VersionId>, u64, u64)> {
    let place = |found: &ScrubFinding| (found.version, found.offset, found.pool_offset);
    let mut places: Vec<_> = status.findings.iter().map(place).collect();
    places.sort_by_key(|place| (place.2, place.1));
    places.dedup_by_key(|place| place.2);
    places
}

#[test]
fn every_kind_of_damaged_block_is_found_and_named_and_no_other() {
    let fixture = Fixture::new();
    let key = VolumeKey::new([7; VolumeKey::BYTES]);
    fixture.pool.create_encrypted_volume(&blank(2), &key).unwrap();
    let plain = VolumeSpec {
        checksums: false,
        ..blank(3)
    };
    fixture.pool.create_volume(&plain).unwrap();
    let volume = fixture.writer(1);
    write(&volume, 0, 4 * CHUNK, 1);
    fixture.snapshot(1, 1);
    write(&volume, 0, CHUNK, 2);
    write(&volume, CHUNK + 3 * BLOCK, 2 * BLOCK, 3);
    write(&volume, 7 * CHUNK + BLOCK, BLOCK, 4);
    let snapshot = fixture.reader(1);
    let encrypted = fixture.writer(2);
    write(&encrypted, 5 * CHUNK, CHUNK, 5);
    write(&fixture.writer(3), 0, CHUNK, 6);
    let clean = fixture.scrub();
    assert_eq!((clean.bad_blocks, &clean.findings[..]), (0, &[][..]));
    let id = |number| Some(VersionId::Volume(volume_id(number)));
    let of_snapshot = Some(VersionId::Snapshot(snapshot_id(1)));
    let mut expected = vec![
        (id(1), 2 * BLOCK, fixture.damage(&volume, 2 * BLOCK)),
        (
            id(1),
            CHUNK + 4 * BLOCK,
            fixture.damage(&volume, CHUNK + 4 * BLOCK),
        ),
        (
            id(1),
            7 * CHUNK + BLOCK,
            fixture.damage(&volume, 7 * CHUNK + BLOCK),
        ),
        (of_snapshot, 15 * BLOCK, fixture.damage(&snapshot, 15 * BLOCK)),
        (
            of_snapshot,
            CHUNK + 8 * BLOCK,
            fixture.damage(&snapshot, CHUNK + 8 * BLOCK),
        ),
        (id(2), 5 * CHUNK, fixture.damage(&encrypted, 5 * CHUNK)),
    ];
    fixture.damage(&fixture.writer(3), 0);
    expected.sort_by_key(|place| place.2);
    drop((volume, snapshot, encrypted));
    // Without keys, after a restart.
    let fixture = fixture.cut();
    let found = fixture.scrub();
    let found_places: Vec<_> = places(&found);
    let at: Vec<u64> = found_places.iter().map(|place| place.2).collect();
    assert_eq!(at, expected.iter().map(|place| place.2).collect::<Vec<_>>());
    for (found, expected) in found_places.iter().zip(&expected) {
        assert_eq!(found.1, expected.1, "{found:?}");
        assert!(found.0 == expected.0 || found.0 == id(1), "{found:?}");
    }
    // What it has found is kept, and forgotten by the next one, which finds it again.
    let fixture = fixture.cut();
    assert_eq!(fixture.status(), found);
    assert_eq!(
        figure(&fixture.pool, "quarry_pool_scrub_damaged_blocks"),
        found.bad_blocks
    );
    assert_eq!(figure(&fixture.pool, "quarry_pool_damaged_reads_total"), 0);
    let damaged = fixture.writer(1).read(2 * BLOCK, &mut [0; BLOCK as usize]);
    assert!(matches!(damaged, Err(IoError::Corrupt { offset, .. }) if offset == 2 * BLOCK));
    assert_eq!(figure(&fixture.pool, "quarry_pool_damaged_reads_total"), 1);
    assert_eq!(fixture.scrub().bad_blocks, found.bad_blocks);
    // Written anew, it is nobody's any more.
    write(&fixture.writer(1), 2 * BLOCK, BLOCK, 9);
    let of_old = fixture.status();
    let gone = of_old.findings.iter().filter(|found| found.version.is_none());
    assert_eq!(gone.count(), 1, "{of_old:?}");
}

#[test]
fn a_scrub_goes_on_after_a_power_cut_and_reads_nothing_twice() {
    let fixture = Fixture::new();
    let volume = fixture.writer(1);
    write(&volume, 0, 6 * MIB, 1);
    let late = 6 * MIB - BLOCK;
    fixture.damage(&volume, BLOCK);
    fixture.damage(&volume, late);
    drop(volume);
    while fixture.pool.maintain().unwrap().more {}
    fixture.pool.start_scrub().unwrap();
    assert!(!fixture.pool.start_scrub().unwrap().is_changed(), "it is running");
    while fixture.status().verified_bytes < 3 * MIB {
        fixture.pool.maintain().unwrap();
    }
    fixture.pool.checkpoint().unwrap();
    let before = fixture.status();
    assert_eq!((before.state, before.bad_blocks), (ScrubState::Running, 1));
    let fixture = fixture.cut();
    assert_eq!(fixture.status(), before);
    let read_before = fixture.device.counts().read_bytes;
    let after = fixture.scrub_to_the_end();
    let read = fixture.device.counts().read_bytes - read_before;
    assert!(read < 4 * MIB, "{read} bytes read for the rest");
    assert_eq!((after.verified_bytes, after.bad_blocks), (6 * MIB, 2));
    assert_eq!(after.findings.last().map(|found| found.offset), Some(late));
}

#[test]
fn a_scrub_can_be_stopped_and_the_next_one_begins_anew() {
    let fixture = Fixture::new();
    write(&fixture.writer(1), 0, 4 * MIB, 1);
    assert!(!fixture.pool.stop_scrub().unwrap().is_changed());
    fixture.pool.start_scrub().unwrap();
    fixture.pool.maintain().unwrap();
    assert!(fixture.pool.stop_scrub().unwrap().is_changed());
    while fixture.pool.maintain().unwrap().more {}
    let stopped = fixture.status();
    assert_eq!(stopped.state, ScrubState::Stopped);
    assert!(stopped.verified_bytes < stopped.total_bytes);
    let fixture = fixture.cut();
    assert_eq!(fixture.status(), stopped);
    assert_eq!(fixture.scrub().total_bytes, 4 * MIB);
}

#[test]
fn where_nothing_has_checksums_nothing_is_begun_and_what_has_none_is_told() {
    let device = SimDevice::new(32 * MIB, 1);
    let options = FormatOptions {
        log_bytes: 64 << 10,
        ..FormatOptions::default()
    };
    Pool::format(device.as_ref(), &options).unwrap();
    let pool = Pool::open(device.clone(), OpenOptions::default()).unwrap();
    let begun = pool.start_scrub().unwrap();
    assert!(!begun.is_changed());
    assert_eq!(begun.into_inner(), ScrubStatus::default());
    let fixture = Fixture { device, pool };
    let plain = VolumeSpec {
        checksums: false,
        ..blank(1)
    };
    fixture.pool.create_volume(&plain).unwrap();
    write(&fixture.writer(1), 0, MIB, 1);
    let begun = fixture.pool.start_scrub().unwrap();
    assert!(!begun.is_changed());
    let expected = ScrubStatus {
        unverifiable_bytes: MIB,
        ..ScrubStatus::default()
    };
    assert_eq!(begun.into_inner(), expected);
    fixture.pool.create_volume(&blank(2)).unwrap();
    write(&fixture.writer(2), 0, 2 * MIB, 1);
    let scrubbed = fixture.scrub();
    assert_eq!(
        (scrubbed.total_bytes, scrubbed.unverifiable_bytes),
        (2 * MIB, MIB)
    );
}

#[test]
fn a_scrub_in_the_background_goes_no_faster_than_it_may() {
    let fixture = Fixture::new();
    write(&fixture.writer(1), 0, 6 * MIB, 1);
    let Fixture { device, pool } = fixture;
    pool.close().unwrap();
    drop(pool);
    let options = OpenOptions {
        scrub_bytes_per_second: 8 * MIB,
        ..OpenOptions::default()
    };
    let pool = Pool::open(device.power_cycle(), options).unwrap();
    while pool.maintain().unwrap().more {}
    pool.start_scrub().unwrap();
    let begun = Instant::now();
    let maintainer = Maintainer::start(Arc::clone(&pool)).unwrap();
    while pool.scrub_status().unwrap().state == ScrubState::Running {
        assert!(begun.elapsed() < Duration::from_secs(30));
        thread::sleep(Duration::from_millis(5));
    }
    // The first of three steps is not waited for.
    assert!(
        begun.elapsed() >= Duration::from_millis(500),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(pool.scrub_status().unwrap().verified_bytes, 6 * MIB);
    drop(maintainer);
}
