//! Where calls are answered: a unix socket that checks its callers' user ids, or TCP with certificates on both
//! sides, or plain TCP on loopback.
//!
//! The socket outlives the server that answers there: an agent that hands over stops taking connections, which then wait in
//! the socket, and its successor [finds](take_own) that instead of binding another.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use quarry_sys::handover::Listening;
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio_stream::Stream;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::service::{InterceptorLayer, Routes};
use tonic::transport::server::UdsConnectInfo;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Status};
use tracing::{error, warn};

use crate::api;
use crate::config::Listen;

/// The most calls that one connection has running at a time.
const STREAMS_PER_CONNECTION: u32 = 256;
/// How often a silent connection is probed, and how long the answer may take.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Connections that wait to be taken, if the system allows so many.
const BACKLOG: u32 = 1024;

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address cannot be listened on.
    #[error("cannot listen on {endpoint}; check that nothing else does and that this user may")]
    Bind {
        /// The address.
        endpoint: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The path of the socket is taken by something that is not a socket.
    #[error("{path} is in the way of the API's socket and is not a socket; move it away")]
    InTheWay {
        /// The path.
        path: PathBuf,
    },
    /// A certificate or key cannot be read.
    #[error("cannot read {path}; check the tls settings of the configuration")]
    ReadPem {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The certificates do not fit.
    #[error("the certificates of the API cannot be used; check the tls settings of the configuration")]
    Tls(#[source] tonic::transport::Error),
    /// The services cannot be put together.
    #[error("the API's description cannot be read")]
    Services(#[source] tonic_reflection::server::Error),
}

/// A bound address, not serving yet: clients that connect wait.
pub(super) struct Listener {
    endpoint: String,
    socket: Socket,
    door: Door,
}

/// The socket itself, apart from the server: while it is open, clients that connect wait or are served.
pub(super) struct Door {
    socket: Listening,
    /// Where it is in the file system.
    path: Option<PathBuf>,
}

impl Door {
    /// Closes it: clients find nobody.
    pub(super) fn close(self) {
        if let Some(path) = self.path {
            let _ = fs::remove_file(path);
        }
    }

    /// Gives up the socket to whoever is next.
    pub(super) fn leave(self) -> Listening {
        self.socket
    }
}

/// When a server stops, in two steps.
#[derive(Debug, Clone, Default)]
pub(super) struct Closing {
    /// Connections are not taken any more; those that are there are served.
    pub deaf: CancellationToken,
    /// Connections end when their calls do.
    pub stopping: CancellationToken,
}

/// Connections as they come, as long as they are taken. It does not end then: that would end those that are there.
struct Incoming<S> {
    connections: S,
    deaf: CancellationToken,
}

impl<S: Stream + Unpin> Stream for Incoming<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let this = self.get_mut();
        match this.deaf.is_cancelled() {
            true => Poll::Pending,
            false => Pin::new(&mut this.connections).poll_next(context),
        }
    }
}

enum Socket {
    Unix {
        listener: UnixListener,
        allowed: AllowedUids,
    },
    Tcp {
        listener: TcpListener,
        tls: Option<Box<ServerTlsConfig>>,
    },
}

/// Who may call over the unix socket: root, the agent's own user, and these.
#[derive(Debug, Clone)]
struct AllowedUids(Vec<u32>);

impl AllowedUids {
    fn check(&self, request: Request<()>) -> Result<Request<()>, Status> {
        let peer = request
            .extensions()
            .get::<UdsConnectInfo>()
            .and_then(|info| info.peer_cred);
        let Some(uid) = peer.map(|credentials| credentials.uid()) else {
            return Err(api::denied("the caller's user id is not known".to_owned()));
        };
        if uid == 0 || uid == nix::unistd::geteuid().as_raw() || self.0.contains(&uid) {
            return Ok(request);
        }
        warn!(uid, "a call was refused");
        Err(api::denied(format!(
            "user id {uid} may not call this agent; an operator adds it to api.allow_uids"
        )))
    }
}

impl Listener {
    /// Binds the address, unless the agent before has [left](take_own) its socket. A socket in the file system of a process
    /// that is gone is replaced: the state folder's lock says that it is gone.
    pub(super) fn bind(listen: &Listen, left: Option<Listening>) -> Result<Self, ListenError> {
        match listen {
            Listen::Unix { path, allow_uids } => bind_unix(path, allow_uids, left),
            Listen::Tls {
                address,
                certificate,
                key,
                client_ca,
            } => {
                let identity = Identity::from_pem(read_pem(certificate)?, read_pem(key)?);
                let authorities = Certificate::from_pem(read_pem(client_ca)?);
                let tls = ServerTlsConfig::new()
                    .identity(identity)
                    .client_ca_root(authorities);
                bind_tcp("https", *address, Some(Box::new(tls)), left)
            }
            Listen::Insecure { address } => bind_tcp("http", *address, None, left),
        }
    }

    /// Returns the address as clients write it.
    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Checks what can be wrong with the services and certificates, and returns the server to be run, and the socket.
    pub(super) fn into_server(
        self,
        routes: Routes,
        closing: Closing,
    ) -> Result<(impl Future<Output = ()> + Send + 'static, Door), ListenError> {
        let mut server = Server::builder()
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .trace_fn(|request| tracing::info_span!("call", path = request.uri().path()));
        let socket = match self.socket {
            Socket::Tcp { listener, tls } => {
                if let Some(tls) = tls {
                    server = server.tls_config(*tls).map_err(ListenError::Tls)?;
                }
                Socket::Tcp { listener, tls: None }
            }
            unix @ Socket::Unix { .. } => unix,
        };
        let Closing { deaf, stopping } = closing;
        let served = async move {
            let stopped = stopping.cancelled_owned();
            let ended = match socket {
                Socket::Unix { listener, allowed } => {
                    let check = InterceptorLayer::new(move |request| allowed.check(request));
                    let connections = UnixListenerStream::new(listener);
                    server
                        .layer(check)
                        .add_routes(routes)
                        .serve_with_incoming_shutdown(Incoming { connections, deaf }, stopped)
                        .await
                }
                Socket::Tcp { listener, .. } => {
                    let connections = TcpListenerStream::new(listener);
                    server
                        .add_routes(routes)
                        .serve_with_incoming_shutdown(Incoming { connections, deaf }, stopped)
                        .await
                }
            };
            if let Err(problem) = ended {
                error!(error = %problem, "the API has stopped");
            }
        };
        Ok((served, self.door))
    }
}

/// Takes out of the sockets that the agent before has left the one for the calls of this configuration.
pub(super) fn take_own(listen: &Listen, left: &mut Vec<Listening>) -> Option<Listening> {
    let is_own = |socket: &Listening| match (listen, socket) {
        // What somebody has taken away in the file system is of no use.
        (Listen::Unix { path, .. }, Listening::Unix(socket)) => {
            socket
                .local_addr()
                .is_ok_and(|bound| bound.as_pathname() == Some(&private_name(path)))
                && fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        }
        (Listen::Tls { address, .. } | Listen::Insecure { address }, socket) => is_at(socket, *address),
        _ => false,
    };
    let at = left.iter().position(is_own)?;
    Some(left.swap_remove(at))
}

/// Takes out of the sockets that the agent before has left the one with this address, or binds another.
pub(super) fn take_or_listen(
    address: SocketAddr,
    left: &mut Vec<Listening>,
) -> io::Result<std::net::TcpListener> {
    let known = left.iter().position(|socket| is_at(socket, address));
    match known.map(|at| left.swap_remove(at)) {
        Some(Listening::Tcp(socket)) => Ok(socket),
        _ => listen_tcp(address),
    }
}

fn is_at(socket: &Listening, address: SocketAddr) -> bool {
    match socket {
        Listening::Tcp(socket) => socket.local_addr().is_ok_and(|bound| bound == address),
        Listening::Unix(_) => false,
    }
}

/// Returns what a socket is called until it may be found.
fn private_name(path: &Path) -> PathBuf {
    path.with_extension("new")
}

fn bind_unix(path: &Path, allow_uids: &[u32], left: Option<Listening>) -> Result<Listener, ListenError> {
    let endpoint = format!("unix:{}", path.display());
    let bind_error = |source| ListenError::Bind {
        endpoint: endpoint.clone(),
        source,
    };
    // With more user ids, the check of credentials is what keeps others out.
    let mode = if allow_uids.is_empty() { 0o600 } else { 0o666 };
    let allow = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    let socket = match left {
        Some(Listening::Unix(socket)) => {
            allow(path).map_err(bind_error)?;
            socket
        }
        _ => {
            match fs::symlink_metadata(path) {
                Ok(metadata) if !metadata.file_type().is_socket() => {
                    return Err(ListenError::InTheWay {
                        path: path.to_owned(),
                    });
                }
                _ => {}
            }
            // Under another name until it is private, then in place of what is left of the one before: a client finds
            // the old socket, which nobody answers, or this one, and never one that is open to all.
            let private = private_name(path);
            match fs::remove_file(&private) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(bind_error(error)),
                _ => {}
            }
            let socket = std::os::unix::net::UnixListener::bind(&private).map_err(bind_error)?;
            allow(&private).map_err(bind_error)?;
            fs::rename(&private, path).map_err(bind_error)?;
            socket.set_nonblocking(true).map_err(bind_error)?;
            socket
        }
    };
    let kept = socket.try_clone().map_err(bind_error)?;
    Ok(Listener {
        socket: Socket::Unix {
            listener: UnixListener::from_std(socket).map_err(bind_error)?,
            allowed: AllowedUids(allow_uids.to_vec()),
        },
        door: Door {
            socket: Listening::Unix(kept),
            path: Some(path.to_owned()),
        },
        endpoint,
    })
}

fn bind_tcp(
    scheme: &str,
    address: SocketAddr,
    tls: Option<Box<ServerTlsConfig>>,
    left: Option<Listening>,
) -> Result<Listener, ListenError> {
    let bind_error = |source| ListenError::Bind {
        endpoint: format!("{scheme}://{address}"),
        source,
    };
    let socket = match left {
        Some(Listening::Tcp(socket)) => socket,
        _ => listen_tcp(address).map_err(bind_error)?,
    };
    let kept = socket.try_clone().map_err(bind_error)?;
    let bound = socket.local_addr().map_err(bind_error)?;
    Ok(Listener {
        endpoint: format!("{scheme}://{bound}"),
        socket: Socket::Tcp {
            listener: TcpListener::from_std(socket).map_err(bind_error)?,
            tls,
        },
        door: Door {
            socket: Listening::Tcp(kept),
            path: None,
        },
    })
}

fn listen_tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

fn read_pem(path: &Path) -> Result<Vec<u8>, ListenError> {
    fs::read(path).map_err(|source| ListenError::ReadPem {
        path: path.to_owned(),
        source,
    })
}
