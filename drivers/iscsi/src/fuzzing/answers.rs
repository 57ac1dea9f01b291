//! What the target sends to one initiator, looked at byte by byte.

use crate::pdu::{BHS_BYTES, NO_TAG, padded};

/// The stream of one connection.
#[derive(Default)]
pub struct Answers {
    bytes: Vec<u8>,
    next_stat_sn: Option<u32>,
    /// Header and data digests: agreed on, and in use.
    agreed: (bool, bool),
    digests: (bool, bool),
    /// Whether the login is over.
    full_feature: bool,
}

impl Answers {
    /// Tells whether the login is over, and was a success.
    pub fn full_feature(&self) -> bool {
        self.full_feature
    }

    /// Takes what has come and checks every PDU that is whole.
    pub fn take(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(len) = self.check(&self.bytes[at..]).map(|pdu| pdu.total) {
            let pdu = self.bytes[at..at + len].to_vec();
            self.note(&pdu);
            at += len;
        }
        self.bytes.drain(..at);
    }

    /// Checks the first PDU, if it is whole.
    fn check(&self, bytes: &[u8]) -> Option<Extent> {
        let bhs = bytes.get(..BHS_BYTES)?;
        assert_eq!(bhs[4], 0, "no additional header segments are ever sent");
        let data_bytes = u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]) as usize;
        let header_bytes = BHS_BYTES + if self.digests.0 { 4 } else { 0 };
        let digest_bytes = if self.digests.1 && data_bytes > 0 { 4 } else { 0 };
        let total = header_bytes + padded(data_bytes) + digest_bytes;
        let bytes = bytes.get(..total)?;
        if self.digests.0 {
            assert_eq!(
                bytes[BHS_BYTES..header_bytes],
                crc32c::crc32c(bhs).to_le_bytes(),
                "header digest"
            );
        }
        let data = &bytes[header_bytes..total - digest_bytes];
        if digest_bytes > 0 {
            assert_eq!(
                bytes[total - 4..],
                crc32c::crc32c(data).to_le_bytes(),
                "data digest"
            );
        }
        Some(Extent { total })
    }

    /// Follows the numbers and the login.
    fn note(&mut self, pdu: &[u8]) {
        let word = |at: usize| u32::from_be_bytes([pdu[at], pdu[at + 1], pdu[at + 2], pdu[at + 3]]);
        let opcode = pdu[0];
        assert_eq!(
            opcode == 0x23,
            !self.full_feature,
            "login responses until the end of the login, then none"
        );
        // RFC 7143 11.7.4, 11.8.4, 11.19.2: of these some have no number of their own.
        let numbered = match opcode {
            0x20 => word(16) != NO_TAG,
            0x25 => pdu[1] & 0x01 != 0,
            0x31 => false,
            0x21 | 0x22 | 0x23 | 0x24 | 0x26 | 0x32 | 0x3f => true,
            _ => panic!("opcode {opcode:#04x} is none of a target's"),
        };
        if numbered {
            let stat_sn = word(24);
            let expected = self.next_stat_sn.unwrap_or(stat_sn);
            assert_eq!(
                stat_sn, expected,
                "StatSN goes up by one, at opcode {opcode:#04x}"
            );
            self.next_stat_sn = Some(stat_sn.wrapping_add(1));
        }
        if opcode == 0x23 {
            let says = |key: &[u8]| pdu.windows(key.len()).any(|window| window == key);
            self.agreed.0 = self.agreed.0 && !says(b"HeaderDigest=None") || says(b"HeaderDigest=CRC32C");
            self.agreed.1 = self.agreed.1 && !says(b"DataDigest=None") || says(b"DataDigest=CRC32C");
            // T, the next stage is full feature, and the status is success.
            if pdu[1] & 0x83 == 0x83 && pdu[36] == 0 {
                self.full_feature = true;
                self.digests = self.agreed;
            }
        }
    }
}

/// How long a PDU is on the wire, in bytes.
struct Extent {
    total: usize,
}
