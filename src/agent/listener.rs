//! Where calls are answered: a unix socket that checks its callers' user ids, or TCP with certificates on both
//! sides, or plain TCP on loopback.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
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
}

enum Socket {
    Unix {
        listener: UnixListener,
        path: PathBuf,
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
    /// Binds the address. A socket left by a process that is gone is replaced: the state folder's lock says
    /// that it is gone.
    pub(super) async fn bind(listen: &Listen) -> Result<Self, ListenError> {
        match listen {
            Listen::Unix { path, allow_uids } => bind_unix(path, allow_uids),
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
                bind_tcp("https", *address, Some(Box::new(tls))).await
            }
            Listen::Insecure { address } => bind_tcp("http", *address, None).await,
        }
    }

    /// Returns the address as clients write it.
    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Checks what can be wrong with the services and certificates, and returns the server to be run.
    pub(super) fn into_server(
        self,
        routes: Routes,
        stopping: CancellationToken,
    ) -> Result<impl Future<Output = ()> + Send + 'static, ListenError> {
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
        Ok(async move {
            let stopped = stopping.cancelled_owned();
            let ended = match socket {
                Socket::Unix {
                    listener,
                    path,
                    allowed,
                } => {
                    let check = InterceptorLayer::new(move |request| allowed.check(request));
                    let incoming = UnixListenerStream::new(listener);
                    let served = server
                        .layer(check)
                        .add_routes(routes)
                        .serve_with_incoming_shutdown(incoming, stopped);
                    let ended = served.await;
                    let _ = fs::remove_file(path);
                    ended
                }
                Socket::Tcp { listener, .. } => {
                    let incoming = TcpListenerStream::new(listener);
                    server
                        .add_routes(routes)
                        .serve_with_incoming_shutdown(incoming, stopped)
                        .await
                }
            };
            if let Err(problem) = ended {
                error!(error = %problem, "the API has stopped");
            }
        })
    }
}

fn bind_unix(path: &Path, allow_uids: &[u32]) -> Result<Listener, ListenError> {
    let endpoint = format!("unix:{}", path.display());
    let bind_error = |source| ListenError::Bind {
        endpoint: endpoint.clone(),
        source,
    };
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
    let private = path.with_extension("new");
    match fs::remove_file(&private) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(bind_error(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&private).map_err(bind_error)?;
    // With more user ids, the check of credentials is what keeps others out.
    let mode = if allow_uids.is_empty() { 0o600 } else { 0o666 };
    fs::set_permissions(&private, fs::Permissions::from_mode(mode)).map_err(bind_error)?;
    fs::rename(&private, path).map_err(bind_error)?;
    let allowed = AllowedUids(allow_uids.to_vec());
    Ok(Listener {
        endpoint,
        socket: Socket::Unix {
            listener,
            path: path.to_owned(),
            allowed,
        },
    })
}

async fn bind_tcp(
    scheme: &str,
    address: SocketAddr,
    tls: Option<Box<ServerTlsConfig>>,
) -> Result<Listener, ListenError> {
    let bind_error = |source| ListenError::Bind {
        endpoint: format!("{scheme}://{address}"),
        source,
    };
    let listener = TcpListener::bind(address).await.map_err(bind_error)?;
    let bound = listener.local_addr().map_err(bind_error)?;
    Ok(Listener {
        endpoint: format!("{scheme}://{bound}"),
        socket: Socket::Tcp { listener, tls },
    })
}

fn read_pem(path: &Path) -> Result<Vec<u8>, ListenError> {
    fs::read(path).map_err(|source| ListenError::ReadPem {
        path: path.to_owned(),
        source,
    })
}
