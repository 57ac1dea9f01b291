//! The seam between the resource model and the drivers.
//!
//! A driver implements one or more of the roles below and knows nothing of gRPC, of the catalog or of other
//! drivers. The control plane's side ([`VolumeBackend`], [`Target`]) is async and object safe; the data path's
//! side ([`BlockDevice`], [`IoQueue`]) is not async, never blocks its caller and is driven by completions.
//!
//! | role | trait | who calls it |
//! |---|---|---|
//! | cuts volumes out of a pool | [`VolumeBackend`] | the resource model |
//! | reads and writes one volume or snapshot | [`BlockDevice`], [`IoQueue`] | targets, on their own threads |
//! | exports volumes to initiators | [`Target`] | the resource model |
//! | cuts shares out of a pool | [`ShareBackend`] | the resource model |
//! | exports shares to clients | [`ShareServer`] | the resource model |
//!
//! Every trait states its contract in its documentation and is judged by a conformance suite in
//! [`conformance`], which the in-memory drivers in [`memory`] and every real driver run.

mod block_device;
mod blocking_queue;
pub mod conformance;
mod encryption;
mod error;
mod id;
mod io_buffer;
mod io_limits;
pub mod memory;
mod metric;
mod outcome;
mod page;
mod pool_space;
mod scrub;
mod share;
mod target;
mod volume_backend;

pub use block_device::{
    BlockDevice, Completion, DeviceLimits, Durability, Extent, IoError, IoQueue, MediumId, QueueFull,
    Request, Tag, Verb, ZeroMode,
};
pub use blocking_queue::{BlockingQueue, wait_for_completions};
pub use encryption::{Encryption, VolumeEncryption, VolumeKey};
pub use error::{DriverError, ErrorKind, FieldDifference};
pub use id::{AccessRuleId, PoolName, ShareId, ShareSnapshotId, SnapshotId, VolumeId};
pub use io_buffer::{BUFFER_ALIGNMENT_BYTES, IoBuffer, IoBufferShape};
pub use io_limits::{IoLimits, Rate, RateLimits};
pub use metric::{Metric, MetricKind, MetricValue, Sample};
pub use outcome::Outcome;
pub use page::Page;
pub use pool_space::{PoolGrowth, PoolSpace, SpaceLevel};
pub use scrub::{PoolScrub, ScrubFinding, ScrubState, ScrubStatus};
pub use share::{
    AccessEntry, AccessLevel, AccessRule, AccessTable, ClientKind, EnforceableAccess, LoadedAccess,
    MountedShare, Network, PortalRole, RefusedRule, RuleState, RuleStatus, ShareAddress, ShareBackend,
    ShareCapabilities, ShareCapability, ShareClient, ShareExport, ShareInfo, SharePoolStatus, SharePortal,
    ShareServer, ShareSnapshotInfo, ShareSnapshotSpec, ShareSource, ShareSpec, ShareUsage, ShareVersion,
    Squash, adopted_as_another, name_is_taken, nothing_named, resolve_access,
};
pub use target::{
    Absence, Access, ChapCredentials, ExportInfo, ExportSpec, Grant, InitiatorName, Keeper, Portal,
    SessionInfo, Target,
};
pub use volume_backend::{
    BackendCapabilities, Capability, DataSource, Difference, Differences, OpenMode, PoolProblem, PoolState,
    PoolStatus, SnapshotInfo, SnapshotSpec, VersionId, VolumeBackend, VolumeInfo, VolumeSpec,
};
