//! What a queue and its pool make of errors of the operating system's own.
//!
//! The host of a sparse file is full, a file may not become longer, a disk cannot keep what the page cache has taken. Most
//! needs a file system of its own, and so root; else those tests say that they are skipped. What the kernel cannot be brought
//! to refuse here is in `src/queue/faults.rs`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use quarry_contract::conformance::requirement::{LOOP_DEVICES, URING, skip};
use quarry_contract::{
    BlockDevice, BlockingQueue, DataSource, Durability, IoError, OpenMode, VersionId, VolumeId, VolumeSpec,
};
use quarry_sys::filesystem::{mount_tmpfs, unmount};
use quarry_sys::loop_device::LoopDevice;
use quarry_thin::{
    Caching, FileDevice, FileOptions, FormatOptions, IoMode, OpenOptions, Pool, VolumeDevice, Workers,
};
use tempfile::TempDir;
use uuid::Uuid;

use crate::disk::loop_device;

const MIB: u64 = 1 << 20;
const CHUNK: u64 = 64 << 10;
const POOL_BYTES: u64 = 64 * MIB;
/// What the file system below can take: less than the pool.
const HOST_BYTES: u64 = 24 * MIB;

const DIRECT: FileOptions = FileOptions {
    mode: IoMode::Uring,
    caching: Caching::Direct,
};

const THROUGH_PAGE_CACHE: FileOptions = FileOptions {
    mode: IoMode::Uring,
    caching: Caching::PageCache,
};

fn volume_id() -> VolumeId {
    VolumeId(Uuid::from_u128(1))
}

/// A file system in memory, and a file with which it can be filled.
struct Host {
    folder: TempDir,
}

impl Host {
    fn new() -> Option<Self> {
        if let Err(error) = quarry_sys::ring::probe() {
            skip(URING, format!("io_uring is not allowed here: {error}"));
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        match mount_tmpfs(folder.path(), HOST_BYTES) {
            Ok(()) => Some(Self { folder }),
            Err(error) => {
                skip(LOOP_DEVICES, format!("nothing can be mounted here: {error}"));
                None
            }
        }
    }

    fn pool(&self) -> PathBuf {
        self.folder.path().join("pool")
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut rest = File::create(self.folder.path().join("rest")).unwrap();
        let zeros = vec![0; 4096];
        while std::io::Write::write_all(&mut rest, &zeros).is_ok() {}
    }

    fn empty(&self) {
        std::fs::remove_file(self.folder.path().join("rest")).unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = unmount(self.folder.path());
    }
}

fn format(path: &Path) {
    let device = FileDevice::open(path, IoMode::Threads).unwrap();
    let options = FormatOptions {
        log_bytes: 256 << 10,
        ..FormatOptions::default()
    };
    Pool::format(&device, &options).unwrap();
}

fn sparse_file(path: &Path) {
    File::create(path).unwrap().set_len(POOL_BYTES).unwrap();
}

/// An open pool, and its only volume through a queue.
struct Bench {
    pool: Arc<Pool>,
    queue: BlockingQueue,
}

impl Bench {
    fn open(path: &Path, options: FileOptions) -> Self {
        let device = Arc::new(FileDevice::open(path, options).unwrap());
        let pool = Pool::open(device, OpenOptions::default()).unwrap();
        if pool.volumes().is_empty() {
            pool.create_volume(&VolumeSpec::new(volume_id(), POOL_BYTES, DataSource::Blank))
                .unwrap();
        }
        let version = VersionId::Volume(volume_id());
        let handle = pool.open_version(version, OpenMode::ReadWrite).unwrap();
        let device: Arc<dyn BlockDevice> = VolumeDevice::new(handle, Workers::new());
        Self {
            pool,
            queue: BlockingQueue::open(&device).unwrap(),
        }
    }

    fn write(&mut self, index: u64) -> Result<(), IoError> {
        let bytes = vec![content(index); CHUNK as usize];
        self.queue.write(index * CHUNK, &bytes, Durability::Cached)
    }

    /// Writes chunks and flushes after each, until every block of the log has been written.
    fn live(&mut self, count: u64) {
        for index in 0..count {
            self.write(index).unwrap();
            self.queue.flush().unwrap();
        }
    }

    fn assert_holds(&mut self, indices: impl IntoIterator<Item = u64>) {
        for index in indices {
            let found = self.queue.read(index * CHUNK, CHUNK as usize).unwrap();
            assert!(found.iter().all(|byte| *byte == content(index)), "chunk {index}");
        }
    }

    /// Every chunk is free or somebody's when all background work has been done.
    fn assert_no_chunk_is_lost(&self) {
        for _ in 0..2 {
            while self.pool.maintain().unwrap().more {}
            self.pool.checkpoint().unwrap();
        }
        let stat = self.pool.stat();
        let known = stat.free_chunks + stat.data_chunks + stat.metadata_chunks;
        assert_eq!(known, stat.chunks, "{stat:?}");
    }
}

fn content(index: u64) -> u8 {
    index as u8 | 1
}

/// More than the log has blocks.
const FLUSHED: u64 = 80;

/// Fills the file system below a pool, lets writes fail, and makes room again.
fn when_its_host_is_full_a_write_fails_and_the_pool_goes_on(host: &Host, path: &Path) {
    let mut bench = Bench::open(path, DIRECT);
    bench.live(FLUSHED);
    host.fill();
    for index in FLUSHED..FLUSHED + 4 {
        let refused = bench.write(index);
        assert!(
            matches!(refused, Err(IoError::NoSpace | IoError::Medium { .. })),
            "{refused:?}"
        );
        assert_eq!(bench.pool.stopped(), None);
    }
    bench.assert_holds(0..FLUSHED);
    host.empty();
    for index in FLUSHED..FLUSHED + 4 {
        bench.write(index).unwrap();
    }
    bench.queue.flush().unwrap();
    bench.assert_no_chunk_is_lost();
    drop(bench);
    let mut bench = Bench::open(path, DIRECT);
    bench.assert_holds(0..FLUSHED + 4);
    assert_eq!(bench.pool.check().unwrap().problems, Vec::<String>::new());
}

#[test]
fn a_write_into_a_sparse_file_whose_host_is_full_is_refused_as_no_space() {
    let Some(host) = Host::new() else { return };
    sparse_file(&host.pool());
    format(&host.pool());
    when_its_host_is_full_a_write_fails_and_the_pool_goes_on(&host, &host.pool());
    let mut bench = Bench::open(&host.pool(), DIRECT);
    host.fill();
    let refused = bench.write(FLUSHED + 4);
    assert!(matches!(refused, Err(IoError::NoSpace)), "{refused:?}");
}

/// A disk over a file of the host.
fn disk(host: &Host) -> Option<LoopDevice> {
    sparse_file(&host.pool());
    loop_device(&host.pool())
}

#[test]
fn a_write_that_a_disk_refuses_is_that_writes_error() {
    let Some(host) = Host::new() else { return };
    let Some(disk) = disk(&host) else { return };
    format(disk.path());
    when_its_host_is_full_a_write_fails_and_the_pool_goes_on(&host, disk.path());
}

/// The page cache has taken the writes, and only the fdatasync of the ring is told that the disk did not.
#[test]
fn a_pool_stops_when_a_disk_cannot_keep_what_the_page_cache_took() {
    let Some(host) = Host::new() else { return };
    let Some(disk) = disk(&host) else { return };
    format(disk.path());
    let mut bench = Bench::open(disk.path(), THROUGH_PAGE_CACHE);
    bench.live(FLUSHED);
    host.fill();
    for index in FLUSHED..FLUSHED + 4 {
        bench.write(index).unwrap();
    }
    let flushed = bench.queue.flush();
    assert!(matches!(flushed, Err(IoError::Stopped { .. })), "{flushed:?}");
    host.empty();
    // Nothing is tried again, though now it would succeed.
    let again = bench.queue.flush();
    assert!(matches!(again, Err(IoError::Stopped { .. })), "{again:?}");
    let written = bench.write(0);
    assert!(matches!(written, Err(IoError::Stopped { .. })), "{written:?}");
    bench.assert_holds(0..FLUSHED);
    drop(bench);
    let mut bench = Bench::open(disk.path(), THROUGH_PAGE_CACHE);
    bench.assert_holds(0..FLUSHED);
    assert_eq!(bench.pool.check().unwrap().problems, Vec::<String>::new());
    bench.live(FLUSHED + 4);
    bench.assert_no_chunk_is_lost();
}

/// Set in the process that may be limited.
const ROLE: &str = "QUARRY_TEST_LIMITED";

/// Writes that cross the limit are short: the kernel takes what is below it, and refuses the rest.
#[test]
fn a_write_that_is_cut_short_is_gone_on_with_and_fails_with_what_the_rest_met() {
    if std::env::var_os(ROLE).is_none() {
        if let Err(error) = quarry_sys::ring::probe() {
            return skip(URING, format!("io_uring is not allowed here: {error}"));
        }
        // The signal that comes with the error is ignored there.
        let status = Command::new("sh")
            .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
            .arg(std::env::current_exe().unwrap())
            .args(["a_write_that_is_cut_short", "--nocapture"])
            .env(ROLE, "1")
            .status();
        assert!(status.unwrap().success());
        return;
    }
    for folder in ["/tmp", "/dev/shm"] {
        let folder = tempfile::tempdir_in(folder).unwrap();
        let path = folder.path().join("pool");
        sparse_file(&path);
        format(&path);
        let mut bench = Bench::open(&path, DIRECT);
        bench.live(FLUSHED);
        let runs = bench.pool.map_runs(volume_id().0).unwrap().unwrap();
        let end = runs.iter().map(|run| run.chunk + run.count).max().unwrap();
        let stat = bench.pool.stat();
        // In the middle of the fourth chunk that is handed out next.
        let limit = stat.data_start_bytes + (end + 3) * CHUNK + 20480;
        let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        setrlimit(Resource::RLIMIT_FSIZE, limit, hard).unwrap();
        let (mut taken, mut refused) = (Vec::new(), 0);
        for index in FLUSHED..FLUSHED + 12 {
            match bench.write(index) {
                Ok(()) => taken.push(index),
                Err(IoError::Medium { detail }) => {
                    assert!(detail.contains("File too large"), "{detail}");
                    refused += 1;
                }
                Err(error) => panic!("{error}"),
            }
            assert_eq!(bench.pool.stopped(), None);
        }
        assert!(
            !taken.is_empty() && refused >= 1,
            "{taken:?} taken, {refused} refused"
        );
        bench.queue.flush().unwrap();
        bench.assert_holds(taken);
        setrlimit(Resource::RLIMIT_FSIZE, soft, hard).unwrap();
        for index in FLUSHED..FLUSHED + 12 {
            bench.write(index).unwrap();
        }
        bench.queue.flush().unwrap();
        bench.assert_no_chunk_is_lost();
        drop(bench);
        let mut bench = Bench::open(&path, DIRECT);
        bench.assert_holds(0..FLUSHED + 12);
        assert_eq!(bench.pool.check().unwrap().problems, Vec::<String>::new());
    }
}
