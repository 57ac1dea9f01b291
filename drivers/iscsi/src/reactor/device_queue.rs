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
    /// The volumes of its medium.
    fair: Arc<FairShare>,
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
    fn new(
        volume: VolumeId,
        (queues, fair): (Arc<Census>, Arc<FairShare>),
        device: Arc<dyn BlockDevice>,
    ) -> Self {
        let useful_bytes = device.limits().useful_in_flight_bytes;
        Self {
            volume,
            device,
            queue: None,
            backlog: VecDeque::new(),
            failed: Vec::new(),
            in_flight: 0,
            in_flight_cost: 0,
            least_cost: least_cost(useful_bytes, DEPTH),
            useful_bytes,
            queues,
            fair,
            noted: None,
            needs_kick: false,
            sessions: 0,
        }
    }

    /// Hands a request in; it starts with the next [`DeviceQueue::service`].
    fn submit(&mut self, request: Request, epoch: Epoch) {
        if self.noted != Some(epoch) {
            self.fair.note_use(&self.queues, epoch);
            self.noted = Some(epoch);
        }
        self.backlog.push_back(request);
        if self.backlog.len() == 1 {
            self.fill(epoch);
        }
    }

    /// Hands to the device what the volume's share allows (Q3).
    fn fill(&mut self, epoch: Epoch) {
        let Some(queue) = self.queue.as_mut().filter(|_| !self.backlog.is_empty()) else {
            return;
        };
        let share = self.fair.share_of(&self.queues, self.useful_bytes, epoch);
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
    fn service(&mut self, completions: &mut Vec<Completion>, epoch: Epoch) {
        completions.append(&mut self.failed);
        self.fill(epoch);
        // What a device that is memory has done already is taken before the kick, which then has nothing to announce: that
        // would be two system calls. What others complete within the kick is taken after it.
        for _ in 0..2 {
            self.reap(completions);
            self.fill(epoch);
            let Some(queue) = self.queue.as_mut().filter(|_| self.needs_kick) else {
                return;
            };
            queue.kick();
            self.needs_kick = false;
        }
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
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
            epoch: shared.clock.epoch(now),
            shared,
            slots: Vec::new(),
            dirty: Vec::new(),
        }
    }

    /// Says what time it is.
    pub fn tell_time(&mut self, now: Instant) {
        self.epoch = self.shared.clock.epoch(now);
    }

    /// Adds a session to the queue of its export, making the queue's slot if it is the first.
    pub fn attach(&mut self, export: &Export, device: &Arc<dyn BlockDevice>) -> usize {
        let same = |queue: &DeviceQueue| queue.volume == export.volume && Arc::ptr_eq(&queue.device, device);
        let known = self.slots.iter().position(|slot| slot.as_ref().is_some_and(same));
        let index = known.unwrap_or_else(|| {
            let queue = DeviceQueue::new(
                export.volume,
                (Arc::clone(&export.queues), Arc::clone(&export.fair)),
                Arc::clone(device),
            );
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
            queue.submit(request, self.epoch);
            self.mark(index);
        }
    }

    /// Starts what was handed in to a queue and appends what has completed.
    pub fn service(&mut self, index: usize, completions: &mut Vec<Completion>) {
        if let Some(queue) = self.slots.get_mut(index).and_then(Option::as_mut) {
            queue.service(completions, self.epoch);
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

#[cfg(test)]
mod tests {
    use std::io::{self, PipeReader};
    use std::os::fd::AsFd;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use quarry_contract::memory::{MemoryDevice, MemoryDeviceOptions};
    use quarry_contract::{DeviceLimits, Extent, IoBuffer, MediumId, Tag};
    use uuid::Uuid;

    use super::*;
    use crate::fair_share::EpochClock;

    /// A device that has done a request when it is handed over, and announces at a kick what was not taken before.
    struct Prompt {
        memory: Arc<MemoryDevice>,
        announced: AtomicUsize,
    }

    struct PromptQueue {
        device: Arc<Prompt>,
        ended: Vec<Completion>,
        descriptor: PipeReader,
    }

    impl BlockDevice for Prompt {
        fn size_bytes(&self) -> u64 {
            self.memory.size_bytes()
        }

        fn limits(&self) -> DeviceLimits {
            self.memory.limits()
        }

        fn medium(&self) -> MediumId {
            self.memory.medium()
        }

        fn is_read_only(&self) -> bool {
            false
        }

        fn extents(&self, offset: u64, length: u64, most: usize) -> Result<Vec<Extent>, IoError> {
            self.memory.extents(offset, length, most)
        }

        fn open_queue(self: Arc<Self>, _: u32) -> io::Result<Box<dyn IoQueue>> {
            Ok(Box::new(PromptQueue {
                device: self,
                ended: Vec::new(),
                descriptor: io::pipe()?.0,
            }))
        }
    }

    impl IoQueue for PromptQueue {
        fn submit(&mut self, Request { tag, verb }: Request) -> Result<(), QueueFull> {
            let buffer = match verb {
                Verb::Read { buffer, .. } => Some(buffer),
                _ => None,
            };
            self.ended.push(Completion {
                tag,
                result: Ok(()),
                buffer,
            });
            Ok(())
        }

        fn kick(&mut self) {
            let is_news = !self.ended.is_empty();
            self.device
                .announced
                .fetch_add(usize::from(is_news), Ordering::Relaxed);
        }

        fn reap(&mut self, completions: &mut Vec<Completion>) {
            completions.append(&mut self.ended);
        }

        fn wake_fd(&self) -> BorrowedFd<'_> {
            self.descriptor.as_fd()
        }
    }

    #[test]
    fn what_is_done_at_once_is_not_announced_and_beyond_the_share_it_is_done_in_turns() {
        const MIB: usize = 1 << 20;
        let options = MemoryDeviceOptions {
            useful_in_flight_bytes: MIB as u32,
            ..MemoryDeviceOptions::of_size(64 << 20)
        };
        let device = Arc::new(Prompt {
            memory: MemoryDevice::new(&options),
            announced: AtomicUsize::new(0),
        });
        let epoch = EpochClock::new(Instant::now()).epoch(Instant::now());
        let volume = VolumeId(Uuid::from_u128(1));
        let mut queue = DeviceQueue::new(
            volume,
            Default::default(),
            Arc::clone(&device) as Arc<dyn BlockDevice>,
        );
        let read = |tag: u64, bytes: usize| Request {
            tag: Tag(tag),
            verb: Verb::Read {
                offset: 0,
                buffer: IoBuffer::zeroed(bytes),
            },
        };
        queue.submit(read(0, 4096), epoch);
        assert!(queue.open());
        let mut completions = Vec::new();
        for tag in 1..4 {
            queue.service(&mut completions, epoch);
            assert_eq!((completions.len() as u64, queue.in_flight), (tag, 0));
            queue.submit(read(tag, 4096), epoch);
        }
        assert_eq!(device.announced.load(Ordering::Relaxed), 0);

        // Twice what may be there: at once what is, the next after it, and one is announced (Q3).
        completions.clear();
        (4..12).for_each(|tag| queue.submit(read(tag, MIB / 2), epoch));
        queue.service(&mut completions, epoch);
        assert!(completions.len() < 8 && queue.in_flight_cost <= MIB as u64);
        assert!(device.announced.load(Ordering::Relaxed) > 0);
        while completions.len() < 9 {
            queue.service(&mut completions, epoch);
        }
        let tags: Vec<u64> = completions.iter().map(|completion| completion.tag.0).collect();
        assert_eq!(tags, (3..12).collect::<Vec<u64>>());
        assert_eq!((queue.in_flight, queue.in_flight_cost), (0, 0));
    }
}
