//! One thread's way into a volume.

use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use quarry_contract::{BlockDevice, Completion, Durability, IoBuffer, IoError, IoQueue, QueueFull};
use quarry_contract::{Request, Tag, Verb};
use quarry_sys::ring::Waker;
use smallvec::SmallVec;

use super::VolumeDevice;
use super::direct::{DirectIo, Direction, LastStep};
use super::flushes::Flushes;
use super::inbox::Inbox;
use super::parking::Parking;
use super::spares::Spares;
use super::workers::{self, Job, Work};
use crate::Planned;

/// An [`IoQueue`] over a [`VolumeDevice`].
pub struct VolumeQueue {
    /// Made when first needed, so that a queue nobody uses costs a descriptor. `None` where the workers have to
    /// do it all.
    direct: OnceCell<Option<DirectIo>>,
    waker: Waker,
    inbox: Arc<Inbox>,
    /// For what is written to an encrypted volume.
    spares: Arc<Spares>,
    /// Submitted, for the workers at the next kick.
    staged: Vec<Job>,
    flushes: Flushes,
    parking: Parking,
    /// Ended without I/O.
    ended: Vec<Completion>,
    depth: usize,
    in_flight: usize,
    device: Arc<VolumeDevice>,
}

/// Where a submitted request went.
enum Way {
    /// To the ring, or it has ended already.
    Taken(Option<Completion>),
    /// Back, for when I/O has ended that stands in its way.
    Contended(Verb),
    /// Back, for the workers.
    Indirect(Verb),
}

/// Makes the way of a request that the ring does not take.
type WayOut = fn(Verb) -> Way;

impl VolumeQueue {
    pub(super) fn new(device: Arc<VolumeDevice>, depth: u32) -> io::Result<Self> {
        let waker = Waker::new()?;
        Ok(Self {
            direct: OnceCell::new(),
            inbox: Arc::new(Inbox::new(waker.clone())),
            spares: Arc::default(),
            waker,
            staged: Vec::new(),
            flushes: Flushes::default(),
            parking: Parking::default(),
            ended: Vec::new(),
            depth: depth as usize,
            in_flight: 0,
            device,
        })
    }

    fn direct(&self) -> Option<&DirectIo> {
        self.direct.get_or_init(|| self.make_direct()).as_ref()
    }

    fn make_direct(&self) -> Option<DirectIo> {
        let depth = u32::try_from(self.depth).unwrap_or(u32::MAX);
        // Out of descriptors or locked memory: the workers do it all.
        DirectIo::new(self.device.handle().pool().device(), depth, &self.waker)
    }

    /// Tries the way that involves no other thread.
    fn try_direct(&mut self, tag: Tag, verb: Verb) -> Way {
        match verb {
            Verb::Read { offset, buffer } => self
                .plan_and_start(tag, Direction::Read, offset, buffer)
                .unwrap_or_else(|(way, buffer)| way(Verb::Read { offset, buffer })),
            // A flushed write needs its mapping durable too, which only a commit tells.
            Verb::Write {
                offset,
                buffer,
                durability: Durability::Cached,
            } => self
                .plan_and_start(tag, Direction::Write, offset, buffer)
                .unwrap_or_else(|(way, buffer)| {
                    way(Verb::Write {
                        offset,
                        buffer,
                        durability: Durability::Cached,
                    })
                }),
            Verb::Flush if self.direct().is_some() => {
                self.flushes.add(tag);
                Way::Taken(None)
            }
            other => Way::Indirect(other),
        }
    }

    /// Gives the buffer back when the request cannot go to the ring, and says which way it has to go.
    fn plan_and_start(
        &mut self,
        tag: Tag,
        direction: Direction,
        offset: u64,
        buffer: IoBuffer,
    ) -> Result<Way, (WayOut, IoBuffer)> {
        if buffer.is_empty() || self.direct().is_none() {
            return Err((Way::Indirect, buffer));
        }
        let Some(Some(direct)) = self.direct.get_mut() else {
            return Err((Way::Indirect, buffer));
        };
        let handle = self.device.handle();
        let planned = match direction {
            Direction::Read => handle.plan_read(offset, buffer.len()),
            Direction::Write => handle.plan_write(offset, buffer.len()),
        };
        let plan = match planned {
            Planned::Direct(plan) if direct.takes(&plan, handle.pool().device()) => plan,
            Planned::Contended if direct.is_busy() => return Err((Way::Contended, buffer)),
            _ => return Err((Way::Indirect, buffer)),
        };
        let (buffer, last_step) = match (&handle.cipher, direction) {
            (None, _) => (buffer, LastStep::AsItIs),
            (Some(cipher), Direction::Read) => (buffer, LastStep::Decrypt(Arc::clone(cipher), offset)),
            (Some(cipher), Direction::Write) => {
                let mut encrypted = self.spares.copy(&buffer);
                cipher.encrypt(offset, &mut encrypted);
                (encrypted, LastStep::GiveBack(buffer, Arc::clone(&self.spares)))
            }
        };
        Ok(Way::Taken(direct.start(tag, direction, plan, buffer, last_step)))
    }

    /// Leaves a request to the workers at the next kick.
    fn stage(&mut self, tag: Tag, verb: Verb) {
        self.staged.push(Job {
            inbox: Arc::clone(&self.inbox),
            work: Work::Request(Arc::clone(self.device.handle()), Request { tag, verb }),
        });
    }

    /// Tries what is parked again after I/O has ended.
    fn try_parked(&mut self, ended: &mut Vec<Completion>) {
        let mut trying = self.parking.take();
        for mut parked in trying.drain(..) {
            let tag = parked.tag;
            match self.try_direct(tag, parked.verb) {
                Way::Taken(done) => ended.extend(done),
                Way::Indirect(verb) => self.stage(tag, verb),
                Way::Contended(verb) => {
                    parked.verb = verb;
                    if let Some(parked) = self.parking.park_again(parked) {
                        self.stage(tag, parked.verb);
                    }
                }
            }
        }
        self.parking.keep(trying);
        self.kick();
    }

    /// Lets the flushes ride that wait, or has threads do them.
    fn start_flushes(&mut self, ended: &mut Vec<Completion>) {
        let Some(Some(direct)) = self.direct.get_mut() else {
            return;
        };
        let handle = self.device.handle();
        if !self.flushes.start(handle, direct, ended) {
            let waiting: SmallVec<[Tag; 8]> = self.flushes.take_waiting().collect();
            waiting.into_iter().for_each(|tag| self.stage(tag, Verb::Flush));
        }
    }

    /// Goes on with a flush whose step has ended, and begins the next round when it was the last.
    fn go_on_with_flushes(&mut self, ended: &mut Vec<Completion>) {
        let Some(Some(direct)) = self.direct.get_mut() else {
            return;
        };
        if let Some(done) = direct.take_flush_step() {
            self.flushes.go_on(done, direct, ended);
            self.start_flushes(ended);
            self.kick();
        }
    }

    /// Has threads finish the planned writes that need one.
    fn hand_over_unfinished(&mut self) {
        let Some(Some(direct)) = self.direct.get_mut() else {
            return;
        };
        let unfinished = direct.take_unfinished();
        if unfinished.is_empty() {
            return;
        }
        let job = |unfinished| Job {
            inbox: Arc::clone(&self.inbox),
            work: Work::Finish(unfinished),
        };
        let mut jobs: Vec<Job> = unfinished.into_iter().map(job).collect();
        self.inbox.expect(jobs.len());
        self.device.workers().finish(&mut jobs);
    }

    fn is_direct_busy(&self) -> bool {
        matches!(self.direct.get(), Some(Some(direct)) if direct.is_busy())
    }

    /// Refuses what no plan should be made for: transfers that do not fit the limits. The engine judges the rest.
    fn check_shape(&self, verb: &Verb) -> Result<(), IoError> {
        let limits = self.device.limits();
        let block = limits.logical_block_bytes;
        match verb {
            Verb::Read { offset, buffer } | Verb::Write { offset, buffer, .. } => {
                let length = buffer.len() as u64;
                let fits = length <= u64::from(limits.max_transfer_bytes)
                    && offset.is_multiple_of(u64::from(block))
                    && length.is_multiple_of(u64::from(block));
                let offset = *offset;
                fits.then_some(()).ok_or(IoError::Misaligned {
                    offset,
                    length,
                    block,
                })
            }
            // The engine has a limit of its own for these.
            Verb::WriteAtomic { .. } | Verb::Flush | Verb::Discard { .. } | Verb::WriteZeroes { .. } => {
                Ok(())
            }
        }
    }
}

impl IoQueue for VolumeQueue {
    fn submit(&mut self, request: Request) -> Result<(), QueueFull> {
        if self.in_flight == self.depth {
            return Err(QueueFull(request));
        }
        self.in_flight += 1;
        let Request { tag, verb } = request;
        if let Err(error) = self.check_shape(&verb) {
            self.ended.push(workers::completion(tag, verb, Err(error)));
            return Ok(());
        }
        match self.try_direct(tag, verb) {
            Way::Taken(ended) => self.ended.extend(ended),
            Way::Contended(verb) => self.parking.park(tag, verb),
            Way::Indirect(verb) => self.stage(tag, verb),
        }
        self.hand_over_unfinished();
        Ok(())
    }

    fn kick(&mut self) {
        let mut ended = std::mem::take(&mut self.ended);
        self.start_flushes(&mut ended);
        self.ended = ended;
        if !self.staged.is_empty() {
            self.inbox.expect(self.staged.len());
            self.device.workers().start(&mut self.staged);
        }
        if let Some(Some(direct)) = self.direct.get_mut() {
            direct.kick();
        }
        if !self.ended.is_empty() {
            self.inbox.announce();
        }
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        let before = completions.len();
        completions.append(&mut self.ended);
        let ended_before = completions.len();
        let mut ring_watches_waker = false;
        if let Some(Some(direct)) = self.direct.get_mut() {
            direct.reap(completions);
            ring_watches_waker = direct.ring().is_some();
        }
        self.hand_over_unfinished();
        if !self.parking.is_empty() && (completions.len() > ended_before || !self.is_direct_busy()) {
            self.try_parked(completions);
            self.hand_over_unfinished();
        }
        self.go_on_with_flushes(completions);
        self.inbox.drain(completions, || {
            if !ring_watches_waker {
                self.waker.clear();
            }
        });
        self.in_flight -= completions.len() - before;
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        match self.direct().and_then(DirectIo::ring) {
            Some(ring) => ring.as_fd(),
            None => self.waker.as_fd(),
        }
    }
}

impl Drop for VolumeQueue {
    fn drop(&mut self) {
        // First the ring: a worker may be waiting for a chunk that one of its guards holds (Q2, Q4).
        if let Some(Some(mut direct)) = self.direct.take() {
            direct.drain();
            if let Some(done) = direct.take_flush_step() {
                self.flushes
                    .finish_blocking(done, self.device.handle().pool().device());
            }
        }
        // What was not kicked never begins.
        self.staged.clear();
        for parked in self.parking.take() {
            self.stage(parked.tag, parked.verb);
        }
        self.inbox.expect(self.staged.len());
        self.device.workers().start(&mut self.staged);
        self.device.workers().dismiss(&self.inbox);
        self.inbox.wait_until_none_expected();
    }
}
