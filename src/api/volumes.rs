//! Service `Volumes`.

use quarry_proto::v1;
use tonic::{Request, Response, Status};

use super::request::{self, Cursor};
use super::{Api, answer};
use crate::resources::NewVolume;

const CURSOR: Cursor = Cursor::of("volumes");

#[tonic::async_trait]
impl v1::volumes_server::Volumes for Api {
    async fn create_volume(
        &self,
        request: Request<v1::CreateVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let v1::CreateVolumeRequest {
            id,
            pool,
            size_bytes,
            source,
            labels,
            limits,
            key,
            checksums,
            reserved,
            mutation,
        } = request.into_inner();
        let new = NewVolume {
            id: request::volume_id("id", &id)?,
            pool: Some(pool).filter(|name| !name.is_empty()),
            size_bytes,
            source: request::source(source)?,
            labels: request::labels(labels)?,
            limits: request::limits(limits)?,
            key: key.map(|key| request::volume_key("key", Some(key))).transpose()?,
            checksums,
            reserved,
        };
        let volume = self
            .model
            .create_volume(new, request::mutation(mutation)?)
            .await?;
        Ok(Response::new(answer::volume(volume)))
    }

    async fn get_volume(
        &self,
        request: Request<v1::GetVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let id = request::volume_id("id", &request.into_inner().id)?;
        Ok(Response::new(answer::volume(self.model.volume(id).await?)))
    }

    async fn list_volumes(
        &self,
        request: Request<v1::ListVolumesRequest>,
    ) -> Result<Response<v1::ListVolumesResponse>, Status> {
        let v1::ListVolumesRequest {
            page_size,
            page_token,
            pool,
            labels,
        } = request.into_inner();
        let (page, size) = CURSOR.page(page_size, &page_token, |key| key.parse().ok())?;
        let labels = request::labels(labels)?;
        let pool = Some(pool.as_str()).filter(|name| !name.is_empty());
        let found = self.model.volumes(page, pool, &labels).await?;
        let (volumes, next_page_token) = CURSOR.cut(found, size, |volume| volume.id, answer::volume);
        Ok(Response::new(v1::ListVolumesResponse {
            volumes,
            next_page_token,
        }))
    }

    async fn extend_volume(
        &self,
        request: Request<v1::ExtendVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let v1::ExtendVolumeRequest {
            id,
            size_bytes,
            mutation,
        } = request.into_inner();
        let id = request::volume_id("id", &id)?;
        let volume = self
            .model
            .extend_volume(id, size_bytes, request::mutation(mutation)?)
            .await?;
        Ok(Response::new(answer::volume(volume)))
    }

    async fn revert_volume(
        &self,
        request: Request<v1::RevertVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let v1::RevertVolumeRequest {
            id,
            snapshot_id,
            mutation,
        } = request.into_inner();
        let id = request::volume_id("id", &id)?;
        let snapshot = request::snapshot_id("snapshot_id", &snapshot_id)?;
        let volume = self
            .model
            .revert_volume(id, snapshot, request::mutation(mutation)?)
            .await?;
        Ok(Response::new(answer::volume(volume)))
    }

    async fn limit_volume(
        &self,
        request: Request<v1::LimitVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let v1::LimitVolumeRequest { id, limits, mutation } = request.into_inner();
        let id = request::volume_id("id", &id)?;
        let limits = request::limits(limits)?;
        let volume = self
            .model
            .limit_volume(id, limits, request::mutation(mutation)?)
            .await?;
        Ok(Response::new(answer::volume(volume)))
    }

    async fn reserve_volume(
        &self,
        request: Request<v1::ReserveVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let v1::ReserveVolumeRequest {
            id,
            reserved,
            mutation,
        } = request.into_inner();
        let id = request::volume_id("id", &id)?;
        let volume = self
            .model
            .reserve_volume(id, reserved, request::mutation(mutation)?)
            .await?;
        Ok(Response::new(answer::volume(volume)))
    }

    async fn unlock_volume(
        &self,
        request: Request<v1::UnlockVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let v1::UnlockVolumeRequest { id, key } = request.into_inner();
        let key = request::volume_key("key", key)?;
        let id = request::volume_id("id", &id)?;
        let volume = self.model.unlock_volume(id, &key).await?;
        Ok(Response::new(answer::volume(volume)))
    }

    async fn lock_volume(
        &self,
        request: Request<v1::LockVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let id = request::volume_id("id", &request.into_inner().id)?;
        Ok(Response::new(answer::volume(self.model.lock_volume(id).await?)))
    }

    async fn change_volume_key(
        &self,
        request: Request<v1::ChangeVolumeKeyRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let v1::ChangeVolumeKeyRequest { id, key, new_key } = request.into_inner();
        let key = request::volume_key("key", key)?;
        let new_key = request::volume_key("new_key", new_key)?;
        let id = request::volume_id("id", &id)?;
        let volume = self.model.change_volume_key(id, &key, &new_key).await?;
        Ok(Response::new(answer::volume(volume)))
    }

    async fn update_volume(
        &self,
        request: Request<v1::UpdateVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let v1::UpdateVolumeRequest { id, labels, mutation } = request.into_inner();
        let id = request::volume_id("id", &id)?;
        let labels = request::labels(labels)?;
        let volume = self
            .model
            .update_volume(id, labels, request::mutation(mutation)?)
            .await?;
        Ok(Response::new(answer::volume(volume)))
    }

    async fn delete_volume(
        &self,
        request: Request<v1::DeleteVolumeRequest>,
    ) -> Result<Response<v1::DeleteVolumeResponse>, Status> {
        let v1::DeleteVolumeRequest {
            id,
            cascade,
            mutation,
        } = request.into_inner();
        let id = request::volume_id("id", &id)?;
        self.model
            .delete_volume(id, cascade, request::mutation(mutation)?)
            .await?;
        Ok(Response::new(v1::DeleteVolumeResponse {}))
    }
}
