//! Service `Data`.

use quarry_contract::VersionId;
use quarry_proto::v1::version::Version as Chosen;
use quarry_proto::v1::{self, Extent};
use tonic::{Request, Response, Status};

use super::Api;
use super::request::{self, Cursor};
use crate::resources::ResourceError;

const CURSOR: Cursor = Cursor::of("extents");

#[tonic::async_trait]
impl v1::data_server::Data for Api {
    async fn list_extents(
        &self,
        request: Request<v1::ListExtentsRequest>,
    ) -> Result<Response<v1::ListExtentsResponse>, Status> {
        let v1::ListExtentsRequest {
            of,
            since,
            page_size,
            page_token,
        } = request.into_inner();
        let of = version("of", of)?
            .ok_or_else(|| request::wrong("of", "is missing; name a volume or a snapshot"))?;
        let since = version("since", since)?;
        let (page, most) = CURSOR.page(page_size, &page_token, |key| key.parse().ok())?;
        let from_bytes = page.after.unwrap_or_default();
        let (runs, next) = self.model.extents(of, since, from_bytes, most).await?;
        let extents = runs.into_iter().map(|run| Extent {
            offset_bytes: run.offset,
            length_bytes: run.length,
            zeros: run.zeros,
        });
        Ok(Response::new(v1::ListExtentsResponse {
            extents: extents.collect(),
            next_page_token: next.map_or_else(String::new, |next| CURSOR.token(next)),
        }))
    }
}

fn version(field: &str, version: Option<v1::Version>) -> Result<Option<VersionId>, ResourceError> {
    let Some(version) = version else {
        return Ok(None);
    };
    match version.version {
        None => Err(request::wrong(
            field,
            "is there but empty; name a volume or a snapshot",
        )),
        Some(Chosen::VolumeId(text)) => {
            request::volume_id(&format!("{field}.volume_id"), &text).map(|id| Some(VersionId::Volume(id)))
        }
        Some(Chosen::SnapshotId(text)) => request::snapshot_id(&format!("{field}.snapshot_id"), &text)
            .map(|id| Some(VersionId::Snapshot(id))),
    }
}
