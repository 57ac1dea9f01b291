//! What a target sends (RFC 7143 11.4, 11.6, 11.7, 11.8, 11.9, 11.11, 11.13, 11.15, 11.17, 11.19).

use super::{Bhs, NO_TAG};

/// The numbers that most responses carry (RFC 7143 4.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// The response's own number, or the next one's where it has none.
    pub stat_sn: u32,
    /// The next command's number.
    pub exp_cmd_sn: u32,
    /// The last command number taken.
    pub max_cmd_sn: u32,
}

/// Lays out a header: opcode, flags, then 32-bit fields at their offsets.
fn header(opcode: u8, flags: u8, data_bytes: usize) -> Bhs {
    let mut bhs = [0; 48];
    bhs[0] = opcode;
    bhs[1] = flags;
    bhs[5..8].copy_from_slice(&(data_bytes as u32).to_be_bytes()[1..]);
    bhs
}

fn put32(bhs: &mut Bhs, at: usize, value: u32) {
    bhs[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put_sequence(bhs: &mut Bhs, sequence: Sequence) {
    put32(bhs, 24, sequence.stat_sn);
    put32(bhs, 28, sequence.exp_cmd_sn);
    put32(bhs, 32, sequence.max_cmd_sn);
}

/// The answer to a login request.
#[derive(Debug, Clone, Copy)]
pub struct LoginResponse {
    /// The stage changes to the next.
    pub transit: bool,
    /// The text goes on in the next response.
    pub more_text: bool,
    /// The stage it answers in.
    pub current_stage: u8,
    /// The stage that follows.
    pub next_stage: u8,
    /// The initiator's part of the session's name.
    pub isid: [u8; 6],
    /// The session's handle; 0 until the session exists.
    pub tsih: u16,
    /// The initiator's tag.
    pub itt: u32,
    /// Status class and detail (RFC 7143 11.13.5).
    pub status: u16,
    /// The text's length, in bytes.
    pub data_bytes: usize,
}

impl LoginResponse {
    /// Encodes the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let flags = u8::from(self.transit) << 7
            | u8::from(self.more_text) << 6
            | self.current_stage << 2
            | if self.transit { self.next_stage } else { 0 };
        let mut bhs = header(0x23, flags, self.data_bytes);
        bhs[8..14].copy_from_slice(&self.isid);
        bhs[14..16].copy_from_slice(&self.tsih.to_be_bytes());
        put32(&mut bhs, 16, self.itt);
        put_sequence(&mut bhs, sequence);
        bhs[36..38].copy_from_slice(&self.status.to_be_bytes());
        bhs
    }
}

/// The end of a SCSI command.
#[derive(Debug, Clone, Copy)]
pub struct ScsiResponse {
    /// The initiator's tag.
    pub itt: u32,
    /// The SCSI status.
    pub status: u8,
    /// Data-In or R2T PDUs sent for the command.
    pub exp_data_sn: u32,
    /// Bytes left over: positive when less was moved than expected, negative when more was wanted.
    pub residual: i64,
    /// The sense segment's length, in bytes.
    pub data_bytes: usize,
}

/// The overflow (O) and underflow (U) flags and the residual count (RFC 7143 11.4.5).
fn residual_fields(residual: i64) -> (u8, u32) {
    match residual {
        0 => (0, 0),
        1.. => (0x02, residual.min(i64::from(u32::MAX)) as u32),
        _ => (0x04, residual.unsigned_abs().min(u64::from(u32::MAX)) as u32),
    }
}

impl ScsiResponse {
    /// Encodes the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let (flags, residual) = residual_fields(self.residual);
        let mut bhs = header(0x21, 0x80 | flags, self.data_bytes);
        bhs[3] = self.status;
        put32(&mut bhs, 16, self.itt);
        put_sequence(&mut bhs, sequence);
        put32(&mut bhs, 36, self.exp_data_sn);
        put32(&mut bhs, 44, residual);
        bhs
    }
}

/// Data of a read.
#[derive(Debug, Clone, Copy)]
pub struct DataIn {
    /// The initiator's tag.
    pub itt: u32,
    /// The last of its sequence.
    pub last: bool,
    /// GOOD status with a residual, when it ends the command too.
    pub good_with_residual: Option<i64>,
    /// Its number within the command.
    pub data_sn: u32,
    /// Where its data belongs, in bytes from the command's start.
    pub offset: u32,
    /// The data's length, in bytes.
    pub data_bytes: usize,
}

impl DataIn {
    /// Encodes the header. The status number is only sent when the PDU carries the status.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut bhs = header(0x25, u8::from(self.last) << 7, self.data_bytes);
        put32(&mut bhs, 16, self.itt);
        put32(&mut bhs, 20, NO_TAG);
        put_sequence(&mut bhs, sequence);
        match self.good_with_residual {
            Some(residual) => {
                let (flags, residual) = residual_fields(residual);
                bhs[1] |= 0x81 | flags;
                put32(&mut bhs, 44, residual);
            }
            None => put32(&mut bhs, 24, 0),
        }
        put32(&mut bhs, 36, self.data_sn);
        put32(&mut bhs, 40, self.offset);
        bhs
    }
}

/// An invitation to send data of a write.
#[derive(Debug, Clone, Copy)]
pub struct ReadyToTransfer {
    /// The LUN field of the command.
    pub lun: u64,
    /// The initiator's tag.
    pub itt: u32,
    /// Our tag, echoed in the Data-Out PDUs.
    pub ttt: u32,
    /// Its number within the command.
    pub r2t_sn: u32,
    /// Where the wanted data begins, in bytes from the command's start.
    pub offset: u32,
    /// How much is wanted, in bytes.
    pub desired_bytes: u32,
}

impl ReadyToTransfer {
    /// Encodes the header. `stat_sn` is the next response's number and is not used up.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut bhs = header(0x31, 0x80, 0);
        bhs[8..16].copy_from_slice(&self.lun.to_be_bytes());
        put32(&mut bhs, 16, self.itt);
        put32(&mut bhs, 20, self.ttt);
        put_sequence(&mut bhs, sequence);
        put32(&mut bhs, 36, self.r2t_sn);
        put32(&mut bhs, 40, self.offset);
        put32(&mut bhs, 44, self.desired_bytes);
        bhs
    }
}

/// The answer to a task management request.
#[derive(Debug, Clone, Copy)]
pub struct TaskManagementResponse {
    /// The initiator's tag.
    pub itt: u32,
    /// 0 complete, 1 no such task, 2 no such LUN, 4 reassignment not supported, 5 function not supported,
    /// 255 rejected (RFC 7143 11.6.1).
    pub response: u8,
}

impl TaskManagementResponse {
    /// Encodes the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut bhs = header(0x22, 0x80, 0);
        bhs[2] = self.response;
        put32(&mut bhs, 16, self.itt);
        put_sequence(&mut bhs, sequence);
        bhs
    }
}

/// A ping, or the answer to one.
#[derive(Debug, Clone, Copy)]
pub struct NopIn {
    /// The LUN field of the ping it answers.
    pub lun: u64,
    /// The initiator's tag; [`NO_TAG`] in a ping of ours.
    pub itt: u32,
    /// Our tag, when it wants an answer; else [`NO_TAG`].
    pub ttt: u32,
    /// The echoed data's length, in bytes.
    pub data_bytes: usize,
}

impl NopIn {
    /// Encodes the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut bhs = header(0x20, 0x80, self.data_bytes);
        bhs[8..16].copy_from_slice(&self.lun.to_be_bytes());
        put32(&mut bhs, 16, self.itt);
        put32(&mut bhs, 20, self.ttt);
        put_sequence(&mut bhs, sequence);
        bhs
    }
}

/// The answer to a text request.
#[derive(Debug, Clone, Copy)]
pub struct TextResponse {
    /// The last response of its exchange.
    pub last: bool,
    /// The text goes on in the next response.
    pub more_text: bool,
    /// The LUN field of the request.
    pub lun: u64,
    /// The initiator's tag.
    pub itt: u32,
    /// Our tag, when the exchange goes on.
    pub ttt: u32,
    /// The text's length, in bytes.
    pub data_bytes: usize,
}

impl TextResponse {
    /// Encodes the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let flags = u8::from(self.last) << 7 | u8::from(self.more_text) << 6;
        let mut bhs = header(0x24, flags, self.data_bytes);
        bhs[8..16].copy_from_slice(&self.lun.to_be_bytes());
        put32(&mut bhs, 16, self.itt);
        put32(&mut bhs, 20, self.ttt);
        put_sequence(&mut bhs, sequence);
        bhs
    }
}

/// The answer to a logout request.
#[derive(Debug, Clone, Copy)]
pub struct LogoutResponse {
    /// The initiator's tag.
    pub itt: u32,
    /// 0 closed, 1 no such connection, 2 recovery not supported, 3 failed.
    pub response: u8,
}

impl LogoutResponse {
    /// Encodes the header; both times are 0: come back whenever you like.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut bhs = header(0x26, 0x80, 0);
        bhs[2] = self.response;
        put32(&mut bhs, 16, self.itt);
        put_sequence(&mut bhs, sequence);
        bhs
    }
}

/// What a target has to say unasked (RFC 7143 11.9.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AsyncEvent {
    /// The initiator is to log out within so many seconds.
    LogoutRequest {
        /// How long.
        seconds: u16,
    },
    /// All connections of the session are about to be dropped.
    DropsSession {
        /// How long the initiator should wait before it comes back, in seconds.
        wait_seconds: u16,
    },
}

/// An asynchronous message.
#[derive(Debug, Clone, Copy)]
pub struct AsyncMessage {
    /// What it says.
    pub event: AsyncEvent,
}

impl AsyncMessage {
    /// Encodes the header: the event's code and its three parameters.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let (code, parameters) = match self.event {
            AsyncEvent::LogoutRequest { seconds } => (1, [0, 0, seconds]),
            AsyncEvent::DropsSession { wait_seconds } => (3, [0, wait_seconds, 0]),
        };
        let mut bhs = header(0x32, 0x80, 0);
        put32(&mut bhs, 16, NO_TAG);
        put_sequence(&mut bhs, sequence);
        bhs[36] = code;
        for (at, parameter) in (38..).step_by(2).zip(parameters) {
            bhs[at..at + 2].copy_from_slice(&parameter.to_be_bytes());
        }
        bhs
    }
}

/// Why a PDU was rejected (RFC 7143 11.17.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RejectReason {
    /// The data segment's digest is wrong.
    DataDigest = 0x02,
    /// SNACK at error recovery level 0.
    Snack = 0x03,
    /// Immediate requests beyond what the target takes.
    TooManyImmediate = 0x06,
    /// A field is wrong.
    InvalidField = 0x09,
}

/// The refusal of a PDU; the refused header is its data segment.
#[derive(Debug, Clone, Copy)]
pub struct Reject {
    /// Why.
    pub reason: RejectReason,
}

impl Reject {
    /// Encodes the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut bhs = header(0x3f, 0x80, super::BHS_BYTES);
        bhs[2] = self.reason as u8;
        put32(&mut bhs, 16, NO_TAG);
        put_sequence(&mut bhs, sequence);
        bhs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEQUENCE: Sequence = Sequence {
        stat_sn: 0x0a0b_0c0d,
        exp_cmd_sn: 5,
        max_cmd_sn: 132,
    };

    #[test]
    fn final_data_in_carries_status_residual_and_its_number() {
        let last = DataIn {
            itt: 1,
            last: true,
            good_with_residual: Some(512),
            data_sn: 3,
            offset: 8192,
            data_bytes: 4096,
        };
        let bhs = last.encode(SEQUENCE);
        assert_eq!((bhs[0], bhs[1], bhs[3]), (0x25, 0x80 | 0x02 | 0x01, 0));
        assert_eq!(&bhs[5..8], &[0, 0x10, 0]);
        assert_eq!(&bhs[24..28], &[0x0a, 0x0b, 0x0c, 0x0d]);
        assert_eq!(&bhs[44..48], &512u32.to_be_bytes());

        let middle = DataIn {
            good_with_residual: None,
            last: false,
            ..last
        };
        let bhs = middle.encode(SEQUENCE);
        assert_eq!(bhs[1], 0);
        assert_eq!(&bhs[24..28], &[0; 4]);
    }

    #[test]
    fn asynchronous_messages_carry_code_and_parameters() {
        let ask = AsyncMessage {
            event: AsyncEvent::LogoutRequest { seconds: 2 },
        };
        let bhs = ask.encode(SEQUENCE);
        assert_eq!((bhs[0], bhs[1]), (0x32, 0x80));
        assert_eq!(&bhs[16..20], &[0xff; 4]);
        assert_eq!(&bhs[24..28], &[0x0a, 0x0b, 0x0c, 0x0d]);
        assert_eq!(&bhs[36..44], &[1, 0, 0, 0, 0, 0, 0, 2]);
        let drop = AsyncMessage {
            event: AsyncEvent::DropsSession { wait_seconds: 1 },
        };
        assert_eq!(&drop.encode(SEQUENCE)[36..44], &[3, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn residuals_tell_overflow_from_underflow() {
        assert_eq!(residual_fields(0), (0, 0));
        assert_eq!(residual_fields(100), (0x02, 100));
        assert_eq!(residual_fields(-100), (0x04, 100));
    }
}
