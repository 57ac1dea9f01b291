//! Quarry's native copy-on-write thin pool engine.

mod device;

pub use device::{DirectFile, PoolDevice};
