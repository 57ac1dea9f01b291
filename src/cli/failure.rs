//! How a command fails: an exit code for scripts, and for people one line that says what is wrong, then what is
//! in the way, then what to do about it.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

use quarry_proto::v1::Reason;
use tonic::Code;
use tonic_types::StatusExt;

/// What the process exits with when a command does not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The agent refused or failed.
    Failed = 1,
    /// The command is wrong as written; repeating it is of no use.
    Usage = 2,
    /// What the command names does not exist.
    NotFound = 3,
    /// Nobody answers, or not in time; repeating it may help.
    Unavailable = 4,
    /// A pool file was looked at, and something is wrong with it.
    Damaged = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why a command failed, ready to be shown.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// What to exit with.
    pub exit: Exit,
    message: String,
    blockers: Vec<String>,
    next_steps: Vec<String>,
}

impl Failure {
    /// Makes a failure with one line to show.
    pub fn new(exit: Exit, message: String) -> Self {
        Self {
            exit,
            message,
            blockers: Vec::new(),
            next_steps: Vec::new(),
        }
    }

    /// Adds what to do about it.
    pub fn with_next_step(mut self, next_step: impl Into<String>) -> Self {
        self.next_steps.push(next_step.into());
        self
    }
}

impl std::error::Error for Failure {}

/// `error: …`, then a line for each blocker and each next step.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        for blocker in &self.blockers {
            write!(f, "\n  in the way: {blocker}")?;
        }
        for step in &self.next_steps {
            write!(f, "\n  next step: {step}")?;
        }
        Ok(())
    }
}

/// Joins an error and its causes to one line. A cause that the line has already is left out.
pub fn with_causes(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let exit = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
            Code::NotFound => Exit::NotFound,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Exit::Unavailable,
            _ => Exit::Failed,
        };
        let message = match status.message() {
            "" => format!("the agent answered {:?} without a reason", status.code()),
            message => message.to_owned(),
        };
        let mut failure = Failure::new(exit, message);
        let details = status.get_error_details();
        let reason = details
            .error_info()
            .and_then(|info| Reason::from_error_info(&info.reason))
            .unwrap_or_default();
        failure.next_steps.extend(next_step(reason).map(str::to_owned));
        if let Some(precondition) = details.precondition_failure() {
            for violation in &precondition.violations {
                failure.blockers.push(violation.subject.clone());
                // The agent does not know the command line's words; its own are for reasons that have none here.
                if next_step(reason).is_none() && !failure.next_steps.contains(&violation.description) {
                    failure.next_steps.push(violation.description.clone());
                }
            }
        }
        // A field's problem is mostly the message itself; shown only when it adds something.
        if let Some(bad_request) = details.bad_request() {
            for violation in &bad_request.field_violations {
                if !failure.message.contains(&violation.description) {
                    failure
                        .blockers
                        .push(format!("{}: {}", violation.field, violation.description));
                }
            }
        }
        failure
    }
}

/// What to type next, where one thing is likely to be right.
fn next_step(reason: Reason) -> Option<&'static str> {
    match reason {
        Reason::HasAttachments => Some("quarry attachment delete ID, for each of them"),
        Reason::HasSnapshots => {
            Some("quarry snapshot delete ID, for each of them, or repeat the command with --cascade")
        }
        Reason::VolumeLocked => Some("quarry volume unlock ID --key-file FILE"),
        Reason::WrongKey => {
            Some("hand in the key that the volume was created with, or that it was last changed to")
        }
        Reason::SpecMismatch => Some("choose another --id, or ask for what exists"),
        Reason::StaleGeneration => {
            Some("look at it again (show), and repeat with its generation if it is still right")
        }
        Reason::RequestIdReused => Some("choose another --request-id"),
        Reason::PoolFull => {
            Some("delete volumes or snapshots that nobody needs (quarry pool list shows the space)")
        }
        Reason::InUseByOperation => Some("repeat the command in a moment"),
        Reason::Unavailable | Reason::ShuttingDown | Reason::Timeout => {
            Some("see how the agent is (quarry node show, and its log), then repeat the command")
        }
        Reason::DataDamaged => Some("do not write to the pool; keep a copy of it and of the agent's log"),
        Reason::Internal => Some("this is a bug; please report it with the agent's log"),
        Reason::Unspecified
        | Reason::InvalidField
        | Reason::NotFound
        | Reason::InUse
        | Reason::SizeShrink
        | Reason::SizeUnaligned
        | Reason::SizeTooLarge
        | Reason::LimitReached
        | Reason::CapabilityMissing
        | Reason::ConnectorIncomplete
        | Reason::Denied => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic::Status;
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn every_code_has_an_exit_and_not_found_and_unavailable_have_their_own() {
        let exits = [
            (Code::InvalidArgument, Exit::Usage),
            (Code::NotFound, Exit::NotFound),
            (Code::Unavailable, Exit::Unavailable),
            (Code::DeadlineExceeded, Exit::Unavailable),
            (Code::AlreadyExists, Exit::Failed),
            (Code::FailedPrecondition, Exit::Failed),
            (Code::ResourceExhausted, Exit::Failed),
            (Code::DataLoss, Exit::Failed),
        ];
        for (code, exit) in exits {
            assert_eq!(Failure::from(Status::new(code, "x")).exit, exit, "{code:?}");
        }
    }

    #[test]
    fn what_blocks_and_what_to_do_are_lines_under_the_error() {
        let blocked = |reason: Reason, subject: &str, description: &str| {
            let mut details = ErrorDetails::new();
            details
                .set_error_info(reason.as_error_info(), "quarry", HashMap::new())
                .add_precondition_failure_violation(reason.as_error_info(), subject, description);
            let status = Status::with_error_details(Code::FailedPrecondition, "volume 1 is in use", details);
            Failure::from(status).to_string()
        };
        assert_eq!(
            blocked(
                Reason::HasAttachments,
                "attachment 7",
                "delete the attachment first"
            ),
            "error: volume 1 is in use\n  in the way: attachment 7\n  \
             next step: quarry attachment delete ID, for each of them"
        );
        assert_eq!(
            blocked(Reason::InUse, "a backup", "end this use first"),
            "error: volume 1 is in use\n  in the way: a backup\n  next step: end this use first"
        );
    }

    #[test]
    fn a_field_that_the_message_does_not_tell_of_is_a_line_of_its_own() {
        let mut details = ErrorDetails::new();
        details
            .add_bad_request_violation("size_bytes", "is 1, not 2")
            .add_bad_request_violation("pool", "told already");
        let status =
            Status::with_error_details(Code::AlreadyExists, "volume 1 exists: told already", details);
        assert_eq!(
            Failure::from(status).to_string(),
            "error: volume 1 exists: told already\n  in the way: size_bytes: is 1, not 2"
        );
    }

    #[test]
    fn an_empty_message_still_says_something() {
        let shown = Failure::from(Status::new(Code::Internal, "")).to_string();
        assert_eq!(shown, "error: the agent answered Internal without a reason");
    }
}
