//! GET LBA STATUS: which blocks take space (SBC-3 5.3).

use quarry_contract::BlockDevice;

use super::Sense;

const HEADER_BYTES: u32 = 8;
const DESCRIPTOR_BYTES: u32 = 16;

/// The most descriptors in an answer.
const MAX_DESCRIPTORS: u32 = 1024;

const MAPPED: u8 = 0;
const DEALLOCATED: u8 = 1;

/// Answers for the blocks from `lba` on, with as many descriptors as `allocation` bytes hold, and one at least. Waits
/// for the device.
///
/// # Errors
/// What the device says.
pub fn lba_status(device: &dyn BlockDevice, lba: u64, allocation: u32) -> Result<Vec<u8>, Sense> {
    let block = u64::from(device.limits().logical_block_bytes);
    let most = (allocation.saturating_sub(HEADER_BYTES) / DESCRIPTOR_BYTES).clamp(1, MAX_DESCRIPTORS);
    let offset = lba * block;
    let length = device.size_bytes().saturating_sub(offset);
    let extents = device
        .extents(offset, length, most as usize)
        .map_err(|error| Sense::of_io_error(&error, false))?;
    let mut list = Vec::new();
    let mut at = lba;
    for extent in extents {
        let blocks = extent.length / block;
        let told = u32::try_from(blocks).unwrap_or(u32::MAX);
        list.extend_from_slice(&at.to_be_bytes());
        list.extend_from_slice(&told.to_be_bytes());
        list.extend_from_slice(&[if extent.mapped { MAPPED } else { DEALLOCATED }, 0, 0, 0]);
        at += blocks;
        // What follows would not begin where this one is said to end.
        if u64::from(told) < blocks {
            break;
        }
    }
    let mut data = (list.len() as u32 + 4).to_be_bytes().to_vec();
    data.extend_from_slice(&[0; 4]);
    data.extend_from_slice(&list);
    data.truncate(allocation as usize);
    Ok(data)
}

#[cfg(test)]
mod tests {
    use quarry_contract::memory::{CHUNK_BYTES, MemoryDevice};
    use quarry_contract::{BlockingQueue, Durability};

    use super::*;

    #[test]
    fn descriptors_cover_the_rest_as_far_as_there_is_room() {
        let device = MemoryDevice::of_size(8 * CHUNK_BYTES);
        let shared = std::sync::Arc::clone(&device) as std::sync::Arc<dyn BlockDevice>;
        let mut queue = BlockingQueue::open(&shared).unwrap();
        queue
            .write(2 * CHUNK_BYTES, &[1; 512], Durability::Cached)
            .unwrap();
        let data = lba_status(&*device, 3, 8 + 3 * 16).unwrap();
        let descriptor = |at: u64, blocks: u32, status: u8| {
            let mut bytes = at.to_be_bytes().to_vec();
            bytes.extend_from_slice(&blocks.to_be_bytes());
            bytes.extend_from_slice(&[status, 0, 0, 0]);
            bytes
        };
        assert_eq!(data[..8], [0, 0, 0, 52, 0, 0, 0, 0]);
        assert_eq!(data[8..24], descriptor(3, 253, 1));
        assert_eq!(data[24..40], descriptor(256, 128, 0));
        assert_eq!(data[40..], descriptor(384, 640, 1));
        assert_eq!(lba_status(&*device, 3, 24).unwrap().len(), 24);
        assert_eq!(lba_status(&*device, 3, 4).unwrap(), [0, 0, 0, 20]);
    }
}
