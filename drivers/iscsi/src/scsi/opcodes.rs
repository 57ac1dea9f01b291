//! REPORT SUPPORTED OPERATION CODES: the commands this target knows, with the bits of their CDBs it looks at
//! (SPC-4 6.35).

use super::Sense;

/// One command.
struct Supported {
    opcode: u8,
    service_action: Option<u16>,
    /// Which bits of the CDB are evaluated; its length is the CDB's.
    usage: &'static [u8],
}

const fn plain(opcode: u8, usage: &'static [u8]) -> Supported {
    Supported {
        opcode,
        service_action: None,
        usage,
    }
}

const fn action(opcode: u8, service_action: u16, usage: &'static [u8]) -> Supported {
    Supported {
        opcode,
        service_action: Some(service_action),
        usage,
    }
}

/// Ascending by operation code. The group number and the DPO bit are accepted and change nothing.
const SUPPORTED: [Supported; 29] = [
    plain(0x00, &[0x00, 0, 0, 0, 0, 0x04]),
    plain(0x03, &[0x03, 0x01, 0, 0, 0xff, 0x04]),
    plain(0x08, &[0x08, 0x1f, 0xff, 0xff, 0xff, 0x04]),
    plain(0x0a, &[0x0a, 0x1f, 0xff, 0xff, 0xff, 0x04]),
    plain(0x12, &[0x12, 0x01, 0xff, 0xff, 0xff, 0x04]),
    plain(0x1a, &[0x1a, 0x08, 0xff, 0xff, 0xff, 0x04]),
    plain(0x1b, &[0x1b, 0x01, 0, 0x0f, 0xf7, 0x04]),
    plain(0x25, &[0x25, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x01, 0x04]),
    plain(
        0x28,
        &[0x28, 0xf8, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0x04],
    ),
    plain(
        0x2a,
        &[0x2a, 0xf8, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0x04],
    ),
    plain(
        0x2f,
        &[0x2f, 0xf6, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0x04],
    ),
    plain(
        0x34,
        &[0x34, 0x02, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0x04],
    ),
    plain(
        0x35,
        &[0x35, 0x02, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0x04],
    ),
    plain(
        0x41,
        &[0x41, 0xf8, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0x04],
    ),
    plain(0x42, &[0x42, 0x01, 0, 0, 0, 0, 0x1f, 0xff, 0xff, 0x04]),
    plain(0x5a, &[0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0x04]),
    plain(
        0x88,
        &[
            0x88, 0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04,
        ],
    ),
    plain(
        0x8a,
        &[
            0x8a, 0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04,
        ],
    ),
    plain(
        0x8f,
        &[
            0x8f, 0xf6, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04,
        ],
    ),
    plain(
        0x90,
        &[
            0x90, 0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04,
        ],
    ),
    plain(
        0x91,
        &[
            0x91, 0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04,
        ],
    ),
    plain(
        0x93,
        &[
            0x93, 0xf9, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04,
        ],
    ),
    action(
        0x9e,
        0x10,
        &[
            0x9e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04,
        ],
    ),
    action(
        0x9e,
        0x12,
        &[
            0x9e, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x04,
        ],
    ),
    plain(0xa0, &[0xa0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04]),
    action(
        0xa3,
        0x0c,
        &[
            0xa3, 0x1f, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x04,
        ],
    ),
    plain(
        0xa8,
        &[
            0xa8, 0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04,
        ],
    ),
    plain(
        0xaa,
        &[
            0xaa, 0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04,
        ],
    ),
    plain(
        0xaf,
        &[
            0xaf, 0xf6, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04,
        ],
    ),
];

/// The command timeouts descriptor, with no timeout stated (SPC-4 6.35.4).
const TIMEOUTS: [u8; 12] = [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// All commands.
pub fn all(timeouts: bool) -> Vec<u8> {
    let mut list = Vec::new();
    for command in &SUPPORTED {
        list.extend_from_slice(&[command.opcode, 0]);
        list.extend_from_slice(&command.service_action.unwrap_or(0).to_be_bytes());
        let flags = u8::from(timeouts) << 1 | u8::from(command.service_action.is_some());
        list.extend_from_slice(&[0, flags]);
        list.extend_from_slice(&(command.usage.len() as u16).to_be_bytes());
        if timeouts {
            list.extend_from_slice(&TIMEOUTS);
        }
    }
    let mut data = (list.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(&list);
    data
}

/// One command. `options` is the REPORTING OPTIONS field: 1 by operation code, 2 by service action, 3 by either.
pub fn one(options: u8, opcode: u8, service_action: u16, timeouts: bool) -> Result<Vec<u8>, Sense> {
    let has_actions = SUPPORTED
        .iter()
        .any(|command| command.opcode == opcode && command.service_action.is_some());
    match options {
        1 if has_actions => return Err(Sense::INVALID_FIELD_IN_CDB),
        2 if !has_actions && SUPPORTED.iter().any(|command| command.opcode == opcode) => {
            return Err(Sense::INVALID_FIELD_IN_CDB);
        }
        1..=3 => {}
        _ => return Err(Sense::INVALID_FIELD_IN_CDB),
    }
    let found = SUPPORTED.iter().find(|command| {
        command.opcode == opcode && command.service_action.is_none_or(|known| known == service_action)
    });
    let Some(command) = found else {
        return Ok(vec![0, 0x01, 0, 0]);
    };
    let mut data = vec![0, u8::from(timeouts) << 7 | 0x03];
    data.extend_from_slice(&(command.usage.len() as u16).to_be_bytes());
    data.extend_from_slice(command.usage);
    if timeouts {
        data.extend_from_slice(&TIMEOUTS);
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use super::*;

    #[test]
    fn every_reported_command_parses_and_every_parsed_command_is_reported() {
        for opcode in 0..=0xffu8 {
            for service_action in 0..32u8 {
                let mut cdb = [0; 16];
                cdb[0] = opcode;
                let listed = SUPPORTED.iter().any(|command| {
                    command.opcode == opcode
                        && command
                            .service_action
                            .is_none_or(|known| known == service_action.into())
                });
                let has_actions = SUPPORTED
                    .iter()
                    .any(|command| command.opcode == opcode && command.service_action.is_some());
                if has_actions || !listed {
                    cdb[1] = service_action;
                }
                let known = Command::parse(&cdb) != Err(Sense::INVALID_OPCODE);
                assert_eq!(
                    known, listed,
                    "operation code {opcode:#04x}/{service_action:#04x}"
                );
            }
        }
    }

    #[test]
    fn usage_bytes_begin_with_the_operation_code_and_have_the_length_of_the_cdb() {
        for command in &SUPPORTED {
            assert_eq!(command.usage[0], command.opcode);
            let length = match command.opcode >> 5 {
                0 => 6,
                1 | 2 => 10,
                5 => 12,
                _ => 16,
            };
            assert_eq!(command.usage.len(), length, "{:#04x}", command.opcode);
        }
        assert!(SUPPORTED.windows(2).all(|pair| pair[0].opcode <= pair[1].opcode));
    }
}
