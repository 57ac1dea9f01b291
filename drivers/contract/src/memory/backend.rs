//! A pool in memory.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use super::contents::{CHUNK_BYTES, Contents, Space};
use super::device::MemoryDevice;
use super::lock;
use crate::{
    BackendCapabilities, BlockDevice, Capability, DataSource, Differences, DriverError, Encryption,
    FieldDifference, OpenMode, Outcome, Page, PoolGrowth, PoolName, PoolProblem, PoolSpace, PoolState,
    PoolStatus, SnapshotId, SnapshotInfo, SnapshotSpec, VersionId, VolumeBackend, VolumeEncryption, VolumeId,
    VolumeInfo, VolumeKey, VolumeSpec,
};

/// How a [`MemoryBackend`] is made.
#[derive(Debug, Clone)]
pub struct MemoryBackendOptions {
    /// The pool's name.
    pub name: PoolName,
    /// How much data it can hold, in bytes.
    pub capacity_bytes: u64,
    /// The logical block of its devices and the granularity of sizes, in bytes: 512 or 4096.
    pub logical_block_bytes: u32,
    /// The largest volume, in bytes.
    pub max_volume_bytes: u64,
}

impl MemoryBackendOptions {
    /// Returns the options of a pool with 512-byte blocks and volumes of up to 64 TiB.
    pub fn of_capacity(name: PoolName, capacity_bytes: u64) -> Self {
        Self {
            name,
            capacity_bytes,
            logical_block_bytes: 512,
            max_volume_bytes: 64 << 40,
        }
    }
}

/// A pool whose volumes live in memory.
pub struct MemoryBackend {
    options: MemoryBackendOptions,
    uuid: uuid::Uuid,
    space: Arc<Space>,
    objects: Mutex<Objects>,
    openings: Arc<Mutex<Openings>>,
}

#[derive(Default)]
struct Objects {
    volumes: BTreeMap<VolumeId, Volume>,
    snapshots: BTreeMap<SnapshotId, Snapshot>,
}

struct Volume {
    source: DataSource,
    reserved: bool,
    checksums: bool,
    contents: Arc<Mutex<Contents>>,
    family: Option<Arc<Family>>,
}

struct Snapshot {
    volume: VolumeId,
    checksums: bool,
    contents: Contents,
    family: Option<Arc<Family>>,
}

/// An encrypted volume and all that descends from it. Nothing is encrypted in memory; the key is asked for.
struct Family {
    key: Mutex<VolumeKey>,
    locked: AtomicBool,
}

impl Family {
    fn has(&self, key: &VolumeKey) -> bool {
        lock(&self.key).expose() == key.expose()
    }

    fn encryption(&self) -> Encryption {
        match self.locked.load(Ordering::Relaxed) {
            true => Encryption::Locked,
            false => Encryption::Unlocked,
        }
    }
}

fn encryption_of(family: Option<&Arc<Family>>) -> Encryption {
    family.map_or(Encryption::None, |family| family.encryption())
}

/// Who has what open.
#[derive(Default)]
struct Openings {
    readers: Vec<VersionId>,
    writers: HashSet<VersionId>,
}

impl Openings {
    fn is_open(&self, id: VersionId) -> bool {
        self.readers.contains(&id) || self.writers.contains(&id)
    }
}

/// One open handle; dropping it closes.
struct Opening {
    id: VersionId,
    mode: OpenMode,
    openings: Arc<Mutex<Openings>>,
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut openings = lock(&self.openings);
        match self.mode {
            OpenMode::ReadWrite => {
                openings.writers.remove(&self.id);
            }
            OpenMode::ReadOnly => {
                if let Some(at) = openings.readers.iter().position(|id| *id == self.id) {
                    openings.readers.swap_remove(at);
                }
            }
        }
    }
}

impl MemoryBackend {
    /// Makes an empty pool.
    pub fn new(options: MemoryBackendOptions) -> Self {
        Self {
            space: Space::of_bytes(options.capacity_bytes),
            // One name, one pool: the identity is stable for the tests that compare it.
            uuid: uuid::Uuid::from_u128(
                options
                    .name
                    .as_str()
                    .bytes()
                    .fold(0x6d65_6d6f_7279, |hash: u128, byte| {
                        hash.wrapping_mul(0x0100_0000_01b3) ^ u128::from(byte)
                    }),
            ),
            options,
            objects: Mutex::default(),
            openings: Arc::default(),
        }
    }

    fn check_size(&self, size_bytes: u64, least_bytes: u64) -> Result<(), DriverError> {
        let granularity = u64::from(self.options.logical_block_bytes);
        let problem = if size_bytes == 0 {
            "is zero".to_owned()
        } else if !size_bytes.is_multiple_of(granularity) {
            format!("{size_bytes} is not a multiple of {granularity}")
        } else if size_bytes > self.options.max_volume_bytes {
            format!(
                "{size_bytes} is above the limit of {}",
                self.options.max_volume_bytes
            )
        } else if size_bytes < least_bytes {
            format!("{size_bytes} is below the present {least_bytes}")
        } else {
            return Ok(());
        };
        Err(DriverError::InvalidArgument {
            field: "size_bytes".into(),
            problem,
        })
    }

    fn create(&self, spec: &VolumeSpec, key: Option<&VolumeKey>) -> Result<Outcome<VolumeInfo>, DriverError> {
        let mut objects = lock(&self.objects);
        if let Some(existing) = objects.volumes.get(&spec.id) {
            let info = objects.info(spec.id)?;
            let mut differences = Vec::new();
            if info.size_bytes != spec.size_bytes {
                differences.push(difference("size_bytes", info.size_bytes, spec.size_bytes));
            }
            if info.source != spec.source {
                let (existing, requested) = (describe_source(info.source), describe_source(spec.source));
                differences.push(difference("source", existing, requested));
            }
            if !spec.is_met_by_checksums(info.checksums) {
                differences.push(difference("checksums", info.checksums, spec.checksums));
            }
            let is_encrypted = info.encryption != Encryption::None;
            let stays_plain = spec.source != DataSource::Blank || !is_encrypted;
            let same_key = match (key, &existing.family) {
                (None, _) => stays_plain,
                (Some(key), Some(family)) => family.has(key),
                (Some(_), None) => false,
            };
            if !same_key {
                differences.push(difference("key", "another one", "this one"));
            }
            if differences.is_empty() {
                if let (Some(_), Some(family)) = (key, &existing.family) {
                    family.locked.store(false, Ordering::Relaxed);
                    return Ok(Outcome::Unchanged(objects.info(spec.id)?));
                }
                return Ok(Outcome::Unchanged(info));
            }
            return Err(DriverError::AlreadyExists {
                object: describe(VersionId::Volume(spec.id)),
                differences,
            });
        }
        self.check_size(spec.size_bytes, 0)?;
        let contents = match objects.contents_of(spec.source)? {
            None => Contents::blank(Arc::clone(&self.space), spec.size_bytes),
            Some(mut contents) => {
                self.check_size(spec.size_bytes, contents.size_bytes())?;
                contents.grow(spec.size_bytes);
                contents
            }
        };
        let checksums = match spec.source {
            DataSource::Blank => spec.checksums,
            DataSource::Snapshot(id) => objects.snapshot(id)?.checksums,
            DataSource::Volume(id) => objects.volume(id)?.checksums,
        };
        if !spec.is_met_by_checksums(checksums) {
            return Err(DriverError::InvalidArgument {
                field: "checksums".into(),
                problem: "the source has none, and what is made of it cannot have any; leave it out".into(),
            });
        }
        let family = match (spec.source, key) {
            (DataSource::Blank, key) => key.map(|key| {
                Arc::new(Family {
                    key: Mutex::new(key.clone()),
                    locked: AtomicBool::new(false),
                })
            }),
            (DataSource::Snapshot(id), _) => objects.family_of(VersionId::Snapshot(id))?,
            (DataSource::Volume(id), _) => objects.family_of(VersionId::Volume(id))?,
        };
        let volume = Volume {
            source: spec.source,
            reserved: spec.reserved,
            checksums,
            contents: Arc::new(Mutex::new(contents)),
            family,
        };
        objects.volumes.insert(spec.id, volume);
        Ok(Outcome::Changed(objects.info(spec.id)?))
    }

    fn check_closed(&self, id: VersionId) -> Result<(), DriverError> {
        if !lock(&self.openings).is_open(id) {
            return Ok(());
        }
        Err(DriverError::Busy {
            object: describe(id),
            blockers: vec!["an open device".into()],
        })
    }
}

impl Objects {
    fn volume(&self, id: VolumeId) -> Result<&Volume, DriverError> {
        self.volumes
            .get(&id)
            .ok_or_else(|| not_found(VersionId::Volume(id)))
    }

    fn snapshot(&self, id: SnapshotId) -> Result<&Snapshot, DriverError> {
        self.snapshots
            .get(&id)
            .ok_or_else(|| not_found(VersionId::Snapshot(id)))
    }

    fn info(&self, id: VolumeId) -> Result<VolumeInfo, DriverError> {
        let snapshots = self.snapshots.values().filter(|snapshot| snapshot.volume == id);
        Ok(self.volume(id)?.info(id, snapshots.count() as u64))
    }

    fn family_of(&self, id: VersionId) -> Result<Option<Arc<Family>>, DriverError> {
        match id {
            VersionId::Volume(id) => Ok(self.volume(id)?.family.clone()),
            VersionId::Snapshot(id) => Ok(self.snapshot(id)?.family.clone()),
        }
    }

    fn encrypted_family_of(&self, id: VersionId) -> Result<Arc<Family>, DriverError> {
        self.family_of(id)?.ok_or_else(|| DriverError::InvalidArgument {
            field: "id".into(),
            problem: format!("{} is not encrypted; it has no key", describe(id)),
        })
    }

    fn contents_of_version(&self, id: VersionId) -> Result<Contents, DriverError> {
        match id {
            VersionId::Volume(id) => Ok(lock(&self.volume(id)?.contents).clone()),
            VersionId::Snapshot(id) => Ok(self.snapshot(id)?.contents.clone()),
        }
    }

    fn contents_of(&self, source: DataSource) -> Result<Option<Contents>, DriverError> {
        Ok(match source {
            DataSource::Blank => None,
            DataSource::Snapshot(id) => Some(self.snapshot(id)?.contents.clone()),
            DataSource::Volume(id) => Some(lock(&self.volume(id)?.contents).clone()),
        })
    }
}

impl Volume {
    fn info(&self, id: VolumeId, snapshot_count: u64) -> VolumeInfo {
        let contents = lock(&self.contents);
        VolumeInfo {
            id,
            size_bytes: contents.size_bytes(),
            source: self.source,
            mapped_bytes: contents.mapped_bytes(),
            reserved: self.reserved,
            encryption: encryption_of(self.family.as_ref()),
            checksums: self.checksums,
            snapshot_count,
        }
    }
}

impl Snapshot {
    fn info(&self, id: SnapshotId) -> SnapshotInfo {
        SnapshotInfo {
            id,
            volume: self.volume,
            size_bytes: self.contents.size_bytes(),
            mapped_bytes: self.contents.mapped_bytes(),
        }
    }
}

fn describe(id: VersionId) -> String {
    match id {
        VersionId::Volume(id) => format!("volume {id}"),
        VersionId::Snapshot(id) => format!("snapshot {id}"),
    }
}

fn not_found(id: VersionId) -> DriverError {
    DriverError::NotFound { object: describe(id) }
}

fn difference(field: &str, existing: impl ToString, requested: impl ToString) -> FieldDifference {
    FieldDifference {
        field: field.into(),
        existing: existing.to_string(),
        requested: requested.to_string(),
    }
}

fn describe_source(source: DataSource) -> String {
    match source {
        DataSource::Blank => "blank".into(),
        DataSource::Snapshot(id) => format!("snapshot {id}"),
        DataSource::Volume(id) => format!("volume {id}"),
    }
}

#[async_trait]
impl VolumeBackend for MemoryBackend {
    fn capabilities(&self) -> BackendCapabilities {
        BackendCapabilities {
            driver: "memory",
            features: vec![
                Capability::ThinProvisioning,
                Capability::Snapshots,
                Capability::Clones,
                Capability::RevertToAny,
                Capability::OnlineExtend,
                Capability::Checksums,
                Capability::GroupSnapshots,
                Capability::Discard,
                Capability::Differences,
                Capability::Encryption,
            ],
            max_volume_bytes: self.options.max_volume_bytes,
            size_granularity_bytes: u64::from(self.options.logical_block_bytes),
        }
    }

    async fn pool_status(&self) -> Result<PoolStatus, DriverError> {
        let objects = lock(&self.objects);
        let sizes = objects
            .volumes
            .values()
            .map(|volume| lock(&volume.contents).size_bytes());
        Ok(PoolStatus {
            name: self.options.name.clone(),
            uuid: self.uuid,
            state: PoolState::Up,
            total_bytes: self.space.total_bytes(),
            free_bytes: self.space.total_bytes() - self.space.allocated_bytes(),
            allocated_bytes: self.space.allocated_bytes(),
            reclaimable_bytes: 0,
            reclaim_debt_bytes: 0,
            provisioned_bytes: sizes.sum(),
            chunk_bytes: CHUNK_BYTES,
            volume_count: objects.volumes.len() as u64,
            snapshot_count: objects.snapshots.len() as u64,
            space: PoolSpace::without_levels(self.space.total_bytes() - self.space.allocated_bytes()),
        })
    }

    async fn create_volume(&self, spec: &VolumeSpec) -> Result<Outcome<VolumeInfo>, DriverError> {
        self.create(spec, None)
    }

    async fn volume(&self, id: VolumeId) -> Result<VolumeInfo, DriverError> {
        lock(&self.objects).info(id)
    }

    async fn volumes(&self, page: Page<VolumeId>) -> Result<Vec<VolumeInfo>, DriverError> {
        let objects = lock(&self.objects);
        Ok((objects.volumes.keys())
            .filter(|id| page.after.is_none_or(|after| **id > after))
            .take(page.limit)
            .map(|id| objects.info(*id))
            .collect::<Result<_, _>>()?)
    }

    async fn extend_volume(&self, id: VolumeId, size_bytes: u64) -> Result<Outcome<VolumeInfo>, DriverError> {
        let objects = lock(&self.objects);
        let volume = objects.volume(id)?;
        let present = objects.info(id)?.size_bytes;
        self.check_size(size_bytes, present)?;
        if size_bytes == present {
            return Ok(Outcome::Unchanged(objects.info(id)?));
        }
        lock(&volume.contents).grow(size_bytes);
        Ok(Outcome::Changed(objects.info(id)?))
    }

    async fn reserve_volume(&self, id: VolumeId, reserved: bool) -> Result<Outcome<VolumeInfo>, DriverError> {
        let mut objects = lock(&self.objects);
        let volume = objects
            .volumes
            .get_mut(&id)
            .ok_or_else(|| not_found(VersionId::Volume(id)))?;
        let changed = std::mem::replace(&mut volume.reserved, reserved) != reserved;
        let info = objects.info(id)?;
        Ok(if changed {
            Outcome::Changed(info)
        } else {
            Outcome::Unchanged(info)
        })
    }

    async fn revert_volume(
        &self,
        id: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<Outcome<VolumeInfo>, DriverError> {
        let objects = lock(&self.objects);
        let volume = objects.volume(id)?;
        let origin = objects.snapshot(snapshot)?;
        if origin.volume != id {
            return Err(DriverError::InvalidArgument {
                field: "snapshot".into(),
                problem: format!("{snapshot} is a snapshot of volume {}", origin.volume),
            });
        }
        self.check_closed(VersionId::Volume(id))?;
        let mut contents = lock(&volume.contents);
        let mut reverted = origin.contents.clone();
        reverted.grow(contents.size_bytes());
        let unchanged = contents.is_same_version(&reverted);
        *contents = reverted;
        drop(contents);
        let info = objects.info(id)?;
        Ok(if unchanged {
            Outcome::Unchanged(info)
        } else {
            Outcome::Changed(info)
        })
    }

    async fn delete_volume(&self, id: VolumeId) -> Result<Outcome<()>, DriverError> {
        let mut objects = lock(&self.objects);
        if !objects.volumes.contains_key(&id) {
            return Ok(Outcome::Unchanged(()));
        }
        self.check_closed(VersionId::Volume(id))?;
        objects.volumes.remove(&id);
        Ok(Outcome::Changed(()))
    }

    async fn create_snapshots(
        &self,
        group: &[SnapshotSpec],
    ) -> Result<Outcome<Vec<SnapshotInfo>>, DriverError> {
        let ids: HashSet<_> = group.iter().map(|spec| spec.id).collect();
        let volumes: HashSet<_> = group.iter().map(|spec| spec.volume).collect();
        if ids.len() != group.len() || volumes.len() != group.len() {
            return Err(DriverError::InvalidArgument {
                field: "group".into(),
                problem: "names a snapshot or a volume twice".into(),
            });
        }
        let mut objects = lock(&self.objects);
        let mut existing = Vec::new();
        for spec in group {
            let Some(snapshot) = objects.snapshots.get(&spec.id) else {
                continue;
            };
            if snapshot.volume != spec.volume {
                return Err(DriverError::AlreadyExists {
                    object: describe(VersionId::Snapshot(spec.id)),
                    differences: vec![difference("volume", snapshot.volume, spec.volume)],
                });
            }
            existing.push(snapshot.info(spec.id));
        }
        if existing.len() == group.len() {
            return Ok(Outcome::Unchanged(existing));
        }
        if let Some(first) = existing.first() {
            return Err(DriverError::AlreadyExists {
                object: describe(VersionId::Snapshot(first.id)),
                differences: vec![difference(
                    "group",
                    format!("{} of its members", existing.len()),
                    format!("{} members", group.len()),
                )],
            });
        }
        // All volumes are locked before the first is copied: one cut (V4). The order of ids keeps it free of
        // deadlock, as no one else locks two.
        let mut ordered: Vec<&SnapshotSpec> = group.iter().collect();
        ordered.sort_by_key(|spec| spec.volume);
        let cells: Vec<_> = ordered
            .iter()
            .map(|spec| Ok(Arc::clone(&objects.volume(spec.volume)?.contents)))
            .collect::<Result<_, DriverError>>()?;
        let guards: Vec<_> = cells.iter().map(|cell| lock(cell)).collect();
        let cut: Vec<Snapshot> = ordered
            .iter()
            .zip(&guards)
            .map(|(spec, contents)| {
                Ok(Snapshot {
                    checksums: objects.volume(spec.volume)?.checksums,
                    volume: spec.volume,
                    contents: Contents::clone(contents),
                    family: objects.family_of(VersionId::Volume(spec.volume))?,
                })
            })
            .collect::<Result<_, DriverError>>()?;
        drop(guards);
        for (spec, snapshot) in ordered.iter().zip(cut) {
            objects.snapshots.insert(spec.id, snapshot);
        }
        let infos = group
            .iter()
            .map(|spec| Ok(objects.snapshot(spec.id)?.info(spec.id)));
        infos.collect::<Result<_, _>>().map(Outcome::Changed)
    }

    async fn snapshot(&self, id: SnapshotId) -> Result<SnapshotInfo, DriverError> {
        lock(&self.objects).snapshot(id).map(|snapshot| snapshot.info(id))
    }

    async fn snapshots(
        &self,
        of: Option<VolumeId>,
        page: Page<SnapshotId>,
    ) -> Result<Vec<SnapshotInfo>, DriverError> {
        let objects = lock(&self.objects);
        Ok(objects
            .snapshots
            .iter()
            .filter(|(id, _)| page.after.is_none_or(|after| **id > after))
            .filter(|(_, snapshot)| of.is_none_or(|of| snapshot.volume == of))
            .take(page.limit)
            .map(|(id, snapshot)| snapshot.info(*id))
            .collect())
    }

    async fn delete_snapshot(&self, id: SnapshotId) -> Result<Outcome<()>, DriverError> {
        let mut objects = lock(&self.objects);
        if !objects.snapshots.contains_key(&id) {
            return Ok(Outcome::Unchanged(()));
        }
        self.check_closed(VersionId::Snapshot(id))?;
        objects.snapshots.remove(&id);
        Ok(Outcome::Changed(()))
    }

    async fn check(&self) -> Result<Vec<PoolProblem>, DriverError> {
        Ok(Vec::new())
    }

    async fn grow(&self, _growth: &PoolGrowth) -> Result<Outcome<PoolStatus>, DriverError> {
        Err(DriverError::Unsupported {
            object: format!("pool {}", self.options.name),
            capability: Capability::Grow.as_str().into(),
        })
    }

    async fn differences(
        &self,
        of: VersionId,
        since: Option<VersionId>,
        from_bytes: u64,
        most: usize,
    ) -> Result<Differences, DriverError> {
        let objects = lock(&self.objects);
        let of = objects.contents_of_version(of)?;
        let since = since
            .map(|since| objects.contents_of_version(since))
            .transpose()?;
        Ok(of.differences(since.as_ref(), from_bytes, most))
    }

    async fn open(&self, id: VersionId, mode: OpenMode) -> Result<Arc<dyn BlockDevice>, DriverError> {
        let objects = lock(&self.objects);
        let contents = match id {
            VersionId::Volume(id) => Arc::clone(&objects.volume(id)?.contents),
            VersionId::Snapshot(id) => {
                let contents = &objects.snapshot(id)?.contents;
                if mode == OpenMode::ReadWrite {
                    return Err(DriverError::InvalidArgument {
                        field: "mode".into(),
                        problem: format!("snapshot {id} can only be opened read-only"),
                    });
                }
                Arc::new(Mutex::new(contents.clone()))
            }
        };
        if encryption_of(objects.family_of(id)?.as_ref()) == Encryption::Locked {
            return Err(DriverError::Locked { object: describe(id) });
        }
        let mut openings = lock(&self.openings);
        match mode {
            OpenMode::ReadOnly => openings.readers.push(id),
            OpenMode::ReadWrite => {
                if !openings.writers.insert(id) {
                    return Err(DriverError::Busy {
                        object: describe(id),
                        blockers: vec!["a read-write handle".into()],
                    });
                }
            }
        }
        let opening = Opening {
            id,
            mode,
            openings: Arc::clone(&self.openings),
        };
        Ok(Arc::new(MemoryDevice::over(
            contents,
            self.options.logical_block_bytes,
            mode == OpenMode::ReadOnly,
            Some(Box::new(opening)),
        )))
    }

    fn encryption(&self) -> Option<&dyn VolumeEncryption> {
        Some(self)
    }
}

#[async_trait]
impl VolumeEncryption for MemoryBackend {
    async fn create_encrypted_volume(
        &self,
        spec: &VolumeSpec,
        key: &VolumeKey,
    ) -> Result<Outcome<VolumeInfo>, DriverError> {
        if spec.source != DataSource::Blank {
            return Err(DriverError::InvalidArgument {
                field: "key".into(),
                problem: "what is made of another volume has that one's key; leave it out".into(),
            });
        }
        self.create(spec, Some(key))
    }

    async fn unlock(&self, id: VersionId, key: &VolumeKey) -> Result<Outcome<()>, DriverError> {
        let family = lock(&self.objects).encrypted_family_of(id)?;
        if !family.has(key) {
            return Err(DriverError::WrongKey { object: describe(id) });
        }
        Ok(match family.locked.swap(false, Ordering::Relaxed) {
            true => Outcome::Changed(()),
            false => Outcome::Unchanged(()),
        })
    }

    async fn lock(&self, id: VersionId) -> Result<Outcome<()>, DriverError> {
        let objects = lock(&self.objects);
        let family = objects.encrypted_family_of(id)?;
        let is_of_it = |id: VersionId| {
            let other = objects.family_of(id).ok().flatten();
            other.is_some_and(|other| Arc::ptr_eq(&other, &family))
        };
        let openings = lock(&self.openings);
        if openings
            .readers
            .iter()
            .chain(&openings.writers)
            .any(|id| is_of_it(*id))
        {
            return Err(DriverError::Busy {
                object: format!("the key of {}", describe(id)),
                blockers: vec!["an open device".into()],
            });
        }
        Ok(match family.locked.swap(true, Ordering::Relaxed) {
            true => Outcome::Unchanged(()),
            false => Outcome::Changed(()),
        })
    }

    async fn change_key(
        &self,
        id: VersionId,
        key: &VolumeKey,
        new_key: &VolumeKey,
    ) -> Result<Outcome<()>, DriverError> {
        let family = lock(&self.objects).encrypted_family_of(id)?;
        if family.has(new_key) {
            return Ok(Outcome::Unchanged(()));
        }
        if !family.has(key) {
            return Err(DriverError::WrongKey { object: describe(id) });
        }
        *lock(&family.key) = new_key.clone();
        Ok(Outcome::Changed(()))
    }
}
