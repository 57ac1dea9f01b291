//! The superblock.

use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::PoolError;
use crate::format::map_page::RawPointer;
use crate::format::segments::{
    ADDED_DATA_START, AddedDevice, AddedDevices, MAX_ADDED_DEVICES, MAX_SEGMENTS, RawSegment, SegmentTable,
    split_address,
};
use crate::format::{BLOCK, BLOCK_BYTES, Geometry, PagePointer};

const MAGIC: [u8; 8] = *b"QRYTHIN\0";
const VERSION: u32 = 1;
/// Chunks may be partial: the index stream lists them, and the log has records for them.
pub(crate) const INCOMPAT_PARTIAL_CHUNKS: u64 = 1;
/// A batch of the log may have been written before its data was flushed.
pub(crate) const INCOMPAT_CLAIMS: u64 = 2;
/// Volumes may be reserved: the log has a record for that.
pub(crate) const INCOMPAT_RESERVED_VOLUMES: u64 = 4;
/// Volumes may be encrypted: the index stream lists the chunks of their keys, and the log has records for them.
pub(crate) const INCOMPAT_ENCRYPTION: u64 = 8;
/// The pool has grown beyond its first segment, or beyond the bitmap blocks that it was formatted with.
pub(crate) const INCOMPAT_SEGMENTS: u64 = 16;
/// Volumes may be checksummed: the index stream lists the trees of their sums, and the log has records for them.
pub(crate) const INCOMPAT_CHECKSUMS: u64 = 32;
/// There may have been a scrub: the index stream says how it is, and the log has records for it.
pub(crate) const INCOMPAT_SCRUB: u64 = 64;
/// What lends to a partial chunk may be partial itself.
pub(crate) const INCOMPAT_PARTIAL_LENDERS: u64 = 128;
/// What lends to a partial chunk of a checksummed version may be partial itself: the log has a record for that. Comes with
/// [`INCOMPAT_CHECKSUMS`].
pub(crate) const INCOMPAT_CHECKSUMMED_LENDERS: u64 = 256;
/// A batch of the log may carry copies of those before.
pub(crate) const INCOMPAT_CARRIED_BATCHES: u64 = 512;
/// What every checkpoint sets.
pub(crate) const BASE_INCOMPAT: u64 = INCOMPAT_PARTIAL_CHUNKS
    | INCOMPAT_CLAIMS
    | INCOMPAT_RESERVED_VOLUMES
    | INCOMPAT_PARTIAL_LENDERS
    | INCOMPAT_CARRIED_BATCHES;
const KNOWN_INCOMPAT: u64 = BASE_INCOMPAT
    | INCOMPAT_ENCRYPTION
    | INCOMPAT_SEGMENTS
    | INCOMPAT_CHECKSUMS
    | INCOMPAT_SCRUB
    | INCOMPAT_CHECKSUMMED_LENDERS;
/// The pool has a chunk table: who writes without it makes entries that are wrong.
const RO_COMPAT_CHUNK_TABLE: u64 = 1;
/// What every checkpoint sets.
pub(crate) const BASE_RO_COMPAT: u64 = RO_COMPAT_CHUNK_TABLE;
const KNOWN_RO_COMPAT: u64 = BASE_RO_COMPAT;

/// The block as it lies on the device.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Superblock {
    magic: [u8; 8],
    version: U32,
    crc32c: U32,
    uuid: [u8; 16],
    generation: U64,
    compat: U64,
    ro_compat: U64,
    incompat: U64,
    device_bytes: U64,
    chunk_bytes: U32,
    page_bytes: U32,
    log_start: U64,
    log_blocks: U64,
    directory_start: U64,
    directory_blocks: U64,
    bitmap_start: U64,
    bitmap_blocks: U64,
    data_start: U64,
    chunk_count: U64,
    directory_crc32c: U32,
    directory_side: U32,
    log_batch: U64,
    log_block: U64,
    index: RawPointer,
    index_bytes: U64,
    next_node: U64,
    version_rows: U64,
    segments: [RawSegment; MAX_SEGMENTS],
    devices: AddedDevices,
    reserved: [u8; 1704],
}

/// What a superblock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SuperblockFields {
    pub uuid: Uuid,
    pub generation: u64,
    pub compat: u64,
    pub ro_compat: u64,
    pub incompat: u64,
    pub geometry: Geometry,
    pub directory_crc32c: u32,
    pub directory_side: u32,
    pub log_batch: u64,
    pub log_block: u64,
    pub index: PagePointer,
    pub index_bytes: u64,
    pub next_node: u64,
    pub version_rows: u64,
    pub devices: AddedDevices,
}

impl SuperblockFields {
    /// Encodes the block with its checksum.
    pub fn encode(&self) -> Superblock {
        let g = &self.geometry;
        let mut block = Superblock::new_zeroed();
        block.magic = MAGIC;
        block.version = VERSION.into();
        block.uuid = *self.uuid.as_bytes();
        block.generation = self.generation.into();
        block.compat = self.compat.into();
        block.ro_compat = self.ro_compat.into();
        block.incompat = self.incompat.into();
        block.device_bytes = g.device_bytes.into();
        block.chunk_bytes = (g.chunk_bytes as u32).into();
        block.page_bytes = (BLOCK_BYTES as u32).into();
        block.log_start = g.log_start.into();
        block.log_blocks = g.log_blocks.into();
        block.directory_start = g.directory_start.into();
        block.directory_blocks = g.directory_blocks.into();
        block.bitmap_start = g.bitmap_start.into();
        block.bitmap_blocks = g.bitmap_blocks.into();
        block.data_start = g.data_start.into();
        block.chunk_count = g.chunk_count.into();
        block.directory_crc32c = self.directory_crc32c.into();
        block.directory_side = self.directory_side.into();
        block.log_batch = self.log_batch.into();
        block.log_block = self.log_block.into();
        block.index = self.index.into();
        block.index_bytes = self.index_bytes.into();
        block.next_node = self.next_node.into();
        block.version_rows = self.version_rows.into();
        block.segments = RawSegment::encode(&g.segments);
        block.devices = self.devices;
        block.crc32c = block.computed_crc32c().into();
        block
    }
}

impl Superblock {
    /// Tells whether the block begins with the magic.
    pub fn has_magic(&self) -> bool {
        self.magic == MAGIC
    }

    fn computed_crc32c(&self) -> u32 {
        let bytes = self.as_bytes();
        let crc = crc32c::crc32c(&bytes[..12]);
        let crc = crc32c::crc32c_append(crc, &[0; 4]);
        crc32c::crc32c_append(crc, &bytes[16..])
    }

    /// Verifies and decodes the block.
    ///
    /// # Errors
    /// `NotAPool` without the magic, `Damaged` when the checksum or a field is wrong, `NewerFormat`.
    pub fn decode(&self) -> Result<SuperblockFields, PoolError> {
        if !self.has_magic() {
            return Err(PoolError::NotAPool);
        }
        let (found, computed) = (self.crc32c.get(), self.computed_crc32c());
        if found != computed {
            return Err(PoolError::damaged(
                "superblock",
                format!("crc32c is {found:08x}, the block has {computed:08x}"),
            ));
        }
        if self.version.get() != VERSION {
            return Err(PoolError::NewerFormat {
                what: format!("version {}, this Quarry knows {VERSION}", self.version),
            });
        }
        let unknown = self.incompat.get() & !KNOWN_INCOMPAT;
        if unknown != 0 {
            return Err(PoolError::NewerFormat {
                what: format!("incompatible feature bits {unknown:#x}"),
            });
        }
        let has_segments = self.incompat.get() & INCOMPAT_SEGMENTS != 0;
        let added: u64 = match has_segments {
            true => self
                .segments
                .iter()
                .fold(0, |sum: u64, raw| sum.saturating_add(raw.chunk_count())),
            false => 0,
        };
        let Some(first_chunks) = self.chunk_count.get().checked_sub(added) else {
            return Err(PoolError::damaged(
                "superblock",
                "its segments have more chunks than there are",
            ));
        };
        let fields = SuperblockFields {
            uuid: Uuid::from_bytes(self.uuid),
            generation: self.generation.get(),
            compat: self.compat.get(),
            ro_compat: self.ro_compat.get(),
            incompat: self.incompat.get(),
            geometry: Geometry {
                device_bytes: self.device_bytes.get(),
                chunk_bytes: u64::from(self.chunk_bytes.get()),
                log_start: self.log_start.get(),
                log_blocks: self.log_blocks.get(),
                directory_start: self.directory_start.get(),
                directory_blocks: self.directory_blocks.get(),
                bitmap_start: self.bitmap_start.get(),
                bitmap_blocks: self.bitmap_blocks.get(),
                data_start: self.data_start.get(),
                chunk_count: self.chunk_count.get(),
                segments: match has_segments {
                    true => RawSegment::decode(&self.segments, first_chunks),
                    false => SegmentTable::default(),
                },
            },
            directory_crc32c: self.directory_crc32c.get(),
            directory_side: self.directory_side.get(),
            log_batch: self.log_batch.get(),
            log_block: self.log_block.get(),
            index: self.index.into(),
            index_bytes: self.index_bytes.get(),
            next_node: self.next_node.get(),
            version_rows: self.version_rows.get(),
            devices: match has_segments {
                true => self.devices,
                false => [AddedDevice::none(); MAX_ADDED_DEVICES],
            },
        };
        match fields.inconsistency() {
            None => Ok(fields),
            Some(detail) => Err(PoolError::damaged("superblock", detail)),
        }
    }
}

impl SuperblockFields {
    /// Returns feature bits that allow only reading, or 0.
    pub fn unknown_ro_compat(&self) -> u64 {
        self.ro_compat & !KNOWN_RO_COMPAT
    }

    /// Tells whether chunks may be partial.
    pub fn allows_partials(&self) -> bool {
        self.incompat & INCOMPAT_PARTIAL_CHUNKS != 0
    }

    /// Tells whether the pool has grown beyond what the format had at first.
    pub fn has_segments(&self) -> bool {
        self.incompat & INCOMPAT_SEGMENTS != 0
    }

    /// Tells whether batches may claim what their data is.
    pub fn allows_claims(&self) -> bool {
        self.incompat & INCOMPAT_CLAIMS != 0
    }

    /// Tells whether batches may carry copies of those before.
    pub fn allows_carried_batches(&self) -> bool {
        self.incompat & INCOMPAT_CARRIED_BATCHES != 0
    }

    /// Tells whether volumes may be encrypted.
    pub fn allows_encryption(&self) -> bool {
        self.incompat & INCOMPAT_ENCRYPTION != 0
    }

    /// Tells whether volumes may be checksummed.
    pub fn allows_checksums(&self) -> bool {
        self.incompat & INCOMPAT_CHECKSUMS != 0
    }

    /// Tells whether the index stream has a chunk table.
    pub fn has_chunk_table(&self) -> bool {
        self.ro_compat & RO_COMPAT_CHUNK_TABLE != 0
    }

    /// Tells whether there may have been a scrub.
    pub fn allows_scrub(&self) -> bool {
        self.incompat & INCOMPAT_SCRUB != 0
    }

    /// A checksum only proves that the block is what was written; arithmetic below relies on these.
    fn inconsistency(&self) -> Option<String> {
        let g = &self.geometry;
        let fits = |start: u64, length: Option<u64>, end: u64| {
            length
                .and_then(|length| start.checked_add(length))
                .is_some_and(|sum| sum <= end)
        };
        let whole_blocks = [
            g.device_bytes,
            g.log_start,
            g.directory_start,
            g.bitmap_start,
            g.data_start,
        ];
        // Counters that grow by one per event cannot come near this; beyond it arithmetic could overflow.
        let counters = [
            self.generation,
            self.log_batch,
            self.log_block,
            self.next_node,
            self.version_rows,
        ];
        if whole_blocks.iter().any(|at| !at.is_multiple_of(BLOCK)) {
            return Some("an area does not begin on a block".into());
        }
        if counters.iter().any(|counter| *counter > 1 << 62) || self.log_batch == 0 {
            return Some("a counter is impossible".into());
        }
        let problem = if !g.chunk_bytes.is_power_of_two() || !(16 << 10..=1 << 20).contains(&g.chunk_bytes) {
            "chunk_bytes"
        } else if !(16..=65_536).contains(&g.log_blocks)
            || !fits(g.log_start, g.log_blocks.checked_mul(BLOCK), g.directory_start)
        {
            "log"
        } else if !fits(
            g.directory_start,
            g.directory_blocks.checked_mul(2 * BLOCK),
            g.bitmap_start,
        ) || g.directory_blocks.saturating_mul(BLOCK / 8) < g.bitmap_blocks
            || self.directory_side > 1
        {
            "directory"
        } else if !fits(
            g.bitmap_start,
            g.bitmap_blocks.checked_mul(2 * BLOCK),
            g.data_start,
        ) || g.bitmap_blocks.saturating_mul(BLOCK * 8) < g.chunk_count && !self.has_segments()
        {
            "bitmap"
        } else if g.chunk_count == 0
            || !g.data_start.is_multiple_of(g.chunk_bytes)
            || self.index_bytes > g.device_bytes
            || self.version_rows > g.device_bytes
            || g.device_bytes < 4 * BLOCK
            || !fits(
                g.data_start,
                g.first_chunks().checked_mul(g.chunk_bytes),
                g.device_bytes - 2 * BLOCK,
            )
        {
            "chunks"
        } else if !self.segments_fit() {
            "segments"
        } else {
            return None;
        };
        Some(format!("the geometry of the {problem} is impossible"))
    }
}

impl SuperblockFields {
    /// Tells whether each segment is on a device that there is, behind what was on it before.
    fn segments_fit(&self) -> bool {
        let g = &self.geometry;
        let mut used = [ADDED_DATA_START; MAX_ADDED_DEVICES + 1];
        used[0] = g.data_start + g.first_chunks() * g.chunk_bytes;
        g.added_segments().all(|segment| {
            let (device, start) = split_address(segment.address);
            let room = match device {
                0 => g.device_bytes - 2 * BLOCK,
                _ => match self.devices.get(device - 1) {
                    Some(added) if !added.is_none() => added.device_bytes(),
                    _ => return false,
                },
            };
            let end = segment
                .chunk_count
                .checked_mul(g.chunk_bytes)
                .and_then(|bytes| start.checked_add(bytes));
            let fits = start.is_multiple_of(BLOCK)
                && start >= used[device]
                && end.is_some_and(|end| end <= room)
                && segment.first_chunk < g.chunk_count;
            used[device] = end.unwrap_or(u64::MAX);
            fits
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FormatOptions;

    fn fields() -> SuperblockFields {
        SuperblockFields {
            uuid: Uuid::from_u128(7),
            generation: 3,
            compat: 0,
            ro_compat: 0,
            incompat: BASE_INCOMPAT,
            geometry: Geometry::new(1 << 30, &FormatOptions::default()).unwrap(),
            directory_crc32c: 5,
            directory_side: 1,
            log_batch: 9,
            log_block: 11,
            index: PagePointer {
                first: 1,
                second: 2,
                birth: 0,
                crc32c: 4,
            },
            index_bytes: 16,
            next_node: 1,
            version_rows: 0,
            devices: [AddedDevice::none(); MAX_ADDED_DEVICES],
        }
    }

    #[test]
    fn a_grown_pools_superblock_round_trips_and_impossible_segments_are_refused() {
        let mut grown = fields();
        grown.incompat |= INCOMPAT_SEGMENTS;
        grown.devices[0] = AddedDevice::new(Uuid::from_u128(9), 2 << 30, "/dev/sdb").unwrap();
        grown.geometry = grown
            .geometry
            .grown(1, 2 << 30)
            .unwrap()
            .grown(0, 3 << 30)
            .unwrap();
        assert_eq!(grown.encode().decode().unwrap(), grown);
        type Break = fn(&mut SuperblockFields);
        let breaks: [Break; 4] = [
            |fields| fields.devices[0] = AddedDevice::none(),
            |fields| fields.devices[0].set_device_bytes(1 << 30),
            |fields| fields.geometry.segments[1].address = fields.geometry.data_start,
            |fields| fields.geometry.chunk_count = 5,
        ];
        for (number, change) in breaks.iter().enumerate() {
            let mut broken = grown;
            change(&mut broken);
            let refused = broken.encode().decode();
            assert!(
                matches!(refused, Err(PoolError::Damaged { .. })),
                "{number}: {refused:?}"
            );
        }
    }

    #[test]
    fn superblock_is_one_block_with_fields_where_the_document_says() {
        assert_eq!(size_of::<Superblock>(), BLOCK_BYTES);
        assert_eq!(std::mem::offset_of!(Superblock, generation), 32);
        assert_eq!(std::mem::offset_of!(Superblock, device_bytes), 64);
        assert_eq!(std::mem::offset_of!(Superblock, chunk_count), 136);
        assert_eq!(std::mem::offset_of!(Superblock, log_batch), 152);
        assert_eq!(std::mem::offset_of!(Superblock, index), 168);
        assert_eq!(std::mem::offset_of!(Superblock, version_rows), 208);
        assert_eq!(std::mem::offset_of!(Superblock, segments), 216);
        assert_eq!(std::mem::offset_of!(Superblock, devices), 344);
    }

    #[test]
    fn superblock_round_trips_and_finds_every_flipped_bit() {
        let block = fields().encode();
        assert_eq!(block.decode().unwrap(), fields());
        for bit in 64..BLOCK_BYTES * 8 {
            let mut bytes = block.as_bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let flipped = Superblock::read_from_bytes(&bytes).unwrap();
            assert!(
                matches!(flipped.decode(), Err(PoolError::Damaged { .. })),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn newer_versions_and_features_are_refused_by_name() {
        let mut newer = fields().encode();
        newer.version = 2.into();
        newer.crc32c = newer.computed_crc32c().into();
        assert!(matches!(newer.decode(), Err(PoolError::NewerFormat { .. })));
        let mut features = fields().encode();
        let unknown = 1u64 << KNOWN_INCOMPAT.trailing_ones();
        features.incompat = unknown.into();
        features.crc32c = features.computed_crc32c().into();
        let message = features.decode().unwrap_err().to_string();
        assert!(message.contains(&format!("{unknown:#x}")), "{message}");
    }
}
