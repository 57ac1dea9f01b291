//! The driver: a Ganesha that is told what to export, and asked whether it has understood.
//!
//! Invariants
//! - G1: an export has a file before Ganesha hears of it, and has none once Ganesha has let go of it: a Ganesha that
//!   starts anew exports what it did before.
//! - G2: a call that Ganesha does not carry out to the letter, as read back from it, ends the export: rather nobody than
//!   somebody too many.
//! - G3: Ganesha never starts with an export whose path is not the file system it was, as after a restart of the
//!   machine: it would export the folder below.
//! - G4: one call at a time talks to Ganesha; a restart is such a call. So a call finds Ganesha there, or is told that it
//!   cannot be started.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use quarry_contract::{
    ClientKind, DriverError, EnforceableAccess, LoadedAccess, MountedShare, Outcome, ShareExport,
    SharePortal, ShareServer, ShareVersion,
};
use quarry_sys::file::{LockError, lock_exclusive};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::Mutex;
use tracing::{error, info, warn};

use crate::bus::{Bus, BusError, LoadedExport};
use crate::config::GaneshaConfig;
use crate::export_file::{ExportRecord, REFUSED_IPV6_PREFIXES};
use crate::export_ids::ExportIds;
use crate::files;
use crate::process::{Daemon, has_argument};

/// How long the bus may take to start.
const BUS_DEADLINE: Duration = Duration::from_secs(10);
/// How long Ganesha may take to start; with thousands of exports it takes a minute.
const START_DEADLINE: Duration = Duration::from_secs(180);
const START_PAUSE: Duration = Duration::from_millis(10);
/// How often the processes are looked at, and Ganesha is asked for an answer.
const WATCH_PAUSE: Duration = Duration::from_millis(200);
const PING_PAUSE: Duration = Duration::from_secs(3);
/// How long to wait before the next try when they do not start.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// What Ganesha may do: open by handle and act as the user that a client names, and nothing else of what root may.
const CAPABILITIES: &str =
    "-all,+dac_read_search,+dac_override,+chown,+fowner,+fsetid,+setuid,+setgid,+mknod";
/// Where distributions keep Ganesha's plugins.
const PLUGIN_FOLDERS: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu/ganesha",
    "/usr/lib/aarch64-linux-gnu/ganesha",
    "/usr/lib64/ganesha",
    "/usr/lib/ganesha",
    "/usr/local/lib/ganesha",
];

/// An NFS server. Dropping it leaves Ganesha running for the next; [`ShareServer::shutdown`] ends it.
pub struct GaneshaServer {
    shared: Arc<Shared>,
    watcher: tokio::task::JoinHandle<()>,
}

/// Why the server cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A program or plugin is missing.
    #[error("{what} is missing; install {package}")]
    Missing {
        /// What.
        what: String,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The configuration cannot work.
    #[error("{0}")]
    Config(String),
    /// Another agent uses the folder.
    #[error("{}: {source}", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
        /// By whom.
        source: LockError,
    },
    /// A file cannot be read or written.
    #[error("{what}")]
    File {
        /// What was being done.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A process does not start.
    #[error("{program} does not start: {problem}")]
    Process {
        /// The program.
        program: &'static str,
        /// What is known of it.
        problem: String,
    },
}

struct Shared {
    config: GaneshaConfig,
    plugins: PathBuf,
    state: Mutex<State>,
    // Last: the folder is another agent's when everything else has ended.
    _lock: File,
}

struct State {
    /// The processes; `None` while they do not start, and after a shutdown.
    link: Option<Link>,
    ids: ExportIds,
    /// What has a file (G1).
    exported: BTreeMap<ShareVersion, ExportRecord>,
    is_shut_down: bool,
    last_ping: Instant,
}

struct Link {
    bus: Bus,
    bus_daemon: Daemon,
    ganesha: Daemon,
}

fn during(what: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    let what = what.into();
    move |source| StartError::File { what, source }
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
            make_folder(&folder).map_err(during(format!("making {}", folder.display())))?;
        }
        let lock_path = config.state_dir.join("lock");
        let lock = File::create(&lock_path).map_err(during(format!("opening {}", lock_path.display())))?;
        lock_exclusive(&lock).map_err(|source| StartError::Locked {
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
                WATCH_PAUSE
            }
            Err(error) => {
                error!(%error, "Ganesha cannot be started again, and will be tried");
                RETRY_PAUSE
            }
        };
    }
}

impl Shared {
    fn export_path(&self, id: u16) -> PathBuf {
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

    fn log(&self) -> PathBuf {
        self.config.state_dir.join("ganesha.log")
    }

    /// Takes up what runs and is well, and starts the rest.
    async fn launch(&self, state: &mut State) -> Result<(), StartError> {
        if let Some(mut link) = state.link.take() {
            // What is left of a pair of which one is gone or does not answer. One that cannot be ended shows below, when
            // its address is in use.
            for daemon in [&mut link.ganesha, &mut link.bus_daemon] {
                if let Err(error) = daemon.end().await {
                    warn!(pid = daemon.pid(), %error, "a process stays");
                }
            }
        }
        let is_unchanged = self
            .write_configs()
            .map_err(during("writing the configuration of Ganesha"))?;
        let (bus, bus_daemon) = self.launch_bus().await?;
        let running = bus.ganesha().await.unwrap_or(None);
        let ours = running.filter(|pid| has_argument(*pid, &self.config.ganesha_config()));
        if let Some(mut ganesha) = ours.and_then(Daemon::adopt) {
            if is_unchanged && bus.ping().await.is_ok() {
                info!(pid = ganesha.pid(), "Ganesha runs already");
                state.link = Some(Link {
                    bus,
                    bus_daemon,
                    ganesha,
                });
                return Ok(());
            }
            ganesha.end().await.map_err(during("ending the Ganesha before"))?;
        }
        self.drop_what_is_gone(state)
            .map_err(during("forgetting exports whose shares are not mounted"))?;
        let ganesha = self.launch_ganesha(&bus).await?;
        state.last_ping = Instant::now();
        state.link = Some(Link {
            bus,
            bus_daemon,
            ganesha,
        });
        Ok(())
    }

    /// Writes both configurations. True when Ganesha's is what it was.
    fn write_configs(&self) -> io::Result<bool> {
        files::replace(&self.config.bus_config(), &self.config.render_bus())?;
        let (path, text) = (
            self.config.ganesha_config(),
            self.config.render_ganesha(&self.plugins),
        );
        if fs::read_to_string(&path).is_ok_and(|present| present == text) {
            return Ok(true);
        }
        files::replace(&path, &text)?;
        Ok(false)
    }

    async fn launch_bus(&self) -> Result<(Bus, Daemon), StartError> {
        let socket = self.config.bus_socket();
        if let Ok(bus) = Bus::connect(&socket).await
            && let Ok(Some(pid)) = bus.daemon().await
            && let Some(daemon) = Daemon::adopt(pid)
        {
            return Ok((bus, daemon));
        }
        files::remove(&socket).map_err(during(format!("removing {}", socket.display())))?;
        let mut command = Command::new(&self.config.programs.dbus);
        command
            .arg(format!("--config-file={}", self.config.bus_config().display()))
            .args(["--nofork", "--nopidfile", "--nosyslog"]);
        let output = self.config.state_dir.join("bus.log");
        let failed = |problem: String| StartError::Process {
            program: "dbus-daemon",
            problem: format!("{problem}; see {}", output.display()),
        };
        let mut daemon = Daemon::spawn(command, &output).map_err(|error| failed(error.to_string()))?;
        let deadline = Instant::now() + BUS_DEADLINE;
        loop {
            match Bus::connect(&socket).await {
                Ok(bus) => return Ok((bus, daemon)),
                Err(_) if !daemon.is_alive() => return Err(failed("it has ended".into())),
                Err(error) if Instant::now() > deadline => return Err(failed(error.to_string())),
                Err(_) => tokio::time::sleep(START_PAUSE).await,
            }
        }
    }

    async fn launch_ganesha(&self, bus: &Bus) -> Result<Daemon, StartError> {
        let config = &self.config;
        let low_port = if config.listen.port() < 1024 {
            ",+net_bind_service"
        } else {
            ""
        };
        let mut command = Command::new(&config.programs.setpriv);
        command
            .arg(format!("--bounding-set={CAPABILITIES}{low_port}"))
            .arg(&config.programs.ganesha)
            .arg("-F")
            .arg("-f")
            .arg(config.ganesha_config())
            .arg("-p")
            .arg(config.state_dir.join("ganesha.pid"))
            .arg("-L")
            .arg(self.log())
            .args(["-N", "NIV_EVENT"])
            // The address of its bus; Debian's Ganesha uses the system's.
            .env(
                "DBUS_SYSTEM_BUS_ADDRESS",
                format!("unix:path={}", config.bus_socket().display()),
            );
        let failed = |problem: String| StartError::Process {
            program: "ganesha.nfsd",
            problem: format!("{problem}; see {}", self.log().display()),
        };
        let output = config.state_dir.join("ganesha.out");
        let mut daemon = Daemon::spawn(command, &output).map_err(|error| failed(error.to_string()))?;
        let deadline = Instant::now() + START_DEADLINE;
        // It has its name before it listens.
        loop {
            if !daemon.is_alive() {
                return Err(failed("it has ended".into()));
            }
            let has_name = bus.ganesha().await.is_ok_and(|pid| pid == Some(daemon.pid()));
            if has_name
                && TcpStream::connect(reachable(config.listen)).await.is_ok()
                && bus.ping().await.is_ok()
            {
                return Ok(daemon);
            }
            if Instant::now() > deadline {
                if let Err(error) = daemon.end().await {
                    warn!(pid = daemon.pid(), %error, "a process stays");
                }
                return Err(failed("it does not answer".into()));
            }
            tokio::time::sleep(START_PAUSE).await;
        }
    }

    /// Removes the files of exports whose paths are not what they were (G3). Their share is exported again by who
    /// mounts it.
    fn drop_what_is_gone(&self, state: &mut State) -> io::Result<()> {
        let is_gone = |record: &ExportRecord| !is_root_of(&record.path, record.device);
        let gone: Vec<ShareVersion> = state
            .exported
            .values()
            .filter(|record| is_gone(record))
            .map(|record| record.version)
            .collect();
        for version in gone {
            if let Some(record) = state.exported.remove(&version) {
                files::remove(&self.export_path(record.id))?;
                info!(%version, "not exported again: its share is not mounted where it was");
            }
        }
        Ok(())
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
            None => Err(self.unavailable("it does not run".into())),
        }
    }

    /// Checks that a path leads to the file system that was mounted, for this process and for Ganesha (N6).
    fn check_mounted(&self, state: &State, mounted: &MountedShare) -> Result<(), DriverError> {
        let pid = state.link.as_ref().map(|link| link.ganesha.pid());
        let relative = mounted.path.strip_prefix("/").unwrap_or(&mounted.path);
        let seen = pid.map(|pid| PathBuf::from(format!("/proc/{pid}/root")).join(relative));
        for path in [Some(mounted.path.clone()), seen].into_iter().flatten() {
            if !is_root_of(&path, mounted.device) {
                return Err(DriverError::Corrupt {
                    object: mounted.version.to_string(),
                    detail: format!("{} is not where it is mounted", path.display()),
                });
            }
        }
        Ok(())
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
        let record = ExportRecord::of(export, id, pseudo);
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
                exported.insert(version, record);
                Ok(Outcome::Changed(()))
            }
            Err(error) => {
                // G2. What cannot be ended either is not answering, and is ended by the watcher; it starts without.
                if let Err(problem) = files::remove(&self.export_path(id)) {
                    error!(%version, %problem, "a failed export's file stays");
                }
                exported.remove(&version);
                if let Err(problem) = bus.remove(id).await {
                    warn!(%version, %problem, "a failed export is ended with Ganesha");
                    if let Some(link) = &mut state.link
                        && let Err(problem) = link.ganesha.end().await
                    {
                        error!(%version, %problem, "Ganesha cannot be ended");
                    }
                }
                Err(error)
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
        let portal = |address: &IpAddr| SharePortal(SocketAddr::new(*address, config.listen.port()));
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
            ipv4: addresses.iter().any(IpAddr::is_ipv4),
            ipv6: addresses.iter().any(IpAddr::is_ipv6),
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

    async fn shutdown(&self) {
        self.shared.shutdown().await;
    }
}

/// Fills in the addresses, and refuses what cannot work.
fn checked(mut config: GaneshaConfig) -> Result<GaneshaConfig, StartError> {
    if config.addresses.is_empty() {
        if config.listen.ip().is_unspecified() {
            return Err(StartError::Config(format!(
                "the NFS server listens on every address ({}); say which of them clients are told",
                config.listen
            )));
        }
        config.addresses.push(config.listen.ip());
    }
    config.state_dir = std::path::absolute(&config.state_dir)
        .map_err(during(format!("looking for {}", config.state_dir.display())))?;
    let text = config.state_dir.to_string_lossy().into_owned();
    if text.contains(['"', '\\', '$', '<', '&', '\n', ',', ';', '=', '%']) {
        return Err(StartError::Config(format!(
            "{text:?} cannot be told to Ganesha; use a plain path"
        )));
    }
    // `sun_path` of unix(7) has 108 bytes.
    if config.bus_socket().as_os_str().len() > 107 {
        return Err(StartError::Config(format!(
            "{text:?} is too long for a socket; use a shorter path"
        )));
    }
    let programs = [
        (&config.programs.ganesha, "nfs-ganesha"),
        (&config.programs.dbus, "dbus-daemon"),
        (&config.programs.setpriv, "util-linux"),
    ];
    for (program, package) in programs {
        if !program.is_file() {
            let what = program.display().to_string();
            return Err(StartError::Missing { what, package });
        }
    }
    Ok(config)
}

fn find_plugins() -> Result<PathBuf, StartError> {
    PLUGIN_FOLDERS
        .into_iter()
        .map(PathBuf::from)
        .find(|folder| folder.join("libfsalvfs.so").exists())
        .ok_or_else(|| StartError::Missing {
            what: "Ganesha's plugin for local file systems (libfsalvfs.so)".into(),
            package: "nfs-ganesha-vfs",
        })
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

/// Tells whether a path is a folder itself, not a link to one, on a device.
fn is_root_of(path: &Path, device: u64) -> bool {
    fs::symlink_metadata(path).is_ok_and(|root| root.is_dir() && root.dev() == device)
}

/// Returns where an address that stands for all can be reached.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
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
