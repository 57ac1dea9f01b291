//! What the driver does, with calls that block.
//!
//! Every object is made in `new`, becomes one by a rename, and is known from then on ([`crate::layout`], L1 to L3). What
//! a process leaves in the middle, [`ImageStore::open`] finishes or throws away:
//!
//! | killed | then it is |
//! |---|---|
//! | while making a share or snapshots | not there; what was begun is deleted |
//! | after the rename to `commit` | there, all of a group |
//! | while file systems were frozen | as before; they are thawed |
//! | while growing | as large as its image; the file system follows at once, or at the next mount |
//! | while reverting | the old or the new image, whole |
//! | while deleting | there or not; its space comes back |
//! | while mounting | mounted, or not; what was needed for it is deleted |
//!
//! - D1: nothing is made without a reserve left, so that what is there can go on and be deleted.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::sys::statvfs::statvfs;
use quarry_contract::{
    DriverError, MountedShare, Outcome, PoolName, PoolState, ShareCapabilities, ShareCapability, ShareId,
    ShareInfo, SharePoolStatus, ShareSnapshotId, ShareSnapshotInfo, ShareSnapshotSpec, ShareSpec, ShareUsage,
    ShareVersion,
};
use quarry_sys::loop_device::{LoopDevice, LoopMode};
use quarry_xfs::backend::{ShareStore, StepHook, Steps, unmount_all};
use quarry_xfs::brake::{Brake, Medium, check_space};
use quarry_xfs::error::{During, StoreError, corrupt};
use quarry_xfs::filesystem::{
    BLANK_BYTES, MAX_SHARE_BYTES, MIN_SHARE_BYTES, SIZE_GRANULARITY_BYTES, device_bytes, identity_of,
    size_bytes,
};
use quarry_xfs::locks::{Locks, lock};
use quarry_xfs::mounts::{Mounts, device_of, make_folder};
use quarry_xfs::objects::{ObjectRecord, Objects, PoolSpace, member_name};
use tracing::warn;
use uuid::Uuid;

use crate::image::{Copy, copy, copy_frozen, make, set_identity};
use crate::layout::{FORMAT, Layout, ObjectFound, PoolRecord, finish_object, sync_folder};
use crate::place::{PoolPlace, Taken};
use crate::trash::Trash;

mod adoption;

/// What a copy of an image takes of the pool at once, about: its map, and what its log and superblocks diverge by.
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
pub struct ImageStore {
    name: PoolName,
    uuid: Uuid,
    layout: Layout,
    objects: Mutex<Objects>,
    /// What was left out when the pool was opened, and why.
    unreadable: Vec<(ShareVersion, String)>,
    locks: Arc<Locks>,
    mounts: Arc<Mounts>,
    steps: Steps,
    /// Held by who adopts or releases: names of what is no share have no locks of their own.
    adoption: Mutex<()>,
    brake: Brake,
    trash: Trash,
    // Last: the pool is another process's when everything else has ended.
    place: Taken,
}

impl ShareStore for ImageStore {
    type Options = StoreOptions;

    fn open(options: &StoreOptions) -> Result<Self, StoreError> {
        let pool = options.name.as_str();
        let place = options.place.take(pool, &options.mounts)?;
        let layout = Layout::at(place.root.clone());
        let record = open_layout(&layout, &options.place, place.may_format, pool)?;
        let what = || format!("settling what is in {}", layout.root().display());
        layout.make_folders().during(what)?;
        let mounts = Arc::new(Mounts::at(&options.mounts)?);
        mounts.take_up(|version, device| {
            let Ok(device) = LoopDevice::open(device) else {
                return Ok(false);
            };
            match version {
                ShareVersion::Share(_) => {
                    let image = layout.image(version);
                    let is_there = layout.find_image(version)?.is_some();
                    if is_there && device.shows(&File::open(&image)?)? {
                        return Ok(true);
                    }
                    // What is mounted is all there is of it then (S13).
                    match device.shows_deleted(&image)? {
                        false if !is_there => Err(io::ErrorKind::NotFound.into()),
                        was_its_image => Ok(was_its_image),
                    }
                }
                // It can be made anew.
                ShareVersion::Snapshot(id) => match File::open(layout.view(id).join("image")) {
                    Ok(image) => device.shows(&image),
                    Err(_) => Ok(false),
                },
            }
        })?;
        layout.settle_commits().during(what)?;
        layout.settle_foreign().during(what)?;
        clear(&layout.new_folder(""), |_| false).during(what)?;
        let views: Vec<String> = mounts
            .all()
            .iter()
            .filter_map(|mounted| match mounted.version {
                ShareVersion::Snapshot(id) => Some(id.to_string()),
                ShareVersion::Share(_) => None,
            })
            .collect();
        let views_folder = layout.root().join("views");
        clear(&views_folder, |name| views.iter().any(|view| view == name)).during(what)?;
        let (mut objects, mut unreadable) = (Objects::default(), Vec::new());
        for found in layout.objects().during(what)? {
            match found {
                ObjectFound::Readable(version, record, length) => {
                    // Of one without its image the size is not known. Nothing is handed out of it.
                    objects.insert(version, record, length.map_or(0, size_bytes))?;
                }
                ObjectFound::Unreadable(version, problem) => unreadable.push((version, problem)),
            }
        }
        let trash = Trash::start(layout.trash()).during(what)?;
        let locks = Arc::new(Locks::default());
        let brake = Brake::start(
            pool.to_owned(),
            Box::new(Images(layout.clone())),
            Arc::clone(&locks),
            Arc::clone(&mounts),
        )
        .during(what)?;
        let store = Self {
            name: options.name.clone(),
            uuid: record.uuid,
            layout,
            objects: Mutex::new(objects),
            unreadable,
            locks,
            mounts,
            steps: Steps(options.on_step.clone()),
            adoption: Mutex::default(),
            brake,
            trash,
            place,
        };
        store.check_shares_blocks()?;
        for mounted in store.mounts.all() {
            // A growth may have been cut short.
            if let ShareVersion::Share(id) = mounted.version
                && let Ok(share) = lock(&store.objects).share(id)
            {
                store.fit(&mounted, share.size_bytes)?;
            }
        }
        Ok(store)
    }

    fn pool_name(options: &StoreOptions) -> &PoolName {
        &options.name
    }

    fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn close(self) -> Result<(), StoreError> {
        let unmounted = unmount_all(&self);
        drop(self.brake);
        self.mounts.close();
        drop(self.trash);
        // What stays mounted keeps the pool so, too.
        unmounted?;
        self.place
            .close()
            .during(|| format!("closing pool {}", self.name))
    }

    fn capabilities(&self) -> ShareCapabilities {
        ShareCapabilities {
            driver: "images",
            features: vec![
                ShareCapability::ThinProvisioning,
                ShareCapability::Snapshots,
                ShareCapability::Clones,
                ShareCapability::RevertToAny,
                ShareCapability::Grow,
                ShareCapability::GroupSnapshots,
                ShareCapability::MountSnapshots,
                ShareCapability::Adopt,
            ],
            min_share_bytes: MIN_SHARE_BYTES,
            max_share_bytes: MAX_SHARE_BYTES,
            size_granularity_bytes: SIZE_GRANULARITY_BYTES,
        }
    }

    fn pool_status(&self) -> Result<SharePoolStatus, StoreError> {
        let (total_bytes, free_bytes) = self.space()?;
        let space = PoolSpace {
            state: PoolState::Up,
            total_bytes,
            free_bytes,
            reclaimable_bytes: self.trash.bytes(),
        };
        Ok(lock(&self.objects).status(&self.name, self.uuid, space))
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
        self.make_objects(&[version], |folders| {
            let image = folders[0].join("image");
            match source {
                None => make(&image, spec.size_bytes, identity_of(version))?,
                Some(source) => {
                    let copies =
                        copy_frozen(&[self.copy_of(source, &image)?], &|name| self.steps.step(name))?;
                    self.brake.shares_its_log(source);
                    set_identity(version, &image, &self.mounts.scratch(version))?;
                    self.steps.step("identified");
                    for copied in copies {
                        copied
                            .set_len(device_bytes(spec.size_bytes))
                            .and_then(|()| copied.sync_all())
                            .during(|| format!("flushing {}", image.display()))?;
                    }
                }
            }
            Ok(vec![(record, spec.size_bytes)])
        })?;
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
            return Err(DriverError::Unsupported {
                object: format!("pool {}", self.name),
                capability: ShareCapability::Shrink.as_str().into(),
            }
            .into());
        }
        self.check_space(COPY_BYTES)?;
        self.image_of(version)?;
        self.steps.step("begun");
        self.set_image_length(version, device_bytes(size_bytes))?;
        self.steps.step("longer");
        // It is that large now, whatever comes: XFS may fail after it has grown, and then it needs all of it.
        lock(&self.objects).resize(id, size_bytes);
        if let Some(mounted) = mounted {
            self.fit(&mounted, size_bytes)?;
        }
        Ok(Outcome::Changed(self.share(id)?))
    }

    fn revert_share(&self, id: ShareId, snapshot: ShareSnapshotId) -> Result<Outcome<ShareInfo>, StoreError> {
        let (version, origin) = (ShareVersion::Share(id), ShareVersion::Snapshot(snapshot));
        let _held = self.locks.take([version, origin]);
        let mut info = self.share(id)?;
        let snapshot = lock(&self.objects).snapshot_of(id, snapshot)?;
        // The size of a share whose image is missing may not be known.
        info.size_bytes = info.size_bytes.max(snapshot.size_bytes);
        self.mounts.check_unmounted(version)?;
        self.check_space(COPY_BYTES)?;
        let new = self.layout.new_folder(&Uuid::now_v7().to_string());
        let what = || format!("reverting {version}");
        make_folder(&new).during(what)?;
        self.steps.step("begun");
        let image = new.join("image");
        let copied = self.image_of(origin).and_then(|origin| {
            let copied = copy(&origin, &image)?;
            copied.set_len(device_bytes(info.size_bytes)).during(what)?;
            copied.sync_all().during(what)
        });
        if let Err(error) = copied {
            drop(fs::remove_dir_all(&new));
            return Err(error);
        }
        self.steps.step("copied");
        fs::rename(&image, self.layout.image(version)).during(what)?;
        sync_folder(&self.layout.object(version)).during(what)?;
        lock(&self.objects).resize(id, info.size_bytes);
        self.steps.step("replaced");
        fs::remove_dir(&new).during(what)?;
        Ok(Outcome::Changed(info))
    }

    fn adopt_share(&self, id: ShareId, name: &str) -> Result<Outcome<ShareInfo>, StoreError> {
        self.adopt(id, name)
    }

    fn release_share(&self, id: ShareId, name: &str) -> Result<Outcome<()>, StoreError> {
        self.release(id, name)
    }

    fn delete(&self, version: ShareVersion) -> Result<Outcome<()>, StoreError> {
        let _held = self.locks.take([version]);
        if lock(&self.objects).size_bytes(version).is_err() {
            return Ok(Outcome::Unchanged(()));
        }
        if matches!(self.problem_of(version), Ok(Some(_))) && self.mounts.unmount(version)? {
            warn!(%version, "what was left of it has been unmounted to delete it");
        }
        self.mounts.check_unmounted(version)?;
        self.steps.step("begun");
        match self.layout.discard(version) {
            // Somebody has deleted all of it.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && !self.layout.object(version).exists() => {}
            discarded => drop(discarded.during(|| format!("deleting {version}"))?),
        }
        self.steps.step("discarded");
        lock(&self.objects).remove(version);
        self.trash.wake();
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
        let sizes = group
            .iter()
            .map(|spec| Ok(self.share(spec.share)?.size_bytes))
            .collect::<Result<Vec<u64>, StoreError>>()?;
        self.check_space(COPY_BYTES * group.len() as u64)?;
        let versions: Vec<ShareVersion> = group.iter().map(|spec| ShareVersion::Snapshot(spec.id)).collect();
        self.make_objects(&versions, |folders| {
            let copies: Vec<Copy> = group
                .iter()
                .zip(folders)
                .map(|(spec, folder)| self.copy_of(ShareVersion::Share(spec.share), &folder.join("image")))
                .collect::<Result<_, _>>()?;
            let copied = copy_frozen(&copies, &|name| self.steps.step(name))?;
            for spec in group {
                self.brake.shares_its_log(ShareVersion::Share(spec.share));
            }
            for copied in copied {
                copied.sync_all().during(|| "flushing a snapshot".to_owned())?;
            }
            let record = |spec: &ShareSnapshotSpec| ObjectRecord::Snapshot { share: spec.share };
            Ok(group.iter().map(record).zip(sizes).collect())
        })?;
        let infos = group.iter().map(|spec| self.snapshot(spec.id));
        Ok(Outcome::Changed(infos.collect::<Result<_, _>>()?))
    }

    fn snapshot(&self, id: ShareSnapshotId) -> Result<ShareSnapshotInfo, StoreError> {
        Ok(lock(&self.objects).snapshot(id)?)
    }

    fn snapshots(&self) -> Result<Vec<ShareSnapshotInfo>, StoreError> {
        Ok(lock(&self.objects).snapshots())
    }

    fn usage(&self, of: ShareVersion) -> Result<ShareUsage, StoreError> {
        lock(&self.objects).size_bytes(of)?;
        let image = self.image_of(of)?;
        let what = || format!("asking for the usage of {of}");
        let file = File::open(&image).during(what)?;
        let allocated_bytes = file.metadata().during(what)?.blocks() * 512;
        let used_bytes = self.mounts.used_bytes(of, &file)?;
        Ok(ShareUsage {
            used_bytes,
            allocated_bytes,
        })
    }

    fn mount(&self, of: ShareVersion) -> Result<Outcome<MountedShare>, StoreError> {
        let _held = self.locks.take([of]);
        lock(&self.objects).size_bytes(of)?;
        if let Some(mounted) = self.mounts.find(of) {
            return Ok(Outcome::Unchanged(mounted));
        }
        let image = match of {
            ShareVersion::Share(_) => self.image_of(of)?,
            ShareVersion::Snapshot(id) => self.make_view(id)?,
        };
        self.steps.step("prepared");
        let mode = match of {
            ShareVersion::Share(_) => LoopMode::ReadWrite,
            ShareVersion::Snapshot(_) => LoopMode::ReadOnly,
        };
        let device = LoopDevice::attach(&image, mode).during(|| format!("attaching {}", image.display()))?;
        let mounted = self.mounts.mount(of, device.path(), identity_of(of))?;
        self.brake.shares_its_log(of);
        self.steps.step("mounted");
        if matches!(of, ShareVersion::Share(_)) {
            // A growth or a revert while it was not mounted is made up for now.
            let size_bytes = lock(&self.objects).size_bytes(of)?;
            self.fit(&mounted, size_bytes)?;
        }
        Ok(Outcome::Changed(mounted))
    }

    fn unmount(&self, of: ShareVersion) -> Result<Outcome<()>, StoreError> {
        let _held = self.locks.take([of]);
        self.steps.step("begun");
        if self.mounts.find(of).is_some()
            && let Ok(Some(problem)) = self.problem_of(of)
        {
            // S13.
            return Err(corrupt(of, problem).into());
        }
        if !self.mounts.unmount(of)? {
            return Ok(Outcome::Unchanged(()));
        }
        self.steps.step("unmounted");
        if let ShareVersion::Snapshot(id) = of {
            self.remove_view(id)?;
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
        let mut damaged = self.unreadable.clone();
        for mounted in self.mounts.all() {
            if matches!(mounted.version, ShareVersion::Share(_)) && !known.contains(&mounted.version) {
                let problem = format!(
                    "there is nothing at {} any more; what is mounted at {} is all there is of it: copy it, then unmount it",
                    self.layout.object(mounted.version).display(),
                    mounted.path.display()
                );
                damaged.push((mounted.version, problem));
            }
        }
        for version in known {
            if matches!(self.problem_of(version), Ok(None)) {
                continue;
            }
            // Or somebody is at work on it.
            let _held = self.locks.take([version]);
            if lock(&self.objects).size_bytes(version).is_err() {
                continue;
            }
            match self.problem_of(version) {
                Ok(None) => {}
                Ok(Some(problem)) => damaged.push((version, problem)),
                Err(error) => damaged.push((version, error.to_string())),
            }
        }
        damaged.sort_unstable();
        Ok(damaged)
    }
}

impl ImageStore {
    /// Fails now rather than at the first snapshot where files cannot share blocks.
    fn check_shares_blocks(&self) -> Result<(), StoreError> {
        let folder = self.layout.new_folder("probe");
        let what = || format!("trying {}", folder.display());
        make_folder(&folder).during(what)?;
        let (one, other) = (folder.join("one"), folder.join("other"));
        fs::write(&one, [0x51; 4096]).during(what)?;
        let tried = copy(&one, &other);
        fs::remove_dir_all(&folder).during(what)?;
        tried.map(drop).map_err(|error| {
            StoreError::Driver(DriverError::Unavailable {
                object: format!("pool {}", self.name),
                problem: format!(
                    "the file system at {} does not share blocks between files; use XFS made with reflink=1, or btrfs",
                    self.layout.root().display()
                ),
                source: match error {
                    StoreError::System { source, .. } => Some(source),
                    StoreError::Driver(_) => None,
                },
            })
        })
    }

    /// Returns the size and the free space of the pool, in bytes.
    pub(crate) fn space(&self) -> Result<(u64, u64), StoreError> {
        space_of(self.layout.root())
            .during(|| format!("asking for the space at {}", self.layout.root().display()))
    }

    /// Checks that the reserve stays when something takes this much (D1).
    fn check_space(&self, needed_bytes: u64) -> Result<(), StoreError> {
        check_space(&self.name, needed_bytes, || self.space())
    }

    /// Returns the image of an object.
    ///
    /// # Errors
    /// `Corrupt` when somebody has taken it away, or put another in its place while it is mounted.
    fn image_of(&self, version: ShareVersion) -> Result<PathBuf, StoreError> {
        match self.problem_of(version)? {
            None => Ok(self.layout.image(version)),
            Some(problem) => Err(corrupt(version, problem).into()),
        }
    }

    /// Tells what is wrong with the image of an object, and what can be done about it; `None` when nothing is.
    fn problem_of(&self, version: ShareVersion) -> Result<Option<String>, StoreError> {
        let image = self.layout.image(version);
        let what = || format!("looking at {}", image.display());
        let found = self.layout.find_image(version).during(what)?;
        let mounted = match version {
            ShareVersion::Share(_) => self.mounts.find(version),
            // A mounted snapshot is a copy.
            ShareVersion::Snapshot(_) => None,
        };
        let image = image.display();
        let Some(mounted) = mounted else {
            return Ok(found.is_none().then(|| format!("there is no image at {image}")));
        };
        let path = mounted.path.display();
        if found.is_none() {
            return Ok(Some(format!(
                "there is no image at {image}, and what is mounted at {path} is all there is of it: copy it before you delete \
                 the share, or take its rules away and unmount that by hand"
            )));
        }
        let is_shown = device_of(&mounted)
            .and_then(|device| LoopDevice::open(&device)?.shows(&File::open(self.layout.image(version))?))
            .during(what)?;
        Ok((!is_shown).then(|| {
            format!(
                "the image at {image} is another than the one that is mounted at {path}: copy what you need from there; to \
                 have the other, take the share's rules away, unmount that by hand, and set them again"
            )
        }))
    }

    /// Describes the copy to make of a version, which may be mounted.
    fn copy_of(&self, version: ShareVersion, to: &Path) -> Result<Copy, StoreError> {
        Ok(Copy {
            from: self.image_of(version)?,
            // A mounted snapshot is a copy itself.
            root: match version {
                ShareVersion::Share(_) => self.mounts.find(version).map(|mounted| mounted.path),
                ShareVersion::Snapshot(_) => None,
            },
            to: to.to_owned(),
        })
    }

    /// Makes objects, all or none: `fill` puts an image into each folder and says what the records are.
    fn make_objects(
        &self,
        versions: &[ShareVersion],
        fill: impl FnOnce(&[PathBuf]) -> Result<Vec<(ObjectRecord, u64)>, StoreError>,
    ) -> Result<(), StoreError> {
        let name = Uuid::now_v7().to_string();
        let new = self.layout.new_folder(&name);
        let filled = self.fill_folders(&new, versions, fill);
        let records = match filled {
            Ok(records) => records,
            Err(error) => {
                // What stays is deleted at the next start.
                drop(fs::remove_dir_all(&new));
                return Err(error);
            }
        };
        let what = || format!("putting {name} into its place");
        self.steps.step("made");
        self.layout.commit(&name).during(what)?;
        self.steps.step("committed");
        self.layout.settle_commit(&name).during(what)?;
        self.steps.step("settled");
        let mut objects = lock(&self.objects);
        for (version, (record, size_bytes)) in versions.iter().zip(records) {
            objects.insert(*version, record, size_bytes)?;
        }
        Ok(())
    }

    fn fill_folders(
        &self,
        new: &Path,
        versions: &[ShareVersion],
        fill: impl FnOnce(&[PathBuf]) -> Result<Vec<(ObjectRecord, u64)>, StoreError>,
    ) -> Result<Vec<(ObjectRecord, u64)>, StoreError> {
        let what = || format!("filling {}", new.display());
        make_folder(new).during(what)?;
        let folders: Vec<PathBuf> = versions
            .iter()
            .map(|version| new.join(member_name(*version)))
            .collect();
        for folder in &folders {
            make_folder(folder).during(what)?;
        }
        self.steps.step("begun");
        let records = fill(&folders)?;
        self.steps.step("filled");
        for (folder, (record, _)) in folders.iter().zip(&records) {
            finish_object(folder, record).during(what)?;
        }
        Ok(records)
    }

    /// Makes the file system of a mounted share as large as its image.
    fn fit(&self, mounted: &MountedShare, size_bytes: u64) -> Result<(), StoreError> {
        self.mounts.fit(mounted, device_bytes(size_bytes), |device| {
            LoopDevice::open(device)?.update_capacity()
        })
    }

    fn set_image_length(&self, version: ShareVersion, length: u64) -> Result<(), StoreError> {
        let image = self.layout.image(version);
        File::options()
            .write(true)
            .open(&image)
            .and_then(|file| {
                file.set_len(length)?;
                file.sync_all()
            })
            .during(|| format!("setting the length of {}", image.display()))
    }

    /// Makes what is mounted for a snapshot: a copy with its own identity and an empty log.
    fn make_view(&self, id: ShareSnapshotId) -> Result<PathBuf, StoreError> {
        let version = ShareVersion::Snapshot(id);
        self.check_space(COPY_BYTES)?;
        let origin = self.image_of(version)?;
        self.remove_view(id)?;
        let folder = self.layout.view(id);
        make_folder(&folder).during(|| format!("making {}", folder.display()))?;
        let image = folder.join("image");
        copy(&origin, &image)?;
        self.steps.step("viewed");
        set_identity(version, &image, &self.mounts.scratch(version))?;
        Ok(image)
    }

    fn remove_view(&self, id: ShareSnapshotId) -> Result<(), StoreError> {
        let folder = self.layout.view(id);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).during(|| format!("deleting {}", folder.display()))
            }
            _ => Ok(()),
        }
    }
}

/// The images of a pool, below their file systems.
struct Images(Layout);

impl Medium for Images {
    fn space(&self) -> std::io::Result<(u64, u64)> {
        space_of(self.0.root())
    }

    fn open(&self, share: ShareVersion) -> std::io::Result<File> {
        File::options().read(true).write(true).open(self.0.image(share))
    }
}

/// Returns the size and the free space of a pool, in bytes.
fn space_of(root: &Path) -> std::io::Result<(u64, u64)> {
    let told = statvfs(root)?;
    let unit = told.fragment_size();
    Ok((told.blocks() * unit, told.blocks_available() * unit))
}

/// Reads what pool is in a place, or makes an empty one where that is wanted and nothing else is there.
fn open_layout(
    layout: &Layout,
    place: &PoolPlace,
    may_format: bool,
    pool: &str,
) -> Result<PoolRecord, StoreError> {
    let path = place.path().display();
    let unusable = |problem: String| {
        StoreError::from(DriverError::Unavailable {
            object: format!("pool {pool}"),
            problem,
            source: None,
        })
    };
    let found = layout
        .read_pool_record()
        .during(|| format!("reading the record of the pool in {path}"))?;
    match found {
        Some(record) if record.format == FORMAT => Ok(record),
        Some(record) => Err(unusable(format!(
            "{path} has format {}; this version knows {FORMAT}",
            record.format
        ))),
        None if !may_format => Err(unusable(format!("there is no pool of shares in {path}"))),
        None => {
            if !layout.is_blank().during(|| format!("looking into {path}"))? {
                return Err(unusable(format!(
                    "{path} is not empty and holds no pool of shares; choose an empty place"
                )));
            }
            layout.format().during(|| format!("making a pool in {path}"))
        }
    }
}

/// Deletes what is in a folder, but for the names that are kept.
fn clear(folder: &Path, is_kept: impl Fn(&str) -> bool) -> std::io::Result<()> {
    for name in crate::layout::folder_names(folder)? {
        if !is_kept(&name) {
            fs::remove_dir_all(folder.join(name))?;
        }
    }
    Ok(())
}
