//! Commands that read and write the same blocks as one step: COMPARE AND WRITE, ORWRITE, WRITE AND VERIFY
//! (SBC-3 5.2, 5.10, 5.33). Each holds its range alone, so that nothing comes between the two passes.
//!
//! Each segment of the span is two device requests: step `i` in the first pass and step `segments + i` in the
//! second. All data has come before the first. Every buffer counts against the session's budget but does not wait
//! for it: others may be waiting for the range. A few segments are under way at a time instead.

use quarry_contract::{IoBuffer, Request as DeviceRequest, Verb};

use super::steps::{Advance, first_difference, tag_of};
use super::task::{TwoPass, Work};
use super::{Io, Role, Session};
use crate::scsi::Sense;

/// Segments under way at a time.
const SEGMENTS_AT_A_TIME: usize = 8;

impl Session {
    /// Begins the first pass of as many segments as may be under way.
    pub(super) fn submit_two_pass(&mut self, slot: u16, io: &mut Io<'_>) -> Advance {
        if !self.has_to_itself(slot, io) {
            return Advance::Done;
        }
        while let Some(task) = self.tasks.get(slot) {
            let (segments, in_flight) = (task.span.segments(), task.in_flight());
            let Work::TwoPass { kind, begun, .. } = &mut task.work else {
                break;
            };
            let over = task.failure.is_some() || task.aborted;
            if over || *begun == segments || in_flight == SEGMENTS_AT_A_TIME {
                break;
            }
            let (index, kind) = (*begun, *kind);
            *begun += 1;
            let (begin, len) = task.span.segment(index);
            let mut buffer = self.take_charged(slot, len as usize, io);
            if kind.writes_first() {
                if let Some(task) = self.tasks.get(slot) {
                    buffer.copy_from_slice(&task.parameter[begin as usize..][..len as usize]);
                }
                self.submit_segment(slot, index, Direction::Write, buffer, io);
            } else {
                self.submit_segment(slot, index, Direction::Read, buffer, io);
            }
        }
        Advance::Done
    }

    /// Goes on with a segment whose request has ended.
    pub(super) fn two_pass_completed(
        &mut self,
        slot: u16,
        step: usize,
        mut buffer: IoBuffer,
        io: &mut Io<'_>,
    ) {
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        let Work::TwoPass { kind, .. } = task.work else {
            return;
        };
        let segments = task.span.segments();
        let index = step % segments;
        let (begin, len) = task.span.segment(index);
        let sent = task.parameter.get(begin as usize..(begin + len) as usize);
        let over = task.failure.is_some() || task.aborted;
        match kind {
            _ if over => self.give_charged(slot, buffer, io),
            TwoPass::CompareAndWrite if step < segments => {
                task.segments[index] = Some(buffer);
                if task.completed == segments {
                    self.compare_then_write(slot, io);
                }
            }
            TwoPass::OrWrite if step < segments => {
                for (byte, more) in buffer.iter_mut().zip(sent.unwrap_or_default()) {
                    *byte |= more;
                }
                self.submit_segment(slot, index, Direction::Write, buffer, io);
            }
            TwoPass::WriteAndVerify { .. } if step < segments => {
                self.submit_segment(slot, index, Direction::Read, buffer, io);
            }
            TwoPass::WriteAndVerify { compare: true } => {
                if let Some(at) = first_difference(sent.unwrap_or_default(), &buffer) {
                    task.fail(Sense::MISCOMPARE.with_information(u64::from(begin) + at as u64));
                }
                self.give_charged(slot, buffer, io);
            }
            _ => self.give_charged(slot, buffer, io),
        }
        self.submit_two_pass(slot, io);
    }

    /// Compares what was read with the first half of the data, and writes the second half if it is the same.
    fn compare_then_write(&mut self, slot: u16, io: &mut Io<'_>) {
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        let half = task.parameter.len() / 2;
        let mut buffers: Vec<IoBuffer> = task.segments.iter_mut().filter_map(Option::take).collect();
        let mut at = 0;
        for buffer in &mut buffers {
            let end = at + buffer.len();
            if let Some(difference) = first_difference(&task.parameter[at..end], buffer) {
                task.fail(Sense::MISCOMPARE.with_information((at + difference) as u64));
                break;
            }
            buffer.copy_from_slice(&task.parameter[half + at..half + end]);
            at = end;
        }
        let differs = task.failure.is_some();
        for (index, buffer) in buffers.into_iter().enumerate() {
            match differs {
                true => self.give_charged(slot, buffer, io),
                false => self.submit_segment(slot, index, Direction::Write, buffer, io),
            }
        }
    }

    fn submit_segment(
        &mut self,
        slot: u16,
        index: usize,
        direction: Direction,
        buffer: IoBuffer,
        io: &mut Io<'_>,
    ) {
        let Role::Normal(medium) = &self.role else {
            return;
        };
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        let Work::TwoPass { kind, durability, .. } = task.work else {
            return;
        };
        let is_first = kind.writes_first() == (direction == Direction::Write);
        let step = if is_first {
            index
        } else {
            task.span.segments() + index
        };
        let offset = task.span.device_offset(index);
        let verb = match direction {
            Direction::Read => Verb::Read { offset, buffer },
            Direction::Write => Verb::Write {
                offset,
                buffer,
                durability,
            },
        };
        task.submitted += 1;
        let tag = tag_of(io.connection, slot, step);
        io.devices.submit(medium.queue(), DeviceRequest { tag, verb });
    }

    /// Takes a buffer that counts against the budget.
    pub(super) fn take_charged(&mut self, slot: u16, bytes: usize, io: &mut Io<'_>) -> IoBuffer {
        if let Some(task) = self.tasks.get(slot) {
            task.charged += bytes;
            self.charged += bytes;
        }
        io.buffers.take(bytes)
    }

    /// Gives such a buffer back.
    pub(super) fn give_charged(&mut self, slot: u16, buffer: IoBuffer, io: &mut Io<'_>) {
        if let Some(task) = self.tasks.get(slot) {
            task.charged -= buffer.len();
            self.charged -= buffer.len();
        }
        io.buffers.give(buffer);
    }
}

/// What a request of a segment does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

impl TwoPass {
    /// Tells whether the first pass writes and the second reads.
    pub(super) fn writes_first(self) -> bool {
        matches!(self, TwoPass::WriteAndVerify { .. })
    }
}
