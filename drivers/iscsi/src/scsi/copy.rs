//! EXTENDED COPY (LID1) within one unit, and RECEIVE COPY RESULTS (SPC-4 5.16, 6.4, 6.19).
//!
//! Copy source and copy destination are the unit that the command is sent to: other units are other targets, whose
//! access rules this one cannot answer for.

use super::Sense;
use super::unit::LogicalUnit;
use crate::pdu::{be16, be32, be64};

/// The parameter list header, in bytes.
const HEADER_BYTES: usize = 16;
/// A CSCD descriptor, in bytes.
const TARGET_BYTES: usize = 32;
/// A block to block segment descriptor, in bytes.
const SEGMENT_BYTES: usize = 28;
/// The identification CSCD descriptor.
const IDENTIFICATION: u8 = 0xe4;
/// The block device to block device segment descriptor.
const BLOCK_TO_BLOCK: u8 = 0x02;
const MAX_TARGETS: u16 = 8;
const MAX_SEGMENTS: u16 = 16;
const MAX_DESCRIPTOR_BYTES: u32 =
    MAX_TARGETS as u32 * TARGET_BYTES as u32 + MAX_SEGMENTS as u32 * SEGMENT_BYTES as u32;

/// The longest parameter list, in bytes.
pub const MAX_LIST_BYTES: u32 = HEADER_BYTES as u32 + MAX_DESCRIPTOR_BYTES;

/// A run of bytes to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyRun {
    /// From where, in bytes.
    pub from: u64,
    /// Where to, in bytes.
    pub to: u64,
    /// How much, in bytes.
    pub bytes: u64,
}

impl CopyRun {
    /// Tells whether source and destination have a byte in common.
    pub fn overlaps_itself(&self) -> bool {
        self.from.abs_diff(self.to) < self.bytes
    }
}

/// A copy as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyList {
    /// LIST IDENTIFIER, by which its result is asked for; `None` when it is not to be kept.
    pub id: Option<u8>,
    /// What to copy, in order.
    pub runs: Vec<CopyRun>,
}

/// Reads a parameter list (SPC-4 6.4.3). Nothing is copied unless every descriptor is good.
///
/// # Errors
/// What is wrong with it.
pub fn parse_copy_list(unit: &LogicalUnit, list: &[u8]) -> Result<CopyList, Sense> {
    let short = Sense::PARAMETER_LIST_LENGTH;
    if list.len() < HEADER_BYTES {
        return Err(short);
    }
    // LIST ID USAGE 11b: nothing is kept, and the identifier means nothing.
    let id = (list[1] >> 3 & 0x03 != 0x03).then_some(list[0]);
    let target_bytes = usize::from(be16(list, 2));
    let segment_bytes = be32(list, 8) as usize;
    let inline_bytes = be32(list, 12);
    if inline_bytes > 0 {
        return Err(Sense::INLINE_DATA_LENGTH);
    }
    let descriptor_bytes = target_bytes.saturating_add(segment_bytes);
    if descriptor_bytes > MAX_DESCRIPTOR_BYTES as usize {
        return Err(short);
    }
    let descriptors = list
        .get(HEADER_BYTES..HEADER_BYTES + descriptor_bytes)
        .ok_or(short)?;
    let (targets, mut rest) = descriptors.split_at(target_bytes);
    let known = parse_targets(unit, targets)?;
    let mut runs = Vec::new();
    while !rest.is_empty() {
        if rest[0] != BLOCK_TO_BLOCK {
            return Err(Sense::UNSUPPORTED_SEGMENT_DESCRIPTOR);
        }
        let segment = rest.get(..SEGMENT_BYTES).ok_or(short)?;
        if runs.len() == usize::from(MAX_SEGMENTS) {
            return Err(Sense::TOO_MANY_SEGMENT_DESCRIPTORS);
        }
        rest = &rest[SEGMENT_BYTES..];
        runs.push(parse_segment(unit, &known, segment)?);
    }
    Ok(CopyList { id, runs })
}

/// Reads the CSCD descriptors: of each, whether it names this unit.
fn parse_targets(unit: &LogicalUnit, targets: &[u8]) -> Result<Vec<bool>, Sense> {
    if targets.len() > usize::from(MAX_TARGETS) * TARGET_BYTES {
        return Err(Sense::TOO_MANY_TARGET_DESCRIPTORS);
    }
    let mut known = Vec::new();
    for target in targets.chunks(TARGET_BYTES) {
        if target[0] != IDENTIFICATION {
            return Err(Sense::UNSUPPORTED_TARGET_DESCRIPTOR);
        }
        if target.len() < TARGET_BYTES {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        let length = usize::from(target[7]).min(20);
        let is_here = unit.has_designator(target[5] & 0x3f, &target[8..8 + length]);
        // A disk of other blocks is not this one.
        let block_bytes = be32(target, 28) & 0x00ff_ffff;
        known.push(is_here && target[1] & 0x1f == 0 && block_bytes == unit.block_bytes());
    }
    Ok(known)
}

/// Reads a block to block segment descriptor (SPC-4 6.4.6.5).
fn parse_segment(unit: &LogicalUnit, known: &[bool], segment: &[u8]) -> Result<CopyRun, Sense> {
    if usize::from(be16(segment, 2)) != SEGMENT_BYTES - 4 {
        return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
    }
    for at in [4, 6] {
        if known.get(usize::from(be16(segment, at))) != Some(&true) {
            return Err(Sense::UNREACHABLE_COPY_TARGET);
        }
    }
    let block = u64::from(unit.block_bytes());
    let blocks = u64::from(be16(segment, 10));
    let place = |at| match be64(segment, at).checked_add(blocks) {
        Some(end) if end <= unit.blocks() => Ok((end - blocks) * block),
        _ => Err(Sense::COPY_ABORTED),
    };
    Ok(CopyRun {
        from: place(12)?,
        to: place(20)?,
        bytes: blocks * block,
    })
}

/// The limits of a copy: RECEIVE COPY RESULTS, OPERATING PARAMETERS (SPC-4 6.19.4).
pub fn operating_parameters(block_bytes: u32) -> Vec<u8> {
    let mut data = vec![0; 46];
    let available = data.len() as u32 - 4;
    let mut put = |at: usize, bytes: &[u8]| data[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &available.to_be_bytes());
    put(4, &[0x01]); // SNLID: a list need not have an identifier
    put(8, &MAX_TARGETS.to_be_bytes());
    put(10, &MAX_SEGMENTS.to_be_bytes());
    put(12, &MAX_DESCRIPTOR_BYTES.to_be_bytes());
    put(16, &(u32::from(u16::MAX) * block_bytes).to_be_bytes());
    put(34, &[0, 1, 1]); // one copy at a time is promised
    put(37, &[block_bytes.ilog2() as u8]);
    put(43, &[2, BLOCK_TO_BLOCK, IDENTIFICATION]);
    data
}

/// How a copy has ended, or that it has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CopyStatus {
    UnderWay = 0x00,
    Done = 0x01,
    Failed = 0x02,
}

/// RECEIVE COPY RESULTS, COPY STATUS (SPC-4 6.19.2).
pub fn copy_status(status: CopyStatus, segments: u16, bytes: u64) -> Vec<u8> {
    let mut data = vec![0, 0, 0, 8, status as u8];
    data.extend_from_slice(&segments.to_be_bytes());
    // In KiB, which 32 bits always hold.
    data.push(0x01);
    data.extend_from_slice(&u32::try_from(bytes >> 10).unwrap_or(u32::MAX).to_be_bytes());
    data
}
