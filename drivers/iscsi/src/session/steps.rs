//! A task's requests to the device: what is handed over when, and what comes of it.

use quarry_contract::{Completion, Durability, IoBuffer, IoError, Request as DeviceRequest, Tag, Verb};

use super::pacing::Pace;
use super::task::{Task, Work};
use super::{BUDGET_BYTES, Io, Role, SCARCE_BYTES, Session};
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
        let budget = BUDGET_BYTES.min(medium.useful_in_flight_bytes());
        let Some(task) = self.tasks.get(slot) else {
            return Advance::Done;
        };
        match task.work {
            Work::Read | Work::Verify(_) | Work::Repeat => {
                return self.submit_segments(slot, queue, budget, io);
            }
            Work::TwoPass { .. } => return self.submit_two_pass(slot, io),
            Work::Atomic(durability) => return self.submit_atomic(slot, queue, durability, io),
            Work::Copy(_) => return self.submit_copy(slot, io),
            Work::Sanitize { .. } => return self.start_sanitizing(slot, io),
            _ => {}
        }
        if !self.may_submit(slot, io) {
            return Advance::Done;
        }
        let Some(task) = self.tasks.get(slot) else {
            return Advance::Done;
        };
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

    /// Hands a write that is all or nothing to the device in one request, when all its data has come and its range is the
    /// task's alone: no read and no other write meets a part of it (SBC-4, atomic writes).
    fn submit_atomic(&mut self, slot: u16, queue: usize, durability: Durability, io: &mut Io<'_>) -> Advance {
        let has_begun = |task: &mut Task| task.failure.is_some() || task.submitted == task.steps();
        if self.tasks.get(slot).is_none_or(has_begun) || !self.has_to_itself(slot, io) {
            return Advance::Done;
        }
        let bytes = self.tasks.get(slot).map_or(0, |task| task.span.bytes() as usize);
        // It counts against the budget and does not wait for it: others may be waiting for the range.
        let mut buffer = self.take_charged(slot, bytes, io);
        let Some(task) = self.tasks.get(slot) else {
            return Advance::Done;
        };
        buffer.copy_from_slice(&task.parameter);
        task.submitted = 1;
        let verb = Verb::WriteAtomic {
            offset: task.span.range().start,
            buffer,
            durability,
        };
        let tag = tag_of(io.connection, slot, 0);
        io.devices.submit(queue, DeviceRequest { tag, verb });
        Advance::Done
    }

    /// Hands to the device, as the budget allows, the segments of a task that brings their contents itself.
    fn submit_segments(&mut self, slot: u16, queue: usize, budget: usize, io: &mut Io<'_>) -> Advance {
        loop {
            let Some(task) = self.tasks.get(slot) else {
                return Advance::Done;
            };
            let step = task.submitted;
            if task.failure.is_some() || step == task.steps() {
                return Advance::Done;
            }
            let len = task.span.segment(step).1 as usize;
            if !self.keeps_pace(slot, io) || !self.may_submit(slot, io) {
                return Advance::Done;
            }
            if self.exceeds(budget, len, io) {
                return Advance::Blocked;
            }
            let mut buffer = self.take_charged(slot, len, io);
            let Some(task) = self.tasks.get(slot) else {
                return Advance::Done;
            };
            let offset = task.span.device_offset(step);
            let verb = if matches!(task.work, Work::Repeat) {
                task.pace = Pace::Due;
                let block = task.parameter.as_slice();
                buffer
                    .chunks_exact_mut(block.len())
                    .for_each(|part| part.copy_from_slice(block));
                Verb::Write {
                    offset,
                    buffer,
                    durability: Durability::Cached,
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
    pub(super) fn exceeds(&mut self, budget: usize, bytes: usize, io: &Io<'_>) -> bool {
        let budget = match io.buffers.are_scarce() {
            true => budget.min(SCARCE_BYTES),
            false => budget,
        };
        self.charged + bytes > budget && (!io.outbox.is_empty() || self.tasks.any_moving())
    }

    /// Hands the segments of a write to the device that have come in whole.
    pub(super) fn submit_full_segments(&mut self, slot: u16, io: &mut Io<'_>) {
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        let Work::Write(durability) = task.work else {
            return;
        };
        let goes_on = task.started && task.pace == Pace::Granted && task.failure.is_none() && !task.aborted;
        if !goes_on || !self.may_submit(slot, io) {
            return;
        }
        let (Role::Normal(medium), Some(task)) = (&self.role, self.tasks.get(slot)) else {
            return;
        };
        let queue = medium.queue();
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
        if task.in_flight() == 0 && !self.drains.is_empty() {
            self.task_drained(slot);
        }
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        if let Err(error) = &completion.result {
            tracing::debug!(itt = task.itt, %error, "device request failed");
            let mut sense = Sense::of_io_error(error, task.step_writes(step));
            if let IoError::Corrupt { offset, .. } = error
                && let Role::Normal(medium) = &self.role
                && matches!(task.work, Work::Read | Work::Verify(_))
            {
                // The block of a checksum may begin before what was asked for.
                let first_byte = task.span.range().start.max(*offset);
                let block_bytes = u64::from(medium.unit().limits().logical_block_bytes);
                sense = sense.with_information(first_byte / block_bytes);
            }
            task.fail(sense);
        }
        if let Some(buffer) = completion.buffer {
            self.take_back(slot, step, buffer, io);
        }
        self.settle(slot, io);
    }

    /// Does with a buffer that has been at the device what is due.
    fn take_back(&mut self, slot: u16, step: usize, buffer: IoBuffer, io: &mut Io<'_>) {
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        match &task.work {
            Work::TwoPass { .. } => self.two_pass_completed(slot, step, buffer, io),
            Work::Copy(_) => self.copy_completed(slot, step, buffer, io),
            Work::Read if task.failure.is_none() && !task.aborted => {
                task.segments[step] = Some(buffer);
                self.send_segments(slot, io);
            }
            work => {
                if let (Work::Verify(check), None) = (work, task.failure)
                    && let Some(at) = difference(*check, &task.parameter, task.span.segment(step).0, &buffer)
                {
                    task.fail(Sense::MISCOMPARE.with_information(at.into()));
                }
                self.give_charged(slot, buffer, io);
            }
        }
    }
}

/// A device request's tag: connection, task slot and step.
pub(super) fn tag_of(connection: u32, slot: u16, step: usize) -> Tag {
    Tag(u64::from(connection) << 32 | u64::from(slot) << 16 | (step & 0xffff) as u64)
}

/// Returns the offset of the first byte that differs from what a VERIFY sent.
fn difference(check: ByteCheck, sent: &[u8], begin: u32, medium: &[u8]) -> Option<u32> {
    match check {
        ByteCheck::MediumOnly => None,
        ByteCheck::Whole => first_difference(&sent[begin as usize..], medium).map(|at| begin + at as u32),
        ByteCheck::OneBlock => medium
            .chunks(sent.len().max(1))
            .find_map(|block| first_difference(sent, block).map(|at| at as u32)),
    }
}

/// Returns the offset of the first byte in which two runs of bytes differ, as far as both go.
pub(super) fn first_difference(some: &[u8], others: &[u8]) -> Option<usize> {
    some.iter().zip(others).position(|(a, b)| a != b)
}
