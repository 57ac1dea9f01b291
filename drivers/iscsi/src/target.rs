//! The target as a whole: its start, its control calls ([`Target`]), its end.
//!
//! Control calls change the export table and then wait for the reactors to end the sessions concerned; they
//! never touch a session themselves.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use async_trait::async_trait;
use quarry_contract::{
    Absence, DriverError, ExportInfo, ExportSpec, Grant, InitiatorName, IoLimits, Metric, Outcome, Portal,
    SessionInfo, Target, VolumeId,
};
use socket2::{Domain, Socket, Type};

use crate::background::{Background, Jobs};
use crate::config::TargetConfig;
use crate::error::StartError;
use crate::exports::{ConnectionAddress, Export, ExportTable, Regranted};
use crate::fair_share::EpochClock;
use crate::limiter::Turn;
use crate::metrics::{self, Counters};
use crate::nexus::Attention;
use crate::pass::Pass;
use crate::range_locks::Ticket;
use crate::reactor::{Farewell, Inbox, Mailbox, Message, Reactor};
use crate::sanitizer::Sanitizer;

/// Connections that wait to be accepted, if the system allows so many (net.core.somaxconn): after a restart the
/// initiators of all sessions come at once, and one that is not let in tries again only after a second.
const BACKLOG: i32 = 4096;

/// Where random bytes come from.
pub type Random = fn(&mut [u8]) -> io::Result<()>;

/// The system's random bytes.
fn system_random(bytes: &mut [u8]) -> io::Result<()> {
    getrandom::fill(bytes).map_err(|error| io::Error::other(error.to_string()))
}

/// What the control calls and all reactors share.
pub struct Shared {
    /// The configuration.
    pub config: TargetConfig,
    /// Who may reach what.
    pub exports: ExportTable,
    /// The way to work that waits for the disk.
    pub background: Background,
    /// What time it is, roughly.
    pub clock: EpochClock,
    /// Fills bytes with random ones, for challenges.
    pub random: Random,
    counters: Vec<Counters>,
    portals: Vec<Portal>,
    mailboxes: Vec<Mailbox>,
    pending_logins: AtomicUsize,
    stopping: AtomicBool,
}

impl Shared {
    /// Makes what is shared, the inbox of each reactor and the background's jobs.
    ///
    /// # Errors
    /// When the system refuses a descriptor.
    fn prepare(
        config: TargetConfig,
        portals: Vec<Portal>,
        reactors: usize,
        random: Random,
    ) -> io::Result<(Arc<Self>, Vec<Inbox>, Jobs)> {
        let mut mailboxes = Vec::new();
        let mut inboxes = Vec::new();
        for _ in 0..reactors {
            let (mailbox, inbox) = Mailbox::open()?;
            mailboxes.push(mailbox);
            inboxes.push(inbox);
        }
        let (background, jobs) = Background::new();
        let shared = Arc::new(Self {
            background,
            clock: EpochClock::new(Instant::now()),
            exports: ExportTable::new(config.name_prefix.to_lowercase(), config.max_sessions),
            config,
            random,
            counters: (0..reactors).map(|_| Counters::default()).collect(),
            portals,
            mailboxes,
            pending_logins: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
        });
        Ok((shared, inboxes, jobs))
    }

    /// Returns the addresses listened on.
    pub fn portals(&self) -> &[Portal] {
        &self.portals
    }

    /// Returns the number of reactors.
    pub fn reactors(&self) -> usize {
        self.mailboxes.len()
    }

    /// Returns what a reactor counts.
    pub fn counters(&self, reactor: usize) -> &Counters {
        &self.counters[reactor]
    }

    /// Sends a reactor a message.
    pub fn send(&self, reactor: usize, message: Message) {
        if let Some(mailbox) = self.mailboxes.get(reactor) {
            mailbox.send(message);
        }
    }

    /// Gives a range of a unit back, and tells those whose turn it is.
    pub fn give_back(&self, export: &Export, ticket: Ticket) {
        for (taker, ticket) in export.locks.give_back(ticket) {
            self.send(
                taker.session.reactor,
                Message::Granted {
                    index: taker.session.index,
                    serial: taker.session.serial,
                    slot: taker.slot,
                    ticket,
                },
            );
        }
    }

    /// Tells those whose turn it is under an export's limits, and has `reactor` wake the others.
    pub fn take_turn(&self, export: &Arc<Export>, reactor: usize, turn: Turn) {
        for (taker, place) in turn.granted {
            self.send(
                taker.session.reactor,
                Message::Paced {
                    index: taker.session.index,
                    serial: taker.session.serial,
                    slot: taker.slot,
                    place,
                },
            );
        }
        if let Some(at) = turn.wake {
            let export = Arc::clone(export);
            self.send(reactor, Message::Pace { export, at });
        }
    }

    /// Counts a connection that is to log in.
    pub fn login_begins(&self) {
        self.pending_logins.fetch_add(1, Ordering::AcqRel);
    }

    /// Tells whether one of those that have not logged in has to go.
    pub fn has_too_many_pending_logins(&self) -> bool {
        self.pending_logins() > self.config.max_pending_logins
    }

    /// Says that such a connection has logged in or gone.
    pub fn login_ended(&self) {
        self.pending_logins.fetch_sub(1, Ordering::AcqRel);
    }

    /// Returns how many connections have not logged in.
    pub fn pending_logins(&self) -> usize {
        self.pending_logins.load(Ordering::Acquire)
    }

    /// Tells whether the target is being shut down.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

/// A native iSCSI target.
pub struct IscsiTarget {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// The first reactor takes connections from these; here they are for whoever comes after this target.
    listeners: Mutex<Vec<Arc<TcpListener>>>,
}

impl IscsiTarget {
    /// Listens on the portals and starts the I/O threads.
    ///
    /// # Errors
    /// When a portal cannot be listened on or the system refuses a thread.
    pub fn start(config: TargetConfig) -> Result<Self, StartError> {
        Self::start_with(config, Vec::new(), system_random)
    }

    /// The same, but listens with the sockets that a target before this has [left](IscsiTarget::hand_over), where
    /// they are of a portal of the configuration; others are closed.
    ///
    /// # Errors
    /// When a portal cannot be listened on or the system refuses a thread.
    pub fn succeed(config: TargetConfig, left: Vec<TcpListener>) -> Result<Self, StartError> {
        Self::start_with(config, left, system_random)
    }

    /// Starts with other random bytes, which only a test may want.
    pub(crate) fn start_with(
        config: TargetConfig,
        mut left: Vec<TcpListener>,
        random: Random,
    ) -> Result<Self, StartError> {
        if let Err(problem) = InitiatorName::parse(&format!("{}:volume", config.name_prefix)) {
            let prefix = config.name_prefix;
            return Err(StartError::NamePrefix { prefix, problem });
        }
        if config.portals.is_empty() {
            return Err(StartError::NoPortal);
        }
        let mut listeners = Vec::new();
        for portal in &config.portals {
            let of_portal =
                |socket: &TcpListener| socket.local_addr().is_ok_and(|address| address == *portal);
            let listener = match left.iter().position(of_portal) {
                Some(at) => Ok(left.swap_remove(at)),
                None => listen(*portal),
            };
            let opened = listener.and_then(|listener| {
                listener.set_nonblocking(true)?;
                let address = listener.local_addr()?;
                Ok((Arc::new(listener), Portal(address)))
            });
            listeners.push(opened.map_err(|source| StartError::Listen {
                portal: *portal,
                source,
            })?);
        }
        drop(left);
        let portals: Vec<Portal> = listeners.iter().map(|(_, portal)| *portal).collect();

        let reactors = match config.reactors {
            0 => thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let (shared, inboxes, jobs) =
            Shared::prepare(config, portals, reactors, random).map_err(StartError::Thread)?;
        let target = Self {
            shared: Arc::clone(&shared),
            threads: Mutex::default(),
            listeners: Mutex::new(
                listeners
                    .iter()
                    .map(|(listener, _)| Arc::clone(listener))
                    .collect(),
            ),
        };
        target.spawn("iscsi-background".to_owned(), move || jobs.run())?;
        for (number, inbox) in inboxes.into_iter().enumerate() {
            let listeners = std::mem::take(&mut listeners);
            let reactor =
                Reactor::new(number, Arc::clone(&shared), inbox, listeners).map_err(StartError::Thread)?;
            target.spawn(format!("iscsi-{number}"), move || reactor.run())?;
        }
        Ok(target)
    }

    /// Makes a target without threads and listeners, whose only reactor and background jobs the caller drives.
    ///
    /// # Errors
    /// When the system refuses a descriptor.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn driven(config: TargetConfig, random: Random) -> io::Result<(Self, Reactor, Jobs)> {
        let portals = config.portals.iter().map(|portal| Portal(*portal)).collect();
        let (shared, mut inboxes, jobs) = Shared::prepare(config, portals, 1, random)?;
        let reactor = Reactor::new(0, Arc::clone(&shared), inboxes.remove(0), Vec::new())?;
        let target = Self {
            shared,
            threads: Mutex::default(),
            listeners: Mutex::default(),
        };
        Ok((target, reactor, jobs))
    }

    /// Gives the reactor of a driven target a connection, as if a listener had taken it.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn adopt(&self, socket: std::net::TcpStream) {
        self.shared.login_begins();
        self.shared
            .send(0, Message::Adopt(socket, self.shared.portals[0]));
    }

    /// Returns how many connections have not logged in.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn pending_logins(&self) -> usize {
        self.shared.pending_logins()
    }

    fn spawn(&self, name: String, run: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
        let thread = thread::Builder::new().name(name).spawn(run);
        self.threads().push(thread.map_err(StartError::Thread)?);
        Ok(())
    }

    /// Takes the connections that have waited since a start with
    /// [`hold_logins`](TargetConfig::hold_logins), and all that follow.
    pub fn accept_logins(&self) {
        if self.shared.config.hold_logins {
            // The first reactor has the listeners.
            self.shared.send(0, Message::Accept);
        }
    }

    /// Ends as [`shutdown`](Target::shutdown) does, for another target that takes over: initiators are not asked to
    /// log out, but dropped when what they have under way is answered, and told to come back at once. The portals' sockets
    /// stay open; those who connect wait in them until the next target [begins](IscsiTarget::succeed).
    ///
    /// Empty the second time.
    pub async fn hand_over(&self) -> Vec<TcpListener> {
        let listeners = std::mem::take(&mut *self.listeners());
        self.end(Farewell::Succeeded).await;
        // The reactors, which had them too, are gone.
        listeners.into_iter().filter_map(Arc::into_inner).collect()
    }

    /// Ends all sessions, and then everything else.
    async fn end(&self, farewell: Farewell) {
        let (pass, end) = Pass::with_end();
        self.stop(&pass, farewell);
        drop(pass);
        end.await;
        self.shared.background.stop();
        self.join();
        self.drop_devices();
    }

    fn listeners(&self) -> std::sync::MutexGuard<'_, Vec<Arc<TcpListener>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn threads(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn export_of(&self, volume: VolumeId) -> Result<Arc<Export>, DriverError> {
        self.shared
            .exports
            .find(volume)
            .ok_or_else(|| DriverError::NotFound {
                object: format!("export of volume {volume}"),
            })
    }

    /// Replaces an export's limits. Tells whether they are others.
    fn limit(&self, export: &Arc<Export>, limits: IoLimits) -> bool {
        let (changed, turn) = export.limiter.set(limits, Instant::now());
        self.shared.take_turn(export, 0, turn);
        changed
    }

    /// Cuts sessions and waits until they are gone (T4, T5).
    async fn close_sessions(&self, sessions: Vec<ConnectionAddress>) {
        let (pass, end) = Pass::with_end();
        for address in sessions {
            self.shared.send(
                address.reactor,
                Message::CloseSession {
                    index: address.index,
                    serial: address.serial,
                    pass: pass.clone(),
                },
            );
        }
        drop(pass);
        end.await;
    }

    /// Ends an export that is out of the table, and waits until nothing of it is left (T4, T5, T7).
    async fn close(&self, export: &Arc<Export>) -> Result<(), DriverError> {
        self.close_sessions(export.close()).await;
        // No session is left to start another operation, nor to reserve anything anew.
        self.stop_sanitizing(export).await;
        export.unit.forget_all();
        self.keep(export).await?;
        self.shared.exports.has_ended(export);
        Ok(())
    }

    /// Tells all reactors to stop. The pass is dropped when they have.
    pub(crate) fn stop(&self, pass: &Pass, farewell: Farewell) {
        self.shared.stopping.store(true, Ordering::Release);
        for mailbox in &self.shared.mailboxes {
            mailbox.send(Message::Stop(pass.clone(), farewell));
        }
    }

    /// Begins a sanitize operation again that the last process did not end.
    fn resume_sanitizing(&self, export: &Arc<Export>) -> Result<(), DriverError> {
        let (Some(operation), Some(device)) = (export.unit.sanitizing(), export.device()) else {
            return Ok(());
        };
        let ticket = export.locks.take_all();
        let sanitizer = Sanitizer::start(&self.shared, export, device, operation, ticket, None);
        export.keep_sanitizer(sanitizer.map_err(|error| DriverError::Internal {
            detail: format!("starting a thread: {error}"),
        })?);
        Ok(())
    }

    /// Ends an export's sanitize operation and waits for that (T5).
    async fn stop_sanitizing(&self, export: &Arc<Export>) {
        let (pass, end) = Pass::with_end();
        let export = Arc::clone(export);
        self.shared.background.run(pass, move || {
            export.stop_sanitizing();
            Ok(Vec::new())
        });
        end.await;
    }

    /// Keeps what is reserved of an export, when that is to be kept (T7).
    async fn keep(&self, export: &Arc<Export>) -> Result<(), DriverError> {
        if !export.must_keep() {
            return Ok(());
        }
        let (pass, end) = Pass::with_end();
        let answer = self.shared.background.keep(export, pass);
        end.await;
        answer.take().map(drop).map_err(|_| DriverError::Internal {
            detail: format!(
                "the state of the export of volume {} cannot be kept",
                export.volume
            ),
        })
    }

    fn drop_devices(&self) {
        for export in self.shared.exports.all() {
            export.stop_sanitizing();
            export.close();
        }
    }

    fn join(&self) {
        for thread in self.threads().drain(..) {
            if thread.join().is_err() {
                tracing::error!("an I/O thread has panicked");
            }
        }
    }
}

fn listen(portal: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(portal), Type::STREAM, None)?;
    // A restart must not wait for connections of the process before.
    socket.set_reuse_address(true)?;
    if portal.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&portal.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[async_trait]
impl Target for IscsiTarget {
    fn portals(&self) -> Vec<Portal> {
        self.shared.portals.clone()
    }

    fn address_of(&self, volume: VolumeId) -> ExportInfo {
        self.shared.exports.address_of(volume)
    }

    async fn export(&self, mut spec: ExportSpec) -> Result<Outcome<ExportInfo>, DriverError> {
        let volume = spec.volume;
        let info = self.address_of(volume);
        if self.shared.exports.find(volume).is_none()
            && let Some(ended) = self.shared.exports.removed(volume)
        {
            // Its end was not waited for: what its sessions have at the device must not land beside what comes now (T4).
            self.close(&ended).await?;
            // Nothing is kept of it now, whatever the caller has read before (T7).
            spec.kept.clear();
        }
        let (export, new) = self.shared.exports.insert(&spec)?;
        let grants = spec.grants;
        // The table has its own; this one goes before anybody waits (T5).
        drop(spec.device);
        let Regranted {
            changed,
            revoked,
            sessions,
        } = export.set_grants(&grants);
        let limited = self.limit(&export, spec.limits);
        if new {
            export.forget_strangers();
            if let Err(error) = self.resume_sanitizing(&export) {
                // What is kept stays, for the next call.
                self.shared.exports.remove(volume);
                self.close_sessions(export.close()).await;
                self.shared.exports.has_ended(&export);
                return Err(error);
            }
        }
        self.close_sessions(sessions).await;
        revoked.iter().for_each(|initiator| export.forget_gone(initiator));
        self.keep(&export).await?;
        Ok(match new || changed || limited {
            true => Outcome::Changed(info),
            false => Outcome::Unchanged(info),
        })
    }

    async fn grant(&self, volume: VolumeId, grant: Grant) -> Result<Outcome<()>, DriverError> {
        Ok(match self.export_of(volume)?.grant(&grant) {
            true => Outcome::Changed(()),
            false => Outcome::Unchanged(()),
        })
    }

    async fn revoke(&self, volume: VolumeId, initiator: &InitiatorName) -> Result<Outcome<()>, DriverError> {
        let Some(export) = self.shared.exports.find(volume) else {
            return Ok(Outcome::Unchanged(()));
        };
        let (had_grant, ended) = export.revoke(initiator);
        self.close_sessions(ended).await;
        export.forget_gone(initiator);
        self.keep(&export).await?;
        Ok(match had_grant {
            true => Outcome::Changed(()),
            false => Outcome::Unchanged(()),
        })
    }

    async fn unexport(&self, volume: VolumeId) -> Result<Outcome<()>, DriverError> {
        let Some(export) = self.shared.exports.remove(volume) else {
            // An earlier call may not have been waited for; its sessions must be gone all the same (T4, T5).
            if let Some(export) = self.shared.exports.removed(volume) {
                self.close(&export).await?;
            }
            return Ok(Outcome::Unchanged(()));
        };
        self.close(&export).await?;
        Ok(Outcome::Changed(()))
    }

    fn set_absent(&self, volume: VolumeId, absence: Absence) {
        self.shared.exports.set_absent(volume, absence);
    }

    async fn set_limits(&self, volume: VolumeId, limits: IoLimits) -> Result<Outcome<()>, DriverError> {
        let export = self.export_of(volume)?;
        Ok(match self.limit(&export, limits) {
            true => Outcome::Changed(()),
            false => Outcome::Unchanged(()),
        })
    }

    async fn size_changed(&self, volume: VolumeId) -> Result<(), DriverError> {
        self.export_of(volume)?.raise(Attention::CapacityChanged, None);
        Ok(())
    }

    async fn sessions(&self, volume: Option<VolumeId>) -> Result<Vec<SessionInfo>, DriverError> {
        Ok(self.shared.exports.sessions(volume))
    }

    fn metrics(&self) -> Vec<Metric> {
        let shared = &self.shared;
        let sessions = shared.exports.session_count();
        metrics::collect(shared.counters.iter(), sessions, shared.pending_logins())
    }

    async fn shutdown(&self) {
        // Nobody is to wait in them.
        self.listeners().clear();
        self.end(Farewell::Asked).await;
    }
}

impl Drop for IscsiTarget {
    fn drop(&mut self) {
        self.listeners().clear();
        self.stop(&Pass::then(|| {}), Farewell::Drained);
        self.shared.background.stop();
        self.join();
        self.drop_devices();
    }
}
