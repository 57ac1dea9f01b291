//! One agent for each state folder.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use quarry_sys::file::{LockError, lock_exclusive};

/// The lock of a state folder, held until it is dropped or the process ends, however it ends.
pub(super) struct StateLock {
    _file: File,
}

/// Why a state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateLockError {
    /// Another agent uses it.
    #[error(
        "the state folder {path} is in use by another agent{}; stop it first, or use another folder",
        holder.map_or(String::new(), |pid| format!(" (process {pid})"))
    )]
    Held {
        /// The folder.
        path: PathBuf,
        /// The other agent's process, where the kernel tells.
        holder: Option<u32>,
    },
    /// The operating system refuses it.
    #[error("cannot use the state folder {path}; check that it can be made and written by this user")]
    Io {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl StateLock {
    /// Takes the lock, making the folder when it is not there.
    pub(super) fn take(folder: &Path) -> Result<Self, StateLockError> {
        let io_error = |source| StateLockError::Io {
            path: folder.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(io_error)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(folder.join("agent.lock"))
            .map_err(io_error)?;
        match lock_exclusive(&file) {
            Ok(()) => Ok(Self { _file: file }),
            Err(LockError::Held { holder }) => Err(StateLockError::Held {
                path: folder.to_owned(),
                holder,
            }),
            Err(LockError::Io(source)) => Err(io_error(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_agent_is_refused_with_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateLock::take(dir.path()).unwrap();
        let message = StateLock::take(dir.path()).err().unwrap().to_string();
        assert!(
            message.contains(&format!("(process {})", std::process::id())),
            "{message}"
        );
        drop(first);
        StateLock::take(dir.path()).unwrap();
    }
}
