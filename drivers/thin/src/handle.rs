//! Handles: volumes and snapshots open for I/O.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quarry_contract::{DriverError, OpenMode, VersionId};

use crate::keys::Cipher;
use crate::locks::{lock, read};
use crate::pool::Pool;
use crate::sums::Checksums;
use crate::version::NodeId;

/// A volume or snapshot, open for I/O. Dropping the last reference closes it.
pub struct VersionHandle {
    pub(crate) pool: Arc<Pool>,
    pub(crate) node: NodeId,
    pub(crate) row: usize,
    mode: OpenMode,
    size_bytes: Arc<AtomicU64>,
    /// What its data is encrypted with, if it is (Y1).
    pub(crate) cipher: Option<Arc<Cipher>>,
    /// Whether its data has checksums (D3).
    pub(crate) checksums: Checksums,
}

/// Who has a version open.
#[derive(Debug, Default)]
pub(crate) struct Openings {
    readers: u32,
    writer: bool,
}

impl Pool {
    /// Opens a volume or snapshot for I/O: at most one read-write handle of a volume at a time.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `InvalidArgument` for a writable snapshot, `Locked` (Y4).
    pub fn open_version(
        self: &Arc<Self>,
        id: VersionId,
        mode: OpenMode,
    ) -> Result<Arc<VersionHandle>, DriverError> {
        let _control = lock(&self.control);
        self.check_open()?;
        if matches!(id, VersionId::Snapshot(_)) && mode == OpenMode::ReadWrite {
            return Err(DriverError::InvalidArgument {
                field: "mode".into(),
                problem: "a snapshot never changes; open it read-only, or clone it and open the clone".into(),
            });
        }
        let state = read(&self.state);
        let version = match id {
            VersionId::Volume(id) => state.versions.volume(id.0),
            VersionId::Snapshot(id) => state.versions.snapshot(id.0),
        };
        let version = version.ok_or_else(|| not_found(id))?;
        let cipher = match version.key {
            None => None,
            Some(key) => Some(self.keys.get(key).ok_or_else(|| DriverError::Locked {
                object: object_name(id),
            })?),
        };
        let mut openings = lock(&self.openings);
        let opening = openings.entry(version.node).or_default();
        match mode {
            OpenMode::ReadWrite if opening.writer => {
                return Err(DriverError::Busy {
                    object: object_name(id),
                    blockers: vec!["an open read-write device".into()],
                });
            }
            OpenMode::ReadWrite => opening.writer = true,
            OpenMode::ReadOnly => opening.readers += 1,
        }
        Ok(Arc::new(VersionHandle {
            pool: Arc::clone(self),
            node: version.node,
            row: state.versions.row(version.node).ok_or_else(|| not_found(id))?,
            mode,
            size_bytes: Arc::clone(&version.size_bytes),
            cipher,
            checksums: version.checksums,
        }))
    }

    /// Refuses what may not happen to an open version.
    pub(crate) fn check_not_open(&self, node: NodeId, id: VersionId) -> Result<(), DriverError> {
        if lock(&self.openings).contains_key(&node) {
            return Err(DriverError::Busy {
                object: object_name(id),
                blockers: vec!["an open device".into()],
            });
        }
        Ok(())
    }
}

pub(crate) fn object_name(id: VersionId) -> String {
    match id {
        VersionId::Volume(id) => format!("volume {id}"),
        VersionId::Snapshot(id) => format!("snapshot {id}"),
    }
}

pub(crate) fn not_found(id: VersionId) -> DriverError {
    DriverError::NotFound {
        object: object_name(id),
    }
}

impl VersionHandle {
    /// Returns the pool.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Returns the size in bytes, as of now.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::SeqCst)
    }

    /// Makes of what is to be written at `offset` what is to be on the medium: for who carries out a [plan](crate::Plan).
    /// Bytes of a version that is not encrypted stay the same. Offset and length are multiples of 512 bytes.
    pub fn encrypt(&self, offset: u64, bytes: &mut [u8]) {
        if let Some(cipher) = &self.cipher {
            cipher.encrypt(offset, bytes);
        }
    }

    /// Makes of what the medium holds for `offset` what is read there; see [`encrypt`](Self::encrypt).
    pub fn decrypt(&self, offset: u64, bytes: &mut [u8]) {
        if let Some(cipher) = &self.cipher {
            cipher.decrypt(offset, bytes);
        }
    }

    /// Tells whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.mode == OpenMode::ReadOnly
    }
}

impl Drop for VersionHandle {
    fn drop(&mut self) {
        let mut openings = lock(&self.pool.openings);
        if let Some(opening) = openings.get_mut(&self.node) {
            match self.mode {
                OpenMode::ReadWrite => opening.writer = false,
                OpenMode::ReadOnly => opening.readers -= 1,
            }
            if !opening.writer && opening.readers == 0 {
                openings.remove(&self.node);
            }
        }
    }
}
