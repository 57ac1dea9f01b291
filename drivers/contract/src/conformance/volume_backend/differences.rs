//! V9: differences.

use super::{BackendFixture, MIB, Subject, snapshot_id, volume_id};
use crate::conformance::block_on;
use crate::conformance::pattern::{SplitMix, pattern};
use crate::{DataSource, Difference, DriverError, Durability, VersionId};

pub(super) fn run(fixture: &mut dyn BackendFixture) {
    a_small_change_in_a_large_volume_is_told_tightly(fixture);
    nothing_that_differs_is_left_out(fixture);
    what_is_not_there_has_no_differences(fixture);
}

fn volume(number: u64) -> VersionId {
    VersionId::Volume(volume_id(number))
}

fn snapshot(number: u64) -> VersionId {
    VersionId::Snapshot(snapshot_id(number))
}

impl Subject {
    /// Returns all differences, asked for `most` at a time.
    fn differences(&self, of: VersionId, since: Option<VersionId>, most: usize) -> Vec<Difference> {
        let mut all = Vec::new();
        let mut from = 0;
        loop {
            let page = block_on(self.backend.differences(of, since, from, most))
                .unwrap_or_else(|error| panic!("V9: differences of {of:?} since {since:?}: {error}"));
            assert!(page.runs.len() <= most, "V9: more than {most} runs");
            let before: u64 = all.last().map_or(0, |run: &Difference| run.offset + run.length);
            for run in &page.runs {
                assert!(run.offset >= from && run.offset >= before, "V9: out of order");
            }
            all.extend(page.runs);
            match page.next_bytes {
                Some(next) => {
                    assert!(
                        next >= from && (next > from || !all.is_empty()),
                        "V9: no progress"
                    );
                    from = next;
                }
                None => return all,
            }
        }
    }

    /// Compares what is said to differ with what does.
    fn check_differences(&self, of: VersionId, since: Option<VersionId>) {
        let new = self.contents_of(of);
        let mut old = since.map_or_else(Vec::new, |since| self.contents_of(since));
        old.resize(new.len(), 0);
        let runs = self.differences(of, since, usize::MAX);
        for most in [1, 3] {
            let pieces = self.differences(of, since, most);
            let bytes = |runs: &[Difference]| -> u64 { runs.iter().map(|run| run.length).sum() };
            assert_eq!(bytes(&pieces), bytes(&runs), "V9: asked for {most} at a time");
        }
        let mut at = 0;
        for run in runs.iter().chain([&Difference {
            offset: new.len() as u64,
            length: 0,
            zeros: false,
        }]) {
            let (begin, end) = (run.offset as usize, (run.offset + run.length) as usize);
            assert!(end <= new.len(), "V9: {run:?} is beyond the end of {of:?}");
            assert!(
                new[at..begin] == old[at..begin],
                "V9: {of:?} differs from {since:?} between {at} and {begin}, which is not told"
            );
            assert!(
                !run.zeros || new[begin..end].iter().all(|byte| *byte == 0),
                "V9: {run:?} of {of:?} does not read zeros"
            );
            at = end;
        }
    }
}

fn a_small_change_in_a_large_volume_is_told_tightly(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    let size = 1 << 40;
    let chunk = subject.status().chunk_bytes;
    subject.blank(1, size);
    assert_eq!(subject.differences(volume(1), None, 10), [], "V9: a blank volume");
    let mut queue = subject.writer(1);
    let places = [0, size / 3 / chunk * chunk, size - chunk];
    for place in places {
        queue
            .write(place, &pattern(place, 4096), Durability::Cached)
            .unwrap();
    }
    let all = subject.differences(volume(1), None, 10);
    let expected: Vec<u64> = all.iter().map(|run| run.offset / chunk * chunk).collect();
    assert_eq!(expected, places, "V9: three places in 1 TiB");
    assert!(
        all.iter().all(|run| run.length <= chunk && !run.zeros),
        "V9: {all:?}"
    );
    subject.snapshot(1, 1);
    assert_eq!(
        subject.differences(volume(1), Some(snapshot(1)), 10),
        [],
        "V9: nothing changed"
    );
    queue.discard(places[1], chunk).unwrap();
    queue
        .write(places[2] + 4096, &pattern(9, 4096), Durability::Cached)
        .unwrap();
    let changed = subject.differences(volume(1), Some(snapshot(1)), 10);
    assert_eq!(changed.len(), 2, "V9: a discard and a write: {changed:?}");
    assert!(changed[0].zeros && !changed[1].zeros, "V9: {changed:?}");
    // And the other way round: what the snapshot has that the volume has not.
    let back = subject.differences(snapshot(1), Some(volume(1)), 10);
    assert!(
        back.len() == 2 && back.iter().all(|run| !run.zeros),
        "V9: {back:?}"
    );
}

fn nothing_that_differs_is_left_out(fixture: &mut dyn BackendFixture) {
    let size = 4 * MIB;
    for seed in 0..3 {
        let subject = Subject::fresh(fixture);
        let mut random = SplitMix::new(seed);
        subject.blank(1, size);
        let mut volumes = vec![1];
        let mut snapshots = Vec::new();
        for step in 0..40u64 {
            let of = volumes[random.below(volumes.len() as u64) as usize];
            match random.below(10) {
                0..5 => {
                    let length = 512 * (1 + random.below(300));
                    let offset = 512 * random.below((size - length) / 512);
                    let bytes = pattern(seed ^ step << 8, length as usize);
                    subject
                        .writer(of)
                        .write(offset, &bytes, Durability::Cached)
                        .unwrap();
                }
                5..7 => {
                    let length = 64 * 1024 * (1 + random.below(8));
                    let offset = 4096 * random.below((size - length) / 4096);
                    subject.writer(of).discard(offset, length).unwrap();
                }
                7..9 => {
                    subject.snapshot(step, of);
                    snapshots.push(step);
                }
                _ if volumes.len() < 3 && !snapshots.is_empty() => {
                    let source = snapshots[random.below(snapshots.len() as u64) as usize];
                    let source = DataSource::Snapshot(snapshot_id(source));
                    subject.clone_of(100 + step, size, source);
                    volumes.push(100 + step);
                }
                _ if snapshots.len() > 3 => {
                    let gone = snapshots.remove(random.below(snapshots.len() as u64) as usize);
                    subject.delete_snapshot(gone).unwrap();
                }
                _ => {}
            }
        }
        let versions: Vec<VersionId> = volumes
            .iter()
            .map(|number| volume(*number))
            .chain(snapshots.iter().map(|number| snapshot(*number)))
            .collect();
        for of in &versions {
            subject.check_differences(*of, None);
            for since in &versions {
                subject.check_differences(*of, Some(*since));
            }
        }
    }
}

fn what_is_not_there_has_no_differences(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    subject.blank(1, MIB);
    for (of, since) in [
        (volume(2), None),
        (volume(1), Some(snapshot(1))),
        (snapshot(1), Some(volume(1))),
    ] {
        let refused = block_on(subject.backend.differences(of, since, 0, 1));
        assert!(
            matches!(refused, Err(DriverError::NotFound { .. })),
            "V9: {of:?} since {since:?}: {refused:?}"
        );
    }
    let beyond = block_on(subject.backend.differences(volume(1), None, 1 << 50, 1));
    assert_eq!(
        beyond.ok(),
        Some(crate::Differences::default()),
        "V9: beyond the end"
    );
}
