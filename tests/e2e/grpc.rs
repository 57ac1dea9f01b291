//! The API spoken directly, for what the command line would not send.

use std::path::PathBuf;

use hyper_util::rt::TokioIo;
use quarry_proto::v1::attachments_client::AttachmentsClient;
use quarry_proto::v1::snapshots_client::SnapshotsClient;
use quarry_proto::v1::volumes_client::VolumesClient;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Uri};
use tonic_types::StatusExt;

use crate::agent_process::AgentProcess;

/// A client of each service that the tests call.
#[derive(Clone)]
pub struct Api {
    /// Volumes.
    pub volumes: VolumesClient<Channel>,
    /// Snapshots.
    pub snapshots: SnapshotsClient<Channel>,
    /// Attachments.
    pub attachments: AttachmentsClient<Channel>,
}

impl Api {
    /// Connects to an agent that is ready.
    pub async fn connect(agent: &AgentProcess) -> Self {
        let path = PathBuf::from(agent.endpoint.strip_prefix("unix:").unwrap());
        let channel = Channel::builder(Uri::from_static("http://localhost"))
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
            .unwrap();
        Self {
            volumes: VolumesClient::new(channel.clone()),
            snapshots: SnapshotsClient::new(channel.clone()),
            attachments: AttachmentsClient::new(channel),
        }
    }
}

/// Returns the `google.rpc.ErrorInfo` reason of an error, or nothing when it carries none.
pub fn reason(status: &Status) -> String {
    status
        .get_error_details()
        .error_info()
        .map(|info| {
            assert_eq!(info.domain, "quarry");
            info.reason.clone()
        })
        .unwrap_or_default()
}
