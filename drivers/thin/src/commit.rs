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
//! - C2: rounds run one after the other (T1), so at most the last batch of the log can be torn.
//! - C3: a caller returns `Ok` only after a round that began after its call.
//! - C4: after a failed flush or log write nothing is retried: the pool stops.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use quarry_contract::{IoBuffer, IoError};

use crate::handle::VersionHandle;
use crate::locks::{lock, read, write};
use crate::log::SealedBatch;
use crate::partial::Blocks;
use crate::pool::Pool;
use crate::round::{Round, Step, Steps};
use crate::turns::Turn;
use crate::{PoolDevice, PoolError};

/// Numbers the rounds.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    pub(crate) started: u64,
    pub(crate) completed: u64,
}

/// A flush for whoever does I/O without blocking: a round that has begun. Its steps have to be done one after the other, each
/// when the one before has ended; then it is [ended](Self::end). One that is dropped instead stops the pool: nobody
/// knows what has become of it.
///
/// Nobody else flushes the pool meanwhile (C2), so a thread that has one waits for nothing but its steps.
#[must_use = "who drops it stops the pool"]
pub struct PlannedFlush {
    pool: Arc<Pool>,
    /// `None` when it has ended.
    round: Option<Round>,
    /// Backwards.
    steps: Steps,
    /// What the last step that was handed out does, in words.
    doing: String,
}

/// A step of a [`PlannedFlush`].
#[derive(Debug)]
pub enum FlushStep {
    /// To write this.
    Write {
        /// Where: an address on the pool's devices, a multiple of 4096.
        address: u64,
        /// What: a multiple of 4096 bytes.
        bytes: IoBuffer,
    },
    /// To flush all devices of the pool.
    Flush,
}

impl Pool {
    /// Makes everything durable that was written and applied before the call (C3).
    pub(crate) fn commit(&self) -> Result<(), PoolError> {
        self.check_running()?;
        let wanted = lock(&self.rounds).started + 1;
        let turn = self.turns.wait();
        if lock(&self.rounds).completed >= wanted {
            return Ok(());
        }
        self.commit_round(&turn, || write(&self.state).log.seal())
    }

    /// Runs one round; `seal` closes the open batch once the round has begun.
    pub(crate) fn commit_round(
        &self,
        _turn: &Turn<'_>,
        seal: impl FnOnce() -> Option<SealedBatch>,
    ) -> Result<(), PoolError> {
        self.check_running()?;
        let (round, steps) = self.begin_round(seal);
        self.carry_out(round, &steps)
    }

    /// Flushes, and settles the last batch with it.
    fn settle(&self, _turn: &Turn<'_>) -> Result<(), PoolError> {
        let (round, steps) = self.begin_settling();
        self.carry_out(round, &steps)
    }

    fn carry_out(&self, round: Round, steps: &Steps) -> Result<(), PoolError> {
        let done = self
            .check_end()
            .map_err(PoolError::device("looking at the end of the device"))
            .and_then(|()| steps.iter().try_for_each(|step| step.carry_out(&*self.device)));
        self.end_round(round, done)
    }

    /// Waits until blocks of a chunk may be overwritten in place, and makes it so (U2). The caller holds the latch of the
    /// chunk's index.
    pub(crate) fn make_overwritable(&self, chunk: u64, blocks: Blocks) -> Result<(), PoolError> {
        while !read(&self.state).log.unsettled.may_overwrite(chunk, blocks) {
            let turn = self.turns.wait();
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
        let turn = self.turns.wait();
        self.check_running()?;
        if read(&self.state).log.unsettled_batch() != last {
            return Ok(false);
        }
        self.settle(&turn)?;
        Ok(true)
    }
}

impl VersionHandle {
    /// Begins a flush without blocking. `None` when that needs waiting, or has to be refused: use
    /// [`flush`](Self::flush) on a thread that may block.
    pub fn plan_flush(&self) -> Option<PlannedFlush> {
        let pool = &self.pool;
        if pool.is_closed() || !pool.turns.try_take() {
            return None;
        }
        // Whoever stops the pool has the turn, or does not flush.
        if pool.stopped().is_some() || pool.device.check_before_flush().is_err() || pool.check_end().is_err()
        {
            pool.turns.end();
            return None;
        }
        let (round, mut steps) = pool.begin_round(|| write(&pool.state).log.seal());
        steps.reverse();
        Some(PlannedFlush {
            pool: Arc::clone(pool),
            round: Some(round),
            steps,
            doing: String::new(),
        })
    }
}

impl PlannedFlush {
    /// Hands out the next step; `None` after the last.
    pub fn next_step(&mut self) -> Option<FlushStep> {
        let step = self.steps.pop()?;
        self.doing = step.doing();
        Some(match step {
            Step::Write { address, bytes } => FlushStep::Write { address, bytes },
            Step::Flush { .. } => FlushStep::Flush,
        })
    }

    /// Ends it when all steps are done, or when the last one that was handed out has failed.
    ///
    /// # Errors
    /// `Stopped` when a step failed: the pool has stopped (C4).
    pub fn end(mut self, done: std::io::Result<()>) -> Result<(), IoError> {
        debug_assert!(done.is_err() || self.steps.is_empty(), "all steps have been done");
        let done = done.map_err(PoolError::device(std::mem::take(&mut self.doing)));
        match self.round.take() {
            Some(round) => self.pool.end_round(round, done).map_err(stopped_by),
            None => Ok(()),
        }
    }
}

impl Drop for PlannedFlush {
    fn drop(&mut self) {
        if self.round.is_some() {
            self.pool
                .stop_because("a flush was given up; reopen the pool".to_owned());
        }
        self.pool.turns.end();
    }
}

/// Says that a flush has stopped the pool, or that it had stopped.
pub(crate) fn stopped_by(error: PoolError) -> IoError {
    let reason = match error {
        PoolError::Stopped { reason } => reason,
        PoolError::Device { action, source } => format!("{action}: {source}"),
        other => other.to_string(),
    };
    IoError::Stopped { reason }
}
