//! The thin engine as a driver of the control plane.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use quarry_contract::{
    BackendCapabilities, BlockDevice, Capability, Differences, DriverError, Metric, OpenMode, Outcome, Page,
    PoolGrowth, PoolProblem, PoolScrub, PoolStatus, ScrubStatus, SnapshotId, SnapshotInfo, SnapshotSpec,
    VersionId, VolumeBackend, VolumeEncryption, VolumeId, VolumeInfo, VolumeKey, VolumeSpec,
};

use crate::data_path::LOGICAL_BLOCK_BYTES;
use crate::locks::lock;
use crate::maintainer::Maintainer;
use crate::{
    FileDevice, FileDeviceError, FileOptions, FormatOptions, OpenOptions, Pool, PoolDevice, PoolError,
    VolumeDevice, Workers, assemble,
};

/// A pool with what runs around it: the thread for its background work and the threads for blocking I/O.
pub struct ThinBackend {
    pool: Arc<Pool>,
    workers: Arc<Workers>,
    maintainer: Mutex<Option<Maintainer>>,
    /// How devices that are added are opened.
    file_options: FileOptions,
}

/// The file a pool lives in.
#[derive(Debug, Clone)]
pub struct PoolFile {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// How it is opened.
    pub options: FileOptions,
}

impl PoolFile {
    /// The file at `path`, with the best I/O there is.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            options: FileOptions::default(),
        }
    }
}

impl ThinBackend {
    /// Runs a pool that is open.
    ///
    /// # Errors
    /// `Unavailable` when the operating system refuses a thread.
    pub fn new(pool: Arc<Pool>) -> Result<Self, DriverError> {
        let maintainer = Maintainer::start(Arc::clone(&pool)).map_err(|source| DriverError::Unavailable {
            object: format!("pool {}", pool.options.name),
            problem: "its maintenance thread cannot be started".into(),
            source: Some(source),
        })?;
        Ok(Self {
            pool,
            workers: Workers::new(),
            maintainer: Mutex::new(Some(maintainer)),
            file_options: FileOptions::default(),
        })
    }

    /// Opens the pool in a file. Blocks while it recovers.
    ///
    /// # Errors
    /// `Unavailable` when the file does not exist, is in use or holds no pool; `Corrupt`.
    pub fn open_file(file: &PoolFile, options: OpenOptions) -> Result<Self, DriverError> {
        let device = FileDevice::open(&file.path, file.options);
        let device = device.map_err(|error| error.into_driver_error(options.name.as_str()))?;
        Self::open_device(file, Arc::new(device), options)
    }

    /// Makes a sparse file of `size_bytes` with an empty pool in it and opens that. Blocks.
    ///
    /// # Errors
    /// `Unavailable` when the file exists or cannot be made; `InvalidArgument` for the format.
    pub fn create_file(
        file: &PoolFile,
        size_bytes: u64,
        format: &FormatOptions,
        options: OpenOptions,
    ) -> Result<Self, DriverError> {
        let device = FileDevice::create(&file.path, size_bytes, file.options);
        let device = device.map_err(|error| error.into_driver_error(options.name.as_str()))?;
        Pool::format(&device, format).map_err(|error| error.into_driver_error(options.name.as_str()))?;
        Self::open_device(file, Arc::new(device), options)
    }

    /// Opens the pool in a file, or makes both where there is nothing yet. A file that was made, but whose
    /// formatting was cut short by a crash, is formatted; one with anything else in it is not touched. Blocks.
    ///
    /// # Errors
    /// As [`open_file`](Self::open_file) and [`create_file`](Self::create_file).
    pub fn open_or_create_file(
        file: &PoolFile,
        size_bytes: u64,
        format: &FormatOptions,
        options: OpenOptions,
    ) -> Result<Self, DriverError> {
        let name = options.name.clone();
        let device = match FileDevice::open(&file.path, file.options) {
            Err(FileDeviceError::NotFound { .. }) => {
                return Self::create_file(file, size_bytes, format, options);
            }
            opened => opened.map_err(|error| error.into_driver_error(name.as_str()))?,
        };
        let begun_format = matches!(crate::identify(&device), Err(PoolError::NotAPool))
            && crate::recovery::is_blank(&device).map_err(|error| error.into_driver_error(name.as_str()))?;
        if begun_format {
            Pool::format(&device, format).map_err(|error| error.into_driver_error(name.as_str()))?;
        }
        Self::open_device(file, Arc::new(device), options)
    }

    fn open_device(
        file: &PoolFile,
        device: Arc<dyn PoolDevice>,
        options: OpenOptions,
    ) -> Result<Self, DriverError> {
        let name = options.name.clone();
        let open_one = |path: &Path| FileDevice::open(path, file.options);
        let pool = assemble(device, &file.path, open_one).and_then(|set| Pool::open_set(set, options));
        let mut backend = Self::new(pool.map_err(|error| error.into_driver_error(name.as_str()))?)?;
        backend.file_options = file.options;
        Ok(backend)
    }

    /// Returns the pool.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Ends the background work, checkpoints and closes the pool; what is open answers `Closed` from then on.
    /// Blocks. Does nothing the second time.
    ///
    /// # Errors
    /// What the last checkpoint hit; nothing acknowledged is lost by it.
    pub fn shutdown(&self) -> Result<(), DriverError> {
        drop(lock(&self.maintainer).take());
        self.pool.close().map_err(|error| self.pool.driver_error(error))
    }

    /// Runs a blocking call where it holds up no async task.
    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Arc<Pool>) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let pool = Arc::clone(&self.pool);
        // Outside of a tokio runtime the caller is a test or tool that may block.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return call(&pool);
        };
        let joined = runtime.spawn_blocking(move || call(&pool)).await;
        joined.unwrap_or_else(|error| {
            Err(DriverError::Internal {
                detail: format!("a call into the thin engine did not return: {error}"),
            })
        })
    }

    fn nudge(&self) {
        if let Some(maintainer) = &*lock(&self.maintainer) {
            maintainer.nudge();
        }
    }
}

/// Adds the file or block device at `path`; with `size_bytes`, one that is not there is made.
fn add_file(
    pool: &Arc<Pool>,
    path: &Path,
    size_bytes: Option<u64>,
    options: FileOptions,
) -> Result<Outcome<PoolStatus>, DriverError> {
    let invalid = |problem: String| DriverError::InvalidArgument {
        field: "device_path".into(),
        problem,
    };
    let text = path.to_str().filter(|_| path.is_absolute());
    let text = text.ok_or_else(|| invalid(format!("{path:?} is not an absolute path in UTF-8")))?;
    if pool.has_device_at(text) {
        return Ok(Outcome::Unchanged(pool.status()));
    }
    let opened = match (FileDevice::open(path, options), size_bytes) {
        (Err(FileDeviceError::NotFound { .. }), Some(size_bytes)) => {
            FileDevice::create(path, size_bytes, options)
        }
        (opened, _) => opened,
    };
    let device = opened.map_err(|error| error.into_driver_error(pool.options.name.as_str()))?;
    pool.add_device(Arc::new(device), text)
}

#[async_trait]
impl VolumeBackend for ThinBackend {
    fn capabilities(&self) -> BackendCapabilities {
        let mut features = vec![
            Capability::ThinProvisioning,
            Capability::Snapshots,
            Capability::Clones,
            Capability::RevertToAny,
            Capability::OnlineExtend,
            Capability::GroupSnapshots,
            Capability::Discard,
            Capability::Differences,
            Capability::Encryption,
            Capability::Grow,
            Capability::Checksums,
            Capability::Scrub,
        ];
        features.sort_unstable();
        BackendCapabilities {
            driver: "thin",
            features,
            max_volume_bytes: self.pool.max_volume_bytes(),
            size_granularity_bytes: u64::from(LOGICAL_BLOCK_BYTES),
        }
    }

    async fn pool_status(&self) -> Result<PoolStatus, DriverError> {
        self.pool.check_open()?;
        Ok(self.pool.status())
    }

    async fn create_volume(&self, spec: &VolumeSpec) -> Result<Outcome<VolumeInfo>, DriverError> {
        let spec = *spec;
        self.blocking(move |pool| pool.create_volume(&spec)).await
    }

    async fn volume(&self, id: VolumeId) -> Result<VolumeInfo, DriverError> {
        self.pool.check_open()?;
        self.pool.volume(id)
    }

    async fn volumes(&self, page: Page<VolumeId>) -> Result<Vec<VolumeInfo>, DriverError> {
        self.pool.check_open()?;
        Ok(self.pool.volume_page(page))
    }

    async fn extend_volume(&self, id: VolumeId, size_bytes: u64) -> Result<Outcome<VolumeInfo>, DriverError> {
        self.blocking(move |pool| pool.extend_volume(id, size_bytes))
            .await
    }

    async fn reserve_volume(&self, id: VolumeId, reserved: bool) -> Result<Outcome<VolumeInfo>, DriverError> {
        self.blocking(move |pool| pool.reserve_volume(id, reserved)).await
    }

    async fn revert_volume(
        &self,
        id: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<Outcome<VolumeInfo>, DriverError> {
        let reverted = self.blocking(move |pool| pool.revert_volume(id, snapshot)).await;
        self.nudge();
        reverted
    }

    async fn delete_volume(&self, id: VolumeId) -> Result<Outcome<()>, DriverError> {
        let deleted = self.blocking(move |pool| pool.delete_volume(id)).await;
        self.nudge();
        deleted
    }

    async fn create_snapshots(
        &self,
        group: &[SnapshotSpec],
    ) -> Result<Outcome<Vec<SnapshotInfo>>, DriverError> {
        let group = group.to_vec();
        self.blocking(move |pool| pool.create_snapshots(&group)).await
    }

    async fn snapshot(&self, id: SnapshotId) -> Result<SnapshotInfo, DriverError> {
        self.pool.check_open()?;
        self.pool.snapshot(id)
    }

    async fn snapshots(
        &self,
        of: Option<VolumeId>,
        page: Page<SnapshotId>,
    ) -> Result<Vec<SnapshotInfo>, DriverError> {
        self.pool.check_open()?;
        Ok(self.pool.snapshot_page(of, page))
    }

    async fn delete_snapshot(&self, id: SnapshotId) -> Result<Outcome<()>, DriverError> {
        let deleted = self.blocking(move |pool| pool.delete_snapshot(id)).await;
        self.nudge();
        deleted
    }

    async fn check(&self) -> Result<Vec<PoolProblem>, DriverError> {
        self.blocking(|pool| {
            let report = pool.check().map_err(|error| pool.driver_error(error))?;
            let problem = |sentence: String| PoolProblem {
                repairable: !report.beyond_repair.contains(&sentence),
                sentence,
            };
            Ok(report.problems.into_iter().map(problem).collect())
        })
        .await
    }

    async fn grow(&self, growth: &PoolGrowth) -> Result<Outcome<PoolStatus>, DriverError> {
        let (growth, options) = (growth.clone(), self.file_options);
        self.blocking(move |pool| match growth {
            PoolGrowth::Noticed => pool.enlarge(None),
            PoolGrowth::To { size_bytes } => pool.enlarge(Some(size_bytes)),
            PoolGrowth::Device { path, size_bytes } => add_file(pool, &path, size_bytes, options),
        })
        .await
    }

    async fn differences(
        &self,
        of: VersionId,
        since: Option<VersionId>,
        from_bytes: u64,
        most: usize,
    ) -> Result<Differences, DriverError> {
        self.blocking(move |pool| pool.differences(of, since, from_bytes, most))
            .await
    }

    async fn open(&self, id: VersionId, mode: OpenMode) -> Result<Arc<dyn BlockDevice>, DriverError> {
        let workers = Arc::clone(&self.workers);
        self.blocking(move |pool| {
            let handle = pool.open_version(id, mode)?;
            let device: Arc<dyn BlockDevice> = VolumeDevice::new(handle, workers);
            Ok(device)
        })
        .await
    }

    fn encryption(&self) -> Option<&dyn VolumeEncryption> {
        Some(self)
    }

    fn metrics(&self) -> Vec<Metric> {
        self.pool().metrics()
    }

    fn scrub(&self) -> Option<&dyn PoolScrub> {
        Some(self)
    }
}

#[async_trait]
impl PoolScrub for ThinBackend {
    async fn start_scrub(&self) -> Result<Outcome<ScrubStatus>, DriverError> {
        let started = self.blocking(|pool| pool.start_scrub()).await?;
        self.nudge();
        Ok(started)
    }

    async fn stop_scrub(&self) -> Result<Outcome<ScrubStatus>, DriverError> {
        self.blocking(|pool| pool.stop_scrub()).await
    }

    async fn scrub_status(&self) -> Result<ScrubStatus, DriverError> {
        self.blocking(|pool| pool.scrub_status()).await
    }
}

#[async_trait]
impl VolumeEncryption for ThinBackend {
    async fn create_encrypted_volume(
        &self,
        spec: &VolumeSpec,
        key: &VolumeKey,
    ) -> Result<Outcome<VolumeInfo>, DriverError> {
        let (spec, key) = (*spec, key.clone());
        self.blocking(move |pool| pool.create_encrypted_volume(&spec, &key))
            .await
    }

    async fn unlock(&self, id: VersionId, key: &VolumeKey) -> Result<Outcome<()>, DriverError> {
        let key = key.clone();
        self.blocking(move |pool| pool.unlock_version(id, &key)).await
    }

    async fn lock(&self, id: VersionId) -> Result<Outcome<()>, DriverError> {
        self.blocking(move |pool| pool.lock_version(id)).await
    }

    async fn change_key(
        &self,
        id: VersionId,
        key: &VolumeKey,
        new_key: &VolumeKey,
    ) -> Result<Outcome<()>, DriverError> {
        let (key, new_key) = (key.clone(), new_key.clone());
        self.blocking(move |pool| pool.change_key(id, &key, &new_key))
            .await
    }
}
