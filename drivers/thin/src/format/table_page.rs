//! Pages of the chunk table.

use crate::format::{BLOCK_BYTES, MAX_DEPTH};

/// Entries of a page of the table.
pub(crate) const TABLE_ENTRIES: usize = BLOCK_BYTES / size_of::<RawChunkEntry>();
/// An entry as it lies on the device, but for the order of its bytes.
pub(crate) type RawChunkEntry = [u64; 2];

/// Where a chunk belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChunkEntry {
    /// Leads to the version that owns it; never 0.
    pub name: u64,
    /// At which chunk index it was mapped.
    pub index: u64,
    /// At which depth.
    pub birth: u32,
}

impl ChunkEntry {
    const INDEX_BITS: u32 = 40;

    /// Encodes the entry.
    pub fn to_raw(self) -> RawChunkEntry {
        debug_assert!(self.name != 0 && self.index < 1 << Self::INDEX_BITS && self.birth <= MAX_DEPTH);
        [self.name, self.index | u64::from(self.birth) << Self::INDEX_BITS]
    }

    /// Decodes an entry; `None` when there is none.
    pub fn from_raw(raw: RawChunkEntry) -> Option<Self> {
        (raw[0] != 0).then_some(Self {
            name: raw[0],
            index: raw[1] & ((1 << Self::INDEX_BITS) - 1),
            birth: (raw[1] >> Self::INDEX_BITS) as u32,
        })
    }
}

/// Encodes a page.
pub(crate) fn encode_table_page(entries: &[RawChunkEntry; TABLE_ENTRIES]) -> [u8; BLOCK_BYTES] {
    let mut page = [0; BLOCK_BYTES];
    for (bytes, word) in page.chunks_exact_mut(8).zip(entries.as_flattened()) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    page
}

/// Decodes a page.
pub(crate) fn decode_table_page(page: &[u8; BLOCK_BYTES]) -> Box<[RawChunkEntry; TABLE_ENTRIES]> {
    let mut entries = Box::new([[0; 2]; TABLE_ENTRIES]);
    for (word, bytes) in entries.as_flattened_mut().iter_mut().zip(page.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_keep_their_parts_apart_at_the_limits_and_pages_round_trip() {
        let largest = ChunkEntry {
            name: u64::MAX,
            index: (1 << 40) - 1,
            birth: MAX_DEPTH,
        };
        let small = ChunkEntry {
            name: 1,
            index: 0,
            birth: 1,
        };
        assert_eq!(small.to_raw(), [1, 1 << 40]);
        let mut entries = [[0; 2]; TABLE_ENTRIES];
        assert_eq!(TABLE_ENTRIES, 256);
        for (at, entry) in [(3, small), (255, largest)] {
            assert_eq!(ChunkEntry::from_raw(entry.to_raw()), Some(entry));
            entries[at] = entry.to_raw();
        }
        assert_eq!(ChunkEntry::from_raw([0, 7]), None);
        let page = encode_table_page(&entries);
        assert_eq!(page[48..56], 1u64.to_le_bytes());
        assert_eq!(*decode_table_page(&page), entries);
    }
}
