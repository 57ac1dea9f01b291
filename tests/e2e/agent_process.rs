//! One `quarry agent` process: started, awaited, killed and started again.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The binary that is tested.
const BINARY: &str = env!("CARGO_BIN_EXE_quarry");

/// How long an agent may take to become ready or to stop. Generous: tests share two cores with compilers.
const DEADLINE: Duration = Duration::from_secs(60);

/// A running agent; killed when dropped.
pub struct AgentProcess {
    child: Child,
    log: PathBuf,
    /// What it prints.
    lines: mpsc::Receiver<String>,
    /// Where it answers calls, as `QUARRY_ENDPOINT` takes it.
    pub endpoint: String,
    /// Where initiators log in; the first, when there are several.
    pub portal: SocketAddr,
}

/// An agent that ended instead of becoming ready.
#[derive(Debug)]
pub struct Refusal {
    /// What it exited with.
    pub status: ExitStatus,
    /// What it said on standard error.
    pub stderr: String,
}

impl AgentProcess {
    /// Starts a dev-mode agent in `dir` and waits until it is ready.
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[])
    }

    /// Starts a dev-mode agent in `dir` with more options and waits until it is ready.
    pub fn start_with(dir: &Path, options: &[&str]) -> Self {
        Self::try_start(dir, options)
            .unwrap_or_else(|refusal| panic!("the agent did not start: {}", refusal.stderr))
    }

    /// Starts a dev-mode agent in `dir`; an agent that ends instead of becoming ready is an error.
    pub fn try_start(dir: &Path, options: &[&str]) -> Result<Self, Refusal> {
        let mut arguments = vec![OsStr::new("--dev"), dir.as_os_str()];
        arguments.extend(options.iter().map(OsStr::new));
        Self::run(Path::new(BINARY), &arguments, dir.with_extension("log"))
    }

    /// Starts a dev-mode agent in `dir` whose binary is `program`, and waits until it is ready.
    pub fn start_program(program: &Path, dir: &Path) -> Self {
        let arguments = [OsStr::new("--dev"), dir.as_os_str()];
        Self::run(program, &arguments, dir.with_extension("log"))
            .unwrap_or_else(|refusal| panic!("the agent did not start: {}", refusal.stderr))
    }

    /// Starts an agent with a config file and waits until it is ready.
    pub fn start_configured(config: &Path) -> Self {
        Self::run(
            Path::new(BINARY),
            &[OsStr::new("--config"), config.as_os_str()],
            config.with_extension("log"),
        )
        .unwrap_or_else(|refusal| panic!("the agent did not start: {}", refusal.stderr))
    }

    fn run(program: &Path, arguments: &[&OsStr], log: PathBuf) -> Result<Self, Refusal> {
        let log_begin = std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let stderr = OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut child = Command::new(program)
            .arg("agent")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        match lines.recv_timeout(DEADLINE) {
            Ok(line) => {
                let (endpoint, portal) = parse_ready(&line);
                Ok(Self {
                    child,
                    log,
                    lines,
                    endpoint,
                    portal,
                })
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let status = wait(&mut child);
                let all = std::fs::read(&log).unwrap();
                let stderr =
                    String::from_utf8_lossy(&all[usize::try_from(log_begin).unwrap()..]).into_owned();
                Err(Refusal { status, stderr })
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let _ = child.kill();
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                panic!("the agent is not ready after {DEADLINE:?}; its log:\n{log}");
            }
        }
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks the process to let its successor take over, and returns how long it took to be ready.
    pub fn succeed(&self) -> Duration {
        let begin = Instant::now();
        self.ask_to_succeed();
        self.expect_ready_again();
        begin.elapsed()
    }

    /// Waits until a successor is ready, where this one was.
    pub fn expect_ready_again(&self) {
        let line = self.lines.recv_timeout(DEADLINE).expect("the successor is ready");
        assert_eq!(parse_ready(&line), (self.endpoint.clone(), self.portal));
    }

    /// Asks the process to let its successor take over.
    pub fn ask_to_succeed(&self) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), Signal::SIGUSR2).unwrap();
    }

    /// Returns the file that the process runs.
    pub fn program(&self) -> PathBuf {
        std::fs::read_link(format!("/proc/{}/exe", self.pid())).unwrap()
    }

    /// Returns a handle that kills this process without warning, for another thread.
    pub fn killer(&self) -> impl FnOnce() + Send + 'static {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap());
        move || {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    /// Kills the process without warning and waits until it is gone.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        wait(&mut self.child);
    }

    /// Asks the process to stop; returns how long that took and what it exited with.
    pub fn terminate(mut self) -> (Duration, ExitStatus) {
        let begin = Instant::now();
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), Signal::SIGTERM).unwrap();
        let status = wait(&mut self.child);
        (begin.elapsed(), status)
    }

    /// Returns what the agents of this folder have logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Returns the bytes of memory the process holds.
    pub fn resident_bytes(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.pid())).unwrap();
        let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let mut tail = String::new();
            if let Ok(log) = File::open(&self.log) {
                let lines: Vec<String> = BufReader::new(log).lines().map_while(Result::ok).collect();
                tail = lines[lines.len().saturating_sub(40)..].join("\n");
            }
            eprintln!("--- end of the agent's log ---\n{tail}\n---");
        }
    }
}

/// Reads `ready endpoint=… iscsi=…`.
fn parse_ready(line: &str) -> (String, SocketAddr) {
    let mut words = line.split(' ');
    assert_eq!(words.next(), Some("ready"), "unexpected first line: {line}");
    let mut value = |key: &str| {
        let word = words.next().unwrap_or_default();
        word.strip_prefix(key)
            .unwrap_or_else(|| panic!("no {key} in: {line}"))
            .to_owned()
    };
    let endpoint = value("endpoint=");
    let portals = value("iscsi=");
    let first = portals.split(',').next().unwrap();
    (endpoint, first.parse().unwrap())
}

/// Waits for a child with a deadline.
fn wait(child: &mut Child) -> ExitStatus {
    eventually("the agent has ended", || child.try_wait().unwrap())
}

/// Asks again and again until there is an answer; panics at the deadline.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(begin.elapsed() < DEADLINE, "not so after {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Finds the file of the pool in a dev-mode agent's folder.
pub fn pool_file(dir: &Path) -> PathBuf {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut files = entries.map(|entry| entry.unwrap().path());
    files
        .find(|path| path.extension().is_some_and(|extension| extension == "pool"))
        .expect("a pool file in the agent's folder")
}
