//! The power goes at every write and sync of the catalog during every call: after the next start the call has
//! happened or not, nothing is in between, and repeating it leads to the same end.

use std::pin::Pin;

use quarry_proto::v1;
use quarry_proto::v1::AccessMode::{ReadOnly, ReadWrite};
use quarry_proto::v1::attachments_server::Attachments as _;
use quarry_proto::v1::operations_server::Operations as _;
use quarry_proto::v1::snapshots_server::Snapshots as _;
use quarry_proto::v1::volume_source::Source;
use quarry_proto::v1::volumes_server::Volumes as _;
use tonic::{Request, Status};

use super::kit::*;
use crate::catalog::power_cut::CutDisk;

type Call = for<'a> fn(&'a Kit) -> Pin<Box<dyn Future<Output = Result<(), Status>> + 'a>>;

macro_rules! call {
    ($kit:ident => $body:expr) => {
        |$kit| Box::pin(async move { $body.await.map(|_| ()) })
    };
}

const CALLS: [(&str, Call); 14] = [
    ("create", call!(kit => kit.try_create(new_volume(50, 8)))),
    (
        "create from a snapshot",
        call!(kit => kit.try_create(clone_of(50, Source::SnapshotId(uuid(10))))),
    ),
    (
        "create from a volume",
        call!(kit => kit.try_create(clone_of(50, Source::VolumeId(uuid(1))))),
    ),
    ("extend", call!(kit => kit.extend(1, 65))),
    ("revert", call!(kit => kit.revert(2, 20))),
    ("delete", call!(kit => kit.delete(3, false))),
    ("delete with cascade", call!(kit => kit.delete(2, true))),
    ("snapshot a group", call!(kit => kit.group(&[(51, 1), (52, 2)]))),
    ("delete a snapshot", call!(kit => kit.delete_snapshot(10))),
    ("attach", call!(kit => kit.attach(50, 3, HOST_A, ReadWrite))),
    (
        "attach another host",
        call!(kit => kit.attach(50, 1, HOST_B, ReadOnly)),
    ),
    ("detach one of two of a host", call!(kit => kit.detach(31))),
    ("detach the last of a host", call!(kit => kit.detach(30))),
    ("fence a host", call!(kit => kit.fence(30))),
];

async fn prepared(disk: CutDisk) -> Kit {
    let kit = Kit::on_disk(disk).await;
    for id in 1..=3 {
        kit.create(id, 64).await;
    }
    kit.snap(10, 1).await.unwrap();
    kit.snap(20, 2).await.unwrap();
    kit.snap(21, 2).await.unwrap();
    kit.write(2).await;
    kit.attach(30, 1, HOST_A, ReadOnly).await.unwrap();
    kit.attach(31, 1, HOST_A, ReadWrite).await.unwrap();
    kit
}

/// Everything that a caller can see, without times and secrets. What is mapped shows the contents.
async fn seen(kit: &Kit) -> Vec<String> {
    let volumes = kit
        .api
        .list_volumes(Request::new(v1::ListVolumesRequest::default()))
        .await
        .unwrap();
    let snapshots = kit
        .api
        .list_snapshots(Request::new(v1::ListSnapshotsRequest::default()))
        .await
        .unwrap();
    let attachments = v1::ListAttachmentsRequest::default();
    let attachments = kit.api.list_attachments(Request::new(attachments)).await.unwrap();
    let mut lines = Vec::new();
    for v in volumes.into_inner().volumes {
        lines.push(format!(
            "volume {} {} {:?} {} {:?} mapped {} generation {}",
            v.id, v.size_bytes, v.source, v.snapshot_count, v.attachment_ids, v.mapped_bytes, v.generation
        ));
    }
    for s in snapshots.into_inner().snapshots {
        lines.push(format!(
            "snapshot {} {} {} generation {}",
            s.id, s.volume_id, s.size_bytes, s.generation
        ));
    }
    for a in attachments.into_inner().attachments {
        lines.push(format!(
            "attachment {} {} {:?} {:?} {:?}",
            a.id, a.volume_id, a.connector, a.mode, a.state
        ));
    }
    for volume in 1..=3 {
        lines.push(format!("export {volume} {:?}", kit.target.access(volume)));
    }
    lines
}

/// The same without generations: repeating a revert whose first run is not known counts twice.
fn without_generations(lines: &[String]) -> Vec<String> {
    lines
        .iter()
        .map(|line| line.split(" generation ").next().unwrap_or_default().to_owned())
        .collect()
}

async fn open_operations(kit: &Kit) -> usize {
    let state = v1::OperationState::Running.into();
    let request = v1::ListOperationsRequest {
        state,
        page_size: 1000,
        ..Default::default()
    };
    kit.api
        .list_operations(Request::new(request))
        .await
        .unwrap()
        .into_inner()
        .operations
        .len()
}

#[tokio::test]
async fn every_call_cut_at_every_write_of_the_catalog_is_done_or_not_and_can_be_repeated() {
    let mut cuts = 0;
    for (name, call) in CALLS {
        let kit = prepared(CutDisk::new(0)).await;
        let before = seen(&kit).await;
        call(&kit).await.unwrap();
        let after = seen(&kit).await;
        assert_ne!(before, after, "{name}");

        for cut in 0.. {
            let disk = CutDisk::new(cut);
            let kit = prepared(disk.clone()).await;
            let info = kit.info(31).await.unwrap();
            disk.cut_after(cut);
            let answered = call(&kit).await;
            if !disk.is_off() {
                answered.unwrap();
                break;
            }
            cuts += 1;
            let kit = kit.restart().await;
            let found = seen(&kit).await;
            assert!(
                found == before || found == after,
                "{name}, cut {cut}: {found:#?} is neither\n{before:#?}\nnor\n{after:#?}"
            );
            if answered.is_ok() {
                assert_eq!(found, after, "{name}, cut {cut}: it was answered and is lost");
            }
            assert_eq!(open_operations(&kit).await, 0, "{name}, cut {cut}");
            call(&kit)
                .await
                .unwrap_or_else(|status| panic!("{name}, cut {cut}, repeated: {}", status.message()));
            let repeated = without_generations(&seen(&kit).await);
            assert_eq!(
                repeated,
                without_generations(&after),
                "{name}, cut {cut}, repeated"
            );
            if let Ok(again) = kit.info(31).await {
                assert_eq!(
                    again, info,
                    "{name}, cut {cut}: another host's or attachment's credentials"
                );
            }
        }
    }
    assert!(cuts > 200, "only {cuts} cuts");
}

#[tokio::test]
async fn recovery_cut_at_every_write_is_settled_by_the_next_start() {
    for (name, call) in CALLS {
        let kit = prepared(CutDisk::new(0)).await;
        let before = seen(&kit).await;
        call(&kit).await.unwrap();
        let after = seen(&kit).await;
        for cut in 0..40 {
            let disk = CutDisk::new(cut);
            let kit = prepared(disk.clone()).await;
            // In the middle of the call, then in the middle of recovery, twice.
            disk.cut_after(4 + cut / 4);
            let _ = call(&kit).await;
            let kit = kit.restart_with_cuts(&[cut, cut * 3 + 1]).await;
            let found = seen(&kit).await;
            assert!(
                found == before || found == after,
                "{name}, cut {cut}: {found:#?}\n{before:#?}\n{after:#?}"
            );
            assert_eq!(open_operations(&kit).await, 0, "{name}, cut {cut}");
        }
    }
}
