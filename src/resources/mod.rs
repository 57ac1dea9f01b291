//! The resource model: volumes, snapshots, attachments, shares and their state machines, once for every driver.
//!
//! Called by `api`; calls the drivers of the [`Registry`] and the [`Catalog`]. This is the only layer that knows
//! of idempotency, preconditions, locks, intents and recovery.
//!
//! Invariants
//! - R1: an intent is durable before the first effect of a call and closed after its last ([`operations`]).
//! - R2: after [`Resources::recover`] no intent is open and every attachment is exported, or is marked degraded
//!   and retried; no call is answered before that.
//! - R3: calls on one object run one after another ([`locks`]); a call runs to its end even when its caller goes
//!   away.
//! - R4: volumes, snapshots, sizes and lineage are read from the backends; attachments, labels, generations and
//!   operations from the catalog. Nothing is kept in both.
//! - R5: a volume is exported exactly while it has an attachment, to exactly the hosts that have one
//!   ([`exports`]).
//! - R6: a share is mounted and exported exactly while one of its rules can be enforced ([`share_exports`]).
//!
//! A mutating call is one file's function with one shape: take the locks, look whether the end state is there
//! already, check the preconditions, open the intent, call the driver, and hand the changes of the catalog to
//! [`operations`], which closes the intent with them in one batch.

mod access;
mod attachments;
mod data;
mod error;
mod exports;
mod locks;
mod model;
mod node;
mod operations;
mod pools;
mod recovery;
mod share_exports;
mod share_pools;
mod share_snapshots;
mod shares;
mod snapshots;
mod volumes;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::task::TaskTracker;

pub use access::{AccessDecision, AccessStatus, ConnectedClient, RuleSource, RuleView};
pub use attachments::{MadeAttachment, NewAttachment};
pub use error::{Object, ObjectKind, ResourceError};
pub use model::{
    Attachment, AttachmentState, ConnectionInfo, Mutation, Pool, RecoveryReport, Snapshot, Volume,
    VolumeEncryption,
};
pub use node::{Driver, DriverRole, Node};
pub use quarry_contract::Page;
pub use share_pools::SharePoolView;
pub use share_snapshots::ShareSnapshot;
pub use shares::{AdoptedShare, ExportLocation, NewShare, Share};
pub use volumes::NewVolume;

use crate::catalog::Catalog;
use crate::catalog::record::Moment;
use crate::registry::Registry;

/// The resource model over one set of drivers and one catalog.
pub struct Resources {
    registry: Registry,
    catalog: Catalog,
    locks: locks::Locks,
    exports: exports::Exports,
    share_exports: share_exports::ShareExports,
    /// The calls that are running (R3).
    running: TaskTracker,
    is_stopping: AtomicBool,
    recovery: Mutex<RecoveryReport>,
    started: Moment,
}

impl Resources {
    /// Puts the model over its drivers and its catalog. [`Resources::recover`] comes before the first call.
    pub fn new(registry: Registry, catalog: Catalog) -> Arc<Self> {
        Arc::new(Self {
            registry,
            catalog,
            locks: locks::Locks::default(),
            exports: exports::Exports::default(),
            share_exports: share_exports::ShareExports::default(),
            running: TaskTracker::new(),
            is_stopping: AtomicBool::new(false),
            recovery: Mutex::default(),
            started: Moment::now(),
        })
    }

    /// Takes no new mutating call, and waits for those that run, `limit` at most. What is cut short is settled
    /// at the next start (R2). Returns whether all have ended.
    pub async fn stop(&self, limit: Duration) -> bool {
        self.is_stopping.store(true, Ordering::SeqCst);
        self.running.close();
        tokio::time::timeout(limit, self.running.wait()).await.is_ok()
    }
}
