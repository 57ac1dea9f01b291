//! What goes wrong in a store, in the words of the contract.

use std::io;

use quarry_contract::{DriverError, ShareVersion};

/// Something the operating system has refused, and at what.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A call on a file, a device or a mount.
    #[error("{what}")]
    System {
        /// What was being done.
        what: String,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// The contract's own errors.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

/// Says what was being done when the operating system refused.
pub trait During<T> {
    /// Turns what it said into an error of the store.
    ///
    /// # Errors
    /// What the operating system said.
    fn during(self, what: impl FnOnce() -> String) -> Result<T, StoreError>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::System { what: what(), source })
    }
}

impl StoreError {
    /// Turns it into the contract's error about a pool. A pool without room is told as one.
    pub fn at_pool(self, pool: &str, needed_bytes: u64, free_bytes: u64) -> DriverError {
        match self {
            StoreError::Driver(error) => error,
            StoreError::System { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                DriverError::Full {
                    pool: format!("pool {pool}"),
                    needed_bytes,
                    free_bytes,
                }
            }
            StoreError::System { what, source } => DriverError::Unavailable {
                object: format!("pool {pool}"),
                problem: format!("{what} has failed: {source}"),
                source: Some(source),
            },
        }
    }
}

/// Says that an object is not there.
pub fn not_found(version: ShareVersion) -> DriverError {
    DriverError::NotFound {
        object: version.to_string(),
    }
}

/// Says that an object is damaged.
pub fn corrupt(version: ShareVersion, detail: impl Into<String>) -> DriverError {
    DriverError::Corrupt {
        object: version.to_string(),
        detail: detail.into(),
    }
}
