//! A round of the [commit](crate::commit) protocol, step by step: for threads that may block and for queues that may not.

use quarry_contract::IoBuffer;
use smallvec::{SmallVec, smallvec};

use crate::format::{BLOCK, BLOCK_BYTES, Geometry};
use crate::locks::{lock, write};
use crate::log::SealedBatch;
use crate::pool::Pool;
use crate::{PoolDevice, PoolError};

/// A round that has begun. It is ended with [`Pool::end_round`], however its steps went.
#[derive(Debug)]
pub(crate) struct Round {
    /// `None` if it is there only to settle.
    number: Option<u64>,
    outcome: Outcome,
}

/// What is so when its steps are done.
#[derive(Debug)]
enum Outcome {
    /// This batch is durable.
    Durable(SealedBatch),
    /// This batch is settled (U2), if any.
    Settled(Option<SealedBatch>),
}

/// What has to be done on the pool's devices, one after the other.
#[derive(Debug)]
pub(crate) enum Step {
    /// A part of the log.
    Write {
        /// Where.
        address: u64,
        /// What.
        bytes: IoBuffer,
    },
    /// Of all devices.
    Flush {
        /// In words, for an error.
        doing: &'static str,
    },
}

/// The steps of a round.
pub(crate) type Steps = SmallVec<[Step; 4]>;

impl Pool {
    /// Begins a round that makes durable what has been logged; `seal` closes the open batch once the round has begun. The
    /// caller has the turn (C2).
    pub(crate) fn begin_round(&self, seal: impl FnOnce() -> Option<SealedBatch>) -> (Round, Steps) {
        let number = {
            let mut rounds = lock(&self.rounds);
            rounds.started += 1;
            rounds.started
        };
        let Some(sealed) = seal() else {
            let (settling, steps) = self.begin_settling();
            let number = Some(number);
            return (Round { number, ..settling }, steps);
        };
        let mut steps = Steps::new();
        if sealed.flush_first {
            steps.push(Step::Flush {
                doing: "flushing data before a commit",
            });
        }
        steps.extend(log_writes(&self.geometry, sealed.block, &sealed.frame(self.uuid)));
        steps.push(Step::Flush {
            doing: "flushing the log",
        });
        let round = Round {
            number: Some(number),
            outcome: Outcome::Durable(sealed),
        };
        (round, steps)
    }

    /// Begins a round that only flushes; with it the last batch is settled, if it is not: its data has become durable when it
    /// did, and now its header says so (U2). The caller has the turn (C2).
    pub(crate) fn begin_settling(&self) -> (Round, Steps) {
        let last = write(&self.state).log.take_unsettled();
        let mut steps: Steps = smallvec![];
        if let Some(last) = &last {
            steps.extend(log_writes(
                &self.geometry,
                last.block,
                &last.settled_block(self.uuid),
            ));
        }
        steps.push(Step::Flush {
            doing: "flushing data",
        });
        let round = Round {
            number: None,
            outcome: Outcome::Settled(last),
        };
        (round, steps)
    }

    /// Ends a round whose steps have been done, or whose last step has failed: then the pool stops (C4).
    pub(crate) fn end_round(&self, round: Round, done: Result<(), PoolError>) -> Result<(), PoolError> {
        let what = match round.outcome {
            Outcome::Durable(_) => "a commit failed",
            Outcome::Settled(_) => "a flush failed",
        };
        done.map_err(|error| self.stop(what, error))?;
        match round.outcome {
            Outcome::Durable(sealed) => {
                let mut state = write(&self.state);
                state.space.release(sealed.batch, self.options.discard_freed);
                state.log.set_durable(sealed);
                drop(state);
                self.space_came();
            }
            Outcome::Settled(Some(last)) => write(&self.state).log.unsettled.settle_upto(last.batch),
            Outcome::Settled(None) => {}
        }
        if let Some(number) = round.number {
            lock(&self.rounds).completed = number;
        }
        Ok(())
    }
}

impl Step {
    /// Does it. Blocks.
    pub fn carry_out(&self, devices: &dyn PoolDevice) -> Result<(), PoolError> {
        let done = match self {
            Step::Write { address, bytes } => devices.write_at(*address, bytes),
            Step::Flush { .. } => devices.flush(),
        };
        done.map_err(|error| PoolError::device(self.doing())(error))
    }

    /// Says what it does, in words for an error.
    pub fn doing(&self) -> String {
        match self {
            Step::Write { address, .. } => format!("writing the log at byte {address}"),
            Step::Flush { doing } => (*doing).to_owned(),
        }
    }
}

/// Cuts what is to stand in the log's ring from a block on: in two parts where it wraps.
fn log_writes(geometry: &Geometry, block: u64, frame: &[u8]) -> SmallVec<[Step; 2]> {
    let to_end = (geometry.log_blocks - block % geometry.log_blocks) as usize * BLOCK_BYTES;
    let (head, tail) = frame.split_at(to_end.min(frame.len()));
    [(head, block), (tail, block + (head.len() as u64 / BLOCK))]
        .into_iter()
        .filter(|(part, _)| !part.is_empty())
        .map(|(part, block)| Step::Write {
            address: geometry.log_offset(block),
            bytes: IoBuffer::from_slice(part),
        })
        .collect()
}

/// Writes blocks into the ring.
pub(crate) fn write_log(
    device: &dyn PoolDevice,
    geometry: &Geometry,
    block: u64,
    frame: &[u8],
) -> Result<(), PoolError> {
    log_writes(geometry, block, frame)
        .iter()
        .try_for_each(|step| step.carry_out(device))
}
