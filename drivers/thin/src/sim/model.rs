//! The oracle: what every volume and snapshot holds, and what it may hold after a crash.
//!
//! Rules
//! - O1: a sector's `current` value is what a read returns now.
//! - O2: after a crash a sector holds its current value or one it had since it was last made durable.
//! - O3: a snapshot's sectors have one value each from the moment it is acknowledged.
//! - O4: what a flush that failed left in doubt stays in doubt, whatever reads show and later flushes say, until
//!   the sector is written again and that is made durable, or until a power cut shows what the medium has.
//! - O5: after a crash, of a write that is all or nothing no sector is older, or none is of it or newer.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use quarry_contract::{DataSource, SnapshotId, VolumeId};

use super::sectors::{SECTOR_BYTES, Value};

/// One sector that is not simply zero.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sector {
    current: Value,
    /// Values it had since it was last durable, without the current one (O2).
    older: Vec<Value>,
    /// Values it may have on a medium whose flush failed, without the current one (O4).
    doubtful: Vec<Value>,
}

impl Sector {
    fn new(current: Value) -> Self {
        Self {
            current,
            older: Vec::new(),
            doubtful: Vec::new(),
        }
    }

    /// Tells whether it may have this value after a crash (O2, O4).
    fn may_be(&self, value: Value) -> bool {
        self.current == value || self.older.contains(&value) || self.doubtful.contains(&value)
    }
}

/// What a version holds, by sector; what is not in the map is zero and durably so.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    sectors: BTreeMap<u64, Sector>,
    /// Writes that are all or nothing and not known to be durable (O5).
    wholes: Vec<Whole>,
    /// The last change of each block, by its number; copies have those of what they were made from.
    changes: BTreeMap<u64, Change>,
}

/// What [`Contents`] remember of changes by, in bytes: no chunk is smaller.
const BLOCK_BYTES: u64 = 4096;

/// One change of some contents; no two are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change(u64);

impl Change {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A write that is all or nothing.
#[derive(Debug, Clone)]
struct Whole {
    lbas: Range<u64>,
    value: Value,
}

impl Contents {
    /// Returns what a read of the sector returns (O1).
    pub fn current(&self, lba: u64) -> Value {
        self.sectors
            .get(&lba)
            .map_or(Value::Zero, |sector| sector.current)
    }

    /// Tells whether the sector may hold `value` after a crash (O2, O4).
    pub fn may_hold(&self, lba: u64, value: Value) -> bool {
        match self.sectors.get(&lba) {
            Some(sector) => sector.may_be(value),
            None => value == Value::Zero,
        }
    }

    /// Changes a range as a whole or not at all (O5), in bytes.
    pub fn put_whole(&mut self, offset: u64, length: u64, value: Value) {
        self.put(offset, length, value);
        let lbas = offset / SECTOR_BYTES..(offset + length) / SECTOR_BYTES;
        self.wholes.push(Whole { lbas, value });
    }

    /// Returns the first write that is all or nothing and was found to be neither (O5): a sector of it, or newer, beside
    /// one that is older.
    pub(super) fn torn(&self, found: &BTreeMap<u64, Value>) -> Option<String> {
        self.wholes.iter().find_map(|whole| {
            let mut values = found.range(whole.lbas.clone());
            // Values are ordered by age; zeros are the oldest.
            let newer = values.clone().find(|(_, value)| **value >= whole.value)?;
            let older = values.find(|(_, value)| **value < whole.value)?;
            Some(format!(
                "O5: of {:?} in sectors {:?} sector {} reads {:?} and sector {} {:?}",
                whole.value, whole.lbas, newer.0, newer.1, older.0, older.1
            ))
        })
    }

    /// Changes a range, in bytes.
    pub fn put(&mut self, offset: u64, length: u64, value: Value) {
        if value == Value::Zero {
            // Zeros do not tell how old they are.
            let lbas = offset / SECTOR_BYTES..(offset + length) / SECTOR_BYTES;
            self.wholes
                .retain(|whole| whole.lbas.end <= lbas.start || lbas.end <= whole.lbas.start);
        }
        let change = Change::new();
        let blocks = offset / BLOCK_BYTES..(offset + length).div_ceil(BLOCK_BYTES);
        self.changes.extend(blocks.map(|block| (block, change)));
        for lba in offset / SECTOR_BYTES..(offset + length) / SECTOR_BYTES {
            let sector = self
                .sectors
                .entry(lba)
                .or_insert_with(|| Sector::new(Value::Zero));
            // Written again: from here on the next flush tells (O4).
            sector.older.append(&mut sector.doubtful);
            if sector.current != value && !sector.older.contains(&sector.current) {
                sector.older.push(sector.current);
            }
            sector.current = value;
        }
    }

    /// Says what a sector may hold, for a report.
    pub(super) fn describe(&self, lba: u64) -> String {
        match self.sectors.get(&lba) {
            Some(sector) if sector.older.is_empty() && sector.doubtful.is_empty() => {
                format!("{:?}", sector.current)
            }
            Some(sector) => format!(
                "{:?} or one of {:?} and, in doubt, {:?}",
                sector.current, sector.older, sector.doubtful
            ),
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

    /// Makes the current values the only possible ones, but for those in doubt (O4).
    pub fn settle(&mut self) {
        self.wholes.clear();
        self.sectors.retain(|_, sector| {
            sector.older.clear();
            sector.current != Value::Zero || !sector.doubtful.is_empty()
        });
    }

    /// Makes what was found current: for good after a power cut; with what else is possible in doubt where the
    /// medium only `pretends` (O4).
    pub(super) fn become_found(&mut self, found: &BTreeMap<u64, Value>, pretends: bool) {
        for (lba, value) in found {
            let mut sector = Sector::new(*value);
            if let Some(known) = self.sectors.get(lba).filter(|_| pretends) {
                let possible = known.older.iter().chain(&known.doubtful).chain([&known.current]);
                sector.doubtful = possible.copied().filter(|other| other != value).collect();
                sector.doubtful.sort_unstable();
                sector.doubtful.dedup();
            }
            self.sectors.insert(*lba, sector);
        }
        self.settle();
    }

    /// Returns the sectors that hold, or may hold, something else than zeros.
    pub fn touched(&self) -> impl Iterator<Item = u64> + '_ {
        self.sectors.keys().copied()
    }

    /// Tells whether anything in a range, of whole chunks in bytes, was changed since these contents and the others were
    /// the same; a change that a power cut undid and one that made no difference count.
    pub(super) fn changed_since(&self, other: &Self, range: Range<u64>) -> bool {
        let blocks = range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES);
        !self.changes.range(blocks.clone()).eq(other.changes.range(blocks))
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
    /// Whether it is a reserved one.
    pub reserved: bool,
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

    #[test]
    fn o5_a_part_of_a_whole_write_is_noticed() {
        let [first, second, third] = [1, 2, 3].map(|stamp| Value::Written(Stamp(stamp)));
        let mut contents = Contents::default();
        contents.put(0, 512, first);
        contents.put_whole(0, 1536, second);
        contents.put(512, 512, third);
        let found = |values: [Value; 3]| BTreeMap::from([(0, values[0]), (1, values[1]), (2, values[2])]);
        for good in [
            [second, third, second],
            [second, second, second],
            [first, Value::Zero, Value::Zero],
        ] {
            assert_eq!(contents.torn(&found(good)), None, "{good:?}");
        }
        for bad in [
            [second, Value::Zero, second],
            [first, third, Value::Zero],
            [first, second, second],
        ] {
            assert!(contents.torn(&found(bad)).is_some(), "{bad:?}");
        }
        contents.settle();
        assert_eq!(contents.torn(&found([second, Value::Zero, second])), None);
    }

    #[test]
    fn o4_doubt_after_a_failed_flush_outlives_flushes_and_ends_with_the_next_write() {
        let [first, second] = [1, 2].map(|stamp| Value::Written(Stamp(stamp)));
        let mut contents = Contents::default();
        contents.put(0, 512, first);
        contents.become_found(&BTreeMap::from([(0, first)]), true);
        contents.settle();
        assert!(contents.may_hold(0, first) && contents.may_hold(0, Value::Zero));
        contents.put(0, 512, second);
        assert!(contents.may_hold(0, Value::Zero));
        contents.settle();
        assert!(contents.may_hold(0, second) && !contents.may_hold(0, Value::Zero));
    }
}
