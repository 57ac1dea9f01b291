//! Sense data: why a command failed (SPC-4 4.5).

use quarry_contract::IoError;

/// A sense key with its additional sense code and qualifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense {
    /// The sense key.
    pub key: u8,
    /// The additional sense code.
    pub asc: u8,
    /// The additional sense code qualifier.
    pub ascq: u8,
    /// The INFORMATION field, where the key defines one: of a MEDIUM ERROR the logical block, of a MISCOMPARE the byte.
    pub information: Option<u64>,
    /// The SENSE KEY SPECIFIC field with SKSV, where there is more to say.
    pub specific: Option<[u8; 3]>,
}

impl Sense {
    pub const NONE: Sense = Sense::new(0x00, 0x00, 0x00);
    pub const UNRECOVERED_READ: Sense = Sense::new(0x03, 0x11, 0x00);
    pub const SANITIZE_FAILED: Sense = Sense::new(0x03, 0x31, 0x03);
    pub const SANITIZE_IN_PROGRESS: Sense = Sense::new(0x02, 0x04, 0x1b);
    pub const WRITE_ERROR: Sense = Sense::new(0x03, 0x0c, 0x00);
    pub const INTERNAL_TARGET_FAILURE: Sense = Sense::new(0x04, 0x44, 0x00);
    pub const PARAMETER_LIST_LENGTH: Sense = Sense::new(0x05, 0x1a, 0x00);
    pub const INVALID_OPCODE: Sense = Sense::new(0x05, 0x20, 0x00);
    pub const LBA_OUT_OF_RANGE: Sense = Sense::new(0x05, 0x21, 0x00);
    pub const INVALID_FIELD_IN_CDB: Sense = Sense::new(0x05, 0x24, 0x00);
    pub const LUN_NOT_SUPPORTED: Sense = Sense::new(0x05, 0x25, 0x00);
    pub const INVALID_FIELD_IN_PARAMETERS: Sense = Sense::new(0x05, 0x26, 0x00);
    pub const TOO_MANY_TARGET_DESCRIPTORS: Sense = Sense::new(0x05, 0x26, 0x06);
    pub const UNSUPPORTED_TARGET_DESCRIPTOR: Sense = Sense::new(0x05, 0x26, 0x07);
    pub const TOO_MANY_SEGMENT_DESCRIPTORS: Sense = Sense::new(0x05, 0x26, 0x08);
    pub const UNSUPPORTED_SEGMENT_DESCRIPTOR: Sense = Sense::new(0x05, 0x26, 0x09);
    pub const INLINE_DATA_LENGTH: Sense = Sense::new(0x05, 0x26, 0x0b);
    pub const INVALID_RELEASE: Sense = Sense::new(0x05, 0x26, 0x04);
    pub const INSUFFICIENT_REGISTRATION_RESOURCES: Sense = Sense::new(0x05, 0x55, 0x04);
    pub const SAVING_NOT_SUPPORTED: Sense = Sense::new(0x05, 0x39, 0x00);
    pub const POWER_ON: Sense = Sense::new(0x06, 0x29, 0x00);
    pub const DEVICE_RESET: Sense = Sense::new(0x06, 0x29, 0x03);
    pub const MODE_PARAMETERS_CHANGED: Sense = Sense::new(0x06, 0x2a, 0x01);
    pub const RESERVATIONS_PREEMPTED: Sense = Sense::new(0x06, 0x2a, 0x03);
    pub const RESERVATIONS_RELEASED: Sense = Sense::new(0x06, 0x2a, 0x04);
    pub const REGISTRATIONS_PREEMPTED: Sense = Sense::new(0x06, 0x2a, 0x05);
    pub const CAPACITY_CHANGED: Sense = Sense::new(0x06, 0x2a, 0x09);
    pub const COMMANDS_CLEARED: Sense = Sense::new(0x06, 0x2f, 0x00);
    pub const WRITE_PROTECTED: Sense = Sense::new(0x07, 0x27, 0x00);
    pub const SPACE_ALLOCATION_FAILED: Sense = Sense::new(0x07, 0x27, 0x07);
    /// A segment that cannot be copied.
    pub const COPY_ABORTED: Sense = Sense::new(0x0a, 0x00, 0x00);
    /// A copy source or destination that this unit is not.
    pub const UNREACHABLE_COPY_TARGET: Sense = Sense::new(0x0a, 0x08, 0x04);
    /// DATA PHASE ERROR of an aborted command.
    pub const DATA_PHASE_ERROR: Sense = Sense::new(0x0b, 0x4b, 0x00);
    /// PROTOCOL SERVICE CRC ERROR (RFC 7143 11.4.7.2).
    pub const DATA_DIGEST: Sense = Sense::new(0x0b, 0x47, 0x05);
    /// INCORRECT AMOUNT OF DATA (RFC 7143 11.4.7.2).
    pub const INCORRECT_AMOUNT_OF_DATA: Sense = Sense::new(0x0b, 0x0c, 0x0d);
    pub const MISCOMPARE: Sense = Sense::new(0x0e, 0x1d, 0x00);

    const fn new(key: u8, asc: u8, ascq: u8) -> Self {
        Self {
            key,
            asc,
            ascq,
            information: None,
            specific: None,
        }
    }

    /// Points to the byte of the CDB that is wrong (SPC-4 4.5.2.4.2).
    pub const fn at_cdb_byte(self, byte: u8) -> Self {
        Self {
            specific: Some([0xc0, 0, byte]),
            ..self
        }
    }

    /// Says how much is done, in parts of 65536 (SPC-4 4.5.2.4.4).
    pub const fn with_progress(self, progress: u16) -> Self {
        let [high, low] = progress.to_be_bytes();
        Self {
            specific: Some([0x80, high, low]),
            ..self
        }
    }

    /// Sets the INFORMATION field.
    pub const fn with_information(self, information: u64) -> Self {
        Self {
            information: Some(information),
            ..self
        }
    }

    /// Tells an initiator why the device failed its read or write.
    pub fn of_io_error(error: &IoError, writing: bool) -> Self {
        match error {
            IoError::OutOfRange { .. } => Sense::LBA_OUT_OF_RANGE,
            IoError::ReadOnly => Sense::WRITE_PROTECTED,
            IoError::NoSpace => Sense::SPACE_ALLOCATION_FAILED,
            IoError::Medium { .. } if writing => Sense::WRITE_ERROR,
            // A write that covers a part of a block reads it first.
            IoError::Medium { .. } | IoError::Corrupt { .. } => Sense::UNRECOVERED_READ,
            IoError::Closed => Sense::LUN_NOT_SUPPORTED,
            // Misaligned is our own mistake; Stopped and what may come is the device's.
            _ => Sense::INTERNAL_TARGET_FAILURE,
        }
    }

    /// Encodes in the fixed format, current (SPC-4 4.5.3). Information that does not fit its four bytes is not valid there.
    pub fn fixed(&self) -> [u8; 18] {
        let mut data = [0; 18];
        data[0] = 0x70;
        if let Some(information) = self.information.and_then(|long| u32::try_from(long).ok()) {
            data[0] |= 0x80;
            data[3..7].copy_from_slice(&information.to_be_bytes());
        }
        data[2] = self.key;
        data[7] = 10;
        data[12] = self.asc;
        data[13] = self.ascq;
        if let Some(specific) = self.specific {
            data[15..].copy_from_slice(&specific);
        }
        data
    }

    /// Encodes in the descriptor format, current (SPC-4 4.5.2).
    pub fn descriptor(&self) -> Vec<u8> {
        let mut data = vec![0x72, self.key, self.asc, self.ascq, 0, 0, 0, 0];
        if let Some(information) = self.information {
            data.extend_from_slice(&[0x00, 0x0a, 0x80, 0]);
            data.extend_from_slice(&information.to_be_bytes());
        }
        if let Some([first, second, third]) = self.specific {
            data.extend_from_slice(&[0x02, 0x06, 0, 0, first, second, third, 0]);
        }
        data[7] = (data.len() - 8) as u8;
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_errors_become_the_sense_an_initiator_acts_on() {
        let medium = IoError::Medium {
            detail: String::new(),
        };
        let corrupt = IoError::Corrupt {
            offset: 4096,
            detail: String::new(),
        };
        let cases = [
            (IoError::NoSpace, true, (0x07, 0x27, 0x07)),
            (IoError::ReadOnly, true, (0x07, 0x27, 0x00)),
            (medium.clone(), false, (0x03, 0x11, 0x00)),
            (medium, true, (0x03, 0x0c, 0x00)),
            (corrupt.clone(), false, (0x03, 0x11, 0x00)),
            (corrupt, true, (0x03, 0x11, 0x00)),
            (
                IoError::Stopped {
                    reason: String::new(),
                },
                true,
                (0x04, 0x44, 0x00),
            ),
            (IoError::Closed, false, (0x05, 0x25, 0x00)),
        ];
        for (error, writing, (key, asc, ascq)) in cases {
            let sense = Sense::of_io_error(&error, writing);
            assert_eq!((sense.key, sense.asc, sense.ascq), (key, asc, ascq), "{error}");
        }
    }

    #[test]
    fn fixed_format_puts_each_part_in_its_place() {
        let data = Sense::MISCOMPARE.with_information(0x0102).fixed();
        assert_eq!((data[0], data[2], data[7]), (0xf0, 0x0e, 10));
        assert_eq!((data[12], data[13]), (0x1d, 0x00));
        assert_eq!(&data[3..7], &[0, 0, 1, 2]);
        assert_eq!(&data[15..], &[0, 0, 0]);
        let data = Sense::INVALID_FIELD_IN_CDB.at_cdb_byte(2).fixed();
        assert_eq!((data[0], &data[15..]), (0x70, &[0xc0, 0, 2][..]));
    }

    #[test]
    fn information_that_is_too_long_for_the_fixed_format_is_in_the_other() {
        let bad = Sense::UNRECOVERED_READ.with_information(0x1_0203_0405);
        let fixed = bad.fixed();
        assert_eq!((fixed[0], &fixed[3..7]), (0x70, &[0; 4][..]));
        let mut expected = vec![0x72, 0x03, 0x11, 0x00, 0, 0, 0, 12];
        expected.extend_from_slice(&[0x00, 0x0a, 0x80, 0, 0, 0, 0, 1, 2, 3, 4, 5]);
        assert_eq!(bad.descriptor(), expected);
    }

    #[test]
    fn descriptor_format_tells_the_progress() {
        let sense = Sense::SANITIZE_IN_PROGRESS.with_progress(0x1234);
        let mut expected = vec![0x72, 0x02, 0x04, 0x1b, 0, 0, 0, 8];
        expected.extend_from_slice(&[0x02, 0x06, 0, 0, 0x80, 0x12, 0x34, 0]);
        assert_eq!(sense.descriptor(), expected);
        assert_eq!(Sense::NONE.descriptor(), [0x72, 0, 0, 0, 0, 0, 0, 0]);
    }
}
