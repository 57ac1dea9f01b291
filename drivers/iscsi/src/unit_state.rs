//! What initiators have done to a unit that others feel: reservations and software write protection.
//!
//! Every command asks whether it may go on. While nothing is out of the ordinary, that is one atomic load.
//!
//! Invariants
//! - U1: [`UnitState::unusual`] is zero only while no reservation restricts anybody and SWP is not set; it is
//!   changed under the lock of what it tells of.
//! - U2: a change is seen by every command that arrives after the command that made it was answered: the bit is
//!   set before the answer is sent.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use quarry_contract::InitiatorName;

use crate::reservations::{Consequences, InitiatorPort, OutRequest, Reservations, Touch};
use crate::scsi::Failure;

/// A reservation may keep somebody out.
const RESERVED: u32 = 1;

/// SWP is set.
const WRITE_PROTECTED: u32 = 2;

/// See the module.
#[derive(Debug, Default)]
pub struct UnitState {
    unusual: AtomicU32,
    reservations: Mutex<Reservations>,
}

impl UnitState {
    /// Begins with reservations that have outlived a restart.
    pub fn with(reservations: Reservations) -> Self {
        let unit = Self::default();
        unit.change(|state| *state = reservations);
        unit
    }

    /// Returns the reservations, to look at.
    pub fn reservations(&self) -> MutexGuard<'_, Reservations> {
        self.reservations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that no reservation keeps a port's command out.
    ///
    /// # Errors
    /// A conflict.
    pub fn admit(&self, port: &InitiatorPort, touch: Touch) -> Result<(), Failure> {
        if self.unusual.load(Ordering::Acquire) & RESERVED != 0 && self.reservations().conflicts(port, touch)
        {
            return Err(Failure::Conflict);
        }
        Ok(())
    }

    /// Tells whether SWP is set.
    pub fn is_write_protected(&self) -> bool {
        self.unusual.load(Ordering::Acquire) & WRITE_PROTECTED != 0
    }

    /// Sets SWP or takes it back. Tells whether that changed anything.
    pub fn set_write_protected(&self, protected: bool) -> bool {
        self.set(WRITE_PROTECTED, protected)
    }

    /// Takes the unit for a port: RESERVE (6).
    ///
    /// # Errors
    /// A conflict.
    pub fn reserve(&self, port: &InitiatorPort) -> Result<(), Failure> {
        self.change(|reservations| reservations.reserve_unit(port))
    }

    /// Gives the unit up: RELEASE (6).
    pub fn release(&self, port: &InitiatorPort) {
        self.change(|reservations| reservations.release_unit(port));
    }

    /// Carries out a PERSISTENT RESERVE OUT.
    ///
    /// # Errors
    /// A conflict, or what is wrong with the request.
    pub fn carry_out(&self, port: &InitiatorPort, request: &OutRequest) -> Result<Consequences, Failure> {
        self.change(|reservations| reservations.carry_out(port, request))
    }

    /// Takes everything away that an initiator has registered and reserved.
    pub fn forget(&self, initiator: &InitiatorName) -> Consequences {
        self.change(|reservations| reservations.forget(initiator))
    }

    /// Takes all registrations and reservations away, of everybody.
    pub fn forget_all(&self) {
        self.change(|reservations| *reservations = Reservations::default());
    }

    /// Says that a port's session has ended (SAM-5 6.3.4).
    pub fn nexus_lost(&self, port: &InitiatorPort) {
        self.release(port);
    }

    /// Says that the unit is reset (SAM-5 6.3.3): RESERVE (6) and SWP end, persistent reservations stay.
    pub fn reset(&self) {
        self.change(Reservations::reset);
        self.set_write_protected(false);
    }

    fn change<T>(&self, change: impl FnOnce(&mut Reservations) -> T) -> T {
        let mut reservations = self.reservations();
        let result = change(&mut reservations);
        self.set(RESERVED, reservations.restricts());
        result
    }

    fn set(&self, bit: u32, on: bool) -> bool {
        let before = match on {
            true => self.unusual.fetch_or(bit, Ordering::AcqRel),
            false => self.unusual.fetch_and(!bit, Ordering::AcqRel),
        };
        (before & bit != 0) != on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unusual_ends_with_its_cause() {
        let port = |number| InitiatorPort {
            name: InitiatorName::parse("iqn.2026-11.io.x:host").unwrap(),
            isid: [number; 6],
        };
        let unit = UnitState::default();
        unit.reserve(&port(1)).unwrap();
        assert!(unit.set_write_protected(true) && !unit.set_write_protected(true));
        assert_eq!(unit.admit(&port(2), Touch::Reads), Err(Failure::Conflict));
        unit.nexus_lost(&port(2));
        assert_eq!(unit.admit(&port(2), Touch::Reads), Err(Failure::Conflict));
        unit.nexus_lost(&port(1));
        assert_eq!(unit.admit(&port(2), Touch::Writes), Ok(()));
        assert!(unit.is_write_protected());
        unit.reserve(&port(1)).unwrap();
        unit.reset();
        assert_eq!(unit.unusual.load(Ordering::Acquire), 0, "U1");
    }
}
