//! Snapshots that take the rules of their share.

use quarry_contract::{AccessLevel, ShareServer as _, Squash};
use quarry_proto::v1;
use quarry_proto::v1::AccessLevel::{ReadOnly, ReadWrite};
use quarry_proto::v1::access_server::Access as _;
use quarry_proto::v1::share_snapshots_server::ShareSnapshots as _;
use quarry_proto::v1::shares_server::Shares as _;
use tonic::{Code, Request, Status};

use super::share_kit::{Agent, SIZE, assert_refused, id, of_share, of_snapshot, share, snapshot};
use crate::catalog::record::Request as Call;

fn target(target: v1::access_target::Target) -> Option<v1::AccessTarget> {
    Some(v1::AccessTarget { target: Some(target) })
}

async fn inherit(agent: &Agent, of: v1::access_target::Target) -> Result<v1::AccessStatus, Status> {
    let request = v1::SetAccessRequest {
        target: target(of),
        inherit: true,
        ..Default::default()
    };
    let answer = agent.api.set_access(Request::new(request)).await;
    answer.map(|answer| answer.into_inner())
}

async fn status(agent: &Agent, of: v1::access_target::Target) -> v1::AccessStatus {
    let request = v1::GetAccessRequest { target: target(of) };
    agent
        .api
        .get_access(Request::new(request))
        .await
        .unwrap()
        .into_inner()
}

async fn delete_share(agent: &Agent, n: u128) -> Result<(), Status> {
    let request = v1::DeleteShareRequest {
        id: id(n),
        mutation: None,
    };
    agent.api.delete_share(Request::new(request)).await.map(drop)
}

/// A share with two snapshots, of which one takes its rules, and another share with one that does.
async fn agent() -> Agent {
    let agent = Agent::new().await;
    for n in [1, 2] {
        let request = v1::CreateShareRequest {
            id: id(n),
            size_bytes: SIZE,
            squash: v1::Squash::Root.into(),
            ..Default::default()
        };
        agent.api.create_share(Request::new(request)).await.unwrap();
    }
    for (n, of) in [(11, 1), (12, 1), (21, 2)] {
        agent.snapshot(n, of).await;
    }
    agent
        .set(of_snapshot(12), &[("10.9.0.1", ReadOnly)])
        .await
        .unwrap();
    for n in [11, 21] {
        let status = inherit(&agent, of_snapshot(n)).await.unwrap();
        assert_eq!((status.rules.len(), status.generation), (0, 2));
    }
    agent
}

const READ: Option<AccessLevel> = Some(AccessLevel::ReadOnly);

#[tokio::test]
async fn a_change_of_the_shares_rules_holds_for_its_snapshots_when_the_call_returns() {
    let agent = agent().await;
    assert_eq!(agent.attempt(snapshot(11), "10.0.0.7"), None);
    let rules = [("10.0.0.7", ReadWrite), ("10.1.0.0/16", ReadOnly)];
    agent.set(of_share(1), &rules).await.unwrap();
    assert_eq!(agent.attempt(share(1), "10.0.0.7"), Some(AccessLevel::ReadWrite));
    assert_eq!(agent.attempt(snapshot(11), "10.0.0.7"), READ, "read-only");
    assert_eq!(agent.attempt(snapshot(11), "10.1.2.3"), READ);
    assert_eq!(agent.attempt(snapshot(12), "10.0.0.7"), None, "it has its own");
    assert_eq!(agent.attempt(snapshot(21), "10.0.0.7"), None, "another share's");
    for of in [11, 12] {
        let squash = agent.server.exported(snapshot(of)).unwrap().squash;
        assert_eq!(squash, Squash::Root, "the share's, whoever's the rules are: {of}");
    }

    let told = status(&agent, of_snapshot(11)).await;
    assert_eq!(told.inherited_from_share_id, id(1));
    assert_eq!((told.rules.len(), told.generation), (2, 2));
    assert_eq!(told.rules[0].effective(), ReadOnly);
    let explain = v1::ExplainAccessRequest {
        target: target(of_snapshot(11)),
        client: "10.1.2.3".into(),
    };
    let decision = agent.api.explain_access(Request::new(explain)).await.unwrap();
    let decision = decision.into_inner();
    assert_eq!(decision.inherited_from_share_id, id(1));
    assert_eq!(decision.rule_id, id(1001));
    let whose = format!("of the rules of share {} that name it, {}", id(1), id(1001));
    assert!(decision.explanation.contains(&whose), "{}", decision.explanation);

    agent
        .set(of_share(1), &[("10.1.0.0/16", ReadOnly)])
        .await
        .unwrap();
    assert_eq!(agent.attempt(snapshot(11), "10.0.0.7"), None, "revoked");
    agent.set(of_share(1), &[]).await.unwrap();
    assert_eq!(agent.attempt(snapshot(11), "10.1.2.3"), None);
    assert!(!agent.is_mounted(snapshot(11)).await);

    agent.set(of_share(1), &rules).await.unwrap();
    let own = agent
        .set(of_snapshot(11), &[("10.9.0.2", ReadWrite)])
        .await
        .unwrap();
    assert_eq!(own.inherited_from_share_id, "");
    assert_eq!(agent.attempt(snapshot(11), "10.0.0.7"), None, "its own again");
    agent.set(of_share(1), &[("10.0.0.8", ReadOnly)]).await.unwrap();
    assert_eq!(agent.attempt(snapshot(11), "10.0.0.8"), None);
    assert_eq!(agent.attempt(snapshot(11), "10.9.0.2"), READ);
}

#[tokio::test]
async fn a_change_that_the_server_does_not_take_changes_neither() {
    let agent = agent().await;
    agent.set(of_share(1), &[("10.0.0.7", ReadOnly)]).await.unwrap();
    agent.server.set_failing(true);
    let refused = agent.set(of_share(1), &[("10.0.0.8", ReadWrite)]).await;
    assert_refused(refused, Code::Unavailable, "UNAVAILABLE");
    assert!(!status(&agent, of_snapshot(11)).await.in_sync);
    agent.server.set_failing(false);
    agent.api.model.retry_exports().await.unwrap();
    for version in [share(1), snapshot(11)] {
        assert_eq!(agent.attempt(version, "10.0.0.7"), READ, "{version}");
        assert_eq!(agent.attempt(version, "10.0.0.8"), None, "{version}");
    }
    assert!(status(&agent, of_snapshot(11)).await.in_sync);
}

#[tokio::test]
async fn with_the_share_its_rules_go() {
    let agent = agent().await;
    agent.set(of_share(1), &[("10.0.0.7", ReadOnly)]).await.unwrap();
    delete_share(&agent, 1).await.unwrap();
    assert_eq!(agent.attempt(snapshot(11), "10.0.0.7"), None);
    assert!(!agent.is_mounted(snapshot(11)).await);
    assert_eq!(agent.attempt(snapshot(12), "10.9.0.1"), READ, "it has its own");
    let agent = agent.restart_in(Vec::new()).await;
    assert_eq!(agent.attempt(snapshot(11), "10.0.0.7"), None);
    agent
        .set(of_snapshot(11), &[("10.0.0.7", ReadOnly)])
        .await
        .unwrap();
    assert_eq!(agent.attempt(snapshot(11), "10.0.0.7"), READ);
    let request = v1::DeleteShareSnapshotRequest {
        id: id(11),
        mutation: None,
    };
    agent
        .api
        .delete_share_snapshot(Request::new(request))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_start_exports_by_inherited_rules_also_after_half_a_change() {
    let agent = agent().await;
    agent.set(of_share(1), &[("10.0.0.7", ReadOnly)]).await.unwrap();
    // A change of the share's rules got as far as the snapshot, and another as far as the records of neither.
    let mut export = agent.server.exported(snapshot(11)).unwrap();
    export.access = Default::default();
    agent.server.export(&export).await.unwrap();
    let half = |target, inherits| Call::SetAccess {
        target,
        rules: Vec::new(),
        inherits,
    };
    let calls = vec![half(share(1), false), half(snapshot(12), true)];
    let agent = agent.restart_in(calls).await;
    assert_eq!(agent.attempt(snapshot(11), "10.0.0.7"), READ, "undone");
    assert_eq!(agent.attempt(snapshot(12), "10.0.0.7"), None, "undone");
    assert_eq!(agent.attempt(snapshot(12), "10.9.0.1"), READ);
    assert_eq!(agent.attempt(snapshot(21), "10.0.0.7"), None);
    agent.set(of_share(1), &[("10.0.0.8", ReadOnly)]).await.unwrap();
    assert_eq!(agent.attempt(snapshot(11), "10.0.0.8"), READ, "it goes on");
    delete_share(&agent, 1).await.unwrap();
    let agent = agent
        .restart_in(vec![Call::DeleteShare {
            id: super::share_kit::share_id(1),
        }])
        .await;
    assert_eq!(agent.attempt(snapshot(11), "10.0.0.8"), None);
}

#[tokio::test]
async fn what_cannot_be_inherited_is_refused() {
    let agent = agent().await;
    assert_refused(
        inherit(&agent, of_share(1)).await,
        Code::InvalidArgument,
        "INVALID_FIELD",
    );
    assert_refused(
        inherit(&agent, of_snapshot(99)).await,
        Code::NotFound,
        "NOT_FOUND",
    );
    let both = v1::SetAccessRequest {
        target: target(of_snapshot(11)),
        inherit: true,
        rules: vec![v1::AccessRule {
            id: id(1),
            client: "10.0.0.1".into(),
            level: ReadOnly.into(),
            kind: 0,
        }],
        mutation: None,
    };
    let refused = agent.api.set_access(Request::new(both)).await;
    assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
    let again = inherit(&agent, of_snapshot(11)).await.unwrap();
    assert_eq!(again.generation, 2, "the same again");
}
