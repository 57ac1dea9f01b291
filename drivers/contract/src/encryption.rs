//! Encryption at rest, an optional capability of a [`VolumeBackend`](crate::VolumeBackend).

use std::fmt;

use async_trait::async_trait;
use secrecy::zeroize::Zeroizing;

use crate::{DriverError, Outcome, VersionId, VolumeInfo, VolumeSpec};

/// The key of an encrypted volume, as its owner keeps it: 256 bits. Zeroed when dropped, never shown.
#[derive(Clone)]
pub struct VolumeKey(Zeroizing<[u8; VolumeKey::BYTES]>);

impl VolumeKey {
    /// The length of a key, in bytes.
    pub const BYTES: usize = 32;

    /// Takes a key over.
    pub fn new(bytes: [u8; Self::BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Takes a copy of a key; `None` when these are not [`BYTES`](Self::BYTES).
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::new)
    }

    /// Returns the key itself, for who encrypts with it.
    pub fn expose(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeKey(not shown)")
    }
}

/// Whether a volume is encrypted, and whether its key is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// It is not encrypted.
    None,
    /// It is, and can be opened.
    Unlocked,
    /// It is, and is opened only when its key has been handed in.
    Locked,
}

/// Volumes that are encrypted at rest.
///
/// A volume, its snapshots, the volumes cloned from them and theirs are a family: they share one key, which their
/// owner keeps and hands in.
///
/// Contract
/// - K1: the key is in memory while the family is unlocked and nowhere else; it is not in what is stored, logged or
///   answered.
/// - K2: a key that is not the family's is refused ([`WrongKey`](DriverError::WrongKey)) before any I/O on the family's data.
/// - K3: after a restart of the backend every encrypted family is locked: what belongs to it is listed,
///   snapshotted, cloned, extended, reverted and deleted as ever, and is not opened ([`Locked`](DriverError::Locked)).
/// - K4: when the last volume and the last snapshot of a family have been deleted, its data cannot be read any more, whoever
///   has the key and the medium.
#[async_trait]
pub trait VolumeEncryption: Send + Sync {
    /// Creates an encrypted volume, unlocked. As [`create_volume`](crate::VolumeBackend::create_volume) otherwise; an
    /// existing volume that is not encrypted, or with another key, is another volume.
    ///
    /// # Errors
    /// As there; `InvalidArgument` for a source: what is made of another volume has its key.
    async fn create_encrypted_volume(
        &self,
        spec: &VolumeSpec,
        key: &VolumeKey,
    ) -> Result<Outcome<VolumeInfo>, DriverError>;

    /// Hands in the key of a volume's or snapshot's family (K2).
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` when it is not encrypted; `WrongKey`; `Corrupt` when what the key unlocks is lost.
    async fn unlock(&self, id: VersionId, key: &VolumeKey) -> Result<Outcome<()>, DriverError>;

    /// Forgets the key of a volume's or snapshot's family.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` when it is not encrypted; `Busy` when anything of the family is open.
    async fn lock(&self, id: VersionId) -> Result<Outcome<()>, DriverError>;

    /// Replaces the key of a volume's or snapshot's family; takes no longer for more data. Repeated after it was cut off, or
    /// done, it answers as it did.
    ///
    /// # Errors
    /// As [`unlock`](Self::unlock), for `key`.
    async fn change_key(
        &self,
        id: VersionId,
        key: &VolumeKey,
        new_key: &VolumeKey,
    ) -> Result<Outcome<()>, DriverError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_shown_and_has_one_length() {
        let key = VolumeKey::from_slice(&[0xab; 32]).expect("32 bytes");
        assert_eq!(key.expose(), &[0xab; 32]);
        assert_eq!(format!("{key:?} {key:#?}").matches("not shown").count(), 2);
        assert!(!format!("{key:?}").contains("171") && !format!("{key:?}").contains("ab, "));
        assert!(VolumeKey::from_slice(&[1; 31]).is_none() && VolumeKey::from_slice(&[1; 33]).is_none());
    }
}
