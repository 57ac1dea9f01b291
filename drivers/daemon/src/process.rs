//! Processes: started, taken up again, watched, ended.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// How long the kernel may take to end a process that was killed.
const END_DEADLINE: Duration = Duration::from_secs(10);
const END_PAUSE: Duration = Duration::from_millis(5);

/// A process that goes on when this one ends, and when this is dropped.
pub struct Daemon {
    pid: u32,
    /// When it began, in the kernel's ticks: a number that is given again belongs to another process.
    began: u64,
    /// Absent for one that a process before this has started.
    child: Option<Child>,
}

impl Daemon {
    /// Starts a process. What it prints goes to a file.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn spawn(mut command: Command, output: &Path) -> io::Result<Self> {
        let output = File::create(output)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // A signal for the agent's terminal is not for it.
            .process_group(0)
            .kill_on_drop(false)
            .spawn()?;
        let pid = child
            .id()
            .ok_or_else(|| io::Error::other("it has ended at once"))?;
        Ok(Self {
            pid,
            began: began(pid).unwrap_or(0),
            child: Some(child),
        })
    }

    /// Takes up a running process; `None` when it does not run.
    pub fn adopt(pid: u32) -> Option<Self> {
        Some(Self {
            pid,
            began: began(pid)?,
            child: None,
        })
    }

    /// Takes up a process by what [`Daemon::remembered`] once said of it; `None` when that process does not run.
    pub fn adopt_remembered(remembered: &str) -> Option<Self> {
        let (pid, began) = remembered.trim().split_once(' ')?;
        let began = began.parse().ok()?;
        Self::adopt(pid.parse().ok()?).filter(|daemon| daemon.began == began)
    }

    /// Returns what tells it from every other process until the machine restarts.
    pub fn remembered(&self) -> String {
        format!("{} {}", self.pid, self.began)
    }

    /// Returns its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Tells whether it runs, and forgets it in the kernel when it has ended.
    pub fn is_alive(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => began(self.pid) == Some(self.began),
        }
    }

    /// Ends it, and waits for its end.
    ///
    /// # Errors
    /// `TimedOut` when the kernel does not end it; what the operating system says.
    pub async fn end(&mut self) -> io::Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        let pid = i32::try_from(self.pid).map_err(io::Error::other)?;
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
        let ended = async {
            while self.is_alive() {
                tokio::time::sleep(END_PAUSE).await;
            }
        };
        tokio::time::timeout(END_DEADLINE, ended)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "it was killed, and does not end"))
    }
}

/// Returns when a process began; `None` when it does not run (proc_pid_stat(5): field 3 is the state, 22 the start).
fn began(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything, parentheses too.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Tells whether a process was started with an argument. For a moment after a spawn the kernel shows none.
pub fn has_argument(pid: u32, argument: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;

    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0)
        .any(|one| one == argument.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_daemon_is_seen_to_live_and_to_end_by_whoever_watches_it() {
        let output = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new("sleep");
        command.arg("1000");
        let mut started = Daemon::spawn(command, output.path()).unwrap();
        let mut adopted = Daemon::adopt(started.pid()).unwrap();
        // The spawn returns inside execve(2), before the arguments of the new program are in place.
        let is_told = async {
            while !has_argument(started.pid(), Path::new("1000")) {
                tokio::time::sleep(END_PAUSE).await;
            }
        };
        tokio::time::timeout(END_DEADLINE, is_told).await.unwrap();
        assert!(!has_argument(started.pid(), Path::new("100")));
        assert!(started.is_alive() && adopted.is_alive());
        assert!(Daemon::adopt_remembered(&started.remembered()).is_some());
        let other = format!("{} 1", started.pid());
        assert!(
            Daemon::adopt_remembered(&other).is_none(),
            "the number given again"
        );
        adopted.end().await.unwrap();
        assert!(!adopted.is_alive() && !started.is_alive());
        started.end().await.unwrap();
        assert!(Daemon::adopt(started.pid()).is_none());
    }
}
