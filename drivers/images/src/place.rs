//! Where a pool is: a folder on a file system that shares blocks, or such a file system in a file or on a device.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use quarry_contract::DriverError;
use quarry_sys::file::{LockError, create_sparse, lock_exclusive};
use quarry_sys::filesystem::{MountMode, mounts_below};
use quarry_sys::loop_device::{LoopDevice, LoopMode};

use quarry_xfs::error::{During, StoreError};
use quarry_xfs::mounts::{make_folder, mount_xfs, unmount_soon};

/// Where a pool is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolPlace {
    /// A folder. Its file system shares blocks between files: XFS made with reflink, or btrfs.
    Folder {
        /// The folder.
        path: PathBuf,
        /// What to do when it is not there.
        if_absent: IfAbsent,
    },
    /// A file or block device that holds an XFS of its own.
    File {
        /// The file or block device.
        path: PathBuf,
        /// What to do when it is not there.
        if_absent: IfAbsent,
    },
}

/// What to do when a pool is not where it shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfAbsent {
    /// Fail: somebody has forgotten to mount something.
    Fail,
    /// Make an empty pool.
    Create {
        /// The size of its file, in bytes; a folder has none.
        size_bytes: u64,
    },
}

/// A place that this process has to itself, until it is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    /// The folder of the pool.
    pub(crate) root: PathBuf,
    /// Whether an empty pool may be made in it.
    pub(crate) may_format: bool,
    /// Where the pool's own file system is mounted.
    mounted_at: Option<PathBuf>,
    _lock: File,
}

impl PoolPlace {
    /// Returns the same place for a pool that is there, and is not made anew when it is not.
    #[must_use]
    pub fn existing(self) -> Self {
        let if_absent = IfAbsent::Fail;
        match self {
            PoolPlace::Folder { path, .. } => PoolPlace::Folder { path, if_absent },
            PoolPlace::File { path, .. } => PoolPlace::File { path, if_absent },
        }
    }

    /// Returns the folder, file or device.
    pub fn path(&self) -> &Path {
        match self {
            PoolPlace::Folder { path, .. } | PoolPlace::File { path, .. } => path,
        }
    }

    /// Takes the place; `mounts` is a folder where its file system can be mounted.
    pub(crate) fn take(&self, pool: &str, mounts: &Path) -> Result<Taken, StoreError> {
        match self {
            PoolPlace::Folder { path, if_absent } => {
                let may_format = matches!(if_absent, IfAbsent::Create { .. });
                if may_format {
                    make_folder(path).during(|| format!("making {}", path.display()))?;
                }
                let path = path
                    .canonicalize()
                    .during(|| format!("looking for {}", path.display()))?;
                let lock_path = path.join("lock");
                let lock_file = File::options()
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .open(&lock_path)
                    .during(|| format!("opening {}", lock_path.display()))?;
                Ok(Taken {
                    may_format,
                    _lock: locked(lock_file, pool, &path)?,
                    root: path,
                    mounted_at: None,
                })
            }
            PoolPlace::File { path, if_absent } => {
                let is_there = path.exists();
                if let (false, IfAbsent::Create { size_bytes }) = (is_there, if_absent) {
                    make_pool_file(path, *size_bytes)
                        .during(|| format!("making a pool in {}", path.display()))?;
                }
                let may_format = matches!(if_absent, IfAbsent::Create { .. });
                take_file(path, pool, mounts, may_format)
            }
        }
    }
}

fn take_file(path: &Path, pool: &str, mounts: &Path, may_format: bool) -> Result<Taken, StoreError> {
    let what = || format!("opening the pool in {}", path.display());
    // An open file of its own: what the loop device has outlives this process.
    let file = File::open(path).during(what)?;
    let is_device = file.metadata().during(what)?.file_type().is_block_device();
    let file = locked(file, pool, path)?;
    fs::create_dir_all(mounts).during(what)?;
    let at = mounts.canonicalize().during(what)?.join("pool");
    make_folder(&at).during(what)?;
    let table = mounts_below(&at).during(what)?;
    // What a process before this one has left mounted.
    if let Some(left) = table.iter().find(|mount| mount.at == at) {
        let shows_it = match is_device {
            true => left.source == path.canonicalize().during(what)?,
            false => LoopDevice::open(&left.source)
                .and_then(|device| device.shows(&file))
                .during(what)?,
        };
        if !shows_it {
            let problem = format!(
                "{} is mounted at {}; unmount it, or use another folder for mounts",
                left.source.display(),
                at.display()
            );
            return Err(unavailable(pool, problem).into());
        }
    } else if is_device {
        mount_xfs(path, &at, MountMode::ReadWrite, "").during(what)?;
    } else {
        let device = LoopDevice::attach(path, LoopMode::ReadWrite).during(what)?;
        mount_xfs(device.path(), &at, MountMode::ReadWrite, "discard").during(what)?;
    }
    Ok(Taken {
        root: at.clone(),
        may_format,
        mounted_at: Some(at),
        _lock: file,
    })
}

impl Taken {
    /// Gives the place up.
    pub(crate) fn close(self) -> io::Result<()> {
        match &self.mounted_at {
            Some(at) => unmount_soon(at),
            None => Ok(()),
        }
    }
}

fn locked(file: File, pool: &str, path: &Path) -> Result<File, StoreError> {
    match lock_exclusive(&file) {
        Ok(()) => Ok(file),
        Err(held @ LockError::Held { .. }) => {
            let problem = format!("{}: {held}; two agents cannot share a pool", path.display());
            Err(unavailable(pool, problem).into())
        }
        Err(LockError::Io(source)) => Err(source).during(|| format!("locking {}", path.display())),
    }
}

fn unavailable(pool: &str, problem: String) -> DriverError {
    DriverError::Unavailable {
        object: format!("pool {pool}"),
        problem,
        source: None,
    }
}

/// Makes a file with an XFS that shares blocks; under another name until it is whole.
fn make_pool_file(path: &Path, size_bytes: u64) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = PathBuf::from(unfinished);
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = create_sparse(&unfinished, size_bytes)?;
    crate::image::make_reflink_filesystem(&unfinished)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
