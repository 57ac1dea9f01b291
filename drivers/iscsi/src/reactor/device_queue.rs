//! One reactor's way into one exported device.
//!
//! Invariants
//! - Q1: every request handed in is answered once, the failure to open the queue included.
//! - Q2: the queue is opened at the first I/O and dropped with the reactor's last session of the export, when
//!   nothing is in flight: dropping never waits.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use quarry_contract::{BlockDevice, Completion, IoError, IoQueue, QueueFull, Request, Verb, VolumeId};

/// Requests in flight per queue; more wait in the backlog.
const DEPTH: u32 = 128;

/// See the module.
pub struct DeviceQueue {
    volume: VolumeId,
    device: Arc<dyn BlockDevice>,
    queue: Option<Box<dyn IoQueue>>,
    backlog: VecDeque<Request>,
    failed: Vec<Completion>,
    in_flight: usize,
    needs_kick: bool,
    sessions: usize,
}

impl DeviceQueue {
    fn new(volume: VolumeId, device: Arc<dyn BlockDevice>) -> Self {
        Self {
            volume,
            device,
            queue: None,
            backlog: VecDeque::new(),
            failed: Vec::new(),
            in_flight: 0,
            needs_kick: false,
            sessions: 0,
        }
    }

    /// Hands a request in; it starts with the next [`DeviceQueue::service`].
    pub fn submit(&mut self, request: Request) {
        self.needs_kick = true;
        match &mut self.queue {
            Some(queue) if self.backlog.is_empty() => match queue.submit(request) {
                Ok(()) => self.in_flight += 1,
                Err(QueueFull(request)) => self.backlog.push_back(request),
            },
            _ => self.backlog.push_back(request),
        }
    }

    /// Opens the queue if there is work for it and it is not open. Tells whether it opened it.
    pub fn open(&mut self) -> bool {
        if self.queue.is_some() || self.backlog.is_empty() {
            return false;
        }
        match Arc::clone(&self.device).open_queue(DEPTH) {
            Ok(queue) => {
                self.queue = Some(queue);
                true
            }
            Err(error) => {
                tracing::error!(volume = %self.volume, %error, "opening a device queue failed");
                let reason = format!("opening a queue: {error}");
                for request in self.backlog.drain(..) {
                    self.failed.push(Completion {
                        tag: request.tag,
                        result: Err(IoError::Stopped {
                            reason: reason.clone(),
                        }),
                        buffer: match request.verb {
                            Verb::Read { buffer, .. }
                            | Verb::Write { buffer, .. }
                            | Verb::WriteAtomic { buffer, .. } => Some(buffer),
                            _ => None,
                        },
                    });
                }
                false
            }
        }
    }

    /// Starts what was handed in and appends what has completed.
    pub fn service(&mut self, completions: &mut Vec<Completion>) {
        completions.append(&mut self.failed);
        let Some(queue) = &mut self.queue else {
            return;
        };
        loop {
            while let Some(request) = self.backlog.pop_front() {
                match queue.submit(request) {
                    Ok(()) => self.in_flight += 1,
                    Err(QueueFull(request)) => {
                        self.backlog.push_front(request);
                        break;
                    }
                }
            }
            if self.needs_kick {
                queue.kick();
                self.needs_kick = false;
            }
            let before = completions.len();
            queue.reap(completions);
            let reaped = completions.len() - before;
            self.in_flight -= reaped;
            if reaped == 0 || self.backlog.is_empty() {
                return;
            }
            self.needs_kick = true;
        }
    }

    /// Returns the descriptor to poll, when the queue is open.
    pub fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.queue.as_ref().map(|queue| queue.wake_fd())
    }
}

/// All device queues of a reactor.
#[derive(Default)]
pub struct DeviceQueues {
    slots: Vec<Option<DeviceQueue>>,
    /// Slots that have work; no slot twice.
    pub dirty: Vec<usize>,
}

impl DeviceQueues {
    /// Adds a session to the queue of its export, making the queue's slot if it is the first.
    pub fn attach(&mut self, volume: VolumeId, device: &Arc<dyn BlockDevice>) -> usize {
        let same = |queue: &DeviceQueue| queue.volume == volume && Arc::ptr_eq(&queue.device, device);
        let known = self.slots.iter().position(|slot| slot.as_ref().is_some_and(same));
        let index = known.unwrap_or_else(|| {
            let queue = DeviceQueue::new(volume, Arc::clone(device));
            match self.slots.iter().position(Option::is_none) {
                Some(free) => {
                    self.slots[free] = Some(queue);
                    free
                }
                None => {
                    self.slots.push(Some(queue));
                    self.slots.len() - 1
                }
            }
        });
        if let Some(queue) = &mut self.slots[index] {
            queue.sessions += 1;
        }
        index
    }

    /// Takes a session off; the last one takes the queue with it (Q2).
    pub fn detach(&mut self, index: usize) -> Option<DeviceQueue> {
        let queue = self.slots.get_mut(index)?.as_mut()?;
        queue.sessions -= 1;
        if queue.sessions > 0 {
            return None;
        }
        debug_assert_eq!(queue.in_flight, 0, "Q2");
        self.dirty.retain(|dirty| *dirty != index);
        self.slots[index].take()
    }

    /// Returns a queue.
    pub fn get(&mut self, index: usize) -> Option<&mut DeviceQueue> {
        self.slots.get_mut(index)?.as_mut()
    }

    /// Hands a request to a queue and marks it.
    pub fn submit(&mut self, index: usize, request: Request) {
        if let Some(queue) = self.get(index) {
            queue.submit(request);
            self.mark(index);
        }
    }

    /// Says that a queue may have something to reap.
    pub fn mark(&mut self, index: usize) {
        if !self.dirty.contains(&index) {
            self.dirty.push(index);
        }
    }

    /// Says that every queue with requests in flight may have something to reap.
    pub fn mark_busy(&mut self) {
        for index in 0..self.slots.len() {
            if self.slots[index]
                .as_ref()
                .is_some_and(|queue| queue.in_flight > 0)
            {
                self.mark(index);
            }
        }
    }
}
