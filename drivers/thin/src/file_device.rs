//! A pool's medium on a regular file or a block device.
//!
//! Opened by the backend, by tools and by tests; used by the engine through [`PoolDevice`], and by the queues
//! through [`DirectFile`] beside it.
//!
//! Invariants
//! - F1: while a device is open, its file is locked against every other opener. The lock, the file and the rings
//!   on it share one file description, so that a killed process keeps its lock until the kernel has ended what
//!   was in flight: a successor's recovery is never overtaken by an old write.
//! - F2: no write reaches beyond the size that the file had when it was last [noticed](PoolDevice::grow), and only that
//!   call makes it larger.
//! - F3: no flush is answered when the file is smaller than that: it has been cut off, what was there is gone, and a
//!   later write would fill the gap with zeros.
//!
//! Failure: errors are the operating system's own, unchanged; only a medium that cannot discard is no failure.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quarry_contract::{DriverError, IoBuffer, MediumId};
use quarry_sys::file::{self, IoPath, LockError, Medium};
use quarry_sys::ring;

use crate::{DirectFile, PoolDevice, Submission};

/// The engine's unit of I/O (D3): more alignment than this is not worth direct I/O.
const ALIGNMENT_BYTES_MAX: u32 = 4096;

/// The longest piece that goes through bounce memory, in bytes.
const BOUNCE_BYTES: usize = 1 << 20;

/// How long a killed predecessor's I/O in flight may take to end.
const DEAD_HOLDER_PATIENCE: Duration = Duration::from_secs(10);

/// How the queues do I/O on the file.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum IoMode {
    /// As is best: at once where the medium is memory, through io_uring where the operating system allows it,
    /// else with threads.
    #[default]
    Auto,
    /// Through io_uring, or not at all.
    Uring,
    /// With threads that block.
    Threads,
}

/// Whether the host's page cache lies between a pool and its medium. Both keep the medium's contract: what no
/// flush has made durable may be lost with the host's power, and nothing is lost with the process alone.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Caching {
    /// Direct I/O where the medium can: the host's memory is left to others, and a write is answered when the
    /// medium has it.
    #[default]
    Direct,
    /// Through the page cache: a write is answered when the host's memory has it, and the kernel writes it back
    /// some time later, at a flush at the latest.
    PageCache,
}

/// How a file is opened.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct FileOptions {
    /// How queues do I/O on it.
    pub mode: IoMode,
    /// Which way the bytes go.
    pub caching: Caching,
}

impl From<IoMode> for FileOptions {
    fn from(mode: IoMode) -> Self {
        Self {
            mode,
            caching: Caching::default(),
        }
    }
}

/// Why a device was not opened or created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileDeviceError {
    /// There is no such file.
    #[error("{} does not exist; create the pool first, or check the path", .path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// The file to create is there already.
    #[error("{} exists already; open the pool on it, or choose another path", .path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Another opener has it.
    #[error("{} is in use by {}; stop it first", .path.display(), describe_holder(*.holder))]
    Locked {
        /// The file.
        path: PathBuf,
        /// The process that holds it, where the kernel tells.
        holder: Option<u32>,
    },
    /// io_uring was asked for and is not allowed.
    #[error("io_uring cannot be used; allow it (sysctl kernel.io_uring_disabled, seccomp) or choose threads")]
    NoUring(#[source] io::Error),
    /// The operating system refused.
    #[error("{action} {}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

/// Says in the log when there is no ring: threads take its place, and each request costs more.
fn ring_unless_refused(path: &Path) -> Option<Submission> {
    match ring::probe() {
        Ok(()) => Some(Submission::Ring),
        Err(error) => {
            tracing::warn!(
                path = %path.display(),
                %error,
                "io_uring is refused; requests go through threads, and cost more"
            );
            None
        }
    }
}

fn describe_holder(holder: Option<u32>) -> String {
    holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

impl FileDeviceError {
    /// Converts for a control call on the pool called `pool`.
    pub fn into_driver_error(self, pool: &str) -> DriverError {
        let problem = self.to_string();
        let source = match self {
            FileDeviceError::Io { source, .. } | FileDeviceError::NoUring(source) => Some(source),
            FileDeviceError::NotFound { .. }
            | FileDeviceError::Exists { .. }
            | FileDeviceError::Locked { .. } => None,
        };
        DriverError::Unavailable {
            object: format!("pool {pool}"),
            problem,
            source,
        }
    }
}

/// A regular file or block device, locked and open.
#[derive(Debug)]
pub struct FileDevice {
    path: PathBuf,
    file: File,
    medium: Medium,
    io_path: IoPath,
    size_bytes: AtomicU64,
    /// `None` where queues have to use threads.
    submission: Option<Submission>,
    /// Whether it tells at once where its holes are.
    tells_holes: bool,
    /// What it is on.
    on: MediumId,
}

impl FileDevice {
    /// Creates a file that takes no space yet, durably, and opens it.
    ///
    /// # Errors
    /// `Exists`; else as [`open`](Self::open).
    pub fn create(
        path: &Path,
        size_bytes: u64,
        options: impl Into<FileOptions>,
    ) -> Result<Self, FileDeviceError> {
        match file::create_sparse(path, size_bytes) {
            Ok(file) => Self::take(path, file, options.into()),
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {
                Err(FileDeviceError::Exists { path: path.into() })
            }
            Err(source) => Err(failed("creating", path, source)),
        }
    }

    /// Opens a file or block device and locks it.
    ///
    /// # Errors
    /// `NotFound`, `Locked`, `NoUring`, `Io`.
    pub fn open(path: &Path, options: impl Into<FileOptions>) -> Result<Self, FileDeviceError> {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Self::take(path, file, options.into()),
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                Err(FileDeviceError::NotFound { path: path.into() })
            }
            Err(source) => Err(failed("opening", path, source)),
        }
    }

    /// Opens a file or block device for reading only, and locks it like [`open`](Self::open): nobody changes it
    /// meanwhile. Writes fail with the operating system's error.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_read_only(path: &Path) -> Result<Self, FileDeviceError> {
        match File::open(path) {
            Ok(file) => Self::take(path, file, IoMode::Threads.into()),
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                Err(FileDeviceError::NotFound { path: path.into() })
            }
            Err(source) => Err(failed("opening", path, source)),
        }
    }

    /// Tells which way the bytes go.
    pub fn io_path(&self) -> IoPath {
        self.io_path
    }

    /// Returns the path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn take(path: &Path, file: File, options: FileOptions) -> Result<Self, FileDeviceError> {
        let medium = file::medium(&file).map_err(|source| failed("opening", path, source))?;
        lock(path, &file)?;
        let io_path = match options.caching {
            Caching::Direct => file::enable_direct_io(&file, ALIGNMENT_BYTES_MAX),
            Caching::PageCache => file::page_cache_path(&file),
        };
        let io_path = io_path.map_err(|source| failed("setting up I/O on", path, source))?;
        let size_bytes =
            file::size_bytes(&file).map_err(|source| failed("asking for the size of", path, source))?;
        let submission = match (options.mode, io_path) {
            (IoMode::Threads, _) => None,
            (IoMode::Auto, IoPath::Memory) => Some(Submission::Inline),
            (IoMode::Auto, _) => ring_unless_refused(path),
            (IoMode::Uring, _) => {
                ring::probe().map_err(FileDeviceError::NoUring)?;
                Some(Submission::Ring)
            }
        };
        let metadata = file.metadata();
        let metadata = metadata.map_err(|source| failed("asking for the device of", path, source))?;
        let on = MediumId(match medium {
            Medium::BlockDevice => metadata.rdev(),
            Medium::Regular => metadata.dev(),
        });
        let tells_holes = medium == Medium::Regular && file::tells_holes_at_once(&file).unwrap_or(false);
        Ok(Self {
            path: path.into(),
            tells_holes,
            on,
            file,
            medium,
            io_path,
            size_bytes: AtomicU64::new(size_bytes),
            submission,
        })
    }

    fn alignment_bytes(&self) -> u32 {
        match self.io_path {
            IoPath::Direct { alignment_bytes } => alignment_bytes,
            IoPath::Buffered | IoPath::Memory => 1,
        }
    }

    fn needs_bounce(&self, memory: &[u8]) -> bool {
        !(memory.as_ptr() as usize).is_multiple_of(self.alignment_bytes() as usize)
    }

    /// Checks F2.
    fn check_range(&self, offset: u64, length: usize) -> io::Result<()> {
        let end = offset.checked_add(length as u64);
        let size_bytes = self.size_bytes.load(Ordering::Acquire);
        if end.is_some_and(|end| end <= size_bytes) {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!(
                "bytes {offset}+{length} are beyond the end of {} at {size_bytes}",
                self.path.display(),
            ),
        ))
    }

    /// Checks F3.
    fn check_not_cut_off(&self) -> io::Result<()> {
        let (noticed, found) = (
            self.size_bytes.load(Ordering::Acquire),
            file::size_bytes(&self.file)?,
        );
        if found >= noticed {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!(
                "{} has been cut off: it had {noticed} bytes and has {found}",
                self.path.display()
            ),
        ))
    }

    fn write_zero_bytes(&self, mut offset: u64, length: u64) -> io::Result<()> {
        let zeros = IoBuffer::zeroed(BOUNCE_BYTES.min(length as usize));
        let end = offset + length;
        while offset < end {
            let piece = zeros.len().min((end - offset) as usize);
            self.file.write_all_at(&zeros[..piece], offset)?;
            offset += piece as u64;
        }
        Ok(())
    }
}

impl PoolDevice for FileDevice {
    fn size_bytes(&self) -> io::Result<u64> {
        file::size_bytes(&self.file)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.check_range(offset, buffer.len())?;
        if !self.needs_bounce(buffer) {
            return self.file.read_exact_at(buffer, offset);
        }
        let mut bounce = IoBuffer::zeroed(BOUNCE_BYTES.min(buffer.len()));
        let mut offset = offset;
        for piece in buffer.chunks_mut(BOUNCE_BYTES) {
            let bounce = &mut bounce[..piece.len()];
            self.file.read_exact_at(bounce, offset)?;
            piece.copy_from_slice(bounce);
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_range(offset, data.len())?;
        if !self.needs_bounce(data) {
            return self.file.write_all_at(data, offset);
        }
        let mut bounce = IoBuffer::zeroed(BOUNCE_BYTES.min(data.len()));
        let mut offset = offset;
        for piece in data.chunks(BOUNCE_BYTES) {
            let bounce = &mut bounce[..piece.len()];
            bounce.copy_from_slice(piece);
            self.file.write_all_at(bounce, offset)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check_range(offset, length as usize)?;
        let zeroed = match self.medium {
            Medium::BlockDevice => file::zero_blocks(&self.file, offset, length),
            Medium::Regular => match file::zero_range(&self.file, offset, length) {
                Err(error) if is_unsupported(&error) => file::punch_hole(&self.file, offset, length),
                result => result,
            },
        };
        match zeroed {
            Err(error) if is_unsupported(&error) => self.write_zero_bytes(offset, length),
            result => result,
        }
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check_range(offset, length as usize)?;
        let discarded = match self.medium {
            Medium::BlockDevice => file::discard_blocks(&self.file, offset, length),
            Medium::Regular => file::punch_hole(&self.file, offset, length),
        };
        match discarded {
            Err(error) if is_unsupported(&error) => Ok(()),
            result => result,
        }
    }

    fn may_run_out(&self) -> bool {
        self.medium == Medium::Regular
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check_range(offset, length as usize)?;
        match self.medium {
            Medium::BlockDevice => Ok(()),
            Medium::Regular => file::allocate_range(&self.file, offset, length),
        }
    }

    fn is_hole(&self, offset: u64, length: u64) -> bool {
        self.tells_holes && file::is_hole(&self.file, offset, length).unwrap_or(false)
    }

    /// The block device itself, or that of the file system; a file system without one has a number of its own.
    fn medium(&self) -> MediumId {
        self.on
    }

    fn flush(&self) -> io::Result<()> {
        self.check_not_cut_off()?;
        self.file.sync_data()
    }

    fn check_before_flush(&self) -> io::Result<()> {
        self.check_not_cut_off()
    }

    fn grow(&self, least_bytes: u64) -> io::Result<u64> {
        self.check_not_cut_off()?;
        let mut size_bytes = file::size_bytes(&self.file)?;
        if size_bytes < least_bytes && self.medium == Medium::Regular {
            self.file.set_len(least_bytes)?;
            self.file.sync_all()?;
            size_bytes = least_bytes;
        }
        self.size_bytes.fetch_max(size_bytes, Ordering::AcqRel);
        Ok(size_bytes)
    }

    fn direct_file(&self) -> Option<DirectFile<'_>> {
        self.submission.map(|submission| DirectFile {
            file: &self.file,
            alignment_bytes: self.alignment_bytes(),
            submission,
        })
    }
}

impl Drop for FileDevice {
    fn drop(&mut self) {
        // The queues' rings are gone, having waited for their I/O, but the kernel lets go of their reference to
        // the file description some time later; without this the lock would last as long.
        let _ = self.file.unlock();
    }
}

/// Takes the lock (F1). Waits only for a holder that is dead and whose I/O the kernel is still ending, or that
/// proc_locks(5) does not name: it shows a dead and reaped process, like one of another pid namespace, as 0.
fn lock(path: &Path, file: &File) -> Result<(), FileDeviceError> {
    let deadline = Instant::now() + DEAD_HOLDER_PATIENCE;
    loop {
        match file::lock_exclusive(file) {
            Ok(()) => return Ok(()),
            Err(LockError::Io(source)) => return Err(failed("locking", path, source)),
            Err(LockError::Held { holder }) => {
                if !holder.is_none_or(is_dead) || Instant::now() > deadline {
                    return Err(FileDeviceError::Locked {
                        path: path.into(),
                        holder,
                    });
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// Tells whether a process has exited, reaped by its parent or not.
fn is_dead(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // proc_pid_stat(5): the state follows the name, which is in parentheses and may contain any character.
        Ok(stat) => stat
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> FileDeviceError {
    FileDeviceError::Io {
        action,
        path: path.into(),
        source,
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    // EOPNOTSUPP and ENOSYS; block devices without discard say EOPNOTSUPP too.
    error.kind() == io::ErrorKind::Unsupported
}

#[cfg(test)]
#[path = "file_device_tests.rs"]
mod tests;
