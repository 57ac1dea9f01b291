//! How a reactor comes to its end: its sessions first, step by step.

use std::time::{Duration, Instant};

use super::connection::{Closed, Surroundings};
use super::{Farewell, Reactor, around};
use crate::pass::Pass;

/// How long a session may go on after the last call, to be answered what is under way.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// The part of the time for logouts after which a session that has said nothing, and has nothing under way, is taken
/// not to log out: its initiator loses nothing by being dropped.
const QUIET_PART: u32 = 4;

/// The end of a reactor that is being stopped, step by step.
pub(super) struct Stop {
    /// Dropped when it is reached.
    _pass: Pass,
    step: StopStep,
    /// When the next look at the sessions is due.
    due: Instant,
    /// When the next step is.
    until: Instant,
    farewell: Farewell,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum StopStep {
    /// Initiators have been asked to log out.
    Asked,
    /// Nothing more is read; what is under way is answered.
    Drained,
    /// Sessions are cut, and wait for the device.
    Cut,
}

impl Stop {
    /// Returns when the sessions have to be looked at next. Those that are cut wait for the device, which wakes us.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.step != StopStep::Cut).then_some(self.due)
    }
}

impl Reactor {
    /// Begins to stop: nobody is let in, and sessions end when their initiators log out, or what is under way is
    /// answered, or in a while.
    pub(super) fn stop(&mut self, pass: Pass, farewell: Farewell) {
        for (listener, _) in self.listeners.drain(..) {
            // It goes with the listener's descriptor anyway, unless that is to live on.
            let _ = self.epoll.delete(&listener);
        }
        let seconds = self.shared.config.logout_seconds;
        let mut asked = false;
        for index in 0..self.connections.len() {
            let Some(slot) = self.connections[index].as_mut().filter(|slot| !slot.cut) else {
                continue;
            };
            let asks = farewell == Farewell::Asked && seconds > 0;
            if asks && slot.connection.request_logout(seconds, around!(self)) {
                asked = true;
            } else {
                slot.connection.drain(farewell.wait_seconds(), around!(self));
            }
            self.touch(index);
        }
        let time = Duration::from_secs(seconds.into());
        let (step, look, time) = match asked {
            true => (StopStep::Asked, time / QUIET_PART, time),
            false => (StopStep::Drained, DRAIN_TIME, DRAIN_TIME),
        };
        self.stop = Some(Stop {
            _pass: pass,
            step,
            due: self.now + look,
            until: self.now + time,
            farewell,
        });
    }

    /// Takes the next step of a stop that is due.
    pub(super) fn go_on_stopping(&mut self) {
        let Some(stop) = self.stop.as_mut().filter(|stop| self.now >= stop.due) else {
            return;
        };
        match stop.step {
            StopStep::Asked => {
                let quiet = Duration::from_secs(self.shared.config.logout_seconds.into()) / QUIET_PART;
                let last_call = self.now >= stop.until;
                let wait_seconds = stop.farewell.wait_seconds();
                stop.due = self.now + quiet;
                if last_call {
                    stop.step = StopStep::Drained;
                    stop.due = self.now + DRAIN_TIME;
                }
                for index in 0..self.connections.len() {
                    if let Some(slot) = self.connections[index].as_mut().filter(|slot| !slot.cut)
                        && (last_call || slot.connection.is_quiet(self.now, quiet))
                    {
                        slot.connection.drain(wait_seconds, around!(self));
                        self.touch(index);
                    }
                }
            }
            StopStep::Drained | StopStep::Cut => {
                stop.step = StopStep::Cut;
                for index in 0..self.connections.len() {
                    self.cut(index, &Closed::ByTarget);
                }
            }
        }
    }
}
