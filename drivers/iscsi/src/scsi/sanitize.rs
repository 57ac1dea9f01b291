//! SANITIZE: what is asked for (SBC-3 5.18).

use super::Sense;
use crate::pdu::be16;

/// The header of an OVERWRITE parameter list, in bytes.
const HEADER_BYTES: usize = 4;

/// A service action. CRYPTOGRAPHIC ERASE is not supported: a volume has no key of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SanitizeAction {
    Overwrite,
    BlockErase,
    ExitFailureMode,
}

impl SanitizeAction {
    /// Reads a SERVICE ACTION field.
    pub fn parse(code: u8) -> Option<Self> {
        Some(match code {
            0x01 => SanitizeAction::Overwrite,
            0x02 => SanitizeAction::BlockErase,
            0x1f => SanitizeAction::ExitFailureMode,
            _ => return None,
        })
    }
}

/// How the medium is sanitized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// Every block is zeroed where it is, and unmapped.
    BlockErase,
    /// Every block is filled with a pattern.
    Overwrite {
        /// How often; at least once.
        count: u8,
        /// Whether every second pass has the pattern inverted.
        invert: bool,
        /// Repeated in each block; not empty.
        pattern: Vec<u8>,
    },
}

/// A sanitize operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sanitizing {
    /// How.
    pub method: Method,
    /// AUSE: should it fail, EXIT FAILURE MODE gives the unit back without another.
    pub may_exit: bool,
}

impl Method {
    /// Reads the parameter list of an OVERWRITE.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse_overwrite(list: &[u8]) -> Result<Self, Sense> {
        let invalid = Sense::INVALID_FIELD_IN_PARAMETERS;
        if list.len() <= HEADER_BYTES {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        let (count, tests) = (list[0] & 0x1f, list[0] & 0x60);
        let pattern = &list[HEADER_BYTES..];
        if count == 0 || tests != 0 || usize::from(be16(list, 2)) != pattern.len() {
            return Err(invalid);
        }
        Ok(Method::Overwrite {
            count,
            invert: list[0] & 0x80 != 0,
            pattern: pattern.to_vec(),
        })
    }

    /// Fills whole blocks as a pass of an overwrite wants them.
    pub fn fill(pattern: &[u8], inverted: bool, block_bytes: usize, bytes: &mut [u8]) {
        let flip = if inverted { 0xff } else { 0 };
        for block in bytes.chunks_mut(block_bytes) {
            for (byte, pattern) in block.iter_mut().zip(pattern.iter().cycle()) {
                *byte = pattern ^ flip;
            }
        }
    }
}

impl Sanitizing {
    /// Encodes an operation, to be kept: flags, and the parameter list of an overwrite.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![u8::from(self.may_exit)];
        if let Method::Overwrite {
            count,
            invert,
            pattern,
        } = &self.method
        {
            bytes.extend_from_slice(&[count | u8::from(*invert) << 7, 0]);
            bytes.extend_from_slice(&(pattern.len() as u16).to_be_bytes());
            bytes.extend_from_slice(pattern);
        }
        bytes
    }

    /// Reads an operation that was kept; `None` when it is damaged.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (flags, list) = bytes.split_first()?;
        let method = match list {
            [] => Method::BlockErase,
            list => Method::parse_overwrite(list).ok()?,
        };
        (*flags <= 1).then_some(Self {
            method,
            may_exit: *flags == 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overwrite_lists_have_a_count_and_a_pattern() {
        let parsed = Method::parse_overwrite(&[0x83, 0, 0, 2, 7, 8]);
        let expected = Method::Overwrite {
            count: 3,
            invert: true,
            pattern: vec![7, 8],
        };
        assert_eq!(parsed, Ok(expected.clone()));
        for wrong in [
            &[0, 0, 0, 2, 7, 8][..],
            &[1, 0, 0, 3, 7, 8],
            &[0x21, 0, 0, 2, 7, 8],
        ] {
            let refused = Method::parse_overwrite(wrong);
            assert_eq!(refused, Err(Sense::INVALID_FIELD_IN_PARAMETERS), "{wrong:?}");
        }
        assert_eq!(
            Method::parse_overwrite(&[1, 0, 0, 0]),
            Err(Sense::PARAMETER_LIST_LENGTH)
        );
        for method in [expected, Method::BlockErase] {
            let operation = Sanitizing {
                method,
                may_exit: true,
            };
            assert_eq!(Sanitizing::parse(&operation.to_bytes()), Some(operation));
        }
        assert_eq!(Sanitizing::parse(&[]), None);
    }

    #[test]
    fn patterns_begin_anew_in_each_block() {
        let mut bytes = [0; 8];
        Method::fill(&[1, 2, 3], false, 4, &mut bytes);
        assert_eq!(bytes, [1, 2, 3, 1, 1, 2, 3, 1]);
        Method::fill(&[1, 2, 3], true, 4, &mut bytes);
        assert_eq!(bytes[..4], [0xfe, 0xfd, 0xfc, 0xfe]);
    }
}
