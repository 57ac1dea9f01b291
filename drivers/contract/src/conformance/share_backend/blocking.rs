//! A store that mounts in folders of this machine, for tests that are not async.

use std::fs;
use std::ops::Deref;
use std::sync::Arc;

use crate::conformance::block_on;
use crate::{DriverError, MountedShare, Outcome, ShareBackend, ShareVersion};

/// A backend with calls that block, and with a way to the files of what it mounts.
pub struct BlockingShares<B>(pub Arc<B>);

impl<B> Deref for BlockingShares<B> {
    type Target = Arc<B>;

    fn deref(&self) -> &Arc<B> {
        &self.0
    }
}

impl<B: ShareBackend> BlockingShares<B> {
    /// Deletes a share or snapshot.
    ///
    /// # Errors
    /// The backend's.
    pub fn delete(&self, version: ShareVersion) -> Result<(), DriverError> {
        match version {
            ShareVersion::Share(id) => block_on(self.0.delete_share(id)),
            ShareVersion::Snapshot(id) => block_on(self.0.delete_snapshot(id)),
        }
        .map(drop)
    }

    /// Mounts a share or snapshot.
    ///
    /// # Errors
    /// The backend's.
    pub fn mount(&self, version: ShareVersion) -> Result<MountedShare, DriverError> {
        block_on(self.0.mount(version)).map(Outcome::into_inner)
    }

    /// Unmounts a share or snapshot.
    ///
    /// # Errors
    /// The backend's.
    pub fn unmount(&self, version: ShareVersion) -> Result<(), DriverError> {
        block_on(self.0.unmount(version)).map(drop)
    }

    /// Writes a file of a share, and leaves it mounted.
    ///
    /// # Panics
    /// When that fails.
    pub fn write(&self, version: ShareVersion, name: &str, bytes: &[u8]) {
        let mounted = self.mount(version).expect("mounting");
        fs::write(mounted.path.join(name), bytes).expect("writing a file");
    }

    /// Reads a file if it can be, and leaves mounted what was so.
    ///
    /// # Panics
    /// When it cannot be mounted or unmounted.
    pub fn read(&self, version: ShareVersion, name: &str) -> Option<Vec<u8>> {
        let was_mounted = self.is_mounted(version);
        let mounted = self.mount(version).expect("mounting");
        let contents = fs::read(mounted.path.join(name)).ok();
        if !was_mounted {
            self.unmount(version).expect("unmounting");
        }
        contents
    }

    /// Tells whether a share or snapshot is mounted.
    ///
    /// # Panics
    /// When the backend does not say.
    pub fn is_mounted(&self, version: ShareVersion) -> bool {
        let mounted = block_on(self.0.mounted()).expect("the list of what is mounted");
        mounted.iter().any(|one| one.version == version)
    }

    /// Tells whether a share or snapshot is there.
    pub fn exists(&self, version: ShareVersion) -> bool {
        match version {
            ShareVersion::Share(id) => block_on(self.0.share(id)).is_ok(),
            ShareVersion::Snapshot(id) => block_on(self.0.snapshot(id)).is_ok(),
        }
    }
}
