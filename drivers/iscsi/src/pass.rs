//! Waiting for several things to end, wherever they are.
//!
//! A [`Pass`] is cloned into everything that must end. When the last clone is dropped, and a thread that dies
//! drops what it holds, the action given at its making runs. So nobody waits for ever for an answer that was
//! lost.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// Held by what must end.
#[derive(Clone)]
pub struct Pass(#[expect(dead_code, reason = "held for its drop")] Arc<Last>);

struct Last(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Drop for Last {
    fn drop(&mut self) {
        let action = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(action) = action {
            action();
        }
    }
}

impl Pass {
    /// Makes a pass that runs `action` when its last clone is dropped.
    pub fn then(action: impl FnOnce() + Send + 'static) -> Self {
        Self(Arc::new(Last(Mutex::new(Some(Box::new(action))))))
    }

    /// Makes a pass and a future of its end.
    pub fn with_end() -> (Self, End) {
        let end = End(Arc::default());
        let shared = Arc::clone(&end.0);
        let pass = Self::then(move || {
            let waker = {
                let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
                state.ended = true;
                state.waker.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        });
        (pass, end)
    }
}

/// Ready when every clone of its pass is dropped.
pub struct End(Arc<Mutex<EndState>>);

#[derive(Default)]
struct EndState {
    ended: bool,
    waker: Option<Waker>,
}

impl Future for End {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.ended {
            return Poll::Ready(());
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use quarry_contract::conformance::block_on;

    use super::*;

    #[test]
    fn end_comes_when_the_last_clone_is_dropped_on_any_thread() {
        let (pass, end) = Pass::with_end();
        let other = pass.clone();
        let thread = std::thread::spawn(move || drop(other));
        drop(pass);
        block_on(end);
        thread.join().unwrap();
    }
}
