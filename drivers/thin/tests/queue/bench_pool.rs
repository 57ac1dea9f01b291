//! Pools on files for these tests.

use std::path::PathBuf;
use std::sync::Arc;

use quarry_contract::conformance::requirement::{URING, skip};
use quarry_contract::{DataSource, OpenMode, PoolName, VersionId, VolumeId, VolumeSpec};
use quarry_thin::{
    Caching, FileDevice, FileOptions, FormatOptions, IoMode, OpenOptions, Pool, PoolDevice, VolumeDevice,
    Workers,
};
use tempfile::TempDir;
use uuid::Uuid;

const POOL_BYTES: u64 = 256 << 20;

/// Where a pool is and how its queues do I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub directory: &'static str,
    pub mode: IoMode,
    pub caching: Caching,
}

impl Kind {
    const fn direct(directory: &'static str, mode: IoMode) -> Self {
        Self {
            directory,
            mode,
            caching: Caching::Direct,
        }
    }

    fn options(self) -> FileOptions {
        FileOptions {
            mode: self.mode,
            caching: self.caching,
        }
    }
}

/// Every way a queue can do I/O: at once on memory, through a ring on memory and on disk, with threads,
/// through the page cache.
pub const KINDS: [Kind; 5] = [
    Kind::direct("/dev/shm", IoMode::Auto),
    Kind::direct("/dev/shm", IoMode::Uring),
    Kind::direct("/tmp", IoMode::Uring),
    Kind::direct("/tmp", IoMode::Threads),
    Kind {
        directory: "/tmp",
        mode: IoMode::Uring,
        caching: Caching::PageCache,
    },
];

/// Runs `test` for every kind that this machine allows.
pub fn each_kind(test: impl Fn(Kind)) {
    for kind in KINDS {
        match (kind.mode, quarry_sys::ring::probe()) {
            (IoMode::Uring, Err(error)) => {
                skip(
                    URING,
                    format!("{kind:?} cannot be: io_uring is not allowed here: {error}"),
                );
            }
            _ => test(kind),
        }
    }
}

/// A pool on a file that is removed at the end.
pub struct BenchPool {
    pub pool: Arc<Pool>,
    pub workers: Arc<Workers>,
    path: PathBuf,
    kind: Kind,
    _directory: TempDir,
}

impl BenchPool {
    pub fn new(kind: Kind) -> Self {
        let directory = tempfile::tempdir_in(kind.directory).unwrap();
        let path = directory.path().join("pool");
        let device = FileDevice::create(&path, POOL_BYTES, kind.options()).unwrap();
        let options = FormatOptions {
            log_bytes: 128 << 10,
            ..FormatOptions::default()
        };
        Pool::format(&device, &options).unwrap();
        drop(device);
        Self {
            pool: open(&path, kind),
            workers: Workers::new(),
            path,
            kind,
            _directory: directory,
        }
    }

    /// Makes a blank volume and opens it.
    pub fn volume(&self, size_bytes: u64) -> (VolumeId, Arc<VolumeDevice>) {
        let id = VolumeId(Uuid::new_v4());
        self.pool
            .create_volume(&VolumeSpec::new(id, size_bytes, DataSource::Blank))
            .unwrap();
        (id, self.open(id.into_version(), OpenMode::ReadWrite))
    }

    pub fn open(&self, version: VersionId, mode: OpenMode) -> Arc<VolumeDevice> {
        let handle = self.pool.open_version(version, mode).unwrap();
        VolumeDevice::new(handle, Arc::clone(&self.workers))
    }

    /// Lets go of the pool without closing it, and recovers it from its file.
    pub fn reopen(self) -> Self {
        let Self {
            pool,
            workers,
            path,
            kind,
            _directory,
        } = self;
        assert_eq!(Arc::strong_count(&pool), 1, "Q4: somebody still holds the pool");
        drop(pool);
        Self {
            pool: open(&path, kind),
            workers,
            path,
            kind,
            _directory,
        }
    }
}

fn open(path: &std::path::Path, kind: Kind) -> Arc<Pool> {
    let device: Arc<dyn PoolDevice> = Arc::new(FileDevice::open(path, kind.options()).unwrap());
    Pool::open(device, OpenOptions::named(PoolName::parse("bench").unwrap())).unwrap()
}

/// Names a volume's own version.
pub trait IntoVersion {
    fn into_version(self) -> VersionId;
}

impl IntoVersion for VolumeId {
    fn into_version(self) -> VersionId {
        VersionId::Volume(self)
    }
}

/// A small deterministic source of choices (xorshift64).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.roll() >> 16) % bound
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.roll() as u8).collect()
    }
}
