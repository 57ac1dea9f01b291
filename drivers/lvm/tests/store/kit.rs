//! A volume group on the guest's disk, a thin pool in it, and what is left of it.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use quarry_contract::conformance::block_on;
use quarry_contract::conformance::share_backend::BlockingShares;
use quarry_contract::{
    DriverError, PoolName, ShareBackend, ShareId, ShareSnapshotId, ShareSnapshotSpec, ShareSource, ShareSpec,
    ShareVersion,
};
use quarry_lvm::{IfAbsent, LvmBackend, PoolPlace, StepHook, StoreOptions};
use quarry_sys::filesystem::{mounts_below, unmount};
use uuid::Uuid;

const GROUP: &str = "lab-group";
/// Room for six blank shares and what is written.
const POOL_BYTES: u64 = 1536 << 20;
/// The least share.
pub const SHARE_BYTES: u64 = 256 << 20;
/// Much longer than two looks at the pool are apart.
const DEADLINE: Duration = Duration::from_secs(60);
/// Where everything of a pool is mounted.
const MOUNTS: &str = "/run/quarry-mounts";

/// Tells whether these tests can run here; prints why not.
pub fn can_run(test: &str) -> bool {
    if std::env::var_os("QUARRY_LAB_GUEST").is_none() {
        eprintln!("SKIPPED {test}: run scripts/lab/test, which boots the guest that it needs");
        return false;
    }
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        for module in ["dm-mod", "dm-thin-pool", "xfs"] {
            run("modprobe", &[module]);
        }
        lvm(&["pvcreate", "/dev/ubda"]);
        lvm(&["vgcreate", GROUP, "/dev/ubda"]);
    });
    true
}

pub fn run(program: &str, arguments: &[&str]) -> String {
    let ended = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8_lossy(&ended.stdout).into_owned()
}

pub fn lvm(arguments: &[&str]) -> String {
    run("lvm", arguments)
}

/// Waits until something holds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A runtime for the futures of the driver, entered as long as this lives.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap()
}

/// A thin pool; dropping it takes everything of it away.
pub struct ThinPool;

impl ThinPool {
    /// Takes away what a test has left, the pool included.
    pub fn new() -> Self {
        let pool = Self;
        pool.clear();
        pool
    }

    pub fn options(&self, on_step: Option<StepHook>) -> StoreOptions {
        StoreOptions {
            name: PoolName::parse("test").unwrap(),
            place: PoolPlace {
                volume_group: GROUP.into(),
                thin_pool: "thin-pool".into(),
                if_absent: IfAbsent::Create {
                    size_bytes: Some(POOL_BYTES),
                },
            },
            mounts: PathBuf::from(MOUNTS),
            on_step,
        }
    }

    pub fn open(&self) -> Pool {
        Pool(BlockingShares(Arc::new(
            LvmBackend::open(&self.options(None)).unwrap(),
        )))
    }

    /// Returns the names of all volumes of the group, ordered.
    pub fn volumes(&self) -> Vec<String> {
        let said = lvm(&["lvs", "--noheadings", "-o", "lv_name", GROUP]);
        let mut names: Vec<String> = said.split_whitespace().map(str::to_owned).collect();
        names.retain(|name| !name.starts_with('['));
        names.sort_unstable();
        names
    }

    /// Returns the tags of a volume.
    pub fn tags(volume: &str) -> String {
        let said = lvm(&[
            "lvs",
            "--noheadings",
            "-o",
            "lv_tags",
            &format!("{GROUP}/{volume}"),
        ]);
        said.trim().to_owned()
    }

    /// Returns how LVM's tools call a volume.
    pub fn path(&self, volume: &str) -> String {
        format!("{GROUP}/{volume}")
    }

    /// Takes everything away, the thin pool included.
    pub fn clear(&self) {
        for mount in mounts_below(Path::new(MOUNTS)).unwrap().iter().rev() {
            unmount(&mount.at).unwrap();
        }
        lvm(&["lvremove", "--yes", "--force", GROUP]);
        let _ = fs::remove_dir_all(MOUNTS);
    }
}

impl Drop for ThinPool {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.clear();
        }
    }
}

/// An open pool with calls that block.
pub struct Pool(pub BlockingShares<LvmBackend>);

pub fn share_id(number: u128) -> ShareId {
    ShareId(Uuid::from_u128(0x7000 + number))
}

pub fn snapshot_id(number: u128) -> ShareSnapshotId {
    ShareSnapshotId(Uuid::from_u128(0x5000 + number))
}

pub fn share(number: u128) -> ShareVersion {
    ShareVersion::Share(share_id(number))
}

pub fn snapshot(number: u128) -> ShareVersion {
    ShareVersion::Snapshot(snapshot_id(number))
}

impl Deref for Pool {
    type Target = BlockingShares<LvmBackend>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Pool {
    pub fn open(options: &StoreOptions) -> Self {
        Self(BlockingShares(Arc::new(LvmBackend::open(options).unwrap())))
    }

    pub fn create(&self, number: u128, source: ShareSource) -> Result<(), DriverError> {
        block_on(self.0.create_share(&ShareSpec {
            id: share_id(number),
            size_bytes: SHARE_BYTES,
            source,
        }))
        .map(drop)
    }

    pub fn snapshot(&self, number: u128, of: u128) -> Result<(), DriverError> {
        block_on(self.0.create_snapshots(&[ShareSnapshotSpec {
            id: snapshot_id(number),
            share: share_id(of),
        }]))
        .map(drop)
    }

    pub fn adopt(&self, number: u128, name: &str) -> Result<(), DriverError> {
        block_on(self.0.adopt_share(share_id(number), name)).map(drop)
    }

    pub fn release(&self, number: u128, name: &str) -> Result<(), DriverError> {
        block_on(self.0.release_share(share_id(number), name)).map(drop)
    }

    pub fn revert(&self, number: u128, snapshot: u128) -> Result<(), DriverError> {
        block_on(self.0.revert_share(share_id(number), snapshot_id(snapshot))).map(drop)
    }
}
