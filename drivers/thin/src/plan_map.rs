//! Planned writes into space that their volume does not own: unmapped, or shared with a snapshot.
//!
//! The order is that of every write which changes a mapping (W1): take free chunks · write their content · apply and log
//! the mappings. The first step is part of the plan, the second is done by whoever has the plan, the third is the
//! end of its guard. It is the same as the [slow path](crate::data_path) does, without a thread that waits.
//!
//! Invariants
//! - I1: the latch of each chunk index is held exclusively from the plan to the end of its guard. So what was found there,
//!   and what the new chunk borrows from it (F2), is still so when it is mapped (L1).
//! - I2: a chunk that was taken is mapped or given back before its guard is gone.

use std::ops::Range;

use smallvec::SmallVec;

use crate::PoolError;
use crate::format::LeafEntry;
use crate::given::{Replaced, Rest, records_of_part};
use crate::handle::VersionHandle;
use crate::latch::{LatchTable, StripeIndex};
use crate::locks::write;
use crate::partial::Blocks;
use crate::plan::{ChunkPart, Place, Plan, Unplanned};
use crate::pool::{Decision, Pool, Priority};
use crate::record::Record;
use crate::state::State;
use crate::sums::Checksums;
use crate::version::NodeId;

/// The most that a plan maps, in bytes: what an initiator sends in one request.
const MAP_BYTES: u64 = 1 << 20;

/// What a plan is to map, and what it holds for that.
pub(crate) struct PlannedMaps {
    node: NodeId,
    checksums: Checksums,
    /// Held exclusively (I1).
    stripes: SmallVec<[StripeIndex; 4]>,
    /// Chunks taken, and not yet assigned or given back (I2).
    unused: Vec<u64>,
    maps: SmallVec<[PlannedMap; 2]>,
}

/// A chunk index that gets a new chunk.
struct PlannedMap {
    index: u64,
    chunk: u64,
    blocks: Blocks,
    rest: Rest,
    /// Its bytes in the request.
    buffer: Range<usize>,
}

impl PlannedMaps {
    /// Takes a chunk for each chunk index of a request; `None` when that is not to be had without waiting, or when the
    /// request is too long.
    pub fn take(taker: &VersionHandle, state: &mut State, request: &Range<u64>) -> Option<Box<Self>> {
        let pool = &taker.pool;
        let chunk_bytes = pool.geometry.chunk_bytes;
        if request.end - request.start > MAP_BYTES.max(chunk_bytes) {
            return None;
        }
        let count = (request.end - 1) / chunk_bytes - request.start / chunk_bytes + 1;
        let mut unused = pool.try_take_chunks(state, taker, count)?;
        // They are handed out from the end.
        unused.reverse();
        Some(Box::new(Self {
            node: taker.node,
            checksums: taker.checksums,
            stripes: SmallVec::new(),
            unused,
            maps: SmallVec::new(),
        }))
    }

    /// Maps what was written if nothing stands in the way; `None` if something does.
    pub fn try_apply(&mut self, pool: &Pool, request: &[u8]) -> Option<Result<(), PoolError>> {
        if let Err(stopped) = pool.check_running() {
            return Some(Err(stopped));
        }
        let records = self.records(pool, request);
        let mut state = write(&pool.state);
        if state.obstacle(&records, Priority::Normal).is_some() {
            return None;
        }
        let applied = state.apply_and_log(&records);
        drop(state);
        self.maps.clear();
        Some(applied.map_err(|bug| pool.stop_for_bug(bug)))
    }

    /// Maps what was written, and waits for what that takes.
    pub fn apply(&mut self, pool: &Pool, request: &[u8]) -> Result<(), PoolError> {
        let records = self.records(pool, request);
        pool.change(Priority::Normal, |_| {
            Ok::<_, PoolError>(Decision::Apply(records.clone()))
        })?;
        self.maps.clear();
        Ok(())
    }

    fn records(&self, pool: &Pool, request: &[u8]) -> SmallVec<[Record; 2]> {
        let whole = Blocks::all(pool.geometry.chunk_bytes);
        let node = self.node;
        let mut records: SmallVec<[Record; 2]> = SmallVec::new();
        for &PlannedMap {
            index,
            chunk,
            blocks,
            rest,
            ..
        } in &self.maps
        {
            match blocks == whole {
                true => records.push(Record::Map { node, index, chunk }),
                false => records.extend(records_of_part(node, index, chunk, blocks, rest)),
            }
        }
        for map in &self.maps {
            let bytes = &request[map.buffer.clone()];
            records.extend(pool.vouch(map.chunk, map.blocks, bytes, self.checksums.of(bytes).as_ref()));
        }
        records
    }

    /// Gives back everything that is held (I1, I2).
    pub fn release(&mut self, pool: &Pool) {
        self.unused.extend(self.maps.iter().map(|map| map.chunk));
        if !self.unused.is_empty() {
            pool.give_back_chunks(&self.unused);
        }
        for stripe in &self.stripes {
            pool.latches.release_exclusive(*stripe);
        }
    }
}

impl VersionHandle {
    /// Adds the part of a write that lies in a chunk index where the version owns no chunk, or one that keeps what it has.
    pub(crate) fn plan_map(
        &self,
        plan: &mut Plan,
        state: &State,
        index: u64,
        (entry, whose): (LeafEntry, Replaced),
        request: &Range<u64>,
    ) -> Result<(), Unplanned> {
        let chunk_bytes = self.pool.geometry.chunk_bytes;
        let part = ChunkPart::of(request, index, chunk_bytes);
        let blocks = Blocks::touching(&part.within);
        let Some(maps) = &mut plan.guard.maps else {
            return Err(Unplanned::NeedsSlowPath);
        };
        let mut rest = Rest::Lent;
        if blocks != Blocks::all(chunk_bytes) {
            let partial = match entry.is_mapped() {
                true => state.partials.view(entry.chunk()),
                false => None,
            };
            if let Some(view) = partial {
                let replaced = (entry.chunk(), whose, &view);
                let without_copying = self.rest_over_partial(state, replaced, blocks);
                rest = without_copying.ok_or(Unplanned::NeedsSlowPath)?;
            }
            if !self.pool.may_begin_partial(state) {
                return Err(Unplanned::NeedsSlowPath);
            }
        }
        let stripe = LatchTable::stripe(self.node, index);
        if !self.pool.latches.try_exclusive(stripe) {
            return Err(Unplanned::Contended);
        }
        maps.stripes.push(stripe);
        let Some(chunk) = maps.unused.pop() else {
            return Err(Unplanned::NeedsSlowPath);
        };
        let buffer = part.in_buffer(part.within.clone());
        maps.maps.push(PlannedMap {
            index,
            chunk,
            blocks,
            rest,
            buffer: buffer.clone(),
        });
        let at = self.pool.chunk_offset(chunk) + part.within.start;
        plan.add(buffer, Place::Device(at));
        Ok(())
    }
}
