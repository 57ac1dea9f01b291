//! Tasks that must have a range of the unit for themselves, and those that meet them (see `range_locks`).
//!
//! A task takes its ranges once all its data has come and gives them back when it ends, so that nobody waits for
//! another initiator's data. With exclusive ranges in hand it first lets what is at the device for them end, in
//! every session: what comes later sees that the ranges are taken.
//!
//! Invariants
//! - O1: while a task holds a range exclusively, and is not draining, no other task has a request for any of it at
//!   the device.
//! - O2: between taking ranges and giving them back a task waits for the device, for other holders and, when it is
//!   done in parts, for the volume's limits, none of which waits for it.

use std::ops::Range;
use std::sync::Arc;

use super::{Io, Role, Session};
use crate::pass::Pass;
use crate::range_locks::{Hold, Taker, Ticket};
use crate::reactor::Message;

/// What a task has of the ranges it works on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Claim {
    /// Nothing; it has not had to ask.
    #[default]
    None,
    /// A place in the queue.
    Waiting(Ticket, Hold),
    /// The ranges, once what is at the device for them has ended.
    Draining(Ticket),
    /// The ranges.
    Held(Ticket),
}

/// Requests at the device that the owner of a range waits for.
pub struct Drain {
    slots: Vec<u16>,
    /// Dropped when they have completed.
    _pass: Pass,
}

impl Session {
    /// Tells whether a task may hand requests to the device: nobody has its ranges alone, or it has its share. When
    /// false, it is brought on as soon as it has, or as all its data has come.
    pub(super) fn may_submit(&mut self, slot: u16, io: &mut Io<'_>) -> bool {
        let Role::Normal(medium) = &self.role else {
            return false;
        };
        let Some(task) = self.tasks.get(slot) else {
            return false;
        };
        match task.claim {
            Claim::Held(_) => true,
            Claim::Waiting(..) | Claim::Draining(_) => false,
            Claim::None if medium.export().locks.is_idle() => true,
            Claim::None => {
                let ranges = task.ranges();
                if !medium.export().locks.keeps_out(&ranges) {
                    return true;
                }
                task.has_all_data() && self.claim(slot, ranges, Hold::Shared, io)
            }
        }
    }

    /// Tells whether a task has its ranges for itself. When false, it is brought on as soon as it has.
    pub(super) fn has_to_itself(&mut self, slot: u16, io: &mut Io<'_>) -> bool {
        let Some(task) = self.tasks.get(slot) else {
            return false;
        };
        match task.claim {
            Claim::Held(_) => true,
            Claim::Waiting(..) | Claim::Draining(_) => false,
            Claim::None => {
                let ranges = task.ranges();
                self.claim(slot, ranges, Hold::Exclusive, io)
            }
        }
    }

    fn claim(&mut self, slot: u16, ranges: Vec<Range<u64>>, hold: Hold, io: &mut Io<'_>) -> bool {
        let Role::Normal(medium) = &self.role else {
            return false;
        };
        let taker = Taker {
            session: medium.address(),
            slot,
        };
        let (ticket, granted) = medium.export().locks.take(taker, ranges, hold);
        if let Some(task) = self.tasks.get(slot) {
            task.claim = Claim::Waiting(ticket, hold);
        }
        granted && self.take_over(slot, ticket, hold, io)
    }

    /// Goes on with ranges that are granted. Tells whether they are held.
    fn take_over(&mut self, slot: u16, ticket: Ticket, hold: Hold, io: &mut Io<'_>) -> bool {
        let drains = hold == Hold::Exclusive && self.drain_all(slot, io);
        if let Some(task) = self.tasks.get(slot) {
            task.claim = match drains {
                true => Claim::Draining(ticket),
                false => Claim::Held(ticket),
            };
        }
        !drains
    }

    /// Asks every session, this one included, to let end what it has at the device for a task's ranges. False when
    /// there is nothing to wait for.
    fn drain_all(&mut self, slot: u16, io: &mut Io<'_>) -> bool {
        let Role::Normal(medium) = &self.role else {
            return false;
        };
        let own = medium.address();
        let mut others = medium.export().sessions();
        others.retain(|session| session.address != own);
        let Some(task) = self.tasks.get(slot) else {
            return false;
        };
        let ranges: Arc<[Range<u64>]> = task.ranges().into();
        let busy = self.busy_with(&ranges);
        if busy.is_empty() && others.is_empty() {
            return false;
        }
        let pass = self.wait_elsewhere(slot, io);
        for session in others {
            io.shared.send(
                session.address.reactor,
                Message::Drain {
                    index: session.address.index,
                    serial: session.address.serial,
                    ranges: Arc::clone(&ranges),
                    pass: pass.clone(),
                },
            );
        }
        self.hold_until_drained(busy, pass);
        true
    }

    /// Lets what is at the device for some ranges end before `pass` is dropped.
    pub fn drain(&mut self, ranges: &[Range<u64>], pass: Pass) {
        let busy = self.busy_with(ranges);
        self.hold_until_drained(busy, pass);
    }

    fn hold_until_drained(&mut self, slots: Vec<u16>, pass: Pass) {
        if !slots.is_empty() {
            self.drains.push(Drain { slots, _pass: pass });
        }
    }

    /// Returns the tasks that have requests for some ranges at the device.
    fn busy_with(&mut self, ranges: &[Range<u64>]) -> Vec<u16> {
        let mut busy = self.tasks.live();
        busy.retain(|slot| {
            let task = self.tasks.get(*slot);
            task.is_some_and(|task| task.in_flight() > 0 && task.may_touch(ranges))
        });
        busy
    }

    /// Says that a task has nothing at the device now.
    pub(super) fn task_drained(&mut self, slot: u16) {
        for drain in &mut self.drains {
            drain.slots.retain(|waited| *waited != slot);
        }
        self.drains.retain(|drain| !drain.slots.is_empty());
    }

    /// Says that it is a task's turn.
    pub fn granted(&mut self, slot: u16, ticket: Ticket, io: &mut Io<'_>) {
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        // Another task may have the slot by now; the ticket tells.
        let Claim::Waiting(waiting, hold) = task.claim else {
            return;
        };
        if waiting == ticket && self.take_over(slot, ticket, hold, io) {
            self.enqueue(slot, io);
        }
    }

    /// Gives back what a task has of its ranges, and tells those whose turn it is.
    pub(super) fn give_back(&mut self, claim: Claim, io: &mut Io<'_>) {
        let Role::Normal(medium) = &self.role else {
            return;
        };
        let (Claim::Waiting(ticket, _) | Claim::Draining(ticket) | Claim::Held(ticket)) = claim else {
            return;
        };
        io.shared.give_back(medium.export(), ticket);
    }
}
