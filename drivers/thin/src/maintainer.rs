//! The thread that does a pool's background work.

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::locks::lock;
use crate::{Pool, PoolError};

/// How long the thread sleeps when there was nothing to do. Work announces itself through
/// [`Maintainer::nudge`]; what does not (a log filling up) waits at most this long.
const IDLE: Duration = Duration::from_millis(250);
/// Changes that nobody flushed or checkpointed become durable after this long, and the log stays short.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);

/// Runs [`Pool::maintain`] on a thread of its own until it is dropped.
pub struct Maintainer {
    signal: Arc<Signal>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Signal {
    state: Mutex<SignalState>,
    changed: Condvar,
}

#[derive(Default)]
struct SignalState {
    stop: bool,
    nudged: bool,
}

impl Maintainer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the operating system refuses it.
    pub fn start(pool: Arc<Pool>) -> io::Result<Self> {
        let signal = Arc::new(Signal::default());
        let theirs = Arc::clone(&signal);
        let thread = std::thread::Builder::new()
            .name("thin-maintain".into())
            .spawn(move || run(&pool, &theirs))?;
        Ok(Self {
            signal,
            thread: Some(thread),
        })
    }

    /// Says that there may be work: a version was deleted.
    pub fn nudge(&self) {
        lock(&self.signal.state).nudged = true;
        self.signal.changed.notify_all();
    }

    /// Ends the thread after the step that it is in.
    pub fn stop(&mut self) {
        lock(&self.signal.state).stop = true;
        self.signal.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the maintenance thread panicked");
        }
    }
}

impl Drop for Maintainer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Signal {
    /// Waits for a nudge or the idle time; false when the thread has to end.
    fn wait(&self, more: bool) -> bool {
        let mut state = lock(&self.state);
        if !more && !state.nudged && !state.stop {
            let (woken, _) = self
                .changed
                .wait_timeout(state, IDLE)
                .expect("no thread panicked while it held the signal");
            state = woken;
        }
        state.nudged = false;
        !state.stop
    }
}

fn run(pool: &Pool, signal: &Signal) {
    let mut more = true;
    let mut last_checkpoint = Instant::now();
    while signal.wait(more) {
        let checkpoint_due = last_checkpoint.elapsed() >= CHECKPOINT_EVERY;
        let step = match checkpoint_due {
            true => pool.checkpoint().map(|()| {
                last_checkpoint = Instant::now();
                true
            }),
            false => pool.maintain().map(|step| step.more),
        };
        more = match step {
            Ok(more) => more,
            // Reported when it happened; only a reopen helps.
            Err(PoolError::Stopped { .. }) => return,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "background work failed; trying again later"
                );
                last_checkpoint = Instant::now();
                false
            }
        };
    }
}
