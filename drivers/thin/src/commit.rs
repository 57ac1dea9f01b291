//! The commit protocol: what makes applied records, and the data they name, survive a power cut.
//!
//! Many callers share one round. A round: write the open batch to the log · flush. The flush makes the batch durable
//! and all data written before. Where recovery could not tell whether the data came along
//! ([`unsettled`](crate::unsettled), U1), a flush precedes the batch. Without records it is the flush alone, and the mark
//! that settles the last batch (U2) if that is still to be made.
//!
//! Invariants
//! - C1: a mapping that survives leads to its data: a batch is written after the data that its records map has been
//!   flushed, or recovery verifies that data before it accepts the batch.
//! - C2: rounds run one after the other, so at most the last batch of the log can be torn.
//! - C3: a caller returns `Ok` only after a round that began after its call.
//! - C4: after a failed flush or log write nothing is retried: the pool stops.

use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use crate::format::{BLOCK, BLOCK_BYTES, Geometry};
use crate::locks::{lock, read, write};
use crate::log::SealedBatch;
use crate::partial::Blocks;
use crate::pool::Pool;
use crate::{PoolDevice, PoolError};

/// Numbers the rounds.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    started: u64,
    completed: u64,
}

/// The right to run rounds.
pub(crate) struct CommitTurn<'a>(#[expect(dead_code, reason = "held, not read")] MutexGuard<'a, ()>);

impl Pool {
    /// Makes everything durable that was written and applied before the call (C3).
    pub(crate) fn commit(&self) -> Result<(), PoolError> {
        self.check_running()?;
        let wanted = lock(&self.rounds).started + 1;
        let turn = self.commit_turn();
        if lock(&self.rounds).completed >= wanted {
            return Ok(());
        }
        self.commit_round(&turn, || write(&self.state).log.seal())
    }

    /// Waits for the right to run rounds (C2).
    pub(crate) fn commit_turn(&self) -> CommitTurn<'_> {
        CommitTurn(lock(&self.committing))
    }

    /// Runs one round; `seal` closes the open batch once the round has begun.
    pub(crate) fn commit_round(
        &self,
        turn: &CommitTurn<'_>,
        seal: impl FnOnce() -> Option<SealedBatch>,
    ) -> Result<(), PoolError> {
        self.check_running()?;
        let round = {
            let mut rounds = lock(&self.rounds);
            rounds.started += 1;
            rounds.started
        };
        match seal() {
            None => self.settle(turn)?,
            Some(sealed) => {
                self.write_batch(&sealed)
                    .map_err(|error| self.stop("a commit failed", error))?;
                let mut state = write(&self.state);
                state.space.release(sealed.batch, self.options.discard_freed);
                state.log.set_durable(sealed);
                drop(state);
                self.space_came();
            }
        }
        lock(&self.rounds).completed = round;
        Ok(())
    }

    fn write_batch(&self, sealed: &SealedBatch) -> Result<(), PoolError> {
        if sealed.flush_first {
            self.device
                .flush()
                .map_err(PoolError::device("flushing data before a commit"))?;
        }
        let frame = sealed.frame(self.uuid);
        write_log(&*self.device, &self.geometry, sealed.block, &frame)?;
        self.device.flush().map_err(PoolError::device("flushing the log"))
    }

    /// Flushes; with it the last batch is settled, if it is not: its data has become durable when it did, and now its
    /// header says so (U2).
    fn settle(&self, _turn: &CommitTurn<'_>) -> Result<(), PoolError> {
        let last = write(&self.state).log.take_unsettled();
        let marked = last.as_ref().map_or(Ok(()), |last| {
            let block = last.settled_block(self.uuid);
            write_log(&*self.device, &self.geometry, last.block, &block)
        });
        marked
            .and_then(|()| self.device.flush().map_err(PoolError::device("flushing data")))
            .map_err(|error| self.stop("a flush failed", error))?;
        if let Some(last) = last {
            write(&self.state).log.unsettled.settle_upto(last.batch);
        }
        Ok(())
    }

    /// Waits until blocks of a chunk may be overwritten in place, and makes it so (U2). The caller holds the latch of the
    /// chunk's index.
    pub(crate) fn make_overwritable(&self, chunk: u64, blocks: Blocks) -> Result<(), PoolError> {
        while !read(&self.state).log.unsettled.may_overwrite(chunk, blocks) {
            let turn = self.commit_turn();
            self.check_running()?;
            // Whoever had the turn before may have settled it.
            if read(&self.state).log.unsettled_batch().is_some() {
                self.settle(&turn)?;
            }
        }
        Ok(())
    }

    /// Settles the last batch when nothing has been logged since the call before: whoever overwrites its blocks next
    /// need not wait for it, and a block that the medium loses from then on is no batch lost (U2).
    pub(crate) fn settle_if_idle(&self) -> Result<bool, PoolError> {
        let last = read(&self.state).log.unsettled_batch();
        let before = self.idle_batch.swap(last.unwrap_or(0), Ordering::Relaxed);
        if last != Some(before) {
            return Ok(false);
        }
        let turn = self.commit_turn();
        self.check_running()?;
        if read(&self.state).log.unsettled_batch() != last {
            return Ok(false);
        }
        self.settle(&turn)?;
        Ok(true)
    }
}

/// Writes blocks into the ring, in two parts where they wrap.
pub(crate) fn write_log(
    device: &dyn PoolDevice,
    geometry: &Geometry,
    block: u64,
    frame: &[u8],
) -> Result<(), PoolError> {
    let to_end = (geometry.log_blocks - block % geometry.log_blocks) as usize * BLOCK_BYTES;
    let (head, tail) = frame.split_at(to_end.min(frame.len()));
    for (part, block) in [(head, block), (tail, block + (head.len() as u64 / BLOCK))] {
        if !part.is_empty() {
            let offset = geometry.log_offset(block);
            device
                .write_at(offset, &quarry_contract::IoBuffer::from_slice(part))
                .map_err(PoolError::device(format!("writing the log at byte {offset}")))?;
        }
    }
    Ok(())
}
