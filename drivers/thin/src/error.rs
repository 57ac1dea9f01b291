//! Why a pool cannot be formatted, opened or checked.
//!
//! The control calls of an open pool answer with the contract's [`DriverError`], its data calls with
//! [`IoError`]; this type is for what happens before and around them.

use std::io;

use quarry_contract::{DriverError, IoError};

/// A pool could not be formatted, opened, read or committed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// An option breaks a rule.
    #[error("{option}: {problem}")]
    InvalidOption {
        /// The option.
        option: &'static str,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// The medium holds no pool.
    #[error("not a Quarry pool: no superblock with the magic is found; format the device, or check the path")]
    NotAPool,
    /// The medium already holds a pool.
    #[error("the device already holds pool {uuid}; open it, or wipe its first 8 KiB to format it anew")]
    AlreadyAPool {
        /// The pool's id.
        uuid: uuid::Uuid,
    },
    /// The medium is smaller than the pool on it.
    #[error(
        "the device is truncated: the pool needs {expected_bytes} bytes, {actual_bytes} are there; restore the \
         missing part of the file"
    )]
    Truncated {
        /// What the superblock says, in bytes.
        expected_bytes: u64,
        /// What the device has, in bytes.
        actual_bytes: u64,
    },
    /// A device that was added to the pool is not there.
    #[error(
        "device {uuid} of the pool is not at {path:?}: {problem}; put it there, or beside the pool's first device"
    )]
    MissingDevice {
        /// The device's id.
        uuid: uuid::Uuid,
        /// Where it was added.
        path: String,
        /// What was found instead.
        problem: String,
    },
    /// The pool was written by a newer Quarry.
    #[error(
        "the pool has a newer format ({what}); open it with the Quarry version that wrote it or a later one"
    )]
    NewerFormat {
        /// The version or the feature bits that are not understood.
        what: String,
    },
    /// Metadata is damaged beyond its copies.
    #[error("{structure} is damaged: {detail}; quarry pool check FILE tells what can be put right")]
    Damaged {
        /// The structure and where it is.
        structure: String,
        /// What was expected and what was found.
        detail: String,
    },
    /// The medium failed.
    #[error("{action}")]
    Device {
        /// What was being done, and where.
        action: String,
        /// What the medium said.
        #[source]
        source: io::Error,
    },
    /// The pool has stopped after an earlier failure.
    #[error("the pool has stopped: {reason}")]
    Stopped {
        /// What happened.
        reason: String,
    },
    /// The file system that the pool's file is in has no space.
    #[error("the file system under the pool has no space: {needed_bytes} bytes needed; make room there")]
    HostFull {
        /// What is needed, in bytes.
        needed_bytes: u64,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// A check of a pool in use was given up, because writes needed the space that it held.
    #[error(
        "the check has given way to writes, which needed the space of pages that it had still to read; try again"
    )]
    CheckGaveWay,
    /// No free space is left for metadata.
    #[error("the pool has no free space: {needed_bytes} bytes needed, {free_bytes} free")]
    Full {
        /// What is needed, in bytes.
        needed_bytes: u64,
        /// What is free, in bytes.
        free_bytes: u64,
    },
}

impl PoolError {
    pub(crate) fn device(action: impl Into<String>) -> impl FnOnce(io::Error) -> PoolError {
        let action = action.into();
        move |source| PoolError::Device { action, source }
    }

    /// Tells whether there is no space, in the pool or below it.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, PoolError::Full { .. } | PoolError::HostFull { .. })
    }

    pub(crate) fn damaged(structure: impl Into<String>, detail: impl Into<String>) -> PoolError {
        PoolError::Damaged {
            structure: structure.into(),
            detail: detail.into(),
        }
    }

    /// Converts for a control call on the pool called `pool`.
    pub fn into_driver_error(self, pool: &str) -> DriverError {
        let object = format!("pool {pool}");
        match self {
            PoolError::InvalidOption { option, problem } => DriverError::InvalidArgument {
                field: option.to_owned(),
                problem,
            },
            PoolError::Damaged { .. } | PoolError::Truncated { .. } => DriverError::Corrupt {
                object,
                detail: self.to_string(),
            },
            PoolError::Full {
                needed_bytes,
                free_bytes,
            } => DriverError::Full {
                pool: object,
                needed_bytes,
                free_bytes,
            },
            PoolError::HostFull { needed_bytes, .. } => DriverError::Full {
                pool: format!("the file system under {object}"),
                needed_bytes,
                free_bytes: 0,
            },
            PoolError::Device { action, source } => DriverError::Unavailable {
                object,
                problem: action,
                source: Some(source),
            },
            PoolError::CheckGaveWay => DriverError::Conflict {
                object: format!("the last free space of {object}, which the check needs"),
            },
            PoolError::NotAPool
            | PoolError::AlreadyAPool { .. }
            | PoolError::NewerFormat { .. }
            | PoolError::MissingDevice { .. }
            | PoolError::Stopped { .. } => DriverError::Unavailable {
                object,
                problem: self.to_string(),
                source: None,
            },
        }
    }

    /// Converts for a request on the data path.
    pub fn into_io_error(self) -> IoError {
        match self {
            PoolError::Stopped { reason } => IoError::Stopped { reason },
            PoolError::Full { .. } | PoolError::HostFull { .. } => IoError::NoSpace,
            PoolError::Device { action, source } => IoError::Medium {
                detail: format!("{action}: {source}"),
            },
            other => IoError::Medium {
                detail: other.to_string(),
            },
        }
    }
}
