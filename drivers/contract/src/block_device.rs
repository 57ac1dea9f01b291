//! The data path's seam: one volume or snapshot, open for I/O.
//!
//! A [`BlockDevice`] is shared; each thread that does I/O opens an [`IoQueue`] of its own on it and drives it
//! without locks of its own, without async and without blocking: requests go in with the buffers they own,
//! completions come out with the buffers given back, and a file descriptor says when to look.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::IoBuffer;

/// What a caller needs to know to use a device well. Sizes in bytes, all powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceLimits {
    /// The unit of addressing: every offset and length is a multiple of it. 512 or 4096.
    pub logical_block_bytes: u32,
    /// The smallest write that costs no read-modify-write.
    pub physical_block_bytes: u32,
    /// The transfer size and alignment that are best for throughput.
    pub optimal_io_bytes: u32,
    /// The smallest aligned range whose discard gives space back.
    pub discard_granularity_bytes: u32,
    /// The longest request, in bytes. Callers split longer ones.
    pub max_transfer_bytes: u32,
    /// The longest [`Verb::WriteAtomic`], in bytes, at any offset; 0 where there is none. Need not be a power of two.
    pub atomic_write_bytes: u32,
    /// How much has to be in flight for full throughput. More only waits: in memory, and where the medium is memory
    /// itself, out of the processor's caches.
    pub useful_in_flight_bytes: u32,
}

/// Tells apart what serves devices: a disk, a file system. Devices of one medium get in each other's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct MediumId(pub u64);

/// One volume or snapshot, open for I/O.
///
/// Contract
/// - B1: a read returns, for every logical block, the data of the last completed write, write-zeroes or discard
///   of it; of one still in flight, the old or the new data per logical block. A range never written reads zero.
/// - B2: a completed [`Verb::Flush`] makes everything that completed before it was submitted survive a power
///   cut. What was not flushed may be lost, in any order, each physical block being old or new.
/// - B3: a completed write with [`Durability::Flushed`] survives a power cut, alone.
/// - B4: a discarded range reads as zeros, at once and after a restart once flushed. Only what a snapshot shares may be
///   left as it is, in a pool without space to note the difference; a discard is never refused for that.
/// - B5: a request beyond the end answers [`IoError::OutOfRange`] and touches nothing.
/// - B6: a request that fails leaves each block it covers old or new. With [`IoError::NoSpace`] a block already
///   mapped is still readable and writable, and the device goes on after space is freed.
/// - B7: `size_bytes` never shrinks while the device is open; what an extend added is usable once the extend
///   has returned.
/// - B8: overlapping requests in flight at once are each atomic per logical block, their order is undefined.
/// - B9: [`BlockDevice::extents`] says unmapped only of what reads zero and takes no space; a range that was
///   discarded in whole granules is said to be so until it is written again.
/// - B10: a [`Verb::WriteAtomic`] is done as a whole or not at all, whatever cuts it short: an error, the end of the
///   process, a power cut. To one that has completed, B1 and B2 apply as to any write. Reads in flight may see a part of
///   it (B8).
pub trait BlockDevice: Send + Sync + 'static {
    /// Returns the size in bytes, as of now.
    fn size_bytes(&self) -> u64;

    /// Returns the limits; they do not change while the device is open.
    fn limits(&self) -> DeviceLimits;

    /// Returns what serves it, as far as that is known: the same for two devices that share a disk only behind what they are
    /// on may differ.
    fn medium(&self) -> MediumId;

    /// Tells whether writes are refused (a snapshot, or opened so).
    fn is_read_only(&self) -> bool;

    /// Tells which parts of a range are mapped: extents from `offset` on, in order and without gaps, at most `most`
    /// of them. They may end before the range does. Blocks.
    ///
    /// # Errors
    /// `OutOfRange`, `Medium`, `Stopped`, `Closed`.
    fn extents(&self, offset: u64, length: u64, most: usize) -> Result<Vec<Extent>, IoError>;

    /// Opens a queue that takes up to `depth` requests in flight. Several queues of one device work side by
    /// side; what one has completed, the others see (B1).
    ///
    /// # Errors
    /// When the operating system refuses the resources.
    fn open_queue(self: Arc<Self>, depth: u32) -> io::Result<Box<dyn IoQueue>>;
}

/// A run of bytes that are all mapped or all not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How long it is, in bytes.
    pub length: u64,
    /// Whether it takes space.
    pub mapped: bool,
}

impl Extent {
    /// Appends a run to a list, or to its last extent when that is like it. False when the list is full.
    pub fn append(list: &mut Vec<Extent>, run: Extent, most: usize) -> bool {
        let has_room = list.len() < most;
        match list.last_mut() {
            Some(last) if last.mapped == run.mapped => last.length += run.length,
            _ if has_room => list.push(run),
            _ => return false,
        }
        true
    }
}

/// One thread's way into a device. Dropping a queue waits for what is in flight and forgets the completions.
pub trait IoQueue: Send {
    /// Hands a request in. Does not block. The request may not start before the next [`IoQueue::kick`].
    ///
    /// # Errors
    /// Gives the request back when `depth` requests are in flight; reap and try again.
    fn submit(&mut self, request: Request) -> Result<(), QueueFull>;

    /// Starts what was submitted since the last kick (one system call for all of it at best). Does not block.
    fn kick(&mut self);

    /// Appends what has completed since the last call, in any order. Does not block. Every submitted request
    /// completes exactly once, with its own buffer.
    fn reap(&mut self, completions: &mut Vec<Completion>);

    /// Returns a descriptor that polls readable when a reap may find something, after the caller has kicked.
    /// It may be readable without need; it stays readable until a reap.
    fn wake_fd(&self) -> BorrowedFd<'_>;
}

/// The caller's mark on a request, given back in the completion; not interpreted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub u64);

/// How sure a write is when it completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It may be in volatile caches until the next flush.
    Cached,
    /// It survives a power cut (SCSI FUA).
    Flushed,
}

/// Whether zeros keep their space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroMode {
    /// Space may be given back; the range is thin again.
    MayUnmap,
    /// Mapped ranges stay mapped.
    KeepMapped,
}

/// What to do. Offsets and lengths are bytes and multiples of the logical block.
#[derive(Debug)]
pub enum Verb {
    /// Fills the buffer from `offset`.
    Read {
        /// Where, in bytes.
        offset: u64,
        /// Filled over its whole length.
        buffer: IoBuffer,
    },
    /// Writes the whole buffer at `offset`.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// What.
        buffer: IoBuffer,
        /// When it counts as done.
        durability: Durability,
    },
    /// Writes the whole buffer at `offset`, all of it or nothing (B10). At most
    /// [`DeviceLimits::atomic_write_bytes`] long; a longer one is [`IoError::Misaligned`].
    WriteAtomic {
        /// Where, in bytes.
        offset: u64,
        /// What.
        buffer: IoBuffer,
        /// When it counts as done.
        durability: Durability,
    },
    /// Makes completed writes survive (B2).
    Flush,
    /// Gives the space of a range back; it reads zero afterwards (B4). Parts smaller than the granularity are
    /// zeroed in place.
    Discard {
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        length: u64,
    },
    /// Makes a range read zero.
    WriteZeroes {
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        length: u64,
        /// Whether the space may go.
        mode: ZeroMode,
    },
}

/// One request.
#[derive(Debug)]
pub struct Request {
    /// The caller's mark.
    pub tag: Tag,
    /// What to do.
    pub verb: Verb,
}

/// The queue is at its depth; here is the request back.
#[derive(Debug)]
pub struct QueueFull(pub Request);

/// The end of one request.
#[derive(Debug)]
pub struct Completion {
    /// The request's mark.
    pub tag: Tag,
    /// How it went.
    pub result: Result<(), IoError>,
    /// The request's buffer, for those that have one.
    pub buffer: Option<IoBuffer>,
}

/// Why a request failed. The variants are what an initiator can be told apart.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// Beyond the end (SCSI: LOGICAL BLOCK ADDRESS OUT OF RANGE).
    #[error("bytes {offset}+{length} are beyond the end at {size}")]
    OutOfRange {
        /// Asked for, in bytes.
        offset: u64,
        /// Asked for, in bytes.
        length: u64,
        /// The device's size, in bytes.
        size: u64,
    },
    /// Not a multiple of the logical block, or longer than the limit.
    #[error("bytes {offset}+{length} do not fit the device's blocks of {block}")]
    Misaligned {
        /// Asked for, in bytes.
        offset: u64,
        /// Asked for, in bytes.
        length: u64,
        /// The logical block, in bytes.
        block: u32,
    },
    /// A write to a snapshot or a read-only open.
    #[error("the device is read-only")]
    ReadOnly,
    /// The pool has no room for the write (SCSI: SPACE ALLOCATION FAILED WRITE PROTECT).
    #[error("the pool has no free space")]
    NoSpace,
    /// The medium failed or its metadata is damaged here.
    #[error("medium error: {detail}")]
    Medium {
        /// Where and how.
        detail: String,
    },
    /// What the medium holds here is not what was written: its checksum differs (SCSI: UNRECOVERED READ ERROR).
    #[error("the data at byte {offset} is damaged: {detail}")]
    Corrupt {
        /// The first damaged block, in bytes of the device.
        offset: u64,
        /// Where it is on the medium, and what was expected and found.
        detail: String,
    },
    /// The pool has stopped taking writes after a failed flush or metadata write; nothing is certain until it
    /// is reopened.
    #[error("the pool has stopped: {reason}")]
    Stopped {
        /// What happened.
        reason: String,
    },
    /// The volume is gone or its pool is closed.
    #[error("the device is closed")]
    Closed,
}
