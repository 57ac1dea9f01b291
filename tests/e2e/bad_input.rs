//! Wrong requests: each is refused with its reason and with a message that names the object, and changes nothing.

use std::collections::HashMap;

use quarry_proto::v1::{
    Connector, CreateAttachmentRequest, CreateSnapshotRequest, CreateVolumeRequest, DeleteVolumeRequest,
    ExtendVolumeRequest, GetVolumeRequest, ListVolumesRequest, RevertVolumeRequest, VolumeSource,
    volume_source,
};
use tonic::Code;
use uuid::Uuid;

use crate::agent_process::AgentProcess;
use crate::command::{self, json, refused};
use crate::grpc::{Api, reason};
use crate::initiator::attach;

const ABSENT: &str = "00000000-0000-4000-8000-00000000dead";

fn create(id: &str, size_bytes: u64) -> CreateVolumeRequest {
    CreateVolumeRequest {
        id: id.to_owned(),
        size_bytes,
        ..CreateVolumeRequest::default()
    }
}

#[tokio::test]
async fn wrong_creates_are_refused_with_reason_and_field() {
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&temporary.path().join("agent"));
    let mut api = Api::connect(&agent).await;
    let id = "00000000-0000-4000-8000-000000000001";
    let from = |source| CreateVolumeRequest {
        source: Some(VolumeSource { source: Some(source) }),
        ..create(id, 1 << 20)
    };
    let labelled = |key: &str, value: &str| CreateVolumeRequest {
        labels: HashMap::from([(key.to_owned(), value.to_owned())]),
        ..create(id, 1 << 20)
    };
    let wrong = [
        (create("", 1 << 20), Code::InvalidArgument, "INVALID_FIELD", "id"),
        (
            create("7", 1 << 20),
            Code::InvalidArgument,
            "INVALID_FIELD",
            "UUID",
        ),
        (
            create("00000000-0000-4000-8000-00000000000g", 1 << 20),
            Code::InvalidArgument,
            "INVALID_FIELD",
            "UUID",
        ),
        (
            create("../../etc/passwd", 1 << 20),
            Code::InvalidArgument,
            "INVALID_FIELD",
            "UUID",
        ),
        (
            create(id, 0),
            Code::InvalidArgument,
            "SIZE_UNALIGNED",
            "size_bytes",
        ),
        (
            create(id, 1),
            Code::InvalidArgument,
            "SIZE_UNALIGNED",
            "size_bytes",
        ),
        (
            create(id, (1 << 20) + 511),
            Code::InvalidArgument,
            "SIZE_UNALIGNED",
            "size_bytes",
        ),
        (create(id, u64::MAX), Code::InvalidArgument, "SIZE_", "size_bytes"),
        (
            create(id, 1 << 63),
            Code::InvalidArgument,
            "SIZE_TOO_LARGE",
            "size_bytes",
        ),
        (
            CreateVolumeRequest {
                pool: "nosuch".into(),
                ..create(id, 1 << 20)
            },
            Code::NotFound,
            "NOT_FOUND",
            "nosuch",
        ),
        (
            from(volume_source::Source::SnapshotId(ABSENT.into())),
            Code::NotFound,
            "NOT_FOUND",
            ABSENT,
        ),
        (
            from(volume_source::Source::VolumeId(ABSENT.into())),
            Code::NotFound,
            "NOT_FOUND",
            ABSENT,
        ),
        (
            from(volume_source::Source::VolumeId("x".into())),
            Code::InvalidArgument,
            "INVALID_FIELD",
            "UUID",
        ),
        (labelled("", "x"), Code::InvalidArgument, "INVALID_FIELD", "label"),
        (
            labelled(&"k".repeat(64), "x"),
            Code::InvalidArgument,
            "INVALID_FIELD",
            "label",
        ),
        (
            labelled("k", &"v".repeat(1025)),
            Code::InvalidArgument,
            "INVALID_FIELD",
            "label",
        ),
    ];
    for (request, code, why, names) in wrong {
        let shown = format!("{request:?}");
        let status = api.volumes.create_volume(request).await.expect_err(&shown);
        assert_eq!(status.code(), code, "{shown}: {status}");
        assert!(
            reason(&status).starts_with(why),
            "{shown}: {} {status}",
            reason(&status)
        );
        assert!(status.message().contains(names), "{shown}: {}", status.message());
    }
    assert_eq!(json(&agent, "volume list"), serde_json::json!([]));
}

#[tokio::test]
async fn wrong_changes_are_refused_and_change_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&temporary.path().join("agent"));
    let mut api = Api::connect(&agent).await;
    let volume = command::volume(&agent, "8MiB").to_string();
    let other = command::volume(&agent, "8MiB").to_string();
    let snapshot = command::snapshot(&agent, other.parse().unwrap()).to_string();
    let before = json(&agent, "volume list");

    let get = GetVolumeRequest { id: ABSENT.into() };
    let status = api.volumes.get_volume(get).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "NOT_FOUND")
    );
    assert!(status.message().contains(ABSENT), "{}", status.message());

    for (id, size_bytes, code, why) in [
        (ABSENT, 1 << 30, Code::NotFound, "NOT_FOUND"),
        (&volume, 4 << 20, Code::InvalidArgument, "SIZE_SHRINK"),
        (&volume, (8 << 20) + 1, Code::InvalidArgument, "SIZE_UNALIGNED"),
        (&volume, 0, Code::InvalidArgument, "SIZE_"),
        (&volume, 1 << 62, Code::InvalidArgument, "SIZE_TOO_LARGE"),
    ] {
        let request = ExtendVolumeRequest {
            id: id.to_owned(),
            size_bytes,
            mutation: None,
        };
        let status = api.volumes.extend_volume(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{id} {size_bytes}: {status}");
        assert!(
            reason(&status).starts_with(why),
            "{id} {size_bytes}: {}",
            reason(&status)
        );
        let said = status.message();
        assert!(said.contains(id) || said.contains("pool default"), "{said}");
    }

    for (id, snapshot_id, code) in [
        (ABSENT, snapshot.as_str(), Code::NotFound),
        (&volume, ABSENT, Code::NotFound),
        (&volume, &snapshot, Code::InvalidArgument),
    ] {
        let request = RevertVolumeRequest {
            id: id.to_owned(),
            snapshot_id: snapshot_id.to_owned(),
            mutation: None,
        };
        let status = api.volumes.revert_volume(request).await.unwrap_err();
        assert_eq!(status.code(), code, "revert {id} to {snapshot_id}: {status}");
    }

    let request = CreateSnapshotRequest {
        id: Uuid::now_v7().to_string(),
        volume_id: ABSENT.into(),
        ..CreateSnapshotRequest::default()
    };
    let status = api.snapshots.create_snapshot(request).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "NOT_FOUND")
    );
    assert!(status.message().contains(ABSENT), "{}", status.message());

    let request = CreateSnapshotRequest {
        id: snapshot.clone(),
        volume_id: volume.clone(),
        ..CreateSnapshotRequest::default()
    };
    let status = api.snapshots.create_snapshot(request).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::AlreadyExists, "SPEC_MISMATCH")
    );

    let status = api
        .volumes
        .create_volume(create(&volume, 16 << 20))
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::AlreadyExists, "SPEC_MISMATCH")
    );
    assert!(status.message().contains("size_bytes"), "{}", status.message());

    let list = ListVolumesRequest {
        page_token: "garbage \u{1F980}".into(),
        ..ListVolumesRequest::default()
    };
    let status = api.volumes.list_volumes(list).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("page_token"), "{}", status.message());

    assert_eq!(json(&agent, "volume list"), before);
}

#[tokio::test]
async fn wrong_attachments_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&temporary.path().join("agent"));
    let mut api = Api::connect(&agent).await;
    let volume = command::volume(&agent, "8MiB").to_string();
    let good = "iqn.2026-11.io.quarry.test:host";
    let long = format!("iqn.2026-11.io:{}", "x".repeat(223));
    for (volume_id, initiator, code, why) in [
        (ABSENT, good, Code::NotFound, "NOT_FOUND"),
        ("x", good, Code::InvalidArgument, "INVALID_FIELD"),
        (&volume, "", Code::InvalidArgument, "CONNECTOR_INCOMPLETE"),
        (&volume, "host1", Code::InvalidArgument, "INVALID_FIELD"),
        (
            &volume,
            "iqn.2026-11.io:a b",
            Code::InvalidArgument,
            "INVALID_FIELD",
        ),
        (
            &volume,
            "iqn.2026-11.io:a\nb",
            Code::InvalidArgument,
            "INVALID_FIELD",
        ),
        (&volume, &long, Code::InvalidArgument, "INVALID_FIELD"),
    ] {
        let request = CreateAttachmentRequest {
            id: Uuid::now_v7().to_string(),
            volume_id: volume_id.to_owned(),
            connector: Some(Connector {
                initiator: initiator.to_owned(),
                ..Connector::default()
            }),
            ..CreateAttachmentRequest::default()
        };
        let status = api.attachments.create_attachment(request).await.unwrap_err();
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (code, why),
            "{initiator:?}: {status}"
        );
    }
    assert_eq!(json(&agent, "attachment list"), serde_json::json!([]));
}

#[tokio::test]
async fn an_attached_volume_is_not_deleted_and_the_refusal_names_what_is_in_the_way() {
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&temporary.path().join("agent"));
    let mut api = Api::connect(&agent).await;
    let volume = command::volume(&agent, "8MiB");
    let attached = attach(&agent, volume);
    for cascade in [false, true] {
        let request = DeleteVolumeRequest {
            id: volume.to_string(),
            cascade,
            mutation: None,
        };
        let status = api.volumes.delete_volume(request).await.unwrap_err();
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::FailedPrecondition, "HAS_ATTACHMENTS")
        );
    }
    let said = refused(&agent, &format!("volume delete {volume}"), 1);
    assert!(said.starts_with("error: "), "{said}");
    assert!(
        said.contains(&format!("in the way: attachment {}", attached.id)),
        "{said}"
    );
    assert!(said.contains("next step: "), "{said}");
    attached.qemu_io(&["write 0 1M"]).unwrap();
}

#[test]
fn the_command_line_exits_by_the_kind_of_failure() {
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&temporary.path().join("agent"));
    for (line, code, names) in [
        (format!("volume show {ABSENT}"), 3, ABSENT),
        (format!("snapshot show {ABSENT}"), 3, ABSENT),
        (format!("attachment show {ABSENT}"), 3, ABSENT),
        (format!("operation show {ABSENT}"), 3, ABSENT),
        ("pool show nosuch".to_owned(), 3, "nosuch"),
        ("volume create --size 1MiB --pool nosuch".to_owned(), 3, "nosuch"),
        (format!("snapshot create --volume {ABSENT}"), 3, ABSENT),
        ("volume create --size 1000".to_owned(), 2, "size_bytes"),
        ("volume create --size 1GB".to_owned(), 2, "1GiB"),
        ("volume create --size 0".to_owned(), 2, "size_bytes"),
        ("volume show 7".to_owned(), 2, "UUID"),
        ("volume frobnicate".to_owned(), 2, "frobnicate"),
    ] {
        let said = refused(&agent, &line, code);
        assert!(said.contains(names), "quarry {line}: {said}");
    }
    // What is not there is gone already.
    json(&agent, &format!("volume delete {ABSENT}"));
    json(&agent, &format!("snapshot delete {ABSENT}"));
    json(&agent, &format!("attachment delete {ABSENT}"));
}
