//! What first writes cost: calls and bytes that reach the device.

use std::sync::Arc;

use quarry_contract::{
    DataSource, Durability, IoError, OpenMode, SnapshotId, SnapshotSpec, VersionId, VolumeId, VolumeSpec,
};
use quarry_thin::sim::{Fault, OpCounts, OpKind, SimDevice, Stamp};
use quarry_thin::{
    Finished, FormatOptions, OpenOptions, Place, Plan, Planned, Pool, PoolDevice, VersionHandle,
};
use uuid::Uuid;

const CHUNK: u64 = 64 << 10;
const MIB: u64 = 1 << 20;

struct Fixture {
    device: Arc<SimDevice>,
    pool: Arc<Pool>,
    handle: Arc<VersionHandle>,
}

impl Fixture {
    fn new() -> Self {
        Self::with_log(MIB)
    }

    fn with_log(log_bytes: u64) -> Self {
        Self::with(log_bytes, false)
    }

    fn with(log_bytes: u64, checksums: bool) -> Self {
        let device = SimDevice::new(64 << 20, 1);
        let format = FormatOptions {
            chunk_bytes: CHUNK as u32,
            log_bytes,
            ..FormatOptions::default()
        };
        Pool::format(device.as_ref(), &format).unwrap();
        let pool = Pool::open(device.clone(), OpenOptions::default()).unwrap();
        let id = VolumeId(Uuid::from_u128(1));
        let spec = VolumeSpec {
            checksums,
            ..VolumeSpec::new(id, 1 << 30, DataSource::Blank)
        };
        pool.create_volume(&spec).unwrap();
        let handle = pool
            .open_version(VersionId::Volume(id), OpenMode::ReadWrite)
            .unwrap();
        Self { device, pool, handle }
    }

    fn snapshot(&self, number: u128) -> Arc<VersionHandle> {
        let id = SnapshotId(Uuid::from_u128(number));
        let volume = VolumeId(Uuid::from_u128(1));
        self.pool
            .create_snapshots(&[SnapshotSpec { id, volume }])
            .unwrap();
        self.pool
            .open_version(VersionId::Snapshot(id), OpenMode::ReadOnly)
            .unwrap()
    }

    fn write(&self, offset: u64, length: u64, stamp: u64) -> Result<(), IoError> {
        let data = Stamp(stamp).bytes(offset, length as usize);
        self.handle.write(offset, &data, Durability::Cached)
    }

    /// Writes, and returns what that asked of the device.
    fn cost_of_write(&self, offset: u64, length: u64, stamp: u64) -> OpCounts {
        let before = self.device.counts();
        self.write(offset, length, stamp).unwrap();
        let after = self.device.counts();
        OpCounts {
            reads: after.reads - before.reads,
            writes: after.writes - before.writes,
            discards: after.discards - before.discards,
            flushes: after.flushes - before.flushes,
            allocations: after.allocations - before.allocations,
            read_bytes: after.read_bytes - before.read_bytes,
            written_bytes: after.written_bytes - before.written_bytes,
        }
    }

    fn assert_sound(&self) {
        let report = self.pool.check().unwrap();
        assert!(report.problems.is_empty(), "{:?}", report.problems);
    }
}

fn assert_holds(handle: &VersionHandle, offset: u64, length: u64, stamp: u64) {
    let mut bytes = vec![0xa5; length as usize];
    handle.read(offset, &mut bytes).unwrap();
    assert!(
        bytes == Stamp(stamp).bytes(offset, length as usize),
        "B1: {offset}+{length}"
    );
}

fn one_write_of(length: u64) -> OpCounts {
    OpCounts {
        writes: 1,
        written_bytes: length,
        ..OpCounts::default()
    }
}

#[test]
fn a_first_write_of_whole_chunks_is_one_write_of_just_its_bytes() {
    let fixture = Fixture::new();
    // The second one lies across two leaves of the map.
    for (offset, stamp) in [(0, 1), (512 * CHUNK - MIB / 2, 2)] {
        let cost = fixture.cost_of_write(offset, MIB, stamp);
        assert_eq!(cost, one_write_of(MIB), "at {offset}");
        assert_holds(&fixture.handle, offset, MIB, stamp);
    }
    fixture.assert_sound();
}

#[test]
fn whole_chunks_after_a_snapshot_are_one_write_and_nothing_is_read() {
    let fixture = Fixture::new();
    fixture.write(0, MIB, 1).unwrap();
    let snapshot = fixture.snapshot(7);
    assert_eq!(fixture.cost_of_write(0, MIB, 2), one_write_of(MIB));
    assert_holds(&fixture.handle, 0, MIB, 2);
    assert_holds(&snapshot, 0, MIB, 1);
    fixture.assert_sound();
}

#[test]
fn a_write_over_owned_shared_and_unmapped_chunks_keeps_each_where_it_belongs() {
    let fixture = Fixture::new();
    fixture.write(0, 6 * CHUNK, 1).unwrap();
    let snapshot = fixture.snapshot(7);
    fixture.write(2 * CHUNK, 2 * CHUNK, 2).unwrap();
    // Shared, owned, shared, unmapped, with half a chunk on both sides.
    fixture.write(CHUNK / 2, 8 * CHUNK, 3).unwrap();
    assert_holds(&fixture.handle, CHUNK / 2, 8 * CHUNK, 3);
    assert_holds(&fixture.handle, 0, CHUNK / 2, 1);
    assert_holds(&snapshot, 0, 6 * CHUNK, 1);
    fixture.assert_sound();
}

#[test]
fn a_first_write_that_fails_leaves_no_trace() {
    let fixture = Fixture::new();
    fixture.write(0, CHUNK, 1).unwrap();
    fixture.pool.checkpoint().unwrap();
    let status = fixture.pool.status();
    for fault in [Fault::Io, Fault::NoSpace] {
        fixture.device.fail(OpKind::Write, 0, 1, fault);
        assert!(fixture.write(CHUNK, MIB, 2).is_err(), "B6");
        assert_eq!(fixture.pool.status(), status, "B6");
        let mut bytes = vec![0xa5; MIB as usize];
        fixture.handle.read(CHUNK, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0), "B6");
    }
    fixture.assert_sound();
}

#[test]
fn a_first_write_of_4_kib_is_one_write_of_4_kib() {
    let fixture = Fixture::new();
    for block in [3, 5, 4, 0] {
        let cost = fixture.cost_of_write(block * 4096, 4096, block + 1);
        assert_eq!(cost, one_write_of(4096), "block {block}");
    }
    for (block, stamp) in [(0, 1), (3, 4), (4, 5), (5, 6)] {
        assert_holds(&fixture.handle, block * 4096, 4096, stamp);
    }
    let mut between = vec![0xa5; 2 * 4096];
    fixture.handle.read(4096, &mut between).unwrap();
    assert!(between.iter().all(|byte| *byte == 0), "F1");
    fixture.assert_sound();
}

#[test]
fn a_write_that_goes_on_in_a_partial_chunk_is_planned_and_counts_once_it_is_finished() {
    let fixture = Fixture::new();
    fixture.write(0, 4096, 1).unwrap();
    let planned = |stamp: u64| {
        let Planned::Direct(plan) = fixture.handle.plan_write(4096, 8192) else {
            panic!("nothing stands in the way of a plan");
        };
        let [segment] = plan.segments.as_slice() else {
            panic!("one chunk is one segment");
        };
        let Place::Device(at) = segment.place else {
            panic!("a write has a place");
        };
        let data = Stamp(stamp).bytes(4096, 8192);
        fixture.device.write_at(at, &data).unwrap();
        (plan, data)
    };
    let zeros = |offset: u64, length: u64| {
        let mut bytes = vec![0xa5; length as usize];
        fixture.handle.read(offset, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0), "F1: {offset}+{length}");
    };
    drop(planned(2));
    zeros(4096, CHUNK - 4096);
    let (plan, data) = planned(3);
    plan.guard.finish_blocking(&data).unwrap();
    assert_holds(&fixture.handle, 4096, 8192, 3);
    zeros(3 * 4096, CHUNK - 3 * 4096);
    fixture.handle.flush().unwrap();
    fixture.assert_sound();
    let Fixture { device, pool, handle } = fixture;
    drop((handle, pool));
    let pool = Pool::open(device.power_cycle(), OpenOptions::default()).unwrap();
    let volume = VersionId::Volume(VolumeId(Uuid::from_u128(1)));
    let handle = pool.open_version(volume, OpenMode::ReadOnly).unwrap();
    assert_holds(&handle, 0, 4096, 1);
    assert_holds(&handle, 4096, 8192, 3);
}

#[test]
fn a_4_kib_write_after_a_snapshot_is_one_write_of_4_kib() {
    let fixture = Fixture::new();
    fixture.write(0, CHUNK, 1).unwrap();
    let snapshot = fixture.snapshot(7);
    assert_eq!(fixture.cost_of_write(8192, 4096, 2), one_write_of(4096));
    assert_eq!(fixture.cost_of_write(20480, 8192, 3), one_write_of(8192));
    // An overwrite of what the chunk has by now costs the same, and changes no mapping.
    assert_eq!(fixture.cost_of_write(20480, 4096, 4), one_write_of(4096));
    assert_holds(&snapshot, 0, CHUNK, 1);
    for (offset, length, stamp) in [(0, 8192, 1), (8192, 4096, 2), (12288, 8192, 1), (20480, 4096, 4)] {
        assert_holds(&fixture.handle, offset, length, stamp);
    }
    fixture.assert_sound();
    while fixture.pool.maintain().unwrap().more {}
    assert_holds(&snapshot, 0, CHUNK, 1);
    for (offset, length, stamp) in [(0, 8192, 1), (8192, 4096, 2), (12288, 8192, 1), (24576, 4096, 3)] {
        assert_holds(&fixture.handle, offset, length, stamp);
    }
    fixture.assert_sound();
}

#[test]
fn a_4_kib_write_over_a_partial_chunk_of_a_snapshot_is_one_write_of_4_kib() {
    let fixture = Fixture::new();
    // Nothing lies below these chunks, and nothing has filled them.
    for chunk in 0..3 {
        fixture.write(chunk * CHUNK + 8192, 4096, 1).unwrap();
    }
    let snapshot = fixture.snapshot(7);
    let beside = fixture.cost_of_write(20480, 4096, 2);
    assert_eq!(beside, one_write_of(4096), "the rest is lent");
    let over = fixture.cost_of_write(CHUNK + 8192, 4096, 3);
    assert_eq!(over, one_write_of(4096), "nothing else is in the chunk");
    let (plan, data) = planned(&fixture, 2 * CHUNK + 4096, 8192, 4);
    plan.guard.finish_blocking(&data).unwrap();

    let check = |fixture: &Fixture, snapshot: &VersionHandle| {
        let zeros = |handle: &VersionHandle, offset: u64, length: u64| {
            let mut bytes = vec![0xa5; length as usize];
            handle.read(offset, &mut bytes).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0), "F1: {offset}+{length}");
        };
        for chunk in 0..3 {
            assert_holds(snapshot, chunk * CHUNK + 8192, 4096, 1);
            zeros(snapshot, chunk * CHUNK, 8192);
            zeros(snapshot, chunk * CHUNK + 12288, CHUNK - 12288);
        }
        let volume = &fixture.handle;
        assert_holds(volume, 8192, 4096, 1);
        assert_holds(volume, 20480, 4096, 2);
        assert_holds(volume, CHUNK + 8192, 4096, 3);
        assert_holds(volume, 2 * CHUNK + 4096, 8192, 4);
        for (offset, length) in [(0, 8192), (12288, 8192), (24576, CHUNK - 24576)] {
            zeros(volume, offset, length);
        }
        zeros(volume, CHUNK, 8192);
        zeros(volume, 2 * CHUNK + 12288, CHUNK - 12288);
        fixture.assert_sound();
    };
    check(&fixture, &snapshot);
    while fixture.pool.maintain().unwrap().more {}
    check(&fixture, &snapshot);

    fixture.handle.flush().unwrap();
    let Fixture { device, pool, handle } = fixture;
    drop((handle, snapshot, pool));
    let device = device.power_cycle();
    let pool = Pool::open(device.clone(), OpenOptions::default()).unwrap();
    let open = |id, mode| pool.open_version(id, mode).unwrap();
    let handle = open(
        VersionId::Volume(VolumeId(Uuid::from_u128(1))),
        OpenMode::ReadWrite,
    );
    let snapshot = open(
        VersionId::Snapshot(SnapshotId(Uuid::from_u128(7))),
        OpenMode::ReadOnly,
    );
    let pool = Arc::clone(&pool);
    check(&Fixture { device, pool, handle }, &snapshot);
}

#[test]
fn a_4_kib_write_over_a_row_of_lenders_is_one_write_of_4_kib_until_there_are_eight() {
    row_of_lenders(false);
}

#[test]
fn a_4_kib_write_of_a_checksummed_volume_over_a_row_of_lenders_is_one_of_4_kib_too() {
    row_of_lenders(true);
}

fn row_of_lenders(checksums: bool) {
    let fixture = Fixture::with(MIB, checksums);
    fixture.write(0, CHUNK, 1).unwrap();
    let mut snapshots = Vec::new();
    for number in 2..=9 {
        snapshots.push(fixture.snapshot(number.into()));
        let cost = fixture.cost_of_write(number * 4096, 4096, number);
        assert_eq!(cost, one_write_of(4096), "write {number}");
    }
    snapshots.push(fixture.snapshot(10));
    let cost = fixture.cost_of_write(10 * 4096, 4096, 10);
    // Everything, or with checksums what the last one holds.
    let copied = if checksums { (2, 2 * 4096) } else { (1, CHUNK) };
    assert_eq!((cost.writes, cost.written_bytes), copied);
    let check = |fixture: &Fixture, snapshots: &[Arc<VersionHandle>]| {
        let holds = |handle: &VersionHandle, upto: u64| {
            for block in 0..16 {
                let stamp = if (2..=upto).contains(&block) { block } else { 1 };
                assert_holds(handle, block * 4096, 4096, stamp);
            }
        };
        for (number, snapshot) in snapshots.iter().enumerate() {
            holds(snapshot, number as u64 + 1);
        }
        holds(&fixture.handle, 10);
        fixture.assert_sound();
    };
    check(&fixture, &snapshots);
    fixture.pool.checkpoint().unwrap();

    let Fixture { device, pool, handle } = fixture;
    drop((handle, snapshots, pool));
    let device = device.power_cycle();
    let pool = Pool::open(device.clone(), OpenOptions::default()).unwrap();
    let volume = VersionId::Volume(VolumeId(Uuid::from_u128(1)));
    let handle = pool.open_version(volume, OpenMode::ReadWrite).unwrap();
    let ids = (2..=10).map(|number| SnapshotId(Uuid::from_u128(number)));
    let open = |id| pool.open_version(VersionId::Snapshot(id), OpenMode::ReadOnly);
    let snapshots: Vec<_> = ids.map(|id| open(id).unwrap()).collect();
    let fixture = Fixture {
        device,
        pool: Arc::clone(&pool),
        handle,
    };
    check(&fixture, &snapshots);
    while pool.maintain().unwrap().more {}
    check(&fixture, &snapshots);
}

/// A checksummed volume never writes again to a block that it has (D2): each overwrite goes to another chunk, and moves nothing else.
#[test]
fn overwrites_of_a_checksummed_volume_move_only_themselves() {
    let fixture = Fixture::with(MIB, true);
    let chunks = 8;
    fixture.write(0, chunks * CHUNK, 1).unwrap();
    // Two blocks that take turns: what holds the one lends it when the other comes.
    for round in 2..10 {
        for chunk in 0..chunks {
            let at = chunk * CHUNK + round % 2 * 4096;
            let cost = fixture.cost_of_write(at, 4096, round);
            assert_eq!(cost, one_write_of(4096), "chunk {chunk}, round {round}");
        }
    }
    let expected = |fixture: &Fixture| {
        for chunk in 0..chunks {
            assert_holds(&fixture.handle, chunk * CHUNK, 4096, 8);
            assert_holds(&fixture.handle, chunk * CHUNK + 4096, 4096, 9);
            assert_holds(&fixture.handle, chunk * CHUNK + 8192, CHUNK - 8192, 1);
        }
        fixture.assert_sound();
    };
    expected(&fixture);
    let stat = fixture.pool.stat();
    assert_eq!(
        (stat.data_chunks, stat.orphan_chunks),
        (5 * chunks, 4 * chunks),
        "another one each time that a block comes again"
    );
    while fixture.pool.maintain().unwrap().more {}
    expected(&fixture);
    let stat = fixture.pool.stat();
    assert_eq!((stat.data_chunks, stat.orphan_chunks), (chunks, 0), "F3");
}

/// What nobody but a loan keeps takes space: where that is short it is not lent, but copied and let go.
#[test]
fn a_checksummed_volume_makes_no_orphans_where_space_is_short() {
    let fixture = Fixture::with(MIB, true);
    fixture.write(0, CHUNK, 1).unwrap();
    for block in [2, 3] {
        fixture.write(block * 4096, 4096, 2).unwrap();
    }
    let mut chunk = 1;
    while fixture.pool.status().free_bytes > 3 * MIB {
        fixture.write(chunk * CHUNK, CHUNK, 3).unwrap();
        chunk += 1;
    }
    let orphans = fixture.pool.stat().orphan_chunks;
    for round in 4..20 {
        let cost = fixture.cost_of_write((2 + round % 2) * 4096, 4096, round);
        assert_eq!((cost.writes, cost.written_bytes), (2, 8192), "round {round}");
    }
    assert_eq!(fixture.pool.stat().orphan_chunks, orphans);
    for (block, stamp) in [(0, 1), (2, 18), (3, 19), (4, 1)] {
        assert_holds(&fixture.handle, block * 4096, 4096, stamp);
    }
    // A snapshot keeps what lends to its volume anyway.
    fixture.snapshot(7);
    assert_eq!(fixture.cost_of_write(4 * 4096, 4096, 50), one_write_of(4096));
    assert_holds(&fixture.handle, 3 * 4096, 4096, 19);
    fixture.assert_sound();
}

#[test]
fn what_lends_goes_with_the_last_that_borrows_from_it() {
    let fixture = Fixture::new();
    fixture.write(0, CHUNK, 1).unwrap();
    fixture.snapshot(2);
    fixture.write(2 * 4096, 4096, 2).unwrap();
    fixture.snapshot(3);
    fixture.write(3 * 4096, 4096, 3).unwrap();
    for number in [2, 3] {
        let id = SnapshotId(Uuid::from_u128(number));
        fixture.pool.delete_snapshot(id).unwrap();
    }
    let expected = |fixture: &Fixture| {
        for block in 0..16 {
            let stamp = if [2, 3].contains(&block) { block } else { 1 };
            assert_holds(&fixture.handle, block * 4096, 4096, stamp);
        }
        fixture.assert_sound();
    };
    expected(&fixture);
    // Their space is reclaimed, but what they lend cannot be filled in.
    fixture.device.fail(OpKind::Read, 0, 1000, Fault::Io);
    for _ in 0..10 {
        fixture.pool.maintain().unwrap();
    }
    fixture.device.heal();
    let stat = fixture.pool.stat();
    assert_eq!(
        (stat.data_chunks, stat.partial_chunks, stat.orphan_chunks),
        (3, 2, 2),
        "F3"
    );
    expected(&fixture);
    fixture.pool.checkpoint().unwrap();
    expected(&fixture);
    while fixture.pool.maintain().unwrap().more {}
    expected(&fixture);
    fixture.pool.checkpoint().unwrap();
    while fixture.pool.maintain().unwrap().more {}
    let stat = fixture.pool.stat();
    assert_eq!(
        (stat.data_chunks, stat.partial_chunks, stat.orphan_chunks),
        (1, 0, 0),
        "F3"
    );
}

#[test]
fn a_sector_after_a_snapshot_costs_the_block_around_it() {
    let fixture = Fixture::new();
    fixture.write(0, CHUNK, 1).unwrap();
    fixture.snapshot(7);
    let cost = fixture.cost_of_write(4096 + 512, 512, 2);
    assert_eq!((cost.reads, cost.read_bytes), (1, 4096));
    assert_eq!((cost.writes, cost.written_bytes), (1, 4096));
    assert_holds(&fixture.handle, 4096 + 512, 512, 2);
    assert_holds(&fixture.handle, 0, 4096 + 512, 1);
    assert_holds(&fixture.handle, 4096 + 1024, CHUNK - 4096 - 1024, 1);
    fixture.assert_sound();
}

/// Plans a write and does its I/O.
fn planned(fixture: &Fixture, offset: u64, length: u64, stamp: u64) -> (Plan, Vec<u8>) {
    let Planned::Direct(plan) = fixture.handle.plan_write(offset, length as usize) else {
        panic!("nothing stands in the way of a plan");
    };
    let data = Stamp(stamp).bytes(offset, length as usize);
    for segment in &plan.segments {
        let Place::Device(at) = segment.place else {
            panic!("a write has a place");
        };
        fixture
            .device
            .write_at(at, &data[segment.buffer.clone()])
            .unwrap();
    }
    (plan, data)
}

#[test]
fn a_first_write_is_planned_and_counts_once_it_is_finished() {
    let fixture = Fixture::new();
    fixture.write(0, 3 * CHUNK, 1).unwrap();
    let snapshot = fixture.snapshot(7);
    fixture.pool.checkpoint().unwrap();
    // Part of a shared chunk, a shared one, an unmapped one, and part of an unmapped one.
    let (offset, length) = (CHUNK + 8192, 3 * CHUNK);
    let status = fixture.pool.status();
    drop(planned(&fixture, offset, length, 2));
    assert_eq!(fixture.pool.status(), status, "I2");
    let mut bytes = vec![0xa5; CHUNK as usize];
    fixture.handle.read(3 * CHUNK, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0), "W1");

    let (plan, data) = planned(&fixture, offset, length, 3);
    plan.guard.finish_blocking(&data).unwrap();
    for (handle, offset, length, stamp) in [
        (&fixture.handle, offset, length, 3),
        (&fixture.handle, CHUNK, 8192, 1),
        (&snapshot, 0, 3 * CHUNK, 1),
    ] {
        assert_holds(handle, offset, length, stamp);
    }
    fixture.assert_sound();
}

#[test]
fn i1_nothing_else_is_planned_where_a_first_write_is_going_on() {
    let fixture = Fixture::new();
    fixture.write(0, 3 * CHUNK, 1).unwrap();
    fixture.snapshot(7);
    let (plan, data) = planned(&fixture, CHUNK, 4096, 2);
    let is_planned = |planned| matches!(planned, Planned::Direct(_));
    assert!(!is_planned(fixture.handle.plan_read(CHUNK, 4096)), "I1");
    assert!(!is_planned(fixture.handle.plan_write(CHUNK + 4096, 4096)), "I1");
    assert!(is_planned(fixture.handle.plan_write(2 * CHUNK, 4096)));
    plan.guard.finish_blocking(&data).unwrap();
    assert!(is_planned(fixture.handle.plan_read(CHUNK, 4096)), "I1");
    assert!(is_planned(fixture.handle.plan_write(CHUNK + 4096, 4096)), "I1");
}

#[test]
fn f5_blocks_are_added_to_a_partial_chunk_side_by_side_and_no_block_by_two() {
    let fixture = Fixture::new();
    fixture.write(CHUNK, 4096, 1).unwrap();
    let (first, first_data) = planned(&fixture, CHUNK + 4096, 4096, 2);
    let (second, second_data) = planned(&fixture, CHUNK + 3 * 4096, 8192, 3);
    for (offset, length) in [(CHUNK + 4096, 4096), (CHUNK + 2 * 4096, 8192)] {
        let third = fixture.handle.plan_write(offset, length);
        assert!(matches!(third, Planned::Contended), "F5: {third:?}");
    }
    second.guard.finish_blocking(&second_data).unwrap();
    first.guard.finish_blocking(&first_data).unwrap();
    for (offset, length, stamp) in [(0, 4096, 1), (4096, 4096, 2), (3 * 4096, 8192, 3)] {
        assert_holds(&fixture.handle, CHUNK + offset, length, stamp);
    }
    fixture.assert_sound();
}

#[test]
fn a_first_write_that_cannot_be_mapped_at_once_is_mapped_by_whoever_may_wait() {
    let fixture = Fixture::with_log(64 << 10);
    // Until the open batch takes no more records and has to be committed first.
    for index in 0.. {
        let (plan, data) = planned(&fixture, 2 * index * CHUNK, 4096, index);
        match plan.guard.finish(&data) {
            Finished::Ended(result) => result.unwrap(),
            Finished::NeedsSlowPath(guard) => {
                assert!(index > 100, "there is room for some in a batch");
                guard.finish_blocking(&data).unwrap();
                assert_holds(&fixture.handle, 2 * index * CHUNK, 4096, index);
                break;
            }
        }
    }
    fixture.assert_sound();
}

#[test]
fn a_first_write_is_finished_in_a_pool_that_has_stopped_by_an_error() {
    let fixture = Fixture::new();
    let (plan, data) = planned(&fixture, CHUNK, 4096, 1);
    fixture.device.fail(OpKind::Flush, 0, 1, Fault::Io);
    fixture.write(8 * CHUNK, 4096, 2).unwrap();
    assert!(matches!(fixture.handle.flush(), Err(IoError::Stopped { .. })));
    let result = plan.guard.finish_blocking(&data);
    assert!(matches!(result, Err(IoError::Stopped { .. })), "{result:?}");
}
