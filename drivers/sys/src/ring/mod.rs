//! Asynchronous I/O on a few files through io_uring.
//!
//! A [`Ring`] is driven by one thread at a time: operations go in with the memory they own, [`Ring::kick`]
//! starts all of them with one system call, [`Ring::reap`] gives what has finished back, memory included. The
//! ring's descriptor polls readable when there is something to reap, or when another thread used its [`Waker`].
//!
//! Invariants
//! - R1: memory under I/O belongs to the ring: it was moved in, every segment lies inside it, and it leaves only
//!   after the kernel has answered all segments. A ring that is dropped waits for the kernel first; one that is
//!   forgotten leaks the memory. So the kernel never touches memory that safe code can reach.
//! - R2: an operation is reported exactly once, after its last segment; short transfers are continued, the first
//!   error is kept.
//! - R3: its files stay open for as long as the ring lives; the ring holds registered references of its own.
//! - R4: a ring may move between threads. What the kernel gives up untried is started again, and so is the watch
//!   of the waker, which the kernel ends when it runs out of room for answers.
//!
//! Failure: a file's errors are in its completions. When the kernel does not take entries for want of memory
//! they are kept, the ring makes itself readable, and the next reap tries again.

mod job;
mod setup;
mod waker;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use job::{Direction, Job, Step};

pub use setup::probe;
pub use waker::Waker;

/// Files that a ring can have.
pub const FILES_MAX: u32 = 16;

/// Where the waker is in the ring's table of registered files: behind the files.
const WAKER_INDEX: u32 = FILES_MAX;
/// What stands in the table where there is no file.
const NO_FILE: RawFd = -1;

/// The entry that watches the waker.
const WAKER_USER_DATA: u64 = u64::MAX;

/// More entries than this are handed to the kernel in several rounds.
const SUBMISSION_ENTRIES_MAX: u32 = 64;

/// The caller's mark on an operation, given back in its end.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// Part of a transfer: which bytes of its memory belong at which offset of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The number of the file: 0, or one that was [added](Ring::add_file).
    pub file: u32,
    /// Where in the file, in bytes.
    pub file_offset: u64,
    /// Which bytes of the memory.
    pub memory: Range<usize>,
}

/// How sure a write is when it is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// It may be in volatile caches.
    Cached,
    /// It is on the medium, with the metadata needed to read it (`RWF_DSYNC`).
    Durable,
}

/// The end of one operation.
#[derive(Debug)]
pub struct Finished {
    /// The caller's mark.
    pub token: Token,
    /// How it went.
    pub result: io::Result<()>,
    /// A transfer's memory, as it was moved in.
    pub memory: Option<Vec<u8>>,
}

/// An owner of operations in flight on its files.
pub struct Ring {
    uring: IoUring,
    waker: Waker,
    /// Entries that did not fit into the submission queue.
    backlog: VecDeque<squeue::Entry>,
    jobs: Vec<Job>,
    vacant: Vec<u32>,
    /// Entries the kernel has, or will be given, and has not answered; without the waker's.
    unanswered: usize,
}

impl Ring {
    /// Makes a ring for about `depth` operations at a time, with a file as its number 0. More are taken, at some cost.
    /// It watches `waker`: each wake makes the ring readable once.
    ///
    /// # Errors
    /// When the operating system does not allow io_uring ([`probe`]) or refuses the resources.
    pub fn new(file: &File, depth: u32, waker: Waker) -> io::Result<Self> {
        let entries = depth
            .saturating_add(1)
            .next_power_of_two()
            .min(SUBMISSION_ENTRIES_MAX);
        let completions = depth
            .saturating_mul(2)
            .clamp(entries * 2, 1 << 14)
            .next_power_of_two();
        let uring = setup::build(entries, completions)?;
        let mut files = [NO_FILE; FILES_MAX as usize + 1];
        files[0] = file.as_raw_fd();
        files[WAKER_INDEX as usize] = waker.as_fd().as_raw_fd();
        uring.submitter().register_files(&files)?;
        let mut ring = Self {
            uring,
            waker,
            backlog: VecDeque::new(),
            jobs: Vec::new(),
            vacant: Vec::new(),
            unanswered: 0,
        };
        ring.watch_waker();
        ring.enter(0)?;
        Ok(ring)
    }

    /// Gives the ring another file, under this number.
    ///
    /// # Errors
    /// `InvalidInput` when the number is not below [`FILES_MAX`]; what the operating system says.
    pub fn add_file(&mut self, number: u32, file: &File) -> io::Result<()> {
        if number >= FILES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let added = self
            .uring
            .submitter()
            .register_files_update(number, &[file.as_raw_fd()])?;
        debug_assert_eq!(added, 1);
        Ok(())
    }

    /// Tells whether anything is on its way.
    pub fn is_idle(&self) -> bool {
        self.unanswered == 0
    }

    /// Takes a read in: every segment is filled from its file.
    ///
    /// # Panics
    /// When there is no segment, or one is empty or not inside `memory`.
    pub fn read(&mut self, token: Token, memory: Vec<u8>, segments: &[Segment]) {
        self.transfer(token, Direction::Read, memory, segments);
    }

    /// Takes a write in: every segment is written to its file.
    ///
    /// # Panics
    /// When there is no segment, or one is empty or not inside `memory`.
    pub fn write(&mut self, token: Token, memory: Vec<u8>, segments: &[Segment], persistence: Persistence) {
        self.transfer(token, Direction::Write(persistence), memory, segments);
    }

    /// Takes an fdatasync of each of these files in. It covers what was reported before it was taken in.
    ///
    /// # Panics
    /// When there is no file.
    pub fn sync_data(&mut self, token: Token, files: impl IntoIterator<Item = u32>) {
        let slot = self.vacant_slot();
        self.jobs[slot as usize].start_sync_data(token, files);
        self.push_segments(slot);
    }

    /// Takes a fallocate of file 0 in, with the `FALLOC_FL_` bits of fallocate(2); lengths in bytes.
    pub fn allocate(&mut self, token: Token, mode: i32, offset: u64, length: u64) {
        let slot = self.vacant_slot();
        self.jobs[slot as usize].start_allocate(token, mode, offset, length);
        self.push_segments(slot);
    }

    /// Starts everything taken in. Does not block.
    pub fn kick(&mut self) {
        if self.has_unsubmitted() {
            self.submit_all();
        }
    }

    /// Appends what has finished. Does not block, and makes no system call unless the kernel asks for one or
    /// something has to be started again.
    pub fn reap(&mut self, finished: &mut Vec<Finished>) {
        self.process_answers(finished);
        // An entry that is started again may finish at once, and room made may bring more answers. The kernel's
        // flag alone is no reason to go on: it stays up when the thread it waits for has exited.
        while self.kernel_holds_answers() || self.has_unsubmitted() {
            if !self.submit_all() || !self.process_answers(finished) {
                return;
            }
        }
    }

    /// Starts everything taken in, waits for all of it and appends it. Blocks. Where the kernel fails, something may be
    /// missing, and stays in flight.
    pub fn reap_all(&mut self, finished: &mut Vec<Finished>) {
        while self.unanswered > 0 {
            self.fill_from_backlog();
            match self.enter(1) {
                Ok(()) => {}
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
                    ) => {}
                Err(_) => return,
            }
            self.process_answers(finished);
        }
    }

    fn transfer(&mut self, token: Token, direction: Direction, memory: Vec<u8>, segments: &[Segment]) {
        let slot = self.vacant_slot();
        let job = &mut self.jobs[slot as usize];
        job.start_transfer(token, direction, memory, segments);
        self.push_segments(slot);
    }

    fn vacant_slot(&mut self) -> u32 {
        self.vacant.pop().unwrap_or_else(|| {
            self.jobs.push(Job::default());
            u32::try_from(self.jobs.len() - 1).expect("fewer operations in flight than 2^32")
        })
    }

    fn push_segments(&mut self, slot: u32) {
        for segment in 0..self.jobs[slot as usize].segment_count() {
            self.push_segment(slot, segment as u32);
        }
    }

    fn push_segment(&mut self, slot: u32, segment: u32) {
        let entry = self.jobs[slot as usize].entry(slot, segment);
        self.unanswered += 1;
        self.push(entry);
    }

    fn watch_waker(&mut self) {
        let entry = opcode::PollAdd::new(types::Fixed(WAKER_INDEX), libc::POLLIN as u32)
            .multi(true)
            .build()
            .user_data(WAKER_USER_DATA);
        self.push(entry);
    }

    fn push(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() || !self.push_to_kernel(&entry) {
            self.backlog.push_back(entry);
        }
    }

    /// Answers false when the submission queue is full.
    fn push_to_kernel(&mut self, entry: &squeue::Entry) -> bool {
        let mut submission = self.uring.submission();
        // SAFETY: an entry's memory must be valid until it is answered. Entries are made by `Job::entry`, whose
        // pointers lie inside a `Vec` that the job owns, whose heap address does not change when it moves, and
        // which leaves the job only in `Job::finish`, after the last answer (R1, kept by `process_answers` and
        // `Drop`); or by `watch_waker`, which points at no memory. Both name files by registered index, so they
        // are open (R3). Safe code cannot express a loan to the kernel.
        let pushed = unsafe { submission.push(entry) };
        pushed.is_ok()
    }

    fn has_unsubmitted(&mut self) -> bool {
        !self.backlog.is_empty() || !self.uring.submission().is_empty()
    }

    /// Tells whether the kernel has answers that it hands out only when entered.
    fn kernel_holds_answers(&mut self) -> bool {
        let submission = self.uring.submission();
        submission.taskrun() || submission.cq_overflow()
    }

    /// Answers false when the kernel did not take everything; then the ring is readable.
    fn submit_all(&mut self) -> bool {
        loop {
            self.fill_from_backlog();
            match self.enter(0) {
                Ok(()) if self.backlog.is_empty() => return true,
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // EAGAIN, EBUSY: the kernel is short of memory or of completion entries. Let the owner reap.
                Err(_) => {
                    self.waker.wake();
                    return false;
                }
            }
        }
    }

    fn fill_from_backlog(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.push_to_kernel(&entry) {
                self.backlog.push_front(entry);
                return;
            }
        }
    }

    fn enter(&mut self, wait_for: usize) -> io::Result<()> {
        self.uring.submitter().submit_and_wait(wait_for).map(drop)
    }

    /// Answers false when there was nothing to process.
    fn process_answers(&mut self, finished: &mut Vec<Finished>) -> bool {
        let mut processed = false;
        // One at a time, because an answer may make a new entry.
        while let Some(answer) = self.next_answer() {
            processed = true;
            if answer.user_data() == WAKER_USER_DATA {
                if !cqueue::more(answer.flags()) {
                    self.watch_waker();
                }
                continue;
            }
            let (slot, segment) = slot_and_segment(answer.user_data());
            self.unanswered -= 1;
            let job = &mut self.jobs[slot as usize];
            match job.advance(segment, answer.result()) {
                Step::Again => self.push_segment(slot, segment),
                Step::Waiting => {}
                Step::Finished => {
                    finished.push(job.finish());
                    self.vacant.push(slot);
                }
            }
        }
        processed
    }

    fn next_answer(&mut self) -> Option<cqueue::Entry> {
        self.uring.completion().next()
    }
}

impl AsFd for Ring {
    /// Polls readable when a reap may find something, or after a wake.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.uring.as_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.reap_all(&mut Vec::new());
        if self.unanswered > 0 {
            // The kernel does not say when it is done: the memory is lost, rather than shared with it.
            self.jobs.iter_mut().for_each(Job::abandon);
            return;
        }
        // Closing the ring releases the file some time later, in the background; this does it now.
        let _ = self.uring.submitter().unregister_files();
    }
}

fn user_data(slot: u32, segment: u32) -> u64 {
    u64::from(slot) << 32 | u64::from(segment)
}

fn slot_and_segment(user_data: u64) -> (u32, u32) {
    ((user_data >> 32) as u32, user_data as u32)
}

#[cfg(test)]
mod tests;
