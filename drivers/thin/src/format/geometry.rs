//! Where things lie on the device.

use crate::format::BLOCK;
use crate::{FormatOptions, PoolError};

/// Chunks per block of the chunk bitmap.
pub(crate) const BITS_PER_BLOCK: u64 = BLOCK * 8;
/// Entries per block of the bitmap directory.
const DIRECTORY_ENTRIES_PER_BLOCK: u64 = BLOCK / 8;
/// How many superblock copies there are.
pub(crate) const SUPERBLOCK_COPIES: usize = 4;

/// The fixed layout of one pool; bytes unless named otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub device_bytes: u64,
    pub chunk_bytes: u64,
    pub log_start: u64,
    pub log_blocks: u64,
    pub directory_start: u64,
    pub directory_blocks: u64,
    pub bitmap_start: u64,
    pub bitmap_blocks: u64,
    pub data_start: u64,
    pub chunk_count: u64,
}

/// Checks the options that do not depend on the device.
///
/// # Errors
/// `InvalidOption`.
fn validate_options(options: &FormatOptions) -> Result<(), PoolError> {
    let chunk = options.chunk_bytes;
    if !chunk.is_power_of_two() || !(16 << 10..=1 << 20).contains(&chunk) {
        return Err(PoolError::InvalidOption {
            option: "chunk_bytes",
            problem: format!("{chunk} is not a power of two from 16384 to 1048576"),
        });
    }
    let log = options.log_bytes;
    if !log.is_multiple_of(BLOCK) || !(64 << 10..=256 << 20).contains(&log) {
        return Err(PoolError::InvalidOption {
            option: "log_bytes",
            problem: format!("{log} is not a multiple of 4096 from 65536 to 268435456"),
        });
    }
    Ok(())
}

impl Geometry {
    /// Lays a pool out on a device of `device_bytes`.
    ///
    /// # Errors
    /// `InvalidOption` when an option breaks its rule or too few chunks fit.
    pub fn new(device_bytes: u64, options: &FormatOptions) -> Result<Self, PoolError> {
        validate_options(options)?;
        let device_bytes = device_bytes / BLOCK * BLOCK;
        let chunk_bytes = u64::from(options.chunk_bytes);
        let log_start = 2 * BLOCK;
        let log_blocks = options.log_bytes / BLOCK;
        let directory_start = log_start + options.log_bytes;
        let bitmap_blocks = (device_bytes / chunk_bytes).div_ceil(BITS_PER_BLOCK).max(1);
        let directory_blocks = bitmap_blocks.div_ceil(DIRECTORY_ENTRIES_PER_BLOCK);
        let bitmap_start = directory_start + 2 * directory_blocks * BLOCK;
        let data_start = (bitmap_start + 2 * bitmap_blocks * BLOCK).next_multiple_of(chunk_bytes);
        let chunk_count = device_bytes.saturating_sub(data_start + 2 * BLOCK) / chunk_bytes;
        if chunk_count < MIN_CHUNKS {
            return Err(PoolError::InvalidOption {
                option: "device",
                problem: format!(
                    "{device_bytes} bytes are too small: {} are the least with chunks of {chunk_bytes} and a log \
                     of {}",
                    data_start + MIN_CHUNKS * chunk_bytes + 2 * BLOCK,
                    options.log_bytes,
                ),
            });
        }
        Ok(Self {
            device_bytes,
            chunk_bytes,
            log_start,
            log_blocks,
            directory_start,
            directory_blocks,
            bitmap_start,
            bitmap_blocks,
            data_start,
            chunk_count,
        })
    }

    /// Returns where superblock copy `copy` is.
    pub fn superblock_offset(&self, copy: usize) -> u64 {
        match copy {
            0 => 0,
            1 => BLOCK,
            2 => self.device_bytes - 2 * BLOCK,
            _ => self.device_bytes - BLOCK,
        }
    }

    /// Returns where a chunk is.
    pub fn chunk_offset(&self, chunk: u64) -> u64 {
        debug_assert!(chunk < self.chunk_count);
        self.data_start + chunk * self.chunk_bytes
    }

    /// Returns how many map pages fit into a chunk.
    pub fn pages_per_chunk(&self) -> u64 {
        self.chunk_bytes / BLOCK
    }

    /// Returns the page number of page `page` of a chunk.
    pub fn page_number(&self, chunk: u64, page: u64) -> u64 {
        self.chunk_offset(chunk) / BLOCK + page
    }

    /// Returns chunk and page in the chunk of a page number, or `None` outside of the chunks.
    pub fn locate_page(&self, number: u64) -> Option<(u64, u64)> {
        let relative = number.checked_sub(self.data_start / BLOCK)?;
        let chunk = relative / self.pages_per_chunk();
        (chunk < self.chunk_count).then_some((chunk, relative % self.pages_per_chunk()))
    }

    /// Returns where one side of a bitmap block is.
    pub fn bitmap_offset(&self, block: u64, side: u32) -> u64 {
        self.bitmap_start + (2 * block + u64::from(side)) * BLOCK
    }

    /// Returns where one side of the directory begins.
    pub fn directory_offset(&self, side: u32) -> u64 {
        self.directory_start + u64::from(side) * self.directory_blocks * BLOCK
    }

    /// Returns where the log block with this sequence number is.
    pub fn log_offset(&self, block: u64) -> u64 {
        self.log_start + block % self.log_blocks * BLOCK
    }

    /// Returns the largest volume, in bytes.
    pub fn max_volume_bytes(&self) -> u64 {
        crate::map::MAX_CHUNKS * self.chunk_bytes
    }
}

/// What an empty pool and its first checkpoints need.
const MIN_CHUNKS: u64 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn options(chunk_bytes: u32, log_bytes: u64) -> FormatOptions {
        FormatOptions {
            chunk_bytes,
            log_bytes,
            ..FormatOptions::default()
        }
    }

    #[test]
    fn areas_follow_each_other_without_overlap_for_all_sizes() {
        for chunk in [16 << 10, 64 << 10, 1 << 20] {
            for size in [32u64 << 20, (1 << 30) + 12345, 10 << 40] {
                let g = Geometry::new(size, &options(chunk, 64 << 10)).unwrap();
                assert_eq!(g.directory_start, g.log_start + g.log_blocks * BLOCK);
                assert!(g.bitmap_blocks * BITS_PER_BLOCK >= g.chunk_count);
                assert!(g.bitmap_offset(g.bitmap_blocks - 1, 1) + BLOCK <= g.data_start);
                assert_eq!(g.data_start % u64::from(chunk), 0);
                assert!(g.data_start + g.chunk_count * g.chunk_bytes <= g.superblock_offset(2));
                assert_eq!(g.locate_page(g.page_number(7, 3)), Some((7, 3)));
            }
        }
    }

    #[test]
    fn bad_options_and_small_devices_are_refused_by_name() {
        for bad in [
            options(12345, 64 << 10),
            options(8 << 10, 64 << 10),
            options(64 << 10, 100),
        ] {
            assert!(matches!(
                Geometry::new(1 << 30, &bad),
                Err(PoolError::InvalidOption { .. })
            ));
        }
        assert!(matches!(
            Geometry::new(1 << 20, &options(64 << 10, 64 << 10)),
            Err(PoolError::InvalidOption { option: "device", .. })
        ));
    }
}
