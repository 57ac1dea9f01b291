//! The driver: a Ganesha that is told what to export, and asked whether it has understood.
//!
//! Invariants
//! - G1: an export has a file before Ganesha hears of it, and has none once Ganesha has let go of it: a Ganesha that
//!   starts anew exports what it did before.
//! - G2: a call that Ganesha does not carry out to the letter, as read back from it, ends the export: rather nobody than
//!   somebody too many. Where Ganesha ends with it, it starts anew with the export as it was before the call.
//! - G3: Ganesha never starts with an export whose path is not the file system it was, as after a restart of the
//!   machine: it would export the folder below.
//! - G4: one call at a time talks to Ganesha; a restart is such a call. So a call finds Ganesha there, or is told that it
//!   cannot be started.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use quarry_contract::{
    ClientKind, DriverError, EnforceableAccess, LoadedAccess, MountedShare, Outcome, ShareClient,
    ShareExport, SharePortal, ShareServer, ShareVersion,
};
use quarry_daemon::process::Daemon;
use quarry_daemon::{files, folders};
use quarry_sys::filesystem::is_root_of;
use tokio::sync::Mutex;
use tracing::{error, info, warn};

use crate::bus::{Bus, BusError, LoadedExport};
use crate::config::GaneshaConfig;
use crate::export_file::{ExportRecord, REFUSED_IPV6_PREFIXES};
use crate::export_ids::ExportIds;
use crate::launch::{StartError, checked, during, find_plugins};

/// How often the processes are looked at, and Ganesha is asked for an answer.
const WATCH_PAUSE: Duration = Duration::from_millis(200);
const PING_PAUSE: Duration = Duration::from_secs(3);
/// How long to wait before the next try when they do not start.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// An NFS server. Dropping it leaves Ganesha running for the next; [`ShareServer::shutdown`] ends it.
pub struct GaneshaServer {
    shared: Arc<Shared>,
    watcher: tokio::task::JoinHandle<()>,
}

pub(crate) struct Shared {
    pub(crate) config: GaneshaConfig,
    pub(crate) plugins: PathBuf,
    state: Mutex<State>,
    // Last: the folder is another agent's when everything else has ended.
    _lock: File,
}

pub(crate) struct State {
    /// The processes; `None` while they do not start, and after a shutdown.
    pub(crate) link: Option<Link>,
    /// Why they do not start.
    problem: Option<String>,
    ids: ExportIds,
    /// What has a file (G1).
    pub(crate) exported: BTreeMap<ShareVersion, ExportRecord>,
    is_shut_down: bool,
    pub(crate) last_ping: Instant,
}

pub(crate) struct Link {
    pub(crate) bus: Bus,
    pub(crate) bus_daemon: Daemon,
    pub(crate) ganesha: Daemon,
}

/// What has ended with an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The export alone.
    Export,
    /// All of Ganesha, which will be started anew.
    Ganesha,
}

impl GaneshaServer {
    /// Starts the server, or takes up the one that an agent before has left.
    ///
    /// # Errors
    /// Names what is missing, wrong or in use.
    pub async fn start(config: GaneshaConfig) -> Result<Self, StartError> {
        let config = checked(config)?;
        let plugins = find_plugins()?;
        for folder in [
            config.state_dir.clone(),
            config.exports_dir(),
            config.state_dir.join("recovery"),
        ] {
            folders::make(&folder, 0o700).map_err(during(format!("making {}", folder.display())))?;
        }
        let lock = folders::take(&config.state_dir).map_err(|source| StartError::Locked {
            path: config.state_dir.clone(),
            source,
        })?;
        let ids_path = config.state_dir.join("export-ids");
        let ids =
            ExportIds::open(ids_path.clone()).map_err(during(format!("reading {}", ids_path.display())))?;
        let exported = read_exports(&config.exports_dir())
            .map_err(during(format!("reading {}", config.exports_dir().display())))?;
        let shared = Arc::new(Shared {
            config,
            plugins,
            state: Mutex::new(State {
                link: None,
                problem: None,
                ids,
                exported,
                is_shut_down: false,
                last_ping: Instant::now(),
            }),
            _lock: lock,
        });
        shared.launch(&mut *shared.state.lock().await).await?;
        let watcher = tokio::spawn(watch(Arc::clone(&shared)));
        Ok(Self { shared, watcher })
    }
}

impl Drop for GaneshaServer {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

/// Looks after the processes until it is aborted.
async fn watch(shared: Arc<Shared>) {
    let mut pause = WATCH_PAUSE;
    loop {
        tokio::time::sleep(pause).await;
        let mut state = shared.state.lock().await;
        if state.is_shut_down {
            return;
        }
        if shared.is_well(&mut state).await {
            pause = WATCH_PAUSE;
            continue;
        }
        pause = match shared.launch(&mut state).await {
            Ok(()) => {
                info!("Ganesha has been started again");
                state.problem = None;
                WATCH_PAUSE
            }
            Err(error) => {
                error!(%error, "Ganesha cannot be started again, and will be tried");
                state.problem = Some(chain(&error));
                RETRY_PAUSE
            }
        };
    }
}

impl Shared {
    pub(crate) fn export_path(&self, id: u16) -> PathBuf {
        self.config.exports_dir().join(format!("{id}.conf"))
    }

    /// Tells whether both processes run and, now and then, whether Ganesha answers.
    async fn is_well(&self, state: &mut State) -> bool {
        let Some(link) = &mut state.link else { return false };
        if !link.bus_daemon.is_alive() {
            warn!("the bus has ended");
            return false;
        }
        if !link.ganesha.is_alive() {
            warn!(log = %self.log().display(), "Ganesha has ended");
            return false;
        }
        if state.last_ping.elapsed() < PING_PAUSE {
            return true;
        }
        state.last_ping = Instant::now();
        match link.bus.ping().await {
            Ok(()) | Err(BusError::Refused(_)) => true,
            Err(error) => {
                warn!(%error, "Ganesha is ended");
                false
            }
        }
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.config.state_dir.join("ganesha.log")
    }

    fn unavailable(&self, problem: String) -> DriverError {
        DriverError::Unavailable {
            object: "the NFS server".into(),
            problem: format!("{problem}; see {}", self.log().display()),
            source: None,
        }
    }

    /// Turns what the bus says into the contract's words.
    fn driver_error(&self, error: BusError) -> DriverError {
        match error {
            BusError::Unknown(said) => DriverError::Internal {
                detail: format!("Ganesha's answer is not understood: {said}"),
            },
            other => self.unavailable(chain(&other)),
        }
    }

    fn bus(&self, state: &State) -> Result<Bus, DriverError> {
        match &state.link {
            Some(link) => Ok(link.bus.clone()),
            None => Err(DriverError::Unavailable {
                object: "the NFS server".into(),
                problem: match &state.problem {
                    Some(problem) => format!("it cannot be started: {problem}"),
                    None => "it does not run".into(),
                },
                source: None,
            }),
        }
    }

    /// Checks that a path leads to the file system that was mounted, for this process and for Ganesha (N6).
    fn check_mounted(&self, state: &State, mounted: &MountedShare) -> Result<(), DriverError> {
        let elsewhere = |path: &Path| DriverError::Corrupt {
            object: mounted.version.to_string(),
            detail: format!("{} is not where it is mounted", path.display()),
        };
        if !is_root_of(&mounted.path, mounted.device) {
            return Err(elsewhere(&mounted.path));
        }
        let Some(link) = &state.link else { return Ok(()) };
        let root = PathBuf::from(format!("/proc/{}/root", link.ganesha.pid()));
        let relative = mounted.path.strip_prefix("/").unwrap_or(&mounted.path);
        let seen = root.join(relative);
        if is_root_of(&seen, mounted.device) {
            return Ok(());
        }
        // What is ending has no root any more, before it counts as ended.
        match root.read_link() {
            Ok(_) => Err(elsewhere(&seen)),
            Err(_) => Err(self.unavailable("it has ended, and is being started again".into())),
        }
    }

    async fn export(&self, export: &ShareExport, pseudo: String) -> Result<Outcome<()>, DriverError> {
        let version = export.mounted.version;
        let mut state = self.state.lock().await;
        let bus = self.bus(&state)?;
        self.check_mounted(&state, &export.mounted)?;
        let State { ids, exported, .. } = &mut *state;
        let id = ids
            .take(version, |other| exported.contains_key(&other))
            .map_err(|source| self.unavailable(format!("numbering exports: {source}")))?
            .ok_or_else(|| DriverError::Limit {
                object: "the NFS server".into(),
                what: "exports".into(),
                limit: u64::from(u16::MAX),
            })?;
        let record = ExportRecord::of(export, id, pseudo, self.config.nfs3.is_some());
        let text = record.render()?;
        let wanted = LoadedExport {
            path: record.path.to_string_lossy().into_owned(),
            pseudo: record.pseudo.clone(),
            lines: record.lines()?,
        };
        let before = exported.get(&version).cloned();
        let is_same = before.as_ref() == Some(&record);
        if is_same
            && bus
                .display(id)
                .await
                .map_err(|error| self.driver_error(error))?
                .as_ref()
                == Some(&wanted)
        {
            return Ok(Outcome::Unchanged(()));
        }
        let result = self.tell(&bus, &record, before.as_ref(), &text, &wanted).await;
        match result {
            Ok(()) => {
                state.exported.insert(version, record);
                Ok(Outcome::Changed(()))
            }
            Err(error) => {
                // G2.
                if let Err(problem) = files::remove(&self.export_path(id)) {
                    error!(%version, %problem, "a failed export's file stays");
                }
                state.exported.remove(&version);
                // One that starts anew does so with what there was before the call, which has failed.
                if self.end_export(&bus, &mut state, id).await == Ended::Ganesha
                    && let Some(before) = before
                    && files::replace(&self.export_path(id), &before.render()?).is_ok()
                {
                    state.exported.insert(version, before);
                }
                Err(error)
            }
        }
    }

    /// Ends an export that has failed; with Ganesha, where that does not answer.
    async fn end_export(&self, bus: &Bus, state: &mut State, id: u16) -> Ended {
        let is_there = !matches!(bus.ganesha().await, Ok(None));
        if is_there {
            match bus.remove(id).await {
                Ok(_) => return Ended::Export,
                Err(problem) => warn!(id, %problem, "a failed export is ended with Ganesha"),
            }
        }
        let Some(link) = &mut state.link else {
            return Ended::Ganesha;
        };
        match link.ganesha.end().await {
            Ok(()) => Ended::Ganesha,
            Err(problem) => {
                error!(id, %problem, "Ganesha cannot be ended");
                Ended::Export
            }
        }
    }

    /// Has Ganesha export, and asks whether it does, to the letter (N3).
    async fn tell(
        &self,
        bus: &Bus,
        record: &ExportRecord,
        before: Option<&ExportRecord>,
        text: &str,
        wanted: &LoadedExport,
    ) -> Result<(), DriverError> {
        let from_bus = |error| self.driver_error(error);
        let is_elsewhere = |before: &ExportRecord| {
            (&before.path, before.device, &before.pseudo) != (&record.path, record.device, &record.pseudo)
        };
        if before.is_some_and(is_elsewhere) {
            // An export does not move, it is another.
            bus.remove(record.id).await.map_err(from_bus)?;
        }
        let path = self.export_path(record.id);
        files::replace(&path, text)
            .map_err(|error| self.unavailable(format!("writing {}: {error}", path.display())))?;
        bus.update(&path.to_string_lossy(), record.id)
            .await
            .map_err(from_bus)?;
        match bus.display(record.id).await.map_err(from_bus)? {
            Some(loaded) if loaded == *wanted => Ok(()),
            Some(loaded) => Err(DriverError::Internal {
                detail: format!("Ganesha was told {wanted:?} and has {loaded:?}"),
            }),
            None => Err(self.unavailable("it has not taken the export".into())),
        }
    }

    async fn unexport(&self, version: ShareVersion) -> Result<Outcome<()>, DriverError> {
        let mut state = self.state.lock().await;
        let bus = self.bus(&state)?;
        let Some(record) = state.exported.get(&version) else {
            return Ok(Outcome::Unchanged(()));
        };
        let id = record.id;
        bus.remove(id).await.map_err(|error| self.driver_error(error))?;
        files::remove(&self.export_path(id))
            .map_err(|error| self.unavailable(format!("forgetting {version}: {error}")))?;
        state.exported.remove(&version);
        Ok(Outcome::Changed(()))
    }

    async fn loaded(&self, version: ShareVersion) -> Result<Option<LoadedAccess>, DriverError> {
        let state = self.state.lock().await;
        let bus = self.bus(&state)?;
        let Some(record) = state.exported.get(&version) else {
            return Ok(None);
        };
        let Some(loaded) = bus
            .display(record.id)
            .await
            .map_err(|error| self.driver_error(error))?
        else {
            return Ok(None);
        };
        if loaded.lines == record.lines()? {
            return Ok(record.loaded());
        }
        // Not what it was told: then it is what it says.
        let lines = loaded.lines.into_iter();
        Ok(Some(LoadedAccess(
            lines
                .filter_map(|line| Some((line.network, line.level?)))
                .collect(),
        )))
    }

    async fn shutdown(&self) {
        let mut state = self.state.lock().await;
        state.is_shut_down = true;
        if let Some(mut link) = state.link.take() {
            for daemon in [&mut link.ganesha, &mut link.bus_daemon] {
                if let Err(error) = daemon.end().await {
                    warn!(pid = daemon.pid(), %error, "a process stays");
                }
            }
        }
        for record in std::mem::take(&mut state.exported).into_values() {
            if let Err(error) = files::remove(&self.export_path(record.id)) {
                warn!(version = %record.version, %error, "the file of an export stays");
            }
        }
    }
}

#[async_trait]
impl ShareServer for GaneshaServer {
    fn driver(&self) -> &'static str {
        "ganesha"
    }

    fn portals(&self) -> Vec<SharePortal> {
        let config = &self.shared.config;
        let portal = |address| SharePortal::at(address, config.listen.port());
        config.addresses.iter().map(portal).collect()
    }

    fn path_of(&self, version: ShareVersion) -> String {
        match version {
            ShareVersion::Share(id) => format!("/share-{id}"),
            ShareVersion::Snapshot(id) => format!("/share-snapshot-{id}"),
        }
    }

    fn enforceable(&self) -> EnforceableAccess {
        let addresses = &self.shared.config.addresses;
        EnforceableAccess {
            kinds: vec![ClientKind::Ip],
            ipv4: addresses.iter().any(|address| address.ip.is_ipv4()),
            ipv6: addresses.iter().any(|address| address.ip.is_ipv6()),
            refused_ipv6_prefixes: Some(REFUSED_IPV6_PREFIXES),
        }
    }

    async fn export(&self, export: &ShareExport) -> Result<Outcome<()>, DriverError> {
        let pseudo = self.path_of(export.mounted.version);
        self.shared.export(export, pseudo).await
    }

    async fn unexport(&self, version: ShareVersion) -> Result<Outcome<()>, DriverError> {
        self.shared.unexport(version).await
    }

    async fn exports(&self) -> Result<Vec<ShareVersion>, DriverError> {
        let state = self.shared.state.lock().await;
        self.shared.bus(&state)?;
        Ok(state.exported.keys().copied().collect())
    }

    async fn loaded(&self, version: ShareVersion) -> Result<Option<LoadedAccess>, DriverError> {
        self.shared.loaded(version).await
    }

    async fn clients(&self, version: ShareVersion) -> Result<Vec<ShareClient>, DriverError> {
        let state = self.shared.state.lock().await;
        let bus = self.shared.bus(&state)?;
        if !state.exported.contains_key(&version) {
            return Ok(Vec::new());
        }
        bus.clients()
            .await
            .map_err(|error| self.shared.driver_error(error))
    }

    async fn shutdown(&self) {
        self.shared.shutdown().await;
    }
}

/// Reads what is exported from the files, and deletes what is not ours.
fn read_exports(folder: &Path) -> io::Result<BTreeMap<ShareVersion, ExportRecord>> {
    let mut exported = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        let record = ExportRecord::parse(&text).filter(|record| {
            path.file_name()
                .is_some_and(|name| name == &*format!("{}.conf", record.id))
        });
        match record {
            Some(record) => {
                exported.insert(record.version, record);
            }
            None => files::remove(&path)?,
        }
    }
    Ok(exported)
}

/// Returns an error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
