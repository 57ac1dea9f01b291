//! Rotten bits, missing pieces and media that hold something else: found, named, and never wrong data.

use std::sync::Arc;

use quarry_contract::Durability;
use quarry_contract::conformance::SplitMix;
use quarry_thin::sim::{Action, SECTOR_BYTES, Setup, SimDevice, Stamp, Violation, World};
use quarry_thin::{FormatOptions, OpenOptions, Pool, PoolError};

use crate::seeds::for_each_seed;

/// Makes a pool with a history on it, reclaimed, with a few partial chunks, and checkpointed.
pub fn closed_pool(seed: u64) -> Result<World, Violation> {
    let setup = Setup {
        discard_freed: false,
        // Encrypted data cannot be told from other blocks (`holds_data`); tests/encryption.rs damages keys.
        encrypted: false,
        ..Setup::roomy(seed)
    };
    let mut world = World::begin(setup)?;
    world.run(80)?;
    world.carry_out(Action::CleanReopen)?;
    world.reclaim()?;
    let volumes: Vec<(u64, u64)> = world
        .model()
        .volumes
        .iter()
        .map(|(number, volume)| (*number, volume.size_bytes))
        .collect();
    for (volume, size_bytes) in volumes {
        let group = vec![(1_000_000 + volume, volume)];
        world.carry_out(Action::Snapshot { group })?;
        world.carry_out(Action::Write {
            volume,
            offset: 0,
            length: size_bytes.min(4096),
            durability: Durability::Cached,
        })?;
    }
    world.carry_out(Action::Checkpoint)?;
    world.abandon();
    Ok(world)
}

/// Tells whether a cell holds what volumes were given, which only data checksums could guard. Map pages are never
/// all zeros, so zeros among the chunks are data.
pub fn holds_data(device: &SimDevice, offset: u64) -> bool {
    let cell = device.peek(offset, 4096);
    let superblock = device.peek(0, 4096);
    let data_start = u64::from_le_bytes(superblock[128..136].try_into().expect("eight bytes"));
    if offset >= data_start && cell.iter().all(|byte| *byte == 0) {
        return true;
    }
    let stamped = |sector: &[u8]| {
        let stamp = u64::from_le_bytes(sector[..8].try_into().expect("eight bytes"));
        let lba = u64::from_le_bytes(sector[8..16].try_into().expect("eight bytes"));
        stamp != 0 && lba < 1 << 40 && Stamp(stamp).bytes(lba * SECTOR_BYTES, SECTOR_BYTES as usize) == sector
    };
    cell.chunks(SECTOR_BYTES as usize).any(stamped)
}

#[test]
fn a_flipped_bit_in_any_metadata_block_never_gives_wrong_data() {
    let suite = "a_flipped_bit_in_any_metadata_block_never_gives_wrong_data";
    let noticed = std::cell::Cell::new([0u32; 3]);
    for_each_seed(suite, 8, |seed| {
        let world = closed_pool(seed)?;
        let mut random = SplitMix::new(seed);
        for offset in world.device().written_cells() {
            if holds_data(world.device(), offset) {
                continue;
            }
            let device = world.device().fork(seed);
            // One bit, or two far apart in the block.
            for _ in 0..=random.below(2) {
                device.flip_bit(offset + random.below(4096), random.below(8) as u8);
            }
            let [mut refused, mut found, mut healed] = noticed.get();
            let mut damaged = world.branch(device);
            match damaged.try_open() {
                Err(PoolError::Damaged { structure, detail }) => {
                    if structure.is_empty() || detail.is_empty() {
                        return Err(Violation(format!("block {offset}: damage without a name")));
                    }
                    refused += 1;
                }
                Err(other) => {
                    return Err(Violation(format!(
                        "block {offset}: {other}: not said to be damage"
                    )));
                }
                Ok(()) => {
                    let survey = damaged
                        .survey_damage()
                        .map_err(|violation| Violation(format!("block {offset}: {violation}")))?;
                    if survey.problems.is_empty() && survey.unreadable == 0 {
                        healed += 1;
                    } else {
                        found += 1;
                    }
                }
            }
            noticed.set([refused, found, healed]);
        }
        Ok(())
    });
    let [refused, found, healed] = noticed.get();
    println!("{refused} refused to open, {found} found, {healed} harmless or healed from a copy");
    assert!(healed > 0, "a single bit in one of two copies is healed");
}

/// Blocks that lose their contents altogether, several at a time.
#[test]
fn lost_metadata_blocks_never_give_wrong_data() {
    let suite = "lost_metadata_blocks_never_give_wrong_data";
    let noticed = std::cell::Cell::new(0u32);
    for_each_seed(suite, 30, |seed| {
        let world = closed_pool(seed)?;
        let mut random = SplitMix::new(seed);
        let cells: Vec<u64> = world
            .device()
            .written_cells()
            .into_iter()
            .filter(|offset| !holds_data(world.device(), *offset))
            .collect();
        for _ in 0..20 {
            let device = world.device().fork(seed);
            for _ in 0..1 + random.below(8) {
                let offset = cells[random.below(cells.len() as u64) as usize];
                match random.below(3) {
                    0 => device.overwrite(offset, &[0; 4096]),
                    1 => device.overwrite(offset, &[0xff; 4096]),
                    _ => {
                        // A misdirected write: another block's valid contents.
                        let other = cells[random.below(cells.len() as u64) as usize];
                        let contents = device.peek(other, 4096);
                        device.overwrite(offset, &contents);
                    }
                }
            }
            let mut damaged = world.branch(device);
            match damaged.try_open() {
                Err(_) => noticed.set(noticed.get() + 1),
                Ok(()) => {
                    let survey = damaged.survey_damage()?;
                    let some = !survey.problems.is_empty() || survey.unreadable > 0;
                    noticed.set(noticed.get() + u32::from(some));
                }
            }
        }
        Ok(())
    });
    assert!(noticed.get() > 0, "nothing was noticed");
}

fn small() -> FormatOptions {
    FormatOptions {
        log_bytes: 64 << 10,
        ..FormatOptions::default()
    }
}

pub fn formatted() -> Arc<SimDevice> {
    let device = SimDevice::new(32 << 20, 1);
    Pool::format(device.as_ref(), &small()).expect("formatting");
    device
}

pub fn open(device: &Arc<SimDevice>) -> Result<Arc<Pool>, PoolError> {
    Pool::open(device.clone(), OpenOptions::default())
}

/// Where the superblock copies are.
fn superblocks() -> [u64; 4] {
    [0, 4096, (32 << 20) - 8192, (32 << 20) - 4096]
}

/// Changes a field of every superblock copy and makes the checksum right again.
pub fn rewrite_superblocks(device: &SimDevice, at: usize, bytes: &[u8]) {
    for offset in superblocks() {
        let mut block = device.peek(offset, 4096);
        block[at..at + bytes.len()].copy_from_slice(bytes);
        block[12..16].fill(0);
        let crc = crc32c::crc32c(&block);
        block[12..16].copy_from_slice(&crc.to_le_bytes());
        device.overwrite(offset, &block);
    }
}

#[test]
fn any_one_superblock_copy_is_enough() {
    for kept in superblocks() {
        let device = formatted();
        for offset in superblocks().into_iter().filter(|offset| *offset != kept) {
            device.overwrite(offset, &[0x5a; 4096]);
        }
        open(&device).unwrap_or_else(|error| panic!("only the copy at {kept}: {error}"));
        for offset in superblocks() {
            assert!(
                device.peek(offset, 8).starts_with(b"QRYTHIN"),
                "the copy at {offset} is written again"
            );
        }
    }
}

#[test]
fn foreign_truncated_newer_and_damaged_media_each_have_their_own_error() {
    let blank = SimDevice::new(32 << 20, 1);
    assert!(matches!(open(&blank), Err(PoolError::NotAPool)), "blank");
    let foreign = SimDevice::new(32 << 20, 1);
    for block in 0..64 {
        foreign.overwrite(block * 4096, &Stamp(block + 1).bytes(0, 4096));
    }
    assert!(matches!(open(&foreign), Err(PoolError::NotAPool)), "foreign");
    let empty = SimDevice::new(0, 1);
    assert!(open(&empty).is_err(), "empty");
    let tiny = SimDevice::new(4096, 1);
    assert!(open(&tiny).is_err(), "one block");

    let device = formatted();
    for size in [(32 << 20) - 4096, 16 << 20, 1 << 20, 8192, 4096] {
        let short = device.fork(1);
        short.resize(size);
        assert!(
            matches!(
                open(&short),
                Err(PoolError::Truncated { expected_bytes, actual_bytes })
                    if expected_bytes == 32 << 20 && actual_bytes == size
            ),
            "truncated to {size}: {:?}",
            open(&short).map(drop)
        );
    }
    let longer = device.fork(1);
    longer.resize(64 << 20);
    open(&longer).expect("a grown device opens");

    let newer = device.fork(1);
    rewrite_superblocks(&newer, 8, &2u32.to_le_bytes());
    assert!(
        matches!(open(&newer), Err(PoolError::NewerFormat { .. })),
        "version"
    );
    let newer = device.fork(1);
    rewrite_superblocks(&newer, 56, &(1u64 << 63 | 7).to_le_bytes());
    assert!(
        matches!(open(&newer), Err(PoolError::NewerFormat { .. })),
        "incompat"
    );
    let newer = device.fork(1);
    rewrite_superblocks(&newer, 40, &1u64.to_le_bytes());
    open(&newer).expect("unknown compat bits are no obstacle");

    let rotten = device.fork(1);
    for offset in superblocks() {
        rotten.flip_bit(offset + 64, 3);
    }
    assert!(
        matches!(open(&rotten), Err(PoolError::Damaged { .. })),
        "all copies"
    );
}

/// A superblock whose checksum is right and whose contents are absurd.
#[test]
fn absurd_superblocks_are_refused_without_a_panic() {
    for at in (16..216).step_by(4) {
        for value in [0u32, 1, 0x7fff_ffff, u32::MAX] {
            let device = formatted();
            rewrite_superblocks(&device, at, &value.to_le_bytes());
            let device: Arc<SimDevice> = device;
            // Opened or refused, but soon, and without a panic or a giant allocation.
            if let Ok(pool) = open(&device) {
                let _ = pool.check();
            }
        }
    }
}

#[test]
fn a_second_format_and_a_bad_geometry_are_refused() {
    let device = formatted();
    let before = device.peek(0, 4096);
    assert!(matches!(
        Pool::format(device.as_ref(), &small()),
        Err(PoolError::AlreadyAPool { .. })
    ));
    assert_eq!(device.peek(0, 4096), before, "a refused format writes nothing");
    for chunk_bytes in [0, 1, 4096, 8192, 24 << 10, 2 << 20, u32::MAX] {
        let options = FormatOptions {
            chunk_bytes,
            ..small()
        };
        let refused = Pool::format(SimDevice::new(32 << 20, 1).as_ref(), &options);
        assert!(
            matches!(refused, Err(PoolError::InvalidOption { .. })),
            "chunks of {chunk_bytes}: {refused:?}"
        );
    }
    for log_bytes in [0, 4096, 65537, 1 << 40, u64::MAX] {
        let options = FormatOptions { log_bytes, ..small() };
        let refused = Pool::format(SimDevice::new(32 << 20, 1).as_ref(), &options);
        assert!(
            matches!(refused, Err(PoolError::InvalidOption { .. })),
            "a log of {log_bytes}: {refused:?}"
        );
    }
    for device_bytes in [0, 4096, 65536, 200 << 10] {
        let refused = Pool::format(SimDevice::new(device_bytes, 1).as_ref(), &small());
        assert!(refused.is_err(), "a device of {device_bytes} bytes");
    }
}
