//! What every [`ShareBackend`] promises (S1 to S10 and S12; S11 takes a failing device).
//!
//! The checks are grouped by what they are about: `objects` (S1, errors, lists), `versions` (S4, S5, revert and
//! clone), `mounts` (S6 to S9), `endurance` (S2), `adoption` (S12).

mod adoption;
mod blocking;
mod endurance;
mod folder;
mod mounts;
mod objects;
mod versions;

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::{Arc, OnceLock};

pub use blocking::BlockingShares;
pub use folder::FolderFiles;

use super::block_on;
use crate::{
    DriverError, ErrorKind, MountedShare, Outcome, ShareBackend, ShareId, ShareInfo, SharePoolStatus,
    ShareSnapshotId, ShareSnapshotInfo, ShareSnapshotSpec, ShareSource, ShareSpec, ShareVersion,
};

/// How the suite gets pools, and at what is in their shares.
pub trait ShareBackendFixture {
    /// Makes an empty pool that takes five shares of the least size and the contents of one.
    fn fresh(&mut self) -> Arc<dyn ShareBackend>;

    /// Kills the process that uses the pool, of which this is the last handle, and opens it anew; `None` for a driver
    /// that keeps nothing.
    fn restart(&mut self, backend: Arc<dyn ShareBackend>) -> Option<Arc<dyn ShareBackend>>;

    /// Returns a way to the files of what is mounted.
    fn files(&mut self, backend: &Arc<dyn ShareBackend>, mounted: &MountedShare) -> Box<dyn ShareFiles>;
}

/// The files of a mounted share, as a server sees them. Dropping it closes them.
pub trait ShareFiles {
    /// Creates or replaces a file.
    ///
    /// # Errors
    /// `StorageFull`, `ReadOnlyFilesystem`, and what else the file system says.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Returns what a file holds.
    ///
    /// # Errors
    /// `NotFound`, and what else the file system says.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;

    /// Returns the size of the whole file system (`statfs`), in bytes.
    ///
    /// # Errors
    /// What the file system says.
    fn size_bytes(&self) -> io::Result<u64>;
}

/// Runs every check.
///
/// # Panics
/// When the backend breaks its contract; the message begins with the clause.
pub fn run(fixture: &mut dyn ShareBackendFixture) {
    objects::run(fixture);
    versions::run(fixture);
    mounts::run(fixture);
    endurance::run(fixture);
    adoption::run(fixture);
}

/// A backend with blocking calls and names that are numbers.
struct Subject<'a> {
    backend: Arc<dyn ShareBackend>,
    fixture: &'a mut dyn ShareBackendFixture,
}

/// Where the ids of this process begin: a machine may know no two file systems of one identity, and another process
/// may run the suite beside this one.
fn first_id() -> u128 {
    static FIRST: OnceLock<u128> = OnceLock::new();
    *FIRST.get_or_init(|| u128::from(RandomState::new().hash_one(std::process::id())) << 64)
}

fn share_id(number: u64) -> ShareId {
    ShareId(uuid::Uuid::from_u128(
        first_id() + 0x7000_0000 + u128::from(number),
    ))
}

fn snapshot_id(number: u64) -> ShareSnapshotId {
    ShareSnapshotId(uuid::Uuid::from_u128(
        first_id() + 0x5000_0000 + u128::from(number),
    ))
}

fn share(number: u64) -> ShareVersion {
    ShareVersion::Share(share_id(number))
}

fn snapshot(number: u64) -> ShareVersion {
    ShareVersion::Snapshot(snapshot_id(number))
}

#[track_caller]
fn assert_kind<T: std::fmt::Debug>(what: &str, result: Result<T, DriverError>, kind: ErrorKind) {
    match result {
        Err(error) if error.kind() == kind => {}
        other => panic!("{what}: expected {kind:?}, found {other:?}"),
    }
}

impl<'a> Subject<'a> {
    fn fresh(fixture: &'a mut dyn ShareBackendFixture) -> Self {
        Self {
            backend: fixture.fresh(),
            fixture,
        }
    }

    /// Kills the process and opens the pool anew; `None` when the driver keeps nothing.
    fn restart(self) -> Option<Self> {
        let Self { backend, fixture } = self;
        let backend = fixture.restart(backend)?;
        Some(Self { backend, fixture })
    }

    /// Returns the least size, which most shares here have.
    fn least(&self) -> u64 {
        self.backend.capabilities().min_share_bytes
    }

    fn step(&self) -> u64 {
        self.backend.capabilities().size_granularity_bytes
    }

    fn status(&self) -> SharePoolStatus {
        block_on(self.backend.pool_status()).expect("pool_status")
    }

    fn create(
        &self,
        number: u64,
        size_bytes: u64,
        source: ShareSource,
    ) -> Result<Outcome<ShareInfo>, DriverError> {
        block_on(self.backend.create_share(&ShareSpec {
            id: share_id(number),
            size_bytes,
            source,
        }))
    }

    fn blank(&self, number: u64) -> ShareInfo {
        let outcome = self
            .create(number, self.least(), ShareSource::Blank)
            .unwrap_or_else(|error| panic!("S1: creating share {number}: {error}"));
        assert!(outcome.is_changed(), "S1: creating a new share is Changed");
        outcome.into_inner()
    }

    fn clone_of(&self, number: u64, source: ShareSource) {
        let outcome = self
            .create(number, self.least(), source)
            .unwrap_or_else(|error| panic!("S1: creating share {number} from {source}: {error}"));
        assert!(outcome.is_changed(), "S1: creating a new clone is Changed");
    }

    fn snapshots(&self, group: &[(u64, u64)]) -> Result<Outcome<Vec<ShareSnapshotInfo>>, DriverError> {
        let group: Vec<ShareSnapshotSpec> = group
            .iter()
            .map(|(snapshot, share)| ShareSnapshotSpec {
                id: snapshot_id(*snapshot),
                share: share_id(*share),
            })
            .collect();
        block_on(self.backend.create_snapshots(&group))
    }

    fn snapshot(&self, number: u64, of: u64) {
        let outcome = self
            .snapshots(&[(number, of)])
            .unwrap_or_else(|error| panic!("S4: snapshot {number} of share {of}: {error}"));
        assert!(outcome.is_changed(), "S1: a new snapshot is Changed");
    }

    fn resize(&self, number: u64, size_bytes: u64) -> Result<Outcome<ShareInfo>, DriverError> {
        block_on(self.backend.resize_share(share_id(number), size_bytes))
    }

    fn revert(&self, number: u64, snapshot: u64) -> Result<Outcome<ShareInfo>, DriverError> {
        let snapshot = snapshot_id(snapshot);
        block_on(self.backend.revert_share(share_id(number), snapshot))
    }

    fn delete(&self, version: ShareVersion) -> Result<Outcome<()>, DriverError> {
        match version {
            ShareVersion::Share(id) => block_on(self.backend.delete_share(id)),
            ShareVersion::Snapshot(id) => block_on(self.backend.delete_snapshot(id)),
        }
    }

    fn mount(&self, version: ShareVersion) -> MountedShare {
        block_on(self.backend.mount(version))
            .unwrap_or_else(|error| panic!("S7: mounting {version}: {error}"))
            .into_inner()
    }

    fn unmount(&self, version: ShareVersion) {
        block_on(self.backend.unmount(version))
            .unwrap_or_else(|error| panic!("S7: unmounting {version}: {error}"));
    }

    fn mounted(&self) -> Vec<ShareVersion> {
        let mounted = block_on(self.backend.mounted()).expect("mounted");
        mounted.into_iter().map(|one| one.version).collect()
    }

    fn files(&mut self, version: ShareVersion) -> Box<dyn ShareFiles> {
        let mounted = self.mount(version);
        self.fixture.files(&self.backend, &mounted)
    }

    /// Writes a file, leaving what it is in mounted.
    fn write(&mut self, version: ShareVersion, name: &str, bytes: &[u8]) {
        self.files(version)
            .write(name, bytes)
            .unwrap_or_else(|error| panic!("S6: writing {name} in {version}: {error}"));
    }

    /// Reads a file, and leaves mounted what was so.
    fn read(&mut self, version: ShareVersion, name: &str) -> io::Result<Vec<u8>> {
        let was_mounted = self.mounted().contains(&version);
        let result = self.files(version).read(name);
        if !was_mounted {
            self.unmount(version);
        }
        result
    }

    #[track_caller]
    fn assert_holds(&mut self, label: &str, version: ShareVersion, name: &str, expected: &[u8]) {
        match self.read(version, name) {
            Ok(found) => assert!(
                found == expected,
                "{label}: {name} in {version} holds something else"
            ),
            Err(error) => panic!("{label}: reading {name} in {version}: {error}"),
        }
    }

    #[track_caller]
    fn assert_lacks(&mut self, label: &str, version: ShareVersion, name: &str) {
        match self.read(version, name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => panic!("{label}: {name} in {version}: {other:?}"),
        }
    }
}
