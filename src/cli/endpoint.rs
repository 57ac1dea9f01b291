//! Where the agent is and how to get there: a unix socket, or TCP in the clear or with TLS.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity, Uri};

use super::failure::{Exit, Failure};

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The options that say which agent to ask.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
pub struct ConnectionArgs {
    /// The agent to ask: unix:/path/to/quarry.sock, http://host:port or https://host:port
    #[arg(
        long,
        env = "QUARRY_ENDPOINT",
        hide_env_values = true,
        default_value = "unix:/run/quarry/quarry.sock",
        value_name = "URL",
        global = true
    )]
    endpoint: Address,

    /// With https: the file with the certificates (PEM) of who may sign the agent's certificate
    #[arg(
        long,
        env = "QUARRY_CA",
        hide_env_values = true,
        value_name = "FILE",
        global = true
    )]
    ca: Option<PathBuf>,

    /// With https: the file with this client's certificate (PEM); goes with --key
    #[arg(
        long,
        env = "QUARRY_CERT",
        hide_env_values = true,
        value_name = "FILE",
        global = true,
        requires = "key"
    )]
    cert: Option<PathBuf>,

    /// With https: the file with this client's private key (PEM); goes with --cert
    #[arg(
        long,
        env = "QUARRY_KEY",
        hide_env_values = true,
        value_name = "FILE",
        global = true,
        requires = "cert"
    )]
    key: Option<PathBuf>,

    /// How long to wait for an answer, in seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS", global = true, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

/// An agent's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// TCP in the clear.
    Http(Uri),
    /// TCP with TLS.
    Https(Uri),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            // `unix:///path` is how gRPC's own name syntax writes an absolute path.
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err("unix: needs the path of a socket, like unix:/run/quarry/quarry.sock".to_owned());
            }
            return Ok(Address::Unix(PathBuf::from(path)));
        }
        let uri = text.parse::<Uri>().ok().filter(|uri| uri.authority().is_some());
        match uri.as_ref().and_then(Uri::scheme_str).zip(uri.clone()) {
            Some(("http", uri)) => Ok(Address::Http(uri)),
            Some(("https", uri)) => Ok(Address::Https(uri)),
            _ => Err(format!(
                "{text:?} is not an endpoint; write unix:/path/to/quarry.sock, http://host:port or https://host:port"
            )),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Http(uri) | Address::Https(uri) => f.write_str(uri.to_string().trim_end_matches('/')),
        }
    }
}

impl ConnectionArgs {
    /// Connects to the agent.
    ///
    /// # Errors
    /// With exit code 4 when nobody answers there, and 2 when the TLS options do not fit the address.
    pub async fn connect(&self) -> Result<Channel, Failure> {
        let deadline = Duration::from_secs(self.timeout);
        let is_tls = matches!(self.endpoint, Address::Https(_));
        if !is_tls && (self.ca.is_some() || self.cert.is_some()) {
            return Err(Failure::new(
                Exit::Usage,
                format!(
                    "--ca, --cert and --key go with an https:// endpoint, not with {}",
                    self.endpoint
                ),
            ));
        }
        let connected = match &self.endpoint {
            Address::Unix(path) => {
                let path = path.clone();
                // The URI is only what the `:authority` header is made of; the connector below goes to the socket.
                Channel::builder(Uri::from_static("http://localhost"))
                    .connect_timeout(CONNECT_TIMEOUT)
                    .timeout(deadline)
                    .connect_with_connector(tower::service_fn(move |_: Uri| {
                        let path = path.clone();
                        async move { UnixStream::connect(path).await.map(TokioIo::new) }
                    }))
                    .await
            }
            Address::Http(uri) | Address::Https(uri) => {
                let mut builder = Channel::builder(uri.clone())
                    .connect_timeout(CONNECT_TIMEOUT)
                    .timeout(deadline);
                if is_tls {
                    builder = builder
                        .tls_config(self.tls_config()?)
                        .map_err(|error| self.unreachable(&error))?;
                }
                builder.connect().await
            }
        };
        connected.map_err(|error| self.unreachable(&error))
    }

    fn tls_config(&self) -> Result<ClientTlsConfig, Failure> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| {
                Failure::new(Exit::Usage, format!("cannot read {}: {error}", path.display()))
            })
        };
        let Some(ca) = &self.ca else {
            return Err(
                Failure::new(Exit::Usage, "an https:// endpoint needs --ca FILE".to_owned())
                    .with_next_step("name the file with the certificate that signed the agent's own"),
            );
        };
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            config = config.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        Ok(config)
    }

    /// Tells that there is no agent where we looked, with the innermost cause: that is the one that names the
    /// errno; the layers above it only say "transport error".
    fn unreachable(&self, error: &tonic::transport::Error) -> Failure {
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        Failure::new(
            Exit::Unavailable,
            format!("no agent answers at {}: {cause}", self.endpoint),
        )
        .with_next_step(
            "start one (`quarry agent --dev DIR` or `systemctl start quarry`), or name where it listens with \
             --endpoint or QUARRY_ENDPOINT",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown_the_same() {
        for text in [
            "unix:/run/q.sock",
            "unix:q.sock",
            "http://127.0.0.1:7000",
            "https://host:7000",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!(
            "unix:///run/q.sock".parse::<Address>().unwrap().to_string(),
            "unix:/run/q.sock"
        );
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_three_forms() {
        for text in ["", "/run/q.sock", "localhost:7000", "ftp://host", "http://"] {
            let message = text.parse::<Address>().unwrap_err();
            assert!(message.contains("unix:/path"), "{text}: {message}");
        }
        assert!("unix:".parse::<Address>().is_err());
    }
}
