//! Service `Snapshots`.

use quarry_proto::v1;
use tonic::{Request, Response, Status};

use super::request::{self, Cursor};
use super::{Api, answer};
use crate::resources::ResourceError;

const CURSOR: Cursor = Cursor::of("snapshots");

#[tonic::async_trait]
impl v1::snapshots_server::Snapshots for Api {
    async fn create_snapshot(
        &self,
        request: Request<v1::CreateSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        let v1::CreateSnapshotRequest {
            id,
            volume_id,
            labels,
            mutation,
        } = request.into_inner();
        let member = (
            request::snapshot_id("id", &id)?,
            request::volume_id("volume_id", &volume_id)?,
        );
        let labels = request::labels(labels)?;
        let taken = self
            .model
            .create_snapshots(vec![member], labels, request::mutation(mutation)?)
            .await?;
        let only = taken.into_iter().next().ok_or_else(|| ResourceError::Internal {
            detail: format!("snapshot {id} was taken and not answered"),
        })?;
        Ok(Response::new(answer::snapshot(only)))
    }

    async fn create_group_snapshot(
        &self,
        request: Request<v1::CreateGroupSnapshotRequest>,
    ) -> Result<Response<v1::CreateGroupSnapshotResponse>, Status> {
        let v1::CreateGroupSnapshotRequest {
            members,
            labels,
            mutation,
        } = request.into_inner();
        let members = members
            .iter()
            .enumerate()
            .map(|(at, member)| {
                let id = request::snapshot_id(&format!("members[{at}].snapshot_id"), &member.snapshot_id)?;
                let volume = request::volume_id(&format!("members[{at}].volume_id"), &member.volume_id)?;
                Ok((id, volume))
            })
            .collect::<Result<Vec<_>, ResourceError>>()?;
        let labels = request::labels(labels)?;
        let taken = self
            .model
            .create_snapshots(members, labels, request::mutation(mutation)?)
            .await?;
        let snapshots = taken.into_iter().map(answer::snapshot).collect();
        Ok(Response::new(v1::CreateGroupSnapshotResponse { snapshots }))
    }

    async fn get_snapshot(
        &self,
        request: Request<v1::GetSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        let id = request::snapshot_id("id", &request.into_inner().id)?;
        Ok(Response::new(answer::snapshot(self.model.snapshot(id).await?)))
    }

    async fn list_snapshots(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Result<Response<v1::ListSnapshotsResponse>, Status> {
        let v1::ListSnapshotsRequest {
            page_size,
            page_token,
            volume_id,
            pool,
        } = request.into_inner();
        let (page, size) = CURSOR.page(page_size, &page_token, |key| key.parse().ok())?;
        let volume = request::optional(&volume_id, |text| request::volume_id("volume_id", text))?;
        let pool = Some(pool.as_str()).filter(|name| !name.is_empty());
        let found = self.model.snapshots(page, volume, pool).await?;
        let (snapshots, next_page_token) = CURSOR.cut(found, size, |snapshot| snapshot.id, answer::snapshot);
        Ok(Response::new(v1::ListSnapshotsResponse {
            snapshots,
            next_page_token,
        }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<v1::DeleteSnapshotRequest>,
    ) -> Result<Response<v1::DeleteSnapshotResponse>, Status> {
        let v1::DeleteSnapshotRequest { id, mutation } = request.into_inner();
        let id = request::snapshot_id("id", &id)?;
        self.model
            .delete_snapshot(id, request::mutation(mutation)?)
            .await?;
        Ok(Response::new(v1::DeleteSnapshotResponse {}))
    }
}
