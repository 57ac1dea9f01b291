//! What the queue layer needs to do I/O by itself, without blocking.
//!
//! A plan is a look-up under the state lock plus the latches that keep its answer true (L1). It does no I/O and takes
//! well under a microsecond for a small request.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use quarry_contract::IoError;
use smallvec::SmallVec;

use crate::PoolError;
use crate::format::{BLOCK, LEAF_ENTRIES, LeafEntry};
use crate::handle::VersionHandle;
use crate::latch::{LatchTable, StripeIndex};
use crate::locks::read;
use crate::map::{LeafView, find_leaf};
use crate::partial::{Blocks, Home, PartialView};
use crate::pool::Pool;
use crate::state::State;
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
    /// Kept until the I/O has completed; [finished](PlanGuard::finish) when it has succeeded.
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
    partials: Option<Box<PlannedPartials>>,
    epoch: Option<EpochGuard>,
}

/// The partial chunks of a plan; rare, and so kept out of its way.
#[derive(Default)]
struct PlannedPartials {
    /// What the plan uses stays what it is (F4).
    views: Vec<PartialView>,
    /// What the plan writes outside of a mask.
    fill: Option<PlannedFill>,
}

/// Blocks that a plan adds to a partial chunk: its fill latch (F5) and a reservation in the log are held.
#[derive(Clone)]
struct PlannedFill {
    chunk: u64,
    blocks: Blocks,
    /// Their bytes in the request.
    buffer: Range<usize>,
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

    /// Looks up a write of whole 4 KiB blocks that changes no mapping, without blocking. It may add blocks to one partial
    /// chunk: then it is a write only once its guard is [finished](PlanGuard::finish).
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
                partials: None,
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
                    may && self.plan_chunk(&mut plan, &state, index, entry, offset..end, access)
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

    /// Adds the part of a request that lies in one chunk; false when a latch is contended, or when an overwrite would
    /// add blocks to a second partial chunk.
    fn plan_chunk(
        &self,
        plan: &mut Plan,
        state: &State,
        index: u64,
        entry: LeafEntry,
        request: Range<u64>,
        access: Access,
    ) -> bool {
        let chunk_bytes = self.pool.geometry.chunk_bytes;
        let base = index * chunk_bytes;
        let from = request.start.max(base);
        let upto = request.end.min(base + chunk_bytes);
        let in_buffer = |range: Range<u64>| {
            (base + range.start - request.start) as usize..(base + range.end - request.start) as usize
        };
        let within = from - base..upto - base;
        if !entry.is_mapped() {
            plan.add(in_buffer(within), Place::Zeros);
            return true;
        }
        let stripe = LatchTable::stripe(self.node, index);
        if !self.pool.latches.try_shared(stripe) {
            return false;
        }
        plan.guard.stripes.push(stripe);
        let place_in = |chunk: u64, at: u64| Place::Device(self.pool.geometry.chunk_offset(chunk) + at);
        let blocks = Blocks::touching(&within);
        if access == Access::Overwrite && !state.log.unsettled.may_overwrite(entry.chunk(), blocks) {
            return false;
        }
        let Some(view) = state.partials.view(entry.chunk()) else {
            plan.add(in_buffer(within.clone()), place_in(entry.chunk(), within.start));
            return true;
        };
        if access == Access::Overwrite && !view.mask.covers(blocks) {
            let fill = PlannedFill {
                chunk: entry.chunk(),
                blocks,
                buffer: in_buffer(within.clone()),
            };
            // What is in the mask may be being overwritten, and then no claim is true of it (U1).
            if view.mask.touches(blocks) || !self.plan_fill(plan, state, fill) {
                return false;
            }
            plan.add(in_buffer(within.clone()), place_in(entry.chunk(), within.start));
            plan.guard.partials.get_or_insert_default().views.push(view);
            return true;
        }
        for (piece, home) in view.pieces(within) {
            let place = match home {
                Home::Own => place_in(entry.chunk(), piece.start),
                Home::Lender(lender) => place_in(lender, piece.start),
                Home::Nowhere => Place::Zeros,
            };
            plan.add(in_buffer(piece), place);
        }
        plan.guard.partials.get_or_insert_default().views.push(view);
        true
    }

    /// Gets what adding blocks to a partial chunk takes; false when that is not to be had without waiting.
    fn plan_fill(&self, plan: &mut Plan, state: &State, fill: PlannedFill) -> bool {
        let partials = plan.guard.partials.get_or_insert_default();
        if partials.fill.is_some() || !self.pool.fill_latches.try_exclusive(fill.chunk) {
            return false;
        }
        if !state.log.try_reserve() {
            self.pool.fill_latches.release(fill.chunk);
            return false;
        }
        partials.fill = Some(fill);
        true
    }
}

impl Plan {
    /// Adds a segment, joined with the one before where it continues it.
    fn add(&mut self, buffer: Range<usize>, place: Place) {
        if let Some(last) = self.segments.last_mut() {
            let continues = match (last.place, place) {
                (Place::Zeros, Place::Zeros) => true,
                (Place::Device(at), Place::Device(next)) => at + last.buffer.len() as u64 == next,
                _ => false,
            };
            if continues {
                last.buffer.end = buffer.end;
                return;
            }
        }
        self.segments.push(Segment { buffer, place });
    }
}

impl PlanGuard {
    /// Ends a plan whose I/O has succeeded, before that is told to anyone: what it wrote to a partial chunk becomes part
    /// of it. `request` is what was written, all of it. Does not block. Of a plan whose I/O failed the guard is dropped, and nothing has changed.
    ///
    /// # Errors
    /// `Stopped`: the pool has stopped since the plan was made.
    pub fn finish(self, request: &[u8]) -> Result<(), IoError> {
        let Some(fill) = self.partials.as_ref().and_then(|partials| partials.fill.as_ref()) else {
            return Ok(());
        };
        self.pool
            .record_filled_as_reserved(fill.chunk, fill.blocks, &request[fill.buffer.clone()])
            .map_err(PoolError::into_io_error)
    }
}

impl Drop for PlanGuard {
    fn drop(&mut self) {
        if let Some(fill) = self.partials.as_ref().and_then(|partials| partials.fill.as_ref()) {
            read(&self.pool.state).log.end_reservation();
            self.pool.fill_latches.release(fill.chunk);
        }
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
