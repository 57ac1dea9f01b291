//! V2, V3 and V10: what survives a power cut, what may take long, and what a check says of it.

use std::time::{Duration, Instant};

use super::{BackendFixture, MIB, Subject, snapshot_id, volume_id};
use crate::conformance::block_on;
use crate::conformance::pattern::{assert_same, pattern};
use crate::{Capability, DataSource, Durability, ErrorKind, Page, VolumeSpec};

pub(super) fn run(fixture: &mut dyn BackendFixture) {
    metadata_calls_do_not_wait_for_data(fixture);
    answered_calls_survive_a_power_cut(fixture);
    a_check_of_a_sound_pool_in_use_finds_nothing(fixture);
    a_reserved_volume_is_one_until_told_otherwise(fixture);
    a_volume_keeps_its_checksums_and_hands_them_on(fixture);
}

fn a_volume_keeps_its_checksums_and_hands_them_on(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    let has_them = (subject.backend.capabilities().features).contains(&Capability::Checksums);
    if !has_them {
        return;
    }
    let create = |subject: &Subject, number, source, checksums| {
        block_on(subject.backend.create_volume(&VolumeSpec {
            checksums,
            ..VolumeSpec::new(volume_id(number), MIB, source)
        }))
    };
    assert!(!subject.blank(1, MIB).checksums, "V12: not asked for");
    let created = create(&subject, 2, DataSource::Blank, true).expect("V12: create");
    assert!(created.into_inner().checksums, "V12: asked for");
    let again = create(&subject, 2, DataSource::Blank, true).expect("V1: again");
    assert!(!again.is_changed(), "V1: created again");
    for (number, checksums) in [(1, true), (2, false)] {
        let other = create(&subject, number, DataSource::Blank, checksums);
        let error = other.expect_err("V1: with other properties");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "V1: {error}");
    }
    let data = pattern(7, 3 * 4096);
    let mut queue = subject.writer(2);
    queue.write(512, &data, Durability::Flushed).expect("write");
    queue.write(4096, &data, Durability::Flushed).expect("overwrite");
    drop(queue);
    subject.snapshot(1, 2);
    let refused = create(&subject, 3, DataSource::Volume(volume_id(1)), true);
    let error = refused.expect_err("V12: of a source that has none");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "V12: {error}");
    subject.clone_of(3, MIB, DataSource::Snapshot(snapshot_id(1)));
    subject.clone_of(4, MIB, DataSource::Volume(volume_id(1)));
    subject.revert(2, 1).expect("revert");
    let all = |subject: &Subject| -> Vec<bool> {
        let volumes = block_on(subject.backend.volumes(Page::all())).expect("volumes");
        volumes.iter().map(|volume| volume.checksums).collect()
    };
    assert_eq!(all(&subject), [false, true, true, false], "V12");
    let Some(backend) = fixture.power_cut(subject.backend) else {
        return;
    };
    let subject = Subject { backend };
    assert_eq!(
        all(&subject),
        [false, true, true, false],
        "V12: after a power cut"
    );
    for number in [2, 3] {
        let found = subject.writer(number).read(4096, data.len()).expect("read");
        assert_same("V12", 4096, &found, &data);
    }
}

fn a_reserved_volume_is_one_until_told_otherwise(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    assert!(!subject.blank(1, MIB).reserved, "V11: a new volume");
    for (number, source) in [(8, DataSource::Blank), (9, DataSource::Volume(volume_id(1)))] {
        let spec = VolumeSpec {
            reserved: true,
            ..VolumeSpec::new(volume_id(number), MIB, source)
        };
        let created = block_on(subject.backend.create_volume(&spec)).expect("V11: a reserved volume");
        assert!(created.into_inner().reserved, "V11: created as one");
    }
    subject.snapshot(1, 1);
    assert!(subject.reserve(1, true).expect("V11: reserve").is_changed());
    let again = subject.reserve(1, true).expect("V1: reserve again");
    assert!(
        !again.is_changed() && again.into_inner().reserved,
        "V1: reserve again"
    );
    subject.clone_of(2, MIB, DataSource::Volume(volume_id(1)));
    subject.extend(1, 2 * MIB).expect("extend");
    subject.revert(1, 1).expect("revert");
    let info = |number| block_on(subject.backend.volume(volume_id(number))).expect("volume");
    assert!(
        info(1).reserved && !info(2).reserved,
        "V11: its clone is an ordinary volume"
    );
    let Some(backend) = fixture.power_cut(subject.backend) else {
        return;
    };
    let subject = Subject { backend };
    let reserved = |number| {
        let volume = block_on(subject.backend.volume(volume_id(number)));
        volume.expect("volume").reserved
    };
    assert!(reserved(1), "V11: after extend, revert and a power cut");
    assert!(reserved(8) && reserved(9), "V11: created as reserved volumes");
    assert!(!reserved(2), "V11: a clone is an ordinary volume");
    assert!(subject.reserve(1, false).expect("V11: undo").is_changed());
    assert!(!reserved(1), "V11: told otherwise");
    assert!(subject.reserve(7, true).is_err(), "NotFound");
}

/// V3. The limit is far above what a call takes and far below what touching the volume's range would.
fn metadata_calls_do_not_wait_for_data(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    let size = subject.backend.capabilities().max_volume_bytes.min(16 << 40) / 2;
    let limit = Duration::from_secs(5);
    let timed = |what: &str, call: &dyn Fn()| {
        let start = Instant::now();
        call();
        let took = start.elapsed();
        assert!(took < limit, "V3: {what} of {size} bytes took {took:?}");
    };
    timed("create", &|| {
        subject.blank(1, size);
    });
    let mut queue = subject.writer(1);
    for index in 0..64u64 {
        let at = (size / 64 * index) / MIB * MIB;
        queue
            .write(at, &pattern(index, 65536), Durability::Cached)
            .unwrap();
    }
    drop(queue);
    timed("snapshot", &|| {
        subject.snapshot(1, 1);
    });
    timed("clone", &|| {
        subject.clone_of(2, size, DataSource::Snapshot(snapshot_id(1)));
    });
    timed("clone of a volume", &|| {
        subject.clone_of(3, size, DataSource::Volume(volume_id(1)));
    });
    timed("extend", &|| {
        subject.extend(1, size * 2).expect("extend");
    });
    timed("revert", &|| {
        subject.revert(1, 1).expect("revert");
    });
    timed("delete", &|| {
        subject.delete(1).expect("delete");
    });
}

fn answered_calls_survive_a_power_cut(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    let uuid = subject.status().uuid;
    subject.blank(1, 2 * MIB);
    subject.blank(2, MIB);
    let old = pattern(1, 2 << 20);
    let mut queue = subject.writer(1);
    queue.write(0, &old, Durability::Cached).unwrap();
    subject.snapshot(1, 1);
    let new = pattern(2, 300 * 1024);
    queue.write(4096, &new, Durability::Cached).unwrap();
    queue.flush().unwrap();
    drop(queue);
    subject.snapshot(2, 1);
    subject.clone_of(3, 3 * MIB, DataSource::Snapshot(snapshot_id(1)));
    subject.extend(2, 4 * MIB).expect("extend");
    subject.clone_of(4, 2 * MIB, DataSource::Volume(volume_id(1)));
    subject.revert(1, 1).expect("revert");
    subject.delete(4).expect("delete");
    subject.delete_snapshot(1).expect("delete");
    let volumes = block_on(subject.backend.volumes(Page::all())).expect("volumes");
    let snapshots = block_on(subject.backend.snapshots(None, Page::all())).expect("snapshots");
    let Some(backend) = fixture.power_cut(subject.backend) else {
        return;
    };
    let subject = Subject { backend };
    assert_eq!(subject.status().uuid, uuid, "V2: the pool's identity");
    assert_eq!(
        block_on(subject.backend.volumes(Page::all())).expect("volumes"),
        volumes,
        "V2: the volumes after a power cut"
    );
    assert_eq!(
        block_on(subject.backend.snapshots(None, Page::all())).expect("snapshots"),
        snapshots,
        "V2: the snapshots after a power cut"
    );
    let mut grown = old.clone();
    grown.resize(3 << 20, 0);
    let mut changed = old.clone();
    changed[4096..4096 + new.len()].copy_from_slice(&new);
    assert_same("V2: a reverted volume", 0, &subject.contents(1), &old);
    assert_same(
        "V2: an extended volume",
        0,
        &subject.contents(2),
        &vec![0; 4 << 20],
    );
    assert_same("V2: a clone", 0, &subject.contents(3), &grown);
    assert_same("V2: a snapshot", 0, &subject.snapshot_contents(2), &changed);
    subject.blank(5, MIB);
    subject
        .writer(5)
        .write(0, &old[..1 << 20], Durability::Flushed)
        .expect("V2: the pool goes on");
}

fn a_check_of_a_sound_pool_in_use_finds_nothing(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    subject.blank(1, 8 * MIB);
    let mut queue = subject.writer(1);
    for round in 0..20u64 {
        let bytes = pattern(round, 48 * 1024);
        queue
            .write(round * 300 * 1024, &bytes, Durability::Cached)
            .unwrap();
        subject.snapshot(round, 1);
        if round >= 3 {
            subject.delete_snapshot(round - 3).unwrap();
        }
        let problems = block_on(subject.backend.check()).expect("V10: a check can be made");
        assert_eq!(problems, [], "V10: after round {round}");
    }
}
