//! What the queue layer needs to do I/O by itself, without blocking.
//!
//! A plan is a look-up under the state lock plus the latches that keep its answer true (L1). It does no I/O and takes
//! well under a microsecond for a small request.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::format::{BLOCK, LEAF_ENTRIES, LeafEntry};
use crate::handle::VersionHandle;
use crate::latch::{LatchTable, StripeIndex};
use crate::locks::read;
use crate::map::{LeafView, find_leaf};
use crate::pool::Pool;
use crate::write_epoch::EpochGuard;

/// The answer to a non-blocking look-up.
#[derive(Debug)]
pub enum Planned {
    /// The I/O can go straight to the medium.
    Direct(Plan),
    /// Something has to be loaded, allocated, copied, waited for or refused: use the blocking calls of the handle
    /// on a thread that may block.
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
pub struct PlanGuard {
    pool: Arc<Pool>,
    stripes: SmallVec<[StripeIndex; 4]>,
    epoch: Option<EpochGuard>,
}

/// What a plan is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Overwrite,
}

impl VersionHandle {
    /// Looks up a read without blocking.
    pub fn plan_read(&self, offset: u64, length: usize) -> Planned {
        self.plan(offset, length, Access::Read)
            .map_or(Planned::NeedsSlowPath, Planned::Direct)
    }

    /// Looks up a write of whole 4 KiB blocks that changes no mapping, without blocking.
    pub fn plan_overwrite(&self, offset: u64, length: usize) -> Planned {
        let aligned = offset.is_multiple_of(BLOCK) && (length as u64).is_multiple_of(BLOCK);
        if !aligned || self.is_read_only() || self.pool.stopped().is_some() {
            return Planned::NeedsSlowPath;
        }
        self.plan(offset, length, Access::Overwrite)
            .map_or(Planned::NeedsSlowPath, Planned::Direct)
    }

    fn plan(&self, offset: u64, length: usize, access: Access) -> Option<Plan> {
        let end = offset.checked_add(length as u64)?;
        if length == 0 || end > self.size_bytes() || self.pool.is_closed() {
            return None;
        }
        let chunk_bytes = self.pool.geometry.chunk_bytes;
        let mut plan = Plan {
            segments: SmallVec::new(),
            guard: PlanGuard {
                pool: Arc::clone(&self.pool),
                stripes: SmallVec::new(),
                epoch: None,
            },
        };
        let state = read(&self.pool.state);
        let version = state.versions.at_row(self.row, self.node)?;
        let owns = match access {
            Access::Read => None,
            Access::Overwrite => Some(state.versions.ownership(version)),
        };
        let (first, last) = (offset / chunk_bytes, (end - 1) / chunk_bytes);
        let mut index = first;
        while index <= last {
            let leaf = index / LEAF_ENTRIES as u64;
            let leaf_last = last.min(leaf * LEAF_ENTRIES as u64 + LEAF_ENTRIES as u64 - 1);
            let planned = find_leaf(&version.root, leaf, |view| {
                let entries = match view {
                    LeafView::Leaf(entries) => Some(entries),
                    LeafView::Empty => None,
                    LeafView::Missing(_) => return false,
                };
                (index..=leaf_last).all(|index| {
                    let entry = entries.map_or(LeafEntry::UNMAPPED, |e| e[index as usize % LEAF_ENTRIES]);
                    let may = match owns {
                        None => true,
                        Some(owns) => entry.is_mapped() && owns.owns(entry.birth(), leaf + 1),
                    };
                    may && self.plan_chunk(&mut plan, index, entry, offset, end)
                })
            });
            if !planned {
                // The guard releases what was taken, after the state lock.
                drop(state);
                return None;
            }
            index = leaf_last + 1;
        }
        if access == Access::Overwrite {
            plan.guard.epoch = Some(version.epoch.enter());
        }
        Some(plan)
    }

    /// Adds the part of a request that lies in one chunk; false when its latch is contended.
    fn plan_chunk(&self, plan: &mut Plan, index: u64, entry: LeafEntry, offset: u64, end: u64) -> bool {
        let chunk_bytes = self.pool.geometry.chunk_bytes;
        let from = offset.max(index * chunk_bytes);
        let upto = end.min((index + 1) * chunk_bytes);
        let place = if entry.is_mapped() {
            let stripe = LatchTable::stripe(self.node, index);
            if !self.pool.latches.try_shared(stripe) {
                return false;
            }
            plan.guard.stripes.push(stripe);
            Place::Device(self.pool.geometry.chunk_offset(entry.chunk()) + from % chunk_bytes)
        } else {
            Place::Zeros
        };
        let buffer = (from - offset) as usize..(upto - offset) as usize;
        if let Some(last) = plan.segments.last_mut() {
            let continues = match (last.place, place) {
                (Place::Zeros, Place::Zeros) => true,
                (Place::Device(at), Place::Device(next)) => at + last.buffer.len() as u64 == next,
                _ => false,
            };
            if continues {
                last.buffer.end = buffer.end;
                return true;
            }
        }
        plan.segments.push(Segment { buffer, place });
        true
    }
}

impl Drop for PlanGuard {
    fn drop(&mut self) {
        for stripe in &self.stripes {
            self.pool.latches.release_shared(*stripe);
        }
    }
}

impl fmt::Debug for PlanGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PlanGuard({} latches, write: {})",
            self.stripes.len(),
            self.epoch.is_some()
        )
    }
}
