//! S2: what survives the end of the process.

use super::{ShareBackendFixture, Subject, share, share_id, snapshot, snapshot_id};
use crate::ShareSource;
use crate::conformance::block_on;
use crate::conformance::pattern::pattern;

const FILE_BYTES: usize = 100_000;

pub(super) fn run(fixture: &mut dyn ShareBackendFixture) {
    let mut subject = Subject::fresh(fixture);
    let uuid = subject.status().uuid;
    subject.blank(1);
    subject.write(share(1), "file", &pattern(1, FILE_BYTES));
    subject.snapshot(1, 1);
    subject.clone_of(2, ShareSource::Snapshot(snapshot_id(1)));
    subject.blank(3);
    subject.delete(share(3)).expect("delete");
    let grown = subject.least() + 16 * subject.step();
    subject.resize(1, grown).expect("resize");
    let mounted = subject.mount(share(1));
    let shares = block_on(subject.backend.shares()).expect("shares");
    let snapshots = block_on(subject.backend.snapshots()).expect("snapshots");
    let Some(mut subject) = subject.restart() else {
        return;
    };
    assert_eq!(subject.status().uuid, uuid, "S2: the same pool");
    assert_eq!(
        block_on(subject.backend.shares()).expect("shares"),
        shares,
        "S2: shares"
    );
    assert_eq!(
        block_on(subject.backend.snapshots()).expect("snapshots"),
        snapshots,
        "S2: snapshots"
    );
    let again = subject.mount(share(1));
    assert_eq!(
        (again.filesystem, &again.path),
        (mounted.filesystem, &mounted.path),
        "S9: the same identity after a restart"
    );
    let files = subject.files(share(1));
    assert_eq!(files.size_bytes().expect("statfs"), grown, "S2: the new size");
    drop(files);
    subject.assert_holds("S2", share(1), "file", &pattern(1, FILE_BYTES));
    subject.assert_holds("S2", share(2), "file", &pattern(1, FILE_BYTES));
    subject.assert_holds("S2", snapshot(1), "file", &pattern(1, FILE_BYTES));
    let created = subject.create(2, subject.least(), ShareSource::Snapshot(snapshot_id(1)));
    assert!(
        !created.expect("create").is_changed(),
        "S2: remembered: {}",
        share_id(2)
    );
    subject.unmount(share(1));
    subject.revert(1, 1).expect("S2: revert after a restart");
    subject.delete(share(1)).expect("S2: delete after a restart");
}
