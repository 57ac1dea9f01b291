//! Service `Attachments`.

use quarry_proto::v1;
use tonic::{Request, Response, Status};

use super::request::{self, Cursor};
use super::{Api, answer};
use crate::catalog::record::AttachmentId;
use crate::resources::NewAttachment;

const CURSOR: Cursor = Cursor::of("attachments");
const SESSION_CURSOR: Cursor = Cursor::of("sessions");

#[tonic::async_trait]
impl v1::attachments_server::Attachments for Api {
    async fn create_attachment(
        &self,
        request: Request<v1::CreateAttachmentRequest>,
    ) -> Result<Response<v1::CreateAttachmentResponse>, Status> {
        let v1::CreateAttachmentRequest {
            id,
            volume_id,
            connector,
            mode,
            labels,
            mutation,
        } = request.into_inner();
        let new = NewAttachment {
            id: AttachmentId(request::uuid("id", &id)?),
            volume: request::volume_id("volume_id", &volume_id)?,
            connector: request::connector(connector)?,
            mode: request::mode(mode)?,
            labels: request::labels(labels)?,
        };
        let made = self
            .model
            .create_attachment(new, request::mutation(mutation)?)
            .await?;
        let info = self.model.connection_info_made(&made);
        Ok(Response::new(v1::CreateAttachmentResponse {
            attachment: Some(answer::attachment(made.attachment)),
            connection_info: Some(answer::connection_info(&info)),
        }))
    }

    async fn get_attachment(
        &self,
        request: Request<v1::GetAttachmentRequest>,
    ) -> Result<Response<v1::Attachment>, Status> {
        let id = AttachmentId(request::uuid("id", &request.into_inner().id)?);
        Ok(Response::new(answer::attachment(
            self.model.attachment(id).await?,
        )))
    }

    async fn list_attachments(
        &self,
        request: Request<v1::ListAttachmentsRequest>,
    ) -> Result<Response<v1::ListAttachmentsResponse>, Status> {
        let v1::ListAttachmentsRequest {
            page_size,
            page_token,
            volume_id,
            initiator,
        } = request.into_inner();
        let parse = |key: &str| key.parse().ok().map(AttachmentId);
        let (page, size) = CURSOR.page(page_size, &page_token, parse)?;
        let volume = request::optional(&volume_id, |text| request::volume_id("volume_id", text))?;
        let initiator = request::optional(&initiator, request::initiator)?;
        let found = self.model.attachments(page, volume, initiator).await?;
        let (attachments, next_page_token) =
            CURSOR.cut(found, size, |attachment| attachment.id, answer::attachment);
        Ok(Response::new(v1::ListAttachmentsResponse {
            attachments,
            next_page_token,
        }))
    }

    async fn get_connection_info(
        &self,
        request: Request<v1::GetConnectionInfoRequest>,
    ) -> Result<Response<v1::ConnectionInfo>, Status> {
        let id = AttachmentId(request::uuid(
            "attachment_id",
            &request.into_inner().attachment_id,
        )?);
        Ok(Response::new(answer::connection_info(
            &self.model.connection_info(id)?,
        )))
    }

    async fn delete_attachment(
        &self,
        request: Request<v1::DeleteAttachmentRequest>,
    ) -> Result<Response<v1::DeleteAttachmentResponse>, Status> {
        let v1::DeleteAttachmentRequest { id, force, mutation } = request.into_inner();
        let id = AttachmentId(request::uuid("id", &id)?);
        let host_still_attached = self
            .model
            .delete_attachment(id, force, request::mutation(mutation)?)
            .await?;
        Ok(Response::new(v1::DeleteAttachmentResponse {
            host_still_attached,
        }))
    }

    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        let v1::ListSessionsRequest {
            page_size,
            page_token,
            volume_id,
        } = request.into_inner();
        let (page, size) = SESSION_CURSOR.page(page_size, &page_token, |key| Some(key.to_owned()))?;
        let volume = request::optional(&volume_id, |text| request::volume_id("volume_id", text))?;
        let key = |s: &quarry_contract::SessionInfo| format!("{} {} {:05}", s.volume, s.initiator, s.tsih);
        let mut found = self.model.sessions(volume).await?;
        found.sort_by_cached_key(key);
        found.retain(|session| page.after.as_ref().is_none_or(|after| key(session) > *after));
        found.truncate(page.limit);
        let (sessions, next_page_token) = SESSION_CURSOR.cut(found, size, key, answer::session);
        Ok(Response::new(v1::ListSessionsResponse {
            sessions,
            next_page_token,
        }))
    }
}
