//! The calls, and making many of them.

use std::time::{Duration, Instant};

use quarry_proto::v1;
use quarry_proto::v1::attachments_client::AttachmentsClient;
use quarry_proto::v1::snapshots_client::SnapshotsClient;
use quarry_proto::v1::volumes_client::VolumesClient;
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::Channel;
use uuid::Uuid;

const VOLUME_BYTES: u64 = 1 << 30;
const INITIATOR: &str = "iqn.2026-11.io.quarry:cload";

/// A client of the services that are called.
#[derive(Clone)]
pub struct Caller {
    volumes: VolumesClient<Channel>,
    snapshots: SnapshotsClient<Channel>,
    attachments: AttachmentsClient<Channel>,
}

/// How long calls took.
#[derive(Debug)]
pub struct Timing {
    /// One by one.
    pub each: Vec<Duration>,
    /// All of them, side by side.
    pub all: Duration,
}

/// Makes ids for new objects.
pub fn ids(count: usize) -> Vec<Uuid> {
    (0..count).map(|_| Uuid::new_v4()).collect()
}

/// Makes a call for each argument, at most `callers` at a time.
///
/// # Errors
/// The first of a call.
pub async fn repeat<A, F>(
    arguments: &[A],
    callers: usize,
    mut call: impl FnMut(A) -> F,
) -> Result<Timing, Status>
where
    A: Copy,
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let started = Instant::now();
    let mut each = Vec::with_capacity(arguments.len());
    let mut under_way = JoinSet::new();
    for argument in arguments {
        if under_way.len() == callers.max(1) {
            each.extend(next(&mut under_way).await?);
        }
        let call = call(*argument);
        under_way.spawn(async move {
            let begun = Instant::now();
            call.await.map(|()| begun.elapsed())
        });
    }
    while let Some(time) = next(&mut under_way).await? {
        each.push(time);
    }
    Ok(Timing {
        each,
        all: started.elapsed(),
    })
}

async fn next(under_way: &mut JoinSet<Result<Duration, Status>>) -> Result<Option<Duration>, Status> {
    match under_way.join_next().await {
        None => Ok(None),
        Some(ended) => ended
            .map_err(|error| Status::internal(error.to_string()))?
            .map(Some),
    }
}

impl Caller {
    /// A caller on a connection.
    pub fn new(channel: Channel) -> Self {
        Self {
            volumes: VolumesClient::new(channel.clone()),
            snapshots: SnapshotsClient::new(channel.clone()),
            attachments: AttachmentsClient::new(channel),
        }
    }

    /// Makes a blank volume.
    pub async fn create(mut self, id: Uuid) -> Result<(), Status> {
        let request = v1::CreateVolumeRequest {
            id: id.to_string(),
            size_bytes: VOLUME_BYTES,
            ..Default::default()
        };
        self.volumes.create_volume(request).await.map(drop)
    }

    /// Makes a volume of a snapshot.
    pub async fn clone_of(mut self, id: Uuid, snapshot: Uuid) -> Result<(), Status> {
        let request = v1::CreateVolumeRequest {
            id: id.to_string(),
            source: Some(v1::VolumeSource {
                source: Some(v1::volume_source::Source::SnapshotId(snapshot.to_string())),
            }),
            ..Default::default()
        };
        self.volumes.create_volume(request).await.map(drop)
    }

    /// Takes a snapshot.
    pub async fn snapshot(mut self, id: Uuid, volume: Uuid) -> Result<(), Status> {
        let request = v1::CreateSnapshotRequest {
            id: id.to_string(),
            volume_id: volume.to_string(),
            ..Default::default()
        };
        self.snapshots.create_snapshot(request).await.map(drop)
    }

    /// Attaches a volume.
    pub async fn attach(mut self, id: Uuid, volume: Uuid) -> Result<(), Status> {
        let request = v1::CreateAttachmentRequest {
            id: id.to_string(),
            volume_id: volume.to_string(),
            connector: Some(v1::Connector {
                initiator: INITIATOR.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.attachments.create_attachment(request).await.map(drop)
    }

    /// Asks for the first page of volumes.
    pub async fn list(mut self) -> Result<(), Status> {
        let request = v1::ListVolumesRequest::default();
        self.volumes.list_volumes(request).await.map(drop)
    }

    /// Detaches.
    pub async fn detach(mut self, id: Uuid) -> Result<(), Status> {
        let request = v1::DeleteAttachmentRequest {
            id: id.to_string(),
            ..Default::default()
        };
        self.attachments.delete_attachment(request).await.map(drop)
    }

    /// Deletes a snapshot.
    pub async fn delete_snapshot(mut self, id: Uuid) -> Result<(), Status> {
        let request = v1::DeleteSnapshotRequest {
            id: id.to_string(),
            ..Default::default()
        };
        self.snapshots.delete_snapshot(request).await.map(drop)
    }

    /// Deletes a volume.
    pub async fn delete(mut self, id: Uuid) -> Result<(), Status> {
        let request = v1::DeleteVolumeRequest {
            id: id.to_string(),
            ..Default::default()
        };
        self.volumes.delete_volume(request).await.map(drop)
    }
}
