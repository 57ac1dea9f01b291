//! The I/O threads.
//!
//! Each reactor has an epoll instance over its connections, its device queues' descriptors and its mailbox. A
//! connection stays with the reactor that took it; a device queue belongs to one reactor. So the I/O path takes
//! no lock but its own mailbox's, and a control call never holds it up (contract T6).
//!
//! One turn: wait; read and act on every ready connection; start all device requests at once and take what has
//! completed; send every connection's responses at once; again until nothing moves. With [time to spare](slack) only
//! a few completions are answered in a turn. What a connection may do in a turn is bounded, so that those that move much
//! keep nobody waiting for long.

mod admission;
mod buffers;
mod connection;
mod device_queue;
mod mailbox;
mod outbox;
mod slack;
mod stopping;

use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use quarry_contract::{Completion, Portal};

pub use buffers::BufferPool;
use connection::{Closed, Connection, Surroundings};
pub use device_queue::DeviceQueues;
pub use mailbox::{Farewell, Inbox, Mailbox, Message};
pub use outbox::Outbox;
use slack::Slack;
use stopping::Stop;

use crate::exports::{ConnectionAddress, Export};
use crate::limiter::Place;
use crate::range_locks::Taker;
use crate::target::Shared;

/// Received bytes that one read may bring.
const SCRATCH_BYTES: usize = 128 << 10;

/// Reads of one connection in a turn: it does not keep the others waiting, and the device begins with what has come
/// while the rest of it is still on its way.
const READS_PER_TURN: usize = 2;

/// How often in a turn device requests and responses are looked after.
const PASSES: usize = 8;

/// Completions that are answered before initiators are listened to again, when there is [time](Slack) for that: a
/// quarter of them within these bounds.
const ANSWERS_AT_A_TIME: RangeInclusive<usize> = 2..=4;

const EVENTS: usize = 256;

/// How long no connection is accepted after accepting has failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// What an event is about; the low bits hold a number.
const KIND_SHIFT: u32 = 60;
const MAILBOX: u64 = 0;
const LISTENER: u64 = 1;
const CONNECTION: u64 = 2;
const DEVICE: u64 = 3;

fn token(kind: u64, number: usize) -> u64 {
    kind << KIND_SHIFT | number as u64
}

struct Slot {
    connection: Connection,
    /// What epoll is asked for.
    interest: EpollFlags,
    /// Cut, and waiting for the device.
    cut: bool,
}

/// See the module.
pub struct Reactor {
    number: usize,
    shared: Arc<Shared>,
    epoll: Epoll,
    inbox: Inbox,
    listeners: Vec<(Arc<TcpListener>, Portal)>,
    connections: Vec<Option<Box<Slot>>>,
    live: usize,
    /// Connections that had not logged in when they were looked at last, oldest first: slot and serial.
    pending: VecDeque<(u32, u64)>,
    next_serial: u64,
    next_reactor: usize,
    devices: DeviceQueues,
    buffers: BufferPool,
    scratch: Vec<u8>,
    /// What has completed and has not been taken to its session.
    completions: VecDeque<Completion>,
    /// Kept for its capacity.
    fresh: Vec<Completion>,
    slack: Slack,
    events: Vec<EpollEvent>,
    /// Connections that may have something to send.
    touched: VecDeque<usize>,
    /// Connections that were cut.
    closing: Vec<usize>,
    now: Instant,
    next_tick: Instant,
    /// The limiters to wake, each with its moment.
    paces: Vec<(Instant, Arc<Export>)>,
    stop: Option<Stop>,
    /// Accepting has failed; the listeners are not watched until the next tick.
    deaf: bool,
}

/// Splits a reactor into a connection's surroundings; the connection itself is borrowed apart.
macro_rules! around {
    ($reactor:expr) => {
        &mut Surroundings {
            devices: &mut $reactor.devices,
            buffers: &mut $reactor.buffers,
            shared: &$reactor.shared,
            counters: $reactor.shared.counters($reactor.number),
            now: $reactor.now,
        }
    };
}
use around;

/// Begins to look for connections at the listeners.
fn watch(epoll: &Epoll, listeners: &[(Arc<TcpListener>, Portal)]) -> io::Result<()> {
    for (index, (listener, _)) in listeners.iter().enumerate() {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token(LISTENER, index));
        epoll.add(listener, event)?;
    }
    Ok(())
}

impl Reactor {
    /// Prepares a reactor. The one with listeners takes connections for all.
    ///
    /// # Errors
    /// When the system refuses the descriptors.
    pub fn new(
        number: usize,
        shared: Arc<Shared>,
        inbox: Inbox,
        listeners: Vec<(Arc<TcpListener>, Portal)>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(
            &*inbox.wake,
            EpollEvent::new(EpollFlags::EPOLLIN, token(MAILBOX, 0)),
        )?;
        if !shared.config.hold_logins {
            watch(&epoll, &listeners)?;
        }
        let now = Instant::now();
        let devices = DeviceQueues::new(Arc::clone(&shared), now);
        let buffer_limit = shared.config.max_buffer_bytes / shared.reactors();
        Ok(Self {
            number,
            shared,
            epoll,
            inbox,
            listeners,
            connections: Vec::new(),
            live: 0,
            pending: VecDeque::new(),
            next_serial: 0,
            next_reactor: number,
            devices,
            buffers: BufferPool::new(buffer_limit),
            scratch: vec![0; SCRATCH_BYTES],
            completions: VecDeque::new(),
            fresh: Vec::new(),
            slack: Slack::new(now),
            events: vec![EpollEvent::empty(); EVENTS],
            touched: VecDeque::new(),
            closing: Vec::new(),
            now,
            next_tick: now,
            paces: Vec::new(),
            stop: None,
            deaf: false,
        })
    }

    /// Runs until it is told to stop and its connections are gone.
    pub fn run(mut self) {
        while self.turn(self.timeout()).is_some() {}
    }

    /// Waits for events, at most as long as `timeout`, acts on them and tells how many there were, unfinished work
    /// being one more; `None` once it has been told to stop and its connections are gone.
    pub fn turn(&mut self, timeout: EpollTimeout) -> Option<usize> {
        let mut events = std::mem::take(&mut self.events);
        let before = Instant::now();
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => {
                // The kernel interrupts the thread that started I/O to let it take the answers in: they are
                // there, without another wait to be told so.
                self.devices.mark_busy();
                0
            }
            Err(error) => {
                // epoll on our own descriptors cannot fail; if it does, nothing here can go on.
                tracing::error!(%error, "waiting for events failed");
                return None;
            }
        };
        self.now = Instant::now();
        self.slack.waited(before, self.now);
        self.devices.tell_time(self.now);
        for event in &events[..count] {
            let number = (event.data() & ((1 << KIND_SHIFT) - 1)) as usize;
            match event.data() >> KIND_SHIFT {
                MAILBOX => self.read_mail(),
                LISTENER => self.accept(number),
                CONNECTION => self.serve(number, event.events()),
                _ => self.devices.mark(number),
            }
        }
        self.events = events;
        if self.now >= self.next_tick {
            self.tick();
        }
        self.pace();
        self.go_on_stopping();
        self.settle();
        let counters = self.shared.counters(self.number);
        counters.set_buffer_bytes(self.buffers.in_use());
        (self.stop.is_none() || self.live > 0).then_some(count + usize::from(self.has_work()))
    }

    fn timeout(&self) -> EpollTimeout {
        if self.has_work() {
            return EpollTimeout::ZERO;
        }
        // With sessions of others a limiter may have its timer here.
        let pace = self.paces.iter().map(|(at, _)| *at).min();
        let tick = (self.live > 0 || self.deaf).then_some(self.next_tick);
        let Some(mut next) = tick.into_iter().chain(pace).min() else {
            return EpollTimeout::NONE;
        };
        if let Some(due) = self.stop.as_ref().and_then(Stop::due) {
            next = next.min(due);
        }
        let left = next.saturating_duration_since(Instant::now());
        let millis = (left.as_millis() + 1).min(60_000) as u16;
        EpollTimeout::from(millis)
    }

    /// How often deadlines are looked at.
    fn tick_period(&self) -> Duration {
        let config = &self.shared.config;
        let logging_in = self.shared.pending_logins() > 0;
        let shortest = match logging_in {
            true => config.login_timeout.min(config.ping_interval),
            false => config.ping_interval,
        };
        (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(10))
    }

    fn tick(&mut self) {
        self.next_tick = self.now + self.tick_period();
        let mut pending = std::mem::take(&mut self.pending);
        pending.retain(|(index, serial)| self.is_pending(*index, *serial));
        self.pending = pending;
        if std::mem::take(&mut self.deaf) {
            self.watch_listeners(EpollFlags::EPOLLIN);
        }
        for index in 0..self.connections.len() {
            let Some(slot) = self.connections[index].as_mut().filter(|slot| !slot.cut) else {
                continue;
            };
            match slot.connection.tick(self.now, around!(self)) {
                Ok(()) => self.touch(index),
                Err(reason) => self.cut(index, &reason),
            }
        }
    }

    /// Wakes the limiters whose moment has come.
    fn pace(&mut self) {
        while let Some(due) = self.paces.iter().position(|(at, _)| *at <= self.now) {
            let (at, export) = self.paces.swap_remove(due);
            let mut turn = export.limiter.wake(at, self.now);
            let (own, others) = turn
                .granted
                .into_iter()
                .partition(|(taker, _)| taker.session.reactor == self.number);
            turn.granted = others;
            self.shared.take_turn(&export, self.number, turn);
            let own: Vec<(Taker, Place)> = own;
            for (taker, place) in own {
                self.paced(taker.session.index, taker.session.serial, taker.slot, place);
            }
        }
    }

    fn paced(&mut self, index: u32, serial: u64, slot: u16, place: Place) {
        if self.find(index, serial).is_some_and(|slot| !slot.cut)
            && let Some(owner) = &mut self.connections[index as usize]
        {
            owner.connection.paced(slot, place, around!(self));
            self.touch(index as usize);
        }
    }

    fn read_mail(&mut self) {
        // The counter is read first: what is sent from now on wakes again.
        let _ = self.inbox.wake.read();
        while let Ok(message) = self.inbox.messages.try_recv() {
            match message {
                Message::Adopt(socket, portal) => self.adopt(socket, portal),
                Message::CloseSession { index, serial, pass } => {
                    if self.find(index, serial).is_some()
                        && let Some(slot) = &mut self.connections[index as usize]
                    {
                        slot.connection.keep(pass);
                        if !slot.cut {
                            slot.connection.dismiss(around!(self));
                        }
                        self.cut(index as usize, &Closed::ByTarget);
                    }
                }
                Message::AbortTasks { index, serial, pass } => {
                    if self.find(index, serial).is_some()
                        && let Some(slot) = &mut self.connections[index as usize]
                    {
                        slot.connection.abort_tasks(pass, around!(self));
                        self.touch(index as usize);
                    }
                }
                Message::OthersEnded {
                    index,
                    serial,
                    ending,
                } => {
                    if self.find(index, serial).is_some_and(|slot| !slot.cut)
                        && let Some(slot) = &mut self.connections[index as usize]
                    {
                        slot.connection.others_ended(ending, around!(self));
                        self.touch(index as usize);
                    }
                }
                // One that was cut, too: it is not gone until its tasks have nothing to wait for.
                Message::Awaited { index, serial, slot } => {
                    if self.find(index, serial).is_some()
                        && let Some(owner) = &mut self.connections[index as usize]
                    {
                        owner.connection.awaited(slot, around!(self));
                        self.touch(index as usize);
                    }
                }
                Message::Drain {
                    index,
                    serial,
                    ranges,
                    pass,
                } => {
                    if let Some(slot) = self.find(index, serial) {
                        slot.connection.drain_ranges(&ranges, pass);
                    }
                }
                Message::Granted {
                    index,
                    serial,
                    slot,
                    ticket,
                } => {
                    if self.find(index, serial).is_some_and(|slot| !slot.cut)
                        && let Some(owner) = &mut self.connections[index as usize]
                    {
                        owner.connection.granted(slot, ticket, around!(self));
                        self.touch(index as usize);
                    }
                }
                Message::Paced {
                    index,
                    serial,
                    slot,
                    place,
                } => self.paced(index, serial, slot, place),
                Message::Pace { export, at } => self.paces.push((at, export)),
                Message::OldSessionEnded { index, serial } => {
                    if self.find(index, serial).is_some_and(|slot| !slot.cut)
                        && let Some(slot) = &mut self.connections[index as usize]
                    {
                        let was_pending = slot.connection.is_pending();
                        let result = slot.connection.old_session_ended(around!(self));
                        if was_pending && !slot.connection.is_pending() {
                            self.shared.login_ended();
                        }
                        match result {
                            Ok(()) => self.touch(index as usize),
                            Err(reason) => self.cut(index as usize, &reason),
                        }
                    }
                }
                Message::Accept => {
                    if let Err(error) = watch(&self.epoll, &self.listeners) {
                        tracing::error!(%error, "the listeners cannot be watched: no logins");
                    }
                }
                Message::Stop(pass, farewell) => self.stop(pass, farewell),
            }
        }
    }

    fn find(&mut self, index: u32, serial: u64) -> Option<&mut Slot> {
        let slot = self.connections.get_mut(index as usize)?.as_deref_mut()?;
        (slot.connection.serial() == serial).then_some(slot)
    }

    /// Takes what waits at a listener and deals it out to the reactors in turn.
    fn accept(&mut self, number: usize) {
        let Some((listener, portal)) = self.listeners.get(number) else {
            return;
        };
        let portal = *portal;
        // Bounded, so that a flood of connections does not keep sessions waiting.
        for _ in 0..16 {
            match listener.accept() {
                Ok((socket, _)) => {
                    self.shared.login_begins();
                    let reactor = self.next_reactor;
                    self.next_reactor = (reactor + 1) % self.shared.reactors();
                    self.shared.send(reactor, Message::Adopt(socket, portal));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // No descriptors left, most likely. They come back as connections end; asking again at once
                    // would only burn the processor.
                    tracing::warn!(%error, %portal, "accepting a connection failed");
                    self.deaf = true;
                    self.next_tick = self.next_tick.min(self.now + ACCEPT_PAUSE);
                    self.watch_listeners(EpollFlags::empty());
                    return;
                }
            }
        }
    }

    fn watch_listeners(&self, interest: EpollFlags) {
        for (index, (listener, portal)) in self.listeners.iter().enumerate() {
            let mut event = EpollEvent::new(interest, token(LISTENER, index));
            if let Err(error) = self.epoll.modify(listener, &mut event) {
                tracing::error!(%error, %portal, "watching a portal failed");
            }
        }
    }

    fn adopt(&mut self, socket: std::net::TcpStream, portal: Portal) {
        if self.stop.is_some() {
            self.shared.login_ended();
            return;
        }
        let index = match self.connections.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                self.connections.push(None);
                self.connections.len() - 1
            }
        };
        self.next_serial += 1;
        let address = ConnectionAddress {
            reactor: self.number,
            index: index as u32,
            serial: self.next_serial,
        };
        let interest = EpollFlags::EPOLLIN;
        let made = Connection::new(socket, portal, address, self.now).and_then(|connection| {
            let event = EpollEvent::new(interest, token(CONNECTION, index));
            self.epoll.add(connection.socket(), event)?;
            Ok(connection)
        });
        match made {
            Ok(connection) => {
                self.connections[index] = Some(Box::new(Slot {
                    connection,
                    interest,
                    cut: false,
                }));
                self.live += 1;
                self.pending.push_back((address.index, address.serial));
                self.next_tick = self.next_tick.min(self.now + self.tick_period());
                if self.shared.has_too_many_pending_logins() {
                    self.cut_oldest_pending_login();
                }
            }
            Err(error) => {
                tracing::debug!(%error, "taking a connection failed");
                self.shared.login_ended();
            }
        }
    }

    /// Makes room for a new connection, so that a flood of silent ones keeps nobody out who logs in swiftly.
    fn cut_oldest_pending_login(&mut self) {
        // The last one is the new connection itself.
        while self.pending.len() > 1
            && let Some((index, serial)) = self.pending.pop_front()
        {
            if self.is_pending(index, serial) {
                self.cut(index as usize, &Closed::Crowded);
                return;
            }
        }
    }

    fn is_pending(&mut self, index: u32, serial: u64) -> bool {
        self.find(index, serial)
            .is_some_and(|slot| !slot.cut && slot.connection.is_pending())
    }

    fn touch(&mut self, index: usize) {
        if let Some(slot) = &mut self.connections[index]
            && !slot.connection.touched
        {
            slot.connection.touched = true;
            self.touched.push_back(index);
        }
    }

    /// Serves a connection that epoll has named.
    fn serve(&mut self, index: usize, events: EpollFlags) {
        let Some(slot) = self.connections.get_mut(index).and_then(Option::as_deref_mut) else {
            return;
        };
        if slot.cut {
            return;
        }
        if events.contains(EpollFlags::EPOLLOUT) {
            slot.connection.blocked = false;
        }
        if events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            let was_pending = slot.connection.is_pending();
            let mut result = Ok(true);
            for _ in 0..READS_PER_TURN {
                result = slot
                    .connection
                    .receive(&mut self.scratch, self.now, around!(self));
                if !matches!(result, Ok(true)) {
                    break;
                }
            }
            if was_pending && !slot.connection.is_pending() {
                self.shared.login_ended();
            }
            if let Err(reason) = result {
                self.cut(index, &reason);
                return;
            }
        }
        self.touch(index);
    }

    /// Lets device requests and responses flow until nothing moves, or others are to be heard.
    fn settle(&mut self) {
        for _ in 0..PASSES {
            while let Some(index) = self.devices.dirty.pop() {
                self.serve_device(index);
            }
            self.answer();
            // Those that have more to send than goes at once are touched again, and come after all others.
            for _ in 0..self.touched.len() {
                if let Some(index) = self.touched.pop_front() {
                    self.flush(index);
                }
            }
            self.bury();
            // What is left of the completions comes after what initiators have sent meanwhile.
            if !self.has_work() || !self.completions.is_empty() {
                return;
            }
        }
    }

    /// Tells whether something is left to do that no event will tell of.
    fn has_work(&self) -> bool {
        !self.devices.dirty.is_empty() || !self.touched.is_empty() || !self.completions.is_empty()
    }

    fn serve_device(&mut self, index: usize) {
        let Some(device) = self.devices.get(index) else {
            return;
        };
        if device.open()
            && let Some(descriptor) = device.wake_fd()
        {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, token(DEVICE, index));
            if let Err(error) = self.epoll.add(descriptor, event) {
                tracing::error!(%error, "watching a device queue failed");
            }
        }
        let mut completions = std::mem::take(&mut self.fresh);
        self.devices.service(index, &mut completions);
        self.completions.extend(completions.drain(..));
        self.fresh = completions;
    }

    /// Takes completions to their sessions: all of them, or some when there is time for the rest later.
    fn answer(&mut self) {
        if self.completions.is_empty() {
            return;
        }
        let waiting = self.completions.len();
        let most = match self.slack.is_plenty() {
            true => (waiting / 4).clamp(*ANSWERS_AT_A_TIME.start(), *ANSWERS_AT_A_TIME.end()),
            false => usize::MAX,
        };
        // A turn may have taken long until here, and how long commands take is told by this.
        self.now = Instant::now();
        let count = most.min(waiting);
        let mut completions = std::mem::take(&mut self.completions);
        for completion in completions.drain(..count) {
            let owner = (completion.tag.0 >> 32) as usize;
            if let Some(slot) = self.connections.get_mut(owner).and_then(Option::as_deref_mut) {
                slot.connection.complete(completion, around!(self));
                self.touch(owner);
            }
        }
        self.completions = completions;
    }

    fn flush(&mut self, index: usize) {
        let Some(slot) = self.connections[index].as_deref_mut() else {
            return;
        };
        slot.connection.touched = false;
        if slot.cut {
            return;
        }
        if !slot.connection.blocked
            && let Err(reason) = slot.connection.flush(around!(self))
        {
            self.cut(index, &reason);
            return;
        }
        let mut wanted = EpollFlags::empty();
        wanted.set(EpollFlags::EPOLLIN, slot.connection.listens(&self.buffers));
        wanted.set(EpollFlags::EPOLLOUT, slot.connection.blocked);
        if wanted != slot.interest {
            slot.interest = wanted;
            let mut event = EpollEvent::new(wanted, token(CONNECTION, index));
            if let Err(error) = self.epoll.modify(slot.connection.socket(), &mut event) {
                self.cut(index, &Closed::Broken(error.into()));
                return;
            }
        }
        if slot.connection.has_output() {
            self.touch(index);
        }
    }

    /// Cuts a connection; it is buried when the device is done with it.
    fn cut(&mut self, index: usize, reason: &Closed) {
        let Some(slot) = self.connections.get_mut(index).and_then(Option::as_deref_mut) else {
            return;
        };
        if slot.cut {
            return;
        }
        slot.cut = true;
        if let Closed::Refused(status) = reason {
            self.shared.counters(self.number).login(Some(*status));
        }
        let peer = slot.connection.peer();
        match (reason, slot.connection.medium()) {
            (Closed::Violation(_) | Closed::HeaderDigest | Closed::Oversize(..), _) => {
                tracing::warn!(%peer, %reason, "connection closed");
            }
            (_, Some(medium)) => {
                tracing::info!(volume = %medium.export().volume, %peer, tsih = medium.tsih(), %reason, "session closed");
            }
            _ => tracing::debug!(%peer, %reason, "connection closed"),
        }
        if slot.connection.is_pending() {
            self.shared.login_ended();
        }
        // The descriptor is open, so it can be taken out.
        let _ = self.epoll.delete(slot.connection.socket());
        slot.connection.cut(around!(self));
        self.closing.push(index);
    }

    /// Forgets the connections that were cut and have nothing at the device any more.
    fn bury(&mut self) {
        let mut at = 0;
        while at < self.closing.len() {
            let index = self.closing[at];
            let drained = |slot: &mut Box<Slot>| slot.connection.is_drained() && !slot.connection.touched;
            let Some(slot) = self.connections[index].take_if(|slot| drained(slot)) else {
                at += 1;
                continue;
            };
            self.closing.swap_remove(at);
            self.live -= 1;
            let Slot { mut connection, .. } = *slot;
            self.buffers.account(connection.accounted(), 0);
            let passes = connection.take_passes();
            let session = connection.medium().map(|medium| {
                let queue = self.devices.detach(medium.queue());
                if let Some(descriptor) = queue.as_ref().and_then(|queue| queue.wake_fd()) {
                    let _ = self.epoll.delete(descriptor);
                }
                (Arc::clone(medium.export()), medium.tsih())
            });
            // First the last handle of the device, then the session's place, then the passes of those who wait
            // for both.
            drop(connection);
            if let Some((export, tsih)) = session {
                self.shared.exports.unregister(&export, tsih);
            }
            drop(passes);
        }
    }
}
