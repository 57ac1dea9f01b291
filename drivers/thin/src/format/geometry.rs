//! Where things lie on the device.

use crate::format::BLOCK;
use crate::format::segments::{
    ADDED_DATA_START, MAX_SEGMENTS, Segment, SegmentTable, address_on, split_address,
};
use crate::{FormatOptions, PoolError};

/// Chunks per block of the chunk bitmap.
pub(crate) const BITS_PER_BLOCK: u64 = BLOCK * 8;
/// Entries per block of the bitmap directory.
const DIRECTORY_ENTRIES_PER_BLOCK: u64 = BLOCK / 8;
/// How many superblock copies there are.
pub(crate) const SUPERBLOCK_COPIES: usize = 4;

/// The layout of one pool; bytes unless named otherwise. Only growing changes it: `device_bytes`, `chunk_count` and
/// `segments`.
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
    /// All chunks, on whatever device.
    pub chunk_count: u64,
    /// Where chunks are that do not follow `data_start`.
    pub segments: SegmentTable,
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
            segments: SegmentTable::default(),
        })
    }

    /// Returns the segments behind the first.
    pub fn added_segments(&self) -> impl DoubleEndedIterator<Item = &Segment> {
        self.segments.iter().filter(|segment| segment.chunk_count > 0)
    }

    /// Returns how many chunks follow `data_start`.
    pub fn first_chunks(&self) -> u64 {
        let added: u64 = self.added_segments().map(|segment| segment.chunk_count).sum();
        self.chunk_count - added
    }

    /// Returns how many blocks of the bitmap have no place of their own and are pages.
    pub fn bitmap_pages(&self) -> u64 {
        let blocks = self.chunk_count.div_ceil(BITS_PER_BLOCK);
        blocks.saturating_sub(self.bitmap_blocks)
    }

    /// Returns the layout with what `device`, which has `device_bytes`, has room for behind the chunks that it holds.
    /// Another device than those that hold chunks is a new one.
    ///
    /// # Errors
    /// `InvalidOption` when there are as many segments, or chunks, as there can be.
    pub fn grown(&self, device: usize, device_bytes: u64) -> Result<Self, PoolError> {
        let chunk_bytes = self.chunk_bytes;
        let device_bytes = device_bytes / BLOCK * BLOCK;
        let of_first = (device == 0).then(|| self.data_start + self.first_chunks() * chunk_bytes);
        let of_segments = self
            .added_segments()
            .filter(|segment| segment.device() == device)
            .map(|segment| split_address(segment.end(chunk_bytes)).1);
        let start = of_segments.chain(of_first).max().unwrap_or(ADDED_DATA_START);
        // The tail copies of the superblock are behind the last chunk of the first device.
        let behind = if device == 0 { 2 * BLOCK } else { 0 };
        let room = device_bytes.saturating_sub(start + behind) / chunk_bytes;
        let mut grown = *self;
        if room == 0 {
            return Ok(grown);
        }
        if device == 0 {
            grown.device_bytes = device_bytes;
        }
        if self.chunk_count + room > MAX_CHUNK_COUNT {
            return Err(too_many("chunks", MAX_CHUNK_COUNT));
        }
        grown.chunk_count += room;
        let used = self.added_segments().count();
        let address = address_on(device, start);
        match self.added_segments().next_back() {
            // What follows the last segment directly makes it longer.
            None if device == 0 => {}
            Some(last) if last.end(chunk_bytes) == address => grown.segments[used - 1].chunk_count += room,
            _ if used == MAX_SEGMENTS => {
                return Err(too_many("segments behind the first", MAX_SEGMENTS as u64));
            }
            _ => {
                grown.segments[used] = Segment {
                    first_chunk: self.chunk_count,
                    chunk_count: room,
                    address,
                }
            }
        }
        for free in used..MAX_SEGMENTS {
            if grown.segments[free].chunk_count == 0 {
                grown.segments[free].first_chunk = grown.chunk_count;
            }
        }
        Ok(grown)
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
        for segment in self.added_segments().rev() {
            if let Some(within) = chunk.checked_sub(segment.first_chunk) {
                return segment.address + within * self.chunk_bytes;
            }
        }
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
        let first = Segment {
            first_chunk: 0,
            chunk_count: self.first_chunks(),
            address: self.data_start,
        };
        let pages = self.pages_per_chunk();
        std::iter::once(&first)
            .chain(self.added_segments())
            .find_map(|segment| {
                let relative = number.checked_sub(segment.address / BLOCK)?;
                let chunk = relative / pages;
                (chunk < segment.chunk_count).then_some((segment.first_chunk + chunk, relative % pages))
            })
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

fn too_many(what: &str, limit: u64) -> PoolError {
    PoolError::InvalidOption {
        option: "device",
        problem: format!("a pool has at most {limit} {what}; this growth would be beyond"),
    }
}

/// Chunk numbers have 36 bits in a leaf of the map.
const MAX_CHUNK_COUNT: u64 = 1 << 36;

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
    fn chunks_of_a_grown_pool_keep_their_places_and_have_one_each() {
        let before = Geometry::new(1 << 30, &options(64 << 10, 64 << 10)).unwrap();
        let steps = [
            (0, 2 << 30),
            (1, 3 << 30),
            (0, 5 << 30),
            (1, 4 << 30),
            (1, 4 << 30),
            (2, 1 << 30),
        ];
        let mut g = before;
        for (device, bytes) in steps {
            let grown = g.grown(device, bytes).unwrap();
            for chunk in (0..g.chunk_count).step_by(97).chain([g.chunk_count - 1]) {
                assert_eq!(grown.chunk_offset(chunk), g.chunk_offset(chunk), "nothing moves");
            }
            g = grown;
        }
        assert_eq!(
            g.added_segments().count(),
            4,
            "the second of device 1 is longer: {:?}",
            g.segments
        );
        assert_eq!(g.device_bytes, 5 << 30);
        let mut places: Vec<u64> = (0..g.chunk_count).map(|chunk| g.chunk_offset(chunk)).collect();
        for (chunk, place) in places.iter().enumerate() {
            assert_eq!(g.locate_page(place / BLOCK + 3), Some((chunk as u64, 3)));
        }
        places.sort_unstable();
        assert!(
            places.windows(2).all(|pair| pair[0] + g.chunk_bytes <= pair[1]),
            "no two overlap"
        );
        let last_on_first = places
            .iter()
            .filter(|place| split_address(**place).0 == 0)
            .max()
            .unwrap();
        assert!(last_on_first + g.chunk_bytes <= g.superblock_offset(2));
        assert_eq!(g.grown(2, 1 << 30).unwrap(), g, "nothing more to have");
        assert_eq!(
            g.grown(0, 1 << 20).unwrap(),
            g,
            "a smaller device takes nothing away"
        );
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
