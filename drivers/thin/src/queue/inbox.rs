//! Where workers put a queue's completions.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};

use quarry_contract::Completion;
use quarry_sys::ring::Waker;

/// The completions of one queue that came from other threads, and how many are still to come.
pub(super) struct Inbox {
    state: Mutex<State>,
    emptied: Condvar,
    waker: Waker,
    /// Whether the waker has been used since the owner looked; spares the system call for each completion after
    /// the first.
    announced: AtomicBool,
}

#[derive(Default)]
struct State {
    completions: Vec<Completion>,
    expected: usize,
    /// Its queue is going.
    is_closing: bool,
}

impl Inbox {
    pub(super) fn new(waker: Waker) -> Self {
        Self {
            state: Mutex::default(),
            emptied: Condvar::new(),
            waker,
            announced: AtomicBool::new(false),
        }
    }

    /// Says that `count` more completions will come.
    pub(super) fn expect(&self, count: usize) {
        self.lock().expected += count;
    }

    /// Says that the queue is going: it waits for what is in flight, and for nothing that can be given up.
    pub(super) fn close(&self) {
        self.lock().is_closing = true;
    }

    /// Tells whether the queue is going.
    pub(super) fn is_closing(&self) -> bool {
        self.lock().is_closing
    }

    /// Takes a completion in and wakes the owner (Q3).
    pub(super) fn deliver(&self, completion: Completion) {
        let mut state = self.lock();
        state.completions.push(completion);
        state.expected -= 1;
        if state.expected == 0 {
            self.emptied.notify_all();
        }
        drop(state);
        self.announce();
    }

    /// Makes the owner's wake descriptor readable.
    pub(super) fn announce(&self) {
        if !self.announced.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// Moves what is there to `completions`. `before_look` makes the wake descriptor unreadable where that is
    /// not the ring's business; a completion that comes later announces itself anew.
    pub(super) fn drain(&self, completions: &mut Vec<Completion>, before_look: impl FnOnce()) {
        if !self.announced.load(Ordering::Acquire) {
            return;
        }
        before_look();
        // From here on a delivery wakes again; one that did not is in the list already, because it was put there
        // before the flag was looked at.
        self.announced.store(false, Ordering::SeqCst);
        completions.append(&mut self.lock().completions);
    }

    /// Waits until nothing more is expected.
    pub(super) fn wait_until_none_expected(&self) {
        let mut state = self.lock();
        while state.expected > 0 {
            state = self
                .emptied
                .wait(state)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that panics runs under this lock.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
