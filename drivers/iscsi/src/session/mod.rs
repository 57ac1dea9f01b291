//! A session in the full feature phase: requests in, responses and device requests out. No socket is touched
//! here; the reactor brings bytes and completions and takes what lies in the outbox.
//!
//! Each PDU goes through three calls: [`Session::begin`] when its header is there and says where its data
//! belongs, [`Session::store`] or [`Session::space`] as data arrives, [`Session::finish`] when it is whole.
//!
//! Invariants
//! - S1: a request that breaks the protocol ends its session ([`Violation`]) or is rejected; it never reaches
//!   the device.
//! - S2: a session that ends hands nothing more to the device, and is gone only when what it handed over before
//!   has completed (contract T4).
//! - S3: the memory a session holds is bounded: by the command window, the first burst and its budget. All sessions
//!   together hold little more than the target's limit.
//! - S4: a task management function is answered once, after the tasks it ends.

mod command;
mod copy;
mod management;
mod medium;
mod negotiate;
mod numbers;
mod ordering;
mod pacing;
mod reserve;
mod sanitize;
mod steps;
mod task;
mod transfer;
mod two_pass;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use quarry_contract::Completion;

use copy::CopyResults;
use management::Ending;
pub use medium::Medium;
pub use numbers::Numbers;
use ordering::Drain;
use task::TaskTable;

use crate::metrics::Counters;
use crate::negotiation::Parameters;
use crate::pass::Pass;
use crate::pdu::{
    AsyncEvent, AsyncMessage, Bhs, Malformed, NO_TAG, NopIn, NopOut, Reject, RejectReason, Request,
};
use crate::reactor::{BufferPool, DeviceQueues, Outbox};
use crate::target::Shared;

/// Bytes in buffers that a session may have at a time, beyond unsolicited data.
const BUDGET_BYTES: usize = 16 << 20;

/// The same when buffers are scarce.
const SCARCE_BYTES: usize = 256 << 10;

/// The longest ping whose data is kept for the echo, in bytes.
const PING_BYTES: usize = 64 << 10;

/// What a session works with while it handles one event.
pub struct Io<'a> {
    /// The reactor's devices.
    pub devices: &'a mut DeviceQueues,
    /// The reactor's buffers.
    pub buffers: &'a mut BufferPool,
    /// What the connection has to send.
    pub outbox: &'a mut Outbox,
    /// The target as a whole.
    pub shared: &'a Arc<Shared>,
    /// What the reactor counts.
    pub counters: &'a Counters,
    /// The time, as the reactor knows it.
    pub now: Instant,
    /// The connection's slot, which is half of a request's tag.
    pub connection: u32,
}

/// How a request broke the protocol so that the connection cannot go on (S1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Data where none may be, or more than agreed.
    #[error("a data segment of {0} bytes where it may not be")]
    DataSegment(usize),
    /// A tag that is in use.
    #[error("initiator task tag {0:#010x} is in use")]
    TagInUse(u32),
    /// A command number out of order on the only connection.
    #[error("command number {0} is ahead of the next one")]
    CommandGap(u32),
    /// A SCSI command or task in a discovery session.
    #[error("a request that a discovery session does not take")]
    NotForDiscovery,
    /// A login request in the full feature phase.
    #[error("a login request after the login")]
    LateLogin,
    /// The text exchange is malformed.
    #[error("malformed text")]
    Text,
    /// The opcode is none a target takes.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Where a PDU's data segment goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    /// Nowhere.
    Discard,
    /// Into memory, to be handed to [`Session::finish`].
    Collect,
    /// Into a task, from this offset of its data.
    Task { slot: u16, offset: u32 },
}

/// What the connection does after a PDU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Goes on.
    Continue,
    /// Sends what is queued, then closes.
    Close,
}

/// Who a session is for.
pub enum Role {
    /// I/O with a medium.
    Normal(Box<Medium>),
    /// SendTargets for this initiator, and user if it has proved one.
    Discovery {
        /// The initiator.
        initiator: quarry_contract::InitiatorName,
        /// The user.
        username: Option<String>,
    },
}

/// See the module.
pub struct Session {
    parameters: Parameters,
    numbers: Numbers,
    role: Role,
    tasks: TaskTable,
    /// Tasks that want to go on, in order.
    ready: VecDeque<u16>,
    endings: Vec<Ending>,
    next_ending: u32,
    /// Of sessions that wait for aborted tasks of this one.
    passes: Vec<Pass>,
    /// Of tasks that wait for requests of this session at the device.
    drains: Vec<Drain>,
    copies: CopyResults,
    /// Aborted tasks that are still at the device.
    aborting: usize,
    /// Tasks that have started and not ended.
    started: usize,
    /// Ordered tasks and those of the head of the queue among them: while there are any, nothing else may start but
    /// what goes to the head of the queue.
    barriers: usize,
    /// Bytes in buffers.
    charged: usize,
    ended: bool,
    /// The request being received, if it is a task's.
    current: Option<u16>,
    text: negotiate::TextExchange,
    local: std::net::SocketAddr,
    /// The tag of the last ping of ours that is not answered.
    ping: Option<u32>,
    next_ttt: u32,
    close_after_flush: bool,
}

impl Session {
    /// Starts a session. `local` is where its connection came to.
    pub fn new(parameters: Parameters, numbers: Numbers, role: Role, local: std::net::SocketAddr) -> Self {
        Self {
            parameters,
            numbers,
            role,
            tasks: TaskTable::default(),
            ready: VecDeque::new(),
            endings: Vec::new(),
            next_ending: 0,
            passes: Vec::new(),
            drains: Vec::new(),
            copies: CopyResults::default(),
            aborting: 0,
            started: 0,
            barriers: 0,
            charged: 0,
            ended: false,
            current: None,
            text: negotiate::TextExchange::default(),
            local,
            ping: None,
            next_ttt: 0,
            close_after_flush: false,
        }
    }

    /// Returns what was agreed on.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Tells whether it is a discovery session.
    pub fn is_discovery(&self) -> bool {
        matches!(self.role, Role::Discovery { .. })
    }

    /// Returns the medium of a normal session.
    pub fn medium(&self) -> Option<&Medium> {
        match &self.role {
            Role::Normal(medium) => Some(medium),
            Role::Discovery { .. } => None,
        }
    }

    /// Takes a request whose header has come and says where its `data_bytes` of data belong.
    ///
    /// # Errors
    /// When the connection cannot go on (S1).
    pub fn begin(
        &mut self,
        request: &Request,
        data_bytes: usize,
        io: &mut Io<'_>,
    ) -> Result<Sink, Violation> {
        self.current = None;
        match request {
            Request::ScsiCommand(command) => self.begin_command(command, data_bytes, io),
            Request::DataOut(data) => self.begin_data_out(data, data_bytes),
            Request::NopOut(_) if data_bytes <= PING_BYTES => Ok(Sink::Collect),
            Request::Text(_) if data_bytes <= crate::text::EXCHANGE_BYTES => Ok(Sink::Collect),
            Request::TaskManagement(_) | Request::Logout(_) if data_bytes == 0 => Ok(Sink::Discard),
            Request::Login(_) => Err(Violation::LateLogin),
            _ => Err(Violation::DataSegment(data_bytes)),
        }
    }

    /// Takes a request whose data, if it was to be collected, is here.
    ///
    /// # Errors
    /// When the connection cannot go on (S1).
    pub fn finish(
        &mut self,
        request: &Request,
        bhs: &Bhs,
        data: &mut Vec<u8>,
        io: &mut Io<'_>,
    ) -> Result<Flow, Violation> {
        match request {
            Request::ScsiCommand(_) => self.finish_command(io),
            Request::DataOut(data_out) => self.finish_data_out(data_out, io),
            Request::NopOut(nop) => self.nop_out(nop, data, io)?,
            Request::Text(text) => self.text_request(text, data, io)?,
            Request::TaskManagement(request) => self.task_management(request, io)?,
            Request::Logout(logout) => self.logout(logout, bhs, io)?,
            Request::Login(_) => return Err(Violation::LateLogin),
        }
        Ok(match self.close_after_flush {
            true => Flow::Close,
            false => Flow::Continue,
        })
    }

    /// Says that a PDU's data segment came with a wrong digest (RFC 7143 7.7: at level 0 the task fails).
    pub fn damaged_data(&mut self, bhs: &Bhs, io: &mut Io<'_>) {
        if let Some(task) = self.current.and_then(|slot| self.tasks.get(slot)) {
            task.fail(crate::scsi::Sense::DATA_DIGEST);
        }
        self.reject(RejectReason::DataDigest, bhs, io);
    }

    /// Refuses a PDU and says which (RFC 7143 11.17).
    pub fn reject(&mut self, reason: RejectReason, bhs: &Bhs, io: &mut Io<'_>) {
        let header = Reject { reason }.encode(self.numbers.respond());
        io.outbox.small(&header, bhs.to_vec());
    }

    /// Takes the end of a device request.
    pub fn complete(&mut self, completion: Completion, io: &mut Io<'_>) {
        let slot = (completion.tag.0 >> 16) as u16;
        let step = completion.tag.0 as u16;
        self.complete_step(slot, usize::from(step), completion, io);
        self.pump(io);
    }

    /// Says that bytes of buffers have left through the outbox.
    pub fn released(&mut self, bytes: usize, io: &mut Io<'_>) {
        self.charged -= bytes;
        self.pump(io);
    }

    /// Ends the session: no request reaches the device any more (S2).
    pub fn end(&mut self, io: &mut Io<'_>) {
        self.ended = true;
        self.endings.clear();
        for slot in self.tasks.live() {
            self.abort(slot, io);
        }
    }

    /// Returns how many bytes of buffers the session has in use.
    pub fn charged(&self) -> usize {
        self.charged
    }

    /// Tells whether the session is to be heard: not when buffers are scarce, it has more than its part of them, and
    /// some of these will come back without its doing (S3).
    pub fn is_welcome(&self, buffers: &BufferPool) -> bool {
        !buffers.are_scarce() || self.charged <= SCARCE_BYTES || !self.tasks.any_at_device()
    }

    /// Tells whether none of the session's requests is at the device (S2).
    pub fn is_idle(&self) -> bool {
        self.tasks.len() == 0
    }

    /// Tells whether no task goes on by itself: those that are left wait for data of the initiator or for the volume's
    /// limits.
    pub fn is_at_rest(&self) -> bool {
        !self.tasks.any_known_elsewhere()
    }

    /// Tells whether the connection is to be closed once what is queued is sent.
    pub fn closes_after_flush(&self) -> bool {
        self.close_after_flush
    }

    /// Pings the initiator. Tells whether the ping before is still unanswered.
    pub fn ping(&mut self, io: &mut Io<'_>) -> bool {
        if self.ping.is_some() {
            return true;
        }
        let ttt = self.next_transfer_tag();
        self.ping = Some(ttt);
        let nop = NopIn {
            lun: 0,
            itt: NO_TAG,
            ttt,
            data_bytes: 0,
        };
        io.outbox.header(&nop.encode(self.numbers.peek()));
        false
    }

    /// Tells the initiator something that it has not asked for. A discovery session has nothing to be told.
    pub fn announce(&mut self, event: AsyncEvent, io: &mut Io<'_>) {
        if !self.is_discovery() {
            let message = AsyncMessage { event };
            io.outbox.header(&message.encode(self.numbers.respond()));
        }
    }

    /// Says that the initiator is alive.
    pub fn heard(&mut self) {
        self.ping = None;
    }

    fn next_transfer_tag(&mut self) -> u32 {
        self.next_ttt = self.next_ttt.wrapping_add(1);
        if self.next_ttt == NO_TAG {
            self.next_ttt = 0;
        }
        self.next_ttt
    }

    /// Answers a ping with its data (RFC 7143 11.18).
    fn nop_out(&mut self, nop: &NopOut, data: &mut Vec<u8>, io: &mut Io<'_>) -> Result<(), Violation> {
        if nop.itt == NO_TAG {
            return Ok(());
        }
        if !self.takes(nop.cmd_sn, nop.immediate)? {
            return Ok(());
        }
        data.truncate(self.parameters.send_segment_bytes as usize);
        let answer = NopIn {
            lun: nop.lun,
            itt: nop.itt,
            ttt: NO_TAG,
            data_bytes: data.len(),
        };
        let header = answer.encode(self.numbers.respond());
        io.outbox.small(&header, std::mem::take(data));
        Ok(())
    }

    /// Takes a request's number; false when the request is to be ignored.
    fn takes(&mut self, cmd_sn: u32, immediate: bool) -> Result<bool, Violation> {
        match self.numbers.order(cmd_sn, immediate) {
            numbers::Order::Take => Ok(true),
            numbers::Order::Ignore => Ok(false),
            numbers::Order::Gap => Err(Violation::CommandGap(cmd_sn)),
        }
    }
}
