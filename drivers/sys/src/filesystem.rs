//! What `std` lacks on file systems: mounting, the table of mounts, freezing, sharing blocks between files, and the
//! size of an XFS.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};

mod xfs;

pub use xfs::{XfsGeometry, XfsReserve, grow_xfs, set_xfs_reserve, xfs_geometry, xfs_reserve};

/// Who may do what on a mount. Programs, device nodes and set-user-id bits in it mean nothing to this machine either
/// way: what is in it comes from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountMode {
    /// Nobody writes.
    ReadOnly,
    /// As the permissions say.
    ReadWrite,
}

/// Mounts a block device on a folder, and on nothing that a link there leads to. `options` are the file system's own,
/// separated by commas. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// What the operating system says: `NotADirectory` also when there is a link in place of the folder, `InvalidInput`
/// also when there is no such file system on the device.
pub fn mount_device(
    device: &Path,
    at: &Path,
    filesystem: &str,
    mode: MountMode,
    options: &str,
) -> io::Result<()> {
    let mut flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
    if mode == MountMode::ReadOnly {
        flags |= MsFlags::MS_RDONLY;
    }
    let folder = MountPoint::open(at)?;
    Ok(nix::mount::mount(
        Some(device),
        &folder.path(),
        Some(filesystem),
        flags,
        Some(options),
    )?)
}

/// A folder to mount on. The mount call follows links in what it is given; what it is given here is this folder.
struct MountPoint(File);

impl MountPoint {
    fn open(at: &Path) -> io::Result<Self> {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let folder = OpenOptions::new().read(true).custom_flags(flags).open(at)?;
        Ok(Self(folder))
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// Mounts an empty file system in memory of at most `size_bytes`, whose mounts are seen by name spaces that are
/// made from this one. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// What the operating system says.
pub fn mount_tmpfs(at: &Path, size_bytes: u64) -> io::Result<()> {
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = format!("size={size_bytes},mode=755");
    let folder = MountPoint::open(at)?;
    nix::mount::mount(
        Some("quarry"),
        &folder.path(),
        Some("tmpfs"),
        flags,
        Some(options.as_str()),
    )?;
    let none = None::<&str>;
    Ok(nix::mount::mount(none, at, none, MsFlags::MS_SHARED, none)?)
}

/// Shows a mounted folder at another one, too, following no link in either. It keeps the file system mounted. Needs
/// `CAP_SYS_ADMIN`.
///
/// # Errors
/// What the operating system says.
pub fn mount_again(from: &Path, at: &Path) -> io::Result<()> {
    let (from, at) = (MountPoint::open(from)?, MountPoint::open(at)?);
    let none = None::<&str>;
    Ok(nix::mount::mount(
        Some(&from.path()),
        &at.path(),
        none,
        MsFlags::MS_BIND,
        none,
    )?)
}

/// Mounts a file system in which the kernel shows its own things, as `nfsd` is one. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// What the operating system says: `ENODEV` when the kernel does not have it.
pub fn mount_kernel_files(filesystem: &str, at: &Path) -> io::Result<()> {
    let folder = MountPoint::open(at)?;
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    Ok(nix::mount::mount(
        Some(filesystem),
        &folder.path(),
        Some(filesystem),
        flags,
        None::<&str>,
    )?)
}

/// Tells whether a path is a folder itself, not a link to one, on a device (`st_dev`).
pub fn is_root_of(path: &Path, device: u64) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|root| root.is_dir() && root.dev() == device)
}

/// Unmounts what is mounted at a path, not following a link there.
///
/// # Errors
/// `ResourceBusy` when something is open on it; `InvalidInput` when nothing is mounted there.
pub fn unmount(at: &Path) -> io::Result<()> {
    Ok(umount2(at, MntFlags::UMOUNT_NOFOLLOW)?)
}

/// One line of the table of mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub at: PathBuf,
    /// The device, as the mount call named it.
    pub source: PathBuf,
    /// The kind of file system.
    pub filesystem: String,
}

/// Returns what is mounted below a folder, the folder itself included, in the order in which it was mounted.
///
/// # Errors
/// When the table cannot be read.
pub fn mounts_below(folder: &Path) -> io::Result<Vec<Mount>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let mounts = table.split(|byte| *byte == b'\n').filter_map(parse_mount);
    Ok(mounts.filter(|mount| mount.at.starts_with(folder)).collect())
}

/// Parses a line of proc_pid_mountinfo(5):
/// `36 35 98:0 /root /at rw,noatime master:1 - ext3 /dev/root rw`, with an unknown number of fields before the dash.
fn parse_mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let at = unescape(fields.nth(4)?);
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let filesystem = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(Mount {
        at,
        source: unescape(fields.next()?),
        filesystem,
    })
}

/// Undoes the octal escapes of the table: `\040` is a space.
fn unescape(field: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;

    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|digits| digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match octal {
            Some(digits) if *first == b'\\' => {
                let value = digits
                    .iter()
                    .fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                bytes.push(value as u8);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// Makes `to` a copy of all of `from` that shares its blocks (FICLONE). Both are on one file system, and what was
/// written to `from` before is in it.
///
/// # Errors
/// `Unsupported` or `CrossesDevices` when the file system cannot; `StorageFull`.
pub fn share_blocks(from: &File, to: &File) -> io::Result<()> {
    // SAFETY: FICLONE takes a descriptor by value (ioctl_ficlone(2)); both are open while the files are borrowed.
    // `std` has no call for it.
    unsafe { ioctls::clone_file(to.as_raw_fd(), from.as_raw_fd()) }?;
    Ok(())
}

/// A file system that takes no writes; they wait. Dropping this lets them go on, the end of the process does not.
#[derive(Debug)]
pub struct Frozen {
    root: File,
}

/// Brings everything that was written to a file system to its device, and holds back further writes. `root` is
/// anything open on it. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// `ResourceBusy` when it is frozen already; what else the operating system says.
pub fn freeze(root: File) -> io::Result<Frozen> {
    // SAFETY: FIFREEZE ignores its argument (linux/fs.h); the descriptor is open while `root` lives.
    unsafe { ioctls::freeze(root.as_raw_fd(), 0) }?;
    Ok(Frozen { root })
}

/// Lets a file system go on that a process has left frozen. False when it was not.
///
/// # Errors
/// What the operating system says.
pub fn thaw(root: &File) -> io::Result<bool> {
    // SAFETY: FITHAW ignores its argument (linux/fs.h); the descriptor is open while `root` is borrowed.
    match unsafe { ioctls::thaw(root.as_raw_fd(), 0) } {
        Ok(_) => Ok(true),
        Err(Errno::EINVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Only who has no right to freeze is refused, or what is thawed already.
        let _ = thaw(&self.root);
    }
}

/// The ioctl numbers of linux/fs.h.
mod ioctls {
    const INT: usize = size_of::<libc::c_int>();

    nix::ioctl_write_int_bad!(clone_file, nix::request_code_write!(0x94, 9, INT));
    nix::ioctl_write_int_bad!(freeze, nix::request_code_readwrite!(b'X', 119, INT));
    nix::ioctl_write_int_bad!(thaw, nix::request_code_readwrite!(b'X', 120, INT));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_mount_table_are_read_with_their_escapes() {
        let line = br"36 35 7:3 / /srv/a\040b\134c rw,noatime shared:1 master:2 - xfs /dev/loop3 rw,nouuid";
        let mount = parse_mount(line).unwrap();
        assert_eq!(mount.at, Path::new(r"/srv/a b\c"));
        assert_eq!(mount.source, Path::new("/dev/loop3"));
        assert_eq!(mount.filesystem, "xfs");
        assert_eq!(parse_mount(b""), None);
        assert_eq!(parse_mount(b"36 35 7:3 / /srv rw shared:1"), None);
    }

    #[test]
    fn the_table_names_what_is_mounted_below_a_folder() {
        let proc = mounts_below(Path::new("/proc")).unwrap();
        assert!(
            proc.iter()
                .any(|mount| mount.at == Path::new("/proc") && mount.filesystem == "proc")
        );
        assert!(mounts_below(Path::new("/proc/version")).unwrap().is_empty());
    }

    #[test]
    fn nothing_is_mounted_where_a_link_leads() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        std::fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let error = mount_tmpfs(&link, 1 << 20).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
        assert!(mounts_below(&target.canonicalize().unwrap()).unwrap().is_empty());
    }

    #[test]
    fn blocks_are_not_shared_with_what_is_no_file() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let null = File::open("/dev/null").unwrap();
        assert!(share_blocks(&null, named.as_file()).is_err());
        assert!(xfs_geometry(&null).is_err());
    }
}
