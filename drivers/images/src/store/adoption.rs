//! Images that come and go whole: a file in `foreign` becomes a share, and a share becomes such a file ([`crate::layout`], L4).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use quarry_contract::{
    DriverError, Outcome, ShareId, ShareInfo, ShareSource, ShareVersion, adopted_as_another, name_is_taken,
    nothing_named,
};
use quarry_xfs::backend::ShareStore;
use quarry_xfs::error::{During, StoreError, not_found};
use quarry_xfs::filesystem::{Sectors, adoptable_size};
use quarry_xfs::locks::lock;
use quarry_xfs::objects::ObjectRecord;

use super::ImageStore;
use crate::image::set_identity;
use crate::layout::sync_folder;

impl ImageStore {
    /// See [`ShareStore::adopt_share`].
    pub(crate) fn adopt(&self, id: ShareId, name: &str) -> Result<Outcome<ShareInfo>, StoreError> {
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
                self.steps.step("begun");
                set_identity(version, &foreign.path, &self.mounts.scratch(version))?;
                self.steps.step("identified");
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

    /// See [`ShareStore::release_share`].
    pub(crate) fn release(&self, id: ShareId, name: &str) -> Result<Outcome<()>, StoreError> {
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
        self.mounts.check_unmounted(version)?;
        let what = || format!("releasing {version}");
        let image = self.image_of(version)?;
        self.steps.step("begun");
        fs::hard_link(image, &foreign.path).during(what)?;
        sync_folder(&self.layout.foreign()).during(what)?;
        self.steps.step("linked");
        let discarded = match self.layout.discard(version) {
            Ok(discarded) => discarded,
            Err(error) => {
                drop(self.remove_foreign(&foreign.path));
                return Err(error).during(what);
            }
        };
        self.steps.step("discarded");
        lock(&self.objects).remove(version);
        // Else it would have two names until the rest is deleted.
        fs::remove_file(discarded.join("image")).during(what)?;
        self.trash.wake();
        Ok(Outcome::Changed(()))
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
