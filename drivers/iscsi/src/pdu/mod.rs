//! The iSCSI wire format: one type per PDU, big endian (RFC 7143, 11).
//!
//! Requests are parsed from a whole basic header segment into typed fields ([`Request`]); responses are structs
//! that encode themselves into one. Nothing here keeps state or touches a socket.

mod request;
mod response;

pub use request::{
    DataOut, Login, Logout, Malformed, NopOut, Request, ScsiCommand, TaskFunction, TaskManagement, Text,
};
pub use response::{
    AsyncEvent, AsyncMessage, DataIn, LoginResponse, LogoutResponse, NopIn, ReadyToTransfer, Reject,
    RejectReason, ScsiResponse, Sequence, TaskManagementResponse, TextResponse,
};

/// The length of a basic header segment.
pub const BHS_BYTES: usize = 48;

/// The task tag that names no task (RFC 7143 11.2.1.8).
pub const NO_TAG: u32 = 0xffff_ffff;

/// A basic header segment as it is on the wire.
pub type Bhs = [u8; BHS_BYTES];

/// Rounds a data segment's length up to the padding boundary (RFC 7143 11.1: four bytes).
pub const fn padded(bytes: usize) -> usize {
    (bytes + 3) & !3
}

/// The lengths that a header announces (RFC 7143 11.2.1.5, 11.2.1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// Additional header segments, in bytes.
    pub ahs_bytes: usize,
    /// The data segment without padding, in bytes.
    pub data_bytes: usize,
}

impl Lengths {
    /// Reads the lengths of a header.
    pub fn of(bhs: &Bhs) -> Self {
        Self {
            ahs_bytes: usize::from(bhs[4]) * 4,
            data_bytes: u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]) as usize,
        }
    }
}

/// Serial number arithmetic of 32 bits (RFC 1982): tells whether `a` comes before `b`.
pub fn serial_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_compare_across_the_wrap() {
        assert!(serial_before(0xffff_ffff, 0));
        assert!(serial_before(0xffff_fff0, 5));
        assert!(!serial_before(5, 0xffff_fff0));
        assert!(!serial_before(7, 7));
    }

    #[test]
    fn lengths_are_read_from_their_three_and_one_byte_fields() {
        let mut bhs = [0u8; BHS_BYTES];
        bhs[4] = 3;
        bhs[5..8].copy_from_slice(&[0x01, 0x02, 0x03]);
        assert_eq!(
            Lengths::of(&bhs),
            Lengths {
                ahs_bytes: 12,
                data_bytes: 0x0001_0203
            }
        );
        assert_eq!([padded(0), padded(1), padded(4), padded(5)], [0, 4, 4, 8]);
    }
}
