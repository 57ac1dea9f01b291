//! One TCP connection: bytes to PDUs, the login, and then its session.
//!
//! Invariants
//! - R1: whatever comes in, the memory it takes before it is understood is bounded: a header with its additional
//!   segments, and a data segment no longer than what was declared.
//! - R2: an error ends this connection and no other.

use std::io::{self, IoSliceMut, Read};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quarry_contract::{Completion, Portal};
use socket2::SockRef;

use super::outbox::{Digests, Flushed, Outbox};
use super::{BufferPool, DeviceQueues};
use crate::exports::ConnectionAddress;
use crate::limiter::Place;
use crate::login::{Admitted, LoginMachine, LoginStatus, Reply};
use crate::metrics::Counters;
use crate::negotiation::DEFAULT_SEGMENT_BYTES;
use crate::pass::Pass;
use crate::pdu::{AsyncEvent, BHS_BYTES, Bhs, Lengths, Login, Malformed, RejectReason, Request, padded};
use crate::range_locks::Ticket;
use crate::session::{Flow, Io, Medium, Session, Sink, Violation};
use crate::target::Shared;

/// The least that is worth a read of its own into an I/O buffer, in bytes.
const DIRECT_BYTES: usize = 8192;

/// Queued bytes of ours, beyond which an initiator that does not read is not listened to.
const DEAF_BYTES: usize = 1 << 20;

/// Data in the system's send buffer that has not been sent, beyond which the socket is not told to be writable: the
/// buffers of those who do not read are few enough for the system's limit of all (man 7 tcp, TCP_NOTSENT_LOWAT).
const UNSENT_BYTES: u32 = 256 << 10;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub enum Closed {
    /// The initiator closed it, or it broke.
    #[error("closed by the peer")]
    ByPeer,
    /// The system says so.
    #[error("broken")]
    Broken(#[from] io::Error),
    /// The initiator broke the protocol.
    #[error("protocol violation: {0}")]
    Violation(#[from] Violation),
    /// A header that cannot be trusted: what follows it cannot either.
    #[error("header digest mismatch")]
    HeaderDigest,
    /// A data segment longer than declared.
    #[error("data segment of {0} bytes exceeds the declared {1}")]
    Oversize(usize, usize),
    /// Anything but a login request before the end of the login.
    #[error("not a login request")]
    NotALogin,
    /// The login took too long.
    #[error("login timed out")]
    LoginTimeout,
    /// Too many connections have not logged in, and this one had the most time for it.
    #[error("too many connections that have not logged in")]
    Crowded,
    /// Buffers are scarce, and the initiator does not take what it has asked for.
    #[error("does not read what it has asked for")]
    Unread,
    /// The initiator does not answer pings.
    #[error("no answer to a ping")]
    Silent,
    /// Refused at login.
    #[error("login refused: {0:?}")]
    Refused(LoginStatus),
    /// Logged out.
    #[error("logged out")]
    LoggedOut,
    /// A control call ended it.
    #[error("ended by the target")]
    ByTarget,
}

/// What is being received.
enum Reading {
    /// A header; what there is of it is in `head`.
    Header,
    /// A data segment and its trailer.
    Data(Segment),
}

struct Segment {
    request: Request,
    bhs: Bhs,
    sink: Sink,
    /// Data bytes that have not come.
    remaining: usize,
    /// Padding and digest that have come.
    trailer: [u8; 7],
    trailer_len: usize,
    trailer_need: usize,
    padding: usize,
    crc: u32,
}

/// How far a connection has come.
pub(super) enum Phase {
    /// It is logging in.
    Login(Box<LoginMachine>),
    /// Logged in, but the initiator's old session must end first.
    Reinstating(Box<(Admitted, Reply, Login)>),
    /// It is in the full feature phase.
    Session(Box<Session>),
}

/// The parts of a reactor that a connection works with.
pub struct Surroundings<'a> {
    /// The reactor's devices.
    pub devices: &'a mut DeviceQueues,
    /// The reactor's buffers.
    pub buffers: &'a mut BufferPool,
    /// The target as a whole.
    pub shared: &'a Arc<Shared>,
    /// What the reactor counts.
    pub counters: &'a Counters,
    /// The time, as the reactor knows it.
    pub now: Instant,
}

/// See the module.
pub struct Connection {
    socket: TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) portal: Portal,
    pub(super) address: ConnectionAddress,
    reading: Reading,
    head: Vec<u8>,
    pub(super) collected: Vec<u8>,
    pub(super) digests: Digests,
    pub(super) phase: Phase,
    pub(super) next_stat_sn: u32,
    pub(super) outbox: Outbox,
    opened: Instant,
    heard: Instant,
    /// When the socket last took something, or had nothing to take.
    moved: Instant,
    /// What the reactor's buffer pool has been told that the session uses, in bytes.
    accounted: usize,
    /// What is left to send waits until epoll says that the socket takes it.
    pub blocked: bool,
    /// It is in the reactor's list of connections to flush.
    pub touched: bool,
    pub(super) close_after_flush: bool,
    /// The target stops: nothing more is read, and what is under way is answered.
    draining: bool,
    pub(super) ending: Option<LoginStatus>,
    passes: Vec<Pass>,
}

/// Builds a session's surroundings out of disjoint parts of a connection and its reactor.
macro_rules! io {
    ($connection:expr, $around:expr) => {
        &mut Io {
            devices: $around.devices,
            buffers: $around.buffers,
            outbox: &mut $connection.outbox,
            shared: $around.shared,
            counters: $around.counters,
            now: $around.now,
            connection: $connection.address.index,
        }
    };
}

impl Connection {
    /// Takes a socket that has been accepted.
    ///
    /// # Errors
    /// When the socket is broken already.
    pub fn new(
        socket: TcpStream,
        portal: Portal,
        address: ConnectionAddress,
        now: Instant,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT_BYTES)?;
        Ok(Self {
            peer: socket.peer_addr()?,
            local: socket.local_addr()?,
            socket,
            portal,
            address,
            reading: Reading::Header,
            head: Vec::new(),
            collected: Vec::new(),
            digests: Digests::default(),
            phase: Phase::Login(Box::default()),
            next_stat_sn: 1,
            outbox: Outbox::default(),
            opened: now,
            heard: now,
            moved: now,
            accounted: 0,
            blocked: false,
            touched: false,
            close_after_flush: false,
            draining: false,
            ending: None,
            passes: Vec::new(),
        })
    }

    /// Returns the socket.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Returns where the connection came from.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Returns the number that tells it from others in its slot.
    pub fn serial(&self) -> u64 {
        self.address.serial
    }

    /// Tells whether it has not shown who it is: it is logging in, or a discovery session, which needs no proof.
    /// Such connections are limited in number and time.
    pub fn is_pending(&self) -> bool {
        match &self.phase {
            Phase::Session(session) => session.is_discovery(),
            _ => true,
        }
    }

    /// Tells whether it is to be read from now.
    pub fn listens(&self, buffers: &BufferPool) -> bool {
        let is_welcome = match &self.phase {
            Phase::Login(_) => true,
            Phase::Reinstating(_) => false,
            Phase::Session(session) => session.is_welcome(buffers),
        };
        is_welcome && !self.close_after_flush && !self.draining && self.outbox.small_bytes() < DEAF_BYTES
    }

    /// Returns what the buffer pool has been told that the session uses, in bytes.
    pub fn accounted(&self) -> usize {
        self.accounted
    }

    /// Tells the buffer pool what the session uses now.
    pub fn account(&mut self, around: &mut Surroundings<'_>) {
        let charged = match &self.phase {
            Phase::Session(session) => session.charged(),
            _ => 0,
        };
        let before = std::mem::replace(&mut self.accounted, charged);
        around.buffers.account(before, charged);
    }

    /// Reads what has come and acts on it. Returns whether there may be more.
    ///
    /// # Errors
    /// When the connection ends.
    pub fn receive(
        &mut self,
        scratch: &mut [u8],
        now: Instant,
        around: &mut Surroundings<'_>,
    ) -> Result<bool, Closed> {
        let mut direct = 0;
        let mut room = scratch.len();
        let mut read = None;
        if let (Reading::Data(segment), Phase::Session(session)) = (&mut self.reading, &mut self.phase)
            && let Sink::Task { slot, offset } = &mut segment.sink
            && segment.remaining >= DIRECT_BYTES
            && let Some(space) = session.space(*slot, *offset, io!(self, around))
        {
            let len = space.len().min(segment.remaining);
            let space = &mut space[..len];
            room += len;
            let mut parts = [IoSliceMut::new(space), IoSliceMut::new(scratch)];
            let Some(bytes) = unless_empty((&self.socket).read_vectored(&mut parts))? else {
                return Ok(false);
            };
            direct = bytes.min(len);
            if self.digests.data {
                segment.crc = crc32c::crc32c_append(segment.crc, &space[..direct]);
            }
            segment.remaining -= direct;
            *offset += direct as u32;
            session.stored(*slot, direct, io!(self, around));
            read = Some(bytes);
        }
        let read = match read {
            Some(bytes) => bytes,
            None => match unless_empty((&self.socket).read(scratch))? {
                Some(bytes) => bytes,
                None => return Ok(false),
            },
        };
        if read == 0 {
            return Err(Closed::ByPeer);
        }
        self.heard = now;
        if let Phase::Session(session) = &mut self.phase {
            session.heard();
        }
        self.consume(&scratch[..read - direct], around)?;
        self.account(around);
        Ok(read == room && self.listens(around.buffers))
    }

    /// Acts on bytes that have come.
    ///
    /// # Errors
    /// When the connection ends.
    pub fn consume(&mut self, mut bytes: &[u8], around: &mut Surroundings<'_>) -> Result<(), Closed> {
        loop {
            match &mut self.reading {
                Reading::Header => {
                    if bytes.is_empty() {
                        return Ok(());
                    }
                    if self.close_after_flush {
                        // What comes after a logout or a refused login is not listened to.
                        return Ok(());
                    }
                    if !take_header(&mut self.head, &mut bytes, self.digests.header) {
                        return Ok(());
                    }
                    self.begin_pdu(around)?;
                }
                Reading::Data(segment) => {
                    let len = segment.remaining.min(bytes.len());
                    let (data, rest) = bytes.split_at(len);
                    bytes = rest;
                    if len > 0 {
                        if self.digests.data {
                            segment.crc = crc32c::crc32c_append(segment.crc, data);
                        }
                        segment.remaining -= len;
                        match (&mut segment.sink, &mut self.phase) {
                            (Sink::Task { slot, offset }, Phase::Session(session)) => {
                                let at = *offset;
                                *offset += len as u32;
                                session.store(*slot, at, data, io!(self, around));
                            }
                            (Sink::Collect, _) => self.collected.extend_from_slice(data),
                            _ => {}
                        }
                    }
                    let len = (segment.trailer_need - segment.trailer_len).min(bytes.len());
                    if segment.remaining == 0 && len > 0 {
                        let (trailer, rest) = bytes.split_at(len);
                        bytes = rest;
                        segment.trailer[segment.trailer_len..][..len].copy_from_slice(trailer);
                        segment.trailer_len += len;
                    }
                    if segment.remaining > 0 || segment.trailer_len < segment.trailer_need {
                        return Ok(());
                    }
                    self.end_pdu(around)?;
                }
            }
        }
    }

    /// Acts on a header that is whole, in `head`.
    fn begin_pdu(&mut self, around: &mut Surroundings<'_>) -> Result<(), Closed> {
        let mut bhs: Bhs = [0; BHS_BYTES];
        bhs.copy_from_slice(&self.head[..BHS_BYTES]);
        let lengths = Lengths::of(&bhs);
        if self.digests.header {
            let (header, digest) = self.head.split_at(BHS_BYTES + lengths.ahs_bytes);
            if digest != crc32c::crc32c(header).to_le_bytes() {
                return Err(Closed::HeaderDigest);
            }
        }
        self.head.clear();
        let most = match &self.phase {
            Phase::Session(session) => session.parameters().receive_segment_bytes,
            _ => DEFAULT_SEGMENT_BYTES,
        } as usize;
        if lengths.data_bytes > most {
            return Err(Closed::Oversize(lengths.data_bytes, most));
        }
        let request = match (Request::parse(&bhs), &mut self.phase) {
            (Ok(request), _) => request,
            (Err(Malformed::Snack), Phase::Session(session)) if lengths.data_bytes == 0 => {
                session.reject(RejectReason::Snack, &bhs, io!(self, around));
                return Ok(());
            }
            (Err(malformed), _) => return Err(Violation::from(malformed).into()),
        };
        self.collected.clear();
        let sink = match &mut self.phase {
            Phase::Session(session) => session.begin(&request, lengths.data_bytes, io!(self, around))?,
            Phase::Login(_) if matches!(request, Request::Login(_)) => Sink::Collect,
            _ => return Err(Closed::NotALogin),
        };
        let padding = padded(lengths.data_bytes) - lengths.data_bytes;
        let digest = if self.digests.data && lengths.data_bytes > 0 {
            4
        } else {
            0
        };
        self.reading = Reading::Data(Segment {
            request,
            bhs,
            sink,
            remaining: lengths.data_bytes,
            trailer: [0; 7],
            trailer_len: 0,
            trailer_need: padding + digest,
            padding,
            crc: 0,
        });
        Ok(())
    }

    /// Acts on a PDU that is whole.
    fn end_pdu(&mut self, around: &mut Surroundings<'_>) -> Result<(), Closed> {
        let Reading::Data(segment) = std::mem::replace(&mut self.reading, Reading::Header) else {
            return Ok(());
        };
        let (padding, digest) = segment.trailer[..segment.trailer_len].split_at(segment.padding);
        let damaged =
            !digest.is_empty() && digest != crc32c::crc32c_append(segment.crc, padding).to_le_bytes();
        match (&mut self.phase, segment.request) {
            (Phase::Session(session), request) => {
                let io = io!(self, around);
                if damaged {
                    session.damaged_data(&segment.bhs, io);
                    if matches!(segment.sink, Sink::Collect) {
                        return Ok(());
                    }
                }
                let flow = session.finish(&request, &segment.bhs, &mut self.collected, io)?;
                self.close_after_flush |= flow == Flow::Close;
            }
            (Phase::Login(_), Request::Login(login)) => self.login_step(&login, around)?,
            _ => return Err(Closed::NotALogin),
        }
        // What was long once need not stay so.
        if self.collected.capacity() > 2 * DEFAULT_SEGMENT_BYTES as usize {
            self.collected = Vec::new();
        }
        Ok(())
    }

    /// Takes the end of a device request.
    pub fn complete(&mut self, completion: Completion, around: &mut Surroundings<'_>) {
        if let Phase::Session(session) = &mut self.phase {
            session.complete(completion, io!(self, around));
        }
        self.account(around);
    }

    /// Ends the tasks of the session on behalf of another.
    pub fn abort_tasks(&mut self, pass: Pass, around: &mut Surroundings<'_>) {
        if let Phase::Session(session) = &mut self.phase {
            session.abort_all(pass, io!(self, around));
        }
    }

    /// Says that the tasks of other sessions are gone.
    pub fn others_ended(&mut self, ending: u32, around: &mut Surroundings<'_>) {
        if let Phase::Session(session) = &mut self.phase {
            session.others_ended(ending, io!(self, around));
        }
    }

    /// Says that something a task waited for is over.
    pub fn awaited(&mut self, slot: u16, around: &mut Surroundings<'_>) {
        if let Phase::Session(session) = &mut self.phase {
            session.awaited(slot, io!(self, around));
        }
    }

    /// Lets what is at the device for some ranges end before the pass is dropped.
    pub fn drain_ranges(&mut self, ranges: &[Range<u64>], pass: Pass) {
        if let Phase::Session(session) = &mut self.phase {
            session.drain(ranges, pass);
        }
    }

    /// Says that it is a task's turn to have its ranges.
    pub fn granted(&mut self, slot: u16, ticket: Ticket, around: &mut Surroundings<'_>) {
        if let Phase::Session(session) = &mut self.phase {
            session.granted(slot, ticket, io!(self, around));
        }
    }

    /// Says that it is a task's turn under the volume's limits.
    pub fn paced(&mut self, slot: u16, place: Place, around: &mut Surroundings<'_>) {
        if let Phase::Session(session) = &mut self.phase {
            session.paced(slot, place, io!(self, around));
        }
    }

    /// Sends what is queued, as far as the socket takes it.
    ///
    /// # Errors
    /// When the connection ends.
    pub fn flush(&mut self, around: &mut Surroundings<'_>) -> Result<(), Closed> {
        let mut released = 0;
        let flushed = self
            .outbox
            .flush(&mut &self.socket, around.buffers, &mut released)?;
        self.blocked = flushed != Flushed::All;
        if let Phase::Session(session) = &mut self.phase {
            session.released(released, io!(self, around));
            self.close_after_flush |= session.closes_after_flush();
        }
        self.account(around);
        if self.draining && self.outbox.is_empty() && self.is_at_rest() {
            return Err(Closed::ByTarget);
        }
        if self.close_after_flush && self.outbox.is_empty() {
            return Err(match self.ending {
                Some(status) => Closed::Refused(status),
                None => Closed::LoggedOut,
            });
        }
        Ok(())
    }

    /// Asks the initiator of a normal session to log out within so many seconds, and goes on until it does. False
    /// when there is no such session.
    pub fn request_logout(&mut self, seconds: u16, around: &mut Surroundings<'_>) -> bool {
        match &mut self.phase {
            Phase::Session(session) if !session.is_discovery() => {
                session.announce(AsyncEvent::LogoutRequest { seconds }, io!(self, around));
                true
            }
            _ => false,
        }
    }

    /// Tells whether nothing is under way, and nothing has been heard for some time.
    pub fn is_quiet(&self, now: Instant, time: Duration) -> bool {
        self.is_drained() && self.outbox.is_empty() && now.saturating_duration_since(self.heard) >= time
    }

    /// Stops reading; the connection ends when what is under way is answered. A session's initiator is told, and after
    /// how many seconds to come back.
    pub fn drain(&mut self, wait_seconds: u16, around: &mut Surroundings<'_>) {
        if let Phase::Session(session) = &mut self.phase {
            session.announce(AsyncEvent::DropsSession { wait_seconds }, io!(self, around));
        }
        self.draining = true;
    }

    /// Tells the initiator of a session that it is over, if the socket takes that at once: the connection is about to be cut.
    pub fn dismiss(&mut self, around: &mut Surroundings<'_>) {
        if let Phase::Session(session) = &mut self.phase {
            let event = AsyncEvent::DropsSession { wait_seconds: 0 };
            session.announce(event, io!(self, around));
        }
        if !self.blocked {
            // What has become of it does not matter any more.
            let _ = self.flush(around);
        }
    }

    /// Tells whether something is queued that the socket may take.
    pub fn has_output(&self) -> bool {
        !self.outbox.is_empty() && !self.blocked
    }

    /// Checks the time: a login has a deadline, a silent initiator is pinged and then given up.
    ///
    /// # Errors
    /// When its time is over.
    pub fn tick(&mut self, now: Instant, around: &mut Surroundings<'_>) -> Result<(), Closed> {
        let config = &around.shared.config;
        if self.is_pending() {
            return match now.saturating_duration_since(self.opened) >= config.login_timeout {
                true => Err(Closed::LoginTimeout),
                false => Ok(()),
            };
        }
        if self.outbox.has_moved() || self.outbox.is_empty() {
            self.moved = now;
        }
        let unread = now.saturating_duration_since(self.moved);
        if around.buffers.are_scarce() && unread >= config.ping_interval {
            return Err(Closed::Unread);
        }
        // Who is not listened to, since the device is slow and buffers are scarce, is not silent.
        if let Phase::Session(session) = &self.phase
            && !session.is_welcome(around.buffers)
        {
            self.heard = now;
        }
        let silent = now.saturating_duration_since(self.heard);
        if let Phase::Session(session) = &mut self.phase
            && silent >= config.ping_interval
            && session.ping(io!(self, around))
            && silent >= 2 * config.ping_interval
        {
            return Err(Closed::Silent);
        }
        Ok(())
    }

    /// Keeps a pass until the connection is gone.
    pub fn keep(&mut self, pass: Pass) {
        self.passes.push(pass);
    }

    /// Cuts the connection. Its session's requests at the device are waited for.
    pub fn cut(&mut self, around: &mut Surroundings<'_>) {
        // The peer may have gone; then there is nothing to shut.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        let mut released = 0;
        self.outbox.discard(around.buffers, &mut released);
        if let Phase::Session(session) = &mut self.phase {
            session.end(io!(self, around));
            session.released(released, io!(self, around));
            self.outbox.discard(around.buffers, &mut 0);
        }
        self.account(around);
    }

    /// Gives the passes that are kept.
    pub fn take_passes(&mut self) -> Vec<Pass> {
        std::mem::take(&mut self.passes)
    }

    /// Tells whether nothing of a connection that was cut is left at the device.
    pub fn is_drained(&self) -> bool {
        match &self.phase {
            Phase::Session(session) => session.is_idle(),
            _ => true,
        }
    }

    /// Tells whether nothing of it can go on unless more is read.
    fn is_at_rest(&self) -> bool {
        match &self.phase {
            Phase::Session(session) => session.is_at_rest(),
            _ => true,
        }
    }

    /// Returns the medium of its session.
    pub fn medium(&self) -> Option<&Medium> {
        match &self.phase {
            Phase::Session(session) => session.medium(),
            _ => None,
        }
    }
}

/// Gathers a header, its additional segments and its digest. True when it is whole.
fn take_header(head: &mut Vec<u8>, bytes: &mut &[u8], digest: bool) -> bool {
    let mut take_up_to = |need: usize, head: &mut Vec<u8>| {
        let len = need.saturating_sub(head.len()).min(bytes.len());
        let (part, rest) = bytes.split_at(len);
        head.extend_from_slice(part);
        *bytes = rest;
        head.len() >= need
    };
    if !take_up_to(BHS_BYTES, head) {
        return false;
    }
    let ahs_bytes = head.first_chunk().map_or(0, |bhs| Lengths::of(bhs).ahs_bytes);
    let digest_bytes = if digest { 4 } else { 0 };
    take_up_to(BHS_BYTES + ahs_bytes + digest_bytes, head)
}

/// Makes "nothing has come" a value of its own.
fn unless_empty(read: io::Result<usize>) -> Result<Option<usize>, Closed> {
    match read {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(None)
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(Closed::ByPeer),
        Err(error) => Err(error.into()),
    }
}
