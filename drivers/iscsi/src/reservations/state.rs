//! What each command changes (SPC-4 5.12.5 to 5.12.11).

use quarry_contract::InitiatorName;

use super::{InitiatorPort, Kind, OutAction, OutRequest, Touch};
use crate::scsi::{Failure, Sense};

/// The most registrants of a unit.
const MAX_REGISTRANTS: usize = 1024;

/// A registered port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registrant {
    /// The port.
    pub port: InitiatorPort,
    /// Its reservation key.
    pub key: u64,
}

/// A persistent reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// Its type.
    pub kind: Kind,
    /// The holder; `None` when all registrants are.
    pub holder: Option<InitiatorPort>,
}

/// What a port is told of another's command: a unit attention (SPC-4 5.12.10, 5.12.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The reservation is gone, and was not taken by force.
    ReservationsReleased,
    /// Everything was cleared.
    ReservationsPreempted,
    /// This port's registration was taken away.
    RegistrationsPreempted,
}

/// What follows from a command for others.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Consequences {
    /// Whom to tell what.
    pub notices: Vec<(InitiatorPort, Notice)>,
    /// Whose tasks end (PREEMPT AND ABORT).
    pub aborted: Vec<InitiatorPort>,
}

impl Consequences {
    fn tell(&mut self, ports: impl IntoIterator<Item = InitiatorPort>, notice: Notice) {
        self.notices.extend(ports.into_iter().map(|port| (port, notice)));
    }
}

/// Everything that is reserved of one unit; see the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reservations {
    generation: u32,
    registrants: Vec<Registrant>,
    reservation: Option<Reservation>,
    /// APTPL, as the last registration set it.
    persistent: bool,
    /// Who has the unit by RESERVE (6).
    reserved: Option<InitiatorPort>,
}

impl Reservations {
    /// Takes up what was registered and reserved before a loss of power.
    pub(super) fn restored(registrants: Vec<Registrant>, reservation: Option<Reservation>) -> Self {
        Self {
            registrants,
            reservation,
            persistent: true,
            ..Self::default()
        }
    }

    /// Returns the persistent reservation.
    pub(super) fn current(&self) -> Option<&Reservation> {
        self.reservation.as_ref()
    }

    /// Returns PRGENERATION (SPC-4 6.15.2).
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Returns the registered ports.
    pub fn registrants(&self) -> &[Registrant] {
        &self.registrants
    }

    /// Returns the reservation's type.
    pub fn kind(&self) -> Option<Kind> {
        self.reservation.as_ref().map(|reservation| reservation.kind)
    }

    /// Tells whether what is registered and reserved outlives a loss of power.
    pub fn is_persistent(&self) -> bool {
        self.persistent
    }

    /// Returns the holder's key; `None` when all registrants hold the reservation, or there is none.
    pub fn holder_key(&self) -> Option<u64> {
        let holder = self.reservation.as_ref()?.holder.as_ref()?;
        self.key_of(holder)
    }

    /// Tells whether a port holds the persistent reservation.
    pub fn is_holder(&self, port: &InitiatorPort) -> bool {
        match &self.reservation {
            Some(Reservation {
                holder: Some(holder), ..
            }) => holder == port,
            Some(Reservation { holder: None, .. }) => self.key_of(port).is_some(),
            None => false,
        }
    }

    /// Tells whether any port may be kept out of anything.
    pub fn restricts(&self) -> bool {
        self.reservation.is_some() || self.reserved.is_some()
    }

    /// Tells whether a command of a port conflicts (SPC-4 5.12.1, SBC-3 4.17; SPC-2 5.5.1).
    pub fn conflicts(&self, port: &InitiatorPort, touch: Touch) -> bool {
        if let Some(owner) = &self.reserved {
            return owner != port && touch != Touch::Nothing;
        }
        let Some(reservation) = &self.reservation else {
            return false;
        };
        let admitted = match reservation.kind.is_for_registrants() {
            true => self.key_of(port).is_some(),
            false => self.is_holder(port),
        };
        !admitted && reservation.kind.keeps_out(touch)
    }

    /// Takes the unit for a port alone: RESERVE (6).
    ///
    /// # Errors
    /// A conflict while another port has it, or any is registered for persistent reservations (R3).
    pub fn reserve_unit(&mut self, port: &InitiatorPort) -> Result<(), Failure> {
        let taken = self.reserved.as_ref().is_some_and(|owner| owner != port);
        if taken || !self.registrants.is_empty() {
            return Err(Failure::Conflict);
        }
        self.reserved = Some(port.clone());
        Ok(())
    }

    /// Gives up what a port has taken with RESERVE (6): RELEASE (6), or the end of its nexus. Of another port it is
    /// without effect.
    pub fn release_unit(&mut self, port: &InitiatorPort) {
        self.reserved.take_if(|owner| owner == port);
    }

    /// Gives up RESERVE (6) of whoever it is: the unit is reset. Persistent reservations stay (SPC-4 5.12.5).
    pub fn reset(&mut self) {
        self.reserved = None;
    }

    /// Takes everything away that an initiator has registered and reserved: it has lost its right to the unit.
    pub fn forget(&mut self, name: &InitiatorName) -> Consequences {
        let mut consequences = Consequences::default();
        let known = self.registrants.iter().map(|known| known.port.clone());
        let theirs: Vec<InitiatorPort> = known.filter(|port| port.name == *name).collect();
        for port in &theirs {
            self.unregister(port, &mut consequences);
        }
        consequences.notices.retain(|(port, _)| port.name != *name);
        self.reserved.take_if(|owner| owner.name == *name);
        consequences
    }

    /// Carries out a PERSISTENT RESERVE OUT of a port.
    ///
    /// # Errors
    /// A conflict, or what is wrong with the request. Nothing has changed then.
    pub fn carry_out(&mut self, port: &InitiatorPort, request: &OutRequest) -> Result<Consequences, Failure> {
        if self.reserved.is_some() {
            return Err(Failure::Conflict);
        }
        match request.action {
            OutAction::Register | OutAction::RegisterAndIgnore => self.register(port, request),
            OutAction::Reserve => self.reserve(port, request),
            OutAction::Release => self.release(port, request),
            OutAction::Clear => self.clear(port, request),
            OutAction::Preempt | OutAction::PreemptAndAbort => self.preempt(port, request),
            OutAction::RegisterAndMove => self.register_and_move(port, request),
        }
    }

    fn key_of(&self, port: &InitiatorPort) -> Option<u64> {
        let registrant = self.registrants.iter().find(|known| known.port == *port);
        registrant.map(|registrant| registrant.key)
    }

    /// Checks that a port is registered with the key it gives (SPC-4 5.12.5).
    fn check_key(&self, port: &InitiatorPort, key: u64) -> Result<(), Failure> {
        match self.key_of(port) == Some(key) {
            true => Ok(()),
            false => Err(Failure::Conflict),
        }
    }

    fn others(&self, port: &InitiatorPort) -> Vec<InitiatorPort> {
        let others = self.registrants.iter().filter(|known| known.port != *port);
        others.map(|known| known.port.clone()).collect()
    }

    fn set_key(&mut self, port: &InitiatorPort, key: u64) {
        match self.registrants.iter_mut().find(|known| known.port == *port) {
            Some(known) => known.key = key,
            None => self.registrants.push(Registrant {
                port: port.clone(),
                key,
            }),
        }
    }

    fn count_change(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// SPC-4 5.12.7.
    fn register(&mut self, port: &InitiatorPort, request: &OutRequest) -> Result<Consequences, Failure> {
        let registered = self.key_of(port);
        if request.action == OutAction::Register && registered.unwrap_or(0) != request.key {
            return Err(Failure::Conflict);
        }
        if registered.is_some() && !request.also.is_empty() {
            return Err(Sense::INVALID_FIELD_IN_PARAMETERS.into());
        }
        if request.action_key != 0 && self.registrants.len() + request.also.len() >= MAX_REGISTRANTS {
            return Err(Sense::INSUFFICIENT_REGISTRATION_RESOURCES.into());
        }
        let mut consequences = Consequences::default();
        if request.action_key == 0 {
            self.unregister(port, &mut consequences);
        } else {
            self.set_key(port, request.action_key);
            for also in &request.also {
                self.set_key(also, request.action_key);
            }
        }
        self.persistent = request.persist;
        self.count_change();
        Ok(consequences)
    }

    /// Takes a registration away, and the reservation with it when its holder goes (SPC-4 5.12.11.3).
    fn unregister(&mut self, port: &InitiatorPort, consequences: &mut Consequences) {
        let held = self.is_holder(port);
        self.registrants.retain(|known| known.port != *port);
        let Some(kind) = self.kind() else {
            return;
        };
        let goes = match kind.has_all_registrants() {
            true => self.registrants.is_empty(),
            false => held,
        };
        if goes {
            self.reservation = None;
            if kind.is_for_registrants() {
                consequences.tell(self.others(port), Notice::ReservationsReleased);
            }
        }
    }

    /// SPC-4 5.12.9.
    fn reserve(&mut self, port: &InitiatorPort, request: &OutRequest) -> Result<Consequences, Failure> {
        self.check_key(port, request.key)?;
        let kind = request.kind.ok_or(Sense::INVALID_FIELD_IN_CDB)?;
        match self.kind() {
            None => self.reservation = Some(Reservation::of(kind, port)),
            Some(known) if known == kind && self.is_holder(port) => {}
            Some(_) => return Err(Failure::Conflict),
        }
        Ok(Consequences::default())
    }

    /// SPC-4 5.12.11.2.
    fn release(&mut self, port: &InitiatorPort, request: &OutRequest) -> Result<Consequences, Failure> {
        self.check_key(port, request.key)?;
        let mut consequences = Consequences::default();
        let Some(kind) = self.kind().filter(|_| self.is_holder(port)) else {
            return Ok(consequences);
        };
        if request.kind != Some(kind) {
            return Err(Sense::INVALID_RELEASE.into());
        }
        self.reservation = None;
        if kind.is_for_registrants() {
            consequences.tell(self.others(port), Notice::ReservationsReleased);
        }
        Ok(consequences)
    }

    /// SPC-4 5.12.11.6.
    fn clear(&mut self, port: &InitiatorPort, request: &OutRequest) -> Result<Consequences, Failure> {
        self.check_key(port, request.key)?;
        let mut consequences = Consequences::default();
        consequences.tell(self.others(port), Notice::ReservationsPreempted);
        self.reservation = None;
        self.registrants.clear();
        self.count_change();
        Ok(consequences)
    }

    /// SPC-4 5.12.11.4, 5.12.11.5.
    fn preempt(&mut self, port: &InitiatorPort, request: &OutRequest) -> Result<Consequences, Failure> {
        self.check_key(port, request.key)?;
        let kind = request.kind.ok_or(Sense::INVALID_FIELD_IN_CDB)?;
        let victim_key = request.action_key;
        let of_all = self.kind().is_some_and(Kind::has_all_registrants);
        if victim_key == 0 && !of_all {
            return Err(Sense::INVALID_FIELD_IN_PARAMETERS.into());
        }
        let takes_reservation = match of_all {
            true => victim_key == 0,
            false => self.holder_key() == Some(victim_key),
        };
        let is_victim = |known: &Registrant| victim_key == 0 || known.key == victim_key;
        if !self.registrants.iter().any(is_victim) {
            return Err(Failure::Conflict);
        }
        let victims: Vec<InitiatorPort> = self
            .registrants
            .iter()
            .filter(|known| known.port != *port && is_victim(known))
            .map(|known| known.port.clone())
            .collect();
        self.registrants.retain(|known| !victims.contains(&known.port));

        let mut consequences = Consequences::default();
        if takes_reservation {
            if self.kind().is_some_and(|before| before != kind) {
                consequences.tell(self.others(port), Notice::ReservationsReleased);
            }
            self.reservation = Some(Reservation::of(kind, port));
        }
        if request.action == OutAction::PreemptAndAbort {
            consequences.aborted.clone_from(&victims);
        }
        consequences.tell(victims, Notice::RegistrationsPreempted);
        self.count_change();
        Ok(consequences)
    }

    /// SPC-4 5.12.8.
    fn register_and_move(
        &mut self,
        port: &InitiatorPort,
        request: &OutRequest,
    ) -> Result<Consequences, Failure> {
        self.check_key(port, request.key)?;
        let moves = self.kind().is_some_and(|kind| !kind.has_all_registrants());
        if !moves || !self.is_holder(port) {
            return Err(Failure::Conflict);
        }
        let destination = match &request.destination {
            Some(destination) if destination != port && request.action_key != 0 => destination,
            _ => return Err(Sense::INVALID_FIELD_IN_PARAMETERS.into()),
        };
        if self.registrants.len() >= MAX_REGISTRANTS {
            return Err(Sense::INSUFFICIENT_REGISTRATION_RESOURCES.into());
        }
        self.set_key(destination, request.action_key);
        if let Some(reservation) = &mut self.reservation {
            reservation.holder = Some(destination.clone());
        }
        if request.unregister {
            self.registrants.retain(|known| known.port != *port);
        }
        self.persistent = request.persist;
        self.count_change();
        Ok(Consequences::default())
    }
}

impl Reservation {
    fn of(kind: Kind, port: &InitiatorPort) -> Self {
        Self {
            kind,
            holder: (!kind.has_all_registrants()).then(|| port.clone()),
        }
    }
}
