//! Tasks under the volume's limits (see `limiter`).
//!
//! A task asks when its turn in the session has come, before it asks the initiator for data and before it takes
//! ranges, so that what waits holds no buffers but for unsolicited data. It asks once for the whole command. What a
//! command does to more of the unit than it transfers, it asks for part by part.

use std::time::Instant;

use super::task::{Task, Work};
use super::{Io, Role, Session};
use crate::limiter::{Amount, Demand, Place};
use crate::range_locks::Taker;

/// Where a task stands with the limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pace {
    /// It has to ask before it moves anything.
    #[default]
    Due,
    /// It has asked.
    Waiting(Place),
    /// It may go on.
    Granted,
}

impl Session {
    /// Tells whether a task may go on under the limits. When false, it is brought on as soon as it may.
    pub(super) fn keeps_pace(&mut self, slot: u16, io: &mut Io<'_>) -> bool {
        let Role::Normal(medium) = &self.role else {
            return false;
        };
        let Some(task) = self.tasks.get(slot) else {
            return false;
        };
        match task.pace {
            Pace::Granted => return true,
            Pace::Waiting(_) => return false,
            Pace::Due => {}
        }
        let export = medium.export();
        task.pace = Pace::Granted;
        if export.limiter.is_off() {
            return true;
        }
        let demand = task.demand();
        if demand.is_nothing() {
            return true;
        }
        let session = medium.address();
        let (place, turn) = export
            .limiter
            .ask(Taker { session, slot }, demand, Instant::now());
        io.shared.take_turn(export, session.reactor, turn);
        if let Some(place) = place {
            task.pace = Pace::Waiting(place);
        }
        place.is_none()
    }

    /// Says that it is a task's turn.
    pub fn paced(&mut self, slot: u16, place: Place, io: &mut Io<'_>) {
        // Another task may have the slot by now; the place tells.
        if let Some(task) = self.tasks.get(slot)
            && task.pace == Pace::Waiting(place)
            && !task.aborted
        {
            task.pace = Pace::Granted;
            self.enqueue(slot, io);
        }
    }

    /// Takes a task out of its line.
    pub(super) fn leave_line(&mut self, slot: u16, io: &mut Io<'_>) {
        let (Role::Normal(medium), Some(task)) = (&self.role, self.tasks.get(slot)) else {
            return;
        };
        if let Pace::Waiting(place) = std::mem::take(&mut task.pace) {
            let (export, session) = (medium.export(), medium.address());
            let turn = export.limiter.leave(session, place, Instant::now());
            io.shared.take_turn(export, session.reactor, turn);
        }
    }
}

impl Task {
    /// Returns what the task is to be granted before it goes on.
    fn demand(&self) -> Demand {
        let none = Amount::default();
        let amount = |commands: u64, bytes: u64| Amount { commands, bytes };
        let bytes = u64::from(self.span.bytes());
        let write = |write| Demand { read: none, write };
        match &self.work {
            Work::Read | Work::Verify(_) if bytes > 0 => Demand {
                read: amount(1, bytes),
                write: none,
            },
            Work::Write(_) | Work::TwoPass { .. } | Work::Atomic(_) if bytes > 0 => write(amount(1, bytes)),
            Work::List(use_) if use_.writes() => write(amount(1, 0)),
            Work::SameBlock { .. } | Work::Verbs(_) => write(amount(1, 0)),
            // The command itself is granted when its block has come.
            Work::Repeat if self.submitted < self.span.segments() => {
                write(amount(0, self.span.segment(self.submitted).1.into()))
            }
            Work::Copy(copy) => Demand {
                read: amount(0, copy.unpaid),
                write: amount(0, copy.unpaid),
            },
            _ => Demand::default(),
        }
    }
}
