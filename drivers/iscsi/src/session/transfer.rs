//! Data of commands: Data-Out and R2T in, Data-In out (RFC 7143 4.2.5, 11.7, 11.8).

use std::sync::Arc;

use super::command::residual_of;
use super::task::{Awaiting, Burst, Work};
use super::{BUDGET_BYTES, Io, Session, Sink, Violation};
use crate::pdu::{DataIn, DataOut, NO_TAG, ReadyToTransfer};
use crate::scsi::Sense;

impl Session {
    /// Takes a Data-Out whose header has come.
    pub(super) fn begin_data_out(&mut self, data: &DataOut, data_bytes: usize) -> Result<Sink, Violation> {
        // Data of a task that has ended, by abort or by an early status, still comes in; it is dropped.
        let Some(slot) = self.tasks.find(data.itt) else {
            return Ok(Sink::Discard);
        };
        let first_burst = self.parameters.first_burst_bytes;
        let Some(task) = self.tasks.get(slot) else {
            return Ok(Sink::Discard);
        };
        if task.aborted {
            return Ok(Sink::Discard);
        }
        let end = u64::from(data.offset) + data_bytes as u64;
        let in_sequence = match (task.awaiting, task.bursts.front()) {
            (Awaiting::Unsolicited, _) => {
                data.ttt == NO_TAG && end <= u64::from(first_burst.min(task.expected_bytes))
            }
            (Awaiting::Bursts, Some(burst)) => data.ttt == burst.ttt && end <= u64::from(burst.end),
            _ => false,
        };
        // DataPDUInOrder and DataSequenceInOrder are Yes: a gap or a step back is an error of the initiator,
        // and at error recovery level 0 ends the command.
        if !in_sequence || data.offset != task.received || data.data_sn != task.data_sn {
            task.fail(Sense::DATA_PHASE_ERROR);
        }
        task.data_sn = task.data_sn.wrapping_add(1);
        let unsolicited = task.awaiting == Awaiting::Unsolicited;
        let offset = task.received;
        let failed = task.failure.is_some();
        self.current = Some(slot);
        if failed {
            return Ok(Sink::Discard);
        }
        if unsolicited {
            self.charge_unsolicited(slot, data_bytes);
        }
        Ok(Sink::Task { slot, offset })
    }

    /// Counts unsolicited data of a write. It is not refused: its amount is bounded by the first burst and the
    /// window.
    pub(super) fn charge_unsolicited(&mut self, slot: u16, data_bytes: usize) {
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        if task.failure.is_none() && matches!(task.work, Work::Write(_)) {
            let useful = data_bytes.min((task.wanted - task.wanted.min(task.received)) as usize);
            task.charged += useful;
            self.charged += useful;
        }
    }

    /// Returns where the next bytes of a task's data belong, when they belong into an I/O buffer.
    pub fn space(&mut self, slot: u16, offset: u32, io: &mut Io<'_>) -> Option<&mut [u8]> {
        let task = self.tasks.get(slot)?;
        if !matches!(task.work, Work::Write(_)) || task.failure.is_some() || task.aborted {
            return None;
        }
        if offset >= task.wanted {
            return None;
        }
        let (index, within) = task.span.locate(offset);
        let len = task.span.segment(index).1 as usize;
        let buffer = task.segments[index].get_or_insert_with(|| io.buffers.take(len));
        Some(&mut buffer[within as usize..])
    }

    /// Says that bytes have been put where [`Session::space`] said. Whole segments go to the device at once,
    /// unless a digest is still to be checked.
    pub fn stored(&mut self, slot: u16, bytes: usize, io: &mut Io<'_>) {
        if let Some(task) = self.tasks.get(slot) {
            task.received += bytes as u32;
            if !self.parameters.data_digest {
                self.submit_full_segments(slot, io);
            }
        }
    }

    /// Puts bytes of a task's data where they belong.
    pub fn store(&mut self, slot: u16, mut offset: u32, mut bytes: &[u8], io: &mut Io<'_>) {
        while !bytes.is_empty() {
            let Some(space) = self.space(slot, offset, io) else {
                self.collect(slot, bytes);
                return;
            };
            let len = space.len().min(bytes.len());
            let (head, rest) = bytes.split_at(len);
            space[..len].copy_from_slice(head);
            self.stored(slot, len, io);
            offset += len as u32;
            bytes = rest;
        }
    }

    /// Keeps what a parameter list needs of it, and drops the rest.
    fn collect(&mut self, slot: u16, bytes: &[u8]) {
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        let collects = matches!(
            task.work,
            Work::List(_) | Work::SameBlock { .. } | Work::Verify(_) | Work::TwoPass { .. } | Work::Atomic(_)
        );
        if collects && task.failure.is_none() && !task.aborted {
            let useful = bytes.len().min(task.wanted as usize - task.parameter.len());
            task.parameter.extend_from_slice(&bytes[..useful]);
        }
        task.received = task.received.saturating_add(bytes.len() as u32);
    }

    /// Goes on with the task whose Data-Out is whole.
    pub(super) fn finish_data_out(&mut self, data: &DataOut, io: &mut Io<'_>) {
        let Some(slot) = self.current.take() else {
            return;
        };
        self.submit_full_segments(slot, io);
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        if !data.last {
            return;
        }
        if let Some(burst) = task.bursts.pop_front()
            && task.received != burst.end
        {
            task.fail(Sense::INCORRECT_AMOUNT_OF_DATA);
        }
        // A command that has failed is answered when all that was asked for has come (RFC 7143 11.4.2).
        if task.bursts.is_empty() {
            task.awaiting = Awaiting::Nothing;
        }
        task.data_sn = 0;
        if task.failure.is_some() {
            self.settle(slot, io);
            self.pump(io);
        } else {
            self.enqueue(slot, io);
        }
    }

    /// Asks for the next bursts of a task's data, as many as may be on their way. False when none is and the budget
    /// does not allow one now.
    pub(super) fn ask_for_data(&mut self, slot: u16, io: &mut Io<'_>) -> bool {
        loop {
            let Some(task) = self.tasks.get(slot) else {
                return true;
            };
            let offset = task.asked();
            let bytes = self.parameters.max_burst_bytes.min(task.wanted - offset);
            let outstanding = task.bursts.len();
            if bytes == 0 || outstanding == usize::from(self.parameters.max_outstanding_r2t) {
                return true;
            }
            if self.exceeds(BUDGET_BYTES, bytes as usize, io) {
                return outstanding > 0;
            }
            self.send_r2t(slot, offset, bytes, io);
        }
    }

    fn send_r2t(&mut self, slot: u16, offset: u32, bytes: u32, io: &mut Io<'_>) {
        let ttt = self.next_transfer_tag();
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        self.charged += bytes as usize;
        task.charged += bytes as usize;
        task.awaiting = Awaiting::Bursts;
        task.bursts.push_back(Burst {
            ttt,
            end: offset + bytes,
        });
        let r2t = ReadyToTransfer {
            lun: task.lun,
            itt: task.itt,
            ttt,
            r2t_sn: task.r2t_sn,
            offset,
            desired_bytes: bytes,
        };
        task.r2t_sn += 1;
        io.outbox.header(&r2t.encode(self.numbers.peek()));
    }

    /// Sends the segments of a read that are there, in order; the last goes with the status.
    pub(super) fn send_segments(&mut self, slot: u16, io: &mut Io<'_>) {
        loop {
            let Some(task) = self.tasks.get(slot) else {
                return;
            };
            if task.failure.is_some() || task.aborted {
                return;
            }
            let index = task.sent;
            let Some(buffer) = task.segments.get_mut(index).and_then(Option::take) else {
                return;
            };
            let (begin, len) = task.span.segment(index);
            // The initiator may have room for a part of the last block only.
            let useful = len.min(task.expected_bytes - begin) as usize;
            task.sent += 1;
            task.charged -= len as usize;
            let last = task.sent == task.span.segments();
            self.send_segment(slot, buffer, useful, last, io);
        }
    }

    fn send_segment(
        &mut self,
        slot: u16,
        buffer: quarry_contract::IoBuffer,
        useful: usize,
        last: bool,
        io: &mut Io<'_>,
    ) {
        let begin = match self.tasks.get(slot) {
            Some(task) => task.span.segment(task.sent - 1).0,
            None => 0,
        };
        if useful <= self.chunk(slot, useful) {
            let header = self.data_in(slot, begin, useful, last, io);
            io.outbox.whole(&header, buffer, useful);
            return;
        }
        let buffer = Arc::new(buffer);
        let mut at = 0;
        while at < useful {
            let len = self.chunk(slot, useful - at);
            let ends = last && at + len == useful;
            let header = self.data_in(slot, begin + at as u32, len, ends, io);
            io.outbox.part(&header, &buffer, at, len);
            at += len;
        }
    }

    /// Returns how much of `bytes` the next Data-In may carry: no more than the initiator takes in one, nor
    /// than is left of the burst. A multiple of four, unless it is all.
    fn chunk(&mut self, slot: u16, bytes: usize) -> usize {
        let segment = self.parameters.send_segment_bytes & !3;
        let burst = self.parameters.max_burst_bytes & !3;
        let sent = self.tasks.get(slot).map_or(0, |task| task.burst_sent);
        bytes.min(segment.min(burst - sent) as usize)
    }

    /// Makes the header of the next Data-In. The one that ends the command carries its status, and the task is
    /// forgotten.
    fn data_in(
        &mut self,
        slot: u16,
        offset: u32,
        bytes: usize,
        ends: bool,
        io: &mut Io<'_>,
    ) -> crate::pdu::Bhs {
        let burst = self.parameters.max_burst_bytes & !3;
        let mut data = DataIn {
            itt: 0,
            last: ends,
            good_with_residual: None,
            data_sn: 0,
            offset,
            data_bytes: bytes,
        };
        if let Some(task) = self.tasks.get(slot) {
            data.itt = task.itt;
            data.data_sn = task.data_in_sn;
            task.data_in_sn += 1;
            task.burst_sent += bytes as u32;
            if task.burst_sent == burst {
                task.burst_sent = 0;
                data.last = true;
            }
            if ends {
                data.good_with_residual = Some(residual_of(task.expected_bytes, task.command_bytes));
            }
        }
        if ends {
            self.forget(slot, io);
            data.encode(self.numbers.respond())
        } else {
            data.encode(self.numbers.peek())
        }
    }

    /// Sends an answer that needed no I/O, as far as the initiator has room for it.
    pub(super) fn send_reply(&mut self, slot: u16, io: &mut Io<'_>) {
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        let mut data = std::mem::take(&mut task.parameter);
        data.truncate(task.expected_bytes as usize);
        if data.is_empty() {
            self.respond(slot, io);
            return;
        }
        let mut at = 0;
        while at < data.len() {
            let len = self.chunk(slot, data.len() - at);
            let ends = at + len == data.len();
            let header = self.data_in(slot, at as u32, len, ends, io);
            io.outbox.small(&header, data[at..at + len].to_vec());
            at += len;
        }
    }
}
