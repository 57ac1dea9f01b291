//! A session that is logged in: commands out, answers in, many at a time.
//!
//! [`Session::start`] queues a command, [`Session::send`] gives the socket what it takes of the queue in one
//! call, [`Session::receive`] reads what has come and reports the commands that ended. The command window is
//! kept: what does not fit waits.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::TcpStream;
use std::ops::Range;

use anyhow::{Context, bail, ensure};

use crate::login::{self, Agreed, Wishes};
use crate::outbox::Outbox;
use crate::payload::Payload;
use crate::pdu::{self, Answer, Header, NO_TAG, get32, put32};
use crate::scsi::Cdb;
use crate::url::Url;

/// Received bytes that one read may bring.
const INBOX_BYTES: usize = 256 << 10;

/// Sense data that is kept of an answer, in bytes.
const SENSE_BYTES: usize = 64;

/// A command to be sent.
#[derive(Debug, Clone)]
pub struct Command {
    /// What to do.
    pub cdb: Cdb,
    /// Bytes to be read; 0 for a write.
    pub read_bytes: u32,
    /// Bytes to be written.
    pub payload: Payload,
    /// Whether what is read is wanted, and not only counted.
    pub keeps_data: bool,
}

/// A command that ended.
#[derive(Debug)]
pub struct Ended {
    /// Its tag.
    pub tag: u32,
    /// How.
    pub outcome: Outcome,
    /// What was read, when it was wanted.
    pub data: Vec<u8>,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Good,
    /// It was not executed and may be sent again: unit attention, busy, task set full.
    Again,
    /// It failed.
    Failed(String),
}

/// See the module.
pub struct Session {
    socket: TcpStream,
    agreed: Agreed,
    lun: u16,
    cmd_sn: u32,
    max_cmd_sn: u32,
    exp_stat_sn: u32,
    /// By tag.
    commands: Vec<Option<InFlight>>,
    /// Tags whose commands wait for the window.
    waiting: VecDeque<u32>,
    outbox: Outbox,
    inbox: Vec<u8>,
    filled: usize,
    /// The data segment being received.
    segment: Option<Segment>,
}

struct InFlight {
    command: Command,
    received: u32,
    data: Vec<u8>,
}

struct Segment {
    header: Header,
    data_bytes: usize,
    /// Bytes of data, padding and digest that have come.
    taken: usize,
    /// All of them.
    total: usize,
    crc: u32,
    digest: [u8; 4],
    sense: Vec<u8>,
}

impl Session {
    /// Connects and logs in. Tags of commands are below `depth`.
    ///
    /// # Errors
    /// As for the login.
    pub fn open(url: &Url, wishes: &Wishes, number: u16, depth: u32) -> anyhow::Result<Self> {
        let logged_in = login::login(url, wishes, number)?;
        Ok(Self {
            socket: logged_in.socket,
            agreed: logged_in.agreed,
            lun: url.lun,
            cmd_sn: logged_in.cmd_sn,
            max_cmd_sn: logged_in.max_cmd_sn,
            exp_stat_sn: logged_in.exp_stat_sn,
            commands: (0..depth).map(|_| None).collect(),
            waiting: VecDeque::new(),
            outbox: Outbox::default(),
            inbox: vec![0; INBOX_BYTES],
            filled: 0,
            segment: None,
        })
    }

    /// Returns the socket, to be polled.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Tells whether the socket has not taken everything.
    pub fn is_blocked(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Executes one command and returns what it read. The socket must still be a blocking one.
    ///
    /// # Errors
    /// When the command fails, or the session.
    pub fn execute(&mut self, command: Command) -> anyhow::Result<(Outcome, Vec<u8>)> {
        self.start(0, command);
        let mut ended = Vec::new();
        while ended.is_empty() {
            self.send()?;
            self.receive(&mut ended)?;
        }
        let Ended { outcome, data, .. } = ended.remove(0);
        Ok((outcome, data))
    }

    /// Queues a command under a tag that is free.
    pub fn start(&mut self, tag: u32, command: Command) {
        let data = match command.keeps_data {
            true => vec![0; command.read_bytes as usize],
            false => Vec::new(),
        };
        self.commands[tag as usize] = Some(InFlight {
            command,
            received: 0,
            data,
        });
        self.waiting.push_back(tag);
        self.fill_window();
    }

    /// Sends what is queued, as far as the socket takes it.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn send(&mut self) -> io::Result<()> {
        self.outbox.send(&mut &self.socket)
    }

    /// Reads once and acts on it. Tells whether there may be more.
    ///
    /// # Errors
    /// When the session cannot go on.
    pub fn receive(&mut self, ended: &mut Vec<Ended>) -> anyhow::Result<bool> {
        let read = match (&self.socket).read(&mut self.inbox[self.filled..]) {
            Ok(0) => bail!("the target closed the connection"),
            Ok(read) => read,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return Ok(false);
            }
            Err(error) => return Err(error).context("receiving"),
        };
        let room = self.inbox.len() - self.filled;
        self.filled += read;
        let inbox = std::mem::take(&mut self.inbox);
        let used = self.consume(&inbox[..self.filled], ended);
        self.inbox = inbox;
        let used = used?;
        self.inbox.copy_within(used..self.filled, 0);
        self.filled -= used;
        self.fill_window();
        Ok(read == room)
    }

    fn fill_window(&mut self) {
        while self.max_cmd_sn.wrapping_sub(self.cmd_sn) as i32 >= 0 {
            let Some(tag) = self.waiting.pop_front() else {
                return;
            };
            self.send_command(tag);
        }
    }

    fn send_command(&mut self, tag: u32) {
        let Some(InFlight { command, .. }) = &self.commands[tag as usize] else {
            return;
        };
        let payload = command.payload.clone();
        let bytes = payload.len() as u32;
        let mut immediate = 0;
        let mut unsolicited = 0;
        if self.agreed.immediate_data {
            immediate = bytes
                .min(self.agreed.first_burst_bytes)
                .min(self.agreed.send_segment_bytes);
        }
        if !self.agreed.initial_r2t {
            unsolicited = bytes.min(self.agreed.first_burst_bytes) - immediate;
        }
        // Final, unless unsolicited data follows; simple task attribute (RFC 7143 11.3.1).
        let direction = match (command.read_bytes, bytes) {
            (0, 0) => 0,
            (0, _) => 0x20,
            _ => 0x40,
        };
        let last = if unsolicited == 0 { 0x80 } else { 0 };
        let mut header = pdu::header(0x01, last | direction | 0x01, immediate as usize);
        self.set_lun(&mut header);
        put32(&mut header, 16, tag);
        put32(&mut header, 20, command.read_bytes.max(bytes));
        put32(&mut header, 24, self.cmd_sn);
        put32(&mut header, 28, self.exp_stat_sn);
        header[32..48].copy_from_slice(&command.cdb.0);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.queue(&header, &payload, 0..immediate);
        if unsolicited > 0 {
            self.send_data(tag, NO_TAG, immediate..immediate + unsolicited);
        }
    }

    /// Sends a sequence of Data-Out (RFC 7143 11.7).
    fn send_data(&mut self, tag: u32, transfer_tag: u32, range: Range<u32>) {
        let Some(InFlight { command, .. }) = &self.commands[tag as usize] else {
            return;
        };
        let payload = command.payload.clone();
        let mut at = range.start;
        let mut data_sn = 0;
        while at < range.end {
            let upto = range.end.min(at.saturating_add(self.agreed.send_segment_bytes));
            let last = if upto == range.end { 0x80 } else { 0 };
            let mut header = pdu::header(0x05, last, (upto - at) as usize);
            self.set_lun(&mut header);
            put32(&mut header, 16, tag);
            put32(&mut header, 20, transfer_tag);
            put32(&mut header, 28, self.exp_stat_sn);
            put32(&mut header, 36, data_sn);
            put32(&mut header, 40, at);
            self.queue(&header, &payload, at..upto);
            at = upto;
            data_sn += 1;
        }
    }

    /// Sets the LUN field: peripheral addressing below 256, flat space above (SAM-5 4.7).
    fn set_lun(&self, header: &mut Header) {
        let flat = if self.lun < 256 { 0 } else { 0x4000 };
        header[8..10].copy_from_slice(&(flat | self.lun).to_be_bytes());
    }

    fn queue(&mut self, header: &Header, payload: &Payload, range: Range<u32>) {
        let Agreed {
            header_digest,
            data_digest,
            ..
        } = self.agreed;
        self.outbox.header(header, header_digest);
        if !range.is_empty() {
            let range = range.start as usize..range.end as usize;
            self.outbox.data(payload.part(range), data_digest);
        }
    }

    /// Acts on whole headers and on any part of data. Returns how many bytes are done with.
    fn consume(&mut self, bytes: &[u8], ended: &mut Vec<Ended>) -> anyhow::Result<usize> {
        let mut at = 0;
        loop {
            if let Some(segment) = &mut self.segment {
                let taken = segment.total.saturating_sub(segment.taken).min(bytes.len() - at);
                let part = &bytes[at..at + taken];
                at += taken;
                self.take_data(part)?;
                let Some(segment) = self.segment.take_if(|segment| segment.taken == segment.total) else {
                    return Ok(at);
                };
                if self.agreed.data_digest {
                    ensure!(
                        segment.digest == segment.crc.to_le_bytes(),
                        "a data digest is wrong"
                    );
                }
                self.act(&segment.header, &segment.sense, ended)?;
                continue;
            }
            let digest_bytes = if self.agreed.header_digest { 4 } else { 0 };
            let Some((header, rest)) = bytes[at..].split_first_chunk::<48>() else {
                return Ok(at);
            };
            if rest.len() < digest_bytes {
                return Ok(at);
            }
            ensure!(header[4] == 0, "additional header segments where none may be");
            if self.agreed.header_digest {
                ensure!(
                    rest[..4] == crc32c::crc32c(header).to_le_bytes(),
                    "a header digest is wrong"
                );
            }
            at += header.len() + digest_bytes;
            self.begin(header, ended)?;
        }
    }

    fn begin(&mut self, header: &Header, ended: &mut Vec<Ended>) -> anyhow::Result<()> {
        let data_bytes = pdu::data_bytes(header);
        if data_bytes == 0 {
            return self.act(header, &[], ended);
        }
        if let Answer::DataIn { tag, offset, .. } = Answer::of(header) {
            let in_flight = self.in_flight(tag)?;
            ensure!(
                offset as usize + data_bytes <= in_flight.command.read_bytes as usize,
                "Data-In beyond its command's data"
            );
        }
        let digest_bytes = if self.agreed.data_digest { 4 } else { 0 };
        self.segment = Some(Segment {
            header: *header,
            data_bytes,
            taken: 0,
            total: pdu::padded(data_bytes) + digest_bytes,
            crc: 0,
            digest: [0; 4],
            sense: Vec::new(),
        });
        Ok(())
    }

    /// Takes a part of the current data segment, its padding and its digest.
    fn take_data(&mut self, part: &[u8]) -> anyhow::Result<()> {
        let Some(segment) = &mut self.segment else {
            return Ok(());
        };
        let at = segment.taken;
        segment.taken += part.len();
        let (body, digest) =
            part.split_at(part.len().min(pdu::padded(segment.data_bytes).saturating_sub(at)));
        if self.agreed.data_digest {
            segment.crc = crc32c::crc32c_append(segment.crc, body);
            let begin = (at + body.len()).saturating_sub(pdu::padded(segment.data_bytes));
            segment.digest[begin..begin + digest.len()].copy_from_slice(digest);
        }
        let data = &body[..body.len().min(segment.data_bytes.saturating_sub(at))];
        match Answer::of(&segment.header) {
            Answer::DataIn { tag, offset, .. } => {
                let in_flight = self.in_flight(tag)?;
                in_flight.received += data.len() as u32;
                if in_flight.command.keeps_data {
                    in_flight.data[offset as usize + at..][..data.len()].copy_from_slice(data);
                }
            }
            _ => {
                let room = SENSE_BYTES - segment.sense.len();
                segment.sense.extend_from_slice(&data[..data.len().min(room)]);
            }
        }
        Ok(())
    }

    fn in_flight(&mut self, tag: u32) -> anyhow::Result<&mut InFlight> {
        let command = self.commands.get_mut(tag as usize).and_then(Option::as_mut);
        command.context("an answer to no command")
    }

    /// Acts on a PDU that is whole.
    fn act(&mut self, header: &Header, data: &[u8], ended: &mut Vec<Ended>) -> anyhow::Result<()> {
        let answer = Answer::of(header);
        if answer.is_numbered(header) {
            self.exp_stat_sn = get32(header, 24).wrapping_add(1);
        }
        let max_cmd_sn = get32(header, 32);
        if max_cmd_sn.wrapping_sub(self.max_cmd_sn) as i32 > 0 {
            self.max_cmd_sn = max_cmd_sn;
        }
        match answer {
            Answer::DataIn { status: None, .. } => {}
            Answer::DataIn {
                tag,
                status: Some(status),
                ..
            } => self.end(tag, status, data, ended)?,
            Answer::Response {
                tag,
                response,
                status,
            } => {
                ensure!(response == 0, "iSCSI response {response:#04x}");
                self.end(tag, status, data, ended)?;
            }
            Answer::ReadyToTransfer {
                tag,
                transfer_tag,
                offset,
                bytes,
            } => {
                let most = self.in_flight(tag)?.command.payload.len();
                let end = offset.checked_add(bytes).filter(|end| *end as usize <= most);
                let end = end.context("the target asks for more data than there is")?;
                self.send_data(tag, transfer_tag, offset..end);
            }
            Answer::NopIn { transfer_tag: NO_TAG } => {}
            Answer::NopIn { transfer_tag } => {
                let mut answer = pdu::header(0x40, 0x80, 0);
                answer[8..16].copy_from_slice(&header[8..16]);
                put32(&mut answer, 16, NO_TAG);
                put32(&mut answer, 20, transfer_tag);
                put32(&mut answer, 24, self.cmd_sn);
                put32(&mut answer, 28, self.exp_stat_sn);
                self.queue(&answer, &Payload::default(), 0..0);
            }
            Answer::Async { event: 0 } => {}
            Answer::Async { event } => bail!("the target asks to leave: event {event}"),
            Answer::Reject { reason } => bail!("the target rejects a PDU: reason {reason:#04x}"),
            Answer::Unexpected { opcode } => bail!("unexpected opcode {opcode:#04x}"),
        }
        Ok(())
    }

    fn end(&mut self, tag: u32, status: u8, data: &[u8], ended: &mut Vec<Ended>) -> anyhow::Result<()> {
        let in_flight = self.in_flight(tag)?;
        let (received, wanted) = (in_flight.received, in_flight.command.read_bytes);
        let outcome = match status {
            0x00 if received == wanted => Outcome::Good,
            0x00 => Outcome::Failed(format!("{received} of {wanted} bytes read")),
            0x02 => of_sense(data),
            0x08 | 0x28 => Outcome::Again,
            status => Outcome::Failed(format!("SCSI status {status:#04x}")),
        };
        let data = std::mem::take(&mut in_flight.data);
        self.commands[tag as usize] = None;
        ended.push(Ended { tag, outcome, data });
        Ok(())
    }
}

/// Judges fixed-format sense data behind its length (RFC 7143 11.4.7.2, SPC-4 4.5.3).
fn of_sense(data: &[u8]) -> Outcome {
    const UNIT_ATTENTION: u8 = 6;
    let byte = |at: usize| data.get(2 + at).copied().unwrap_or(0);
    match byte(2) & 0x0f {
        UNIT_ATTENTION => Outcome::Again,
        key => Outcome::Failed(format!("sense {key:02X}/{:02X}/{:02X}", byte(12), byte(13))),
    }
}
