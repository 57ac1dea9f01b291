//! What the volumes of a pool are: their names and tags (docs/formats/share-volumes.md).
//!
//! - L1: a volume is ours when it is in our pool and has the name *and* the tag of one of these. No other is ever changed.
//! - L2: an object is there exactly when it is ours, not tagged [`UNFINISHED`], and its name is the object's. One change of
//!   the group's metadata makes it so, and one ends it.
//! - L3: between the two renames of a revert, the object is there under the name of its successor.

use quarry_contract::{ShareId, ShareSnapshotId, ShareSource, ShareVersion};
use quarry_xfs::objects::{ObjectRecord, member_name, parse_member};
use uuid::Uuid;

use crate::tools::LogicalVolume;

/// The tag of a thin pool that is a pool of shares; its identity follows. The number is the version of the format.
pub(crate) const POOL_TAG: &str = "quarry.pool.1";
/// The tag of what is being made.
pub(crate) const UNFINISHED: &str = "quarry.unfinished";

/// The tag that says what a share was made of.
pub(crate) const SOURCE_TAG: &str = "quarry.source";
/// What every name of ours begins with.
pub(crate) const OUR_PREFIX: &str = "quarry-";

const SHARE_TAG: &str = "quarry.share";
const VIEW_TAG: &str = "quarry.view";

/// What a volume of ours is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A share or a snapshot.
    Object(ShareVersion, ObjectRecord),
    /// A copy of a snapshot that can be mounted.
    View(ShareSnapshotId),
    /// What a share becomes by a revert.
    Successor(ShareId),
    /// What a share was before a revert.
    Predecessor,
}

/// Returns the name of an object's volume.
pub(crate) fn object_name(version: ShareVersion) -> String {
    format!("quarry-{}", member_name(version))
}

pub(crate) fn view_name(id: ShareSnapshotId) -> String {
    format!("quarry-view-{id}")
}

pub(crate) fn successor_name(id: ShareId) -> String {
    format!("quarry-successor-{id}")
}

/// Returns a new name for what a share was before a revert.
pub(crate) fn predecessor_name() -> String {
    format!("quarry-predecessor-{}", Uuid::now_v7())
}

/// Returns the tag that says what an object was made of.
pub(crate) fn record_tag(record: ObjectRecord) -> String {
    match record {
        ObjectRecord::Share { source } => match source {
            ShareSource::Blank => format!("{SOURCE_TAG}=blank"),
            ShareSource::Share(id) => format!("{SOURCE_TAG}=share:{id}"),
            ShareSource::Snapshot(id) => format!("{SOURCE_TAG}=snapshot:{id}"),
        },
        ObjectRecord::Snapshot { share } => format!("{SHARE_TAG}={share}"),
    }
}

/// Returns the tag of a view.
pub(crate) fn view_tag(id: ShareSnapshotId) -> String {
    format!("{VIEW_TAG}={id}")
}

/// Returns the tag of a pool.
pub(crate) fn pool_tag(uuid: Uuid) -> String {
    format!("{POOL_TAG}={uuid}")
}

/// Tells what a volume is; `None` when it is not ours (L1).
pub(crate) fn role_of(volume: &LogicalVolume, pool: &str) -> Option<Role> {
    if volume.pool != pool {
        return None;
    }
    let name = volume.name.strip_prefix(OUR_PREFIX)?;
    if let Some(version) = parse_member(name) {
        return Some(Role::Object(version, record_of(volume, version)?));
    }
    if let Some(id) = name.strip_prefix("view-") {
        return (volume.tag(VIEW_TAG) == Some(id)).then_some(Role::View(id.parse().ok()?));
    }
    let (kind, id) = name.split_once('-')?;
    let id: ShareId = id.parse().ok()?;
    record_of(volume, ShareVersion::Share(id))?;
    match kind {
        "successor" => Some(Role::Successor(id)),
        "predecessor" => Some(Role::Predecessor),
        _ => None,
    }
}

/// Tells whether a volume is being made (L2).
pub(crate) fn is_unfinished(volume: &LogicalVolume) -> bool {
    volume.tags.iter().any(|tag| tag == UNFINISHED)
}

fn record_of(volume: &LogicalVolume, version: ShareVersion) -> Option<ObjectRecord> {
    match version {
        ShareVersion::Share(_) => Some(ObjectRecord::Share {
            source: match volume.tag(SOURCE_TAG)?.split_once(':') {
                None => (volume.tag(SOURCE_TAG)? == "blank").then_some(ShareSource::Blank)?,
                Some(("share", id)) => ShareSource::Share(id.parse().ok()?),
                Some(("snapshot", id)) => ShareSource::Snapshot(id.parse().ok()?),
                Some(_) => return None,
            },
        }),
        ShareVersion::Snapshot(_) => Some(ObjectRecord::Snapshot {
            share: volume.tag(SHARE_TAG)?.parse().ok()?,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, tag: &str) -> LogicalVolume {
        let row = serde_json::json!({
            "lv_name": name, "lv_uuid": "u", "vg_uuid": "g", "lv_size": "1", "lv_layout": "thin,sparse",
            "pool_lv": "pool", "lv_tags": format!("mine,{tag}"), "lv_attr": "Vwi---t--k", "chunk_size": "0",
            "lv_when_full": "", "vg_extent_size": "4194304",
        });
        serde_json::from_value(row).unwrap()
    }

    #[test]
    fn names_and_tags_say_what_a_volume_is() {
        let id = ShareId(Uuid::from_u128(1));
        let snapshot = ShareSnapshotId(Uuid::from_u128(2));
        for source in [
            ShareSource::Blank,
            ShareSource::Share(ShareId(Uuid::from_u128(3))),
            ShareSource::Snapshot(snapshot),
        ] {
            let record = ObjectRecord::Share { source };
            let version = ShareVersion::Share(id);
            let tag = record_tag(record);
            let found = role_of(&volume(&object_name(version), &tag), "pool");
            assert_eq!(found, Some(Role::Object(version, record)));
            let found = role_of(&volume(&successor_name(id), &tag), "pool");
            assert_eq!(found, Some(Role::Successor(id)));
            let found = role_of(&volume(&predecessor_name(), &tag), "pool");
            assert_eq!(found, Some(Role::Predecessor));
        }
        let version = ShareVersion::Snapshot(snapshot);
        let record = ObjectRecord::Snapshot { share: id };
        let found = role_of(&volume(&object_name(version), &record_tag(record)), "pool");
        assert_eq!(found, Some(Role::Object(version, record)));
        let found = role_of(&volume(&view_name(snapshot), &view_tag(snapshot)), "pool");
        assert_eq!(found, Some(Role::View(snapshot)));
    }

    /// L1.
    #[test]
    fn what_has_only_the_name_or_only_the_tag_is_not_ours() {
        let id = ShareId(Uuid::from_u128(1));
        let name = object_name(ShareVersion::Share(id));
        let tag = record_tag(ObjectRecord::Share {
            source: ShareSource::Blank,
        });
        assert_eq!(role_of(&volume(&name, "other"), "pool"), None);
        assert_eq!(role_of(&volume(&name, "quarry.source=else"), "pool"), None);
        assert_eq!(role_of(&volume("home", &tag), "pool"), None);
        assert_eq!(role_of(&volume(&name, &tag), "another"), None);
        assert_eq!(role_of(&volume(&format!("quarry-view-{id}"), &tag), "pool"), None);
    }
}
