//! File systems to be filled, and pools in them.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use quarry_contract::conformance::requirement::{LOOP_DEVICES, skip};
use quarry_contract::{DataSource, DriverError, OpenMode, VersionId, VolumeId, VolumeSpec};
use quarry_sys::file::allocate_range;
use quarry_sys::filesystem::{MountMode, mount_device, mount_tmpfs, unmount};
use quarry_sys::loop_device::{LoopDevice, LoopMode};
use quarry_thin::{FileDevice, FormatOptions, IoMode, OpenOptions, Pool, VersionHandle};
use uuid::Uuid;

/// The chunk of these pools, in bytes.
pub const CHUNK: usize = 64 << 10;
/// Their log, in bytes.
pub const LOG_BYTES: u64 = 1 << 20;
/// The size of their files, more than their file systems have.
const POOL_BYTES: u64 = 4 << 30;
/// The size of those.
const HOST_BYTES: u64 = 320 << 20;

/// Tells whether there can be file systems of a kind here; says why not.
fn can_have(kind: &str) -> bool {
    let mkfs = format!("/usr/sbin/mkfs.{kind}");
    let problem = if !nix::unistd::geteuid().is_root() {
        "it needs root".to_owned()
    } else if !Path::new("/dev/loop-control").exists() {
        "there are no loop devices".to_owned()
    } else if kind != "tmpfs" && !Path::new(&mkfs).exists() {
        format!("there is no {mkfs}")
    } else {
        return true;
    };
    skip(LOOP_DEVICES, format!("{problem}, for pools on a full {kind}"));
    false
}

/// A file system of its own, with a pool in a file that is larger.
pub struct Host {
    // In the order in which they have to go.
    mounted: Mounted,
    _loop_device: Option<LoopDevice>,
    _folder: tempfile::TempDir,
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.0) {
            eprintln!("unmounting {}: {error}", self.0.display());
        }
    }
}

impl Host {
    /// Returns the kinds that there can be here.
    pub fn kinds() -> impl Iterator<Item = &'static str> {
        ["ext4", "xfs", "tmpfs"].into_iter().filter(|kind| can_have(kind))
    }

    /// Makes one that is empty.
    pub fn new(kind: &str) -> Self {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let at = folder.path().join("mount");
        std::fs::create_dir(&at).unwrap();
        if kind == "tmpfs" {
            mount_tmpfs(&at, HOST_BYTES).unwrap();
            return Self {
                mounted: Mounted(at),
                _loop_device: None,
                _folder: folder,
            };
        }
        let image = folder.path().join("image");
        File::create(&image).unwrap().set_len(HOST_BYTES).unwrap();
        // Loop devices have blocks of 4096 bytes.
        let options: &[&str] = match kind {
            "ext4" => &["-b", "4096"],
            _ => &["-s", "size=4096"],
        };
        let mut make = Command::new(format!("mkfs.{kind}"));
        let made = make.arg("-q").args(options).arg(&image).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let loop_device = LoopDevice::attach(&image, LoopMode::ReadWrite).unwrap();
        mount_device(loop_device.path(), &at, kind, MountMode::ReadWrite, "").unwrap();
        Self {
            mounted: Mounted(at),
            _loop_device: Some(loop_device),
            _folder: folder,
        }
    }

    fn pool_file(&self) -> PathBuf {
        self.mounted.0.join("pool")
    }

    /// Makes a pool and opens it.
    pub fn format(&self) -> Arc<Pool> {
        let device = FileDevice::create(&self.pool_file(), POOL_BYTES, IoMode::Auto).unwrap();
        let format = FormatOptions {
            chunk_bytes: CHUNK as u32,
            log_bytes: LOG_BYTES,
            ..FormatOptions::default()
        };
        Pool::format(&device, &format).unwrap();
        Pool::open(Arc::new(device), OpenOptions::default()).unwrap()
    }

    /// Opens the pool that is there.
    pub fn open(&self) -> Arc<Pool> {
        let device = FileDevice::open(&self.pool_file(), IoMode::Auto).unwrap();
        Pool::open(Arc::new(device), OpenOptions::default()).unwrap()
    }

    /// Returns what the file system has left.
    pub fn free_bytes(&self) -> u64 {
        let told = nix::sys::statvfs::statvfs(&self.mounted.0).unwrap();
        told.blocks_free() * told.fragment_size()
    }

    /// Fills the file system with files of somebody else's, until not even an empty block is left.
    pub fn fill(&self) {
        let hog = File::options()
            .create(true)
            .append(true)
            .open(self.mounted.0.join("hog"))
            .unwrap();
        let mut end = hog.metadata().unwrap().blocks() * 512;
        let mut piece = HOST_BYTES;
        while piece >= 4096 {
            match allocate_range(&hog, end, piece) {
                Ok(()) => end += piece,
                Err(error) if error.kind() == io::ErrorKind::StorageFull => piece /= 2,
                Err(error) => panic!("filling: {error}"),
            }
        }
        hog.sync_all().unwrap();
    }
}

/// Makes a volume.
pub fn volume(pool: &Arc<Pool>, number: u128) -> Arc<VersionHandle> {
    let id = VolumeId(Uuid::from_u128(number));
    pool.create_volume(&VolumeSpec::new(id, 1 << 30, DataSource::Blank))
        .unwrap();
    pool.open_version(VersionId::Volume(id), OpenMode::ReadWrite)
        .unwrap()
}

/// Opens a volume.
pub fn volume_again(pool: &Arc<Pool>, number: u128) -> Arc<VersionHandle> {
    let id = VersionId::Volume(VolumeId(Uuid::from_u128(number)));
    pool.open_version(id, OpenMode::ReadWrite).unwrap()
}

/// Deletes a volume that nobody has open.
pub fn delete(pool: &Arc<Pool>, number: u128) {
    pool.delete_volume(VolumeId(Uuid::from_u128(number))).unwrap();
}

/// Does all background work that there is.
pub fn reclaim(pool: &Arc<Pool>) {
    while pool.maintain().unwrap().more {}
    pool.checkpoint().unwrap();
    while pool.maintain().unwrap().more {}
}

/// Marks a volume as reserved, or not: a commit.
pub fn reserve(pool: &Arc<Pool>, number: u128, reserved: bool) -> Result<(), DriverError> {
    pool.reserve_volume(VolumeId(Uuid::from_u128(number)), reserved)
        .map(drop)
}

/// Checks a pool.
pub fn assert_sound(pool: &Arc<Pool>) {
    let report = pool.check().unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}
