//! CDBs and parameter lists.

use std::sync::{Arc, OnceLock};

use quarry_contract::memory::MemoryDevice;

use super::world;
use crate::reservations::OutRequest;
use crate::scsi::{
    Command, LogicalUnit, MAX_COPY_LIST_BYTES, Method, ModePages, UnitIdentity, parse_copy_list,
    parse_unmap_list,
};

const SIZE_BYTES: u64 = 1 << 20;

const PAGES: ModePages = ModePages {
    software_write_protect: false,
    write_protected: false,
};

/// Takes a CDB and what follows as its parameter list.
pub fn cdb(input: &[u8]) {
    static UNIT: OnceLock<LogicalUnit> = OnceLock::new();
    let unit = UNIT.get_or_init(|| {
        let identity = UnitIdentity::of(world::volume_id(1), world::target_name(1));
        LogicalUnit::new(Arc::new(identity), MemoryDevice::of_size(SIZE_BYTES))
    });
    let Some((cdb, list)) = input.split_first_chunk::<16>() else {
        return;
    };
    let Ok(command) = Command::parse(cdb) else { return };
    check_usage(unit, cdb, &command);
    if let Some(Ok(data)) = unit.answer(&command, PAGES) {
        assert!(data.len() <= 4096, "{command:?} answers {} bytes", data.len());
    }
    check_list(unit, &command, list);
}

/// Asserts that REPORT SUPPORTED OPERATION CODES knows the command, and that the bits it is not said to look at
/// make no difference.
fn check_usage(unit: &LogicalUnit, cdb: &[u8; 16], command: &Command) {
    let question = Command::SupportedOpcodes {
        timeouts: false,
        options: 3,
        opcode: cdb[0],
        service_action: (cdb[1] & 0x1f).into(),
        allocation: u32::MAX,
    };
    let answer = unit.answer(&question, PAGES);
    let answer = answer.expect("needs no I/O").expect("options 3 are always valid");
    assert_eq!(answer[1] & 0x07, 0x03, "{command:?} is not reported");
    let mut masked = [0; 16];
    masked[0] = cdb[0];
    for (at, usage) in answer[4..].iter().enumerate().skip(1) {
        masked[at] = cdb[at] & usage;
    }
    assert_eq!(
        Command::parse(&masked).as_ref(),
        Ok(command),
        "{cdb:02x?} looks at other bits"
    );
}

fn check_list(unit: &LogicalUnit, command: &Command, list: &[u8]) {
    match *command {
        Command::Unmap { .. } => {
            let ranges = parse_unmap_list(list).unwrap_or_default();
            assert!(ranges.len() * 16 <= list.len());
            let bytes: u64 = ranges.iter().map(|range| u64::from(range.blocks) * 512).sum();
            assert!(bytes <= 512 << 20, "the limit of VPD page B0h");
        }
        Command::ExtendedCopy { .. } if list.len() <= MAX_COPY_LIST_BYTES as usize => {
            let Ok(copy) = parse_copy_list(unit, list) else {
                return;
            };
            assert!(copy.runs.len() <= 16);
            for run in copy.runs {
                assert!(
                    run.from + run.bytes <= SIZE_BYTES && run.to + run.bytes <= SIZE_BYTES,
                    "{run:?}"
                );
            }
        }
        Command::ModeSelect { ten, .. } => {
            let _ = unit.parse_mode_list(ten, list);
        }
        Command::PersistentOut { action, kind, .. } => {
            let _ = OutRequest::parse(action, kind, list);
        }
        Command::Sanitize { .. } => {
            if let Ok(Method::Overwrite { pattern, count, .. }) = Method::parse_overwrite(list) {
                assert!(!pattern.is_empty() && count > 0);
            }
        }
        _ => {}
    }
}
