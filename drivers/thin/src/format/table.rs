//! Rows of the version table, pages of the index stream, entries of the bitmap directory.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::format::BLOCK_BYTES;
use crate::format::map_page::RawPointer;

/// Rows of a row page.
pub(crate) const ROWS_PER_PAGE: usize = 32;
/// Payload of a page of the index stream, in bytes.
pub(crate) const INDEX_PAYLOAD_BYTES: usize = BLOCK_BYTES - size_of::<IndexPageHeader>();

/// One version.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Row {
    pub node: U64,
    pub uuid: [u8; 16],
    pub kind: u8,
    pub state: u8,
    pub source_kind: u8,
    pub flags: u8,
    pub depth: U32,
    pub parent: U64,
    pub size_bytes: U64,
    pub root: RawPointer,
    pub mapped_chunks: U64,
    pub own_chunks: U64,
    pub reap_cursor: U64,
    pub source: [u8; 16],
    pub key_family: U64,
    pub key_slot: U32,
    pub reserved_2: [u8; 4],
}

/// In a row's flags: the volume is reserved, or the snapshot's was.
pub(crate) const FLAG_RESERVED: u8 = 1;
/// In a row's flags: the version's data has checksums.
pub(crate) const FLAG_CHECKSUMS: u8 = 2;

/// The head of a page of the index stream.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct IndexPageHeader {
    pub next: RawPointer,
    pub used: U32,
    pub magic: [u8; 4],
}

impl IndexPageHeader {
    /// What every page of the stream carries.
    pub const MAGIC: [u8; 4] = *b"QIDX";
}

/// Which side of a bitmap block is current.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct DirectoryEntry {
    pub crc32c: u32,
    pub side: u32,
}

impl DirectoryEntry {
    /// Encodes the entry.
    pub fn to_bytes(self) -> [u8; 8] {
        (u64::from(self.crc32c) | u64::from(self.side) << 32).to_le_bytes()
    }

    /// Decodes the entry.
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        let word = u64::from_le_bytes(bytes);
        Self {
            crc32c: word as u32,
            side: (word >> 32) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_structures_have_the_documented_sizes_and_offsets() {
        assert_eq!(size_of::<Row>(), 128);
        assert_eq!(size_of::<Row>() * ROWS_PER_PAGE, BLOCK_BYTES);
        assert_eq!(std::mem::offset_of!(Row, depth), 28);
        assert_eq!(std::mem::offset_of!(Row, root), 48);
        assert_eq!(std::mem::offset_of!(Row, source), 96);
        assert_eq!(std::mem::offset_of!(Row, key_family), 112);
        assert_eq!(size_of::<IndexPageHeader>(), 32);
        assert_eq!(INDEX_PAYLOAD_BYTES, 4064);
        let entry = DirectoryEntry { crc32c: 7, side: 1 };
        assert_eq!(entry.to_bytes(), [7, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(DirectoryEntry::from_bytes(entry.to_bytes()), entry);
    }
}
