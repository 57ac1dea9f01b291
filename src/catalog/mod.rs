//! The durable records of what no backend can know: attachments, labels and generations, which pools there were,
//! and the journal of operations.
//!
//! Called by the resource model only. One file (`catalog.redb`, mode 0600, because it holds CHAP secrets), read
//! and written through [`Catalog`]; the records are in [`record`].
//!
//! Invariants
//! - G1: a batch of changes given to [`Catalog::commit`] is durable as a whole when it returns, or not at all.
//! - G2: values carry a version; a record of a newer version is refused, never guessed at.
//! - G3: an operation is in the journal from before its first effect until 24 hours after its end.
//! - G4: an attachment is found by its id and, through an index written in the same batch, by its volume.
//! - G5: an attachment is written together with the note, never taken back, that its volume has been attached.
//!
//! Failure: after a failed write redb refuses everything until it is opened again, and so does the agent; the
//! intents that are open then are settled at the next start.

mod error;
#[cfg(test)]
pub(crate) mod power_cut;
pub mod record;
mod store;

pub use error::CatalogError;
pub use store::{Catalog, Change};
