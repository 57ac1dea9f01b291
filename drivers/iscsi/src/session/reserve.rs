//! Commands that change what others may do: MODE SELECT and PERSISTENT RESERVE OUT (SPC-4 6.9, 6.16).

use std::sync::Arc;

use super::ordering::Claim;
use super::task::Work;
use super::{Io, Role, Session};
use crate::exports::Export;
use crate::nexus::Attention;
use crate::pass::Pass;
use crate::reactor::Message;
use crate::reservations::{InitiatorPort, Kind, OutAction, OutRequest};
use crate::scsi::{Failure, lba_status};

impl Session {
    /// Sets the mode pages of a list. The other sessions hear of a change (SPC-4 6.9).
    pub(super) fn mode_select(&mut self, slot: u16, ten: bool) {
        let Role::Normal(medium) = &self.role else {
            return;
        };
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        match medium.unit().parse_mode_list(ten, &task.parameter) {
            Ok(Some(protect)) => {
                if medium.export().unit.set_write_protected(protect) {
                    let own = Some(medium.tsih());
                    medium.export().raise(Attention::ModeParametersChanged, own);
                }
            }
            Ok(None) => {}
            Err(sense) => task.fail(sense),
        }
    }

    /// Carries out a PERSISTENT RESERVE OUT. With PREEMPT AND ABORT, the task waits for those it
    /// ends; what is to outlive a restart is kept before it is answered (contract T7).
    pub(super) fn persistent_out(
        &mut self,
        slot: u16,
        action: OutAction,
        kind: Option<Kind>,
        io: &mut Io<'_>,
    ) {
        let Role::Normal(medium) = &self.role else {
            return;
        };
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        let export = Arc::clone(medium.export());
        let carried_out = OutRequest::parse(action, kind, &task.parameter)
            .map_err(Failure::from)
            .and_then(|request| export.unit.carry_out(&medium.nexus().port, &request));
        let consequences = match carried_out {
            Ok(consequences) => consequences,
            Err(failure) => {
                task.fail(failure);
                return;
            }
        };
        export.tell(&consequences);
        self.abort_tasks_of(&consequences.aborted, slot, io);
        self.keep(slot, &export, io);
    }

    /// Lets a task wait until what is to outlive a restart is kept.
    pub(super) fn keep(&mut self, slot: u16, export: &Arc<Export>, io: &mut Io<'_>) {
        if !export.must_keep() {
            return;
        }
        let pass = self.wait_elsewhere(slot, io);
        let answer = io.shared.background.keep(export, pass);
        if let Some(task) = self.tasks.get(slot) {
            task.answer = Some(answer);
        }
    }

    /// Ends the tasks of other ports' sessions; a task of this one waits for that (SPC-4 5.12.11.5).
    fn abort_tasks_of(&mut self, ports: &[InitiatorPort], slot: u16, io: &mut Io<'_>) {
        let Role::Normal(medium) = &self.role else {
            return;
        };
        let own = medium.address();
        let mut sessions = medium.export().sessions();
        sessions.retain(|session| session.address != own && ports.contains(&session.nexus.port));
        if sessions.is_empty() {
            return;
        }
        let pass = self.wait_elsewhere(slot, io);
        for session in sessions {
            io.shared.send(
                session.address.reactor,
                Message::AbortTasks {
                    index: session.address.index,
                    serial: session.address.serial,
                    pass: pass.clone(),
                },
            );
        }
    }

    /// Looks up what is mapped from a block on (GET LBA STATUS).
    pub(super) fn look_up(&mut self, slot: u16, lba: u64, allocation: u32, io: &mut Io<'_>) {
        let Role::Normal(medium) = &self.role else {
            return;
        };
        let device = Arc::clone(medium.unit().device());
        let pass = self.wait_elsewhere(slot, io);
        let work = move || lba_status(&*device, lba, allocation);
        let answer = io.shared.background.run(pass, work);
        if let Some(task) = self.tasks.get(slot) {
            task.answer = Some(answer);
        }
    }

    /// Lets a task wait for something elsewhere: until every clone of the pass is dropped.
    pub(super) fn wait_elsewhere(&mut self, slot: u16, io: &mut Io<'_>) -> Pass {
        if let Some(task) = self.tasks.get(slot) {
            task.awaited += 1;
        }
        let own = match &self.role {
            Role::Normal(medium) => Some(medium.address()),
            Role::Discovery { .. } => None,
        };
        let shared = Arc::clone(io.shared);
        Pass::then(move || {
            if let Some(own) = own {
                let message = Message::Awaited {
                    index: own.index,
                    serial: own.serial,
                    slot,
                };
                shared.send(own.reactor, message);
            }
        })
    }

    /// Says that something a task waited for is over.
    pub fn awaited(&mut self, slot: u16, io: &mut Io<'_>) {
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        debug_assert!(task.awaited > 0, "K1");
        task.awaited -= 1;
        if task.awaited == 0
            && let Some(answer) = task.answer.take()
        {
            match answer.take() {
                Ok(data) if matches!(task.work, Work::LookUp { .. }) => {
                    task.command_bytes = data.len() as u64;
                    task.parameter = data;
                    task.work = Work::Nothing;
                }
                Ok(_) => {}
                Err(sense) => task.fail(sense),
            }
        }
        if let Claim::Draining(ticket) = task.claim {
            task.claim = Claim::Held(ticket);
            if !task.aborted {
                self.enqueue(slot, io);
                return;
            }
        }
        self.settle(slot, io);
        self.pump(io);
    }
}
