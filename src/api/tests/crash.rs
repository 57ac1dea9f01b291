//! The process dies in the middle of a call: before the driver's effect or after it, the intent open. The start
//! finishes or undoes it, and the repeated call finds one of the two states.

use quarry_contract::{
    Absence, DataSource, IoLimits, SnapshotId, SnapshotSpec, Target as _, VolumeId, VolumeSpec,
};
use quarry_proto::v1;
use quarry_proto::v1::AccessMode::ReadWrite;
use quarry_proto::v1::operations_server::Operations as _;
use tonic::{Code, Request};
use uuid::Uuid;

use super::kit::*;
use crate::catalog::Change;
use crate::catalog::record::{
    AccessMode, AttachmentId, Connector, Labels, Moment, OperationId, OperationRecord, Progress,
    Request as Call, Source,
};

fn volume(n: u128) -> VolumeId {
    VolumeId(Uuid::from_u128(n))
}

fn snapshot(n: u128) -> SnapshotId {
    SnapshotId(Uuid::from_u128(n))
}

/// Kills the agent with this intent open and starts it again.
async fn die_in(kit: Kit, call: Call) -> Kit {
    let record = OperationRecord {
        request: call,
        request_id: Some("r".into()),
        progress: Progress::Running,
        created: Moment::now(),
        ended: None,
        recovered: false,
    };
    let change = Change::PutOperation(OperationId(Uuid::now_v7()), record);
    let kit = kit.restart_after(vec![change]).await;
    let request = v1::ListOperationsRequest::default();
    let listed = kit
        .api
        .list_operations(Request::new(request))
        .await
        .unwrap()
        .into_inner()
        .operations;
    let last = listed.last().unwrap();
    assert_ne!(
        last.state(),
        v1::OperationState::Running,
        "no intent is open after a start"
    );
    assert!(last.recovered);
    kit
}

fn slow() -> IoLimits {
    let limits = quarry_contract::RateLimits {
        commands: Some(quarry_contract::Rate {
            per_second: std::num::NonZeroU64::MIN,
            burst: 7,
        }),
        bytes: None,
    };
    IoLimits {
        total: limits,
        ..IoLimits::NONE
    }
}

fn create_call() -> Call {
    let labels = Labels::from([("k".into(), "v".into())]);
    Call::CreateVolume {
        id: volume(1),
        pool: None,
        size_bytes: 64 * MIB,
        source: Source::Blank,
        labels,
        limits: slow(),
        encrypted: false,
        checksums: false,
        reserved: false,
    }
}

#[tokio::test]
async fn create_volume_is_finished_with_its_labels_and_limits_or_undone() {
    let kit = die_in(Kit::new().await, create_call()).await;
    assert_eq!(refused(kit.volume(1).await).0, Code::NotFound);
    kit.create(1, 64).await;

    let kit = Kit::new().await;
    let spec = VolumeSpec::new(volume(1), 64 * MIB, DataSource::Blank);
    kit.backend.create_volume(&spec).await.unwrap();
    let kit = die_in(kit, create_call()).await;
    let found = kit.volume(1).await.unwrap();
    assert_eq!((found.labels["k"].as_str(), found.generation), ("v", 1));
    let total = found.limits.unwrap().total.unwrap();
    assert_eq!((total.iops, total.burst_commands), (1, 7));
    assert_eq!(kit.create(1, 64).await, found);
}

#[tokio::test]
async fn extend_is_counted_when_it_has_happened_and_undone_when_not() {
    let call = Call::ExtendVolume {
        id: volume(1),
        size_bytes: 65 * MIB,
    };
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    let kit = die_in(kit, call.clone()).await;
    let found = kit.volume(1).await.unwrap();
    assert_eq!((found.size_bytes, found.generation), (64 * MIB, 1));

    kit.backend.extend_volume(volume(1), 65 * MIB).await.unwrap();
    let kit = die_in(kit, call).await;
    let found = kit.volume(1).await.unwrap();
    assert_eq!((found.size_bytes, found.generation), (65 * MIB, 2));
    assert_eq!(kit.extend(1, 65).await.unwrap(), found);
}

#[tokio::test]
async fn a_reservation_is_counted_when_it_has_happened_and_undone_when_not() {
    let call = Call::ReserveVolume {
        id: volume(1),
        reserved: true,
    };
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    let kit = die_in(kit, call.clone()).await;
    let found = kit.volume(1).await.unwrap();
    assert_eq!((found.reserved, found.generation), (false, 1));

    kit.backend.reserve_volume(volume(1), true).await.unwrap();
    let kit = die_in(kit, call).await;
    let found = kit.volume(1).await.unwrap();
    assert_eq!((found.reserved, found.generation), (true, 2));
}

#[tokio::test]
async fn limits_that_nobody_was_told_of_are_undone_at_the_target_too() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.attach(10, 1, HOST_A, ReadWrite).await.unwrap();
    kit.target.inner.set_limits(volume(1), slow()).await.unwrap();
    let call = Call::LimitVolume {
        id: volume(1),
        limits: slow(),
    };
    let kit = die_in(kit, call).await;
    let found = kit.volume(1).await.unwrap();
    assert_eq!((found.limits, found.generation), (None, 1));
    assert_eq!(kit.target.inner.limits(volume(1)), Some(IoLimits::NONE));
}

#[tokio::test]
async fn revert_is_finished() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.snap(10, 1).await.unwrap();
    let kit = die_in(
        kit,
        Call::RevertVolume {
            id: volume(1),
            snapshot: snapshot(10),
        },
    )
    .await;
    assert_eq!(kit.volume(1).await.unwrap().generation, 2);
    kit.revert(1, 10).await.unwrap();
}

#[tokio::test]
async fn delete_with_cascade_is_finished_wherever_it_stopped() {
    for deleted in 0..=3 {
        let kit = Kit::new().await;
        kit.create(1, 64).await;
        kit.snap(10, 1).await.unwrap();
        kit.snap(11, 1).await.unwrap();
        if deleted > 0 {
            kit.backend.delete_snapshot(snapshot(10)).await.unwrap();
        }
        if deleted > 1 {
            kit.backend.delete_snapshot(snapshot(11)).await.unwrap();
        }
        if deleted > 2 {
            kit.backend.delete_volume(volume(1)).await.unwrap();
        }
        let kit = die_in(
            kit,
            Call::DeleteVolume {
                id: volume(1),
                cascade: true,
            },
        )
        .await;
        assert_eq!(refused(kit.volume(1).await).0, Code::NotFound);
        for id in [10, 11] {
            assert_eq!(refused(kit.snapshot(id).await).0, Code::NotFound);
        }
        kit.delete(1, true).await.unwrap();
        // Nothing of the old volume shows in a new one of that id.
        assert_eq!(kit.create(1, 64).await.generation, 1);
    }
}

#[tokio::test]
async fn snapshots_are_finished_or_undone_and_a_delete_is_finished() {
    let members = vec![(snapshot(10), volume(1)), (snapshot(11), volume(2))];
    let call = Call::CreateSnapshots {
        members,
        labels: Labels::from([("k".into(), "v".into())]),
    };
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.create(2, 64).await;
    let kit = die_in(kit, call.clone()).await;
    assert_eq!(refused(kit.snapshot(10).await).0, Code::NotFound);

    let group = [(10, 1), (11, 2)].map(|(id, of)| SnapshotSpec {
        id: snapshot(id),
        volume: volume(of),
    });
    kit.backend.create_snapshots(&group).await.unwrap();
    let kit = die_in(kit, call).await;
    for id in [10, 11] {
        assert_eq!(kit.snapshot(id).await.unwrap().labels["k"], "v");
    }
    kit.group(&[(10, 1), (11, 2)]).await.unwrap();

    let kit = die_in(kit, Call::DeleteSnapshot { id: snapshot(10) }).await;
    assert_eq!(refused(kit.snapshot(10).await).0, Code::NotFound);
    kit.backend.delete_snapshot(snapshot(11)).await.unwrap();
    let kit = die_in(kit, Call::DeleteSnapshot { id: snapshot(11) }).await;
    kit.delete_snapshot(11).await.unwrap();
}

#[tokio::test]
async fn attach_is_undone_and_detach_is_finished_and_other_hosts_stay() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.attach(30, 1, HOST_A, ReadWrite).await.unwrap();
    let info = kit.info(30).await.unwrap();
    let connector = Connector {
        initiator: HOST_B.into(),
        host: String::new(),
        ip: String::new(),
        multipath: false,
        enforce_multipath: false,
    };
    let call = Call::CreateAttachment {
        id: AttachmentId(Uuid::from_u128(31)),
        volume: volume(1),
        connector,
        mode: AccessMode::ReadWrite,
        labels: Labels::new(),
    };
    let kit = die_in(kit, call).await;
    assert_eq!(refused(kit.attachment(31).await).0, Code::NotFound);
    assert_eq!(kit.target.access(1), [(HOST_A.to_owned(), true)].into());
    assert_eq!(kit.info(30).await.unwrap(), info);

    kit.attach(31, 1, HOST_B, ReadWrite).await.unwrap();
    let kit = die_in(
        kit,
        Call::DeleteAttachment {
            id: AttachmentId(Uuid::from_u128(31)),
            force: false,
        },
    )
    .await;
    assert_eq!(refused(kit.attachment(31).await).0, Code::NotFound);
    assert_eq!(kit.target.access(1), [(HOST_A.to_owned(), true)].into());
    assert_eq!(kit.info(30).await.unwrap(), info);

    // The last host, with all it has: nothing is exported, and the volume can be deleted.
    kit.attach(32, 1, HOST_A, ReadWrite).await.unwrap();
    let kit = die_in(
        kit,
        Call::DeleteAttachment {
            id: AttachmentId(Uuid::from_u128(30)),
            force: true,
        },
    )
    .await;
    assert_eq!(refused(kit.attachment(32).await).0, Code::NotFound);
    assert!(kit.target.inner.exports().is_empty());
    kit.delete(1, false).await.unwrap();
}

#[tokio::test]
async fn attachment_whose_volume_is_gone_is_degraded_and_can_be_deleted() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.attach(30, 1, HOST_A, ReadWrite).await.unwrap();
    // Behind the agent's back, with the handle closed as a process that dies closes it.
    kit.target.inner.unexport(volume(1)).await.unwrap();
    kit.backend.delete_volume(volume(1)).await.unwrap();
    let kit = kit.restart().await;
    let found = kit.attachment(30).await.unwrap();
    assert_eq!(found.state(), v1::AttachmentState::Degraded);
    assert!(found.state_reason.contains(&uuid(1)), "{}", found.state_reason);
    kit.info(30).await.unwrap();
    // Its host comes again, until it is detached; from then on it is to give up (T9), after another restart too.
    assert_eq!(kit.target.inner.absence(volume(1)), Some(Absence::Unavailable));
    kit.detach(30).await.unwrap();
    assert_eq!(kit.target.inner.absence(volume(1)), Some(Absence::Removed));
    let kit = kit.restart().await;
    assert_eq!(kit.target.inner.absence(volume(1)), Some(Absence::Removed));
}

#[tokio::test]
async fn what_the_target_keeps_of_an_export_comes_back_and_goes_with_the_last_attachment() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.attach(11, 1, HOST_A, ReadWrite).await.unwrap();
    kit.target.inner.keep(volume(1), b"reserved by host-a").unwrap();
    let kit = kit.restart().await;
    assert_eq!(kit.target.inner.kept(volume(1)).unwrap(), b"reserved by host-a");
    kit.target.inner.keep(volume(1), b"").unwrap();
    let kit = kit.restart().await;
    assert_eq!(kit.target.inner.kept(volume(1)).unwrap(), b"");
    kit.target.inner.keep(volume(1), b"again").unwrap();
    kit.detach(11).await.unwrap();
    let kit = kit.restart().await;
    kit.attach(12, 1, HOST_B, ReadWrite).await.unwrap();
    assert_eq!(kit.target.inner.kept(volume(1)).unwrap(), b"");
}
