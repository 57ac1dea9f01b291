//! Starts the two processes, and takes up those that an agent before has left (G3).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use quarry_contract::{PortalRole, ShareAddress, ShareVersion};
use quarry_daemon::files;
use quarry_daemon::process::{Daemon, has_argument};
use quarry_sys::file::LockError;
use quarry_sys::filesystem::is_root_of;
use tokio::net::TcpStream;
use tokio::process::Command;
use tracing::{info, warn};

use crate::bus::Bus;
use crate::config::{GaneshaConfig, Programs};
use crate::export_file::ExportRecord;
use crate::server::{Link, Shared, State};

/// How long the bus may take to start.
const BUS_DEADLINE: Duration = Duration::from_secs(10);
/// How long Ganesha may take to start; with thousands of exports it takes a minute.
const START_DEADLINE: Duration = Duration::from_secs(180);
const START_PAUSE: Duration = Duration::from_millis(10);
/// What Ganesha may do: open by handle and act as the user that a client names, and nothing else of what root may.
const CAPABILITIES: &str =
    "-all,+dac_read_search,+dac_override,+chown,+fowner,+fsetid,+setuid,+setgid,+mknod";
/// Where Ganesha looks for the portmapper.
const PORTMAPPER: &str = "/run/rpcbind.sock";
/// Where distributions keep Ganesha's plugins.
const PLUGIN_FOLDERS: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu/ganesha",
    "/usr/lib/aarch64-linux-gnu/ganesha",
    "/usr/lib64/ganesha",
    "/usr/lib/ganesha",
    "/usr/local/lib/ganesha",
];

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

/// Says what was being done when the operating system refused.
pub(crate) fn during(what: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    let what = what.into();
    move |source| StartError::File { what, source }
}

impl Shared {
    /// Takes up what runs and is well, and starts the rest.
    pub(crate) async fn launch(&self, state: &mut State) -> Result<(), StartError> {
        if let Some(mut link) = state.link.take() {
            // What is left of a pair of which one is gone or does not answer. One that cannot be ended shows below, when
            // its address is in use.
            for daemon in [&mut link.ganesha, &mut link.bus_daemon] {
                if let Err(error) = daemon.end().await {
                    warn!(pid = daemon.pid(), %error, "a process stays");
                }
            }
        }
        check_programs(&self.config.programs)?;
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
            )
            // Where libblkid keeps what it has seen on devices. A loop device has another file system a moment later, and in
            // a cache of a thousand devices it looks up every one of them for each export.
            .env("BLKID_FILE", "/dev/null");
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
                return Err(failed(match TcpStream::connect(reachable(config.listen)).await {
                    Ok(_) => format!("another program listens on {}", config.listen),
                    Err(_) => "it has ended".into(),
                }));
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
}

/// Fills in the addresses, and refuses what cannot work.
pub(crate) fn checked(mut config: GaneshaConfig) -> Result<GaneshaConfig, StartError> {
    if config.addresses.is_empty() {
        if config.listen.ip().is_unspecified() {
            return Err(StartError::Config(format!(
                "the NFS server listens on every address ({}); say which of them clients are told",
                config.listen
            )));
        }
        config.addresses.push(ShareAddress {
            ip: config.listen.ip(),
            role: PortalRole::Preferred,
        });
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
    check_programs(&config.programs)?;
    if config.nfs3.is_some() && UnixStream::connect(PORTMAPPER).is_err() {
        return Err(StartError::Missing {
            what: format!("the portmapper ({PORTMAPPER}), without which Ganesha does not speak NFSv3,"),
            package: "rpcbind",
        });
    }
    Ok(config)
}

fn check_programs(programs: &Programs) -> Result<(), StartError> {
    let needed = [
        (&programs.ganesha, "nfs-ganesha"),
        (&programs.dbus, "dbus-daemon"),
        (&programs.setpriv, "util-linux"),
    ];
    for (program, package) in needed {
        if !program.is_file() {
            let what = program.display().to_string();
            return Err(StartError::Missing { what, package });
        }
    }
    Ok(())
}

pub(crate) fn find_plugins() -> Result<PathBuf, StartError> {
    PLUGIN_FOLDERS
        .into_iter()
        .map(PathBuf::from)
        .find(|folder| folder.join("libfsalvfs.so").exists())
        .ok_or_else(|| StartError::Missing {
            what: "Ganesha's plugin for local file systems (libfsalvfs.so)".into(),
            package: "nfs-ganesha-vfs",
        })
}

/// Returns where an address that stands for all can be reached.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
