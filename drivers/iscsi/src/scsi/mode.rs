//! MODE SENSE and MODE SELECT: the caching, control and informational exceptions pages, of which only the software
//! write protection can be changed (SPC-4 6.9, 6.11, 7.5; SBC-3 6.5).

use super::Sense;
use super::unit::LogicalUnit;
use crate::pdu::be16;

/// What the pages say that is not the same for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModePages {
    /// SWP: writes of every initiator are refused until it is taken back or the unit is reset.
    pub software_write_protect: bool,
    /// Whether writes are refused, for whatever reason.
    pub write_protected: bool,
}

/// What is asked for.
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
    /// What to report.
    pub pages: ModePages,
}

const ALL_PAGES: u8 = 0x3f;
const CONTROL_PAGE: u8 = 0x0a;
const CURRENT: u8 = 0;
const CHANGEABLE: u8 = 1;
const SAVED: u8 = 3;

/// Where the control page has SWP.
const SWP: (usize, u8) = (4, 0x08);

/// The pages, ascending, with SWP as it is said.
fn pages(software_write_protect: bool) -> [Vec<u8>; 3] {
    let mut caching = vec![0; 20];
    caching[..3].copy_from_slice(&[0x08, 18, 0x04]); // WCE
    let mut control = vec![0; 12];
    control[..4].copy_from_slice(&[0x0a, 10, 0, 0x10]); // tasks may be reordered without restriction
    if software_write_protect {
        control[SWP.0] |= SWP.1;
    }
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
    let current = request.control == CURRENT && request.pages.software_write_protect;
    for mut page in pages(current) {
        if request.page == ALL_PAGES || request.page == page[0] {
            if request.control == CHANGEABLE {
                page[2..].fill(0);
                if page[0] == CONTROL_PAGE {
                    page[SWP.0] = SWP.1;
                }
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
    let device_specific = if request.pages.write_protected { 0x80 } else { 0 } | 0x10;
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

/// Reads a mode parameter list (SPC-4 7.5.4). Returns what SWP is to be, when the list has its page.
///
/// # Errors
/// When the list is cut short, or would change what cannot be changed: nothing is changed then.
pub fn parse_mode_list(unit: &LogicalUnit, ten: bool, list: &[u8]) -> Result<Option<bool>, Sense> {
    if list.is_empty() {
        return Ok(None);
    }
    let header_bytes = if ten { 8 } else { 4 };
    if list.len() < header_bytes {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    let descriptor_bytes = if ten {
        be16(list, 6).into()
    } else {
        usize::from(list[3])
    };
    let body = list
        .get(header_bytes + descriptor_bytes..)
        .ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    if descriptor_bytes > 0 {
        let descriptor = &list[header_bytes..][..descriptor_bytes];
        // Neither the number of blocks, unless left out, nor their size can be changed.
        let current = unit.block_descriptor();
        let is_same = |descriptor: &[u8; 8]| {
            let same_count = descriptor[..4] == current[..4] || descriptor[..4] == [0; 4];
            same_count && descriptor[4..] == current[4..]
        };
        if !descriptor.try_into().is_ok_and(is_same) {
            return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
        }
    }
    parse_pages(body)
}

fn parse_pages(mut body: &[u8]) -> Result<Option<bool>, Sense> {
    let mut wanted = None;
    while !body.is_empty() {
        // PS is reserved here.
        let known = pages(false).into_iter().find(|page| page[0] == body[0] & 0x7f);
        let known = known.ok_or(Sense::INVALID_FIELD_IN_PARAMETERS)?;
        let mut page = body
            .get(..known.len())
            .ok_or(Sense::PARAMETER_LIST_LENGTH)?
            .to_vec();
        body = &body[known.len()..];
        page[0] &= 0x7f;
        if page[0] == CONTROL_PAGE {
            wanted = Some(page[SWP.0] & SWP.1 != 0);
            page[SWP.0] &= !SWP.1;
        }
        if page != known {
            return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_software_write_protection_can_be_changed() {
        let [caching, mut control, _] = pages(false);
        assert_eq!(parse_pages(&[]), Ok(None));
        assert_eq!(parse_pages(&control), Ok(Some(false)));
        control[SWP.0] |= SWP.1;
        assert_eq!(parse_pages(&control), Ok(Some(true)));
        let both = [&caching[..], &control].concat();
        assert_eq!(parse_pages(&both), Ok(Some(true)));
        let cut = parse_pages(&both[..both.len() - 1]);
        assert_eq!(cut, Err(Sense::PARAMETER_LIST_LENGTH));
        for (page, at) in [(&caching, 2), (&control, 5), (&control, 1), (&control, 0)] {
            let mut page = page.clone();
            page[at] ^= 0x04;
            assert_eq!(
                parse_pages(&page),
                Err(Sense::INVALID_FIELD_IN_PARAMETERS),
                "{page:x?}"
            );
        }
    }
}
