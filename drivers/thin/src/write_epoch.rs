//! Counts the in-place writes of a volume between two snapshots.
//!
//! A write in flight when a snapshot is taken lands in a chunk that the snapshot now shares. The snapshot is
//! acknowledged only after those writes have landed, so that it never changes afterwards (contract V4).
//!
//! Invariant E1: an epoch is entered only under the state lock, and closed (replaced in its version) only under
//! the state's write lock; so nothing enters a closed epoch and its count only falls.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use crate::locks::lock;

/// One interval between two snapshots of a volume.
#[derive(Debug, Default)]
pub(crate) struct WriteEpoch {
    in_flight: AtomicU32,
    closed: AtomicBool,
    waiter: Mutex<()>,
    drained: Condvar,
}

/// One write in flight; it has landed when this is dropped.
#[derive(Debug)]
pub(crate) struct EpochGuard(Arc<WriteEpoch>);

impl WriteEpoch {
    /// Enters a write. The caller holds the state lock (E1).
    pub fn enter(self: &Arc<Self>) -> EpochGuard {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        EpochGuard(Arc::clone(self))
    }

    /// Waits until every write of a closed epoch has landed.
    pub fn wait_until_drained(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let mut guard = lock(&self.waiter);
        while self.in_flight.load(Ordering::SeqCst) > 0 {
            guard = self
                .drained
                .wait(guard)
                .expect("no thread panicked while it held the epoch");
        }
    }
}

impl Drop for EpochGuard {
    fn drop(&mut self) {
        // The order (decrement, then look at `closed`) against (set `closed`, then look at the count) makes sure
        // that one of the two sides sees the other.
        if self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 && self.0.closed.load(Ordering::SeqCst) {
            let _guard = lock(&self.0.waiter);
            self.0.drained.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e1_waiting_ends_when_the_last_write_has_landed() {
        let epoch = Arc::new(WriteEpoch::default());
        epoch.wait_until_drained();
        let guards: Vec<_> = (0..8).map(|_| epoch.enter()).collect();
        std::thread::scope(|scope| {
            for guard in guards {
                scope.spawn(move || drop(guard));
            }
            epoch.wait_until_drained();
        });
        assert_eq!(epoch.in_flight.load(Ordering::SeqCst), 0);
    }
}
