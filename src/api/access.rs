//! Service `Access`.

use quarry_proto::v1;
use tonic::{Request, Response, Status};

use super::{Api, answer, request};
use crate::resources::{ResourceError, RuleSource};

#[tonic::async_trait]
impl v1::access_server::Access for Api {
    async fn set_access(
        &self,
        request: Request<v1::SetAccessRequest>,
    ) -> Result<Response<v1::AccessStatus>, Status> {
        let v1::SetAccessRequest {
            target,
            rules,
            inherit,
            mutation,
        } = request.into_inner();
        let target = request::access_target(target)?;
        let rules = rules
            .into_iter()
            .enumerate()
            .map(|(at, rule)| request::access_rule(&format!("rules[{at}]"), rule))
            .collect::<Result<Vec<_>, ResourceError>>()?;
        let source = match inherit {
            false => RuleSource::Own(rules),
            true if rules.is_empty() => RuleSource::Share,
            true => {
                let problem = "there are some beside inherit, which means the share's; leave one of both out";
                return Err(request::wrong("rules", problem).into());
            }
        };
        let mutation = request::mutation(mutation)?;
        let status = self.model.set_access(target, source, mutation).await?;
        Ok(Response::new(answer::access_status(status)))
    }

    async fn get_access(
        &self,
        request: Request<v1::GetAccessRequest>,
    ) -> Result<Response<v1::AccessStatus>, Status> {
        let target = request::access_target(request.into_inner().target)?;
        Ok(Response::new(answer::access_status(
            self.model.access(target).await?,
        )))
    }

    async fn explain_access(
        &self,
        request: Request<v1::ExplainAccessRequest>,
    ) -> Result<Response<v1::AccessDecision>, Status> {
        let v1::ExplainAccessRequest { target, client } = request.into_inner();
        let target = request::access_target(target)?;
        let client = request::client_address(&client)?;
        let decision = self.model.explain_access(target, client).await?;
        Ok(Response::new(answer::access_decision(decision)))
    }

    async fn list_clients(
        &self,
        request: Request<v1::ListClientsRequest>,
    ) -> Result<Response<v1::ListClientsResponse>, Status> {
        let target = request::access_target(request.into_inner().target)?;
        let clients = self.model.connected_clients(target).await?;
        let clients = clients.into_iter().map(answer::share_client).collect();
        Ok(Response::new(v1::ListClientsResponse { clients }))
    }
}
