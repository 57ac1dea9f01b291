//! Carries a sanitize operation out (SBC-3 4.11): on a thread of its own, whatever becomes of the session that asked
//! for it and over restarts of the agent, with the whole unit to itself.
//!
//! It goes no faster than it is told to: a volume that is being destroyed must not slow down its neighbours.
//!
//! Order: the operation is kept · the thread works · the device is flushed · what was kept goes · the unit is free.
//! An operation that is cut short begins again at the next start.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use quarry_contract::{BlockDevice, BlockingQueue, Durability, IoError, ZeroMode};

use crate::background::Answer;
use crate::exports::Export;
use crate::pass::Pass;
use crate::range_locks::Ticket;
use crate::scsi::{Method, Sanitizing, Sense};
use crate::target::Shared;

/// Bytes written at a time.
const STEP_BYTES: u64 = 1 << 20;

/// Extents looked up at a time.
const EXTENTS: usize = 64;

/// A running operation.
#[derive(Debug)]
pub struct Sanitizer {
    cancelled: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// The command that waits for an operation, until it is answered or aborted: the operation goes on without it.
#[derive(Clone)]
pub struct Waiter(Arc<Waiting>);

struct Waiting {
    /// Whether it waits for the start only (IMMED).
    immediate: bool,
    answer: Arc<Answer>,
    /// Dropped when the answer is there, or nobody wants it.
    pass: Mutex<Option<Pass>>,
}

impl Waiter {
    /// Makes a waiter that is told by `answer` and the end of `pass`.
    pub fn new(immediate: bool, answer: Arc<Answer>, pass: Pass) -> Self {
        Self(Arc::new(Waiting {
            immediate,
            answer,
            pass: Mutex::new(Some(pass)),
        }))
    }

    fn tell(&self, answer: Result<Vec<u8>, Sense>) {
        self.0.answer.set(answer);
        self.leave();
    }

    /// Waits no more.
    pub fn leave(&self) {
        self.0.pass.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl std::fmt::Debug for Waiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiter").finish_non_exhaustive()
    }
}

/// What an operation works with.
struct Work {
    shared: Arc<Shared>,
    export: Arc<Export>,
    device: Arc<dyn BlockDevice>,
    operation: Sanitizing,
    cancelled: Arc<AtomicBool>,
    ticket: Ticket,
}

impl Sanitizer {
    /// Starts an operation that the unit is marked for. `ticket` is of the whole unit.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(
        shared: &Arc<Shared>,
        export: &Arc<Export>,
        device: Arc<dyn BlockDevice>,
        operation: Sanitizing,
        ticket: Ticket,
        waiter: Option<Waiter>,
    ) -> std::io::Result<Self> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let work = Work {
            shared: Arc::clone(shared),
            export: Arc::clone(export),
            device,
            operation,
            cancelled: Arc::clone(&cancelled),
            ticket,
        };
        let thread = thread::Builder::new()
            .name("iscsi-sanitize".to_owned())
            .spawn(move || work.run(waiter))?;
        Ok(Self { cancelled, thread })
    }

    /// Tells whether its thread has ended.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends the operation where it is, and waits for its thread.
    pub fn stop(self) {
        self.cancelled.store(true, Ordering::Release);
        self.thread.thread().unpark();
        if self.thread.join().is_err() {
            tracing::error!("a sanitize thread has panicked");
        }
    }
}

impl Work {
    fn run(self, waiter: Option<Waiter>) {
        self.work(waiter.as_ref());
        // Of an operation that was cut short, too.
        if let Some(waiter) = waiter {
            waiter.leave();
        }
    }

    fn work(&self, waiter: Option<&Waiter>) {
        let volume = self.export.volume;
        if let Err(error) = self.export.keep() {
            tracing::error!(%volume, %error, "a sanitize operation cannot be kept");
            self.end(Err(Sense::INTERNAL_TARGET_FAILURE), waiter);
            return;
        }
        tracing::info!(%volume, method = ?self.operation.method, "sanitizing");
        if let Some(waiter) = waiter.filter(|waiter| waiter.0.immediate) {
            waiter.tell(Ok(Vec::new()));
        }
        let done = self.sanitize();
        if self.is_cut_short() {
            return;
        }
        match done {
            Ok(()) => {
                tracing::info!(%volume, "sanitized");
                self.end(Ok(()), waiter);
            }
            Err(error) => {
                tracing::error!(%volume, %error, "sanitizing has failed");
                self.end(Err(Sense::SANITIZE_FAILED), waiter);
            }
        }
    }

    /// Tells whether the operation is to end where it is.
    fn is_cut_short(&self) -> bool {
        self.cancelled.load(Ordering::Acquire) || self.shared.is_stopping()
    }

    /// Frees the unit, or marks it as failed, and answers.
    fn end(&self, result: Result<(), Sense>, waiter: Option<&Waiter>) {
        self.export.unit.end_sanitizing(result.is_err());
        let kept = match self.export.keep() {
            Ok(()) => Ok(Vec::new()),
            // At the next start it is done once more.
            Err(error) => {
                tracing::error!(volume = %self.export.volume, %error, "the end of a sanitize operation cannot be kept");
                Err(Sense::INTERNAL_TARGET_FAILURE)
            }
        };
        self.shared.give_back(&self.export, self.ticket);
        if let Some(waiter) = waiter.filter(|waiter| !waiter.0.immediate) {
            waiter.tell(result.and(kept));
        }
    }

    fn sanitize(&self) -> Result<(), IoError> {
        let open = |error: std::io::Error| IoError::Stopped {
            reason: format!("opening a queue: {error}"),
        };
        let mut queue = BlockingQueue::open(&self.device).map_err(open)?;
        match &self.operation.method {
            Method::BlockErase => self.erase(&mut queue)?,
            Method::Overwrite {
                count,
                invert,
                pattern,
            } => {
                for pass in 0..*count {
                    let inverted = *invert && pass % 2 == 1;
                    self.overwrite(&mut queue, pattern, inverted, (pass, *count))?;
                }
            }
        }
        queue.flush()
    }

    /// Zeroes what is mapped where it is, and unmaps it.
    fn erase(&self, queue: &mut BlockingQueue) -> Result<(), IoError> {
        let size = self.device.size_bytes();
        let mut pace = Pace::new(self);
        let mut at = 0;
        while at < size {
            for extent in self.device.extents(at, size - at, EXTENTS)? {
                let end = at + extent.length;
                while extent.mapped && at < end {
                    let step = STEP_BYTES.min(end - at);
                    match queue.write_zeroes(at, step, ZeroMode::KeepMapped) {
                        // Of chunks that a snapshot shares there is nothing to zero but a copy, for which there is
                        // no room.
                        Ok(()) | Err(IoError::NoSpace) => {}
                        Err(error) => return Err(error),
                    }
                    at += step;
                    self.export.unit.set_sanitize_progress(at, size);
                    if !pace.keep(step) {
                        return Ok(());
                    }
                }
                at = end;
            }
        }
        queue.discard(0, size)
    }

    /// Fills every block with a pattern; `passes` is how many are done and how many there are.
    fn overwrite(
        &self,
        queue: &mut BlockingQueue,
        pattern: &[u8],
        inverted: bool,
        passes: (u8, u8),
    ) -> Result<(), IoError> {
        let size = self.device.size_bytes();
        let block = self.device.limits().logical_block_bytes as usize;
        let mut bytes = vec![0; STEP_BYTES.min(size) as usize];
        Method::fill(pattern, inverted, block, &mut bytes);
        let mut pace = Pace::new(self);
        let mut at = 0;
        while at < size {
            let step = STEP_BYTES.min(size - at);
            queue.write(at, &bytes[..step as usize], Durability::Cached)?;
            at += step;
            let done = u64::from(passes.0) * size + at;
            self.export
                .unit
                .set_sanitize_progress(done, u64::from(passes.1) * size);
            if !pace.keep(step) {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Keeps an operation from going faster than it may.
struct Pace<'a> {
    work: &'a Work,
    begun: Instant,
    bytes: u64,
}

impl<'a> Pace<'a> {
    fn new(work: &'a Work) -> Self {
        Self {
            work,
            begun: Instant::now(),
            bytes: 0,
        }
    }

    /// Waits until so many more bytes may have been written. False when the operation is to end.
    fn keep(&mut self, bytes: u64) -> bool {
        self.bytes += bytes;
        let rate = self.work.shared.config.sanitize_bytes_per_second.max(1);
        let due = self.begun + Duration::from_secs_f64(self.bytes as f64 / rate as f64);
        loop {
            if self.work.is_cut_short() {
                return false;
            }
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            thread::park_timeout(left);
        }
    }
}
