//! PERSISTENT RESERVE OUT as it comes in (SPC-4 6.16).

use super::{InitiatorPort, Kind, transport_id};
use crate::pdu::{be16, be32, be64};
use crate::scsi::{Sense, TARGET_PORT};

/// The basic parameter list, in bytes (SPC-4 6.16.3).
const BASIC_BYTES: usize = 24;

/// The longest parameter list, in bytes: a basic one with some TransportIDs.
pub const MAX_LIST_BYTES: u32 = 8192;

/// A service action (SPC-4 6.16.2). REPLACE LOST RESERVATION is not supported: no reservation is ever lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum OutAction {
    Register = 0,
    Reserve = 1,
    Release = 2,
    Clear = 3,
    Preempt = 4,
    PreemptAndAbort = 5,
    RegisterAndIgnore = 6,
    RegisterAndMove = 7,
}

impl OutAction {
    /// Reads a SERVICE ACTION field.
    pub fn parse(code: u8) -> Option<Self> {
        Some(match code {
            0 => OutAction::Register,
            1 => OutAction::Reserve,
            2 => OutAction::Release,
            3 => OutAction::Clear,
            4 => OutAction::Preempt,
            5 => OutAction::PreemptAndAbort,
            6 => OutAction::RegisterAndIgnore,
            7 => OutAction::RegisterAndMove,
            _ => return None,
        })
    }

    /// Tells whether SCOPE and TYPE mean something.
    pub fn has_kind(self) -> bool {
        matches!(
            self,
            OutAction::Reserve | OutAction::Release | OutAction::Preempt | OutAction::PreemptAndAbort
        )
    }
}

/// What a port asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutRequest {
    /// The service action.
    pub action: OutAction,
    /// TYPE, where it means something; what stands there otherwise is not looked at.
    pub kind: Option<Kind>,
    /// RESERVATION KEY: the one the port is registered with.
    pub key: u64,
    /// SERVICE ACTION RESERVATION KEY.
    pub action_key: u64,
    /// APTPL: what is registered and reserved outlives a loss of power from now on.
    pub persist: bool,
    /// SPEC_I_PT: ports to register, too.
    pub also: Vec<InitiatorPort>,
    /// Of REGISTER AND MOVE: the port to move to.
    pub destination: Option<InitiatorPort>,
    /// Of REGISTER AND MOVE, UNREG: the port that asks is unregistered.
    pub unregister: bool,
}

impl OutRequest {
    /// Reads the parameter list of a service action.
    ///
    /// # Errors
    /// When a field has a value that is not supported, or the list not the length it must have.
    pub fn parse(action: OutAction, kind: Option<Kind>, list: &[u8]) -> Result<Self, Sense> {
        if list.len() < BASIC_BYTES {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        let mut request = Self {
            action,
            kind,
            key: be64(list, 0),
            action_key: be64(list, 8),
            persist: false,
            also: Vec::new(),
            destination: None,
            unregister: false,
        };
        if action == OutAction::RegisterAndMove {
            request.persist = list[17] & 0x01 != 0;
            request.unregister = list[17] & 0x02 != 0;
            if be16(list, 18) != TARGET_PORT {
                return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
            }
            let id = list.get(BASIC_BYTES..BASIC_BYTES + be32(list, 20) as usize);
            let id = id.ok_or(Sense::PARAMETER_LIST_LENGTH)?;
            request.destination = Some(transport_id::parse(id)?.0);
            return Ok(request);
        }
        // ALL_TG_PT asks for all target ports; there is one.
        let (names_ports, persist) = (list[20] & 0x08 != 0, list[20] & 0x01 != 0);
        request.persist = persist && matches!(action, OutAction::Register | OutAction::RegisterAndIgnore);
        if !names_ports {
            // Nothing but the basic list (SPC-4 6.16.1).
            return match list.len() {
                BASIC_BYTES => Ok(request),
                _ => Err(Sense::PARAMETER_LIST_LENGTH),
            };
        }
        if action != OutAction::Register {
            return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
        }
        request.also = parse_ports(&list[BASIC_BYTES..])?;
        Ok(request)
    }
}

/// Reads the additional parameter data of SPEC_I_PT (SPC-4 6.16.3).
fn parse_ports(data: &[u8]) -> Result<Vec<InitiatorPort>, Sense> {
    if data.len() < 4 {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    let mut ids = data
        .get(4..4 + be32(data, 0) as usize)
        .ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    let mut ports = Vec::new();
    while !ids.is_empty() {
        let (port, length) = transport_id::parse(ids)?;
        ports.push(port);
        ids = &ids[length..];
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use quarry_contract::InitiatorName;

    use super::*;

    fn port() -> InitiatorPort {
        InitiatorPort {
            name: InitiatorName::parse("iqn.2026-11.io.x:b").unwrap(),
            isid: [0x80, 0, 0, 0, 0, 7],
        }
    }

    fn basic(flags: u8) -> Vec<u8> {
        let mut list = vec![0; BASIC_BYTES];
        list[7] = 1;
        list[15] = 2;
        list[20] = flags;
        list
    }

    #[test]
    fn basic_lists_have_keys_flags_and_one_length() {
        let request = OutRequest::parse(OutAction::Register, None, &basic(0x05)).unwrap();
        assert_eq!((request.key, request.action_key, request.persist), (1, 2, true));
        let reserve = OutRequest::parse(OutAction::Reserve, Some(Kind::WriteExclusive), &basic(0x01));
        assert!(!reserve.unwrap().persist, "APTPL means nothing in a RESERVE");
        let mut long = basic(0);
        long.push(0);
        for list in [&basic(0)[..23], &long] {
            let refused = OutRequest::parse(OutAction::Register, None, list);
            assert_eq!(refused, Err(Sense::PARAMETER_LIST_LENGTH));
        }
    }

    #[test]
    fn register_may_name_other_ports() {
        let mut list = basic(0x08);
        let id = transport_id::encode(&port());
        list.extend_from_slice(&(id.len() as u32).to_be_bytes());
        list.extend_from_slice(&id);
        let request = OutRequest::parse(OutAction::Register, None, &list).unwrap();
        assert_eq!(request.also, [port()]);
        let other = OutRequest::parse(OutAction::RegisterAndIgnore, None, &list);
        assert_eq!(other, Err(Sense::INVALID_FIELD_IN_PARAMETERS));
        let short = OutRequest::parse(OutAction::Register, None, &list[..list.len() - 4]);
        assert_eq!(short, Err(Sense::PARAMETER_LIST_LENGTH));
    }

    #[test]
    fn move_names_the_only_target_port_and_where_to() {
        let id = transport_id::encode(&port());
        let mut list = vec![0; BASIC_BYTES];
        list[17] = 0x03;
        list[19] = 1;
        list[20..24].copy_from_slice(&(id.len() as u32).to_be_bytes());
        list.extend_from_slice(&id);
        let request = OutRequest::parse(OutAction::RegisterAndMove, None, &list).unwrap();
        assert_eq!(request.destination, Some(port()));
        assert!(request.persist && request.unregister);
        list[19] = 2;
        let elsewhere = OutRequest::parse(OutAction::RegisterAndMove, None, &list);
        assert_eq!(elsewhere, Err(Sense::INVALID_FIELD_IN_PARAMETERS));
    }
}
