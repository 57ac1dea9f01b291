//! The drivers in use: the pools by name, and the target.
//!
//! The one place that knows which driver a section of the configuration stands for.
//!
//! Failure: a pool or a target that cannot be opened stops the start; the error names it and the next step.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use quarry_contract::{DriverError, Metric, PoolName, ShareBackend, ShareServer, Target, VolumeBackend};
use quarry_ganesha::GaneshaServer;
use quarry_images::ImageBackend;
use quarry_iscsi::{IscsiTarget, StartError, TargetConfig as IscsiConfig};
use quarry_knfsd::KnfsdServer;
use quarry_lvm::LvmBackend;
use quarry_thin::{
    Caching, FormatOptions, OnFull, OpenOptions, PoolFile, SpaceLevels, ThinBackend, Threshold,
};
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::config::{
    Config, IfAbsent, PoolConfig, PoolDriver, Share, SharePoolConfig, SharePoolDriver, ShareServerConfig,
    TargetConfig,
};

/// The drivers in use.
#[derive(Clone)]
pub struct Registry {
    pools: BTreeMap<PoolName, Arc<dyn VolumeBackend>>,
    target: NamedTarget,
    /// The target, when it waits for the exports before it takes logins.
    iscsi: Option<Arc<IscsiTarget>>,
    /// The pools that have to be closed.
    thin: Vec<(PoolName, Arc<ThinBackend>)>,
    share_pools: BTreeMap<PoolName, Arc<dyn ShareBackend>>,
    /// The pools of shares that have to be closed.
    open_share_pools: Vec<OpenSharePool>,
    share_server: Option<Arc<dyn ShareServer>>,
}

/// A pool of shares that has to be closed.
#[derive(Clone)]
struct OpenSharePool {
    name: PoolName,
    backend: Arc<dyn ShareBackend>,
    /// Its identity on disk.
    uuid: Uuid,
    /// Closes it; blocks.
    shutdown: Arc<dyn Fn() -> Result<(), DriverError> + Send + Sync>,
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
    #[error("cannot open pool {pool} in {}", path.display())]
    Pool {
        /// The pool.
        pool: PoolName,
        /// Its file or block device.
        path: PathBuf,
        /// The cause.
        source: DriverError,
    },
    /// A pool that was in use has vanished. An empty one in its place would hide that.
    #[error(
        "the file of pool {pool} ({known}), {}, is gone; mount or restore it, or use another state folder to begin \
         with an empty pool",
        path.display()
    )]
    PoolGone {
        /// The pool.
        pool: PoolName,
        /// Where it was.
        path: PathBuf,
        /// Its identity.
        known: Uuid,
    },
    /// Another pool is where a pool was.
    #[error(
        "{} holds pool {found}, not {known} that pool {pool} was; put the right file or device there, or give this \
         pool another name",
        path.display()
    )]
    PoolReplaced {
        /// The pool.
        pool: PoolName,
        /// Where it was.
        path: PathBuf,
        /// Its identity.
        known: Uuid,
        /// The identity of what is there.
        found: Uuid,
    },
    /// The iSCSI target cannot be started.
    #[error("cannot start the iSCSI target{}", next_step(source))]
    Target {
        /// The cause.
        source: StartError,
    },
    /// The share server cannot be started.
    #[error("cannot start the share server")]
    ShareServer {
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
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
        StartError::Listen { portal, .. } => {
            format!("; see what else uses {portal} with `ss -ltnp`, or choose another address")
        }
        _ => String::new(),
    }
}

impl Registry {
    /// Opens what the configuration names. `known` are the identities of pools that were in use before: such a
    /// pool is never made anew. `left` are the portals' sockets that an agent before has [left](Registry::hand_over).
    ///
    /// # Errors
    /// Names the pool or the target that cannot be opened.
    pub async fn open(
        config: &Config,
        known: &BTreeMap<String, Uuid>,
        left: Vec<TcpListener>,
    ) -> Result<Self, RegistryError> {
        let iscsi = open_target(&config.target, left)?;
        let target = NamedTarget {
            driver: "iscsi",
            target: Arc::clone(&iscsi) as Arc<dyn Target>,
        };
        let mut registry = Self {
            iscsi: Some(iscsi),
            ..Self::new(BTreeMap::new(), target)
        };
        for pool in &config.pools {
            let backend = open_pool(pool, known.get(pool.name.as_str()).copied()).await?;
            info!(pool = %pool.name, "the pool is open");
            registry
                .pools
                .insert(pool.name.clone(), Arc::clone(&backend) as Arc<dyn VolumeBackend>);
            registry.thin.push((pool.name.clone(), backend));
        }
        for pool in &config.share_pools {
            let opened = open_share_pool(pool, known.get(&share_pool_key(&pool.name)).copied()).await?;
            info!(pool = %pool.name, "the pool of shares is open");
            registry
                .share_pools
                .insert(pool.name.clone(), Arc::clone(&opened.backend));
            registry.open_share_pools.push(opened);
        }
        if let Some(server) = &config.share_server {
            let opened = open_share_server(server).await;
            registry.share_server = Some(opened.map_err(|source| RegistryError::ShareServer { source })?);
        }
        Ok(registry)
    }

    /// Takes up drivers that are open already.
    pub fn new(pools: BTreeMap<PoolName, Arc<dyn VolumeBackend>>, target: NamedTarget) -> Self {
        Self {
            pools,
            target,
            iscsi: None,
            thin: Vec::new(),
            share_pools: BTreeMap::new(),
            open_share_pools: Vec::new(),
            share_server: None,
        }
    }

    /// Takes up drivers of shares that are open already.
    #[must_use]
    pub fn with_shares(
        self,
        share_pools: BTreeMap<PoolName, Arc<dyn ShareBackend>>,
        share_server: Arc<dyn ShareServer>,
    ) -> Self {
        Self {
            share_pools,
            share_server: Some(share_server),
            ..self
        }
    }

    /// Returns the pools of shares, ordered by name.
    pub fn share_pools(&self) -> impl Iterator<Item = (&PoolName, &Arc<dyn ShareBackend>)> {
        self.share_pools.iter()
    }

    /// Returns the share server, when there is one.
    pub fn share_server(&self) -> Option<&Arc<dyn ShareServer>> {
        self.share_server.as_ref()
    }

    /// Returns the pools, ordered by name.
    pub fn pools(&self) -> impl Iterator<Item = (&PoolName, &Arc<dyn VolumeBackend>)> {
        self.pools.iter()
    }

    /// Returns one pool's backend.
    pub fn pool(&self, name: &str) -> Option<(&PoolName, &Arc<dyn VolumeBackend>)> {
        self.pools.iter().find(|(known, _)| known.as_str() == name)
    }

    /// Returns the identities of the pools that are kept in files or on devices, by the names they are known under.
    pub fn pool_identities(&self) -> impl Iterator<Item = (String, Uuid)> {
        let thin = self.thin.iter();
        let shares = self.open_share_pools.iter();
        thin.map(|(name, backend)| (name.to_string(), backend.pool().uuid()))
            .chain(shares.map(|pool| (share_pool_key(&pool.name), pool.uuid)))
    }

    /// Returns what the target and the pools count, each figure once.
    pub fn metrics(&self) -> Vec<Metric> {
        let mut metrics = self.target.target.metrics();
        for metric in self.pools.values().flat_map(|pool| pool.metrics()) {
            match metrics.iter_mut().find(|known| known.name == metric.name) {
                Some(known) => known.samples.extend(metric.samples),
                None => metrics.push(metric),
            }
        }
        metrics
    }

    /// Returns the target.
    pub fn target(&self) -> &NamedTarget {
        &self.target
    }

    /// Lets initiators in. Called when the exports are there: an initiator that comes earlier waits, instead of
    /// being told that its volume does not exist.
    pub fn accept_logins(&self) {
        if let Some(iscsi) = &self.iscsi {
            iscsi.accept_logins();
        }
    }

    /// Ends all sessions, then closes the pools. A pool that cannot be closed well is as one after a kill: the
    /// next start recovers it.
    pub async fn close(self) {
        self.target.target.shutdown().await;
        if let Some(server) = &self.share_server {
            server.shutdown().await;
        }
        for OpenSharePool {
            name: pool, shutdown, ..
        } in self.open_share_pools
        {
            let closed = tokio::task::spawn_blocking(move || shutdown()).await;
            match closed {
                Ok(Ok(())) => info!(%pool, "the pool of shares is closed"),
                Ok(Err(problem)) => error!(%pool, error = %problem, "the pool of shares stays mounted"),
                Err(panic) => error!(%pool, error = %panic, "closing the pool has panicked"),
            }
        }
        close_pools(&self.thin).await;
    }

    /// Ends all sessions and closes the pools of volumes for an agent that takes over, and returns the portals' sockets,
    /// in which those who come back wait for it. What serves shares goes on without an agent; its locks are held until the
    /// registry is dropped.
    pub async fn hand_over(&self) -> Vec<TcpListener> {
        // Most of what closing a pool takes is done while its volumes are served.
        for (pool, backend) in &self.thin {
            let backend = Arc::clone(backend);
            let done = tokio::task::spawn_blocking(move || backend.pool().checkpoint()).await;
            if let Ok(Err(problem)) = done {
                warn!(%pool, error = %problem, "a checkpoint before the pool is closed has failed");
            }
        }
        let sockets = match &self.iscsi {
            Some(iscsi) => iscsi.hand_over().await,
            None => {
                self.target.target.shutdown().await;
                Vec::new()
            }
        };
        close_pools(&self.thin).await;
        sockets
    }
}

async fn close_pools(pools: &[(PoolName, Arc<ThinBackend>)]) {
    for (pool, backend) in pools {
        let backend = Arc::clone(backend);
        let closed = tokio::task::spawn_blocking(move || backend.shutdown()).await;
        match closed {
            Ok(Ok(())) => info!(%pool, "the pool is closed"),
            Ok(Err(problem)) => {
                error!(%pool, error = %problem, "the pool is closed without a checkpoint")
            }
            Err(panic) => error!(%pool, error = %panic, "closing the pool has panicked"),
        }
    }
}

async fn open_pool(pool: &PoolConfig, known: Option<Uuid>) -> Result<Arc<ThinBackend>, RegistryError> {
    let PoolDriver::Thin {
        path,
        if_absent,
        chunk_bytes,
        page_cache,
        fullness,
        scrub_bytes_per_second,
    } = pool.driver.clone();
    let name = pool.name.clone();
    if let Some(known) = known
        && !path.exists()
    {
        return Err(RegistryError::PoolGone {
            pool: name,
            path,
            known,
        });
    }
    let mut file = PoolFile::at(path.clone());
    if page_cache {
        file.options.caching = Caching::PageCache;
    }
    let threshold = |share| match share {
        Share::Bytes(bytes) => Threshold::Bytes(bytes),
        Share::Percent(percent) => Threshold::Percent(percent),
    };
    let options = OpenOptions {
        levels: SpaceLevels {
            warn: threshold(fullness.warn),
            brake: threshold(fullness.brake),
            critical: threshold(fullness.critical),
        },
        on_full: match fullness.wait_seconds {
            0 => OnFull::Error,
            seconds => OnFull::Wait(Duration::from_secs(seconds.into())),
        },
        scrub_bytes_per_second,
        ..OpenOptions::named(name.clone())
    };
    // Opening reads the checkpoint and replays the log: it blocks.
    let open = move || match (known, if_absent) {
        (None, IfAbsent::Create { size_bytes }) => {
            let format = FormatOptions {
                chunk_bytes,
                ..FormatOptions::default()
            };
            ThinBackend::open_or_create_file(&file, size_bytes, &format, options)
        }
        (Some(_), _) | (None, IfAbsent::Fail) => ThinBackend::open_file(&file, options),
    };
    let opened = tokio::task::spawn_blocking(open).await.unwrap_or_else(|panic| {
        Err(DriverError::Internal {
            detail: format!("opening the pool has panicked: {panic}"),
        })
    });
    let backend = match opened {
        Ok(backend) => Arc::new(backend),
        Err(source) => {
            return Err(RegistryError::Pool {
                pool: name,
                path,
                source,
            });
        }
    };
    let found = backend.pool().uuid();
    match known {
        Some(known) if known != found => Err(RegistryError::PoolReplaced {
            pool: name,
            path,
            known,
            found,
        }),
        _ => Ok(backend),
    }
}

/// Returns what a pool of shares is known under: no pool of volumes can have such a name.
fn share_pool_key(name: &PoolName) -> String {
    format!("share_pool/{name}")
}

async fn open_share_server(
    config: &ShareServerConfig,
) -> Result<Arc<dyn ShareServer>, Box<dyn std::error::Error + Send + Sync>> {
    Ok(match config {
        ShareServerConfig::Ganesha(config) => Arc::new(GaneshaServer::start(config.clone()).await?),
        ShareServerConfig::Knfsd(config) => Arc::new(KnfsdServer::start(config.clone()).await?),
    })
}

async fn open_share_pool(
    pool: &SharePoolConfig,
    known: Option<Uuid>,
) -> Result<OpenSharePool, RegistryError> {
    let name = pool.name.clone();
    let (config, is_known) = (pool.clone(), known.is_some());
    let path = match &pool.driver {
        SharePoolDriver::Images(place) => place.path().to_owned(),
        SharePoolDriver::Lvm(place) => place.path(),
    };
    if let (Some(known), SharePoolDriver::Images(_)) = (known, &pool.driver)
        && !path.exists()
    {
        return Err(RegistryError::PoolGone {
            pool: name,
            path,
            known,
        });
    }
    // Opening mounts, and settles what is left: it blocks.
    let opened = tokio::task::spawn_blocking(move || open_store(config, is_known)).await;
    let opened = opened.unwrap_or_else(|panic| {
        Err(DriverError::Internal {
            detail: format!("opening the pool has panicked: {panic}"),
        })
    });
    let opened = match opened {
        Ok(opened) => opened,
        Err(source) => {
            return Err(RegistryError::Pool {
                pool: name,
                path,
                source,
            });
        }
    };
    match known {
        Some(known) if known != opened.uuid => Err(RegistryError::PoolReplaced {
            pool: name,
            path,
            known,
            found: opened.uuid,
        }),
        _ => Ok(opened),
    }
}

/// Opens a pool of shares. One that was in use is never made anew.
fn open_store(pool: SharePoolConfig, is_known: bool) -> Result<OpenSharePool, DriverError> {
    let SharePoolConfig { name, driver, mounts } = pool;
    match driver {
        SharePoolDriver::Images(place) => {
            let options = quarry_images::StoreOptions {
                place: if is_known { place.existing() } else { place },
                name: name.clone(),
                mounts,
                on_step: None,
            };
            let backend = Arc::new(ImageBackend::open(&options)?);
            Ok(OpenSharePool {
                name,
                uuid: backend.uuid(),
                backend: Arc::clone(&backend) as Arc<dyn ShareBackend>,
                shutdown: Arc::new(move || backend.shutdown()),
            })
        }
        SharePoolDriver::Lvm(place) => {
            let options = quarry_lvm::StoreOptions {
                place: if is_known { place.existing() } else { place },
                name: name.clone(),
                mounts,
                on_step: None,
            };
            let backend = Arc::new(LvmBackend::open(&options)?);
            Ok(OpenSharePool {
                name,
                uuid: backend.uuid(),
                backend: Arc::clone(&backend) as Arc<dyn ShareBackend>,
                shutdown: Arc::new(move || backend.shutdown()),
            })
        }
    }
}

fn open_target(config: &TargetConfig, left: Vec<TcpListener>) -> Result<Arc<IscsiTarget>, RegistryError> {
    let start = IscsiConfig {
        hold_logins: true,
        ..IscsiConfig::listening_on(config.listen.clone())
    };
    let target = IscsiTarget::succeed(start, left).map_err(|source| RegistryError::Target { source })?;
    if let Some(path) = &config.port_file
        && let Some(portal) = target.portals().first()
    {
        remember_port(path, portal.0.port()).map_err(|source| RegistryError::PortFile {
            path: path.clone(),
            source,
        })?;
    }
    Ok(Arc::new(target))
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
