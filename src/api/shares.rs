//! Service `Shares`.

use quarry_contract::ShareVersion;
use quarry_proto::v1;
use tonic::{Request, Response, Status};

use super::request::{self, Cursor};
use super::{Api, answer};
use crate::resources::{AdoptedShare, NewShare};

const CURSOR: Cursor = Cursor::of("shares");

#[tonic::async_trait]
impl v1::shares_server::Shares for Api {
    async fn create_share(
        &self,
        request: Request<v1::CreateShareRequest>,
    ) -> Result<Response<v1::Share>, Status> {
        let v1::CreateShareRequest {
            id,
            pool,
            size_bytes,
            source,
            squash,
            labels,
            mutation,
        } = request.into_inner();
        let new = NewShare {
            id: request::share_id("id", &id)?,
            pool: Some(pool).filter(|name| !name.is_empty()),
            size_bytes,
            source: request::share_source(source)?,
            squash: request::squash(squash)?,
            labels: request::labels(labels)?,
        };
        let share = self.model.create_share(new, request::mutation(mutation)?).await?;
        Ok(Response::new(answer::share(share)))
    }

    async fn get_share(&self, request: Request<v1::GetShareRequest>) -> Result<Response<v1::Share>, Status> {
        let id = request::share_id("id", &request.into_inner().id)?;
        Ok(Response::new(answer::share(self.model.share(id).await?)))
    }

    async fn list_shares(
        &self,
        request: Request<v1::ListSharesRequest>,
    ) -> Result<Response<v1::ListSharesResponse>, Status> {
        let v1::ListSharesRequest {
            page_size,
            page_token,
            pool,
        } = request.into_inner();
        let (page, size) = CURSOR.page(page_size, &page_token, |key| key.parse().ok())?;
        let pool = Some(pool.as_str()).filter(|name| !name.is_empty());
        let found = self.model.shares(page, pool).await?;
        let (shares, next_page_token) = CURSOR.cut(found, size, |share| share.id, answer::share);
        Ok(Response::new(v1::ListSharesResponse {
            shares,
            next_page_token,
        }))
    }

    async fn resize_share(
        &self,
        request: Request<v1::ResizeShareRequest>,
    ) -> Result<Response<v1::Share>, Status> {
        let v1::ResizeShareRequest {
            id,
            size_bytes,
            mutation,
        } = request.into_inner();
        let id = request::share_id("id", &id)?;
        let mutation = request::mutation(mutation)?;
        let share = self.model.resize_share(id, size_bytes, mutation).await?;
        Ok(Response::new(answer::share(share)))
    }

    async fn revert_share(
        &self,
        request: Request<v1::RevertShareRequest>,
    ) -> Result<Response<v1::Share>, Status> {
        let v1::RevertShareRequest {
            id,
            snapshot_id,
            mutation,
        } = request.into_inner();
        let id = request::share_id("id", &id)?;
        let snapshot = request::share_snapshot_id("snapshot_id", &snapshot_id)?;
        let mutation = request::mutation(mutation)?;
        let share = self.model.revert_share(id, snapshot, mutation).await?;
        Ok(Response::new(answer::share(share)))
    }

    async fn adopt_share(
        &self,
        request: Request<v1::AdoptShareRequest>,
    ) -> Result<Response<v1::Share>, Status> {
        let v1::AdoptShareRequest {
            id,
            pool,
            name,
            squash,
            labels,
            mutation,
        } = request.into_inner();
        let adopted = AdoptedShare {
            id: request::share_id("id", &id)?,
            pool: Some(pool).filter(|name| !name.is_empty()),
            name,
            squash: request::squash(squash)?,
            labels: request::labels(labels)?,
        };
        let share = self
            .model
            .adopt_share(adopted, request::mutation(mutation)?)
            .await?;
        Ok(Response::new(answer::share(share)))
    }

    async fn release_share(
        &self,
        request: Request<v1::ReleaseShareRequest>,
    ) -> Result<Response<v1::ReleaseShareResponse>, Status> {
        let v1::ReleaseShareRequest { id, name, mutation } = request.into_inner();
        let id = request::share_id("id", &id)?;
        let mutation = request::mutation(mutation)?;
        self.model.release_share(id, name, mutation).await?;
        Ok(Response::new(v1::ReleaseShareResponse {}))
    }

    async fn delete_share(
        &self,
        request: Request<v1::DeleteShareRequest>,
    ) -> Result<Response<v1::DeleteShareResponse>, Status> {
        let v1::DeleteShareRequest { id, mutation } = request.into_inner();
        let version = ShareVersion::Share(request::share_id("id", &id)?);
        let mutation = request::mutation(mutation)?;
        self.model.delete_share_version(version, mutation).await?;
        Ok(Response::new(v1::DeleteShareResponse {}))
    }

    async fn list_share_pools(
        &self,
        _: Request<v1::ListSharePoolsRequest>,
    ) -> Result<Response<v1::ListSharePoolsResponse>, Status> {
        let pools = self.model.list_share_pools().await;
        let pools = pools.into_iter().map(answer::share_pool).collect();
        Ok(Response::new(v1::ListSharePoolsResponse { pools }))
    }
}
