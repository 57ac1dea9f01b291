//! Damage to the log: batches that the medium has lost are read from the next one that is whole; where that has no copies, the pool does
//! not open (G3).

use std::sync::Arc;

use quarry_contract::conformance::SplitMix;
use quarry_contract::{DataSource, Durability, OpenMode, VersionId, VolumeId, VolumeSpec};
use quarry_thin::sim::{Action, SimDevice, Violation, World};
use quarry_thin::{Access, OpenOptions, Pool, PoolError};
use uuid::Uuid;

use crate::damage::{closed_pool, formatted, open};
use crate::seeds::for_each_seed;

/// Where the log begins, and how a batch begins (docs/formats/pool.md).
const LOG_START: u64 = 8192;
const BATCH_MAGIC: &[u8] = b"QRYBATCH";

/// Returns number and offset of every block in the log that begins a batch, ordered.
fn batches(device: &SimDevice, log_bytes: u64) -> Vec<(u64, u64)> {
    let mut batches: Vec<(u64, u64)> = (0..log_bytes / 4096)
        .map(|block| LOG_START + block * 4096)
        .filter_map(|offset| {
            let block = device.peek(offset, 64);
            let number = u64::from_le_bytes(block[24..32].try_into().expect("eight bytes"));
            block.starts_with(BATCH_MAGIC).then_some((number, offset))
        })
        .collect();
    batches.sort_unstable();
    batches
}

/// A pool with a history, and the batches of five more calls behind its last checkpoint.
fn five_more_batches(seed: u64) -> Result<(World, Arc<SimDevice>, Vec<u64>), Violation> {
    let mut world = closed_pool(seed)?;
    world.try_open().map_err(|error| Violation(error.to_string()))?;
    let log_bytes = world.setup().log_bytes;
    let last_old = batches(world.device(), log_bytes).last().map_or(0, |one| one.0);
    let volume = 1_000_000;
    for count in 0..5 {
        world.carry_out(Action::Create {
            volume: volume + count,
            size_bytes: 1 << 20,
        })?;
    }
    world.abandon();
    let device = world.device().power_cycle();
    let fresh: Vec<u64> = batches(&device, log_bytes)
        .into_iter()
        .filter(|one| one.0 > last_old)
        .map(|one| one.1)
        .collect();
    match fresh.len() {
        5.. => Ok((world, device, fresh)),
        count => Err(Violation(format!("{count} batches for five creations"))),
    }
}

/// Damages a block of the log, in one way or another.
fn damage(device: &SimDevice, offset: u64, random: &mut SplitMix) {
    match random.below(3) {
        0 => device.flip_bit(offset + random.below(90), random.below(8) as u8),
        1 => device.overwrite(offset, &[0; 4096]),
        _ => {
            let elsewhere = device.peek(offset + 4096, 4096);
            device.overwrite(offset, &elsewhere);
        }
    }
}

#[test]
fn damaged_batches_are_read_from_the_next_one_that_is_whole() {
    for_each_seed(
        "damaged_batches_are_read_from_the_next_one_that_is_whole",
        30,
        |seed| {
            let (world, device, fresh) = five_more_batches(seed)?;
            let mut random = SplitMix::new(seed);
            let last = fresh.len() - 1;
            // Each but the last, and each run of them.
            let runs = (0..last).flat_map(|from| (from + 1..=last).map(move |to| from..to));
            for run in runs {
                let damaged = device.fork(seed);
                for offset in &fresh[run.clone()] {
                    damage(&damaged, *offset, &mut random);
                }
                let mut opened = world.branch(Arc::clone(&damaged));
                opened
                    .try_open()
                    .map_err(|error| Violation(format!("damage to {run:?}: {error}")))?;
                opened.verify_now()?;
                // And they are whole again.
                opened.abandon();
                let damaged = damaged.power_cycle();
                let log_bytes = world.setup().log_bytes;
                let is_there = |number| batches(&damaged, log_bytes).iter().any(|one| one.0 == number);
                let lost = batches(&device, log_bytes)
                    .into_iter()
                    .filter(|(_, offset)| fresh[run.clone()].contains(offset))
                    .find(|(number, _)| !is_there(*number));
                if let Some((number, _)) = lost {
                    return Err(Violation(format!(
                        "damage to {run:?}: batch {number} was not mended"
                    )));
                }
                let mut again = world.branch(damaged);
                again
                    .try_open()
                    .map_err(|error| Violation(format!("opened again: {error}")))?;
                again.verify_now()?;
            }
            Ok(())
        },
    );
}

const VOLUME: VersionId = VersionId::Volume(VolumeId(Uuid::from_u128(1)));
const CHUNK: u64 = 64 << 10;

/// Writes a block of a chunk, for which there is a batch of its own.
fn write(pool: &Arc<Pool>, chunk: u64) {
    let handle = pool.open_version(VOLUME, OpenMode::ReadWrite).expect("opening");
    handle
        .write(chunk * CHUNK, &[chunk as u8 + 1; 4096], Durability::Flushed)
        .expect("writing");
}

/// Writes whole chunks from this one on, for which there is one batch: so long a batch that the next one does not carry it and the one
/// before it.
fn write_many(pool: &Arc<Pool>, first: u64) {
    let handle = pool.open_version(VOLUME, OpenMode::ReadWrite).expect("opening");
    for chunk in first..first + 110 {
        let data = vec![1; CHUNK as usize];
        handle
            .write(chunk * CHUNK, &data, Durability::Cached)
            .expect("writing");
    }
    handle.flush().expect("flushing");
}

fn byte_of(pool: &Arc<Pool>, chunk: u64) -> u8 {
    let mut block = [0; 4096];
    let handle = pool.open_version(VOLUME, OpenMode::ReadOnly).expect("opening");
    handle.read(chunk * CHUNK, &mut block).expect("reading");
    assert_eq!(block, [block[0]; 4096]);
    block[0]
}

/// A pool with four batches in its log, which these calls make, and where they are.
fn four_batches(make: impl Fn(&Arc<Pool>, u64)) -> (Arc<SimDevice>, Vec<u64>) {
    let device = formatted();
    let pool = open(&device).expect("opening");
    let spec = VolumeSpec::new(VolumeId(Uuid::from_u128(1)), 1 << 30, DataSource::Blank);
    pool.create_volume(&spec).expect("a volume");
    pool.checkpoint().expect("a checkpoint");
    let before = batches(&device, 64 << 10).len();
    (0..4).for_each(|number| make(&pool, number));
    let log = batches(&device, 64 << 10);
    assert_eq!(log.len(), before + 4);
    drop(pool);
    let offsets = log[before..].iter().map(|batch| batch.1).collect();
    (device.power_cycle(), offsets)
}

fn four_writes() -> (Arc<SimDevice>, Vec<u64>) {
    four_batches(write)
}

/// Where the data of the last write is, by its contents.
fn data_of_last(device: &SimDevice) -> u64 {
    let cells = device.written_cells();
    let mut of_it = cells
        .into_iter()
        .filter(|cell| device.peek(*cell, 4096) == [4; 4096]);
    let cell = of_it.next().expect("the data");
    assert_eq!(of_it.next(), None);
    cell
}

#[test]
fn copies_outlive_the_batch_that_carries_them_whenever_recovery_is_cut() {
    let (device, log) = four_writes();
    // The last batch is what a power cut leaves of one: its data is not there. The two before it are damaged.
    device.overwrite(data_of_last(&device), &[0; 4096]);
    device.flip_bit(log[2] + 70, 1);
    device.flip_bit(log[1] + 70, 1);
    for cut in 0.. {
        let device = device.fork(cut);
        device.cut_power_at(cut);
        let opened = open(&device).map(drop);
        let was_cut = device.is_cut();
        assert!(was_cut || opened.is_ok(), "{opened:?}");
        for luck in 0..8 {
            let device = device.fork(luck).power_cycle();
            let pool = open(&device).unwrap_or_else(|error| panic!("after a cut at {cut}: {error}"));
            let found = [0, 1, 2, 3].map(|chunk| byte_of(&pool, chunk));
            assert_eq!(found, [1, 2, 3, 0], "after a cut at {cut}");
            // It carries what it was given again, and goes on.
            write(&pool, 3);
            drop(pool);
            let pool = open(&device.power_cycle()).expect("opening");
            assert_eq!([2, 3].map(|chunk| byte_of(&pool, chunk)), [3, 4]);
        }
        if !was_cut {
            assert!(cut >= 7, "an open of {cut} operations");
            break;
        }
    }
}

#[test]
fn long_batches_are_named_and_not_replayed_over_when_two_in_a_row_are_damaged() {
    let (device, log) = four_batches(|pool, number| write_many(pool, number * 110));
    for one in &log[..3] {
        let damaged = device.fork(1);
        damaged.flip_bit(one + 70, 1);
        open(&damaged).expect("one of them has a copy");
    }
    for two in log[..3].windows(2) {
        let damaged = device.fork(1);
        two.iter().for_each(|one| damaged.flip_bit(one + 70, 1));
        match open(&damaged).map(drop) {
            Err(PoolError::Damaged { structure, .. }) => assert_eq!(structure, "redo log"),
            other => panic!("damage at {two:?} opened with {other:?}"),
        }
    }
}

#[test]
fn the_first_batch_after_an_open_carries_the_last_before_it() {
    let (device, log) = four_writes();
    let pool = open(&device).expect("opening");
    write(&pool, 4);
    drop(pool);
    let device = device.power_cycle();
    device.overwrite(log[3], &[0; 4096]);
    let pool = open(&device).expect("the last batch of before has a copy");
    assert_eq!([3, 4].map(|chunk| byte_of(&pool, chunk)), [4, 5]);
}

#[test]
fn a_check_of_a_pool_that_is_not_in_use_says_that_there_is_a_copy() {
    let (device, log) = four_writes();
    device.flip_bit(log[1] + 70, 1);
    let options = OpenOptions {
        access: Access::ReadOnly,
        ..OpenOptions::default()
    };
    let before = device.counts().changes();
    let pool = Pool::open(device.clone(), options).expect("opening");
    let report = pool.check().expect("a check");
    assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
    assert!(
        report.problems[0].contains("redo log") && report.problems[0].ends_with("a later one has a copy"),
        "{:?}",
        report.problems
    );
    assert!(report.beyond_repair.is_empty());
    assert_eq!(device.counts().changes(), before, "nothing is written");
}

#[test]
fn a_pool_from_before_carries_nothing_until_its_first_checkpoint() {
    let device = formatted();
    crate::damage::rewrite_superblocks(&device, 56, &135u64.to_le_bytes());
    let pool = open(&device).expect("an older pool opens");
    let spec = VolumeSpec::new(VolumeId(Uuid::from_u128(1)), 1 << 20, DataSource::Blank);
    pool.create_volume(&spec).expect("a volume");
    let carrying = |device: &SimDevice| {
        let log = batches(device, 64 << 10).into_iter();
        log.filter(|(_, offset)| device.peek(offset + 60, 1)[0] & 2 != 0)
            .count()
    };
    (0..3).for_each(|chunk| write(&pool, chunk));
    assert_eq!(carrying(&device), 0);
    pool.checkpoint().expect("a checkpoint");
    (3..6).for_each(|chunk| write(&pool, chunk));
    assert_eq!(carrying(&device), 2, "the first one needs none");
}
