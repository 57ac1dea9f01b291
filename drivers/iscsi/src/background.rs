//! Work that waits for the disk, on a thread of its own, so that neither a reactor nor a control call is held up:
//! keeping what outlives a restart, and looking up what is mapped.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

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

impl Background {
    /// Starts the thread, which ends with [`Background::stop`].
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start() -> std::io::Result<(Self, JoinHandle<()>)> {
        let (sender, jobs) = channel::<Job>();
        let thread = thread::Builder::new()
            .name("iscsi-background".to_owned())
            .spawn(move || run(&jobs))?;
        Ok((Self(Mutex::new(Some(sender))), thread))
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

fn run(jobs: &Receiver<Job>) {
    while let Ok(job) = jobs.recv() {
        job();
    }
}
