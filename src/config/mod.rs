//! What the agent is told: a file, or the built-in set-up of dev mode, checked and resolved.
//!
//! TOML text → [`raw`] (unknown keys refused, with what was probably meant) → [`Config`] (sizes in bytes, paths
//! absolute, defaults filled in). Nothing else in the agent reads files for settings, or the environment.
//!
//! Failure: the error names the file, the line and the key, and says what would be right.

mod dev;
mod raw;
mod render;
mod resolve;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use quarry_contract::PoolName;
use quarry_ganesha::GaneshaConfig;
use quarry_knfsd::KnfsdConfig;

pub use dev::DEFAULT_POOL_BYTES as DEFAULT_DEV_POOL_BYTES;

/// Everything the agent is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The folder of the catalog and the lock; private to the agent.
    pub state_dir: PathBuf,
    /// Where calls are answered.
    pub listen: Listen,
    /// The pools, ordered by name.
    pub pools: Vec<PoolConfig>,
    /// The target.
    pub target: TargetConfig,
    /// Where figures are served, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// The pools of shares, ordered by name.
    pub share_pools: Vec<SharePoolConfig>,
    /// The share server; there is one when there are pools of shares.
    pub share_server: Option<ShareServerConfig>,
    /// The log.
    pub log: LogConfig,
}

/// Where calls are answered, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A unix socket; the caller's user id is checked.
    Unix {
        /// The socket.
        path: PathBuf,
        /// The user ids that may call, beside root and the agent's own.
        allow_uids: Vec<u32>,
    },
    /// TCP; both sides prove themselves with certificates.
    Tls {
        /// Where.
        address: SocketAddr,
        /// The agent's certificate chain, PEM.
        certificate: PathBuf,
        /// Its key, PEM.
        key: PathBuf,
        /// The authorities whose clients may call, PEM.
        client_ca: PathBuf,
    },
    /// TCP without protection; loopback only.
    Insecure {
        /// Where.
        address: SocketAddr,
    },
}

/// One pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// Its name.
    pub name: PoolName,
    /// How it is stored.
    pub driver: PoolDriver,
}

/// How a pool is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolDriver {
    /// The native thin engine.
    Thin {
        /// The file or block device.
        path: PathBuf,
        /// What to do when the file is not there.
        if_absent: IfAbsent,
        /// The unit of allocation of a pool made here, in bytes.
        chunk_bytes: u32,
        /// Whether its bytes go through the host's page cache.
        page_cache: bool,
        /// What it does about getting full.
        fullness: Fullness,
        /// How much a scrub reads in a second, in bytes.
        scrub_bytes_per_second: u64,
    },
}

/// What a pool does about getting full: at how much space left each level begins, and what becomes of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fullness {
    /// Level warn.
    pub warn: Share,
    /// Level brake; zero for none.
    pub brake: Share,
    /// Level critical; zero for none.
    pub critical: Share,
    /// How long a write may wait for space, in seconds; zero for not at all.
    pub wait_seconds: u32,
}

impl Default for Fullness {
    fn default() -> Self {
        Self {
            warn: Share::Percent(20),
            brake: Share::Percent(0),
            critical: Share::Percent(0),
            wait_seconds: 0,
        }
    }
}

/// A part of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths.
    Percent(u8),
}

/// What to do when a pool's file is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfAbsent {
    /// Stop: somebody has forgotten to mount something.
    Fail,
    /// Make an empty pool in a sparse file.
    Create {
        /// Its size in bytes.
        size_bytes: u64,
    },
}

/// The native iSCSI target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetConfig {
    /// The addresses initiators connect to.
    pub listen: Vec<SocketAddr>,
    /// Where the port is remembered that the system chose, in dev mode.
    pub port_file: Option<PathBuf>,
}

/// One pool of shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharePoolConfig {
    /// Its name.
    pub name: PoolName,
    /// The driver, and where the pool is.
    pub driver: SharePoolDriver,
    /// Where shares are mounted.
    pub mounts: PathBuf,
}

/// The driver of a pool of shares, and where the pool is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SharePoolDriver {
    /// An image for each share, on a file system that shares blocks.
    Images(quarry_images::PoolPlace),
    /// A thin logical volume for each share.
    Lvm(quarry_lvm::PoolPlace),
}

/// What exports shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShareServerConfig {
    /// A Ganesha of our own.
    Ganesha(GaneshaConfig),
    /// The kernel's.
    Knfsd(KnfsdConfig),
}

/// The log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// What is logged: `info`, or per part `info,quarry::api=debug`.
    pub filter: String,
    /// How.
    pub format: LogFormat,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// Text.
    Text,
    /// JSON, one object a line.
    Json,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}; check that it exists and who may read it")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file says something wrong.
    #[error("{path}:{at}{problem}")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Where.
        at: Place,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The folder of dev mode cannot be used.
    #[error("cannot use the folder {path} for dev mode: {problem}")]
    DevFolder {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// A line of the file and the key on it, as far as they are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The line, from 1.
    pub line: Option<usize>,
    /// The key (`pool.default.size`).
    pub key: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        f.write_str(" ")?;
        match &self.key {
            Some(key) => write!(f, "{key}: "),
            None => Ok(()),
        }
    }
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// Names the file, the line and the key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// Reads a configuration from text; `path` is for the errors.
    ///
    /// # Errors
    /// Names the file, the line and the key.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let wrong = |wrong: raw::Wrong| ConfigError::Wrong {
            path: path.to_owned(),
            at: Place {
                line: wrong.offset.map(|offset| line_of(text, offset)),
                key: wrong.key,
            },
            problem: wrong.problem,
        };
        let raw = raw::read(text).map_err(wrong)?;
        resolve::resolve(raw).map_err(wrong)
    }

    /// Returns the set-up of dev mode: everything in one folder, which is made when it is not there.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn dev(folder: &Path, pool_bytes: Option<u64>) -> Result<Self, ConfigError> {
        dev::config(folder, pool_bytes)
    }

    /// Writes the resolved configuration as a configuration file would have it.
    pub fn render(&self) -> String {
        render::render(self)
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())]
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
        + 1
}
