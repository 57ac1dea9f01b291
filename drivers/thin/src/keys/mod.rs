//! Encrypted volumes: their keys, where those are kept, and what is done with them.
//!
//! The data of a family of versions is encrypted with a family key, and that is wrapped with the key that the caller hands
//! in. Data is encrypted on its way into a [`VersionHandle`](crate::VersionHandle) and decrypted on its way out: all
//! below moves encrypted bytes like others.
//!
//! Invariants
//! - Y1: what an encrypted family writes reaches the medium encrypted, or as zeros for what is to read as zeros.
//! - Y2: a family key is on the medium only wrapped and only in the two copies of its slot.
//! - Y3: a slot is durable before the record that names it is logged; it is overwritten durably once the delete of the last
//!   of its family is durable, before anybody else gets it. An open overwrites what no family has.
//! - Y4: a version of an encrypted family is opened only while the family key is in memory.
//!
//! Failure: a slot that cannot be erased stops the pool; the next open erases it.
//! Format: docs/formats/pool.md, "Encryption". Why so: docs/decisions/0006-encryption.md.

mod areas;
mod slot;
mod slots;
mod xts;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use quarry_contract::{
    DataSource, DriverError, Encryption, FieldDifference, Outcome, VersionId, VolumeInfo, VolumeKey,
    VolumeSpec,
};
use smallvec::{SmallVec, smallvec};
use zeroize::Zeroizing;

use crate::control::{checksums_of, describe, differences, find_version, invalid};
use crate::handle::object_name;
use crate::host_space::host_full_or;
use crate::locks::{lock, read, write};
use crate::pool::{Decision, Pool, Priority};
use crate::record::Record;
use crate::version::NodeId;
use crate::{PoolDevice, PoolError};
use slot::Slot;
use xts::FamilyKey;

pub(crate) use areas::KeyAreas;
pub(crate) use slot::KeyRef;
pub(crate) use xts::Cipher;

/// The keys of the families that are unlocked.
#[derive(Default)]
pub(crate) struct KeyRing(Mutex<HashMap<u64, Arc<Cipher>>>);

impl KeyRing {
    pub fn get(&self, key: KeyRef) -> Option<Arc<Cipher>> {
        lock(&self.0).get(&key.family).cloned()
    }

    fn insert(&self, key: KeyRef, family_key: &FamilyKey) -> bool {
        let cipher = Arc::new(Cipher::new(family_key));
        lock(&self.0).insert(key.family, cipher).is_none()
    }

    fn remove(&self, key: KeyRef) -> bool {
        lock(&self.0).remove(&key.family).is_some()
    }

    /// Tells how a version with this key, or none, is.
    pub fn encryption(&self, key: Option<KeyRef>) -> Encryption {
        match key {
            None => Encryption::None,
            Some(key) if lock(&self.0).contains_key(&key.family) => Encryption::Unlocked,
            Some(_) => Encryption::Locked,
        }
    }
}

/// What two copies of a slot give to a key.
enum Unwrapped {
    Key(FamilyKey),
    WrongKey,
}

impl Pool {
    /// Creates an encrypted volume, unlocked.
    ///
    /// # Errors
    /// As [`VolumeEncryption::create_encrypted_volume`](quarry_contract::VolumeEncryption::create_encrypted_volume).
    pub fn create_encrypted_volume(
        &self,
        spec: &VolumeSpec,
        key: &VolumeKey,
    ) -> Result<Outcome<VolumeInfo>, DriverError> {
        self.check_size(spec.size_bytes)?;
        if spec.source != DataSource::Blank {
            return Err(invalid(
                "key",
                "what is made of another volume has that one's key; leave it out".into(),
            ));
        }
        let control = lock(&self.control);
        self.check_open()?;
        if let Ok(existing) = self.volume(spec.id) {
            let differences = self.differences_from(&existing, spec, key)?;
            let existing = self.volume(spec.id)?;
            drop(control);
            return self.unchanged(existing, VersionId::Volume(spec.id), differences);
        }
        self.check_brake(&read(&self.state), spec.reserved)?;
        self.make_encrypted(spec, key)
            .map_err(|error| self.driver_error(error))?;
        let created = self.volume(spec.id)?;
        drop(control);
        self.commit_metadata()?;
        Ok(Outcome::Changed(created))
    }

    fn make_encrypted(&self, spec: &VolumeSpec, key: &VolumeKey) -> Result<(), PoolError> {
        if !read(&self.state).allows_encryption() {
            write(&self.state).keys.wanted = true;
            self.checkpoint()?;
        }
        self.allow_checksums(spec)?;
        self.allow_reserved(spec.reserved)?;
        let (slot, places) = self.free_slot()?;
        // Nobody else makes versions: the caller has the control lock.
        let node = NodeId(read(&self.state).next_node);
        let at = KeyRef { family: node.0, slot };
        let mut family_key: FamilyKey = Zeroizing::new([0; 64]);
        getrandom::fill(&mut *family_key)
            .map_err(std::io::Error::other)
            .map_err(PoolError::device("asking for random bytes"))?;
        self.write_slot(places, &Slot::seal(self.uuid, at, &family_key, key))?;
        let create = Record::CreateEncrypted {
            node,
            uuid: spec.id.0,
            size_bytes: spec.size_bytes,
            slot,
        };
        let checksum = spec.checksums.then_some(Record::Checksum { node });
        let reserve = spec.reserved.then_some(Record::Reserve { node, reserved: true });
        self.apply_all([create].into_iter().chain(checksum).chain(reserve).collect())?;
        self.keys.insert(at, &family_key);
        Ok(())
    }

    fn apply_all(&self, records: SmallVec<[Record; 2]>) -> Result<(), PoolError> {
        self.change(Priority::Normal, |_| {
            Ok::<_, PoolError>(Decision::Apply(records.clone()))
        })
    }

    /// Returns a slot that no family has, and where it is; makes an area for it where there is none, durably, so that an
    /// open finds whatever is written to it (Y3).
    fn free_slot(&self) -> Result<(u32, [u64; 2]), PoolError> {
        let find = || {
            let state = read(&self.state);
            let used = state.versions.used_key_slots();
            let slot = (0..)
                .find(|slot| !used.contains(slot))
                .expect("there are fewer families than numbers");
            (slot, state.key_places(slot))
        };
        if let (slot, Some(places)) = find() {
            return Ok((slot, places));
        }
        self.make_key_area()?;
        let (slot, places) = find();
        let places = places.ok_or_else(|| self.stop_for_bug("a new key area has no free slot".into()))?;
        Ok((slot, places))
    }

    fn make_key_area(&self) -> Result<(), PoolError> {
        let chunks = self.take_own_chunks(2)?;
        let zeroed = chunks.iter().try_for_each(|chunk| {
            let (place, length) = (self.chunk_offset(*chunk), self.geometry.chunk_bytes);
            let zeroed = self.device.write_zeroes(place, length);
            zeroed.map_err(host_full_or("making a key area", length))?;
            // Zeroing may have made a hole (HF1).
            self.take_space_of_chunk(*chunk).map(drop)
        });
        let made = zeroed.and_then(|()| {
            self.apply_all(smallvec![Record::KeyArea {
                chunks: [chunks[0], chunks[1]],
            }])
        });
        if made.is_err() {
            self.give_back_written(&chunks);
        }
        made?;
        self.commit()
    }

    /// Says in what an existing volume is another one than the one to be created; unlocks it if it is not.
    fn differences_from(
        &self,
        existing: &VolumeInfo,
        spec: &VolumeSpec,
        key: &VolumeKey,
    ) -> Result<Vec<FieldDifference>, DriverError> {
        let found = find_version(&read(&self.state), VersionId::Volume(spec.id))?.key;
        let (encryption, whose) = match found {
            None => ("none", "this one"),
            Some(at) => match self.unwrap(at, key).map_err(|error| self.driver_error(error))? {
                Unwrapped::Key(family_key) => {
                    self.keys.insert(at, &family_key);
                    ("aes-256-xts", "this one")
                }
                Unwrapped::WrongKey => ("aes-256-xts", "another one"),
            },
        };
        Ok(differences(&[
            (
                "size_bytes",
                existing.size_bytes.to_string(),
                spec.size_bytes.to_string(),
            ),
            ("source", describe(existing.source), describe(spec.source)),
            checksums_of(existing, spec),
            ("encryption", encryption.into(), "aes-256-xts".into()),
            ("key", whose.into(), "this one".into()),
        ]))
    }

    /// Hands in the key of a version's family.
    ///
    /// # Errors
    /// As [`VolumeEncryption::unlock`](quarry_contract::VolumeEncryption::unlock).
    pub fn unlock_version(&self, id: VersionId, key: &VolumeKey) -> Result<Outcome<()>, DriverError> {
        let _control = lock(&self.control);
        let at = self.key_of(id)?;
        match self.unwrap(at, key).map_err(|error| self.driver_error(error))? {
            Unwrapped::WrongKey => Err(wrong_key(id)),
            Unwrapped::Key(family_key) => Ok(match self.keys.insert(at, &family_key) {
                true => Outcome::Changed(()),
                false => Outcome::Unchanged(()),
            }),
        }
    }

    /// Forgets the key of a version's family.
    ///
    /// # Errors
    /// As [`VolumeEncryption::lock`](quarry_contract::VolumeEncryption::lock).
    pub fn lock_version(&self, id: VersionId) -> Result<Outcome<()>, DriverError> {
        let _control = lock(&self.control);
        let at = self.key_of(id)?;
        let open = {
            let state = read(&self.state);
            lock(&self.openings)
                .keys()
                .filter_map(|node| state.versions.find(*node))
                .any(|version| version.key == Some(at))
        };
        if open {
            return Err(DriverError::Busy {
                object: format!("the key of {}", object_name(id)),
                blockers: vec!["an open device of the volume, its snapshots or its clones".into()],
            });
        }
        Ok(match self.keys.remove(at) {
            true => Outcome::Changed(()),
            false => Outcome::Unchanged(()),
        })
    }

    /// Replaces the key of a version's family.
    ///
    /// # Errors
    /// As [`VolumeEncryption::change_key`](quarry_contract::VolumeEncryption::change_key).
    pub fn change_key(
        &self,
        id: VersionId,
        key: &VolumeKey,
        new_key: &VolumeKey,
    ) -> Result<Outcome<()>, DriverError> {
        let _control = lock(&self.control);
        let at = self.key_of(id)?;
        self.check_running().map_err(|error| self.driver_error(error))?;
        let is_new = |key: Option<Slot>| key.is_some_and(|slot| slot.unseal(new_key).is_some());
        let copies = self.read_slot(at).map_err(|error| self.driver_error(error))?;
        if copies.into_iter().all(is_new) {
            return Ok(Outcome::Unchanged(()));
        }
        // After a change that was cut off one copy has the old key, and one the new.
        let unwrapped = match self.unwrap(at, key).map_err(|error| self.driver_error(error))? {
            Unwrapped::WrongKey => self
                .unwrap(at, new_key)
                .map_err(|error| self.driver_error(error))?,
            unwrapped => unwrapped,
        };
        let Unwrapped::Key(family_key) = unwrapped else {
            return Err(wrong_key(id));
        };
        let places = read(&self.state).key_places(at.slot);
        let slot = Slot::seal(self.uuid, at, &family_key, new_key);
        places
            .map_or(Ok(()), |places| self.write_slot(places, &slot))
            .map_err(|error| self.driver_error(error))?;
        Ok(Outcome::Changed(()))
    }

    fn key_of(&self, id: VersionId) -> Result<KeyRef, DriverError> {
        self.check_open()?;
        find_version(&read(&self.state), id)?.key.ok_or_else(|| {
            invalid(
                "id",
                format!("{} is not encrypted; it has no key", object_name(id)),
            )
        })
    }

    /// Unwraps the key of a family with the key of the caller.
    fn unwrap(&self, at: KeyRef, key: &VolumeKey) -> Result<Unwrapped, PoolError> {
        let copies = self.read_slot(at)?;
        let whole: Vec<Slot> = copies.into_iter().flatten().collect();
        if whole.is_empty() {
            return Err(PoolError::damaged(
                format!("the key of family {}", at.family),
                "both copies of its slot are lost, and its data with them",
            ));
        }
        let found = whole.iter().find_map(|slot| slot.unseal(key));
        Ok(found.map_or(Unwrapped::WrongKey, Unwrapped::Key))
    }

    /// Destroys the key of a family whose last version was deleted, once that is durable (Y3). The caller has the control
    /// lock.
    pub(crate) fn erase_family(&self, at: KeyRef) -> Result<(), PoolError> {
        self.commit()?;
        self.keys.remove(at);
        self.erase_slot(at)
            .map_err(|error| self.stop("a key could not be erased", error))
    }
}

fn wrong_key(id: VersionId) -> DriverError {
    DriverError::WrongKey {
        object: object_name(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn y4_a_ring_tells_locked_from_unlocked() {
        let ring = KeyRing::default();
        let at = KeyRef { family: 3, slot: 0 };
        assert_eq!(ring.encryption(None), Encryption::None);
        assert_eq!(ring.encryption(Some(at)), Encryption::Locked);
        assert!(ring.insert(at, &Zeroizing::new([1; 64])));
        assert!(!ring.insert(at, &Zeroizing::new([1; 64])));
        assert_eq!(ring.encryption(Some(at)), Encryption::Unlocked);
        assert!(ring.remove(at) && !ring.remove(at));
        assert!(ring.get(at).is_none());
    }
}
