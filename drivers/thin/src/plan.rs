//! What the queue layer needs to do I/O by itself, without blocking.
//!
//! A plan is a look-up under the state lock plus the latches that keep its answer true (L1). It does no I/O and takes
//! well under a microsecond for a small request. A write into space that its volume does not own can be planned too
//! ([`plan_map`](crate::plan_map)): it is given new chunks, and they are mapped when their content has been written.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use quarry_contract::IoError;
use smallvec::SmallVec;

use crate::PoolError;
use crate::format::{BLOCK, LEAF_ENTRIES, LeafEntry};
use crate::given::Replaced;
use crate::handle::VersionHandle;
use crate::latch::{LatchTable, StripeIndex};
use crate::locks::{read, write};
use crate::map::{LeafView, find_leaf};
use crate::part_write::fill_records;
use crate::partial::{Blocks, Home, PartialView};
use crate::plan_map::PlannedMaps;
use crate::pool::Pool;
use crate::record::Record;
use crate::state::State;
use crate::sums::{Checksums, ExpectedSums, FewSums};
use crate::write_epoch::EpochGuard;

/// The answer to a non-blocking look-up.
#[derive(Debug)]
pub enum Planned {
    /// The I/O can go straight to the medium.
    Direct(Plan),
    /// Somebody else's I/O stands in the way: try again when it has ended, or use the blocking calls.
    Contended,
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
    pub(crate) pool: Arc<Pool>,
    stripes: SmallVec<[StripeIndex; 4]>,
    partials: Option<Box<PlannedPartials>>,
    pub(crate) maps: Option<Box<PlannedMaps>>,
    epoch: Option<EpochGuard>,
}

/// The answer to [`PlanGuard::finish`].
#[derive(Debug)]
pub enum Finished {
    /// The request has ended so.
    Ended(Result<(), IoError>),
    /// What was written is not mapped yet, and mapping it needs something that blocks: call
    /// [`finish_blocking`](PlanGuard::finish_blocking) on a thread that may. That never waits for another plan.
    NeedsSlowPath(PlanGuard),
}

/// The partial chunks of a plan, and the checksums; rare, and so kept out of its way.
#[derive(Default)]
struct PlannedPartials {
    /// What the plan uses stays what it is (F4).
    views: Vec<PartialView>,
    /// What the plan writes outside of a mask.
    fill: Option<PlannedFill>,
    /// What a read of a checksummed version has to find (D3).
    expected: Option<ExpectedSums>,
}

/// Blocks that a plan adds to a partial chunk: their fill latches (F5) and a reservation in the log are held.
#[derive(Clone)]
struct PlannedFill {
    chunk: u64,
    blocks: Blocks,
    /// Their bytes in the request.
    buffer: Range<usize>,
    checksums: Checksums,
}

/// What a plan is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    /// Of chunks that the volume owns.
    Overwrite,
    /// Of chunks that it owns or is to be given.
    Map,
}

/// Why there is no plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unplanned {
    /// An overwrite of what the volume does not own.
    NotOwned,
    /// Somebody holds a latch.
    Contended,
    /// Something has to be loaded, copied or refused.
    NeedsSlowPath,
}

impl From<Result<Plan, Unplanned>> for Planned {
    fn from(planned: Result<Plan, Unplanned>) -> Self {
        match planned {
            Ok(plan) => Planned::Direct(plan),
            Err(Unplanned::Contended) => Planned::Contended,
            Err(Unplanned::NotOwned | Unplanned::NeedsSlowPath) => Planned::NeedsSlowPath,
        }
    }
}

impl VersionHandle {
    /// Looks up a read without blocking. What was read is what was written only once its guard is
    /// [finished](PlanGuard::finish) without an error.
    pub fn plan_read(&self, offset: u64, length: usize) -> Planned {
        let aligned = offset.is_multiple_of(BLOCK) && (length as u64).is_multiple_of(BLOCK);
        // Parts of a block cannot be verified.
        if self.checksums.are_on() && !aligned {
            return Planned::NeedsSlowPath;
        }
        match self.checked_range(offset, length) {
            Some(request) => self.plan(&request, Access::Read).into(),
            None => Planned::NeedsSlowPath,
        }
    }

    /// Looks up a write of whole 4 KiB blocks, without blocking. It is a write only once its guard is
    /// [finished](PlanGuard::finish): until then, what it adds to the volume's map or to a partial chunk is in no map.
    pub fn plan_write(&self, offset: u64, length: usize) -> Planned {
        let aligned = offset.is_multiple_of(BLOCK) && (length as u64).is_multiple_of(BLOCK);
        if !aligned || self.is_read_only() || self.pool.stopped().is_some() {
            return Planned::NeedsSlowPath;
        }
        let Some(request) = self.checked_range(offset, length) else {
            return Planned::NeedsSlowPath;
        };
        match self.plan(&request, Access::Overwrite) {
            Err(Unplanned::NotOwned) => self.plan_mapping(&request).into(),
            planned => planned.into(),
        }
    }

    fn plan(&self, request: &Range<u64>, access: Access) -> Result<Plan, Unplanned> {
        let mut plan = Plan::new(&self.pool);
        let state = read(&self.pool.state);
        let planned = self.plan_chunks(&mut plan, &state, request, access);
        // The guard releases what was taken in vain, after the state lock.
        drop(state);
        planned.map(|()| plan)
    }

    /// Plans a write that is given chunks where it owns none.
    fn plan_mapping(&self, request: &Range<u64>) -> Result<Plan, Unplanned> {
        let mut plan = Plan::new(&self.pool);
        let mut state = write(&self.pool.state);
        let maps = PlannedMaps::take(self, &mut state, request);
        plan.guard.maps = Some(maps.ok_or(Unplanned::NeedsSlowPath)?);
        let planned = self.plan_chunks(&mut plan, &state, request, Access::Map);
        drop(state);
        planned.map(|()| plan)
    }

    fn checked_range(&self, offset: u64, length: usize) -> Option<Range<u64>> {
        let end = offset.checked_add(length as u64)?;
        let exists = length > 0 && end <= self.size_bytes() && !self.pool.is_closed();
        exists.then_some(offset..end)
    }

    /// Plans a request chunk by chunk. When that fails, the guard has what was taken before.
    fn plan_chunks(
        &self,
        plan: &mut Plan,
        state: &State,
        request: &Range<u64>,
        access: Access,
    ) -> Result<(), Unplanned> {
        let chunk_bytes = self.pool.geometry.chunk_bytes;
        let version = state.versions.at_row(self.row, self.node);
        let version = version.ok_or(Unplanned::NeedsSlowPath)?;
        let ownership = (access != Access::Read).then(|| state.versions.ownership(version));
        let (first, last) = (request.start / chunk_bytes, (request.end - 1) / chunk_bytes);
        let mut index = first;
        while index <= last {
            let leaf = index / LEAF_ENTRIES as u64;
            let leaf_last = last.min(leaf * LEAF_ENTRIES as u64 + LEAF_ENTRIES as u64 - 1);
            let planned = find_leaf(&version.root, leaf, |view| {
                let entries = match view {
                    LeafView::Leaf(entries) => Some(entries),
                    LeafView::Empty => None,
                    LeafView::Missing(_) => return Err(Unplanned::NeedsSlowPath),
                };
                (index..=leaf_last).try_for_each(|index| {
                    let entry = entries.map_or(LeafEntry::UNMAPPED, |e| e[index as usize % LEAF_ENTRIES]);
                    let owned =
                        ownership.is_none_or(|o| entry.is_mapped() && o.owns(entry.birth(), leaf + 1));
                    let stays = owned
                        && (access == Access::Read || !self.goes_elsewhere(state, index, entry, request));
                    match (stays, access) {
                        (true, _) => self.plan_chunk(plan, state, index, entry, request, access),
                        (false, Access::Map) => {
                            let replaced = (entry, Replaced::of(owned));
                            self.plan_map(plan, state, index, replaced, request)
                        }
                        (false, _) => Err(Unplanned::NotOwned),
                    }
                })
            });
            planned?;
            index = leaf_last + 1;
        }
        if access != Access::Read {
            plan.guard.epoch = Some(version.epoch.enter());
        }
        Ok(())
    }

    /// Tells whether a write over a chunk that its version owns goes to another one all the same: a checksummed version keeps
    /// what it has been given (D2).
    fn goes_elsewhere(&self, state: &State, index: u64, entry: LeafEntry, request: &Range<u64>) -> bool {
        self.checksums.are_on() && {
            let part = ChunkPart::of(request, index, self.pool.geometry.chunk_bytes);
            let blocks = Blocks::touching(&part.within);
            state.partials.holds_any(entry.chunk(), blocks)
        }
    }

    /// Adds the part of a request that lies in one chunk. A write that would add blocks to a second partial chunk, or
    /// beside mapping others, needs the slow path.
    fn plan_chunk(
        &self,
        plan: &mut Plan,
        state: &State,
        index: u64,
        entry: LeafEntry,
        request: &Range<u64>,
        access: Access,
    ) -> Result<(), Unplanned> {
        let part = ChunkPart::of(request, index, self.pool.geometry.chunk_bytes);
        let in_buffer = |range: Range<u64>| part.in_buffer(range);
        let within = part.within.clone();
        let verifies = self.checksums.are_on() && access == Access::Read;
        if !entry.is_mapped() {
            plan.add(in_buffer(within), Place::Zeros);
            return Ok(());
        }
        let stripe = LatchTable::stripe(self.node, index);
        if !self.pool.latches.try_shared(stripe) {
            return Err(Unplanned::Contended);
        }
        plan.guard.stripes.push(stripe);
        let place_in = |chunk: u64, at: u64| Place::Device(self.pool.chunk_offset(chunk) + at);
        let blocks = Blocks::touching(&within);
        if access != Access::Read && !state.log.unsettled.may_overwrite(entry.chunk(), blocks) {
            return Err(Unplanned::NeedsSlowPath);
        }
        let Some(view) = state.partials.view(entry.chunk()) else {
            if verifies && !plan.expect_sums(state, request.start, entry.chunk(), &within, &part) {
                return Err(Unplanned::NeedsSlowPath);
            }
            plan.add(in_buffer(within.clone()), place_in(entry.chunk(), within.start));
            return Ok(());
        };
        if access != Access::Read && !view.mask.covers(blocks) {
            let fill = PlannedFill {
                chunk: entry.chunk(),
                blocks,
                buffer: in_buffer(within.clone()),
                checksums: self.checksums,
            };
            // What is in the mask may be being overwritten, and then no claim is true of it (U1).
            if access == Access::Map || view.mask.touches(blocks) {
                return Err(Unplanned::NeedsSlowPath);
            }
            self.plan_fill(plan, state, fill)?;
            plan.add(in_buffer(within.clone()), place_in(entry.chunk(), within.start));
            plan.guard.partials.get_or_insert_default().views.push(view);
            return Ok(());
        }
        for (piece, home) in view.pieces(within) {
            let chunk = match home {
                Home::Own => Some(entry.chunk()),
                Home::Lender(lender) => Some(lender),
                Home::Nowhere => None,
            };
            let place = chunk.map_or(Place::Zeros, |chunk| place_in(chunk, piece.start));
            if let Some(chunk) = chunk
                && verifies
                && !plan.expect_sums(state, request.start, chunk, &piece, &part)
            {
                return Err(Unplanned::NeedsSlowPath);
            }
            plan.add(in_buffer(piece), place);
        }
        plan.guard.partials.get_or_insert_default().views.push(view);
        Ok(())
    }

    /// Gets what adding blocks to a partial chunk takes.
    fn plan_fill(&self, plan: &mut Plan, state: &State, fill: PlannedFill) -> Result<(), Unplanned> {
        let partials = plan.guard.partials.get_or_insert_default();
        let too_long = fill.checksums.are_on() && usize::from(fill.blocks.count) > FewSums::MOST;
        if too_long || partials.fill.is_some() {
            return Err(Unplanned::NeedsSlowPath);
        }
        if !self.pool.fill_latches.try_blocks(fill.chunk, fill.blocks) {
            return Err(Unplanned::Contended);
        }
        if !state.log.try_reserve() {
            self.pool.fill_latches.release(fill.chunk, fill.blocks);
            return Err(Unplanned::NeedsSlowPath);
        }
        partials.fill = Some(fill);
        Ok(())
    }
}

impl Plan {
    fn new(pool: &Arc<Pool>) -> Self {
        Self {
            segments: SmallVec::new(),
            guard: PlanGuard {
                pool: Arc::clone(pool),
                stripes: SmallVec::new(),
                partials: None,
                maps: None,
                epoch: None,
            },
        }
    }

    /// Notes the sums of what is read from a piece of a chunk; false when they are not in memory. `offset` is where the request
    /// begins in its version.
    fn expect_sums(
        &mut self,
        state: &State,
        offset: u64,
        chunk: u64,
        piece: &Range<u64>,
        part: &ChunkPart,
    ) -> bool {
        let blocks = Blocks::touching(piece);
        let Ok(sums) = state.sums_of(chunk, blocks) else {
            return false;
        };
        let expected = &mut self.guard.partials.get_or_insert_default().expected;
        let expected = expected.get_or_insert_with(|| ExpectedSums::of_request(offset));
        expected.add(part.in_buffer(piece.clone()).start, chunk, blocks, sums);
        true
    }

    /// Adds a segment, joined with the one before where it continues it.
    pub(crate) fn add(&mut self, buffer: Range<usize>, place: Place) {
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

/// The part of a request that lies in one chunk.
pub(crate) struct ChunkPart {
    /// Where in the chunk, in bytes.
    pub within: Range<u64>,
    /// What is to be added to a place in the chunk to get the place in the request.
    shift: i128,
}

impl ChunkPart {
    pub fn of(request: &Range<u64>, index: u64, chunk_bytes: u64) -> Self {
        let base = index * chunk_bytes;
        let from = request.start.max(base);
        let upto = request.end.min(base + chunk_bytes);
        Self {
            within: from - base..upto - base,
            shift: i128::from(base) - i128::from(request.start),
        }
    }

    /// Returns where in the request a range of the chunk is.
    pub fn in_buffer(&self, range: Range<u64>) -> Range<usize> {
        let place = |at: u64| (i128::from(at) + self.shift) as usize;
        place(range.start)..place(range.end)
    }
}

impl PlanGuard {
    /// Ends a plan whose I/O has succeeded, before that is told to anyone: what it wrote to a new or to a partial chunk
    /// becomes part of the volume; what it read is verified. `request` is what was written or read, all of it, as it is on the
    /// medium. Does not block. Of a plan whose I/O failed the guard is dropped, and nothing has changed.
    ///
    /// Ends with `Stopped` when the pool has stopped since the plan was made, and with `Corrupt` when what was read is not what
    /// was written.
    pub fn finish(mut self, request: &[u8]) -> Finished {
        if let Some(fill) = self.partials.as_ref().and_then(|partials| partials.fill.as_ref()) {
            let records = fill.records(&self.pool, request);
            return match self.pool.try_record_filled(fill.chunk, &records, fill.checksums) {
                Some(recorded) => Finished::Ended(recorded.map_err(PoolError::into_io_error)),
                None => Finished::NeedsSlowPath(self),
            };
        }
        match &mut self.maps {
            None => Finished::Ended(self.verify(request)),
            Some(maps) => match maps.try_apply(&self.pool, request) {
                Some(applied) => Finished::Ended(applied.map_err(PoolError::into_io_error)),
                None => Finished::NeedsSlowPath(self),
            },
        }
    }

    /// As [`finish`](Self::finish), blocking where that is needed.
    ///
    /// # Errors
    /// `NoSpace`, `Stopped`, `Medium`; then nothing has been mapped.
    pub fn finish_blocking(self, request: &[u8]) -> Result<(), IoError> {
        match self.finish(request) {
            Finished::Ended(result) => result,
            Finished::NeedsSlowPath(guard) => guard.apply(request).map_err(PoolError::into_io_error),
        }
    }

    fn apply(mut self, request: &[u8]) -> Result<(), PoolError> {
        if let Some(maps) = &mut self.maps {
            return maps.apply(&self.pool, request);
        }
        match self.partials.as_ref().and_then(|partials| partials.fill.as_ref()) {
            Some(fill) => {
                let records = fill.records(&self.pool, request);
                self.pool.record_filled(fill.chunk, &records)
            }
            None => Ok(()),
        }
    }

    /// Verifies what was read as planned (D3).
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn verify(&self, request: &[u8]) -> Result<(), IoError> {
        let expected = self
            .partials
            .as_ref()
            .and_then(|partials| partials.expected.as_ref());
        expected.map_or(Ok(()), |expected| expected.verify(&self.pool, request))
    }
}

impl PlannedFill {
    fn records(&self, pool: &Pool, request: &[u8]) -> SmallVec<[Record; 4]> {
        let bytes = &request[self.buffer.clone()];
        let claim = pool.claim(self.chunk, self.blocks, bytes);
        fill_records(self.chunk, self.blocks, claim, self.checksums.of(bytes).as_ref())
    }
}

impl Drop for PlanGuard {
    fn drop(&mut self) {
        if let Some(fill) = self.partials.as_ref().and_then(|partials| partials.fill.as_ref()) {
            read(&self.pool.state).log.end_reservation();
            self.pool.fill_latches.release(fill.chunk, fill.blocks);
        }
        for stripe in &self.stripes {
            self.pool.latches.release_shared(*stripe);
        }
        if let Some(maps) = &mut self.maps {
            maps.release(&self.pool);
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
