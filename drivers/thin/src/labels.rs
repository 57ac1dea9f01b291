//! The labels of added devices: whose a device is, and which.
//!
//! Two copies, one block each, in front of everything else. What they say follows from the superblock, so a copy that is lost can be
//! written again as long as it is sure that this is the device: the other copy says so, or what is left of either
//! ([`find_label`]); or the pool has it open, and nobody else has put anything there ([`is_only_damaged`]).
//!
//! Format: docs/formats/pool.md, "Growing".

use quarry_contract::IoBuffer;
use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use crate::format::{BLOCK, BLOCK_BYTES, DeviceLabel, SuperblockFields};
use crate::page_io::read_block;
use crate::{DeviceSet, PoolDevice, PoolError};

/// Copies of the label of an added device, one after the other.
const LABEL_COPIES: u64 = 2;
/// An added device holds nothing from the labels to here: it was blank when it was added, and its first chunk comes later.
const BLANK_UNTIL: u64 = 72 << 10;

/// Reads the label of an added device: the ids of pool and device. `None` when neither copy is one.
///
/// # Errors
/// `Device` when neither copy is a label, and one cannot be read.
pub(crate) fn read_label(device: &dyn PoolDevice) -> Result<Option<(Uuid, Uuid)>, PoolError> {
    let mut unreadable = None;
    for copy in 0..LABEL_COPIES {
        match read_copy(device, copy) {
            Ok(block) => {
                if let Some(ids) = ids_in(&block) {
                    return Ok(Some(ids));
                }
            }
            Err(error) => unreadable = Some(error),
        }
    }
    unreadable.map_or(Ok(None), Err)
}

/// Whether a device has the label that it should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FoundLabel {
    /// It does, or did: a damaged copy can only have been that one.
    Right,
    /// It has that of another device.
    Other,
    /// It has none.
    None,
}

/// Looks for the label with these ids on a device.
///
/// # Errors
/// `Device` when no copy tells, and one cannot be read.
pub(crate) fn find_label(device: &dyn PoolDevice, ids: (Uuid, Uuid)) -> Result<FoundLabel, PoolError> {
    match read_label(device)? {
        Some(found) if found == ids => return Ok(FoundLabel::Right),
        Some(_) => return Ok(FoundLabel::Other),
        None => {}
    }
    for copy in 0..LABEL_COPIES {
        if DeviceLabel::still_names(&read_copy(device, copy)?, ids.1) {
            return Ok(FoundLabel::Right);
        }
    }
    Ok(FoundLabel::None)
}

/// Writes the copies of labels that are not there. The devices are known to be the right ones.
///
/// # Errors
/// `Device`.
pub(crate) fn heal_labels(set: &DeviceSet, superblock: &SuperblockFields) -> Result<(), PoolError> {
    for (number, wanted) in superblock.devices.iter().enumerate() {
        let Some(device) = set.device(number + 1).filter(|_| !wanted.is_none()) else {
            continue;
        };
        let ids = (superblock.uuid, wanted.uuid());
        for (copy, problem) in lost_copies(&*device, ids) {
            tracing::warn!(device = %ids.1, path = wanted.path(), copy, problem, "rewriting a device's label");
            write_label(&*device, ids, [copy])?;
        }
    }
    Ok(())
}

/// Returns which copies of the label of the device with these ids are not there, and what is wrong with each.
pub(crate) fn lost_copies(device: &dyn PoolDevice, ids: (Uuid, Uuid)) -> Vec<(u64, String)> {
    (0..LABEL_COPIES)
        .filter_map(|copy| match read_copy(device, copy) {
            Ok(block) if ids_in(&block) == Some(ids) => None,
            Ok(block) => Some(match ids_in(&block) {
                None => (copy, "it is not a label".to_owned()),
                Some((pool, device)) => (copy, format!("it is the label of device {device} of pool {pool}")),
            }),
            Err(error) => Some((copy, error.to_string())),
        })
        .collect()
}

/// Tells whether a device without a label holds nothing but what has become of one: neither something else's data, nor a block that a
/// label does not explain.
///
/// # Errors
/// When what is behind the labels cannot be read.
pub(crate) fn is_only_damaged(device: &dyn PoolDevice) -> Result<bool, PoolError> {
    for copy in 0..LABEL_COPIES {
        // A block that cannot be read says nothing of anybody else.
        if read_copy(device, copy)
            .is_ok_and(|block| ids_in(&block).is_some() || !DeviceLabel::is_like(&block))
        {
            return Ok(false);
        }
    }
    for offset in (LABEL_COPIES * BLOCK..BLANK_UNTIL).step_by(BLOCK_BYTES) {
        let block = read_block(device, offset, "the head of the device")?;
        if block.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes copies of a label, durably, one after the other.
///
/// # Errors
/// `Device`.
pub(crate) fn write_label(
    device: &dyn PoolDevice,
    (pool, id): (Uuid, Uuid),
    copies: impl IntoIterator<Item = u64>,
) -> Result<(), PoolError> {
    let label = IoBuffer::from_slice(DeviceLabel::new(pool, id).as_bytes());
    for copy in copies {
        device
            .write_at(copy * BLOCK, &label)
            .map_err(PoolError::device(format!("writing the label of device {id}")))?;
    }
    device
        .flush()
        .map_err(PoolError::device(format!("flushing the label of device {id}")))
}

/// Writes all copies of a label, durably.
///
/// # Errors
/// `Device`.
pub(crate) fn write_labels(device: &dyn PoolDevice, ids: (Uuid, Uuid)) -> Result<(), PoolError> {
    write_label(device, ids, 0..LABEL_COPIES)
}

fn read_copy(device: &dyn PoolDevice, copy: u64) -> Result<[u8; BLOCK_BYTES], PoolError> {
    read_block(device, copy * BLOCK, "a device's label")
}

fn ids_in(block: &[u8; BLOCK_BYTES]) -> Option<(Uuid, Uuid)> {
    DeviceLabel::ref_from_bytes(block)
        .expect("a label is one block")
        .ids()
}
