//! S4 and S5: what snapshots and clones hold, and that they stand on their own.

use super::{ShareBackendFixture, Subject, share, share_id, snapshot, snapshot_id};
use crate::conformance::pattern::pattern;
use crate::{ShareCapability, ShareSource};

pub(super) fn run(fixture: &mut dyn ShareBackendFixture) {
    snapshots_hold_what_was_written_and_never_change(fixture);
    clones_and_their_sources_go_their_own_ways(fixture);
    a_revert_brings_back_any_snapshot_and_keeps_all(fixture);
    objects_are_deleted_in_any_order(fixture);
    a_group_is_one_moment(fixture);
}

/// Long enough not to be kept inline by a file system.
const FILE_BYTES: usize = 300_000;

fn snapshots_hold_what_was_written_and_never_change(fixture: &mut dyn ShareBackendFixture) {
    let mut subject = Subject::fresh(fixture);
    subject.blank(1);
    subject.write(share(1), "old", &pattern(1, FILE_BYTES));
    subject.snapshot(1, 1);
    subject.write(share(1), "old", &pattern(2, FILE_BYTES));
    subject.write(share(1), "new", &pattern(3, FILE_BYTES));
    for _ in 0..2 {
        subject.assert_holds("S4", snapshot(1), "old", &pattern(1, FILE_BYTES));
        subject.assert_lacks("S4", snapshot(1), "new");
    }
    subject.assert_holds("S4", share(1), "old", &pattern(2, FILE_BYTES));
    subject.unmount(share(1));
    subject.assert_holds("S4: after a remount", share(1), "new", &pattern(3, FILE_BYTES));
    subject.snapshot(2, 1);
    subject.assert_holds(
        "S4: of what is not mounted",
        snapshot(2),
        "new",
        &pattern(3, FILE_BYTES),
    );
}

fn clones_and_their_sources_go_their_own_ways(fixture: &mut dyn ShareBackendFixture) {
    let mut subject = Subject::fresh(fixture);
    subject.blank(1);
    subject.write(share(1), "file", &pattern(1, FILE_BYTES));
    subject.snapshot(1, 1);
    subject.clone_of(2, ShareSource::Snapshot(snapshot_id(1)));
    subject.clone_of(3, ShareSource::Share(share_id(1)));
    for clone in [2, 3] {
        subject.assert_holds("S4: a clone", share(clone), "file", &pattern(1, FILE_BYTES));
        subject.write(share(clone), "file", &pattern(10 + clone, FILE_BYTES));
    }
    subject.write(share(1), "file", &pattern(4, FILE_BYTES));
    subject.assert_holds("S4", snapshot(1), "file", &pattern(1, FILE_BYTES));
    subject.assert_holds("S4", share(1), "file", &pattern(4, FILE_BYTES));
    for clone in [2, 3] {
        subject.assert_holds(
            "S4: a clone",
            share(clone),
            "file",
            &pattern(10 + clone, FILE_BYTES),
        );
    }
    let larger = subject.least() + 16 * subject.step();
    let source = ShareSource::Snapshot(snapshot_id(1));
    subject.create(4, larger, source).expect("S1: a larger clone");
    assert_eq!(
        subject.files(share(4)).size_bytes().expect("statfs"),
        larger,
        "S6: the size of a larger clone"
    );
    subject.assert_holds("S4: a larger clone", share(4), "file", &pattern(1, FILE_BYTES));
}

fn a_revert_brings_back_any_snapshot_and_keeps_all(fixture: &mut dyn ShareBackendFixture) {
    let mut subject = Subject::fresh(fixture);
    subject.blank(1);
    for version in 1..=3 {
        subject.write(share(1), "file", &pattern(version, FILE_BYTES));
        subject.write(share(1), &format!("file-{version}"), b"here");
        subject.snapshot(version, 1);
    }
    let grown = subject.least() + 16 * subject.step();
    subject.resize(1, grown).expect("resize");
    for version in [1, 3, 2] {
        subject.unmount(share(1));
        let info = subject.revert(1, version).expect("S5: revert").into_inner();
        assert_eq!(info.size_bytes, grown, "revert keeps the size");
        subject.assert_holds("revert", share(1), "file", &pattern(version, FILE_BYTES));
        subject.assert_lacks("revert", share(1), &format!("file-{}", version + 1));
        assert_eq!(
            subject.files(share(1)).size_bytes().expect("statfs"),
            grown,
            "S6: the size after a revert"
        );
        subject.write(share(1), "file", b"written after the revert");
    }
    for version in 1..=3 {
        subject.assert_holds(
            "S4: after reverts",
            snapshot(version),
            "file",
            &pattern(version, FILE_BYTES),
        );
    }
}

fn objects_are_deleted_in_any_order(fixture: &mut dyn ShareBackendFixture) {
    let mut subject = Subject::fresh(fixture);
    subject.blank(1);
    subject.write(share(1), "file", &pattern(1, FILE_BYTES));
    subject.unmount(share(1));
    subject.snapshot(1, 1);
    subject.snapshot(2, 1);
    subject.clone_of(2, ShareSource::Snapshot(snapshot_id(1)));
    subject.delete(share(1)).expect("S5: a share with snapshots");
    subject.assert_holds("S5", snapshot(1), "file", &pattern(1, FILE_BYTES));
    subject.delete(snapshot(1)).expect("S5: a snapshot with a clone");
    subject.assert_holds("S5", share(2), "file", &pattern(1, FILE_BYTES));
    subject.assert_holds("S5", snapshot(2), "file", &pattern(1, FILE_BYTES));
    subject.clone_of(3, ShareSource::Snapshot(snapshot_id(2)));
    subject.assert_holds("S5", share(3), "file", &pattern(1, FILE_BYTES));
}

fn a_group_is_one_moment(fixture: &mut dyn ShareBackendFixture) {
    let mut subject = Subject::fresh(fixture);
    if !subject
        .backend
        .capabilities()
        .has(ShareCapability::GroupSnapshots)
    {
        return;
    }
    subject.blank(1);
    subject.blank(2);
    // One is mounted, the other is not.
    for number in [1, 2] {
        subject.write(share(number), "file", &pattern(number, FILE_BYTES));
    }
    subject.unmount(share(2));
    let taken = subject
        .snapshots(&[(11, 1), (12, 2)])
        .expect("S4: group")
        .into_inner();
    let ids: Vec<_> = taken.iter().map(|one| (one.id, one.share)).collect();
    let expected = [(snapshot_id(11), share_id(1)), (snapshot_id(12), share_id(2))];
    assert_eq!(ids, expected, "S4: in the order of the group");
    subject.write(share(1), "file", b"later");
    subject.write(share(2), "file", b"later");
    for number in [1, 2] {
        subject.assert_holds("S4", snapshot(10 + number), "file", &pattern(number, FILE_BYTES));
    }
}
