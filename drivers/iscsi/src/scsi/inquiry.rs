//! INQUIRY: what the unit is, and the vital product data pages (SPC-4 6.6, 7.8; SBC-3 6.6).

use quarry_contract::DeviceLimits;

use super::Sense;
use super::port_groups::TARGET_PORT;
use super::unit::{
    LogicalUnit, MAX_COMPARE_BLOCKS, MAX_TRANSFER_BYTES, MAX_UNMAP_BLOCKS, MAX_UNMAP_DESCRIPTORS,
    MAX_WRITE_SAME_BYTES, UnitIdentity, atomic_blocks, blocks_of,
};
use crate::login::PORTAL_GROUP;

const VENDOR: &[u8; 8] = b"QUARRY  ";
const PRODUCT: &[u8; 16] = b"Thin volume     ";
const REVISION: &[u8; 4] = b"1.0 ";

/// A direct access block device that is here.
const DISK: u8 = 0x00;

/// Qualifier 011b and type 1Fh: no device can be at this LUN.
const NOTHING: u8 = 0x7f;

/// The vital product data pages, ascending.
const PAGES: [u8; 7] = [0x00, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2];

/// Association and designator types (SPC-4 7.8.6.1).
const UNIT: u8 = 0x00;
const T10_VENDOR_ID: u8 = 0x01;
const NAA: u8 = 0x03;

/// The standards claimed: SAM-5, iSCSI, SPC-4, SBC-3, none with a version.
const VERSION_DESCRIPTORS: [u16; 4] = [0x00a0, 0x0960, 0x0460, 0x04c0];

/// Standard INQUIRY data.
pub fn standard() -> Vec<u8> {
    standard_for(DISK)
}

/// Standard INQUIRY data of a LUN with no unit.
pub fn nothing_here() -> Vec<u8> {
    standard_for(NOTHING)
}

fn standard_for(peripheral: u8) -> Vec<u8> {
    let mut data = vec![0; 96];
    data[0] = peripheral;
    data[2] = 0x06; // SPC-4
    data[3] = 0x10 | 0x02; // HISUP, response data format 2
    data[4] = (data.len() - 5) as u8;
    data[5] = 0x10 | 0x08; // TPGS: groups change state by themselves only, if ever; 3PC: EXTENDED COPY
    data[6] = 0x10; // MULTIP
    data[7] = 0x02; // CMDQUE
    data[8..16].copy_from_slice(VENDOR);
    data[16..32].copy_from_slice(PRODUCT);
    data[32..36].copy_from_slice(REVISION);
    for (at, descriptor) in VERSION_DESCRIPTORS.iter().enumerate() {
        data[58 + 2 * at..60 + 2 * at].copy_from_slice(&descriptor.to_be_bytes());
    }
    data
}

/// A vital product data page.
pub fn vital_page(unit: &LogicalUnit, page: u8) -> Result<Vec<u8>, Sense> {
    let body = match page {
        0x00 => PAGES.to_vec(),
        0x80 => unit.identity().serial.clone().into_bytes(),
        0x83 => identification(unit.identity()),
        0x86 => extended(),
        0xb0 => block_limits(&unit.limits()),
        0xb1 => block_characteristics(),
        0xb2 => provisioning(),
        _ => return Err(Sense::INVALID_FIELD_IN_CDB),
    };
    let mut data = vec![DISK, page];
    data.extend_from_slice(&(body.len() as u16).to_be_bytes());
    data.extend_from_slice(&body);
    Ok(data)
}

/// Page 83h: the names by which hosts know the unit (SPC-4 7.8.6).
fn identification(identity: &UnitIdentity) -> Vec<u8> {
    const BINARY: u8 = 1;
    const ASCII: u8 = 2;
    const UTF8: u8 = 3;
    // iSCSI, with PIV set where the association is a port or the device.
    const ISCSI: u8 = 0x50;
    const PORT: u8 = 0x90;
    const DEVICE: u8 = 0xa0;

    let mut pages = Vec::new();
    let mut designator = |code_set: u8, kind: u8, bytes: &[u8]| {
        pages.extend_from_slice(&[code_set, kind, 0, bytes.len() as u8]);
        pages.extend_from_slice(bytes);
    };
    let name_string = |text: String| {
        let mut bytes = text.into_bytes();
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    designator(BINARY, UNIT | NAA, &identity.naa);
    designator(ASCII, UNIT | T10_VENDOR_ID, &vendor_id(identity));
    designator(BINARY, PORT | 0x04, &u32::from(TARGET_PORT).to_be_bytes());
    designator(
        BINARY,
        PORT | 0x05,
        &[0, 0, (PORTAL_GROUP >> 8) as u8, PORTAL_GROUP as u8],
    );
    let port = format!("{},t,0x{PORTAL_GROUP:04x}", identity.target_name);
    designator(ISCSI | UTF8, PORT | 0x08, &name_string(port));
    designator(
        ISCSI | UTF8,
        DEVICE | 0x08,
        &name_string(identity.target_name.clone()),
    );
    pages
}

fn vendor_id(identity: &UnitIdentity) -> Vec<u8> {
    let mut id = VENDOR.to_vec();
    id.extend_from_slice(identity.serial.as_bytes());
    id
}

/// Tells whether a designator of the unit, cut to the 20 bytes a CSCD descriptor has, is one of page 83h.
pub fn is_own_designator(identity: &UnitIdentity, kind: u8, designator: &[u8]) -> bool {
    const ROOM: usize = 20;
    if kind == UNIT | NAA {
        designator == identity.naa
    } else if kind == UNIT | T10_VENDOR_ID {
        vendor_id(identity).get(..ROOM) == Some(designator)
    } else {
        false
    }
}

/// Page 86h: simple, ordered and head-of-queue tasks; a volatile cache (SPC-4 7.8.7).
fn extended() -> Vec<u8> {
    let mut page = vec![0; 60];
    page[1] = 0x07;
    page[2] = 0x01;
    page
}

/// Page B0h (SBC-3 6.6.3).
fn block_limits(limits: &DeviceLimits) -> Vec<u8> {
    let block = limits.logical_block_bytes;
    let blocks = |bytes: u32| blocks_of(bytes, block);
    let mut page = vec![0; 60];
    let mut put = |at: usize, bytes: &[u8]| page[at - 4..at - 4 + bytes.len()].copy_from_slice(bytes);
    put(4, &[0x01]); // WSNZ: WRITE SAME needs a length
    put(5, &[MAX_COMPARE_BLOCKS]);
    let granularity = blocks(limits.physical_block_bytes).min(u16::MAX.into()) as u16;
    put(6, &granularity.to_be_bytes());
    put(8, &blocks(MAX_TRANSFER_BYTES).to_be_bytes());
    put(
        12,
        &blocks(limits.optimal_io_bytes.min(MAX_TRANSFER_BYTES)).to_be_bytes(),
    );
    put(20, &MAX_UNMAP_BLOCKS.to_be_bytes());
    put(24, &MAX_UNMAP_DESCRIPTORS.to_be_bytes());
    put(28, &blocks(limits.discard_granularity_bytes).to_be_bytes());
    put(32, &0x8000_0000u32.to_be_bytes()); // UGAVALID, aligned at 0
    put(36, &u64::from(blocks(MAX_WRITE_SAME_BYTES)).to_be_bytes());
    // Atomic writes at any address of any length up to this, none with boundaries (SBC-4, Block Limits VPD page).
    put(44, &atomic_blocks(limits).to_be_bytes());
    page
}

/// Page B1h: non-rotating; blocks can be read after a block erase (WABEREQ 01b), and there is no cryptographic one
/// (SBC-3 6.6.2).
fn block_characteristics() -> Vec<u8> {
    let mut page = vec![0; 60];
    page[1] = 0x01;
    page[3] = 0x40;
    page
}

/// Page B2h: UNMAP, WRITE SAME (16) and (10) with UNMAP; unmapped blocks read zero; thin (SBC-3 6.6.4). A threshold exponent
/// of 0: no thresholds (SBC-3 4.7.3.7), so that no initiator waits for THIN PROVISIONING SOFT THRESHOLD REACHED. What is
/// left belongs to the pool and not to one unit; its levels are told over the API.
fn provisioning() -> Vec<u8> {
    vec![0, 0x80 | 0x40 | 0x20 | 0x04, 0x02, 0]
}
