//! The program that takes over from this one, in the same process: the same path, where by now a newer one may be.
//!
//! Order: the successor is run once to see whether it starts and takes the configuration, while this agent serves on →
//! running calls end, and the pools' checkpoints are written for the most part → sessions are dropped when what they
//! have under way is answered, and told to come back at once → the pools are closed → execve(2). Initiators that come back
//! meanwhile, clients that call, and who asks for figures, wait in the sockets, which stay open throughout. Shares are not
//! touched: their server runs on, and the successor takes it up as after a kill.
//!
//! Failure: a successor that does not start, or refuses the configuration, changes nothing. Once the sessions are gone
//! there is no way back: if the exec fails the process ends, as after any failed start.

use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use quarry_sys::handover::{self, Listening};
use tokio::process::Command;
use tracing::info;

use super::listener::Door;
use super::{Agent, AgentError, Signals};

/// The environment variable that names the sockets which are left.
const SOCKETS: &str = "QUARRY_LEFT_SOCKETS";
/// How long the successor may take to read the configuration.
const CHECK_DEADLINE: Duration = Duration::from_secs(10);

/// Why no program is to take over.
#[derive(Debug, thiserror::Error)]
pub enum SuccessorError {
    /// It cannot be run.
    #[error("{program} cannot be run: {source}")]
    Run {
        /// The program.
        program: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It does not take the configuration, or is not an agent.
    #[error("{program} refuses the configuration ({status}): {said}")]
    Refused {
        /// The program.
        program: PathBuf,
        /// What it exited with.
        status: ExitStatus,
        /// What it said on standard error.
        said: String,
    },
    /// It does not answer.
    #[error("{program} has not read the configuration in {CHECK_DEADLINE:?}")]
    Silent {
        /// The program.
        program: PathBuf,
    },
}

/// See the module.
pub(super) struct Successor {
    program: PathBuf,
    arguments: Vec<OsString>,
}

/// Takes the listening sockets that the program before this has left in this process. Once, at the start.
pub(super) fn take_sockets() -> Vec<Listening> {
    let named = std::env::var(SOCKETS).unwrap_or_default();
    handover::take(&named)
}

impl Successor {
    /// Remembers how this program was started. It is looked up again by the path it was started with, which may be a
    /// symbolic link: that is how it comes to be another program.
    pub fn of_this_program() -> Self {
        let mut arguments = std::env::args_os();
        let name = PathBuf::from(arguments.next().unwrap_or_default());
        let program = match name.components().count() {
            // Found by the shell, in a folder that only the kernel remembers.
            0 | 1 => std::env::current_exe().unwrap_or(name),
            _ => std::path::absolute(&name).unwrap_or(name),
        };
        Self {
            program,
            arguments: arguments.collect(),
        }
    }

    /// Sees whether the successor runs and takes the configuration.
    pub async fn check(&self) -> Result<(), SuccessorError> {
        let program = || self.program.clone();
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .arg("--check-config")
            .env_remove(SOCKETS)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(CHECK_DEADLINE, child)
            .await
            .map_err(|_| SuccessorError::Silent { program: program() })?
            .map_err(|source| SuccessorError::Run {
                program: program(),
                source,
            })?;
        match output.status.success() {
            true => Ok(()),
            false => Err(SuccessorError::Refused {
                program: program(),
                status: output.status,
                said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            }),
        }
    }

    /// Runs the successor in this process, with these sockets. Returns only when that fails.
    fn run(&self, sockets: &[Listening]) -> io::Error {
        match self.try_run(sockets) {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    fn try_run(&self, sockets: &[Listening]) -> io::Result<std::convert::Infallible> {
        let left = handover::leave(sockets)?;
        let program = CString::new(self.program.as_os_str().as_bytes())?;
        let mut arguments = vec![program.clone()];
        for argument in &self.arguments {
            arguments.push(CString::new(argument.as_bytes())?);
        }
        let mut environment = Vec::new();
        let others = std::env::vars_os().filter(|(name, _)| name != SOCKETS);
        for (name, value) in others.chain([(SOCKETS.into(), left.into())]) {
            let mut variable = name.into_vec();
            variable.push(b'=');
            variable.extend(value.into_vec());
            environment.push(CString::new(variable)?);
        }
        // Not by `std`, which would let signals through again that are held back.
        Ok(nix::unistd::execve(&program, &arguments, &environment)?)
    }
}

impl Agent {
    /// Ends the agent, but for the sockets that are listened on and what serves shares, and runs the successor in its place. Returns
    /// when the agent was asked to stop meanwhile: then it has.
    ///
    /// # Errors
    /// When the successor cannot be run.
    pub(super) async fn hand_over_to(
        mut self,
        successor: &Successor,
        signals: &mut Signals,
    ) -> Result<(), AgentError> {
        info!(program = %successor.program.display(), "handing over");
        let door = self.let_newcomers_wait().await;
        let figures = self.figures.take().map(Listening::Tcp);
        let (registry, _lock) = self.end_calls().await;
        let began = Instant::now();
        let portals = registry.hand_over().await.into_iter().map(Listening::Tcp);
        info!(took = ?began.elapsed(), "sessions and pools are closed");
        if signals.hold_back().await? {
            info!("stopping");
            if let Some(door) = door {
                door.close();
            }
            registry.close().await;
            return Ok(());
        }
        let sockets: Vec<Listening> = portals.chain(door.map(Door::leave)).chain(figures).collect();
        Err(AgentError::Succeed(successor.run(&sockets)))
    }
}
