//! V7: what an open handle keeps from happening, and what not.

use std::sync::Arc;

use super::{BackendFixture, MIB, Subject, snapshot_id, volume_id};
use crate::conformance::pattern::{assert_same, pattern};
use crate::{DataSource, Durability, ErrorKind, IoError, OpenMode, VersionId};

pub(super) fn run(fixture: &mut dyn BackendFixture) {
    open_volumes_are_busy_until_the_last_queue_is_dropped(fixture);
    one_writer_and_many_readers(fixture);
    open_volumes_are_snapshotted_cloned_and_extended(fixture);
    open_snapshots_are_read_only_and_kept(fixture);
}

fn open_volumes_are_busy_until_the_last_queue_is_dropped(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    subject.blank(1, MIB);
    subject.snapshot(1, 1);
    let id = VersionId::Volume(volume_id(1));
    for mode in [OpenMode::ReadWrite, OpenMode::ReadOnly] {
        let device = subject.device(id, mode).expect("open");
        let second = Arc::clone(&device);
        let busy = |when: &str| {
            let error = subject.delete(1).expect_err("V7: delete of an open volume");
            assert_eq!(error.kind(), ErrorKind::Busy, "V7: delete, {when}: {error}");
            let error = subject.revert(1, 1).expect_err("V7: revert of an open volume");
            assert_eq!(error.kind(), ErrorKind::Busy, "V7: revert, {when}: {error}");
        };
        busy("open");
        let queue = Arc::clone(&second).open_queue(1).expect("queue");
        drop(device);
        busy("one handle dropped");
        drop(second);
        busy("a queue is left");
        drop(queue);
        subject
            .revert(1, 1)
            .expect("V7: revert after the last queue is gone");
    }
    subject
        .delete(1)
        .expect("V7: delete after the last queue is gone");
}

fn one_writer_and_many_readers(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    subject.blank(1, MIB);
    let id = VersionId::Volume(volume_id(1));
    let mut writer = subject.writer(1);
    let error = subject
        .device(id, OpenMode::ReadWrite)
        .map(drop)
        .expect_err("open: a second read-write handle");
    assert_eq!(error.kind(), ErrorKind::Busy, "open: {error}");
    let readers: Vec<_> = (0..2)
        .map(|_| {
            subject
                .device(id, OpenMode::ReadOnly)
                .expect("open: a reader beside a writer")
        })
        .collect();
    let bytes = pattern(1, 65536);
    writer.write(4096, &bytes, Durability::Cached).unwrap();
    for reader in &readers {
        assert!(reader.is_read_only(), "open: read-only");
        let mut queue = crate::BlockingQueue::open(reader).expect("queue");
        assert_same(
            "B1: a reader",
            4096,
            &queue.read(4096, bytes.len()).unwrap(),
            &bytes,
        );
        let refused = queue.write(0, &bytes, Durability::Cached);
        assert!(
            matches!(refused, Err(IoError::ReadOnly)),
            "open: a write through a read-only handle: {refused:?}"
        );
    }
    drop(writer);
    drop(subject.writer(1));
}

fn open_volumes_are_snapshotted_cloned_and_extended(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    subject.blank(1, MIB + 4096);
    let mut queue = subject.writer(1);
    let bytes = pattern(1, MIB as usize + 4096);
    queue.write(0, &bytes, Durability::Cached).unwrap();
    subject.snapshot(1, 1);
    subject.clone_of(2, 2 * MIB, DataSource::Volume(volume_id(1)));
    let grown = subject.extend(1, 2 * MIB).expect("V7: extend of an open volume");
    assert!(grown.is_changed(), "V7: extend");
    assert_eq!(
        queue.device().size_bytes(),
        2 * MIB,
        "B7: the open device has grown"
    );
    let mut expected = bytes.clone();
    expected.resize(2 << 20, 0);
    assert_same(
        "V6: an extended range",
        0,
        &queue.read(0, 2 << 20).unwrap(),
        &expected,
    );
    let tail = pattern(2, 65536);
    queue
        .write(2 * MIB - 65536, &tail, Durability::Flushed)
        .expect("B7: the new range is usable at once");
    assert_same("V4: the snapshot", 0, &subject.snapshot_contents(1), &bytes);
    assert_same("V4: the clone", 0, &subject.contents(2), &expected);
}

fn open_snapshots_are_read_only_and_kept(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    subject.blank(1, MIB);
    let bytes = pattern(1, MIB as usize);
    subject.writer(1).write(0, &bytes, Durability::Cached).unwrap();
    subject.snapshot(1, 1);
    let id = VersionId::Snapshot(snapshot_id(1));
    let error = subject
        .device(id, OpenMode::ReadWrite)
        .map(drop)
        .expect_err("open: a writable snapshot");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "open: {error}");
    let device = subject.device(id, OpenMode::ReadOnly).expect("open");
    let error = subject
        .delete_snapshot(1)
        .expect_err("V7: delete of an open snapshot");
    assert_eq!(error.kind(), ErrorKind::Busy, "V7: {error}");
    subject.delete(1).expect("V5: the volume of an open snapshot");
    let mut queue = crate::BlockingQueue::open(&device).expect("queue");
    assert_same(
        "V5: the snapshot",
        0,
        &queue.read(0, bytes.len()).unwrap(),
        &bytes,
    );
    drop((queue, device));
    subject.delete_snapshot(1).expect("V7: delete after it is closed");
}
