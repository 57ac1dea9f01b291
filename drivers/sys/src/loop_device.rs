//! Loop devices: a file as a block device (loop(4)).
//!
//! Always with direct I/O and 4096-byte blocks: a file that shares blocks with others asks for no less, and a file
//! system that was made for smaller ones would not be mountable once it does. Every device frees itself when its last
//! user is gone, so that neither a crash nor a forgotten call leaves one behind.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// The block size of every device, in bytes.
pub const LOOP_BLOCK_BYTES: u32 = 4096;

/// How often another process may take the device that the kernel has just named as free.
const RACES_MAX: u32 = 100;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_info64` (linux/loop.h).
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` (linux/loop.h).
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

impl LoopInfo {
    const EMPTY: LoopInfo = LoopInfo {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// The ioctl numbers of linux/loop.h.
mod ioctls {
    use super::{LoopConfig, LoopInfo};

    nix::ioctl_none_bad!(loop_set_capacity, 0x4C07);
    nix::ioctl_read_bad!(loop_get_status64, 0x4C05, LoopInfo);
    nix::ioctl_write_ptr_bad!(loop_configure, 0x4C0A, LoopConfig);
    nix::ioctl_none_bad!(loop_ctl_get_free, 0x4C82);
}

/// An attached loop device, held open. It is freed when neither this nor a mount uses it any more.
#[derive(Debug)]
pub struct LoopDevice {
    file: File,
    path: PathBuf,
}

/// What may be done with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoopMode {
    /// Reads only.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

impl LoopDevice {
    /// Attaches a file, of which whole blocks of [`LOOP_BLOCK_BYTES`] are seen. Needs `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn attach(backing: &Path, mode: LoopMode) -> io::Result<Self> {
        let is_writable = mode == LoopMode::ReadWrite;
        let backing = OpenOptions::new().read(true).write(is_writable).open(backing)?;
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/loop-control")?;
        let read_only = if is_writable { 0 } else { LO_FLAGS_READ_ONLY };
        let config = LoopConfig {
            fd: u32::try_from(backing.as_raw_fd()).unwrap_or(u32::MAX),
            block_size: LOOP_BLOCK_BYTES,
            info: LoopInfo {
                flags: LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO | read_only,
                ..LoopInfo::EMPTY
            },
            reserved: [0; 8],
        };
        for _ in 0..RACES_MAX {
            // SAFETY: LOOP_CTL_GET_FREE takes no argument; the descriptor is open while `control` lives. `std` has no
            // call for it.
            let number = unsafe { ioctls::loop_ctl_get_free(control.as_raw_fd()) }?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let file = match OpenOptions::new().read(true).write(is_writable).open(&path) {
                Ok(file) => file,
                // Taken and freed again in between.
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => continue,
                Err(error) => return Err(error),
            };
            // SAFETY: LOOP_CONFIGURE reads one `struct loop_config` through the pointer, whose layout `LoopConfig`
            // has (asserted above); both descriptors are open while `file` and `backing` live.
            match unsafe { ioctls::loop_configure(file.as_raw_fd(), &config) } {
                Ok(_) => return Ok(Self { file, path }),
                Err(Errno::EBUSY) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "other processes take every free loop device",
        ))
    }

    /// Opens an attached device by its path.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::open(path)?,
            path: path.to_owned(),
        })
    }

    /// Returns the path of the device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the number of the device, as `st_dev` of what is mounted from it.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn device_number(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.rdev())
    }

    /// Tells whether the device shows this file, whatever its name is now.
    ///
    /// # Errors
    /// What the operating system says, except that nothing is attached.
    pub fn shows(&self, backing: &File) -> io::Result<bool> {
        let mut info = LoopInfo::EMPTY;
        // SAFETY: LOOP_GET_STATUS64 writes one `struct loop_info64` through the pointer, whose layout `LoopInfo` has
        // (asserted above); the descriptor is open while `self` lives.
        match unsafe { ioctls::loop_get_status64(self.file.as_raw_fd(), &mut info) } {
            Ok(_) => {}
            Err(Errno::ENXIO) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let metadata = backing.metadata()?;
        Ok((info.device, info.inode) == (metadata.dev(), metadata.ino()))
    }

    /// Tells whether the device shows a file that had this name and was deleted, or replaced by another.
    ///
    /// # Errors
    /// What the operating system says, except that nothing is attached.
    pub fn shows_deleted(&self, backing: &Path) -> io::Result<bool> {
        let device = self.path.file_name().unwrap_or_default();
        let shown = Path::new("/sys/block").join(device).join("loop/backing_file");
        let shown = match std::fs::read(shown) {
            Ok(shown) => shown,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        // As the kernel writes the path of what has no name any more (fs/d_path.c).
        let deleted = [backing.as_os_str().as_bytes(), b" (deleted)"].concat();
        Ok(shown.strip_suffix(b"\n") == Some(&deleted))
    }

    /// Takes up the present length of the file.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn update_capacity(&self) -> io::Result<()> {
        // SAFETY: LOOP_SET_CAPACITY takes no argument; the descriptor is open while `self` lives.
        unsafe { ioctls::loop_set_capacity(self.file.as_raw_fd()) }?;
        Ok(())
    }
}
