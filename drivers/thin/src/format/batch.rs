//! The frame of a log batch.

use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::format::BLOCK_BYTES;

const MAGIC: [u8; 8] = *b"QRYBATCH";
/// The data that the records name was not flushed before the batch was written.
pub(crate) const FLAG_VERIFY: u32 = 1;
/// What precedes the records, in bytes.
pub(crate) const BATCH_HEADER_BYTES: usize = size_of::<BatchHeader>();

/// The header of a batch as it lies on the device.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct BatchHeader {
    magic: [u8; 8],
    uuid: [u8; 16],
    pub batch: U64,
    pub block: U64,
    pub settled_upto: U64,
    pub record_bytes: U32,
    pub record_count: U32,
    crc32c: U32,
    pub flags: U32,
}

impl BatchHeader {
    /// Frames `records` into whole blocks.
    pub fn frame(
        uuid: Uuid,
        batch: u64,
        block: u64,
        settled_upto: u64,
        record_count: u32,
        records: &[u8],
        flags: u32,
    ) -> Vec<u8> {
        let mut header = BatchHeader::new_zeroed();
        header.magic = MAGIC;
        header.uuid = *uuid.as_bytes();
        header.batch = batch.into();
        header.block = block.into();
        header.settled_upto = settled_upto.into();
        header.record_bytes = (records.len() as u32).into();
        header.record_count = record_count.into();
        header.flags = flags.into();
        header.crc32c = header.computed_crc32c(records).into();
        let mut blocks = Vec::with_capacity(Self::blocks_for(records.len()) as usize * BLOCK_BYTES);
        blocks.extend_from_slice(header.as_bytes());
        blocks.extend_from_slice(records);
        blocks.resize(blocks.len().next_multiple_of(BLOCK_BYTES), 0);
        blocks
    }

    /// Returns how many blocks a batch with so many bytes of records takes.
    pub fn blocks_for(record_bytes: usize) -> u64 {
        (BATCH_HEADER_BYTES + record_bytes).div_ceil(BLOCK_BYTES) as u64
    }

    /// Reads the header at the beginning of a block, if it is one of this pool's.
    pub fn read(uuid: Uuid, block: &[u8]) -> Option<Self> {
        let (header, _) = BatchHeader::read_from_prefix(block).ok()?;
        (header.magic == MAGIC && header.uuid == *uuid.as_bytes()).then_some(header)
    }

    /// Tells whether a block has been, or has nearly become, the first one of this batch: two of what tells it from others
    /// are there. What an earlier lap has left there has none but the magic.
    pub fn resembles(block_bytes: &[u8], batch: u64, block: u64) -> bool {
        let Ok((header, _)) = BatchHeader::read_from_prefix(block_bytes) else {
            return false;
        };
        let signs = [
            header.magic == MAGIC,
            header.batch.get() == batch,
            header.block.get() == block,
        ];
        signs.into_iter().filter(|sign| *sign).count() >= 2
    }

    /// Tells whether `records` are what the header was made for.
    pub fn matches(&self, records: &[u8]) -> bool {
        self.crc32c.get() == self.computed_crc32c(records)
    }

    fn computed_crc32c(&self, records: &[u8]) -> u32 {
        let mut header = *self;
        header.crc32c = 0.into();
        crc32c::crc32c_append(crc32c::crc32c(header.as_bytes()), records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_frame_is_whole_blocks_and_finds_damage_anywhere() {
        assert_eq!(BATCH_HEADER_BYTES, 64);
        let uuid = Uuid::from_u128(1);
        let records = vec![7u8; 5000];
        let frame = BatchHeader::frame(uuid, 3, 9, 2, 11, &records, FLAG_VERIFY);
        assert_eq!(frame.len(), 2 * BLOCK_BYTES);
        let header = BatchHeader::read(uuid, &frame).unwrap();
        assert_eq!(
            (header.batch.get(), header.block.get(), header.settled_upto.get()),
            (3, 9, 2)
        );
        assert!(header.matches(&frame[64..5064]));
        assert!(BatchHeader::read(Uuid::from_u128(2), &frame).is_none());
        for byte in 24..5064 {
            let mut damaged = frame.clone();
            damaged[byte] ^= 0x40;
            let header = BatchHeader::read(uuid, &damaged).unwrap();
            assert!(!header.matches(&damaged[64..5064]), "byte {byte}");
        }
    }
}
