//! What initiators have done to a unit that others feel: reservations, software write protection, and a sanitize
//! operation.
//!
//! Every command asks whether it may go on. While nothing is out of the ordinary, that is one atomic load.
//!
//! Invariants
//! - U1: [`UnitState::unusual`] is zero only while no reservation restricts anybody, SWP is not set and the unit is
//!   not being sanitized nor has that failed; it is changed under the lock of what it tells of.
//! - U2: a change is seen by every command that arrives after the command that made it was answered: the bit is
//!   set before the answer is sent.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use quarry_contract::InitiatorName;

use crate::pdu::be16;
use crate::reservations::{Consequences, InitiatorPort, OutRequest, Reservations, Touch};
use crate::scsi::{Failure, Sanitizing, Sense};

/// A reservation may keep somebody out.
const RESERVED: u32 = 1;

/// SWP is set.
const WRITE_PROTECTED: u32 = 2;

/// The unit is being sanitized, or a command waits to begin with that.
const SANITIZING: u32 = 4;

/// The last sanitize operation has failed.
const SANITIZE_FAILED: u32 = 8;

/// What is kept begins with this version of its format, then has sections: one byte that says what is in it, its
/// length in two, and that many bytes.
const KEPT_VERSION: u8 = 1;
const KEPT_RESERVATIONS: u8 = 1;
const KEPT_SANITIZING: u8 = 2;

/// See the module.
#[derive(Debug, Default)]
pub struct UnitState {
    unusual: AtomicU32,
    reservations: Mutex<Reservations>,
    /// The sanitize operation that has begun or has failed.
    sanitizing: Mutex<Option<Sanitizing>>,
    /// How much of it is done, in parts of 65536.
    sanitize_progress: AtomicU32,
}

impl UnitState {
    /// Takes up what was kept over a restart; `None` when it is damaged.
    pub fn restore(kept: &[u8]) -> Option<Self> {
        let unit = Self::default();
        let Some((version, mut rest)) = kept.split_first() else {
            return Some(unit);
        };
        if *version != KEPT_VERSION {
            return None;
        }
        while !rest.is_empty() {
            let (head, more) = rest.split_at_checked(3)?;
            let (section, more) = more.split_at_checked(be16(head, 1).into())?;
            match head[0] {
                KEPT_RESERVATIONS => {
                    let reservations = Reservations::restore(section)?;
                    unit.change(|state| *state = reservations);
                }
                KEPT_SANITIZING => {
                    let (failed, operation) = section.split_first()?;
                    *unit.operation() = Some(Sanitizing::parse(operation)?);
                    let bit = if *failed == 0 { SANITIZING } else { SANITIZE_FAILED };
                    unit.set(bit, true);
                }
                _ => return None,
            }
            rest = more;
        }
        Some(unit)
    }

    /// Returns what is to be kept; empty when nothing is.
    pub fn to_keep(&self) -> Vec<u8> {
        let mut state = Vec::new();
        let mut section = |kind: u8, bytes: &[u8]| {
            if state.is_empty() {
                state.push(KEPT_VERSION);
            }
            state.push(kind);
            state.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
            state.extend_from_slice(bytes);
        };
        let reservations = self.reservations().to_keep();
        if !reservations.is_empty() {
            section(KEPT_RESERVATIONS, &reservations);
        }
        if let Some(operation) = &*self.operation() {
            let mut bytes = vec![u8::from(self.is(SANITIZE_FAILED))];
            bytes.extend_from_slice(&operation.to_bytes());
            section(KEPT_SANITIZING, &bytes);
        }
        state
    }

    /// Tells whether there may be something to keep.
    pub fn has_to_keep(&self) -> bool {
        self.reservations().is_persistent() || self.operation().is_some()
    }

    fn operation(&self) -> MutexGuard<'_, Option<Sanitizing>> {
        self.sanitizing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the unit as one that is to be sanitized: from now on commands are refused. Nothing is kept of it, as
    /// it may still [come to nothing](Self::cancel_sanitizing).
    ///
    /// # Errors
    /// When it is marked already, and when the unit is to get out of a failure by the end of an operation alone and
    /// this one could be left without (AUSE, SBC-4 4.11.1).
    pub fn claim_for_sanitizing(&self, operation: &Sanitizing) -> Result<(), Sense> {
        let current = self.operation();
        if self.is(SANITIZING) {
            return Err(Sense::SANITIZE_IN_PROGRESS.with_progress(self.progress()));
        }
        let failed = current.as_ref().filter(|_| self.is(SANITIZE_FAILED));
        if operation.may_exit && failed.is_some_and(|failed| !failed.may_exit) {
            return Err(Sense::INVALID_FIELD_IN_CDB);
        }
        self.sanitize_progress.store(0, Ordering::Release);
        self.set(SANITIZING, true);
        Ok(())
    }

    /// Takes the mark back of an operation that has not begun: the unit is what it was, which may be one that an
    /// earlier operation has failed for.
    pub fn cancel_sanitizing(&self) {
        let _current = self.operation();
        self.set(SANITIZING, false);
    }

    /// Says that the operation that the unit is marked for begins: it is kept until it ends.
    pub fn begin_sanitizing(&self, operation: &Sanitizing) {
        let mut current = self.operation();
        *current = Some(operation.clone());
        self.set(SANITIZE_FAILED, false);
    }

    /// Says that the operation has ended.
    pub fn end_sanitizing(&self, failed: bool) {
        let mut current = self.operation();
        if !failed {
            *current = None;
        }
        self.set(SANITIZE_FAILED, failed);
        self.set(SANITIZING, false);
    }

    /// Takes back the mark of an operation that failed: EXIT FAILURE MODE.
    ///
    /// # Errors
    /// When the operation did not allow it.
    pub fn exit_sanitize_failure(&self) -> Result<(), Sense> {
        let mut current = self.operation();
        if self.is(SANITIZE_FAILED) && !self.is(SANITIZING) {
            if current.as_ref().is_some_and(|operation| !operation.may_exit) {
                return Err(Sense::INVALID_FIELD_IN_CDB);
            }
            *current = None;
            self.set(SANITIZE_FAILED, false);
        }
        Ok(())
    }

    /// Returns the operation that has begun and not ended.
    pub fn sanitizing(&self) -> Option<Sanitizing> {
        self.operation().clone().filter(|_| !self.is(SANITIZE_FAILED))
    }

    /// Says how much of the operation is done.
    pub fn set_sanitize_progress(&self, done: u64, of: u64) {
        let progress = u128::from(done) * 0xffff / u128::from(of.max(1));
        self.sanitize_progress.store(progress as u32, Ordering::Release);
    }

    fn progress(&self) -> u16 {
        self.sanitize_progress.load(Ordering::Acquire) as u16
    }

    /// Returns why commands are refused while the unit is being sanitized or that has failed.
    pub fn sanitize_state(&self) -> Option<Sense> {
        match self.unusual.load(Ordering::Acquire) {
            bits if bits & SANITIZING != 0 => {
                Some(Sense::SANITIZE_IN_PROGRESS.with_progress(self.progress()))
            }
            bits if bits & SANITIZE_FAILED != 0 => Some(Sense::SANITIZE_FAILED),
            _ => None,
        }
    }

    fn is(&self, bit: u32) -> bool {
        self.unusual.load(Ordering::Acquire) & bit != 0
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
        self.is(WRITE_PROTECTED)
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

    /// Takes everything away that anybody has done.
    pub fn forget_all(&self) {
        self.change(|reservations| *reservations = Reservations::default());
        self.end_sanitizing(false);
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

    #[test]
    fn sanitize_operation_refuses_commands_until_it_ends_and_is_kept() {
        let unit = UnitState::default();
        let operation = Sanitizing {
            method: crate::scsi::Method::BlockErase,
            may_exit: false,
        };
        assert!(unit.to_keep().is_empty() && unit.sanitize_state().is_none());
        unit.claim_for_sanitizing(&operation).unwrap();
        assert!(unit.claim_for_sanitizing(&operation).is_err());
        assert!(unit.sanitize_state().is_some() && unit.to_keep().is_empty());
        unit.cancel_sanitizing();
        assert!(unit.sanitize_state().is_none(), "it has come to nothing");
        unit.claim_for_sanitizing(&operation).unwrap();
        unit.begin_sanitizing(&operation);
        unit.set_sanitize_progress(1, 2);
        let state = unit.sanitize_state().unwrap();
        assert_eq!(state, Sense::SANITIZE_IN_PROGRESS.with_progress(0x7fff));
        let kept = unit.to_keep();
        let restored = UnitState::restore(&kept).unwrap();
        assert_eq!(restored.sanitizing(), Some(operation.clone()));
        assert_eq!(restored.to_keep(), kept);
        for length in 1..kept.len() {
            let cut = UnitState::restore(&kept[..length]);
            assert!(
                cut.is_none_or(|unit| unit.to_keep().is_empty()),
                "cut at {length}"
            );
        }
        unit.end_sanitizing(true);
        assert_eq!(unit.sanitize_state(), Some(Sense::SANITIZE_FAILED));
        let failed = UnitState::restore(&unit.to_keep()).unwrap();
        assert_eq!(failed.sanitize_state(), Some(Sense::SANITIZE_FAILED));
        assert!(failed.exit_sanitize_failure().is_err(), "AUSE was not set");
        let kept = unit.to_keep();
        unit.claim_for_sanitizing(&operation).unwrap();
        assert_eq!(unit.to_keep(), kept);
        unit.cancel_sanitizing();
        assert_eq!(unit.sanitize_state(), Some(Sense::SANITIZE_FAILED));
        assert!(unit.exit_sanitize_failure().is_err(), "AUSE was not set");
        let with_exit = Sanitizing {
            may_exit: true,
            ..operation.clone()
        };
        let refused = unit.claim_for_sanitizing(&with_exit);
        assert_eq!(refused, Err(Sense::INVALID_FIELD_IN_CDB));
        assert_eq!(unit.sanitize_state(), Some(Sense::SANITIZE_FAILED));
        unit.claim_for_sanitizing(&operation).unwrap();
        unit.begin_sanitizing(&operation);
        unit.end_sanitizing(false);
        assert!(unit.sanitize_state().is_none());
        unit.claim_for_sanitizing(&with_exit).unwrap();
        unit.begin_sanitizing(&with_exit);
        unit.end_sanitizing(true);
        unit.exit_sanitize_failure().unwrap();
        assert!(unit.to_keep().is_empty() && unit.sanitize_state().is_none());
    }
}
