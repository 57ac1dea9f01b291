//! S1: end states, their errors, and the lists.

use super::{ShareBackendFixture, Subject, assert_kind, share, share_id, snapshot, snapshot_id};
use crate::conformance::block_on;
use crate::{DriverError, ErrorKind, ShareCapability, ShareSource};

pub(super) fn run(fixture: &mut dyn ShareBackendFixture) {
    repeated_calls_change_nothing(fixture);
    an_id_taken_by_something_else_names_the_differences(fixture);
    wrong_arguments_are_refused_and_leave_no_trace(fixture);
    missing_objects_are_not_found(fixture);
    lists_are_ordered_and_counted(fixture);
}

fn repeated_calls_change_nothing(fixture: &mut dyn ShareBackendFixture) {
    let subject = Subject::fresh(fixture);
    let size = subject.least();
    let first = subject.blank(1);
    assert_eq!(
        (first.id, first.size_bytes, first.source),
        (share_id(1), size, ShareSource::Blank),
        "S1: what create answers"
    );
    let again = subject
        .create(1, size, ShareSource::Blank)
        .expect("S1: create again");
    assert!(!again.is_changed(), "S1: create again is Unchanged");
    assert_eq!(again.into_inner(), first, "S1: create again answers the existing");

    let grown = size + 16 * subject.step();
    assert!(
        subject.resize(1, grown).expect("resize").is_changed(),
        "S1: resize"
    );
    let again = subject.resize(1, grown).expect("S1: resize again");
    assert!(!again.is_changed(), "S1: resize to the present size is Unchanged");
    assert_eq!(again.into_inner().size_bytes, grown, "S1: the new size");

    let taken = subject.snapshots(&[(1, 1)]).expect("snapshot");
    assert!(taken.is_changed(), "S1: snapshot");
    let again = subject.snapshots(&[(1, 1)]).expect("S1: snapshot again");
    assert!(!again.is_changed(), "S1: snapshot again is Unchanged");
    assert_eq!(
        again.into_inner(),
        taken.into_inner(),
        "S1: snapshot again answers the existing"
    );

    let source = ShareSource::Snapshot(snapshot_id(1));
    let made = subject.create(2, grown, source).expect("S1: clone");
    assert!(made.is_changed(), "S1: clone");
    let again = subject.create(2, grown, source).expect("S1: clone again");
    assert!(!again.is_changed(), "S1: clone again is Unchanged");
    subject.revert(1, 1).expect("S1: revert");
    subject.revert(1, 1).expect("S1: revert again");

    for version in [snapshot(1), share(1)] {
        let deleted = subject.delete(version).expect("delete");
        assert!(deleted.is_changed(), "S1: delete of {version}");
        let again = subject.delete(version).expect("S1: delete again");
        assert!(
            !again.is_changed(),
            "S1: delete of a missing {version} is Unchanged"
        );
    }
    let again = subject.create(2, grown, source).expect("S1: remembered");
    assert!(!again.is_changed(), "S1: clone again, source gone, is Unchanged");
    subject.blank(1);
}

#[track_caller]
fn assert_differs<T: std::fmt::Debug>(result: Result<T, DriverError>, field: &str) {
    match result {
        Err(DriverError::AlreadyExists { differences, .. }) => assert!(
            differences.iter().any(|one| one.field == field),
            "S1: the differences name {field}: {differences:?}"
        ),
        other => panic!("S1: expected AlreadyExists naming {field}, found {other:?}"),
    }
}

fn an_id_taken_by_something_else_names_the_differences(fixture: &mut dyn ShareBackendFixture) {
    let subject = Subject::fresh(fixture);
    let size = subject.least();
    let first = subject.blank(1);
    subject.blank(2);
    subject.snapshot(1, 1);
    let larger = size + subject.step();
    assert_differs(subject.create(1, larger, ShareSource::Blank), "size_bytes");
    let source = ShareSource::Snapshot(snapshot_id(1));
    assert_differs(subject.create(1, size, source), "source");
    assert_differs(subject.snapshots(&[(1, 2)]), "share");
    assert_kind(
        "S1: a group of which one member exists",
        subject.snapshots(&[(1, 1), (2, 2)]),
        ErrorKind::AlreadyExists,
    );
    assert_kind(
        "S4: all of a group or none",
        block_on(subject.backend.snapshot(snapshot_id(2))),
        ErrorKind::NotFound,
    );
    let now = block_on(subject.backend.share(share_id(1))).expect("share");
    assert_eq!(now, first, "S1: a refused create changes nothing");
}

fn wrong_arguments_are_refused_and_leave_no_trace(fixture: &mut dyn ShareBackendFixture) {
    let subject = Subject::fresh(fixture);
    let capabilities = subject.backend.capabilities();
    let (least, most, step) = (
        capabilities.min_share_bytes,
        capabilities.max_share_bytes,
        capabilities.size_granularity_bytes,
    );
    assert!(
        step.is_power_of_two() && least.is_multiple_of(step),
        "{capabilities:?}"
    );
    let invalid = ErrorKind::InvalidArgument;
    for size in [0, 1, least - step, least + step / 2, most + step, u64::MAX] {
        let created = subject.create(1, size, ShareSource::Blank);
        assert_kind(&format!("create of {size} bytes"), created, invalid);
    }
    assert_eq!(subject.status().share_count, 0, "refused creates leave no trace");

    let created = subject.create(1, least + 16 * step, ShareSource::Blank);
    created.expect("create");
    subject.blank(2);
    subject.snapshot(1, 1);
    for source in [
        ShareSource::Snapshot(snapshot_id(1)),
        ShareSource::Share(share_id(1)),
    ] {
        let what = format!("a clone smaller than its {source}");
        assert_kind(&what, subject.create(3, least, source), invalid);
    }
    assert_kind("resize to zero", subject.resize(1, 0), invalid);
    assert_kind(
        "resize to an odd size",
        subject.resize(1, least + 17 * step + 1),
        invalid,
    );
    assert_kind("resize beyond the limit", subject.resize(1, u64::MAX), invalid);
    if !capabilities.has(ShareCapability::Shrink) {
        assert_kind("shrink", subject.resize(1, least), ErrorKind::Unsupported);
    }
    assert_kind(
        "revert to another share's snapshot",
        subject.revert(2, 1),
        invalid,
    );
    assert_kind("a group without members", subject.snapshots(&[]), invalid);
    assert_kind(
        "a group naming a share twice",
        subject.snapshots(&[(5, 1), (6, 1)]),
        invalid,
    );
    assert_kind(
        "a group naming an id twice",
        subject.snapshots(&[(5, 1), (5, 2)]),
        invalid,
    );
    let status = subject.status();
    assert_eq!(
        (
            status.share_count,
            status.snapshot_count,
            status.provisioned_bytes
        ),
        (2, 1, 2 * least + 16 * step),
        "refused calls leave no trace"
    );
}

fn missing_objects_are_not_found(fixture: &mut dyn ShareBackendFixture) {
    let subject = Subject::fresh(fixture);
    let size = subject.least();
    subject.blank(1);
    subject.snapshot(1, 1);
    let missing = ErrorKind::NotFound;
    assert_kind("share", block_on(subject.backend.share(share_id(9))), missing);
    assert_kind(
        "snapshot",
        block_on(subject.backend.snapshot(snapshot_id(9))),
        missing,
    );
    assert_kind("resize", subject.resize(9, size), missing);
    assert_kind("revert of a missing share", subject.revert(9, 1), missing);
    assert_kind("revert to a missing snapshot", subject.revert(1, 9), missing);
    assert_kind(
        "snapshot of a missing share",
        subject.snapshots(&[(9, 9)]),
        missing,
    );
    let group = subject.snapshots(&[(8, 1), (9, 9)]);
    assert_kind("a group with a missing share", group, missing);
    assert_eq!(subject.status().snapshot_count, 1, "S4: all of a group or none");
    for source in [
        ShareSource::Snapshot(snapshot_id(9)),
        ShareSource::Share(share_id(9)),
    ] {
        let created = subject.create(2, size, source);
        assert_kind("clone of a missing source", created, missing);
    }
    for version in [share(9), snapshot(9)] {
        assert_kind("mount", block_on(subject.backend.mount(version)), missing);
        assert_kind("usage", block_on(subject.backend.usage(version)), missing);
        let unmounted = block_on(subject.backend.unmount(version)).expect("S7: unmount of the unknown");
        assert!(!unmounted.is_changed(), "S7: what is not there is not mounted");
    }
}

fn lists_are_ordered_and_counted(fixture: &mut dyn ShareBackendFixture) {
    let subject = Subject::fresh(fixture);
    for number in [5, 1, 3] {
        subject.blank(number);
        subject.snapshot(100 - number, number);
    }
    let shares = block_on(subject.backend.shares()).expect("shares");
    let snapshots = block_on(subject.backend.snapshots()).expect("snapshots");
    assert!(shares.is_sorted_by_key(|one| one.id), "shares: ordered by id");
    assert!(
        snapshots.is_sorted_by_key(|one| one.id),
        "snapshots: ordered by id"
    );
    assert_eq!((shares.len(), snapshots.len()), (3, 3), "lists: complete");
    for one in &shares {
        let alone = block_on(subject.backend.share(one.id)).expect("share");
        assert_eq!(&alone, one, "shares: the list says what the object says");
    }
    for one in &snapshots {
        let alone = block_on(subject.backend.snapshot(one.id)).expect("snapshot");
        assert_eq!(&alone, one, "snapshots: the list says what the object says");
    }
    let status = subject.status();
    assert_eq!(
        (status.share_count, status.snapshot_count),
        (3, 3),
        "status: counts"
    );
    assert_eq!(
        status.provisioned_bytes,
        3 * subject.least(),
        "status: provisioned_bytes"
    );
    assert!(status.free_bytes <= status.total_bytes, "status: {status:?}");
}
