//! One image file: made, copied.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use quarry_contract::ShareVersion;
use quarry_sys::filesystem::{freeze, share_blocks};
use quarry_sys::loop_device::{LoopDevice, LoopMode};
use quarry_xfs::error::{During, StoreError};
use quarry_xfs::filesystem::{self, BLOCK_BYTES, device_bytes, identity_of, replay_log, run};
use uuid::Uuid;

/// Makes the image of an empty share, durably.
pub(crate) fn make(image: &Path, size_bytes: u64, identity: Uuid) -> Result<(), StoreError> {
    let file = create(image).during(|| format!("creating {}", image.display()))?;
    file.set_len(device_bytes(size_bytes))
        .during(|| format!("setting the length of {}", image.display()))?;
    filesystem::make(image, size_bytes, identity)
}

/// Gives the copy of an image the identity of a version, durably; `scratch` is where it may be mounted for that.
pub(crate) fn set_identity(version: ShareVersion, image: &Path, scratch: &Path) -> Result<(), StoreError> {
    filesystem::set_identity(version, image, identity_of(version), || {
        let device = LoopDevice::attach(image, LoopMode::ReadWrite)
            .during(|| format!("replaying the log of {}", image.display()))?;
        replay_log(device.path(), scratch)
    })
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
