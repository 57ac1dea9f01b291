//! The SCSI side: commands parsed from their CDBs, and the answers that need no I/O (SPC-4, SBC-3).
//!
//! The logical unit is LUN 0, the only one of its target. SAM does not ask for more, every initiator accepts it,
//! and INQUIRY to any other LUN says that nothing can be there.

mod cdb;
mod command;
mod copy;
mod defects;
mod inquiry;
mod lba_status;
mod mode;
mod opcodes;
mod port_groups;
mod sanitize;
mod sense;
mod unit;

pub use command::{BlockRange, ByteCheck, Command};
pub use copy::{CopyRun, CopyStatus, MAX_LIST_BYTES as MAX_COPY_LIST_BYTES, copy_status, parse_copy_list};
pub use lba_status::lba_status;
pub use mode::ModePages;
pub use port_groups::TARGET_PORT;
pub use sanitize::{Method, SanitizeAction, Sanitizing};
pub use sense::Sense;
pub use unit::{LogicalUnit, UnitIdentity, parse_unmap_list, report_luns, sense_data, unsupported_inquiry};

/// SCSI status codes (SAM-5 5.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Good = 0x00,
    /// Done or failed, with sense data.
    CheckCondition = 0x02,
    /// A reservation keeps the command out.
    ReservationConflict = 0x18,
}

/// Why a command is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// CHECK CONDITION with this sense data.
    Check(Sense),
    /// RESERVATION CONFLICT.
    Conflict,
}

impl From<Sense> for Failure {
    fn from(sense: Sense) -> Self {
        Failure::Check(sense)
    }
}

/// The LUN field of LUN 0, in the peripheral and the flat addressing method (SAM-5 4.7).
pub fn is_lun_zero(lun: u64) -> bool {
    lun == 0 || lun == 0x4000 << 48
}
