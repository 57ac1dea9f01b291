//! Shares that are given up, and made of what is there.

use quarry_contract::{AccessLevel, Squash};
use quarry_proto::v1;
use quarry_proto::v1::shares_server::Shares as _;
use tonic::{Code, Request, Status};

use super::share_kit::{Agent, SIZE, assert_refused, id, of_share, share, share_id};
use crate::catalog::record::{Labels, Request as Call};

async fn adopt(agent: &Agent, n: u128, name: &str) -> Result<v1::Share, Status> {
    let request = v1::AdoptShareRequest {
        id: id(n),
        name: name.into(),
        squash: v1::Squash::Root.into(),
        labels: [("k".to_owned(), "v".to_owned())].into(),
        ..Default::default()
    };
    let answer = agent.api.adopt_share(Request::new(request)).await;
    answer.map(|answer| answer.into_inner())
}

async fn release(agent: &Agent, n: u128, name: &str) -> Result<(), Status> {
    let request = v1::ReleaseShareRequest {
        id: id(n),
        name: name.into(),
        mutation: None,
    };
    agent.api.release_share(Request::new(request)).await.map(drop)
}

#[tokio::test]
async fn what_is_released_loses_its_clients_and_rules_and_can_be_adopted() {
    let agent = Agent::new().await;
    agent.create(1).await;
    agent
        .set(of_share(1), &[("10.0.0.7", v1::AccessLevel::ReadWrite)])
        .await
        .unwrap();
    assert_eq!(agent.attempt(share(1), "10.0.0.7"), Some(AccessLevel::ReadWrite));
    assert_refused(
        release(&agent, 1, "").await,
        Code::InvalidArgument,
        "INVALID_FIELD",
    );
    assert_eq!(
        agent.attempt(share(1), "10.0.0.7"),
        Some(AccessLevel::ReadWrite),
        "it is there, and so are its rules"
    );
    release(&agent, 1, "kept").await.unwrap();
    assert_eq!(agent.attempt(share(1), "10.0.0.7"), None);
    assert_refused(agent.get(1).await, Code::NotFound, "NOT_FOUND");
    release(&agent, 1, "kept").await.expect("once more");
    assert_refused(release(&agent, 2, "other").await, Code::NotFound, "NOT_FOUND");
    assert_refused(adopt(&agent, 2, "other").await, Code::NotFound, "NOT_FOUND");

    let adopted = adopt(&agent, 2, "kept").await.unwrap();
    assert_eq!((adopted.size_bytes, adopted.squash()), (SIZE, v1::Squash::Root));
    assert_eq!(adopted.labels["k"], "v");
    assert_eq!(adopt(&agent, 2, "kept").await.unwrap(), adopted, "once more");
    assert_eq!(
        agent.attempt(share(2), "10.0.0.7"),
        None,
        "it begins with no access"
    );
    agent.create(3).await;
    release(&agent, 3, "kept").await.unwrap();
    let refused = adopt(&agent, 2, "kept").await;
    assert_refused(refused, Code::AlreadyExists, "SPEC_MISMATCH");
    agent.create(3).await;
    assert_refused(
        release(&agent, 3, "kept").await,
        Code::AlreadyExists,
        "SPEC_MISMATCH",
    );
}

#[tokio::test]
async fn calls_that_were_cut_short_are_finished_or_undone() {
    let agent = Agent::new().await;
    for n in [1, 2] {
        agent.create(n).await;
    }
    release(&agent, 2, "kept").await.unwrap();
    let adopt = |n: u128| Call::AdoptShare {
        id: share_id(n),
        pool: None,
        name: "kept".into(),
        squash: Squash::Root,
        labels: Labels::new(),
    };
    let give_up = Call::ReleaseShare {
        id: share_id(1),
        name: "given up".into(),
    };
    let agent = agent.restart_in(vec![adopt(4), give_up]).await;
    assert_refused(agent.get(1).await, Code::NotFound, "NOT_FOUND");
    assert_refused(agent.get(4).await, Code::NotFound, "NOT_FOUND");
    self::adopt(&agent, 4, "kept").await.unwrap();
    self::adopt(&agent, 1, "given up").await.unwrap();
}
