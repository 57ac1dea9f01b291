//! Keeps a chunk's mapping still while I/O uses it.
//!
//! Every I/O holds a shared latch on (version, chunk index) from its look-up to its completion; whoever changes
//! the mapping, or writes less than a block of it, holds it exclusively. Latches are striped: two chunks may share
//! one, which costs waiting, never correctness.
//!
//! Invariants
//! - L1: a mapping changes only under its exclusive latch, so a chunk is never freed or remapped while I/O that
//!   looked it up before is in flight.
//! - L2: whoever waits for a latch holds either none, or only stripes below it that it took exclusively. So
//!   waits cannot form a circle. Shared latches of several chunks are only tried for, never waited for.

use std::sync::{Condvar, Mutex};

use crate::locks::lock;
use crate::version::NodeId;

const STRIPES: usize = 4096;

/// The latches of a pool.
pub(crate) struct LatchTable {
    stripes: Box<[Stripe]>,
}

#[derive(Default)]
struct Stripe {
    holders: Mutex<Holders>,
    freed: Condvar,
}

#[derive(Default)]
struct Holders {
    shared: u32,
    exclusive: bool,
    waiting_exclusive: u32,
}

/// The index of a stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StripeIndex(u16);

/// Exclusive latches, released on drop.
pub(crate) struct ExclusiveLatches<'a> {
    table: &'a LatchTable,
    stripes: Vec<StripeIndex>,
}

/// One shared latch, released on drop.
pub(crate) struct SharedLatch<'a> {
    table: &'a LatchTable,
    stripe: StripeIndex,
}

impl LatchTable {
    pub fn new() -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| Stripe::default()).collect(),
        }
    }

    /// Returns the stripe of a chunk of a version.
    pub fn stripe(node: NodeId, index: u64) -> StripeIndex {
        // Neighbouring chunks of one version get neighbouring stripes; versions are spread by the golden ratio.
        let mixed = node.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        StripeIndex((mixed.wrapping_add(index) % STRIPES as u64) as u16)
    }

    /// Takes a shared latch unless that needs waiting. Give it back with [`release_shared`](Self::release_shared).
    pub fn try_shared(&self, stripe: StripeIndex) -> bool {
        let mut holders = lock(&self.stripes[usize::from(stripe.0)].holders);
        if holders.exclusive || holders.waiting_exclusive > 0 {
            return false;
        }
        holders.shared += 1;
        true
    }

    /// Gives back what [`try_shared`](Self::try_shared) took.
    pub fn release_shared(&self, stripe: StripeIndex) {
        let stripe = &self.stripes[usize::from(stripe.0)];
        let mut holders = lock(&stripe.holders);
        holders.shared -= 1;
        if holders.shared == 0 && holders.waiting_exclusive > 0 {
            stripe.freed.notify_all();
        }
    }

    /// Takes an exclusive latch unless that needs waiting. Give it back with
    /// [`release_exclusive`](Self::release_exclusive).
    pub fn try_exclusive(&self, stripe: StripeIndex) -> bool {
        let mut holders = lock(&self.stripes[usize::from(stripe.0)].holders);
        if holders.exclusive || holders.shared > 0 || holders.waiting_exclusive > 0 {
            return false;
        }
        holders.exclusive = true;
        true
    }

    /// Gives back what [`try_exclusive`](Self::try_exclusive) took.
    pub fn release_exclusive(&self, stripe: StripeIndex) {
        let stripe = &self.stripes[usize::from(stripe.0)];
        lock(&stripe.holders).exclusive = false;
        stripe.freed.notify_all();
    }

    /// Waits for a shared latch. The caller holds no latch (L2).
    pub fn shared(&self, stripe: StripeIndex) -> SharedLatch<'_> {
        let slot = &self.stripes[usize::from(stripe.0)];
        let mut holders = lock(&slot.holders);
        while holders.exclusive || holders.waiting_exclusive > 0 {
            holders = slot
                .freed
                .wait(holders)
                .expect("no thread panicked while it held a stripe");
        }
        holders.shared += 1;
        SharedLatch { table: self, stripe }
    }

    /// Waits for the exclusive latches of `count` chunks from `first`. The caller holds no latch (L2).
    pub fn exclusive(&self, node: NodeId, first: u64, count: u64) -> ExclusiveLatches<'_> {
        let mut stripes: Vec<StripeIndex> = (first..first + count).map(|i| Self::stripe(node, i)).collect();
        stripes.sort_unstable();
        stripes.dedup();
        for stripe in &stripes {
            let slot = &self.stripes[usize::from(stripe.0)];
            let mut holders = lock(&slot.holders);
            holders.waiting_exclusive += 1;
            while holders.exclusive || holders.shared > 0 {
                holders = slot
                    .freed
                    .wait(holders)
                    .expect("no thread panicked while it held a stripe");
            }
            holders.waiting_exclusive -= 1;
            holders.exclusive = true;
        }
        ExclusiveLatches { table: self, stripes }
    }
}

impl Drop for ExclusiveLatches<'_> {
    fn drop(&mut self) {
        for stripe in &self.stripes {
            self.table.release_exclusive(*stripe);
        }
    }
}

impl Drop for SharedLatch<'_> {
    fn drop(&mut self) {
        self.table.release_shared(self.stripe);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn l1_exclusive_waits_for_shared_and_keeps_new_shared_out() {
        let table = LatchTable::new();
        let stripe = LatchTable::stripe(NodeId(3), 7);
        assert!(table.try_shared(stripe));
        assert!(table.try_shared(stripe));
        let taken = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let latches = table.exclusive(NodeId(3), 7, 1);
                taken.store(true, Ordering::SeqCst);
                drop(latches);
            });
            while lock(&table.stripes[usize::from(stripe.0)].holders).waiting_exclusive == 0 {
                std::thread::yield_now();
            }
            assert!(!table.try_shared(stripe), "a waiting writer is not overtaken");
            table.release_shared(stripe);
            assert!(!taken.load(Ordering::SeqCst));
            table.release_shared(stripe);
        });
        assert!(taken.load(Ordering::SeqCst));
        assert!(table.try_shared(stripe));
        table.release_shared(stripe);
    }

    #[test]
    fn l2_overlapping_exclusive_ranges_do_not_deadlock() {
        let table = LatchTable::new();
        std::thread::scope(|scope| {
            for start in 0..4u64 {
                let table = &table;
                scope.spawn(move || {
                    for round in 0..300 {
                        let first = STRIPES as u64 - 20 + start * 7 + round % 5;
                        drop(table.exclusive(NodeId(1), first, 40));
                        drop(table.shared(LatchTable::stripe(NodeId(1), first)));
                    }
                });
            }
        });
    }
}
