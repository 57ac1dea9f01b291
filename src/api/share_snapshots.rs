//! Service `ShareSnapshots`.

use quarry_contract::ShareVersion;
use quarry_proto::v1;
use tonic::{Request, Response, Status};

use super::request::{self, Cursor};
use super::{Api, answer};
use crate::resources::ResourceError;

const CURSOR: Cursor = Cursor::of("share-snapshots");

#[tonic::async_trait]
impl v1::share_snapshots_server::ShareSnapshots for Api {
    async fn create_share_snapshots(
        &self,
        request: Request<v1::CreateShareSnapshotsRequest>,
    ) -> Result<Response<v1::CreateShareSnapshotsResponse>, Status> {
        let v1::CreateShareSnapshotsRequest {
            members,
            labels,
            mutation,
        } = request.into_inner();
        let members = members
            .iter()
            .enumerate()
            .map(|(at, member)| {
                let field = format!("members[{at}].snapshot_id");
                let id = request::share_snapshot_id(&field, &member.snapshot_id)?;
                let share = request::share_id(&format!("members[{at}].share_id"), &member.share_id)?;
                Ok((id, share))
            })
            .collect::<Result<Vec<_>, ResourceError>>()?;
        let labels = request::labels(labels)?;
        let mutation = request::mutation(mutation)?;
        let taken = self
            .model
            .create_share_snapshots(members, labels, mutation)
            .await?;
        let snapshots = taken.into_iter().map(answer::share_snapshot).collect();
        Ok(Response::new(v1::CreateShareSnapshotsResponse { snapshots }))
    }

    async fn get_share_snapshot(
        &self,
        request: Request<v1::GetShareSnapshotRequest>,
    ) -> Result<Response<v1::ShareSnapshot>, Status> {
        let id = request::share_snapshot_id("id", &request.into_inner().id)?;
        let snapshot = self.model.share_snapshot(id).await?;
        Ok(Response::new(answer::share_snapshot(snapshot)))
    }

    async fn list_share_snapshots(
        &self,
        request: Request<v1::ListShareSnapshotsRequest>,
    ) -> Result<Response<v1::ListShareSnapshotsResponse>, Status> {
        let v1::ListShareSnapshotsRequest {
            page_size,
            page_token,
            share_id,
        } = request.into_inner();
        let (page, size) = CURSOR.page(page_size, &page_token, |key| key.parse().ok())?;
        let share = request::optional(&share_id, |text| request::share_id("share_id", text))?;
        let found = self.model.share_snapshots(page, share).await?;
        let (snapshots, next_page_token) =
            CURSOR.cut(found, size, |snapshot| snapshot.id, answer::share_snapshot);
        Ok(Response::new(v1::ListShareSnapshotsResponse {
            snapshots,
            next_page_token,
        }))
    }

    async fn delete_share_snapshot(
        &self,
        request: Request<v1::DeleteShareSnapshotRequest>,
    ) -> Result<Response<v1::DeleteShareSnapshotResponse>, Status> {
        let v1::DeleteShareSnapshotRequest { id, mutation } = request.into_inner();
        let version = ShareVersion::Snapshot(request::share_snapshot_id("id", &id)?);
        let mutation = request::mutation(mutation)?;
        self.model.delete_share_version(version, mutation).await?;
        Ok(Response::new(v1::DeleteShareSnapshotResponse {}))
    }
}
