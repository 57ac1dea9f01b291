//! Who has reserved a unit: persistent reservations (SPC-4 5.12) and the older RESERVE (6) (SPC-2 5.5.1).
//!
//! Nothing here does I/O or knows of sessions: commands of initiator ports go in, and what is to be told to other
//! ports comes out. There is one target port, so an I_T nexus is an initiator port.
//!
//! Invariants
//! - R1: no two registrants have the same port; every key is nonzero.
//! - R2: the holder of a reservation is registered; an all registrants reservation has a registrant.
//! - R3: while a port is registered, nobody gets hold of the unit with RESERVE (6), and the other way round.
//!
//! | file | what it is about |
//! |---|---|
//! | `kind` | the types of reservation, and which commands they keep out |
//! | `request` | PERSISTENT RESERVE OUT as it comes in |
//! | `state` | what each service action changes |
//! | `report` | the answers of PERSISTENT RESERVE IN |
//! | `kept` | what outlives a loss of power |
//! | `transport_id` | initiator ports on the wire |

mod kept;
mod kind;
mod report;
mod request;
mod state;
#[cfg(test)]
mod tests;
mod transport_id;

pub use kind::{Kind, Touch};
pub use report::InAction;
pub use request::{MAX_LIST_BYTES, OutAction, OutRequest};
pub use state::{Consequences, Notice, Reservations};

use quarry_contract::InitiatorName;

/// An initiator port: the name of the initiator and the ISID of its session (RFC 7143 4.4).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InitiatorPort {
    /// The initiator's name.
    pub name: InitiatorName,
    /// The initiator's part of the session's name.
    pub isid: [u8; 6],
}
