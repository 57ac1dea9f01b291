//! SCSI commands as tasks: from their PDU through the queue of those that want to go on to their status.

use super::medium::Plan;
use super::pacing::Pace;
use super::steps::Advance;
use super::task::{Attribute, Awaiting, Copy, ListUse, Work};
use super::{Io, Role, Session, Sink, Violation, numbers};
use crate::metrics::{Ended, Op};
use crate::pdu::{RejectReason, ScsiCommand, ScsiResponse};
use crate::scsi::{Failure, Status, parse_copy_list};

/// The most tasks of a session; those beyond the command window are immediate.
const MAX_TASKS: usize = numbers::WINDOW as usize + 32;

impl Session {
    pub(super) fn begin_command(
        &mut self,
        command: &ScsiCommand,
        data_bytes: usize,
        io: &mut Io<'_>,
    ) -> Result<Sink, Violation> {
        let Some(medium) = (match &self.role {
            Role::Normal(medium) => Some(medium),
            Role::Discovery { .. } => None,
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
        let plan = medium.plan(command, &self.copies);
        let slot = self.tasks.insert(command.itt);
        let Some(task) = self.tasks.get(slot) else {
            return Ok(Sink::Discard);
        };
        task.lun = command.lun;
        task.op = Op::of(command.cdb[0]);
        task.begun = Some(io.now);
        task.attribute = Attribute::of(command.attribute);
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
            Err(failure) => task.failure = Some(failure),
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
    /// ordered task in front of it would wait for it for ever. One for the head of the queue goes there, too.
    pub(super) fn enqueue(&mut self, slot: u16, io: &mut Io<'_>) {
        if let Some(task) = self.tasks.get(slot)
            && !task.queued
        {
            task.queued = true;
            match task.started || task.attribute == Attribute::HeadOfQueue {
                true => self.ready.push_front(slot),
                false => self.ready.push_back(slot),
            }
        }
        self.pump(io);
    }

    /// Lets tasks go on, in order, as far as the budget and the tasks' attributes allow (SAM-5 8.6).
    pub(super) fn pump(&mut self, io: &mut Io<'_>) {
        while let Some(slot) = self.ready.front().copied() {
            debug_assert!(!self.ended, "S2: an ended session has nothing ready");
            let Some(task) = self.tasks.get(slot) else {
                self.ready.pop_front();
                continue;
            };
            if !task.started {
                let waits = match task.attribute {
                    Attribute::HeadOfQueue => false,
                    Attribute::Simple => self.barriers > 0,
                    Attribute::Ordered => self.started > 0,
                };
                if waits {
                    return;
                }
                task.started = true;
                self.started += 1;
                self.barriers += usize::from(task.attribute.is_barrier());
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
        if !self.keeps_pace(slot, io) {
            return Advance::Done;
        }
        let Some(task) = self.tasks.get(slot) else {
            return Advance::Done;
        };
        if matches!(task.work, Work::Write(_)) {
            self.submit_full_segments(slot, io);
        }
        let Some(task) = self.tasks.get(slot) else {
            return Advance::Done;
        };
        if !task.has_all_data() {
            let may_ask = task.awaiting != Awaiting::Unsolicited;
            if may_ask && !self.ask_for_data(slot, io) {
                return Advance::Blocked;
            }
            return Advance::Done;
        }
        if task.awaiting != Awaiting::Nothing {
            return Advance::Done;
        }
        self.use_parameter(slot, io);
        self.submit_steps(slot, io)
    }

    /// Does what a list or block that has been collected stands for.
    fn use_parameter(&mut self, slot: u16, io: &mut Io<'_>) {
        let Role::Normal(medium) = &self.role else {
            return;
        };
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        match task.work {
            Work::List(ListUse::Unmap) => match medium.discards(&task.parameter) {
                Ok(verbs) => task.work = Work::Verbs(verbs),
                Err(sense) => task.fail(sense),
            },
            Work::List(ListUse::ModeSelect { ten }) => self.mode_select(slot, ten),
            Work::List(ListUse::PersistentOut { action, kind }) => {
                self.persistent_out(slot, action, kind, io);
            }
            Work::List(ListUse::Sanitize {
                action,
                immediate,
                may_exit,
            }) => self.sanitize(slot, action, immediate, may_exit, io),
            Work::LookUp { lba, allocation } => self.look_up(slot, lba, allocation, io),
            Work::List(ListUse::Copy) => match parse_copy_list(medium.unit(), &task.parameter) {
                Ok(list) => {
                    task.work = Work::Copy(Copy::new(list.id, list.runs));
                    self.begin_copy(slot);
                }
                Err(sense) => task.fail(sense),
            },
            Work::SameBlock { range, unmap } => {
                if task.parameter.iter().all(|byte| *byte == 0) {
                    task.work = Work::Verbs(vec![medium.zeroes(range, unmap)]);
                } else {
                    // Bounded by check_write_same.
                    let bytes = range.blocks * medium.block_bytes();
                    task.span = medium.span(range, bytes);
                    task.work = Work::Repeat;
                    task.pace = Pace::Due;
                }
            }
            _ => {}
        }
    }

    /// Answers a task that has nothing left to do, and forgets it.
    pub(super) fn settle(&mut self, slot: u16, io: &mut Io<'_>) {
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        if task.is_known_elsewhere() {
            return;
        }
        if task.aborted {
            self.forget(slot, io);
            return;
        }
        if task.awaiting != Awaiting::Nothing || task.queued && task.failure.is_none() {
            return;
        }
        if task.failure.is_some() {
            self.respond(slot, io);
            return;
        }
        if matches!(task.pace, Pace::Waiting(_)) {
            return;
        }
        let done = task.started && task.has_all_data() && task.submitted == task.steps();
        // A read with data is answered with the last of it.
        let answered_with_data = matches!(task.work, Work::Read) && task.steps() > 0;
        if done && !answered_with_data {
            if matches!(task.work, Work::Nothing) {
                self.send_reply(slot, io);
            } else {
                self.respond(slot, io);
            }
        }
    }

    /// Sends a task's status and forgets it.
    pub(super) fn respond(&mut self, slot: u16, io: &mut Io<'_>) {
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        let mut data = Vec::new();
        let status = match task.failure {
            None => Status::Good,
            Some(Failure::Conflict) => Status::ReservationConflict,
            Some(Failure::Check(sense)) => {
                let sense = sense.fixed();
                data.extend_from_slice(&(sense.len() as u16).to_be_bytes());
                data.extend_from_slice(&sense);
                Status::CheckCondition
            }
        };
        let residual = match status {
            Status::Good => residual_of(task.expected_bytes, task.command_bytes),
            // Up to a bad block an initiator takes what it has been sent as read, but for the residual.
            _ if matches!(task.work, Work::Read) => residual_of(task.expected_bytes, task.sent_bytes()),
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
        self.leave_sanitizing(slot);
        self.leave_line(slot, io);
        self.settle(slot, io);
    }

    /// Frees a task's slot and all it holds.
    pub(super) fn forget(&mut self, slot: u16, io: &mut Io<'_>) {
        self.end_copy(slot);
        self.drop_sanitizing(slot);
        self.leave_line(slot, io);
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        if let Some(begun) = task.begun.take() {
            let ended = task.ended();
            let moved = if ended == Ended::Good {
                task.moved_bytes()
            } else {
                0
            };
            io.counters
                .command(task.op, ended, moved, io.now.saturating_duration_since(begun));
        }
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
        let (numbered, started, attribute) = (task.numbered, task.started, task.attribute);
        let (aborted, queued) = (task.aborted, task.queued);
        let claim = std::mem::take(&mut task.claim);
        if numbered {
            self.numbers.release();
        }
        if started {
            self.started -= 1;
            self.barriers -= usize::from(attribute.is_barrier());
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
        self.give_back(claim, io);
        self.task_ended(slot, io);
    }
}

/// Expected less actual transfer length (RFC 7143 11.4.5).
pub(super) fn residual_of(expected_bytes: u32, command_bytes: u64) -> i64 {
    i64::from(expected_bytes) - command_bytes as i64
}

/// A header with the tag of a refused command, for the Reject's data.
fn command_header(command: &ScsiCommand) -> Vec<u8> {
    let mut bhs = vec![0; crate::pdu::BHS_BYTES];
    bhs[0] = 0x41;
    bhs[16..20].copy_from_slice(&command.itt.to_be_bytes());
    bhs[32..48].copy_from_slice(&command.cdb);
    bhs
}
