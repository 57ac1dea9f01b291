//! Ranges of a unit that one command has for itself: COMPARE AND WRITE and its like read, decide and write as one
//! step against everything that any session does to the same blocks (SBC-3 5.2, 5.10).
//!
//! A command that needs a range alone takes it exclusively. While any range is taken, whoever else comes to it
//! queues up for a share of it; while none is, they only look at one number. So ordinary I/O does not say that it
//! is under way: the owner of a new exclusive range asks all sessions to let theirs end (see `session::ordering`).
//!
//! Invariants
//! - L1: of two entries that overlap, one of them exclusive, the later waits for the earlier.
//! - L2: an entry that waits for nothing is granted; who made it is told once.
//! - L3: [`RangeLocks::is_idle`] is false from before an exclusive entry is granted until after it is given back.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::exports::ConnectionAddress;

/// How a range is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Beside others that share it.
    Shared,
    /// Alone.
    Exclusive,
}

/// A place in the queue for a range. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

/// Every byte a unit may ever have.
pub const EVERYTHING: Range<u64> = 0..u64::MAX;

/// Who takes a range: a task of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taker {
    /// Where the session lives.
    pub session: ConnectionAddress,
    /// The task's slot.
    pub slot: u16,
}

/// The ranges of one unit that are taken or asked for; see the module.
#[derive(Debug, Default)]
pub struct RangeLocks {
    entries: AtomicUsize,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    last: u64,
    /// In the order they came.
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    ticket: Ticket,
    taker: Taker,
    ranges: Vec<Range<u64>>,
    hold: Hold,
    granted: bool,
}

impl Entry {
    fn conflicts_with(&self, ranges: &[Range<u64>], hold: Hold) -> bool {
        (self.hold == Hold::Exclusive || hold == Hold::Exclusive) && overlap(&self.ranges, ranges)
    }
}

/// Tells whether two sets of ranges have a byte in common.
pub fn overlap(some: &[Range<u64>], others: &[Range<u64>]) -> bool {
    let meets = |a: &Range<u64>, b: &Range<u64>| a.start < b.end && b.start < a.end;
    some.iter().any(|a| others.iter().any(|b| meets(a, b)))
}

impl RangeLocks {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whether no range is taken by anybody. One load.
    pub fn is_idle(&self) -> bool {
        self.entries.load(Ordering::Acquire) == 0
    }

    /// Tells whether a share of ranges would have to wait.
    pub fn keeps_out(&self, ranges: &[Range<u64>]) -> bool {
        let queue = self.lock();
        let mut entries = queue.entries.iter();
        entries.any(|entry| entry.conflicts_with(ranges, Hold::Shared))
    }

    /// Takes ranges, or a place in the queue for them. Tells whether they are granted at once.
    pub fn take(&self, taker: Taker, ranges: Vec<Range<u64>>, hold: Hold) -> (Ticket, bool) {
        let mut queue = self.lock();
        queue.last += 1;
        let ticket = Ticket(queue.last);
        let mut before = queue.entries.iter();
        let granted = !before.any(|entry| entry.conflicts_with(&ranges, hold));
        queue.entries.push(Entry {
            ticket,
            taker,
            ranges,
            hold,
            granted,
        });
        self.entries.store(queue.entries.len(), Ordering::Release);
        (ticket, granted)
    }

    /// Takes everything of a unit that nobody has used yet.
    pub fn take_all(&self) -> Ticket {
        let nobody = Taker {
            session: ConnectionAddress {
                reactor: usize::MAX,
                index: 0,
                serial: 0,
            },
            slot: 0,
        };
        self.take(nobody, [EVERYTHING].to_vec(), Hold::Exclusive).0
    }

    /// Gives ranges or the place in the queue back. Returns whose turn it is now.
    pub fn give_back(&self, ticket: Ticket) -> Vec<(Taker, Ticket)> {
        let mut queue = self.lock();
        queue.entries.retain(|entry| entry.ticket != ticket);
        self.entries.store(queue.entries.len(), Ordering::Release);
        let mut granted = Vec::new();
        for at in 0..queue.entries.len() {
            let (before, rest) = queue.entries.split_at_mut(at);
            let entry = &mut rest[0];
            let waits = |earlier: &Entry| earlier.conflicts_with(&entry.ranges, entry.hold);
            if !entry.granted && !before.iter().any(waits) {
                entry.granted = true;
                granted.push((entry.taker, entry.ticket));
            }
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taker(slot: u16) -> Taker {
        let session = ConnectionAddress {
            reactor: 0,
            index: 0,
            serial: 1,
        };
        Taker { session, slot }
    }

    #[test]
    fn overlapping_ranges_are_granted_one_after_the_other_in_the_order_asked_for() {
        let locks = RangeLocks::default();
        let take = |slot, range: Range<u64>, hold| locks.take(taker(slot), vec![range], hold);
        assert!(locks.is_idle());
        let (first, granted) = take(1, 0..10, Hold::Exclusive);
        assert!(granted && !locks.is_idle(), "L3");
        let (second, granted) = take(2, 5..15, Hold::Exclusive);
        assert!(!granted, "L1");
        let (third, granted) = take(3, 12..20, Hold::Shared);
        assert!(!granted, "L1: behind the second");
        let (fourth, granted) = take(4, 10..12, Hold::Shared);
        assert!(!granted);
        let (elsewhere, granted) = take(5, 30..40, Hold::Exclusive);
        assert!(granted);
        assert_eq!(locks.give_back(first), [(taker(2), second)], "L2");
        assert_eq!(
            locks.give_back(second),
            [(taker(3), third), (taker(4), fourth)],
            "shares go together"
        );
        for ticket in [third, fourth, elsewhere] {
            assert!(!locks.is_idle());
            assert_eq!(locks.give_back(ticket), []);
        }
        assert!(locks.is_idle());
    }

    /// One range.
    fn only(start: u64, end: u64) -> Vec<Range<u64>> {
        [Range { start, end }].to_vec()
    }

    #[test]
    fn giving_up_a_place_in_the_queue_lets_those_behind_through() {
        let locks = RangeLocks::default();
        let both = vec![0..4, 100..104];
        let (first, _) = locks.take(taker(1), both.clone(), Hold::Shared);
        let (second, _) = locks.take(taker(2), both, Hold::Exclusive);
        let (third, granted) = locks.take(taker(3), only(102, 103), Hold::Shared);
        assert!(!granted && locks.keeps_out(&only(3, 4)) && !locks.keeps_out(&only(4, 100)));
        assert_eq!(locks.give_back(second), [(taker(3), third)]);
        assert!(!locks.keeps_out(&only(3, 4)));
        assert_eq!(locks.give_back(first), []);
    }
}
