//! What a caller can get wrong: refused with the field, the object and the next step, and nothing changes.

use quarry_proto::v1;
use quarry_proto::v1::AccessMode::ReadWrite;
use quarry_proto::v1::attachments_server::Attachments as _;
use quarry_proto::v1::operations_server::Operations as _;
use quarry_proto::v1::pools_server::Pools as _;
use quarry_proto::v1::snapshots_server::Snapshots as _;
use quarry_proto::v1::volumes_server::Volumes as _;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use super::kit::*;

/// Checks that the error is about a field, and says something of use.
fn expect<T: std::fmt::Debug>(result: Result<T, Status>, reason: &str, field: &str, says: &str) {
    let status = result.expect_err("the call should be refused");
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, reason, "{status:?}");
    assert_eq!(status.code(), Code::InvalidArgument, "{}", status.message());
    let violations = &details
        .bad_request()
        .expect("the field is named")
        .field_violations;
    assert_eq!(violations[0].field, field, "{}", status.message());
    assert!(
        status.message().contains(says),
        "{:?} does not say {says:?}",
        status.message()
    );
}

#[tokio::test]
async fn malformed_ids_are_refused_by_every_call() {
    let kit = Kit::new().await;
    let long = "f".repeat(10_000);
    let bad = [
        ("", "is missing"),
        ("volume-1", "is not a UUID"),
        ("0192f0c47a3e7b1c9d523f6a1c2b4d5e", "with hyphens"),
        ("{0192f0c4-7a3e-7b1c-9d52-3f6a1c2b4d5e}", "is not a UUID"),
        ("urn:uuid:0192f0c4-7a3e-7b1c-9d52-3f6a1c2b4d5e", "is not a UUID"),
        ("00000000-0000-0000-0000-000000000000", "not all zero"),
        (long.as_str(), "(10000 bytes)"),
        ("0192f0c4-7a3e-7b1c-9d52-3f6a1c2b4d5\u{0}", "is not a UUID"),
    ];
    for (id, says) in bad {
        let id = id.to_owned();
        let api = &kit.api;
        let create = v1::CreateVolumeRequest {
            id: id.clone(),
            size_bytes: MIB,
            ..Default::default()
        };
        expect(kit.try_create(create).await, "INVALID_FIELD", "id", says);
        let get = api
            .get_volume(Request::new(v1::GetVolumeRequest { id: id.clone() }))
            .await;
        expect(get, "INVALID_FIELD", "id", says);
        let request = v1::DeleteVolumeRequest {
            id: id.clone(),
            ..Default::default()
        };
        expect(
            api.delete_volume(Request::new(request)).await,
            "INVALID_FIELD",
            "id",
            says,
        );
        let request = v1::CreateSnapshotRequest {
            id: uuid(1),
            volume_id: id.clone(),
            ..Default::default()
        };
        expect(
            api.create_snapshot(Request::new(request)).await,
            "INVALID_FIELD",
            "volume_id",
            says,
        );
        let request = v1::RevertVolumeRequest {
            id: uuid(1),
            snapshot_id: id.clone(),
            mutation: None,
        };
        expect(
            api.revert_volume(Request::new(request)).await,
            "INVALID_FIELD",
            "snapshot_id",
            says,
        );
        let request = v1::GetConnectionInfoRequest {
            attachment_id: id.clone(),
        };
        expect(
            api.get_connection_info(Request::new(request)).await,
            "INVALID_FIELD",
            "attachment_id",
            says,
        );
        let request = v1::GetOperationRequest { id };
        expect(
            api.get_operation(Request::new(request)).await,
            "INVALID_FIELD",
            "id",
            says,
        );
    }
}

#[tokio::test]
async fn zero_odd_and_huge_sizes_are_refused_with_the_limit() {
    let kit = Kit::new().await;
    kit.create(9, 1).await;
    let cases = [
        (0, "SIZE_UNALIGNED", "positive multiple of 512"),
        (1, "SIZE_UNALIGNED", "positive multiple of 512"),
        (MIB + 1, "SIZE_UNALIGNED", "round up"),
        ((1 << 40) + 512, "SIZE_TOO_LARGE", "1099511627776"),
        (u64::MAX, "SIZE_UNALIGNED", "positive multiple of 512"),
        (u64::MAX - 511, "SIZE_TOO_LARGE", "ask for less"),
    ];
    for (size_bytes, reason, says) in cases {
        let request = v1::CreateVolumeRequest {
            size_bytes,
            ..new_volume(1, 0)
        };
        expect(kit.try_create(request).await, reason, "size_bytes", says);
        if size_bytes > MIB || size_bytes == 0 {
            let request = v1::ExtendVolumeRequest {
                id: uuid(9),
                size_bytes,
                mutation: None,
            };
            let extended = kit.api.extend_volume(Request::new(request)).await;
            expect(extended, reason, "size_bytes", says);
        }
    }
    assert_eq!(refused(kit.volume(1).await).0, Code::NotFound);
    assert_eq!(kit.volume(9).await.unwrap().size_bytes, MIB);
}

#[tokio::test]
async fn unknown_and_unnamed_pools_are_refused() {
    let kit = Kit::with_pools(&["fast", "slow"]).await;
    let unknown = v1::CreateVolumeRequest {
        pool: "quick".into(),
        ..new_volume(1, 1)
    };
    let status = kit.try_create(unknown).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(
        status.message().contains("pool quick does not exist"),
        "{}",
        status.message()
    );
    expect(
        kit.try_create(new_volume(1, 1)).await,
        "INVALID_FIELD",
        "pool",
        "name one of fast, slow",
    );
    let fast = v1::CreateVolumeRequest {
        pool: "fast".into(),
        ..new_volume(1, 1)
    };
    kit.try_create(fast).await.unwrap();
    let source = v1::volume_source::Source::VolumeId(uuid(1));
    let elsewhere = v1::CreateVolumeRequest {
        pool: "slow".into(),
        ..clone_of(2, source.clone())
    };
    expect(
        kit.try_create(elsewhere).await,
        "INVALID_FIELD",
        "pool",
        "leave the pool out",
    );
    assert_eq!(kit.try_create(clone_of(2, source)).await.unwrap().pool, "fast");
    let slow = v1::CreateVolumeRequest {
        pool: "slow".into(),
        ..new_volume(3, 1)
    };
    kit.try_create(slow).await.unwrap();
    expect(
        kit.group(&[(10, 1), (11, 3)]).await,
        "INVALID_FIELD",
        "members",
        "one group is in one pool",
    );
    let other_pool = v1::CreateVolumeRequest {
        pool: "slow".into(),
        ..new_volume(1, 1)
    };
    assert_eq!(refused(kit.try_create(other_pool).await).1, "SPEC_MISMATCH");
    let get = kit
        .api
        .get_pool(Request::new(v1::GetPoolRequest { name: String::new() }))
        .await;
    expect(get, "INVALID_FIELD", "name", "is missing");
    let request = v1::ListVolumesRequest {
        pool: "quick".into(),
        ..Default::default()
    };
    assert_eq!(
        refused(kit.api.list_volumes(Request::new(request)).await).0,
        Code::NotFound
    );
}

#[tokio::test]
async fn labels_request_ids_and_sources_beyond_their_limits_are_refused() {
    let kit = Kit::new().await;
    let labels = |labels: Vec<(String, String)>| v1::CreateVolumeRequest {
        labels: labels.into_iter().collect(),
        ..new_volume(1, 1)
    };
    let many = (0..65).map(|n| (n.to_string(), String::new())).collect();
    expect(
        kit.try_create(labels(many)).await,
        "INVALID_FIELD",
        "labels",
        "more than 64",
    );
    for key in ["", &"k".repeat(64)] {
        let request = labels(vec![(key.to_owned(), String::new())]);
        expect(
            kit.try_create(request).await,
            "INVALID_FIELD",
            "labels",
            "1 to 63 bytes",
        );
    }
    let request = labels(vec![("k".into(), "v".repeat(1025))]);
    expect(
        kit.try_create(request).await,
        "INVALID_FIELD",
        "labels",
        "more than 1024",
    );
    let mutation = Some(v1::Mutation {
        request_id: "r".repeat(129),
        if_generation: 0,
    });
    let request = v1::CreateVolumeRequest {
        mutation,
        ..new_volume(1, 1)
    };
    expect(
        kit.try_create(request).await,
        "INVALID_FIELD",
        "mutation.request_id",
        "more than 128",
    );
    let empty = Some(v1::VolumeSource { source: None });
    let request = v1::CreateVolumeRequest {
        source: empty,
        ..new_volume(1, 1)
    };
    expect(
        kit.try_create(request).await,
        "INVALID_FIELD",
        "source",
        "or leave it out",
    );
    kit.try_create(labels(
        (0..64).map(|n| (n.to_string(), "v".repeat(1024))).collect(),
    ))
    .await
    .unwrap();
}

#[tokio::test]
async fn groups_that_cannot_be_are_refused() {
    let kit = Kit::new().await;
    kit.create(1, 1).await;
    kit.create(2, 1).await;
    expect(kit.group(&[]).await, "INVALID_FIELD", "members", "1 to 100");
    expect(
        kit.group(&[(10, 1), (10, 2)]).await,
        "INVALID_FIELD",
        "members",
        "named twice",
    );
    expect(
        kit.group(&[(10, 1), (11, 1)]).await,
        "INVALID_FIELD",
        "members",
        "named twice",
    );
    let many: Vec<(u128, u128)> = (0..101).map(|n| (1000 + n, 2000 + n)).collect();
    expect(kit.group(&many).await, "INVALID_FIELD", "members", "not 101");
    let members = vec![v1::GroupMember {
        snapshot_id: uuid(10),
        volume_id: "x".into(),
    }];
    let request = v1::CreateGroupSnapshotRequest {
        members,
        ..Default::default()
    };
    let result = kit.api.create_group_snapshot(Request::new(request)).await;
    expect(result, "INVALID_FIELD", "members[0].volume_id", "is not a UUID");
}

#[tokio::test]
async fn connectors_without_or_with_a_wrong_initiator_are_refused() {
    let kit = Kit::new().await;
    kit.create(1, 1).await;
    let absent = v1::CreateAttachmentRequest {
        connector: None,
        ..new_attachment(30, 1, HOST_A, ReadWrite)
    };
    expect(
        kit.try_attach(absent).await,
        "CONNECTOR_INCOMPLETE",
        "connector",
        "initiator name",
    );
    let result = kit.attach(30, 1, "", ReadWrite).await;
    expect(
        result,
        "CONNECTOR_INCOMPLETE",
        "connector",
        "initiator is missing",
    );
    for name in ["host1", "iqn.2026-13.io.x", "iqn.2026-11.io:a b", "eui.12"] {
        let result = kit.attach(30, 1, name, ReadWrite).await;
        expect(result, "INVALID_FIELD", "connector.initiator", "iSCSI name");
    }
    let with = |connector: v1::Connector| v1::CreateAttachmentRequest {
        connector: Some(v1::Connector {
            initiator: HOST_A.into(),
            ..connector
        }),
        ..new_attachment(30, 1, HOST_A, ReadWrite)
    };
    let request = with(v1::Connector {
        ip: "host1".into(),
        ..Default::default()
    });
    expect(
        kit.try_attach(request).await,
        "INVALID_FIELD",
        "connector.ip",
        "leave it out",
    );
    let request = with(v1::Connector {
        host: "a\nb".into(),
        ..Default::default()
    });
    expect(
        kit.try_attach(request).await,
        "INVALID_FIELD",
        "connector.host",
        "control characters",
    );
    let request = v1::CreateAttachmentRequest {
        mode: 7,
        ..new_attachment(30, 1, HOST_A, ReadWrite)
    };
    expect(
        kit.try_attach(request).await,
        "INVALID_FIELD",
        "mode",
        "1 is read-write",
    );
    let request = v1::ListAttachmentsRequest {
        initiator: "host1".into(),
        ..Default::default()
    };
    let listed = kit.api.list_attachments(Request::new(request)).await;
    expect(listed, "INVALID_FIELD", "initiator", "is not an iSCSI name");
    assert!(kit.volume(1).await.unwrap().attachment_ids.is_empty());
}

#[tokio::test]
async fn page_tokens_that_are_not_ours_and_pages_too_large_are_refused() {
    let kit = Kit::new().await;
    kit.create(1, 1).await;
    kit.create(2, 1).await;
    let request = v1::ListVolumesRequest {
        page_size: 1,
        ..Default::default()
    };
    let token = kit
        .api
        .list_volumes(Request::new(request))
        .await
        .unwrap()
        .into_inner()
        .next_page_token;
    for page_token in [
        "x",
        "zz",
        "abcd",
        &hex::encode("volumes:1"),
        &hex::encode("volumes"),
        &"0".repeat(5000),
    ] {
        let request = v1::ListVolumesRequest {
            page_token: page_token.into(),
            ..Default::default()
        };
        let listed = kit.api.list_volumes(Request::new(request)).await;
        expect(
            listed,
            "INVALID_FIELD",
            "page_token",
            "next_page_token of the page before",
        );
    }
    // One list's token is not another's.
    let request = v1::ListSnapshotsRequest {
        page_token: token,
        ..Default::default()
    };
    let listed = kit.api.list_snapshots(Request::new(request)).await;
    expect(listed, "INVALID_FIELD", "page_token", "a list of snapshots");
    let request = v1::ListVolumesRequest {
        page_size: 1001,
        ..Default::default()
    };
    expect(
        kit.api.list_volumes(Request::new(request)).await,
        "INVALID_FIELD",
        "page_size",
        "more than 1000",
    );
    let request = v1::ListOperationsRequest {
        state: 9,
        ..Default::default()
    };
    expect(
        kit.api.list_operations(Request::new(request)).await,
        "INVALID_FIELD",
        "state",
        "9 is not",
    );
}

#[tokio::test]
async fn limits_out_of_range_are_refused_by_field() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    let none = v1::RateLimit::default();
    for (limit, field) in [
        (
            v1::RateLimit {
                iops: 1_000_000_001,
                ..none
            },
            "limits.read.iops",
        ),
        (
            v1::RateLimit {
                bytes_per_second: 4095,
                ..none
            },
            "limits.read.bytes_per_second",
        ),
        (
            v1::RateLimit {
                bytes_per_second: (1 << 50) + 1,
                ..none
            },
            "limits.read.bytes_per_second",
        ),
        (
            v1::RateLimit {
                burst_commands: 1,
                ..none
            },
            "limits.read.burst_commands",
        ),
        (
            v1::RateLimit {
                iops: 1,
                burst_commands: u64::MAX,
                ..none
            },
            "limits.read.burst_commands",
        ),
        (
            v1::RateLimit {
                burst_bytes: 1,
                ..none
            },
            "limits.read.burst_bytes",
        ),
    ] {
        let request = v1::LimitVolumeRequest {
            id: uuid(1),
            limits: Some(v1::IoLimits {
                read: Some(limit),
                ..v1::IoLimits::default()
            }),
            mutation: None,
        };
        let status = kit.api.limit_volume(Request::new(request)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(field), "{}", status.message());
    }
}
