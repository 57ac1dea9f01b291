//! MODE SENSE: caching, control and informational exceptions pages, none of them changeable (SPC-4 6.11, 7.5;
//! SBC-3 6.5).

use super::Sense;
use super::unit::LogicalUnit;

/// What to report.
pub struct ModeRequest {
    /// The 10 byte form.
    pub ten: bool,
    /// Whether the block descriptor is wanted.
    pub block_descriptor: bool,
    /// 0 current, 1 changeable, 2 default, 3 saved values.
    pub control: u8,
    /// The page.
    pub page: u8,
    /// The subpage.
    pub subpage: u8,
    /// Whether writes are refused.
    pub write_protected: bool,
}

const ALL_PAGES: u8 = 0x3f;
const CHANGEABLE: u8 = 1;
const SAVED: u8 = 3;

/// The pages, ascending, with their current values.
fn pages() -> [Vec<u8>; 3] {
    let mut caching = vec![0; 20];
    caching[..3].copy_from_slice(&[0x08, 18, 0x04]); // WCE
    let mut control = vec![0; 12];
    control[..4].copy_from_slice(&[0x0a, 10, 0, 0x10]); // tasks may be reordered without restriction
    let mut exceptions = vec![0; 12];
    exceptions[..2].copy_from_slice(&[0x1c, 10]);
    [caching, control, exceptions]
}

/// Builds the mode parameter list.
pub fn mode_parameters(unit: &LogicalUnit, request: &ModeRequest) -> Result<Vec<u8>, Sense> {
    if request.control == SAVED {
        return Err(Sense::SAVING_NOT_SUPPORTED);
    }
    let all_subpages = request.page == ALL_PAGES && request.subpage == 0xff;
    if request.subpage != 0 && !all_subpages {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    let mut body = Vec::new();
    for mut page in pages() {
        if request.page == ALL_PAGES || request.page == page[0] {
            if request.control == CHANGEABLE {
                page[2..].fill(0);
            }
            body.extend_from_slice(&page);
        }
    }
    if body.is_empty() {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }

    let descriptor = match request.block_descriptor {
        true => unit.block_descriptor().to_vec(),
        false => Vec::new(),
    };
    // WP, and DPOFUA: FUA is honoured.
    let device_specific = if request.write_protected { 0x80 } else { 0 } | 0x10;
    let length = descriptor.len() + body.len();
    let mut data = if request.ten {
        let total = (length + 6) as u16;
        let mut header = vec![0; 8];
        header[..2].copy_from_slice(&total.to_be_bytes());
        header[3] = device_specific;
        header[7] = descriptor.len() as u8;
        header
    } else {
        vec![(length + 3) as u8, 0, device_specific, descriptor.len() as u8]
    };
    data.extend_from_slice(&descriptor);
    data.extend_from_slice(&body);
    Ok(data)
}
