//! What hostile input is tried on: each target takes bytes of any kind and panics when a property does not hold.
//!
//! Called by the fuzzer (`scripts/fuzz`) and by tests, which replay the corpus and mutations of it. The corpus is in
//! `fuzz/corpus`, a folder a target; `examples/record.rs` makes seeds of the traffic of real initiators.
//!
//! | target | takes | asserts |
//! |---|---|---|
//! | `pdu` | headers, then a text | every header is a request or an error; texts survive being written and read again |
//! | `login` | the PDUs of one login | L1, L2, L3 of `login`; that what is agreed on is what the RFC allows |
//! | `cdb` | a CDB and its parameter list | that what parses is reported as supported with the bits it looks at |
//! | `session` | what several initiators send, and what happens meanwhile | the answers are PDUs in order, T1 and T4 of the contract, that everything ends |

mod answers;
mod cdb;
mod login;
mod pdu;
mod session;
mod world;

pub use cdb::cdb;
pub use login::login;
pub use pdu::pdu;
pub use session::{Recorder, session};
pub use world::{INITIATOR, serve, volume_id as volume};

#[cfg(test)]
mod tests;
