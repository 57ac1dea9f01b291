//! Filling chunks whose rest is a hole of the pool's file.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use quarry_contract::{DataSource, Durability, OpenMode, VersionId, VolumeId, VolumeSpec};
use quarry_thin::{FileDevice, FormatOptions, IoMode, OpenOptions, Pool, PoolDevice, VersionHandle};
use uuid::Uuid;

const CHUNK: u64 = 64 << 10;
const CHUNKS: u64 = 64;

/// Makes a pool that holds two volumes, so that the second gets the chunks of a deleted first.
fn format(path: &Path) {
    let device = FileDevice::create(path, 2 * CHUNKS * CHUNK, IoMode::Threads).unwrap();
    let format = FormatOptions {
        log_bytes: 1 << 20,
        ..FormatOptions::default()
    };
    Pool::format(&device, &format).unwrap();
}

fn open(path: &Path, options: OpenOptions) -> Arc<Pool> {
    let device: Arc<dyn PoolDevice> = Arc::new(FileDevice::open(path, IoMode::Threads).unwrap());
    Pool::open(device, options).unwrap()
}

fn volume(pool: &Arc<Pool>, number: u128) -> Arc<VersionHandle> {
    let id = VolumeId(Uuid::from_u128(number));
    pool.create_volume(&VolumeSpec::new(id, CHUNKS * CHUNK, DataSource::Blank))
        .unwrap();
    pool.open_version(VersionId::Volume(id), OpenMode::ReadWrite)
        .unwrap()
}

fn allocated_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// Writes a block of each chunk, fills the chunks, and returns how much larger on its file system that made the pool.
fn write_and_fill(pool: &Arc<Pool>, handle: &VersionHandle, path: &Path) -> u64 {
    for index in 0..CHUNKS {
        handle
            .write(index * CHUNK + 8192, &[7; 4096], Durability::Cached)
            .unwrap();
    }
    handle.flush().unwrap();
    let before = allocated_bytes(path);
    while pool.maintain().unwrap().more {}
    assert_eq!(pool.stat().partial_chunks, 0);
    pool.checkpoint().unwrap();
    allocated_bytes(path) - before
}

fn assert_blocks_among_zeros(handle: &VersionHandle) {
    for index in 0..CHUNKS {
        let mut bytes = vec![1; CHUNK as usize];
        handle.read(index * CHUNK, &mut bytes).unwrap();
        let expected = |at: usize| if (8192..12288).contains(&at) { 7 } else { 0 };
        assert!(
            bytes.iter().enumerate().all(|(at, byte)| *byte == expected(at)),
            "chunk {index}"
        );
    }
}

#[test]
fn what_is_a_hole_is_filled_without_a_write_and_what_was_somebody_elses_is_not_taken_for_one() {
    for directory in ["/tmp", "/dev/shm"] {
        let directory = tempfile::tempdir_in(directory).unwrap();
        let path = directory.path().join("pool");
        format(&path);
        // Nobody punches the chunks of the first volume.
        let options = OpenOptions {
            discard_freed: false,
            ..OpenOptions::default()
        };
        let pool = open(&path, options.clone());
        let first = volume(&pool, 1);
        let grown = write_and_fill(&pool, &first, &path);
        assert!(
            grown < CHUNKS * CHUNK / 4,
            "filling wrote {grown} bytes into holes"
        );
        assert_blocks_among_zeros(&first);
        first
            .write(0, &vec![9; (CHUNKS * CHUNK) as usize], Durability::Flushed)
            .unwrap();
        drop(first);
        pool.delete_volume(VolumeId(Uuid::from_u128(1))).unwrap();
        while pool.maintain().unwrap().more {}

        let second = volume(&pool, 2);
        write_and_fill(&pool, &second, &path);
        assert_blocks_among_zeros(&second);
        drop((second, pool));
        let pool = open(&path, options);
        let second = pool
            .open_version(
                VersionId::Volume(VolumeId(Uuid::from_u128(2))),
                OpenMode::ReadWrite,
            )
            .unwrap();
        assert_blocks_among_zeros(&second);
        assert_eq!(pool.check().unwrap().problems, Vec::<String>::new());
    }
}

#[test]
fn when_no_other_chunk_may_become_partial_a_first_write_makes_room_and_still_moves_only_its_block() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    format(&path);
    let options = OpenOptions {
        max_partial_chunks: 4,
        ..OpenOptions::default()
    };
    let pool = open(&path, options);
    let handle = volume(&pool, 1);
    let before = allocated_bytes(&path);
    for index in 0..CHUNKS {
        handle
            .write(index * CHUNK + 8192, &[7; 4096], Durability::Cached)
            .unwrap();
        assert!(pool.stat().partial_chunks <= 4);
    }
    handle.flush().unwrap();
    let grown = allocated_bytes(&path) - before;
    assert!(
        grown < CHUNKS * CHUNK / 4,
        "{CHUNKS} blocks of 4 KiB took {grown} bytes"
    );
    assert_blocks_among_zeros(&handle);
    assert_eq!(pool.check().unwrap().problems, Vec::<String>::new());
}

#[test]
fn chunks_with_many_holes_are_filled_as_those_with_few() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    format(&path);
    let pool = open(&path, OpenOptions::default());
    let handle = volume(&pool, 1);
    // Every other block of every third chunk; of the others, the second.
    let is_written = |block: u64| match block / 16 % 3 {
        0 => block.is_multiple_of(2),
        _ => block % 16 == 1,
    };
    for block in (0..CHUNKS * 16).filter(|block| is_written(*block)) {
        handle
            .write(block * 4096, &[7; 4096], Durability::Cached)
            .unwrap();
    }
    let before = allocated_bytes(&path);
    while pool.maintain().unwrap().more {}
    assert_eq!(pool.stat().partial_chunks, 0);
    let grown = allocated_bytes(&path) - before;
    assert!(
        grown < CHUNKS * CHUNK / 4,
        "filling wrote {grown} bytes into holes"
    );
    for block in 0..CHUNKS * 16 {
        let mut bytes = [1; 4096];
        handle.read(block * 4096, &mut bytes).unwrap();
        let expected = [if is_written(block) { 7 } else { 0 }; 4096];
        assert!(bytes == expected, "block {block}");
    }
    assert_eq!(pool.check().unwrap().problems, Vec::<String>::new());
}

/// D1: blocks that a chunk is given without a write have sums too.
#[test]
fn a_hole_in_a_checksummed_volume_is_filled_and_has_its_sums() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = directory.path().join("pool");
    format(&path);
    let pool = open(&path, OpenOptions::default());
    let id = VolumeId(Uuid::from_u128(1));
    let spec = VolumeSpec {
        checksums: true,
        ..VolumeSpec::new(id, CHUNKS * CHUNK, DataSource::Blank)
    };
    pool.create_volume(&spec).unwrap();
    let handle = pool
        .open_version(VersionId::Volume(id), OpenMode::ReadWrite)
        .unwrap();
    write_and_fill(&pool, &handle, &path);
    assert_blocks_among_zeros(&handle);
}
