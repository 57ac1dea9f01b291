//! REPORT TARGET PORT GROUPS: the one group with the one port, active and optimized for ever (SPC-4 5.11, 6.37).
//!
//! All portals are ways to this port, so multipath finds paths of equal rank.

use crate::login::PORTAL_GROUP;

/// The relative identifier of the only target port (SPC-4 3.1.120).
pub const TARGET_PORT: u16 = 1;

/// The group's descriptor: AO_SUP, and no other state that it could be in.
const ACTIVE_OPTIMIZED: u8 = 0x00;
const AO_SUP: u8 = 0x01;

/// Answers in the length only or the extended header format.
pub fn report(extended: bool) -> Vec<u8> {
    let mut list = Vec::new();
    if extended {
        // The format, and no time that a transition of the target's own takes: there is none.
        list.extend_from_slice(&[0x10, 0, 0, 0]);
    }
    list.extend_from_slice(&[ACTIVE_OPTIMIZED, AO_SUP]);
    list.extend_from_slice(&PORTAL_GROUP.to_be_bytes());
    list.extend_from_slice(&[0, 0, 0, 1]);
    list.extend_from_slice(&[0, 0]);
    list.extend_from_slice(&TARGET_PORT.to_be_bytes());
    let mut data = (list.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(&list);
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_group_has_the_port_of_page_83h() {
        let [high, low] = PORTAL_GROUP.to_be_bytes();
        let group = [0, 1, high, low, 0, 0, 0, 1, 0, 0, 0, 1];
        assert_eq!(report(false), [&[0, 0, 0, 12][..], &group].concat());
        assert_eq!(report(true), [&[0, 0, 0, 16, 0x10, 0, 0, 0][..], &group].concat());
    }
}
