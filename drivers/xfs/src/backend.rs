//! A store as a driver of the control plane.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use quarry_contract::{
    DriverError, MountedShare, Outcome, PoolName, ShareBackend, ShareCapabilities, ShareId, ShareInfo,
    SharePoolStatus, ShareSnapshotId, ShareSnapshotInfo, ShareSnapshotSpec, ShareSpec, ShareUsage,
    ShareVersion,
};
use tracing::error;
use uuid::Uuid;

use crate::error::StoreError;
use crate::filesystem::BLANK_BYTES;
use crate::locks::lock;

/// What a store does, with calls that block. Each keeps the contract of the call of [`ShareBackend`] of its name.
#[allow(missing_docs, reason = "the contract is there")]
pub trait ShareStore: Sized + Send + Sync + 'static {
    /// How a store is opened.
    type Options;

    /// Opens a pool, and settles what the process before has left.
    fn open(options: &Self::Options) -> Result<Self, StoreError>;

    /// Returns the pool's name.
    fn pool_name(options: &Self::Options) -> &PoolName;

    /// Returns the identity of the pool on disk.
    fn uuid(&self) -> Uuid;

    /// Unmounts everything and gives the pool up.
    fn close(self) -> Result<(), StoreError>;

    fn capabilities(&self) -> ShareCapabilities;
    fn pool_status(&self) -> Result<SharePoolStatus, StoreError>;
    fn create_share(&self, spec: &ShareSpec) -> Result<Outcome<ShareInfo>, StoreError>;
    fn share(&self, id: ShareId) -> Result<ShareInfo, StoreError>;
    fn shares(&self) -> Result<Vec<ShareInfo>, StoreError>;
    fn resize_share(&self, id: ShareId, size_bytes: u64) -> Result<Outcome<ShareInfo>, StoreError>;
    fn revert_share(&self, id: ShareId, snapshot: ShareSnapshotId) -> Result<Outcome<ShareInfo>, StoreError>;
    fn adopt_share(&self, id: ShareId, name: &str) -> Result<Outcome<ShareInfo>, StoreError>;
    fn release_share(&self, id: ShareId, name: &str) -> Result<Outcome<()>, StoreError>;
    fn delete(&self, version: ShareVersion) -> Result<Outcome<()>, StoreError>;
    fn create_snapshots(
        &self,
        group: &[ShareSnapshotSpec],
    ) -> Result<Outcome<Vec<ShareSnapshotInfo>>, StoreError>;
    fn snapshot(&self, id: ShareSnapshotId) -> Result<ShareSnapshotInfo, StoreError>;
    fn snapshots(&self) -> Result<Vec<ShareSnapshotInfo>, StoreError>;
    fn usage(&self, of: ShareVersion) -> Result<ShareUsage, StoreError>;
    fn mount(&self, of: ShareVersion) -> Result<Outcome<MountedShare>, StoreError>;
    fn unmount(&self, of: ShareVersion) -> Result<Outcome<()>, StoreError>;
    fn mounted(&self) -> Vec<MountedShare>;
    fn stopped(&self) -> Vec<ShareVersion>;
    fn damaged(&self) -> Result<Vec<(ShareVersion, String)>, StoreError>;
}

/// How many are unmounted at a time: each waits for the disk.
const UNMOUNTED_AT_A_TIME: usize = 8;

/// Unmounts all that is mounted of a store. What stays mounted does not keep the others so.
///
/// # Errors
/// The first of those that say why something stays mounted.
pub fn unmount_all<S: ShareStore>(store: &S) -> Result<(), StoreError> {
    let waiting = Mutex::new(store.mounted().into_iter());
    let first = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..UNMOUNTED_AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let Some(mounted) = lock(&waiting).next() else {
                        return;
                    };
                    if let Err(error) = store.unmount(mounted.version) {
                        error!(version = %mounted.version, %error, "it stays mounted");
                        lock(&first).get_or_insert(error);
                    }
                }
            });
        }
    });
    match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Called before each step that the end of the process may separate from the next, with the step's name. For tests that
/// end it there.
pub type StepHook = Arc<dyn Fn(&'static str) + Send + Sync>;

/// Calls a hook where there is one.
#[derive(Clone, Default)]
pub struct Steps(pub Option<StepHook>);

impl Steps {
    /// Says that a step comes next.
    pub fn step(&self, name: &'static str) {
        if let Some(hook) = &self.0 {
            hook(name);
        }
    }
}

/// A pool of shares in a store. Its calls run on threads of tokio's for what blocks.
pub struct StoreBackend<S> {
    /// `None` once it is closed.
    store: Mutex<Option<Arc<S>>>,
    capabilities: ShareCapabilities,
    uuid: Uuid,
    name: PoolName,
}

impl<S: ShareStore> StoreBackend<S> {
    /// Opens a pool and settles what the process before has left. Blocks.
    ///
    /// # Errors
    /// `Unavailable` when it is not there, in use, or nothing that the store can work with; `Corrupt`.
    pub fn open(options: &S::Options) -> Result<Self, DriverError> {
        let name = S::pool_name(options).clone();
        let store = S::open(options).map_err(|error| error.at_pool(name.as_str(), BLANK_BYTES, 0))?;
        Ok(Self {
            capabilities: store.capabilities(),
            uuid: store.uuid(),
            store: Mutex::new(Some(Arc::new(store))),
            name,
        })
    }

    /// Returns the identity of the pool on disk.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Unmounts everything and gives the pool up. Calls that come later are `Unavailable`. Blocks, also for the calls
    /// that run.
    ///
    /// # Errors
    /// `Busy` when something is open on a share; it stays mounted, and the pool with it.
    pub fn shutdown(&self) -> Result<(), DriverError> {
        let Some(mut store) = self.slot().take() else {
            return Ok(());
        };
        let store = loop {
            match Arc::try_unwrap(store) {
                Ok(store) => break store,
                Err(shared) => {
                    store = shared;
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            }
        };
        store
            .close()
            .map_err(|error| error.at_pool(self.name.as_str(), 0, 0))
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<S>>> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&S) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let store = self.slot().clone();
        let Some(store) = store else {
            return Err(DriverError::Unavailable {
                object: format!("pool {}", self.name),
                problem: "it is closed".into(),
                source: None,
            });
        };
        let name = self.name.clone();
        let ran = tokio::task::spawn_blocking(move || {
            call(&store).map_err(|error| {
                let free_bytes = store.pool_status().map_or(0, |status| status.free_bytes);
                error.at_pool(name.as_str(), BLANK_BYTES, free_bytes)
            })
        });
        ran.await.unwrap_or_else(|panic| {
            Err(DriverError::Internal {
                detail: format!("a call on pool {} has panicked: {panic}", self.name),
            })
        })
    }
}

#[async_trait]
impl<S: ShareStore> ShareBackend for StoreBackend<S> {
    fn capabilities(&self) -> ShareCapabilities {
        self.capabilities.clone()
    }

    async fn pool_status(&self) -> Result<SharePoolStatus, DriverError> {
        self.run(|store| store.pool_status()).await
    }

    async fn create_share(&self, spec: &ShareSpec) -> Result<Outcome<ShareInfo>, DriverError> {
        let spec = *spec;
        self.run(move |store| store.create_share(&spec)).await
    }

    async fn share(&self, id: ShareId) -> Result<ShareInfo, DriverError> {
        self.run(move |store| store.share(id)).await
    }

    async fn shares(&self) -> Result<Vec<ShareInfo>, DriverError> {
        self.run(|store| store.shares()).await
    }

    async fn resize_share(&self, id: ShareId, size_bytes: u64) -> Result<Outcome<ShareInfo>, DriverError> {
        self.run(move |store| store.resize_share(id, size_bytes)).await
    }

    async fn revert_share(
        &self,
        id: ShareId,
        snapshot: ShareSnapshotId,
    ) -> Result<Outcome<ShareInfo>, DriverError> {
        self.run(move |store| store.revert_share(id, snapshot)).await
    }

    async fn delete_share(&self, id: ShareId) -> Result<Outcome<()>, DriverError> {
        self.run(move |store| store.delete(ShareVersion::Share(id))).await
    }

    async fn adopt_share(&self, id: ShareId, name: &str) -> Result<Outcome<ShareInfo>, DriverError> {
        let name = name.to_owned();
        self.run(move |store| store.adopt_share(id, &name)).await
    }

    async fn release_share(&self, id: ShareId, name: &str) -> Result<Outcome<()>, DriverError> {
        let name = name.to_owned();
        self.run(move |store| store.release_share(id, &name)).await
    }

    async fn create_snapshots(
        &self,
        group: &[ShareSnapshotSpec],
    ) -> Result<Outcome<Vec<ShareSnapshotInfo>>, DriverError> {
        let group = group.to_vec();
        self.run(move |store| store.create_snapshots(&group)).await
    }

    async fn snapshot(&self, id: ShareSnapshotId) -> Result<ShareSnapshotInfo, DriverError> {
        self.run(move |store| store.snapshot(id)).await
    }

    async fn snapshots(&self) -> Result<Vec<ShareSnapshotInfo>, DriverError> {
        self.run(|store| store.snapshots()).await
    }

    async fn delete_snapshot(&self, id: ShareSnapshotId) -> Result<Outcome<()>, DriverError> {
        self.run(move |store| store.delete(ShareVersion::Snapshot(id)))
            .await
    }

    async fn usage(&self, of: ShareVersion) -> Result<ShareUsage, DriverError> {
        self.run(move |store| store.usage(of)).await
    }

    async fn mount(&self, of: ShareVersion) -> Result<Outcome<MountedShare>, DriverError> {
        self.run(move |store| store.mount(of)).await
    }

    async fn unmount(&self, of: ShareVersion) -> Result<Outcome<()>, DriverError> {
        self.run(move |store| store.unmount(of)).await
    }

    async fn mounted(&self) -> Result<Vec<MountedShare>, DriverError> {
        self.run(|store| Ok(store.mounted())).await
    }

    async fn stopped(&self) -> Result<Vec<ShareVersion>, DriverError> {
        self.run(|store| Ok(store.stopped())).await
    }

    async fn damaged(&self) -> Result<Vec<(ShareVersion, String)>, DriverError> {
        self.run(|store| store.damaged()).await
    }
}
