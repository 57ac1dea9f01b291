//! REPORT SUPPORTED OPERATION CODES: the commands this target knows, with the bits of their CDBs it looks at
//! (SPC-4 6.35).

use super::Sense;

/// One command.
struct Supported {
    service_action: Option<u16>,
    /// Which bits of the CDB are evaluated, after the operation code; beyond the CDB's length it is zero.
    usage: [u8; 16],
}

impl Supported {
    const fn opcode(&self) -> u8 {
        self.usage[0]
    }

    /// Returns the usage data, as long as the CDB.
    fn usage(&self) -> &[u8] {
        &self.usage[..cdb_bytes(self.opcode())]
    }
}

/// The length of a command's CDB, which its group code tells (SPC-4 4.2.5.1).
fn cdb_bytes(opcode: u8) -> usize {
    match opcode >> 5 {
        0 => 6,
        1 | 2 => 10,
        5 => 12,
        _ => 16,
    }
}

/// A command without service action whose CDB is spelt out.
const fn plain<const N: usize>(bytes: [u8; N]) -> Supported {
    let mut usage = [0; 16];
    let mut at = 0;
    while at < N {
        usage[at] = bytes[at];
        at += 1;
    }
    Supported {
        service_action: None,
        usage,
    }
}

/// The same with a service action.
const fn action<const N: usize>(service_action: u16, bytes: [u8; N]) -> Supported {
    Supported {
        service_action: Some(service_action),
        ..plain(bytes)
    }
}

/// A 10 byte CDB with an address and a length: `flags` are those of byte 1.
const fn range10(opcode: u8, flags: u8) -> Supported {
    plain([opcode, flags, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0x04])
}

/// A 12 byte CDB with an address and a length.
const fn range12(opcode: u8, flags: u8) -> Supported {
    plain([
        opcode, flags, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04,
    ])
}

/// A 16 byte CDB with an address and a length.
const fn range16(opcode: u8, flags: u8) -> Supported {
    plain([
        opcode, flags, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0x04,
    ])
}

/// A PERSISTENT RESERVE IN.
const fn reserve_in(service_action: u8) -> Supported {
    action(
        service_action as u16,
        [0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04],
    )
}

/// A PERSISTENT RESERVE OUT.
const fn reserve_out(service_action: u8, kind: u8) -> Supported {
    action(
        service_action as u16,
        [0x5f, 0x1f, kind, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x04],
    )
}

/// Only of units whose device has such writes.
const WRITE_ATOMIC: Supported = plain([
    0x9c, 0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0xff, 0xff, 0x1f, 0x04,
]);

/// The commands of a unit whose device has atomic writes, or has not.
fn supported(atomic: bool) -> impl Iterator<Item = &'static Supported> + Clone {
    let has = move |command: &&Supported| atomic || command.opcode() != WRITE_ATOMIC.opcode();
    SUPPORTED.iter().filter(has)
}

/// Ascending by operation code. The group number and the DPO bit are accepted and change nothing.
const SUPPORTED: &[Supported] = &[
    plain([0x00, 0, 0, 0, 0, 0x04]),
    plain([0x03, 0x01, 0, 0, 0xff, 0x04]),
    plain([0x08, 0x1f, 0xff, 0xff, 0xff, 0x04]),
    plain([0x0a, 0x1f, 0xff, 0xff, 0xff, 0x04]),
    plain([0x12, 0x01, 0xff, 0xff, 0xff, 0x04]),
    plain([0x15, 0x11, 0, 0, 0xff, 0x04]),
    plain([0x16, 0x11, 0, 0, 0, 0x04]),
    plain([0x17, 0x11, 0, 0, 0, 0x04]),
    plain([0x1a, 0x08, 0xff, 0xff, 0xff, 0x04]),
    plain([0x1b, 0x01, 0, 0x0f, 0xf7, 0x04]),
    plain([0x1e, 0, 0, 0, 0x03, 0x04]),
    plain([0x25, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x01, 0x04]),
    range10(0x28, 0xf8),
    range10(0x2a, 0xf8),
    range10(0x2e, 0xf6),
    range10(0x2f, 0xf6),
    range10(0x34, 0x02),
    range10(0x35, 0x02),
    plain([0x37, 0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0x04]),
    range10(0x41, 0xf8),
    plain([0x42, 0x01, 0, 0, 0, 0, 0x1f, 0xff, 0xff, 0x04]),
    action(0x01, [0x48, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x04]),
    action(0x02, [0x48, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x04]),
    action(0x1f, [0x48, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x04]),
    plain([0x55, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0x04]),
    plain([0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0x04]),
    reserve_in(0),
    reserve_in(1),
    reserve_in(2),
    reserve_in(3),
    reserve_out(0, 0),
    reserve_out(1, 0xff),
    reserve_out(2, 0xff),
    reserve_out(3, 0),
    reserve_out(4, 0xff),
    reserve_out(5, 0xff),
    reserve_out(6, 0),
    reserve_out(7, 0),
    action(
        0x00,
        [
            0x83, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04,
        ],
    ),
    action(
        0x00,
        [
            0x84, 0x1f, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04,
        ],
    ),
    action(
        0x03,
        [
            0x84, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04,
        ],
    ),
    range16(0x88, 0xf8),
    plain([
        0x89, 0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0x1f, 0x04,
    ]),
    range16(0x8a, 0xf8),
    range16(0x8b, 0xf8),
    range16(0x8e, 0xf6),
    range16(0x8f, 0xf6),
    range16(0x90, 0x02),
    range16(0x91, 0x02),
    range16(0x93, 0xf9),
    WRITE_ATOMIC,
    action(
        0x10,
        [
            0x9e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04,
        ],
    ),
    action(
        0x12,
        [
            0x9e, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x04,
        ],
    ),
    plain([0xa0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04]),
    action(0x0a, [0xa3, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04]),
    action(
        0x0c,
        [
            0xa3, 0x1f, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x04,
        ],
    ),
    action(0x0d, [0xa3, 0x1f, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04]),
    range12(0xa8, 0xf8),
    range12(0xaa, 0xf8),
    range12(0xae, 0xf6),
    range12(0xaf, 0xf6),
    plain([0xb7, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x04]),
];

/// The command timeouts descriptor, with no timeout stated (SPC-4 6.35.4).
const TIMEOUTS: [u8; 12] = [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// All commands.
pub fn all(atomic: bool, timeouts: bool) -> Vec<u8> {
    let mut list = Vec::new();
    for command in supported(atomic) {
        list.extend_from_slice(&[command.opcode(), 0]);
        list.extend_from_slice(&command.service_action.unwrap_or(0).to_be_bytes());
        let flags = u8::from(timeouts) << 1 | u8::from(command.service_action.is_some());
        list.extend_from_slice(&[0, flags]);
        list.extend_from_slice(&(command.usage().len() as u16).to_be_bytes());
        if timeouts {
            list.extend_from_slice(&TIMEOUTS);
        }
    }
    let mut data = (list.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(&list);
    data
}

/// One command. `options` is the REPORTING OPTIONS field: 1 by operation code, 2 by service action, 3 by either.
pub fn one(
    atomic: bool,
    options: u8,
    opcode: u8,
    service_action: u16,
    timeouts: bool,
) -> Result<Vec<u8>, Sense> {
    let has_actions =
        supported(atomic).any(|command| command.opcode() == opcode && command.service_action.is_some());
    let is_known = supported(atomic).any(|command| command.opcode() == opcode);
    match options {
        1 if !has_actions => {}
        2 if has_actions || !is_known => {}
        3 => {}
        _ => return Err(Sense::INVALID_FIELD_IN_CDB.at_cdb_byte(2)),
    }
    let found = supported(atomic).find(|command| {
        command.opcode() == opcode && command.service_action.is_none_or(|known| known == service_action)
    });
    let Some(command) = found else {
        return Ok(vec![0, 0x01, 0, 0]);
    };
    let mut data = vec![0, u8::from(timeouts) << 7 | 0x03];
    data.extend_from_slice(&(command.usage().len() as u16).to_be_bytes());
    data.extend_from_slice(command.usage());
    if timeouts {
        data.extend_from_slice(&TIMEOUTS);
    }
    Ok(data)
}

/// The task management functions (SPC-4 6.36): all of RFC 7143 but those for ACA and for reassignment.
pub fn task_management() -> Vec<u8> {
    const ABORT_TASK: u8 = 0x80;
    const ABORT_TASK_SET: u8 = 0x40;
    const CLEAR_TASK_SET: u8 = 0x10;
    const UNIT_RESET: u8 = 0x08;
    const TARGET_RESET: u8 = 0x02;
    vec![
        ABORT_TASK | ABORT_TASK_SET | CLEAR_TASK_SET | UNIT_RESET | TARGET_RESET,
        0,
        0,
        0,
    ]
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
                    command.opcode() == opcode
                        && command
                            .service_action
                            .is_none_or(|known| known == service_action.into())
                });
                let has_actions = SUPPORTED
                    .iter()
                    .any(|command| command.opcode() == opcode && command.service_action.is_some());
                if has_actions || !listed {
                    cdb[1] = service_action;
                }
                if opcode == 0x5f {
                    cdb[2] = 0x01; // a type, which some service actions need
                }
                let known = match Command::parse(&cdb) {
                    Ok(_) => true,
                    Err(sense) => sense != Sense::INVALID_OPCODE && !has_actions,
                };
                assert_eq!(
                    known, listed,
                    "operation code {opcode:#04x}/{service_action:#04x}"
                );
            }
        }
    }

    #[test]
    fn usage_data_has_no_bit_beyond_the_cdb_and_the_list_ascends() {
        for command in SUPPORTED {
            let length = cdb_bytes(command.opcode());
            assert!(command.usage[length..].iter().all(|bits| *bits == 0));
        }
        let place = |command: &Supported| (command.opcode(), command.service_action);
        assert!(SUPPORTED.windows(2).all(|pair| place(&pair[0]) < place(&pair[1])));
    }
}
