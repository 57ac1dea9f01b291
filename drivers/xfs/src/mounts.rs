//! What of a pool is mounted, and where: each share and exported snapshot from a device of its own, on folders of
//! a tmpfs that belongs to the pool.
//!
//! - M1: a mount is known by its folder's name, and believed only when its device is the right one: a path that leads
//!   elsewhere is never handed out (S8).
//! - M2: what a process before has left mounted is taken up, and thawed.
//! - M3: a file system that has stopped, as XFS does when its device fails it, is still mounted, and told apart.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use nix::sys::stat::{major, minor};
use nix::sys::statvfs::statvfs;
use quarry_contract::{DriverError, MountedShare, ShareVersion};
use quarry_sys::filesystem::{
    Mount, MountMode, grow_xfs, is_root_of, mount_device, mount_tmpfs, mounts_below, thaw, unmount,
    xfs_geometry,
};
use tracing::warn;
use uuid::Uuid;

use crate::brake::kept_back_bytes;
use crate::error::{During, StoreError, corrupt};
use crate::filesystem::{BLOCK_BYTES, check_superblock};
use crate::locks::lock;
use crate::objects::{member_name, parse_member};
use crate::superblock::Superblock;

/// The tmpfs holds folders only.
const FOLDERS_BYTES: u64 = 16 << 20;
/// A server may need a moment to close what it has open, and a program that is being started has all that its parent has open
/// until it runs.
const BUSY_TRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// The options that shares are mounted with: what is deleted in them is given back to the pool.
const MOUNT_OPTIONS: &str = "discard";

/// The mounts of one pool.
pub struct Mounts {
    /// The folder of the tmpfs.
    folder: PathBuf,
    mounted: Mutex<BTreeMap<ShareVersion, MountedShare>>,
}

impl Mounts {
    /// Takes a folder for mounts, with what is mounted there already.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn at(folder: &Path) -> Result<Self, StoreError> {
        let what = || format!("preparing {} for mounts", folder.display());
        let folder = {
            fs::create_dir_all(folder).during(what)?;
            folder.canonicalize().during(what)?
        };
        let shares = folder.join("shares");
        make_folder(&shares).during(what)?;
        if !mounts_below(&shares)
            .during(what)?
            .iter()
            .any(|mount| mount.at == shares)
        {
            mount_tmpfs(&shares, FOLDERS_BYTES).during(what)?;
        }
        Ok(Self {
            folder: shares,
            mounted: Mutex::default(),
        })
    }

    /// Takes up what a process before has left (M2). `is_of` tells whether a device is that of a version; what is mounted
    /// from another, or for nothing that is known, is unmounted, and what it cannot tell of stays.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn take_up(&self, is_of: impl Fn(ShareVersion, &Path) -> io::Result<bool>) -> Result<(), StoreError> {
        let what = || format!("looking for mounts in {}", self.folder.display());
        for mount in mounts_below(&self.folder).during(what)? {
            if mount.at == self.folder {
                continue;
            }
            if let Ok(root) = File::open(&mount.at)
                && thaw(&root).during(|| format!("thawing {}", mount.at.display()))?
            {
                warn!(path = %mount.at.display(), "a snapshot was cut short; its share goes on");
            }
            let name = mount
                .at
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let version = parse_member(&name).filter(|_| mount.at.parent() == Some(&self.folder));
            let taken = match version.map(|version| is_of(version, &mount.source)) {
                Some(Err(error)) => {
                    // What it is of may have been taken away; then this is all that is left of it.
                    warn!(path = %mount.at.display(), %error, "a mount whose device cannot be looked at stays");
                    continue;
                }
                Some(Ok(true)) => version.and_then(|version| self.recognise(version, &mount).ok()),
                Some(Ok(false)) | None => None,
            };
            match taken {
                Some(mounted) => {
                    lock(&self.mounted).insert(mounted.version, mounted);
                }
                None => match unmount(&mount.at) {
                    Ok(()) => drop(fs::remove_dir(&mount.at)),
                    Err(error) => {
                        warn!(path = %mount.at.display(), %error, "a mount that is not known stays")
                    }
                },
            }
        }
        Ok(())
    }

    /// Describes a mount whose device is the version's own, once its path leads there, too (M1).
    fn recognise(&self, version: ShareVersion, mount: &Mount) -> Result<MountedShare, StoreError> {
        let what = || format!("looking at {}", mount.at.display());
        self.describe(version, device_number(&mount.source).during(what)?)
    }

    /// Describes what is mounted for a version, which shall be on this device.
    fn describe(&self, version: ShareVersion, device: u64) -> Result<MountedShare, StoreError> {
        let path = self.path(version);
        let what = || format!("looking at {}", path.display());
        let root = File::open(&path).during(what)?;
        if !is_root_of(&path, device) {
            return Err(corrupt(
                version,
                format!("{} leads to another file system", path.display()),
            )
            .into());
        }
        let filesystem = Uuid::from_bytes(xfs_geometry(&root).during(what)?.uuid);
        Ok(MountedShare {
            version,
            path,
            device,
            filesystem,
        })
    }

    fn path(&self, version: ShareVersion) -> PathBuf {
        self.folder.join(member_name(version))
    }

    /// Returns where a copy may be mounted for a moment.
    pub fn scratch(&self, version: ShareVersion) -> PathBuf {
        self.folder.join(format!("replay-{}", member_name(version)))
    }

    /// Returns what is mounted for a version, as long as it is what it was (M1). Changes nothing, so that who looks
    /// without the version's lock does not come between who has it.
    pub fn find(&self, version: ShareVersion) -> Option<MountedShare> {
        let known = lock(&self.mounted).get(&version).cloned()?;
        (presence(&known.path, known.device) != Presence::Gone).then_some(known)
    }

    /// Returns what is mounted and has stopped, ordered (M3).
    pub fn stopped(&self) -> Vec<ShareVersion> {
        let all = self.all().into_iter();
        all.filter(|one| presence(&one.path, one.device) == Presence::Stopped)
            .map(|one| one.version)
            .collect()
    }

    /// Returns all that is mounted, ordered.
    pub fn all(&self) -> Vec<MountedShare> {
        let known: Vec<ShareVersion> = lock(&self.mounted).keys().copied().collect();
        known
            .into_iter()
            .filter_map(|version| self.find(version))
            .collect()
    }

    /// Mounts a device whose file system has this identity: a share to be written, a snapshot not.
    ///
    /// # Errors
    /// `Corrupt` when it has another or does not mount; what the operating system says.
    pub fn mount(
        &self,
        version: ShareVersion,
        device: &Path,
        identity: Uuid,
    ) -> Result<MountedShare, StoreError> {
        let path = self.path(version);
        let what = || format!("mounting {version} at {}", path.display());
        let mode = match version {
            ShareVersion::Share(_) => MountMode::ReadWrite,
            ShareVersion::Snapshot(_) => MountMode::ReadOnly,
        };
        if check_superblock(version, device)?.uuid != identity {
            return Err(corrupt(version, "its file system has another identity").into());
        }
        make_folder(&path).during(what)?;
        if let Err(error) = mount_xfs(device, &path, mode, MOUNT_OPTIONS) {
            drop(fs::remove_dir(&path));
            return match error.raw_os_error().map(nix::errno::Errno::from_raw) {
                Some(nix::errno::Errno::EUCLEAN) => {
                    Err(corrupt(version, format!("its file system does not mount: {error}")).into())
                }
                _ => Err(error).during(what),
            };
        }
        let described = device_number(device)
            .during(what)
            .and_then(|number| self.describe(version, number));
        match described {
            Ok(mounted) => {
                if lock(&self.mounted).insert(version, mounted.clone()).is_some() {
                    warn!(%version, "somebody else had unmounted it");
                }
                Ok(mounted)
            }
            Err(error) => {
                drop(unmount(&path));
                drop(fs::remove_dir(&path));
                Err(error)
            }
        }
    }

    /// Checks that a version is not mounted.
    ///
    /// # Errors
    /// `Busy`.
    pub fn check_unmounted(&self, version: ShareVersion) -> Result<(), DriverError> {
        match self.find(version) {
            None => Ok(()),
            Some(mounted) => Err(DriverError::Busy {
                object: version.to_string(),
                blockers: vec![format!("its mount at {}", mounted.path.display())],
            }),
        }
    }

    /// Returns what clients see as used of a version, in bytes: of one that is not mounted, what its superblock says; `device` is
    /// what it lies on.
    ///
    /// # Errors
    /// `Corrupt`, and what the operating system says.
    pub fn used_bytes(&self, version: ShareVersion, device: &File) -> Result<u64, StoreError> {
        let what = || format!("asking for the usage of {version}");
        let Some(mounted) = self.find(version) else {
            let superblock = Superblock::read(device).during(what)?;
            let superblock = superblock.ok_or_else(|| corrupt(version, "there is no XFS in it"))?;
            return Ok(superblock.used_bytes());
        };
        let told = statvfs(&mounted.path).map_err(io::Error::from).during(what)?;
        let kept_back = File::open(&mounted.path)
            .and_then(|root| kept_back_bytes(&root))
            .during(what)?;
        Ok(((told.blocks() - told.blocks_free()) * told.fragment_size()).saturating_sub(kept_back))
    }

    /// Unmounts a version. False when it is not mounted.
    ///
    /// # Errors
    /// `Busy` naming who has something open on it; what the operating system says.
    pub fn unmount(&self, version: ShareVersion) -> Result<bool, StoreError> {
        let Some(mounted) = self.find(version) else {
            return Ok(false);
        };
        let what = || format!("unmounting {version} from {}", mounted.path.display());
        match unmount_soon(&mounted.path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                let blockers = holders(mounted.device);
                let object = version.to_string();
                return Err(DriverError::Busy { object, blockers }.into());
            }
            unmounted => unmounted.during(what)?,
        }
        lock(&self.mounted).remove(&version);
        drop(fs::remove_dir(&mounted.path));
        Ok(true)
    }

    /// Makes the file system of a mounted share as large as its device shall be; `update` has the device take that up, where
    /// it does not by itself.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn fit(
        &self,
        mounted: &MountedShare,
        device_bytes: u64,
        update: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        let what = || format!("growing {}", mounted.version);
        let root = File::open(&mounted.path).during(what)?;
        let wanted = device_bytes / BLOCK_BYTES;
        if xfs_geometry(&root).during(what)?.data_blocks >= wanted {
            return Ok(());
        }
        let device = device_of(mounted).during(what)?;
        update(&device).during(what)?;
        grow_xfs(&root, wanted).during(what)
    }

    /// Gives the folder up when nothing is mounted in it any more.
    pub fn close(&self) {
        if self.all().is_empty()
            && let Err(error) = unmount_soon(&self.folder)
        {
            warn!(path = %self.folder.display(), %error, "the folder for mounts stays");
        }
    }
}

/// Unmounts what may be in use for a moment longer.
///
/// # Errors
/// What the operating system says, `ResourceBusy` when it still is in use after a second.
pub fn unmount_soon(at: &Path) -> io::Result<()> {
    for _ in 0..BUSY_TRIES {
        match unmount(at) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => std::thread::sleep(BUSY_PAUSE),
            unmounted => return unmounted,
        }
    }
    unmount(at)
}

/// Makes a folder that only its owner may look into; one that is there is fine.
///
/// # Errors
/// What the operating system says.
pub fn make_folder(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        result => result,
    }
}

/// Returns the device that something is mounted from. Does not read the table of mounts, which is long where shares are many.
///
/// # Errors
/// What the operating system says.
pub fn device_of(mounted: &MountedShare) -> io::Result<PathBuf> {
    let (major, minor) = (major(mounted.device), minor(mounted.device));
    let entry = fs::read_link(format!("/sys/dev/block/{major}:{minor}"))?;
    Ok(Path::new("/dev").join(entry.file_name().unwrap_or_default()))
}

/// Returns the number of a device, as `st_dev` of what is mounted from it.
fn device_number(device: &Path) -> io::Result<u64> {
    Ok(fs::metadata(device)?.rdev())
}

/// Mounts an XFS, and says what the kernel means that refuses it.
///
/// # Errors
/// What the operating system says.
pub fn mount_xfs(device: &Path, at: &Path, mode: MountMode, options: &str) -> io::Result<()> {
    mount_device(device, at, "xfs", mode, options).map_err(|error| {
        if error.kind() != io::ErrorKind::InvalidInput {
            return error;
        }
        let problem = format!(
            "{error}; there is no XFS that this kernel knows, or one of the same identity is mounted, as where a process \
             has a mount name space of its own that does not follow this one's (the kernel's log says which)"
        );
        io::Error::new(error.kind(), problem)
    })
}

/// What there is of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Works,
    Stopped,
    Gone,
}

/// Looks what there is of the mount of a device at a path.
fn presence(path: &Path, device: u64) -> Presence {
    match fs::symlink_metadata(path) {
        // XFS answers this one to everything once it has stopped, and the table of mounts does not ask it.
        Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => match mounted_device(path) {
            Ok(Some(found)) if found == device => Presence::Stopped,
            _ => Presence::Gone,
        },
        _ if is_root_of(path, device) => Presence::Works,
        _ => Presence::Gone,
    }
}

/// Returns the number of the device that is mounted at a path.
fn mounted_device(path: &Path) -> io::Result<Option<u64>> {
    let table = mounts_below(path)?;
    let Some(mount) = table.iter().rfind(|mount| mount.at == path) else {
        return Ok(None);
    };
    device_number(&mount.source).map(Some)
}

/// Returns who has something open on a device, for people: `process 12 (smbd)`.
fn holders(device: u64) -> Vec<String> {
    let mut found = Vec::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let descriptors = fs::read_dir(process.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        let links = descriptors
            .map(|one| one.path())
            .chain([process.path().join("cwd")]);
        // Following the link of a descriptor does not open it anew.
        let mut devices = links.filter_map(|link| Some(fs::metadata(link).ok()?.dev()));
        if devices.any(|one| one == device) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("process {pid} ({})", name.trim()));
        }
    }
    if found.is_empty() {
        found.push("a mount in another name space, or the kernel".into());
    }
    found
}
