//! The one place where errors become gRPC status, with `google.rpc` details.
//!
//! | reasons | code | what the caller does |
//! |---|---|---|
//! | the request is wrong | INVALID_ARGUMENT | corrects it |
//! | something has to change first | FAILED_PRECONDITION | changes it; the violations name what blocks |
//! | another call holds the object | ABORTED, with a delay | tries again |
//! | stopped, absent | UNAVAILABLE, with a delay | tries again; an operator looks |
//!
//! The public text goes to the caller; the chain of causes goes to the log, and to the caller where the operating system or a
//! medium is why something is absent: it is what an operator has to look at.

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use quarry_contract::DriverError;
use quarry_proto::v1::{ERROR_DOMAIN, Reason};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tracing::error;

use crate::resources::{Object, ResourceError};

/// When to try again what another call holds.
const RETRY_CONFLICT: Duration = Duration::from_millis(200);
/// When to try again what is absent.
const RETRY_ABSENT: Duration = Duration::from_secs(5);

/// Chooses the gRPC code of a reason.
fn code_of(reason: Reason) -> Code {
    match reason {
        Reason::InvalidField
        | Reason::RequestIdReused
        | Reason::SizeShrink
        | Reason::SizeUnaligned
        | Reason::SizeTooLarge
        | Reason::ConnectorIncomplete => Code::InvalidArgument,
        Reason::NotFound => Code::NotFound,
        Reason::SpecMismatch => Code::AlreadyExists,
        Reason::HasAttachments
        | Reason::HasSnapshots
        | Reason::InUse
        | Reason::StaleGeneration
        | Reason::VolumeLocked => Code::FailedPrecondition,
        Reason::InUseByOperation => Code::Aborted,
        Reason::PoolFull | Reason::LimitReached => Code::ResourceExhausted,
        Reason::CapabilityMissing => Code::Unimplemented,
        Reason::Denied | Reason::WrongKey => Code::PermissionDenied,
        Reason::Unavailable | Reason::ShuttingDown => Code::Unavailable,
        Reason::Timeout => Code::DeadlineExceeded,
        Reason::DataDamaged => Code::DataLoss,
        Reason::Unspecified | Reason::Internal => Code::Internal,
    }
}

fn retry_after(reason: Reason) -> Option<Duration> {
    match reason {
        Reason::InUseByOperation => Some(RETRY_CONFLICT),
        Reason::Unavailable | Reason::ShuttingDown | Reason::Timeout => Some(RETRY_ABSENT),
        _ => None,
    }
}

/// Returns the reason of an error of the model.
pub(super) fn reason_of(error: &ResourceError) -> Reason {
    Reason::from_error_info(error.code()).unwrap_or(Reason::Internal)
}

impl From<ResourceError> for Status {
    fn from(error: ResourceError) -> Self {
        let reason = reason_of(&error);
        let code = code_of(reason);
        if matches!(code, Code::Internal | Code::DataLoss | Code::Unavailable) {
            error!(reason = reason.as_error_info(), error = %Chain(&error), "a call has failed");
        }
        let mut details = ErrorDetails::new();
        let mut metadata = HashMap::new();
        describe(&error, &mut details, &mut metadata);
        details.set_error_info(reason.as_error_info(), ERROR_DOMAIN, metadata);
        if let Some(delay) = retry_after(reason) {
            details.set_retry_info(Some(delay));
        }
        let text = match code {
            Code::Unavailable => Chain(&error).to_string(),
            _ => error.to_string(),
        };
        Status::with_error_details(code, text, details)
    }
}

/// The answer to a caller who may not call.
pub fn denied(problem: String) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(Reason::Denied.as_error_info(), ERROR_DOMAIN, HashMap::new());
    Status::with_error_details(code_of(Reason::Denied), problem, details)
}

/// Adds what the error knows: the object, the field, what blocks.
fn describe(error: &ResourceError, details: &mut ErrorDetails, metadata: &mut HashMap<String, String>) {
    let mut about = |object: &Object, details: &mut ErrorDetails| {
        metadata.insert(object.kind.as_str().to_owned(), object.name.clone());
        details.set_resource_info(object.kind.as_str(), &object.name, "", error.to_string());
    };
    match error {
        ResourceError::InvalidField { field, problem } => {
            details.add_bad_request_violation(field, problem);
        }
        ResourceError::ConnectorIncomplete { problem } => {
            details.add_bad_request_violation("connector", problem);
        }
        ResourceError::RequestIdReused { .. } => {
            details.add_bad_request_violation("mutation.request_id", error.to_string());
        }
        ResourceError::NotFound(object)
        | ResourceError::IdUsedBefore(object)
        | ResourceError::InUseByOperation(object)
        | ResourceError::Interrupted { object } => about(object, details),
        ResourceError::SpecMismatch { object, differences } => {
            about(object, details);
            for d in differences {
                details
                    .add_bad_request_violation(&d.field, format!("is {}, not {}", d.existing, d.requested));
            }
        }
        ResourceError::HasAttachments { volume, attachments } => {
            about(volume, details);
            for id in attachments {
                block(
                    details,
                    "HAS_ATTACHMENTS",
                    "attachment",
                    id,
                    "delete the attachment first",
                );
            }
        }
        ResourceError::HasSnapshots { volume, snapshots } => {
            about(volume, details);
            for id in snapshots {
                block(
                    details,
                    "HAS_SNAPSHOTS",
                    "snapshot",
                    id,
                    "delete the snapshot first, or ask for cascade",
                );
            }
        }
        ResourceError::StaleGeneration {
            object,
            expected,
            present,
        } => {
            about(object, details);
            let subject = format!("{object} generation {present}");
            details.add_precondition_failure_violation(
                "STALE_GENERATION",
                subject,
                format!("expected {expected}"),
            );
            metadata.insert("generation".to_owned(), present.to_string());
        }
        ResourceError::SizeShrink { object, least, .. } => {
            about(object, details);
            details.add_bad_request_violation("size_bytes", error.to_string());
            metadata.insert("least_bytes".to_owned(), least.to_string());
        }
        ResourceError::SizeUnaligned {
            pool, granularity, ..
        } => {
            about(pool, details);
            details.add_bad_request_violation("size_bytes", error.to_string());
            metadata.insert("granularity_bytes".to_owned(), granularity.to_string());
        }
        ResourceError::SizeTooLarge { pool, limit, .. } => {
            about(pool, details);
            details.add_bad_request_violation("size_bytes", error.to_string());
            metadata.insert("limit_bytes".to_owned(), limit.to_string());
        }
        ResourceError::CapabilityMissing { pool, capability } => {
            about(pool, details);
            metadata.insert("capability".to_owned(), (*capability).to_owned());
        }
        ResourceError::Driver(error) => describe_driver(error, details, metadata),
        ResourceError::ShuttingDown | ResourceError::Catalog(_) | ResourceError::Internal { .. } => {}
        // The enum is open to growth in its own crate only; a new variant is described by its text.
        #[allow(unreachable_patterns)]
        _ => {}
    }
}

fn describe_driver(error: &DriverError, details: &mut ErrorDetails, metadata: &mut HashMap<String, String>) {
    let mut about = |object: &str, details: &mut ErrorDetails| {
        metadata.insert("object".to_owned(), object.to_owned());
        details.set_resource_info("", object, "", error.to_string());
    };
    match error {
        DriverError::InvalidArgument { field, problem } => {
            details.add_bad_request_violation(field, problem);
        }
        DriverError::Busy { object, blockers } => {
            about(object, details);
            for blocker in blockers {
                details.add_precondition_failure_violation("IN_USE", blocker, "end this use first");
            }
        }
        DriverError::Full {
            pool,
            needed_bytes,
            free_bytes,
        } => {
            about(pool, details);
            details.add_quota_failure_violation(
                pool,
                format!("{needed_bytes} bytes needed, {free_bytes} free; free or add space"),
            );
        }
        DriverError::NearlyFull {
            pool,
            available_bytes,
        } => {
            about(pool, details);
            details.add_quota_failure_violation(
                pool,
                format!("{available_bytes} bytes left; make room, or grow the pool"),
            );
        }
        DriverError::NotFound { object }
        | DriverError::AlreadyExists { object, .. }
        | DriverError::Conflict { object }
        | DriverError::Limit { object, .. }
        | DriverError::Unsupported { object, .. }
        | DriverError::Unavailable { object, .. }
        | DriverError::Timeout { object, .. }
        | DriverError::Corrupt { object, .. } => about(object, details),
        _ => {}
    }
}

fn block(details: &mut ErrorDetails, kind: &str, noun: &str, id: &uuid::Uuid, next: &str) {
    details.add_precondition_failure_violation(kind, format!("{noun} {id}"), next);
}

/// An error with all its causes, for the log.
struct Chain<'a>(&'a dyn Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_caller_is_told_why_something_is_absent() {
        let cut_off = DriverError::Unavailable {
            object: "pool a".into(),
            problem: "flushing the log".into(),
            source: Some(io::Error::other("the file has been cut off")),
        };
        let status = Status::from(ResourceError::Driver(cut_off));
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(
            status.message(),
            "pool a is unavailable: flushing the log: the file has been cut off"
        );
    }
}
