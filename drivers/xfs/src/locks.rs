//! One lock for each object, for calls that block.
//!
//! K1: a call takes all its locks at once, in their order: no two calls wait for each other in a circle.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use quarry_contract::{ShareSnapshotSpec, ShareVersion};

/// Locks a mutex, also after another thread has panicked: every critical section leaves its data whole.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The locks of all objects.
#[derive(Default)]
pub struct Locks {
    held: Mutex<BTreeSet<ShareVersion>>,
    released: Condvar,
}

/// Held locks; dropping releases them.
pub struct Held<'a> {
    locks: &'a Locks,
    versions: Vec<ShareVersion>,
}

impl Locks {
    /// Takes all of these, waiting for who has them (K1).
    pub fn take(&self, versions: impl IntoIterator<Item = ShareVersion>) -> Held<'_> {
        let mut versions: Vec<ShareVersion> = versions.into_iter().collect();
        versions.sort_unstable();
        versions.dedup();
        let mut held = lock(&self.held);
        // All at once: who waits holds nothing.
        while versions.iter().any(|version| held.contains(version)) {
            held = self.released.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        held.extend(versions.iter().copied());
        Held {
            locks: self,
            versions,
        }
    }

    /// Takes what snapshots that are taken together concern.
    pub fn take_group(&self, group: &[ShareSnapshotSpec]) -> Held<'_> {
        let of =
            |spec: &ShareSnapshotSpec| [ShareVersion::Share(spec.share), ShareVersion::Snapshot(spec.id)];
        self.take(group.iter().flat_map(of))
    }

    /// Takes one when nobody has it.
    pub fn try_take(&self, version: ShareVersion) -> Option<Held<'_>> {
        lock(&self.held).insert(version).then(|| Held {
            locks: self,
            versions: vec![version],
        })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = lock(&self.locks.held);
        for version in &self.versions {
            held.remove(version);
        }
        self.locks.released.notify_all();
    }
}
