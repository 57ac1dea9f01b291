//! Filling chunks whose rest is a hole of the pool's file.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use quarry_contract::{DataSource, Durability, OpenMode, VersionId, VolumeId, VolumeSpec};
use quarry_thin::{FileDevice, FormatOptions, IoMode, OpenOptions, Pool, PoolDevice, VersionHandle};
use uuid::Uuid;

const CHUNK: u64 = 64 << 10;
const CHUNKS: u64 = 64;

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
        // Holds both volumes, so that the second gets the chunks of the first, which nobody punched.
        let device = FileDevice::create(&path, 2 * CHUNKS * CHUNK, IoMode::Threads).unwrap();
        let format = FormatOptions {
            log_bytes: 1 << 20,
            ..FormatOptions::default()
        };
        Pool::format(&device, &format).unwrap();
        drop(device);
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
