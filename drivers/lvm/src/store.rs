//! What the driver does, with calls that block.
//!
//! An object comes to be, and goes, by one change of the group's metadata, which LVM's tools make ([`crate::layout`], L2).
//! What a process leaves in the middle, [`crate::settle`] finishes or takes away.
//!
//! - D1: nothing is made without a reserve left, so that what is there can go on and be deleted.
//! - D2: a volume gets its device when it is first needed, and loses it when the pool is closed; none gets one by the
//!   start of the machine.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::libc::O_DIRECT;
use nix::sys::stat::{major, minor};
use quarry_contract::{
    DriverError, MountedShare, Outcome, PoolName, ShareCapabilities, ShareCapability, ShareId, ShareInfo,
    SharePoolStatus, ShareSnapshotId, ShareSnapshotInfo, ShareSnapshotSpec, ShareSource, ShareSpec,
    ShareUsage, ShareVersion, adopted_as_another, name_is_taken, nothing_named,
};
use quarry_xfs::backend::{ShareStore, StepHook, Steps, unmount_all};
use quarry_xfs::brake::{Brake, Medium, check_space};
use quarry_xfs::error::{During, StoreError, corrupt, not_found};
use quarry_xfs::filesystem::{
    BLANK_BYTES, MAX_SHARE_BYTES, MIN_SHARE_BYTES, SIZE_GRANULARITY_BYTES, Sectors, adoptable_size,
    device_bytes, identity_of, make, replay_log, set_identity,
};
use quarry_xfs::locks::{Locks, lock};
use quarry_xfs::mounts::Mounts;
use quarry_xfs::objects::{ObjectRecord, Objects, PoolSpace};
use tracing::warn;
use uuid::Uuid;

use crate::layout::{
    OUR_PREFIX, Role, SOURCE_TAG, UNFINISHED, is_unfinished, object_name, predecessor_name, record_tag,
    role_of, successor_name, view_name, view_tag,
};
use crate::place::{PoolPlace, Taken, is_lvm_name};
use crate::pool::{PoolFigures, figures, mapped_bytes};
use crate::settle::{resume, settle};
use crate::tools::{Activation, LogicalVolume, Skipped};

/// What a copy of a share takes of the pool at once, about: what its log and superblocks diverge by.
const COPY_BYTES: u64 = 4 << 20;

/// How a store is opened.
#[derive(Clone)]
pub struct StoreOptions {
    /// The pool's name.
    pub name: PoolName,
    /// Where it is.
    pub place: PoolPlace,
    /// A folder for mounts; on a file system that forgets with the machine's restart at best.
    pub mounts: PathBuf,
    /// For tests.
    pub on_step: Option<StepHook>,
}

/// A store of shares.
pub struct LvmStore {
    name: PoolName,
    objects: Mutex<Objects>,
    /// The volumes of ours that have a device (D2).
    active: Mutex<BTreeSet<String>>,
    locks: Arc<Locks>,
    mounts: Arc<Mounts>,
    steps: Steps,
    /// Held by who adopts or releases: names of what is no share have no locks of their own.
    adoption: Mutex<()>,
    brake: Brake,
    // Last: the pool is another process's when everything else has ended.
    pool: Arc<Taken>,
}

impl ShareStore for LvmStore {
    type Options = StoreOptions;

    fn open(options: &StoreOptions) -> Result<Self, StoreError> {
        let (pool, volumes) = options.place.take()?;
        let pool = Arc::new(pool);
        let mounts = Arc::new(Mounts::at(&options.mounts)?);
        resume(&pool, &volumes)?;
        mounts.take_up(|version, device| pool.is_device_of(version, device))?;
        let settled = settle(&pool, &volumes, &mounts)?;
        let locks = Arc::new(Locks::default());
        let brake = Brake::start(
            options.name.to_string(),
            Box::new(Volumes(Arc::clone(&pool))),
            Arc::clone(&locks),
            Arc::clone(&mounts),
        )
        .during(|| "starting a thread".to_owned())?;
        let store = Self {
            name: options.name.clone(),
            objects: Mutex::new(settled.objects),
            active: Mutex::new(settled.active),
            locks,
            mounts,
            steps: Steps(options.on_step.clone()),
            adoption: Mutex::default(),
            brake,
            pool,
        };
        for mounted in store.mounts.all() {
            // A growth may have been cut short.
            if let ShareVersion::Share(id) = mounted.version {
                let size_bytes = lock(&store.objects).share(id)?.size_bytes;
                store.fit(&mounted, size_bytes)?;
            }
        }
        Ok(store)
    }

    fn pool_name(options: &StoreOptions) -> &PoolName {
        &options.name
    }

    fn uuid(&self) -> Uuid {
        self.pool.uuid
    }

    fn close(self) -> Result<(), StoreError> {
        unmount_all(&self)?;
        drop(self.brake);
        self.mounts.close();
        let active: Vec<String> = lock(&self.active).iter().cloned().collect();
        match active.is_empty() {
            true => Ok(()),
            false => self.pool.group.deactivate(&active),
        }
    }

    fn capabilities(&self) -> ShareCapabilities {
        ShareCapabilities {
            driver: "lvm",
            features: vec![
                ShareCapability::ThinProvisioning,
                ShareCapability::Snapshots,
                ShareCapability::Clones,
                ShareCapability::RevertToAny,
                ShareCapability::Grow,
                ShareCapability::MountSnapshots,
                ShareCapability::Adopt,
            ],
            min_share_bytes: MIN_SHARE_BYTES,
            max_share_bytes: MAX_SHARE_BYTES,
            size_granularity_bytes: self.pool.extent_bytes.max(SIZE_GRANULARITY_BYTES),
        }
    }

    fn pool_status(&self) -> Result<SharePoolStatus, StoreError> {
        let figures = self.figures()?;
        let space = PoolSpace {
            state: figures.state,
            total_bytes: figures.total_bytes,
            free_bytes: figures.free_bytes,
            // A delete gives it back before it returns.
            reclaimable_bytes: 0,
        };
        Ok(lock(&self.objects).status(&self.name, self.pool.uuid, space))
    }

    fn create_share(&self, spec: &ShareSpec) -> Result<Outcome<ShareInfo>, StoreError> {
        let version = ShareVersion::Share(spec.id);
        let source = spec.source.version();
        let _held = self.locks.take([version].into_iter().chain(source));
        if let Some(answer) = lock(&self.objects).admit(spec, &self.capabilities())? {
            return Ok(answer);
        }
        self.check_space(if source.is_some() { COPY_BYTES } else { BLANK_BYTES })?;
        let record = ObjectRecord::Share { source: spec.source };
        let volume = object_name(version);
        self.steps.step("begun");
        let length = device_bytes(spec.size_bytes);
        let tags = [&*record_tag(record), UNFINISHED];
        let group = &self.pool.group;
        let begun = self.begin(&volume, || match source {
            None => group.create(&self.pool.pool, &volume, length, &tags),
            Some(source) => group.snapshot(&object_name(source), &volume, Activation::Active, &tags),
        });
        match source {
            None => begun?,
            Some(source) => self.or_missing(source, begun)?,
        }
        lock(&self.active).insert(volume.clone());
        self.steps.step("created");
        let filled = match source {
            None => make(&self.pool.device(&volume), spec.size_bytes, spec.id.0),
            Some(source) => self.complete_clone(source, spec, &volume),
        };
        let made = filled.and_then(|()| {
            self.steps.step("filled");
            // From here on it is there (L2).
            self.pool.group.remove_tag(&volume, UNFINISHED)
        });
        if let Err(error) = made {
            // What stays is deleted at the next start.
            drop(self.remove(&volume));
            return Err(error);
        }
        self.steps.step("made");
        lock(&self.objects).insert(version, record, spec.size_bytes)?;
        Ok(Outcome::Changed(self.share(spec.id)?))
    }

    fn share(&self, id: ShareId) -> Result<ShareInfo, StoreError> {
        Ok(lock(&self.objects).share(id)?)
    }

    fn shares(&self) -> Result<Vec<ShareInfo>, StoreError> {
        Ok(lock(&self.objects).shares())
    }

    fn resize_share(&self, id: ShareId, size_bytes: u64) -> Result<Outcome<ShareInfo>, StoreError> {
        let version = ShareVersion::Share(id);
        let _held = self.locks.take([version]);
        let info = self.share(id)?;
        let mounted = self.mounts.find(version);
        if size_bytes == info.size_bytes {
            if let Some(mounted) = &mounted {
                self.fit(mounted, size_bytes)?;
            }
            return Ok(Outcome::Unchanged(info));
        }
        self.capabilities().check_size(size_bytes)?;
        if size_bytes < info.size_bytes {
            return Err(self.unsupported(ShareCapability::Shrink));
        }
        self.check_space(COPY_BYTES)?;
        self.steps.step("begun");
        let extended = self
            .pool
            .group
            .extend(&object_name(version), device_bytes(size_bytes));
        self.or_missing(version, extended)?;
        // It is that large now, whatever comes: a volume that shrinks could lose what its file system has taken up.
        lock(&self.objects).resize(id, size_bytes);
        self.steps.step("longer");
        if let Some(mounted) = mounted {
            self.fit(&mounted, size_bytes)?;
        }
        Ok(Outcome::Changed(self.share(id)?))
    }

    fn revert_share(&self, id: ShareId, snapshot: ShareSnapshotId) -> Result<Outcome<ShareInfo>, StoreError> {
        let (version, origin) = (ShareVersion::Share(id), ShareVersion::Snapshot(snapshot));
        let _held = self.locks.take([version, origin]);
        let info = self.share(id)?;
        let of = lock(&self.objects).snapshot_of(id, snapshot)?;
        self.mounts.check_unmounted(version)?;
        self.check_space(COPY_BYTES)?;
        let (volume, successor, predecessor) = (object_name(version), successor_name(id), predecessor_name());
        let group = &self.pool.group;
        self.steps.step("begun");
        let tag = record_tag(ObjectRecord::Share { source: info.source });
        let begun = self.begin(&successor, || {
            group.snapshot(&object_name(origin), &successor, Activation::Inactive, &[&tag])
        });
        self.or_missing(origin, begun)?;
        self.steps.step("copied");
        let prepared = match of.size_bytes < info.size_bytes {
            true => group.extend(&successor, device_bytes(info.size_bytes)),
            false => Ok(()),
        };
        let taken_away = prepared.and_then(|()| {
            self.steps.step("prepared");
            // From here on it is reverted (L3).
            group.rename(&volume, &predecessor)
        });
        let has_predecessor = match taken_away {
            Ok(()) => true,
            // Somebody has deleted it, and this brings it back.
            Err(_) if self.is_missing(version) => false,
            Err(error) => {
                drop(group.remove(&successor));
                return Err(error);
            }
        };
        self.steps.step("taken away");
        if let Err(error) = group.rename(&successor, &volume) {
            // Where there is no way back either, the next start goes on: the successor is all that is left of the share.
            if group.rename(&predecessor, &volume).is_ok() {
                drop(group.remove(&successor));
            }
            return Err(error);
        }
        lock(&self.active).remove(&volume);
        self.steps.step("replaced");
        if has_predecessor && let Err(error) = group.remove(&predecessor) {
            // The next start deletes it.
            warn!(%version, %error, "what it was before a revert keeps its space");
        }
        Ok(Outcome::Changed(info))
    }

    fn adopt_share(&self, id: ShareId, name: &str) -> Result<Outcome<ShareInfo>, StoreError> {
        let version = ShareVersion::Share(id);
        let _adoption = lock(&self.adoption);
        let _held = self.locks.take([version]);
        let foreign = match (self.share(id), self.foreign(name)?) {
            (Ok(existing), None) => return Ok(Outcome::Unchanged(existing)),
            (Ok(_), Some(_)) => return Err(adopted_as_another(id, name).into()),
            (Err(_), None) => return Err(nothing_named(name).into()),
            (Err(_), Some(foreign)) => foreign,
        };
        if foreign.is_open() {
            return Err(DriverError::Busy {
                object: format!("the volume {name}"),
                blockers: vec!["a mount, or another user of its device".into()],
            }
            .into());
        }
        let (group, volume) = (&self.pool.group, object_name(version));
        group.activate(name)?;
        let device = self.pool.device(name);
        let limits = self.capabilities();
        let identified =
            adoptable_size(&device, foreign.length_bytes, Sectors::Any, &limits).and_then(|size_bytes| {
                self.steps.step("begun");
                self.identify(version, name)?;
                Ok(size_bytes)
            });
        let size_bytes = match identified {
            Ok(size_bytes) => size_bytes,
            Err(error) => {
                if !foreign.is_active() {
                    drop(group.deactivate(&[name.to_owned()]));
                }
                return Err(error);
            }
        };
        self.steps.step("identified");
        let record = ObjectRecord::Share {
            source: ShareSource::Blank,
        };
        group.add_tag(name, &record_tag(record))?;
        group.set_skipped(name, Skipped::Yes)?;
        self.steps.step("tagged");
        // From here on it is ours (L1).
        group.rename(name, &volume)?;
        self.steps.step("renamed");
        lock(&self.active).insert(volume);
        lock(&self.objects).insert(version, record, size_bytes)?;
        Ok(Outcome::Changed(self.share(id)?))
    }

    fn release_share(&self, id: ShareId, name: &str) -> Result<Outcome<()>, StoreError> {
        let version = ShareVersion::Share(id);
        let _adoption = lock(&self.adoption);
        let _held = self.locks.take([version]);
        let (outcome, tag) = match (self.share(id), self.foreign(name)?) {
            (Err(_), None) => return Err(not_found(version).into()),
            (Ok(_), Some(_)) => return Err(name_is_taken(name).into()),
            // A call before may have been cut short.
            (Err(_), Some(foreign)) => match foreign.tag(SOURCE_TAG) {
                None => return Ok(Outcome::Unchanged(())),
                Some(source) => (Outcome::Unchanged(()), format!("{SOURCE_TAG}={source}")),
            },
            (Ok(info), None) => {
                self.mounts.check_unmounted(version)?;
                self.steps.step("begun");
                let volume = object_name(version);
                // From here on it is not ours (L1).
                self.pool.group.rename(&volume, name)?;
                self.steps.step("renamed");
                lock(&self.active).remove(&volume);
                lock(&self.objects).remove(version);
                let tag = record_tag(ObjectRecord::Share { source: info.source });
                (Outcome::Changed(()), tag)
            }
        };
        let group = &self.pool.group;
        group.deactivate(&[name.to_owned()])?;
        group.set_skipped(name, Skipped::No)?;
        group.remove_tag(name, &tag)?;
        Ok(outcome)
    }

    fn delete(&self, version: ShareVersion) -> Result<Outcome<()>, StoreError> {
        let _held = self.locks.take([version]);
        if lock(&self.objects).size_bytes(version).is_err() {
            return Ok(Outcome::Unchanged(()));
        }
        self.mounts.check_unmounted(version)?;
        self.steps.step("begun");
        match self.remove(&object_name(version)) {
            // Somebody has deleted it.
            Err(_) if self.is_missing(version) => drop(lock(&self.active).remove(&object_name(version))),
            removed => removed?,
        }
        self.steps.step("removed");
        lock(&self.objects).remove(version);
        Ok(Outcome::Changed(()))
    }

    fn create_snapshots(
        &self,
        group: &[ShareSnapshotSpec],
    ) -> Result<Outcome<Vec<ShareSnapshotInfo>>, StoreError> {
        let _held = self.locks.take_group(group);
        if let Some(existing) = lock(&self.objects).group(group)? {
            return Ok(Outcome::Unchanged(existing));
        }
        let shares = group
            .iter()
            .map(|spec| self.share(spec.share))
            .collect::<Result<Vec<ShareInfo>, StoreError>>()?;
        let ([spec], [share]) = (group, &shares[..]) else {
            return Err(self.unsupported(ShareCapability::GroupSnapshots));
        };
        self.check_space(COPY_BYTES)?;
        let (of, version) = (ShareVersion::Share(spec.share), ShareVersion::Snapshot(spec.id));
        let record = ObjectRecord::Snapshot { share: spec.share };
        self.steps.step("begun");
        let taken = self.pool.group.snapshot(
            &object_name(of),
            &object_name(version),
            Activation::Inactive,
            &[&record_tag(record)],
        );
        self.or_missing(of, taken)?;
        self.steps.step("taken");
        self.brake.shares_its_log(of);
        lock(&self.objects).insert(version, record, share.size_bytes)?;
        Ok(Outcome::Changed(vec![self.snapshot(spec.id)?]))
    }

    fn snapshot(&self, id: ShareSnapshotId) -> Result<ShareSnapshotInfo, StoreError> {
        Ok(lock(&self.objects).snapshot(id)?)
    }

    fn snapshots(&self) -> Result<Vec<ShareSnapshotInfo>, StoreError> {
        Ok(lock(&self.objects).snapshots())
    }

    fn usage(&self, of: ShareVersion) -> Result<ShareUsage, StoreError> {
        let _held = self.locks.take([of]);
        lock(&self.objects).size_bytes(of)?;
        let volume = object_name(of);
        let device = self.or_missing(of, self.activate(&volume))?;
        let what = || format!("asking for the usage of {of}");
        let allocated_bytes = mapped_bytes(&self.pool.group.device_name(&volume)).during(what)?;
        let used_bytes = self.mounts.used_bytes(of, &File::open(&device).during(what)?)?;
        Ok(ShareUsage {
            used_bytes,
            allocated_bytes,
        })
    }

    fn mount(&self, of: ShareVersion) -> Result<Outcome<MountedShare>, StoreError> {
        let _held = self.locks.take([of]);
        let size_bytes = lock(&self.objects).size_bytes(of)?;
        if let Some(mounted) = self.mounts.find(of) {
            return Ok(Outcome::Unchanged(mounted));
        }
        self.steps.step("begun");
        let device = match of {
            ShareVersion::Share(_) => self.activate(&object_name(of)),
            ShareVersion::Snapshot(id) => self.make_view(id),
        };
        let device = self.or_missing(of, device)?;
        self.steps.step("prepared");
        let mounted = self.mounts.mount(of, &device, identity_of(of))?;
        self.brake.shares_its_log(of);
        self.steps.step("mounted");
        if matches!(of, ShareVersion::Share(_)) {
            // A growth or a revert while it was not mounted is made up for now.
            self.fit(&mounted, size_bytes)?;
        }
        Ok(Outcome::Changed(mounted))
    }

    fn unmount(&self, of: ShareVersion) -> Result<Outcome<()>, StoreError> {
        let _held = self.locks.take([of]);
        self.steps.step("begun");
        if !self.mounts.unmount(of)? {
            return Ok(Outcome::Unchanged(()));
        }
        self.steps.step("unmounted");
        if let ShareVersion::Snapshot(id) = of {
            self.remove(&view_name(id))?;
        }
        Ok(Outcome::Changed(()))
    }

    fn mounted(&self) -> Vec<MountedShare> {
        self.mounts.all()
    }

    fn stopped(&self) -> Vec<ShareVersion> {
        self.mounts.stopped()
    }

    fn damaged(&self) -> Result<Vec<(ShareVersion, String)>, StoreError> {
        let known = lock(&self.objects).versions();
        let volumes = self.pool.group.volumes()?;
        let is_there = |version: &ShareVersion| {
            let name = object_name(*version);
            volumes.iter().any(|volume| volume.name == name)
        };
        let mut damaged = Vec::new();
        for version in known.into_iter().filter(|version| !is_there(version)) {
            // Or somebody is at work on it.
            let _held = self.locks.take([version]);
            if lock(&self.objects).size_bytes(version).is_ok() && self.is_missing(version) {
                damaged.push((version, self.missing(version)));
            }
        }
        Ok(damaged)
    }
}

impl LvmStore {
    fn figures(&self) -> Result<PoolFigures, StoreError> {
        self.pool
            .figures()
            .during(|| format!("asking for the space of the thin pool {}", self.pool.pool))
    }

    fn unsupported(&self, capability: ShareCapability) -> StoreError {
        DriverError::Unsupported {
            object: format!("pool {}", self.name),
            capability: capability.as_str().into(),
        }
        .into()
    }

    /// Tells whether the volume of an object has been deleted by somebody else.
    fn is_missing(&self, version: ShareVersion) -> bool {
        let name = object_name(version);
        let volumes = self.pool.group.volumes();
        volumes.is_ok_and(|volumes| volumes.iter().all(|volume| volume.name != name))
    }

    /// Says that the volume of an object is missing.
    fn missing(&self, version: ShareVersion) -> String {
        let device = self.pool.device(&object_name(version));
        format!("there is no volume {} any more", device.display())
    }

    /// Tells damage from other reasons for what has failed: the volume of the object is not there.
    fn or_missing<T>(&self, version: ShareVersion, result: Result<T, StoreError>) -> Result<T, StoreError> {
        match result {
            Err(StoreError::System { .. }) if self.is_missing(version) => {
                Err(corrupt(version, self.missing(version)).into())
            }
            result => result,
        }
    }

    /// Checks that the reserve stays when something takes this much (D1).
    fn check_space(&self, needed_bytes: u64) -> Result<(), StoreError> {
        check_space(&self.name, needed_bytes, || {
            let figures = self.figures()?;
            Ok((figures.total_bytes, figures.free_bytes))
        })
    }

    /// Looks for a volume of the pool that is not ours.
    fn foreign(&self, name: &str) -> Result<Option<LogicalVolume>, StoreError> {
        let unfit = |problem: &str| {
            StoreError::from(DriverError::InvalidArgument {
                field: "name".into(),
                problem: format!("{name:?} {problem}"),
            })
        };
        if !is_lvm_name(name) {
            return Err(unfit("is no name that LVM takes"));
        }
        if name.starts_with(OUR_PREFIX) {
            // With the tag it could be taken for another share's.
            return Err(unfit("begins as the names of shares do"));
        }
        let volumes = self.pool.group.volumes()?;
        match volumes.into_iter().find(|volume| volume.name == name) {
            Some(found) if found.pool != self.pool.pool => Err(unfit("is no thin volume of the pool's own")),
            found => Ok(found),
        }
    }

    /// Makes a volume that is no object yet, also where one is in its place that a call before could not take away.
    fn begin(&self, volume: &str, make: impl Fn() -> Result<(), StoreError>) -> Result<(), StoreError> {
        let Err(error) = make() else { return Ok(()) };
        let left = self.pool.group.volume(volume).ok();
        let is_left = left.is_some_and(|left| match role_of(&left, &self.pool.pool) {
            Some(Role::Object(..)) => is_unfinished(&left),
            Some(Role::View(_) | Role::Successor(_)) => true,
            Some(Role::Predecessor) | None => false,
        });
        if !is_left {
            return Err(error);
        }
        self.remove(volume)?;
        make()
    }

    /// Makes the copy of a share a share of its own.
    fn complete_clone(&self, source: ShareVersion, spec: &ShareSpec, volume: &str) -> Result<(), StoreError> {
        self.brake.shares_its_log(source);
        self.identify(ShareVersion::Share(spec.id), volume)?;
        self.steps.step("identified");
        match lock(&self.objects).size_bytes(source)? < spec.size_bytes {
            true => self.pool.group.extend(volume, device_bytes(spec.size_bytes)),
            false => Ok(()),
        }
    }

    /// Gives the file system of a copy the identity of a version.
    fn identify(&self, version: ShareVersion, volume: &str) -> Result<(), StoreError> {
        let device = self.pool.device(volume);
        set_identity(version, &device, identity_of(version), || {
            replay_log(&device, &self.mounts.scratch(version))
        })
    }

    /// Makes what is mounted for a snapshot: a copy with its own identity and an empty log.
    fn make_view(&self, id: ShareSnapshotId) -> Result<PathBuf, StoreError> {
        let (version, volume) = (ShareVersion::Snapshot(id), view_name(id));
        self.check_space(COPY_BYTES)?;
        let (origin, tag) = (object_name(version), view_tag(id));
        self.begin(&volume, || {
            self.pool
                .group
                .snapshot(&origin, &volume, Activation::Active, &[&tag])
        })?;
        lock(&self.active).insert(volume.clone());
        self.steps.step("viewed");
        self.identify(version, &volume)?;
        Ok(self.pool.device(&volume))
    }

    /// Has a volume have a device (D2), and returns its path.
    fn activate(&self, volume: &str) -> Result<PathBuf, StoreError> {
        let device = self.pool.device(volume);
        if !lock(&self.active).contains(volume) || !device.exists() {
            self.pool.group.activate(volume)?;
            lock(&self.active).insert(volume.to_owned());
        }
        Ok(device)
    }

    fn remove(&self, volume: &str) -> Result<(), StoreError> {
        self.pool.group.remove(volume)?;
        lock(&self.active).remove(volume);
        Ok(())
    }

    /// Makes the file system of a mounted share as large as its volume, whose device is so already.
    fn fit(&self, mounted: &MountedShare, size_bytes: u64) -> Result<(), StoreError> {
        self.mounts.fit(mounted, device_bytes(size_bytes), |_| Ok(()))
    }
}

impl Taken {
    fn figures(&self) -> io::Result<PoolFigures> {
        figures(&self.pool_device, self.chunk_bytes)
    }

    /// Returns the path of the device of a volume that has one.
    fn device(&self, volume: &str) -> PathBuf {
        Path::new("/dev/mapper").join(self.group.device_name(volume))
    }

    /// Tells whether a device is that of a version: of its volume, in this group.
    fn is_device_of(&self, version: ShareVersion, device: &Path) -> io::Result<bool> {
        let volume = match version {
            ShareVersion::Share(_) => object_name(version),
            ShareVersion::Snapshot(id) => view_name(id),
        };
        let number = fs::metadata(device)?.rdev();
        let of = PathBuf::from(format!("/sys/dev/block/{}:{}/dm", major(number), minor(number)));
        if !of.exists() {
            return Ok(false);
        }
        let (name, uuid) = (
            fs::read_to_string(of.join("name"))?,
            fs::read_to_string(of.join("uuid"))?,
        );
        Ok(name.trim_end() == self.group.device_name(&volume) && uuid.starts_with(&self.device_uuids))
    }
}

/// The volumes of a pool, below their file systems.
struct Volumes(Arc<Taken>);

impl Medium for Volumes {
    fn space(&self) -> io::Result<(u64, u64)> {
        let figures = self.0.figures()?;
        Ok((figures.total_bytes, figures.free_bytes))
    }

    fn open(&self, share: ShareVersion) -> io::Result<File> {
        let device = self.0.device(&object_name(share));
        // Past the memory of the device, of which its mounted file system knows nothing.
        File::options()
            .read(true)
            .write(true)
            .custom_flags(O_DIRECT)
            .open(device)
    }
}
