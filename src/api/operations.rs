//! Service `Operations`.

use quarry_proto::v1;
use tonic::{Request, Response, Status};

use super::request::{self, Cursor, wrong};
use super::{Api, answer};
use crate::catalog::record::{OperationId, OperationRecord};

const CURSOR: Cursor = Cursor::of("operations");

#[tonic::async_trait]
impl v1::operations_server::Operations for Api {
    async fn get_operation(
        &self,
        request: Request<v1::GetOperationRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        let id = OperationId(request::uuid("id", &request.into_inner().id)?);
        Ok(Response::new(answer::operation(id, self.model.operation(id)?)))
    }

    async fn list_operations(
        &self,
        request: Request<v1::ListOperationsRequest>,
    ) -> Result<Response<v1::ListOperationsResponse>, Status> {
        let v1::ListOperationsRequest {
            page_size,
            page_token,
            target_id,
            state,
            kind,
        } = request.into_inner();
        let parse = |key: &str| key.parse().ok().map(OperationId);
        let (page, size) = CURSOR.page(page_size, &page_token, parse)?;
        let target = request::optional(&target_id, |text| request::uuid("target_id", text))?;
        let state = v1::OperationState::try_from(state)
            .map_err(|_| wrong("state", format!("{state} is not a state of operations")))?;
        let kind = v1::OperationKind::try_from(kind)
            .map_err(|_| wrong("kind", format!("{kind} is not a kind of operations")))?;
        let wanted = |record: &OperationRecord| {
            target.is_none_or(|id| record.request.target() == id)
                && (state == v1::OperationState::Unspecified
                    || state == answer::operation_state(&record.progress))
                && (kind == v1::OperationKind::Unspecified || kind == answer::operation_kind(&record.request))
        };
        let found = self.model.operations(page, wanted)?;
        let turn = |(id, record)| answer::operation(id, record);
        let (operations, next_page_token) = CURSOR.cut(found, size, |(id, _)| *id, turn);
        Ok(Response::new(v1::ListOperationsResponse {
            operations,
            next_page_token,
        }))
    }
}
