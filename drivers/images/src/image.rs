//! One image: an XFS whose size, as clients see it, is exact, and whose identity is chosen.
//!
//! XFS counts its log out of the size it shows, so an image is the size plus [`LOG_BYTES`]. Its allocation groups are
//! multiples of [`SIZE_GRANULARITY_BYTES`], as sizes are: XFS gives up a last group that is too small, and the size would
//! not be exact after a growth.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use quarry_contract::ShareVersion;
use quarry_sys::filesystem::{MountMode, freeze, share_blocks, unmount};
use quarry_sys::loop_device::{LoopDevice, LoopMode};
use uuid::Uuid;

use crate::error::{During, StoreError, corrupt};
use crate::layout::make_folder;
use crate::mounts::mount_xfs;
use crate::superblock::Superblock;

/// The block of every image's file system, in bytes.
pub(crate) const BLOCK_BYTES: u64 = 4096;
/// The log of every image, in bytes: the least that mkfs.xfs makes.
pub(crate) const LOG_BYTES: u64 = 64 << 20;
/// Sizes are multiples of this, in bytes.
pub(crate) const SIZE_GRANULARITY_BYTES: u64 = 1 << 20;
/// The smallest share, in bytes: mkfs.xfs makes nothing below 300 MiB, log included.
pub(crate) const MIN_SHARE_BYTES: u64 = 256 << 20;
/// The largest share, in bytes.
pub(crate) const MAX_SHARE_BYTES: u64 = 16 << 40;
/// What a blank image takes of the pool, about, in bytes.
pub(crate) const BLANK_BYTES: u64 = LOG_BYTES + (2 << 20);

/// The parts that a new file system is divided into; more are added as it grows.
const ALLOCATION_GROUPS: u64 = 4;
/// The largest allocation group of XFS, in bytes, less one step of sizes.
const ALLOCATION_GROUP_MAX_BYTES: u64 = (1 << 40) - SIZE_GRANULARITY_BYTES;

/// The options that shares are mounted with: what is deleted in them is given back to the pool.
pub(crate) const MOUNT_OPTIONS: &str = "discard";

/// Returns the length of the image of a share, in bytes.
pub(crate) fn image_bytes(size_bytes: u64) -> u64 {
    size_bytes + LOG_BYTES
}

/// Returns the size of the share in an image, in bytes.
pub(crate) fn size_bytes(image_bytes: u64) -> u64 {
    image_bytes.saturating_sub(LOG_BYTES)
}

/// Makes the image of an empty share, durably.
pub(crate) fn make(image: &Path, size_bytes: u64, identity: Uuid) -> Result<(), StoreError> {
    let file = create(image).during(|| format!("creating {}", image.display()))?;
    let length = image_bytes(size_bytes);
    file.set_len(length)
        .during(|| format!("setting the length of {}", image.display()))?;
    let group = length
        .div_ceil(ALLOCATION_GROUPS)
        .next_multiple_of(SIZE_GRANULARITY_BYTES)
        .min(ALLOCATION_GROUP_MAX_BYTES);
    run(
        "mkfs.xfs",
        [
            "-q".as_ref(),
            // The file is all holes: there is nothing to discard.
            "-K".as_ref(),
            "-b".as_ref(),
            format!("size={BLOCK_BYTES}").as_ref(),
            // What a loop device over a file with shared blocks asks for.
            "-s".as_ref(),
            format!("size={BLOCK_BYTES}").as_ref(),
            "-m".as_ref(),
            format!("uuid={identity}").as_ref(),
            "-d".as_ref(),
            format!("agsize={group}").as_ref(),
            "-l".as_ref(),
            format!("internal,size={LOG_BYTES}").as_ref(),
            image.as_os_str(),
        ],
    )
    .during(|| format!("making a file system in {}", image.display()))?;
    file.sync_all().during(|| format!("flushing {}", image.display()))
}

/// Creates an image file for a copy.
pub(crate) fn create(image: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(image)
}

/// Copies an image that nobody writes to.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<File, StoreError> {
    let what = || format!("copying {} to {}", from.display(), to.display());
    let source = File::open(from).during(what)?;
    let copy = create(to).during(what)?;
    share_blocks(&source, &copy).during(what)?;
    Ok(copy)
}

/// Gives the copy of an image an identity of its own, durably. A copy of what was mounted has to be mounted once
/// for that, so that its log is empty; `scratch` is where.
pub(crate) fn set_identity(
    version: ShareVersion,
    image: &Path,
    identity: Uuid,
    scratch: &Path,
) -> Result<(), StoreError> {
    check_superblock(version, image)?;
    for is_replayed in [false, true] {
        if is_replayed {
            replay(image, scratch)?;
        }
        // The tool ends well also when it has changed nothing: what counts is the superblock.
        run(
            "xfs_db",
            [
                "-x".as_ref(),
                "-c".as_ref(),
                format!("uuid {identity}").as_ref(),
                image.as_os_str(),
            ],
        )
        .during(|| format!("setting the identity of {}", image.display()))?;
        if check_superblock(version, image)?.uuid == identity {
            let file = File::open(image).during(|| format!("opening {}", image.display()))?;
            return file.sync_all().during(|| format!("flushing {}", image.display()));
        }
    }
    Err(corrupt(version, "the identity of its file system cannot be changed").into())
}

/// Reads the superblock of an image that shall have one.
pub(crate) fn check_superblock(version: ShareVersion, image: &Path) -> Result<Superblock, StoreError> {
    let what = || format!("reading {}", image.display());
    let file = File::open(image).during(what)?;
    let found = Superblock::read(&file).during(what)?;
    found.ok_or_else(|| corrupt(version, "there is no XFS in its image").into())
}

/// Mounts an image once, which brings what its log holds to where it belongs.
fn replay(image: &Path, scratch: &Path) -> Result<(), StoreError> {
    let what = || format!("replaying the log of {}", image.display());
    make_folder(scratch).during(what)?;
    let device = LoopDevice::attach(image, LoopMode::ReadWrite).during(what)?;
    let mounted = mount_xfs(device.path(), scratch, MountMode::ReadWrite, "nouuid");
    let result = mounted.and_then(|()| unmount(scratch)).during(what);
    // Frees the device; until then the copy would be in use.
    drop(device);
    std::fs::remove_dir(scratch).during(what)?;
    result
}

/// A copy to make.
pub(crate) struct Copy {
    /// The image.
    pub(crate) from: PathBuf,
    /// Its mounted file system, when it is mounted.
    pub(crate) root: Option<PathBuf>,
    /// The copy.
    pub(crate) to: PathBuf,
}

/// Copies images that may be mounted, all as of one moment. Writes to them wait meanwhile, for as long as it takes
/// to bring what was written to the images, and their maps copied.
pub(crate) fn copy_frozen(copies: &[Copy], step: &dyn Fn(&'static str)) -> Result<Vec<File>, StoreError> {
    let mut frozen = Vec::new();
    for root in copies.iter().filter_map(|copy| copy.root.as_ref()) {
        let what = || format!("freezing the file system at {}", root.display());
        frozen.push(File::open(root).and_then(freeze).during(what)?);
        step("frozen");
    }
    let copied = copies.iter().map(|one| copy(&one.from, &one.to)).collect();
    step("copied");
    drop(frozen);
    copied
}

/// Runs a tool of xfsprogs to its end.
fn run<'a>(program: &str, arguments: impl IntoIterator<Item = &'a OsStr>) -> io::Result<()> {
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

/// Makes the file system of a pool in a file of its own.
pub(crate) fn make_reflink_filesystem(file: &Path) -> io::Result<()> {
    let block = format!("size={BLOCK_BYTES}");
    run(
        "mkfs.xfs",
        [
            "-q".as_ref(),
            "-K".as_ref(),
            "-s".as_ref(),
            block.as_ref(),
            "-m".as_ref(),
            "reflink=1".as_ref(),
            file.as_os_str(),
        ],
    )
}
