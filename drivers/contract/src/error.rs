//! The one error type that drivers of the control side return.

use std::io;

/// A property in which an existing object differs from the one a call described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldDifference {
    /// The property, in the words of the API (`size_bytes`).
    pub field: String,
    /// What the existing object has.
    pub existing: String,
    /// What the call asked for.
    pub requested: String,
}

/// What a caller can do about an error. Closed: matched without a wildcard wherever it is turned into something
/// else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is wrong; the caller fixes it.
    InvalidArgument,
    /// The object does not exist.
    NotFound,
    /// The id is taken by an object with other properties.
    AlreadyExists,
    /// The object is in use; the caller changes that first.
    Busy,
    /// Another operation holds the object; a retry soon will do.
    Conflict,
    /// The pool has no room.
    Full,
    /// A count limit is reached.
    Limit,
    /// The driver lacks the capability.
    Unsupported,
    /// The object is encrypted, and its key is not there; the caller hands it in first.
    Locked,
    /// The key is not the object's.
    WrongKey,
    /// Not allowed.
    Denied,
    /// A device or daemon is absent or fail-stopped; retry with backoff, then an operator.
    Unavailable,
    /// Took too long; retry the same request.
    Timeout,
    /// Stored data is damaged; an operator, now.
    Corrupt,
    /// A bug of ours.
    Internal,
}

/// An error of a driver's control side. `object` names the thing at fault in words an operator can search for
/// (`volume 6f96…`, `pool default`).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// The request is wrong.
    #[error("{field}: {problem}")]
    InvalidArgument {
        /// The argument at fault.
        field: String,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// The object does not exist.
    #[error("{object} does not exist")]
    NotFound {
        /// The object.
        object: String,
    },
    /// The id is taken by an object with other properties.
    #[error("{object} exists with other properties: {}", describe(.differences))]
    AlreadyExists {
        /// The object.
        object: String,
        /// In what it differs.
        differences: Vec<FieldDifference>,
    },
    /// The object is in use.
    #[error("{object} is in use by {}", .blockers.join(", "))]
    Busy {
        /// The object.
        object: String,
        /// What uses it.
        blockers: Vec<String>,
    },
    /// The object is encrypted, and its key has not been handed in since the start.
    #[error("{object} is locked; unlock it with its key first")]
    Locked {
        /// The object.
        object: String,
    },
    /// A key was handed in that is not the object's.
    #[error("that is not the key of {object}")]
    WrongKey {
        /// The object.
        object: String,
    },
    /// Another operation holds the object.
    #[error("another operation holds {object}")]
    Conflict {
        /// The object.
        object: String,
    },
    /// The pool has no room.
    #[error("{pool} is full: {needed_bytes} bytes needed, {free_bytes} free")]
    Full {
        /// The pool.
        pool: String,
        /// What the call needs, in bytes.
        needed_bytes: u64,
        /// What is there, in bytes.
        free_bytes: u64,
    },
    /// The pool has so little room left that it takes nothing new ([`SpaceLevel::Brake`](crate::SpaceLevel::Brake)).
    #[error(
        "{pool} has {available_bytes} bytes left and takes new volumes and snapshots only of reserved volumes; make \
         room, or grow it"
    )]
    NearlyFull {
        /// The pool.
        pool: String,
        /// What is left for data, in bytes.
        available_bytes: u64,
    },
    /// A count limit is reached.
    #[error("{object}: the limit of {limit} {what} is reached")]
    Limit {
        /// The object that holds the things counted.
        object: String,
        /// The things counted, plural.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// The driver lacks the capability.
    #[error("{object} does not support {capability}")]
    Unsupported {
        /// The object.
        object: String,
        /// The capability's name.
        capability: String,
    },
    /// A device or daemon is absent, or the pool has stopped after a failed write.
    #[error("{object} is unavailable: {problem}")]
    Unavailable {
        /// The object.
        object: String,
        /// What is wrong, and the next step.
        problem: String,
        /// The cause, where the operating system gave one.
        #[source]
        source: Option<io::Error>,
    },
    /// Took too long.
    #[error("{object} did not answer within {seconds} s")]
    Timeout {
        /// The object.
        object: String,
        /// How long was waited, in seconds.
        seconds: u64,
    },
    /// Stored data is damaged.
    #[error("{object} is damaged: {detail}")]
    Corrupt {
        /// The object.
        object: String,
        /// Where and how.
        detail: String,
    },
    /// A bug of ours.
    #[error("internal error: {detail}")]
    Internal {
        /// What was found that cannot be.
        detail: String,
    },
}

impl DriverError {
    /// Tells what a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            DriverError::InvalidArgument { .. } => ErrorKind::InvalidArgument,
            DriverError::NotFound { .. } => ErrorKind::NotFound,
            DriverError::AlreadyExists { .. } => ErrorKind::AlreadyExists,
            DriverError::Busy { .. } => ErrorKind::Busy,
            DriverError::Locked { .. } => ErrorKind::Locked,
            DriverError::WrongKey { .. } => ErrorKind::WrongKey,
            DriverError::Conflict { .. } => ErrorKind::Conflict,
            DriverError::Full { .. } | DriverError::NearlyFull { .. } => ErrorKind::Full,
            DriverError::Limit { .. } => ErrorKind::Limit,
            DriverError::Unsupported { .. } => ErrorKind::Unsupported,
            DriverError::Unavailable { .. } => ErrorKind::Unavailable,
            DriverError::Timeout { .. } => ErrorKind::Timeout,
            DriverError::Corrupt { .. } => ErrorKind::Corrupt,
            DriverError::Internal { .. } => ErrorKind::Internal,
        }
    }
}

fn describe(differences: &[FieldDifference]) -> String {
    let each = |d: &FieldDifference| format!("{} is {}, not {}", d.field, d.existing, d.requested);
    differences.iter().map(each).collect::<Vec<_>>().join("; ")
}
