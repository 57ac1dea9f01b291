//! Service `Pools`.

use quarry_proto::v1;
use tonic::{Request, Response, Status};

use super::request::{Cursor, wrong};
use super::{Api, answer};
use crate::resources::Page;

const CURSOR: Cursor = Cursor::of("pools");

#[tonic::async_trait]
impl v1::pools_server::Pools for Api {
    async fn get_pool(&self, request: Request<v1::GetPoolRequest>) -> Result<Response<v1::Pool>, Status> {
        let name = request.into_inner().name;
        if name.is_empty() {
            return Err(wrong("name", "is missing; give the name of a pool").into());
        }
        Ok(Response::new(answer::pool(self.model.pool(&name).await?)))
    }

    async fn check_pool(
        &self,
        request: Request<v1::CheckPoolRequest>,
    ) -> Result<Response<v1::CheckPoolResponse>, Status> {
        let name = request.into_inner().name;
        if name.is_empty() {
            return Err(wrong("name", "is missing; give the name of a pool").into());
        }
        let problems = self.model.check_pool(&name).await?;
        let problems = problems.into_iter().map(|problem| v1::PoolProblem {
            sentence: problem.sentence,
            repairable: problem.repairable,
        });
        Ok(Response::new(v1::CheckPoolResponse {
            problems: problems.collect(),
        }))
    }

    async fn list_pools(
        &self,
        request: Request<v1::ListPoolsRequest>,
    ) -> Result<Response<v1::ListPoolsResponse>, Status> {
        let v1::ListPoolsRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let (page, size) = CURSOR.page(page_size, &page_token, |key| Some(key.to_owned()))?;
        let found = self
            .model
            .pools(Page {
                after: page.after.as_deref(),
                limit: page.limit,
            })
            .await;
        let (pools, next_page_token) = CURSOR.cut(found, size, |pool| pool.name.clone(), answer::pool);
        Ok(Response::new(v1::ListPoolsResponse {
            pools,
            next_page_token,
        }))
    }
}
