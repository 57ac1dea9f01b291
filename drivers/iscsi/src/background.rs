//! Work that waits for the disk, on a thread of its own, so that neither a reactor nor a control call is held up:
//! keeping what outlives a restart, and looking up what is mapped.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::exports::Export;
use crate::pass::Pass;
use crate::scsi::Sense;

/// What a piece of work has come to; there once its pass is dropped.
#[derive(Debug, Default)]
pub struct Answer(Mutex<Option<Result<Vec<u8>, Sense>>>);

impl Answer {
    /// Says what has come of it.
    pub fn set(&self, answer: Result<Vec<u8>, Sense>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
    }

    /// Takes the data, or why there is none. Work that was never done, since the target stops, has failed.
    ///
    /// # Errors
    /// The work's.
    pub fn take(&self) -> Result<Vec<u8>, Sense> {
        let answer = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        answer.unwrap_or(Err(Sense::INTERNAL_TARGET_FAILURE))
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// The way to the thread.
pub struct Background(Mutex<Option<Sender<Job>>>);

/// What the thread does.
pub struct Jobs(Receiver<Job>);

impl Background {
    /// Makes the way, and what is to be done at the end of it.
    pub fn new() -> (Self, Jobs) {
        let (sender, jobs) = channel::<Job>();
        (Self(Mutex::new(Some(sender))), Jobs(jobs))
    }

    /// Does some work when its turn comes; `pass` is dropped when it is done.
    pub fn run(
        &self,
        pass: Pass,
        work: impl FnOnce() -> Result<Vec<u8>, Sense> + Send + 'static,
    ) -> Arc<Answer> {
        let answer = Arc::new(Answer::default());
        let result = Arc::clone(&answer);
        let job = Box::new(move || {
            result.set(work());
            drop(pass);
        });
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = &*sender {
            // When the thread is gone the job is dropped, and its pass with it.
            let _ = sender.send(job);
        }
        answer
    }

    /// Keeps an export's state as it is when its turn comes.
    pub fn keep(&self, export: &Arc<Export>, pass: Pass) -> Arc<Answer> {
        let export = Arc::clone(export);
        self.run(pass, move || match export.keep() {
            Ok(()) => Ok(Vec::new()),
            Err(error) => {
                tracing::error!(volume = %export.volume, %error, "the export's state cannot be kept");
                Err(Sense::INTERNAL_TARGET_FAILURE)
            }
        })
    }

    /// Takes no more work; what waits is done.
    pub fn stop(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Jobs {
    /// Does one job after the other until [`Background::stop`].
    pub fn run(self) {
        while let Ok(job) = self.0.recv() {
            job();
        }
    }

    /// Does what waits, and tells how much that was.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn run_waiting(&self) -> usize {
        self.0.try_iter().map(|job| job()).count()
    }
}
