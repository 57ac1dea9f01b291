//! The operational parameters of a session and how they are agreed on (RFC 7143 6.2, 13).
//!
//! [`Parameters::offer`] takes one key of the initiator's and gives the answer, by the key's result function:
//! the smaller or larger number, the first common entry of a list, the AND or OR of two booleans. Declarations
//! have no answer.

use crate::text::number;

/// The longest data segment we take, in bytes; declared at login.
pub const RECEIVE_SEGMENT_BYTES: u32 = 1 << 20;

/// The longest data segment either side may send before it is told otherwise (RFC 7143 13.12).
pub const DEFAULT_SEGMENT_BYTES: u32 = 8192;

/// Our wishes for the bursts, in bytes.
const MAX_BURST_BYTES: u32 = 1 << 20;
const FIRST_BURST_BYTES: u32 = 256 << 10;

/// The most R2Ts of a command that we have outstanding. Two keep the wire busy while the next is on its way; more are
/// for bursts that are short for the distance.
const MAX_OUTSTANDING_R2T: u16 = 8;

/// What a session has agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    /// Headers carry a CRC32C.
    pub header_digest: bool,
    /// Data segments carry a CRC32C.
    pub data_digest: bool,
    /// The longest data segment the initiator takes, in bytes.
    pub send_segment_bytes: u32,
    /// The longest data segment we have said we take, in bytes.
    pub receive_segment_bytes: u32,
    /// The longest Data-In or solicited Data-Out sequence, in bytes.
    pub max_burst_bytes: u32,
    /// The most unsolicited data of a command, in bytes.
    pub first_burst_bytes: u32,
    /// Data-Out comes only after an R2T.
    pub initial_r2t: bool,
    /// A command's PDU may carry data.
    pub immediate_data: bool,
    /// The most R2Ts of a command that may be outstanding.
    pub max_outstanding_r2t: u16,
}

impl Default for Parameters {
    /// The values that hold when a key is not negotiated (RFC 7143 13).
    fn default() -> Self {
        Self {
            header_digest: false,
            data_digest: false,
            send_segment_bytes: DEFAULT_SEGMENT_BYTES,
            receive_segment_bytes: DEFAULT_SEGMENT_BYTES,
            max_burst_bytes: 256 << 10,
            first_burst_bytes: 64 << 10,
            initial_r2t: true,
            immediate_data: true,
            max_outstanding_r2t: 1,
        }
    }
}

/// How an offered key is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// With this value.
    Value(String),
    /// Not at all: it was a declaration.
    Declared,
    /// The key is not one of ours (RFC 7143 6.2: NotUnderstood).
    NotUnderstood,
    /// The value is not one the key can have; the login fails (RFC 7143 6.2.2).
    Invalid,
}

impl Answer {
    fn of(value: impl ToString) -> Self {
        Answer::Value(value.to_string())
    }
}

impl Parameters {
    /// Takes an offer of the initiator's.
    pub fn offer(&mut self, key: &str, value: &str) -> Answer {
        match key {
            "HeaderDigest" => digest(value, &mut self.header_digest),
            "DataDigest" => digest(value, &mut self.data_digest),
            "MaxRecvDataSegmentLength" => match number(value) {
                Some(bytes @ 512..=0xff_ffff) => {
                    self.send_segment_bytes = bytes as u32;
                    Answer::Declared
                }
                _ => Answer::Invalid,
            },
            "MaxBurstLength" => smaller(value, 512..=0xff_ffff, MAX_BURST_BYTES, &mut self.max_burst_bytes),
            "FirstBurstLength" => smaller(
                value,
                512..=0xff_ffff,
                FIRST_BURST_BYTES,
                &mut self.first_burst_bytes,
            ),
            "InitialR2T" => match boolean(value) {
                Some(wanted) => {
                    self.initial_r2t = wanted;
                    Answer::of(yes_no(wanted))
                }
                None => Answer::Invalid,
            },
            "ImmediateData" => match boolean(value) {
                Some(wanted) => {
                    self.immediate_data = wanted;
                    Answer::of(yes_no(wanted))
                }
                None => Answer::Invalid,
            },
            "MaxConnections" => fixed(value, 1..=65535, 1, u64::min),
            "MaxOutstandingR2T" => match number(value) {
                Some(theirs @ 1..=65535) => {
                    self.max_outstanding_r2t = MAX_OUTSTANDING_R2T.min(theirs as u16);
                    Answer::of(self.max_outstanding_r2t)
                }
                _ => Answer::Invalid,
            },
            "DefaultTime2Wait" => fixed(value, 0..=3600, 0, u64::max),
            "DefaultTime2Retain" => fixed(value, 0..=3600, 0, u64::min),
            "ErrorRecoveryLevel" => fixed(value, 0..=2, 0, u64::min),
            "iSCSIProtocolLevel" => fixed(value, 0..=31, 1, u64::min),
            // Data goes in order here; the result function is OR.
            "DataPDUInOrder" | "DataSequenceInOrder" => match boolean(value) {
                Some(_) => Answer::of("Yes"),
                None => Answer::Invalid,
            },
            // Obsolete (RFC 7143 13.25), still offered by old initiators.
            "IFMarker" | "OFMarker" => Answer::of("No"),
            "IFMarkInt" | "OFMarkInt" => Answer::of("Reject"),
            "InitiatorAlias" => Answer::Declared,
            // Only a target declares these (RFC 7143 13.6, 13.8, 13.9); an answer would be a second pair of our own key.
            "TargetAlias" | "TargetAddress" | "TargetPortalGroupTag" => Answer::Invalid,
            _ => Answer::NotUnderstood,
        }
    }

    /// Makes the agreed values consistent, at the end of the login.
    ///
    /// Each key is negotiated alone, so that the first burst may come out longer than the longest burst; it is
    /// then the latter (RFC 7143 13.14: FirstBurstLength MUST NOT exceed MaxBurstLength).
    pub fn settle(&mut self) {
        self.first_burst_bytes = self.first_burst_bytes.min(self.max_burst_bytes);
    }
}

fn boolean(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

fn yes_no(value: bool) -> &'static str {
    if value { "Yes" } else { "No" }
}

/// The first entry of the initiator's list that we know.
fn digest(value: &str, enabled: &mut bool) -> Answer {
    match value.split(',').find(|entry| matches!(*entry, "CRC32C" | "None")) {
        Some(chosen) => {
            *enabled = chosen == "CRC32C";
            Answer::of(chosen)
        }
        None => Answer::Value("Reject".to_owned()),
    }
}

fn smaller(value: &str, range: std::ops::RangeInclusive<u64>, ours: u32, agreed: &mut u32) -> Answer {
    match number(value) {
        Some(theirs) if range.contains(&theirs) => {
            *agreed = ours.min(theirs as u32);
            Answer::of(*agreed)
        }
        _ => Answer::Invalid,
    }
}

fn fixed(
    value: &str,
    range: std::ops::RangeInclusive<u64>,
    ours: u64,
    result: impl Fn(u64, u64) -> u64,
) -> Answer {
    match number(value) {
        Some(theirs) if range.contains(&theirs) => Answer::of(result(ours, theirs)),
        _ => Answer::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_is_answered_by_its_result_function() {
        let cases = [
            ("HeaderDigest", "CRC32C,None", "CRC32C"),
            ("DataDigest", "None,CRC32C", "None"),
            ("DataDigest", "X-other", "Reject"),
            ("MaxBurstLength", "16776192", "1048576"),
            ("FirstBurstLength", "0x1000", "4096"),
            ("InitialR2T", "No", "No"),
            ("InitialR2T", "Yes", "Yes"),
            ("ImmediateData", "No", "No"),
            ("MaxConnections", "8", "1"),
            ("MaxOutstandingR2T", "1", "1"),
            ("MaxOutstandingR2T", "4", "4"),
            ("MaxOutstandingR2T", "65535", "8"),
            ("DefaultTime2Wait", "2", "2"),
            ("DefaultTime2Retain", "20", "0"),
            ("ErrorRecoveryLevel", "2", "0"),
            ("DataPDUInOrder", "No", "Yes"),
            ("OFMarker", "No", "No"),
        ];
        for (key, offered, answer) in cases {
            let mut parameters = Parameters::default();
            assert_eq!(
                parameters.offer(key, offered),
                Answer::of(answer),
                "{key}={offered}"
            );
        }
    }

    #[test]
    fn declarations_unknown_keys_and_bad_values_are_told_apart() {
        let mut parameters = Parameters::default();
        assert_eq!(
            parameters.offer("MaxRecvDataSegmentLength", "262144"),
            Answer::Declared
        );
        assert_eq!(parameters.send_segment_bytes, 262_144);
        assert_eq!(parameters.offer("X-com.example", "1"), Answer::NotUnderstood);
        for (key, value) in [
            ("MaxRecvDataSegmentLength", "511"),
            ("MaxRecvDataSegmentLength", "16777216"),
            ("InitialR2T", "maybe"),
            ("MaxConnections", "0"),
            ("MaxOutstandingR2T", "0"),
            ("MaxOutstandingR2T", "65536"),
            ("ErrorRecoveryLevel", "3"),
            ("TargetPortalGroupTag", "1"),
        ] {
            assert_eq!(parameters.offer(key, value), Answer::Invalid, "{key}={value}");
        }
    }

    #[test]
    fn first_burst_never_exceeds_max_burst() {
        let mut parameters = Parameters::default();
        parameters.offer("MaxBurstLength", "4096");
        parameters.offer("FirstBurstLength", "65536");
        parameters.settle();
        assert_eq!(parameters.first_burst_bytes, 4096);
    }
}
