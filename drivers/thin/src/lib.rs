//! Quarry's native copy-on-write thin pool engine.
//!
//! | to learn | read |
//! |---|---|
//! | what the engine asks of the medium | [`PoolDevice`] |
//! | the bytes on the medium | docs/formats/pool.md, `format` |
//! | what all metadata is a function of | `state`, `record`, `version`, `map` |
//! | how a change becomes durable | `commit`, `round`, `turns`, `unsettled`, then `checkpoint` |
//! | what happens after a crash | `recovery` |
//! | where space comes from and goes to | `space`, `allocation`, `page_space`, `garbage` |
//! | how a pool grows, and where its chunks are | `grow`, `device_set`, `labels`, `chunk_places` |
//! | how full a pool is, and who waits for space | `levels`, `waiters` |
//! | how I/O and changes stay out of each other's way | `latch`, `write_epoch`, `plan` |
//! | what has changed between two versions | `differences` |
//! | reads and writes | `data_path`, `whole_chunks`, `part_write`, `given`, `discard`; without blocking, `plan` |
//! | chunks that are not filled yet | `partial`, `filler` |
//! | volumes and snapshots | `control`, `handle` |
//! | encrypted volumes | `keys` |
//! | checksummed volumes | `sums`, `scrub` |
//! | whose a chunk is, when a map cannot tell | `chunk_table` |
//! | what runs in the background | `maintenance`, on the thread of [`Maintainer`] |
//! | the driver of the control plane | [`ThinBackend`] |
//! | the proof that a pool is sound | `check` |
//! | tools that look into a pool or put it right | `inspect`, `repair`, `salvage`, `rebuild` |

mod allocation;
mod assemble;
mod atomic_write;
mod backend;
mod check;
mod checkpoint;
mod chunk_places;
mod chunk_table;
mod commit;
mod control;
mod data_path;
mod device;
mod device_set;
mod differences;
mod discard;
mod error;
mod extents;
mod file_device;
mod filler;
mod format;
mod garbage;
mod given;
mod grow;
mod handle;
mod host_space;
mod inspect;
mod keys;
mod labels;
mod latch;
mod levels;
mod locks;
mod log;
mod log_reader;
mod maintainer;
mod maintenance;
mod map;
mod metrics;
mod options;
mod page_io;
mod page_set;
mod page_space;
mod part_write;
mod partial;
mod plan;
mod plan_map;
mod pool;
mod queue;
mod read_log;
mod rebuild;
mod record;
mod recovery;
mod repair;
mod round;
mod salvage;
mod scrub;
pub mod sim;
mod space;
mod state;
mod sums;
mod turns;
mod unsettled;
mod version;
mod waiters;
mod whole_chunks;
mod write_epoch;

pub use assemble::assemble;
pub use backend::{PoolFile, ThinBackend};
pub use check::CheckReport;
pub use commit::{FlushStep, PlannedFlush};
pub use device::{DirectFile, PoolDevice, Submission};
pub use device_set::DeviceSet;
pub use error::PoolError;
pub use file_device::{Caching, FileDevice, FileDeviceError, FileOptions, IoMode};
pub use handle::VersionHandle;
pub use inspect::{LogBatch, MapRun, PartialChunk, PoolStat, SuperblockCopy, VersionRow};
pub use maintainer::Maintainer;
pub use maintenance::Maintenance;
pub use options::{Access, BitmapSource, FormatOptions, OnFull, OpenOptions, SpaceLevels, Threshold};
pub use plan::{Finished, Place, Plan, PlanGuard, Planned, Segment};
pub use pool::Pool;
pub use queue::{VolumeDevice, VolumeQueue, Workers};
pub use recovery::identify;
pub use repair::{Discarded, RepairReport, repair};
