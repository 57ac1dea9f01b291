//! The answers of PERSISTENT RESERVE IN (SPC-4 6.15).

use super::{Kind, Reservations, transport_id};
use crate::scsi::TARGET_PORT;

/// A service action (SPC-4 6.15.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum InAction {
    ReadKeys = 0,
    ReadReservation = 1,
    ReportCapabilities = 2,
    ReadFullStatus = 3,
}

impl InAction {
    /// Reads a SERVICE ACTION field.
    pub fn parse(code: u8) -> Option<Self> {
        Some(match code {
            0 => InAction::ReadKeys,
            1 => InAction::ReadReservation,
            2 => InAction::ReportCapabilities,
            3 => InAction::ReadFullStatus,
            _ => return None,
        })
    }
}

impl Reservations {
    /// Answers a service action.
    pub fn report(&self, action: InAction) -> Vec<u8> {
        match action {
            InAction::ReadKeys => self.numbered(self.keys()),
            InAction::ReadReservation => self.numbered(self.reservation()),
            InAction::ReportCapabilities => self.capabilities(),
            InAction::ReadFullStatus => self.numbered(self.full_status()),
        }
    }

    /// Puts PRGENERATION and the length before a list.
    fn numbered(&self, list: Vec<u8>) -> Vec<u8> {
        let mut data = self.generation().to_be_bytes().to_vec();
        data.extend_from_slice(&(list.len() as u32).to_be_bytes());
        data.extend_from_slice(&list);
        data
    }

    fn keys(&self) -> Vec<u8> {
        self.registrants()
            .iter()
            .flat_map(|registrant| registrant.key.to_be_bytes())
            .collect()
    }

    fn reservation(&self) -> Vec<u8> {
        let Some(kind) = self.kind() else {
            return Vec::new();
        };
        let mut data = vec![0; 16];
        // An all registrants reservation has no key (SPC-4 6.15.3.2).
        data[..8].copy_from_slice(&self.holder_key().unwrap_or(0).to_be_bytes());
        data[13] = kind as u8;
        data
    }

    fn capabilities(&self) -> Vec<u8> {
        let mut mask = 0u16;
        for kind in Kind::ALL {
            // Byte 4 has types 0 to 7, byte 5 begins with type 8 (SPC-4 table 222).
            mask |= match kind as u8 {
                code @ 0..=7 => 1 << (8 + code),
                code => 1 << (code - 8),
            };
        }
        // SIP_C, ATP_C and PTPL_C: ports can be named, all target ports, and APTPL.
        let can = 0x08 | 0x04 | 0x01;
        // TMV, and ALLOW COMMANDS 011b: TEST UNIT READY, MODE SENSE and the like are let through.
        let persists = 0x80 | 0x30 | u8::from(self.is_persistent());
        let [high, low] = mask.to_be_bytes();
        vec![0, 8, can, persists, high, low, 0, 0]
    }

    fn full_status(&self) -> Vec<u8> {
        let mut data = Vec::new();
        for registrant in self.registrants() {
            let mut descriptor = vec![0; 24];
            descriptor[..8].copy_from_slice(&registrant.key.to_be_bytes());
            if let Some(kind) = self.kind()
                && self.is_holder(&registrant.port)
            {
                descriptor[12] = 0x01;
                descriptor[13] = kind as u8;
            }
            descriptor[18..20].copy_from_slice(&TARGET_PORT.to_be_bytes());
            let id = transport_id::encode(&registrant.port);
            descriptor[20..].copy_from_slice(&(id.len() as u32).to_be_bytes());
            data.extend_from_slice(&descriptor);
            data.extend_from_slice(&id);
        }
        data
    }
}
