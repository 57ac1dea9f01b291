//! A pool of shares in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use super::lock;
use crate::{
    DriverError, FieldDifference, MountedShare, Outcome, PoolName, PoolState, ShareBackend,
    ShareCapabilities, ShareCapability, ShareId, ShareInfo, SharePoolStatus, ShareSnapshotId,
    ShareSnapshotInfo, ShareSnapshotSpec, ShareSource, ShareSpec, ShareUsage, ShareVersion,
    adopted_as_another, name_is_taken, nothing_named,
};

/// What is said of damage.
const DAMAGE: &str = "it was damaged";

/// A pool whose shares live in memory. A share is a flat set of files; [`MemoryShareBackend::files`] is the way in.
pub struct MemoryShareBackend {
    name: PoolName,
    total_bytes: u64,
    objects: Mutex<Objects>,
}

#[derive(Default)]
struct Objects {
    shares: BTreeMap<ShareId, Share>,
    snapshots: BTreeMap<ShareSnapshotId, Snapshot>,
    mounted: BTreeSet<ShareVersion>,
    damaged: BTreeSet<ShareVersion>,
    /// What is in the pool and no share.
    others: BTreeMap<String, Arc<Mutex<Contents>>>,
}

struct Share {
    source: ShareSource,
    contents: Arc<Mutex<Contents>>,
}

struct Snapshot {
    share: ShareId,
    contents: Arc<Mutex<Contents>>,
}

#[derive(Clone)]
struct Contents {
    size_bytes: u64,
    files: BTreeMap<String, Arc<Vec<u8>>>,
}

impl Contents {
    fn used_bytes(&self) -> u64 {
        self.files.values().map(|file| file.len() as u64).sum()
    }
}

/// The files of a mounted share or snapshot.
pub struct MemoryShareFiles {
    contents: Arc<Mutex<Contents>>,
    is_read_only: bool,
}

impl MemoryShareFiles {
    /// Creates or replaces a file.
    ///
    /// # Errors
    /// `ReadOnlyFilesystem` in a snapshot, `StorageFull` when it does not fit.
    pub fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if self.is_read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let mut contents = lock(&self.contents);
        let replaced = contents.files.get(name).map_or(0, |file| file.len() as u64);
        if contents.used_bytes() - replaced + bytes.len() as u64 > contents.size_bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        contents.files.insert(name.to_owned(), Arc::new(bytes.to_vec()));
        Ok(())
    }

    /// Returns what a file holds.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let contents = lock(&self.contents);
        let file = contents.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(file.to_vec())
    }

    /// Returns the size that a client sees, in bytes.
    pub fn size_bytes(&self) -> u64 {
        lock(&self.contents).size_bytes
    }
}

impl MemoryShareBackend {
    /// Makes an empty pool that says it can hold `total_bytes`.
    pub fn new(name: PoolName, total_bytes: u64) -> Self {
        Self {
            name,
            total_bytes,
            objects: Mutex::default(),
        }
    }

    /// Returns the files of what is mounted; `None` when it is not.
    pub fn files(&self, version: ShareVersion) -> Option<MemoryShareFiles> {
        let objects = lock(&self.objects);
        if !objects.mounted.contains(&version) {
            return None;
        }
        Some(MemoryShareFiles {
            contents: objects.contents(version).ok()?,
            is_read_only: matches!(version, ShareVersion::Snapshot(_)),
        })
    }

    /// Takes what a share or snapshot holds away from now on: what would be read of it is `Corrupt`, and a mounted share is all
    /// there is of it (S13).
    pub fn damage(&self, version: ShareVersion) {
        lock(&self.objects).damaged.insert(version);
    }

    fn mounted_at(&self, version: ShareVersion) -> MountedShare {
        let id = uuid_of(version);
        MountedShare {
            version,
            path: PathBuf::from(format!("/memory/{}/{id}", self.name)),
            device: id.as_u64_pair().0 ^ id.as_u64_pair().1,
            filesystem: id,
        }
    }
}

fn check_name(name: &str) -> Result<(), DriverError> {
    if !name.is_empty() && name != ".." && !name.contains('/') {
        return Ok(());
    }
    Err(DriverError::InvalidArgument {
        field: "name".into(),
        problem: format!("{name:?} is no name"),
    })
}

fn uuid_of(version: ShareVersion) -> uuid::Uuid {
    match version {
        ShareVersion::Share(id) => id.0,
        ShareVersion::Snapshot(id) => id.0,
    }
}

fn not_found(version: ShareVersion) -> DriverError {
    DriverError::NotFound {
        object: version.to_string(),
    }
}

fn difference(field: &str, existing: impl ToString, requested: impl ToString) -> FieldDifference {
    FieldDifference {
        field: field.into(),
        existing: existing.to_string(),
        requested: requested.to_string(),
    }
}

impl Objects {
    fn share(&self, id: ShareId) -> Result<&Share, DriverError> {
        self.shares
            .get(&id)
            .ok_or_else(|| not_found(ShareVersion::Share(id)))
    }

    fn snapshot(&self, id: ShareSnapshotId) -> Result<&Snapshot, DriverError> {
        self.snapshots
            .get(&id)
            .ok_or_else(|| not_found(ShareVersion::Snapshot(id)))
    }

    fn contents(&self, version: ShareVersion) -> Result<Arc<Mutex<Contents>>, DriverError> {
        Ok(Arc::clone(match version {
            ShareVersion::Share(id) => &self.share(id)?.contents,
            ShareVersion::Snapshot(id) => &self.snapshot(id)?.contents,
        }))
    }

    fn check_unmounted(&self, version: ShareVersion) -> Result<(), DriverError> {
        if !self.mounted.contains(&version) {
            return Ok(());
        }
        Err(DriverError::Busy {
            object: version.to_string(),
            blockers: vec!["a mount".into()],
        })
    }
}

fn corrupt(version: ShareVersion) -> DriverError {
    DriverError::Corrupt {
        object: version.to_string(),
        detail: DAMAGE.to_owned(),
    }
}

impl Share {
    fn info(&self, id: ShareId) -> ShareInfo {
        ShareInfo {
            id,
            size_bytes: lock(&self.contents).size_bytes,
            source: self.source,
        }
    }
}

impl Snapshot {
    fn info(&self, id: ShareSnapshotId) -> ShareSnapshotInfo {
        ShareSnapshotInfo {
            id,
            share: self.share,
            size_bytes: lock(&self.contents).size_bytes,
        }
    }
}

#[async_trait]
impl ShareBackend for MemoryShareBackend {
    fn capabilities(&self) -> ShareCapabilities {
        ShareCapabilities {
            driver: "memory",
            features: vec![
                ShareCapability::ThinProvisioning,
                ShareCapability::Snapshots,
                ShareCapability::Clones,
                ShareCapability::RevertToAny,
                ShareCapability::Grow,
                ShareCapability::Shrink,
                ShareCapability::GroupSnapshots,
                ShareCapability::MountSnapshots,
                ShareCapability::Adopt,
            ],
            min_share_bytes: 1 << 20,
            max_share_bytes: 1 << 50,
            size_granularity_bytes: 1 << 20,
        }
    }

    async fn pool_status(&self) -> Result<SharePoolStatus, DriverError> {
        let objects = lock(&self.objects);
        let used: u64 = objects
            .shares
            .values()
            .map(|share| lock(&share.contents).used_bytes())
            .sum();
        Ok(SharePoolStatus {
            name: self.name.clone(),
            uuid: uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, self.name.as_str().as_bytes()),
            state: PoolState::Up,
            total_bytes: self.total_bytes,
            free_bytes: self.total_bytes.saturating_sub(used),
            reclaimable_bytes: 0,
            provisioned_bytes: objects
                .shares
                .values()
                .map(|share| lock(&share.contents).size_bytes)
                .sum(),
            share_count: objects.shares.len() as u64,
            snapshot_count: objects.snapshots.len() as u64,
        })
    }

    async fn create_share(&self, spec: &ShareSpec) -> Result<Outcome<ShareInfo>, DriverError> {
        let mut objects = lock(&self.objects);
        if let Some(existing) = objects.shares.get(&spec.id) {
            let info = existing.info(spec.id);
            let mut differences = Vec::new();
            if info.size_bytes != spec.size_bytes {
                differences.push(difference("size_bytes", info.size_bytes, spec.size_bytes));
            }
            if info.source != spec.source {
                differences.push(difference("source", info.source, spec.source));
            }
            if differences.is_empty() {
                return Ok(Outcome::Unchanged(info));
            }
            return Err(DriverError::AlreadyExists {
                object: ShareVersion::Share(spec.id).to_string(),
                differences,
            });
        }
        self.capabilities().check_size(spec.size_bytes)?;
        let mut contents = match spec.source {
            ShareSource::Blank => Contents {
                size_bytes: 0,
                files: BTreeMap::new(),
            },
            ShareSource::Share(id) => lock(&objects.share(id)?.contents).clone(),
            ShareSource::Snapshot(id) => lock(&objects.snapshot(id)?.contents).clone(),
        };
        if spec.size_bytes < contents.size_bytes {
            return Err(DriverError::InvalidArgument {
                field: "size_bytes".into(),
                problem: format!(
                    "{} is below the {} of the source",
                    spec.size_bytes, contents.size_bytes
                ),
            });
        }
        contents.size_bytes = spec.size_bytes;
        let share = Share {
            source: spec.source,
            contents: Arc::new(Mutex::new(contents)),
        };
        let info = share.info(spec.id);
        objects.shares.insert(spec.id, share);
        Ok(Outcome::Changed(info))
    }

    async fn share(&self, id: ShareId) -> Result<ShareInfo, DriverError> {
        Ok(lock(&self.objects).share(id)?.info(id))
    }

    async fn shares(&self) -> Result<Vec<ShareInfo>, DriverError> {
        let objects = lock(&self.objects);
        Ok(objects.shares.iter().map(|(id, share)| share.info(*id)).collect())
    }

    async fn adopt_share(&self, id: ShareId, name: &str) -> Result<Outcome<ShareInfo>, DriverError> {
        check_name(name)?;
        let mut objects = lock(&self.objects);
        if let Some(existing) = objects.shares.get(&id) {
            return match objects.others.contains_key(name) {
                false => Ok(Outcome::Unchanged(existing.info(id))),
                true => Err(adopted_as_another(id, name)),
            };
        }
        let contents = objects.others.remove(name).ok_or_else(|| nothing_named(name))?;
        let share = Share {
            source: ShareSource::Blank,
            contents,
        };
        let info = share.info(id);
        objects.shares.insert(id, share);
        Ok(Outcome::Changed(info))
    }

    async fn release_share(&self, id: ShareId, name: &str) -> Result<Outcome<()>, DriverError> {
        check_name(name)?;
        let mut objects = lock(&self.objects);
        let is_taken = objects.others.contains_key(name);
        if !objects.shares.contains_key(&id) {
            return match is_taken {
                true => Ok(Outcome::Unchanged(())),
                false => Err(not_found(ShareVersion::Share(id))),
            };
        }
        if is_taken {
            return Err(name_is_taken(name));
        }
        objects.check_unmounted(ShareVersion::Share(id))?;
        if let Some(share) = objects.shares.remove(&id) {
            objects.others.insert(name.to_owned(), share.contents);
        }
        Ok(Outcome::Changed(()))
    }

    async fn resize_share(&self, id: ShareId, size_bytes: u64) -> Result<Outcome<ShareInfo>, DriverError> {
        let objects = lock(&self.objects);
        let share = objects.share(id)?;
        let info = share.info(id);
        if size_bytes == info.size_bytes {
            return Ok(Outcome::Unchanged(info));
        }
        self.capabilities().check_size(size_bytes)?;
        let mut contents = lock(&share.contents);
        if contents.used_bytes() > size_bytes {
            return Err(DriverError::Busy {
                object: ShareVersion::Share(id).to_string(),
                blockers: vec![format!("{} bytes of files", contents.used_bytes())],
            });
        }
        contents.size_bytes = size_bytes;
        Ok(Outcome::Changed(ShareInfo { size_bytes, ..info }))
    }

    async fn revert_share(
        &self,
        id: ShareId,
        snapshot: ShareSnapshotId,
    ) -> Result<Outcome<ShareInfo>, DriverError> {
        let objects = lock(&self.objects);
        let share = objects.share(id)?;
        let origin = objects.snapshot(snapshot)?;
        if origin.share != id {
            return Err(DriverError::InvalidArgument {
                field: "snapshot".into(),
                problem: format!("{snapshot} is a snapshot of share {}", origin.share),
            });
        }
        objects.check_unmounted(ShareVersion::Share(id))?;
        let files = lock(&origin.contents).files.clone();
        lock(&share.contents).files = files;
        Ok(Outcome::Changed(share.info(id)))
    }

    async fn delete_share(&self, id: ShareId) -> Result<Outcome<()>, DriverError> {
        let version = ShareVersion::Share(id);
        let mut objects = lock(&self.objects);
        if objects.damaged.remove(&version) {
            objects.mounted.remove(&version);
        }
        objects.check_unmounted(version)?;
        Ok(match objects.shares.remove(&id) {
            Some(_) => Outcome::Changed(()),
            None => Outcome::Unchanged(()),
        })
    }

    async fn create_snapshots(
        &self,
        group: &[ShareSnapshotSpec],
    ) -> Result<Outcome<Vec<ShareSnapshotInfo>>, DriverError> {
        ShareSnapshotSpec::check_group(group)?;
        let mut objects = lock(&self.objects);
        let existing: Vec<ShareSnapshotInfo> = group
            .iter()
            .filter_map(|spec| Some(objects.snapshots.get(&spec.id)?.info(spec.id)))
            .collect();
        if ShareSnapshotSpec::group_exists(group, &existing)? {
            return Ok(Outcome::Unchanged(existing));
        }
        let mut taken = Vec::new();
        for spec in group {
            let contents = lock(&objects.share(spec.share)?.contents).clone();
            taken.push((spec, contents));
        }
        let mut infos = Vec::new();
        for (spec, contents) in taken {
            let snapshot = Snapshot {
                share: spec.share,
                contents: Arc::new(Mutex::new(contents)),
            };
            infos.push(snapshot.info(spec.id));
            objects.snapshots.insert(spec.id, snapshot);
        }
        Ok(Outcome::Changed(infos))
    }

    async fn snapshot(&self, id: ShareSnapshotId) -> Result<ShareSnapshotInfo, DriverError> {
        Ok(lock(&self.objects).snapshot(id)?.info(id))
    }

    async fn snapshots(&self) -> Result<Vec<ShareSnapshotInfo>, DriverError> {
        let objects = lock(&self.objects);
        let each = |(id, snapshot): (&ShareSnapshotId, &Snapshot)| snapshot.info(*id);
        Ok(objects.snapshots.iter().map(each).collect())
    }

    async fn delete_snapshot(&self, id: ShareSnapshotId) -> Result<Outcome<()>, DriverError> {
        let mut objects = lock(&self.objects);
        objects.check_unmounted(ShareVersion::Snapshot(id))?;
        Ok(match objects.snapshots.remove(&id) {
            Some(_) => Outcome::Changed(()),
            None => Outcome::Unchanged(()),
        })
    }

    async fn usage(&self, of: ShareVersion) -> Result<ShareUsage, DriverError> {
        let objects = lock(&self.objects);
        let contents = objects.contents(of)?;
        if objects.damaged.contains(&of) {
            return Err(corrupt(of));
        }
        drop(objects);
        let used_bytes = lock(&contents).used_bytes();
        Ok(ShareUsage {
            used_bytes,
            allocated_bytes: used_bytes,
        })
    }

    async fn mount(&self, of: ShareVersion) -> Result<Outcome<MountedShare>, DriverError> {
        let mut objects = lock(&self.objects);
        objects.contents(of)?;
        let mounted = self.mounted_at(of);
        Ok(match objects.mounted.insert(of) {
            true => Outcome::Changed(mounted),
            false => Outcome::Unchanged(mounted),
        })
    }

    async fn unmount(&self, of: ShareVersion) -> Result<Outcome<()>, DriverError> {
        let mut objects = lock(&self.objects);
        if matches!(of, ShareVersion::Share(_))
            && objects.mounted.contains(&of)
            && objects.damaged.contains(&of)
        {
            return Err(corrupt(of));
        }
        Ok(match objects.mounted.remove(&of) {
            true => Outcome::Changed(()),
            false => Outcome::Unchanged(()),
        })
    }

    async fn mounted(&self) -> Result<Vec<MountedShare>, DriverError> {
        let objects = lock(&self.objects);
        Ok(objects
            .mounted
            .iter()
            .map(|version| self.mounted_at(*version))
            .collect())
    }

    async fn stopped(&self) -> Result<Vec<ShareVersion>, DriverError> {
        // Memory does not fail.
        Ok(Vec::new())
    }

    async fn damaged(&self) -> Result<Vec<(ShareVersion, String)>, DriverError> {
        let damaged = lock(&self.objects).damaged.clone();
        Ok(damaged
            .into_iter()
            .map(|version| (version, DAMAGE.to_owned()))
            .collect())
    }
}
