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
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use quarry_contract::{
    DriverError, MountedShare, Outcome, PoolName, PoolState, ShareCapabilities, ShareCapability, ShareId,
    ShareInfo, SharePoolStatus, ShareSnapshotId, ShareSnapshotInfo, ShareSnapshotSpec, ShareSource,
    ShareSpec, ShareUsage, ShareVersion, adopted_as_another, name_is_taken, nothing_named,
};
use quarry_sys::loop_device::{LoopDevice, LoopMode};
use quarry_xfs::backend::ShareStore;
use quarry_xfs::brake::{Brake, Medium, kept_back_bytes, reserve_bytes};
use quarry_xfs::error::{During, StoreError, corrupt, not_found};
use quarry_xfs::filesystem::{
    BLANK_BYTES, MAX_SHARE_BYTES, MIN_SHARE_BYTES, SIZE_GRANULARITY_BYTES, Sectors, adoptable_size,
    device_bytes, identity_of, size_bytes,
};
use quarry_xfs::locks::{Held, Locks, lock};
use quarry_xfs::mounts::{Mounts, make_folder};
use quarry_xfs::objects::{ObjectRecord, Objects, member_name, same_or_differs};
use quarry_xfs::superblock::Superblock;
use uuid::Uuid;

use crate::image::{Copy, copy, copy_frozen, make, set_identity};
use crate::layout::{FORMAT, Layout, PoolRecord, finish_object, sync_folder};
use crate::place::{PoolPlace, Taken};
use crate::trash::Trash;

/// What a copy of an image takes of the pool at once, about: its map, and what its log and superblocks diverge by.
const COPY_BYTES: u64 = 4 << 20;
/// File systems count what was deleted as free a moment later: full is what stays so.
const FULL_TRIES: u32 = 10;
const FULL_PAUSE: Duration = Duration::from_millis(50);

/// Called before each step that the end of the process may separate from the next, with the step's name. For tests that
/// end it there.
pub type StepHook = Arc<dyn Fn(&'static str) + Send + Sync>;

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
    locks: Arc<Locks>,
    mounts: Arc<Mounts>,
    on_step: Option<StepHook>,
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
            let image = match version {
                ShareVersion::Share(_) => layout.image(version),
                ShareVersion::Snapshot(id) => layout.view(id).join("image"),
            };
            LoopDevice::open(device)?.shows(&File::open(image)?)
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
        let mut objects = Objects::default();
        for (version, record, length) in layout.objects().during(what)? {
            objects.insert(version, record, size_bytes(length))?;
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
            locks,
            mounts,
            on_step: options.on_step.clone(),
            adoption: Mutex::default(),
            brake,
            trash,
            place,
        };
        store.check_shares_blocks()?;
        for mounted in store.mounts.all() {
            // A growth may have been cut short.
            if let ShareVersion::Share(id) = mounted.version {
                let size = lock(&store.objects).share(id)?.size_bytes;
                store.fit(&mounted, size)?;
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
        for mounted in self.mounts.all() {
            self.unmount(mounted.version)?;
        }
        drop(self.brake);
        self.mounts.close();
        drop(self.trash);
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
        let (shares, snapshots) = {
            let objects = lock(&self.objects);
            (objects.shares(), objects.snapshots())
        };
        Ok(SharePoolStatus {
            name: self.name.clone(),
            uuid: self.uuid,
            state: PoolState::Up,
            total_bytes,
            free_bytes,
            reclaimable_bytes: self.trash.bytes(),
            provisioned_bytes: shares.iter().map(|share| share.size_bytes).sum(),
            share_count: shares.len() as u64,
            snapshot_count: snapshots.len() as u64,
        })
    }

    fn create_share(&self, spec: &ShareSpec) -> Result<Outcome<ShareInfo>, StoreError> {
        let version = ShareVersion::Share(spec.id);
        let source = match spec.source {
            ShareSource::Blank => None,
            ShareSource::Share(id) => Some(ShareVersion::Share(id)),
            ShareSource::Snapshot(id) => Some(ShareVersion::Snapshot(id)),
        };
        let _held = self.locks.take([version].into_iter().chain(source));
        if let Ok(existing) = self.share(spec.id) {
            return same_or_differs(existing, spec);
        }
        self.capabilities().check_size(spec.size_bytes)?;
        if let Some(source) = source {
            let least = lock(&self.objects).size_bytes(source)?;
            if spec.size_bytes < least {
                return Err(DriverError::InvalidArgument {
                    field: "size_bytes".into(),
                    problem: format!("{} is below the {least} of {source}", spec.size_bytes),
                }
                .into());
            }
        }
        self.check_space(if source.is_some() { COPY_BYTES } else { BLANK_BYTES })?;
        let record = ObjectRecord::Share { source: spec.source };
        self.make_objects(&[version], |folders| {
            let image = folders[0].join("image");
            match source {
                None => make(&image, spec.size_bytes, identity_of(version))?,
                Some(source) => {
                    let copies = copy_frozen(&[self.copy_of(source, &image)], &|name| self.step(name))?;
                    self.note_shared_log(source);
                    set_identity(version, &image, &self.mounts.scratch(version))?;
                    self.step("identified");
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
        self.step("begun");
        self.set_image_length(version, device_bytes(size_bytes))?;
        self.step("longer");
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
        let info = self.share(id)?;
        let of = self.snapshot(snapshot)?.share;
        if of != id {
            return Err(DriverError::InvalidArgument {
                field: "snapshot".into(),
                problem: format!("{snapshot} is a snapshot of share {of}"),
            }
            .into());
        }
        self.check_unmounted(version)?;
        self.check_space(COPY_BYTES)?;
        let new = self.layout.new_folder(&Uuid::now_v7().to_string());
        let what = || format!("reverting {version}");
        make_folder(&new).during(what)?;
        self.step("begun");
        let image = new.join("image");
        let copied = copy(&self.layout.image(origin), &image).and_then(|copied| {
            copied.set_len(device_bytes(info.size_bytes)).during(what)?;
            copied.sync_all().during(what)
        });
        if let Err(error) = copied {
            drop(fs::remove_dir_all(&new));
            return Err(error);
        }
        self.step("copied");
        fs::rename(&image, self.layout.image(version)).during(what)?;
        sync_folder(&self.layout.object(version)).during(what)?;
        self.step("replaced");
        fs::remove_dir(&new).during(what)?;
        Ok(Outcome::Changed(info))
    }

    fn adopt_share(&self, id: ShareId, name: &str) -> Result<Outcome<ShareInfo>, StoreError> {
        let version = ShareVersion::Share(id);
        let _adoption = lock(&self.adoption);
        let foreign = self.foreign(name)?;
        let _held = self.locks.take([version]);
        match (self.share(id), foreign.found) {
            (Ok(existing), Found::Nothing) => Ok(Outcome::Unchanged(existing)),
            (Ok(_), _) => Err(adopted_as_another(id, name).into()),
            (Err(_), Found::Nothing) => Err(nothing_named(name).into()),
            (Err(_), Found::Image { names: 2.., .. }) => Err(DriverError::Busy {
                object: foreign.path.display().to_string(),
                blockers: vec!["another name of the file".into()],
            }
            .into()),
            (Err(_), Found::Image { length_bytes, .. }) => {
                let limits = self.capabilities();
                let size_bytes = adoptable_size(&foreign.path, length_bytes, Sectors::Of4096, &limits)?;
                check_unattached(&foreign.path)?;
                self.step("begun");
                set_identity(version, &foreign.path, &self.mounts.scratch(version))?;
                self.step("identified");
                let record = ObjectRecord::Share {
                    source: ShareSource::Blank,
                };
                self.make_objects(&[version], |folders| {
                    fs::hard_link(&foreign.path, folders[0].join("image"))
                        .during(|| format!("adopting {}", foreign.path.display()))?;
                    Ok(vec![(record, size_bytes)])
                })?;
                // It is the share's from here on, under whatever name (L4).
                self.remove_foreign(&foreign.path)?;
                Ok(Outcome::Changed(self.share(id)?))
            }
        }
    }

    fn release_share(&self, id: ShareId, name: &str) -> Result<Outcome<()>, StoreError> {
        let version = ShareVersion::Share(id);
        let _adoption = lock(&self.adoption);
        let foreign = self.foreign(name)?;
        let _held = self.locks.take([version]);
        match (self.share(id), foreign.found) {
            (Err(_), Found::Nothing) => return Err(not_found(version).into()),
            (Err(_), _) => return Ok(Outcome::Unchanged(())),
            (Ok(_), Found::Image { .. }) => return Err(name_is_taken(name).into()),
            (Ok(_), Found::Nothing) => {}
        }
        self.check_unmounted(version)?;
        let what = || format!("releasing {version}");
        self.step("begun");
        fs::hard_link(self.layout.image(version), &foreign.path).during(what)?;
        sync_folder(&self.layout.foreign()).during(what)?;
        self.step("linked");
        let discarded = match self.layout.discard(version) {
            Ok(discarded) => discarded,
            Err(error) => {
                drop(self.remove_foreign(&foreign.path));
                return Err(error).during(what);
            }
        };
        self.step("discarded");
        lock(&self.objects).remove(version);
        // Else it would have two names until the rest is deleted.
        fs::remove_file(discarded.join("image")).during(what)?;
        self.trash.wake();
        Ok(Outcome::Changed(()))
    }

    fn delete(&self, version: ShareVersion) -> Result<Outcome<()>, StoreError> {
        let _held = self.locks.take([version]);
        if lock(&self.objects).size_bytes(version).is_err() {
            return Ok(Outcome::Unchanged(()));
        }
        self.check_unmounted(version)?;
        self.step("begun");
        self.layout
            .discard(version)
            .during(|| format!("deleting {version}"))?;
        self.step("discarded");
        lock(&self.objects).remove(version);
        self.trash.wake();
        Ok(Outcome::Changed(()))
    }

    fn create_snapshots(
        &self,
        group: &[ShareSnapshotSpec],
    ) -> Result<Outcome<Vec<ShareSnapshotInfo>>, StoreError> {
        ShareSnapshotSpec::check_group(group)?;
        let _held = self.lock_group(group);
        let existing: Vec<ShareSnapshotInfo> = group
            .iter()
            .filter_map(|spec| self.snapshot(spec.id).ok())
            .collect();
        if ShareSnapshotSpec::group_exists(group, &existing)? {
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
                .collect();
            let copied = copy_frozen(&copies, &|name| self.step(name))?;
            for spec in group {
                self.note_shared_log(ShareVersion::Share(spec.share));
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
        let image = self.layout.image(of);
        let what = || format!("asking for the usage of {of}");
        let file = File::open(&image).during(what)?;
        let allocated_bytes = file.metadata().during(what)?.blocks() * 512;
        let used_bytes = match self.mounts.find(of) {
            Some(mounted) => {
                let told = statvfs(&mounted.path)
                    .map_err(std::io::Error::from)
                    .during(what)?;
                let kept_back = File::open(&mounted.path)
                    .and_then(|root| kept_back_bytes(&root))
                    .during(what)?;
                ((told.blocks() - told.blocks_free()) * told.fragment_size()).saturating_sub(kept_back)
            }
            None => Superblock::read(&file)
                .during(what)?
                .ok_or_else(|| corrupt(of, "there is no XFS in its image"))?
                .used_bytes(),
        };
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
            ShareVersion::Share(_) => self.layout.image(of),
            ShareVersion::Snapshot(id) => self.make_view(id)?,
        };
        self.step("prepared");
        let mode = match of {
            ShareVersion::Share(_) => LoopMode::ReadWrite,
            ShareVersion::Snapshot(_) => LoopMode::ReadOnly,
        };
        let device = LoopDevice::attach(&image, mode).during(|| format!("attaching {}", image.display()))?;
        let mounted = self.mounts.mount(of, device.path(), identity_of(of))?;
        self.note_shared_log(of);
        self.step("mounted");
        if matches!(of, ShareVersion::Share(_)) {
            // A growth or a revert while it was not mounted is made up for now.
            let size_bytes = lock(&self.objects).size_bytes(of)?;
            self.fit(&mounted, size_bytes)?;
        }
        Ok(Outcome::Changed(mounted))
    }

    fn unmount(&self, of: ShareVersion) -> Result<Outcome<()>, StoreError> {
        let _held = self.locks.take([of]);
        self.step("begun");
        if !self.mounts.unmount(of)? {
            return Ok(Outcome::Unchanged(()));
        }
        self.step("unmounted");
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

    fn step(&self, name: &'static str) {
        if let Some(hook) = &self.on_step {
            hook(name);
        }
    }

    /// Returns the size and the free space of the pool, in bytes.
    pub(crate) fn space(&self) -> Result<(u64, u64), StoreError> {
        space_of(self.layout.root())
            .during(|| format!("asking for the space at {}", self.layout.root().display()))
    }

    /// Checks that the reserve stays when something takes this much (D1).
    fn check_space(&self, needed_bytes: u64) -> Result<(), StoreError> {
        for tries_left in (0..FULL_TRIES).rev() {
            let (total, free_bytes) = self.space()?;
            let needed_bytes = needed_bytes + reserve_bytes(total);
            if free_bytes >= needed_bytes {
                break;
            }
            if tries_left == 0 {
                let pool = format!("pool {}", self.name);
                return Err(DriverError::Full {
                    pool,
                    needed_bytes,
                    free_bytes,
                }
                .into());
            }
            std::thread::sleep(FULL_PAUSE);
        }
        Ok(())
    }

    /// Looks what has a name in the folder of what is no share.
    fn foreign(&self, name: &str) -> Result<Foreign, StoreError> {
        let unfit = |problem: &str| {
            StoreError::from(DriverError::InvalidArgument {
                field: "name".into(),
                problem: format!("{name:?} {problem}"),
            })
        };
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) || name.len() > 255 {
            return Err(unfit("is no name of a file"));
        }
        let path = self.layout.foreign().join(name);
        let found = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Found::Nothing,
            Err(error) => return Err(error).during(|| format!("looking at {}", path.display())),
            Ok(file) if !file.is_file() => return Err(unfit("is no file, but a link or a folder")),
            Ok(file) => Found::Image {
                length_bytes: file.len(),
                names: file.nlink(),
            },
        };
        Ok(Foreign { path, found })
    }

    fn remove_foreign(&self, path: &Path) -> Result<(), StoreError> {
        fs::remove_file(path)
            .and_then(|()| sync_folder(&self.layout.foreign()))
            .during(|| format!("taking the name {} away", path.display()))
    }

    /// Describes the copy to make of a version, which may be mounted.
    fn copy_of(&self, version: ShareVersion, to: &Path) -> Copy {
        Copy {
            from: self.layout.image(version),
            // A mounted snapshot is a copy itself.
            root: match version {
                ShareVersion::Share(_) => self.mounts.find(version).map(|mounted| mounted.path),
                ShareVersion::Snapshot(_) => None,
            },
            to: to.to_owned(),
        }
    }

    /// Notes that another image has the blocks of a version's log, too.
    fn note_shared_log(&self, version: ShareVersion) {
        if let ShareVersion::Share(id) = version {
            self.brake.shares_its_log(id);
        }
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
        self.step("made");
        self.layout.commit(&name).during(what)?;
        self.step("committed");
        self.layout.settle_commit(&name).during(what)?;
        self.step("settled");
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
        self.step("begun");
        let records = fill(&folders)?;
        self.step("filled");
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

    fn check_unmounted(&self, version: ShareVersion) -> Result<(), StoreError> {
        match self.mounts.find(version) {
            None => Ok(()),
            Some(mounted) => Err(DriverError::Busy {
                object: version.to_string(),
                blockers: vec![format!("its mount at {}", mounted.path.display())],
            }
            .into()),
        }
    }

    fn lock_group(&self, group: &[ShareSnapshotSpec]) -> Held<'_> {
        let members = group
            .iter()
            .flat_map(|spec| [ShareVersion::Share(spec.share), ShareVersion::Snapshot(spec.id)]);
        self.locks.take(members)
    }

    /// Makes what is mounted for a snapshot: a copy with its own identity and an empty log.
    fn make_view(&self, id: ShareSnapshotId) -> Result<PathBuf, StoreError> {
        let version = ShareVersion::Snapshot(id);
        self.check_space(COPY_BYTES)?;
        self.remove_view(id)?;
        let folder = self.layout.view(id);
        make_folder(&folder).during(|| format!("making {}", folder.display()))?;
        let image = folder.join("image");
        copy(&self.layout.image(version), &image)?;
        self.step("viewed");
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

/// What has a name in the folder of what is no share.
struct Foreign {
    path: PathBuf,
    found: Found,
}

#[derive(Clone, Copy)]
enum Found {
    Nothing,
    Image { length_bytes: u64, names: u64 },
}

/// Checks that no loop device shows a file.
fn check_unattached(path: &Path) -> Result<(), StoreError> {
    let what = || format!("looking who uses {}", path.display());
    let file = path.canonicalize().during(what)?;
    for device in fs::read_dir("/sys/block").during(what)?.flatten() {
        let shown = fs::read_to_string(device.path().join("loop/backing_file"));
        if shown.is_ok_and(|shown| Path::new(shown.trim_end_matches('\n')) == file) {
            return Err(DriverError::Busy {
                object: path.display().to_string(),
                blockers: vec![format!(
                    "the loop device {}",
                    device.file_name().to_string_lossy()
                )],
            }
            .into());
        }
    }
    Ok(())
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
