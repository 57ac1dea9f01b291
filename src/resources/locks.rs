//! One lock for each object, so that calls on different objects never wait for each other.
//!
//! Invariants
//! - K1: a call takes all its locks at once, in the order of [`LockKey`], or in a later step only keys that
//!   sort after those it holds: no two calls wait for each other in a circle.
//! - K2: a lock that nobody holds or waits for takes no memory.
//!
//! Failure: a lock that is not had within [`WAIT`] makes the call fail with `InUseByOperation`; the caller
//! tries again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use quarry_contract::{ShareVersion, SnapshotId, VolumeId};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use uuid::Uuid;

use super::error::{Object, ObjectKind, ResourceError};
use crate::catalog::record::AttachmentId;

/// How long a call waits for a lock: much longer than any metadata call takes.
const WAIT: Duration = Duration::from_secs(10);

/// What is locked. The order is the order of taking (K1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum LockKey {
    Volume(Uuid),
    Snapshot(Uuid),
    Attachment(Uuid),
    Share(Uuid),
    ShareSnapshot(Uuid),
}

impl From<ShareVersion> for LockKey {
    fn from(version: ShareVersion) -> Self {
        match version {
            ShareVersion::Share(id) => LockKey::Share(id.0),
            ShareVersion::Snapshot(id) => LockKey::ShareSnapshot(id.0),
        }
    }
}

impl From<VolumeId> for LockKey {
    fn from(id: VolumeId) -> Self {
        LockKey::Volume(id.0)
    }
}

impl From<SnapshotId> for LockKey {
    fn from(id: SnapshotId) -> Self {
        LockKey::Snapshot(id.0)
    }
}

impl From<AttachmentId> for LockKey {
    fn from(id: AttachmentId) -> Self {
        LockKey::Attachment(id.0)
    }
}

impl LockKey {
    fn object(self) -> Object {
        match self {
            LockKey::Volume(id) => Object::new(ObjectKind::Volume, id),
            LockKey::Snapshot(id) => Object::new(ObjectKind::Snapshot, id),
            LockKey::Attachment(id) => Object::new(ObjectKind::Attachment, id),
            LockKey::Share(id) => Object::new(ObjectKind::Share, id),
            LockKey::ShareSnapshot(id) => Object::new(ObjectKind::ShareSnapshot, id),
        }
    }
}

/// The locks of all objects.
#[derive(Default)]
pub(super) struct Locks {
    held: Mutex<HashMap<LockKey, Weak<AsyncMutex<()>>>>,
}

/// Held locks; dropping releases them.
#[derive(Default)]
pub(super) struct Held {
    _guards: Vec<OwnedMutexGuard<()>>,
}

impl Locks {
    /// Takes all of these locks (K1).
    pub(super) async fn take(&self, keys: impl IntoIterator<Item = LockKey>) -> Result<Held, ResourceError> {
        let mut keys: Vec<LockKey> = keys.into_iter().collect();
        keys.sort_unstable();
        keys.dedup();
        let mut guards = Vec::with_capacity(keys.len());
        for key in keys {
            let lock = self.lock_of(key);
            let guard = tokio::time::timeout(WAIT, lock.lock_owned())
                .await
                .map_err(|_| ResourceError::InUseByOperation(key.object()))?;
            guards.push(guard);
        }
        Ok(Held { _guards: guards })
    }

    fn lock_of(&self, key: LockKey) -> Arc<AsyncMutex<()>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = held.get(&key).and_then(Weak::upgrade) {
            return lock;
        }
        // K2: swept when the map has doubled since it was last all in use.
        if held.len() == held.capacity() {
            held.retain(|_, lock| lock.strong_count() > 0);
        }
        let lock = Arc::new(AsyncMutex::new(()));
        held.insert(key, Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u128) -> LockKey {
        LockKey::Volume(Uuid::from_u128(n))
    }

    #[tokio::test(start_paused = true)]
    async fn one_object_is_held_once_and_others_are_free_meanwhile() {
        let locks = Locks::default();
        let first = locks.take([key(1), key(2), key(1)]).await.unwrap();
        drop(locks.take([key(3)]).await.unwrap());
        let refused = locks.take([key(2)]).await.err().unwrap();
        assert!(matches!(refused, ResourceError::InUseByOperation(_)), "{refused}");
        drop(first);
        drop(locks.take([key(2), key(1)]).await.unwrap());
    }

    #[tokio::test]
    async fn released_locks_are_swept() {
        let locks = Locks::default();
        for n in 0..10_000 {
            drop(locks.take([key(n)]).await.unwrap());
        }
        assert!(locks.held.lock().unwrap().len() < 100);
    }
}
