//! Volumes and snapshots: creating, changing and listing them.
//!
//! One call at a time decides and applies its change under `control`; the commit that makes it durable is shared
//! with whoever else waits for one. What a call finds already so is committed too before it says `Unchanged`: the
//! change may have been applied a moment ago by a call that has not returned yet.

use std::collections::BTreeSet;
use std::sync::Arc;

use quarry_contract::{
    DataSource, DriverError, Encryption, FieldDifference, Outcome, Page, PoolState, PoolStatus, SnapshotId,
    SnapshotInfo, SnapshotSpec, VersionId, VolumeId, VolumeInfo, VolumeSpec,
};
use smallvec::{SmallVec, smallvec};
use uuid::Uuid;

use crate::PoolError;
use crate::data_path::LOGICAL_BLOCK_BYTES;
use crate::format::{INCOMPAT_RESERVED_VOLUMES, MAX_DEPTH};
use crate::handle::{not_found, object_name};
use crate::keys::KeyRef;
use crate::locks::{lock, read, write};
use crate::pool::{Decision, Pool, Priority};
use crate::record::Record;
use crate::state::State;
use crate::version::{NodeId, Source, Version, VersionKind};
use crate::write_epoch::WriteEpoch;

impl Pool {
    /// Returns the pool's state and capacity.
    pub fn status(&self) -> PoolStatus {
        let state = read(&self.state);
        let chunk_bytes = self.geometry.chunk_bytes;
        let free = state.free_chunks() + state.space.as_good_as_free();
        // A version with more children keeps its space until one is left: nothing is due (N2).
        let due = state
            .versions
            .dead()
            .filter(|version| version.children.len() <= 1);
        let (mut reclaimable, mut debt) = (0, 0);
        for version in due {
            let own = version.own_chunks.max(0) as u64;
            debt += own;
            reclaimable += if version.children.is_empty() { own } else { 0 };
        }
        PoolStatus {
            name: self.options.name.clone(),
            uuid: self.uuid,
            state: match self.stopped() {
                None => PoolState::Up,
                Some(reason) => PoolState::ReadOnly {
                    reason: reason.to_owned(),
                },
            },
            total_bytes: state.geometry.chunk_count * chunk_bytes,
            free_bytes: free * chunk_bytes,
            allocated_bytes: (state.geometry.chunk_count - free) * chunk_bytes,
            reclaimable_bytes: (reclaimable + state.space.quarantined()) * chunk_bytes,
            reclaim_debt_bytes: debt * chunk_bytes,
            provisioned_bytes: state.versions.provisioned_bytes(),
            chunk_bytes,
            volume_count: state.versions.volume_count(),
            snapshot_count: state.versions.snapshot_count(),
            space: self.space_status(&state),
        }
    }

    /// Returns the largest volume that can be made, in bytes.
    pub fn max_volume_bytes(&self) -> u64 {
        self.geometry.max_volume_bytes()
    }

    /// Returns one volume.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn volume(&self, id: VolumeId) -> Result<VolumeInfo, DriverError> {
        let state = read(&self.state);
        let version = state.versions.volume(id.0);
        version
            .map(|version| self.volume_info(&state, version))
            .ok_or_else(|| not_found(VersionId::Volume(id)))
    }

    /// Returns all volumes, ordered by id.
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        self.volume_page(Page::all())
    }

    /// Returns a part of the volumes, ordered by id.
    pub fn volume_page(&self, page: Page<VolumeId>) -> Vec<VolumeInfo> {
        let state = read(&self.state);
        (state.versions.volumes_after(page.after.map(|id| id.0)))
            .take(page.limit)
            .map(|version| self.volume_info(&state, version))
            .collect()
    }

    /// Returns one snapshot.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn snapshot(&self, id: SnapshotId) -> Result<SnapshotInfo, DriverError> {
        let state = read(&self.state);
        let version = state.versions.snapshot(id.0);
        version
            .map(|version| self.snapshot_info(version))
            .ok_or_else(|| not_found(VersionId::Snapshot(id)))
    }

    /// Returns all snapshots, ordered by id.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        self.snapshot_page(None, Page::all())
    }

    /// Returns a part of the snapshots, of one volume or of all, ordered by id.
    pub fn snapshot_page(&self, of: Option<VolumeId>, page: Page<SnapshotId>) -> Vec<SnapshotInfo> {
        let state = read(&self.state);
        (state.versions)
            .snapshots_after(of.map(|id| id.0), page.after.map(|id| id.0))
            .take(page.limit)
            .map(|version| self.snapshot_info(version))
            .collect()
    }

    fn volume_info(&self, state: &State, version: &Version) -> VolumeInfo {
        VolumeInfo {
            id: VolumeId(version.uuid),
            size_bytes: version.size(),
            source: version.source.into(),
            mapped_bytes: version.mapped_chunks.saturating_mul(self.geometry.chunk_bytes),
            reserved: version.reserved,
            encryption: self.keys.encryption(version.key),
            checksums: version.checksums.are_on(),
            snapshot_count: state.versions.snapshot_count_of(version.uuid),
        }
    }

    fn snapshot_info(&self, version: &Version) -> SnapshotInfo {
        let (_, volume) = version.source.code();
        SnapshotInfo {
            id: SnapshotId(version.uuid),
            volume: VolumeId(volume),
            size_bytes: version.size(),
            mapped_bytes: version.mapped_chunks.saturating_mul(self.geometry.chunk_bytes),
        }
    }

    /// Creates a volume: blank, or as a clone of a snapshot or of a volume's present contents.
    ///
    /// # Errors
    /// As [`VolumeBackend::create_volume`](quarry_contract::VolumeBackend::create_volume).
    pub fn create_volume(&self, spec: &VolumeSpec) -> Result<Outcome<VolumeInfo>, DriverError> {
        self.check_size(spec.size_bytes)?;
        let control = lock(&self.control);
        self.check_open()?;
        if let Ok(existing) = self.volume(spec.id) {
            let differences = differences(&[
                (
                    "size_bytes",
                    existing.size_bytes.to_string(),
                    spec.size_bytes.to_string(),
                ),
                ("source", describe(existing.source), describe(spec.source)),
                checksums_of(&existing, spec),
                (
                    "encryption",
                    encryption_of(&existing).into(),
                    match spec.source {
                        DataSource::Blank => "none".into(),
                        // It has its source's.
                        DataSource::Snapshot(_) | DataSource::Volume(_) => encryption_of(&existing).into(),
                    },
                ),
            ]);
            drop(control);
            return self.unchanged(existing, VersionId::Volume(spec.id), differences);
        }
        self.allow_checksums(spec)
            .and_then(|()| self.allow_reserved(spec.reserved))
            .map_err(|error| self.driver_error(error))?;
        let mut epoch = None;
        self.change_metadata(|state| {
            let node = NodeId(state.next_node);
            self.check_brake(state, spec.reserved || is_of_reserved(state, spec.source))?;
            let (records, closed) = create_records(state, spec, node)?;
            epoch = closed;
            Ok(records)
        })?;
        // The hidden snapshot under a clone of a volume must not change either.
        wait_for_writes(epoch);
        let created = self.volume(spec.id)?;
        drop(control);
        self.commit_metadata()?;
        Ok(Outcome::Changed(created))
    }

    /// Sees to it that the superblock tells of checksummed volumes before there is one: from that checkpoint on, an older
    /// Quarry refuses the pool.
    pub(crate) fn allow_checksums(&self, spec: &VolumeSpec) -> Result<(), PoolError> {
        if !spec.checksums || spec.source != DataSource::Blank || read(&self.state).allows_checksums() {
            return Ok(());
        }
        write(&self.state).sums.wanted = true;
        self.checkpoint()
    }

    /// Sees to it that the superblock tells of reserved volumes before there is one: from that checkpoint on, an older Quarry
    /// refuses the pool.
    pub(crate) fn allow_reserved(&self, reserved: bool) -> Result<(), PoolError> {
        if !reserved || read(&self.state).incompat & INCOMPAT_RESERVED_VOLUMES != 0 {
            return Ok(());
        }
        self.checkpoint()
    }

    /// Grows a volume.
    ///
    /// # Errors
    /// As [`VolumeBackend::extend_volume`](quarry_contract::VolumeBackend::extend_volume).
    pub fn extend_volume(&self, id: VolumeId, size_bytes: u64) -> Result<Outcome<VolumeInfo>, DriverError> {
        self.check_size(size_bytes)?;
        let control = lock(&self.control);
        self.check_open()?;
        let existing = self.volume(id)?;
        if size_bytes < existing.size_bytes {
            return Err(invalid(
                "size_bytes",
                format!(
                    "{size_bytes} is smaller than the volume's {}; volumes only grow",
                    existing.size_bytes
                ),
            ));
        }
        if size_bytes == existing.size_bytes {
            drop(control);
            return self.unchanged(existing, VersionId::Volume(id), Vec::new());
        }
        self.change_metadata(|state| {
            let node = find_volume(state, id)?.node;
            Ok(smallvec![Record::Extend { node, size_bytes }])
        })?;
        let extended = self.volume(id)?;
        drop(control);
        self.commit_metadata()?;
        Ok(Outcome::Changed(extended))
    }

    /// Makes a volume a reserved one or an ordinary one.
    ///
    /// # Errors
    /// As [`VolumeBackend::reserve_volume`](quarry_contract::VolumeBackend::reserve_volume).
    pub fn reserve_volume(&self, id: VolumeId, reserved: bool) -> Result<Outcome<VolumeInfo>, DriverError> {
        let control = lock(&self.control);
        self.check_open()?;
        let existing = self.volume(id)?;
        if existing.reserved == reserved {
            drop(control);
            return self.unchanged(existing, VersionId::Volume(id), Vec::new());
        }
        self.allow_reserved(true)
            .map_err(|error| self.driver_error(error))?;
        let mut missing = None;
        self.change(Priority::Reclaim, |state| {
            Ok::<_, PoolError>(Decision::Apply(match find_volume(state, id) {
                Ok(volume) => smallvec![Record::Reserve {
                    node: volume.node,
                    reserved,
                }],
                Err(error) => {
                    missing = Some(error);
                    SmallVec::new()
                }
            }))
        })
        .map_err(|error| self.driver_error(error))?;
        if let Some(missing) = missing {
            return Err(missing);
        }
        let changed = self.volume(id)?;
        drop(control);
        self.commit_metadata()?;
        self.space_came();
        Ok(Outcome::Changed(changed))
    }

    /// Refuses new versions of what is not reserved when the pool is nearly full.
    pub(crate) fn check_brake(&self, state: &State, of_reserved: bool) -> Result<(), DriverError> {
        if of_reserved || !state.brakes(&self.options.levels) {
            return Ok(());
        }
        Err(DriverError::NearlyFull {
            pool: format!("pool {}", self.options.name),
            available_bytes: state.available_chunks() * self.geometry.chunk_bytes,
        })
    }

    /// Makes a volume's contents equal to one of its snapshots'; its size stays.
    ///
    /// # Errors
    /// As [`VolumeBackend::revert_volume`](quarry_contract::VolumeBackend::revert_volume).
    pub fn revert_volume(
        &self,
        id: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<Outcome<VolumeInfo>, DriverError> {
        let control = lock(&self.control);
        self.check_open()?;
        let already = {
            let state = read(&self.state);
            let head = find_volume(&state, id)?;
            let target = find_snapshot(&state, snapshot)?;
            if target.source != Source::Volume(id.0) {
                return Err(invalid(
                    "snapshot",
                    format!("snapshot {snapshot} is not of volume {id}"),
                ));
            }
            self.check_not_open(head.node, VersionId::Volume(id))?;
            let both_empty = head.root.is_empty() && target.root.is_empty();
            both_empty || head.root.is_same_page(&target.root)
        };
        if already {
            let existing = self.volume(id)?;
            drop(control);
            return self.unchanged(existing, VersionId::Volume(id), Vec::new());
        }
        self.change_metadata(|state| {
            let parent = find_snapshot(state, snapshot)?;
            check_depth(parent)?;
            Ok(smallvec![Record::Revert {
                head: find_volume(state, id)?.node,
                parent: parent.node,
                node: NodeId(state.next_node),
            }])
        })?;
        let reverted = self.volume(id)?;
        drop(control);
        self.commit_metadata()?;
        Ok(Outcome::Changed(reverted))
    }

    /// Deletes a volume; its space comes back by [`maintain`](Self::maintain).
    ///
    /// # Errors
    /// `Busy` when it is open.
    pub fn delete_volume(&self, id: VolumeId) -> Result<Outcome<()>, DriverError> {
        self.delete(VersionId::Volume(id))
    }

    /// Deletes a snapshot; its space comes back by [`maintain`](Self::maintain).
    ///
    /// # Errors
    /// `Busy` when it is open.
    pub fn delete_snapshot(&self, id: SnapshotId) -> Result<Outcome<()>, DriverError> {
        self.delete(VersionId::Snapshot(id))
    }

    fn delete(&self, id: VersionId) -> Result<Outcome<()>, DriverError> {
        let control = lock(&self.control);
        self.check_open()?;
        let found = {
            let state = read(&self.state);
            let version = match id {
                VersionId::Volume(id) => state.versions.volume(id.0),
                VersionId::Snapshot(id) => state.versions.snapshot(id.0),
            };
            version.map(|version| (version.node, version.key))
        };
        let Some((node, key)) = found else {
            drop(control);
            return self.unchanged((), id, Vec::new());
        };
        self.check_not_open(node, id)?;
        self.change(Priority::Reclaim, |_| {
            Ok::<_, PoolError>(Decision::Apply(smallvec![Record::Delete { node }]))
        })
        .map_err(|error| self.driver_error(error))?;
        let is_last_of = |key: &KeyRef| read(&self.state).versions.key_in(key.slot).is_none();
        if let Some(key) = key.filter(is_last_of) {
            self.erase_family(key).map_err(|error| self.driver_error(error))?;
            return Ok(Outcome::Changed(()));
        }
        drop(control);
        self.commit_metadata()?;
        Ok(Outcome::Changed(()))
    }

    /// Takes snapshots at one point in time: all of them or none.
    ///
    /// # Errors
    /// As [`VolumeBackend::create_snapshots`](quarry_contract::VolumeBackend::create_snapshots).
    pub fn create_snapshots(
        &self,
        group: &[SnapshotSpec],
    ) -> Result<Outcome<Vec<SnapshotInfo>>, DriverError> {
        check_distinct(group)?;
        let control = lock(&self.control);
        self.check_open()?;
        let existing: Vec<SnapshotInfo> = group
            .iter()
            .filter_map(|spec| self.snapshot(spec.id).ok())
            .collect();
        if !existing.is_empty() || group.is_empty() {
            let other = existing.iter().find_map(|found| {
                let spec = group.iter().find(|spec| spec.id == found.id)?;
                (spec.volume != found.volume).then_some((found, spec.volume))
            });
            if let Some((found, requested)) = other {
                return Err(DriverError::AlreadyExists {
                    object: object_name(VersionId::Snapshot(found.id)),
                    differences: differences(&[("volume", found.volume.to_string(), requested.to_string())]),
                });
            }
            if existing.len() < group.len() {
                return Err(DriverError::AlreadyExists {
                    object: object_name(VersionId::Snapshot(existing[0].id)),
                    differences: differences(&[(
                        "group",
                        "without some of the group's members".into(),
                        format!("with {} members, taken together", group.len()),
                    )]),
                });
            }
            drop(control);
            let first = group.first().map_or(SnapshotId(Uuid::nil()), |spec| spec.id);
            return self.unchanged(existing, VersionId::Snapshot(first), Vec::new());
        }
        let mut epochs = Vec::new();
        self.change_metadata(|state| {
            epochs.clear();
            let mut records = SmallVec::new();
            for (node, spec) in (state.next_node..).map(NodeId).zip(group) {
                let head = find_volume(state, spec.volume)?;
                check_depth(head)?;
                self.check_brake(state, head.reserved)?;
                epochs.push(Arc::clone(&head.epoch));
                records.push(Record::Snapshot {
                    head: head.node,
                    node,
                    uuid: spec.id.0,
                    kind: VersionKind::Snapshot,
                });
            }
            Ok(records)
        })?;
        // V4: what was in flight lands before anybody can see the snapshots.
        wait_for_writes(epochs);
        let taken = group
            .iter()
            .map(|spec| self.snapshot(spec.id))
            .collect::<Result<_, _>>()?;
        drop(control);
        self.commit_metadata()?;
        Ok(Outcome::Changed(taken))
    }

    fn change_metadata(
        &self,
        mut decide: impl FnMut(&State) -> Result<SmallVec<[Record; 2]>, DriverError>,
    ) -> Result<(), DriverError> {
        let mut refused = None;
        let changed = self.change(Priority::Normal, |state| match decide(state) {
            Ok(records) => Ok(Decision::Apply(records)),
            Err(error) => {
                refused = Some(error);
                Ok::<_, PoolError>(Decision::Apply(SmallVec::new()))
            }
        });
        match refused {
            Some(error) => Err(error),
            None => changed.map_err(|error| self.driver_error(error)),
        }
    }

    pub(crate) fn commit_metadata(&self) -> Result<(), DriverError> {
        self.commit().map_err(|error| self.driver_error(error))
    }

    /// Answers that nothing had to change, or in what the existing object differs.
    pub(crate) fn unchanged<T>(
        &self,
        existing: T,
        id: VersionId,
        differences: Vec<FieldDifference>,
    ) -> Result<Outcome<T>, DriverError> {
        if !differences.is_empty() {
            return Err(DriverError::AlreadyExists {
                object: object_name(id),
                differences,
            });
        }
        let all_durable = {
            let log = &read(&self.state).log;
            !log.has_open_records() && log.durable_batch + 1 == log.next_batch
        };
        if !all_durable {
            self.commit_metadata()?;
        }
        Ok(Outcome::Unchanged(existing))
    }

    pub(crate) fn check_size(&self, size_bytes: u64) -> Result<(), DriverError> {
        let (block, max) = (u64::from(LOGICAL_BLOCK_BYTES), self.max_volume_bytes());
        let problem = if size_bytes == 0 {
            "0 is no size; a volume has at least one block".to_owned()
        } else if !size_bytes.is_multiple_of(block) {
            format!("{size_bytes} is not a multiple of {block}")
        } else if size_bytes > max {
            format!("{size_bytes} is more than the {max} that a volume of this pool can have")
        } else {
            return Ok(());
        };
        Err(invalid("size_bytes", problem))
    }

    pub(crate) fn check_open(&self) -> Result<(), DriverError> {
        if self.is_closed() {
            return Err(DriverError::Unavailable {
                object: format!("pool {}", self.options.name),
                problem: "it is closed".into(),
                source: None,
            });
        }
        Ok(())
    }

    pub(crate) fn driver_error(&self, error: PoolError) -> DriverError {
        error.into_driver_error(self.options.name.as_str())
    }
}

/// Returns the records that create a volume, and the epoch whose writes have to land first.
#[expect(clippy::type_complexity, reason = "two results of one decision")]
fn create_records(
    state: &State,
    spec: &VolumeSpec,
    node: NodeId,
) -> Result<(SmallVec<[Record; 2]>, Option<Arc<WriteEpoch>>), DriverError> {
    let (uuid, size_bytes) = (spec.id.0, spec.size_bytes);
    let mut records = SmallVec::new();
    let mut created = node;
    let mut epoch = None;
    match spec.source {
        DataSource::Blank => {
            records.push(Record::CreateVolume {
                node,
                uuid,
                size_bytes,
            });
            if spec.checksums {
                records.push(Record::Checksum { node });
            }
        }
        DataSource::Snapshot(id) => {
            let parent = find_snapshot(state, id)?;
            check_source(parent, spec)?;
            records.push(Record::Clone {
                parent: parent.node,
                node,
                uuid,
                size_bytes,
                source: Source::Snapshot(id.0),
            });
        }
        DataSource::Volume(id) => {
            let head = find_volume(state, id)?;
            check_source(head, spec)?;
            records.push(Record::Snapshot {
                head: head.node,
                node,
                uuid: Uuid::nil(),
                kind: VersionKind::Internal,
            });
            created = NodeId(node.0 + 1);
            records.push(Record::Clone {
                parent: node,
                node: created,
                uuid,
                size_bytes,
                source: Source::Volume(id.0),
            });
            epoch = Some(Arc::clone(&head.epoch));
        }
    }
    if spec.reserved {
        records.push(Record::Reserve {
            node: created,
            reserved: true,
        });
    }
    Ok((records, epoch))
}

fn is_of_reserved(state: &State, source: DataSource) -> bool {
    let version = match source {
        DataSource::Blank => None,
        DataSource::Snapshot(id) => state.versions.snapshot(id.0),
        DataSource::Volume(id) => state.versions.volume(id.0),
    };
    version.is_some_and(|version| version.reserved)
}

fn check_source(source: &Version, spec: &VolumeSpec) -> Result<(), DriverError> {
    check_depth(source)?;
    if !spec.is_met_by_checksums(source.checksums.are_on()) {
        return Err(invalid(
            "checksums",
            "the source has none, and what is made of it cannot have any; leave it out".into(),
        ));
    }
    let size_bytes = spec.size_bytes;
    if size_bytes < source.size() {
        return Err(invalid(
            "size_bytes",
            format!("{size_bytes} is smaller than the source's {}", source.size()),
        ));
    }
    Ok(())
}

fn check_depth(version: &Version) -> Result<(), DriverError> {
    if version.depth >= MAX_DEPTH {
        return Err(DriverError::Limit {
            object: format!("the lineage of {}", version.uuid),
            what: "generations".into(),
            limit: u64::from(MAX_DEPTH),
        });
    }
    Ok(())
}

fn check_distinct(group: &[SnapshotSpec]) -> Result<(), DriverError> {
    let (mut ids, mut volumes) = (BTreeSet::new(), BTreeSet::new());
    for spec in group {
        if !ids.insert(spec.id) {
            return Err(invalid(
                "snapshots",
                format!("snapshot {} is named twice", spec.id),
            ));
        }
        if !volumes.insert(spec.volume) {
            return Err(invalid(
                "snapshots",
                format!("volume {} is named twice", spec.volume),
            ));
        }
    }
    Ok(())
}

fn wait_for_writes(epochs: impl IntoIterator<Item = Arc<WriteEpoch>>) {
    epochs.into_iter().for_each(|epoch| epoch.wait_until_drained());
}

fn find_volume(state: &State, id: VolumeId) -> Result<&Version, DriverError> {
    state
        .versions
        .volume(id.0)
        .ok_or_else(|| not_found(VersionId::Volume(id)))
}

fn find_snapshot(state: &State, id: SnapshotId) -> Result<&Version, DriverError> {
    state
        .versions
        .snapshot(id.0)
        .ok_or_else(|| not_found(VersionId::Snapshot(id)))
}

pub(crate) fn find_version(state: &State, id: VersionId) -> Result<&Version, DriverError> {
    match id {
        VersionId::Volume(id) => find_volume(state, id),
        VersionId::Snapshot(id) => find_snapshot(state, id),
    }
}

pub(crate) fn invalid(field: &str, problem: String) -> DriverError {
    DriverError::InvalidArgument {
        field: field.into(),
        problem,
    }
}

pub(crate) fn encryption_of(volume: &VolumeInfo) -> &'static str {
    match volume.encryption {
        Encryption::None => "none",
        Encryption::Locked | Encryption::Unlocked => "aes-256-xts",
    }
}

/// In what an existing volume with checksums, or without, differs from a description.
pub(crate) fn checksums_of(existing: &VolumeInfo, spec: &VolumeSpec) -> (&'static str, String, String) {
    let requested = match spec.is_met_by_checksums(existing.checksums) {
        true => existing.checksums,
        false => spec.checksums,
    };
    ("checksums", existing.checksums.to_string(), requested.to_string())
}

pub(crate) fn describe(source: DataSource) -> String {
    match source {
        DataSource::Blank => "blank".into(),
        DataSource::Snapshot(id) => format!("snapshot {id}"),
        DataSource::Volume(id) => format!("volume {id}"),
    }
}

pub(crate) fn differences(fields: &[(&str, String, String)]) -> Vec<FieldDifference> {
    let differing = fields
        .iter()
        .filter(|(_, existing, requested)| existing != requested);
    differing
        .map(|(field, existing, requested)| FieldDifference {
            field: (*field).into(),
            existing: existing.clone(),
            requested: requested.clone(),
        })
        .collect()
}
