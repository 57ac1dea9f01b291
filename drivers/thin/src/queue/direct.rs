//! Requests that involve no other thread: the queue's own ring does them, or they are done at once.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use quarry_contract::{Completion, IoBuffer, IoBufferShape, IoError, Tag};
use quarry_sys::ring::{self, Finished, Persistence, Ring, Token, Waker};

#[cfg(test)]
use super::faults::Operation;
use super::spares::Spares;
use crate::device::is_out_of_space;
use crate::format::{MAX_ADDED_DEVICES, split_address};
use crate::keys::Cipher;
use crate::{DeviceSet, DirectFile, FlushStep, PoolDevice, Submission};
use crate::{Finished as Ended, Place, Plan, PlanGuard};

/// The ring's mark on a step of a flush; those of transfers are places in a table.
const FLUSH: Token = Token(u64::MAX);

/// Which way a direct request's bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// A ring, or none where the medium is memory, and the guards of what it is doing.
pub(super) struct DirectIo {
    // Declared, and so dropped, before the guards: its drop waits for the I/O they guard (Q2).
    ring: Option<Ring>,
    in_flight: Vec<Option<InFlight>>,
    vacant: Vec<usize>,
    /// The pool's devices that have been used, by their numbers; these are their numbers in the ring, too.
    devices: [Option<Known>; 1 + MAX_ADDED_DEVICES],
    unfinished: Vec<Unfinished>,
    /// How the step of a flush has ended that was last started.
    flush_step: Option<io::Result<()>>,
    // Kept for their capacity.
    segments: Vec<ring::Segment>,
    finished: Vec<Finished>,
}

/// A write whose I/O has succeeded, and whose mapping needs something that blocks.
pub(super) struct Unfinished {
    pub(super) tag: Tag,
    pub(super) guard: PlanGuard,
    pub(super) buffer: IoBuffer,
    pub(super) last_step: LastStep,
}

/// A device that a queue uses directly.
struct Known {
    device: Arc<dyn PoolDevice>,
    alignment_bytes: usize,
}

struct InFlight {
    tag: Tag,
    shape: IoBufferShape,
    guard: PlanGuard,
    last_step: LastStep,
    #[cfg(test)]
    direction: Direction,
}

/// How the request's buffer comes out of what the medium was asked.
pub(super) enum LastStep {
    /// It is the same.
    AsItIs,
    /// It has been read from this byte of an encrypted version.
    Decrypt(Arc<Cipher>, u64),
    /// It was written encrypted, in memory that is used again; this is how it was handed in.
    GiveBack(IoBuffer, Arc<Spares>),
}

impl LastStep {
    /// Returns the buffer as the requester gets it.
    pub(super) fn take(self, mut buffer: IoBuffer) -> IoBuffer {
        match self {
            LastStep::AsItIs => buffer,
            LastStep::Decrypt(cipher, offset) => {
                cipher.decrypt(offset, &mut buffer);
                buffer
            }
            LastStep::GiveBack(plain, spares) => {
                spares.keep(buffer);
                plain
            }
        }
    }
}

impl DirectIo {
    /// Makes the way of a queue to the devices of its pool; `None` where everything has to go through their own methods, or
    /// when the operating system refuses a ring.
    pub(super) fn new(devices: &DeviceSet, depth: u32, waker: &Waker) -> Option<Self> {
        let DirectFile {
            file,
            alignment_bytes,
            submission,
        } = devices.direct_file()?;
        let ring = match submission {
            Submission::Inline => None,
            Submission::Ring => Some(Ring::new(file, depth, waker.clone()).ok()?),
        };
        let mut known: [Option<Known>; 1 + MAX_ADDED_DEVICES] = Default::default();
        known[0] = Some(Known {
            device: Arc::clone(devices.first()),
            alignment_bytes: alignment_bytes as usize,
        });
        Some(Self {
            ring,
            in_flight: Vec::new(),
            vacant: Vec::new(),
            devices: known,
            unfinished: Vec::new(),
            flush_step: None,
            segments: Vec::new(),
            finished: Vec::new(),
        })
    }

    /// Returns the ring, for its descriptor.
    pub(super) fn ring(&self) -> Option<&Ring> {
        self.ring.as_ref()
    }

    /// Tells whether any transfer is on its way.
    pub(super) fn is_busy(&self) -> bool {
        self.in_flight.len() > self.vacant.len()
    }

    /// Tells whether the devices take the plan's segments as they are.
    pub(super) fn takes(&mut self, plan: &Plan, devices: &DeviceSet) -> bool {
        plan.segments.iter().all(|segment| match segment.place {
            Place::Zeros => true,
            Place::Device(address) => {
                let (number, offset) = split_address(address);
                if self.devices[number].is_none() && !self.get_to_know(number, devices.device(number)) {
                    return false;
                }
                let alignment_bytes = self.devices[number]
                    .as_ref()
                    .map_or(1, |known| known.alignment_bytes);
                let aligned = |at: usize| at.is_multiple_of(alignment_bytes);
                aligned(segment.buffer.start) && aligned(segment.buffer.end) && aligned(offset as usize)
            }
        })
    }

    /// Tells whether all devices can be flushed from here.
    pub(super) fn knows_all(&mut self, devices: &DeviceSet) -> bool {
        devices.all().into_iter().all(|(number, device)| {
            let known = self.devices[number].as_ref();
            // One that a growth added in vain may have given its number to another.
            known.is_some_and(|known| Arc::ptr_eq(&known.device, &device))
                || self.get_to_know(number, Some(device))
        })
    }

    /// Makes a device one that is used directly; false when that cannot be.
    fn get_to_know(&mut self, number: usize, device: Option<Arc<dyn PoolDevice>>) -> bool {
        let Some(device) = device else { return false };
        let Some(direct_file) = device.direct_file() else {
            return false;
        };
        let can_be = match &mut self.ring {
            Some(ring) => ring.add_file(number as u32, direct_file.file).is_ok(),
            // What is not memory would keep the queue's thread waiting.
            None => direct_file.submission == Submission::Inline,
        };
        if can_be {
            let alignment_bytes = direct_file.alignment_bytes as usize;
            self.devices[number] = Some(Known {
                device,
                alignment_bytes,
            });
        }
        can_be
    }

    /// Hands a planned request to the ring. Answers its completion when it has ended already. See also
    /// [`take_unfinished`](Self::take_unfinished).
    pub(super) fn start(
        &mut self,
        tag: Tag,
        direction: Direction,
        plan: Plan,
        mut buffer: IoBuffer,
        last_step: LastStep,
    ) -> Option<Completion> {
        debug_assert!(covers(&plan, buffer.len()), "a plan covers its request");
        if direction == Direction::Read {
            for segment in &plan.segments {
                if segment.place == Place::Zeros {
                    buffer[segment.buffer.clone()].fill(0);
                }
            }
        }
        let Some(ring) = &mut self.ring else {
            let done = at_once(&self.devices, direction, &plan, &mut buffer);
            return end(tag, done, plan.guard, buffer, last_step, &mut self.unfinished);
        };
        let (storage, shape) = buffer.into_storage();
        let visible_from = shape.visible().start;
        self.segments.clear();
        for segment in &plan.segments {
            if let Place::Device(address) = segment.place {
                let (number, file_offset) = split_address(address);
                let Range { start, end } = segment.buffer;
                self.segments.push(ring::Segment {
                    file: number as u32,
                    file_offset,
                    memory: visible_from + start..visible_from + end,
                });
            }
        }
        if self.segments.is_empty() {
            return Some(Completion {
                tag,
                result: Ok(()),
                buffer: Some(IoBuffer::from_storage(storage, shape)),
            });
        }
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.in_flight.push(None);
            self.in_flight.len() - 1
        });
        self.in_flight[slot] = Some(InFlight {
            tag,
            shape,
            guard: plan.guard,
            last_step,
            #[cfg(test)]
            direction,
        });
        let token = Token(slot as u64);
        match direction {
            Direction::Read => ring.read(token, storage, &self.segments),
            Direction::Write => ring.write(token, storage, &self.segments, Persistence::Cached),
        }
        None
    }

    /// Hands a step of a flush to the ring, for [`take_flush_step`](Self::take_flush_step), or does it at once and answers
    /// how that went. All devices are [known](Self::knows_all).
    pub(super) fn start_step(&mut self, step: FlushStep) -> Option<io::Result<()>> {
        let Some(ring) = &mut self.ring else {
            return Some(match step {
                FlushStep::Write { address, bytes } => {
                    let (number, offset) = split_address(address);
                    on(&self.devices, number, |device| device.write_at(offset, &bytes))
                }
                FlushStep::Flush => {
                    let mut known = self.devices.iter().flatten();
                    known.try_for_each(|known| known.device.flush())
                }
            });
        };
        match step {
            FlushStep::Write { address, bytes } => {
                let (number, file_offset) = split_address(address);
                let (storage, shape) = bytes.into_storage();
                let segment = ring::Segment {
                    file: number as u32,
                    file_offset,
                    memory: shape.visible(),
                };
                ring.write(FLUSH, storage, &[segment], Persistence::Cached);
            }
            FlushStep::Flush => {
                let known = (0..).zip(&self.devices).filter(|(_, known)| known.is_some());
                ring.sync_data(FLUSH, known.map(|(number, _)| number));
            }
        }
        None
    }

    /// Tells how the step of a flush that was last started has ended, once.
    pub(super) fn take_flush_step(&mut self) -> Option<io::Result<()>> {
        self.flush_step.take()
    }

    pub(super) fn kick(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.kick();
        }
    }

    /// Hands out writes that need a thread to be finished. They complete when it is done.
    pub(super) fn take_unfinished(&mut self) -> Vec<Unfinished> {
        std::mem::take(&mut self.unfinished)
    }

    /// Waits until everything that was started has ended, and is mapped (Q4). Blocks.
    pub(super) fn drain(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.reap_all(&mut self.finished);
        }
        // Nobody is there to be told.
        self.end_finished(&mut Vec::new());
        for Unfinished { guard, buffer, .. } in self.take_unfinished() {
            let _ = guard.finish_blocking(&buffer);
        }
    }

    /// Appends what has ended. See also [`take_unfinished`](Self::take_unfinished).
    pub(super) fn reap(&mut self, completions: &mut Vec<Completion>) {
        if let Some(ring) = &mut self.ring {
            ring.reap(&mut self.finished);
        }
        self.end_finished(completions);
    }

    fn end_finished(&mut self, completions: &mut Vec<Completion>) {
        for finished in self.finished.drain(..) {
            #[cfg(test)]
            let finished = strike(finished, &self.in_flight);
            if finished.token == FLUSH {
                self.flush_step = Some(finished.result);
                continue;
            }
            let slot = finished.token.0 as usize;
            let InFlight {
                tag,
                shape,
                guard,
                last_step,
                ..
            } = self.in_flight[slot]
                .take()
                .expect("the ring reports an operation once");
            self.vacant.push(slot);
            let Some(storage) = finished.memory else {
                completions.push(Completion {
                    tag,
                    result: finished.result.map_err(to_io_error),
                    buffer: None,
                });
                continue;
            };
            let buffer = IoBuffer::from_storage(storage, shape);
            completions.extend(end(
                tag,
                finished.result,
                guard,
                buffer,
                last_step,
                &mut self.unfinished,
            ));
        }
    }
}

/// Makes it the end that a test wants.
#[cfg(test)]
fn strike(mut finished: Finished, in_flight: &[Option<InFlight>]) -> Finished {
    let in_flight = in_flight.get(finished.token.0 as usize);
    let operation = match in_flight.and_then(|of_it| of_it.as_ref()) {
        Some(transfer) if transfer.direction == Direction::Read => Operation::Read,
        Some(_) => Operation::Write,
        None if finished.memory.is_some() => Operation::LogWrite,
        None => Operation::Sync,
    };
    super::faults::strike(operation, &mut finished);
    finished
}

/// Ends a request whose I/O has ended, unless that needs a thread.
fn end(
    tag: Tag,
    done: io::Result<()>,
    guard: PlanGuard,
    buffer: IoBuffer,
    last_step: LastStep,
    unfinished: &mut Vec<Unfinished>,
) -> Option<Completion> {
    let ended = match done {
        Err(error) => Ended::Ended(Err(to_io_error(error))),
        Ok(()) => guard.finish(&buffer),
    };
    match ended {
        Ended::Ended(result) => Some(Completion {
            tag,
            result,
            buffer: Some(last_step.take(buffer)),
        }),
        Ended::NeedsSlowPath(guard) => {
            unfinished.push(Unfinished {
                tag,
                guard,
                buffer,
                last_step,
            });
            None
        }
    }
}

/// Carries a planned request out on a medium that is memory, its zeros aside.
fn at_once(
    devices: &[Option<Known>],
    direction: Direction,
    plan: &Plan,
    buffer: &mut IoBuffer,
) -> io::Result<()> {
    for segment in &plan.segments {
        let Place::Device(address) = segment.place else {
            continue;
        };
        let part = &mut buffer[segment.buffer.clone()];
        let (number, offset) = split_address(address);
        on(devices, number, |device| {
            let Some(DirectFile { file, .. }) = device.direct_file() else {
                return Err(io::ErrorKind::Unsupported.into());
            };
            match direction {
                Direction::Read => file.read_exact_at(part, offset),
                Direction::Write => file.write_all_at(part, offset),
            }
        })?;
    }
    Ok(())
}

fn on<T>(
    devices: &[Option<Known>],
    number: usize,
    work: impl FnOnce(&dyn PoolDevice) -> io::Result<T>,
) -> io::Result<T> {
    match devices.get(number) {
        Some(Some(known)) => work(&*known.device),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Tells whether a plan's segments follow each other from the start of the request to its end.
fn covers(plan: &Plan, length: usize) -> bool {
    let mut end = 0;
    plan.segments
        .iter()
        .all(|segment| std::mem::replace(&mut end, segment.buffer.end) == segment.buffer.start)
        && end == length
}

fn to_io_error(error: io::Error) -> IoError {
    match is_out_of_space(&error) {
        // A sparse file whose host is full: punched under the pool, or never written.
        true => IoError::NoSpace,
        false => IoError::Medium {
            detail: error.to_string(),
        },
    }
}
