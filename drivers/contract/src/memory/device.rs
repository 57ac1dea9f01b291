//! A block device in memory, with a switch that holds requests in flight and one that makes them fail.

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, Weak};

use super::contents::{CHUNK_BYTES, Contents, Space};
use super::lock;
use super::queue::{MemoryQueue, QueueState};
use crate::{BlockDevice, DeviceLimits, Extent, IoBuffer, IoError, IoQueue, MediumId, Verb};

/// How a stand-alone [`MemoryDevice`] is made.
#[derive(Debug, Clone)]
pub struct MemoryDeviceOptions {
    /// The size, in bytes; a multiple of the logical block.
    pub size_bytes: u64,
    /// The logical block, in bytes: 512 or 4096.
    pub logical_block_bytes: u32,
    /// How much may be allocated, in bytes; a write beyond it answers [`IoError::NoSpace`].
    pub capacity_bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// What it tells callers to have in flight, in bytes.
    pub useful_in_flight_bytes: u32,
    /// The longest write that is all or nothing, in bytes; 0 for none.
    pub atomic_write_bytes: u32,
}

/// What a memory device tells callers unless it is made otherwise: what a disk would.
const USEFUL_IN_FLIGHT_BYTES: u32 = 16 << 20;

/// How long its writes that are all or nothing may be, unless it is made otherwise, in bytes.
const ATOMIC_WRITE_BYTES: u32 = 1 << 20;

impl MemoryDeviceOptions {
    /// Returns a writable device of 512-byte blocks that never runs out of space.
    pub fn of_size(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            logical_block_bytes: 512,
            capacity_bytes: u64::MAX,
            read_only: false,
            useful_in_flight_bytes: USEFUL_IN_FLIGHT_BYTES,
            atomic_write_bytes: ATOMIC_WRITE_BYTES,
        }
    }
}

/// A volume or snapshot in memory.
///
/// Requests take effect when their queue is kicked, in the order submitted, unless the device is held: then they
/// stay in flight until [`MemoryDevice::release`], which is how tests of the layers above make a slow medium.
pub struct MemoryDevice {
    contents: Arc<Mutex<Contents>>,
    limits: DeviceLimits,
    read_only: bool,
    control: Mutex<Control>,
    pub(super) released: Condvar,
    /// Kept for its drop: it tells the pool that the object is closed.
    _opening: Option<Box<dyn Any + Send + Sync>>,
}

#[derive(Default)]
struct Control {
    held: bool,
    failures: VecDeque<IoError>,
    queues: Vec<Weak<Mutex<QueueState>>>,
}

impl MemoryDevice {
    /// Makes a blank writable device of 512-byte blocks.
    pub fn of_size(size_bytes: u64) -> Arc<Self> {
        Self::new(&MemoryDeviceOptions::of_size(size_bytes))
    }

    /// Makes a blank device.
    pub fn new(options: &MemoryDeviceOptions) -> Arc<Self> {
        let contents = Contents::blank(Space::of_bytes(options.capacity_bytes), options.size_bytes);
        let mut device = Self::over(
            Arc::new(Mutex::new(contents)),
            options.logical_block_bytes,
            options.read_only,
            None,
        );
        device.limits.useful_in_flight_bytes = options.useful_in_flight_bytes;
        device.limits.atomic_write_bytes = options.atomic_write_bytes;
        Arc::new(device)
    }

    /// Opens contents that a pool holds. `opening` is dropped with the device.
    pub(super) fn over(
        contents: Arc<Mutex<Contents>>,
        logical_block_bytes: u32,
        read_only: bool,
        opening: Option<Box<dyn Any + Send + Sync>>,
    ) -> Self {
        Self {
            contents,
            limits: DeviceLimits {
                logical_block_bytes,
                physical_block_bytes: 4096,
                optimal_io_bytes: CHUNK_BYTES as u32,
                discard_granularity_bytes: CHUNK_BYTES as u32,
                max_transfer_bytes: 16 << 20,
                useful_in_flight_bytes: USEFUL_IN_FLIGHT_BYTES,
                atomic_write_bytes: ATOMIC_WRITE_BYTES,
            },
            read_only,
            control: Mutex::default(),
            released: Condvar::new(),
            _opening: opening,
        }
    }

    /// Grows the device; a smaller size is ignored (B7).
    pub fn extend(&self, size_bytes: u64) {
        lock(&self.contents).grow(size_bytes);
    }

    /// Returns the bytes that are mapped to chunks.
    pub fn mapped_bytes(&self) -> u64 {
        lock(&self.contents).mapped_bytes()
    }

    /// Makes the next request that starts fail with `error` and touch nothing; several queue up.
    pub fn fail_next(&self, error: IoError) {
        lock(&self.control).failures.push_back(error);
    }

    /// Keeps requests in flight from now on: they start, and complete, only after [`MemoryDevice::release`].
    pub fn hold(&self) {
        lock(&self.control).held = true;
    }

    /// Lets held requests run to their end, and those that follow.
    pub fn release(&self) {
        let queues: Vec<_> = {
            let mut control = lock(&self.control);
            control.held = false;
            control.queues.iter().filter_map(Weak::upgrade).collect()
        };
        for queue in queues {
            lock(&queue).run(self);
        }
        self.released.notify_all();
    }

    /// Returns how many requests are in flight on a held device.
    pub fn held_requests(&self) -> usize {
        let queues: Vec<_> = lock(&self.control)
            .queues
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        queues.iter().map(|queue| lock(queue).started()).sum()
    }

    pub(super) fn is_held(&self) -> bool {
        lock(&self.control).held
    }

    /// Carries one request out.
    pub(super) fn execute(&self, verb: Verb) -> (Result<(), IoError>, Option<IoBuffer>) {
        let failure = lock(&self.control).failures.pop_front();
        match verb {
            Verb::Read { offset, mut buffer } => {
                let result = self.admit_transfer(failure, offset, buffer.len()).map(|()| {
                    lock(&self.contents).read(offset, &mut buffer);
                });
                (result, Some(buffer))
            }
            Verb::Write { offset, buffer, .. } => {
                let result = self
                    .admit_write()
                    .and_then(|()| self.admit_transfer(failure, offset, buffer.len()))
                    .and_then(|()| lock(&self.contents).write(offset, &buffer));
                (result, Some(buffer))
            }
            Verb::WriteAtomic { offset, buffer, .. } => {
                let result = self
                    .admit_write()
                    .and_then(|()| self.admit_atomic(offset, buffer.len()))
                    .and_then(|()| self.admit_transfer(failure, offset, buffer.len()))
                    .and_then(|()| lock(&self.contents).write(offset, &buffer));
                (result, Some(buffer))
            }
            Verb::Flush => (failure.map_or(Ok(()), Err), None),
            Verb::Discard { offset, length } => {
                let result = self
                    .admit_write()
                    .and_then(|()| self.admit(failure, offset, length))
                    .and_then(|()| lock(&self.contents).zero(offset, length, crate::ZeroMode::MayUnmap));
                (result, None)
            }
            Verb::WriteZeroes { offset, length, mode } => {
                let result = self
                    .admit_write()
                    .and_then(|()| self.admit(failure, offset, length))
                    .and_then(|()| lock(&self.contents).zero(offset, length, mode));
                (result, None)
            }
        }
    }

    fn admit_write(&self) -> Result<(), IoError> {
        if self.read_only {
            return Err(IoError::ReadOnly);
        }
        Ok(())
    }

    fn admit_atomic(&self, offset: u64, length: usize) -> Result<(), IoError> {
        if length > self.limits.atomic_write_bytes as usize {
            return Err(IoError::Misaligned {
                offset,
                length: length as u64,
                block: self.limits.logical_block_bytes,
            });
        }
        Ok(())
    }

    fn admit_transfer(&self, failure: Option<IoError>, offset: u64, length: usize) -> Result<(), IoError> {
        if length > self.limits.max_transfer_bytes as usize {
            return Err(IoError::Misaligned {
                offset,
                length: length as u64,
                block: self.limits.logical_block_bytes,
            });
        }
        self.admit(failure, offset, length as u64)
    }

    fn admit(&self, failure: Option<IoError>, offset: u64, length: u64) -> Result<(), IoError> {
        if let Some(error) = failure {
            return Err(error);
        }
        let block = self.limits.logical_block_bytes;
        let aligned = offset.is_multiple_of(u64::from(block)) && length.is_multiple_of(u64::from(block));
        if !aligned {
            return Err(IoError::Misaligned {
                offset,
                length,
                block,
            });
        }
        let size = lock(&self.contents).size_bytes();
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(IoError::OutOfRange { offset, length, size });
        }
        Ok(())
    }
}

impl BlockDevice for MemoryDevice {
    fn size_bytes(&self) -> u64 {
        lock(&self.contents).size_bytes()
    }

    fn limits(&self) -> DeviceLimits {
        self.limits
    }

    /// Memory.
    fn medium(&self) -> MediumId {
        MediumId::default()
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn extents(&self, offset: u64, length: u64, most: usize) -> Result<Vec<Extent>, IoError> {
        self.admit(None, offset, length)?;
        Ok(lock(&self.contents).extents(offset, length, most))
    }

    fn open_queue(self: Arc<Self>, depth: u32) -> io::Result<Box<dyn IoQueue>> {
        let (queue, state) = MemoryQueue::open(Arc::clone(&self), depth)?;
        let mut control = lock(&self.control);
        control.queues.retain(|queue| queue.strong_count() > 0);
        control.queues.push(Arc::downgrade(&state));
        Ok(Box::new(queue))
    }
}
