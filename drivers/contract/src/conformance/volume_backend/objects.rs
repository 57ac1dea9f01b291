//! V1: end states, their errors, and the lists.

use super::{BackendFixture, MIB, Subject, snapshot_id, volume_id};
use crate::conformance::block_on;
use crate::{DataSource, DriverError, ErrorKind, OpenMode, Page, VersionId};

pub(super) fn run(fixture: &mut dyn BackendFixture) {
    repeated_calls_change_nothing(fixture);
    an_id_taken_by_something_else_names_the_differences(fixture);
    wrong_arguments_are_refused_and_leave_no_trace(fixture);
    missing_objects_are_not_found(fixture);
    lists_are_ordered_and_counted(fixture);
}

fn repeated_calls_change_nothing(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    let first = subject.blank(1, MIB);
    assert_eq!(
        (first.id, first.size_bytes, first.source),
        (volume_id(1), MIB, DataSource::Blank),
        "V1: what create answers"
    );
    let again = subject
        .create(1, MIB, DataSource::Blank)
        .expect("V1: create again");
    assert!(!again.is_changed(), "V1: create again is Unchanged");
    assert_eq!(again.into_inner(), first, "V1: create again answers the existing");

    assert!(
        subject.extend(1, 2 * MIB).expect("extend").is_changed(),
        "V1: extend"
    );
    let again = subject.extend(1, 2 * MIB).expect("V1: extend again");
    assert!(!again.is_changed(), "V1: extend to the present size is Unchanged");
    assert_eq!(again.into_inner().size_bytes, 2 * MIB, "V1: extended size");

    let taken = subject.snapshots(&[(1, 1)]).expect("snapshot");
    assert!(taken.is_changed(), "V1: snapshot");
    let again = subject.snapshots(&[(1, 1)]).expect("V1: snapshot again");
    assert!(!again.is_changed(), "V1: snapshot again is Unchanged");
    assert_eq!(
        again.into_inner(),
        taken.into_inner(),
        "V1: snapshot again answers the existing"
    );

    subject.clone_of(2, 2 * MIB, DataSource::Snapshot(snapshot_id(1)));
    let again = subject
        .create(2, 2 * MIB, DataSource::Snapshot(snapshot_id(1)))
        .expect("V1: clone again");
    assert!(!again.is_changed(), "V1: clone again is Unchanged");

    assert!(subject.revert(1, 1).is_ok(), "V1: revert");
    assert!(subject.revert(1, 1).is_ok(), "V1: revert again");

    assert!(
        subject.delete_snapshot(1).expect("delete").is_changed(),
        "V1: delete"
    );
    assert!(
        !subject.delete_snapshot(1).expect("V1: delete again").is_changed(),
        "V1: delete of a missing snapshot is Unchanged"
    );
    let again = subject
        .create(2, 2 * MIB, DataSource::Snapshot(snapshot_id(1)))
        .expect("V1: the clone is remembered after its source is gone");
    assert!(!again.is_changed(), "V1: clone again, source gone, is Unchanged");
    assert!(subject.delete(1).expect("delete").is_changed(), "V1: delete");
    assert!(
        !subject.delete(1).expect("V1: delete again").is_changed(),
        "V1: delete of a missing volume is Unchanged"
    );
    assert!(
        !subject
            .delete(77)
            .expect("V1: delete of the unknown")
            .is_changed(),
        "V1: delete of what never was is Unchanged"
    );
    subject.blank(1, 3 * MIB);
}

#[track_caller]
fn assert_differs<T: std::fmt::Debug>(result: Result<T, DriverError>, field: &str) {
    match result {
        Err(DriverError::AlreadyExists { differences, .. }) => {
            assert!(
                differences.iter().any(|one| one.field == field),
                "V1: the differences name {field}: {differences:?}"
            );
        }
        other => panic!("V1: expected AlreadyExists naming {field}, found {other:?}"),
    }
}

fn an_id_taken_by_something_else_names_the_differences(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    subject.blank(1, MIB);
    subject.blank(2, MIB);
    let snapshot = subject.snapshot(1, 1);
    let first = block_on(subject.backend.volume(volume_id(1))).expect("volume");
    assert_differs(subject.create(1, 2 * MIB, DataSource::Blank), "size_bytes");
    assert_differs(
        subject.create(1, MIB, DataSource::Snapshot(snapshot_id(1))),
        "source",
    );
    assert_differs(subject.snapshots(&[(1, 2)]), "volume");
    let half = subject.snapshots(&[(1, 1), (2, 2)]).map(drop);
    assert!(
        matches!(&half, Err(error) if error.kind() == ErrorKind::AlreadyExists),
        "V1: a group of which one member exists: {half:?}"
    );
    assert_eq!(
        block_on(subject.backend.snapshot(snapshot_id(2)))
            .expect_err("V4: all of a group or none")
            .kind(),
        ErrorKind::NotFound
    );
    assert_eq!(
        block_on(subject.backend.volume(volume_id(1))).expect("volume"),
        first,
        "V1: a refused create changes nothing"
    );
    assert_eq!(
        block_on(subject.backend.snapshot(snapshot_id(1))).expect("snapshot"),
        snapshot,
        "V1: a refused snapshot changes nothing"
    );
}

#[track_caller]
fn assert_kind<T: std::fmt::Debug>(what: &str, result: Result<T, DriverError>, kind: ErrorKind) {
    match result {
        Err(error) if error.kind() == kind => {}
        other => panic!("{what}: expected {kind:?}, found {other:?}"),
    }
}

fn wrong_arguments_are_refused_and_leave_no_trace(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    let capabilities = subject.backend.capabilities();
    let granularity = capabilities.size_granularity_bytes;
    assert!(granularity.is_power_of_two(), "capabilities: {capabilities:?}");
    let invalid = ErrorKind::InvalidArgument;
    for size in [0, 1, MIB + 1, MIB + granularity / 2, u64::MAX] {
        assert_kind(
            &format!("create of {size} bytes"),
            subject.create(1, size, DataSource::Blank),
            invalid,
        );
    }
    if let Some(above) = capabilities.max_volume_bytes.checked_add(granularity) {
        assert_kind(
            "create above the limit",
            subject.create(1, above, DataSource::Blank),
            invalid,
        );
    }
    assert_eq!(subject.status().volume_count, 0, "refused creates leave no trace");

    subject.blank(1, 4 * MIB);
    subject.blank(2, 4 * MIB);
    subject.snapshot(1, 1);
    for (source, name) in [
        (DataSource::Snapshot(snapshot_id(1)), "snapshot"),
        (DataSource::Volume(volume_id(1)), "volume"),
    ] {
        let what = format!("a clone smaller than its {name}");
        assert_kind(&what, subject.create(3, 2 * MIB, source), invalid);
    }
    assert_kind("extend to a smaller size", subject.extend(1, MIB), invalid);
    assert_kind("extend to zero", subject.extend(1, 0), invalid);
    assert_kind("extend to an odd size", subject.extend(1, 5 * MIB + 1), invalid);
    assert_kind("extend beyond the limit", subject.extend(1, u64::MAX), invalid);
    assert_kind(
        "revert to another volume's snapshot",
        subject.revert(2, 1),
        invalid,
    );
    assert_kind(
        "a group naming a volume twice",
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
        (status.volume_count, status.snapshot_count),
        (2, 1),
        "refused calls leave no trace"
    );
}

fn missing_objects_are_not_found(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    subject.blank(1, MIB);
    subject.snapshot(1, 1);
    let missing = ErrorKind::NotFound;
    assert_kind("volume", block_on(subject.backend.volume(volume_id(9))), missing);
    assert_kind(
        "snapshot",
        block_on(subject.backend.snapshot(snapshot_id(9))),
        missing,
    );
    assert_kind("extend", subject.extend(9, 2 * MIB), missing);
    assert_kind("revert of a missing volume", subject.revert(9, 1), missing);
    assert_kind("revert to a missing snapshot", subject.revert(1, 9), missing);
    assert_kind(
        "snapshot of a missing volume",
        subject.snapshots(&[(9, 9)]),
        missing,
    );
    assert_kind(
        "a group with a missing volume",
        subject.snapshots(&[(8, 1), (9, 9)]),
        missing,
    );
    assert_eq!(subject.status().snapshot_count, 1, "V4: all of a group or none");
    for source in [
        DataSource::Snapshot(snapshot_id(9)),
        DataSource::Volume(volume_id(9)),
    ] {
        assert_kind(
            "clone of a missing source",
            subject.create(2, MIB, source),
            missing,
        );
    }
    for id in [
        VersionId::Volume(volume_id(9)),
        VersionId::Snapshot(snapshot_id(9)),
    ] {
        let opened = subject.device(id, OpenMode::ReadOnly).map(drop);
        assert_kind("open of a missing object", opened, missing);
    }
}

/// Of volumes 1, 3, 5, 7 and 9 with snapshots 99, 97, 95, 93 and 91, and 50 of volume 5.
fn lists_come_in_pages(subject: &Subject) {
    let volumes = |after: Option<u64>, limit| -> Vec<_> {
        let after = after.map(volume_id);
        let page = block_on(subject.backend.volumes(Page { after, limit })).expect("volumes");
        page.into_iter().map(|one| (one.id, one.snapshot_count)).collect()
    };
    let counted = |number, snapshots| (volume_id(number), snapshots);
    assert_eq!(
        volumes(None, 2),
        [counted(1, 1), counted(3, 1)],
        "volumes: a page"
    );
    assert_eq!(volumes(Some(3), 2), [counted(5, 2), counted(7, 1)], "the next");
    assert_eq!(
        volumes(Some(8), 2),
        [counted(9, 1)],
        "after one that is not there"
    );
    assert_eq!(volumes(Some(9), 2), [], "the end");
    let snapshots = |of: Option<u64>, after: Option<u64>, limit| -> Vec<_> {
        let (of, after) = (of.map(volume_id), after.map(snapshot_id));
        let page = block_on(subject.backend.snapshots(of, Page { after, limit })).expect("snapshots");
        page.into_iter().map(|one| one.id).collect()
    };
    assert_eq!(
        snapshots(None, None, 2),
        [50, 91].map(snapshot_id),
        "snapshots: a page"
    );
    assert_eq!(
        snapshots(None, Some(91), 2),
        [93, 95].map(snapshot_id),
        "the next"
    );
    assert_eq!(
        snapshots(Some(5), None, 9),
        [50, 95].map(snapshot_id),
        "of a volume"
    );
    assert_eq!(
        snapshots(Some(5), Some(50), 9),
        [95].map(snapshot_id),
        "the rest of them"
    );
    assert_eq!(snapshots(Some(5), None, 1), [50].map(snapshot_id), "one of them");
    assert_eq!(snapshots(Some(2), None, 9), [], "of a volume that is not there");
}

fn lists_are_ordered_and_counted(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    for number in [5, 1, 9, 3, 7] {
        subject.blank(number, MIB * number);
        subject.snapshot(100 - number, number);
    }
    let volumes = block_on(subject.backend.volumes(Page::all())).expect("volumes");
    let snapshots = block_on(subject.backend.snapshots(None, Page::all())).expect("snapshots");
    assert!(volumes.is_sorted_by_key(|one| one.id), "volumes: ordered by id");
    assert!(
        snapshots.is_sorted_by_key(|one| one.id),
        "snapshots: ordered by id"
    );
    assert_eq!((volumes.len(), snapshots.len()), (5, 5), "lists: complete");
    for one in &volumes {
        let alone = block_on(subject.backend.volume(one.id)).expect("volume");
        assert_eq!(&alone, one, "volumes: the list says what the object says");
    }
    for one in &snapshots {
        let alone = block_on(subject.backend.snapshot(one.id)).expect("snapshot");
        assert_eq!(&alone, one, "snapshots: the list says what the object says");
    }
    subject.snapshot(50, 5);
    lists_come_in_pages(&subject);
    assert!(subject.delete_snapshot(50).expect("delete").is_changed());
    let status = subject.status();
    assert_eq!(
        (status.volume_count, status.snapshot_count),
        (5, 5),
        "status: counts"
    );
    assert_eq!(status.provisioned_bytes, 25 * MIB, "status: provisioned_bytes");
    assert!(
        status.free_bytes + status.allocated_bytes <= status.total_bytes,
        "status: free and allocated are disjoint parts of the total: {status:?}"
    );
}
