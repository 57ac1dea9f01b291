//! The gRPC services of `quarry.v1`, one file each.
//!
//! Each call is checked and turned into the model's types ([`request`]), carried out by the resource model, and
//! its answer or error turned back ([`answer`], [`status`]). Nothing is decided here.

mod access;
mod answer;
mod attachments;
mod cinder;
mod data;
mod node;
mod operations;
mod pools;
mod request;
mod share_snapshots;
mod shares;
mod snapshots;
mod status;
mod volumes;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use quarry_proto::v1::FILE_DESCRIPTOR_SET;
use quarry_proto::v1::access_server::AccessServer;
use quarry_proto::v1::attachments_server::AttachmentsServer;
use quarry_proto::v1::data_server::DataServer;
use quarry_proto::v1::node_server::NodeServer;
use quarry_proto::v1::operations_server::OperationsServer;
use quarry_proto::v1::pools_server::PoolsServer;
use quarry_proto::v1::share_snapshots_server::ShareSnapshotsServer;
use quarry_proto::v1::shares_server::SharesServer;
use quarry_proto::v1::snapshots_server::SnapshotsServer;
use quarry_proto::v1::volumes_server::VolumesServer;
use tonic::service::{Routes, RoutesBuilder};

pub use status::denied;

use crate::resources::Resources;

/// The services' state: the model.
#[derive(Clone)]
struct Api {
    model: Arc<Resources>,
}

/// Returns all services over a model, with the standard health and reflection services beside them.
///
/// # Errors
/// When the embedded descriptor set cannot be read.
pub async fn routes(model: Arc<Resources>) -> Result<Routes, tonic_reflection::server::Error> {
    let api = Api { model };
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<NodeServer<Api>>().await;
    health.set_serving::<PoolsServer<Api>>().await;
    health.set_serving::<VolumesServer<Api>>().await;
    health.set_serving::<SnapshotsServer<Api>>().await;
    health.set_serving::<AttachmentsServer<Api>>().await;
    health.set_serving::<DataServer<Api>>().await;
    health.set_serving::<OperationsServer<Api>>().await;
    health.set_serving::<SharesServer<Api>>().await;
    health.set_serving::<ShareSnapshotsServer<Api>>().await;
    health.set_serving::<AccessServer<Api>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let mut routes = RoutesBuilder::default();
    routes
        .add_service(NodeServer::new(api.clone()))
        .add_service(PoolsServer::new(api.clone()))
        .add_service(VolumesServer::new(api.clone()))
        .add_service(SnapshotsServer::new(api.clone()))
        .add_service(AttachmentsServer::new(api.clone()))
        .add_service(DataServer::new(api.clone()))
        .add_service(SharesServer::new(api.clone()))
        .add_service(ShareSnapshotsServer::new(api.clone()))
        .add_service(AccessServer::new(api.clone()))
        .add_service(OperationsServer::new(api))
        .add_service(health_service)
        .add_service(reflection);
    Ok(routes.routes())
}
