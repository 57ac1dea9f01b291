//! Registrations and a reservation as they are kept over a loss of power (APTPL; SPC-4 5.12.5).
//!
//! Big endian, as on the wire:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | the version of this format: 1 |
//! | 1 | the type of the reservation; 0 when there is none |
//! | 2 | the place of the holder among the registrants; FFFFh when all registrants hold it, or there is none |
//! | 2 | how many registrants there are |
//! | … | each registrant: its key in 8 bytes, its TransportID |

use super::state::{Registrant, Reservation};
use super::{Kind, Reservations, transport_id};
use crate::pdu::{be16, be64};

const VERSION: u8 = 1;
const NO_HOLDER: u16 = u16::MAX;

impl Reservations {
    /// Returns what is to be kept; empty when nothing is.
    pub fn to_keep(&self) -> Vec<u8> {
        if !self.is_persistent() || self.registrants().is_empty() {
            return Vec::new();
        }
        let place = |reservation: &Reservation| {
            let holder = reservation.holder.as_ref()?;
            self.registrants().iter().position(|known| known.port == *holder)
        };
        let holder = self
            .current()
            .and_then(place)
            .map_or(NO_HOLDER, |place| place as u16);
        let mut state = vec![VERSION, self.kind().map_or(0, |kind| kind as u8)];
        state.extend_from_slice(&holder.to_be_bytes());
        state.extend_from_slice(&(self.registrants().len() as u16).to_be_bytes());
        for registrant in self.registrants() {
            state.extend_from_slice(&registrant.key.to_be_bytes());
            state.extend_from_slice(&transport_id::encode(&registrant.port));
        }
        state
    }

    /// Takes up what was kept; `None` when it is damaged.
    pub fn restore(state: &[u8]) -> Option<Self> {
        if state.is_empty() {
            return Some(Self::default());
        }
        let (head, mut rest) = state.split_at_checked(6)?;
        if head[0] != VERSION {
            return None;
        }
        let mut registrants = Vec::new();
        while !rest.is_empty() {
            let (key, more) = rest.split_at_checked(8)?;
            let (port, length) = transport_id::parse(more).ok()?;
            registrants.push(Registrant {
                port,
                key: be64(key, 0),
            });
            rest = &more[length..];
        }
        if registrants.len() != usize::from(be16(head, 4)) {
            return None;
        }
        let reservation = match (Kind::parse(head[1]), be16(head, 2)) {
            (None, NO_HOLDER) if head[1] == 0 => None,
            (Some(kind), NO_HOLDER) if kind.has_all_registrants() => Some(Reservation { kind, holder: None }),
            (Some(kind), place) if !kind.has_all_registrants() => Some(Reservation {
                kind,
                holder: Some(registrants.get(usize::from(place))?.port.clone()),
            }),
            _ => return None,
        };
        Some(Self::restored(registrants, reservation))
    }
}
