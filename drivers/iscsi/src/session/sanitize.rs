//! SANITIZE as a task: it marks the unit, waits for it, and starts the operation, which is the export's from then on
//! (SBC-3 4.11).

use std::sync::Arc;

use super::ordering::Claim;
use super::steps::Advance;
use super::task::Work;
use super::{Io, Role, Session};
use crate::background::Answer;
use crate::sanitizer::{Sanitizer, Waiter};
use crate::scsi::{Method, SanitizeAction, Sanitizing, Sense};

impl Session {
    /// Takes a SANITIZE up: from now on the unit refuses other commands.
    pub(super) fn sanitize(
        &mut self,
        slot: u16,
        action: SanitizeAction,
        immediate: bool,
        may_exit: bool,
        io: &mut Io<'_>,
    ) {
        let Role::Normal(medium) = &self.role else {
            return;
        };
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        let export = Arc::clone(medium.export());
        let method = match action {
            SanitizeAction::Overwrite => Method::parse_overwrite(&task.parameter),
            SanitizeAction::BlockErase => Ok(Method::BlockErase),
            SanitizeAction::ExitFailureMode => {
                match export.unit.exit_sanitize_failure() {
                    Ok(()) => self.keep(slot, &export, io),
                    Err(sense) => task.fail(sense),
                }
                return;
            }
        };
        let begun = method.and_then(|method| {
            let operation = Sanitizing { method, may_exit };
            export.unit.claim_for_sanitizing(&operation).map(|()| operation)
        });
        match begun {
            Ok(operation) => task.work = Work::Sanitize { operation, immediate },
            Err(sense) => task.fail(sense),
        }
    }

    /// Starts the operation when everything at the device has ended. It takes the task's claim over.
    pub(super) fn start_sanitizing(&mut self, slot: u16, io: &mut Io<'_>) -> Advance {
        if !self.has_to_itself(slot, io) {
            return Advance::Done;
        }
        let pass = self.wait_elsewhere(slot, io);
        let (Role::Normal(medium), Some(task)) = (&self.role, self.tasks.get(slot)) else {
            return Advance::Done;
        };
        let export = Arc::clone(medium.export());
        let Claim::Held(ticket) = std::mem::take(&mut task.claim) else {
            return Advance::Done;
        };
        let Work::Sanitize { operation, immediate } = std::mem::replace(&mut task.work, Work::Nothing) else {
            return Advance::Done;
        };
        let answer = Arc::new(Answer::default());
        task.answer = Some(Arc::clone(&answer));
        let waiter = Waiter::new(immediate, answer, pass);
        task.waiter = Some(waiter.clone());
        let device = Arc::clone(medium.unit().device());
        export.unit.begin_sanitizing(&operation);
        match Sanitizer::start(io.shared, &export, device, operation, ticket, Some(waiter)) {
            Ok(sanitizer) => export.keep_sanitizer(sanitizer),
            Err(error) => {
                tracing::error!(volume = %export.volume, %error, "no thread to sanitize");
                export.unit.end_sanitizing(true);
                io.shared.give_back(&export, ticket);
                task.fail(Sense::INTERNAL_TARGET_FAILURE);
                // Nobody else tells it that there is nothing to wait for.
                self.leave_sanitizing(slot);
            }
        }
        Advance::Done
    }

    /// Lets an aborted task not wait for its operation, which goes on.
    pub(super) fn leave_sanitizing(&mut self, slot: u16) {
        if let Some(waiter) = self.tasks.get(slot).and_then(|task| task.waiter.take()) {
            waiter.leave();
        }
    }

    /// Takes the unit's mark back when a task goes that has not started its operation.
    pub(super) fn drop_sanitizing(&mut self, slot: u16) {
        if let (Role::Normal(medium), Some(task)) = (&self.role, self.tasks.get(slot))
            && matches!(task.work, Work::Sanitize { .. })
        {
            medium.export().unit.cancel_sanitizing();
        }
    }
}
