//! How a pool is formatted and opened.

use std::time::Duration;

use quarry_contract::PoolName;
use uuid::Uuid;

/// How a pool is laid out; fixed for its life.
#[derive(Debug, Clone)]
pub struct FormatOptions {
    /// The pool's identity.
    pub uuid: Uuid,
    /// The unit of allocation and copy-on-write in bytes: a power of two from 16 KiB to 1 MiB.
    pub chunk_bytes: u32,
    /// The size of the redo log in bytes: a multiple of 4096 from 64 KiB to 256 MiB.
    pub log_bytes: u64,
}

impl Default for FormatOptions {
    fn default() -> Self {
        Self {
            uuid: Uuid::new_v4(),
            chunk_bytes: 64 << 10,
            log_bytes: 64 << 20,
        }
    }
}

/// What an opener may do with the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    ReadWrite,
    /// Nothing is written, not even what recovery would put right; changes are refused.
    ReadOnly,
}

/// Where the chunk bitmap comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitmapSource {
    /// From its blocks; damage to one refuses the open.
    Stored,
    /// From the maps, of which it is a function: as long as it takes to read them all, but no matter what has become
    /// of its blocks.
    Maps,
}

/// A part of a pool's space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threshold {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of what can hold data.
    Percent(u8),
}

/// At how much space left for data each level begins; with 0 a pool does not have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceLevels {
    /// [`Warn`](quarry_contract::SpaceLevel::Warn).
    pub warn: Threshold,
    /// [`Brake`](quarry_contract::SpaceLevel::Brake).
    pub brake: Threshold,
    /// [`Critical`](quarry_contract::SpaceLevel::Critical).
    pub critical: Threshold,
}

impl Default for SpaceLevels {
    fn default() -> Self {
        Self {
            warn: Threshold::Percent(20),
            brake: Threshold::Percent(0),
            critical: Threshold::Percent(0),
        }
    }
}

/// What becomes of a write that finds no space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// It is refused.
    Error,
    /// It waits so long for space to come back or to be added; then it is refused. Only requests through an
    /// [`IoQueue`](quarry_contract::IoQueue) wait; the blocking calls of a handle never do.
    Wait(Duration),
}

/// How a pool is run; may differ from one open to the next.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// What the pool is called in status and errors.
    pub name: PoolName,
    /// The budget for clean map pages in memory, in bytes.
    pub cache_bytes: u64,
    /// A checkpoint is due when this many map pages are dirty.
    pub checkpoint_dirty_pages: u64,
    /// How many chunks may be partial at a time; with 0, every first write moves a whole chunk. Each takes about 100
    /// bytes of memory and 24 to 48 in every checkpoint.
    pub max_partial_chunks: usize,
    /// Whether freed chunks are discarded on the medium (by [`Pool::maintain`](crate::Pool::maintain)), so that
    /// a sparse file gives its space back.
    pub discard_freed: bool,
    /// How many leaves of deleted versions' maps, and of all maps where the chunk table has to be filled, the
    /// [`Maintainer`](crate::Maintainer) goes through in a second, each
    /// 512 chunks and at most two pages to read, unless the pool is short of space: there is no limit then.
    pub reclaim_leaves_per_second: u32,
    /// How many partial chunks the [`Maintainer`](crate::Maintainer) fills in a second, unless more than half of those that
    /// may be are, or the pool is short of space: there is no limit then. Many are filled by their users before.
    pub fill_chunks_per_second: u32,
    /// How much a scrub reads in a second through the [`Maintainer`](crate::Maintainer), in bytes.
    pub scrub_bytes_per_second: u64,
    /// When the pool counts as nearly full.
    pub levels: SpaceLevels,
    /// What becomes of writes when it is full.
    pub on_full: OnFull,
    /// What may be done with the medium.
    pub access: Access,
    /// Where the chunk bitmap comes from.
    pub bitmap: BitmapSource,
}

impl OpenOptions {
    /// The defaults, for a pool called `name`.
    pub fn named(name: PoolName) -> Self {
        Self {
            name,
            cache_bytes: 256 << 20,
            checkpoint_dirty_pages: 16_384,
            max_partial_chunks: 65_536,
            discard_freed: true,
            reclaim_leaves_per_second: 4096,
            fill_chunks_per_second: 512,
            scrub_bytes_per_second: 64 << 20,
            levels: SpaceLevels::default(),
            on_full: OnFull::Error,
            access: Access::ReadWrite,
            bitmap: BitmapSource::Stored,
        }
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self::named(PoolName::parse("pool").expect("the literal keeps the rules"))
    }
}
