//! Service `Node`.

use quarry_proto::v1;
use tonic::{Request, Response, Status};

use super::{Api, answer};

#[tonic::async_trait]
impl v1::node_server::Node for Api {
    async fn get_node(&self, _: Request<v1::GetNodeRequest>) -> Result<Response<v1::NodeInfo>, Status> {
        Ok(Response::new(answer::node(self.model.node().await)))
    }
}
