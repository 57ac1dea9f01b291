//! The on-disk structures, byte for byte as in docs/formats/pool.md.
//!
//! Everything here is plain data and its checksums; when what is written, and in which order, is decided by the
//! [`commit`](crate::commit), [`checkpoint`](crate::checkpoint) and [`recovery`](crate::recovery) modules.

mod batch;
mod geometry;
mod map_page;
mod segments;
mod superblock;
mod table;
mod table_page;

pub(crate) use batch::{BATCH_HEADER_BYTES, BatchCopy, BatchHeader, FLAG_CARRIES, FLAG_VERIFY};
pub(crate) use geometry::{BITS_PER_BLOCK, Geometry, SUPERBLOCK_COPIES};
pub(crate) use map_page::{
    INNER_ENTRIES, LEAF_ENTRIES, LeafEntry, MAX_DEPTH, PagePointer, decode_inner, decode_leaf, encode_inner,
    encode_leaf,
};
pub(crate) use segments::{
    ADDED_DATA_START, AddedDevice, AddedDevices, DeviceLabel, MAX_ADDED_DEVICES, split_address,
};
pub(crate) use superblock::{
    BASE_INCOMPAT, BASE_RO_COMPAT, INCOMPAT_CHECKSUMMED_LENDERS, INCOMPAT_CHECKSUMS, INCOMPAT_ENCRYPTION,
    INCOMPAT_PARTIAL_LENDERS, INCOMPAT_RESERVED_VOLUMES, INCOMPAT_SCRUB, INCOMPAT_SEGMENTS, Superblock,
    SuperblockFields,
};
pub(crate) use table::{
    DirectoryEntry, FLAG_CHECKSUMS, FLAG_RESERVED, INDEX_PAYLOAD_BYTES, IndexPageHeader, ROWS_PER_PAGE, Row,
};
pub(crate) use table_page::{ChunkEntry, RawChunkEntry, TABLE_ENTRIES, decode_table_page, encode_table_page};

/// The unit of metadata I/O, in bytes: a block of the log and a page of the map.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// [`BLOCK_BYTES`] for offsets.
pub(crate) const BLOCK: u64 = BLOCK_BYTES as u64;
