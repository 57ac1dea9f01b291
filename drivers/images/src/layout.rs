//! What lies where in a pool, and how it gets there (docs/formats/share-pool.md).
//!
//! ```text
//! pool.json                     the pool's format and identity
//! lock                          held by who uses it, when the pool is a folder
//! new/NAME/...                  what is being made; nothing once nobody is at work
//! commit/NAME/KIND-ID/          made, and on its way to its place
//! shares/ID/{record.json,image}
//! snapshots/ID/{record.json,image}
//! views/ID/image                an exported snapshot's copy with its own identity; can be made anew
//! trash/NAME/                   deleted; its space is on its way back
//! foreign/NAME                  an image that is no share's: to be adopted, or released
//! ```
//!
//! Invariants
//! - L1: an object is there exactly when its folder is in `shares`, `snapshots` or under `commit`; it gets there by one
//!   rename of something that is whole and durable, and leaves by one.
//! - L2: what is in `new` or `views` when nobody is at work is not needed.
//! - L3: what belongs together (a group of snapshots) gets under `commit` by one rename; from there each member goes
//!   to its place, and recovery goes on with that.
//! - L4: an image that has a name in `foreign` and is a share's, too, is the share's: one that is adopted or released has both
//!   names for a moment, and recovery takes the foreign one away.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use quarry_contract::{ShareSnapshotId, ShareVersion};
use quarry_xfs::mounts::make_folder;
use quarry_xfs::objects::{ObjectRecord, member_name, parse_member};
use serde::{Deserialize, Serialize};
use tracing::{error, warn};
use uuid::Uuid;

/// The one version of the format there is.
pub(crate) const FORMAT: u32 = 1;

/// `pool.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PoolRecord {
    /// The version of the format.
    pub format: u32,
    /// The pool's identity.
    pub uuid: Uuid,
}

/// The paths of a pool.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

const FOLDERS: [&str; 7] = [
    "new",
    "commit",
    "shares",
    "snapshots",
    "views",
    "trash",
    "foreign",
];

impl Layout {
    pub(crate) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn pool_record(&self) -> PathBuf {
        self.root.join("pool.json")
    }

    pub(crate) fn new_folder(&self, name: &str) -> PathBuf {
        self.root.join("new").join(name)
    }

    pub(crate) fn commit_folder(&self, name: &str) -> PathBuf {
        self.root.join("commit").join(name)
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    pub(crate) fn object(&self, version: ShareVersion) -> PathBuf {
        match version {
            ShareVersion::Share(id) => self.root.join("shares").join(id.to_string()),
            ShareVersion::Snapshot(id) => self.root.join("snapshots").join(id.to_string()),
        }
    }

    pub(crate) fn image(&self, version: ShareVersion) -> PathBuf {
        self.object(version).join("image")
    }

    /// Returns where images are that are no share's.
    pub(crate) fn foreign(&self) -> PathBuf {
        self.root.join("foreign")
    }

    pub(crate) fn view(&self, id: ShareSnapshotId) -> PathBuf {
        self.root.join("views").join(id.to_string())
    }

    /// Reads `pool.json`; `None` when there is none.
    pub(crate) fn read_pool_record(&self) -> io::Result<Option<PoolRecord>> {
        match fs::read(self.pool_record()) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the folders and, as the last thing, `pool.json`, durably. Repeated, it goes on where it was cut short.
    pub(crate) fn format(&self) -> io::Result<PoolRecord> {
        self.make_folders()?;
        let record = PoolRecord {
            format: FORMAT,
            uuid: Uuid::new_v4(),
        };
        let unfinished = self.root.join("pool.json.new");
        write_durably(&unfinished, &serde_json::to_vec(&record)?)?;
        fs::rename(&unfinished, self.pool_record())?;
        sync_folder(&self.root)?;
        Ok(record)
    }

    /// Makes the folders that are missing.
    pub(crate) fn make_folders(&self) -> io::Result<()> {
        for folder in FOLDERS {
            make_folder(&self.root.join(folder))?;
        }
        sync_folder(&self.root)
    }

    /// Tells whether there is nothing but what an unfinished [`Layout::format`] leaves.
    pub(crate) fn is_blank(&self) -> io::Result<bool> {
        for entry in fs::read_dir(&self.root)? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            let is_ours =
                FOLDERS.contains(&&*name) || ["lock", "pool.json.new", "lost+found"].contains(&&*name);
            if !is_ours {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Moves everything under `commit` to its place (L3). What is in its place already stays.
    pub(crate) fn settle_commits(&self) -> io::Result<()> {
        for group in folder_names(&self.root.join("commit"))? {
            self.settle_commit(&group)?;
        }
        Ok(())
    }

    /// Moves the members of one commit to their places.
    pub(crate) fn settle_commit(&self, name: &str) -> io::Result<()> {
        let folder = self.commit_folder(name);
        for member in folder_names(&folder)? {
            let version = parse_member(&member)
                .ok_or_else(|| io::Error::other(format!("commit/{name}/{member} is no object")))?;
            let made = folder.join(&member);
            match fs::rename(&made, self.object(version)) {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                    ) =>
                {
                    // The call that made it has failed here, and it was made again since.
                    warn!(%version, commit = name, "what a failed call has left of it is deleted");
                    fs::rename(&made, self.trash().join(format!("{member}-{}", Uuid::now_v7())))?;
                }
                moved => moved?,
            }
        }
        sync_folder(&self.root.join("shares"))?;
        sync_folder(&self.root.join("snapshots"))?;
        fs::remove_dir(&folder)?;
        sync_folder(&self.root.join("commit"))
    }

    /// Takes the foreign names of what are shares' images away (L4).
    pub(crate) fn settle_foreign(&self) -> io::Result<()> {
        let folder = self.foreign();
        let mut images = Vec::new();
        for name in folder_names(&self.root.join("shares"))? {
            if let Ok(id) = name.parse() {
                let image = self.find_image(ShareVersion::Share(id))?;
                images.extend(image.filter(|image| image.nlink() > 1).map(|image| image.ino()));
            }
        }
        if images.is_empty() {
            return Ok(());
        }
        for name in folder_names(&folder)? {
            let path = folder.join(name);
            if images.contains(&fs::symlink_metadata(&path)?.ino()) {
                fs::remove_file(path)?;
            }
        }
        sync_folder(&folder)
    }

    /// Makes what is in `new/NAME` an object, or several, by one rename (L1, L3).
    pub(crate) fn commit(&self, name: &str) -> io::Result<()> {
        let new = self.new_folder(name);
        sync_folder(&new)?;
        fs::rename(&new, self.commit_folder(name))?;
        sync_folder(&self.root.join("commit"))?;
        sync_folder(&self.root.join("new"))
    }

    /// Takes an object out of its place; what it holds is deleted later, where this says.
    pub(crate) fn discard(&self, version: ShareVersion) -> io::Result<PathBuf> {
        let name = format!("{}-{}", member_name(version), Uuid::now_v7());
        let discarded = self.trash().join(name);
        fs::rename(self.object(version), &discarded)?;
        let folder = match version {
            ShareVersion::Share(_) => "shares",
            ShareVersion::Snapshot(_) => "snapshots",
        };
        sync_folder(&self.root.join(folder))?;
        Ok(discarded)
    }

    /// Returns what is in the places of objects.
    pub(crate) fn objects(&self) -> io::Result<Vec<ObjectFound>> {
        let mut objects = Vec::new();
        for name in folder_names(&self.root.join("shares"))? {
            if let Ok(id) = name.parse() {
                objects.push(self.read_object(ShareVersion::Share(id))?);
            }
        }
        for name in folder_names(&self.root.join("snapshots"))? {
            if let Ok(id) = name.parse() {
                objects.push(self.read_object(ShareVersion::Snapshot(id))?);
            }
        }
        Ok(objects)
    }

    fn read_object(&self, version: ShareVersion) -> io::Result<ObjectFound> {
        let path = self.object(version).join("record.json");
        let record = fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                error!(%version, path = %path.display(), %error, "it has no record that can be read, and is left out");
                let problem = format!(
                    "its record {} cannot be read ({error}), and it is left out; see to it, and restart the agent",
                    path.display()
                );
                return Ok(ObjectFound::Unreadable(version, problem));
            }
        };
        let length = self.find_image(version)?.map(|image| image.len());
        if length.is_none() {
            error!(%version, path = %self.image(version).display(), "its image is missing");
        }
        Ok(ObjectFound::Readable(version, record, length))
    }

    /// Looks at the image of an object; `None` when somebody has taken it away, or put something else in its place.
    pub(crate) fn find_image(&self, version: ShareVersion) -> io::Result<Option<fs::Metadata>> {
        match fs::symlink_metadata(self.image(version)) {
            Ok(found) => Ok(found.is_file().then_some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What is in the place of an object.
#[derive(Debug)]
pub(crate) enum ObjectFound {
    /// The object, with its record and the length of its image; `None` of one whose image somebody has taken away.
    Readable(ShareVersion, ObjectRecord, Option<u64>),
    /// One whose record cannot be read, and why. It is left alone: damage to one object is none to the others.
    Unreadable(ShareVersion, String),
}

/// Writes the record of an object that is being made, and makes its folder durable.
pub(crate) fn finish_object(folder: &Path, record: &ObjectRecord) -> io::Result<()> {
    write_durably(&folder.join("record.json"), &serde_json::to_vec(record)?)?;
    sync_folder(folder)
}

/// Returns the names in a folder, ordered.
pub(crate) fn folder_names(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A member could not be moved, and the call was repeated: the pool opens with what the call answered for.
    #[test]
    fn what_a_failed_call_has_left_under_commit_does_not_replace_what_was_made_since() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::at(folder.path().to_owned());
        layout.make_folders().unwrap();
        let version = ShareVersion::Share(quarry_contract::ShareId(Uuid::new_v4()));
        let make = |at: PathBuf, contents: &str| {
            fs::create_dir_all(&at).unwrap();
            fs::write(at.join("image"), contents).unwrap();
        };
        make(layout.commit_folder("a").join(member_name(version)), "failed");
        make(layout.object(version), "answered for");
        layout.settle_commits().unwrap();
        assert_eq!(fs::read_to_string(layout.image(version)).unwrap(), "answered for");
        assert_eq!(folder_names(&layout.root().join("commit")).unwrap(), [""; 0]);
        assert_eq!(folder_names(&layout.trash()).unwrap().len(), 1);
    }
}
