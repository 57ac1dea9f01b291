//! What the queue layer needs to do I/O by itself, without blocking.

use std::ops::Range;

use smallvec::SmallVec;

/// The answer to a non-blocking look-up.
#[derive(Debug)]
pub enum Planned {
    /// The I/O can go straight to the medium.
    Direct(Plan),
    /// Something has to be loaded, allocated, copied or waited for: use the blocking calls of the handle on a
    /// thread that may block.
    NeedsSlowPath,
}

/// Where a request's bytes are. Holds the chunks in place until it is dropped: keep it until the I/O has
/// completed, and do not wait on a blocking call of the same pool while holding it on the same thread.
#[derive(Debug)]
pub struct Plan {
    /// In buffer order, covering the request; neighbours on the medium are one segment.
    pub segments: SmallVec<[Segment; 4]>,
    /// Dropped once the I/O has completed.
    pub guard: PlanGuard,
}

/// A part of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Which bytes of the request's buffer.
    pub buffer: Range<usize>,
    /// Where they are.
    pub place: Place,
}

/// Where a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At this byte offset of the device.
    Device(u64),
    /// Nowhere: it reads as zeros. Never in a plan for an overwrite.
    Zeros,
}

/// Keeps the planned chunks from being remapped, and a snapshot from being acknowledged before the write landed.
#[derive(Debug)]
pub struct PlanGuard {}
