//! Requests that involve no other thread: the queue's own ring does them, or they are done at once.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use quarry_contract::{Completion, IoBuffer, IoBufferShape, IoError, Tag};
use quarry_sys::ring::{self, Finished, Persistence, Ring, Token};

use super::spares::Spares;
use crate::format::split_address;
use crate::keys::Cipher;
use crate::{Finished as Ended, Place, Plan, PlanGuard};

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
    alignment_bytes: usize,
    unfinished: Vec<Unfinished>,
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

struct InFlight {
    tag: Tag,
    shape: IoBufferShape,
    guard: PlanGuard,
    last_step: LastStep,
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
    pub(super) fn new(ring: Option<Ring>, alignment_bytes: u32) -> Self {
        Self {
            ring,
            in_flight: Vec::new(),
            vacant: Vec::new(),
            alignment_bytes: alignment_bytes as usize,
            unfinished: Vec::new(),
            segments: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// Returns the ring, for its descriptor.
    pub(super) fn ring(&self) -> Option<&Ring> {
        self.ring.as_ref()
    }

    /// Tells whether the medium takes the plan's segments as they are.
    pub(super) fn takes(&self, plan: &Plan) -> bool {
        let aligned = |at: usize| at.is_multiple_of(self.alignment_bytes);
        plan.segments.iter().all(|segment| match segment.place {
            Place::Zeros => true,
            // The ring is on the file of the first device.
            Place::Device(offset) => {
                split_address(offset).0 == 0
                    && aligned(segment.buffer.start)
                    && aligned(segment.buffer.end)
                    && aligned(offset as usize)
            }
        })
    }

    /// Hands a planned request on `file` to the ring. Answers its completion when it has ended already. See also
    /// [`take_unfinished`](Self::take_unfinished).
    pub(super) fn start(
        &mut self,
        file: &File,
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
            let done = at_once(file, direction, &plan, &mut buffer);
            return end(tag, done, plan.guard, buffer, last_step, &mut self.unfinished);
        };
        let (storage, shape) = buffer.into_storage();
        let visible_from = shape.visible().start;
        self.segments.clear();
        for segment in &plan.segments {
            if let Place::Device(file_offset) = segment.place {
                let Range { start, end } = segment.buffer;
                self.segments.push(ring::Segment {
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
        });
        let token = Token(slot as u64);
        match direction {
            Direction::Read => ring.read(token, storage, &self.segments),
            Direction::Write => ring.write(token, storage, &self.segments, Persistence::Cached),
        }
        None
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
            let slot = finished.token.0 as usize;
            let InFlight {
                tag,
                shape,
                guard,
                last_step,
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
fn at_once(file: &File, direction: Direction, plan: &Plan, buffer: &mut IoBuffer) -> io::Result<()> {
    for segment in &plan.segments {
        let Place::Device(offset) = segment.place else {
            continue;
        };
        let part = &mut buffer[segment.buffer.clone()];
        match direction {
            Direction::Read => file.read_exact_at(part, offset)?,
            Direction::Write => file.write_all_at(part, offset)?,
        }
    }
    Ok(())
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
    match error.kind() {
        // A sparse file whose host is full: punched under the pool, or never written.
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => IoError::NoSpace,
        _ => IoError::Medium {
            detail: error.to_string(),
        },
    }
}
