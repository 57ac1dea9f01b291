//! The driver.
//!
//! Each export is its share's file system, mounted once more below the folder of exports, so that clients find all shares in
//! one place whatever pool they are of.
//!
//! Invariants
//! - K4: an export's folder is its share's file system, by the device, before a line of the table names it; and stays
//!   that until none does.
//! - K5: an export ends in this order: the table lets go of it and the kernel forgets what it was told, so that no client
//!   gets anything more; what clients hold is given up; the mount is ended.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use quarry_contract::{
    ClientKind, DriverError, EnforceableAccess, LoadedAccess, MountedShare, Network, Outcome, ShareClient,
    ShareExport, SharePortal, ShareServer, ShareVersion,
};
use quarry_sys::filesystem::{is_root_of, mount_again, mounts_below, unmount};
use tokio::sync::Mutex;
use tracing::{error, info, warn};

use crate::clients::{clients, device_text};
use crate::config::KnfsdConfig;
use crate::launch::{self, Processes, StartError, checked, launch, prepare};
use crate::release::{CLIENTS, is_mounted, release};
use crate::table::{ExportRecord, folder_of, parse};
use crate::writer::{WriteError, Writer};

/// How often the processes are looked at, and what the kernel remembers.
const WATCH_PAUSE: Duration = Duration::from_millis(200);
const CACHE_PAUSE: Duration = Duration::from_millis(800);
/// How long to wait before the next try when something does not start.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// Linux's NFS server. Dropping it leaves the server running for the next; [`ShareServer::shutdown`] ends it.
pub struct KnfsdServer {
    shared: Arc<Shared>,
    watcher: tokio::task::JoinHandle<()>,
}

struct Shared {
    config: Arc<KnfsdConfig>,
    writer: Writer,
    state: Mutex<State>,
    // Last: the folder is another agent's when everything else has ended.
    _lock: File,
}

struct State {
    processes: Option<Processes>,
    is_shut_down: bool,
}

impl KnfsdServer {
    /// Starts the server, or takes up the one that an agent before has left.
    ///
    /// # Errors
    /// Names what is missing, wrong or in use.
    pub async fn start(config: KnfsdConfig) -> Result<Self, StartError> {
        let config = Arc::new(checked(config)?);
        let lock = prepare(&config).await?;
        let mut exports = parse(&fs::read_to_string(&config.table).unwrap_or_default());
        // As after a restart of the machine: it is exported again by who mounts it.
        exports.retain(|version, record| {
            let is_there = is_export(&config.root.join(folder_of(*version)), record.device);
            if !is_there {
                info!(%version, "not exported again: its share is not mounted where it was");
            }
            is_there
        });
        let shared = Arc::new(Shared {
            writer: Writer::new(Arc::clone(&config), exports),
            config,
            state: Mutex::new(State {
                processes: None,
                is_shut_down: false,
            }),
            _lock: lock,
        });
        let wrote = shared.writer.write_all().await;
        wrote.map_err(|error| StartError::Program {
            program: shared.config.programs.exportfs.display().to_string(),
            problem: error.to_string(),
        })?;
        launch(&shared.config, &mut shared.state.lock().await.processes).await?;
        let watcher = tokio::spawn(watch(Arc::clone(&shared)));
        Ok(Self { shared, watcher })
    }
}

impl Drop for KnfsdServer {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

/// Looks after the processes, the threads and the table until it is aborted.
async fn watch(shared: Arc<Shared>) {
    let mut pause = WATCH_PAUSE;
    let mut looked = Instant::now();
    loop {
        tokio::time::sleep(pause).await;
        let mut state = shared.state.lock().await;
        if state.is_shut_down {
            return;
        }
        pause = match launch(&shared.config, &mut state.processes).await {
            Ok(()) => WATCH_PAUSE,
            Err(error) => {
                error!(%error, "the NFS server cannot be started again, and will be tried");
                RETRY_PAUSE
            }
        };
        drop(state);
        if looked.elapsed() > CACHE_PAUSE {
            shared.writer.look_after().await;
            looked = Instant::now();
        }
    }
}

/// Tells whether an export's folder is a mount of a device.
fn is_export(folder: &Path, device: u64) -> bool {
    is_mounted(folder).unwrap_or(false) && is_root_of(folder, device)
}

impl Shared {
    fn folder(&self, version: ShareVersion) -> PathBuf {
        self.config.root.join(folder_of(version))
    }

    fn unavailable(&self, problem: String, source: Option<io::Error>) -> DriverError {
        DriverError::Unavailable {
            object: "the NFS server".into(),
            problem,
            source,
        }
    }

    /// Refuses a call while something of the server does not run (N7).
    async fn check_serving(&self) -> Result<(), DriverError> {
        let mut state = self.state.lock().await;
        let are_alive = state.processes.as_mut().is_some_and(Processes::are_alive);
        if are_alive && launch::threads().is_ok_and(|threads| threads > 0) {
            return Ok(());
        }
        Err(self.unavailable("it does not run, and is started again".into(), None))
    }

    async fn export(&self, export: &ShareExport) -> Result<Outcome<()>, DriverError> {
        self.check_serving().await?;
        let version = export.mounted.version;
        let record = ExportRecord::of(export);
        self.mount(&export.mounted).await?;
        if self.writer.find(version).as_ref() == Some(&record) {
            let loaded = self.writer.loaded(version);
            let loaded =
                loaded.map_err(|error| self.unavailable("reading what is exported".into(), Some(error)))?;
            if record.is_loaded_as(&loaded) {
                return Ok(Outcome::Unchanged(()));
            }
        }
        self.writer
            .change(version, Some(record))
            .await
            .map_err(|error| match error {
                WriteError::Refused(_) => DriverError::Internal {
                    detail: format!("{version}: {error}"),
                },
                WriteError::Failed(problem) => self.unavailable(problem, None),
            })?;
        Ok(Outcome::Changed(()))
    }

    /// Mounts a share in the folder of exports (K4).
    async fn mount(&self, mounted: &MountedShare) -> Result<(), DriverError> {
        let folder = self.folder(mounted.version);
        let corrupt = |path: &Path| DriverError::Corrupt {
            object: mounted.version.to_string(),
            detail: format!("{} is not where it is mounted", path.display()),
        };
        if !is_root_of(&mounted.path, mounted.device) {
            return Err(corrupt(&mounted.path));
        }
        if is_export(&folder, mounted.device) {
            return Ok(());
        }
        // What is there is not what it was: an export does not move, it is another.
        self.withdraw(mounted.version).await?;
        let failed = |error| self.unavailable(format!("mounting {}", folder.display()), Some(error));
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&folder)
            .map_err(failed)?;
        mount_again(&mounted.path, &folder).map_err(failed)?;
        if is_root_of(&folder, mounted.device) {
            return Ok(());
        }
        // The path has changed since it was looked at.
        unmount(&folder).map_err(failed)?;
        Err(corrupt(&mounted.path))
    }

    /// Ends an export (K5). True when there was one, or a rest of one.
    async fn withdraw(&self, version: ShareVersion) -> Result<bool, DriverError> {
        let loaded = self.writer.loaded(version).unwrap_or_default();
        let was_exported = self.writer.find(version).is_some() || !loaded.is_empty();
        if was_exported {
            let changed = self.writer.change(version, None).await;
            changed.map_err(|error| self.unavailable(error.to_string(), None))?;
        }
        let was_mounted = release(&self.writer, &self.folder(version), &version.to_string()).await?;
        Ok(was_exported || was_mounted)
    }

    async fn loaded(&self, version: ShareVersion) -> Result<Option<LoadedAccess>, DriverError> {
        self.check_serving().await?;
        let loaded = self.writer.loaded(version);
        let loaded =
            loaded.map_err(|error| self.unavailable("reading what is exported".into(), Some(error)))?;
        match self.writer.find(version) {
            Some(record) if record.is_loaded_as(&loaded) => Ok(Some(record.loaded())),
            // Not what it was told: then it is what it says.
            _ if !loaded.is_empty() => {
                let each = |line: &crate::table::LoadedLine| {
                    Some((Network::parse(&line.client).ok()?, line.level()?))
                };
                Ok(Some(LoadedAccess(loaded.iter().filter_map(each).collect())))
            }
            _ => Ok(None),
        }
    }

    async fn shutdown(&self) {
        let mut state = self.state.lock().await;
        if state.is_shut_down {
            return;
        }
        state.is_shut_down = true;
        if let Err(error) = self.writer.clear().await {
            warn!(%error, "exports stay in the table of the kernel's NFS server, which ends");
        }
        // With it ends what clients hold.
        launch::end(&self.config, state.processes.take()).await;
        let mounts = mounts_below(&self.config.root).unwrap_or_default();
        for mount in mounts
            .into_iter()
            .filter(|mount| mount.at.parent() == Some(&self.config.root))
        {
            if let Err(error) = release(&self.writer, &mount.at, &mount.at.display().to_string()).await {
                warn!(%error, "an export stays mounted");
            }
        }
    }
}

#[async_trait]
impl ShareServer for KnfsdServer {
    fn driver(&self) -> &'static str {
        "knfsd"
    }

    fn portals(&self) -> Vec<SharePortal> {
        let config = &self.shared.config;
        let portal = |address| SharePortal::at(address, config.listen.port());
        config.addresses.iter().map(portal).collect()
    }

    fn path_of(&self, version: ShareVersion) -> String {
        self.shared.folder(version).to_string_lossy().into_owned()
    }

    fn enforceable(&self) -> EnforceableAccess {
        let addresses = &self.shared.config.addresses;
        EnforceableAccess {
            kinds: vec![ClientKind::Ip],
            ipv4: addresses.iter().any(|address| address.ip.is_ipv4()),
            ipv6: addresses.iter().any(|address| address.ip.is_ipv6()),
            refused_ipv6_prefixes: None,
        }
    }

    async fn export(&self, export: &ShareExport) -> Result<Outcome<()>, DriverError> {
        self.shared.export(export).await
    }

    async fn unexport(&self, version: ShareVersion) -> Result<Outcome<()>, DriverError> {
        self.shared.check_serving().await?;
        Ok(match self.shared.withdraw(version).await? {
            true => Outcome::Changed(()),
            false => Outcome::Unchanged(()),
        })
    }

    async fn exports(&self) -> Result<Vec<ShareVersion>, DriverError> {
        self.shared.check_serving().await?;
        Ok(self.shared.writer.exports())
    }

    async fn loaded(&self, version: ShareVersion) -> Result<Option<LoadedAccess>, DriverError> {
        self.shared.loaded(version).await
    }

    async fn clients(&self, version: ShareVersion) -> Result<Vec<ShareClient>, DriverError> {
        self.shared.check_serving().await?;
        if self.shared.writer.find(version).is_none() {
            return Ok(Vec::new());
        }
        let device = fs::metadata(self.shared.folder(version))
            .ok()
            .map(|root| device_text(root.dev()));
        let known = clients(Path::new(CLIENTS));
        let known = known.map_err(|error| {
            self.shared
                .unavailable("asking for its clients".into(), Some(error))
        })?;
        let mut found: Vec<ShareClient> = known
            .iter()
            .filter_map(|client| client.describe(device.as_deref()))
            .collect();
        found.sort_unstable_by_key(|client| client.address);
        Ok(found)
    }

    async fn shutdown(&self) {
        self.shared.shutdown().await;
    }
}
