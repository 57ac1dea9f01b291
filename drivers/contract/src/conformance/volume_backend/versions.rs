//! V4 and V5: snapshots, clones, reverts and deletes in any order.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::{BackendFixture, MIB, Subject, snapshot_id, volume_id};
use crate::conformance::pattern::{SplitMix, assert_same, pattern};
use crate::{BlockingQueue, DataSource, Durability, OpenMode, VersionId};

pub(super) fn run(fixture: &mut dyn BackendFixture) {
    snapshots_never_change(fixture);
    clones_and_their_sources_go_their_own_ways(fixture);
    revert_goes_to_any_snapshot_and_keeps_the_size(fixture);
    group_snapshots_are_one_cut(fixture);
    anything_is_deleted_in_any_order(fixture);
    random_histories_match_a_plain_model(fixture);
}

const SIZE: u64 = 2 * MIB;

fn snapshots_never_change(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    subject.blank(1, SIZE);
    let mut queue = subject.writer(1);
    let mut expected = Vec::new();
    let mut model = vec![0; SIZE as usize];
    for round in 0..8u64 {
        let at = round * 200 * 1024;
        let bytes = pattern(round, 260 * 1024);
        queue.write(at, &bytes, Durability::Cached).unwrap();
        model[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
        if round % 3 == 2 {
            queue.discard(128 * 1024 * round, 192 * 1024).unwrap();
            let from = (128 * 1024 * round) as usize;
            model[from..from + 192 * 1024].fill(0);
        }
        let info = subject.snapshot(round, 1);
        assert_eq!(
            (info.id, info.volume, info.size_bytes),
            (snapshot_id(round), volume_id(1), SIZE),
            "V4: what a snapshot says"
        );
        expected.push(model.clone());
    }
    queue
        .write(0, &pattern(99, SIZE as usize), Durability::Cached)
        .unwrap();
    drop(queue);
    for (round, expected) in expected.iter().enumerate() {
        assert_same(
            "V4: a snapshot holds what completed before it",
            0,
            &subject.snapshot_contents(round as u64),
            expected,
        );
    }
}

fn clones_and_their_sources_go_their_own_ways(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    subject.blank(1, SIZE);
    let origin = pattern(1, SIZE as usize);
    let mut source = subject.writer(1);
    source.write(0, &origin, Durability::Cached).unwrap();
    subject.snapshot(1, 1);
    subject.clone_of(2, SIZE + MIB, DataSource::Snapshot(snapshot_id(1)));
    subject.clone_of(3, SIZE, DataSource::Volume(volume_id(1)));
    let mut grown = origin.clone();
    grown.resize((SIZE + MIB) as usize, 0);
    assert_same("V6: a larger clone", 0, &subject.contents(2), &grown);
    assert_same(
        "V4: a clone of a volume in use holds what completed",
        0,
        &subject.contents(3),
        &origin,
    );
    let (a, b, c) = (
        pattern(2, 100 * 1024),
        pattern(3, 100 * 1024),
        pattern(4, 100 * 1024),
    );
    source.write(8192, &a, Durability::Cached).unwrap();
    subject.writer(2).write(8192, &b, Durability::Cached).unwrap();
    subject.writer(3).write(8192, &c, Durability::Cached).unwrap();
    drop(source);
    for (number, bytes) in [(1, &a), (2, &b), (3, &c)] {
        let mut expected = if number == 2 {
            grown.clone()
        } else {
            origin.clone()
        };
        expected[8192..8192 + bytes.len()].copy_from_slice(bytes);
        assert_same(
            "V4: clone and source are apart",
            0,
            &subject.contents(number),
            &expected,
        );
    }
    assert_same("V4: the snapshot", 0, &subject.snapshot_contents(1), &origin);
}

fn revert_goes_to_any_snapshot_and_keeps_the_size(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    subject.blank(1, MIB + 4096);
    let versions: Vec<Vec<u8>> = (0..3u64)
        .map(|round| {
            let bytes = pattern(10 + round, MIB as usize + 4096);
            subject.writer(1).write(0, &bytes, Durability::Cached).unwrap();
            subject.snapshot(round, 1);
            bytes
        })
        .collect();
    subject.extend(1, SIZE).expect("extend");
    subject
        .writer(1)
        .write(0, &pattern(20, SIZE as usize), Durability::Cached)
        .unwrap();
    for target in [1usize, 0, 2, 2, 0] {
        let info = subject
            .revert(1, target as u64)
            .unwrap_or_else(|error| panic!("revert to snapshot {target}: {error}"))
            .into_inner();
        assert_eq!(info.size_bytes, SIZE, "revert: the size stays");
        let mut expected = versions[target].clone();
        expected.resize(SIZE as usize, 0);
        assert_same("revert", 0, &subject.contents(1), &expected);
        for (round, version) in versions.iter().enumerate() {
            assert_same(
                "revert: every snapshot survives",
                0,
                &subject.snapshot_contents(round as u64),
                version,
            );
        }
        subject
            .writer(1)
            .write(SIZE - 65536, &pattern(30, 65536), Durability::Cached)
            .unwrap();
    }
}

/// V4: a writer puts number n on volume 1, waits, then on volume 2; a cut may never show 2 ahead of 1.
fn group_snapshots_are_one_cut(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    subject.blank(1, MIB);
    subject.blank(2, MIB);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut queues = [subject.writer(1), subject.writer(2)];
        let stop = &stop;
        scope.spawn(move || {
            let mut number = 0u64;
            while !stop.load(Ordering::SeqCst) {
                number += 1;
                let block = number.to_le_bytes().repeat(512);
                for queue in &mut queues {
                    queue
                        .write(0, &block, Durability::Cached)
                        .expect("V4: a write during a snapshot");
                }
            }
        });
        for round in 0..20 {
            let taken = subject.snapshots(&[(2 * round, 1), (2 * round + 1, 2)]);
            let failed = taken.err();
            if failed.is_some() || round == 19 {
                stop.store(true, Ordering::SeqCst);
            }
            if let Some(error) = failed {
                panic!("V4: a group snapshot under load: {error}");
            }
        }
    });
    let number = |snapshot| {
        let bytes = subject.snapshot_contents(snapshot);
        let (first, rest) = bytes[..4096].split_at(8);
        assert!(
            rest.chunks(8).all(|word| word == first),
            "B8: a snapshot holds half a block"
        );
        u64::from_le_bytes(first.try_into().expect("eight bytes"))
    };
    for round in 0..20 {
        let (first, second) = (number(2 * round), number(2 * round + 1));
        assert!(
            first == second || first == second + 1,
            "V4: cut {round} holds write {first} on the first volume and {second} on the second"
        );
    }
}

/// V5, with a chain of clones and snapshots taken apart in every order, then the space it gives back.
fn anything_is_deleted_in_any_order(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    let baseline = subject.status().allocated_bytes;
    let ids = [
        VersionId::Volume(volume_id(1)),
        VersionId::Snapshot(snapshot_id(1)),
        VersionId::Volume(volume_id(2)),
        VersionId::Snapshot(snapshot_id(2)),
        VersionId::Volume(volume_id(3)),
    ];
    for order in permutations(ids.len()) {
        let size = MIB / 2;
        subject.blank(1, size);
        let mut model = pattern(1, size as usize);
        subject.writer(1).write(0, &model, Durability::Cached).unwrap();
        subject.snapshot(1, 1);
        let mut contents = BTreeMap::from([(0, model.clone()), (1, model.clone())]);
        subject.clone_of(2, size, DataSource::Snapshot(snapshot_id(1)));
        let bytes = pattern(2, 70 * 1024);
        subject
            .writer(2)
            .write(65536, &bytes, Durability::Cached)
            .unwrap();
        model[65536..65536 + bytes.len()].copy_from_slice(&bytes);
        subject.snapshot(2, 2);
        contents.insert(2, model.clone());
        contents.insert(3, model.clone());
        subject.clone_of(3, size, DataSource::Snapshot(snapshot_id(2)));
        subject
            .writer(3)
            .write(131072, &bytes, Durability::Cached)
            .unwrap();
        model[131072..131072 + bytes.len()].copy_from_slice(&bytes);
        contents.insert(4, model);
        for gone in &order {
            match ids[*gone] {
                VersionId::Volume(id) => super::block_on(subject.backend.delete_volume(id)).map(drop),
                VersionId::Snapshot(id) => super::block_on(subject.backend.delete_snapshot(id)).map(drop),
            }
            .unwrap_or_else(|error| panic!("V5: order {order:?}: deleting {:?}: {error}", ids[*gone]));
            contents.remove(gone);
            for (index, expected) in &contents {
                assert_same(
                    &format!("V5: order {order:?}, {:?} after {gone} went", ids[*index]),
                    0,
                    &subject.contents_of(ids[*index]),
                    expected,
                );
            }
        }
    }
    subject.wait_for_space(baseline);
}

/// Returns a third of all orders, which has every object first, last and in between.
fn permutations(count: usize) -> Vec<Vec<usize>> {
    fn extend(prefix: Vec<usize>, count: usize, all: &mut Vec<Vec<usize>>) {
        if prefix.len() == count {
            all.push(prefix);
            return;
        }
        for next in (0..count).filter(|next| !prefix.contains(next)) {
            let mut longer = prefix.clone();
            longer.push(next);
            extend(longer, count, all);
        }
    }
    let mut all = Vec::new();
    extend(Vec::new(), count, &mut all);
    all.into_iter().step_by(3).collect()
}

/// V4 to V6 with random calls against whole images in memory.
fn random_histories_match_a_plain_model(fixture: &mut dyn BackendFixture) {
    for seed in 0..4u64 {
        let subject = Subject::fresh(fixture);
        let mut random = SplitMix::new(seed);
        let mut volumes: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut snapshots: BTreeMap<u64, (u64, Vec<u8>)> = BTreeMap::new();
        for step in 0..150u64 {
            let pick = |random: &mut SplitMix, keys: Vec<u64>| {
                let index = random.below(keys.len().max(1) as u64) as usize;
                keys.get(index).copied()
            };
            let volume = pick(&mut random, volumes.keys().copied().collect());
            let snapshot = pick(&mut random, snapshots.keys().copied().collect());
            match (random.below(20), volume, snapshot) {
                (0, _, _) | (_, None, _) if volumes.len() < 6 => {
                    subject.blank(step, MIB);
                    volumes.insert(step, vec![0; MIB as usize]);
                }
                (1..=10, Some(volume), _) => {
                    let image = volumes.get_mut(&volume).expect("picked");
                    let length = (1 + random.below(40)) * 4096;
                    let offset = random.below((image.len() as u64 - length) / 4096) * 4096;
                    let range = offset as usize..(offset + length) as usize;
                    let mut queue = subject.writer(volume);
                    if random.below(4) == 0 {
                        queue.discard(offset, length).expect("discard");
                        image[range].fill(0);
                    } else {
                        let bytes = pattern(step, length as usize);
                        queue.write(offset, &bytes, Durability::Cached).expect("write");
                        image[range].copy_from_slice(&bytes);
                    }
                }
                (11..=13, Some(volume), _) if snapshots.len() < 10 => {
                    subject.snapshot(step, volume);
                    snapshots.insert(step, (volume, volumes[&volume].clone()));
                }
                (14, _, Some(snapshot)) if volumes.len() < 6 => {
                    let image = snapshots[&snapshot].1.clone();
                    let source = DataSource::Snapshot(snapshot_id(snapshot));
                    subject.clone_of(step, image.len() as u64, source);
                    volumes.insert(step, image);
                }
                (15, Some(volume), _) if volumes.len() < 6 => {
                    let image = volumes[&volume].clone();
                    let source = DataSource::Volume(volume_id(volume));
                    subject.clone_of(step, image.len() as u64, source);
                    volumes.insert(step, image);
                }
                (16, _, Some(snapshot)) => {
                    let (volume, image) = &snapshots[&snapshot];
                    if let Some(present) = volumes.get_mut(volume) {
                        subject.revert(*volume, snapshot).expect("revert");
                        let size = present.len();
                        present.clone_from(image);
                        present.resize(size, 0);
                    }
                }
                (17, Some(volume), _) => {
                    subject.delete(volume).expect("V5: delete");
                    volumes.remove(&volume);
                }
                (18, _, Some(snapshot)) => {
                    subject.delete_snapshot(snapshot).expect("V5: delete");
                    snapshots.remove(&snapshot);
                }
                (19, Some(volume), _) => {
                    let image = volumes.get_mut(&volume).expect("picked");
                    if (image.len() as u64) < 2 * MIB {
                        image.resize(image.len() + 36864, 0);
                        subject.extend(volume, image.len() as u64).expect("extend");
                    }
                }
                _ => {}
            }
        }
        for (number, image) in &volumes {
            let label = format!("V4-V6: seed {seed}, volume {number}");
            assert_same(&label, 0, &subject.contents(*number), image);
        }
        for (number, (_, image)) in &snapshots {
            let id = VersionId::Snapshot(snapshot_id(*number));
            let device = subject.device(id, OpenMode::ReadOnly).expect("open");
            let mut queue = BlockingQueue::open(&device).expect("queue");
            let label = format!("V4-V6: seed {seed}, snapshot {number}");
            assert_same(&label, 0, &queue.read(0, image.len()).unwrap(), image);
        }
    }
}
