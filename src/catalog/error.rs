//! What can go wrong with the catalog.

use std::io;
use std::path::PathBuf;

/// An error of the catalog.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// The file cannot be created or opened.
    #[error("cannot open the catalog {path}; check that its folder exists and is writable")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is open in another process.
    #[error("the catalog {path} is in use by another process; stop the other agent first")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a catalog or is damaged.
    #[error(
        "the catalog {path} is damaged or not a catalog; put back a copy of it, or move it away to start \
         without attachments"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<redb::Error>,
    },
    /// The file was written by a newer agent.
    #[error("the catalog {path} has format {found}, this agent reads up to {known}; run the newer agent")]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The newest format known here.
        known: u64,
    },
    /// A record cannot be understood.
    #[error("the catalog's record of {object} is damaged: {detail}")]
    Record {
        /// What the record is about.
        object: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A read or write failed.
    #[error(
        "the catalog has stopped after a failed read or write; see to the disk it is on and restart the agent"
    )]
    Io {
        /// The cause.
        #[source]
        source: Box<redb::Error>,
    },
    /// The writer was cut short by the end of the process.
    #[error("the catalog is closed")]
    Closed,
}

impl CatalogError {
    pub(super) fn io(error: impl Into<redb::Error>) -> Self {
        CatalogError::Io {
            source: Box::new(error.into()),
        }
    }
}
