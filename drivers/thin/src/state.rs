//! All metadata of a pool: a function of a checkpoint and the records logged since.
//!
//! [`State::apply`] is the only thing that changes what a checkpoint stores, live and in recovery alike. It does no
//! I/O: [`State::wanted`] says first which map pages a record needs in memory.
//!
//! Invariants
//! - S1: the same records applied to the same checkpoint give the same versions, mappings, ownership and data
//!   bitmap.
//! - S2: a record is appended to the open batch in the same critical section in which it is applied, so the order of
//!   the log is the order of application.

use std::sync::Arc;

use crate::chunk_table::ChunkTable;
use crate::format::{
    AddedDevices, ChunkEntry, DirectoryEntry, Geometry, INCOMPAT_CHECKSUMMED_LENDERS, INCOMPAT_CHECKSUMS,
    INCOMPAT_ENCRYPTION, INCOMPAT_PARTIAL_LENDERS, INCOMPAT_SCRUB, LEAF_ENTRIES, LeafEntry, MAX_DEPTH,
    PagePointer,
};
use crate::garbage::Garbage;
use crate::keys::{KeyAreas, KeyRef};
use crate::log::LogRing;
use crate::map::{
    LeafView, MAX_CHUNKS, MAX_LEAVES, Missing, PageGauge, ReapScan, ReapSide, Walk, find_leaf, missing_leaf,
    reap_range, scan_reap, update_leaf,
};
use crate::page_space::PageSpace;
use crate::partial::{Blocks, Freed, PartialChunks};
use crate::record::Record;
use crate::scrub::Scrub;
use crate::space::Space;
use crate::sums::{Checksums, SumTrees};
use crate::version::{NodeId, Source, Version, VersionKind, VersionTree};

/// The metadata of a pool in memory.
pub(crate) struct State {
    pub geometry: Geometry,
    pub versions: VersionTree,
    pub space: Space,
    pub table: ChunkTable,
    pub partials: PartialChunks,
    /// Whether the superblock says that chunks may be partial, so that no older Quarry meets one.
    pub allows_partials: bool,
    /// The superblock's incompatible features.
    pub incompat: u64,
    pub keys: KeyAreas,
    /// The checksums of data.
    pub sums: SumTrees,
    /// How the running scrub is, or the last one was.
    pub scrub: Scrub,
    /// The devices that were added.
    pub devices: AddedDevices,
    pub pages: PageSpace,
    pub garbage: Garbage,
    pub gauge: Arc<PageGauge>,
    pub log: LogRing,
    pub next_node: u64,
    pub stored: StoredIndex,
}

/// Where the last durable checkpoint is.
#[derive(Debug, Clone, Default)]
pub(crate) struct StoredIndex {
    pub generation: u64,
    pub directory_side: u32,
    pub directory: Vec<DirectoryEntry>,
    pub row_pages: Vec<PagePointer>,
    /// The blocks of the chunk bitmap behind those that have a place of their own; none for a block of zeros.
    pub bitmap_pages: Vec<PagePointer>,
    pub index_pages: Vec<PagePointer>,
}

/// Whether a record is new or read from the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// New: its chunk was handed out by the allocator.
    Live,
    /// From the log.
    Replay,
}

/// Who lends to a chunk that takes the place of a partial one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lends {
    /// Without checksums the replaced one, with them what lends to that.
    Behind,
    /// The replaced one.
    Replaced,
}

/// A page that a record needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// In whose map.
    pub node: NodeId,
    /// Which page.
    pub missing: Missing,
}

impl State {
    /// Returns a page that has to be in memory before `record` can be applied, if one is not.
    pub fn wanted(&self, record: &Record) -> Option<Wanted> {
        match *record {
            Record::Map { node, index, .. }
            | Record::MapPart { node, index, .. }
            | Record::MapOver { node, index, .. }
            | Record::Unmap {
                node, first: index, ..
            } => self.wanted_leaf(node, index / LEAF_ENTRIES as u64),
            Record::Sums { chunk, .. } => self.wanted_sums(chunk),
            Record::ForgetSums { first, count } => self.wanted_to_forget_sums(first, count),
            Record::Reap { node, upto_leaf } => {
                let scan = self.scan_reap(node, upto_leaf, usize::MAX)?;
                let (side, missing) = scan.blocked.filter(|_| scan.reached < upto_leaf)?;
                Some(self.wanted_by_reap(node, side, missing))
            }
            Record::CreateVolume { .. }
            | Record::CreateEncrypted { .. }
            | Record::KeyArea { .. }
            | Record::Checksum { .. }
            | Record::BeginScrub { .. }
            | Record::Scrubbed { .. }
            | Record::FoundBad(_)
            | Record::EndScrub { .. }
            | Record::Snapshot { .. }
            | Record::Clone { .. }
            | Record::Extend { .. }
            | Record::Reserve { .. }
            | Record::Delete { .. }
            | Record::Fill { .. }
            | Record::Claim { .. }
            | Record::Revert { .. } => None,
        }
    }

    /// Returns where the two copies of a key slot are; `None` when there is no such slot.
    pub fn key_places(&self, slot: u32) -> Option<[u64; 2]> {
        self.keys.places(&self.geometry, slot)
    }

    /// Returns a page on the way to a leaf that is not in memory, if there is one.
    pub fn wanted_leaf(&self, node: NodeId, leaf: u64) -> Option<Wanted> {
        let missing = missing_leaf(self.root(node)?, leaf)?;
        Some(Wanted { node, missing })
    }

    /// Finds how far the next reclaim step of a version can go.
    pub fn scan_reap(&self, node: NodeId, upto: u64, leaf_budget: usize) -> Option<ReapScan> {
        let dead = self.versions.find(node)?;
        let heir = dead.children.first().and_then(|heir| self.versions.find(*heir));
        Some(scan_reap(
            &dead.root,
            heir.map(|heir| &heir.root),
            &self.versions.ownership(dead),
            dead.reap_cursor,
            upto,
            leaf_budget,
        ))
    }

    /// Says in whose map the page is that stopped a reclaim.
    pub fn wanted_by_reap(&self, node: NodeId, side: ReapSide, missing: Missing) -> Wanted {
        let heir = self
            .versions
            .find(node)
            .and_then(|dead| dead.children.first().copied());
        let node = match side {
            ReapSide::Dead => node,
            ReapSide::Heir => heir.unwrap_or(node),
        };
        Wanted { node, missing }
    }

    /// Applies a record of batch `batch` (S1). The pages that it needs are in memory.
    ///
    /// # Errors
    /// Says what makes the record impossible in this state: live a bug, in recovery damage.
    pub fn apply(&mut self, record: &Record, batch: u64, origin: Origin) -> Result<(), String> {
        match *record {
            Record::CreateVolume {
                node,
                uuid,
                size_bytes,
            } => {
                self.claim_node(node)?;
                let volume = Version::new(node, uuid, VersionKind::Volume, Source::Blank, size_bytes);
                self.versions.insert(volume);
                Ok(())
            }
            Record::CreateEncrypted {
                node,
                uuid,
                size_bytes,
                slot,
            } => self.apply_create_encrypted(node, uuid, size_bytes, slot),
            Record::KeyArea { chunks } => self.apply_key_area(chunks, origin),
            Record::Snapshot {
                head,
                node,
                uuid,
                kind,
            } => self.apply_snapshot(head, node, uuid, kind),
            Record::Clone {
                parent,
                node,
                uuid,
                size_bytes,
                source,
            } => {
                self.claim_node(node)?;
                let mut volume = self.child_of(parent, node, uuid, source, size_bytes)?;
                volume.kind = VersionKind::Volume;
                self.versions.insert(volume);
                Ok(())
            }
            Record::Extend { node, size_bytes } => {
                if self.versions.set_size(node, size_bytes) {
                    Ok(())
                } else {
                    Err("extends no volume".into())
                }
            }
            Record::Reserve { node, reserved } => {
                if self.versions.set_reserved(node, reserved) {
                    Ok(())
                } else {
                    Err("reserves no volume".into())
                }
            }
            Record::Delete { node } => {
                let version = self.versions.find(node).ok_or("deletes no version")?;
                if version.dead {
                    return Err("deletes a dead version".into());
                }
                self.versions.kill(node);
                Ok(())
            }
            Record::Revert { head, parent, node } => self.apply_revert(head, parent, node),
            Record::Map { node, index, chunk } => self.apply_map(node, index, chunk, None, batch, origin),
            Record::MapPart {
                node,
                index,
                chunk,
                blocks,
            } => self.apply_map(node, index, chunk, Some((blocks, Lends::Behind)), batch, origin),
            Record::MapOver {
                node,
                index,
                chunk,
                blocks,
            } => {
                if !self.checksummed_partials_may_lend() {
                    return Err("lets a partial chunk lend, which no superblock tells of".into());
                }
                self.apply_map(node, index, chunk, Some((blocks, Lends::Replaced)), batch, origin)
            }
            Record::Fill { chunk, blocks } => self.apply_fill(chunk, blocks, batch),
            Record::Claim { blocks, .. } => self.check_blocks(blocks),
            Record::Checksum { node } => self.apply_checksum(node),
            Record::Sums { chunk, ref sums } => self.apply_sums(chunk, sums),
            Record::ForgetSums { first, count } => self.apply_forget_sums(first, count),
            Record::BeginScrub { .. }
            | Record::Scrubbed { .. }
            | Record::FoundBad(_)
            | Record::EndScrub { .. } => self.apply_scrub(record),
            Record::Unmap { node, first, count } => self.apply_unmap(node, first, count, batch),
            Record::Reap { node, upto_leaf } => self.apply_reap(node, upto_leaf, batch),
        }
    }

    /// Tells whether the superblock says that volumes may be encrypted.
    pub fn allows_encryption(&self) -> bool {
        self.incompat & INCOMPAT_ENCRYPTION != 0
    }

    /// Tells whether the superblock says that volumes may be checksummed.
    pub fn allows_checksums(&self) -> bool {
        self.incompat & INCOMPAT_CHECKSUMS != 0
    }

    /// Tells whether the superblock says that partial chunks may lend.
    pub fn partials_may_lend(&self) -> bool {
        self.incompat & INCOMPAT_PARTIAL_LENDERS != 0
    }

    /// Tells whether the superblock says that partial chunks may lend to checksummed ones.
    pub fn checksummed_partials_may_lend(&self) -> bool {
        self.incompat & INCOMPAT_CHECKSUMMED_LENDERS != 0
    }

    /// Tells whether the superblock says that there may have been a scrub.
    pub fn allows_scrub(&self) -> bool {
        self.incompat & INCOMPAT_SCRUB != 0
    }

    fn apply_checksum(&mut self, node: NodeId) -> Result<(), String> {
        let blank = self.versions.find_mut(node).filter(|version| {
            version.kind == VersionKind::Volume && version.parent.is_none() && version.root.is_empty()
        });
        blank.ok_or("gives checksums to no blank volume")?.checksums = Checksums::On;
        Ok(())
    }

    fn apply_create_encrypted(
        &mut self,
        node: NodeId,
        uuid: uuid::Uuid,
        size_bytes: u64,
        slot: u32,
    ) -> Result<(), String> {
        if u64::from(slot) >= self.keys.slots(&self.geometry) || self.versions.key_in(slot).is_some() {
            return Err(format!("has its key in slot {slot}, which is not free for it"));
        }
        self.claim_node(node)?;
        let mut volume = Version::new(node, uuid, VersionKind::Volume, Source::Blank, size_bytes);
        volume.key = Some(KeyRef { family: node.0, slot });
        self.versions.insert(volume);
        Ok(())
    }

    fn apply_key_area(&mut self, chunks: [u64; 2], origin: Origin) -> Result<(), String> {
        for chunk in chunks {
            if !self.space.record_mapped(chunk, origin == Origin::Replay) {
                return Err(format!("keeps keys in chunk {chunk}, which is not free for it"));
            }
        }
        self.keys.push(chunks);
        Ok(())
    }

    fn claim_node(&mut self, node: NodeId) -> Result<(), String> {
        if self.versions.find(node).is_some() {
            return Err(format!("node {} exists already", node.0));
        }
        self.next_node = self.next_node.max(node.0 + 1);
        Ok(())
    }

    fn child_of(
        &self,
        parent: NodeId,
        node: NodeId,
        uuid: uuid::Uuid,
        source: Source,
        size_bytes: u64,
    ) -> Result<Version, String> {
        let parent = self.versions.find(parent).ok_or("descends from no version")?;
        if parent.depth >= MAX_DEPTH {
            return Err("descends deeper than births reach".into());
        }
        let mut child = Version::new(node, uuid, VersionKind::Volume, source, size_bytes);
        child.parent = Some(parent.node);
        child.depth = parent.depth + 1;
        child.root = parent.root.clone();
        child.mapped_chunks = parent.mapped_chunks;
        child.key = parent.key;
        child.checksums = parent.checksums;
        Ok(child)
    }

    fn apply_snapshot(
        &mut self,
        head: NodeId,
        node: NodeId,
        uuid: uuid::Uuid,
        kind: VersionKind,
    ) -> Result<(), String> {
        self.claim_node(node)?;
        let head_version = self.versions.find_mut(head).ok_or("snapshots no version")?;
        if head_version.kind != VersionKind::Volume || head_version.depth >= MAX_DEPTH {
            return Err("snapshots what cannot be".into());
        }
        let source = Source::Volume(head_version.uuid);
        let mut snapshot = Version::new(node, uuid, kind, source, head_version.size());
        snapshot.dead = kind == VersionKind::Internal;
        snapshot.root = head_version.root.clone();
        snapshot.mapped_chunks = head_version.mapped_chunks;
        snapshot.reserved = head_version.reserved;
        snapshot.key = head_version.key;
        snapshot.checksums = head_version.checksums;
        snapshot.own_chunks = std::mem::take(&mut head_version.own_chunks);
        // Writes in flight belong to the snapshot; whoever acknowledges it waits for their epoch.
        head_version.epoch = Arc::default();
        self.versions.insert_above(head, snapshot);
        Ok(())
    }

    fn apply_revert(&mut self, head: NodeId, parent: NodeId, node: NodeId) -> Result<(), String> {
        self.claim_node(node)?;
        let old = self.versions.find(head).ok_or("reverts no version")?;
        if old.dead || old.kind != VersionKind::Volume {
            return Err("reverts what is not a volume".into());
        }
        let mut volume = self.child_of(parent, node, old.uuid, old.source, old.size())?;
        volume.size_bytes = Arc::clone(&old.size_bytes);
        volume.reserved = old.reserved;
        self.versions.kill(head);
        self.versions.insert(volume);
        Ok(())
    }

    fn apply_map(
        &mut self,
        node: NodeId,
        index: u64,
        chunk: u64,
        part: Option<(Blocks, Lends)>,
        batch: u64,
        origin: Origin,
    ) -> Result<(), String> {
        if let Some((blocks, _)) = part {
            self.check_blocks(blocks)?;
        }
        let version = self.versions.find(node).ok_or("maps in no version")?;
        if index >= MAX_CHUNKS {
            return Err(format!("maps chunk index {index}, which no map has"));
        }
        let owns = self.versions.ownership(version);
        if !self.space.record_mapped(chunk, origin == Origin::Replay) {
            return Err(format!("maps to chunk {chunk}, which is not free for it"));
        }
        let version = self.versions.find_mut(node).ok_or("maps in no version")?;
        let leaf = index / LEAF_ENTRIES as u64;
        let mut walk = Walk {
            owns,
            depth: version.depth,
            garbage: &mut self.garbage,
            gauge: &self.gauge,
        };
        let entry = LeafEntry::mapped(chunk, version.depth);
        let replaced = update_leaf(&mut version.root, leaf, &mut walk, |entries| {
            std::mem::replace(&mut entries[index as usize % LEAF_ENTRIES], entry)
        });
        let (checksums, birth) = (version.checksums, version.depth);
        version.own_chunks += 1;
        let frees = replaced.is_mapped() && owns.owns(replaced.birth(), leaf + 1);
        if !replaced.is_mapped() {
            version.mapped_chunks += 1;
        } else if frees {
            version.own_chunks -= 1;
        }
        let name = node.0;
        self.table.add(chunk, ChunkEntry { name, index, birth });
        if let Some((blocks, lends)) = part {
            let lender = match lends {
                _ if !replaced.is_mapped() => None,
                // The records behind this one give the chunk what the replaced one holds.
                Lends::Behind if checksums.are_on() => self.partials.lender_behind(replaced.chunk()),
                Lends::Behind | Lends::Replaced => Some(replaced.chunk()),
            };
            self.partials.begin(chunk, blocks, lender, checksums)?;
        }
        if frees {
            self.free_chunk(replaced.chunk(), batch)?;
        }
        Ok(())
    }

    fn apply_fill(&mut self, chunk: u64, blocks: Blocks, batch: u64) -> Result<(), String> {
        self.check_blocks(blocks)?;
        let block_count = self.geometry.pages_per_chunk();
        let freed = self.partials.add(chunk, blocks, block_count)?;
        freed
            .into_iter()
            .try_for_each(|freed| self.record_freed(freed, batch))
    }

    pub(crate) fn check_blocks(&self, blocks: Blocks) -> Result<(), String> {
        let end = u64::from(blocks.first) + u64::from(blocks.count);
        if blocks.count == 0 || end > self.geometry.pages_per_chunk() {
            return Err(format!("fills {blocks:?}, which are not in a chunk"));
        }
        Ok(())
    }

    fn apply_unmap(&mut self, node: NodeId, first: u64, count: u64, batch: u64) -> Result<(), String> {
        let version = self.versions.find(node).ok_or("unmaps in no version")?;
        let leaf = first / LEAF_ENTRIES as u64;
        let begin = first as usize % LEAF_ENTRIES;
        if first >= MAX_CHUNKS || count == 0 || count > (LEAF_ENTRIES - begin) as u64 {
            return Err(format!(
                "unmaps {count} chunks from {first}, which is not in one leaf"
            ));
        }
        let range = begin..begin + count as usize;
        let anything = find_leaf(&version.root, leaf, |view| match view {
            LeafView::Leaf(entries) => entries[range.clone()].iter().any(|entry| entry.is_mapped()),
            LeafView::Empty | LeafView::Missing(_) => false,
        });
        if !anything {
            return Ok(());
        }
        let owns = self.versions.ownership(version);
        let version = self.versions.find_mut(node).ok_or("unmaps in no version")?;
        let mut walk = Walk {
            owns,
            depth: version.depth,
            garbage: &mut self.garbage,
            gauge: &self.gauge,
        };
        let mut freed = Vec::new();
        let mut unmapped = 0;
        update_leaf(&mut version.root, leaf, &mut walk, |entries| {
            for entry in entries[range].iter_mut().filter(|entry| entry.is_mapped()) {
                unmapped += 1;
                if owns.owns(entry.birth(), leaf + 1) {
                    freed.push(entry.chunk());
                }
                *entry = LeafEntry::UNMAPPED;
            }
        });
        version.mapped_chunks -= unmapped;
        version.own_chunks -= freed.len() as i64;
        freed
            .into_iter()
            .try_for_each(|chunk| self.free_chunk(chunk, batch))
    }

    fn apply_reap(&mut self, node: NodeId, upto: u64, batch: u64) -> Result<(), String> {
        if !self.versions.may_reap(node) || upto > MAX_LEAVES {
            return Err(format!("reclaims node {}, which cannot be", node.0));
        }
        let dead = self.versions.find(node).ok_or("reclaims no version")?;
        let owns = self.versions.ownership(dead);
        let heir = dead.children.first().and_then(|heir| self.versions.find(*heir));
        let heir_root = heir.map(|heir| heir.root.clone());
        let dead = self.versions.find_mut(node).ok_or("reclaims no version")?;
        let mut freed = Vec::new();
        let mut walk = Walk {
            owns,
            depth: dead.depth,
            garbage: &mut self.garbage,
            gauge: &self.gauge,
        };
        let from = dead.reap_cursor;
        reap_range(
            &mut dead.root,
            heir_root.as_ref(),
            &mut walk,
            from,
            upto,
            &mut |chunk| {
                freed.push(chunk);
            },
        );
        dead.own_chunks -= freed.len() as i64;
        if upto == MAX_LEAVES {
            self.table.retire(dead, dead.children.first().copied());
            self.versions.retire(node);
        } else {
            self.versions.set_reap_cursor(node, upto);
        }
        freed
            .into_iter()
            .try_for_each(|chunk| self.free_chunk(chunk, batch))
    }

    /// A chunk has lost its owner. It is freed, unless it lends to another (F3).
    fn free_chunk(&mut self, chunk: u64, batch: u64) -> Result<(), String> {
        let freed = self.partials.release(chunk)?;
        freed
            .into_iter()
            .try_for_each(|freed| self.record_freed(freed, batch))
    }

    fn record_freed(&mut self, freed: Freed, batch: u64) -> Result<(), String> {
        let chunk = freed.chunk;
        self.log.unsettled.note_freed(chunk);
        if self.space.record_freed(freed, batch) {
            self.note_sums_unneeded(chunk);
            self.table.note_unneeded(chunk);
            Ok(())
        } else {
            Err(format!("frees chunk {chunk}, which holds no data"))
        }
    }
}

#[cfg(test)]
mod tests;
