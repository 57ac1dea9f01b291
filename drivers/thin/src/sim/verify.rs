//! Compares a pool with its model.

use std::collections::{BTreeMap, BTreeSet};

use quarry_contract::{OpenMode, VersionId};

use super::action::hot_chunks;
use super::model::{Contents, Model, snapshot_id, volume_id};
use super::sectors::{SECTOR_BYTES, Value, describe_foreign, identify};
use super::world::chain;
use super::{Violation, World};

/// What reading a version gave, by sector.
type Found = BTreeMap<u64, Value>;

/// What was noticed of damage.
#[derive(Debug, Clone, Default)]
pub struct DamageSurvey {
    /// What the pool's own check found.
    pub problems: Vec<String>,
    /// Chunks whose read failed.
    pub unreadable: usize,
}

/// Compares what was read of a version at an offset with what it is to hold.
type Compare<'a> = dyn Fn(&str, &Contents, u64, &[u8]) -> Result<(), Violation> + 'a;

/// What a pool was found to hold.
struct Observed {
    volumes: BTreeMap<u64, Found>,
    snapshots: BTreeMap<u64, Found>,
}

/// Compares bytes that were read with what a read returns (O1).
pub(super) fn compare_current(
    name: &str,
    contents: &Contents,
    offset: u64,
    bytes: &[u8],
) -> Result<(), Violation> {
    for (index, sector) in bytes.chunks(SECTOR_BYTES as usize).enumerate() {
        let lba = offset / SECTOR_BYTES + index as u64;
        let (found, expected) = (identify(sector, lba), contents.current(lba));
        if found != expected {
            let detail = match found {
                Value::Foreign => describe_foreign(sector),
                _ => format!("{found:?}"),
            };
            return Err(Violation(format!(
                "{name}: sector {lba} reads {detail}, expected {expected:?}"
            )));
        }
    }
    Ok(())
}

impl World {
    /// Compares everything with what reads return now (O1), and checks the pool's own structure.
    ///
    /// # Errors
    /// The first difference.
    pub fn verify_now(&mut self) -> Result<(), Violation> {
        let result = self.check_pool().and_then(|()| {
            self.compare_now()?;
            self.compare_differences(self.moment())
        });
        result.map_err(|violation| self.explain(violation))
    }

    /// Deletes everything, reclaims, and checks that the space is back to what it was when the pool was new.
    ///
    /// # Errors
    /// When something does not go or does not come back.
    pub fn empty_out(&mut self, allocated_when_new: u64) -> Result<(), Violation> {
        let result = self.delete_all().and_then(|()| {
            self.check_pool()?;
            let status = self.pool().status();
            // Key areas are kept for the keys to come.
            let keys = self.pool().stat().key_chunks * self.setup.chunk_bytes;
            if status.allocated_bytes != allocated_when_new + keys || status.reclaimable_bytes != 0 {
                return Err(Violation(format!(
                    "space: an emptied pool has {} bytes allocated, a new one {allocated_when_new}: {status:?}",
                    status.allocated_bytes
                )));
            }
            Ok(())
        });
        result.map_err(|violation| self.explain(violation))
    }

    fn delete_all(&mut self) -> Result<(), Violation> {
        self.handles.clear();
        let volumes: Vec<u64> = self.model.volumes.keys().copied().collect();
        let snapshots: Vec<u64> = self.model.snapshots.keys().copied().collect();
        for volume in volumes {
            self.perform(&super::Action::DeleteVolume { volume })?;
        }
        for snapshot in snapshots {
            self.perform(&super::Action::DeleteSnapshot { snapshot })?;
        }
        self.reclaim()
    }

    /// Does all background work there is, and writes a checkpoint.
    ///
    /// # Errors
    /// When it fails or never ends.
    pub fn reclaim(&mut self) -> Result<(), Violation> {
        for _ in 0..2 {
            let mut steps = 0;
            loop {
                let step = self.pool().maintain();
                let step =
                    step.map_err(|error| Violation(format!("maintenance failed: {}", chain(&error))))?;
                if !step.more {
                    break;
                }
                steps += 1;
                if steps > 100_000 {
                    return Err(Violation("maintenance never ends".into()));
                }
            }
            self.pool()
                .checkpoint()
                .map_err(|error| Violation(format!("a checkpoint failed: {}", chain(&error))))?;
        }
        Ok(())
    }

    /// Looks at a pool on a damaged medium: what cannot be read is noticed damage; what is read must be right.
    ///
    /// # Errors
    /// When something reads wrong, or an object is missing or made up.
    pub fn survey_damage(&mut self) -> Result<DamageSurvey, Violation> {
        self.survey(&compare_current)
    }

    /// As [`survey_damage`](Self::survey_damage), of a pool in which what was discarded may be there again.
    ///
    /// # Errors
    /// When something reads wrong, or an object is missing or made up.
    pub fn survey_undiscarded(&mut self) -> Result<DamageSurvey, Violation> {
        self.survey(&|name, contents, offset, bytes| {
            for (at, sector) in bytes.chunks(SECTOR_BYTES as usize).enumerate() {
                let lba = offset / SECTOR_BYTES + at as u64;
                let (found, expected) = (identify(sector, lba), contents.current(lba));
                let was_discarded = expected == Value::Zero && matches!(found, Value::Written(_));
                if found != expected && !was_discarded {
                    return Err(Violation(format!(
                        "{name}: sector {lba} reads {found:?}, expected {expected:?}"
                    )));
                }
            }
            Ok(())
        })
    }

    fn survey(&mut self, compare: &Compare<'_>) -> Result<DamageSurvey, Violation> {
        let mut survey = DamageSurvey::default();
        match self.pool().check() {
            Ok(report) => survey.problems = report.problems,
            Err(error) => survey.problems.push(chain(&error)),
        }
        let result = self.compare_objects(&self.model).and_then(|()| {
            for (number, volume) in &self.model.volumes {
                let id = VersionId::Volume(volume_id(*number));
                let name = format!("volume {number}");
                survey.unreadable +=
                    self.survey_version(&name, id, volume.size_bytes, &volume.contents, compare)?;
            }
            for (number, snapshot) in &self.model.snapshots {
                let id = VersionId::Snapshot(snapshot_id(*number));
                let name = format!("snapshot {number}");
                survey.unreadable +=
                    self.survey_version(&name, id, snapshot.size_bytes, &snapshot.contents, compare)?;
            }
            Ok(())
        });
        result.map_err(|violation| self.explain(violation))?;
        Ok(survey)
    }

    /// Compares what can be read of a version; returns how many chunks cannot.
    fn survey_version(
        &self,
        name: &str,
        id: VersionId,
        size_bytes: u64,
        contents: &Contents,
        compare: &Compare<'_>,
    ) -> Result<usize, Violation> {
        let handle = self.open_version(id, OpenMode::ReadOnly);
        let handle = handle.map_err(|error| Violation(format!("opening {name}: {}", chain(&error))))?;
        let mut unreadable = 0;
        for index in self.places(size_bytes, std::iter::once(contents)) {
            let offset = index * self.setup.chunk_bytes;
            let mut bytes = vec![0xa5; self.setup.chunk_bytes.min(size_bytes - offset) as usize];
            match handle.read(offset, &mut bytes) {
                Ok(()) => compare(name, contents, offset, &bytes)?,
                Err(_) => unreadable += 1,
            }
        }
        Ok(unreadable)
    }

    /// Returns the chunks that are worth reading, ordered.
    fn places<'a>(&self, size_bytes: u64, contents: impl Iterator<Item = &'a Contents>) -> BTreeSet<u64> {
        let chunk = self.setup.chunk_bytes;
        let mut places: BTreeSet<u64> = hot_chunks(&self.setup, size_bytes).into_iter().collect();
        places.extend(contents.flat_map(|one| one.touched().map(|lba| lba * SECTOR_BYTES / chunk)));
        places.retain(|index| index * chunk < size_bytes);
        places
    }

    /// Runs the engine's own check and holds its figures against each other.
    pub(super) fn check_pool(&mut self) -> Result<(), Violation> {
        let report = self.pool().check();
        let report = report.map_err(|error| Violation(format!("check failed: {}", chain(&error))))?;
        if !report.problems.is_empty() {
            return Err(Violation(format!("check found: {}", report.problems.join("; "))));
        }
        let status = self.pool().status();
        let data_bytes = report.data_chunks * self.setup.chunk_bytes;
        let sums_up = status.free_bytes + status.allocated_bytes <= status.total_bytes
            && data_bytes <= status.allocated_bytes
            && status.volume_count == self.pool().volumes().len() as u64
            && status.provisioned_bytes
                == self
                    .pool()
                    .volumes()
                    .iter()
                    .map(|volume| volume.size_bytes)
                    .sum::<u64>()
            && status.snapshot_count == self.pool().snapshots().len() as u64;
        if !sums_up {
            return Err(Violation(format!("figures disagree: {status:?}, {report:?}")));
        }
        // What a scrub could not read counts as damaged.
        let scrub = self.pool().scrub_status();
        let scrub = scrub.map_err(|error| Violation(format!("scrub: {}", chain(&error))))?;
        if !self.had_faults && scrub.bad_blocks + scrub.skipped_bytes > 0 {
            return Err(Violation(format!("Z2: a scrub has found {scrub:?}")));
        }
        Ok(())
    }

    pub(super) fn compare_now(&mut self) -> Result<(), Violation> {
        let observed = self.observe(&[&self.model.clone()])?;
        let model = &self.model;
        self.compare_objects(model)?;
        let current = |contents: &Contents, lba: u64, value: Value| contents.current(lba) == value;
        compare_contents(model, &observed, current)?;
        for (number, volume) in &model.volumes {
            let least = volume.contents.chunks_with_data(self.setup.chunk_bytes) * self.setup.chunk_bytes;
            let info = self.pool().volume(volume_id(*number));
            let info = info.map_err(|error| Violation(format!("volume {number}: {}", chain(&error))))?;
            if info.mapped_bytes < least {
                return Err(Violation(format!(
                    "volume {number} says {} bytes mapped and holds {least}",
                    info.mapped_bytes
                )));
            }
        }
        Ok(())
    }

    /// After a crash: finds which of the possible models holds, and makes what was found the model.
    pub(super) fn settle_on_what_is_found(&mut self) -> Result<(), Violation> {
        self.check_pool()?;
        let after = self.model.clone();
        let before = self.before.take().unwrap_or_else(|| after.clone());
        let observed = self.observe(&[&before, &after])?;
        let mut reasons = Vec::new();
        for (name, candidate) in [("after", after), ("before", before)] {
            let possible = self
                .compare_objects(&candidate)
                .and_then(|()| compare_contents(&candidate, &observed, Contents::may_hold))
                .and_then(|()| compare_wholes(&candidate, &observed));
            match possible {
                Ok(()) => {
                    self.model = candidate;
                    self.adopt(&observed);
                    return Ok(());
                }
                Err(reason) => reasons.push(format!("not as {name} the interrupted step: {reason}")),
            }
        }
        Err(Violation(format!("V2: {}", reasons.join("; "))))
    }

    fn adopt(&mut self, observed: &Observed) {
        let pretends = self.device.pretends();
        for (number, found) in &observed.volumes {
            if let Some(volume) = self.model.volumes.get_mut(number) {
                volume.contents.become_found(found, pretends);
            }
        }
        for (number, found) in &observed.snapshots {
            if let Some(snapshot) = self.model.snapshots.get_mut(number) {
                snapshot.contents.become_found(found, pretends);
            }
        }
    }

    /// Compares which objects there are and what is said of them.
    fn compare_objects(&self, model: &Model) -> Result<(), Violation> {
        let volumes = self.pool().volumes();
        let mut expected: Vec<_> = model
            .volumes
            .iter()
            .map(|(number, volume)| {
                (
                    volume_id(*number),
                    volume.size_bytes,
                    volume.source,
                    volume.reserved,
                )
            })
            .collect();
        expected.sort_by_key(|one| one.0);
        let found: Vec<_> = volumes
            .iter()
            .map(|one| (one.id, one.size_bytes, one.source, one.reserved))
            .collect();
        if found != expected {
            return Err(Violation(format!("volumes are {found:?}, expected {expected:?}")));
        }
        let found: Vec<_> = self
            .pool()
            .snapshots()
            .iter()
            .map(|one| (one.id, one.size_bytes, one.volume))
            .collect();
        let mut expected: Vec<_> = model
            .snapshots
            .iter()
            .map(|(number, one)| (snapshot_id(*number), one.size_bytes, volume_id(one.volume)))
            .collect();
        expected.sort_by_key(|one| one.0);
        if found != expected {
            return Err(Violation(format!(
                "snapshots are {found:?}, expected {expected:?}"
            )));
        }
        Ok(())
    }

    /// Reads everything that one of the models knows of, and the places where histories write.
    fn observe(&self, models: &[&Model]) -> Result<Observed, Violation> {
        let mut observed = Observed {
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
        };
        for volume in self.pool().volumes() {
            let known = models.iter().filter_map(|model| {
                let mut volumes = model.volumes.iter();
                volumes.find(|(number, _)| volume_id(**number) == volume.id)
            });
            let known: Vec<_> = known.collect();
            let Some((number, _)) = known.first() else {
                return Err(Violation(format!("volume {} came from nowhere", volume.id)));
            };
            let contents = known.iter().map(|(_, volume)| &volume.contents);
            let found = self.read_version(
                &format!("volume {number}"),
                VersionId::Volume(volume.id),
                volume.size_bytes,
                contents,
            )?;
            observed.volumes.insert(**number, found);
        }
        for snapshot in self.pool().snapshots() {
            let known = models.iter().filter_map(|model| {
                let mut snapshots = model.snapshots.iter();
                snapshots.find(|(number, _)| snapshot_id(**number) == snapshot.id)
            });
            let known: Vec<_> = known.collect();
            let Some((number, _)) = known.first() else {
                return Err(Violation(format!("snapshot {} came from nowhere", snapshot.id)));
            };
            let contents = known.iter().map(|(_, snapshot)| &snapshot.contents);
            let found = self.read_version(
                &format!("snapshot {number}"),
                VersionId::Snapshot(snapshot.id),
                snapshot.size_bytes,
                contents,
            )?;
            observed.snapshots.insert(**number, found);
        }
        Ok(observed)
    }

    fn read_version<'a>(
        &self,
        name: &str,
        id: VersionId,
        size_bytes: u64,
        contents: impl Iterator<Item = &'a Contents>,
    ) -> Result<Found, Violation> {
        let chunk = self.setup.chunk_bytes;
        let handle = self.open_version(id, OpenMode::ReadOnly);
        let handle = handle.map_err(|error| Violation(format!("opening {name}: {}", chain(&error))))?;
        let mut found = Found::new();
        for index in self.places(size_bytes, contents) {
            let offset = index * chunk;
            let mut bytes = vec![0xa5; chunk.min(size_bytes - offset) as usize];
            handle
                .read(offset, &mut bytes)
                .map_err(|error| Violation(format!("reading {name} at {offset}: {error}")))?;
            for (at, sector) in bytes.chunks(SECTOR_BYTES as usize).enumerate() {
                let lba = offset / SECTOR_BYTES + at as u64;
                let value = identify(sector, lba);
                if value == Value::Foreign {
                    return Err(Violation(format!(
                        "V6: {name} sector {lba} reads {}",
                        describe_foreign(sector)
                    )));
                }
                found.insert(lba, value);
            }
        }
        Ok(found)
    }
}

/// Compares what is all or nothing (O5).
fn compare_wholes(model: &Model, observed: &Observed) -> Result<(), Violation> {
    let volumes = observed.volumes.iter();
    let volumes = volumes.filter_map(|(number, found)| Some((&model.volumes.get(number)?.contents, found)));
    let snapshots = observed.snapshots.iter();
    let snapshots =
        snapshots.filter_map(|(number, found)| Some((&model.snapshots.get(number)?.contents, found)));
    let torn = volumes
        .chain(snapshots)
        .find_map(|(contents, found)| contents.torn(found));
    torn.map_or(Ok(()), |torn| Err(Violation(torn)))
}

fn compare_contents(
    model: &Model,
    observed: &Observed,
    holds: impl Fn(&Contents, u64, Value) -> bool,
) -> Result<(), Violation> {
    let compare = |name: &str, contents: &Contents, found: &Found| {
        for (lba, value) in found {
            if !holds(contents, *lba, *value) {
                return Err(Violation(format!(
                    "{name} sector {lba} reads {value:?}, expected {}",
                    contents.describe(*lba)
                )));
            }
        }
        Ok(())
    };
    for (number, found) in &observed.volumes {
        let volume = model.volumes.get(number);
        let volume = volume.ok_or_else(|| Violation(format!("volume {number} should be gone")))?;
        compare(&format!("volume {number}"), &volume.contents, found)?;
    }
    for (number, found) in &observed.snapshots {
        let snapshot = model.snapshots.get(number);
        let snapshot = snapshot.ok_or_else(|| Violation(format!("snapshot {number} should be gone")))?;
        compare(&format!("V4: snapshot {number}"), &snapshot.contents, found)?;
    }
    Ok(())
}
