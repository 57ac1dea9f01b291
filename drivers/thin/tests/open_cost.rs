//! What an open after a crash asks of the device: counted, so that it says something of pools of any size.
//!
//! An open reads the superblocks, what lists the pool's space, a row for each version, and the whole log: only that tells where it
//! ends, and that nothing valid follows. Of the maps it reads the paths to what the log changes, however much is mapped, and of the data
//! what the last batch of the log claims.

use std::sync::Arc;

use quarry_contract::{
    DataSource, Durability, OpenMode, SnapshotId, SnapshotSpec, VersionId, VolumeId, VolumeSpec,
};
use quarry_thin::sim::{OpCounts, SimDevice};
use quarry_thin::{FormatOptions, OpenOptions, Pool, VersionHandle};
use uuid::Uuid;

const BLOCK: u64 = 4096;
const CHUNK: u64 = 16 << 10;
const LEAF: u64 = 512 * CHUNK;
const DEVICE: u64 = 1 << 30;
/// As many pages of a map are far more than anything that an open reads.
const LARGE: u64 = 6000;

/// A pool that is used until its power is cut.
struct Load {
    /// Chunks that are mapped, each in a leaf of its own.
    leaves: u64,
    snapshots: u64,
    /// Batches of the log that no checkpoint has taken in.
    batches: u64,
    log_bytes: u64,
}

/// What an open asks for, and what there is to read for it.
struct Cost {
    asked: OpCounts,
    /// Blocks of the superblocks, the bitmap and its directory.
    fixed_blocks: u64,
    log_blocks: u64,
    /// Pages on the ways to what the log maps, each of its batches in another leaf.
    path_pages: u64,
    rows: u64,
    page_chunks: u64,
}

fn volume_id() -> VolumeId {
    VolumeId(Uuid::from_u128(1))
}

fn open(device: &Arc<SimDevice>) -> Arc<Pool> {
    Pool::open(device.clone(), OpenOptions::default()).expect("opening the pool")
}

fn write(handle: &VersionHandle, index: u64) {
    handle
        .write(index * CHUNK, &[7; CHUNK as usize], Durability::Flushed)
        .expect("writing");
}

fn cost_of(load: &Load) -> Cost {
    let device = SimDevice::new(DEVICE, 1);
    let format = FormatOptions {
        chunk_bytes: CHUNK as u32,
        log_bytes: load.log_bytes,
        ..FormatOptions::default()
    };
    Pool::format(device.as_ref(), &format).expect("formatting");
    let pool = open(&device);
    let size_bytes = (load.leaves + load.batches) * LEAF;
    pool.create_volume(&VolumeSpec::new(volume_id(), size_bytes, DataSource::Blank))
        .expect("a volume");
    let version = VersionId::Volume(volume_id());
    let handle = pool
        .open_version(version, OpenMode::ReadWrite)
        .expect("the volume");
    for leaf in 0..load.leaves {
        write(&handle, leaf * 512);
    }
    for number in 0..load.snapshots {
        let id = SnapshotId(Uuid::from_u128(1 << 64 | u128::from(number)));
        let volume = volume_id();
        pool.create_snapshots(&[SnapshotSpec { id, volume }])
            .expect("a snapshot");
    }
    while pool.maintain().expect("maintaining").more {}
    pool.checkpoint().expect("a checkpoint");
    for batch in 0..load.batches {
        write(&handle, batch * 512 + 1);
    }
    let stat = pool.stat();
    drop((handle, pool));

    let device = device.power_cycle();
    let pool = open(&device);
    let asked = device.counts();
    let volume = pool.volume(volume_id()).expect("the volume is there");
    assert_eq!(volume.mapped_bytes, (load.leaves + load.batches) * CHUNK);
    let bitmap_blocks = (DEVICE / CHUNK).div_ceil(32768);
    Cost {
        asked,
        fixed_blocks: 4 + bitmap_blocks + 1,
        log_blocks: load.log_bytes / BLOCK,
        path_pages: 4 * load.batches,
        rows: pool.version_rows().len() as u64,
        page_chunks: stat.metadata_chunks,
    }
}

impl Cost {
    /// Blocks that list what there is.
    fn listing_blocks(&self) -> u64 {
        let row_pages = self.rows.div_ceil(32) + 1;
        // A pointer for each row page, and a line for each chunk of pages.
        let index_bytes = 24 * (row_pages + 16) + 24 * self.page_chunks + 4096;
        row_pages + index_bytes.div_ceil(4064)
    }

    /// The most that an open may read, in bytes.
    fn most_bytes(&self) -> u64 {
        // Superblocks are read once to choose one and once to compare, and the log once as far as it is valid and once from there
        // on; a batch claims what fits into a few chunks.
        BLOCK * (2 * self.log_blocks + 2 * self.fixed_blocks + self.listing_blocks() + self.path_pages + 16)
    }

    /// The most reads that it may take: the log goes in pieces of at least 64 KiB.
    fn most_reads(&self) -> u64 {
        2 * self.log_blocks.div_ceil(16)
            + 2 * self.fixed_blocks
            + self.listing_blocks()
            + self.path_pages
            + 16
    }
}

fn assert_cheap(load: &Load) -> Cost {
    let cost = cost_of(load);
    let (asked, most) = (cost.asked, cost.most_bytes());
    println!(
        "{} mapped, {} versions, {} batches, log of {}: {} reads of {} bytes, at most {most}",
        load.leaves, cost.rows, load.batches, load.log_bytes, asked.reads, asked.read_bytes
    );
    assert!(asked.read_bytes <= most, "{} bytes read", asked.read_bytes);
    let most_reads = cost.most_reads();
    assert!(
        asked.reads <= most_reads,
        "{} reads, at most {most_reads}",
        asked.reads
    );
    cost
}

#[test]
fn an_open_after_a_crash_reads_the_log_and_the_rows_however_much_is_mapped() {
    let load = |leaves, snapshots, batches, log_bytes| Load {
        leaves,
        snapshots,
        batches,
        log_bytes,
    };
    let small = assert_cheap(&load(10, 10, 20, 1 << 20));
    let large = assert_cheap(&load(LARGE, 10, 20, 1 << 20));
    // What grows is the list of the chunks that hold pages; where in the log its end is differs, and which leaves there were.
    let more = (large.page_chunks - small.page_chunks) * 24;
    let grown = large.asked.read_bytes.saturating_sub(small.asked.read_bytes);
    let may_grow = more.div_ceil(4064) + large.log_blocks + large.path_pages;
    assert!(
        grown <= may_grow * BLOCK,
        "600 times as much mapped costs {grown} bytes more"
    );
    let map_blocks = LARGE;
    assert!(
        map_blocks > 10 * may_grow,
        "all pages of the map would be noticed"
    );
    // By the versions and by the log, whether it is in use or not.
    assert_cheap(&load(10, 3000, 20, 1 << 20));
    assert_cheap(&load(10, 10, 200, 1 << 20));
    assert_cheap(&load(10, 10, 20, 16 << 20));
}
