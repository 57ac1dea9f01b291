//! An [`IoQueue`] for callers that want to wait: tests, and tools that copy.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{BlockDevice, Completion, Durability, IoBuffer, IoError, IoQueue, Request, Tag, Verb, ZeroMode};

/// How long one request may take before it counts as lost. Far above what a medium that retries needs.
const REQUEST_DEADLINE: Duration = Duration::from_secs(120);

/// One thread's blocking way into a device: one request at a time, split to the device's limit.
pub struct BlockingQueue {
    device: Arc<dyn BlockDevice>,
    queue: Box<dyn IoQueue>,
    completions: Vec<Completion>,
}

impl BlockingQueue {
    /// Opens a queue on the device.
    ///
    /// # Errors
    /// When the operating system refuses the resources.
    pub fn open(device: &Arc<dyn BlockDevice>) -> io::Result<Self> {
        Ok(Self {
            device: Arc::clone(device),
            queue: Arc::clone(device).open_queue(1)?,
            completions: Vec::new(),
        })
    }

    /// Returns the device.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// Reads `length` bytes from `offset`.
    ///
    /// # Errors
    /// The device's.
    pub fn read(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, IoError> {
        let mut bytes = vec![0; length];
        let step = self.device.limits().max_transfer_bytes as usize;
        for (index, piece) in bytes.chunks_mut(step).enumerate() {
            let mut buffer = IoBuffer::zeroed(piece.len());
            // A device that leaves a part unfilled must not pass for one that reads zeros.
            buffer.fill(0xa5);
            let verb = Verb::Read {
                offset: offset + (index * step) as u64,
                buffer,
            };
            let buffer = self.run(verb)?.ok_or_else(buffer_lost)?;
            piece.copy_from_slice(&buffer);
        }
        Ok(bytes)
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// The device's; with several pieces, those before the failed one are written.
    pub fn write(&mut self, offset: u64, bytes: &[u8], durability: Durability) -> Result<(), IoError> {
        let step = self.device.limits().max_transfer_bytes as usize;
        for (index, piece) in bytes.chunks(step).enumerate() {
            self.run(Verb::Write {
                offset: offset + (index * step) as u64,
                buffer: IoBuffer::from_slice(piece),
                durability,
            })?;
        }
        Ok(())
    }

    /// Writes `bytes` at `offset`, all of them or none.
    ///
    /// # Errors
    /// The device's.
    pub fn write_atomic(&mut self, offset: u64, bytes: &[u8], durability: Durability) -> Result<(), IoError> {
        let verb = Verb::WriteAtomic {
            offset,
            buffer: IoBuffer::from_slice(bytes),
            durability,
        };
        self.run(verb).map(drop)
    }

    /// Makes completed writes survive a power cut.
    ///
    /// # Errors
    /// The device's.
    pub fn flush(&mut self) -> Result<(), IoError> {
        self.run(Verb::Flush).map(drop)
    }

    /// Gives the space of a range back.
    ///
    /// # Errors
    /// The device's.
    pub fn discard(&mut self, offset: u64, length: u64) -> Result<(), IoError> {
        self.run(Verb::Discard { offset, length }).map(drop)
    }

    /// Makes a range read zero.
    ///
    /// # Errors
    /// The device's.
    pub fn write_zeroes(&mut self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), IoError> {
        self.run(Verb::WriteZeroes { offset, length, mode }).map(drop)
    }

    /// Carries one request out and returns its buffer.
    ///
    /// # Errors
    /// The device's.
    pub fn run(&mut self, verb: Verb) -> Result<Option<IoBuffer>, IoError> {
        let request = Request { tag: Tag(0), verb };
        if self.queue.submit(request).is_err() {
            return Err(IoError::Medium {
                detail: "an earlier request never completed".into(),
            });
        }
        self.queue.kick();
        wait_for_completions(self.queue.as_mut(), &mut self.completions, 1)?;
        let completion = self.completions.pop().ok_or_else(buffer_lost)?;
        completion.result.map(|()| completion.buffer)
    }
}

/// Reaps until `completions` holds at least `count`, sleeping on the wake descriptor in between.
///
/// # Errors
/// [`IoError::Medium`] when that takes longer than two minutes.
pub fn wait_for_completions(
    queue: &mut dyn IoQueue,
    completions: &mut Vec<Completion>,
    count: usize,
) -> Result<(), IoError> {
    let deadline = Instant::now() + REQUEST_DEADLINE;
    loop {
        queue.reap(completions);
        if completions.len() >= count {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(IoError::Medium {
                detail: format!("no completion within {} s", REQUEST_DEADLINE.as_secs()),
            });
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(queue.wake_fd(), PollFlags::POLLIN)];
        // A signal or a wake without need only leads to another look.
        let _ = poll(&mut fds, timeout);
    }
}

fn buffer_lost() -> IoError {
    IoError::Medium {
        detail: "the device completed the request without its buffer".into(),
    }
}
