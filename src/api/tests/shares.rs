//! Shares, their snapshots and access.

use std::sync::Arc;

use quarry_contract::memory::{MemoryShareBackend, MemoryShareServer};
use quarry_contract::{
    AccessLevel, AccessRule, AccessRuleId, ClientKind, PoolName, PortalRole, ShareBackend as _, SharePortal,
    ShareSnapshotSpec, ShareSource, ShareSpec, Squash,
};
use quarry_proto::v1;
use quarry_proto::v1::access_server::Access as _;
use quarry_proto::v1::node_server::Node as _;
use quarry_proto::v1::share_snapshots_server::ShareSnapshots as _;
use quarry_proto::v1::shares_server::Shares as _;
use tonic::{Code, Request, Status};
use uuid::Uuid;

use crate::catalog::record::{Labels, Request as Call};

use super::share_kit::*;

use v1::AccessLevel::{ReadOnly, ReadWrite};

#[tokio::test]
async fn a_damaged_share_is_told_to_who_asks_for_it_and_hides_no_other() {
    let agent = Agent::new().await;
    agent.create(1).await;
    agent.create(2).await;
    agent.pool.damage(share(1));
    let damaged = agent.get(1).await.unwrap_err();
    assert_eq!(damaged.code(), Code::DataLoss, "{damaged}");
    agent.get(2).await.unwrap();
    let listed = agent
        .api
        .list_shares(Request::new(v1::ListSharesRequest::default()))
        .await
        .unwrap();
    let ids = listed.into_inner().shares.into_iter().map(|share| share.id);
    assert_eq!(ids.collect::<Vec<_>>(), [id(1), id(2)]);
}

async fn problems(agent: &Agent) -> Vec<String> {
    let node = agent.api.get_node(Request::new(v1::GetNodeRequest {})).await;
    node.unwrap().into_inner().health.unwrap().problems
}

#[tokio::test]
async fn what_is_left_of_a_damaged_share_goes_with_its_deletion_and_with_nothing_else() {
    let agent = Agent::new().await;
    agent.create(1).await;
    agent.snapshot(5, 1).await;
    agent.set(of_share(1), &[("10.0.0.7", ReadWrite)]).await.unwrap();
    assert_eq!(problems(&agent).await, Vec::<String>::new());
    agent.pool.damage(share(1));
    let told = problems(&agent).await;
    assert_eq!(told, [format!("share {} is damaged: it was damaged", id(1))]);
    let request = v1::RevertShareRequest {
        id: id(1),
        snapshot_id: id(5),
        ..Default::default()
    };
    let refused = agent.api.revert_share(Request::new(request)).await;
    assert_refused(refused, Code::DataLoss, "DATA_DAMAGED");
    let request = v1::ReleaseShareRequest {
        id: id(1),
        name: "released".to_owned(),
        ..Default::default()
    };
    let refused = agent.api.release_share(Request::new(request)).await;
    assert_refused(refused, Code::DataLoss, "DATA_DAMAGED");
    assert_eq!(
        agent.attempt(share(1), "10.0.0.7"),
        Some(AccessLevel::ReadWrite),
        "it goes on"
    );
    agent.set(of_share(1), &[]).await.unwrap();
    assert_eq!(agent.attempt(share(1), "10.0.0.7"), None);
    assert!(agent.is_mounted(share(1)).await, "it was all there was of it");
    let request = v1::DeleteShareRequest {
        id: id(1),
        ..Default::default()
    };
    agent.api.delete_share(Request::new(request)).await.unwrap();
    assert!(!agent.is_mounted(share(1)).await);
    assert_eq!(problems(&agent).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_share_that_is_in_no_pool_any_more_is_told_until_it_is_deleted() {
    let agent = Agent::new().await;
    agent.create(1).await;
    agent.set(of_share(1), &[("10.0.0.7", ReadWrite)]).await.unwrap();
    let Agent {
        api, server, folder, ..
    } = agent;
    drop(api);
    let pool = MemoryShareBackend::new(PoolName::parse("shares").unwrap(), 1 << 30);
    let agent = Agent::over(Arc::new(pool), server, folder).await;
    let told = problems(&agent).await;
    assert!(told[0].contains("is in no pool of shares"), "{told:?}");
    let request = v1::DeleteShareRequest {
        id: id(1),
        ..Default::default()
    };
    agent.api.delete_share(Request::new(request)).await.unwrap();
    assert_eq!(problems(&agent).await, Vec::<String>::new());
}

#[tokio::test]
async fn every_address_is_a_location_that_says_whom_it_is_for_and_keeps_its_id() {
    let portal = |address: &str, role| SharePortal {
        address: address.parse().unwrap(),
        role,
    };
    let portals = vec![
        portal("192.0.2.4:2049", PortalRole::Ordinary),
        portal("192.0.2.5:2049", PortalRole::Preferred),
        portal("10.0.0.4:2049", PortalRole::AdminOnly),
        portal("[2001:db8::4]:2049", PortalRole::Preferred),
    ];
    let pool = MemoryShareBackend::new(PoolName::parse("shares").unwrap(), 1 << 30);
    let agent = Agent::over(
        Arc::new(pool),
        Arc::new(MemoryShareServer::at(portals)),
        tempfile::tempdir().unwrap(),
    )
    .await;
    let locations = agent.create(1).await.export_locations;
    let flags = |one: &v1::ExportLocation| (one.path.clone(), one.ipv6, one.preferred, one.admin_only);
    let path = |address: &str| format!("{address}:/share-{}", id(1));
    assert_eq!(
        locations.iter().map(flags).collect::<Vec<_>>(),
        [
            (path("192.0.2.4"), false, false, false),
            (path("192.0.2.5"), false, true, false),
            (path("10.0.0.4"), false, false, true),
            (path("[2001:db8::4]"), true, true, false),
        ]
    );
    let of_snapshot = agent.snapshot(7, 1).await.export_locations;
    assert_eq!(of_snapshot.len(), 4);
    let agent = agent.restart_in(Vec::new()).await;
    assert_eq!(agent.get(1).await.unwrap().export_locations, locations);
    let ids: std::collections::BTreeSet<_> =
        locations.iter().chain(&of_snapshot).map(|one| &one.id).collect();
    assert_eq!(ids.len(), 8, "each its own id");
}

#[tokio::test]
async fn a_share_starts_with_no_access_and_is_found_again() {
    let agent = Agent::new().await;
    let made = agent.create(1).await;
    assert_eq!(
        (made.size_bytes, made.generation, made.pool.as_str()),
        (SIZE, 1, "shares")
    );
    assert_eq!(
        made.export_locations[0].path,
        format!("127.0.0.1:/share-{}", id(1))
    );
    assert!(made.export_locations[0].preferred);
    assert_eq!(agent.create(1).await, made, "the same again");
    assert!(!agent.is_mounted(share(1)).await);
    assert_eq!(agent.server.exported(share(1)), None);

    let other = v1::CreateShareRequest {
        id: id(1),
        size_bytes: 2 * SIZE,
        ..Default::default()
    };
    assert_refused(
        agent.api.create_share(Request::new(other)).await,
        Code::AlreadyExists,
        "SPEC_MISMATCH",
    );
    assert_refused(agent.get(2).await, Code::NotFound, "NOT_FOUND");
    for (size_bytes, reason) in [
        (0, "SIZE_UNALIGNED"),
        (1, "SIZE_UNALIGNED"),
        (1 << 60, "SIZE_TOO_LARGE"),
    ] {
        let odd = v1::CreateShareRequest {
            id: id(2),
            size_bytes,
            ..Default::default()
        };
        let refused = agent.api.create_share(Request::new(odd)).await;
        assert_refused(refused, Code::InvalidArgument, reason);
    }
    agent.create(3).await;
    let listed = agent
        .api
        .list_shares(Request::new(v1::ListSharesRequest::default()))
        .await
        .unwrap();
    let ids: Vec<String> = listed
        .into_inner()
        .shares
        .into_iter()
        .map(|share| share.id)
        .collect();
    assert_eq!(ids, [id(1), id(3)]);
    let pools = agent
        .api
        .list_share_pools(Request::new(v1::ListSharePoolsRequest {}))
        .await
        .unwrap();
    let pool = pools.into_inner().pools.remove(0);
    assert_eq!((pool.share_count, pool.provisioned_bytes), (2, 2 * SIZE));
    let node = agent
        .api
        .get_node(Request::new(v1::GetNodeRequest {}))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(node.share_portals, ["127.0.0.1:2049"]);
    assert_eq!(node.health.unwrap().problems, Vec::<String>::new());
}

#[tokio::test]
async fn rules_are_set_as_a_whole_and_each_says_what_has_become_of_it() {
    let agent = Agent::new().await;
    agent.create(1).await;
    let rules = [
        ("10.0.0.0/24", ReadOnly),
        ("10.0.0.7", ReadWrite),
        ("host.example", ReadWrite),
        ("10.0.0.7/32", ReadOnly),
    ];
    let status = agent.set(of_share(1), &rules).await.unwrap();
    let states: Vec<v1::RuleState> = status.rules.iter().map(v1::RuleStatus::state).collect();
    use v1::RuleState::{Active, Refused};
    assert_eq!(states, [Active, Active, Refused, Active]);
    assert!(status.in_sync);
    assert_eq!(status.generation, 2);
    assert_eq!(status.rules[3].canonical, "10.0.0.7");
    assert_eq!(status.rules[3].effective(), ReadWrite);
    assert_eq!(status.rules[3].shadowed_by, [id(1001)]);
    assert!(status.rules[2].problem.contains("names are not looked up"));
    assert!(agent.is_mounted(share(1)).await);
    assert_eq!(agent.attempt(share(1), "10.0.0.7"), Some(AccessLevel::ReadWrite));
    assert_eq!(agent.attempt(share(1), "10.0.0.8"), Some(AccessLevel::ReadOnly));
    assert_eq!(agent.attempt(share(1), "10.0.1.8"), None);
    let again = agent.set(of_share(1), &rules).await.unwrap();
    assert_eq!(again, status, "the same again");

    let explain = |client: &str| v1::ExplainAccessRequest {
        target: Some(v1::AccessTarget {
            target: Some(of_share(1)),
        }),
        client: client.to_owned(),
    };
    let decision = agent
        .api
        .explain_access(Request::new(explain("10.0.0.8")))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((decision.level(), decision.loaded_level()), (ReadOnly, ReadOnly));
    assert_eq!(
        (decision.rule_id.as_str(), decision.network.as_str()),
        (id(1000).as_str(), "10.0.0.0/24")
    );
    let decision = agent
        .api
        .explain_access(Request::new(explain("11.0.0.8")))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(decision.level(), v1::AccessLevel::Unspecified);
    assert!(
        decision.explanation.contains("no rule names it"),
        "{}",
        decision.explanation
    );

    assert_refused(
        agent.set_at(of_share(1), &[], 1).await,
        Code::FailedPrecondition,
        "STALE_GENERATION",
    );
    // Only refused rules: whoever had access has none.
    agent
        .set(of_share(1), &[("host.example", ReadWrite)])
        .await
        .unwrap();
    assert_eq!(agent.attempt(share(1), "10.0.0.7"), None);
    assert!(!agent.is_mounted(share(1)).await);
    assert_refused(agent.set(of_share(9), &[]).await, Code::NotFound, "NOT_FOUND");
    let twice = v1::AccessRule {
        id: id(1),
        client: "10.0.0.1".into(),
        level: ReadOnly.into(),
        kind: 0,
    };
    let request = v1::SetAccessRequest {
        target: Some(v1::AccessTarget {
            target: Some(of_share(1)),
        }),
        rules: vec![twice.clone(), twice],
        inherit: false,
        mutation: None,
    };
    let refused = agent.api.set_access(Request::new(request)).await;
    assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
}

#[tokio::test]
async fn clients_are_listed_that_may_use_what_is_asked_about() {
    let agent = Agent::new().await;
    agent.create(1).await;
    agent.create(2).await;
    agent
        .set(of_share(1), &[("10.0.0.0/24", ReadOnly), ("10.0.0.7", ReadWrite)])
        .await
        .unwrap();
    for client in ["10.0.0.7", "10.0.0.8", "10.0.1.8"] {
        agent.attempt(share(1), client);
    }
    let clients = async |target| {
        let request = v1::ListClientsRequest {
            target: Some(v1::AccessTarget { target: Some(target) }),
        };
        let answer = agent.api.list_clients(Request::new(request)).await?;
        let clients = answer.into_inner().clients.into_iter();
        let show = |client: v1::ShareClient| (client.address.clone(), client.level());
        Ok::<_, Status>(clients.map(show).collect::<Vec<_>>())
    };
    let expected = [
        ("10.0.0.7".to_owned(), ReadWrite),
        ("10.0.0.8".to_owned(), ReadOnly),
    ];
    assert_eq!(clients(of_share(1)).await.unwrap(), expected);
    assert_eq!(clients(of_share(2)).await.unwrap(), [], "nobody may use it");
    assert_refused(clients(of_share(9)).await, Code::NotFound, "NOT_FOUND");
}

#[tokio::test]
async fn a_revert_under_clients_keeps_their_rules_and_all_snapshots() {
    let agent = Agent::new().await;
    agent.create(1).await;
    agent.create(2).await;
    agent.set(of_share(1), &[("10.0.0.7", ReadWrite)]).await.unwrap();
    agent
        .pool
        .files(share(1))
        .unwrap()
        .write("file", b"first")
        .unwrap();
    agent.snapshot(11, 1).await;
    agent
        .pool
        .files(share(1))
        .unwrap()
        .write("file", b"second")
        .unwrap();
    agent.snapshot(12, 1).await;
    let before = agent.server.exported(share(1));
    let revert = |n: u128, snapshot: u128| v1::RevertShareRequest {
        id: id(n),
        snapshot_id: id(snapshot),
        mutation: None,
    };
    let share_now = agent
        .api
        .revert_share(Request::new(revert(1, 11)))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(share_now.generation, 3);
    assert_eq!(
        agent.pool.files(share(1)).unwrap().read("file").unwrap(),
        b"first"
    );
    assert_eq!(agent.server.exported(share(1)), before);
    agent.api.revert_share(Request::new(revert(1, 12))).await.unwrap();
    assert_eq!(
        agent.pool.files(share(1)).unwrap().read("file").unwrap(),
        b"second"
    );
    let refused = agent.api.revert_share(Request::new(revert(2, 11))).await;
    assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
    let refused = agent.api.revert_share(Request::new(revert(1, 99))).await;
    assert_refused(refused, Code::NotFound, "NOT_FOUND");
    assert_eq!(
        agent.server.exported(share(1)),
        before,
        "refused, and still exported"
    );
}

#[tokio::test]
async fn snapshots_have_rules_of_their_own_and_are_read_only_whatever_these_say() {
    let agent = Agent::new().await;
    agent.create(1).await;
    agent.set(of_share(1), &[("10.0.0.7", ReadWrite)]).await.unwrap();
    let taken = agent.snapshot(11, 1).await;
    assert_eq!(agent.snapshot(11, 1).await, taken, "the same again");
    assert_eq!(agent.attempt(snapshot(11), "10.0.0.7"), None);
    let status = agent
        .set(of_snapshot(11), &[("10.0.0.8", ReadWrite)])
        .await
        .unwrap();
    assert_eq!(status.rules[0].effective(), ReadOnly);
    assert_eq!(
        agent.attempt(snapshot(11), "10.0.0.8"),
        Some(AccessLevel::ReadOnly)
    );
    assert_eq!(agent.attempt(share(1), "10.0.0.8"), None);
    let clone = v1::CreateShareRequest {
        id: id(2),
        source: Some(v1::ShareSource {
            source: Some(v1::share_source::Source::SnapshotId(id(11))),
        }),
        ..Default::default()
    };
    let clone = agent
        .api
        .create_share(Request::new(clone))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(clone.size_bytes, SIZE);
    assert_eq!(agent.attempt(share(2), "10.0.0.7"), None, "a clone has no rules");
    let delete = v1::DeleteShareSnapshotRequest {
        id: id(11),
        mutation: None,
    };
    agent
        .api
        .delete_share_snapshot(Request::new(delete))
        .await
        .unwrap();
    assert_eq!(agent.server.exported(snapshot(11)), None);
    let delete = |n: u128| v1::DeleteShareRequest {
        id: id(n),
        mutation: None,
    };
    for _ in 0..2 {
        agent.api.delete_share(Request::new(delete(1))).await.unwrap();
    }
    assert_eq!(agent.attempt(share(1), "10.0.0.7"), None);
    assert_refused(agent.get(1).await, Code::NotFound, "NOT_FOUND");
    // One of the same id begins anew, without the rules of the one before.
    assert_eq!(agent.create(1).await.generation, 1);
    assert_eq!(agent.attempt(share(1), "10.0.0.7"), None);
}

#[tokio::test]
async fn sizes_grow_and_shrink_and_never_below_what_is_used() {
    let agent = Agent::new().await;
    agent.create(1).await;
    agent.set(of_share(1), &[("10.0.0.7", ReadWrite)]).await.unwrap();
    let resize = |size_bytes: u64| v1::ResizeShareRequest {
        id: id(1),
        size_bytes,
        mutation: None,
    };
    let grown = agent
        .api
        .resize_share(Request::new(resize(4 * SIZE)))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((grown.size_bytes, grown.generation), (4 * SIZE, 3));
    let again = agent
        .api
        .resize_share(Request::new(resize(4 * SIZE)))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(again, grown);
    let contents = vec![1; 2 * SIZE as usize];
    agent
        .pool
        .files(share(1))
        .unwrap()
        .write("file", &contents)
        .unwrap();
    let refused = agent.api.resize_share(Request::new(resize(SIZE))).await;
    assert_refused(refused, Code::FailedPrecondition, "IN_USE");
    assert_eq!(agent.get(1).await.unwrap().size_bytes, 4 * SIZE);
    agent
        .api
        .resize_share(Request::new(resize(3 * SIZE)))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_pool_that_is_nearly_full_is_reported() {
    let pool = MemoryShareBackend::new(PoolName::parse("shares").unwrap(), 4 * SIZE);
    let server = Arc::new(MemoryShareServer::new());
    let agent = Agent::over(Arc::new(pool), server, tempfile::tempdir().unwrap()).await;
    for n in 1..=4 {
        agent.create(n).await;
        agent.set(of_share(n), &[("10.0.0.7", ReadWrite)]).await.unwrap();
        assert_eq!(problems(&agent).await, Vec::<String>::new());
        let contents = vec![1; SIZE as usize];
        agent
            .pool
            .files(share(n))
            .unwrap()
            .write("file", &contents)
            .unwrap();
    }
    let told = problems(&agent).await;
    assert!(told[0].contains("share pool shares has 0 bytes left"), "{told:?}");
}

#[tokio::test]
async fn rules_that_cannot_be_applied_leave_the_ones_before() {
    let agent = Agent::new().await;
    agent.create(1).await;
    agent.set(of_share(1), &[("10.0.0.7", ReadOnly)]).await.unwrap();
    agent.server.set_failing(true);
    let refused = agent.set(of_share(1), &[("10.0.0.8", ReadWrite)]).await;
    assert_refused(refused, Code::Unavailable, "UNAVAILABLE");
    let told = problems(&agent).await;
    assert!(told[0].contains("shares are not served"), "{told:?}");
    assert!(told[1].contains("cannot be exported"), "{told:?}");
    let request = v1::GetAccessRequest {
        target: Some(v1::AccessTarget {
            target: Some(of_share(1)),
        }),
    };
    let status = agent
        .api
        .get_access(Request::new(request.clone()))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(status.rules[0].state(), v1::RuleState::Pending);
    assert_eq!(status.generation, 2, "the rules are the ones before");
    agent.server.set_failing(false);
    agent.api.model.retry_exports().await.unwrap();
    let status = agent
        .api
        .get_access(Request::new(request))
        .await
        .unwrap()
        .into_inner();
    assert!(status.in_sync);
    assert_eq!(problems(&agent).await, Vec::<String>::new());
    assert_eq!(agent.attempt(share(1), "10.0.0.7"), Some(AccessLevel::ReadOnly));
    assert_eq!(agent.attempt(share(1), "10.0.0.8"), None);
}

#[tokio::test]
async fn a_start_makes_the_server_equal_to_the_records_also_after_half_a_call() {
    let agent = Agent::new().await;
    for n in [1, 2, 3] {
        agent.create(n).await;
        agent.set(of_share(n), &[("10.0.0.7", ReadOnly)]).await.unwrap();
    }
    agent
        .pool
        .files(share(3))
        .unwrap()
        .write("file", b"first")
        .unwrap();
    agent.snapshot(13, 3).await;
    agent
        .pool
        .files(share(3))
        .unwrap()
        .write("file", b"second")
        .unwrap();
    // A change of rules got as far as the server; another share was created and not answered, with its snapshot.
    let rule = AccessRule {
        id: AccessRuleId(Uuid::from_u128(5)),
        kind: ClientKind::Ip,
        client: "10.0.0.9".into(),
        level: AccessLevel::ReadWrite,
    };
    let mut export = agent.server.exported(share(1)).unwrap();
    let can = quarry_contract::ShareServer::enforceable(&*agent.server);
    export.access = quarry_contract::resolve_access(std::slice::from_ref(&rule), &can).0;
    quarry_contract::ShareServer::export(&*agent.server, &export)
        .await
        .unwrap();
    let spec = ShareSpec {
        id: share_id(4),
        size_bytes: SIZE,
        source: ShareSource::Blank,
    };
    agent.pool.create_share(&spec).await.unwrap();
    let taken = ShareSnapshotSpec {
        id: snapshot_id(14),
        share: share_id(4),
    };
    agent.pool.create_snapshots(&[taken]).await.unwrap();
    // What no record stands for.
    let mut stranger = agent.server.exported(share(2)).unwrap();
    stranger.mounted.version = share(77);
    quarry_contract::ShareServer::export(&*agent.server, &stranger)
        .await
        .unwrap();

    let create = |n: u128| Call::CreateShare {
        id: share_id(n),
        pool: None,
        size_bytes: SIZE,
        source: ShareSource::Blank,
        squash: Squash::Root,
        labels: Labels::from([("k".into(), "v".into())]),
    };
    let calls = vec![
        Call::SetAccess {
            target: share(1),
            rules: vec![rule],
            inherits: false,
        },
        Call::DeleteShare { id: share_id(2) },
        create(4),
        create(5),
        Call::CreateShareSnapshots {
            members: vec![(snapshot_id(14), share_id(4))],
            labels: Labels::new(),
        },
        Call::RevertShare {
            id: share_id(3),
            snapshot: snapshot_id(13),
        },
        Call::ResizeShare {
            id: share_id(4),
            size_bytes: 2 * SIZE,
        },
    ];
    let agent = agent.restart_in(calls).await;
    assert_eq!(
        agent.attempt(share(1), "10.0.0.7"),
        Some(AccessLevel::ReadOnly),
        "undone"
    );
    assert_eq!(agent.attempt(share(1), "10.0.0.9"), None, "undone");
    assert_refused(agent.get(2).await, Code::NotFound, "NOT_FOUND");
    assert_eq!(agent.attempt(share(2), "10.0.0.7"), None);
    assert_eq!(agent.server.exported(share(77)), None);
    let made = agent.get(4).await.unwrap();
    assert_eq!((made.squash(), made.size_bytes), (v1::Squash::Root, SIZE));
    assert_eq!(made.labels["k"], "v");
    assert_refused(agent.get(5).await, Code::NotFound, "NOT_FOUND");
    assert_eq!(
        agent.pool.files(share(3)).unwrap().read("file").unwrap(),
        b"first",
        "reverted"
    );
    assert_eq!(
        agent.attempt(share(3), "10.0.0.7"),
        Some(AccessLevel::ReadOnly),
        "exported again"
    );
    let request = v1::GetShareSnapshotRequest { id: id(14) };
    agent.api.get_share_snapshot(Request::new(request)).await.unwrap();
    let rules = [("10.0.0.7", ReadOnly)];
    agent.set(of_snapshot(14), &rules).await.unwrap();
    let squash = agent.server.exported(snapshot(14)).unwrap().squash;
    assert_eq!(squash, Squash::Root, "its share's");

    // And once more without any open call: nothing changes, and what was mounted in vain is not.
    agent.pool.mount(share(4)).await.unwrap();
    let agent = agent.restart_in(Vec::new()).await;
    assert!(!agent.is_mounted(share(4)).await);
    assert_eq!(agent.attempt(share(1), "10.0.0.7"), Some(AccessLevel::ReadOnly));
}
