//! The frame of a log batch.

use std::sync::Arc;

use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::format::BLOCK_BYTES;

const MAGIC: [u8; 8] = *b"QRYBATCH";
/// The data that the records name was not flushed before the batch was written.
pub(crate) const FLAG_VERIFY: u32 = 1;
/// Behind the records stand copies of those of batches before ([`BatchCopy`]).
pub(crate) const FLAG_CARRIES: u32 = 2;
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

/// The records of a batch, as later ones have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BatchCopy {
    /// 0 for none.
    pub record_count: u32,
    pub records: Arc<Vec<u8>>,
}

/// In the number of a copy's records: another copy stands in front of it.
const MORE_COPIES: u32 = 1 << 31;

impl BatchCopy {
    /// What stands behind the copied records: their length and their number.
    const TRAILER_BYTES: usize = 8;

    /// Returns how many bytes it takes in the batch that carries it.
    pub fn carried_bytes(&self) -> usize {
        self.records.len() + Self::TRAILER_BYTES
    }

    /// Appends copies, the newest first, to the records of a batch, which then has [`FLAG_CARRIES`].
    pub fn append_all(newest_first: &[Self], records: &mut Vec<u8>) {
        for (older, copy) in newest_first.iter().rev().enumerate() {
            let more = if older > 0 { MORE_COPIES } else { 0 };
            records.extend_from_slice(&copy.records);
            records.extend_from_slice(&(copy.records.len() as u32).to_le_bytes());
            records.extend_from_slice(&(copy.record_count | more).to_le_bytes());
        }
    }

    /// Splits what a batch with [`FLAG_CARRIES`] holds into its own records and the copies, the newest first; `None` when it is not
    /// like that.
    pub fn split_off(held: &[u8]) -> Option<(&[u8], Vec<Self>)> {
        let mut copies = Vec::new();
        let mut rest = held;
        loop {
            let (before, trailer) = rest.split_last_chunk::<{ Self::TRAILER_BYTES }>()?;
            let [length, count] = [0, 4].map(|at| {
                u32::from_le_bytes([trailer[at], trailer[at + 1], trailer[at + 2], trailer[at + 3]])
            });
            let (own, records) = before.split_at_checked(before.len().checked_sub(length as usize)?)?;
            copies.push(Self {
                record_count: count & !MORE_COPIES,
                records: Arc::new(records.to_vec()),
            });
            rest = own;
            if count & MORE_COPIES == 0 {
                return Some((rest, copies));
            }
        }
    }
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
    fn copies_come_out_as_they_were_put_in_and_nonsense_is_none() {
        let copy = |record_count, byte| BatchCopy {
            record_count,
            records: Arc::new(vec![byte; 70]),
        };
        let copies = [copy(3, 5), copy(2, 6), copy(0, 0)];
        for count in 1..=3 {
            let mut held = vec![1; 40];
            BatchCopy::append_all(&copies[..count], &mut held);
            let found = BatchCopy::split_off(&held);
            assert_eq!(found, Some((&[1; 40][..], copies[..count].to_vec())));
            assert_eq!(BatchCopy::split_off(&held[..7]), None, "no trailer");
        }
        let too_long = [&[0; 9][..], &10u32.to_le_bytes(), &[0; 4]].concat();
        assert_eq!(BatchCopy::split_off(&too_long), None, "longer than all there is");
        let no_other = [&[0; 4][..], &4u32.to_le_bytes(), &(1 | MORE_COPIES).to_le_bytes()].concat();
        assert_eq!(BatchCopy::split_off(&no_other), None, "there should be another");
    }

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
