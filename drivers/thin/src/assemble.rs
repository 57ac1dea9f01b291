//! Finding all devices of a pool, given the first.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::format::{AddedDevice, SuperblockFields};
use crate::labels::{FoundLabel, find_label};
use crate::recovery::choose_superblock;
use crate::{DeviceSet, FileDevice, FileDeviceError, PoolDevice, PoolError};

/// Opens the other devices of the pool whose first one is `first`, at `first_path`: each where it was added, or under the
/// same name beside the first. `open` opens one. A first device without a pool is a set by itself.
///
/// # Errors
/// `MissingDevice` when one is not to be found or cannot be opened.
pub fn assemble(
    first: Arc<dyn PoolDevice>,
    first_path: &Path,
    open: impl Fn(&Path) -> Result<FileDevice, FileDeviceError>,
) -> Result<Arc<DeviceSet>, PoolError> {
    let set = DeviceSet::of(first);
    let Ok(superblock) = choose_superblock(&*set) else {
        // What is wrong with it is for whoever opens the pool to say.
        return Ok(set);
    };
    for (number, wanted) in superblock.devices.iter().enumerate() {
        if wanted.is_none() {
            break;
        }
        set.set(number, Some(find(&superblock, wanted, first_path, &open)?));
    }
    Ok(set)
}

fn find(
    superblock: &SuperblockFields,
    wanted: &AddedDevice,
    first_path: &Path,
    open: &impl Fn(&Path) -> Result<FileDevice, FileDeviceError>,
) -> Result<Arc<dyn PoolDevice>, PoolError> {
    let added_at = PathBuf::from(wanted.path());
    let beside = added_at
        .file_name()
        .map(|name| first_path.with_file_name(name))
        .filter(|beside| *beside != added_at);
    let mut problem = None;
    for path in std::iter::once(added_at).chain(beside) {
        let found = match open(&path) {
            Ok(device) => device,
            Err(error) => {
                problem.get_or_insert_with(|| describe(&error));
                continue;
            }
        };
        if find_label(&found, (superblock.uuid, wanted.uuid()))? == FoundLabel::Right {
            return Ok(Arc::new(found));
        }
        problem.get_or_insert_with(|| "what is there is not it".into());
    }
    Err(PoolError::MissingDevice {
        uuid: wanted.uuid(),
        path: wanted.path().into(),
        problem: problem.unwrap_or_default(),
    })
}

/// Renders an error with its cause.
fn describe(error: &FileDeviceError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
