//! The start of the server: its file systems, its two processes, its threads; and their end.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use quarry_contract::{PortalRole, ShareAddress};
use quarry_daemon::process::Daemon;
use quarry_daemon::{files, folders};
use quarry_sys::file::LockError;
use quarry_sys::filesystem::{mount_kernel_files, unmount};
use tokio::process::Command;
use tracing::{info, warn};

use crate::config::KnfsdConfig;
use crate::release::is_mounted;

const CONTROL: &str = "/proc/fs/nfsd";
const THREADS: &str = "/proc/fs/nfsd/threads";
/// How long a process may take until it does its work.
const START_DEADLINE: Duration = Duration::from_secs(30);
const START_PAUSE: Duration = Duration::from_millis(10);

/// Why the server cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A program or a part of the kernel is missing.
    #[error("{what} is missing; {remedy}")]
    Missing {
        /// What.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The configuration cannot work.
    #[error("{0}")]
    Config(String),
    /// The machine's server is somebody else's.
    #[error(
        "the kernel's NFS server runs already, and not for this agent; end it for good (systemctl disable --now \
         nfs-server), or serve with another driver"
    )]
    InUse,
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
    /// A program does not do what it shall.
    #[error("{program}: {problem}")]
    Program {
        /// The program.
        program: String,
        /// What is known of it.
        problem: String,
    },
}

/// Says what was being done when the operating system refused.
fn during(what: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    let what = what.into();
    move |source| StartError::File { what, source }
}

/// The two processes.
pub(crate) struct Processes {
    mountd: Daemon,
    nfsdcld: Daemon,
}

impl Processes {
    pub(crate) fn are_alive(&mut self) -> bool {
        self.mountd.is_alive() && self.nfsdcld.is_alive()
    }
}

/// Fills in the addresses, and refuses what cannot work.
pub(crate) fn checked(mut config: KnfsdConfig) -> Result<KnfsdConfig, StartError> {
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
    for path in [&mut config.state_dir, &mut config.root, &mut config.table] {
        *path = std::path::absolute(&*path).map_err(during(format!("looking for {}", path.display())))?;
    }
    let root = config.root.to_string_lossy();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    if !root.bytes().all(is_plain) || root.contains("/..") || root == "/" {
        return Err(StartError::Config(format!(
            "{root:?} cannot be exported from; use a path of letters, digits and dashes"
        )));
    }
    let programs = &config.programs;
    for program in [
        &programs.exportfs,
        &programs.mountd,
        &programs.nfsd,
        &programs.nfsdcld,
    ] {
        if !program.is_file() {
            return Err(StartError::Missing {
                what: program.display().to_string(),
                remedy: "install nfs-kernel-server",
            });
        }
    }
    Ok(config)
}

/// Makes the folders and file systems, and takes the state folder for this process.
pub(crate) async fn prepare(config: &KnfsdConfig) -> Result<File, StartError> {
    make_folder(&config.state_dir, 0o700)?;
    let lock = folders::take(&config.state_dir).map_err(|source| StartError::Locked {
        path: config.state_dir.clone(),
        source,
    })?;
    make_folder(&config.client_dir(), 0o700)?;
    make_folder(&config.pipe_dir(), 0o700)?;
    // Clients that are not root go through them.
    make_folder(&config.root, 0o755)?;
    if let Some(folder) = config.table.parent() {
        make_folder(folder, 0o755)?;
    }
    if !Path::new(THREADS).exists() {
        // The module may be part of the kernel; whether there is one is seen below.
        if let Err(error) = Command::new("modprobe").arg("nfsd").output().await {
            warn!(%error, "modprobe cannot be run");
        }
        mount_kernel_files("nfsd", Path::new(CONTROL)).map_err(|_| StartError::Missing {
            what: "the kernel's NFS server (module nfsd)".to_owned(),
            remedy: "use a kernel that has it, or serve with another driver",
        })?;
    }
    if threads().map_err(during(format!("reading {THREADS}")))? > 0 && !config.is_serving()? {
        return Err(StartError::InUse);
    }
    let pipes = config.pipe_dir();
    if !is_mounted(&pipes).map_err(during("reading the table of mounts"))? {
        mount_kernel_files("rpc_pipefs", &pipes).map_err(during(format!("mounting {}", pipes.display())))?;
    }
    Ok(lock)
}

impl KnfsdConfig {
    fn client_dir(&self) -> PathBuf {
        self.state_dir.join("clients")
    }

    fn pipe_dir(&self) -> PathBuf {
        self.state_dir.join("pipes")
    }

    /// Says that the threads that run are this agent's, and how they were started.
    fn serving_file(&self) -> PathBuf {
        self.state_dir.join("serving")
    }

    fn serving_text(&self) -> Result<String, StartError> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let boot = boot.map_err(during("reading which start of the machine this is"))?;
        let arguments = self.nfsd_arguments().join(" ");
        Ok(format!(
            "{}\n{arguments} grace {}\n",
            boot.trim(),
            self.grace_seconds
        ))
    }

    /// Tells whether an agent with this folder has started the threads since the machine's start, with whatever
    /// configuration.
    fn is_serving(&self) -> Result<bool, StartError> {
        let before = fs::read_to_string(self.serving_file()).unwrap_or_default();
        Ok(before.lines().next() == self.serving_text()?.lines().next())
    }
}

/// Starts what does not run, or takes it up.
pub(crate) async fn launch(
    config: &KnfsdConfig,
    processes: &mut Option<Processes>,
) -> Result<(), StartError> {
    if !processes.as_mut().is_some_and(Processes::are_alive) {
        let programs = &config.programs;
        let mut nfsdcld = Command::new(&programs.nfsdcld);
        nfsdcld
            .arg("-F")
            .arg("-p")
            .arg(config.pipe_dir())
            .arg("-s")
            .arg(config.client_dir());
        // The kernel looks for it when its threads start.
        let nfsdcld = launch_process(config, "nfsdcld", nfsdcld, "inotify").await?;
        let mut mountd = Command::new(&programs.mountd);
        mountd.args(["-F", "-N", "2", "-N", "3"]);
        let mountd = launch_process(config, "mountd", mountd, "rpc/nfsd.export/channel").await?;
        *processes = Some(Processes { mountd, nfsdcld });
    }
    launch_threads(config).await
}

/// Starts a process, or takes up the one that an agent before has left, and waits until it has something open.
async fn launch_process(
    config: &KnfsdConfig,
    name: &str,
    command: Command,
    has_open: &str,
) -> Result<Daemon, StartError> {
    let remembered = config.state_dir.join(format!("{name}.process"));
    let left = fs::read_to_string(&remembered).unwrap_or_default();
    if let Some(daemon) = Daemon::adopt_remembered(&left) {
        info!(pid = daemon.pid(), name, "it runs already");
        return Ok(daemon);
    }
    let output = config.state_dir.join(format!("{name}.log"));
    let failed = |problem: String| StartError::Program {
        program: name.to_owned(),
        problem: format!("{problem}; see {}", output.display()),
    };
    let mut daemon = Daemon::spawn(command, &output).map_err(|error| failed(error.to_string()))?;
    files::replace(&remembered, &daemon.remembered())
        .map_err(during(format!("writing {}", remembered.display())))?;
    let deadline = Instant::now() + START_DEADLINE;
    while !has_file_open(daemon.pid(), has_open) {
        if !daemon.is_alive() {
            return Err(failed("it has ended".to_owned()));
        }
        if Instant::now() > deadline {
            if let Err(error) = daemon.end().await {
                warn!(name, %error, "a process stays");
            }
            return Err(failed("it does not begin its work".to_owned()));
        }
        tokio::time::sleep(START_PAUSE).await;
    }
    Ok(daemon)
}

/// Tells whether a process has a file open whose path ends so.
fn has_file_open(pid: u32, end: &str) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    open.flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|path| path.to_string_lossy().ends_with(end))
}

/// Returns how many threads serve.
pub(crate) fn threads() -> io::Result<u32> {
    let text = fs::read_to_string(THREADS)?;
    text.trim().parse().map_err(io::Error::other)
}

async fn launch_threads(config: &KnfsdConfig) -> Result<(), StartError> {
    let serving = config.serving_text()?;
    let path = config.serving_file();
    if threads().map_err(during(format!("reading {THREADS}")))? > 0 {
        if fs::read_to_string(&path).is_ok_and(|before| before == serving) {
            return Ok(());
        }
        if !config.is_serving()? {
            return Err(StartError::InUse);
        }
        info!("the server is started anew, with another configuration");
        stop_threads().map_err(during("ending the server"))?;
    }
    files::replace(&path, &serving).map_err(during(format!("writing {}", path.display())))?;
    for setting in ["nfsv4leasetime", "nfsv4gracetime"] {
        let path = Path::new(CONTROL).join(setting);
        fs::write(&path, format!("{}\n", config.grace_seconds))
            .map_err(during(format!("writing {}", path.display())))?;
    }
    let program = &config.programs.nfsd;
    let failed = |problem: String| StartError::Program {
        program: program.display().to_string(),
        problem,
    };
    let output = Command::new(program)
        .args(config.nfsd_arguments())
        .output()
        .await
        .map_err(|error| failed(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    match threads() {
        Ok(0) => Err(failed(said)),
        Ok(_) if output.status.success() => Ok(()),
        Ok(_) => {
            stop_threads().map_err(during("ending the server"))?;
            Err(failed(said))
        }
        Err(error) => Err(during(format!("reading {THREADS}"))(error)),
    }
}

/// Ends the threads, and with them all that clients hold.
fn stop_threads() -> io::Result<()> {
    fs::write(THREADS, "0\n")
}

/// Ends all of it.
pub(crate) async fn end(config: &KnfsdConfig, processes: Option<Processes>) {
    if let Err(error) = stop_threads() {
        warn!(%error, "the kernel's NFS server does not end");
    }
    if let Some(mut processes) = processes {
        for daemon in [&mut processes.mountd, &mut processes.nfsdcld] {
            if let Err(error) = daemon.end().await {
                warn!(pid = daemon.pid(), %error, "a process stays");
            }
        }
    }
    let removed = unmount(&config.pipe_dir()).and_then(|()| files::remove(&config.serving_file()));
    if let Err(error) = removed {
        warn!(%error, "something of the NFS server stays");
    }
}

fn make_folder(path: &Path, mode: u32) -> Result<(), StartError> {
    folders::make(path, mode).map_err(during(format!("making {}", path.display())))
}
