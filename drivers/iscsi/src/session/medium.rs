//! What a normal session works on, and what each command needs of it.

use std::sync::Arc;

use quarry_contract::{Access, Durability, Verb, ZeroMode};

use super::copy::CopyResults;
use super::task::{ListUse, Span, TwoPass, Work};
use crate::exports::{ConnectionAddress, Export};
use crate::nexus::Nexus;
use crate::pdu::ScsiCommand;
use crate::reservations::MAX_LIST_BYTES;
use crate::scsi::{BlockRange, ByteCheck, Command, Failure, LogicalUnit, ModePages, SanitizeAction, Sense};
use crate::scsi::{
    MAX_COPY_LIST_BYTES, is_lun_zero, parse_unmap_list, report_luns, sense_data, unsupported_inquiry,
};

/// The most data that a VERIFY compares with, in bytes: it is held in memory as a whole.
const MAX_COMPARE_BYTES: u32 = 1 << 20;

/// What comes before the pattern in a SANITIZE parameter list, in bytes (SBC-3 5.18.3).
const SANITIZE_HEADER_BYTES: u32 = 4;

/// What a normal session works on.
pub struct Medium {
    unit: LogicalUnit,
    export: Arc<Export>,
    nexus: Arc<Nexus>,
    tsih: u16,
    /// The reactor's queue of the device.
    queue: usize,
    address: ConnectionAddress,
}

/// What a command needs before it can be answered.
pub enum Plan {
    /// Nothing: this is its data.
    Reply(Vec<u8>),
    /// Work on the medium.
    Work {
        work: Work,
        span: Span,
        /// Data-Out bytes of use.
        wanted: u32,
        /// What the CDB would transfer, in bytes.
        command_bytes: u64,
    },
}

impl Medium {
    /// Joins a registered session with its reactor's queue.
    pub fn new(
        unit: LogicalUnit,
        export: Arc<Export>,
        (nexus, tsih): (Arc<Nexus>, u16),
        queue: usize,
        address: ConnectionAddress,
    ) -> Self {
        Self {
            unit,
            export,
            nexus,
            tsih,
            queue,
            address,
        }
    }

    /// Returns the export.
    pub fn export(&self) -> &Arc<Export> {
        &self.export
    }

    /// Returns the session's handle.
    pub fn tsih(&self) -> u16 {
        self.tsih
    }

    /// Returns the reactor's queue of the device.
    pub fn queue(&self) -> usize {
        self.queue
    }

    /// Returns where the session lives.
    pub fn address(&self) -> ConnectionAddress {
        self.address
    }

    /// Returns the target's name.
    pub fn target_name(&self) -> &str {
        &self.unit.identity().target_name
    }

    /// Returns the logical block, in bytes.
    pub fn block_bytes(&self) -> u32 {
        self.unit.block_bytes()
    }

    /// Returns what others may tell the session.
    pub fn nexus(&self) -> &Nexus {
        &self.nexus
    }

    /// Returns the unit as commands see it.
    pub fn unit(&self) -> &LogicalUnit {
        &self.unit
    }

    fn mode_pages(&self) -> ModePages {
        let software_write_protect = self.export.unit.is_write_protected();
        let read_only = self.nexus.access.get() == Access::ReadOnly || self.unit.device().is_read_only();
        ModePages {
            software_write_protect,
            write_protected: read_only || software_write_protect,
        }
    }

    /// Decides what a command needs.
    ///
    /// # Errors
    /// Why it is not carried out.
    pub fn plan(&self, request: &ScsiCommand, copies: &CopyResults) -> Result<Plan, Failure> {
        let command = Command::parse(&request.cdb);
        if !is_lun_zero(request.lun) {
            return absent_unit(command).map_err(Failure::from);
        }
        let passes_attention = command.as_ref().is_ok_and(Command::passes_unit_attention);
        if !passes_attention && let Some(attention) = self.nexus.take_attention() {
            return Err(attention.into());
        }
        let command = command?;
        if let Command::RequestSense {
            descriptor_format,
            allocation,
        } = command
            && let Some(attention) = self.nexus.take_attention()
        {
            let mut data = sense_data(attention, descriptor_format);
            data.truncate(allocation as usize);
            return Ok(Plan::Reply(data));
        }
        self.export.unit.admit(&self.nexus.port, command.touch())?;
        if let Some(state) = self.export.unit.sanitize_state() {
            let again = state == Sense::SANITIZE_FAILED && matches!(command, Command::Sanitize { .. });
            if let Command::RequestSense {
                descriptor_format,
                allocation,
            } = command
            {
                let mut data = sense_data(state, descriptor_format);
                data.truncate(allocation as usize);
                return Ok(Plan::Reply(data));
            }
            if !again && !command.passes_sanitizing() {
                return Err(state.into());
            }
        }
        let pages = self.mode_pages();
        // Who may only read must not keep others from writing.
        let may_only_read = self.nexus.access.get() == Access::ReadOnly;
        if command.writes() && pages.write_protected || command.governs() && may_only_read {
            return Err(Sense::WRITE_PROTECTED.into());
        }
        if let Some(answer) = self.answer_reservation(&command) {
            return answer.map(Plan::Reply);
        }
        if let Command::CopyStatus { id, allocation } = command {
            let mut data = copies
                .status(id)
                .ok_or(Sense::INVALID_FIELD_IN_CDB.at_cdb_byte(2))?;
            data.truncate(allocation as usize);
            return Ok(Plan::Reply(data));
        }
        let planned = match self.unit.answer(&command, pages) {
            Some(answer) => answer.map(Plan::Reply),
            None => self.plan_work(&command, request),
        };
        planned.map_err(Failure::from)
    }

    /// Answers the commands that deal with reservations and bring no data.
    fn answer_reservation(&self, command: &Command) -> Option<Result<Vec<u8>, Failure>> {
        let unit = &self.export.unit;
        let port = &self.nexus.port;
        Some(match *command {
            Command::ReserveUnit => unit.reserve(port).map(|()| Vec::new()),
            Command::ReleaseUnit => {
                unit.release(port);
                Ok(Vec::new())
            }
            Command::PersistentIn { action, allocation } => {
                let mut data = unit.reservations().report(action);
                data.truncate(allocation as usize);
                Ok(data)
            }
            _ => return None,
        })
    }

    /// How much of a session's reads the device is to have at a time, in bytes.
    pub(super) fn useful_in_flight_bytes(&self) -> usize {
        self.unit.limits().useful_in_flight_bytes as usize
    }

    pub(super) fn span(&self, range: BlockRange, bytes: u32) -> Span {
        let start = range.lba * u64::from(self.unit.block_bytes());
        Span::new(start, bytes, self.unit.limits().max_transfer_bytes)
    }

    fn plan_work(&self, command: &Command, request: &ScsiCommand) -> Result<Plan, Sense> {
        let block = self.unit.block_bytes();
        let readable = if request.read { request.expected_bytes } else { 0 };
        let writable = if request.write { request.expected_bytes } else { 0 };
        let none = Span::default();
        let plan = |work, span, wanted, command_bytes: u64| Plan::Work {
            work,
            span,
            wanted,
            command_bytes,
        };
        let two_pass = |kind, durability| Work::TwoPass {
            kind,
            durability,
            begun: 0,
        };
        Ok(match *command {
            Command::Read(range) => {
                self.unit.check_transfer(range)?;
                let bytes = range.blocks * block;
                // Whole blocks, as many as the initiator has room for; the residual tells the rest.
                let useful = bytes.min(readable).next_multiple_of(block);
                plan(Work::Read, self.span(range, useful), 0, bytes.into())
            }
            Command::Write { range, durability } => {
                self.unit.check_transfer(range)?;
                let bytes = range.blocks * block;
                let useful = bytes.min(writable - writable % block);
                let span = self.span(range, useful);
                plan(Work::Write(durability), span, useful, bytes.into())
            }
            Command::Verify { range, check } => {
                self.unit.check_transfer(range)?;
                let bytes = range.blocks * block;
                let sent = match check {
                    ByteCheck::MediumOnly => 0,
                    ByteCheck::Whole => bytes,
                    ByteCheck::OneBlock => block.min(bytes),
                };
                if sent > writable || sent > MAX_COMPARE_BYTES {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                }
                plan(Work::Verify(check), self.span(range, bytes), sent, sent.into())
            }
            Command::SynchronizeCache(range) => {
                self.unit.check_range(range)?;
                plan(Work::Flush, none, 0, 0)
            }
            Command::Unmap { parameter_bytes } => {
                let sent = parameter_bytes.min(writable);
                plan(Work::List(ListUse::Unmap), none, sent, parameter_bytes.into())
            }
            Command::ModeSelect { ten, parameter_bytes } => {
                let sent = parameter_bytes.min(writable);
                let work = Work::List(ListUse::ModeSelect { ten });
                plan(work, none, sent, parameter_bytes.into())
            }
            Command::PersistentOut {
                action,
                kind,
                parameter_bytes,
            } => {
                let sent = parameter_bytes.min(writable);
                if sent > MAX_LIST_BYTES {
                    return Err(Sense::PARAMETER_LIST_LENGTH);
                }
                let work = Work::List(ListUse::PersistentOut { action, kind });
                plan(work, none, sent, parameter_bytes.into())
            }
            Command::GetLbaStatus { lba, allocation } => {
                // One that is not there is out of range, as for a transfer (SBC-3 5.3).
                self.unit.check_range(BlockRange { lba, blocks: 1 })?;
                plan(Work::LookUp { lba, allocation }, none, 0, 0)
            }
            Command::Sanitize {
                action,
                immediate,
                may_exit,
                parameter_bytes,
            } => {
                let sent = parameter_bytes.min(writable);
                let longest = SANITIZE_HEADER_BYTES + block;
                let is_overwrite = action == SanitizeAction::Overwrite;
                if is_overwrite && (parameter_bytes <= SANITIZE_HEADER_BYTES || parameter_bytes > longest) {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                }
                let work = Work::List(ListUse::Sanitize {
                    action,
                    immediate,
                    may_exit,
                });
                plan(work, none, sent, parameter_bytes.into())
            }
            // No descriptors are no error (SPC-4 6.4.1).
            Command::ExtendedCopy { parameter_bytes: 0 } => Plan::Reply(Vec::new()),
            Command::ExtendedCopy { parameter_bytes } => {
                // Of a list that is too long, enough is read to say what there is too much of.
                let useful = parameter_bytes.min(writable).min(2 * MAX_COPY_LIST_BYTES);
                plan(Work::List(ListUse::Copy), none, useful, parameter_bytes.into())
            }
            Command::CompareAndWrite { range, durability } => {
                self.unit.check_compare(range)?;
                let bytes = range.blocks * block;
                // Anything but two times the range leaves open what is to be compared (SBC-3 5.2).
                if writable != 2 * bytes {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                }
                let work = two_pass(TwoPass::CompareAndWrite, durability);
                plan(work, self.span(range, bytes), writable, writable.into())
            }
            Command::OrWrite { range, durability } => {
                self.unit.check_transfer(range)?;
                let bytes = range.blocks * block;
                let useful = bytes.min(writable - writable % block);
                let work = two_pass(TwoPass::OrWrite, durability);
                plan(work, self.span(range, useful), useful, bytes.into())
            }
            Command::WriteAtomic { range, durability } => {
                self.unit.check_atomic(range)?;
                let bytes = range.blocks * block;
                // A part of it would be neither all nor nothing.
                if writable != bytes {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                }
                let span = self.span(range, bytes);
                plan(Work::Atomic(durability), span, bytes, bytes.into())
            }
            // What is verified is to be on the medium.
            Command::WriteAndVerify { range, compare } => {
                self.unit.check_transfer(range)?;
                let bytes = range.blocks * block;
                let useful = bytes.min(writable - writable % block);
                let work = two_pass(TwoPass::WriteAndVerify { compare }, Durability::Flushed);
                plan(work, self.span(range, useful), useful, bytes.into())
            }
            Command::WriteSame {
                range,
                unmap,
                no_data,
            } => {
                self.unit.check_write_same(range)?;
                if no_data {
                    let verbs = vec![self.zeroes(range, unmap)];
                    plan(Work::Verbs(verbs), none, 0, 0)
                } else if writable != block {
                    return Err(Sense::INVALID_FIELD_IN_CDB);
                } else {
                    plan(Work::SameBlock { range, unmap }, none, block, block.into())
                }
            }
            // The others were answered without work.
            _ => return Err(Sense::INVALID_OPCODE),
        })
    }

    pub(super) fn zeroes(&self, range: BlockRange, unmap: bool) -> Verb {
        let block = u64::from(self.unit.block_bytes());
        Verb::WriteZeroes {
            offset: range.lba * block,
            length: u64::from(range.blocks) * block,
            mode: if unmap {
                ZeroMode::MayUnmap
            } else {
                ZeroMode::KeepMapped
            },
        }
    }

    /// Turns an UNMAP list into requests (SBC-3 5.28). Nothing is unmapped unless every range is good.
    pub(super) fn discards(&self, list: &[u8]) -> Result<Vec<Verb>, Sense> {
        let block = u64::from(self.unit.block_bytes());
        let ranges = parse_unmap_list(list)?;
        for range in &ranges {
            self.unit.check_range(*range)?;
        }
        let wanted = ranges.iter().filter(|range| range.blocks > 0);
        Ok(wanted
            .map(|range| Verb::Discard {
                offset: range.lba * block,
                length: u64::from(range.blocks) * block,
            })
            .collect())
    }
}

/// Answers for a LUN that has no unit (SAM-5 4.7.4, SPC-4 6.6.2).
fn absent_unit(command: Result<Command, Sense>) -> Result<Plan, Sense> {
    match command {
        Ok(Command::Inquiry {
            vital_page: None,
            allocation,
        }) => Ok(Plan::Reply(unsupported_inquiry(allocation))),
        Ok(Command::ReportLuns { select, allocation }) => {
            let mut data = report_luns(select)?;
            data.truncate(allocation as usize);
            Ok(Plan::Reply(data))
        }
        Ok(Command::RequestSense {
            descriptor_format,
            allocation,
        }) => {
            let mut data = sense_data(Sense::LUN_NOT_SUPPORTED, descriptor_format);
            data.truncate(allocation as usize);
            Ok(Plan::Reply(data))
        }
        _ => Err(Sense::LUN_NOT_SUPPORTED),
    }
}
