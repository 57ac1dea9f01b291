//! Metadata that has its checksums and is nonsense all the same: what a fault of ours would leave, or whoever may write to the
//! medium.
//!
//! Blocks of a pool are changed, and the checksums of them, of what points to them, and so on up to the superblock, are made
//! right again. There is nothing that such a pool is to hold. But every call on it ends, with an error or without, and none
//! panics.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use quarry_contract::conformance::SplitMix;
use quarry_contract::{
    DataSource, Durability, OpenMode, SnapshotId, SnapshotSpec, VersionId, VolumeId, VolumeSpec,
};
use quarry_thin::sim::SimDevice;
use quarry_thin::{Access, BitmapSource, DeviceSet, Discarded, OpenOptions, Pool, repair};
use uuid::Uuid;

use crate::damage::{closed_pool, holds_data};
use crate::seeds::for_each_seed;

const BLOCK: u64 = 4096;

/// Offsets in the superblock (docs/formats/pool.md).
const LOG_START: usize = 80;
const DIRECTORY_START: usize = 96;
const BITMAP_START: usize = 112;
const DATA_START: usize = 128;
const DIRECTORY_CRC: usize = 144;
const DIRECTORY_SIDE: usize = 148;

fn word(block: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes"))
}

fn half_word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(block[at..at + 4].try_into().expect("four bytes"))
}

/// A place that points to a page.
#[derive(Clone, Copy)]
struct Pointer {
    block: u64,
    at: usize,
}

/// A pool's metadata, and what points to what in it.
struct Metadata {
    superblock: Vec<u8>,
    /// All blocks that may be changed, by their offsets.
    blocks: Vec<u64>,
    /// By the page: its other copy, and what points to it.
    pages: HashMap<u64, (u64, Vec<Pointer>)>,
    tails: [u64; 2],
}

impl Metadata {
    fn of(device: &SimDevice) -> Self {
        let superblock = device.peek(0, 4096);
        let end = word(&superblock, 64);
        let tails = [end - 2 * BLOCK, end - BLOCK];
        let all = device.written_cells().into_iter();
        let blocks: Vec<u64> = all
            .filter(|offset| *offset != BLOCK && !tails.contains(offset) && !holds_data(device, *offset))
            .collect();
        let contents: BTreeMap<u64, Vec<u8>> = blocks
            .iter()
            .map(|offset| (*offset, device.peek(*offset, 4096)))
            .collect();
        let sums: HashMap<u64, u32> = contents
            .iter()
            .map(|(offset, block)| (*offset, crc32c::crc32c(block)))
            .collect();
        let mut pages: HashMap<u64, (u64, Vec<Pointer>)> = HashMap::new();
        for (offset, block) in &contents {
            for at in (0..block.len() - 24).step_by(8) {
                let [first, second] = [at, at + 8].map(|at| word(block, at).saturating_mul(BLOCK));
                let crc = half_word(block, at + 20);
                if first == second || sums.get(&first) != Some(&crc) || sums.get(&second) != Some(&crc) {
                    continue;
                }
                let pointer = Pointer { block: *offset, at };
                for (page, other) in [(first, second), (second, first)] {
                    pages.entry(page).or_insert((other, Vec::new())).1.push(pointer);
                }
            }
        }
        Self {
            superblock,
            blocks,
            pages,
            tails,
        }
    }

    /// Writes a block, makes its checksum right, and those of all that depend on it.
    fn store(&self, device: &SimDevice, offset: u64, block: &[u8]) {
        let start = |at| word(&self.superblock, at);
        if offset == 0 {
            return self.store_superblock(device, block.to_vec());
        }
        device.overwrite(offset, block);
        if let Some((other, pointers)) = self.pages.get(&offset) {
            device.overwrite(*other, block);
            let crc = crc32c::crc32c(block).to_le_bytes();
            for pointer in pointers {
                let mut parent = device.peek(pointer.block, 4096);
                if parent[pointer.at + 20..pointer.at + 24] != crc {
                    parent[pointer.at + 20..pointer.at + 24].copy_from_slice(&crc);
                    self.store(device, pointer.block, &parent);
                }
            }
        } else if offset >= start(DATA_START) {
            // A page of no use, or a key: whatever it is, nothing has its checksum.
        } else if offset >= start(BITMAP_START) {
            let number = (offset - start(BITMAP_START)) / BLOCK;
            let side = u64::from(half_word(&self.superblock, DIRECTORY_SIDE));
            let blocks = (start(BITMAP_START) - start(DIRECTORY_START)) / (2 * BLOCK);
            let entry = start(DIRECTORY_START) + side * blocks * BLOCK + number / 2 / 512 * BLOCK;
            let mut directory = device.peek(entry, 4096);
            let at = (number / 2 % 512 * 8) as usize;
            if u64::from(half_word(&directory, at + 4)) == number % 2 {
                directory[at..at + 4].copy_from_slice(&crc32c::crc32c(block).to_le_bytes());
                self.store(device, entry, &directory);
            }
        } else if offset >= start(DIRECTORY_START) {
            let side = u64::from(half_word(&self.superblock, DIRECTORY_SIDE));
            let blocks = (start(BITMAP_START) - start(DIRECTORY_START)) / (2 * BLOCK);
            let directory = device.peek(
                start(DIRECTORY_START) + side * blocks * BLOCK,
                (blocks * BLOCK) as usize,
            );
            let mut superblock = device.peek(0, 4096);
            superblock[DIRECTORY_CRC..DIRECTORY_CRC + 4]
                .copy_from_slice(&crc32c::crc32c(&directory).to_le_bytes());
            self.store_superblock(device, superblock);
        } else if offset >= start(LOG_START) {
            self.seal_batch(device, offset);
        }
    }

    fn store_superblock(&self, device: &SimDevice, mut block: Vec<u8>) {
        block[12..16].fill(0);
        let crc = crc32c::crc32c(&block);
        block[12..16].copy_from_slice(&crc.to_le_bytes());
        for offset in [0, BLOCK, self.tails[0], self.tails[1]] {
            device.overwrite(offset, &block);
        }
    }

    /// Makes the checksum right of the batch that this block of the log belongs to.
    fn seal_batch(&self, device: &SimDevice, offset: u64) {
        let start = word(&self.superblock, LOG_START);
        let end = word(&self.superblock, DIRECTORY_START);
        let mut head = offset;
        while device.peek(head, 8) != b"QRYBATCH" {
            if head == start {
                return;
            }
            head -= BLOCK;
        }
        let length = u64::from(half_word(&device.peek(head, 64), 48));
        if head + 64 + length > end {
            return;
        }
        let mut batch = device.peek(head, (64 + length) as usize);
        batch[56..60].fill(0);
        let crc = crc32c::crc32c(&batch);
        device.overwrite(head, &{
            let mut block = device.peek(head, 4096);
            block[56..60].copy_from_slice(&crc.to_le_bytes());
            block
        });
    }
}

/// Puts nonsense somewhere into a block, rather where something is.
fn spoil(block: &mut [u8], all: &[u8], random: &mut SplitMix) {
    let mut at = 0;
    for _ in 0..8 {
        at = random.below(512) as usize * 8;
        if word(block, at) != 0 {
            break;
        }
    }
    match random.below(7) {
        0 => block[at + random.below(8) as usize] ^= 1 << random.below(8),
        1 => block[at + random.below(8) as usize] = random.below(256) as u8,
        2 => {
            let few = [
                0,
                1,
                2,
                3,
                7,
                255,
                1 << 12,
                1 << 20,
                1 << 36,
                1 << 61,
                1 << 63,
                u64::MAX,
            ];
            let value = few[random.below(few.len() as u64) as usize];
            block[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        3 => {
            let value = random.below(600);
            block[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        4 => {
            // A page or a chunk in the neighbourhood, or more pages of a chunk than there are.
            let value = word(block, at) ^ 1 << random.below(12);
            block[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        5 => {
            // An entry, a pointer or a row from elsewhere in the block.
            let length = [8, 24, 32, 128][random.below(4) as usize].min(4096 - at);
            let from = random.below((4096 - length) as u64 / 8) as usize * 8;
            block.copy_within(from..from + length, at);
        }
        _ => {
            let length = [8, 24, 32][random.below(3) as usize].min(4096 - at);
            block[at..at + length].copy_from_slice(&all[at..at + length]);
        }
    }
}

/// Asks everything of a pool that can be asked; only that there are answers counts. Tells whether it opened and then stopped.
fn use_all(device: &Arc<SimDevice>, random: &mut SplitMix) -> bool {
    let options = OpenOptions {
        bitmap: [BitmapSource::Stored, BitmapSource::Maps][random.below(2) as usize],
        ..OpenOptions::default()
    };
    if random.below(4) == 0 {
        let access = [Access::ReadOnly, Access::ReadWrite][random.below(2) as usize];
        let discarded = [Discarded::StaysAway, Discarded::MayComeBack][random.below(2) as usize];
        let set = DeviceSet::of(device.clone());
        let _ = repair(&set, &options, access, discarded);
    }
    let Ok(pool) = Pool::open(device.clone(), options) else {
        return false;
    };
    let _ = pool.check();
    let volumes: Vec<VolumeId> = pool.volumes().iter().map(|volume| volume.id).take(8).collect();
    let snapshots: Vec<SnapshotId> = pool.snapshots().iter().map(|one| one.id).take(8).collect();
    let versions = volumes.iter().map(|id| VersionId::Volume(*id));
    let versions: Vec<VersionId> = versions
        .chain(snapshots.iter().map(|id| VersionId::Snapshot(*id)))
        .collect();
    let chunk = pool.chunk_bytes().min(1 << 20);
    for version in &versions {
        let Ok(handle) = pool.open_version(*version, OpenMode::ReadOnly) else {
            continue;
        };
        let size = handle.size_bytes();
        let _ = handle.extents(0, size, 64);
        let mut bytes = vec![0; 8192];
        for _ in 0..12 {
            let _ = handle.read(random.below(40) * chunk / 2, &mut bytes);
        }
        let _ = handle.read(size.saturating_sub(8192), &mut bytes);
    }
    for snapshot in &snapshots {
        for volume in &volumes {
            let _ = pool.differences(
                VersionId::Volume(*volume),
                Some(VersionId::Snapshot(*snapshot)),
                0,
                64,
            );
        }
    }
    for volume in &volumes {
        let Ok(handle) = pool.open_version(VersionId::Volume(*volume), OpenMode::ReadWrite) else {
            continue;
        };
        for _ in 0..6 {
            let offset = random.below(160) * chunk / 8 / 4096 * 4096;
            let _ = handle.write(offset, &vec![7; 4096 << random.below(6)], Durability::Cached);
            let _ = handle.discard(random.below(20) * chunk, chunk * random.below(4));
        }
        let _ = handle.flush();
        let id = SnapshotId(Uuid::from_u128(9 << 96 | u128::from(random.below(1 << 40))));
        let _ = pool.create_snapshots(&[SnapshotSpec { id, volume: *volume }]);
    }
    let _ = pool.checkpoint();
    let _ = pool.start_scrub();
    let id = VolumeId(Uuid::from_u128(7 << 96));
    let _ = pool.create_volume(&VolumeSpec::new(id, 1 << 24, DataSource::Blank));
    for volume in volumes.iter().skip(1) {
        let _ = pool.delete_volume(*volume);
    }
    for snapshot in snapshots.iter().step_by(2) {
        let _ = pool.delete_snapshot(*snapshot);
    }
    for _ in 0..60 {
        match pool.maintain() {
            Ok(step) if step.more => {}
            _ => break,
        }
    }
    let _ = pool.check();
    let _ = pool.close();
    pool.stopped().is_some()
}

#[test]
fn nonsense_with_right_checksums_ends_in_answers_and_never_in_a_panic() {
    let suite = "nonsense_with_right_checksums_ends_in_answers_and_never_in_a_panic";
    let rounds = std::env::var("QUARRY_GARBAGE_ROUNDS").map_or(60, |text| text.parse().expect("a number"));
    for_each_seed(suite, 12, |seed| {
        let world = closed_pool(seed)?;
        let metadata = Metadata::of(world.device());
        let mut random = SplitMix::new(seed);
        for round in 0..rounds {
            let device = world.device().fork(seed);
            let mut spoiled = Vec::new();
            for _ in 0..1 + random.below(3) {
                let offset = metadata.blocks[random.below(metadata.blocks.len() as u64) as usize];
                let other = metadata.blocks[random.below(metadata.blocks.len() as u64) as usize];
                let mut block = device.peek(offset, 4096);
                for _ in 0..1 + random.below(2) {
                    spoil(&mut block, &device.peek(other, 4096), &mut random);
                }
                metadata.store(&device, offset, &block);
                spoiled.push(offset);
            }
            let used =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| use_all(&device, &mut random)));
            if let Err(panic) = used {
                println!("{suite}: seed {seed}, round {round}: blocks {spoiled:?}");
                std::panic::resume_unwind(panic);
            }
        }
        Ok(())
    });
}

/// The walk up to the superblock reaches it: without it, nothing here would be tested but checksums.
#[test]
fn a_change_of_a_leaf_is_read_as_if_it_had_been_written() {
    for_each_seed(
        "a_change_of_a_leaf_is_read_as_if_it_had_been_written",
        4,
        |seed| {
            let world = closed_pool(seed)?;
            let metadata = Metadata::of(world.device());
            let mut served = 0;
            for offset in metadata.pages.keys() {
                let device = world.device().fork(seed);
                let mut block = device.peek(*offset, 4096);
                // Reserved, or the least that can be changed.
                block[4095] ^= 1;
                metadata.store(&device, *offset, &block);
                served += u32::from(Pool::open(device, OpenOptions::default()).is_ok());
            }
            assert!(served > 0, "seed {seed}: none of {} pages", metadata.pages.len());
            Ok(())
        },
    );
}

/// Where the index stream has the masks of the pages in use: the index page, and the words in it.
fn masks(device: &SimDevice) -> (u64, Vec<usize>) {
    let index = word(&device.peek(0, 4096), 168) * BLOCK;
    let page = device.peek(index, 4096);
    let row_pages = word(&page, 32) as usize;
    let chunks_at = 40 + 24 * row_pages;
    let chunks = word(&page, chunks_at) as usize;
    let masks = (0..chunks).map(|chunk| chunks_at + 8 + 24 * chunk + 16);
    (index, masks.filter(|at| at + 8 <= 4096).collect())
}

/// A page that is in use and, as the list of pages has it, is not: it may be handed out, and freed a second time.
#[test]
fn a_page_in_use_that_is_not_in_the_list_ends_in_answers_too() {
    let suite = "a_page_in_use_that_is_not_in_the_list_ends_in_answers_too";
    let stopped = Cell::new(0);
    for_each_seed(suite, 6, |seed| {
        let world = closed_pool(seed)?;
        let metadata = Metadata::of(world.device());
        let (index, masks) = masks(world.device());
        let mut random = SplitMix::new(seed);
        for at in masks {
            for bit in 0..16 {
                let device = world.device().fork(seed);
                let mut block = device.peek(index, 4096);
                let mask = word(&block, at);
                if mask >> bit & 1 == 0 {
                    continue;
                }
                block[at..at + 8].copy_from_slice(&(mask & !(1 << bit)).to_le_bytes());
                metadata.store(&device, index, &block);
                stopped.set(stopped.get() + u32::from(use_all(&device, &mut random)));
            }
        }
        Ok(())
    });
    assert!(stopped.get() > 0, "no pool has stopped");
}
