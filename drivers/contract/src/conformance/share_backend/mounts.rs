//! S6 to S9: sizes, mounts and identities.

use std::collections::HashSet;
use std::io;

use super::{ShareBackendFixture, Subject, assert_kind, share, share_id, snapshot, snapshot_id};
use crate::conformance::{block_on, eventually};
use crate::{ErrorKind, ShareCapability, ShareSource};

pub(super) fn run(fixture: &mut dyn ShareBackendFixture) {
    nothing_is_mounted_that_nobody_asked_for(fixture);
    mounted_objects_are_in_use(fixture);
    every_object_has_an_identity_of_its_own(fixture);
    sizes_are_exact_and_hard(fixture);
    a_size_below_what_is_used_is_refused(fixture);
    space_comes_back_after_a_delete(fixture);
}

fn nothing_is_mounted_that_nobody_asked_for(fixture: &mut dyn ShareBackendFixture) {
    let subject = Subject::fresh(fixture);
    subject.blank(1);
    subject.snapshot(1, 1);
    subject.clone_of(2, ShareSource::Snapshot(snapshot_id(1)));
    subject.revert(1, 1).expect("revert");
    assert_eq!(
        subject.mounted(),
        [],
        "S7: create, snapshot, clone and revert mount nothing"
    );
    for version in [share(2), share(1), snapshot(1)] {
        let first = block_on(subject.backend.mount(version)).expect("mount");
        assert!(first.is_changed(), "S7: mount is Changed");
        let again = block_on(subject.backend.mount(version)).expect("mount again");
        assert!(!again.is_changed(), "S7: mount again is Unchanged");
        assert_eq!(again.into_inner(), first.into_inner(), "S7: and says where it is");
    }
    assert_eq!(
        subject.mounted(),
        [share(1), share(2), snapshot(1)],
        "S7: mounted, ordered"
    );
    let first = block_on(subject.backend.unmount(share(1))).expect("unmount");
    assert!(first.is_changed(), "S7: unmount is Changed");
    let again = block_on(subject.backend.unmount(share(1))).expect("unmount again");
    assert!(!again.is_changed(), "S7: unmount again is Unchanged");
    assert_eq!(
        subject.mounted(),
        [share(2), snapshot(1)],
        "S7: the others stay mounted"
    );
}

fn mounted_objects_are_in_use(fixture: &mut dyn ShareBackendFixture) {
    let mut subject = Subject::fresh(fixture);
    subject.blank(1);
    subject.write(share(1), "file", b"contents");
    subject.snapshot(1, 1);
    subject.mount(snapshot(1));
    for version in [share(1), snapshot(1)] {
        assert_kind(
            "S7: delete of what is mounted",
            subject.delete(version),
            ErrorKind::Busy,
        );
    }
    assert_kind(
        "S7: revert of what is mounted",
        subject.revert(1, 1),
        ErrorKind::Busy,
    );
    subject.snapshot(2, 1);
    subject.clone_of(2, ShareSource::Share(share_id(1)));
    subject.assert_holds("S7: a clone of what is mounted", share(2), "file", b"contents");
    let refused = subject.files(snapshot(1)).write("file", b"other");
    match refused {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {}
        other => panic!("S7: writing to a snapshot: {other:?}"),
    }
    subject.assert_holds("S7", snapshot(1), "file", b"contents");
}

fn every_object_has_an_identity_of_its_own(fixture: &mut dyn ShareBackendFixture) {
    let subject = Subject::fresh(fixture);
    subject.blank(1);
    subject.snapshot(1, 1);
    subject.snapshot(2, 1);
    subject.clone_of(2, ShareSource::Snapshot(snapshot_id(1)));
    subject.clone_of(3, ShareSource::Share(share_id(1)));
    let all = [share(1), share(2), share(3), snapshot(1), snapshot(2)];
    let mounted: Vec<_> = all.iter().map(|version| subject.mount(*version)).collect();
    let identities: HashSet<_> = mounted.iter().map(|one| one.filesystem).collect();
    assert_eq!(identities.len(), all.len(), "S9: {mounted:?}");
    let devices: HashSet<_> = mounted.iter().map(|one| one.device).collect();
    assert_eq!(devices.len(), all.len(), "S8: {mounted:?}");
    for before in &mounted {
        subject.unmount(before.version);
        let after = subject.mount(before.version);
        assert_eq!(
            after.filesystem, before.filesystem,
            "S9: the same after a remount"
        );
        assert_eq!(after.path, before.path, "S9: the same path");
        subject.unmount(before.version);
    }
    subject.revert(1, 1).expect("revert");
    let after = subject.mount(share(1));
    assert_eq!(
        after.filesystem, mounted[0].filesystem,
        "S9: the same after a revert"
    );
}

fn sizes_are_exact_and_hard(fixture: &mut dyn ShareBackendFixture) {
    let mut subject = Subject::fresh(fixture);
    let size = subject.least();
    subject.blank(1);
    let files = subject.files(share(1));
    assert_eq!(
        files.size_bytes().expect("statfs"),
        size,
        "S6: statfs says the size"
    );
    let piece = vec![0x5a; (size / 64) as usize];
    let mut written = 0;
    let refused = loop {
        if let Err(error) = files.write(&format!("file-{written}"), &piece) {
            break error;
        }
        written += piece.len() as u64;
        assert!(written <= size, "S6: {written} bytes fit in {size}");
    };
    assert_eq!(refused.kind(), io::ErrorKind::StorageFull, "S6: {refused}");
    assert!(
        written * 10 >= size * 8,
        "S6: only {written} bytes of {size} could be used"
    );
    let used = block_on(subject.backend.usage(share(1)))
        .expect("usage")
        .used_bytes;
    assert!(
        (written..=size).contains(&used),
        "usage: {used} after {written} written"
    );

    let grown = size + 64 * subject.step().max(1 << 20);
    let info = subject
        .resize(1, grown)
        .expect("resize while mounted")
        .into_inner();
    assert_eq!(info.size_bytes, grown, "the new size");
    assert_eq!(
        files.size_bytes().expect("statfs"),
        grown,
        "S6: seen when resize returns"
    );
    files
        .write("more", &piece)
        .expect("S6: what was added can be used");
    drop(files);
    subject.unmount(share(1));
    let used = block_on(subject.backend.usage(share(1)))
        .expect("usage")
        .used_bytes;
    assert!(
        (written..=grown).contains(&used),
        "usage: {used} when not mounted"
    );
}

fn a_size_below_what_is_used_is_refused(fixture: &mut dyn ShareBackendFixture) {
    let mut subject = Subject::fresh(fixture);
    if !subject.backend.capabilities().has(ShareCapability::Shrink) {
        return;
    }
    let size = subject.least();
    let large = size + 16 * subject.step();
    subject.create(1, large, ShareSource::Blank).expect("create");
    let contents = vec![1; size as usize + 1];
    subject.write(share(1), "file", &contents);
    assert_kind(
        "a size below what is used",
        subject.resize(1, size),
        ErrorKind::Busy,
    );
    assert_eq!(
        subject.files(share(1)).size_bytes().expect("statfs"),
        large,
        "nothing has changed"
    );
    subject.write(share(1), "file", b"small");
    subject.resize(1, size).expect("shrink to what is enough");
    assert_eq!(
        subject.files(share(1)).size_bytes().expect("statfs"),
        size,
        "S6: after a shrink"
    );
}

fn space_comes_back_after_a_delete(fixture: &mut dyn ShareBackendFixture) {
    let mut subject = Subject::fresh(fixture);
    subject.blank(1);
    subject.unmount(share(1));
    let before = subject.status().free_bytes;
    subject.blank(2);
    let contents = vec![0x77; subject.least().min(64 << 20) as usize / 2];
    subject.write(share(2), "file", &contents);
    subject.unmount(share(2));
    subject.snapshot(2, 2);
    subject.delete(share(2)).expect("delete");
    subject.delete(snapshot(2)).expect("delete");
    // A file system may keep a little for itself.
    eventually("S3: free_bytes after deletes", || {
        subject.status().free_bytes + (1 << 20) >= before
    });
}
