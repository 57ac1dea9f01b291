//! `Data.ListExtents`: paging, versions of different pools, and what is wrong in a request.

use quarry_proto::v1;
use quarry_proto::v1::data_server::Data as _;
use quarry_proto::v1::version::Version as Chosen;
use tonic::{Code, Request, Status};

use super::kit::*;

fn version(chosen: Option<Chosen>) -> Option<v1::Version> {
    Some(v1::Version { version: chosen })
}

fn volume(id: u128) -> Option<v1::Version> {
    version(Some(Chosen::VolumeId(uuid(id))))
}

fn snapshot(id: u128) -> Option<v1::Version> {
    version(Some(Chosen::SnapshotId(uuid(id))))
}

async fn list(
    kit: &Kit,
    of: Option<v1::Version>,
    since: Option<v1::Version>,
    page_token: &str,
) -> Result<v1::ListExtentsResponse, Status> {
    let request = v1::ListExtentsRequest {
        of,
        since,
        page_size: 1,
        page_token: page_token.to_owned(),
    };
    Ok(kit.api.list_extents(Request::new(request)).await?.into_inner())
}

#[tokio::test]
async fn extents_are_what_was_written_and_what_has_changed_since() {
    let kit = Kit::new().await;
    kit.create(1, 64).await;
    assert_eq!(list(&kit, volume(1), None, "").await.unwrap().extents, []);
    kit.write(1).await;
    let written = list(&kit, volume(1), None, "").await.unwrap();
    assert_eq!(written.extents.len(), 1);
    assert!(!written.extents[0].zeros && written.extents[0].length_bytes > 0);
    assert_eq!(written.next_page_token, "");
    kit.snap(2, 1).await.unwrap();
    assert_eq!(list(&kit, volume(1), snapshot(2), "").await.unwrap().extents, []);
    assert_eq!(list(&kit, snapshot(2), None, "").await.unwrap(), written);
    // A volume that has nothing differs from one that has by zeros.
    kit.create(3, 64).await;
    let gone = list(&kit, volume(3), volume(1), "").await.unwrap();
    assert!(gone.extents[0].zeros, "{gone:?}");
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let kit = Kit::with_pools(&["a", "b"]).await;
    let in_pool = |id, pool: &str| v1::CreateVolumeRequest {
        pool: pool.to_owned(),
        ..new_volume(id, 1)
    };
    kit.try_create(in_pool(1, "a")).await.unwrap();
    kit.try_create(in_pool(2, "b")).await.unwrap();
    for (of, since, token, code, says) in [
        (None, None, "", Code::InvalidArgument, "of: is missing"),
        (
            version(None),
            None,
            "",
            Code::InvalidArgument,
            "of: is there but empty",
        ),
        (
            volume(1),
            version(None),
            "",
            Code::InvalidArgument,
            "since: is there but empty",
        ),
        (volume(1), volume(2), "", Code::InvalidArgument, "pool b"),
        (volume(1), None, "zz", Code::InvalidArgument, "page_token"),
        (volume(9), None, "", Code::NotFound, &uuid(9)),
        (volume(1), snapshot(9), "", Code::NotFound, &uuid(9)),
    ] {
        let status = list(&kit, of, since, token).await.expect_err(says);
        assert_eq!(status.code(), code, "{status:?}");
        assert!(
            status.message().contains(says),
            "{:?} does not say {says:?}",
            status.message()
        );
    }
}
