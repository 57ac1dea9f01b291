//! The threads that do what may block.
//!
//! One set for each pool, shared by all its queues. Threads are started when there is work and none is idle, up
//! to a bound; they sleep when there is none. The number of waiting requests is bounded by the depths of the
//! queues they come from.
//!
//! Writes that were planned and only have to be mapped are finished by a thread of their own: they hold latches that all
//! the others may be waiting for, and wait for no latch themselves.
//!
//! Failure: a panic in the engine ends its request with [`IoError::Stopped`], not the thread.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use quarry_contract::{Completion, IoBuffer, IoError, Request, Tag, Verb};

use super::direct::Unfinished;
use super::inbox::Inbox;
use super::waiting_room::WaitingRoom;
use crate::VersionHandle;

/// Enough to keep a disk busy with requests that wait for it one by one.
const THREADS_MAX: usize = 16;

/// One is enough for what is rare.
const FINISHERS_MAX: usize = 1;

/// A bounded set of threads that call the engine's blocking methods. Dropping it waits for them.
pub struct Workers {
    workers: Crew,
    finishers: Crew,
    waiting_room: Arc<WaitingRoom>,
}

/// Threads that do the same kind of jobs.
struct Crew {
    shared: Arc<Shared>,
    threads_max: usize,
    name: &'static str,
}

struct Shared {
    state: Mutex<State>,
    work_came: Condvar,
    waiting_room: Arc<WaitingRoom>,
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
    pub(super) inbox: Arc<Inbox>,
    pub(super) work: Work,
}

/// What there is to do.
pub(super) enum Work {
    /// All of a request.
    Request(Arc<VersionHandle>, Request),
    /// The end of a planned write.
    Finish(Unfinished),
}

impl Workers {
    /// Makes a set with no thread yet.
    pub fn new() -> Arc<Self> {
        let waiting_room = Arc::default();
        Arc::new(Self {
            workers: Crew::new("quarry-io", THREADS_MAX, &waiting_room),
            finishers: Crew::new("quarry-map", FINISHERS_MAX, &waiting_room),
            waiting_room,
        })
    }

    /// Gives up what waits for space of a queue that goes.
    pub(super) fn dismiss(&self, inbox: &Arc<Inbox>) {
        self.waiting_room.dismiss(inbox);
    }

    /// Takes requests over; `jobs` is empty afterwards.
    pub(super) fn start(&self, jobs: &mut Vec<Job>) {
        self.workers.start(jobs);
    }

    /// Takes planned writes over that have to be finished; `jobs` is empty afterwards.
    pub(super) fn finish(&self, jobs: &mut Vec<Job>) {
        self.finishers.start(jobs);
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.waiting_room.close();
    }
}

impl Crew {
    fn new(name: &'static str, threads_max: usize, waiting_room: &Arc<WaitingRoom>) -> Self {
        let shared = Shared {
            state: Mutex::default(),
            work_came: Condvar::new(),
            waiting_room: Arc::clone(waiting_room),
        };
        Self {
            shared: Arc::new(shared),
            threads_max,
            name,
        }
    }

    fn start(&self, jobs: &mut Vec<Job>) {
        let count = jobs.len();
        let mut state = self.shared.lock();
        state.waiting.extend(jobs.drain(..));
        // Threads that were woken for earlier jobs and have not got to them count on both sides.
        let to_start = state
            .waiting
            .len()
            .saturating_sub(state.idle)
            .min(self.threads_max - state.threads.len());
        for _ in 0..to_start {
            match self.spawn(state.threads.len()) {
                Ok(thread) => state.threads.push(thread),
                // Those that run will get to it.
                Err(_) if !state.threads.is_empty() => break,
                Err(error) => {
                    let refused: Vec<Job> = state.waiting.drain(..).collect();
                    drop(state);
                    for job in refused {
                        job.refuse(IoError::Medium {
                            detail: format!("no thread can be started: {error}"),
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
            .name(format!("{}-{number}", self.name))
            .spawn(move || shared.work())
    }
}

impl Drop for Crew {
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
            job.run(&self.waiting_room);
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
    /// Does the work and delivers its completion (Q1), or lets it wait for space.
    fn run(self, waiting_room: &Arc<WaitingRoom>) {
        match self.work {
            Work::Request(handle, request) => {
                let mut pending = PendingRequest {
                    handle,
                    inbox: self.inbox,
                    request,
                };
                let refused = match pending.run() {
                    Err(IoError::NoSpace) => waiting_room.admit(pending),
                    result => return pending.deliver(result),
                };
                if let Err(pending) = refused {
                    pending.deliver(Err(IoError::NoSpace));
                }
            }
            Work::Finish(Unfinished {
                tag,
                guard,
                buffer,
                last_step,
            }) => {
                let result = catch_unwind(AssertUnwindSafe(|| guard.finish_blocking(&buffer)));
                self.inbox.deliver(Completion {
                    tag,
                    result: result.unwrap_or_else(|_| Err(panicked())),
                    buffer: Some(last_step.take(buffer)),
                });
            }
        }
    }

    /// Delivers an error instead.
    fn refuse(self, error: IoError) {
        let completion = match self.work {
            Work::Request(handle, Request { tag, verb }) => {
                drop(handle);
                completion(tag, verb, Err(error))
            }
            Work::Finish(Unfinished {
                tag,
                guard,
                buffer,
                last_step,
            }) => {
                drop(guard);
                Completion {
                    tag,
                    result: Err(error),
                    buffer: Some(last_step.take(buffer)),
                }
            }
        };
        self.inbox.deliver(completion);
    }
}

/// A request with whom it is for.
pub(super) struct PendingRequest {
    pub(super) handle: Arc<VersionHandle>,
    pub(super) inbox: Arc<Inbox>,
    request: Request,
}

impl PendingRequest {
    /// Does the request.
    pub(super) fn run(&mut self) -> Result<(), IoError> {
        let (handle, verb) = (&self.handle, &mut self.request.verb);
        // After a panic the engine's locks are poisoned and say so to whoever comes next; the buffer is plain
        // bytes.
        catch_unwind(AssertUnwindSafe(|| run(handle, verb))).unwrap_or_else(|_| Err(panicked()))
    }

    /// Delivers the request's completion (Q1).
    pub(super) fn deliver(self, result: Result<(), IoError>) {
        let Self {
            handle,
            inbox,
            request: Request { tag, verb },
        } = self;
        if matches!(result, Err(IoError::NoSpace)) {
            handle.pool().waiters.refused.fetch_add(1, Ordering::Relaxed);
        }
        // Before the completion, so that whoever sees it can close the volume (Q4).
        drop(handle);
        inbox.deliver(completion(tag, verb, result));
    }
}

fn panicked() -> IoError {
    IoError::Stopped {
        reason: "the engine panicked; see the log, and restart the agent".into(),
    }
}

/// Makes a request's completion, buffer included.
pub(super) fn completion(tag: Tag, verb: Verb, result: Result<(), IoError>) -> Completion {
    let buffer: Option<IoBuffer> = match verb {
        Verb::Read { buffer, .. } | Verb::Write { buffer, .. } | Verb::WriteAtomic { buffer, .. } => {
            Some(buffer)
        }
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
        Verb::WriteAtomic {
            offset,
            buffer,
            durability,
        } => handle.write_atomic(*offset, buffer, *durability),
        Verb::Flush => handle.flush(),
        Verb::Discard { offset, length } => handle.discard(*offset, *length),
        Verb::WriteZeroes { offset, length, mode } => handle.write_zeroes(*offset, *length, *mode),
    }
}
