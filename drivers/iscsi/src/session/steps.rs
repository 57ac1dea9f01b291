//! A task's requests to the device: what is handed over when, and what comes of it.

use quarry_contract::{Completion, Request as DeviceRequest, Tag, Verb};

use super::task::Work;
use super::{BUDGET_BYTES, Io, Role, Session};
use crate::scsi::{ByteCheck, Sense};

/// How far a task got.
pub(super) enum Advance {
    /// As far as it can for now; what it waits for will bring it on.
    Done,
    /// It waits for the budget.
    Blocked,
}

impl Session {
    /// Hands to the device what does not wait for data of the initiator.
    pub(super) fn submit_steps(&mut self, slot: u16, io: &mut Io<'_>) -> Advance {
        let Role::Normal(medium) = &self.role else {
            return Advance::Done;
        };
        let queue = medium.queue();
        let Some(task) = self.tasks.get(slot) else {
            return Advance::Done;
        };
        if matches!(task.work, Work::Read | Work::Verify(_) | Work::Repeat) {
            return self.submit_segments(slot, queue, io);
        }
        while task.failure.is_none() && task.submitted < task.steps() {
            let verb = match &mut task.work {
                Work::Verbs(verbs) => match verbs.pop() {
                    Some(verb) => verb,
                    None => break,
                },
                Work::Flush => Verb::Flush,
                _ => break,
            };
            let tag = tag_of(io.connection, slot, task.submitted);
            task.submitted += 1;
            io.devices.submit(queue, DeviceRequest { tag, verb });
        }
        Advance::Done
    }

    /// Hands to the device, as the budget allows, the segments of a task that brings their contents itself.
    fn submit_segments(&mut self, slot: u16, queue: usize, io: &mut Io<'_>) -> Advance {
        loop {
            let Some(task) = self.tasks.get(slot) else {
                return Advance::Done;
            };
            let step = task.submitted;
            if task.failure.is_some() || step == task.steps() {
                return Advance::Done;
            }
            let len = task.span.segment(step).1 as usize;
            if self.exceeds_budget(len, io) {
                return Advance::Blocked;
            }
            let Some(task) = self.tasks.get(slot) else {
                return Advance::Done;
            };
            self.charged += len;
            task.charged += len;
            let mut buffer = io.buffers.take(len);
            let offset = task.span.device_offset(step);
            let verb = if matches!(task.work, Work::Repeat) {
                let block = task.parameter.as_slice();
                buffer
                    .chunks_exact_mut(block.len())
                    .for_each(|part| part.copy_from_slice(block));
                Verb::Write {
                    offset,
                    buffer,
                    durability: quarry_contract::Durability::Cached,
                }
            } else {
                Verb::Read { offset, buffer }
            };
            task.submitted += 1;
            let tag = tag_of(io.connection, slot, step);
            io.devices.submit(queue, DeviceRequest { tag, verb });
        }
    }

    /// Tells whether more bytes in buffers must wait (S3).
    ///
    /// They must not when nothing is moving that would give bytes back by itself: part-filled segments of writes
    /// are waiting, perhaps, for the very data that is not being asked for.
    pub(super) fn exceeds_budget(&mut self, bytes: usize, io: &Io<'_>) -> bool {
        self.charged + bytes > BUDGET_BYTES && (!io.outbox.is_empty() || self.tasks.any_moving())
    }

    /// Hands the segments of a write to the device that have come in whole.
    pub(super) fn submit_full_segments(&mut self, slot: u16, io: &mut Io<'_>) {
        let Role::Normal(medium) = &self.role else {
            return;
        };
        let queue = medium.queue();
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        let Work::Write(durability) = task.work else {
            return;
        };
        if !task.started || task.failure.is_some() || task.aborted {
            return;
        }
        while let Some(segment) = task.segments.get_mut(task.submitted) {
            let (begin, len) = task.span.segment(task.submitted);
            if task.received < begin + len {
                return;
            }
            let Some(buffer) = segment.take() else {
                return;
            };
            let request = DeviceRequest {
                tag: tag_of(io.connection, slot, task.submitted),
                verb: Verb::Write {
                    offset: task.span.device_offset(task.submitted),
                    buffer,
                    durability,
                },
            };
            task.submitted += 1;
            io.devices.submit(queue, request);
        }
    }

    /// Takes the end of one device request of a task.
    pub(super) fn complete_step(&mut self, slot: u16, step: usize, completion: Completion, io: &mut Io<'_>) {
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        task.completed += 1;
        let reads = matches!(task.work, Work::Read | Work::Verify(_));
        if let Err(error) = &completion.result {
            tracing::debug!(itt = task.itt, %error, "device request failed");
            task.fail(Sense::of_io_error(error, !reads));
        }
        if let Some(buffer) = completion.buffer {
            let sends = matches!(task.work, Work::Read) && task.failure.is_none() && !task.aborted;
            if sends {
                task.segments[step] = Some(buffer);
            } else {
                if let (Work::Verify(check), None) = (&task.work, task.failure)
                    && let Some(at) = difference(*check, &task.parameter, task.span.segment(step).0, &buffer)
                {
                    task.fail(Sense::MISCOMPARE.with_information(at));
                }
                let len = buffer.len();
                task.charged -= len;
                self.charged -= len;
                io.buffers.give(buffer);
            }
        }
        if matches!(task.work, Work::Read) {
            self.send_segments(slot, io);
        }
        self.settle(slot, io);
    }
}

/// A device request's tag: connection, task slot and step.
fn tag_of(connection: u32, slot: u16, step: usize) -> Tag {
    Tag(u64::from(connection) << 32 | u64::from(slot) << 16 | (step & 0xffff) as u64)
}

/// Returns the offset of the first byte that differs from what a VERIFY sent.
fn difference(check: ByteCheck, sent: &[u8], begin: u32, medium: &[u8]) -> Option<u32> {
    let first = |expected: &[u8], part: &[u8]| part.iter().zip(expected).position(|(a, b)| a != b);
    match check {
        ByteCheck::MediumOnly => None,
        ByteCheck::Whole => first(&sent[begin as usize..], medium).map(|at| begin + at as u32),
        ByteCheck::OneBlock => medium
            .chunks(sent.len().max(1))
            .find_map(|block| first(sent, block).map(|at| at as u32)),
    }
}
