//! The logical unit: its names, its size, and the answers that need no I/O.

use std::sync::Arc;

use quarry_contract::{BlockDevice, DeviceLimits, VolumeId};
use sha2::{Digest, Sha256};

use super::copy::operating_parameters;
use super::mode::{ModePages, ModeRequest, mode_parameters, parse_mode_list};
use super::{BlockRange, Command, Sense, defects, inquiry, opcodes, port_groups};
use crate::pdu::{be16, be32, be64};

/// The longest data of one command, in bytes; told in VPD page B0h.
pub const MAX_TRANSFER_BYTES: u32 = 32 << 20;

/// The most blocks that one UNMAP may cover.
pub const MAX_UNMAP_BLOCKS: u32 = 1 << 20;

/// The most that one WRITE SAME may cover, in bytes.
pub const MAX_WRITE_SAME_BYTES: u32 = 1 << 30;

/// The most blocks that COMPARE AND WRITE may compare: what its length field holds.
pub const MAX_COMPARE_BLOCKS: u8 = u8::MAX;

/// The most descriptors in an UNMAP parameter list.
pub const MAX_UNMAP_DESCRIPTORS: u32 = 256;

/// Turns bytes into logical blocks.
pub(super) fn blocks_of(bytes: u32, block_bytes: u32) -> u32 {
    bytes / block_bytes
}

/// Returns how long a WRITE ATOMIC may be, in logical blocks; 0 where there is none.
pub(super) fn atomic_blocks(limits: &DeviceLimits) -> u32 {
    blocks_of(
        limits.atomic_write_bytes.min(MAX_TRANSFER_BYTES),
        limits.logical_block_bytes,
    )
}

/// By what names initiators know a unit: all of them follow from the volume's id (contract T2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitIdentity {
    /// The iSCSI name of the target.
    pub target_name: String,
    /// The unit serial number: the volume's id.
    pub serial: String,
    /// An NAA IEEE Registered Extended designator (SPC-4 7.8.6.6.5).
    pub naa: [u8; 16],
}

impl UnitIdentity {
    /// Derives the names of a volume.
    pub fn of(volume: VolumeId, target_name: String) -> Self {
        // NAA 6, a company id with the locally administered bit set, since there is none to claim, and 100 bits
        // of a hash of the id. A hash, because ids chosen by callers need not be random in any part.
        let mut naa = [0; 16];
        naa.copy_from_slice(&Sha256::digest(volume.0.as_bytes())[..16]);
        naa[..3].copy_from_slice(&[0x60, 0x25, 0x15]);
        naa[3] = 0x20 | naa[3] & 0x0f;
        Self {
            target_name,
            serial: volume.to_string(),
            naa,
        }
    }
}

/// A unit as one command sees it.
pub struct LogicalUnit {
    identity: Arc<UnitIdentity>,
    device: Arc<dyn BlockDevice>,
    limits: DeviceLimits,
}

impl LogicalUnit {
    /// Joins names and device.
    pub fn new(identity: Arc<UnitIdentity>, device: Arc<dyn BlockDevice>) -> Self {
        let limits = device.limits();
        Self {
            identity,
            device,
            limits,
        }
    }

    /// Returns the names.
    pub fn identity(&self) -> &UnitIdentity {
        &self.identity
    }

    /// Returns the device's limits.
    pub fn limits(&self) -> DeviceLimits {
        self.limits
    }

    /// Returns the device.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// Returns the logical block, in bytes.
    pub fn block_bytes(&self) -> u32 {
        self.limits.logical_block_bytes
    }

    /// Returns the size in logical blocks, as of now.
    pub fn blocks(&self) -> u64 {
        self.device.size_bytes() / u64::from(self.block_bytes())
    }

    /// Checks that a range is on the medium.
    pub fn check_range(&self, range: BlockRange) -> Result<(), Sense> {
        match range.lba.checked_add(range.blocks.into()) {
            Some(end) if end <= self.blocks() => Ok(()),
            _ => Err(Sense::LBA_OUT_OF_RANGE),
        }
    }

    /// Checks that a range is on the medium and its data not longer than a command may have.
    pub fn check_transfer(&self, range: BlockRange) -> Result<(), Sense> {
        self.check_range(range)?;
        if range.blocks > blocks_of(MAX_TRANSFER_BYTES, self.block_bytes()) {
            return Err(Sense::INVALID_FIELD_IN_CDB);
        }
        Ok(())
    }

    /// Checks that a range is on the medium and not longer than COMPARE AND WRITE may have.
    pub fn check_compare(&self, range: BlockRange) -> Result<(), Sense> {
        self.check_range(range)?;
        if range.blocks > MAX_COMPARE_BLOCKS.into() {
            return Err(Sense::INVALID_FIELD_IN_CDB);
        }
        Ok(())
    }

    /// Checks that a range is on the medium and not longer than WRITE ATOMIC may have: on a device without such writes
    /// there is no such command.
    pub fn check_atomic(&self, range: BlockRange) -> Result<(), Sense> {
        if self.limits.atomic_write_bytes == 0 {
            return Err(Sense::INVALID_OPCODE);
        }
        self.check_range(range)?;
        if range.blocks > atomic_blocks(&self.limits) {
            return Err(Sense::INVALID_FIELD_IN_CDB);
        }
        Ok(())
    }

    /// Checks that a range is on the medium and one that WRITE SAME may have: not empty, as WSNZ says, nor longer
    /// than page B0h says.
    pub fn check_write_same(&self, range: BlockRange) -> Result<(), Sense> {
        if range.blocks == 0 || range.blocks > blocks_of(MAX_WRITE_SAME_BYTES, self.block_bytes()) {
            return Err(Sense::INVALID_FIELD_IN_CDB);
        }
        self.check_range(range)
    }

    /// Tells whether a designator of page 83h is one of this unit's: `kind` holds ASSOCIATION and DESIGNATOR TYPE.
    pub fn has_designator(&self, kind: u8, designator: &[u8]) -> bool {
        inquiry::is_own_designator(&self.identity, kind, designator)
    }

    /// Reads a mode parameter list; see [`parse_mode_list`].
    ///
    /// # Errors
    /// What is wrong with the list.
    pub fn parse_mode_list(&self, ten: bool, list: &[u8]) -> Result<Option<bool>, Sense> {
        parse_mode_list(self, ten, list)
    }

    /// The block descriptor of mode parameters (SBC-3 6.5.2.2).
    pub(super) fn block_descriptor(&self) -> [u8; 8] {
        let mut descriptor = [0; 8];
        let blocks = u32::try_from(self.blocks()).unwrap_or(u32::MAX);
        descriptor[..4].copy_from_slice(&blocks.to_be_bytes());
        descriptor[4..].copy_from_slice(&self.block_bytes().to_be_bytes());
        descriptor
    }

    /// Answers a command that needs no I/O with its data; `None` when the command does need I/O.
    pub fn answer(&self, command: &Command, pages: ModePages) -> Option<Result<Vec<u8>, Sense>> {
        let (data, allocation) = match *command {
            Command::TestUnitReady
            | Command::StartStopUnit { .. }
            // Nothing of a volume can be taken out (SBC-3 5.13).
            | Command::PreventRemoval { .. } => (Ok(Vec::new()), 0),
            Command::PreFetch(range) => (self.check_range(range).map(|()| Vec::new()), 0),
            Command::RequestSense {
                descriptor_format,
                allocation,
            } => (Ok(sense_data(Sense::NONE, descriptor_format)), allocation),
            Command::Inquiry {
                vital_page: None,
                allocation,
            } => (Ok(inquiry::standard()), allocation),
            Command::Inquiry {
                vital_page: Some(page),
                allocation,
            } => (inquiry::vital_page(self, page), allocation),
            Command::ModeSense {
                ten,
                block_descriptor,
                control,
                page,
                subpage,
                allocation,
            } => {
                let request = ModeRequest {
                    ten,
                    block_descriptor,
                    control,
                    page,
                    subpage,
                    pages,
                };
                (mode_parameters(self, &request), allocation)
            }
            Command::ReadCapacity10 => (Ok(self.capacity10()), 8),
            Command::ReadCapacity16 { allocation } => (Ok(self.capacity16()), allocation),
            Command::ReportLuns { select, allocation } => (report_luns(select), allocation),
            Command::SupportedOpcodes {
                timeouts,
                options,
                opcode,
                service_action,
                allocation,
            } => {
                let atomic = self.limits.atomic_write_bytes > 0;
                let listed = match options {
                    0 => Ok(opcodes::all(atomic, timeouts)),
                    _ => opcodes::one(atomic, options, opcode, service_action, timeouts),
                };
                (listed, allocation)
            }
            Command::PortGroups { extended, allocation } => (Ok(port_groups::report(extended)), allocation),
            Command::SupportedFunctions { allocation } => (Ok(opcodes::task_management()), allocation),
            Command::ReadDefects {
                long,
                lists,
                allocation,
            } => (Ok(defects::none(long, lists)), allocation),
            Command::CopyParameters { allocation } => {
                (Ok(operating_parameters(self.block_bytes())), allocation)
            }
            Command::CopyStatus { .. }
            | Command::GetLbaStatus { .. }
            | Command::Sanitize { .. }
            | Command::ExtendedCopy { .. }
            | Command::CompareAndWrite { .. }
            | Command::OrWrite { .. }
            | Command::WriteAtomic { .. }
            | Command::WriteAndVerify { .. }
            | Command::ModeSelect { .. }
            | Command::ReserveUnit
            | Command::ReleaseUnit
            | Command::PersistentIn { .. }
            | Command::PersistentOut { .. }
            | Command::Read(_)
            | Command::Write { .. }
            | Command::Verify { .. }
            | Command::SynchronizeCache(_)
            | Command::Unmap { .. }
            | Command::WriteSame { .. } => return None,
        };
        Some(data.map(|mut data| {
            data.truncate(allocation as usize);
            data
        }))
    }

    fn capacity10(&self) -> Vec<u8> {
        let last = u32::try_from(self.blocks().saturating_sub(1)).unwrap_or(u32::MAX);
        let mut data = last.to_be_bytes().to_vec();
        data.extend_from_slice(&self.block_bytes().to_be_bytes());
        data
    }

    fn capacity16(&self) -> Vec<u8> {
        let mut data = vec![0; 32];
        data[..8].copy_from_slice(&self.blocks().saturating_sub(1).to_be_bytes());
        data[8..12].copy_from_slice(&self.block_bytes().to_be_bytes());
        let physical = blocks_of(self.limits.physical_block_bytes, self.block_bytes()).max(1);
        data[13] = physical.ilog2() as u8;
        data[14] = 0x80 | 0x40; // LBPME, LBPRZ
        data
    }
}

/// Standard INQUIRY data for a LUN that has no unit.
pub fn unsupported_inquiry(allocation: u32) -> Vec<u8> {
    let mut data = inquiry::nothing_here();
    data.truncate(allocation as usize);
    data
}

/// REPORT LUNS: LUN 0 and no well-known units (SPC-4 6.33).
pub fn report_luns(select: u8) -> Result<Vec<u8>, Sense> {
    match select {
        0x00 | 0x02 => {
            let mut data = vec![0; 16];
            data[3] = 8;
            Ok(data)
        }
        0x01 => Ok(vec![0; 8]),
        _ => Err(Sense::INVALID_FIELD_IN_CDB),
    }
}

/// Sense data as REQUEST SENSE returns it.
pub fn sense_data(sense: Sense, descriptor_format: bool) -> Vec<u8> {
    match descriptor_format {
        true => sense.descriptor(),
        false => sense.fixed().to_vec(),
    }
}

/// Reads an UNMAP parameter list (SBC-3 5.28.2).
pub fn parse_unmap_list(list: &[u8]) -> Result<Vec<BlockRange>, Sense> {
    if list.is_empty() {
        return Ok(Vec::new());
    }
    if list.len() < 8 {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    // Both lengths are advisory beyond what was sent: a list cut short is used as far as it goes.
    let announced = usize::from(be16(list, 2)).min(list.len() - 8);
    let mut ranges = Vec::new();
    for descriptor in list[8..8 + announced].chunks_exact(16) {
        ranges.push(BlockRange {
            lba: be64(descriptor, 0),
            blocks: be32(descriptor, 8),
        });
    }
    if ranges.len() > MAX_UNMAP_DESCRIPTORS as usize {
        return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
    }
    let total: u64 = ranges.iter().map(|range| u64::from(range.blocks)).sum();
    if total > u64::from(MAX_UNMAP_BLOCKS) {
        return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_from_the_id_and_differ_for_ids_that_differ_anywhere() {
        let id = |text: &str| UnitIdentity::of(text.parse().unwrap(), "iqn.x".into());
        let first = id("00000001-0000-0000-0000-000000000000");
        let second = id("00000002-0000-0000-0000-000000000000");
        assert_eq!(first, id("00000001-0000-0000-0000-000000000000"));
        assert_ne!(first.naa, second.naa);
        assert_eq!(first.naa[0] >> 4, 6);
        assert_eq!(first.serial, "00000001-0000-0000-0000-000000000000");
    }

    #[test]
    fn unmap_lists_are_read_as_far_as_they_go() {
        let mut list = vec![0, 22 + 16, 0, 32, 0, 0, 0, 0];
        for (lba, blocks) in [(8u64, 16u32), (64, 1)] {
            list.extend_from_slice(&lba.to_be_bytes());
            list.extend_from_slice(&blocks.to_be_bytes());
            list.extend_from_slice(&[0; 4]);
        }
        let both = [
            BlockRange { lba: 8, blocks: 16 },
            BlockRange { lba: 64, blocks: 1 },
        ];
        assert_eq!(parse_unmap_list(&list), Ok(both.to_vec()));
        assert_eq!(parse_unmap_list(&list[..30]), Ok(both[..1].to_vec()));
        assert_eq!(parse_unmap_list(&[]), Ok(vec![]));
        assert_eq!(parse_unmap_list(&list[..7]), Err(Sense::PARAMETER_LIST_LENGTH));
        list[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(parse_unmap_list(&list), Err(Sense::INVALID_FIELD_IN_PARAMETERS));
    }
}
