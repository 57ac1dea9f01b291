//! Pages of the map and the pointers between them.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::format::BLOCK_BYTES;

/// Entries of a leaf.
pub(crate) const LEAF_ENTRIES: usize = 512;
/// Entries of an inner page.
pub(crate) const INNER_ENTRIES: usize = 128;
/// The deepest a version can be: births have 24 bits.
pub(crate) const MAX_DEPTH: u32 = (1 << 24) - 1;

/// A page pointer as it lies on the device.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawPointer {
    first: U64,
    second: U64,
    birth: U32,
    crc32c: U32,
}

/// An entry of an inner page as it lies on the device.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct InnerEntry {
    pointer: RawPointer,
    reserved: U64,
}

/// Where the two copies of a page are, who wrote it and what it must contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub(crate) struct PagePointer {
    pub first: u64,
    pub second: u64,
    pub birth: u32,
    pub crc32c: u32,
}

impl PagePointer {
    /// The pointer to no page.
    pub const NONE: PagePointer = PagePointer {
        first: 0,
        second: 0,
        birth: 0,
        crc32c: 0,
    };

    /// Tells whether there is no page.
    pub fn is_none(&self) -> bool {
        self.first == 0
    }
}

impl From<PagePointer> for RawPointer {
    fn from(p: PagePointer) -> Self {
        Self {
            first: p.first.into(),
            second: p.second.into(),
            birth: p.birth.into(),
            crc32c: p.crc32c.into(),
        }
    }
}

impl From<RawPointer> for PagePointer {
    fn from(p: RawPointer) -> Self {
        Self {
            first: p.first.get(),
            second: p.second.get(),
            birth: p.birth.get(),
            crc32c: p.crc32c.get(),
        }
    }
}

/// What a leaf says of one chunk index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LeafEntry(pub u64);

impl LeafEntry {
    /// Not mapped: reads as zeros.
    pub const UNMAPPED: LeafEntry = LeafEntry(0);
    const CHUNK_BITS: u32 = 36;
    const MAPPED: u64 = 1 << 60;

    /// Maps to `chunk`, born at depth `birth`.
    pub fn mapped(chunk: u64, birth: u32) -> Self {
        debug_assert!(chunk < 1 << Self::CHUNK_BITS && birth <= MAX_DEPTH);
        Self(chunk | u64::from(birth) << Self::CHUNK_BITS | Self::MAPPED)
    }

    /// Tells whether the entry maps to a chunk.
    pub fn is_mapped(self) -> bool {
        self.0 & Self::MAPPED != 0
    }

    /// Returns the chunk.
    pub fn chunk(self) -> u64 {
        self.0 & ((1 << Self::CHUNK_BITS) - 1)
    }

    /// Returns the depth of the version that mapped it.
    pub fn birth(self) -> u32 {
        (self.0 >> Self::CHUNK_BITS) as u32 & MAX_DEPTH
    }
}

/// Encodes a leaf.
pub(crate) fn encode_leaf(entries: &[LeafEntry; LEAF_ENTRIES]) -> [u8; BLOCK_BYTES] {
    let mut page = [0; BLOCK_BYTES];
    for (bytes, entry) in page.chunks_exact_mut(8).zip(entries) {
        bytes.copy_from_slice(&entry.0.to_le_bytes());
    }
    page
}

/// Decodes a leaf.
pub(crate) fn decode_leaf(page: &[u8; BLOCK_BYTES]) -> Box<[LeafEntry; LEAF_ENTRIES]> {
    let mut entries = Box::new([LeafEntry::UNMAPPED; LEAF_ENTRIES]);
    for (entry, bytes) in entries.iter_mut().zip(page.as_chunks::<8>().0) {
        entry.0 = u64::from_le_bytes(*bytes);
    }
    entries
}

/// Encodes an inner page.
pub(crate) fn encode_inner(pointers: &[PagePointer; INNER_ENTRIES]) -> [u8; BLOCK_BYTES] {
    let mut page = [0; BLOCK_BYTES];
    for (bytes, pointer) in page.chunks_exact_mut(size_of::<InnerEntry>()).zip(pointers) {
        let entry = InnerEntry {
            pointer: (*pointer).into(),
            reserved: 0.into(),
        };
        bytes.copy_from_slice(entry.as_bytes());
    }
    page
}

/// Decodes an inner page.
pub(crate) fn decode_inner(page: &[u8; BLOCK_BYTES]) -> [PagePointer; INNER_ENTRIES] {
    let mut pointers = [PagePointer::NONE; INNER_ENTRIES];
    let entries = <[InnerEntry; INNER_ENTRIES]>::ref_from_bytes(page).expect("an inner page is one block");
    for (pointer, entry) in pointers.iter_mut().zip(entries) {
        *pointer = entry.pointer.into();
    }
    pointers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_page_structures_have_the_documented_sizes() {
        assert_eq!(size_of::<RawPointer>(), 24);
        assert_eq!(size_of::<InnerEntry>(), 32);
        assert_eq!(size_of::<[InnerEntry; INNER_ENTRIES]>(), BLOCK_BYTES);
        assert_eq!(LEAF_ENTRIES * 8, BLOCK_BYTES);
    }

    #[test]
    fn leaf_entry_keeps_chunk_and_birth_apart_at_their_limits() {
        let entry = LeafEntry::mapped((1 << 36) - 1, MAX_DEPTH);
        assert!(entry.is_mapped());
        assert_eq!((entry.chunk(), entry.birth()), ((1 << 36) - 1, MAX_DEPTH));
        assert_eq!(LeafEntry::mapped(0, 1).0, 1 << 36 | 1 << 60);
        assert!(!LeafEntry::UNMAPPED.is_mapped());
    }

    #[test]
    fn pages_round_trip() {
        let mut leaf = [LeafEntry::UNMAPPED; LEAF_ENTRIES];
        leaf[3] = LeafEntry::mapped(77, 5);
        leaf[511] = LeafEntry::mapped(78, 6);
        let bytes = encode_leaf(&leaf);
        assert_eq!(bytes[24..32], leaf[3].0.to_le_bytes());
        assert_eq!(*decode_leaf(&bytes), leaf);
        let mut inner = [PagePointer::NONE; INNER_ENTRIES];
        inner[127] = PagePointer {
            first: 1,
            second: 2,
            birth: 3,
            crc32c: 4,
        };
        assert_eq!(decode_inner(&encode_inner(&inner)), inner);
    }
}
