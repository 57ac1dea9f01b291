//! Which thin pool the shares are in, and that one process has it.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use quarry_contract::DriverError;
use quarry_sys::file::{LockError, lock_exclusive};
use quarry_xfs::error::{During, StoreError};
use quarry_xfs::filesystem::LOG_BYTES;
use uuid::Uuid;

use crate::layout::{POOL_TAG, pool_tag};
use crate::tools::{Group, LogicalVolume};

/// Where who uses a pool says so, for all processes of this machine.
const LOCKS: &str = "/run/lock";

/// A thin pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolPlace {
    /// The name of its volume group.
    pub volume_group: String,
    /// Its name.
    pub thin_pool: String,
    /// What to do when it is not there, or is no pool of shares.
    pub if_absent: IfAbsent,
}

/// What to do when a pool is not where it shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfAbsent {
    /// Fail.
    Fail,
    /// Make the thin pool that is there one of shares, or make one.
    Create {
        /// The size of one that is made, in bytes; `None` makes none.
        size_bytes: Option<u64>,
    },
}

/// A pool that this process has to itself, until it is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) group: Group,
    pub(crate) pool: String,
    pub(crate) uuid: Uuid,
    /// The beginning of the identity of every device of the group.
    pub(crate) device_uuids: String,
    /// The name of the device of the pool's volume.
    pub(crate) pool_device: String,
    pub(crate) chunk_bytes: u64,
    pub(crate) extent_bytes: u64,
    _lock: File,
}

/// Tells whether LVM takes a name (lvm(8), "Valid names").
pub fn is_lvm_name(name: &str) -> bool {
    let is_allowed = |letter: char| letter.is_ascii_alphanumeric() || "+_.-".contains(letter);
    !name.is_empty()
        && name.len() <= 100
        && !name.starts_with('-')
        && ![".", ".."].contains(&name)
        && name.chars().all(is_allowed)
}

impl PoolPlace {
    /// Returns what the pool is called in errors.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/dev")
            .join(&self.volume_group)
            .join(&self.thin_pool)
    }

    /// Returns the same place for a pool that is there, and is not made anew when it is not.
    #[must_use]
    pub fn existing(self) -> Self {
        Self {
            if_absent: IfAbsent::Fail,
            ..self
        }
    }

    fn unusable(&self, problem: impl Into<String>) -> StoreError {
        let at = format!("{}/{}", self.volume_group, self.thin_pool);
        DriverError::Unavailable {
            object: format!("the thin pool {at}"),
            problem: problem.into(),
            source: None,
        }
        .into()
    }

    /// Takes the pool, and says what is in its group.
    pub(crate) fn take(&self) -> Result<(Taken, Vec<LogicalVolume>), StoreError> {
        let lock = self.lock()?;
        let group = Group::named(&self.volume_group);
        let volumes = group.volumes()?;
        let pool = self.find_or_make(&group, &volumes)?;
        let extent_bytes = pool.extent_bytes;
        if !extent_bytes.is_power_of_two() || !LOG_BYTES.is_multiple_of(extent_bytes) {
            let problem = format!(
                "the extents of the group are {extent_bytes} bytes; they have to be a power of two and at most {LOG_BYTES}"
            );
            return Err(self.unusable(problem));
        }
        if pool.when_full != "error" {
            let problem = format!(
                "it holds writes back when it is full, and with them all who use its shares; have it refuse them: lvchange \
                 --errorwhenfull y {}/{}",
                self.volume_group, self.thin_pool
            );
            return Err(self.unusable(problem));
        }
        let uuid = self.identity(&group, &pool)?;
        if !pool.is_active() {
            group.activate(&self.thin_pool)?;
        }
        let taken = Taken {
            pool_device: group.device_name(&self.thin_pool),
            device_uuids: format!("LVM-{}", pool.group_uuid.replace('-', "")),
            pool: self.thin_pool.clone(),
            chunk_bytes: pool.chunk_bytes,
            extent_bytes,
            uuid,
            group,
            _lock: lock,
        };
        Ok((taken, volumes))
    }

    fn lock(&self) -> Result<File, StoreError> {
        let path = format!("{LOCKS}/quarry-{}-{}.lock", self.volume_group, self.thin_pool);
        let what = || format!("locking {path}");
        fs::create_dir_all(LOCKS).during(what)?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .during(what)?;
        match lock_exclusive(&file) {
            Ok(()) => Ok(file),
            Err(held @ LockError::Held { .. }) => {
                Err(self.unusable(format!("{held}; two agents cannot share a pool")))
            }
            Err(LockError::Io(source)) => Err(source).during(what),
        }
    }

    fn find_or_make(&self, group: &Group, volumes: &[LogicalVolume]) -> Result<LogicalVolume, StoreError> {
        if let Some(found) = volumes.iter().find(|volume| volume.name == self.thin_pool) {
            return match found.is_thin_pool() {
                true => Ok(found.clone()),
                false => Err(self.unusable("it is a volume of another kind")),
            };
        }
        match self.if_absent {
            IfAbsent::Create {
                size_bytes: Some(size_bytes),
            } => {
                group.create_pool(&self.thin_pool, size_bytes, &pool_tag(Uuid::new_v4()))?;
                group.volume(&self.thin_pool)
            }
            IfAbsent::Create { size_bytes: None } => {
                Err(self.unusable("it is not there; make it with lvcreate, or say of what size it is to be"))
            }
            IfAbsent::Fail => Err(self.unusable("it is not there")),
        }
    }

    /// Returns the identity of the pool of shares in a thin pool, or makes it one.
    fn identity(&self, group: &Group, pool: &LogicalVolume) -> Result<Uuid, StoreError> {
        if let Some(text) = pool.tag(POOL_TAG) {
            return text
                .parse()
                .map_err(io::Error::other)
                .during(|| format!("reading the tag of {}", self.thin_pool));
        }
        if pool.tags.iter().any(|tag| tag.starts_with("quarry.pool.")) {
            return Err(self.unusable("it holds shares in a format that this version does not know"));
        }
        if self.if_absent == IfAbsent::Fail {
            return Err(self.unusable("it is no pool of shares"));
        }
        let uuid = Uuid::new_v4();
        group.add_tag(&self.thin_pool, &pool_tag(uuid))?;
        Ok(uuid)
    }
}
