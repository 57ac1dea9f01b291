//! In-memory drivers: the contract's smallest honest implementations, used by tests of the layers above.
//!
//! The iSCSI target is tested over [`MemoryDevice`], the resource model over [`MemoryBackend`] and
//! [`MemoryTarget`], [`MemoryShareBackend`] and [`MemoryShareServer`]. They pass the same conformance suites as the real drivers. Nothing in them survives the
//! process, so what a power cut may and may not take (V2, B2, B3) is not theirs to show.

mod backend;
mod contents;
mod device;
mod keeper;
mod queue;
mod share_backend;
mod share_server;
mod target;

pub use backend::{MemoryBackend, MemoryBackendOptions};
pub use contents::CHUNK_BYTES;
pub use device::{MemoryDevice, MemoryDeviceOptions};
pub use keeper::MemoryKeeper;
pub use share_backend::{MemoryShareBackend, MemoryShareFiles};
pub use share_server::MemoryShareServer;
pub use target::MemoryTarget;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also after another thread has panicked: every critical section here leaves its data whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
