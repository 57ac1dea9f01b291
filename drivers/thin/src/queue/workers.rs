//! The threads that do what may block.
//!
//! One set for each pool, shared by all its queues. Threads are started when there is work and none is idle, up
//! to a bound; they sleep when there is none. The number of waiting requests is bounded by the depths of the
//! queues they come from.
//!
//! Failure: a panic in the engine ends its request with [`IoError::Stopped`], not the thread.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use quarry_contract::{Completion, IoBuffer, IoError, Request, Tag, Verb};

use super::inbox::Inbox;
use crate::VersionHandle;

/// Enough to keep a disk busy with requests that wait for it one by one.
const THREADS_MAX: usize = 16;

/// A bounded set of threads that call the engine's blocking methods. Dropping it waits for them.
pub struct Workers {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    work_came: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    closing: bool,
}

/// One request on its way to the engine.
pub(super) struct Job {
    pub(super) handle: Arc<VersionHandle>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) request: Request,
}

impl Workers {
    /// Makes a set with no thread yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                work_came: Condvar::new(),
            }),
        })
    }

    /// Takes jobs over; `jobs` is empty afterwards.
    pub(super) fn start(&self, jobs: &mut Vec<Job>) {
        let count = jobs.len();
        let mut state = self.shared.lock();
        state.waiting.extend(jobs.drain(..));
        // Threads that were woken for earlier jobs and have not got to them count on both sides.
        let to_start = state
            .waiting
            .len()
            .saturating_sub(state.idle)
            .min(THREADS_MAX - state.threads.len());
        for _ in 0..to_start {
            match self.spawn(state.threads.len()) {
                Ok(thread) => state.threads.push(thread),
                // Those that run will get to it.
                Err(_) if !state.threads.is_empty() => break,
                Err(error) => {
                    let refused: Vec<Job> = state.waiting.drain(..).collect();
                    drop(state);
                    for job in refused {
                        job.finish(|_, _| {
                            Err(IoError::Medium {
                                detail: format!("no thread can be started: {error}"),
                            })
                        });
                    }
                    return;
                }
            }
        }
        drop(state);
        for _ in 0..count {
            self.shared.work_came.notify_one();
        }
    }

    fn spawn(&self, number: usize) -> io::Result<JoinHandle<()>> {
        let shared = Arc::clone(&self.shared);
        thread::Builder::new()
            .name(format!("quarry-io-{number}"))
            .spawn(move || shared.work())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let threads = {
            let mut state = self.shared.lock();
            state.closing = true;
            std::mem::take(&mut state.threads)
        };
        self.shared.work_came.notify_all();
        for thread in threads {
            // A worker catches the panics of its jobs, so there is nothing to learn here.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(&self) {
        while let Some(job) = self.next_job() {
            job.finish(run);
        }
    }

    fn next_job(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.waiting.pop_front() {
                return Some(job);
            }
            if state.closing {
                return None;
            }
            state.idle += 1;
            state = self
                .work_came
                .wait(state)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            state.idle -= 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that panics runs under this lock.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Job {
    /// Does the request and delivers its completion (Q1).
    fn finish(self, run: impl FnOnce(&VersionHandle, &mut Verb) -> Result<(), IoError>) {
        let Job {
            handle,
            inbox,
            request: Request { tag, mut verb },
        } = self;
        // After a panic the engine's locks are poisoned and say so to whoever comes next; the buffer is plain
        // bytes.
        let result = catch_unwind(AssertUnwindSafe(|| run(&handle, &mut verb))).unwrap_or_else(|_| {
            Err(IoError::Stopped {
                reason: "the engine panicked; see the log, and restart the agent".into(),
            })
        });
        // Before the completion, so that whoever sees it can close the volume (Q4).
        drop(handle);
        inbox.deliver(completion(tag, verb, result));
    }
}

/// Makes a request's completion, buffer included.
pub(super) fn completion(tag: Tag, verb: Verb, result: Result<(), IoError>) -> Completion {
    let buffer: Option<IoBuffer> = match verb {
        Verb::Read { buffer, .. } | Verb::Write { buffer, .. } => Some(buffer),
        Verb::Flush | Verb::Discard { .. } | Verb::WriteZeroes { .. } => None,
    };
    Completion { tag, result, buffer }
}

fn run(handle: &VersionHandle, verb: &mut Verb) -> Result<(), IoError> {
    match verb {
        Verb::Read { offset, buffer } => handle.read(*offset, buffer),
        Verb::Write {
            offset,
            buffer,
            durability,
        } => handle.write(*offset, buffer, *durability),
        Verb::Flush => handle.flush(),
        Verb::Discard { offset, length } => handle.discard(*offset, *length),
        Verb::WriteZeroes { offset, length, mode } => handle.write_zeroes(*offset, *length, *mode),
    }
}
