//! Service `Pools`.

use quarry_contract::PoolGrowth;
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

    async fn grow_pool(&self, request: Request<v1::GrowPoolRequest>) -> Result<Response<v1::Pool>, Status> {
        let v1::GrowPoolRequest {
            name,
            size_bytes,
            device_path,
        } = request.into_inner();
        if name.is_empty() {
            return Err(wrong("name", "is missing; give the name of a pool").into());
        }
        let size_bytes = Some(size_bytes).filter(|size| *size > 0);
        let growth = match (device_path.is_empty(), size_bytes) {
            (true, None) => PoolGrowth::Noticed,
            (true, Some(size_bytes)) => PoolGrowth::To { size_bytes },
            (false, size_bytes) => PoolGrowth::Device {
                path: device_path.into(),
                size_bytes,
            },
        };
        Ok(Response::new(answer::pool(
            self.model.grow_pool(&name, &growth).await?,
        )))
    }

    async fn start_scrub(
        &self,
        request: Request<v1::StartScrubRequest>,
    ) -> Result<Response<v1::Scrub>, Status> {
        let pool = named(request.into_inner().pool)?;
        Ok(Response::new(answer::scrub(self.model.start_scrub(&pool).await?)))
    }

    async fn stop_scrub(
        &self,
        request: Request<v1::StopScrubRequest>,
    ) -> Result<Response<v1::Scrub>, Status> {
        let pool = named(request.into_inner().pool)?;
        Ok(Response::new(answer::scrub(self.model.stop_scrub(&pool).await?)))
    }

    async fn get_scrub(&self, request: Request<v1::GetScrubRequest>) -> Result<Response<v1::Scrub>, Status> {
        let pool = named(request.into_inner().pool)?;
        Ok(Response::new(answer::scrub(
            self.model.scrub_status(&pool).await?,
        )))
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

/// Takes the name of a pool that has to be given.
fn named(pool: String) -> Result<String, Status> {
    match pool.is_empty() {
        true => Err(wrong("pool", "is missing; give the name of a pool").into()),
        false => Ok(pool),
    }
}
