//! Encrypted volumes: the key comes with the call, is compared and never shown.

use quarry_proto::v1;
use quarry_proto::v1::AccessMode::ReadWrite;
use quarry_proto::v1::Encryption;
use quarry_proto::v1::volumes_server::Volumes as _;
use tonic::{Code, Request, Status};

use super::kit::*;

fn key(number: u8) -> Option<v1::VolumeKey> {
    Some(v1::VolumeKey {
        key: vec![number; 32],
    })
}

fn request(id: u128, key: Option<v1::VolumeKey>) -> v1::CreateVolumeRequest {
    v1::CreateVolumeRequest {
        id: uuid(id),
        size_bytes: 64 * MIB,
        key,
        ..Default::default()
    }
}

async fn unlock(kit: &Kit, id: u128, key: Option<v1::VolumeKey>) -> Result<v1::Volume, Status> {
    let request = v1::UnlockVolumeRequest { id: uuid(id), key };
    kit.api
        .unlock_volume(Request::new(request))
        .await
        .map(tonic::Response::into_inner)
}

async fn lock(kit: &Kit, id: u128) -> Result<v1::Volume, Status> {
    let request = v1::LockVolumeRequest { id: uuid(id) };
    kit.api
        .lock_volume(Request::new(request))
        .await
        .map(tonic::Response::into_inner)
}

async fn change(kit: &Kit, id: u128, from: u8, to: u8) -> Result<v1::Volume, Status> {
    let request = v1::ChangeVolumeKeyRequest {
        id: uuid(id),
        key: key(from),
        new_key: key(to),
    };
    kit.api
        .change_volume_key(Request::new(request))
        .await
        .map(tonic::Response::into_inner)
}

#[tokio::test]
async fn an_encrypted_volume_is_created_again_only_with_its_key() {
    let kit = Kit::new().await;
    let made = kit.try_create(request(1, key(1))).await.unwrap();
    assert_eq!(made.encryption(), Encryption::Unlocked);
    assert_eq!(kit.try_create(request(1, key(1))).await.unwrap(), made);
    for other in [request(1, key(2)), request(1, None)] {
        assert_eq!(
            refused(kit.try_create(other).await),
            (Code::AlreadyExists, "SPEC_MISMATCH".into())
        );
    }
    let plain = kit.create(2, 64).await;
    assert_eq!(plain.encryption(), Encryption::None);
    assert_eq!(
        refused(kit.try_create(request(2, key(1))).await),
        (Code::AlreadyExists, "SPEC_MISMATCH".into())
    );
    for wrong in [vec![], vec![1; 31], vec![1; 64]] {
        let wrong = Some(v1::VolumeKey { key: wrong });
        assert_eq!(
            refused(kit.try_create(request(3, wrong)).await),
            (Code::InvalidArgument, "INVALID_FIELD".into())
        );
    }
    assert_eq!(refused(kit.volume(3).await).0, Code::NotFound);
}

#[tokio::test]
async fn what_is_made_of_an_encrypted_volume_has_its_key() {
    let kit = Kit::new().await;
    kit.try_create(request(1, key(1))).await.unwrap();
    kit.snap(10, 1).await.unwrap();
    let clone = |key| v1::CreateVolumeRequest {
        source: Some(v1::VolumeSource {
            source: Some(v1::volume_source::Source::SnapshotId(uuid(10))),
        }),
        ..request(2, key)
    };
    assert_eq!(
        refused(kit.try_create(clone(key(1))).await),
        (Code::InvalidArgument, "INVALID_FIELD".into())
    );
    let made = kit.try_create(clone(None)).await.unwrap();
    assert_eq!(made.encryption(), Encryption::Unlocked);
    assert_eq!(kit.try_create(clone(None)).await.unwrap(), made, "again");
    assert_eq!(lock(&kit, 2).await.unwrap().encryption(), Encryption::Locked);
    assert_eq!(
        kit.volume(1).await.unwrap().encryption(),
        Encryption::Locked,
        "one family"
    );
    assert_eq!(
        unlock(&kit, 1, key(1)).await.unwrap().encryption(),
        Encryption::Unlocked
    );
}

#[tokio::test]
async fn a_locked_volume_is_not_attached_and_an_attached_one_not_locked() {
    let kit = Kit::new().await;
    kit.try_create(request(1, key(1))).await.unwrap();
    lock(&kit, 1).await.unwrap();
    let locked = (Code::FailedPrecondition, "VOLUME_LOCKED".into());
    assert_eq!(refused(kit.attach(30, 1, HOST_A, ReadWrite).await), locked);
    let wrong = (Code::PermissionDenied, "WRONG_KEY".into());
    assert_eq!(refused(unlock(&kit, 1, key(2)).await), wrong);
    assert_eq!(refused(unlock(&kit, 1, None).await).0, Code::InvalidArgument);
    assert_eq!(kit.volume(1).await.unwrap().encryption(), Encryption::Locked);
    unlock(&kit, 1, key(1)).await.unwrap();
    kit.attach(30, 1, HOST_A, ReadWrite).await.unwrap();
    assert_eq!(
        refused(lock(&kit, 1).await),
        (Code::FailedPrecondition, "IN_USE".into())
    );
    assert_eq!(refused(change(&kit, 1, 2, 3).await), wrong);
    change(&kit, 1, 1, 3).await.unwrap();
    change(&kit, 1, 1, 3).await.unwrap();
    assert_eq!(refused(unlock(&kit, 1, key(1)).await), wrong);
    unlock(&kit, 1, key(3)).await.unwrap();

    kit.create(2, 64).await;
    let plain = (Code::InvalidArgument, "INVALID_FIELD".into());
    assert_eq!(refused(unlock(&kit, 2, key(1)).await), plain);
    assert_eq!(refused(lock(&kit, 2).await), plain);
    assert_eq!(refused(change(&kit, 2, 1, 2).await), plain);
    assert_eq!(refused(unlock(&kit, 9, key(1)).await).0, Code::NotFound);
}

#[tokio::test]
async fn a_request_id_that_comes_again_with_a_key_and_without_is_another_request() {
    let kit = Kit::new().await;
    let named = |key| v1::CreateVolumeRequest {
        mutation: Some(v1::Mutation {
            request_id: "one".into(),
            ..Default::default()
        }),
        ..request(1, key)
    };
    let made = kit.try_create(named(key(1))).await.unwrap();
    assert_eq!(kit.try_create(named(key(1))).await.unwrap(), made);
    assert_eq!(
        refused(kit.try_create(named(None)).await),
        (Code::InvalidArgument, "REQUEST_ID_REUSED".into())
    );
}

#[test]
fn no_request_shows_the_key_that_it_carries() {
    let change = v1::ChangeVolumeKeyRequest {
        id: uuid(1),
        key: key(0xab),
        new_key: key(0xcd),
    };
    for shown in [format!("{change:?}"), format!("{:#?}", request(1, key(0xab)))] {
        for sign in ["171", "205", "abab", "cdcd"] {
            let without_id = shown.replace(&uuid(1), "");
            assert!(!without_id.contains(sign), "{shown}");
        }
    }
}
