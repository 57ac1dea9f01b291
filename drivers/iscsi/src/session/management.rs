//! Task management and logout: ending tasks before their time (RFC 7143 11.5, 11.14; SAM-5 7).
//!
//! A task that is not at the device is gone at once. One that is stays until its requests have completed, is
//! never answered, and only then does what ended it get its answer (S4).

use super::{Io, Session, Violation};
use crate::nexus::Attention;
use crate::pass::Pass;
use crate::pdu::{
    Bhs, Logout, LogoutResponse, RejectReason, TaskFunction, TaskManagement, TaskManagementResponse,
};
use crate::reactor::Message;
use crate::scsi::is_lun_zero;

const COMPLETE: u8 = 0;
const NO_SUCH_TASK: u8 = 1;
const NO_SUCH_LUN: u8 = 2;
const REASSIGN_NOT_SUPPORTED: u8 = 4;
const NOT_SUPPORTED: u8 = 5;

/// An answer that waits for tasks to end.
#[derive(Debug)]
pub struct Ending {
    id: u32,
    itt: u32,
    answer: Answer,
    /// Own tasks that have not ended.
    waits_for: Vec<u16>,
    /// Tasks of other sessions have not ended.
    waits_for_others: bool,
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    TaskManagement,
    /// And then the connection is closed.
    ColdReset,
    Logout,
}

impl Session {
    pub(super) fn task_management(
        &mut self,
        request: &TaskManagement,
        io: &mut Io<'_>,
    ) -> Result<(), Violation> {
        if !self.takes(request.cmd_sn, request.immediate)? {
            return Ok(());
        }
        let one_unit = matches!(
            request.function,
            TaskFunction::AbortTask
                | TaskFunction::AbortTaskSet
                | TaskFunction::ClearTaskSet
                | TaskFunction::LogicalUnitReset
        );
        if self.medium().is_none() || one_unit && !is_lun_zero(request.lun) {
            self.answer_management(request.itt, NO_SUCH_LUN, io);
            return Ok(());
        }
        match request.function {
            TaskFunction::AbortTask => match self.tasks.find(request.referenced_task) {
                Some(slot) => self.end_tasks(request.itt, vec![slot], Answer::TaskManagement, None, io),
                None => self.answer_management(request.itt, NO_SUCH_TASK, io),
            },
            TaskFunction::AbortTaskSet => {
                let all = self.tasks.live();
                self.end_tasks(request.itt, all, Answer::TaskManagement, None, io);
            }
            TaskFunction::ClearTaskSet => {
                let all = self.tasks.live();
                let attention = Some(Attention::CommandsCleared);
                self.end_tasks(request.itt, all, Answer::TaskManagement, attention, io);
            }
            TaskFunction::LogicalUnitReset | TaskFunction::TargetWarmReset => {
                self.reset(request.itt, Answer::TaskManagement, io);
            }
            // All connections of the target end (RFC 7143 11.5.1), this one after the answer.
            TaskFunction::TargetColdReset => self.reset(request.itt, Answer::ColdReset, io),
            TaskFunction::TaskReassign => self.answer_management(request.itt, REASSIGN_NOT_SUPPORTED, io),
            TaskFunction::ClearAca | TaskFunction::Other(_) => {
                self.answer_management(request.itt, NOT_SUPPORTED, io);
            }
        }
        self.pump(io);
        Ok(())
    }

    /// Resets the unit, which is all there is of the target.
    fn reset(&mut self, itt: u32, answer: Answer, io: &mut Io<'_>) {
        if let Some(medium) = self.medium() {
            medium.export().unit.reset();
        }
        let all = self.tasks.live();
        self.end_tasks(itt, all, answer, Some(Attention::DeviceReset), io);
    }

    fn answer_management(&mut self, itt: u32, response: u8, io: &mut Io<'_>) {
        let header = TaskManagementResponse { itt, response }.encode(self.numbers.respond());
        io.outbox.header(&header);
    }

    /// Ends tasks and answers when they are gone. With an attention, the tasks of all other sessions of the
    /// export end too, and these sessions hear of it.
    fn end_tasks(
        &mut self,
        itt: u32,
        slots: Vec<u16>,
        answer: Answer,
        others: Option<Attention>,
        io: &mut Io<'_>,
    ) {
        self.next_ending = self.next_ending.wrapping_add(1);
        let id = self.next_ending;
        let waits_for_others =
            others.is_some_and(|attention| self.end_tasks_of_others(id, answer, attention, io));
        self.endings.push(Ending {
            id,
            itt,
            answer,
            waits_for: slots.clone(),
            waits_for_others,
        });
        for slot in slots {
            self.abort(slot, io);
        }
        self.answer_ended(io);
    }

    /// Tells the other sessions of the export to end their tasks, or themselves. False when there is none.
    fn end_tasks_of_others(
        &mut self,
        id: u32,
        answer: Answer,
        attention: Attention,
        io: &mut Io<'_>,
    ) -> bool {
        let Some(medium) = self.medium() else {
            return false;
        };
        let own = medium.address();
        let export = medium.export();
        // A reset is told to every nexus, the one that asked for it included (SAM-5 6.3.3); commands cleared, to
        // the others only.
        let except = match attention {
            Attention::DeviceReset => None,
            _ => Some(medium.tsih()),
        };
        export.raise(attention, except);
        let mut others = export.sessions();
        others.retain(|session| session.address != own);
        if others.is_empty() {
            return false;
        }
        let shared = std::sync::Arc::clone(io.shared);
        let pass = Pass::then(move || {
            shared.send(
                own.reactor,
                Message::OthersEnded {
                    index: own.index,
                    serial: own.serial,
                    ending: id,
                },
            );
        });
        for session in others {
            let (index, serial) = (session.address.index, session.address.serial);
            let pass = pass.clone();
            let message = match answer {
                Answer::ColdReset => Message::CloseSession { index, serial, pass },
                Answer::TaskManagement | Answer::Logout => Message::AbortTasks { index, serial, pass },
            };
            io.shared.send(session.address.reactor, message);
        }
        true
    }

    /// Ends all tasks on behalf of another session; `pass` is held until they are gone.
    pub fn abort_all(&mut self, pass: Pass, io: &mut Io<'_>) {
        for slot in self.tasks.live() {
            self.abort(slot, io);
        }
        if self.aborting > 0 {
            self.passes.push(pass);
        }
        self.pump(io);
    }

    /// Says that the tasks of other sessions are gone.
    pub fn others_ended(&mut self, id: u32, io: &mut Io<'_>) {
        for ending in self.endings.iter_mut().filter(|ending| ending.id == id) {
            ending.waits_for_others = false;
        }
        self.answer_ended(io);
    }

    /// Takes a task that is gone off everything that waits for it.
    pub(super) fn task_ended(&mut self, slot: u16, io: &mut Io<'_>) {
        if self.aborting == 0 {
            self.passes.clear();
        }
        if self.endings.is_empty() {
            return;
        }
        for ending in &mut self.endings {
            ending.waits_for.retain(|waited| *waited != slot);
        }
        self.answer_ended(io);
    }

    fn answer_ended(&mut self, io: &mut Io<'_>) {
        // What closes the connection is the last thing answered: those before it go first.
        let is_due = |at: usize, ending: &Ending| {
            let over = ending.waits_for.is_empty() && !ending.waits_for_others;
            over && (at == 0 || matches!(ending.answer, Answer::TaskManagement))
        };
        while let Some(at) = self
            .endings
            .iter()
            .enumerate()
            .position(|(at, ending)| is_due(at, ending))
        {
            let ending = self.endings.remove(at);
            match ending.answer {
                Answer::TaskManagement => self.answer_management(ending.itt, COMPLETE, io),
                Answer::ColdReset => {
                    self.answer_management(ending.itt, COMPLETE, io);
                    self.close_after_flush = true;
                }
                Answer::Logout => {
                    let response = LogoutResponse {
                        itt: ending.itt,
                        response: 0,
                    };
                    io.outbox.header(&response.encode(self.numbers.respond()));
                    self.close_after_flush = true;
                }
            }
        }
    }

    /// Ends the session in order: closing its only connection closes it (RFC 7143 11.14).
    pub(super) fn logout(&mut self, logout: &Logout, bhs: &Bhs, io: &mut Io<'_>) -> Result<(), Violation> {
        if !self.takes(logout.cmd_sn, logout.immediate)? {
            return Ok(());
        }
        match logout.reason {
            0 | 1 => {
                let all = self.tasks.live();
                self.end_tasks(logout.itt, all, Answer::Logout, None, io);
            }
            // Removing a connection for recovery is for higher error recovery levels.
            2 => {
                let response = LogoutResponse {
                    itt: logout.itt,
                    response: 2,
                };
                io.outbox.header(&response.encode(self.numbers.respond()));
            }
            _ => self.reject(RejectReason::InvalidField, bhs, io),
        }
        Ok(())
    }
}
