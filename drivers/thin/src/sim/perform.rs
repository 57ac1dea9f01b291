//! Carries out one action on the pool and on the model, and compares what each says.

use std::sync::Arc;

use quarry_contract::{
    DataSource, DriverError, Durability, ErrorKind, IoError, OpenMode, Outcome, PoolState, SnapshotSpec,
    VersionId, VolumeSpec,
};

use super::model::{Contents, Model, SnapshotModel, VolumeModel, snapshot_id, volume_id};
use super::sectors::{SECTOR_BYTES, Stamp, Value};
use super::world::{Step, chain, key};
use super::{Action, Violation, World};
use crate::data_path::medium;
use crate::{Place, Planned, PoolDevice, VersionHandle};

/// What a control call came to, freed of its type.
enum Called {
    Changed,
    Unchanged,
    Failed(DriverError),
}

impl<T> From<Result<Outcome<T>, DriverError>> for Called {
    fn from(result: Result<Outcome<T>, DriverError>) -> Self {
        match result {
            Ok(Outcome::Changed(_)) => Called::Changed,
            Ok(Outcome::Unchanged(_)) => Called::Unchanged,
            Err(error) => Called::Failed(error),
        }
    }
}

impl World {
    pub(super) fn perform(&mut self, action: &Action) -> Result<Step, Violation> {
        match *action {
            Action::Create { volume, size_bytes } => self.create(volume, size_bytes, DataSource::Blank, None),
            Action::CloneSnapshot {
                volume,
                size_bytes,
                snapshot,
            } => {
                let source = DataSource::Snapshot(snapshot_id(snapshot));
                let contents = self.model.snapshots[&snapshot].contents.clone();
                self.create(volume, size_bytes, source, Some(contents))
            }
            Action::CloneVolume {
                volume,
                size_bytes,
                origin,
            } => {
                let source = DataSource::Volume(volume_id(origin));
                let contents = self.model.volumes[&origin].contents.clone();
                self.create(volume, size_bytes, source, Some(contents))
            }
            Action::CreateAgain { volume } => self.create_again(volume),
            Action::Snapshot { ref group } => self.snapshot(group),
            Action::DeleteVolume { volume } => self.delete_volume(volume),
            Action::DeleteSnapshot { snapshot } => {
                let called = self.pool().delete_snapshot(snapshot_id(snapshot)).into();
                let mut after = self.model.clone();
                after.snapshots.remove(&snapshot);
                self.conclude("deleting a snapshot", called, after, false)
            }
            Action::Revert { volume, snapshot } => self.revert(volume, snapshot),
            Action::Reserve { volume, reserved } => {
                let called = self.pool().reserve_volume(volume_id(volume), reserved).into();
                let mut after = self.model.clone();
                let model = after.volumes.get_mut(&volume);
                model.expect("actions name volumes of the model").reserved = reserved;
                self.conclude("reserving a volume", called, after, false)
            }
            Action::Extend { volume, size_bytes } => self.extend(volume, size_bytes),
            Action::Write {
                volume,
                offset,
                length,
                durability,
            } => self.write(volume, offset, length, durability),
            Action::WriteAtomic {
                volume,
                offset,
                length,
                durability,
            } => self.write_atomic(volume, offset, length, durability),
            Action::Discard {
                volume,
                offset,
                length,
            } => {
                let handle = self.handle(volume)?;
                let result = handle.discard(offset, length);
                if result.is_ok() && (self.setup.may_be_full || self.faults_planned) {
                    // B4: what a snapshot shares may have been left for lack of space.
                    return self.learn_after_refusal(volume, offset, length, Value::Zero);
                }
                self.conclude_change(volume, offset, length, Value::Zero, result, false)
            }
            Action::Zero {
                volume,
                offset,
                length,
                mode,
            } => {
                let handle = self.handle(volume)?;
                let result = handle.write_zeroes(offset, length, mode);
                self.conclude_change(volume, offset, length, Value::Zero, result, true)
            }
            Action::Flush { volume } => {
                let handle = self.handle(volume)?;
                match handle.flush() {
                    Ok(()) => {
                        self.volume(volume).settle();
                        Ok(Step::Done)
                    }
                    Err(error) => self.interrupt("flushing", &error, None),
                }
            }
            Action::Read {
                volume,
                offset,
                length,
            } => self.read(volume, offset, length),
            Action::Maintain => match self.maintain() {
                Ok(()) => Ok(Step::Done),
                Err(error) => self.interrupt("maintenance", &error, None),
            },
            Action::Checkpoint => match self.pool().checkpoint() {
                Ok(()) => Ok(Step::Done),
                Err(error) => self.interrupt("a checkpoint", &error, None),
            },
            Action::CleanReopen => self.clean_reopen(),
            Action::Kill => self.kill(),
        }
    }

    /// Returns the contents of a volume of the model.
    fn volume(&mut self, number: u64) -> &mut Contents {
        let volume = self.model.volumes.get_mut(&number);
        &mut volume.expect("actions name volumes of the model").contents
    }

    /// Returns the read-write handle of a volume, opening it when needed.
    fn handle(&mut self, number: u64) -> Result<Arc<VersionHandle>, Violation> {
        if let Some(handle) = self.handles.get(&number) {
            return Ok(Arc::clone(handle));
        }
        let id = VersionId::Volume(volume_id(number));
        let handle = self
            .open_version(id, OpenMode::ReadWrite)
            .map_err(|error| Violation(format!("V7: opening volume {number}: {}", chain(&error))))?;
        self.handles.insert(number, Arc::clone(&handle));
        Ok(handle)
    }

    /// The device failed under a step: from here only recovery leads on. `after` is what holds if it happened.
    fn interrupt(
        &mut self,
        what: &str,
        error: &dyn std::error::Error,
        after: Option<Model>,
    ) -> Result<Step, Violation> {
        let stopped = match &self.pool {
            Some(pool) => pool.status().state != PoolState::Up,
            None => true,
        };
        if !self.device.is_cut() {
            if !self.faults_planned {
                return Err(Violation(format!("{what} failed: {}", chain(error))));
            }
            if !stopped {
                // A call that fails without stopping the pool has done nothing.
                return Ok(Step::Done);
            }
        }
        let before = self.model.clone();
        self.model = after.unwrap_or_else(|| before.clone());
        self.before = Some(before);
        Ok(Step::Interrupted)
    }

    /// Ends a control call. `after` is the model if it happened, not yet settled where it is durable.
    fn conclude(
        &mut self,
        what: &str,
        called: Called,
        after: Model,
        may_be_full: bool,
    ) -> Result<Step, Violation> {
        match called {
            Called::Changed => {
                self.model = after;
                Ok(Step::Done)
            }
            Called::Unchanged => Err(Violation(format!("V1: {what} says that nothing changed"))),
            Called::Failed(error)
                if error.kind() == ErrorKind::Full && may_be_full && self.setup.may_be_full =>
            {
                self.refused += 1;
                Ok(Step::Done)
            }
            Called::Failed(error) => self.interrupt(what, &error, Some(after)),
        }
    }

    fn create(
        &mut self,
        volume: u64,
        size_bytes: u64,
        source: DataSource,
        contents: Option<Contents>,
    ) -> Result<Step, Violation> {
        let spec = VolumeSpec {
            checksums: source == DataSource::Blank && self.setup.has_checksums(volume),
            reserved: volume.is_multiple_of(3),
            ..VolumeSpec::new(volume_id(volume), size_bytes, source)
        };
        let called: Called = self.call_create(volume, &spec);
        let mut contents = contents.unwrap_or_default();
        let mut after = self.model.clone();
        if matches!(called, Called::Changed) {
            // An answered clone is durable, and so is what its origin held at the time.
            contents.settle();
            if let DataSource::Volume(id) = source {
                for (number, origin) in &mut after.volumes {
                    if volume_id(*number) == id {
                        origin.contents.settle();
                    }
                }
            }
        }
        after.volumes.insert(
            volume,
            VolumeModel {
                size_bytes,
                source,
                reserved: spec.reserved,
                contents,
            },
        );
        self.conclude("creating a volume", called, after, true)
    }

    /// Creates a volume, encrypted where it is one of those that are.
    fn call_create(&self, volume: u64, spec: &VolumeSpec) -> Called {
        match self.setup.encrypts(volume) && spec.source == DataSource::Blank {
            true => self.pool().create_encrypted_volume(spec, &key()).into(),
            false => self.pool().create_volume(spec).into(),
        }
    }

    fn create_again(&mut self, volume: u64) -> Result<Step, Violation> {
        let existing = &self.model.volumes[&volume];
        let spec = VolumeSpec {
            checksums: existing.source == DataSource::Blank && self.setup.has_checksums(volume),
            ..VolumeSpec::new(volume_id(volume), existing.size_bytes, existing.source)
        };
        match self.call_create(volume, &spec) {
            Called::Unchanged => Ok(Step::Done),
            Called::Changed => Err(Violation(format!(
                "V1: creating volume {volume} again changed it"
            ))),
            // The repeated call waits for the commit of what the first one did.
            Called::Failed(error) => self.interrupt("V1: creating a volume again", &error, None),
        }
    }

    fn snapshot(&mut self, group: &[(u64, u64)]) -> Result<Step, Violation> {
        let specs: Vec<SnapshotSpec> = group
            .iter()
            .map(|(snapshot, volume)| SnapshotSpec {
                id: snapshot_id(*snapshot),
                volume: volume_id(*volume),
            })
            .collect();
        let called: Called = self.pool().create_snapshots(&specs).into();
        let answered = matches!(called, Called::Changed);
        let mut after = self.model.clone();
        for (snapshot, number) in group {
            let volume = after.volumes.get_mut(number);
            let volume = volume.expect("actions name volumes of the model");
            if answered {
                volume.contents.settle();
            }
            let snapshot_model = SnapshotModel {
                volume: *number,
                size_bytes: volume.size_bytes,
                contents: volume.contents.clone(),
            };
            after.snapshots.insert(*snapshot, snapshot_model);
        }
        self.conclude("taking snapshots", called, after, true)
    }

    fn delete_volume(&mut self, volume: u64) -> Result<Step, Violation> {
        if self.handles.contains_key(&volume) {
            match self.pool().delete_volume(volume_id(volume)) {
                Err(DriverError::Busy { .. }) => {}
                other => {
                    return Err(Violation(format!(
                        "V7: deleting an open volume answered {other:?}"
                    )));
                }
            }
            self.handles.remove(&volume);
        }
        let called = self.pool().delete_volume(volume_id(volume)).into();
        let mut after = self.model.clone();
        after.volumes.remove(&volume);
        self.conclude("deleting a volume", called, after, false)
    }

    fn revert(&mut self, volume: u64, snapshot: u64) -> Result<Step, Violation> {
        self.handles.remove(&volume);
        let called = match self
            .pool()
            .revert_volume(volume_id(volume), snapshot_id(snapshot))
        {
            // Whether reverting to what is already there changes anything is the engine's to say.
            Ok(_) => Called::Changed,
            Err(error) => Called::Failed(error),
        };
        let mut after = self.model.clone();
        let contents = after.snapshots[&snapshot].contents.clone();
        if let Some(volume) = after.volumes.get_mut(&volume) {
            volume.contents = contents;
        }
        self.conclude("reverting", called, after, true)
    }

    fn extend(&mut self, volume: u64, size_bytes: u64) -> Result<Step, Violation> {
        let present = self.model.volumes[&volume].size_bytes;
        let called: Called = self.pool().extend_volume(volume_id(volume), size_bytes).into();
        if present == size_bytes {
            return match called {
                Called::Unchanged => Ok(Step::Done),
                Called::Changed => Err(Violation("V1: extending to the present size".into())),
                Called::Failed(error) => self.interrupt("extending", &error, None),
            };
        }
        let mut after = self.model.clone();
        if let Some(volume) = after.volumes.get_mut(&volume) {
            volume.size_bytes = size_bytes;
        }
        let seen = self.handles.get(&volume).map(|handle| handle.size_bytes());
        if matches!(called, Called::Changed) && seen.is_some_and(|seen| seen != size_bytes) {
            return Err(Violation(format!(
                "B7: an open handle sees {seen:?} after an extend to {size_bytes}"
            )));
        }
        self.conclude("extending", called, after, true)
    }

    fn write(
        &mut self,
        volume: u64,
        offset: u64,
        length: u64,
        durability: Durability,
    ) -> Result<Step, Violation> {
        let stamp = Stamp(self.next_stamp);
        self.next_stamp += 1;
        let data = stamp.bytes(offset, length as usize);
        let handle = self.handle(volume)?;
        let try_fast = durability == Durability::Cached && self.random.below(2) == 0;
        let result = match if try_fast {
            handle.plan_write(offset, length as usize)
        } else {
            Planned::NeedsSlowPath
        } {
            Planned::Direct(plan) => {
                let mut stored = data.clone();
                handle.encrypt(offset, &mut stored);
                let mut result = Ok(());
                for segment in &plan.segments {
                    let Place::Device(at) = segment.place else {
                        return Err(Violation("a plan for an overwrite has a hole".into()));
                    };
                    let written = self.device.write_at(at, &stored[segment.buffer.clone()]);
                    result = result.and(written.map_err(medium("writing", at)));
                }
                result.and_then(|()| plan.guard.finish_blocking(&stored))
            }
            Planned::Contended | Planned::NeedsSlowPath => handle.write(offset, &data, durability),
        };
        let durable = result.is_ok() && durability == Durability::Flushed;
        let step = self.conclude_change(volume, offset, length, Value::Written(stamp), result, true)?;
        if durable {
            self.volume(volume).settle_range(offset, length);
        }
        Ok(step)
    }

    /// B10: all or nothing; where the pool lives on after an error, nothing.
    fn write_atomic(
        &mut self,
        volume: u64,
        offset: u64,
        length: u64,
        durability: Durability,
    ) -> Result<Step, Violation> {
        let stamp = Stamp(self.next_stamp);
        self.next_stamp += 1;
        let value = Value::Written(stamp);
        let data = stamp.bytes(offset, length as usize);
        let result = self.handle(volume)?.write_atomic(offset, &data, durability);
        let Err(error) = result else {
            self.volume(volume).put_whole(offset, length, value);
            if durability == Durability::Flushed {
                self.volume(volume).settle_range(offset, length);
            }
            return Ok(Step::Done);
        };
        no_false_alarm(&error)?;
        let full = matches!(error, IoError::NoSpace);
        self.refused += u64::from(full);
        let alive = !self.device.is_cut() && self.pool().status().state == PoolState::Up;
        if alive && (full && self.setup.may_be_full || self.faults_planned) {
            return self.read(volume, offset, length);
        }
        // Old or new is what the model of the change allows, so there is one candidate.
        let step = self.interrupt("writing all or nothing", &error, None)?;
        self.volume(volume).put_whole(offset, length, value);
        if step == Step::Interrupted {
            self.before = Some(self.model.clone());
        }
        Ok(step)
    }

    /// Ends a change of contents.
    fn conclude_change(
        &mut self,
        volume: u64,
        offset: u64,
        length: u64,
        value: Value,
        result: Result<(), IoError>,
        may_be_full: bool,
    ) -> Result<Step, Violation> {
        let error = match result {
            Ok(()) => {
                self.volume(volume).put(offset, length, value);
                return Ok(Step::Done);
            }
            Err(error) => error,
        };
        no_false_alarm(&error)?;
        let full = matches!(error, IoError::NoSpace);
        let alive = !self.device.is_cut() && self.pool().status().state == PoolState::Up;
        self.refused += u64::from(full);
        if alive && (full && may_be_full && self.setup.may_be_full || self.faults_planned) {
            return self.learn_after_refusal(volume, offset, length, value);
        }
        // Old or new, sector by sector, is what the model of a change allows; so there is one candidate.
        let step = self.interrupt("changing contents", &error, None)?;
        self.volume(volume).put(offset, length, value);
        if step == Step::Interrupted {
            self.before = Some(self.model.clone());
        }
        Ok(step)
    }

    /// B6: after a refused change each block is old or new; reads say which.
    fn learn_after_refusal(
        &mut self,
        volume: u64,
        offset: u64,
        length: u64,
        value: Value,
    ) -> Result<Step, Violation> {
        let handle = self.handle(volume)?;
        let mut bytes = vec![0xa5; length as usize];
        if let Err(error) = handle.read(offset, &mut bytes) {
            let step = self.interrupt("B6: reading after a refused change", &error, None)?;
            self.volume(volume).put(offset, length, value);
            self.before = Some(self.model.clone());
            return Ok(if step == Step::Done {
                Step::Interrupted
            } else {
                step
            });
        }
        for (index, sector) in bytes.chunks(SECTOR_BYTES as usize).enumerate() {
            let lba = offset / SECTOR_BYTES + index as u64;
            let found = super::sectors::identify(sector, lba);
            let old = self.model.volumes[&volume].contents.current(lba);
            if found != old && found != value {
                return Err(Violation(format!(
                    "B6: volume {volume} sector {lba} is {found:?} after a refused change of {old:?} to {value:?}"
                )));
            }
            // What was written before it was refused may be found after a crash, whatever reads say now.
            self.volume(volume).put(lba * SECTOR_BYTES, SECTOR_BYTES, value);
            self.volume(volume).put(lba * SECTOR_BYTES, SECTOR_BYTES, found);
        }
        Ok(Step::Done)
    }

    fn read(&mut self, volume: u64, offset: u64, length: u64) -> Result<Step, Violation> {
        let handle = self.handle(volume)?;
        let mut bytes = vec![0xa5; length as usize];
        let planned = if self.random.below(2) == 0 {
            handle.plan_read(offset, length as usize)
        } else {
            Planned::NeedsSlowPath
        };
        let result = match planned {
            Planned::Direct(plan) => {
                let mut result = Ok(());
                for segment in &plan.segments {
                    let part = &mut bytes[segment.buffer.clone()];
                    match segment.place {
                        Place::Zeros => part.fill(0),
                        Place::Device(at) => {
                            let read = self.device.read_at(at, part);
                            result = result.and(read.map_err(|error| IoError::Medium {
                                detail: error.to_string(),
                            }));
                        }
                    }
                }
                let result = result.and_then(|()| plan.guard.finish_blocking(&bytes));
                handle.decrypt(offset, &mut bytes);
                result
            }
            Planned::Contended | Planned::NeedsSlowPath => handle.read(offset, &mut bytes),
        };
        if let Err(error) = result {
            no_false_alarm(&error)?;
            if self.faults_planned && !self.device.is_cut() {
                return Ok(Step::Done);
            }
            return self.interrupt("reading", &error, None);
        }
        let contents = &self.model.volumes[&volume].contents;
        super::verify::compare_current(&format!("B1: volume {volume}"), contents, offset, &bytes)?;
        Ok(Step::Done)
    }

    fn clean_reopen(&mut self) -> Result<Step, Violation> {
        self.handles.clear();
        if let Err(error) = self.pool().close() {
            return self.interrupt("closing", &error, None);
        }
        let used_after_close =
            self.pool()
                .create_volume(&VolumeSpec::new(volume_id(u64::MAX), 4096, DataSource::Blank));
        if used_after_close.is_ok() {
            return Err(Violation("a closed pool took a call".into()));
        }
        self.pool = None;
        for volume in self.model.volumes.values_mut() {
            volume.contents.settle();
        }
        // A pool closed in good order owes nothing to the medium's cache.
        self.device = self.device.power_cycle_as_planned();
        let opened = self.open().and_then(|()| self.settle_on_what_is_found());
        match opened.and_then(|()| self.compare_now()) {
            // What could not be read because of a fault is judged once the power is back.
            Err(_) if self.device.is_cut() || self.faults_planned => {
                self.before = Some(self.model.clone());
                Ok(Step::Interrupted)
            }
            result => result.map(|()| Step::Done),
        }
    }

    /// Does a step of background work; now and then a scrub begins first.
    fn maintain(&mut self) -> Result<(), DriverError> {
        if self.random.below(16) == 0 {
            match self.pool().start_scrub() {
                Err(error) if error.kind() != ErrorKind::Full => return Err(error),
                _ => {}
            }
        }
        let maintained = self.pool().maintain();
        maintained
            .map(drop)
            .map_err(|error| error.into_driver_error("simulated"))
    }

    /// Opens the pool again as a new process does, on whatever the medium's cache shows.
    fn kill(&mut self) -> Result<Step, Violation> {
        let faults_planned = self.faults_planned;
        self.abandon();
        self.faults_planned = faults_planned;
        let opened = self.open().and_then(|()| self.settle_on_what_is_found());
        match opened {
            Ok(()) => Ok(Step::Done),
            // What could not be read because of a fault is judged once the power is back.
            Err(_) if self.device.is_cut() || faults_planned => {
                self.before = Some(self.model.clone());
                Ok(Step::Interrupted)
            }
            Err(violation) => Err(violation),
        }
    }
}

/// D2: no medium that keeps what it has flushed, whatever else it does, holds a block that its checksum is not of.
fn no_false_alarm(error: &IoError) -> Result<(), Violation> {
    match error {
        IoError::Corrupt { .. } => Err(Violation(format!("D2: a false alarm: {error}"))),
        _ => Ok(()),
    }
}
