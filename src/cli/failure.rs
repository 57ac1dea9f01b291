//! How a command fails: an exit code for scripts, and for people one line that says what is wrong, then what is
//! in the way, then what to do about it.

use std::fmt;
use std::process::ExitCode;

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

/// The metadata key of `google.rpc.ErrorInfo` that carries the next step.
const NEXT_STEP: &str = "next_step";

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
        if let Some(precondition) = details.precondition_failure() {
            failure.blockers = precondition
                .violations
                .iter()
                .map(|violation| match violation.description.as_str() {
                    "" => violation.subject.clone(),
                    description => format!("{}: {description}", violation.subject),
                })
                .collect();
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
        if let Some(step) = details.error_info().and_then(|info| info.metadata.get(NEXT_STEP)) {
            failure.next_steps.push(step.clone());
        }
        failure
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
    fn details_become_lines_under_the_error() {
        let mut details = ErrorDetails::new();
        details
            .set_error_info(
                "HAS_ATTACHMENTS",
                "quarry",
                HashMap::from([("next_step".to_owned(), "delete its attachments first".to_owned())]),
            )
            .add_precondition_failure_violation("HAS_ATTACHMENTS", "attachment 7", "");
        let status = Status::with_error_details(Code::FailedPrecondition, "volume 1 is attached", details);
        assert_eq!(
            Failure::from(status).to_string(),
            "error: volume 1 is attached\n  in the way: attachment 7\n  next step: delete its attachments first"
        );
    }

    #[test]
    fn an_empty_message_still_says_something() {
        let shown = Failure::from(Status::new(Code::Internal, "")).to_string();
        assert_eq!(shown, "error: the agent answered Internal without a reason");
    }
}
