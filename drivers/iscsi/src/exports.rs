//! Who may reach what: the exports, their grants, their live sessions, and the state of their units.
//!
//! Shared by the control calls and the reactors. Locks are held for a lookup, never over I/O; the I/O path reads
//! only the atomics of its own [`Nexus`].
//!
//! Invariants
//! - X1: a session is registered only under the lock under which the grant was seen whose credentials it has
//!   proved, so that whoever takes a grant or an export away sees every session it ends (contract T4), and no login
//!   that was begun with other credentials is completed (contract T3).
//! - X2: no two live sessions of an export have the same initiator and ISID (RFC 7143 6.3.5).
//! - X3: an export that was taken away holds no device (contract T5).

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Instant;

use quarry_contract::{
    Absence, BlockDevice, DriverError, ExportInfo, ExportSpec, Grant, InitiatorName, Keeper, Portal,
    SessionInfo, VolumeId,
};

use crate::chap::Credentials;
use crate::fair_share::{Census, FairShare, Media};
use crate::limiter::Limiter;
use crate::login::{Admission, Authority, GrantId, LoginStatus};
use crate::nexus::{AccessCell, Attention, Nexus};
use crate::range_locks::RangeLocks;
use crate::reservations::{Consequences, InitiatorPort};
use crate::sanitizer::Sanitizer;
use crate::scsi::UnitIdentity;
use crate::unit_state::UnitState;

/// How many removed exports are remembered of which sessions may not have ended.
const ENDING: usize = 4096;

/// The LUN of every volume.
const LUN: u16 = 0;

/// Where a connection lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionAddress {
    /// The reactor's number.
    pub reactor: usize,
    /// The slot within the reactor.
    pub index: u32,
    /// Tells connections apart that had the same slot.
    pub serial: u64,
}

/// A live session.
#[derive(Debug, Clone)]
pub struct SessionRecord {
    /// The session's handle.
    pub tsih: u16,
    /// Who.
    pub initiator: InitiatorName,
    /// The initiator's part of the session's name.
    pub isid: [u8; 6],
    /// Its connection.
    pub address: ConnectionAddress,
    /// From where.
    pub peer: SocketAddr,
    /// Where to.
    pub portal: Portal,
    /// What others may tell it.
    pub nexus: Arc<Nexus>,
}

struct GrantRecord {
    /// Another one when the credentials change.
    id: GrantId,
    initiator: InitiatorName,
    access: Arc<AccessCell>,
    credentials: Credentials,
}

/// Returns an id that no grant has had in this process.
fn next_grant_id() -> GrantId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    GrantId(NEXT.fetch_add(1, Ordering::Relaxed))
}

fn credentials_of(grant: &Grant) -> Credentials {
    Credentials {
        initiator: grant.chap.clone(),
        target: grant.target_chap.clone(),
    }
}

/// One exported volume.
pub struct Export {
    /// The volume.
    pub volume: VolumeId,
    /// Its names.
    pub identity: Arc<UnitIdentity>,
    /// What initiators have done to it that others feel.
    pub unit: UnitState,
    /// The ranges that a command has for itself.
    pub locks: RangeLocks,
    /// How fast it may be used.
    pub limiter: Limiter,
    /// The reactors' queues of its device that are used.
    pub queues: Arc<Census>,
    /// The volumes that are used of its medium.
    pub fair: Arc<FairShare>,
    state: Mutex<ExportState>,
    sanitizers: Mutex<Vec<Sanitizer>>,
    keeper: Arc<dyn Keeper>,
    /// What was kept last. Held while it is being kept, so that what is kept last is the latest.
    kept: Mutex<Vec<u8>>,
    /// Something is kept.
    keeps: AtomicBool,
}

struct ExportState {
    /// `None` once the export is taken away (X3).
    device: Option<Arc<dyn BlockDevice>>,
    grants: Vec<GrantRecord>,
    sessions: Vec<SessionRecord>,
}

/// What a new session gets.
pub struct Registration {
    /// Its handle.
    pub tsih: u16,
    /// What others may tell it.
    pub nexus: Arc<Nexus>,
    /// The device.
    pub device: Arc<dyn BlockDevice>,
}

/// What comes of [`Export::set_grants`].
pub struct Regranted {
    /// Whether any grant is another one.
    pub changed: bool,
    /// Who has none any more.
    pub revoked: Vec<InitiatorName>,
    /// Their sessions, which are to end.
    pub sessions: Vec<ConnectionAddress>,
}

/// How [`ExportTable::register`] ends.
pub enum Registered {
    /// The session is live.
    Live(Arc<Export>, Registration),
    /// The initiator's old session must end first (X2).
    After(ConnectionAddress),
    /// There is no place for it.
    Refused(LoginStatus),
}

impl Export {
    fn lock(&self) -> MutexGuard<'_, ExportState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a grant as described. Tells whether anything changed.
    pub fn grant(&self, grant: &Grant) -> bool {
        self.lock().grant(grant)
    }

    /// Takes a grant away. Tells whether there was one, and the initiator's sessions that have not ended (X1),
    /// which may be there without a grant when an earlier revoke was not waited for.
    pub fn revoke(&self, initiator: &InitiatorName) -> (bool, Vec<ConnectionAddress>) {
        let revoked = self.lock().revoke(initiator);
        self.forget_reservations(initiator);
        revoked
    }

    /// Makes the grants equal to these.
    pub fn set_grants(&self, grants: &[Grant]) -> Regranted {
        let mut state = self.lock();
        let revoked: Vec<InitiatorName> = state
            .grants
            .iter()
            .map(|record| record.initiator.clone())
            .filter(|known| !grants.iter().any(|grant| grant.initiator == *known))
            .collect();
        let mut changed = !revoked.is_empty();
        let mut sessions = Vec::new();
        for initiator in &revoked {
            sessions.extend(state.revoke(initiator).1);
        }
        for grant in grants {
            changed |= state.grant(grant);
        }
        drop(state);
        for initiator in &revoked {
            self.forget_reservations(initiator);
        }
        Regranted {
            changed,
            revoked,
            sessions,
        }
    }

    /// Ends the export: drops its device and returns the sessions to end (X1, X3). What these do to the unit until they
    /// are gone is to be forgotten after it.
    pub fn close(&self) -> Vec<ConnectionAddress> {
        self.unit.forget_all();
        let mut state = self.lock();
        state.device = None;
        state.grants.clear();
        state.sessions.iter().map(|session| session.address).collect()
    }

    /// Tells whether what is reserved has to be kept: it is to outlive a restart, or did.
    pub fn must_keep(&self) -> bool {
        self.keeps.load(Ordering::Acquire) || self.unit.has_to_keep()
    }

    /// Makes what is reserved durable, as far as it is to outlive a restart (contract T7). Blocks.
    ///
    /// # Errors
    /// When it cannot be kept.
    pub fn keep(&self) -> Result<(), DriverError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.unit.to_keep();
        if *kept != state {
            self.keeper.keep(self.volume, &state)?;
            self.keeps.store(!state.is_empty(), Ordering::Release);
            *kept = state;
        }
        Ok(())
    }

    /// Returns the device, unless the export is taken away.
    pub fn device(&self) -> Option<Arc<dyn BlockDevice>> {
        self.lock().device.clone()
    }

    /// Holds on to a sanitize operation that has been started.
    pub fn keep_sanitizer(&self, sanitizer: Sanitizer) {
        let mut sanitizers = self.sanitizers.lock().unwrap_or_else(PoisonError::into_inner);
        // The one before it has let the unit go, and may be about to let the device go.
        sanitizers.retain(|earlier| !earlier.has_ended());
        sanitizers.push(sanitizer);
    }

    /// Ends a sanitize operation where it is, and waits until it holds the device no more (contract T5).
    pub fn stop_sanitizing(&self) {
        let sanitizers = std::mem::take(&mut *self.sanitizers.lock().unwrap_or_else(PoisonError::into_inner));
        for sanitizer in sanitizers {
            sanitizer.stop();
        }
    }

    /// Takes everything away that an initiator has reserved, and tells the others.
    pub fn forget_reservations(&self, initiator: &InitiatorName) {
        let consequences = self.unit.forget(initiator);
        self.tell(&consequences);
    }

    /// Does so once an initiator's sessions have ended, unless it is granted again: until then they may have reserved
    /// something anew, which nobody but the initiator could give up (contract T7).
    pub fn forget_gone(&self, initiator: &InitiatorName) {
        let granted = self.lock().grants.iter().any(|r| r.initiator == *initiator);
        if !granted {
            self.forget_reservations(initiator);
        }
    }

    /// Does so for all initiators without a grant: what was kept may be older than the grants are.
    pub fn forget_strangers(&self) {
        let granted: Vec<InitiatorName> = self.lock().grants.iter().map(|r| r.initiator.clone()).collect();
        let mut strangers: Vec<InitiatorName> = Vec::new();
        for registrant in self.unit.reservations().registrants() {
            strangers.push(registrant.port.name.clone());
        }
        strangers.retain(|name| !granted.contains(name));
        for stranger in &strangers {
            self.forget_reservations(stranger);
        }
    }

    /// Tells ports what they are to know of a change of reservations.
    pub fn tell(&self, consequences: &Consequences) {
        for (port, notice) in &consequences.notices {
            self.raise_at((*notice).into(), port);
        }
    }

    /// Raises a unit attention on every session but one.
    pub fn raise(&self, attention: Attention, except: Option<u16>) {
        for session in &self.lock().sessions {
            if Some(session.tsih) != except {
                session.nexus.raise(attention);
            }
        }
    }

    /// Raises a unit attention on the session of an initiator port, if it has one.
    pub fn raise_at(&self, attention: Attention, port: &InitiatorPort) {
        for session in &self.lock().sessions {
            if session.nexus.port == *port {
                session.nexus.raise(attention);
            }
        }
    }

    /// Returns the live sessions.
    pub fn sessions(&self) -> Vec<SessionRecord> {
        self.lock().sessions.clone()
    }
}

impl ExportState {
    fn grant(&mut self, grant: &Grant) -> bool {
        let known = self
            .grants
            .iter_mut()
            .find(|record| record.initiator == grant.initiator);
        let Some(record) = known else {
            self.grants.push(GrantRecord {
                id: next_grant_id(),
                initiator: grant.initiator.clone(),
                access: Arc::new(AccessCell::new(grant.access)),
                credentials: credentials_of(grant),
            });
            return true;
        };
        let other_access = record.access.get() != grant.access;
        let credentials = credentials_of(grant);
        let other_credentials = record.credentials != credentials;
        if other_credentials {
            record.id = next_grant_id();
            record.credentials = credentials;
        }
        if other_access {
            record.access.set(grant.access);
            let theirs = self.sessions.iter().filter(|s| s.initiator == grant.initiator);
            theirs.for_each(|session| session.nexus.raise(Attention::ModeParametersChanged));
        }
        other_access || other_credentials
    }

    fn revoke(&mut self, initiator: &InitiatorName) -> (bool, Vec<ConnectionAddress>) {
        let before = self.grants.len();
        self.grants.retain(|record| record.initiator != *initiator);
        let theirs = self.sessions.iter().filter(|s| s.initiator == *initiator);
        let sessions = theirs.map(|session| session.address).collect();
        (self.grants.len() < before, sessions)
    }
}

/// All exports.
pub struct ExportTable {
    name_prefix: String,
    max_sessions: usize,
    state: RwLock<TableState>,
    handles: Mutex<Handles>,
    media: Media,
}

#[derive(Default)]
struct TableState {
    exports: HashMap<VolumeId, Arc<Export>>,
    /// Removed, each with its export as long as sessions of it have not ended.
    ending: VecDeque<(VolumeId, Weak<Export>)>,
    /// What those are told that ask for a volume that is not in `exports` (T9).
    absent: HashMap<VolumeId, Absence>,
}

/// The session handles in use.
#[derive(Default)]
struct Handles {
    used: HashSet<u16>,
    last: u16,
}

impl ExportTable {
    /// Makes an empty table.
    pub fn new(name_prefix: String, max_sessions: usize) -> Self {
        Self {
            name_prefix,
            // A handle has 16 bits, and 0 is none.
            max_sessions: max_sessions.min(usize::from(u16::MAX) - 1),
            state: RwLock::default(),
            handles: Mutex::default(),
            media: Media::default(),
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, TableState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what a volume is or would be called.
    pub fn address_of(&self, volume: VolumeId) -> ExportInfo {
        ExportInfo {
            target_name: format!("{}:volume-{volume}", self.name_prefix),
            lun: LUN,
            serial: volume.to_string(),
        }
    }

    /// Returns an export.
    pub fn find(&self, volume: VolumeId) -> Option<Arc<Export>> {
        self.read().exports.get(&volume).cloned()
    }

    /// Returns all exports.
    pub fn all(&self) -> Vec<Arc<Export>> {
        self.read().exports.values().cloned().collect()
    }

    /// Returns the export of a volume, making it as described, without grants, when there is none. Tells whether it
    /// is new.
    ///
    /// # Errors
    /// When what was kept of it is damaged.
    pub fn insert(&self, spec: &ExportSpec) -> Result<(Arc<Export>, bool), DriverError> {
        let volume = spec.volume;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = state.exports.get(&volume) {
            return Ok((Arc::clone(known), false));
        }
        // What is kept still when an end was not waited for has gone with it all the same (T7).
        let has_ended = !state.ending.iter().any(|(removed, _)| *removed == volume);
        let restored = if has_ended { &spec.kept[..] } else { &[] };
        let unit = UnitState::restore(restored).ok_or_else(|| DriverError::Corrupt {
            object: format!("volume {volume}"),
            detail: "what is kept of its export cannot be read".to_owned(),
        })?;
        let name = self.address_of(volume).target_name;
        let export = Arc::new(Export {
            volume,
            identity: Arc::new(UnitIdentity::of(volume, name)),
            unit,
            locks: RangeLocks::default(),
            limiter: Limiter::new(spec.limits, Instant::now()),
            queues: Arc::default(),
            fair: self.media.of(spec.device.medium()),
            state: Mutex::new(ExportState {
                device: Some(Arc::clone(&spec.device)),
                grants: Vec::new(),
                sessions: Vec::new(),
            }),
            sanitizers: Mutex::default(),
            keeper: Arc::clone(&spec.keeper),
            keeps: AtomicBool::new(!spec.kept.is_empty()),
            kept: Mutex::new(spec.kept.clone()),
        });
        state.ending.retain(|(removed, _)| *removed != volume);
        state.absent.remove(&volume);
        state.exports.insert(volume, Arc::clone(&export));
        Ok((export, true))
    }

    /// Takes an export out of the table and remembers that it was there, or is no longer waited for (T9).
    pub fn remove(&self, volume: VolumeId) -> Option<Arc<Export>> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(absence) = state.absent.get_mut(&volume) {
            *absence = Absence::Removed;
        }
        let export = state.exports.remove(&volume)?;
        state.absent.insert(volume, Absence::Removed);
        if state.ending.len() == ENDING {
            state.ending.pop_front();
        }
        state.ending.push_back((volume, Arc::downgrade(&export)));
        Some(export)
    }

    /// Notes what those are told that ask for a volume, unless it is exported (T9).
    pub fn set_absent(&self, volume: VolumeId, absence: Absence) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if !state.exports.contains_key(&volume) {
            state.absent.insert(volume, absence);
        }
    }

    /// Forgets a removed export of which nothing is left.
    pub fn has_ended(&self, export: &Arc<Export>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state
            .ending
            .retain(|(_, known)| !std::ptr::eq(known.as_ptr(), Arc::as_ptr(export)));
    }

    /// Returns a removed export that still has sessions.
    pub fn removed(&self, volume: VolumeId) -> Option<Arc<Export>> {
        let state = self.read();
        let known = state.ending.iter().rev().find(|(removed, _)| *removed == volume);
        known.and_then(|(_, export)| export.upgrade())
    }

    /// Reads the volume out of a target's name.
    fn volume_of(&self, target: &str) -> Option<VolumeId> {
        let id = target.strip_prefix(&self.name_prefix)?.strip_prefix(":volume-")?;
        let volume: VolumeId = id.parse().ok()?;
        // Only the canonical spelling is a name of ours.
        (volume.to_string() == id).then_some(volume)
    }

    /// Makes a logged-in initiator's session live, if the grant whose credentials it has proved is still there (X1,
    /// X2).
    pub fn register(
        &self,
        target: &str,
        (initiator, grant): (&InitiatorName, GrantId),
        isid: [u8; 6],
        address: ConnectionAddress,
        (peer, portal): (SocketAddr, Portal),
    ) -> Registered {
        let Some(export) = self.volume_of(target).and_then(|volume| self.find(volume)) else {
            return Registered::Refused(LoginStatus::TargetRemoved);
        };
        let mut state = export.lock();
        let Some(device) = state.device.clone() else {
            return Registered::Refused(LoginStatus::TargetRemoved);
        };
        let access = match state.grants.iter().find(|record| record.initiator == *initiator) {
            Some(record) if record.id == grant => Arc::clone(&record.access),
            Some(_) => return Registered::Refused(LoginStatus::AuthenticationFailed),
            None => return Registered::Refused(LoginStatus::NotAuthorized),
        };
        let old = state
            .sessions
            .iter()
            .find(|session| session.isid == isid && session.initiator == *initiator);
        if let Some(old) = old {
            return Registered::After(old.address);
        }
        let Some(tsih) = self.take_handle() else {
            return Registered::Refused(LoginStatus::OutOfResources);
        };
        let port = InitiatorPort {
            name: initiator.clone(),
            isid,
        };
        let nexus = Arc::new(Nexus::new(access, port));
        state.sessions.push(SessionRecord {
            tsih,
            initiator: initiator.clone(),
            isid,
            address,
            peer,
            portal,
            nexus: Arc::clone(&nexus),
        });
        drop(state);
        Registered::Live(export, Registration { tsih, nexus, device })
    }

    /// Takes a session off its export.
    pub fn unregister(&self, export: &Export, tsih: u16) {
        let mut state = export.lock();
        if let Some(at) = state.sessions.iter().position(|session| session.tsih == tsih) {
            export.unit.nexus_lost(&state.sessions.swap_remove(at).nexus.port);
        }
        drop(state);
        self.handles
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .used
            .remove(&tsih);
    }

    /// Returns how many sessions are live.
    pub fn session_count(&self) -> usize {
        let handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        handles.used.len()
    }

    fn take_handle(&self) -> Option<u16> {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        if handles.used.len() >= self.max_sessions {
            return None;
        }
        loop {
            handles.last = handles.last.wrapping_add(1);
            let handle = handles.last;
            if handle != 0 && handles.used.insert(handle) {
                return Some(handle);
            }
        }
    }

    /// Returns the targets that an initiator may log in to, sorted by name; with a user name, only those that
    /// have it in the initiator's grant.
    pub fn visible_to(&self, initiator: &InitiatorName, username: Option<&str>) -> Vec<String> {
        let visible = |export: &Arc<Export>| {
            export.lock().grants.iter().any(|record| {
                record.initiator == *initiator
                    && username.is_none_or(|name| name == record.credentials.initiator.username)
            })
        };
        let exports = self.all();
        let mut names: Vec<String> = exports
            .iter()
            .filter(|export| visible(export))
            .map(|export| export.identity.target_name.clone())
            .collect();
        names.sort();
        names
    }

    /// Returns the live sessions of one volume, or of all.
    pub fn sessions(&self, volume: Option<VolumeId>) -> Vec<SessionInfo> {
        let exports = match volume {
            Some(volume) => self.find(volume).into_iter().collect(),
            None => self.all(),
        };
        let mut sessions = Vec::new();
        for export in exports {
            sessions.extend(export.sessions().into_iter().map(|session| SessionInfo {
                volume: export.volume,
                initiator: session.initiator,
                peer: session.peer,
                portal: session.portal,
                tsih: session.tsih,
            }));
        }
        sessions
    }
}

impl Authority for ExportTable {
    fn admission(&self, target: &str, initiator: &InitiatorName) -> Admission {
        let Some(volume) = self.volume_of(target) else {
            return Admission::Unknown;
        };
        let state = self.read();
        let Some(export) = state.exports.get(&volume) else {
            return match state.absent.get(&volume) {
                Some(Absence::Removed) => Admission::Removed,
                Some(Absence::Unavailable) => Admission::Unavailable,
                None => Admission::Unknown,
            };
        };
        let grants = &export.lock().grants;
        match grants.iter().find(|record| record.initiator == *initiator) {
            Some(record) => Admission::Granted(record.credentials.clone(), record.id),
            None => Admission::NotGranted,
        }
    }

    fn credentials_of(&self, initiator: &InitiatorName) -> Vec<Credentials> {
        let mut credentials = Vec::new();
        for export in self.all() {
            let state = export.lock();
            let theirs = state.grants.iter().filter(|r| r.initiator == *initiator);
            credentials.extend(theirs.map(|record| record.credentials.clone()));
        }
        credentials
    }
}
