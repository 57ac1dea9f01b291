//! The agent: puts the parts together, runs them, and takes them apart again.
//!
//! Order of the start: configuration → log → lock of the state folder → catalog → drivers → recovery (open
//! intents, then exports) → API socket → the line `ready endpoint=… iscsi=…` on stdout. Nothing is answered
//! before recovery has ended, and initiators can log in when the line is out.
//!
//! Order of the stop (SIGTERM, SIGINT): no new connections and mutating calls → running calls end → the target
//! closes its sessions → the pools are closed. A kill at any moment is as good, only slower to start from.
//!
//! On SIGUSR2 another program takes over in the same process: see [`successor`].
//!
//! Failure: whatever stops the start is returned as one error that names the object and the next step.

mod listener;
mod lock;
mod metrics;
mod successor;

#[cfg(test)]
mod tests;

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use quarry_sys::handover::Listening;
use successor::Successor;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::api;
use crate::catalog::{Catalog, CatalogError, Change};
use crate::config::{Config, ConfigError};
use crate::registry::{Registry, RegistryError};
use crate::resources::{ResourceError, Resources};
use crate::telemetry;

pub use listener::ListenError;
pub use lock::StateLockError;
pub use successor::SuccessorError;

/// How often exports that failed are tried again.
const RETRY_EXPORTS: Duration = Duration::from_secs(5);
/// How often the journal is rid of what is older than a day.
const FORGET_OPERATIONS: Duration = Duration::from_secs(60 * 60);
/// How long the stop waits for calls that run. Metadata calls take milliseconds.
const DRAIN: Duration = Duration::from_secs(30);
/// How long the stop waits for clients to close their connections after their calls have ended.
const CLOSE_CONNECTIONS: Duration = Duration::from_millis(300);
/// How long clients that have just connected have to say what they want when another program is to take over: until then
/// the end of their connection is an error to them.
const GREET: Duration = Duration::from_millis(200);

/// How the agent is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the configuration comes from.
    pub source: Source,
    /// Whether to print the resolved configuration and leave it at that.
    pub check_config: bool,
}

/// Where the configuration comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// Dev mode: everything in one folder.
    Dev {
        /// The folder, made when it is not there.
        dir: PathBuf,
        /// The size of the pool made at the first start, in bytes; `None` for the default.
        pool_size_bytes: Option<u64>,
    },
}

/// Why the agent does not start, or has stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] StateLockError),
    /// The catalog cannot be opened.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A pool or the target cannot be opened.
    #[error(transparent)]
    Drivers(#[from] RegistryError),
    /// What the process before has left cannot be settled.
    #[error("cannot settle what the agent before has left: {0}")]
    Recovery(#[source] ResourceError),
    /// The API cannot be served.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The figures cannot be served.
    #[error("cannot listen on {address} for metrics; check that nothing else does and that this user may")]
    Metrics {
        /// The address.
        address: std::net::SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// No other program has taken over, after this one had ended for it.
    #[error("the agent has ended for another program that cannot be run; start it again")]
    Succeed(#[source] std::io::Error),
    /// The operating system refuses what every process needs.
    #[error("the operating system refuses {what}")]
    System {
        /// What.
        what: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// Runs the agent until SIGTERM or SIGINT. On SIGUSR2 it does not return: another program takes over.
///
/// # Errors
/// Whatever stops the start.
pub fn run(options: &Options) -> Result<(), AgentError> {
    let config = match &options.source {
        Source::File(path) => Config::load(path)?,
        Source::Dev { dir, pool_size_bytes } => Config::dev(dir, *pool_size_bytes)?,
    };
    if options.check_config {
        return print(config.render().trim_end());
    }
    let left = successor::take_sockets();
    telemetry::start(&config.log);
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("quarry-api")
        .build()
        .map_err(|source| AgentError::System {
            what: "threads",
            source,
        })?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let successor = Successor::of_this_program();
        let agent = Agent::succeed(config, left).await?;
        print(&agent.ready_line())?;
        while signals.next().await == Asked::ToSucceed {
            match successor.check().await {
                Ok(()) => return agent.hand_over_to(&successor, &mut signals).await,
                Err(error) => error!(%error, "no program takes over; this one goes on"),
            }
        }
        info!("stopping");
        agent.stop().await;
        Ok(())
    })
}

/// Takes as many descriptors as the system allows: each session is one, and the soft limit is often 1024.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(%error, "the limit of descriptors stays as it is, and with it that of sessions");
    }
}

fn print(line: &str) -> Result<(), AgentError> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")
        .and_then(|()| stdout.flush())
        .map_err(|source| AgentError::System {
            what: "writing to stdout",
            source,
        })
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    ToStop,
    /// Another program is to take over.
    ToSucceed,
}

/// The signals that the agent listens to.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    succeed: tokio::signal::unix::Signal,
}

impl Signals {
    /// Begins to listen. What came since the program before [held them back](Signals::hold_back) is among what is heard.
    fn new() -> Result<Self, AgentError> {
        let catch = |kind| signal(kind).map_err(system("signals"));
        let signals = Self {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
            succeed: catch(SignalKind::user_defined2())?,
        };
        // Whoever started it may have left SIGCHLD ignored, and then nobody can tell how a program has ended (wait(2)). Once
        // caught it stays so.
        drop(catch(SignalKind::child())?);
        Self::mask()
            .thread_unblock()
            .map_err(|errno| system("signals")(errno.into()))?;
        Ok(signals)
    }

    fn mask() -> SigSet {
        [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR2]
            .into_iter()
            .collect()
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::ToStop,
            _ = self.interrupt.recv() => Asked::ToStop,
            _ = self.succeed.recv() => Asked::ToSucceed,
        }
    }

    /// Holds back for the next program what comes from now on: until it listens, a signal would end it. Tells whether
    /// the agent has been asked to stop before.
    async fn hold_back(&mut self) -> Result<bool, AgentError> {
        Self::mask()
            .thread_block()
            .map_err(|errno| system("signals")(errno.into()))?;
        Ok(tokio::select! {
            biased;
            _ = self.terminate.recv() => true,
            _ = self.interrupt.recv() => true,
            () = std::future::ready(()) => false,
        })
    }
}

/// Says that the operating system refuses something.
fn system(what: &'static str) -> impl Fn(std::io::Error) -> AgentError {
    move |source| AgentError::System { what, source }
}

/// A running agent.
pub struct Agent {
    model: Arc<Resources>,
    registry: Registry,
    endpoint: String,
    door: Option<listener::Door>,
    /// Where figures are asked for.
    figures: Option<TcpListener>,
    closing: listener::Closing,
    tasks: TaskTracker,
    server: tokio::task::JoinHandle<()>,
    // The folder is another agent's when everything else has ended.
    _lock: lock::StateLock,
}

impl Agent {
    /// Starts an agent. When this returns, calls and logins are answered.
    ///
    /// # Errors
    /// Whatever stops the start.
    pub async fn start(config: Config) -> Result<Self, AgentError> {
        Self::succeed(config, Vec::new()).await
    }

    /// Starts an agent with the sockets that the one before it has left; those that it has no use for are closed.
    async fn succeed(config: Config, mut left: Vec<Listening>) -> Result<Self, AgentError> {
        let lock = lock::StateLock::take(&config.state_dir)?;
        let catalog = Catalog::open(&config.state_dir.join("catalog.redb"))?;
        let known = catalog.pools()?;
        let own = listener::take_own(&config.listen, &mut left);
        let figures = config.metrics.map(|address| {
            listener::take_or_listen(address, &mut left)
                .map_err(|source| AgentError::Metrics { address, source })
        });
        let figures = figures.transpose()?;
        let portals = left.into_iter().filter_map(|socket| match socket {
            Listening::Tcp(socket) => Some(socket),
            Listening::Unix(_) => None,
        });
        let registry = Registry::open(&config, &known, portals.collect()).await?;
        let new: Vec<Change> = registry
            .pool_identities()
            .filter(|(name, _)| !known.contains_key(name))
            .map(|(name, uuid)| Change::PutPool(name, uuid))
            .collect();
        if !new.is_empty() {
            catalog.commit(new).await?;
        }
        Self::start_with(&config, lock, catalog, registry, (own, figures)).await
    }

    async fn start_with(
        config: &Config,
        lock: lock::StateLock,
        catalog: Catalog,
        registry: Registry,
        (own, figures): (Option<Listening>, Option<TcpListener>),
    ) -> Result<Self, AgentError> {
        let model = Resources::new(registry.clone(), catalog);
        let recovery = model.recover().await.map_err(AgentError::Recovery)?;
        info!(?recovery, "recovered");
        if let Err(error) = model.forget_old_operations().await {
            warn!(%error, "the journal keeps what is older than a day until the next try");
        }
        let routes = api::routes(Arc::clone(&model))
            .await
            .map_err(ListenError::Services)?;
        let closing = listener::Closing::default();
        let stopping = &closing.stopping;
        let listener = listener::Listener::bind(&config.listen, own)?;
        let endpoint = listener.endpoint().to_owned();
        let (served, door) = listener.into_server(routes, closing.clone())?;
        let server = tokio::spawn(served);
        let tasks = TaskTracker::new();
        tasks.spawn(every(
            RETRY_EXPORTS,
            stopping.clone(),
            Arc::clone(&model),
            |model| async move { model.retry_exports().await },
        ));
        tasks.spawn(every(
            FORGET_OPERATIONS,
            stopping.clone(),
            Arc::clone(&model),
            |model| async move { model.forget_old_operations().await.map(|_| ()) },
        ));
        if let (Some(address), Some(figures)) = (config.metrics, &figures) {
            let listener = figures
                .try_clone()
                .and_then(tokio::net::TcpListener::from_std)
                .map_err(|source| AgentError::Metrics { address, source })?;
            let registry = registry.clone();
            tasks.spawn(metrics::serve(listener, stopping.clone(), move || {
                registry.metrics()
            }));
            info!(%address, "serving metrics");
        }
        tasks.close();
        info!(%endpoint, "answering calls");
        Ok(Self {
            model,
            registry,
            endpoint,
            door: Some(door),
            figures,
            closing,
            tasks,
            server,
            _lock: lock,
        })
    }

    /// Returns the line that tells whoever started the agent where it is.
    pub fn ready_line(&self) -> String {
        let portals = self.registry.target().target.portals();
        let portals: Vec<String> = portals.iter().map(ToString::to_string).collect();
        format!("ready endpoint={} iscsi={}", self.endpoint, portals.join(","))
    }

    /// Returns where calls are answered, as clients write it: `unix:/path` or `http://address:port`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Ends the agent: running calls first, then sessions, then pools.
    pub async fn stop(mut self) {
        if let Some(door) = self.door.take() {
            door.close();
        }
        let (registry, _lock) = self.end_calls().await;
        registry.close().await;
        info!("stopped");
    }

    /// Lets those that have connected have their calls answered, and those that come now wait in the socket, which is
    /// returned. Connections that do not end are left for [`Agent::end_calls`].
    async fn let_newcomers_wait(&mut self) -> Option<listener::Door> {
        self.closing.deaf.cancel();
        tokio::time::sleep(GREET).await;
        self.closing.stopping.cancel();
        // Calls are not refused before their connection has ended.
        self.has_served(CLOSE_CONNECTIONS).await;
        self.door.take()
    }

    /// Ends calls and what the agent does of its own accord.
    async fn end_calls(mut self) -> (Registry, lock::StateLock) {
        self.closing.stopping.cancel();
        if !self.model.stop(DRAIN).await {
            warn!("calls are still running; the next start settles them");
        }
        if !self.has_served(CLOSE_CONNECTIONS).await {
            // Clients that hold a stream open, like a health watch.
            self.server.abort();
        }
        self.tasks.wait().await;
        (self.registry, self._lock)
    }

    /// Waits until all connections have ended. Tells whether they have.
    async fn has_served(&mut self, limit: Duration) -> bool {
        self.server.is_finished() || tokio::time::timeout(limit, &mut self.server).await.is_ok()
    }
}

/// Does something again and again until the agent stops; an error is logged, and the next time tries again.
async fn every<F>(
    period: Duration,
    stopping: CancellationToken,
    model: Arc<Resources>,
    work: impl Fn(Arc<Resources>) -> F,
) where
    F: Future<Output = Result<(), ResourceError>>,
{
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(error) = work(Arc::clone(&model)).await {
            warn!(%error, "a background task has failed and will be tried again");
        }
    }
}
