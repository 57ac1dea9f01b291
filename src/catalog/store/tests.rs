use tempfile::TempDir;

use super::*;
use crate::catalog::record::{AccessMode, ChapRecord, Connector, Labels, Request};

fn catalog() -> (TempDir, Catalog) {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(&dir.path().join("catalog.redb")).unwrap();
    (dir, catalog)
}

fn attachment(volume: u128, initiator: &str) -> AttachmentRecord {
    AttachmentRecord {
        volume: VolumeId(Uuid::from_u128(volume)),
        connector: Connector {
            initiator: initiator.into(),
            host: String::new(),
            ip: String::new(),
            multipath: false,
            enforce_multipath: false,
        },
        mode: AccessMode::ReadWrite,
        chap: ChapRecord::from(&quarry_contract::ChapCredentials {
            username: "user".into(),
            secret: "hush-hush-hush".to_owned().into(),
        }),
        target_chap: None,
        logical_block_bytes: 512,
        physical_block_bytes: 4096,
        discard: true,
        labels: Labels::new(),
        generation: 1,
        created: Moment(1),
    }
}

fn operation(request_id: Option<&str>, progress: Progress, at: u64) -> OperationRecord {
    let ended = (progress != Progress::Running).then_some(Moment(at));
    OperationRecord {
        request: Request::DeleteVolume {
            id: VolumeId(Uuid::from_u128(1)),
            cascade: false,
        },
        request_id: request_id.map(str::to_owned),
        progress,
        created: Moment(at),
        ended,
        recovered: false,
    }
}

#[tokio::test]
async fn everything_written_is_there_after_a_reopen() {
    let (dir, catalog) = catalog();
    let volume = VolumeId(Uuid::from_u128(7));
    let snapshot = SnapshotId(Uuid::from_u128(8));
    let id = AttachmentId(Uuid::from_u128(9));
    let record = ObjectRecord::created_now(Labels::from([("a".into(), "b".into())]));
    let changes = vec![
        Change::PutVolume(volume, record.clone()),
        Change::PutSnapshot(snapshot, record.clone()),
        Change::PutAttachment(id, attachment(7, "iqn.2026-11.io.x:a")),
    ];
    catalog.commit(changes).await.unwrap();
    let node = catalog.node();
    drop(catalog);

    let catalog = Catalog::open(&dir.path().join("catalog.redb")).unwrap();
    assert_eq!(catalog.node(), node);
    assert_eq!(catalog.volume(volume).unwrap(), Some(record.clone()));
    assert_eq!(catalog.snapshot(snapshot).unwrap(), Some(record));
    assert_eq!(
        catalog.attachment(id).unwrap(),
        Some(attachment(7, "iqn.2026-11.io.x:a"))
    );
}

#[tokio::test]
async fn a_volume_that_was_attached_is_remembered_for_ever() {
    let (dir, catalog) = catalog();
    let [seen, other] = [7, 8].map(|id| VolumeId(Uuid::from_u128(id)));
    let id = AttachmentId(Uuid::from_u128(9));
    let attach = Change::PutAttachment(id, attachment(7, "iqn.2026-11.io.x:a"));
    catalog.commit(vec![attach.clone()]).await.unwrap();
    let removed = vec![Change::RemoveAttachment(id), Change::RemoveVolume(seen)];
    catalog.commit(removed.clone()).await.unwrap();
    let path = dir.path().join("catalog.redb");
    drop(catalog);
    let catalog = Catalog::open(&path).unwrap();
    assert!(catalog.was_attached(seen).unwrap());
    assert!(!catalog.was_attached(other).unwrap());
    assert_eq!(catalog.ever_attached().unwrap(), [seen]);

    // A catalog of a version that did not note it: what is attached when it is opened has been.
    catalog.commit(vec![attach]).await.unwrap();
    let write = catalog.database.begin_write().unwrap();
    write.delete_table(ATTACHED_ONCE).unwrap();
    write.commit().unwrap();
    drop(catalog);
    let catalog = Catalog::open(&path).unwrap();
    catalog.commit(removed).await.unwrap();
    assert!(catalog.was_attached(seen).unwrap());
}

#[tokio::test]
async fn attachments_are_found_by_volume_until_they_are_removed() {
    let (_dir, catalog) = catalog();
    let put = |id: u128, volume| {
        Change::PutAttachment(
            AttachmentId(Uuid::from_u128(id)),
            attachment(volume, "iqn.2026-11.io.x"),
        )
    };
    catalog
        .commit(vec![put(1, 10), put(2, 10), put(3, 11)])
        .await
        .unwrap();
    let of = |volume: u128| -> Vec<u128> {
        let found = catalog.attachments_of(VolumeId(Uuid::from_u128(volume))).unwrap();
        found.iter().map(|(id, _)| id.0.as_u128()).collect()
    };
    assert_eq!((of(10), of(11), of(12)), (vec![1, 2], vec![3], vec![]));
    let remove = Change::RemoveAttachment(AttachmentId(Uuid::from_u128(1)));
    catalog.commit(vec![remove.clone(), remove]).await.unwrap();
    assert_eq!(of(10), vec![2]);
}

#[tokio::test]
async fn attachments_are_paged_in_order_of_id() {
    let (_dir, catalog) = catalog();
    let put = |id: u128| {
        let name = if id.is_multiple_of(2) {
            "iqn.2026-11.io.even"
        } else {
            "iqn.2026-11.io.odd"
        };
        Change::PutAttachment(AttachmentId(Uuid::from_u128(id)), attachment(1, name))
    };
    catalog.commit((1..=9).map(put).collect()).await.unwrap();
    let is_even = |record: &AttachmentRecord| record.connector.initiator.ends_with("even");
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = catalog.attachments(after, 2, is_even).unwrap();
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        seen.extend(page.iter().map(|(id, _)| id.0.as_u128()));
    }
    assert_eq!(seen, [2, 4, 6, 8]);
}

#[tokio::test]
async fn open_operations_are_those_that_have_not_ended_and_only_success_answers_a_request_id() {
    let (_dir, catalog) = catalog();
    let id = OperationId(Uuid::now_v7());
    let write = |record| Change::PutOperation(id, record);
    catalog
        .commit(vec![write(operation(Some("r1"), Progress::Running, 5))])
        .await
        .unwrap();
    assert_eq!(catalog.open_operations().unwrap().len(), 1);
    assert_eq!(catalog.request("r1").unwrap(), None);

    let failed = Progress::Failed {
        code: "POOL_FULL".into(),
        message: "full".into(),
    };
    catalog
        .commit(vec![write(operation(Some("r1"), failed, 5))])
        .await
        .unwrap();
    assert_eq!(catalog.open_operations().unwrap(), vec![]);
    assert_eq!(catalog.request("r1").unwrap(), None);

    let done = operation(
        Some("r1"),
        Progress::Succeeded {
            answer: serde_json::json!(null),
        },
        5,
    );
    catalog.commit(vec![write(done.clone())]).await.unwrap();
    assert_eq!(catalog.request("r1").unwrap(), Some((id, done)));
}

#[tokio::test]
async fn operations_are_forgotten_a_day_after_their_end_and_never_while_open() {
    let (_dir, catalog) = catalog();
    let now = Moment::now();
    let ids: Vec<OperationId> = (0..3).map(|_| OperationId(Uuid::now_v7())).collect();
    let ended = || Progress::Succeeded {
        answer: serde_json::json!(null),
    };
    let changes = vec![
        Change::PutOperation(ids[0], operation(Some("old"), ended(), now.0 - KEPT_MS - 1)),
        Change::PutOperation(ids[1], operation(None, Progress::Running, now.0 - KEPT_MS - 1)),
        Change::PutOperation(ids[2], operation(Some("new"), ended(), now.0 - 1)),
    ];
    catalog.commit(changes).await.unwrap();
    assert_eq!(catalog.forget_old_operations(now).await.unwrap(), 1);
    let left: Vec<OperationId> = catalog
        .operations(None, 10, |_| true)
        .unwrap()
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    assert_eq!(left, ids[1..]);
    assert!(catalog.request("old").unwrap().is_none());
    assert!(catalog.request("new").unwrap().is_some());
}

#[test]
fn second_open_is_refused_as_in_use() {
    let (dir, _catalog) = catalog();
    let second = Catalog::open(&dir.path().join("catalog.redb"));
    assert!(
        matches!(second, Err(CatalogError::InUse { .. })),
        "{:?}",
        second.err()
    );
}

#[test]
fn foreign_file_and_newer_format_are_refused_with_the_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.redb");
    fs::write(&path, vec![7; 8192]).unwrap();
    let foreign = Catalog::open(&path).err().unwrap();
    assert!(matches!(foreign, CatalogError::Damaged { .. }), "{foreign:?}");
    assert!(foreign.to_string().contains("put back a copy"), "{foreign}");

    fs::remove_file(&path).unwrap();
    drop(Catalog::open(&path).unwrap());
    let database = Database::open(&path).unwrap();
    let write = database.begin_write().unwrap();
    write
        .open_table(META)
        .unwrap()
        .insert("format", 2u64.to_le_bytes().as_slice())
        .unwrap();
    write.commit().unwrap();
    drop(database);
    let newer = Catalog::open(&path).err().unwrap();
    assert!(newer.to_string().contains("run the newer agent"), "{newer}");
}

#[test]
fn record_of_a_newer_version_is_refused() {
    let text = br#"{"version": 2, "record": {"unknown": true}}"#;
    let error = decode::<ObjectRecord>(|| "volume x".into(), text).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the catalog's record of volume x is damaged: version 2 is newer than 1"
    );
}

#[test]
fn catalog_is_readable_by_its_owner_only_and_secrets_are_not_in_debug_output() {
    let (dir, _catalog) = catalog();
    let mode = fs::metadata(dir.path().join("catalog.redb"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!format!("{:?}", attachment(1, "iqn.2026-11.io.x")).contains("hush"));
}
