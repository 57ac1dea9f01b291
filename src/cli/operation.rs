//! `quarry operation`: the journal of calls that changed something.

use clap::Subcommand;
use quarry_proto::v1::operations_client::OperationsClient;
use quarry_proto::v1::{GetOperationRequest, ListOperationsRequest, Operation, OperationState};
use serde::Serialize;
use tonic::transport::Channel;
use uuid::Uuid;

use super::answer::{Answer, show_text, show_time};
use super::argument::parse_id;
use super::failure::Failure;
use super::paging::{PAGE_SIZE, all_pages};
use super::word::word;

/// The verbs of `quarry operation`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List operations, oldest first
    List {
        /// Only operations on the volume, snapshot or attachment with this id
        #[arg(long, value_parser = parse_id, value_name = "ID")]
        target: Option<Uuid>,
        /// Only operations that have failed
        #[arg(long)]
        failed: bool,
    },
    /// Show one operation in full
    Show {
        /// The operation's id
        #[arg(value_parser = parse_id)]
        id: Uuid,
    },
}

/// Runs one verb.
pub async fn run(command: Command, channel: Channel) -> Result<Answer, Failure> {
    let mut client = OperationsClient::new(channel);
    match command {
        Command::List { target, failed } => {
            let state = if failed {
                OperationState::Failed
            } else {
                OperationState::Unspecified
            };
            let operations = all_pages(async |page_token| {
                let request = ListOperationsRequest {
                    page_size: PAGE_SIZE,
                    page_token,
                    target_id: target.map(|id| id.to_string()).unwrap_or_default(),
                    state: state.into(),
                    ..ListOperationsRequest::default()
                };
                let page = client.list_operations(request).await?.into_inner();
                Ok((page.operations, page.next_page_token))
            })
            .await?;
            Ok(listed(&operations))
        }
        Command::Show { id } => {
            let request = GetOperationRequest { id: id.to_string() };
            Ok(shown(&client.get_operation(request).await?.into_inner()))
        }
    }
}

/// An operation as JSON.
#[derive(Serialize)]
struct Record<'a> {
    id: &'a str,
    kind: String,
    target_id: &'a str,
    state: String,
    request_id: &'a str,
    create_time: Option<String>,
    end_time: Option<String>,
    error: Option<ErrorRecord<'a>>,
    recovered: bool,
}

/// Why an operation failed, as JSON.
#[derive(Serialize)]
struct ErrorRecord<'a> {
    reason: &'static str,
    message: &'a str,
}

impl<'a> From<&'a Operation> for Record<'a> {
    fn from(operation: &'a Operation) -> Self {
        Self {
            id: &operation.id,
            kind: kind(operation),
            target_id: &operation.target_id,
            state: state(operation),
            request_id: &operation.request_id,
            create_time: operation.create_time.as_ref().map(ToString::to_string),
            end_time: operation.end_time.as_ref().map(ToString::to_string),
            error: operation.error.as_ref().map(|error| ErrorRecord {
                reason: error.reason().as_error_info(),
                message: &error.message,
            }),
            recovered: operation.recovered,
        }
    }
}

fn kind(operation: &Operation) -> String {
    word(operation.kind().as_str_name(), "OPERATION_KIND_")
}

fn state(operation: &Operation) -> String {
    word(operation.state().as_str_name(), "OPERATION_STATE_")
}

fn listed(operations: &[Operation]) -> Answer {
    let rows = operations
        .iter()
        .map(|operation| {
            vec![
                operation.id.clone(),
                kind(operation),
                operation.target_id.clone(),
                state(operation),
                show_time(operation.create_time.as_ref()),
            ]
        })
        .collect();
    let records: Vec<Record<'_>> = operations.iter().map(Record::from).collect();
    Answer::list(&["ID", "KIND", "TARGET", "STATE", "BEGUN"], rows, &records)
}

fn shown(operation: &Operation) -> Answer {
    let mut properties = vec![
        ("id", operation.id.clone()),
        ("kind", kind(operation)),
        ("target", operation.target_id.clone()),
        ("state", state(operation)),
    ];
    if let Some(error) = &operation.error {
        properties.push(("error", error.message.clone()));
        properties.push(("reason", error.reason().as_error_info().to_owned()));
    }
    properties.extend([
        ("request id", show_text(&operation.request_id)),
        ("begun", show_time(operation.create_time.as_ref())),
        ("ended", show_time(operation.end_time.as_ref())),
        (
            "ended by recovery",
            if operation.recovered { "yes" } else { "no" }.to_owned(),
        ),
    ]);
    Answer::show(properties, &Record::from(operation))
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;
    use quarry_proto::v1::{OperationError, OperationKind, Reason};

    use super::*;
    use crate::cli::golden::assert_golden;

    #[test]
    fn operation_answers_match_their_golden_files() {
        let done = Operation {
            id: "00000000-0000-4000-8000-0000000000d1".into(),
            kind: OperationKind::CreateVolume.into(),
            target_id: "00000000-0000-4000-8000-000000000001".into(),
            state: OperationState::Succeeded.into(),
            request_id: "req-1".into(),
            create_time: Some(Timestamp {
                seconds: 1_790_000_000,
                nanos: 0,
            }),
            end_time: Some(Timestamp {
                seconds: 1_790_000_001,
                nanos: 0,
            }),
            ..Operation::default()
        };
        let failed = Operation {
            kind: OperationKind::DeleteVolume.into(),
            state: OperationState::Failed.into(),
            error: Some(OperationError {
                reason: Reason::HasAttachments.into(),
                message: "volume 1 is attached; delete its attachments first".into(),
            }),
            recovered: true,
            ..done.clone()
        };
        assert_golden("operation-list", &listed(&[done.clone(), failed.clone()]));
        assert_golden("operation-show", &shown(&done));
        assert_golden("operation-show-failed", &shown(&failed));
    }
}
