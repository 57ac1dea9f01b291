//! One reactor's way into one exported device.
//!
//! Invariants
//! - Q1: every request handed in is answered once, the failure to open the queue included.
//! - Q2: the queue is opened at the first I/O and dropped with the reactor's last session of the export, when
//!   nothing is in flight: dropping never waits.
//! - Q3: what is at the device is within the volume's share ([`fair_share`](crate::fair_share)), or one request (H1).

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use quarry_contract::{BlockDevice, Completion, IoError, IoQueue, QueueFull, Request, Verb, VolumeId};

use crate::exports::Export;
use crate::fair_share::{Census, Epoch, FairShare, least_cost};
use crate::target::Shared;

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
    /// What is in flight counts so much.
    in_flight_cost: u64,
    least_cost: usize,
    useful_bytes: u32,
    /// All reactors' queues of the volume.
    queues: Arc<Census>,
    /// When it was last said that this one is used.
    noted: Option<Epoch>,
    needs_kick: bool,
    sessions: usize,
}

/// Returns how many bytes a request moves.
fn bytes_of(verb: &Verb) -> usize {
    match verb {
        Verb::Read { buffer, .. } | Verb::Write { buffer, .. } | Verb::WriteAtomic { buffer, .. } => {
            buffer.len()
        }
        Verb::Flush | Verb::Discard { .. } | Verb::WriteZeroes { .. } => 0,
    }
}

impl DeviceQueue {
    fn new(export: &Export, device: Arc<dyn BlockDevice>) -> Self {
        let useful_bytes = device.limits().useful_in_flight_bytes;
        Self {
            volume: export.volume,
            device,
            queue: None,
            backlog: VecDeque::new(),
            failed: Vec::new(),
            in_flight: 0,
            in_flight_cost: 0,
            least_cost: least_cost(useful_bytes, DEPTH),
            useful_bytes,
            queues: Arc::clone(&export.queues),
            noted: None,
            needs_kick: false,
            sessions: 0,
        }
    }

    /// Hands a request in; it starts with the next [`DeviceQueue::service`].
    fn submit(&mut self, request: Request, fair: &FairShare, epoch: Epoch) {
        if self.noted != Some(epoch) {
            fair.note_use(&self.queues, epoch);
            self.noted = Some(epoch);
        }
        self.backlog.push_back(request);
        if self.backlog.len() == 1 {
            self.fill(fair, epoch);
        }
    }

    /// Hands to the device what the volume's share allows (Q3).
    fn fill(&mut self, fair: &FairShare, epoch: Epoch) {
        let Some(queue) = &mut self.queue else {
            return;
        };
        let share = fair.share_of(&self.queues, self.useful_bytes, epoch);
        while let Some(request) = self.backlog.pop_front() {
            let cost = bytes_of(&request.verb).max(self.least_cost) as u64;
            if self.in_flight > 0 && self.in_flight_cost + cost > share {
                self.backlog.push_front(request);
                return;
            }
            if let Err(QueueFull(request)) = queue.submit(request) {
                self.backlog.push_front(request);
                return;
            }
            self.in_flight += 1;
            self.in_flight_cost += cost;
            self.needs_kick = true;
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

    /// Starts what was handed in and appends what has completed, once: what completes meanwhile makes the queue's
    /// descriptor readable, and others come first.
    fn service(&mut self, completions: &mut Vec<Completion>, fair: &FairShare, epoch: Epoch) {
        completions.append(&mut self.failed);
        self.start(fair, epoch);
        let Some(queue) = &mut self.queue else {
            return;
        };
        let before = completions.len();
        queue.reap(completions);
        for completion in &completions[before..] {
            let bytes = completion.buffer.as_ref().map_or(0, |buffer| buffer.len());
            self.in_flight -= 1;
            self.in_flight_cost -= bytes.max(self.least_cost) as u64;
        }
        // The device is to have work while they are answered.
        self.start(fair, epoch);
    }

    fn start(&mut self, fair: &FairShare, epoch: Epoch) {
        if !self.backlog.is_empty() {
            self.fill(fair, epoch);
        }
        if let Some(queue) = self.queue.as_mut().filter(|_| self.needs_kick) {
            queue.kick();
            self.needs_kick = false;
        }
    }

    /// Returns the descriptor to poll, when the queue is open.
    pub fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.queue.as_ref().map(|queue| queue.wake_fd())
    }
}

/// All device queues of a reactor.
pub struct DeviceQueues {
    shared: Arc<Shared>,
    /// The time, roughly.
    epoch: Epoch,
    slots: Vec<Option<DeviceQueue>>,
    /// Slots that have work; no slot twice.
    pub dirty: Vec<usize>,
}

impl DeviceQueues {
    /// Makes an empty set, whose queues share with those of all reactors.
    pub fn new(shared: Arc<Shared>, now: Instant) -> Self {
        Self {
            epoch: shared.fair_share.epoch(now),
            shared,
            slots: Vec::new(),
            dirty: Vec::new(),
        }
    }

    /// Says what time it is.
    pub fn tell_time(&mut self, now: Instant) {
        self.epoch = self.shared.fair_share.epoch(now);
    }

    /// Adds a session to the queue of its export, making the queue's slot if it is the first.
    pub fn attach(&mut self, export: &Export, device: &Arc<dyn BlockDevice>) -> usize {
        let same = |queue: &DeviceQueue| queue.volume == export.volume && Arc::ptr_eq(&queue.device, device);
        let known = self.slots.iter().position(|slot| slot.as_ref().is_some_and(same));
        let index = known.unwrap_or_else(|| {
            let queue = DeviceQueue::new(export, Arc::clone(device));
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
        if let Some(queue) = self.slots.get_mut(index).and_then(Option::as_mut) {
            queue.submit(request, &self.shared.fair_share, self.epoch);
            self.mark(index);
        }
    }

    /// Starts what was handed in to a queue and appends what has completed.
    pub fn service(&mut self, index: usize, completions: &mut Vec<Completion>) {
        if let Some(queue) = self.slots.get_mut(index).and_then(Option::as_mut) {
            queue.service(completions, &self.shared.fair_share, self.epoch);
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
