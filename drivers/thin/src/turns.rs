//! Whose turn it is to flush the pool's devices.
//!
//! A failed write-back is told of only once, to whoever flushes first: somebody who flushes the same file at the same time may
//! be told that all is well. So flushes take turns, and the turn of one that failed ends when the pool has stopped.
//!
//! Unlike a mutex a turn may be held by a request that a queue has in flight, and may end on another thread. A thread that
//! drives queues does not wait for a turn: it would wait for itself.
//!
//! Invariant T1: at most one turn is taken at any time.

use std::io;
use std::sync::{Condvar, Mutex};

use crate::format::{BLOCK, SUPERBLOCK_COPIES};
use crate::locks::{lock, read};
use crate::pool::Pool;
use crate::{PoolDevice, PoolError};

/// The turns of a pool.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    line: Mutex<Line>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Line {
    taken: bool,
    waiting: u32,
    /// A thread panicked in its turn.
    poisoned: bool,
}

/// A turn that ends when this is dropped.
pub(crate) struct Turn<'a>(&'a Turns);

impl Turns {
    /// Waits for a turn.
    pub fn wait(&self) -> Turn<'_> {
        let mut line = lock(&self.line);
        line.waiting += 1;
        while line.taken {
            line = self
                .ended
                .wait(line)
                .expect("no thread panicked while it held the line");
        }
        line.waiting -= 1;
        assert!(!line.poisoned, "no thread panicked in its turn");
        line.taken = true;
        Turn(self)
    }

    /// Takes a turn unless somebody has one or waits for one. It ends with [`end`](Self::end).
    pub fn try_take(&self) -> bool {
        let mut line = lock(&self.line);
        if line.taken || line.waiting > 0 || line.poisoned {
            return false;
        }
        line.taken = true;
        true
    }

    /// Ends the turn that [`try_take`](Self::try_take) took.
    pub fn end(&self) {
        let mut line = lock(&self.line);
        debug_assert!(line.taken, "T1");
        line.taken = false;
        line.poisoned |= std::thread::panicking();
        drop(line);
        self.ended.notify_one();
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Pool {
    /// Returns how many threads wait for their turn to flush.
    pub fn waiting_to_flush(&self) -> u32 {
        lock(&self.turns.line).waiting
    }

    /// Finds a first device that was cut off and made as long again: what was at its end, a copy of the superblock, is gone.
    /// Says so only where the medium knows of holes; a length that is less, the flush finds by itself.
    pub(crate) fn check_end(&self) -> io::Result<()> {
        let last_copy = read(&self.state)
            .geometry
            .superblock_offset(SUPERBLOCK_COPIES - 1);
        match self.device.first().is_hole(last_copy, BLOCK) {
            false => Ok(()),
            true => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the first device has been cut off, and made as long again",
            )),
        }
    }

    /// Flushes what is no round of the commit protocol, and stops the pool when that fails: what was written before, by
    /// whomever, is in doubt (C4).
    pub(crate) fn flush_devices(&self, doing: &'static str) -> Result<(), PoolError> {
        let _turn = self.turns.wait();
        self.check_running()?;
        self.check_end()
            .and_then(|()| self.device.flush())
            .map_err(PoolError::device(doing))
            .map_err(|error| self.stop("a flush failed", error))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn t1_a_turn_that_was_taken_ends_anywhere_and_nobody_who_waits_is_overtaken() {
        let turns = Turns::default();
        assert!(turns.try_take());
        assert!(!turns.try_take());
        let waited = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _turn = turns.wait();
                waited.store(true, Ordering::SeqCst);
            });
            while lock(&turns.line).waiting == 0 {
                std::thread::yield_now();
            }
            assert!(!waited.load(Ordering::SeqCst));
            scope.spawn(|| turns.end());
        });
        assert!(waited.load(Ordering::SeqCst));
        assert!(turns.try_take());
        turns.end();
    }
}
