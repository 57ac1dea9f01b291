//! What others may tell an I_T nexus, read on its I/O path without a lock: its access and its unit attentions
//! (SAM-5 5.14).

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use quarry_contract::Access;

use crate::reservations::{InitiatorPort, Notice};
use crate::scsi::Sense;

/// What an initiator may do now; read for every command (contract T3).
#[derive(Debug)]
pub struct AccessCell(AtomicU8);

impl AccessCell {
    /// Makes a cell.
    pub fn new(access: Access) -> Self {
        Self(AtomicU8::new(Self::code(access)))
    }

    fn code(access: Access) -> u8 {
        match access {
            Access::ReadOnly => 0,
            Access::ReadWrite => 1,
        }
    }

    /// Changes the access, for the next command.
    pub fn set(&self, access: Access) {
        self.0.store(Self::code(access), Ordering::Release);
    }

    /// Returns the access.
    pub fn get(&self) -> Access {
        match self.0.load(Ordering::Acquire) {
            0 => Access::ReadOnly,
            _ => Access::ReadWrite,
        }
    }
}

/// What others may tell an I_T nexus: its access and its unit attentions.
#[derive(Debug)]
pub struct Nexus {
    /// The grant's access.
    pub access: Arc<AccessCell>,
    /// Its initiator port.
    pub port: InitiatorPort,
    attentions: AtomicU32,
}

/// Unit attention conditions, first to be reported first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attention {
    /// The nexus is new.
    PowerOn,
    /// Another nexus reset the unit.
    DeviceReset,
    /// Another nexus cleared this one's commands.
    CommandsCleared,
    /// The access changed, and with it the WP bit.
    ModeParametersChanged,
    /// The size changed.
    CapacityChanged,
    /// Another nexus cleared all reservations and registrations.
    ReservationsPreempted,
    /// The reservation was given up.
    ReservationsReleased,
    /// Another nexus took this one's registration away.
    RegistrationsPreempted,
}

impl Attention {
    const ALL: [(Attention, Sense); 8] = [
        (Attention::PowerOn, Sense::POWER_ON),
        (Attention::DeviceReset, Sense::DEVICE_RESET),
        (Attention::CommandsCleared, Sense::COMMANDS_CLEARED),
        (Attention::ModeParametersChanged, Sense::MODE_PARAMETERS_CHANGED),
        (Attention::CapacityChanged, Sense::CAPACITY_CHANGED),
        (Attention::ReservationsPreempted, Sense::RESERVATIONS_PREEMPTED),
        (Attention::ReservationsReleased, Sense::RESERVATIONS_RELEASED),
        (Attention::RegistrationsPreempted, Sense::REGISTRATIONS_PREEMPTED),
    ];
}

impl Nexus {
    /// Makes a nexus, which has its first condition pending.
    pub fn new(access: Arc<AccessCell>, port: InitiatorPort) -> Self {
        let nexus = Self {
            access,
            port,
            attentions: AtomicU32::new(0),
        };
        nexus.raise(Attention::PowerOn);
        nexus
    }

    /// Makes a condition pending.
    pub fn raise(&self, attention: Attention) {
        self.attentions.fetch_or(1 << attention as u32, Ordering::AcqRel);
    }

    /// Takes the first pending condition.
    pub fn take_attention(&self) -> Option<Sense> {
        let pending = self.attentions.load(Ordering::Acquire);
        if pending == 0 {
            return None;
        }
        let first = pending.trailing_zeros();
        self.attentions.fetch_and(!(1 << first), Ordering::AcqRel);
        Attention::ALL.get(first as usize).map(|(_, sense)| *sense)
    }
}

impl From<Notice> for Attention {
    fn from(notice: Notice) -> Self {
        match notice {
            Notice::ReservationsReleased => Attention::ReservationsReleased,
            Notice::ReservationsPreempted => Attention::ReservationsPreempted,
            Notice::RegistrationsPreempted => Attention::RegistrationsPreempted,
        }
    }
}
