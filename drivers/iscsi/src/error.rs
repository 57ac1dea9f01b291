//! Why a target does not start.

use std::io;
use std::net::SocketAddr;

/// See the module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A portal cannot be listened on.
    #[error("listening on portal {portal}")]
    Listen {
        /// The portal.
        portal: SocketAddr,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// There is no portal.
    #[error("no portal to listen on is configured")]
    NoPortal,
    /// The name prefix does not make iSCSI names.
    #[error("name prefix {prefix:?}: {problem}")]
    NamePrefix {
        /// The prefix.
        prefix: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The system refuses threads or descriptors.
    #[error("starting an I/O thread")]
    Thread(#[source] io::Error),
}
