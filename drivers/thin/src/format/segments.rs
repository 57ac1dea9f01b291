//! Runs of chunks behind the first, and the devices they are on.
//!
//! An address is where something is on the pool's devices: in the bits from [`DEVICE_SHIFT`] up the device, 0 being the
//! first, below them the byte on it. On the first device it is the byte itself.

use uuid::Uuid;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::format::BLOCK_BYTES;

/// Where the device begins in an address.
pub(crate) const DEVICE_SHIFT: u32 = 52;
/// Segments that a pool can have beside the first.
pub(crate) const MAX_SEGMENTS: usize = 8;
/// Devices that a pool can have beside the first.
pub(crate) const MAX_ADDED_DEVICES: usize = 8;
/// The longest path by which a device is found, in bytes.
pub(crate) const MAX_PATH_BYTES: usize = 222;

/// A run of chunk numbers in one piece on one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Segment {
    pub first_chunk: u64,
    /// 0: this place of the table is free, and so are those after it.
    pub chunk_count: u64,
    /// Where its first chunk is.
    pub address: u64,
}

/// The segments behind the first, in the order of their chunks.
pub(crate) type SegmentTable = [Segment; MAX_SEGMENTS];

/// Makes an address.
pub(crate) fn address_on(device: usize, offset: u64) -> u64 {
    debug_assert!(offset >> DEVICE_SHIFT == 0);
    (device as u64) << DEVICE_SHIFT | offset
}

/// Returns device and byte of an address.
pub(crate) fn split_address(address: u64) -> (usize, u64) {
    let device = address >> DEVICE_SHIFT;
    (device as usize, address & ((1 << DEVICE_SHIFT) - 1))
}

impl Segment {
    /// Returns on which device it is.
    pub fn device(&self) -> usize {
        split_address(self.address).0
    }

    /// Returns the address behind its last chunk.
    pub fn end(&self, chunk_bytes: u64) -> u64 {
        self.address + self.chunk_count * chunk_bytes
    }
}

/// A segment as it lies in the superblock.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawSegment {
    chunk_count: U64,
    address: U64,
}

impl RawSegment {
    /// Returns how many chunks it has.
    pub fn chunk_count(&self) -> u64 {
        self.chunk_count.get()
    }

    /// Encodes a table.
    pub fn encode(table: &SegmentTable) -> [Self; MAX_SEGMENTS] {
        table.map(|segment| Self {
            chunk_count: segment.chunk_count.into(),
            address: segment.address.into(),
        })
    }

    /// Decodes a table behind the first `first_chunks` chunks; counts that overflow become impossible ones.
    pub fn decode(raw: &[Self; MAX_SEGMENTS], first_chunks: u64) -> SegmentTable {
        let mut next = first_chunks;
        raw.map(|raw| {
            let first_chunk = next;
            next = next.saturating_add(raw.chunk_count.get());
            Segment {
                first_chunk,
                chunk_count: raw.chunk_count.get(),
                address: raw.address.get(),
            }
        })
    }
}

/// A device that was added, as the superblock names it.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct AddedDevice {
    uuid: [u8; 16],
    device_bytes: U64,
    path_bytes: U16,
    path: [u8; MAX_PATH_BYTES],
    reserved: [u8; 8],
}

impl std::fmt::Debug for AddedDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AddedDevice({} at {:?})", self.uuid(), self.path())
    }
}

/// The devices behind the first; nil ids at the end.
pub(crate) type AddedDevices = [AddedDevice; MAX_ADDED_DEVICES];

impl AddedDevice {
    /// No device.
    pub fn none() -> Self {
        Self::new_zeroed()
    }

    /// A device; `None` when the path is too long.
    pub fn new(uuid: Uuid, device_bytes: u64, path: &str) -> Option<Self> {
        let mut device = Self::new_zeroed();
        device.uuid = *uuid.as_bytes();
        device.device_bytes = device_bytes.into();
        device.path_bytes = u16::try_from(path.len()).ok()?.into();
        device
            .path
            .get_mut(..path.len())?
            .copy_from_slice(path.as_bytes());
        Some(device)
    }

    /// Tells whether there is none.
    pub fn is_none(&self) -> bool {
        self.uuid == [0; 16]
    }

    /// Returns its id.
    pub fn uuid(&self) -> Uuid {
        Uuid::from_bytes(self.uuid)
    }

    /// Returns how much of it the pool needs, in bytes.
    pub fn device_bytes(&self) -> u64 {
        self.device_bytes.get()
    }

    /// Changes how much of it the pool needs, in bytes.
    pub fn set_device_bytes(&mut self, device_bytes: u64) {
        self.device_bytes = device_bytes.into();
    }

    /// Returns by which path it was added.
    pub fn path(&self) -> &str {
        let path = self.path.get(..usize::from(self.path_bytes.get()));
        path.and_then(|path| std::str::from_utf8(path).ok()).unwrap_or("")
    }
}

/// What an added device begins with.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct DeviceLabel {
    magic: [u8; 8],
    pool: [u8; 16],
    device: [u8; 16],
    crc32c: zerocopy::little_endian::U32,
    reserved: [u8; 4052],
}

/// Where the first chunk of an added device is, in bytes; a multiple of every chunk size. The label is in front of it.
pub(crate) const ADDED_DATA_START: u64 = 1 << 20;

impl DeviceLabel {
    const MAGIC: [u8; 8] = *b"QRYTHIND";
    /// How many of the 16 bytes of an id may be damaged: twelve that are right are no coincidence.
    const DAMAGED_ID_BYTES: usize = 4;

    /// The label of a device of a pool.
    pub fn new(pool: Uuid, device: Uuid) -> Self {
        let mut label = Self::new_zeroed();
        label.magic = Self::MAGIC;
        label.pool = *pool.as_bytes();
        label.device = *device.as_bytes();
        label.crc32c = crc32c::crc32c(&label.as_bytes()[..40]).into();
        label
    }

    /// Returns the ids of pool and device; `None` when it is no label.
    pub fn ids(&self) -> Option<(Uuid, Uuid)> {
        let is_label =
            self.magic == Self::MAGIC && self.crc32c.get() == crc32c::crc32c(&self.as_bytes()[..40]);
        is_label.then(|| (Uuid::from_bytes(self.pool), Uuid::from_bytes(self.device)))
    }

    /// Tells whether a damaged label can only have been that of a device: but for a few bytes its id is there. Ids are random.
    pub fn still_names(block: &[u8; BLOCK_BYTES], device: Uuid) -> bool {
        let ids = block[24..40].iter().zip(device.as_bytes());
        let differing = ids.filter(|(found, wanted)| found != wanted).count();
        differing <= Self::DAMAGED_ID_BYTES
    }

    /// Tells whether a block may be what has become of a label, or is empty: it has nothing where a label has nothing, and is no
    /// superblock. A partition table, a file system and what else begins a device have something there.
    pub fn is_like(block: &[u8; BLOCK_BYTES]) -> bool {
        !block.starts_with(b"QRYTHIN\0") && block[44..].iter().all(|byte| *byte == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_documented_sizes_and_round_trip() {
        assert_eq!(size_of::<RawSegment>(), 16);
        assert_eq!(size_of::<AddedDevice>(), 256);
        assert_eq!(size_of::<DeviceLabel>(), BLOCK_BYTES);
        let mut table = SegmentTable::default();
        table[0] = Segment {
            first_chunk: 100,
            chunk_count: 7,
            address: address_on(1, ADDED_DATA_START),
        };
        table[1..].iter_mut().for_each(|free| free.first_chunk = 107);
        assert_eq!(RawSegment::decode(&RawSegment::encode(&table), 100), table);
        assert_eq!(split_address(table[0].address), (1, ADDED_DATA_START));
        let device = AddedDevice::new(Uuid::from_u128(5), 1 << 40, "/dev/sdb").unwrap();
        assert_eq!(
            (device.uuid(), device.device_bytes(), device.path()),
            (Uuid::from_u128(5), 1 << 40, "/dev/sdb")
        );
        assert!(AddedDevice::new(Uuid::from_u128(5), 1, &"x".repeat(MAX_PATH_BYTES + 1)).is_none());
        let label = DeviceLabel::new(Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(label.ids(), Some((Uuid::from_u128(1), Uuid::from_u128(2))));
        for bit in 0..44 * 8 {
            let mut bytes = label.as_bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let flipped = DeviceLabel::read_from_bytes(&bytes).unwrap();
            assert_eq!(flipped.ids(), None, "bit {bit}");
        }
    }
}
