//! The oracle: what every volume and snapshot holds, and what it may hold after a crash.
//!
//! Rules
//! - O1: a sector's `current` value is what a read returns now.
//! - O2: after a crash a sector holds its current value or one it had since it was last made durable.
//! - O3: a snapshot's sectors have one value each from the moment it is acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use quarry_contract::{DataSource, SnapshotId, VolumeId};

use super::sectors::{SECTOR_BYTES, Value};

/// One sector that is not simply zero.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sector {
    current: Value,
    /// Values it had since it was last durable, without the current one (O2).
    older: Vec<Value>,
}

/// What a version holds, by sector; what is not in the map is zero and durably so.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    sectors: BTreeMap<u64, Sector>,
}

impl Contents {
    /// Returns what a read of the sector returns (O1).
    pub fn current(&self, lba: u64) -> Value {
        self.sectors
            .get(&lba)
            .map_or(Value::Zero, |sector| sector.current)
    }

    /// Tells whether the sector may hold `value` after a crash (O2).
    pub fn may_hold(&self, lba: u64, value: Value) -> bool {
        match self.sectors.get(&lba) {
            Some(sector) => sector.current == value || sector.older.contains(&value),
            None => value == Value::Zero,
        }
    }

    /// Changes a range, in bytes.
    pub fn put(&mut self, offset: u64, length: u64, value: Value) {
        for lba in offset / SECTOR_BYTES..(offset + length) / SECTOR_BYTES {
            let sector = self.sectors.entry(lba).or_insert(Sector {
                current: Value::Zero,
                older: Vec::new(),
            });
            if sector.current != value && !sector.older.contains(&sector.current) {
                sector.older.push(sector.current);
            }
            sector.current = value;
        }
    }

    /// Says what a sector may hold, for a report.
    pub(super) fn describe(&self, lba: u64) -> String {
        match self.sectors.get(&lba) {
            Some(sector) if sector.older.is_empty() => format!("{:?}", sector.current),
            Some(sector) => format!("{:?} or one of {:?}", sector.current, sector.older),
            None => format!("{:?}", Value::Zero),
        }
    }

    /// Makes the current values of a range the only possible ones, in bytes.
    pub fn settle_range(&mut self, offset: u64, length: u64) {
        for (_, sector) in self
            .sectors
            .range_mut(offset / SECTOR_BYTES..(offset + length) / SECTOR_BYTES)
        {
            sector.older.clear();
        }
    }

    /// Makes the current values the only possible ones.
    pub fn settle(&mut self) {
        self.sectors.retain(|_, sector| {
            sector.older.clear();
            sector.current != Value::Zero
        });
    }

    /// Makes what was found the only possible values.
    pub(super) fn become_found(&mut self, found: &BTreeMap<u64, Value>) {
        for (lba, value) in found {
            let sector = Sector {
                current: *value,
                older: Vec::new(),
            };
            self.sectors.insert(*lba, sector);
        }
        self.settle();
    }

    /// Returns the sectors that hold, or may hold, something else than zeros.
    pub fn touched(&self) -> impl Iterator<Item = u64> + '_ {
        self.sectors.keys().copied()
    }

    /// Returns how many chunks hold something else than zeros now.
    pub fn chunks_with_data(&self, chunk_bytes: u64) -> u64 {
        let chunks: BTreeSet<u64> = self
            .sectors
            .iter()
            .filter(|(_, sector)| sector.current != Value::Zero)
            .map(|(lba, _)| lba * SECTOR_BYTES / chunk_bytes)
            .collect();
        chunks.len() as u64
    }
}

/// A volume.
#[derive(Debug, Clone)]
pub struct VolumeModel {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What it was made from.
    pub source: DataSource,
    /// What it holds.
    pub contents: Contents,
}

/// A snapshot.
#[derive(Debug, Clone)]
pub struct SnapshotModel {
    /// The volume it was taken of.
    pub volume: u64,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What it holds.
    pub contents: Contents,
}

/// All objects of a pool, by number.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// The volumes.
    pub volumes: BTreeMap<u64, VolumeModel>,
    /// The snapshots.
    pub snapshots: BTreeMap<u64, SnapshotModel>,
}

/// Returns the id of the volume with a number.
pub(super) fn volume_id(number: u64) -> VolumeId {
    VolumeId(uuid::Uuid::from_u128(0x7000_0000_0000 + u128::from(number)))
}

/// Returns the id of the snapshot with a number.
pub(super) fn snapshot_id(number: u64) -> SnapshotId {
    SnapshotId(uuid::Uuid::from_u128(0x5000_0000_0000 + u128::from(number)))
}

#[cfg(test)]
mod tests {
    use super::super::sectors::Stamp;
    use super::*;

    #[test]
    fn o2_sector_may_hold_every_value_since_it_was_durable_and_no_earlier_one() {
        let [first, second, third] = [1, 2, 3].map(|stamp| Value::Written(Stamp(stamp)));
        let mut contents = Contents::default();
        contents.put(0, 1024, first);
        assert!(contents.may_hold(1, Value::Zero) && contents.may_hold(1, first));
        contents.settle_range(0, 512);
        contents.put(0, 512, second);
        contents.put(0, 512, third);
        for (value, allowed) in [(Value::Zero, false), (first, true), (second, true), (third, true)] {
            assert_eq!(contents.may_hold(0, value), allowed, "{value:?}");
        }
        assert!(!contents.may_hold(0, Value::Foreign));
        assert_eq!(contents.current(0), third);
        contents.settle();
        assert!(!contents.may_hold(0, second));
    }
}
