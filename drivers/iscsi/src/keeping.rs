//! Keeping what initiators have reserved, on a thread of its own: the disk is waited for there, and neither a reactor
//! nor a control call is held up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::exports::Export;
use crate::pass::Pass;

/// What has come of keeping an export's state.
#[derive(Debug, Default)]
pub struct Outcome(AtomicBool);

impl Outcome {
    /// Tells whether it could not be kept. Certain once the pass is dropped.
    pub fn has_failed(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

struct Job {
    export: Arc<Export>,
    outcome: Arc<Outcome>,
    _pass: Pass,
}

/// The way to the thread.
pub struct Keeping(Mutex<Option<Sender<Job>>>);

impl Keeping {
    /// Starts the thread, which ends with [`Keeping::stop`].
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start() -> std::io::Result<(Self, JoinHandle<()>)> {
        let (sender, jobs) = channel();
        let thread = thread::Builder::new()
            .name("iscsi-keeping".to_owned())
            .spawn(move || run(&jobs))?;
        Ok((Self(Mutex::new(Some(sender))), thread))
    }

    /// Keeps an export's state as it is when its turn comes; `pass` is dropped when that is done. After a stop
    /// nothing is kept, which counts as a failure.
    pub fn keep(&self, export: &Arc<Export>, pass: Pass) -> Arc<Outcome> {
        let outcome = Arc::new(Outcome(AtomicBool::new(true)));
        let job = Job {
            export: Arc::clone(export),
            outcome: Arc::clone(&outcome),
            _pass: pass,
        };
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = &*sender {
            // When the thread is gone the job is dropped, and its pass with it.
            let _ = sender.send(job);
        }
        outcome
    }

    /// Takes no more jobs; those that wait are done.
    pub fn stop(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

fn run(jobs: &Receiver<Job>) {
    while let Ok(job) = jobs.recv() {
        match job.export.keep() {
            Ok(()) => job.outcome.0.store(false, Ordering::Release),
            Err(error) => {
                tracing::error!(volume = %job.export.volume, %error, "reservations cannot be kept");
            }
        }
    }
}
