//! Compares what a pool says of differences with the model (V9).

use quarry_contract::conformance::SplitMix;
use quarry_contract::{Difference, VersionId};

use super::model::{Contents, snapshot_id, volume_id};
use super::sectors::{SECTOR_BYTES, Value};
use super::world::chain;
use super::{Violation, World};

/// How many pairs of versions are compared at a time.
const PAIRS: usize = 4;

/// A version with its size in bytes.
struct Subject<'a> {
    id: VersionId,
    size_bytes: u64,
    contents: &'a Contents,
}

impl World {
    /// Compares the differences of a few pairs of versions, drawn anew for each moment of a history.
    pub(super) fn compare_differences(&self, moment: u64) -> Result<(), Violation> {
        let volumes = self.model.volumes.iter().map(|(number, volume)| Subject {
            id: VersionId::Volume(volume_id(*number)),
            size_bytes: volume.size_bytes,
            contents: &volume.contents,
        });
        let snapshots = self.model.snapshots.iter().map(|(number, snapshot)| Subject {
            id: VersionId::Snapshot(snapshot_id(*number)),
            size_bytes: snapshot.size_bytes,
            contents: &snapshot.contents,
        });
        let subjects: Vec<Subject<'_>> = volumes.chain(snapshots).collect();
        if subjects.is_empty() {
            return Ok(());
        }
        // Not the world's own randomness: looking must not change what happens next.
        let mut random = SplitMix::new(self.setup.seed ^ moment << 20);
        for _ in 0..PAIRS {
            let mut draw = || &subjects[random.below(subjects.len() as u64) as usize];
            let (of, since) = (draw(), draw());
            let since = (random.below(4) > 0).then_some(since);
            self.compare_pair(of, since, 1 + random.below(20) as usize)?;
        }
        Ok(())
    }

    fn compare_pair(
        &self,
        of: &Subject<'_>,
        since: Option<&Subject<'_>>,
        most: usize,
    ) -> Result<(), Violation> {
        let name = format!(
            "differences of {:?} since {:?}",
            of.id,
            since.map(|since| since.id)
        );
        let mut runs: Vec<Difference> = Vec::new();
        let mut from = Some(0);
        while let Some(begin) = from {
            let page = self
                .pool()
                .differences(of.id, since.map(|since| since.id), begin, most);
            let page = page.map_err(|error| Violation(format!("{name}: {}", chain(&error))))?;
            if page.next_bytes.is_some_and(|next| next <= begin) {
                return Err(Violation(format!("{name}: no progress at {begin}")));
            }
            runs.extend(page.runs);
            from = page.next_bytes;
        }
        if !runs.is_sorted_by(|a, b| a.offset + a.length <= b.offset) {
            return Err(Violation(format!("{name}: out of order: {runs:?}")));
        }
        let nothing = Contents::default();
        let old_contents = since.map_or(&nothing, |since| since.contents);
        let chunk_bytes = self.setup.chunk_bytes;
        let spurious = |chunk: u64| {
            !of.contents
                .changed_since(old_contents, chunk..chunk + chunk_bytes)
        };
        for run in &runs {
            let first = run.offset / chunk_bytes * chunk_bytes;
            let mut chunks = (first..run.offset + run.length).step_by(chunk_bytes as usize);
            if let Some(chunk) = chunks.find(|chunk| spurious(*chunk)) {
                return Err(Violation(format!(
                    "{name}: {run:?} is told, and nothing changed the chunk at {chunk}"
                )));
            }
        }
        let touched = of.contents.touched();
        let touched = touched.chain(since.into_iter().flat_map(|since| since.contents.touched()));
        for lba in touched {
            let offset = lba * SECTOR_BYTES;
            if offset >= of.size_bytes {
                continue;
            }
            let now = of.contents.current(lba);
            let before = since
                .filter(|since| offset < since.size_bytes)
                .map_or(Value::Zero, |since| since.contents.current(lba));
            let index = runs.partition_point(|run| run.offset + run.length <= offset);
            let run = runs.get(index).filter(|run| run.offset <= offset);
            match run {
                None if now != before => {
                    return Err(Violation(format!(
                        "{name}: sector {lba} is {now:?} and was {before:?}, which is not told"
                    )));
                }
                Some(run) if run.zeros && now != Value::Zero => {
                    return Err(Violation(format!(
                        "{name}: {run:?} is not zeros at sector {lba}: {now:?}"
                    )));
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }
}
