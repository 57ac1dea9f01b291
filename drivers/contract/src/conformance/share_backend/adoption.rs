//! S12: shares that were there before, and that are given up.

use super::{ShareBackendFixture, Subject, assert_kind, share, share_id, snapshot, snapshot_id};
use crate::conformance::block_on;
use crate::conformance::pattern::pattern;
use crate::{ErrorKind, ShareCapability, ShareSource};

pub(super) fn run(fixture: &mut dyn ShareBackendFixture) {
    let subject = Subject::fresh(fixture);
    match subject.backend.capabilities().has(ShareCapability::Adopt) {
        true => what_is_released_is_whole_and_can_be_adopted(subject),
        false => {
            subject.blank(1);
            let (adopt, release) = (
                block_on(subject.backend.adopt_share(share_id(2), "other")),
                block_on(subject.backend.release_share(share_id(1), "other")),
            );
            assert_kind("S12: adopt", adopt, ErrorKind::Unsupported);
            assert_kind("S12: release", release, ErrorKind::Unsupported);
        }
    }
}

fn what_is_released_is_whole_and_can_be_adopted(mut subject: Subject<'_>) {
    let size = subject.least() + 16 * subject.step();
    subject.create(1, size, ShareSource::Blank).expect("create");
    let contents = pattern(1, 300_000);
    subject.write(share(1), "file", &contents);
    subject.snapshot(1, 1);
    let adopt = |subject: &Subject<'_>, number, name: &str| {
        block_on(subject.backend.adopt_share(share_id(number), name))
    };
    let release = |subject: &Subject<'_>, number, name: &str| {
        block_on(subject.backend.release_share(share_id(number), name))
    };

    assert_kind(
        "S7: release of what is mounted",
        release(&subject, 1, "other"),
        ErrorKind::Busy,
    );
    subject.unmount(share(1));
    for name in ["", "with/slash", ".."] {
        assert_kind(
            "S12: a name that cannot be",
            release(&subject, 1, name),
            ErrorKind::InvalidArgument,
        );
        assert_kind(
            "S12: a name that cannot be",
            adopt(&subject, 9, name),
            ErrorKind::InvalidArgument,
        );
    }
    assert_kind(
        "S12: adopt of nothing",
        adopt(&subject, 9, "other"),
        ErrorKind::NotFound,
    );
    assert_kind(
        "S12: release of nothing",
        release(&subject, 9, "other"),
        ErrorKind::NotFound,
    );
    assert!(
        release(&subject, 1, "other").expect("S12: release").is_changed(),
        "S12: release is Changed"
    );
    let again = release(&subject, 1, "other").expect("S12: release again");
    assert!(!again.is_changed(), "S12: release again is Unchanged");
    assert_kind(
        "S12: it is no share",
        block_on(subject.backend.share(share_id(1))),
        ErrorKind::NotFound,
    );
    subject.assert_holds("S5: its snapshot lives on", snapshot(1), "file", &contents);

    // Its id is free, and the name is not.
    subject.blank(1);
    assert_kind(
        "S12: the name is taken",
        release(&subject, 1, "other"),
        ErrorKind::AlreadyExists,
    );
    assert_kind(
        "S12: the share is another",
        adopt(&subject, 1, "other"),
        ErrorKind::AlreadyExists,
    );
    let adopted = adopt(&subject, 2, "other").expect("S12: adopt");
    assert!(adopted.is_changed(), "S12: adopt is Changed");
    let info = adopted.into_inner();
    assert_eq!(
        (info.id, info.size_bytes),
        (share_id(2), size),
        "S12: what it was"
    );
    let again = adopt(&subject, 2, "other").expect("S12: adopt again");
    assert!(!again.is_changed(), "S12: adopt again is Unchanged");
    subject.assert_holds("S12: what it held", share(2), "file", &contents);
    let mounted = [share(1), share(2), snapshot(1)].map(|version| subject.mount(version));
    assert_ne!(mounted[0].filesystem, mounted[1].filesystem, "S9");
    assert_ne!(mounted[1].filesystem, mounted[2].filesystem, "S9");
    subject.write(share(2), "file", b"written after it was adopted");
    subject.assert_holds("S4", snapshot(1), "file", &contents);
    let clone = subject.create(3, size, ShareSource::Snapshot(snapshot_id(1)));
    clone.expect("S5: a clone of what was released");

    // And once more, over the end of the process.
    subject.unmount(share(2));
    release(&subject, 2, "other").expect("S12: release");
    let Some(mut subject) = subject.restart() else {
        return;
    };
    assert_kind(
        "S12: left alone",
        block_on(subject.backend.share(share_id(2))),
        ErrorKind::NotFound,
    );
    let adopted = block_on(subject.backend.adopt_share(share_id(4), "other"));
    assert!(adopted.expect("S12: adopt").is_changed(), "S12: adopt is Changed");
    subject.assert_holds("S12", share(4), "file", b"written after it was adopted");
}
