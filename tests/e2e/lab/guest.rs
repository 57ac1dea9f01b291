//! A guest that stays up and runs shell scripts for a test.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where the guest answers: its address on the first network.
const ADDRESS: ([u8; 4], u16) = ([10, 9, 0, 11], 7000);

/// How long a script may take. System calls are 20 to 100 times dearer in the guest.
const DEADLINE: Duration = Duration::from_secs(180);

/// How long one try to connect may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running guest; gone when dropped.
pub struct Guest {
    launcher: RefCell<Child>,
}

/// A script that runs in the guest.
pub struct Running {
    script: String,
    stream: TcpStream,
}

impl Guest {
    /// Boots a guest with a card on each network and two empty disks (`/dev/ubda`, `/dev/ubdb`), or
    /// says why it cannot.
    pub fn boot() -> Option<Self> {
        if std::env::var_os("QUARRY_LAB_NETWORK").is_none() {
            eprintln!("SKIPPED: run scripts/lab/test, which makes the network that this needs");
            return None;
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let launcher = Command::new(root.join("scripts/lab/run"))
            .args(["-t", "600", "-N", "tap1", "-A", "10.9.0.11/24"])
            .args(["-N", "second_tap1", "-A", "10.9.1.11/24"])
            .args(["-d", "8G", "-d", "4G", "--"])
            .args(["busybox", "nc", "-ll", "-p", "7000", "-e"])
            .arg(root.join("tests/e2e/lab/serve"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let guest = Self {
            launcher: RefCell::new(launcher),
        };
        drop(guest.connect());
        Some(guest)
    }

    /// Runs a shell script and returns what it printed, and its exit status unless that is 0 as an error.
    pub fn try_run(&self, script: &str) -> Result<String, String> {
        self.start(script).finish()
    }

    /// Runs a shell script, which must go well, and returns what it printed.
    pub fn run(&self, script: &str) -> String {
        self.try_run(script)
            .unwrap_or_else(|said| panic!("in the guest:\n{script}\n{said}"))
    }

    /// Connects to the guest, as soon as it answers. One that gets no time on a busy machine for three seconds has, as far
    /// as the network can tell, no route to it, at any moment of a test.
    fn connect(&self) -> TcpStream {
        let begin = Instant::now();
        loop {
            let error = match TcpStream::connect_timeout(&SocketAddr::from(ADDRESS), PATIENCE) {
                Ok(stream) => return stream,
                Err(error) => error,
            };
            if let Some(status) = self.launcher.borrow_mut().try_wait().unwrap() {
                panic!("the guest has ended: {status}");
            }
            assert!(begin.elapsed() < DEADLINE, "the guest does not answer: {error}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Begins a shell script. It stops at the first command that fails.
    pub fn start(&self, script: &str) -> Running {
        let mut stream = self.connect();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(stream, "set -e\n{script}").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        Running {
            script: script.to_owned(),
            stream,
        }
    }
}

impl Running {
    /// Waits for the end of the script.
    pub fn finish(mut self) -> Result<String, String> {
        let mut said = Vec::new();
        if let Err(error) = self.stream.read_to_end(&mut said) {
            let said = String::from_utf8_lossy(&said);
            panic!(
                "no end of this script in the guest: {error}\n{}\n{said}",
                self.script
            );
        }
        let said = String::from_utf8_lossy(&said).into_owned();
        let (said, status) = said
            .rsplit_once("status=")
            .unwrap_or_else(|| panic!("the guest died in:\n{}\n{said}", self.script));
        match status.trim() {
            "0" => Ok(said.to_owned()),
            status => Err(format!("{said}exit status {status}")),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // SIGTERM lets the launcher remove what it made.
        let launcher = self.launcher.get_mut();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(launcher.id()).unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = launcher.wait();
    }
}
