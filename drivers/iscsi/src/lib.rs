//! Quarry's native iSCSI target: exports block devices over TCP, in user space, on threads of its own.
//!
//! [`IscsiTarget`] implements [`quarry_contract::Target`]. It knows nothing of pools: what it exports is an
//! `Arc<dyn BlockDevice>`. From the wire inwards:
//!
//! | module | what it is about |
//! |---|---|
//! | `pdu`, `text` | the wire format: headers, and `key=value` texts |
//! | `login`, `chap`, `negotiation` | from a connection to a session, without I/O |
//! | `session` | the full feature phase: command order, tasks, data transfer, task management |
//! | `scsi` | CDBs, sense, and the answers that need no I/O |
//! | `reservations` | who has reserved a unit |
//! | `limiter` | how fast a unit may be used |
//! | `fair_share` | how much of a device's queue a unit may take beside others |
//! | `range_locks` | blocks that one command has for itself |
//! | `unit_state` | what initiators have done to a unit that others feel |
//! | `reactor` | the threads: epoll, sockets, buffers, device queues |
//! | `exports` | who may reach what |
//! | `sanitizer` | destroying all data of a unit |
//! | `background` | work that waits for the disk |
//! | `metrics` | what is counted |
//! | `nexus` | what others may tell a session |
//! | `target` | start, control calls, end |
//! | `fuzzing` | what fuzz targets call, not part of a build otherwise |
//!
//! Standards: RFC 7143 (iSCSI), RFC 1994 (CHAP), SAM-5, SPC-4, SBC-3, of SBC-4 WRITE ATOMIC; cited where they are followed. Error
//! recovery level 0, one connection a session.

mod background;
mod chap;
mod config;
mod error;
mod exports;
mod fair_share;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod limiter;
mod login;
mod metrics;
mod negotiation;
mod nexus;
mod pass;
mod pdu;
mod range_locks;
mod reactor;
mod reservations;
mod sanitizer;
mod scsi;
mod session;
mod target;
mod text;
mod unit_state;

pub use config::TargetConfig;
pub use error::StartError;
pub use target::IscsiTarget;
