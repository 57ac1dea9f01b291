//! What `std` lacks on files and block devices.
//!
//! Called by drivers that keep their data in a file or on a block device. Every function takes an open [`File`]
//! and says what the operating system says; what was only interrupted is tried again. Offsets and lengths are
//! bytes. Reads and writes at a position are `std`'s own (`FileExt`), which go on after short transfers.

mod lock;

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fcntl};
use nix::sys::statfs::{EXT4_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC, fstatfs};

pub use lock::{LockError, lock_exclusive};

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// A file in a file system.
    Regular,
    /// A block device.
    BlockDevice,
}

/// Which way a file's bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoPath {
    /// Past the page cache.
    Direct {
        /// What offsets, lengths and memory addresses must be multiples of, in bytes.
        alignment_bytes: u32,
    },
    /// Through the page cache, to a device.
    Buffered,
    /// The page cache is the medium (tmpfs): I/O is copying memory, and waits for nothing.
    Memory,
}

/// The alignment of direct I/O where the kernel does not tell: enough for any device in the field.
const CAUTIOUS_ALIGNMENT_BYTES: u32 = 4096;

/// Creates a file of `length` bytes that reads zero and takes no space, durably, name included.
///
/// # Errors
/// `AlreadyExists` when the name is taken; what the file system says.
pub fn create_sparse(path: &Path, length: u64) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.set_len(length)?;
    file.sync_all()?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()?;
    Ok(file)
}

/// Tells what a file is.
///
/// # Errors
/// `InvalidInput` when it is neither a regular file nor a block device.
pub fn medium(file: &File) -> io::Result<Medium> {
    medium_of(statx(file.as_raw_fd(), libc::STATX_TYPE)?.stx_mode.into())
}

fn medium_of(mode: u32) -> io::Result<Medium> {
    match mode & libc::S_IFMT {
        libc::S_IFREG => Ok(Medium::Regular),
        libc::S_IFBLK => Ok(Medium::BlockDevice),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "neither a regular file nor a block device",
        )),
    }
}

/// Returns the size of a regular file or of a block device, in bytes.
///
/// # Errors
/// As for [`medium`].
pub fn size_bytes(file: &File) -> io::Result<u64> {
    // Not `std`'s metadata: it asks for the times too, and a time that was looked at has to differ after the next write
    // (Linux 6.13, "multigrain timestamps"): each write would dirty the inode, and each flush would write it.
    let told = statx(file.as_raw_fd(), libc::STATX_TYPE | libc::STATX_SIZE)?;
    match medium_of(told.stx_mode.into())? {
        Medium::Regular => Ok(told.stx_size),
        Medium::BlockDevice => {
            let mut bytes = 0;
            // SAFETY: BLKGETSIZE64 writes one u64 through the pointer (linux/fs.h), which points at `bytes`; the
            // descriptor is open while `file` is borrowed. `std` has no call for a device's size.
            unsafe { block_device_size(file.as_raw_fd(), &mut bytes) }?;
            Ok(bytes)
        }
    }
}

/// Tells which way a file's bytes go as it was opened, without `O_DIRECT`.
///
/// # Errors
/// What the operating system says.
pub fn page_cache_path(file: &File) -> io::Result<IoPath> {
    // The node of a block device is a file of devtmpfs, which says that it is a tmpfs.
    let is_memory = medium(file)? == Medium::Regular && fstatfs(file)?.filesystem_type() == TMPFS_MAGIC;
    Ok(if is_memory {
        IoPath::Memory
    } else {
        IoPath::Buffered
    })
}

/// Turns the file's own descriptors to direct I/O where that works with an alignment of at most
/// `alignment_bytes_max`.
///
/// It stays the same file description: a lock on it lasts until everything that uses it is done, also what the
/// kernel still has in flight after the process was killed.
///
/// # Errors
/// What the operating system says, except that direct I/O does not work.
pub fn enable_direct_io(file: &File, alignment_bytes_max: u32) -> io::Result<IoPath> {
    // tmpfs takes the flag, and then uses its page cache all the same.
    if page_cache_path(file)? == IoPath::Memory {
        return Ok(IoPath::Memory);
    }
    let alignment_bytes = match direct_alignment(file)? {
        Some(bytes) if bytes <= alignment_bytes_max => bytes,
        _ => return Ok(IoPath::Buffered),
    };
    let buffered = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    match fcntl(file, FcntlArg::F_SETFL(buffered | OFlag::O_DIRECT)) {
        Ok(_) if reads_directly(file, alignment_bytes) => return Ok(IoPath::Direct { alignment_bytes }),
        // The file system refuses the flag now, or at the first use.
        Ok(_) | Err(Errno::EINVAL) => {}
        Err(error) => return Err(error.into()),
    }
    fcntl(file, FcntlArg::F_SETFL(buffered))?;
    Ok(IoPath::Buffered)
}

/// Returns what direct I/O on the file must be aligned to, or `None` where it does not exist.
fn direct_alignment(file: &File) -> io::Result<Option<u32>> {
    let told = statx(file.as_raw_fd(), libc::STATX_DIOALIGN)?;
    // Without the bit in the mask (Linux before 6.1, or a file system that does not tell) it has to be tried.
    if told.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Ok(Some(CAUTIOUS_ALIGNMENT_BYTES));
    }
    let alignment_bytes = told.stx_dio_mem_align.max(told.stx_dio_offset_align);
    Ok((told.stx_dio_offset_align != 0).then_some(alignment_bytes))
}

fn statx(fd: RawFd, mask: u32) -> io::Result<libc::statx> {
    let mut told = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a NUL-terminated empty string, with AT_EMPTY_PATH meaning the descriptor itself
    // (statx(2)); the kernel writes at most one `struct statx` through the pointer. Neither `std` nor `nix` wraps
    // the call.
    let status = unsafe { libc::statx(fd, c"".as_ptr(), libc::AT_EMPTY_PATH, mask, told.as_mut_ptr()) };
    Errno::result(status)?;
    // SAFETY: `struct statx` is plain integers, valid for all bit patterns; the storage was zeroed first.
    Ok(unsafe { told.assume_init() })
}

/// Tells whether a direct read works, by doing one.
fn reads_directly(file: &File, alignment_bytes: u32) -> bool {
    let unit = alignment_bytes.max(512) as usize;
    let mut storage = vec![0u8; unit * 2];
    let start = storage.as_ptr().align_offset(unit);
    // Reading nothing at the end of a short file is fine; only a refusal counts.
    file.read_at(&mut storage[start..start + unit], 0).is_ok()
}

/// Makes a range of a regular file read zero and gives its space back.
///
/// # Errors
/// `Unsupported` when the file system has no holes.
pub fn punch_hole(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    allocate(file, mode, offset, length)
}

/// Makes a range of a regular file read zero and keeps its space.
///
/// # Errors
/// `Unsupported` when the file system cannot.
pub fn zero_range(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let mode = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    allocate(file, mode, offset, length)
}

/// Gives a range of a regular file its space, so that writing there later does not fail for lack of any. What the range reads, and
/// the file's length, stay as they are.
///
/// What was never written stays marked so, and reads zero without I/O. Writing it may need a few blocks of the file system's own
/// metadata, for which ext4 and XFS keep some back: on a full one of each, 64 MiB of such a range were written in 16,384 single
/// blocks, in random order, without a refusal. A file system that copies what is written (btrfs, a file on XFS that shares
/// its blocks with a reflink) promises less.
///
/// # Errors
/// `StorageFull` and `QuotaExceeded`, after which a part may have its space; `Unsupported` when the file system cannot.
pub fn allocate_range(file: &File, offset: u64, length: u64) -> io::Result<()> {
    // Not mode 0: that makes a file longer that somebody has cut off.
    allocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, length)
}

/// Tells whether [`is_hole`] answers at once on the file: on some file systems it writes back first, or knows of no holes.
///
/// # Errors
/// What the operating system says.
pub fn tells_holes_at_once(file: &File) -> io::Result<bool> {
    let kind = fstatfs(file)?.filesystem_type();
    Ok([TMPFS_MAGIC, EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC].contains(&kind))
}

/// Tells whether a range of a regular file is in a hole, or allocated and never written: it reads zero either way. Moves the
/// file's position, which positional I/O does not use.
///
/// # Errors
/// What the operating system says.
pub fn is_hole(file: &File, offset: u64, length: u64) -> io::Result<bool> {
    let end = offset.saturating_add(length);
    let from = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    match nix::unistd::lseek(file, from, nix::unistd::Whence::SeekData) {
        Ok(data) => Ok(u64::try_from(data).is_ok_and(|data| data >= end)),
        // lseek(2): there is no data behind the offset, or the offset is behind the end.
        Err(Errno::ENXIO) => Ok(end <= file.metadata()?.len()),
        Err(error) => Err(error.into()),
    }
}

fn allocate(file: &File, mode: FallocateFlags, offset: u64, length: u64) -> io::Result<()> {
    let out_of_range = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let offset = i64::try_from(offset).map_err(out_of_range)?;
    let length = i64::try_from(length).map_err(out_of_range)?;
    loop {
        match nix::fcntl::fallocate(file, mode, offset, length) {
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Tells a block device that a range is not needed. What it reads afterwards is undefined.
///
/// # Errors
/// `Unsupported` when the device has no discard.
pub fn discard_blocks(device: &File, offset: u64, length: u64) -> io::Result<()> {
    let range = [offset, length];
    // SAFETY: BLKDISCARD reads two u64 through the pointer (linux/fs.h), which points at `range`; the descriptor
    // is open while `device` is borrowed. `std` has no call for it.
    unsafe { block_discard(device.as_raw_fd(), range.as_ptr().cast()) }?;
    Ok(())
}

/// Makes a range of a block device read zero.
///
/// # Errors
/// What the device says; the kernel writes zeros where the device has no command for them.
pub fn zero_blocks(device: &File, offset: u64, length: u64) -> io::Result<()> {
    let range = [offset, length];
    // SAFETY: BLKZEROOUT reads two u64 through the pointer (linux/fs.h), which points at `range`; the descriptor
    // is open while `device` is borrowed. `std` has no call for it.
    unsafe { block_zero_out(device.as_raw_fd(), range.as_ptr().cast()) }?;
    Ok(())
}

/// The ioctl numbers of linux/fs.h.
mod ioctls {
    nix::ioctl_read!(block_device_size, 0x12, 114, u64);
    nix::ioctl_write_ptr_bad!(block_discard, nix::request_code_none!(0x12, 119), u8);
    nix::ioctl_write_ptr_bad!(block_zero_out, nix::request_code_none!(0x12, 127), u8);
}
use ioctls::{block_device_size, block_discard, block_zero_out};

#[cfg(test)]
mod tests;
