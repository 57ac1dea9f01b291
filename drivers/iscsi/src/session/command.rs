//! SCSI commands: from the CDB to the device and back to a status.

use std::sync::Arc;

use quarry_contract::{Access, Completion, Request as DeviceRequest, Tag, Verb, ZeroMode};

use super::task::{Awaiting, Span, Work};
use super::{BUDGET_BYTES, Io, Session, Sink, Violation, numbers};
use crate::exports::{ConnectionAddress, Export, Nexus};
use crate::pdu::{RejectReason, ScsiCommand, ScsiResponse};
use crate::scsi::{BlockRange, ByteCheck, Command, LogicalUnit, Sense, Status, is_lun_zero};
use crate::scsi::{parse_unmap_list, report_luns, sense_data, unsupported_inquiry};

/// The most tasks of a session; those beyond the command window are immediate.
const MAX_TASKS: usize = numbers::WINDOW as usize + 32;

/// The most data that a VERIFY compares with, in bytes: it is held in memory as a whole.
const MAX_COMPARE_BYTES: u32 = 1 << 20;

/// What a normal session works on.
pub struct Medium {
    unit: LogicalUnit,
    export: Arc<Export>,
    nexus: Arc<Nexus>,
    tsih: u16,
    /// The reactor's queue of the device.
    queue: usize,
    address: ConnectionAddress,
}

/// What a command needs before it can be answered.
enum Plan {
    /// Nothing: this is its data.
    Reply(Vec<u8>),
    /// Work on the medium.
    Work {
        work: Work,
        span: Span,
        /// Data-Out bytes of use.
        wanted: u32,
        /// What the CDB would transfer, in bytes.
        command_bytes: u64,
    },
}

impl Medium {
    /// Joins a registered session with its reactor's queue.
    pub fn new(
        unit: LogicalUnit,
        export: Arc<Export>,
        (nexus, tsih): (Arc<Nexus>, u16),
        queue: usize,
        address: ConnectionAddress,
    ) -> Self {
        Self {
            unit,
            export,
            nexus,
            tsih,
            queue,
            address,
        }
    }

    /// Returns the export.
    pub fn export(&self) -> &Arc<Export> {
        &self.export
    }

    /// Returns the session's handle.
    pub fn tsih(&self) -> u16 {
        self.tsih
    }

    /// Returns the reactor's queue of the device.
    pub fn queue(&self) -> usize {
        self.queue
    }

    /// Returns where the session lives.
    pub fn address(&self) -> ConnectionAddress {
        self.address
    }

    /// Returns the target's name.
    pub fn target_name(&self) -> &str {
        &self.unit.identity().target_name
    }

    fn write_protected(&self) -> bool {
        self.nexus.access.get() == Access::ReadOnly || self.unit.device().is_read_only()
    }

    /// Decides what a command needs.
    fn plan(&self, request: &ScsiCommand) -> Result<Plan, Sense> {
        let command = Command::parse(&request.cdb);
        if !is_lun_zero(request.lun) {
            return absent_unit(command);
        }
        let passes_attention = command.as_ref().is_ok_and(Command::passes_unit_attention);
        if !passes_attention && let Some(attention) = self.nexus.take_attention() {
            return Err(attention);
        }
        let command = command?;
        if let Command::RequestSense {
            descriptor_format,
            allocation,
        } = command
            && let Some(attention) = self.nexus.take_attention()
        {
            let mut data = sense_data(attention, descriptor_format);
            data.truncate(allocation as usize);
            return Ok(Plan::Reply(data));
        }
        if command.writes() && self.write_protected() {
            return Err(Sense::WRITE_PROTECTED);
        }
        match self.unit.answer(&command, self.write_protected()) {
            Some(answer) => answer.map(Plan::Reply),
            None => self.plan_work(&command, request),
        }
    }

    fn span(&self, range: BlockRange, bytes: u32) -> Span {
        let start = range.lba * u64::from(self.unit.block_bytes());
        Span::new(start, bytes, self.unit.limits().max_transfer_bytes)
    }

    fn plan_work(&self, command: &Command, request: &ScsiCommand) -> Result<Plan, Sense> {
        let block = self.unit.block_bytes();
        let readable = if request.read { request.expected_bytes } else { 0 };
        let writable = if request.write { request.expected_bytes } else { 0 };
        let none = Span::default();
        let plan = |work, span, wanted, command_bytes: u64| Plan::Work {
            work,
            span,
            wanted,
            command_bytes,
        };
        Ok(match *command {
            Command::Read(range) => {
                self.unit.check_transfer(range)?;
                let bytes = range.blocks * block;
                // Whole blocks, as many as the initiator has room for; the residual tells the rest.
                let useful = bytes.min(readable).next_multiple_of(block);
                plan(Work::Read, self.span(range, useful), 0, bytes.into())
            }
            Command::Write { range, durability } => {
                self.unit.check_transfer(range)?;
                let bytes = range.blocks * block;
                let useful = bytes.min(writable - writable % block);
                let span = self.span(range, useful);
                plan(Work::Write(durability), span, useful, bytes.into())
            }
            Command::Verify { range, check } => {
                self.unit.check_transfer(range)?;
                let bytes = range.blocks * block;
                let sent = match check {
                    ByteCheck::MediumOnly => 0,
                    ByteCheck::Whole => bytes,
                    ByteCheck::OneBlock => block.min(bytes),
                };
                if sent > writable || sent > MAX_COMPARE_BYTES {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                }
                plan(Work::Verify(check), self.span(range, bytes), sent, sent.into())
            }
            Command::SynchronizeCache(range) => {
                self.unit.check_range(range)?;
                plan(Work::Flush, none, 0, 0)
            }
            Command::Unmap { parameter_bytes } => {
                let sent = parameter_bytes.min(writable);
                plan(Work::UnmapList, none, sent, parameter_bytes.into())
            }
            Command::WriteSame {
                range,
                unmap,
                no_data,
            } => {
                self.unit.check_write_same(range)?;
                if no_data {
                    let verbs = vec![self.zeroes(range, unmap)];
                    plan(Work::Verbs(verbs), none, 0, 0)
                } else if writable != block {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                } else {
                    plan(Work::SameBlock { range, unmap }, none, block, block.into())
                }
            }
            // The others were answered without work.
            _ => return Err(Sense::INVALID_OPCODE),
        })
    }

    fn zeroes(&self, range: BlockRange, unmap: bool) -> Verb {
        let block = u64::from(self.unit.block_bytes());
        Verb::WriteZeroes {
            offset: range.lba * block,
            length: u64::from(range.blocks) * block,
            mode: if unmap {
                ZeroMode::MayUnmap
            } else {
                ZeroMode::KeepMapped
            },
        }
    }

    /// Turns an UNMAP list into requests (SBC-3 5.28). Nothing is unmapped unless every range is good.
    fn discards(&self, list: &[u8]) -> Result<Vec<Verb>, Sense> {
        let block = u64::from(self.unit.block_bytes());
        let ranges = parse_unmap_list(list)?;
        for range in &ranges {
            self.unit.check_range(*range)?;
        }
        let wanted = ranges.iter().filter(|range| range.blocks > 0);
        Ok(wanted
            .map(|range| Verb::Discard {
                offset: range.lba * block,
                length: u64::from(range.blocks) * block,
            })
            .collect())
    }
}

/// Answers for a LUN that has no unit (SAM-5 4.7.4, SPC-4 6.6.2).
fn absent_unit(command: Result<Command, Sense>) -> Result<Plan, Sense> {
    match command {
        Ok(Command::Inquiry {
            vital_page: None,
            allocation,
        }) => Ok(Plan::Reply(unsupported_inquiry(allocation))),
        Ok(Command::ReportLuns { select, allocation }) => {
            let mut data = report_luns(select)?;
            data.truncate(allocation as usize);
            Ok(Plan::Reply(data))
        }
        Ok(Command::RequestSense {
            descriptor_format,
            allocation,
        }) => {
            let mut data = sense_data(Sense::LUN_NOT_SUPPORTED, descriptor_format);
            data.truncate(allocation as usize);
            Ok(Plan::Reply(data))
        }
        _ => Err(Sense::LUN_NOT_SUPPORTED),
    }
}

/// How far a task got.
enum Advance {
    /// As far as it can for now; what it waits for will bring it on.
    Done,
    /// It waits for the budget.
    Blocked,
}

impl Session {
    pub(super) fn begin_command(
        &mut self,
        command: &ScsiCommand,
        data_bytes: usize,
        io: &mut Io<'_>,
    ) -> Result<Sink, Violation> {
        let Some(medium) = (match &self.role {
            super::Role::Normal(medium) => Some(medium),
            super::Role::Discovery { .. } => None,
        }) else {
            return Err(Violation::NotForDiscovery);
        };
        let most = self.parameters.first_burst_bytes.min(command.expected_bytes) as usize;
        let may_carry = self.parameters.immediate_data && command.write && data_bytes <= most;
        if data_bytes > 0 && !may_carry {
            return Err(Violation::DataSegment(data_bytes));
        }
        match self.numbers.order(command.cmd_sn, command.immediate) {
            numbers::Order::Take => {}
            numbers::Order::Ignore => return Ok(Sink::Discard),
            numbers::Order::Gap => return Err(Violation::CommandGap(command.cmd_sn)),
        }
        if self.tasks.find(command.itt).is_some() {
            return Err(Violation::TagInUse(command.itt));
        }
        if self.tasks.len() >= MAX_TASKS {
            let header = crate::pdu::Reject {
                reason: RejectReason::TooManyImmediate,
            };
            io.outbox
                .small(&header.encode(self.numbers.respond()), command_header(command));
            return Ok(Sink::Discard);
        }
        let plan = medium.plan(command);
        let slot = self.tasks.insert(command.itt);
        let Some(task) = self.tasks.get(slot) else {
            return Ok(Sink::Discard);
        };
        task.lun = command.lun;
        task.ordered = command.attribute == 2;
        task.expected_bytes = command.expected_bytes;
        if !command.immediate {
            task.numbered = true;
            self.numbers.hold();
        }
        if command.write && !command.last && !self.parameters.initial_r2t {
            task.awaiting = Awaiting::Unsolicited;
        }
        match plan {
            Ok(Plan::Work {
                work,
                span,
                wanted,
                command_bytes,
            }) => {
                task.segments.resize_with(span.segments(), || None);
                task.work = work;
                task.span = span;
                task.wanted = wanted;
                task.command_bytes = command_bytes;
            }
            Ok(Plan::Reply(data)) => {
                task.command_bytes = data.len() as u64;
                task.parameter = data;
            }
            Err(sense) => task.failure = Some(sense),
        }
        self.current = Some(slot);
        self.charge_unsolicited(slot, data_bytes);
        Ok(match data_bytes {
            0 => Sink::Discard,
            _ => Sink::Task { slot, offset: 0 },
        })
    }

    /// Goes on with the command whose PDU is whole.
    pub(super) fn finish_command(&mut self, io: &mut Io<'_>) {
        let Some(slot) = self.current.take() else {
            return;
        };
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        if task.failure.is_some() {
            self.settle(slot, io);
        } else if matches!(task.work, Work::Nothing) && task.awaiting == Awaiting::Nothing {
            self.send_reply(slot, io);
        } else {
            self.enqueue(slot, io);
        }
    }

    /// Lets a task go on when its turn comes. One that has started goes on before those that have not: an
    /// ordered task in front of it would wait for it for ever.
    pub(super) fn enqueue(&mut self, slot: u16, io: &mut Io<'_>) {
        if let Some(task) = self.tasks.get(slot)
            && !task.queued
        {
            task.queued = true;
            match task.started {
                true => self.ready.push_front(slot),
                false => self.ready.push_back(slot),
            }
        }
        self.pump(io);
    }

    /// Lets tasks go on, in order, as far as the budget and ordered tasks allow.
    pub(super) fn pump(&mut self, io: &mut Io<'_>) {
        while let Some(slot) = self.ready.front().copied() {
            debug_assert!(!self.ended, "S2: an ended session has nothing ready");
            let Some(task) = self.tasks.get(slot) else {
                self.ready.pop_front();
                continue;
            };
            if !task.started {
                if self.barrier || task.ordered && self.started > 0 {
                    return;
                }
                task.started = true;
                self.started += 1;
                self.barrier = task.ordered;
            }
            match self.advance(slot, io) {
                Advance::Blocked => return,
                Advance::Done => {
                    self.ready.retain(|queued| *queued != slot);
                    if let Some(task) = self.tasks.get(slot) {
                        task.queued = false;
                    }
                    self.settle(slot, io);
                }
            }
        }
    }

    fn advance(&mut self, slot: u16, io: &mut Io<'_>) -> Advance {
        let Some(task) = self.tasks.get(slot) else {
            return Advance::Done;
        };
        if task.failure.is_some() || task.aborted {
            return Advance::Done;
        }
        if matches!(task.work, Work::Write(_)) {
            self.submit_full_segments(slot, io);
        }
        let Some(task) = self.tasks.get(slot) else {
            return Advance::Done;
        };
        if !task.has_all_data() {
            let idle = task.awaiting == Awaiting::Nothing;
            if idle && !self.ask_for_data(slot, io) {
                return Advance::Blocked;
            }
            return Advance::Done;
        }
        if task.awaiting != Awaiting::Nothing {
            return Advance::Done;
        }
        self.prepare_parameter(slot);
        self.submit_steps(slot, io)
    }

    /// Turns a list or block that has been collected into what it stands for.
    fn prepare_parameter(&mut self, slot: u16) {
        let super::Role::Normal(medium) = &self.role else {
            return;
        };
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        match task.work {
            Work::UnmapList => match medium.discards(&task.parameter) {
                Ok(verbs) => task.work = Work::Verbs(verbs),
                Err(sense) => task.fail(sense),
            },
            Work::SameBlock { range, unmap } => {
                if task.parameter.iter().all(|byte| *byte == 0) {
                    task.work = Work::Verbs(vec![medium.zeroes(range, unmap)]);
                } else {
                    // Bounded by check_write_same.
                    let bytes = range.blocks * medium.unit.block_bytes();
                    task.span = medium.span(range, bytes);
                    task.work = Work::Repeat;
                }
            }
            _ => {}
        }
    }

    /// Hands to the device what does not wait for data of the initiator.
    fn submit_steps(&mut self, slot: u16, io: &mut Io<'_>) -> Advance {
        let super::Role::Normal(medium) = &self.role else {
            return Advance::Done;
        };
        let queue = medium.queue;
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
        let super::Role::Normal(medium) = &self.role else {
            return;
        };
        let queue = medium.queue;
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

    /// Answers a task that has nothing left to do, and forgets it.
    pub(super) fn settle(&mut self, slot: u16, io: &mut Io<'_>) {
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        if task.in_flight() > 0 {
            return;
        }
        if task.aborted {
            self.forget(slot, io);
            return;
        }
        if task.awaiting != Awaiting::Nothing || task.queued && task.failure.is_none() {
            return;
        }
        if let Some(sense) = task.failure {
            self.respond(slot, Status::CheckCondition, Some(sense), io);
            return;
        }
        let done = task.started && task.has_all_data() && task.submitted == task.steps();
        // A read with data is answered with the last of it.
        let answered_with_data = matches!(task.work, Work::Read) && task.steps() > 0;
        if done && !answered_with_data {
            if matches!(task.work, Work::Nothing) {
                self.send_reply(slot, io);
            } else {
                self.respond(slot, Status::Good, None, io);
            }
        }
    }

    /// Sends a task's status and forgets it.
    pub(super) fn respond(&mut self, slot: u16, status: Status, sense: Option<Sense>, io: &mut Io<'_>) {
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        let mut data = Vec::new();
        if let Some(sense) = sense {
            let sense = sense.fixed();
            data.extend_from_slice(&(sense.len() as u16).to_be_bytes());
            data.extend_from_slice(&sense);
        }
        let residual = match status {
            Status::Good => residual_of(task.expected_bytes, task.command_bytes),
            _ => 0,
        };
        let response = ScsiResponse {
            itt: task.itt,
            status: status as u8,
            exp_data_sn: task.data_in_sn + task.r2t_sn,
            residual,
            data_bytes: data.len(),
        };
        self.forget(slot, io);
        let header = response.encode(self.numbers.respond());
        io.outbox.small(&header, data);
    }

    /// Makes a task go away without an answer, at once or when the device is done with it (K2).
    pub(super) fn abort(&mut self, slot: u16, io: &mut Io<'_>) {
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        if !task.aborted {
            task.aborted = true;
            self.aborting += 1;
        }
        self.ready.retain(|queued| *queued != slot);
        self.settle(slot, io);
    }

    /// Frees a task's slot and all it holds.
    pub(super) fn forget(&mut self, slot: u16, io: &mut Io<'_>) {
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        for segment in &mut task.segments {
            if let Some(buffer) = segment.take() {
                io.buffers.give(buffer);
            }
        }
        // A list that was long is not kept for the slot's next task.
        if task.parameter.capacity() > 64 << 10 {
            task.parameter = Vec::new();
        }
        self.charged -= std::mem::take(&mut task.charged);
        let (numbered, started, ordered) = (task.numbered, task.started, task.ordered);
        let (aborted, queued) = (task.aborted, task.queued);
        if numbered {
            self.numbers.release();
        }
        if started {
            self.started -= 1;
            self.barrier &= !ordered;
        }
        if aborted {
            self.aborting -= 1;
        }
        if queued {
            self.ready.retain(|waiting| *waiting != slot);
        }
        if self.current == Some(slot) {
            self.current = None;
        }
        self.tasks.remove(slot);
        self.task_ended(slot, io);
    }
}

/// A device request's tag: connection, task slot and step.
fn tag_of(connection: u32, slot: u16, step: usize) -> Tag {
    Tag(u64::from(connection) << 32 | u64::from(slot) << 16 | (step & 0xffff) as u64)
}

/// Expected less actual transfer length (RFC 7143 11.4.5).
pub(super) fn residual_of(expected_bytes: u32, command_bytes: u64) -> i64 {
    i64::from(expected_bytes) - command_bytes as i64
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

/// A header with the tag of a refused command, for the Reject's data.
fn command_header(command: &ScsiCommand) -> Vec<u8> {
    let mut bhs = vec![0; crate::pdu::BHS_BYTES];
    bhs[0] = 0x41;
    bhs[16..20].copy_from_slice(&command.itt.to_be_bytes());
    bhs[32..48].copy_from_slice(&command.cdb);
    bhs
}
