//! TransportIDs of iSCSI initiator ports (SPC-4 7.6.4.6).

use quarry_contract::InitiatorName;

use super::InitiatorPort;
use crate::pdu::be16;
use crate::scsi::Sense;

/// Format 01b, a port, of protocol 5h, iSCSI.
const ISCSI_PORT: u8 = 0x45;

/// What is between the initiator's name and its ISID.
const SEPARATOR: &str = ",i,0x";

/// The shortest ADDITIONAL LENGTH, in bytes.
const MIN_ADDITIONAL_BYTES: usize = 20;

/// Encodes a port.
pub fn encode(port: &InitiatorPort) -> Vec<u8> {
    let mut text = format!("{}{SEPARATOR}{}", port.name, hex::encode(port.isid)).into_bytes();
    text.push(0);
    text.resize(text.len().max(MIN_ADDITIONAL_BYTES).next_multiple_of(4), 0);
    let mut id = vec![ISCSI_PORT, 0];
    id.extend_from_slice(&(text.len() as u16).to_be_bytes());
    id.extend_from_slice(&text);
    id
}

/// Reads the first TransportID of some bytes and says how long it is.
///
/// # Errors
/// When it is cut short or does not name an iSCSI initiator port. A name without ISID (format 00b) stands for ports
/// that need not exist yet; it is not supported.
pub fn parse(bytes: &[u8]) -> Result<(InitiatorPort, usize), Sense> {
    parse_port(bytes).ok_or(Sense::INVALID_FIELD_IN_PARAMETERS)
}

fn parse_port(bytes: &[u8]) -> Option<(InitiatorPort, usize)> {
    if bytes.len() < 4 || bytes[0] != ISCSI_PORT {
        return None;
    }
    let end = 4 + usize::from(be16(bytes, 2));
    let text = bytes.get(4..end)?;
    let text = text.split(|byte| *byte == 0).next()?;
    let (name, isid) = std::str::from_utf8(text).ok()?.split_once(SEPARATOR)?;
    let mut port = InitiatorPort {
        name: InitiatorName::parse(name).ok()?,
        isid: [0; 6],
    };
    hex::decode_to_slice(isid, &mut port.isid).ok()?;
    Some((port, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_survive_encoding_and_anything_else_is_refused() {
        let port = InitiatorPort {
            name: InitiatorName::parse("iqn.2026-11.io.x:a").unwrap(),
            isid: [0x80, 1, 2, 3, 0xab, 0xcd],
        };
        let id = encode(&port);
        assert_eq!(id.len() % 4, 0);
        assert_eq!(&id[4..35], b"iqn.2026-11.io.x:a,i,0x80010203");
        assert_eq!(parse(&id), Ok((port, id.len())));
        let wrong = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut id = id.clone();
            change(&mut id);
            parse(&id).is_err()
        };
        assert!(wrong(&|id| id[0] = 0x05), "a name without ISID");
        assert!(wrong(&|id| id[0] = 0x46), "another protocol");
        assert!(wrong(&|id| id.truncate(id.len() - 1)), "cut short");
        assert!(wrong(&|id| id[24] = b'x'), "no separator");
        assert!(parse(&[]).is_err());
    }
}
