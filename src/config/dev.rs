//! Dev mode: no configuration file, no root; everything in one folder.
//!
//! | in the folder | what it is |
//! |---|---|
//! | `default.pool` | the pool, a sparse file |
//! | `catalog.redb` | the catalog |
//! | `quarry.sock` | where calls are answered |
//! | `iscsi-port` | the port that initiators know, chosen by the system at the first start |
//! | `agent.lock` | held while an agent runs |

use std::fs::{self, DirBuilder};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use quarry_contract::PoolName;

use super::resolve::{DEFAULT_CHUNK_BYTES, DEFAULT_SCRUB_RATE, MAX_SOCKET_PATH_BYTES};
use super::{
    Config, ConfigError, Fullness, IfAbsent, Listen, LogConfig, LogFormat, PoolConfig, PoolDriver,
    TargetConfig,
};

/// The size of the pool that dev mode makes, in bytes: what the sparse file may grow to.
pub const DEFAULT_POOL_BYTES: u64 = 64 << 30;

pub(super) fn config(folder: &Path, pool_bytes: Option<u64>) -> Result<Config, ConfigError> {
    let wrong = |problem: String| ConfigError::DevFolder {
        path: folder.to_owned(),
        problem,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| wrong(format!("it cannot be made: {error}")))?;
    let folder = fs::canonicalize(folder).map_err(|error| wrong(error.to_string()))?;
    let socket = folder.join("quarry.sock");
    if socket.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
        return Err(wrong(format!(
            "its name is too long for a unix socket in it ({} bytes, at most {MAX_SOCKET_PATH_BYTES}); choose a \
             shorter one",
            socket.as_os_str().len()
        )));
    }
    let port_file = folder.join("iscsi-port");
    let port = remembered_port(&port_file).map_err(wrong)?;
    let driver = PoolDriver::Thin {
        path: folder.join("default.pool"),
        if_absent: IfAbsent::Create {
            size_bytes: pool_bytes.unwrap_or(DEFAULT_POOL_BYTES),
        },
        chunk_bytes: DEFAULT_CHUNK_BYTES,
        page_cache: false,
        fullness: Fullness::default(),
        scrub_bytes_per_second: DEFAULT_SCRUB_RATE,
    };
    Ok(Config {
        listen: Listen::Unix {
            path: socket,
            allow_uids: Vec::new(),
        },
        pools: vec![PoolConfig {
            name: PoolName::parse("default").expect("the literal keeps the rules of pool names"),
            driver,
        }],
        target: TargetConfig {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))],
            port_file: Some(port_file),
        },
        metrics: None,
        share_pools: Vec::new(),
        share_server: None,
        log: LogConfig {
            filter: "info".to_owned(),
            format: LogFormat::Auto,
        },
        state_dir: folder,
    })
}

/// Returns the port of the start before; 0, for any, at the first start.
fn remembered_port(file: &PathBuf) -> Result<u16, String> {
    match fs::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(format!("cannot read {}: {error}", file.display())),
        Ok(text) => text.trim().parse().map_err(|_| {
            format!(
                "{} holds {text:?}, not a port; remove it to have one chosen",
                file.display()
            )
        }),
    }
}
