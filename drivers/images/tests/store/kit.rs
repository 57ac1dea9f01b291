//! A pool in a file of a temporary folder, and what is left of it on the machine.

use std::cell::Cell;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use quarry_contract::conformance::block_on;
use quarry_contract::conformance::share_backend::BlockingShares;
use quarry_contract::{
    DriverError, PoolName, ShareBackend, ShareId, ShareSnapshotId, ShareSnapshotSpec, ShareSource, ShareSpec,
    ShareVersion,
};
use quarry_images::{IfAbsent, ImageBackend, PoolPlace, StepHook, StoreOptions};
use quarry_sys::filesystem::{mounts_below, unmount};
use uuid::Uuid;

/// The size of a pool's file: room for five images, and sparse.
const POOL_BYTES: u64 = 3 << 30;
/// The least share.
pub const SHARE_BYTES: u64 = 256 << 20;

/// How long what a test leaves mounted may be in use.
const UNMOUNT_DEADLINE: Duration = Duration::from_secs(10);

/// Tells whether these tests can run here; prints why not.
pub fn can_run(test: &str) -> bool {
    let problem = if !nix::unistd::geteuid().is_root() {
        "needs root"
    } else if !Path::new("/dev/loop-control").exists() {
        "needs loop devices"
    } else {
        return true;
    };
    eprintln!("SKIPPED {test}: {problem}");
    false
}

/// A runtime for the futures of the driver, entered as long as this lives.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap()
}

/// A folder for one pool; dropping it unmounts and deletes everything.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        // On a disk: a tmpfs has no direct I/O.
        Self(tempfile::tempdir_in("/var/tmp").unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn mounts(&self) -> PathBuf {
        self.path().join("mounts")
    }

    /// Returns where the pool's own file system is mounted.
    pub fn root(&self) -> PathBuf {
        self.mounts().join("pool")
    }

    pub fn options(&self, on_step: Option<StepHook>) -> StoreOptions {
        options_in(self.path(), on_step)
    }

    pub fn open(&self) -> Pool {
        Pool::open(&self.options(None))
    }

    /// Asserts that nothing half-made is left: not in the pool, not mounted, not attached.
    #[track_caller]
    pub fn assert_tidy(&self, pool: &Pool) {
        for folder in ["new", "commit"] {
            let left = names(&self.root().join(folder));
            assert_eq!(left, Vec::<String>::new(), "left in {folder}");
        }
        let mounted = block_on(pool.0.mounted()).unwrap();
        let views = mounted
            .iter()
            .filter(|one| matches!(one.version, ShareVersion::Snapshot(_)));
        assert_eq!(
            names(&self.root().join("views")).len(),
            views.count(),
            "views without a mount"
        );
        let shares = self.mounts().canonicalize().unwrap().join("shares");
        let mounts = mounts_below(&shares).unwrap();
        assert_eq!(
            mounts.len(),
            mounted.len() + 1,
            "mounts that are not known: {mounts:?}"
        );
        // One device for the pool, one for each mount.
        assert_eq!(self.attached(), mounted.len() + 1, "loop devices");
    }

    /// Counts the loop devices that show something of this pool.
    fn attached(&self) -> usize {
        let devices = fs::read_dir("/sys/block").unwrap().flatten();
        let files = devices.filter_map(|one| fs::read_to_string(one.path().join("loop/backing_file")).ok());
        let folder = self.path().canonicalize().unwrap();
        files
            .filter(|file| file.starts_with(&*folder.to_string_lossy()))
            .count()
    }
}

pub fn options_in(folder: &Path, on_step: Option<StepHook>) -> StoreOptions {
    StoreOptions {
        name: PoolName::parse("test").unwrap(),
        place: PoolPlace::File {
            path: folder.join("pool.img"),
            if_absent: IfAbsent::Create {
                size_bytes: POOL_BYTES,
            },
        },
        mounts: folder.join("mounts"),
        on_step,
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let Ok(folder) = self.path().canonicalize() else {
            return;
        };
        // The threads of a pool whose test has failed use it for a moment longer.
        let deadline = Instant::now() + UNMOUNT_DEADLINE;
        loop {
            let mounts = mounts_below(&folder).unwrap_or_default();
            if mounts.is_empty() {
                return;
            }
            let is_late = Instant::now() > deadline;
            for mount in mounts.iter().rev() {
                match unmount(&mount.at) {
                    Err(error) if is_late => {
                        eprintln!(
                            "{} is in use: {error}; it goes when that ends",
                            mount.at.display()
                        );
                        let _ = umount2(&mount.at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
                    }
                    _ => {}
                }
            }
            if is_late {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// An open pool with calls that block.
pub struct Pool(pub BlockingShares<ImageBackend>);

thread_local! {
    /// Where the ids of a test begin: the kernel mounts no two file systems of one identity, and tests run side by side.
    pub static FIRST_ID: Cell<u128> = Cell::new(Uuid::new_v4().as_u128() & !0xffff);
}

pub fn share_id(number: u128) -> ShareId {
    ShareId(Uuid::from_u128(FIRST_ID.get() + 0x7000 + number))
}

pub fn snapshot_id(number: u128) -> ShareSnapshotId {
    ShareSnapshotId(Uuid::from_u128(FIRST_ID.get() + 0x5000 + number))
}

pub fn share(number: u128) -> ShareVersion {
    ShareVersion::Share(share_id(number))
}

pub fn snapshot(number: u128) -> ShareVersion {
    ShareVersion::Snapshot(snapshot_id(number))
}

impl Deref for Pool {
    type Target = BlockingShares<ImageBackend>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Pool {
    pub fn open(options: &StoreOptions) -> Self {
        let deadline = Instant::now() + UNMOUNT_DEADLINE;
        loop {
            match ImageBackend::open(options) {
                // A program that another test is starting has the lock of the pool before, too, until it runs.
                Err(error) if error.to_string().contains("the lock is held") && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                opened => return Self(BlockingShares(Arc::new(opened.unwrap()))),
            }
        }
    }

    pub fn create(&self, number: u128, source: ShareSource) -> Result<(), DriverError> {
        block_on(self.0.create_share(&ShareSpec {
            id: share_id(number),
            size_bytes: SHARE_BYTES,
            source,
        }))
        .map(drop)
    }

    pub fn snapshots(&self, group: &[(u128, u128)]) -> Result<(), DriverError> {
        let group: Vec<ShareSnapshotSpec> = group
            .iter()
            .map(|(snapshot, share)| ShareSnapshotSpec {
                id: snapshot_id(*snapshot),
                share: share_id(*share),
            })
            .collect();
        block_on(self.0.create_snapshots(&group)).map(drop)
    }

    pub fn revert(&self, number: u128, snapshot: u128) -> Result<(), DriverError> {
        block_on(self.0.revert_share(share_id(number), snapshot_id(snapshot))).map(drop)
    }

    pub fn adopt(&self, number: u128, name: &str) -> Result<(), DriverError> {
        block_on(self.0.adopt_share(share_id(number), name)).map(drop)
    }

    pub fn release(&self, number: u128, name: &str) -> Result<(), DriverError> {
        block_on(self.0.release_share(share_id(number), name)).map(drop)
    }

    pub fn resize(&self, number: u128, size_bytes: u64) -> Result<(), DriverError> {
        block_on(self.0.resize_share(share_id(number), size_bytes)).map(drop)
    }
}
