//! A process to which the kernel refuses io_uring, as it does in most containers.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use quarry_contract::{
    BlockDevice, BlockingQueue, DataSource, Durability, OpenMode, VersionId, VolumeId, VolumeSpec,
};
use quarry_thin::{
    Caching, FileDevice, FileDeviceError, FileOptions, FormatOptions, IoMode, OpenOptions, Pool, PoolDevice,
    VolumeDevice, Workers,
};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const CHUNK: usize = 64 << 10;

/// The pool, for the process to which io_uring is refused.
const POOL: &str = "QUARRY_TEST_WITHOUT_URING";

const WRAPPER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/lib/without-io-uring");

/// Opens the pool in a way, goes on with what is there, and leaves one chunk more, flushed.
fn go_on(path: &Path, options: impl Into<FileOptions>, round: u8) {
    let device = Arc::new(FileDevice::open(path, options).unwrap());
    let pool = Pool::open(device, OpenOptions::default()).unwrap();
    let id = VolumeId(Uuid::from_u128(1));
    if round == 1 {
        pool.create_volume(&VolumeSpec::new(id, 16 * MIB, DataSource::Blank))
            .unwrap();
    }
    let handle = pool
        .open_version(VersionId::Volume(id), OpenMode::ReadWrite)
        .unwrap();
    let device: Arc<dyn BlockDevice> = VolumeDevice::new(handle, Workers::new());
    let mut queue = BlockingQueue::open(&device).unwrap();
    for before in 1..round {
        let found = queue.read(u64::from(before) * CHUNK as u64, CHUNK).unwrap();
        assert!(found.iter().all(|byte| *byte == before), "round {before}");
    }
    let offset = u64::from(round) * CHUNK as u64;
    queue
        .write(offset, &vec![round; CHUNK], Durability::Cached)
        .unwrap();
    queue.flush().unwrap();
    assert_eq!(pool.check().unwrap().problems, Vec::<String>::new());
}

/// What the process does to which it is refused.
fn refused(path: &Path) {
    for caching in [Caching::Direct, Caching::PageCache] {
        let mode = IoMode::Auto;
        let device = FileDevice::open(path, FileOptions { mode, caching }).unwrap();
        assert!(device.direct_file().is_none(), "threads do it all");
        drop(device);
        let mode = IoMode::Uring;
        let error = FileDevice::open(path, FileOptions { mode, caching }).unwrap_err();
        assert!(matches!(error, FileDeviceError::NoUring(_)), "{error}");
        assert!(error.to_string().contains("io_uring cannot be used"), "{error}");
    }
    go_on(path, IoMode::Auto, 2);
    let through_page_cache = FileOptions {
        mode: IoMode::Auto,
        caching: Caching::PageCache,
    };
    go_on(path, through_page_cache, 3);
}

#[test]
fn a_pool_is_gone_on_with_by_threads_where_io_uring_is_refused_and_back() {
    if let Some(path) = std::env::var_os(POOL) {
        return refused(Path::new(&path));
    }
    for errno in ["EPERM", "ENOSYS"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool");
        let device = FileDevice::create(&path, 32 * MIB, IoMode::Auto).unwrap();
        Pool::format(
            &device,
            &FormatOptions {
                log_bytes: MIB,
                ..FormatOptions::default()
            },
        )
        .unwrap();
        drop(device);
        go_on(&path, IoMode::Auto, 1);
        let status = Command::new(WRAPPER)
            .arg(errno)
            .arg(std::env::current_exe().unwrap())
            .args(["a_pool_is_gone_on_with_by_threads", "--nocapture"])
            .env(POOL, &path)
            .status();
        assert!(status.unwrap().success(), "{errno}");
        go_on(&path, IoMode::Auto, 4);
    }
}
