//! What of a pool is mounted, and where: each share and exported snapshot on a loop device of its own, on folders of
//! a tmpfs that belongs to the pool.
//!
//! - M1: a mount is known by its folder's name, and believed only when its device shows the right image: a path that
//!   leads elsewhere is never handed out (S8).
//! - M2: what a process before has left mounted is taken up, and thawed.
//! - M3: a file system that has stopped, as XFS does when its device fails it, is still mounted, and told apart.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use quarry_contract::{DriverError, MountedShare, ShareVersion};
use quarry_sys::filesystem::{
    Mount, MountMode, grow_xfs, mount_device, mount_tmpfs, mounts_below, thaw, unmount, xfs_geometry,
};
use quarry_sys::loop_device::{LoopDevice, LoopMode};
use tracing::warn;
use uuid::Uuid;

use crate::error::{During, StoreError, corrupt};
use crate::image::{BLOCK_BYTES, MOUNT_OPTIONS, check_superblock};
use crate::layout::{make_folder, member_name, parse_member};
use crate::locks::lock;

/// The tmpfs holds folders only.
const FOLDERS_BYTES: u64 = 16 << 20;
/// A server may need a moment to close what it has open.
const BUSY_TRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// The mounts of one pool.
pub(crate) struct Mounts {
    /// The folder of the tmpfs.
    folder: PathBuf,
    mounted: Mutex<BTreeMap<ShareVersion, MountedShare>>,
}

impl Mounts {
    /// Takes a folder for mounts, with what is mounted there already.
    pub(crate) fn at(folder: &Path) -> Result<Self, StoreError> {
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

    /// Takes up what a process before has left (M2). `image_of` names the image that shall be there; what shows another,
    /// or nothing that is known, is unmounted.
    pub(crate) fn take_up(&self, image_of: impl Fn(ShareVersion) -> PathBuf) -> Result<(), StoreError> {
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
            let taken = version.and_then(|version| self.recognise(version, &mount, &image_of(version)).ok());
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

    /// Checks that a mount shows an image (M1).
    fn recognise(
        &self,
        version: ShareVersion,
        mount: &Mount,
        image: &Path,
    ) -> Result<MountedShare, StoreError> {
        let what = || format!("looking at {}", mount.at.display());
        let image = File::open(image).during(what)?;
        let device = LoopDevice::open(&mount.source).during(what)?;
        if !device.shows(&image).during(what)? {
            return Err(corrupt(version, format!("{} shows another image", mount.at.display())).into());
        }
        self.describe(version, device.device_number().during(what)?)
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

    /// Returns where an image may be mounted for a moment.
    pub(crate) fn scratch(&self, version: ShareVersion) -> PathBuf {
        self.folder.join(format!("replay-{}", member_name(version)))
    }

    /// Returns what is mounted for a version, as long as it is what it was (M1). Changes nothing, so that who looks
    /// without the version's lock does not come between who has it.
    pub(crate) fn find(&self, version: ShareVersion) -> Option<MountedShare> {
        let known = lock(&self.mounted).get(&version).cloned()?;
        (presence(&known.path, known.device) != Presence::Gone).then_some(known)
    }

    /// Returns what is mounted and has stopped, ordered (M3).
    pub(crate) fn stopped(&self) -> Vec<ShareVersion> {
        let all = self.all().into_iter();
        all.filter(|one| presence(&one.path, one.device) == Presence::Stopped)
            .map(|one| one.version)
            .collect()
    }

    /// Returns all that is mounted, ordered.
    pub(crate) fn all(&self) -> Vec<MountedShare> {
        let known: Vec<ShareVersion> = lock(&self.mounted).keys().copied().collect();
        known
            .into_iter()
            .filter_map(|version| self.find(version))
            .collect()
    }

    /// Mounts an image whose file system has this identity.
    pub(crate) fn mount(
        &self,
        version: ShareVersion,
        image: &Path,
        identity: Uuid,
    ) -> Result<MountedShare, StoreError> {
        let path = self.path(version);
        let what = || format!("mounting {version} at {}", path.display());
        let (loop_mode, mount_mode) = match version {
            ShareVersion::Share(_) => (LoopMode::ReadWrite, MountMode::ReadWrite),
            ShareVersion::Snapshot(_) => (LoopMode::ReadOnly, MountMode::ReadOnly),
        };
        if check_superblock(version, image)?.uuid != identity {
            return Err(corrupt(version, "its file system has another identity").into());
        }
        make_folder(&path).during(what)?;
        let device = LoopDevice::attach(image, loop_mode).during(what)?;
        if let Err(error) = mount_xfs(device.path(), &path, mount_mode, MOUNT_OPTIONS) {
            drop(fs::remove_dir(&path));
            return match error.raw_os_error().map(nix::errno::Errno::from_raw) {
                Some(nix::errno::Errno::EUCLEAN) => {
                    Err(corrupt(version, format!("its file system does not mount: {error}")).into())
                }
                _ => Err(error).during(what),
            };
        }
        let described = device
            .device_number()
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

    /// Unmounts a version. False when it is not mounted.
    pub(crate) fn unmount(&self, version: ShareVersion) -> Result<bool, StoreError> {
        let Some(mounted) = self.find(version) else {
            return Ok(false);
        };
        let what = || format!("unmounting {version} from {}", mounted.path.display());
        let mut tries = 0;
        loop {
            match unmount(&mounted.path) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < BUSY_TRIES => {
                    tries += 1;
                    std::thread::sleep(BUSY_PAUSE);
                }
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    let blockers = holders(mounted.device);
                    let object = version.to_string();
                    return Err(DriverError::Busy { object, blockers }.into());
                }
                Err(error) => return Err(error).during(what),
            }
        }
        lock(&self.mounted).remove(&version);
        drop(fs::remove_dir(&mounted.path));
        Ok(true)
    }

    /// Makes the file system of a mounted share as large as its image (grown files first, then this).
    pub(crate) fn fit(&self, mounted: &MountedShare, image_bytes: u64) -> Result<(), StoreError> {
        let what = || format!("growing {}", mounted.version);
        let root = File::open(&mounted.path).during(what)?;
        let wanted = image_bytes / BLOCK_BYTES;
        if xfs_geometry(&root).during(what)?.data_blocks >= wanted {
            return Ok(());
        }
        let table = mounts_below(&mounted.path).during(what)?;
        let mount = table.iter().rfind(|mount| mount.at == mounted.path);
        let mount = mount.ok_or_else(|| corrupt(mounted.version, "it is not in the table of mounts"))?;
        LoopDevice::open(&mount.source)
            .and_then(|device| device.update_capacity())
            .during(what)?;
        grow_xfs(&root, wanted).during(what)
    }

    /// Gives the folder up when nothing is mounted in it any more.
    pub(crate) fn close(&self) {
        if self.all().is_empty()
            && let Err(error) = unmount(&self.folder)
        {
            warn!(path = %self.folder.display(), %error, "the folder for mounts stays");
        }
    }
}

/// Mounts an XFS, and says what the kernel means that refuses it.
pub(crate) fn mount_xfs(device: &Path, at: &Path, mode: MountMode, options: &str) -> io::Result<()> {
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

/// Tells whether a path is a folder itself, not a link to one, on a device (M1).
fn is_root_of(path: &Path, device: u64) -> bool {
    fs::symlink_metadata(path).is_ok_and(|root| root.is_dir() && root.dev() == device)
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

/// Returns the loop device that is mounted at a path.
fn mounted_device(path: &Path) -> io::Result<Option<u64>> {
    let table = mounts_below(path)?;
    let Some(mount) = table.iter().rfind(|mount| mount.at == path) else {
        return Ok(None);
    };
    LoopDevice::open(&mount.source)?.device_number().map(Some)
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
