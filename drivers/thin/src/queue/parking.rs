//! Requests that wait for I/O of their own queue: most often the first write to a chunk keeps others to it waiting, which is
//! over sooner than a thread would have taken them up.

use quarry_contract::{Tag, Verb};

/// How often a request is tried again before it goes to a thread, which has a place in the line for the latch.
const TRIES_MAX: u32 = 64;

/// The requests of one queue that found a latch taken, in the order in which they came.
#[derive(Default)]
pub(super) struct Parking {
    parked: Vec<Parked>,
    // Kept for its capacity.
    trying: Vec<Parked>,
}

pub(super) struct Parked {
    pub(super) tag: Tag,
    pub(super) verb: Verb,
    tries: u32,
}

impl Parking {
    pub(super) fn is_empty(&self) -> bool {
        self.parked.is_empty()
    }

    pub(super) fn park(&mut self, tag: Tag, verb: Verb) {
        self.parked.push(Parked { tag, verb, tries: 0 });
    }

    /// Takes all out, to be tried again.
    pub(super) fn take(&mut self) -> Vec<Parked> {
        let trying = std::mem::take(&mut self.trying);
        std::mem::replace(&mut self.parked, trying)
    }

    /// Parks one again that was tried in vain, or gives it back when that was often enough.
    pub(super) fn park_again(&mut self, mut parked: Parked) -> Option<Parked> {
        parked.tries += 1;
        if parked.tries > TRIES_MAX {
            return Some(parked);
        }
        self.parked.push(parked);
        None
    }

    /// Takes the emptied vector back that [`take`](Self::take) gave.
    pub(super) fn keep(&mut self, emptied: Vec<Parked>) {
        debug_assert!(emptied.is_empty());
        self.trying = emptied;
    }
}
