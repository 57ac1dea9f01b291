//! Taking free chunks for data, and giving them back.
//!
//! Invariant A3: data never takes from the reserve, so a full pool can still checkpoint, discard and delete. What ordinary
//! volumes leave to reserved ones beyond that: A4 in [`levels`](crate::levels).

use crate::PoolError;
use crate::handle::VersionHandle;
use crate::levels::SpaceClass;
use crate::locks::{read, write};
use crate::pool::Pool;
use crate::space::SearchFrom;
use crate::state::State;

impl VersionHandle {
    /// Returns whose space it takes.
    pub(crate) fn space_class(&self) -> SpaceClass {
        read(&self.pool.state).space_class(Some(self))
    }

    /// Takes free chunks for data, all or none, in sequence where the space allows; may commit and checkpoint to end
    /// quarantines first.
    ///
    /// # Errors
    /// `Full`; what a checkpoint hit.
    pub(crate) fn take_chunks(&self, count: u64) -> Result<Vec<u64>, PoolError> {
        self.pool.take_chunks_for(Some(self), count)
    }
}

impl Pool {
    /// As [`take_chunks`](VersionHandle::take_chunks), for what the pool itself keeps like data.
    pub(crate) fn take_own_chunks(&self, count: u64) -> Result<Vec<u64>, PoolError> {
        self.take_chunks_for(None, count)
    }

    fn take_chunks_for(&self, taker: Option<&VersionHandle>, count: u64) -> Result<Vec<u64>, PoolError> {
        let taken = self.take_chunks(taker, count);
        self.note_level();
        taken
    }

    fn take_chunks(&self, taker: Option<&VersionHandle>, count: u64) -> Result<Vec<u64>, PoolError> {
        for attempt in 0..2 {
            {
                let mut state = write(&self.state);
                let class = state.space_class(taker);
                if !self.waiters.may_take(class) {
                    break;
                }
                let left = state.left_to_others(class, &self.options.levels);
                if let Some(chunks) = state.take_data_chunks(count, left) {
                    return Ok(chunks);
                }
                if attempt > 0 || !state.has_space_to_recover() {
                    break;
                }
                // What readers kept from being handed out until now.
                let durable = state.log.durable_batch;
                state.space.release(durable, false);
            }
            match self.checkpoint() {
                Ok(()) => {}
                Err(error) if error.is_full() => {}
                Err(error) => return Err(error),
            }
        }
        Err(self.full(count))
    }

    /// As [`take_chunks`](VersionHandle::take_chunks), without waiting for anything: `None` when that does not give them.
    pub(crate) fn try_take_chunks(
        &self,
        state: &mut State,
        taker: &VersionHandle,
        count: u64,
    ) -> Option<Vec<u64>> {
        let class = state.space_class(Some(taker));
        if self.stopped().is_some() || !self.waiters.may_take(class) {
            return None;
        }
        let left = state.left_to_others(class, &self.options.levels);
        state.take_data_chunks(count, left)
    }

    /// Takes back chunks that nothing was written to, or whose mapping failed.
    pub(crate) fn give_back_chunks(&self, chunks: &[u64]) {
        self.take_back(chunks, Discard::No);
    }

    /// Takes back chunks that were, or may have been, written to in vain. What that has taken of the space that the medium is on goes
    /// back too, where that may run out.
    pub(crate) fn give_back_written(&self, chunks: &[u64]) {
        self.take_back(chunks, Discard::IfScarce);
    }

    fn take_back(&self, chunks: &[u64], discard: Discard) {
        let mut state = write(&self.state);
        let is_scarce = self.options.discard_freed && state.pages.stock().is_some();
        for chunk in chunks {
            // A failed change may have been applied by a pool that then stopped; then the chunk is not ours.
            if !state.space.is_data(*chunk) {
                let discards = is_scarce && discard == Discard::IfScarce;
                state.space.free_now(*chunk, discards);
            }
        }
    }
}

/// Whether chunks are discarded on the medium before they are free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Discard {
    No,
    IfScarce,
}

impl State {
    fn space_class(&self, taker: Option<&VersionHandle>) -> SpaceClass {
        let version = taker.and_then(|taker| self.versions.at_row(taker.row, taker.node));
        match version.is_some_and(|version| version.reserved) {
            true => SpaceClass::Reserved,
            false => SpaceClass::BestEffort,
        }
    }

    /// Hands out chunks for data unless that would take from the reserve (A3) or leave others too little (A4).
    fn take_data_chunks(&mut self, count: u64, left_to_others: u64) -> Option<Vec<u64>> {
        let enough = |state: &Self| {
            state
                .spare_chunks(4)
                .is_some_and(|spare| spare >= state.reserve_chunks() + left_to_others + count)
                // Those of the stock are spare, but not to be had.
                && state.space.free() >= count
        };
        if !enough(self) {
            self.space.abandon_discards();
        }
        if !enough(self) {
            self.check_gives_way();
        }
        if !enough(self) {
            return None;
        }
        let chunks: Vec<u64> = (0..count)
            .map_while(|_| self.space.take(SearchFrom::Cursor))
            .collect();
        debug_assert_eq!(chunks.len() as u64, count, "as many were counted free");
        Some(chunks)
    }

    fn has_space_to_recover(&self) -> bool {
        self.space.quarantined() > 0 || !self.garbage.is_empty() || self.gauge.dirty() > 0
    }
}
