//! Background work, in bounded steps: discards of freed chunks, checkpoints, filling of partial chunks, reclaim of
//! deleted versions, eviction of map pages, settling of the log. Correctness needs none of it; space and memory do.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use crate::format::BLOCK;
use crate::locks::{lock, read, write};
use crate::map::{Child, MAX_LEAVES, Node};
use crate::pool::{Decision, Pool, Priority};
use crate::record::Record;
use crate::state::State;
use crate::version::NodeId;
use crate::{PoolDevice, PoolError};

/// Differing leaves that a reclaim step goes past.
const REAP_LEAVES: usize = 64;
/// Freed chunks that wait for a commit until one is made for them.
const QUARANTINED_CHUNKS: u64 = 4096;
/// Reclaim goes as fast as it can when less than this part of the pool is left to data.
const SHORT_OF_SPACE: u64 = 16;
/// Entries of the chunk table, of 32 bytes each, that wait in memory for a checkpoint until one is made for them.
const NEW_ENTRIES: usize = 1 << 19;
/// Freed chunks that a step discards on the medium.
const DISCARD_CHUNKS: usize = 256;

/// What a maintenance step did, and what it left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Maintenance {
    /// Another step would find work now.
    pub more: bool,
    /// Leaves of deleted versions' maps that this one has gone through, or of all maps to fill the chunk table.
    pub reclaimed_leaves: u64,
    /// Partial chunks that this one has gone to fill.
    pub filled_chunks: u64,
    /// Chunks that a scrub has read in this one.
    pub scrubbed_chunks: u64,
}

/// Whether a step may do some kind of work that is paced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Now,
    Later,
}

/// Which of the kinds of work that are paced a step may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turns {
    pub reclaim: Turn,
    pub fill: Turn,
    pub scrub: Turn,
}

impl State {
    /// Tells whether chunks are becoming few.
    pub(crate) fn is_short_of_space(&self) -> bool {
        let spare = self.geometry.chunk_count / SHORT_OF_SPACE;
        self.free_chunks() + self.space.as_good_as_free() < self.reserve_chunks() + spare
    }
}

impl Pool {
    /// Does one bounded step of background work, as fast as it can.
    ///
    /// # Errors
    /// What a commit, checkpoint or page load hit.
    pub fn maintain(&self) -> Result<Maintenance, PoolError> {
        self.maintain_and(Turns {
            reclaim: Turn::Now,
            fill: Turn::Now,
            scrub: Turn::Now,
        })
    }

    /// As [`maintain`](Self::maintain), with what is paced only where it is its turn.
    pub(crate) fn maintain_and(&self, turns: Turns) -> Result<Maintenance, PoolError> {
        self.check_running()?;
        self.evict_if_over_budget();
        self.take_lacking_space();
        self.note_level();
        let (mut reclaimed_leaves, mut filled_chunks, mut scrubbed_chunks) = (0, 0, 0);
        let found = self.discard_freed()?
            || self.checkpoint_if_due()?
            || self.commit_if_much_is_quarantined()?
            || self.reap_and_fill(turns, &mut reclaimed_leaves, &mut filled_chunks)?
            || self.trim_sums()?
            || turns.reclaim == Turn::Now && self.walk_for_table(&mut reclaimed_leaves)?
            || self.end_quarantine()?
            || self.settle_if_idle()?;
        // Whatever else there is to do.
        let scrubs = turns.scrub == Turn::Now && self.scrub_some(&mut scrubbed_chunks)?;
        Ok(Maintenance {
            more: found || scrubs,
            reclaimed_leaves,
            filled_chunks,
            scrubbed_chunks,
        })
    }

    /// Tells whether the space that reclaim gives back is needed more than the I/O that it takes.
    pub(crate) fn is_short_of_space(&self) -> bool {
        read(&self.state).is_short_of_space()
    }

    /// Tells whether a checkpoint would give back pages of maps of which what they say is gone: the space of a deleted volume is
    /// short of them until then.
    pub(crate) fn has_pages_to_give_back(&self) -> bool {
        read(&self.state).garbage.has_removed()
    }

    /// Returns where the log ends: the number of the batch that is still open.
    pub(crate) fn end_of_log(&self) -> u64 {
        read(&self.state).log.next_batch
    }

    /// Tells whether the log has batches, which a checkpoint would take in, and none is open.
    pub(crate) fn has_batches(&self) -> bool {
        let state = read(&self.state);
        state.log.head_batch != state.log.next_batch && !state.log.has_open_records()
    }

    /// Tells whether so many chunks are partial that soon no other could begin to be.
    pub(crate) fn has_many_partial_chunks(&self) -> bool {
        read(&self.state).partials.len() > self.options.max_partial_chunks / 2
    }

    /// Discards some freed chunks on the medium and only then frees them (A2).
    fn discard_freed(&self) -> Result<bool, PoolError> {
        let chunks = write(&self.state).space.take_discards(DISCARD_CHUNKS);
        if chunks.is_empty() {
            return Ok(false);
        }
        for run in self.runs(&chunks) {
            let (offset, length) = (run.start, run.end - run.start);
            if let Err(error) = self.device.discard(offset, length) {
                // A hint that failed costs space on the host, nothing else.
                tracing::warn!(pool = %self.options.name, offset, length, %error, "discard failed");
            }
        }
        let mut state = write(&self.state);
        chunks.into_iter().for_each(|chunk| state.space.give_back(chunk));
        drop(state);
        self.space_came();
        Ok(true)
    }

    /// Returns where chunks are, neighbours joined.
    fn runs(&self, chunks: &[u64]) -> Vec<Range<u64>> {
        let places = chunks.iter().map(|chunk| self.chunk_offset(*chunk));
        runs(places, self.geometry.chunk_bytes)
    }

    fn checkpoint_if_due(&self) -> Result<bool, PoolError> {
        let due = {
            let state = read(&self.state);
            let dirty = state.gauge.dirty() + state.table.changed_pages();
            state.log.is_half_full()
                || dirty >= self.options.checkpoint_dirty_pages
                || state.table.new_entries().len() >= NEW_ENTRIES
        };
        match due.then(|| self.checkpoint()) {
            None => Ok(false),
            // What gives space back goes on without.
            Some(Err(error)) if error.is_full() => Ok(false),
            Some(done) => done.map(|()| true),
        }
    }

    /// Keeps a long reclaim from piling up what it frees, in memory and in the log.
    fn commit_if_much_is_quarantined(&self) -> Result<bool, PoolError> {
        let due = {
            let state = read(&self.state);
            state.space.awaits_commit() && state.space.quarantined() >= QUARANTINED_CHUNKS
        };
        if due {
            self.commit()?;
        }
        Ok(due)
    }

    /// Does a step of both, so that neither keeps the other from getting on.
    fn reap_and_fill(&self, turns: Turns, leaves: &mut u64, chunks: &mut u64) -> Result<bool, PoolError> {
        let reaped = turns.reclaim == Turn::Now && self.reap_step(leaves)?;
        let filled = turns.fill == Turn::Now && self.fill_some(chunks)?;
        Ok(reaped || filled)
    }

    /// Reclaims a part of one deleted version; says how many leaves it went through. A lost page that it comes to is made again from the
    /// chunk table; where that cannot be, the version is left, and keeps nothing else from getting on.
    fn reap_step(&self, leaves: &mut u64) -> Result<bool, PoolError> {
        let mut found = None;
        let step = self.change(Priority::Reclaim, |state| {
            found = state.versions.reapable(&lock(&self.held_up));
            let Some(node) = found else {
                return Ok::<_, PoolError>(Decision::Apply(SmallVec::new()));
            };
            Ok(match self.next_reap(state, node, leaves) {
                Ok(upto_leaf) => Decision::Apply(smallvec![Record::Reap { node, upto_leaf }]),
                Err(wanted) => Decision::Load(wanted),
            })
        });
        match (step, found) {
            (Err(error @ PoolError::Damaged { .. }), Some(node)) => {
                // Nobody else goes on with it meanwhile.
                lock(&self.held_up).insert(node);
                match self.rebuild_dead(node)? {
                    true => drop(lock(&self.held_up).remove(&node)),
                    false => tracing::error!(
                        pool = %self.options.name, node = node.0, %error,
                        "the space of a deleted version does not come back, its map is lost"
                    ),
                }
                Ok(true)
            }
            (step, found) => step.map(|()| found.is_some()),
        }
    }

    fn next_reap(
        &self,
        state: &crate::state::State,
        node: NodeId,
        leaves: &mut u64,
    ) -> Result<u64, crate::state::Wanted> {
        let Some(scan) = state.scan_reap(node, MAX_LEAVES, REAP_LEAVES) else {
            return Ok(MAX_LEAVES);
        };
        *leaves = scan.leaves as u64;
        let from = state.versions.find(node).map_or(0, |version| version.reap_cursor);
        match scan.blocked {
            Some((side, missing)) if scan.reached == from => Err(state.wanted_by_reap(node, side, missing)),
            _ => Ok(scan.reached),
        }
    }

    /// Commits when that frees chunks and nobody else is going to.
    fn end_quarantine(&self) -> Result<bool, PoolError> {
        let waiting = {
            let mut state = write(&self.state);
            let durable = state.log.durable_batch;
            // What readers kept from being handed out until now.
            state.space.release(durable, self.options.discard_freed);
            state.partials.forget_idle_lenders();
            state.space.awaits_commit()
        };
        if waiting {
            self.commit()?;
        }
        Ok(waiting)
    }

    fn evict_if_over_budget(&self) {
        if self.clean_bytes() > self.options.cache_bytes {
            self.evict(2);
        }
    }

    /// Called after a page was loaded. One pass, which spares what has been used since the one before: what is over
    /// the budget may be pages that a checkpoint keeps in memory, and whoever loads the way to a leaf page by page
    /// would never get there if each page went when the next one came.
    pub(crate) fn evict_if_far_over_budget(&self) {
        if self.clean_bytes() > self.options.cache_bytes + self.options.cache_bytes / 8 + 64 * BLOCK {
            self.evict(1);
        }
    }

    fn clean_bytes(&self) -> u64 {
        let state = read(&self.state);
        state.gauge.resident().saturating_sub(state.gauge.dirty()) * BLOCK
    }

    /// Drops stored map pages from memory until three quarters of the budget are left. A pass drops what has not been
    /// used since the pass before.
    fn evict(&self, passes: u32) {
        let target = self.options.cache_bytes / 4 * 3;
        for _pass in 0..passes {
            let nodes: Vec<NodeId> = {
                let state = read(&self.state);
                let versions = state.versions.iter().map(|version| version.node);
                versions.chain(state.sums.nodes()).collect()
            };
            let mut seen = HashSet::new();
            for node in nodes {
                if self.clean_bytes() <= target {
                    return;
                }
                let root = {
                    let state = read(&self.state);
                    state.root(node).and_then(|root| root.node().cloned())
                };
                let Some(root) = root else { continue };
                evict_below(&root, &mut seen);
                let idle = root.stored().is_some() && !root.take_recently_used();
                drop(root);
                if idle && let Some(slot) = write(&self.state).root_mut(node) {
                    slot.evict();
                }
            }
        }
    }
}

/// Drops what is stored and not recently used below a page.
fn evict_below(node: &Arc<Node>, seen: &mut HashSet<*const Node>) {
    let Child::Inner(slots) = node.child() else { return };
    if !seen.insert(Arc::as_ptr(node)) {
        return;
    }
    let children: Vec<(usize, Arc<Node>)> = read(slots)
        .iter()
        .enumerate()
        .filter_map(|(i, slot)| slot.node().cloned().map(|child| (i, child)))
        .collect();
    for (i, child) in children {
        evict_below(&child, seen);
        if child.stored().is_some() && !child.take_recently_used() {
            write(slots)[i].evict();
        }
    }
}

/// Joins pieces of `length` bytes, at ordered places, that follow each other.
pub(crate) fn runs(places: impl Iterator<Item = u64>, length: u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for place in places {
        match runs.last_mut() {
            Some(run) if run.end == place => run.end += length,
            _ => runs.push(place..place + length),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_chunks_are_one_run() {
        let joined = runs([10, 20, 30, 70, 90, 100].into_iter(), 10);
        assert_eq!(joined, [10..40, 70..80, 90..110]);
        assert!(runs(std::iter::empty(), 10).is_empty());
    }
}
