//! One set of tests for each trait, run by every implementation of it.
//!
//! A suite is a function that a driver's own test calls with a fixture, which says how to make a fresh subject.
//! Each check names the label of the contract's clause (`V5`, `B1`, `T3`) in its panic message. The suites need no
//! runtime of their own: a driver whose futures need one enters it before the call.

pub mod block_device;
mod pattern;
pub mod requirement;
pub mod share_backend;
pub mod share_server;
pub mod target;
pub mod volume_backend;

pub use pattern::SplitMix;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long something that happens in the background may take.
const EVENTUALLY: Duration = Duration::from_secs(60);

/// Runs a future to its end on this thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// Polls `condition` until it holds; panics with `what` after a minute.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + EVENTUALLY;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "{what}: not within {} s",
            EVENTUALLY.as_secs()
        );
        thread::park_timeout(Duration::from_millis(2));
    }
}
