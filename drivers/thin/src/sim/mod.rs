//! The engine's test kit: a medium that fails as media do, and an oracle that knows what may follow.
//!
//! Everything is deterministic from a seed and lives in memory, so that a failure replays from its number and a
//! crash can be put at every single device operation of a history.
//!
//! | part | what it is |
//! |---|---|
//! | [`SimDevice`] | a [`PoolDevice`](crate::PoolDevice) with a volatile cache, power cuts, faults and bit flips |
//! | [`Model`] | what volumes and snapshots hold and may hold, sector by sector |
//! | [`World`] | a pool on a simulated device beside its model, driven by random operations |

mod action;
mod cells;
mod device;
mod differences;
mod host;
mod model;
mod perform;
mod sectors;
mod verify;
mod world;

pub use action::{Action, Mix};
pub use device::{Fault, OpCounts, OpKind, SimDevice};
pub use model::{Contents, Model, SnapshotModel, VolumeModel};
pub use sectors::{SECTOR_BYTES, Stamp, Value};
pub use verify::DamageSurvey;
pub use world::{Setup, Step, Violation, WithChecksums, World};
