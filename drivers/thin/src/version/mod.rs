//! Versions: the volumes, snapshots and what is left of deleted ones, and how they descend from each other.
//!
//! Invariants
//! - N1: a version's depth is greater than its parent's. Its base is its parent's depth, or 0; it owns what it
//!   sees with a birth above its base.
//! - N2: a dead version is in no name index. It goes when it has at most one child and has been reaped; a dead
//!   version with more children waits until one child is left.
//! - N3: at most one version is being reaped (has a reap cursor) at a time.
//! - N4: every version is in the order by depth and number, once and with its depth.

mod table;

use std::collections::{BTreeMap, BTreeSet, HashMap, btree_map};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quarry_contract::{DataSource, SnapshotId, VolumeId};
use uuid::Uuid;

use crate::keys::KeyRef;
use crate::map::{Ownership, Slot};
use crate::sums::Checksums;
use crate::write_epoch::WriteEpoch;

pub(crate) use table::FrozenRows;

/// Names a version for ever; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct NodeId(pub u64);

/// What a version is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VersionKind {
    /// Writable.
    Volume,
    /// Immutable, named by the user.
    Snapshot,
    /// Immutable, dead from birth: holds what a clone of a volume shares with it.
    Internal,
}

/// What a version was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nothing.
    Blank,
    /// A snapshot.
    Snapshot(Uuid),
    /// A volume; for a snapshot, the volume it was taken of.
    Volume(Uuid),
}

/// One version.
#[derive(Debug)]
pub(crate) struct Version {
    pub node: NodeId,
    pub uuid: Uuid,
    pub kind: VersionKind,
    pub dead: bool,
    pub source: Source,
    /// It takes space from a nearly full pool when others may not; of a snapshot: its volume was so.
    pub reserved: bool,
    pub depth: u32,
    pub parent: Option<NodeId>,
    pub children: BTreeSet<NodeId>,
    /// Shared with the open handles, which see an extend at once.
    pub size_bytes: Arc<AtomicU64>,
    pub root: Slot,
    pub mapped_chunks: u64,
    /// Chunks owned; may be negative while a parent is being merged in.
    pub own_chunks: i64,
    pub reap_cursor: u64,
    /// What its data is encrypted with, if it is.
    pub key: Option<KeyRef>,
    /// Whether its data has checksums (D4).
    pub checksums: Checksums,
    pub epoch: Arc<WriteEpoch>,
}

/// All versions of a pool.
#[derive(Debug, Default)]
pub(crate) struct VersionTree {
    rows: Vec<Option<Box<Version>>>,
    free_rows: BTreeSet<usize>,
    row_of: HashMap<NodeId, usize>,
    by_depth: BTreeSet<(u32, NodeId)>,
    volumes: BTreeMap<Uuid, NodeId>,
    snapshots: BTreeMap<Uuid, NodeId>,
    /// The live snapshots by the volume they were taken of.
    snapshots_of: BTreeMap<Uuid, BTreeSet<Uuid>>,
    dead: BTreeSet<NodeId>,
    dirty_row_pages: BTreeSet<usize>,
    reaping: Option<NodeId>,
    /// The sizes of all live volumes together, in bytes.
    provisioned_bytes: u64,
    /// By the slot of its key: each encrypted family that has live versions, and how many.
    families: BTreeMap<u32, (KeyRef, u64)>,
}

/// Where what comes after an id begins.
fn behind(after: Option<Uuid>) -> Bound<Uuid> {
    after.map_or(Bound::Unbounded, Bound::Excluded)
}

impl VersionKind {
    pub fn code(self) -> u8 {
        match self {
            VersionKind::Volume => 1,
            VersionKind::Snapshot => 2,
            VersionKind::Internal => 3,
        }
    }

    pub fn from_code(code: u8) -> Option<Self> {
        [VersionKind::Volume, VersionKind::Snapshot, VersionKind::Internal]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

impl Source {
    pub fn code(self) -> (u8, Uuid) {
        match self {
            Source::Blank => (0, Uuid::nil()),
            Source::Snapshot(uuid) => (1, uuid),
            Source::Volume(uuid) => (2, uuid),
        }
    }

    pub fn from_code(code: u8, uuid: Uuid) -> Option<Self> {
        match code {
            0 => Some(Source::Blank),
            1 => Some(Source::Snapshot(uuid)),
            2 => Some(Source::Volume(uuid)),
            _ => None,
        }
    }
}

impl From<Source> for DataSource {
    fn from(source: Source) -> Self {
        match source {
            Source::Blank => DataSource::Blank,
            Source::Snapshot(uuid) => DataSource::Snapshot(SnapshotId(uuid)),
            Source::Volume(uuid) => DataSource::Volume(VolumeId(uuid)),
        }
    }
}

impl Version {
    /// A version without contents.
    pub fn new(node: NodeId, uuid: Uuid, kind: VersionKind, source: Source, size_bytes: u64) -> Self {
        Self {
            node,
            uuid,
            kind,
            dead: false,
            source,
            reserved: false,
            depth: 1,
            parent: None,
            children: BTreeSet::new(),
            size_bytes: Arc::new(AtomicU64::new(size_bytes)),
            root: Slot::default(),
            mapped_chunks: 0,
            own_chunks: 0,
            reap_cursor: 0,
            key: None,
            checksums: Checksums::Off,
            epoch: Arc::default(),
        }
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        self.size_bytes.load(Ordering::SeqCst)
    }
}

impl VersionTree {
    /// Returns where a version is kept; stays the same for its life.
    pub fn row(&self, node: NodeId) -> Option<usize> {
        self.row_of.get(&node).copied()
    }

    /// Returns a version by its row, if it is still that version.
    pub fn at_row(&self, row: usize, node: NodeId) -> Option<&Version> {
        self.rows
            .get(row)?
            .as_deref()
            .filter(|version| version.node == node)
    }

    /// Returns a version.
    pub fn find(&self, node: NodeId) -> Option<&Version> {
        self.at_row(self.row(node)?, node)
    }

    /// Returns a version to change it; its row will be stored by the next checkpoint.
    pub fn find_mut(&mut self, node: NodeId) -> Option<&mut Version> {
        let row = self.row(node)?;
        self.dirty_row_pages.insert(row / crate::format::ROWS_PER_PAGE);
        self.rows[row].as_deref_mut()
    }

    /// Returns the root slot of a version, to load or evict pages, which is no change.
    pub fn root_mut(&mut self, node: NodeId) -> Option<&mut Slot> {
        let row = self.row(node)?;
        self.rows[row].as_mut().map(|version| &mut version.root)
    }

    /// Returns all versions.
    pub fn iter(&self) -> impl Iterator<Item = &Version> {
        self.rows.iter().flatten().map(|version| &**version)
    }

    /// Returns the live volume with this id.
    pub fn volume(&self, uuid: Uuid) -> Option<&Version> {
        self.find(*self.volumes.get(&uuid)?)
    }

    /// Returns the live snapshot with this id.
    pub fn snapshot(&self, uuid: Uuid) -> Option<&Version> {
        self.find(*self.snapshots.get(&uuid)?)
    }

    /// Returns how many live volumes there are.
    pub fn volume_count(&self) -> u64 {
        self.volumes.len() as u64
    }

    /// Returns how many live snapshots there are.
    pub fn snapshot_count(&self) -> u64 {
        self.snapshots.len() as u64
    }

    /// Returns the sizes of all live volumes together, in bytes.
    pub fn provisioned_bytes(&self) -> u64 {
        self.provisioned_bytes
    }

    fn live_volume_mut(&mut self, node: NodeId) -> Option<&mut Version> {
        self.find_mut(node)
            .filter(|version| version.kind == VersionKind::Volume && !version.dead)
    }

    /// Makes a live volume a reserved or an ordinary one; false when there is no such volume.
    pub fn set_reserved(&mut self, node: NodeId, reserved: bool) -> bool {
        let volume = self.live_volume_mut(node);
        volume.map(|volume| volume.reserved = reserved).is_some()
    }

    /// Changes the size of a live volume; false when there is no such volume.
    pub fn set_size(&mut self, node: NodeId, size_bytes: u64) -> bool {
        let Some(volume) = self.live_volume_mut(node) else {
            return false;
        };
        let before = volume.size_bytes.swap(size_bytes, Ordering::SeqCst);
        self.provisioned_bytes = self.provisioned_bytes - before + size_bytes;
        true
    }

    /// Returns the live volumes after an id, ordered by id.
    pub fn volumes_after(&self, after: Option<Uuid>) -> impl Iterator<Item = &Version> {
        let nodes = self.volumes.range((behind(after), Bound::Unbounded));
        nodes.filter_map(|(_, node)| self.find(*node))
    }

    /// Returns the live snapshots after an id, of one volume or of all, ordered by id.
    pub fn snapshots_after(&self, of: Option<Uuid>, after: Option<Uuid>) -> impl Iterator<Item = &Version> {
        let range = (behind(after), Bound::Unbounded);
        let all = of
            .is_none()
            .then(|| self.snapshots.range(range).map(|(uuid, _)| uuid));
        let siblings = of.and_then(|volume| self.snapshots_of.get(&volume));
        let of_volume = siblings.map(|siblings| siblings.range(range));
        let uuids = all.into_iter().flatten().chain(of_volume.into_iter().flatten());
        uuids.filter_map(|uuid| self.snapshot(*uuid))
    }

    /// Returns how many live snapshots of a volume there are.
    pub fn snapshot_count_of(&self, volume: Uuid) -> u64 {
        self.snapshots_of
            .get(&volume)
            .map_or(0, |siblings| siblings.len() as u64)
    }

    /// Returns the dead versions.
    pub fn dead(&self) -> impl Iterator<Item = &Version> {
        self.dead.iter().filter_map(|node| self.find(*node))
    }

    /// Returns the versions that come after this place in the order by depth and number, which has parents before children.
    pub fn behind(&self, depth: u32, node: NodeId) -> impl Iterator<Item = &Version> {
        let range = (Bound::Excluded((depth, node)), Bound::Unbounded);
        self.by_depth.range(range).filter_map(|(_, node)| {
            let version = self.find(*node);
            debug_assert!(version.is_some(), "N4");
            version
        })
    }

    /// Returns the base of a version: what was born at or above this depth belongs to an ancestor.
    pub fn base(&self, version: &Version) -> u32 {
        version
            .parent
            .and_then(|parent| self.find(parent))
            .map_or(0, |parent| parent.depth)
    }

    /// Returns what a version owns of its map.
    pub fn ownership(&self, version: &Version) -> Ownership {
        let parent = version.parent.and_then(|parent| self.find(parent));
        match parent {
            Some(parent) if self.reaping == Some(parent.node) => Ownership {
                base: parent.depth,
                cursor: parent.reap_cursor,
                base_below_cursor: self.base(parent),
            },
            Some(parent) => Ownership {
                base: parent.depth,
                cursor: 0,
                base_below_cursor: parent.depth,
            },
            None => Ownership {
                base: 0,
                cursor: 0,
                base_below_cursor: 0,
            },
        }
    }

    /// Adds a version below its parent and indexes its name.
    pub fn insert(&mut self, version: Version) {
        let node = version.node;
        if let Some(parent) = version.parent.and_then(|parent| self.find_mut(parent)) {
            debug_assert!(version.depth > parent.depth, "N1");
            parent.children.insert(node);
        }
        self.index(&version);
        let row = match self.free_rows.pop_first() {
            Some(row) => row,
            None => {
                self.rows.push(None);
                self.rows.len() - 1
            }
        };
        self.rows[row] = Some(Box::new(version));
        self.row_of.insert(node, row);
        self.dirty_row_pages.insert(row / crate::format::ROWS_PER_PAGE);
    }

    fn index(&mut self, version: &Version) {
        let node = version.node;
        self.by_depth.insert((version.depth, node));
        if let Some(key) = version.key.filter(|_| !version.dead) {
            self.families.entry(key.slot).or_insert((key, 0)).1 += 1;
        }
        match version.kind {
            _ if version.dead => drop(self.dead.insert(node)),
            VersionKind::Volume => {
                self.volumes.insert(version.uuid, node);
                self.provisioned_bytes += version.size();
            }
            VersionKind::Snapshot => {
                self.snapshots.insert(version.uuid, node);
                let (_, volume) = version.source.code();
                self.snapshots_of.entry(volume).or_default().insert(version.uuid);
            }
            VersionKind::Internal => {}
        }
    }

    /// Puts `version` between `head` and its parent; the head moves one deeper.
    pub fn insert_above(&mut self, head: NodeId, mut version: Version) {
        let node = version.node;
        let Some(head_version) = self.find_mut(head) else {
            return;
        };
        version.depth = head_version.depth;
        version.parent = head_version.parent.replace(node);
        head_version.depth += 1;
        version.children.insert(head);
        self.by_depth.remove(&(version.depth, head));
        self.by_depth.insert((version.depth + 1, head));
        if let Some(parent) = version.parent.and_then(|parent| self.find_mut(parent)) {
            parent.children.remove(&head);
        }
        self.insert(version);
    }

    /// Takes a version's name away; it waits for its reclaim (N2).
    pub fn kill(&mut self, node: NodeId) {
        let Some(version) = self.find_mut(node) else {
            return;
        };
        version.dead = true;
        let (kind, uuid, size_bytes) = (version.kind, version.uuid, version.size());
        let (key, (_, source)) = (version.key, version.source.code());
        match kind {
            VersionKind::Volume => {
                self.volumes.remove(&uuid);
                self.provisioned_bytes -= size_bytes;
            }
            VersionKind::Snapshot => {
                self.snapshots.remove(&uuid);
                if let btree_map::Entry::Occupied(mut siblings) = self.snapshots_of.entry(source) {
                    siblings.get_mut().remove(&uuid);
                    if siblings.get().is_empty() {
                        siblings.remove();
                    }
                }
            }
            VersionKind::Internal => {}
        }
        self.dead.insert(node);
        if let Some(key) = key
            && let Some((_, live)) = self.families.get_mut(&key.slot)
        {
            *live -= 1;
            if *live == 0 {
                self.families.remove(&key.slot);
            }
        }
    }

    /// Returns the slots of the keys of families that have live versions.
    pub fn used_key_slots(&self) -> BTreeSet<u32> {
        self.families.keys().copied().collect()
    }

    /// Returns the keys of families that have live versions, ordered by slot.
    pub fn live_keys(&self) -> impl Iterator<Item = KeyRef> + '_ {
        self.families.values().map(|(key, _)| *key)
    }

    /// Returns the key in this slot, if anything lives that needs it.
    pub fn key_in(&self, slot: u32) -> Option<KeyRef> {
        self.families.get(&slot).map(|(key, _)| *key)
    }

    /// Returns the version to reap next: the one begun, or a dead one with at most one child (N2, N3). None of those that are
    /// `held_up`.
    pub fn reapable(&self, held_up: &BTreeSet<NodeId>) -> Option<NodeId> {
        let next = |version: &&Version| version.children.len() <= 1 && !held_up.contains(&version.node);
        match self.reaping {
            Some(begun) => Some(begun).filter(|begun| !held_up.contains(begun)),
            None => self.dead().find(next).map(|version| version.node),
        }
    }

    /// Tells whether `node` may be reaped now (N2, N3).
    pub fn may_reap(&self, node: NodeId) -> bool {
        match self.reaping {
            Some(reaping) => reaping == node,
            None => self
                .find(node)
                .is_some_and(|version| version.dead && version.children.len() <= 1),
        }
    }

    /// Notes how far a reclaim has come.
    pub fn set_reap_cursor(&mut self, node: NodeId, cursor: u64) {
        self.reaping = Some(node);
        if let Some(version) = self.find_mut(node) {
            version.reap_cursor = cursor;
        }
    }

    /// Removes a reaped version; its child, if any, takes its place under its parent and what it still owned.
    pub fn retire(&mut self, node: NodeId) {
        self.reaping = None;
        let Some(row) = self.row_of.remove(&node) else {
            return;
        };
        let Some(version) = self.rows[row].take() else {
            return;
        };
        debug_assert!(
            version.dead && version.root.is_empty() && version.children.len() <= 1,
            "N2"
        );
        self.free_rows.insert(row);
        self.dead.remove(&node);
        self.by_depth.remove(&(version.depth, node));
        self.dirty_row_pages.insert(row / crate::format::ROWS_PER_PAGE);
        let heir = version.children.first().copied();
        if let Some(heir) = heir.and_then(|heir| self.find_mut(heir)) {
            heir.parent = version.parent;
            heir.own_chunks += version.own_chunks;
        } else {
            debug_assert_eq!(version.own_chunks, 0, "a version without heir frees all it owns");
        }
        if let Some(parent) = version.parent.and_then(|parent| self.find_mut(parent)) {
            parent.children.remove(&node);
            parent.children.extend(heir);
        }
    }
}
