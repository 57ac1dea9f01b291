//! A target that fails in the middle: nobody else is touched, and the call can be repeated.

use quarry_proto::v1::AccessMode::{ReadOnly, ReadWrite};
use tonic::Code;

use super::kit::*;

#[tokio::test]
async fn attach_that_fails_leaves_the_first_host_alone_and_succeeds_when_repeated() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.attach(30, 1, HOST_A, ReadWrite).await.unwrap();
    kit.target.fail_at(1);
    let failed = kit.attach(31, 1, HOST_B, ReadWrite).await;
    assert_eq!(refused(failed), (Code::DeadlineExceeded, "TIMEOUT".into()));
    assert_eq!(kit.target.access(1), [(HOST_A.to_owned(), true)].into());
    assert_eq!(refused(kit.attachment(31).await).0, Code::NotFound);
    let calls = kit.target.calls.lock().unwrap().clone();
    assert!(
        !calls
            .iter()
            .any(|call| call.contains("revoke iqn.2026-11.io.example:a")),
        "{calls:?}"
    );
    kit.attach(31, 1, HOST_B, ReadWrite).await.unwrap();
    assert_eq!(kit.target.access(1).len(), 2);
}

#[tokio::test]
async fn first_attach_that_fails_leaves_the_volume_deletable() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.target.fail_at(1);
    assert_eq!(refused(kit.attach(30, 1, HOST_A, ReadWrite).await).1, "TIMEOUT");
    assert!(kit.target.inner.exports().is_empty());
    kit.delete(1, false).await.unwrap();
}

#[tokio::test]
async fn widened_access_that_fails_is_narrowed_again() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.attach(30, 1, HOST_A, ReadOnly).await.unwrap();
    kit.target.fail_at(1);
    assert_eq!(refused(kit.attach(31, 1, HOST_A, ReadWrite).await).1, "TIMEOUT");
    assert_eq!(kit.target.access(1), [(HOST_A.to_owned(), false)].into());
}

#[tokio::test]
async fn detach_that_fails_keeps_the_attachment_and_succeeds_when_repeated() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.attach(30, 1, HOST_A, ReadWrite).await.unwrap();
    kit.attach(31, 1, HOST_B, ReadWrite).await.unwrap();
    for (id, left) in [(30, 1), (31, 0)] {
        kit.target.fail_at(1);
        assert_eq!(refused(kit.detach(id).await).1, "TIMEOUT");
        kit.attachment(id).await.unwrap();
        kit.detach(id).await.unwrap();
        assert_eq!(kit.target.access(1).len(), left);
    }
    kit.delete(1, false).await.unwrap();
}

#[tokio::test]
async fn extend_whose_announcement_fails_announces_when_repeated() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    kit.attach(30, 1, HOST_A, ReadWrite).await.unwrap();
    kit.target.fail_at(1);
    assert_eq!(refused(kit.extend(1, 65).await).1, "TIMEOUT");
    let volume = kit.extend(1, 65).await.unwrap();
    assert_eq!(volume.size_bytes, 65 * MIB);
    let id = quarry_contract::VolumeId(uuid(1).parse().unwrap());
    assert_eq!(kit.target.inner.announced_bytes(id), Some(65 * MIB));
}
