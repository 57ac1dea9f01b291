//! Quarry's native copy-on-write thin pool engine.

mod device;
mod error;
mod file_device;
mod options;
mod plan;
mod pool;
mod queue;
pub mod sim;

pub use device::{DirectFile, PoolDevice, Submission};
pub use error::PoolError;
pub use file_device::{FileDevice, FileDeviceError, IoMode};
pub use options::{FormatOptions, OpenOptions};
pub use plan::{Place, Plan, PlanGuard, Planned, Segment};
pub use pool::{CheckReport, Maintenance, Pool, VersionHandle};
pub use queue::{VolumeDevice, VolumeQueue, Workers};
