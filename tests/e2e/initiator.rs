//! Hosts: QEMU's iSCSI initiator, in `qemu-io` for single commands and a held session, in `qemu-img` for whole
//! images.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use serde_json::Value;
use uuid::Uuid;

use crate::agent_process::{AgentProcess, eventually};
use crate::command::{id, json};

/// How long a client's command may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// The name QEMU's tools log in with when they are given a URL.
pub const QEMU_NAME: &str = "iqn.2008-11.org.linux-kvm";

/// An attachment, as the host knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Attached {
    /// The attachment.
    pub id: Uuid,
    /// The host's name.
    pub initiator: String,
    /// What the host was told.
    pub connection_info: Value,
}

/// Attaches a volume to the host of that name, with more options for the command.
pub fn attach_as(agent: &AgentProcess, volume: Uuid, initiator: &str, options: &str) -> Attached {
    let line = format!("attachment create --volume {volume} --initiator {initiator} {options}");
    Attached::from_answer(&json(agent, &line))
}

/// Attaches a volume to this machine.
pub fn attach(agent: &AgentProcess, volume: Uuid) -> Attached {
    attach_as(agent, volume, QEMU_NAME, "")
}

/// Detaches.
pub fn detach(agent: &AgentProcess, attached: &Attached) {
    json(agent, &format!("attachment delete {}", attached.id));
}

impl Attached {
    /// Reads the answer of `attachment create` or `show`.
    pub fn from_answer(answer: &Value) -> Self {
        Self {
            id: id(answer),
            initiator: answer["connector"]["initiator"].as_str().unwrap().to_owned(),
            connection_info: answer["connection_info"].clone(),
        }
    }

    fn data(&self, key: &str) -> &str {
        self.connection_info["data"][key]
            .as_str()
            .unwrap_or_else(|| panic!("no {key} in {}", self.connection_info))
    }

    /// Returns the address as QEMU's tools take it with this host's name; the secret is an object beside it.
    fn image_options(&self) -> String {
        format!(
            "driver=raw,file.driver=iscsi,file.transport=tcp,file.portal={},file.target={},file.lun={},file.user={},\
             file.password-secret=chap,file.initiator-name={}",
            self.data("target_portal"),
            self.data("target_iqn"),
            self.connection_info["data"]["target_lun"],
            self.data("auth_username"),
            self.initiator
        )
    }

    /// Returns the object that holds the secret, as QEMU's tools take it.
    fn secret_object(&self) -> String {
        format!("--object=secret,id=chap,data={}", self.data("auth_password"))
    }

    /// Adds the options that make `qemu-io` log in under this host's name.
    fn log_in(&self, command: &mut Command) {
        command
            .arg(self.secret_object())
            .arg("--image-opts")
            .arg(self.image_options());
    }

    /// Logs in, runs `qemu-io` commands one after the other and logs out.
    ///
    /// # Errors
    /// What it printed, when the login or a command failed.
    pub fn qemu_io(&self, commands: &[&str]) -> Result<String, String> {
        run(self.qemu_io_command(commands))
    }

    /// Makes the process that [`Attached::qemu_io`] would run.
    pub fn qemu_io_command(&self, commands: &[&str]) -> Command {
        let mut qemu_io = Command::new("qemu-io");
        for command in commands {
            qemu_io.arg("-c").arg(command);
        }
        self.log_in(&mut qemu_io);
        qemu_io
    }

    /// Like [`Attached::qemu_io`] without the right to write.
    pub fn qemu_io_read_only(&self, commands: &[&str]) -> Result<String, String> {
        let mut qemu_io = Command::new("qemu-io");
        qemu_io.arg("-r");
        for command in commands {
            qemu_io.arg("-c").arg(command);
        }
        self.log_in(&mut qemu_io);
        run(qemu_io)
    }

    /// Writes a raw image to the volume and flushes.
    pub fn write_image(&self, image: &Path) {
        let mut qemu_img = Command::new("qemu-img");
        // The default cache mode of convert, "unsafe", never flushes.
        qemu_img
            .arg("convert")
            .arg(self.secret_object())
            .args(["-n", "-t", "writeback", "-f", "raw", "--target-image-opts"])
            .arg(image)
            .arg(self.image_options());
        run(qemu_img).unwrap();
    }

    /// Reads the whole volume into a raw image.
    pub fn read_image(&self, image: &Path) {
        let mut qemu_img = Command::new("qemu-img");
        qemu_img
            .arg("convert")
            .arg(self.secret_object())
            .args(["--image-opts", "-O", "raw"])
            .arg(self.image_options())
            .arg(image);
        run(qemu_img).unwrap();
    }

    /// Logs in and keeps the session.
    pub fn session(&self) -> HeldSession {
        let mut qemu_io = Command::new("qemu-io");
        self.log_in(&mut qemu_io);
        let mut child = qemu_io
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("qemu-io (package qemu-utils) is installed");
        let mut stdout = child.stdout.take().unwrap();
        let (sender, output) = mpsc::channel();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut chunk) {
                if sender.send(chunk[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut session = HeldSession {
            stdin: child.stdin.take().unwrap(),
            child,
            output,
        };
        // The first prompt comes after the login.
        session.finish();
        session
    }
}

/// What `qemu-io` writes when it can take a command.
const PROMPT: &str = "qemu-io> ";

/// A `qemu-io` that stays logged in; killed when dropped.
///
/// It takes one command for each prompt: of two that come at once it sees the second only when a third comes.
pub struct HeldSession {
    child: Child,
    stdin: ChildStdin,
    output: Receiver<Vec<u8>>,
}

impl HeldSession {
    /// Sends a command without waiting for its end; there may be none.
    pub fn send(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").unwrap();
    }

    /// Waits for the end of the command that was sent and returns what it printed.
    fn finish(&mut self) -> String {
        let mut said = String::new();
        while !said.ends_with(PROMPT) {
            let chunk = self
                .output
                .recv_timeout(DEADLINE)
                .unwrap_or_else(|error| panic!("qemu-io has said {said:?} and no more: {error}"));
            said.push_str(&String::from_utf8_lossy(&chunk));
        }
        said.truncate(said.len() - PROMPT.len());
        said
    }

    /// Runs a command, which must go well and may print something.
    pub fn run(&mut self, command: &str) {
        self.send(command);
        let said = self.finish();
        assert!(!said.contains("failed"), "{command}: {said}");
    }
}

impl Drop for HeldSession {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a client's tool to its end, with a deadline.
fn run(mut command: Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = tempfile::NamedTempFile::new().unwrap();
    // To a file, not a pipe: nobody has to empty it while we wait. Appended, so that both streams fit in.
    let append = || OpenOptions::new().append(true).open(output.path()).unwrap();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(append())
        .stderr(append())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} (package qemu-utils): {error}"));
    let begin = Instant::now();
    let status = eventually(&format!("{program} has ended"), || {
        if begin.elapsed() > DEADLINE - Duration::from_secs(5) {
            let _ = child.kill();
        }
        child.try_wait().unwrap()
    });
    let said = std::fs::read_to_string(output.path()).unwrap();
    if status.success() { Ok(said) } else { Err(said) }
}
