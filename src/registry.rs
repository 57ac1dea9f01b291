//! The drivers in use: the pools by name, and the target.
//!
//! The one place that knows which driver a section of the configuration stands for.
//!
//! Failure: a pool or a target that cannot be opened stops the start; the error names it and the next step.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use quarry_contract::memory::{MemoryBackend, MemoryBackendOptions};
use quarry_contract::{DriverError, PoolName, Target, VolumeBackend};
use quarry_iscsi::{IscsiTarget, StartError, TargetConfig as IscsiConfig};

use crate::config::{Config, IfAbsent, PoolConfig, PoolDriver, TargetConfig};

/// The drivers in use.
#[derive(Clone)]
pub struct Registry {
    pools: BTreeMap<PoolName, Arc<dyn VolumeBackend>>,
    target: NamedTarget,
}

/// The target with the name of its driver.
#[derive(Clone)]
pub struct NamedTarget {
    /// The driver's name.
    pub driver: &'static str,
    /// The target.
    pub target: Arc<dyn Target>,
}

/// Why a driver cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A pool cannot be opened.
    #[error("cannot open pool {pool}: {source}")]
    Pool {
        /// The pool.
        pool: PoolName,
        /// The cause.
        source: DriverError,
    },
    /// The iSCSI target cannot be started.
    #[error("cannot start the iSCSI target: {source}{}", next_step(source))]
    Target {
        /// The cause.
        source: StartError,
    },
    /// The port that initiators know cannot be remembered.
    #[error("cannot write {path}, which remembers the iSCSI port")]
    PortFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

fn next_step(error: &StartError) -> String {
    match error {
        StartError::Listen { portal, source } => format!(
            " ({source}); see what else uses port {} with `ss -ltnp`, or choose another address",
            portal.port()
        ),
        _ => String::new(),
    }
}

impl Registry {
    /// Opens what the configuration names.
    ///
    /// # Errors
    /// Names the pool or the target that cannot be opened.
    pub async fn open(config: &Config) -> Result<Self, RegistryError> {
        let mut pools = BTreeMap::new();
        for pool in &config.pools {
            pools.insert(pool.name.clone(), open_pool(pool)?);
        }
        let target = open_target(&config.target)?;
        Ok(Self::new(pools, target))
    }

    /// Takes up drivers that are open already.
    pub fn new(pools: BTreeMap<PoolName, Arc<dyn VolumeBackend>>, target: NamedTarget) -> Self {
        Self { pools, target }
    }

    /// Returns the pools, ordered by name.
    pub fn pools(&self) -> impl Iterator<Item = (&PoolName, &Arc<dyn VolumeBackend>)> {
        self.pools.iter()
    }

    /// Returns one pool's backend.
    pub fn pool(&self, name: &str) -> Option<(&PoolName, &Arc<dyn VolumeBackend>)> {
        self.pools.iter().find(|(known, _)| known.as_str() == name)
    }

    /// Returns the target.
    pub fn target(&self) -> &NamedTarget {
        &self.target
    }

    /// Ends all sessions and closes the pools.
    pub async fn close(self) {
        self.target.target.shutdown().await;
    }
}

fn open_pool(pool: &PoolConfig) -> Result<Arc<dyn VolumeBackend>, RegistryError> {
    let PoolDriver::Thin { if_absent, .. } = &pool.driver;
    let capacity_bytes = match if_absent {
        IfAbsent::Create { size_bytes } => *size_bytes,
        IfAbsent::Fail => 1 << 30,
    };
    Ok(Arc::new(MemoryBackend::new(MemoryBackendOptions::of_capacity(
        pool.name.clone(),
        capacity_bytes,
    ))))
}

fn open_target(config: &TargetConfig) -> Result<NamedTarget, RegistryError> {
    let target = IscsiTarget::start(IscsiConfig::listening_on(config.listen.clone()))
        .map_err(|source| RegistryError::Target { source })?;
    if let Some(path) = &config.port_file
        && let Some(portal) = target.portals().first()
    {
        remember_port(path, portal.0.port()).map_err(|source| RegistryError::PortFile {
            path: path.clone(),
            source,
        })?;
    }
    Ok(NamedTarget {
        driver: "iscsi",
        target: Arc::new(target),
    })
}

/// Writes the port under another name and renames: a crash leaves the old file or the new one.
fn remember_port(path: &Path, port: u16) -> io::Result<()> {
    let text = format!("{port}\n");
    if fs::read_to_string(path).is_ok_and(|known| known == text) {
        return Ok(());
    }
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::File::open(&new)?.sync_all()?;
    fs::rename(&new, path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::File::open(folder)?.sync_all()
}
