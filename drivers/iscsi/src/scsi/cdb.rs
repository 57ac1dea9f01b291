//! Command descriptor blocks: bytes in, typed commands out (SBC-3 5, SPC-4 6).

use quarry_contract::Durability;

use super::{BlockRange, ByteCheck, Command, SanitizeAction, Sense};
use crate::pdu::{be16, be32, be64};
use crate::reservations::{InAction, Kind, OutAction};

fn fua(cdb: &[u8; 16]) -> Durability {
    if cdb[1] & 0x08 != 0 {
        Durability::Flushed
    } else {
        Durability::Cached
    }
}

/// Refuses protection information, which no unit here has (SBC-3 4.22: RDPROTECT, WRPROTECT, VRPROTECT).
fn unprotected(cdb: &[u8; 16]) -> Result<(), Sense> {
    if cdb[1] & 0xe0 != 0 {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    Ok(())
}

/// Reads LBA and length of the 10, 12 and 16 byte forms.
fn range(cdb: &[u8; 16]) -> BlockRange {
    match cdb[0] >> 5 {
        1 | 2 => BlockRange {
            lba: be32(cdb, 2).into(),
            blocks: be16(cdb, 7).into(),
        },
        5 => BlockRange {
            lba: be32(cdb, 2).into(),
            blocks: be32(cdb, 6),
        },
        _ => BlockRange {
            lba: be64(cdb, 2),
            blocks: be32(cdb, 10),
        },
    }
}

/// Reads LBA and length of the 6 byte form, in which a length of 0 means 256 (SBC-3 5.10).
fn range6(cdb: &[u8; 16]) -> BlockRange {
    BlockRange {
        lba: (be32(cdb, 0) & 0x001f_ffff).into(),
        blocks: match cdb[4] {
            0 => 256,
            blocks => blocks.into(),
        },
    }
}

/// Reads a SANITIZE (SBC-3 5.18.1).
fn sanitize(cdb: &[u8; 16]) -> Result<Command, Sense> {
    let invalid = Sense::INVALID_FIELD_IN_CDB;
    let action = SanitizeAction::parse(cdb[1] & 0x1f).ok_or(invalid)?;
    let parameter_bytes = u32::from(be16(cdb, 7));
    // Who destroys data shall have meant it: what is reserved is zero, and only OVERWRITE has a list.
    let reserved = cdb[1] & 0x40 | cdb[2] | cdb[3] | cdb[4] | cdb[5] | cdb[6];
    if reserved != 0 || action != SanitizeAction::Overwrite && parameter_bytes != 0 {
        return Err(invalid);
    }
    Ok(Command::Sanitize {
        action,
        immediate: cdb[1] & 0x80 != 0,
        may_exit: cdb[1] & 0x20 != 0,
        parameter_bytes,
    })
}

/// Reads a PERSISTENT RESERVE OUT (SPC-4 6.16.1).
fn persistent_out(cdb: &[u8; 16]) -> Result<Command, Sense> {
    let action = OutAction::parse(cdb[1] & 0x1f).ok_or(Sense::INVALID_FIELD_IN_CDB)?;
    let kind = match action.has_kind() {
        // The scope is the unit; others are obsolete.
        true if cdb[2] >> 4 != 0 => return Err(Sense::INVALID_FIELD_IN_CDB),
        true => Some(Kind::parse(cdb[2] & 0x0f).ok_or(Sense::INVALID_FIELD_IN_CDB)?),
        false => None,
    };
    Ok(Command::PersistentOut {
        action,
        kind,
        parameter_bytes: be32(cdb, 5),
    })
}

impl Command {
    /// Parses a CDB.
    ///
    /// # Errors
    /// The sense data to answer with: an unknown operation code, or a field with a value that is not supported.
    pub fn parse(cdb: &[u8; 16]) -> Result<Self, Sense> {
        // NACA in the control byte asks for ACA, which is not supported (SAM-5 5.2).
        let control = match cdb[0] >> 5 {
            0 => cdb[5],
            1 | 2 => cdb[9],
            5 => cdb[11],
            _ => cdb[15],
        };
        let command = Self::parse_fields(cdb)?;
        if control & 0x04 != 0 {
            return Err(Sense::INVALID_FIELD_IN_CDB);
        }
        Ok(command)
    }

    fn parse_fields(cdb: &[u8; 16]) -> Result<Self, Sense> {
        Ok(match cdb[0] {
            0x00 => Command::TestUnitReady,
            0x03 => Command::RequestSense {
                descriptor_format: cdb[1] & 0x01 != 0,
                allocation: cdb[4].into(),
            },
            0x08 => Command::Read(range6(cdb)),
            0x0a => Command::Write {
                range: range6(cdb),
                durability: Durability::Cached,
            },
            0x12 => {
                let vital_page = (cdb[1] & 0x01 != 0).then_some(cdb[2]);
                // A page code without EVPD, and the obsolete CMDDT (SPC-4 6.6.1).
                if (vital_page.is_none() && cdb[2] != 0) || cdb[1] & 0x02 != 0 {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                }
                Command::Inquiry {
                    vital_page,
                    allocation: be16(cdb, 3).into(),
                }
            }
            0x1a | 0x5a => Command::ModeSense {
                ten: cdb[0] == 0x5a,
                block_descriptor: cdb[1] & 0x08 == 0,
                control: cdb[2] >> 6,
                page: cdb[2] & 0x3f,
                subpage: cdb[3],
                allocation: if cdb[0] == 0x5a {
                    be16(cdb, 7).into()
                } else {
                    cdb[4].into()
                },
            },
            0x15 | 0x55 => {
                // Without PF the pages have a format of the vendor's own, and there is nothing to save them to
                // (SPC-4 6.9).
                if cdb[1] & 0x10 == 0 || cdb[1] & 0x01 != 0 {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                }
                Command::ModeSelect {
                    ten: cdb[0] == 0x55,
                    parameter_bytes: if cdb[0] == 0x55 {
                        be16(cdb, 7).into()
                    } else {
                        cdb[4].into()
                    },
                }
            }
            // Of a third party or a part of the unit, both obsolete (SPC-2 7.21.1).
            0x16 | 0x17 if cdb[1] & 0x11 != 0 => return Err(Sense::INVALID_FIELD_IN_CDB),
            0x16 => Command::ReserveUnit,
            0x17 => Command::ReleaseUnit,
            // A change of the power condition is like a stop here: without effect (SBC-3 5.20).
            0x1b => Command::StartStopUnit {
                start: cdb[4] & 0xf1 == 0x01,
            },
            0x1e => Command::PreventRemoval {
                prevent: cdb[4] & 0x03 != 0,
            },
            0x25 => {
                // LBA without PMI, both obsolete (SBC-3 5.15.1).
                if cdb[8] & 0x01 == 0 && be32(cdb, 2) != 0 {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                }
                Command::ReadCapacity10
            }
            0x28 | 0xa8 | 0x88 => {
                unprotected(cdb)?;
                Command::Read(range(cdb))
            }
            0x2a | 0xaa | 0x8a => {
                unprotected(cdb)?;
                Command::Write {
                    range: range(cdb),
                    durability: fua(cdb),
                }
            }
            0x2f | 0xaf | 0x8f => {
                unprotected(cdb)?;
                Command::Verify {
                    range: range(cdb),
                    check: match cdb[1] >> 1 & 0x03 {
                        0 => ByteCheck::MediumOnly,
                        1 => ByteCheck::Whole,
                        3 => ByteCheck::OneBlock,
                        _ => return Err(Sense::INVALID_FIELD_IN_CDB),
                    },
                }
            }
            0x2e | 0xae | 0x8e => {
                unprotected(cdb)?;
                Command::WriteAndVerify {
                    range: range(cdb),
                    compare: match cdb[1] >> 1 & 0x03 {
                        0 => false,
                        1 => true,
                        _ => return Err(Sense::INVALID_FIELD_IN_CDB),
                    },
                }
            }
            0x89 => {
                unprotected(cdb)?;
                Command::CompareAndWrite {
                    range: BlockRange {
                        lba: be64(cdb, 2),
                        blocks: cdb[13].into(),
                    },
                    durability: fua(cdb),
                }
            }
            0x8b => {
                unprotected(cdb)?;
                Command::OrWrite {
                    range: range(cdb),
                    durability: fua(cdb),
                }
            }
            0x9c => {
                unprotected(cdb)?;
                // No boundaries are offered (SBC-4, WRITE ATOMIC (16): ATOMIC BOUNDARY).
                if be16(cdb, 10) != 0 {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                }
                Command::WriteAtomic {
                    range: BlockRange {
                        lba: be64(cdb, 2),
                        blocks: be16(cdb, 12).into(),
                    },
                    durability: fua(cdb),
                }
            }
            0x83 if cdb[1] & 0x1f == 0x00 => Command::ExtendedCopy {
                parameter_bytes: be32(cdb, 10),
            },
            0x84 if cdb[1] & 0x1f == 0x00 => Command::CopyStatus {
                id: cdb[2],
                allocation: be32(cdb, 10),
            },
            0x84 if cdb[1] & 0x1f == 0x03 => Command::CopyParameters {
                allocation: be32(cdb, 10),
            },
            0x34 | 0x90 => Command::PreFetch(range(cdb)),
            0x35 | 0x91 => Command::SynchronizeCache(range(cdb)),
            0x37 => Command::ReadDefects {
                long: false,
                lists: cdb[2] & 0x1f,
                allocation: be16(cdb, 7).into(),
            },
            0xb7 => Command::ReadDefects {
                long: true,
                lists: cdb[1] & 0x1f,
                allocation: be32(cdb, 6),
            },
            0x48 => sanitize(cdb)?,
            0x5e => Command::PersistentIn {
                action: InAction::parse(cdb[1] & 0x1f).ok_or(Sense::INVALID_FIELD_IN_CDB)?,
                allocation: be16(cdb, 7).into(),
            },
            0x5f => persistent_out(cdb)?,
            0x41 | 0x93 => {
                unprotected(cdb)?;
                let (unmap, anchor) = (cdb[1] & 0x08 != 0, cdb[1] & 0x10 != 0);
                let no_data = cdb[0] == 0x93 && cdb[1] & 0x01 != 0;
                // Anchored blocks and the obsolete LBDATA and PBDATA are not supported (SBC-3 5.42).
                if anchor || cdb[1] & 0x06 != 0 {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                }
                Command::WriteSame {
                    range: range(cdb),
                    unmap,
                    no_data,
                }
            }
            0x42 => {
                if cdb[1] & 0x01 != 0 {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                }
                Command::Unmap {
                    parameter_bytes: be16(cdb, 7).into(),
                }
            }
            0x9e if cdb[1] & 0x1f == 0x10 => Command::ReadCapacity16 {
                allocation: be32(cdb, 10),
            },
            0x9e if cdb[1] & 0x1f == 0x12 => Command::GetLbaStatus {
                lba: be64(cdb, 2),
                allocation: be32(cdb, 10),
            },
            0xa0 => Command::ReportLuns {
                select: cdb[2],
                allocation: be32(cdb, 6),
            },
            0xa3 if cdb[1] & 0x1f == 0x0a => Command::PortGroups {
                extended: match cdb[1] >> 5 {
                    0 => false,
                    1 => true,
                    _ => return Err(Sense::INVALID_FIELD_IN_CDB.at_cdb_byte(1)),
                },
                allocation: be32(cdb, 6),
            },
            0xa3 if cdb[1] & 0x1f == 0x0c => Command::SupportedOpcodes {
                timeouts: cdb[2] & 0x80 != 0,
                options: cdb[2] & 0x07,
                opcode: cdb[3],
                service_action: be16(cdb, 4),
                allocation: be32(cdb, 6),
            },
            0xa3 if cdb[1] & 0x1f == 0x0d => Command::SupportedFunctions {
                allocation: be32(cdb, 6),
            },
            _ => return Err(Sense::INVALID_OPCODE),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cdb(bytes: &[u8]) -> [u8; 16] {
        let mut cdb = [0; 16];
        cdb[..bytes.len()].copy_from_slice(bytes);
        cdb
    }

    #[test]
    fn all_read_forms_parse_to_the_same_range() {
        let expected = Command::Read(BlockRange {
            lba: 0x010203,
            blocks: 0x20,
        });
        for bytes in [
            &[0x08, 0x01, 0x02, 0x03, 0x20, 0][..],
            &[0x28, 0, 0, 0x01, 0x02, 0x03, 0, 0, 0x20, 0],
            &[0xa8, 0, 0, 0x01, 0x02, 0x03, 0, 0, 0, 0x20, 0, 0],
            &[0x88, 0, 0, 0, 0, 0, 0, 0x01, 0x02, 0x03, 0, 0, 0, 0x20, 0, 0],
        ] {
            assert_eq!(Command::parse(&cdb(bytes)), Ok(expected), "{bytes:x?}");
        }
        let whole = Command::parse(&cdb(&[0x08, 0, 0, 0, 0, 0]));
        assert_eq!(whole, Ok(Command::Read(BlockRange { lba: 0, blocks: 256 })));
    }

    #[test]
    fn force_unit_access_is_seen_where_the_form_has_it() {
        let durability = |bytes: &[u8]| match Command::parse(&cdb(bytes)) {
            Ok(Command::Write { durability, .. }) => durability,
            other => panic!("{other:?}"),
        };
        assert_eq!(durability(&[0x2a, 0x08]), Durability::Flushed);
        assert_eq!(durability(&[0x8a, 0x08]), Durability::Flushed);
        assert_eq!(durability(&[0x2a, 0x10]), Durability::Cached);
        assert_eq!(durability(&[0x0a, 0x08]), Durability::Cached);
    }

    #[test]
    fn fields_that_ask_for_what_is_not_there_are_refused() {
        let refused = [
            &[0x28, 0x20][..],
            &[0x8a, 0xe0],
            &[0x2f, 0x04],
            &[0x42, 0x01],
            &[0x41, 0x10],
            &[0x93, 0x04],
            &[0x12, 0x00, 0x83],
            &[0x00, 0, 0, 0, 0, 0x04],
            &[0x25, 0, 0, 0, 0, 1],
            &[0x15, 0x11],
            &[0x16, 0x10],
            &[0x5e, 0x04],
            &[0x5f, 0x08],
            &[0x5f, 0x01, 0x02],
            &[0x5f, 0x01, 0x11],
            &[0x2e, 0x06],
            &[0x48, 0x03],
            &[0x48, 0x42],
            &[0x48, 0x02, 0, 0, 1],
            &[0x48, 0x02, 0, 0, 0, 0, 0, 0, 8],
            &[0x89, 0x20],
            &[0x8b, 0x80],
        ];
        for bytes in refused {
            assert_eq!(
                Command::parse(&cdb(bytes)),
                Err(Sense::INVALID_FIELD_IN_CDB),
                "{bytes:x?}"
            );
        }
        for opcode in [0x02, 0x56, 0x86, 0xff] {
            assert_eq!(Command::parse(&cdb(&[opcode])), Err(Sense::INVALID_OPCODE));
        }
    }
}
