//! One file system: an XFS whose size, as clients see it, is exact, and whose identity is chosen.
//!
//! XFS counts its log out of the size it shows, so a device is the size plus [`LOG_BYTES`]. Allocation groups are multiples
//! of [`SIZE_GRANULARITY_BYTES`], as sizes are: XFS gives up a last group that is too small, and the size would not be exact
//! after a growth.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use quarry_contract::{DriverError, ShareCapabilities, ShareVersion};
use quarry_sys::filesystem::MountMode;
use uuid::Uuid;

use crate::error::{During, StoreError, corrupt};
use crate::mounts::{make_folder, mount_xfs, unmount_soon};
use crate::superblock::Superblock;

/// The block of every file system, in bytes.
pub const BLOCK_BYTES: u64 = 4096;
/// The log of every file system, in bytes: the least that mkfs.xfs makes.
pub const LOG_BYTES: u64 = 64 << 20;
/// Sizes are multiples of this, in bytes.
pub const SIZE_GRANULARITY_BYTES: u64 = 1 << 20;
/// The smallest share, in bytes: mkfs.xfs makes nothing below 300 MiB, log included.
pub const MIN_SHARE_BYTES: u64 = 256 << 20;
/// The largest share, in bytes.
pub const MAX_SHARE_BYTES: u64 = 16 << 40;
/// What a blank file system takes of the pool, about, in bytes.
pub const BLANK_BYTES: u64 = LOG_BYTES + (2 << 20);

/// The parts that a new file system is divided into; more are added as it grows.
const ALLOCATION_GROUPS: u64 = 4;
/// The largest allocation group of XFS, in bytes, less one step of sizes.
const ALLOCATION_GROUP_MAX_BYTES: u64 = (1 << 40) - SIZE_GRANULARITY_BYTES;

/// Returns the length of the device of a share, in bytes.
pub fn device_bytes(size_bytes: u64) -> u64 {
    size_bytes + LOG_BYTES
}

/// Returns the size of the share on a device, in bytes.
pub fn size_bytes(device_bytes: u64) -> u64 {
    device_bytes.saturating_sub(LOG_BYTES)
}

/// Returns the identity of the file system of an object (S9).
pub fn identity_of(version: ShareVersion) -> Uuid {
    match version {
        ShareVersion::Share(id) => id.0,
        // Not the id itself: a caller may have a share of the same id.
        ShareVersion::Snapshot(id) => Uuid::new_v5(&id.0, b"share snapshot"),
    }
}

/// Makes the file system of an empty share, durably, on a device or in a file of the right length that holds nothing.
///
/// # Errors
/// What [`run`] says; what the operating system says.
pub fn make(device: &Path, size_bytes: u64, identity: Uuid) -> Result<(), StoreError> {
    let group = device_bytes(size_bytes)
        .div_ceil(ALLOCATION_GROUPS)
        .next_multiple_of(SIZE_GRANULARITY_BYTES)
        .min(ALLOCATION_GROUP_MAX_BYTES);
    run(
        "mkfs.xfs",
        [
            "-q".as_ref(),
            // It is all holes: there is nothing to discard.
            "-K".as_ref(),
            "-b".as_ref(),
            format!("size={BLOCK_BYTES}").as_ref(),
            // What a loop device over a file with shared blocks asks for.
            "-s".as_ref(),
            format!("size={BLOCK_BYTES}").as_ref(),
            "-m".as_ref(),
            format!("uuid={identity}").as_ref(),
            // Whatever stripes a device has: they would move the ends of the groups.
            "-d".as_ref(),
            format!("agsize={group},noalign").as_ref(),
            "-l".as_ref(),
            format!("internal,size={LOG_BYTES}").as_ref(),
            device.as_os_str(),
        ],
    )
    .during(|| format!("making a file system in {}", device.display()))?;
    flush(device)
}

/// Gives the copy of a file system an identity of its own, durably. A copy of what was mounted has to be mounted once for
/// that, so that its log is empty: `replay` does so ([`replay_log`]).
///
/// # Errors
/// `Corrupt` when there is no XFS, or none whose identity can be changed; what [`run`] and the operating system say.
pub fn set_identity(
    version: ShareVersion,
    device: &Path,
    identity: Uuid,
    replay: impl Fn() -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    check_superblock(version, device)?;
    for is_replayed in [false, true] {
        if is_replayed {
            replay()?;
        }
        // The tool ends well also when it has changed nothing: what counts is the superblock.
        run(
            "xfs_db",
            [
                "-x".as_ref(),
                "-c".as_ref(),
                format!("uuid {identity}").as_ref(),
                device.as_os_str(),
            ],
        )
        .during(|| format!("setting the identity of {}", device.display()))?;
        if check_superblock(version, device)?.uuid == identity {
            return flush(device);
        }
    }
    Err(corrupt(version, "the identity of its file system cannot be changed").into())
}

/// Reads the superblock of a device that shall have one.
///
/// # Errors
/// `Corrupt` when it has none; what the operating system says.
pub fn check_superblock(version: ShareVersion, device: &Path) -> Result<Superblock, StoreError> {
    let what = || format!("reading {}", device.display());
    let file = File::open(device).during(what)?;
    let found = Superblock::read(&file).during(what)?;
    found.ok_or_else(|| corrupt(version, "there is no XFS in it").into())
}

/// Returns the size that a file system which was made elsewhere has as a share, in bytes, when it can be one: when it is laid out
/// as one of ours.
///
/// # Errors
/// `InvalidArgument` saying what is in the way; what the operating system says.
pub fn adoptable_size(
    device: &Path,
    length_bytes: u64,
    sectors: Sectors,
    limits: &ShareCapabilities,
) -> Result<u64, StoreError> {
    let what = || format!("reading {}", device.display());
    let found = File::open(device)
        .and_then(|file| Superblock::read(&file))
        .during(what)?;
    let Some(found) = found else {
        return Err(unfit("it holds no XFS".into()));
    };
    let block_bytes = u64::from(found.block_bytes);
    let problem = if block_bytes != BLOCK_BYTES {
        format!("its blocks are {block_bytes} bytes; they have to be {BLOCK_BYTES} (mkfs.xfs -b size=4096)")
    } else if !found.has_own_log || u64::from(found.log_blocks) * BLOCK_BYTES != LOG_BYTES {
        format!("its log has to be in it, and of {LOG_BYTES} bytes (mkfs.xfs -l internal,size=64m)")
    } else if !(u64::from(found.group_blocks) * BLOCK_BYTES).is_multiple_of(SIZE_GRANULARITY_BYTES) {
        format!(
            "its allocation groups have to be multiples of {SIZE_GRANULARITY_BYTES} bytes (mkfs.xfs -d agsize=...)"
        )
    } else if sectors == Sectors::Of4096 && found.sector_bytes != 4096 {
        format!(
            "its sectors are {} bytes; they have to be 4096 (mkfs.xfs -s size=4096)",
            found.sector_bytes
        )
    } else if found.data_blocks.saturating_mul(BLOCK_BYTES) > length_bytes {
        format!("its file system is larger than its {length_bytes} bytes")
    } else {
        let size_bytes = size_bytes(length_bytes);
        return match limits.check_size(size_bytes) {
            Ok(()) => Ok(size_bytes),
            Err(error) => Err(unfit(format!(
                "its {length_bytes} bytes less the log are not the size of a share: {error}"
            ))),
        };
    };
    Err(unfit(problem))
}

/// Which sectors a file system may have that is adopted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sectors {
    /// Any: the device takes small ones.
    Any,
    /// Of 4096 bytes: the device has no smaller ones.
    Of4096,
}

fn unfit(problem: String) -> StoreError {
    DriverError::InvalidArgument {
        field: "name".into(),
        problem,
    }
    .into()
}

/// Mounts a copy once, at `scratch`, which brings what its log holds to where it belongs.
///
/// # Errors
/// What the operating system says.
pub fn replay_log(device: &Path, scratch: &Path) -> Result<(), StoreError> {
    let what = || format!("replaying the log of {}", device.display());
    make_folder(scratch).during(what)?;
    let mounted = mount_xfs(device, scratch, MountMode::ReadWrite, "nouuid");
    let result = mounted.and_then(|()| unmount_soon(scratch)).during(what);
    std::fs::remove_dir(scratch).during(what)?;
    result
}

fn flush(device: &Path) -> Result<(), StoreError> {
    File::open(device)
        .and_then(|file| file.sync_all())
        .during(|| format!("flushing {}", device.display()))
}

/// Runs a tool of xfsprogs to its end.
///
/// # Errors
/// `NotFound` when it is not installed, `StorageFull` when it found no room, else what it said.
pub fn run<'a>(program: &str, arguments: impl IntoIterator<Item = &'a OsStr>) -> io::Result<()> {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::new(
                io::ErrorKind::NotFound,
                format!("there is no {program} on this machine; install xfsprogs"),
            ),
            _ => error,
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("");
    // The tool's own words are for people; the one thing that is acted upon has a name of its own.
    let kind = match said.contains("No space left on device") {
        true => io::ErrorKind::StorageFull,
        false => io::ErrorKind::Other,
    };
    Err(io::Error::new(
        kind,
        format!("{program} ended with {}: {said}", output.status),
    ))
}
