//! The primary superblock of an XFS, read from its device (xfs/libxfs/xfs_format.h, `struct xfs_dsb`; big-endian).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use uuid::Uuid;

const MAGIC: &[u8] = b"XFSB";

/// What the superblock says. The counters are right after a clean unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// The identity of the file system.
    pub uuid: Uuid,
    /// The size of a block, in bytes.
    pub block_bytes: u32,
    /// The size of all of it, in blocks.
    pub data_blocks: u64,
    /// The size of the log in it, in blocks.
    pub log_blocks: u32,
    /// What is free, in blocks.
    pub free_blocks: u64,
    /// Where the log begins, in bytes.
    pub log_offset_bytes: u64,
    /// The size of an allocation group, in blocks.
    pub group_blocks: u32,
    /// The size of a sector, in bytes.
    pub sector_bytes: u16,
    /// Whether the log is in the file system itself.
    pub has_own_log: bool,
}

impl Superblock {
    /// Reads the superblock of a device; `None` when there is no XFS on it.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn read(device: &File) -> io::Result<Option<Self>> {
        let mut bytes = [0; 256];
        match device.read_exact_at(&mut bytes, 0) {
            Ok(()) => Ok(Self::parse(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads the superblock out of the first bytes of a device.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<256>()?;
        if &bytes[..4] != MAGIC {
            return None;
        }
        Some(Self {
            uuid: Uuid::from_slice(&bytes[32..48]).ok()?,
            block_bytes: u32::from_be_bytes(bytes[4..8].try_into().ok()?),
            data_blocks: u64::from_be_bytes(bytes[8..16].try_into().ok()?),
            log_blocks: u32::from_be_bytes(bytes[96..100].try_into().ok()?),
            free_blocks: u64::from_be_bytes(bytes[144..152].try_into().ok()?),
            log_offset_bytes: log_offset_bytes(bytes)?,
            group_blocks: u32::from_be_bytes(bytes[84..88].try_into().ok()?),
            sector_bytes: u16::from_be_bytes(bytes[102..104].try_into().ok()?),
            has_own_log: bytes[48..56] != [0; 8],
        })
    }

    /// Returns what a client sees as used, in bytes.
    pub fn used_bytes(&self) -> u64 {
        let blocks = self
            .data_blocks
            .saturating_sub(u64::from(self.log_blocks))
            .saturating_sub(self.free_blocks);
        blocks * u64::from(self.block_bytes)
    }
}

/// A block's number has that of its allocation group in its upper bits, and is no distance from the beginning.
fn log_offset_bytes(bytes: &[u8; 256]) -> Option<u64> {
    let start = u64::from_be_bytes(bytes[48..56].try_into().ok()?);
    let group_blocks = u64::from(u32::from_be_bytes(bytes[84..88].try_into().ok()?));
    let group_bits = u32::from(bytes[124]);
    let group = start.checked_shr(group_bits)?;
    let block = group
        .checked_mul(group_blocks)?
        .checked_add(start - (group << group_bits))?;
    block.checked_mul(u64::from(u32::from_be_bytes(bytes[4..8].try_into().ok()?)))
}
