//! The commands this target knows, and what is true of each as a whole.

use quarry_contract::Durability;

use super::SanitizeAction;
use crate::reservations::{InAction, Kind, OutAction, Touch};

/// A run of logical blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRange {
    /// The first.
    pub lba: u64,
    /// How many.
    pub blocks: u32,
}

/// What VERIFY compares with (SBC-3 5.29: BYTCHK).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteCheck {
    /// Nothing: the medium is only read.
    MediumOnly,
    /// The data sent, byte by byte.
    Whole,
    /// One block sent, with each block of the range.
    OneBlock,
}

/// A command this target knows: each variant is the SCSI command of its name, its fields those of the CDB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    TestUnitReady,
    RequestSense {
        descriptor_format: bool,
        allocation: u32,
    },
    Inquiry {
        vital_page: Option<u8>,
        allocation: u32,
    },
    ModeSense {
        ten: bool,
        block_descriptor: bool,
        control: u8,
        page: u8,
        subpage: u8,
        allocation: u32,
    },
    ModeSelect {
        ten: bool,
        parameter_bytes: u32,
    },
    ReserveUnit,
    ReleaseUnit,
    PersistentIn {
        action: InAction,
        allocation: u32,
    },
    PersistentOut {
        action: OutAction,
        kind: Option<Kind>,
        parameter_bytes: u32,
    },
    ReadDefects {
        long: bool,
        lists: u8,
        allocation: u32,
    },
    ReadCapacity10,
    ReadCapacity16 {
        allocation: u32,
    },
    GetLbaStatus {
        lba: u64,
        allocation: u32,
    },
    ReportLuns {
        select: u8,
        allocation: u32,
    },
    StartStopUnit {
        start: bool,
    },
    PreventRemoval {
        prevent: bool,
    },
    SupportedOpcodes {
        timeouts: bool,
        options: u8,
        opcode: u8,
        service_action: u16,
        allocation: u32,
    },
    PortGroups {
        extended: bool,
        allocation: u32,
    },
    SupportedFunctions {
        allocation: u32,
    },
    PreFetch(BlockRange),
    Read(BlockRange),
    Write {
        range: BlockRange,
        durability: Durability,
    },
    Verify {
        range: BlockRange,
        check: ByteCheck,
    },
    /// The range alone; the data is two times as long.
    CompareAndWrite {
        range: BlockRange,
        durability: Durability,
    },
    OrWrite {
        range: BlockRange,
        durability: Durability,
    },
    /// ATOMIC BOUNDARY is zero: the range is one atomic write.
    WriteAtomic {
        range: BlockRange,
        durability: Durability,
    },
    WriteAndVerify {
        range: BlockRange,
        compare: bool,
    },
    ExtendedCopy {
        parameter_bytes: u32,
    },
    CopyStatus {
        id: u8,
        allocation: u32,
    },
    CopyParameters {
        allocation: u32,
    },
    Sanitize {
        action: SanitizeAction,
        immediate: bool,
        may_exit: bool,
        parameter_bytes: u32,
    },
    SynchronizeCache(BlockRange),
    Unmap {
        parameter_bytes: u32,
    },
    WriteSame {
        range: BlockRange,
        unmap: bool,
        no_data: bool,
    },
}

impl Command {
    /// Tells whether the command is answered although a unit attention is pending, which stays pending
    /// (SAM-5 5.14).
    pub fn passes_unit_attention(&self) -> bool {
        matches!(
            self,
            Command::Inquiry { .. } | Command::ReportLuns { .. } | Command::RequestSense { .. }
        )
    }

    /// Tells whether the command is carried out while the unit is being sanitized (SBC-3 4.11.2).
    pub fn passes_sanitizing(&self) -> bool {
        matches!(
            self,
            Command::Inquiry { .. }
                | Command::ReportLuns { .. }
                | Command::RequestSense { .. }
                | Command::SupportedOpcodes { .. }
                | Command::SupportedFunctions { .. }
                | Command::PortGroups { .. }
                | Command::PersistentIn { .. }
        )
    }

    /// Tells whether the command changes the medium.
    pub fn writes(&self) -> bool {
        matches!(
            self,
            Command::Write { .. }
                | Command::Unmap { .. }
                | Command::WriteSame { .. }
                | Command::CompareAndWrite { .. }
                | Command::OrWrite { .. }
                | Command::WriteAtomic { .. }
                | Command::WriteAndVerify { .. }
                | Command::ExtendedCopy { .. }
                | Command::Sanitize { .. }
        )
    }

    /// Tells whether the command decides what others may do with the unit.
    pub fn governs(&self) -> bool {
        matches!(
            self,
            Command::ModeSelect { .. } | Command::ReserveUnit | Command::PersistentOut { .. }
        )
    }

    /// Tells what the command does that a reservation may keep out (SPC-4 table 66, SBC-3 table 13). The commands
    /// that deal with reservations find out for themselves.
    pub fn touch(&self) -> Touch {
        match self {
            Command::Inquiry { .. }
            | Command::ReportLuns { .. }
            | Command::RequestSense { .. }
            | Command::PortGroups { .. }
            | Command::ReadCapacity10
            | Command::ReadCapacity16 { .. }
            | Command::ReserveUnit
            | Command::ReleaseUnit
            | Command::PersistentOut { .. }
            | Command::PreventRemoval { prevent: false } => Touch::Nothing,
            Command::TestUnitReady
            | Command::ModeSense { .. }
            | Command::PersistentIn { .. }
            | Command::SupportedOpcodes { .. }
            | Command::SupportedFunctions { .. }
            | Command::CopyStatus { .. }
            | Command::CopyParameters { .. }
            | Command::StartStopUnit { start: true } => Touch::Status,
            Command::Read(_)
            | Command::Verify { .. }
            | Command::PreFetch(_)
            | Command::GetLbaStatus { .. }
            | Command::ReadDefects { .. } => Touch::Reads,
            Command::Write { .. }
            | Command::WriteSame { .. }
            | Command::Unmap { .. }
            | Command::CompareAndWrite { .. }
            | Command::OrWrite { .. }
            | Command::WriteAtomic { .. }
            | Command::WriteAndVerify { .. }
            | Command::ExtendedCopy { .. }
            | Command::Sanitize { .. }
            | Command::SynchronizeCache(_)
            | Command::ModeSelect { .. }
            | Command::StartStopUnit { start: false }
            | Command::PreventRemoval { prevent: true } => Touch::Writes,
        }
    }
}
