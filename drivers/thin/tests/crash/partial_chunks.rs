//! Partial chunks whose lenders and themselves are freed while somebody uses them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;

use quarry_contract::{
    DataSource, Durability, IoError, OpenMode, SnapshotId, SnapshotSpec, VersionId, VolumeId, VolumeSpec,
};
use quarry_thin::sim::{Fault, OpKind, SimDevice, Stamp, Violation};
use quarry_thin::{
    Access, DeviceSet, Discarded, FormatOptions, OpenOptions, Place, Plan, Planned, Pool, PoolDevice,
    VersionHandle, repair,
};

use crate::gated::{Call, GatedDevice};
use crate::seeds::for_each_seed;

const CHUNK: u64 = 16 << 10;

fn open(device: Arc<dyn PoolDevice>) -> Arc<Pool> {
    let format = FormatOptions {
        chunk_bytes: CHUNK as u32,
        log_bytes: 64 << 10,
        ..FormatOptions::default()
    };
    Pool::format(&*device, &format).unwrap();
    Pool::open(device, OpenOptions::default()).unwrap()
}

fn volume(pool: &Arc<Pool>, number: u128) -> Arc<VersionHandle> {
    let id = VolumeId(uuid::Uuid::from_u128(number));
    let spec = VolumeSpec::new(id, 1 << 30, DataSource::Blank);
    pool.create_volume(&spec).unwrap();
    pool.open_version(VersionId::Volume(id), OpenMode::ReadWrite)
        .unwrap()
}

const SNAPSHOT: SnapshotId = SnapshotId(uuid::Uuid::from_u128(7));

fn snapshot_of(pool: &Pool, number: u128) {
    let volume = VolumeId(uuid::Uuid::from_u128(number));
    pool.create_snapshots(&[SnapshotSpec { id: SNAPSHOT, volume }])
        .unwrap();
}

fn write(handle: &VersionHandle, offset: u64, length: u64, stamp: u64) {
    let data = Stamp(stamp).bytes(offset, length as usize);
    handle.write(offset, &data, Durability::Cached).unwrap();
}

/// Writes whole chunks until the pool is full; returns how many.
fn fill_up(handle: &VersionHandle) -> u64 {
    for index in 0.. {
        let data = Stamp(99).bytes(index * CHUNK, CHUNK as usize);
        match handle.write(index * CHUNK, &data, Durability::Cached) {
            Ok(()) => {}
            Err(IoError::NoSpace) => return index,
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!("a pool is full some time")
}

fn background_work(pool: &Pool) {
    while pool.maintain().unwrap().more {}
}

/// What the first chunk of the volume holds in these tests: a block of its own within what it had before.
fn expected() -> Vec<u8> {
    let mut bytes = Stamp(1).bytes(0, CHUNK as usize);
    bytes[4096..8192].copy_from_slice(&Stamp(2).bytes(4096, 4096));
    bytes
}

fn assert_sound(pool: &Pool) {
    let report = pool.check().unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

fn plan_read_of_first_chunk(handle: &VersionHandle) -> Plan {
    let Planned::Direct(plan) = handle.plan_read(0, CHUNK as usize) else {
        panic!("nothing stands in the way of a plan");
    };
    plan
}

fn read_as_planned(device: &SimDevice, plan: &Plan) -> Vec<u8> {
    let mut bytes = vec![0xa5; CHUNK as usize];
    for segment in &plan.segments {
        let Place::Device(at) = segment.place else {
            panic!("everything was written");
        };
        device.read_at(at, &mut bytes[segment.buffer.clone()]).unwrap();
    }
    bytes
}

#[test]
fn f4_a_lender_is_not_reused_while_a_planned_read_is_under_way() {
    let suite = "f4_a_lender_is_not_reused_while_a_planned_read_is_under_way";
    for_each_seed(suite, 1, |_| -> Result<(), Violation> {
        let device = SimDevice::new(4 << 20, 1);
        let pool = open(device.clone());
        let (handle, other) = (volume(&pool, 1), volume(&pool, 2));
        write(&handle, 0, CHUNK, 1);
        snapshot_of(&pool, 1);
        write(&handle, 4096, 4096, 2);
        let plan = plan_read_of_first_chunk(&handle);
        // The lender is freed, and everything that is free is used by another volume.
        pool.delete_snapshot(SNAPSHOT).unwrap();
        background_work(&pool);
        fill_up(&other);
        let mut bytes = read_as_planned(&device, &plan);
        assert!(bytes == expected(), "F4: a read in progress");
        drop(plan);
        other.discard(0, 1 << 20).unwrap();
        background_work(&pool);
        handle.read(0, &mut bytes).unwrap();
        assert!(bytes == expected(), "F1");
        assert_sound(&pool);
        Ok(())
    });
}

#[test]
fn f4_what_lends_to_a_lender_is_not_reused_while_a_planned_read_is_under_way() {
    let suite = "f4_what_lends_to_a_lender_is_not_reused_while_a_planned_read_is_under_way";
    for_each_seed(suite, 1, |_| -> Result<(), Violation> {
        let device = SimDevice::new(4 << 20, 1);
        let pool = open(device.clone());
        let (handle, other) = (volume(&pool, 1), volume(&pool, 2));
        let mut expected = expected();
        write(&handle, 0, CHUNK, 1);
        snapshot_of(&pool, 1);
        write(&handle, 4096, 4096, 2);
        let second = SnapshotId(uuid::Uuid::from_u128(8));
        let volume = VolumeId(uuid::Uuid::from_u128(1));
        pool.create_snapshots(&[SnapshotSpec { id: second, volume }])
            .unwrap();
        write(&handle, 8192, 4096, 3);
        expected[8192..12288].copy_from_slice(&Stamp(3).bytes(8192, 4096));
        let plan = plan_read_of_first_chunk(&handle);
        let places: BTreeSet<u64> = (plan.segments.iter())
            .map(|segment| match segment.place {
                Place::Device(at) => at / CHUNK,
                Place::Zeros => panic!("everything was written"),
            })
            .collect();
        assert_eq!(places.len(), 3, "two chunks lend");
        for snapshot in [SNAPSHOT, second] {
            pool.delete_snapshot(snapshot).unwrap();
        }
        background_work(&pool);
        fill_up(&other);
        let mut bytes = read_as_planned(&device, &plan);
        assert!(bytes == expected, "F4: a read in progress");
        drop(plan);
        other.discard(0, 1 << 20).unwrap();
        background_work(&pool);
        handle.read(0, &mut bytes).unwrap();
        assert!(bytes == expected, "F1");
        assert_sound(&pool);
        Ok(())
    });
}

#[test]
fn f4_a_chunk_is_not_reused_while_it_is_being_filled() {
    let suite = "f4_a_chunk_is_not_reused_while_it_is_being_filled";
    for_each_seed(suite, 1, |_| -> Result<(), Violation> {
        let device = GatedDevice::new(SimDevice::new(4 << 20, 1));
        let pool = open(Arc::clone(&device) as Arc<dyn PoolDevice>);
        let (handle, other) = (volume(&pool, 1), volume(&pool, 2));
        write(&handle, 4096, 4096, 2);
        let filled = thread::scope(|scope| {
            let (at_gate, waiting) = device.hold(Call::Write);
            scope.spawn(|| pool.maintain().unwrap());
            at_gate.recv().unwrap();
            // The chunk goes while its blocks are on their way to it.
            handle.discard(0, CHUNK).unwrap();
            handle.flush().unwrap();
            let filled = fill_up(&other);
            drop(waiting);
            filled
        });
        for index in 0..filled {
            let mut bytes = vec![0xa5; CHUNK as usize];
            other.read(index * CHUNK, &mut bytes).unwrap();
            assert!(
                bytes == Stamp(99).bytes(index * CHUNK, CHUNK as usize),
                "V6: chunk {index} of another volume was overwritten"
            );
        }
        assert_sound(&pool);
        Ok(())
    });
}

#[test]
fn f5_no_write_is_planned_into_blocks_that_are_being_filled() {
    let suite = "f5_no_write_is_planned_into_blocks_that_are_being_filled";
    for_each_seed(suite, 1, |_| -> Result<(), Violation> {
        let device = GatedDevice::new(SimDevice::new(4 << 20, 1));
        let pool = open(Arc::clone(&device) as Arc<dyn PoolDevice>);
        let handle = volume(&pool, 1);
        write(&handle, 0, 4096, 1);
        thread::scope(|scope| {
            let (at_gate, waiting) = device.hold(Call::Write);
            let filling = scope.spawn(|| pool.maintain().unwrap());
            at_gate.recv().unwrap();
            assert!(matches!(handle.plan_write(4096, 4096), Planned::Contended));
            drop(waiting);
            filling.join().unwrap();
        });
        // The chunk is whole, and a write that goes on is an overwrite.
        let Planned::Direct(plan) = handle.plan_write(4096, 4096) else {
            panic!("nothing stands in the way of a plan");
        };
        plan.guard.finish_blocking(&[0; 4096]).unwrap();
        assert_sound(&pool);
        Ok(())
    });
}

/// Destroys the bitmap's directory and lets a repair make it anew: from the maps, and from the list of orphans.
fn lose_the_bitmap(device: &Arc<SimDevice>) {
    let superblock = device.peek(0, 4096);
    let word = |at: usize| u64::from_le_bytes(superblock[at..at + 8].try_into().unwrap());
    device.overwrite(word(96), &vec![0x5a; 2 * 4096 * word(104) as usize]);
    let device = Arc::clone(device) as Arc<dyn PoolDevice>;
    let report = repair(
        &DeviceSet::of(device),
        &OpenOptions::default(),
        Access::ReadWrite,
        Discarded::StaysAway,
    )
    .unwrap();
    assert!(
        !report.found.is_empty() && report.remaining.is_empty(),
        "{report:?}"
    );
}

#[test]
fn f3_an_orphaned_lender_lends_on_across_a_checkpoint_and_a_power_cut() {
    let suite = "f3_an_orphaned_lender_lends_on_across_a_checkpoint_and_a_power_cut";
    for_each_seed(suite, 20, |seed| -> Result<(), Violation> {
        let device = SimDevice::new(4 << 20, seed);
        let pool = open(device.clone());
        let allocated_when_new = pool.status().allocated_bytes;
        let handle = volume(&pool, 1);
        write(&handle, 0, CHUNK, 1);
        snapshot_of(&pool, 1);
        write(&handle, 4096, 4096, 2);
        // The lender cannot be read, so the chunk stays partial; and it loses its last version.
        device.fail(OpKind::Read, 0, u64::MAX / 2, Fault::Io);
        pool.delete_snapshot(SNAPSHOT).unwrap();
        background_work(&pool);
        device.heal();
        assert_eq!(pool.check().unwrap().data_chunks, 2, "the lender is kept");
        assert_sound(&pool);
        if seed % 2 == 0 {
            pool.checkpoint().unwrap();
        }
        drop((handle, pool));
        let device = device.power_cycle();
        if seed % 4 == 0 {
            lose_the_bitmap(&device);
        }
        let pool = Pool::open(device, OpenOptions::default()).unwrap();
        assert_sound(&pool);
        let id = VolumeId(uuid::Uuid::from_u128(1));
        let handle = pool
            .open_version(VersionId::Volume(id), OpenMode::ReadWrite)
            .unwrap();
        let mut bytes = vec![0xa5; CHUNK as usize];
        handle.read(0, &mut bytes).unwrap();
        assert!(bytes == expected(), "F1, F3");
        background_work(&pool);
        assert_eq!(pool.check().unwrap().data_chunks, 1, "the lender is freed");
        handle.read(0, &mut bytes).unwrap();
        assert!(bytes == expected(), "F1, F3");
        drop(handle);
        pool.delete_volume(id).unwrap();
        for _ in 0..2 {
            background_work(&pool);
            pool.checkpoint().unwrap();
        }
        assert_eq!(pool.status().allocated_bytes, allocated_when_new);
        Ok(())
    });
}
