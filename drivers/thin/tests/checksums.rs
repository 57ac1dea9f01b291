//! Checksummed volumes: whatever the medium does to what it has flushed is found, named, and goes no further.

use std::collections::BTreeSet;
use std::sync::Arc;

use quarry_contract::{
    DataSource, Durability, IoError, OpenMode, SnapshotId, SnapshotSpec, VersionId, VolumeId, VolumeKey,
    VolumeSpec, ZeroMode,
};
use quarry_thin::sim::SimDevice;
use quarry_thin::{Finished, FormatOptions, OpenOptions, Place, Planned, Pool, PoolDevice, VersionHandle};

const CHUNK: u64 = 64 << 10;
const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;

fn volume_id(number: u128) -> VolumeId {
    VolumeId(uuid::Uuid::from_u128(number))
}

fn snapshot_id(number: u128) -> SnapshotId {
    SnapshotId(uuid::Uuid::from_u128(0x5000 + number))
}

/// A pool on a medium that can be tampered with.
struct Fixture {
    device: Arc<SimDevice>,
    pool: Arc<Pool>,
}

fn spec(number: u128, source: DataSource, checksums: bool) -> VolumeSpec {
    VolumeSpec {
        checksums,
        ..VolumeSpec::new(volume_id(number), 4 * MIB, source)
    }
}

impl Fixture {
    fn new() -> Self {
        let device = SimDevice::new(64 * MIB, 7);
        let options = FormatOptions {
            log_bytes: 256 << 10,
            ..FormatOptions::default()
        };
        Pool::format(device.as_ref(), &options).unwrap();
        let pool = Pool::open(device.clone(), OpenOptions::default()).unwrap();
        Self { device, pool }
    }

    /// With volume 1, which is checksummed.
    fn with_volume() -> (Self, Arc<VersionHandle>) {
        let fixture = Self::new();
        let blank = spec(1, DataSource::Blank, true);
        assert!(fixture.pool.create_volume(&blank).unwrap().is_changed());
        let handle = fixture.writer(1);
        (fixture, handle)
    }

    fn writer(&self, number: u128) -> Arc<VersionHandle> {
        let id = VersionId::Volume(volume_id(number));
        self.pool.open_version(id, OpenMode::ReadWrite).unwrap()
    }

    fn snapshot(&self, number: u128, volume: u128) -> Arc<VersionHandle> {
        let snapshot = SnapshotSpec {
            id: snapshot_id(number),
            volume: volume_id(volume),
        };
        self.pool.create_snapshots(&[snapshot]).unwrap();
        let id = VersionId::Snapshot(snapshot_id(number));
        self.pool.open_version(id, OpenMode::ReadOnly).unwrap()
    }

    /// Cuts the power and opens the pool again.
    fn cut(self) -> Self {
        let device = self.device.power_cycle();
        drop(self.pool);
        let pool = Pool::open(device.clone(), OpenOptions::default()).unwrap();
        Self { device, pool }
    }

    fn maintain_to_the_end(&self) {
        while self.pool.maintain().unwrap().more {}
    }
}

fn bytes(seed: u8, length: u64) -> Vec<u8> {
    (0..length).map(|at| seed ^ (at / 512) as u8 ^ at as u8).collect()
}

fn write(handle: &VersionHandle, offset: u64, data: &[u8]) {
    handle.write(offset, data, Durability::Flushed).unwrap();
}

fn read(handle: &VersionHandle, offset: u64, length: u64) -> Result<Vec<u8>, IoError> {
    let mut found = vec![0xa5; length as usize];
    handle.read(offset, &mut found).map(|()| found)
}

/// Where a block of a version is on the medium.
fn place_of(handle: &VersionHandle, offset: u64) -> u64 {
    let Planned::Direct(plan) = handle.plan_read(offset, BLOCK as usize) else {
        panic!("a read of what is in memory is planned");
    };
    match plan.segments[..] {
        [ref segment] => match segment.place {
            Place::Device(at) => at,
            Place::Zeros => panic!("nothing is at {offset}"),
        },
        _ => panic!("a block in pieces"),
    }
}

/// Asserts that every way to read a block says that it is damaged, and where.
fn assert_corrupt(handle: &VersionHandle, offset: u64, what: &str) {
    let block = offset / BLOCK * BLOCK;
    for (from, length) in [
        (block, BLOCK),
        (block, 512),
        (block + 512, 512),
        (block + BLOCK - 512, 512),
    ] {
        match read(handle, from, length) {
            Err(IoError::Corrupt { offset, detail }) => {
                assert_eq!(offset, block, "{what}, from {from}");
                let at = format!("at byte {} of the pool", place_of(handle, block));
                assert!(detail.ends_with(&at), "{what}, from {from}: {detail}");
            }
            other => panic!("{what}: {length} bytes from {from}: {:?}", other.map(|_| "read")),
        }
    }
    let around = block / CHUNK * CHUNK;
    let length = (2 * CHUNK).min(handle.size_bytes() - around);
    let Planned::Direct(plan) = handle.plan_read(around, length as usize) else {
        panic!("{what}: not planned");
    };
    let mut found = vec![0; length as usize];
    let device = handle.pool().device();
    for segment in &plan.segments {
        if let Place::Device(at) = segment.place {
            device.read_at(at, &mut found[segment.buffer.clone()]).unwrap();
        }
    }
    match plan.guard.finish_blocking(&found) {
        Err(IoError::Corrupt { offset, .. }) => assert_eq!(offset, block, "{what}, planned"),
        other => panic!("{what}: a planned read: {other:?}"),
    }
}

/// D3: the kinds of blocks there are: of a whole chunk, of a partial one, lent, shared, in an encrypted volume.
#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let (fixture, handle) = Fixture::with_volume();
    write(&handle, 0, &bytes(1, 2 * CHUNK));
    write(&handle, 3 * CHUNK + 2 * BLOCK, &bytes(2, BLOCK));
    let snapshot = fixture.snapshot(1, 1);
    // Partial, and borrows from what the snapshot has.
    write(&handle, CHUNK + 5 * BLOCK, &bytes(3, 2 * BLOCK));
    // Borrow from what borrows and is nobody's any more, and from what holds a block and is a snapshot's.
    write(&handle, CHUNK + 6 * BLOCK, &bytes(4, 2 * BLOCK));
    write(&handle, 3 * CHUNK + 5 * BLOCK, &bytes(5, BLOCK));
    let expected = read(&handle, 0, 4 * CHUNK).unwrap();
    let kept = read(&snapshot, 0, 4 * CHUNK).unwrap();
    let subjects = [
        (&handle, 0, "a whole chunk"),
        (&handle, 15 * BLOCK, "its last block"),
        (&handle, CHUNK + 6 * BLOCK, "a partial chunk's own"),
        (&handle, CHUNK + 7 * BLOCK, "its second own"),
        (&handle, CHUNK + 5 * BLOCK, "lent by one that is partial"),
        (&handle, CHUNK, "lent by what lends to that"),
        (&handle, CHUNK + 15 * BLOCK, "the last one lent"),
        (&handle, 3 * CHUNK + 2 * BLOCK, "lent by one without lender"),
        (&handle, 3 * CHUNK + 5 * BLOCK, "beside that"),
        (&snapshot, CHUNK + 5 * BLOCK, "a snapshot's"),
        (&snapshot, 3 * CHUNK + 2 * BLOCK, "a snapshot's that lends"),
    ];
    let places: BTreeSet<u64> = [5, 6, 0]
        .map(|block| place_of(&handle, CHUNK + block * BLOCK) / CHUNK)
        .into();
    assert_eq!(places.len(), 3, "a row of three");
    for (handle, offset, what) in subjects {
        let at = place_of(handle, offset);
        for (byte, bit) in [(0, 0), (1, 7), (2047, 3), (4095, 7)] {
            fixture.device.flip_bit(at + byte, bit);
            assert_corrupt(handle, offset, what);
            fixture.device.flip_bit(at + byte, bit);
        }
        assert!(read(handle, offset, BLOCK).is_ok(), "{what}");
    }
    assert_eq!(read(&handle, 0, 4 * CHUNK).unwrap(), expected);
    assert_eq!(read(&snapshot, 0, 4 * CHUNK).unwrap(), kept);
}

/// Every block of flushed data, each with a bit that differs from block to block, after a power cut.
#[test]
fn every_block_is_verified_after_a_power_cut_and_by_every_version_that_has_it() {
    let (fixture, handle) = Fixture::with_volume();
    write(&handle, 0, &bytes(1, 2 * CHUNK));
    write(&handle, 4 * BLOCK, &bytes(2, 3 * BLOCK));
    drop(handle);
    let fixture = fixture.cut();
    let clone = spec(2, DataSource::Volume(volume_id(1)), false);
    let clone = fixture.pool.create_volume(&clone).unwrap().into_inner();
    assert!(clone.checksums, "D4: what is made of it is as it is");
    let (first, second) = (fixture.writer(1), fixture.writer(2));
    for block in 0..2 * CHUNK / BLOCK {
        let offset = block * BLOCK;
        let byte = place_of(&first, offset) + block * 37 % BLOCK;
        fixture.device.flip_bit(byte, (block % 8) as u8);
        for handle in [&first, &second] {
            assert_corrupt(handle, offset, "after a cut");
        }
        fixture.device.flip_bit(byte, (block % 8) as u8);
    }
}

#[test]
fn a_lost_and_a_misdirected_write_are_found() {
    let (fixture, handle) = Fixture::with_volume();
    write(&handle, 0, &bytes(1, 4 * CHUNK));
    let old = fixture.device.peek(place_of(&handle, 2 * CHUNK), CHUNK as usize);
    // Rewritten twice, so that its chunk held an earlier version of the same blocks.
    for seed in [2, 3] {
        write(&handle, 2 * CHUNK, &bytes(seed, CHUNK));
    }
    let at = place_of(&handle, 2 * CHUNK);
    let new = fixture.device.peek(at, CHUNK as usize);
    // Lost: the medium still has what was there before.
    fixture.device.overwrite(at, &old);
    assert_corrupt(&handle, 2 * CHUNK, "a lost write");
    fixture.device.overwrite(at, &new);
    assert!(read(&handle, 0, 4 * CHUNK).is_ok());
    // Misdirected: what belongs here is elsewhere too.
    let elsewhere = place_of(&handle, CHUNK + BLOCK);
    let victim = fixture.device.peek(elsewhere, BLOCK as usize);
    fixture.device.overwrite(elsewhere, &new[..BLOCK as usize]);
    assert_corrupt(&handle, CHUNK + BLOCK, "a misdirected write");
    fixture.device.overwrite(elsewhere, &victim);
    assert!(read(&handle, 0, 4 * CHUNK).is_ok());
}

/// A damaged block is healed by writing it anew, and by nothing else; its neighbours stay readable and writable.
#[test]
fn a_damaged_block_is_healed_by_being_written_and_spreads_nowhere() {
    let (fixture, handle) = Fixture::with_volume();
    write(&handle, 0, &bytes(1, CHUNK));
    fixture.device.flip_bit(place_of(&handle, 3 * BLOCK), 5);
    assert_corrupt(&handle, 3 * BLOCK, "flipped");
    let part = handle.write(3 * BLOCK + 512, &bytes(9, 512), Durability::Cached);
    assert!(
        matches!(part, Err(IoError::Corrupt { offset, .. }) if offset == 3 * BLOCK),
        "{part:?}"
    );
    // A neighbour, a part of a neighbour, over a chunk that is whole and over one that is partial.
    write(&handle, 7 * BLOCK, &bytes(2, BLOCK));
    write(&handle, 7 * BLOCK, &bytes(3, BLOCK));
    write(&handle, 8 * BLOCK + 512, &bytes(4, 1024));
    write(&handle, 7 * BLOCK + 512, &bytes(5, 512));
    assert_corrupt(&handle, 3 * BLOCK, "lent");
    handle
        .write_atomic(9 * BLOCK + 512, &bytes(8, BLOCK), Durability::Flushed)
        .unwrap();
    let part = handle.write_atomic(3 * BLOCK + 512, &bytes(9, 512), Durability::Cached);
    assert!(matches!(part, Err(IoError::Corrupt { .. })), "{part:?}");
    // Copied by the background: what was wrong stays wrong.
    fixture.maintain_to_the_end();
    assert_eq!(fixture.pool.stat().partial_chunks, 0);
    assert_corrupt(&handle, 3 * BLOCK, "copied by the background");
    // Copied as a whole, because no chunk may be partial.
    drop(handle);
    let device = fixture.device.power_cycle();
    let options = OpenOptions {
        max_partial_chunks: 0,
        ..OpenOptions::default()
    };
    let pool = Pool::open(device.clone(), options).unwrap();
    let fixture = Fixture { device, pool };
    let handle = fixture.writer(1);
    let before = place_of(&handle, 0);
    write(&handle, 9 * BLOCK + 512, &bytes(6, 512));
    assert_ne!(place_of(&handle, 0), before, "the chunk was copied");
    assert_corrupt(&handle, 3 * BLOCK, "copied as a whole");
    let part = handle.write(3 * BLOCK + 512, &bytes(9, 512), Durability::Cached);
    assert!(matches!(part, Err(IoError::Corrupt { .. })), "{part:?}");
    write(&handle, 3 * BLOCK, &bytes(7, BLOCK));
    assert_eq!(read(&handle, 3 * BLOCK, BLOCK).unwrap(), bytes(7, BLOCK));
    assert!(read(&handle, 0, CHUNK).is_ok());
}

/// D3: a copy is never made true by a sum of what was copied, in whatever way it is made.
#[test]
fn d3_what_is_copied_takes_its_sums_along() {
    let (fixture, handle) = Fixture::with_volume();
    // Filled from a lender by the background.
    write(&handle, 0, &bytes(1, CHUNK));
    fixture.device.flip_bit(place_of(&handle, 3 * BLOCK), 5);
    write(&handle, 7 * BLOCK, &bytes(2, BLOCK));
    let lent = place_of(&handle, 3 * BLOCK);
    fixture.maintain_to_the_end();
    assert_eq!(fixture.pool.stat().partial_chunks, 0);
    assert_ne!(place_of(&handle, 3 * BLOCK), lent, "it was copied");
    assert_corrupt(&handle, 3 * BLOCK, "filled");
    // Filled from a partial lender, and from what lends to that.
    write(&handle, CHUNK, &bytes(3, CHUNK));
    fixture.device.flip_bit(place_of(&handle, CHUNK + 5 * BLOCK), 5);
    write(&handle, CHUNK + BLOCK, &bytes(3, BLOCK));
    write(&handle, CHUNK + 3 * BLOCK, &bytes(4, BLOCK));
    let lent = place_of(&handle, CHUNK + 3 * BLOCK);
    fixture.device.flip_bit(lent, 5);
    write(&handle, CHUNK + BLOCK, &bytes(5, BLOCK));
    assert_eq!(place_of(&handle, CHUNK + 3 * BLOCK), lent, "nothing was copied");
    fixture.maintain_to_the_end();
    assert_ne!(place_of(&handle, CHUNK + 3 * BLOCK), lent, "it was copied");
    assert_corrupt(&handle, CHUNK + 3 * BLOCK, "filled from a partial lender");
    let whole = read(&handle, CHUNK + 5 * BLOCK, BLOCK);
    assert!(
        matches!(whole, Err(IoError::Corrupt { offset, .. }) if offset == CHUNK + 5 * BLOCK),
        "filled from what lends to that: {whole:?}"
    );
    assert_eq!(read(&handle, CHUNK + BLOCK, BLOCK).unwrap(), bytes(5, BLOCK));
    // Kept by a chunk that takes the place of a partial one which may lend no more.
    write(&handle, 2 * CHUNK, &bytes(1, CHUNK));
    for round in 0..16 {
        write(&handle, 2 * CHUNK + round % 2 * BLOCK, &bytes(round as u8, BLOCK));
    }
    write(&handle, 2 * CHUNK + 3 * BLOCK, &bytes(4, BLOCK));
    let kept = place_of(&handle, 2 * CHUNK + 3 * BLOCK);
    fixture.device.flip_bit(kept, 5);
    write(&handle, 2 * CHUNK + BLOCK, &bytes(5, BLOCK));
    assert_ne!(place_of(&handle, 2 * CHUNK + 3 * BLOCK), kept, "it was copied");
    assert_corrupt(&handle, 2 * CHUNK + 3 * BLOCK, "kept");
    for (block, seed) in [(0, 14), (1, 5)] {
        let good = read(&handle, 2 * CHUNK + block * BLOCK, BLOCK).unwrap();
        assert_eq!(good, bytes(seed, BLOCK));
    }
}

/// D2: what was given is never written again, whatever way the overwrite comes.
#[test]
fn d2_an_overwrite_goes_elsewhere() {
    let (fixture, handle) = Fixture::with_volume();
    write(&handle, 0, &bytes(1, 2 * CHUNK));
    let overwrites: [(&str, &dyn Fn()); 7] = [
        ("a block", &|| write(&handle, 0, &bytes(2, BLOCK))),
        ("the same one again", &|| write(&handle, 0, &bytes(3, BLOCK))),
        ("a part of it", &|| write(&handle, 512, &bytes(4, 512))),
        ("the chunk", &|| write(&handle, 0, &bytes(5, CHUNK))),
        ("both chunks and more", &|| {
            write(&handle, 0, &bytes(6, 3 * CHUNK))
        }),
        ("all or nothing", &|| {
            handle
                .write_atomic(512, &bytes(7, CHUNK), Durability::Flushed)
                .unwrap();
        }),
        ("zeros", &|| {
            handle.write_zeroes(0, BLOCK, ZeroMode::KeepMapped).unwrap();
            handle.flush().unwrap();
        }),
    ];
    for (what, overwrite) in overwrites {
        let at = place_of(&handle, 0);
        let before = fixture.device.peek(at, BLOCK as usize);
        overwrite();
        assert_ne!(place_of(&handle, 0), at, "{what}");
        assert_eq!(fixture.device.peek(at, BLOCK as usize), before, "{what}");
    }
    // Other blocks of a partial chunk are added to it.
    write(&handle, CHUNK, &bytes(7, BLOCK));
    let at = place_of(&handle, CHUNK);
    write(&handle, CHUNK + 4 * BLOCK, &bytes(8, BLOCK));
    assert_eq!(place_of(&handle, CHUNK + 4 * BLOCK), at + 4 * BLOCK);
}

/// C1: the flush that makes a mapping durable makes its sums durable too.
#[test]
fn a_flushed_write_costs_one_flush() {
    let (fixture, handle) = Fixture::with_volume();
    write(&handle, 0, &bytes(1, CHUNK));
    for (round, offset) in [(1, 3 * BLOCK), (2, 3 * BLOCK), (3, 5 * BLOCK), (4, 9 * CHUNK)] {
        let before = fixture.device.counts().flushes;
        write(&handle, offset, &bytes(round, BLOCK));
        assert_eq!(fixture.device.counts().flushes - before, 1, "write {round}");
    }
}

/// One block written over and over moves one block each time: nothing around it is copied in front of the answer.
#[test]
fn a_hot_block_moves_only_itself() {
    let (fixture, handle) = Fixture::with_volume();
    write(&handle, 0, &bytes(1, CHUNK));
    for round in 0..20 {
        let before = fixture.device.counts();
        handle
            .write(3 * BLOCK, &bytes(round, BLOCK), Durability::Cached)
            .unwrap();
        let after = fixture.device.counts();
        assert_eq!(after.written_bytes - before.written_bytes, BLOCK, "round {round}");
    }
    assert_eq!(
        fixture.pool.stat().orphan_chunks,
        1,
        "what nobody sees is not kept"
    );
    // Two blocks that take turns: each borrows the other, and copies it when eight lie below.
    for round in 0..20 {
        let block = 3 + u64::from(round % 2) * 4;
        let before = fixture.device.counts();
        handle
            .write(block * BLOCK, &bytes(round, BLOCK), Durability::Cached)
            .unwrap();
        let after = fixture.device.counts();
        assert!(
            after.written_bytes - before.written_bytes <= 2 * BLOCK,
            "round {round}"
        );
    }
    fixture.maintain_to_the_end();
    assert!(fixture.pool.check().unwrap().problems.is_empty());
    assert!(read(&handle, 0, CHUNK).is_ok());
    assert_eq!(read(&handle, 3 * BLOCK, BLOCK).unwrap(), bytes(18, BLOCK));
}

/// D1: blocks that are added to a chunk as planned are so only together with their sums, for which a page has to be loaded first.
#[test]
fn a_planned_write_waits_for_the_page_of_its_sums() {
    let (fixture, handle) = Fixture::with_volume();
    write(&handle, 0, &bytes(1, BLOCK));
    fixture.pool.checkpoint().unwrap();
    drop(handle);
    let fixture = fixture.cut();
    let handle = fixture.writer(1);
    // Nothing is there, but the page of the map is loaded.
    assert_eq!(read(&handle, CHUNK, BLOCK).unwrap(), vec![0; BLOCK as usize]);
    let Planned::Direct(plan) = handle.plan_write(2 * BLOCK, BLOCK as usize) else {
        panic!("what goes to a partial chunk is planned");
    };
    let Place::Device(at) = plan.segments[0].place else {
        panic!("a write has a place");
    };
    let data = bytes(2, BLOCK);
    fixture.device.write_at(at, &data).unwrap();
    let Finished::NeedsSlowPath(guard) = plan.guard.finish(&data) else {
        panic!("the page is not in memory");
    };
    guard.finish_blocking(&data).unwrap();
    handle.flush().unwrap();
    for (block, seed) in [(0, 1), (2, 2)] {
        assert_eq!(read(&handle, block * BLOCK, BLOCK).unwrap(), bytes(seed, BLOCK));
    }
}

#[test]
fn an_encrypted_volume_is_verified_as_it_is_on_the_medium() {
    let fixture = Fixture::new();
    let key = VolumeKey::new([7; VolumeKey::BYTES]);
    let blank = spec(1, DataSource::Blank, true);
    let created = fixture.pool.create_encrypted_volume(&blank, &key).unwrap();
    assert!(created.into_inner().checksums);
    let again = fixture.pool.create_encrypted_volume(&blank, &key).unwrap();
    assert!(!again.is_changed());
    let handle = fixture.writer(1);
    write(&handle, 0, &bytes(1, CHUNK));
    write(&handle, BLOCK + 512, &bytes(2, 512));
    assert_eq!(read(&handle, BLOCK + 512, 512).unwrap(), bytes(2, 512));
    fixture.device.flip_bit(place_of(&handle, 2 * BLOCK) + 9, 1);
    assert_corrupt(&handle, 2 * BLOCK, "encrypted");
}

fn incompat(fixture: &Fixture) -> u64 {
    u64::from_le_bytes(fixture.device.peek(56, 8).try_into().unwrap())
}

#[test]
fn what_a_volume_is_made_of_decides_whether_it_has_checksums() {
    let fixture = Fixture::new();
    let create = |number, source, checksums| fixture.pool.create_volume(&spec(number, source, checksums));
    assert!(
        !create(1, DataSource::Blank, false)
            .unwrap()
            .into_inner()
            .checksums
    );
    assert_eq!(incompat(&fixture) & (32 | 256), 0, "an older Quarry opens it");
    assert!(create(2, DataSource::Blank, true).unwrap().into_inner().checksums);
    assert_eq!(incompat(&fixture) & (32 | 256), 32 | 256);
    assert!(create(2, DataSource::Blank, false).is_err(), "another one exists");
    assert!(create(1, DataSource::Blank, true).is_err(), "another one exists");
    let (plain, checked) = (DataSource::Volume(volume_id(1)), DataSource::Volume(volume_id(2)));
    assert!(create(3, plain, true).is_err(), "its blocks have none");
    assert!(!create(3, plain, false).unwrap().into_inner().checksums);
    for asked in [true, false] {
        let clone = create(4 + u128::from(asked), checked, asked).unwrap();
        assert!(clone.into_inner().checksums);
        let again = create(4 + u128::from(asked), checked, !asked);
        assert!(!again.unwrap().is_changed());
    }
    fixture.snapshot(1, 2);
    fixture
        .pool
        .revert_volume(volume_id(2), snapshot_id(1))
        .map(drop)
        .unwrap();
    let fixture = fixture.cut();
    for (number, has) in [(1, false), (2, true), (3, false), (4, true), (5, true)] {
        assert_eq!(
            fixture.pool.volume(volume_id(number)).unwrap().checksums,
            has,
            "{number}"
        );
    }
}

/// A volume without checksums in a pool that has others: not a byte more on the medium, not a call more.
#[test]
fn a_volume_without_checksums_pays_nothing() {
    let work = |other: bool| {
        let fixture = Fixture::new();
        fixture
            .pool
            .create_volume(&spec(1, DataSource::Blank, false))
            .unwrap();
        if other {
            fixture
                .pool
                .create_volume(&spec(2, DataSource::Blank, true))
                .unwrap();
        }
        fixture.pool.checkpoint().unwrap();
        let handle = fixture.writer(1);
        let before = fixture.device.counts();
        write(&handle, 0, &bytes(1, 2 * CHUNK));
        write(&handle, 5 * CHUNK + BLOCK, &bytes(2, BLOCK));
        for round in 0..4 {
            write(&handle, 3 * BLOCK, &bytes(round, BLOCK));
            write(&handle, 512, &bytes(round, 512));
        }
        let _ = read(&handle, 0, MIB).unwrap();
        let after = fixture.device.counts();
        [
            after.written_bytes - before.written_bytes,
            after.writes - before.writes,
            after.reads - before.reads,
            after.flushes - before.flushes,
        ]
    };
    assert_eq!(work(false), work(true));
}
