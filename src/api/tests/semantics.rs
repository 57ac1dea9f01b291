//! The table of cinder.md 7.3, row by row: already so, conflicting, missing.

use quarry_contract::VolumeId;
use quarry_proto::v1;
use quarry_proto::v1::AccessMode::{ReadOnly, ReadWrite};
use quarry_proto::v1::operations_server::Operations as _;
use quarry_proto::v1::pools_server::Pools as _;
use quarry_proto::v1::volume_source::Source;
use quarry_proto::v1::volumes_server::Volumes as _;
use tonic::{Code, Request};
use tonic_types::StatusExt;

use super::kit::*;

fn named(request_id: &str) -> Option<v1::Mutation> {
    Some(v1::Mutation {
        request_id: request_id.into(),
        if_generation: 0,
    })
}

fn at_generation(if_generation: u64) -> Option<v1::Mutation> {
    Some(v1::Mutation {
        request_id: String::new(),
        if_generation,
    })
}

#[tokio::test]
async fn create_repeated_answers_the_same_and_another_spec_names_the_differences() {
    let kit = Kit::new().await;
    let made = kit.create(1, 64).await;
    assert_eq!(
        (made.size_bytes, made.generation, made.pool.as_str()),
        (64 * MIB, 1, "default")
    );
    assert_eq!(kit.create(1, 64).await, made);
    let other = kit.try_create(new_volume(1, 65)).await.unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists);
    assert!(
        other.message().contains("size_bytes is 67108864, not 68157440"),
        "{}",
        other.message()
    );
    let details = other.get_error_details();
    assert_eq!(
        details.bad_request().unwrap().field_violations[0].field,
        "size_bytes"
    );
    assert_eq!(details.resource_info().unwrap().resource_name, uuid(1));
    let source = kit.try_create(clone_of(1, Source::VolumeId(uuid(9)))).await;
    assert_eq!(refused(source), (Code::AlreadyExists, "SPEC_MISMATCH".into()));
}

#[tokio::test]
async fn create_from_a_missing_source_is_not_found_and_leaves_nothing() {
    let kit = Kit::new().await;
    for source in [Source::VolumeId(uuid(9)), Source::SnapshotId(uuid(9))] {
        let result = kit.try_create(clone_of(1, source)).await;
        assert_eq!(refused(result), (Code::NotFound, "NOT_FOUND".into()));
        assert_eq!(refused(kit.volume(1).await), (Code::NotFound, "NOT_FOUND".into()));
    }
}

#[tokio::test]
async fn clone_takes_its_source_size_and_may_be_larger_but_not_smaller() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.snap(2, 1).await.unwrap();
    let clone = kit
        .try_create(clone_of(3, Source::SnapshotId(uuid(2))))
        .await
        .unwrap();
    assert_eq!(clone.size_bytes, 64 * MIB);
    assert_eq!(clone.source.unwrap().source, Some(Source::SnapshotId(uuid(2))));
    let larger = v1::CreateVolumeRequest {
        size_bytes: 65 * MIB,
        ..clone_of(4, Source::VolumeId(uuid(1)))
    };
    assert_eq!(kit.try_create(larger).await.unwrap().size_bytes, 65 * MIB);
    let smaller = v1::CreateVolumeRequest {
        size_bytes: 63 * MIB,
        ..clone_of(5, Source::VolumeId(uuid(1)))
    };
    assert_eq!(
        refused(kit.try_create(smaller).await),
        (Code::InvalidArgument, "SIZE_SHRINK".into())
    );
    // A repeat without a size means the source's, whatever that is by now.
    kit.delete(1, true).await.unwrap();
    assert_eq!(
        kit.try_create(clone_of(3, Source::SnapshotId(uuid(2))))
            .await
            .unwrap()
            .size_bytes,
        64 * MIB
    );
}

#[tokio::test]
async fn extend_is_ok_when_equal_refused_when_smaller_and_announced_while_attached() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.attach(2, 1, HOST_A, ReadWrite).await.unwrap();
    let extended = kit.extend(1, 65).await.unwrap();
    assert_eq!((extended.size_bytes, extended.generation), (65 * MIB, 2));
    assert_eq!(kit.extend(1, 65).await.unwrap(), extended);
    let volume = quarry_contract::VolumeId(uuid(1).parse().unwrap());
    assert_eq!(kit.target.inner.announced_bytes(volume), Some(65 * MIB));
    assert_eq!(
        refused(kit.extend(1, 64).await),
        (Code::InvalidArgument, "SIZE_SHRINK".into())
    );
    assert_eq!(
        refused(kit.extend(9, 64).await),
        (Code::NotFound, "NOT_FOUND".into())
    );
}

#[tokio::test]
async fn snapshot_repeated_answers_the_same_and_another_volume_is_a_mismatch() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.create(2, 64).await;
    let taken = kit.snap(10, 1).await.unwrap();
    assert_eq!(kit.snap(10, 1).await.unwrap(), taken);
    assert_eq!(
        refused(kit.snap(10, 2).await),
        (Code::AlreadyExists, "SPEC_MISMATCH".into())
    );
    assert_eq!(
        refused(kit.snap(11, 9).await),
        (Code::NotFound, "NOT_FOUND".into())
    );
    assert_eq!(kit.volume(1).await.unwrap().snapshot_count, 1);
}

#[tokio::test]
async fn group_snapshot_is_all_or_none() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.create(2, 64).await;
    assert_eq!(
        refused(kit.group(&[(10, 1), (11, 9)]).await),
        (Code::NotFound, "NOT_FOUND".into())
    );
    assert_eq!(refused(kit.snapshot(10).await).0, Code::NotFound);
    let group = kit.group(&[(11, 2), (10, 1)]).await.unwrap();
    assert_eq!(
        group.iter().map(|s| s.id.clone()).collect::<Vec<_>>(),
        [uuid(11), uuid(10)]
    );
    assert_eq!(kit.group(&[(11, 2), (10, 1)]).await.unwrap(), group);
    let overlap = kit.group(&[(10, 1), (12, 2)]).await;
    assert_eq!(refused(overlap), (Code::AlreadyExists, "SPEC_MISMATCH".into()));
    assert_eq!(refused(kit.snapshot(12).await).0, Code::NotFound);
}

#[tokio::test]
async fn snapshot_is_deleted_in_any_order_and_deleting_again_is_ok() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.snap(10, 1).await.unwrap();
    kit.try_create(clone_of(2, Source::SnapshotId(uuid(10))))
        .await
        .unwrap();
    kit.delete_snapshot(10).await.unwrap();
    kit.delete_snapshot(10).await.unwrap();
    assert_eq!(
        kit.volume(2).await.unwrap().source.unwrap().source,
        Some(Source::SnapshotId(uuid(10)))
    );
}

#[tokio::test]
async fn revert_needs_a_snapshot_of_the_volume_and_no_attachment() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.create(2, 64).await;
    kit.snap(10, 1).await.unwrap();
    kit.snap(20, 2).await.unwrap();
    assert_eq!(
        refused(kit.revert(1, 99).await),
        (Code::NotFound, "NOT_FOUND".into())
    );
    assert_eq!(
        refused(kit.revert(9, 10).await),
        (Code::NotFound, "NOT_FOUND".into())
    );
    assert_eq!(
        refused(kit.revert(1, 20).await),
        (Code::InvalidArgument, "INVALID_FIELD".into())
    );
    kit.attach(30, 1, HOST_A, ReadWrite).await.unwrap();
    let attached = kit.revert(1, 10).await;
    assert_eq!(
        blockers(attached.as_ref().unwrap_err()),
        [format!("attachment {}", uuid(30))]
    );
    assert_eq!(
        refused(attached),
        (Code::FailedPrecondition, "HAS_ATTACHMENTS".into())
    );
    kit.detach(30).await.unwrap();
    kit.revert(1, 10).await.unwrap();
}

#[tokio::test]
async fn delete_is_refused_while_attached_or_with_snapshots_and_ok_when_absent() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.attach(30, 1, HOST_A, ReadWrite).await.unwrap();
    let attached = kit.delete(1, true).await;
    let message = attached.as_ref().unwrap_err().message().to_owned();
    assert!(
        message.contains(&uuid(30)) && message.contains("delete the attachments first"),
        "{message}"
    );
    assert_eq!(
        blockers(attached.as_ref().unwrap_err()),
        [format!("attachment {}", uuid(30))]
    );
    assert_eq!(
        refused(attached),
        (Code::FailedPrecondition, "HAS_ATTACHMENTS".into())
    );
    kit.detach(30).await.unwrap();

    kit.snap(10, 1).await.unwrap();
    kit.snap(11, 1).await.unwrap();
    let has_snapshots = kit.delete(1, false).await;
    let expected = [format!("snapshot {}", uuid(10)), format!("snapshot {}", uuid(11))];
    assert_eq!(blockers(has_snapshots.as_ref().unwrap_err()), expected);
    assert_eq!(
        refused(has_snapshots),
        (Code::FailedPrecondition, "HAS_SNAPSHOTS".into())
    );
    kit.delete(1, true).await.unwrap();
    kit.delete(1, false).await.unwrap();
    for gone in [kit.snapshot(10).await, kit.snapshot(11).await] {
        assert_eq!(refused(gone).0, Code::NotFound);
    }
    // Hosts have known it by names that follow from the id: no other volume gets them.
    let again = kit.try_create(new_volume(1, 32)).await;
    let message = again.as_ref().unwrap_err().message().to_owned();
    assert!(message.contains("choose another id"), "{message}");
    assert_eq!(refused(again), (Code::AlreadyExists, "SPEC_MISMATCH".into()));
    let kit = kit.restart().await;
    let again = kit.try_create(clone_of(1, Source::VolumeId(uuid(1)))).await;
    assert_eq!(refused(again), (Code::AlreadyExists, "SPEC_MISMATCH".into()));

    // The id of one that no host has seen is free again, and begins anew.
    kit.create(2, 64).await;
    kit.delete(2, false).await.unwrap();
    assert_eq!(kit.create(2, 32).await.generation, 1);
}

#[tokio::test]
async fn attach_repeated_answers_the_same_bytes_and_another_spec_is_a_mismatch() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.create(2, 64).await;
    let made = kit.attach(30, 1, HOST_A, ReadWrite).await.unwrap();
    assert_eq!(kit.attach(30, 1, HOST_A, ReadWrite).await.unwrap(), made);
    assert_eq!(kit.info(30).await.unwrap(), made.connection_info.clone().unwrap());
    let upper = kit
        .attach(30, 1, &HOST_A.to_uppercase(), ReadWrite)
        .await
        .unwrap();
    assert_eq!(upper, made);
    for other in [
        new_attachment(30, 2, HOST_A, ReadWrite),
        new_attachment(30, 1, HOST_B, ReadWrite),
        new_attachment(30, 1, HOST_A, ReadOnly),
    ] {
        assert_eq!(
            refused(kit.try_attach(other).await),
            (Code::AlreadyExists, "SPEC_MISMATCH".into())
        );
    }
    assert_eq!(
        refused(kit.attach(31, 9, HOST_A, ReadWrite).await),
        (Code::NotFound, "NOT_FOUND".into())
    );
    assert_eq!(refused(kit.info(31).await), (Code::NotFound, "NOT_FOUND".into()));
    assert_eq!(kit.volume(1).await.unwrap().attachment_ids, [uuid(30)]);
}

#[tokio::test]
async fn a_forced_detach_takes_all_attachments_of_the_host_and_leaves_others_alone() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.create(2, 64).await;
    for (id, volume, host) in [(30, 1, HOST_A), (31, 1, HOST_A), (32, 1, HOST_B), (33, 2, HOST_A)] {
        kit.attach(id, volume, host, ReadWrite).await.unwrap();
    }
    kit.target.calls.lock().unwrap().clear();
    assert!(!kit.fence(30).await.unwrap(), "the host is not attached any more");
    assert_eq!(*kit.target.calls.lock().unwrap(), [format!("revoke {HOST_A}")]);
    assert_eq!(kit.target.access(1), [(HOST_B.to_owned(), true)].into());
    assert_eq!(kit.target.access(2), [(HOST_A.to_owned(), true)].into());
    assert_eq!(refused(kit.attachment(31).await).0, Code::NotFound);
    assert_eq!(kit.volume(1).await.unwrap().attachment_ids, [uuid(32)]);
    assert!(!kit.fence(30).await.unwrap(), "again is fine");
}

#[tokio::test]
async fn rights_are_counted_by_host_and_one_detach_never_cuts_another() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    let first = kit.attach(30, 1, HOST_A, ReadOnly).await.unwrap();
    assert_eq!(kit.target.access(1), [(HOST_A.to_owned(), false)].into());
    let second = kit.attach(31, 1, HOST_A, ReadWrite).await.unwrap();
    kit.attach(32, 1, HOST_B, ReadOnly).await.unwrap();
    let credentials =
        |made: &v1::CreateAttachmentResponse| match made.connection_info.clone().unwrap().protocol {
            Some(v1::connection_info::Protocol::Iscsi(iscsi)) => {
                (iscsi.chap.unwrap(), iscsi.target_chap.unwrap())
            }
            None => panic!("iSCSI is expected"),
        };
    assert_eq!(credentials(&first), credentials(&second), "one host, one secret");
    let (host, target) = credentials(&first);
    assert_ne!(
        host.secret, target.secret,
        "each side has its own (RFC 7143 9.2.1)"
    );
    assert!(second.attachment.unwrap().shared_on_host);
    assert!(kit.attachment(30).await.unwrap().shared_on_host);
    assert_eq!(
        kit.target.access(1),
        [(HOST_A.to_owned(), true), (HOST_B.to_owned(), false)].into()
    );

    assert!(kit.detach(31).await.unwrap(), "the host is still attached");
    assert_eq!(
        kit.target.access(1),
        [(HOST_A.to_owned(), false), (HOST_B.to_owned(), false)].into()
    );
    kit.target.calls.lock().unwrap().clear();
    assert!(!kit.detach(30).await.unwrap());
    assert_eq!(*kit.target.calls.lock().unwrap(), [format!("revoke {HOST_A}")]);
    assert_eq!(kit.target.access(1), [(HOST_B.to_owned(), false)].into());
    assert!(!kit.detach(32).await.unwrap());
    assert!(!kit.detach(32).await.unwrap(), "again is fine");
    assert!(
        kit.target.inner.exports().is_empty(),
        "the last one closes the device"
    );
    kit.delete(1, false).await.unwrap();
}

#[tokio::test]
async fn connection_info_is_the_same_after_a_restart_and_the_export_is_back_before_the_first_call() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.attach(30, 1, HOST_A, ReadWrite).await.unwrap();
    kit.attach(31, 1, HOST_B, ReadOnly).await.unwrap();
    let before = (kit.info(30).await.unwrap(), kit.info(31).await.unwrap());
    let kit = kit.restart().await;
    assert_eq!(
        kit.target.access(1),
        [(HOST_A.to_owned(), true), (HOST_B.to_owned(), false)].into()
    );
    assert_eq!((kit.info(30).await.unwrap(), kit.info(31).await.unwrap()), before);
    assert_eq!(
        kit.attachment(30).await.unwrap().state(),
        v1::AttachmentState::Ready
    );
}

#[tokio::test]
async fn request_id_answers_as_the_first_time_and_is_refused_for_another_call() {
    let kit = Kit::new().await;
    let create = v1::CreateVolumeRequest {
        mutation: named("r1"),
        ..new_volume(1, 64)
    };
    let made = kit.try_create(create.clone()).await.unwrap();
    kit.delete(1, false).await.unwrap();
    let kit = kit.restart().await;
    assert_eq!(
        kit.try_create(create).await.unwrap(),
        made,
        "remembered, not carried out again"
    );
    assert_eq!(refused(kit.volume(1).await).0, Code::NotFound);
    let other = v1::CreateVolumeRequest {
        mutation: named("r1"),
        ..new_volume(2, 64)
    };
    assert_eq!(
        refused(kit.try_create(other).await),
        (Code::InvalidArgument, "REQUEST_ID_REUSED".into())
    );

    // A failure is not remembered: what was in the way may be gone.
    let create = v1::CreateVolumeRequest {
        mutation: named("r2"),
        ..clone_of(3, Source::VolumeId(uuid(2)))
    };
    assert_eq!(refused(kit.try_create(create.clone()).await).0, Code::NotFound);
    kit.create(2, 64).await;
    kit.try_create(create).await.unwrap();

    // An attachment is answered with its secret, as the first time.
    let attach = v1::CreateAttachmentRequest {
        mutation: named("r3"),
        ..new_attachment(30, 2, HOST_A, ReadWrite)
    };
    let made = kit.try_attach(attach.clone()).await.unwrap();
    kit.detach(30).await.unwrap();
    assert_eq!(kit.try_attach(attach).await.unwrap(), made);
    assert!(kit.target.inner.exports().is_empty());
}

#[tokio::test]
async fn stale_generation_is_refused_and_the_present_one_is_carried_out() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.extend(1, 65).await.unwrap();
    let update = |generation| {
        let labels = [("a".to_owned(), "b".to_owned())].into();
        Request::new(v1::UpdateVolumeRequest {
            id: uuid(1),
            labels,
            mutation: at_generation(generation),
        })
    };
    let stale = kit.api.update_volume(update(1)).await;
    assert_eq!(
        refused(stale),
        (Code::FailedPrecondition, "STALE_GENERATION".into())
    );
    let updated = kit.api.update_volume(update(2)).await.unwrap().into_inner();
    assert_eq!((updated.generation, updated.labels["a"].as_str()), (3, "b"));
    let again = kit.api.update_volume(update(3)).await.unwrap().into_inner();
    assert_eq!(again.generation, 3, "the same labels change nothing");
    let create = v1::CreateVolumeRequest {
        mutation: at_generation(1),
        ..new_volume(2, 64)
    };
    assert_eq!(
        refused(kit.try_create(create).await),
        (Code::InvalidArgument, "INVALID_FIELD".into())
    );
    let delete = v1::DeleteVolumeRequest {
        id: uuid(1),
        cascade: false,
        mutation: at_generation(1),
    };
    let stale = kit.api.delete_volume(Request::new(delete)).await;
    assert_eq!(refused(stale).1, "STALE_GENERATION");
}

#[tokio::test]
async fn lists_are_paged_in_order_and_filtered() {
    let kit = Kit::with_pools(&["a", "b"]).await;
    for id in (1..=7).rev() {
        let pool = if id % 2 == 0 { "a" } else { "b" };
        let labels = [("parity".to_owned(), (id % 2).to_string())].into();
        let request = v1::CreateVolumeRequest {
            pool: pool.into(),
            labels,
            ..new_volume(id, 1)
        };
        kit.try_create(request).await.unwrap();
    }
    let list = async |request: v1::ListVolumesRequest| {
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let request = v1::ListVolumesRequest {
                page_token: token,
                ..request.clone()
            };
            let page = kit
                .api
                .list_volumes(Request::new(request))
                .await
                .unwrap()
                .into_inner();
            assert!(page.volumes.len() <= 3);
            seen.extend(page.volumes.into_iter().map(|volume| volume.id));
            token = page.next_page_token;
            if token.is_empty() {
                return seen;
            }
        }
    };
    let page = v1::ListVolumesRequest {
        page_size: 3,
        ..Default::default()
    };
    assert_eq!(list(page.clone()).await, (1..=7).map(uuid).collect::<Vec<_>>());
    let even: Vec<String> = [2, 4, 6].map(uuid).into();
    assert_eq!(
        list(v1::ListVolumesRequest {
            pool: "a".into(),
            ..page.clone()
        })
        .await,
        even
    );
    let labels = [("parity".to_owned(), "0".to_owned())].into();
    assert_eq!(list(v1::ListVolumesRequest { labels, ..page }).await, even);
    let pools = kit.api.list_pools(Request::new(v1::ListPoolsRequest {
        page_size: 1,
        ..Default::default()
    }));
    let pools = pools.await.unwrap().into_inner();
    assert_eq!(pools.pools[0].name, "a");
    let request = v1::ListPoolsRequest {
        page_size: 1,
        page_token: pools.next_page_token,
    };
    let pools = kit
        .api
        .list_pools(Request::new(request))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (pools.pools[0].name.as_str(), pools.next_page_token.as_str()),
        ("b", "")
    );
}

#[tokio::test]
async fn journal_shows_what_changed_something_and_why_it_failed() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.create(1, 64).await;
    let full = v1::CreateVolumeRequest {
        mutation: named("r"),
        ..new_volume(2, 64)
    };
    kit.try_create(full).await.unwrap();
    let request = v1::ListOperationsRequest::default();
    let listed = kit
        .api
        .list_operations(Request::new(request))
        .await
        .unwrap()
        .into_inner()
        .operations;
    let targets: Vec<&str> = listed
        .iter()
        .map(|operation| operation.target_id.as_str())
        .collect();
    assert_eq!(
        targets,
        [uuid(1), uuid(2)],
        "a repeat changes nothing and is not in the journal"
    );
    assert_eq!(listed[1].request_id, "r");
    assert!(
        listed
            .iter()
            .all(|o| o.state() == v1::OperationState::Succeeded && o.end_time.is_some())
    );
    let request = v1::GetOperationRequest {
        id: listed[0].id.clone(),
    };
    let shown = kit
        .api
        .get_operation(Request::new(request))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(shown, listed[0]);
    let filter = v1::ListOperationsRequest {
        kind: v1::OperationKind::DeleteVolume.into(),
        ..Default::default()
    };
    assert!(
        kit.api
            .list_operations(Request::new(filter))
            .await
            .unwrap()
            .into_inner()
            .operations
            .is_empty()
    );
}

#[tokio::test]
async fn calls_on_one_volume_at_once_all_end_in_one_of_the_states_asked_for() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    let attach = |id: u128| {
        let api = kit.api.clone();
        tokio::spawn(async move {
            use quarry_proto::v1::attachments_server::Attachments as _;
            let host = if id.is_multiple_of(2) { HOST_A } else { HOST_B };
            api.create_attachment(Request::new(new_attachment(id, 1, host, ReadWrite)))
                .await
                .unwrap();
        })
    };
    let tasks: Vec<_> = (100..116).map(attach).collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(kit.volume(1).await.unwrap().attachment_ids.len(), 16);
    let exports = kit
        .target
        .calls
        .lock()
        .unwrap()
        .iter()
        .filter(|call| call.starts_with("export"))
        .count();
    assert_eq!(exports, 1, "one export, then grants");
    assert_eq!(kit.target.access(1).len(), 2);
}

/// So many commands a second in all.
fn limits(iops: u64) -> Option<v1::IoLimits> {
    let total = Some(v1::RateLimit {
        iops,
        ..v1::RateLimit::default()
    });
    Some(v1::IoLimits {
        total,
        ..v1::IoLimits::default()
    })
}

/// Returns how many commands a second the target lets through.
fn at_target(kit: &Kit, volume: u128) -> Option<u64> {
    let limits = kit
        .target
        .inner
        .limits(VolumeId(uuid::Uuid::from_u128(volume)))
        .unwrap();
    limits.total.commands.map(|rate| rate.per_second.get())
}

async fn limit(kit: &Kit, volume: u128, limits: Option<v1::IoLimits>) -> Result<v1::Volume, tonic::Status> {
    let request = v1::LimitVolumeRequest {
        id: uuid(volume),
        limits,
        mutation: None,
    };
    let answer = kit.api.limit_volume(Request::new(request)).await;
    answer.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn limits_reach_the_target_at_once_and_with_every_export_and_survive_a_restart() {
    let kit = Kit::new().await;
    let create = v1::CreateVolumeRequest {
        limits: limits(500),
        ..new_volume(1, 64)
    };
    let created = kit.try_create(create.clone()).await.unwrap();
    assert_eq!((created.limits, created.generation), (limits(500), 1));
    kit.attach(10, 1, HOST_A, ReadWrite).await.unwrap();
    assert_eq!(at_target(&kit, 1), Some(500));

    let changed = limit(&kit, 1, limits(800)).await.unwrap();
    assert_eq!((changed.limits, changed.generation), (limits(800), 2));
    assert_eq!(at_target(&kit, 1), Some(800));
    let again = limit(&kit, 1, limits(800)).await.unwrap();
    assert_eq!(again.generation, 2, "the same limits change nothing");
    let repeated = kit.try_create(create).await.unwrap();
    assert_eq!(repeated.limits, limits(800), "limits are not compared");

    let kit = kit.restart().await;
    assert_eq!(at_target(&kit, 1), Some(800));
    let none = limit(&kit, 1, None).await.unwrap();
    assert_eq!((none.limits, none.generation), (None, 3));
    assert_eq!(at_target(&kit, 1), None);
    let missing = limit(&kit, 9, limits(1)).await;
    assert_eq!(refused(missing), (Code::NotFound, "NOT_FOUND".into()));
}

#[tokio::test]
async fn limits_that_the_target_does_not_take_change_nothing() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.attach(10, 1, HOST_A, ReadWrite).await.unwrap();
    kit.target.fail_at(1);
    limit(&kit, 1, limits(5)).await.unwrap_err();
    assert_eq!(at_target(&kit, 1), None);
    let volume = limit(&kit, 1, limits(5)).await.unwrap();
    assert_eq!((volume.generation, at_target(&kit, 1)), (2, Some(5)));
}

async fn reserve(kit: &Kit, volume: u128, reserved: bool) -> Result<v1::Volume, tonic::Status> {
    let request = v1::ReserveVolumeRequest {
        id: uuid(volume),
        reserved,
        mutation: None,
    };
    let answer = kit.api.reserve_volume(Request::new(request)).await;
    answer.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_reservation_counts_once_and_survives_a_restart() {
    let kit = Kit::new().await;
    assert!(!kit.create(1, 64).await.reserved);
    let changed = reserve(&kit, 1, true).await.unwrap();
    assert_eq!((changed.reserved, changed.generation), (true, 2));
    assert_eq!(reserve(&kit, 1, true).await.unwrap(), changed);
    let kit = kit.restart().await;
    assert_eq!(kit.volume(1).await.unwrap(), changed);
    let undone = reserve(&kit, 1, false).await.unwrap();
    assert_eq!((undone.reserved, undone.generation), (false, 3));
    let missing = reserve(&kit, 9, true).await;
    assert_eq!(refused(missing), (Code::NotFound, "NOT_FOUND".into()));
}

#[tokio::test]
async fn checksums_are_chosen_at_create_and_handed_on() {
    let kit = Kit::new().await;
    let create = async |request: v1::CreateVolumeRequest| {
        let answer = kit.api.create_volume(Request::new(request)).await;
        answer.map(tonic::Response::into_inner)
    };
    let asked =
        |checksums, request: v1::CreateVolumeRequest| v1::CreateVolumeRequest { checksums, ..request };
    assert!(!kit.create(1, 64).await.checksums);
    let created = create(asked(true, new_volume(2, 64))).await.unwrap();
    assert!(created.checksums);
    assert_eq!(create(asked(true, new_volume(2, 64))).await.unwrap(), created);
    for (id, checksums) in [(1, true), (2, false)] {
        let other = create(asked(checksums, new_volume(id, 64))).await;
        assert_eq!(refused(other), (Code::AlreadyExists, "SPEC_MISMATCH".into()));
    }
    let from = |id| v1::volume_source::Source::VolumeId(uuid(id));
    assert!(create(clone_of(3, from(2))).await.unwrap().checksums);
    assert!(create(asked(true, clone_of(4, from(2)))).await.unwrap().checksums);
    let refused_clone = create(asked(true, clone_of(5, from(1)))).await;
    assert_eq!(
        refused(refused_clone),
        (Code::InvalidArgument, "INVALID_FIELD".into())
    );
    let kit = kit.restart().await;
    assert!(kit.volume(3).await.unwrap().checksums);
}

#[tokio::test]
async fn a_scrub_needs_a_pool_that_can() {
    let kit = Kit::new().await;
    let start = async |pool: &str| {
        let request = v1::StartScrubRequest { pool: pool.into() };
        kit.api.start_scrub(Request::new(request)).await
    };
    let can_not = (Code::Unimplemented, "CAPABILITY_MISSING".into());
    assert_eq!(refused(start("default").await), can_not);
    assert_eq!(
        refused(start("").await),
        (Code::InvalidArgument, "INVALID_FIELD".into())
    );
    assert_eq!(refused(start("nope").await), (Code::NotFound, "NOT_FOUND".into()));
}

#[tokio::test]
async fn a_pool_says_how_full_it_is() {
    let kit = Kit::new().await;
    let request = v1::GetPoolRequest {
        name: "default".into(),
    };
    let pool = kit
        .api
        .get_pool(Request::new(request))
        .await
        .unwrap()
        .into_inner();
    let space = pool.space.unwrap();
    assert_eq!(space.level(), v1::SpaceLevel::Normal);
    assert_eq!(
        (space.available_bytes, space.waiting_writes),
        (pool.free_bytes, 0)
    );
}
