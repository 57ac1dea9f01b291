//! Why a call on the resource model is refused.

use std::fmt;

use quarry_contract::{DriverError, ErrorKind, FieldDifference, ShareVersion};
use uuid::Uuid;

use crate::catalog::CatalogError;
use crate::catalog::record::{AttachmentId, OperationId};

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    /// A pool.
    Pool,
    /// A volume.
    Volume,
    /// A snapshot.
    Snapshot,
    /// An attachment.
    Attachment,
    /// An operation.
    Operation,
    /// A pool of shares.
    SharePool,
    /// A share.
    Share,
    /// A snapshot of a share.
    ShareSnapshot,
}

impl ObjectKind {
    /// Returns the noun.
    pub fn as_str(self) -> &'static str {
        match self {
            ObjectKind::Pool => "pool",
            ObjectKind::Volume => "volume",
            ObjectKind::Snapshot => "snapshot",
            ObjectKind::Attachment => "attachment",
            ObjectKind::Operation => "operation",
            ObjectKind::SharePool => "share pool",
            ObjectKind::Share => "share",
            ObjectKind::ShareSnapshot => "share snapshot",
        }
    }
}

/// The object that an error is about; shown as `volume 6f96…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// What it is.
    pub kind: ObjectKind,
    /// Its id or name.
    pub name: String,
}

impl Object {
    /// Names an object.
    pub fn new(kind: ObjectKind, name: impl fmt::Display) -> Self {
        Self {
            kind,
            name: name.to_string(),
        }
    }

    /// Names a volume.
    pub fn volume(id: impl fmt::Display) -> Self {
        Self::new(ObjectKind::Volume, id)
    }

    /// Names a snapshot.
    pub fn snapshot(id: impl fmt::Display) -> Self {
        Self::new(ObjectKind::Snapshot, id)
    }

    /// Names a share or a snapshot of one.
    pub fn share(version: ShareVersion) -> Self {
        match version {
            ShareVersion::Share(id) => Self::new(ObjectKind::Share, id),
            ShareVersion::Snapshot(id) => Self::new(ObjectKind::ShareSnapshot, id),
        }
    }

    /// Names an attachment.
    pub fn attachment(id: AttachmentId) -> Self {
        Self::new(ObjectKind::Attachment, id)
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

/// Why a call is refused. The text is public: it names the object and the next step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResourceError {
    /// A field of the request is wrong.
    #[error("{field}: {problem}")]
    InvalidField {
        /// The field, as in the API.
        field: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The object does not exist.
    #[error("{0} does not exist; check the id against the list")]
    NotFound(Object),
    /// The id is taken by an object with other properties.
    #[error("{object} exists with other properties: {}; choose another id, or ask for what there is", describe(.differences))]
    SpecMismatch {
        /// The object.
        object: Object,
        /// In what it differs.
        differences: Vec<FieldDifference>,
    },
    /// The id was another volume's, which hosts have seen.
    #[error("{0} has been attached and deleted: hosts may take another volume for it; choose another id")]
    IdUsedBefore(Object),
    /// The volume is attached.
    #[error("{volume} is attached ({}); delete the attachments first", list(.attachments))]
    HasAttachments {
        /// The volume.
        volume: Object,
        /// Its attachments.
        attachments: Vec<Uuid>,
    },
    /// The volume has snapshots.
    #[error("{volume} has snapshots ({}); delete them first, or ask for cascade", list(.snapshots))]
    HasSnapshots {
        /// The volume.
        volume: Object,
        /// Its snapshots.
        snapshots: Vec<Uuid>,
    },
    /// Another call holds the object.
    #[error("another call is working on {0}; try again in a moment")]
    InUseByOperation(Object),
    /// The object has changed since the caller read it.
    #[error("{object} has generation {present}, not {expected}: it was changed; read it again and decide")]
    StaleGeneration {
        /// The object.
        object: Object,
        /// What the caller expected.
        expected: u64,
        /// What it has.
        present: u64,
    },
    /// The caller's name for the call was used for another one.
    #[error("request id {request_id:?} was used for another call (operation {operation}); choose a new one")]
    RequestIdReused {
        /// The caller's name.
        request_id: String,
        /// The operation that has it.
        operation: OperationId,
    },
    /// The size is smaller than the present one or the source's.
    #[error("size_bytes: {requested} is less than the {least} of {object}; ask for at least {least}")]
    SizeShrink {
        /// The object whose size is the least.
        object: Object,
        /// What was asked for, in bytes.
        requested: u64,
        /// The least, in bytes.
        least: u64,
    },
    /// The size is zero or odd.
    #[error(
        "size_bytes: {requested} is not a positive multiple of {granularity}, as sizes in {pool} are; round up"
    )]
    SizeUnaligned {
        /// The pool.
        pool: Object,
        /// What was asked for, in bytes.
        requested: u64,
        /// The pool's granularity, in bytes.
        granularity: u64,
    },
    /// The size is above the largest that a volume or share can have.
    #[error("size_bytes: {requested} is more than the most that {pool} can make, {limit}; ask for less")]
    SizeTooLarge {
        /// The pool.
        pool: Object,
        /// What was asked for, in bytes.
        requested: u64,
        /// The largest, in bytes.
        limit: u64,
    },
    /// The connector lacks what the protocol needs.
    #[error("connector: {problem}")]
    ConnectorIncomplete {
        /// What is missing.
        problem: String,
    },
    /// The pool's driver cannot do it.
    #[error("{pool} does not support {capability}; its capabilities say what it can do")]
    CapabilityMissing {
        /// The pool.
        pool: Object,
        /// What is missing.
        capability: &'static str,
    },
    /// The agent is stopping.
    #[error("the agent is stopping; try again when it has restarted")]
    ShuttingDown,
    /// The driver refused.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The call ended with the process in between.
    #[error("{object}: the agent restarted in the middle of the call, which was undone; repeat it")]
    Interrupted {
        /// The object.
        object: Object,
    },
    /// A bug of ours.
    #[error("internal error: {detail}")]
    Internal {
        /// What was found that cannot be.
        detail: String,
    },
}

impl ResourceError {
    /// Returns the reason's name in the API (`Reason`, without prefix).
    pub fn code(&self) -> &'static str {
        match self {
            ResourceError::InvalidField { .. } => "INVALID_FIELD",
            ResourceError::NotFound(_) => "NOT_FOUND",
            ResourceError::SpecMismatch { .. } | ResourceError::IdUsedBefore(_) => "SPEC_MISMATCH",
            ResourceError::HasAttachments { .. } => "HAS_ATTACHMENTS",
            ResourceError::HasSnapshots { .. } => "HAS_SNAPSHOTS",
            ResourceError::InUseByOperation(_) => "IN_USE_BY_OPERATION",
            ResourceError::StaleGeneration { .. } => "STALE_GENERATION",
            ResourceError::RequestIdReused { .. } => "REQUEST_ID_REUSED",
            ResourceError::SizeShrink { .. } => "SIZE_SHRINK",
            ResourceError::SizeUnaligned { .. } => "SIZE_UNALIGNED",
            ResourceError::SizeTooLarge { .. } => "SIZE_TOO_LARGE",
            ResourceError::ConnectorIncomplete { .. } => "CONNECTOR_INCOMPLETE",
            ResourceError::CapabilityMissing { .. } => "CAPABILITY_MISSING",
            ResourceError::ShuttingDown => "SHUTTING_DOWN",
            ResourceError::Driver(error) => match error.kind() {
                ErrorKind::InvalidArgument => "INVALID_FIELD",
                ErrorKind::NotFound => "NOT_FOUND",
                ErrorKind::AlreadyExists => "SPEC_MISMATCH",
                ErrorKind::Busy => "IN_USE",
                ErrorKind::Conflict => "IN_USE_BY_OPERATION",
                ErrorKind::Full => "POOL_FULL",
                ErrorKind::Limit => "LIMIT_REACHED",
                ErrorKind::Unsupported => "CAPABILITY_MISSING",
                ErrorKind::Locked => "VOLUME_LOCKED",
                ErrorKind::WrongKey => "WRONG_KEY",
                ErrorKind::Denied => "DENIED",
                ErrorKind::Unavailable => "UNAVAILABLE",
                ErrorKind::Timeout => "TIMEOUT",
                ErrorKind::Corrupt => "DATA_DAMAGED",
                ErrorKind::Internal => "INTERNAL",
            },
            ResourceError::Catalog(error) => match error {
                CatalogError::Damaged { .. } | CatalogError::Record { .. } => "DATA_DAMAGED",
                _ => "UNAVAILABLE",
            },
            ResourceError::Interrupted { .. } => "UNAVAILABLE",
            ResourceError::Internal { .. } => "INTERNAL",
        }
    }

    pub(super) fn field(field: &str, problem: impl Into<String>) -> Self {
        ResourceError::InvalidField {
            field: field.to_owned(),
            problem: problem.into(),
        }
    }
}

/// Names the first few of many.
fn list(ids: &[Uuid]) -> String {
    const SHOWN: usize = 5;
    let mut text = ids
        .iter()
        .take(SHOWN)
        .map(Uuid::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    if ids.len() > SHOWN {
        text.push_str(&format!(" and {} more", ids.len() - SHOWN));
    }
    text
}

fn describe(differences: &[FieldDifference]) -> String {
    let each = |d: &FieldDifference| format!("{} is {}, not {}", d.field, d.existing, d.requested);
    differences.iter().map(each).collect::<Vec<_>>().join("; ")
}

/// Collects the properties in which what exists is not what was asked for.
#[derive(Default)]
pub(super) struct Differences(Vec<FieldDifference>);

impl Differences {
    pub(super) fn compare<T: PartialEq + fmt::Display>(&mut self, field: &str, existing: T, requested: T) {
        if existing != requested {
            self.0.push(FieldDifference {
                field: field.to_owned(),
                existing: existing.to_string(),
                requested: requested.to_string(),
            });
        }
    }

    pub(super) fn none_or(self, object: Object) -> Result<(), ResourceError> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(ResourceError::SpecMismatch {
            object,
            differences: self.0,
        })
    }
}
