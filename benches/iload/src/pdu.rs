//! The headers that an initiator sends and reads (RFC 7143 11).

/// A header without its digest.
pub type Header = [u8; 48];

/// "No tag" in a tag field.
pub const NO_TAG: u32 = u32::MAX;

/// Rounds a data segment's length up to whole words (RFC 7143 11.1).
pub fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(4)
}

/// Returns a 32-bit field.
pub fn get32(header: &Header, at: usize) -> u32 {
    u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

/// Sets a 32-bit field.
pub fn put32(header: &mut Header, at: usize, value: u32) {
    header[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// Returns the data segment's length, in bytes.
pub fn data_bytes(header: &Header) -> usize {
    get32(header, 4) as usize & 0xff_ffff
}

/// Begins a header: opcode and flags, and how many bytes of data follow.
pub fn header(opcode: u8, flags: u8, data_bytes: usize) -> Header {
    let mut header = [0; 48];
    put32(&mut header, 4, data_bytes as u32);
    header[0] = opcode;
    header[1] = flags;
    header
}

/// What the target says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Data of a read; the last may carry the status.
    DataIn {
        /// The command.
        tag: u32,
        /// Where the data belongs, in bytes.
        offset: u32,
        /// The SCSI status, when the command ends here.
        status: Option<u8>,
    },
    /// The end of a command.
    Response {
        /// The command.
        tag: u32,
        /// The iSCSI response; 0 when the target executed the command.
        response: u8,
        /// The SCSI status.
        status: u8,
    },
    /// An invitation to send data.
    ReadyToTransfer {
        /// The command.
        tag: u32,
        /// The target's tag, to be echoed.
        transfer_tag: u32,
        /// What is wanted, in bytes.
        offset: u32,
        /// How much is wanted, in bytes.
        bytes: u32,
    },
    /// A ping, or the answer to one.
    NopIn {
        /// The target's tag, to be echoed; [`NO_TAG`] when no answer is wanted.
        transfer_tag: u32,
    },
    /// The target asks to leave.
    Async {
        /// The event.
        event: u8,
    },
    /// A PDU was refused.
    Reject {
        /// Why.
        reason: u8,
    },
    /// Anything else.
    Unexpected {
        /// The opcode.
        opcode: u8,
    },
}

impl Answer {
    /// Reads a header.
    pub fn of(header: &Header) -> Self {
        let tag = get32(header, 16);
        match header[0] & 0x3f {
            0x20 => Answer::NopIn {
                transfer_tag: get32(header, 20),
            },
            0x21 => Answer::Response {
                tag,
                response: header[2],
                status: header[3],
            },
            0x25 => Answer::DataIn {
                tag,
                offset: get32(header, 40),
                status: (header[1] & 1 != 0).then_some(header[3]),
            },
            0x31 => Answer::ReadyToTransfer {
                tag,
                transfer_tag: get32(header, 20),
                offset: get32(header, 40),
                bytes: get32(header, 44),
            },
            0x32 => Answer::Async { event: header[36] },
            0x3f => Answer::Reject { reason: header[2] },
            opcode => Answer::Unexpected { opcode },
        }
    }

    /// Tells whether it takes a status number of its own (RFC 7143 4.2.2.2).
    pub fn is_numbered(&self, header: &Header) -> bool {
        match self {
            Answer::DataIn { status, .. } => status.is_some(),
            Answer::NopIn { .. } => get32(header, 16) != NO_TAG,
            Answer::Response { .. } | Answer::Async { .. } | Answer::Reject { .. } => true,
            Answer::ReadyToTransfer { .. } | Answer::Unexpected { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_in_with_and_without_status() {
        let mut data = header(0x25, 0x81, 512);
        put32(&mut data, 16, 7);
        put32(&mut data, 40, 4096);
        let answer = Answer::of(&data);
        let expected = Answer::DataIn {
            tag: 7,
            offset: 4096,
            status: Some(0),
        };
        assert_eq!(answer, expected);
        assert!(answer.is_numbered(&data));
        data[1] = 0x80;
        assert!(!Answer::of(&data).is_numbered(&data));
        assert_eq!((data_bytes(&data), padded(5)), (512, 8));
    }
}
