//! What tools show of a pool: its figures, and its structures as they lie on the medium (docs/formats/pool.md).

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use crate::format::{LEAF_ENTRIES, SUPERBLOCK_COPIES};
use crate::locks::read;
use crate::map::{Child, INNER_LEVELS, Node, Slot, leaves_covered};
use crate::page_io::read_page;
use crate::read_log::read_log;
use crate::record::Record;
use crate::recovery::{choose_superblock, read_superblock};
use crate::version::{Source, VersionKind};
use crate::{Pool, PoolDevice, PoolError};

/// The figures of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolStat {
    /// The pool's identity.
    pub uuid: Uuid,
    /// How many checkpoints it has had.
    pub generation: u64,
    /// The size of the medium that the pool uses, in bytes.
    pub device_bytes: u64,
    /// The unit of allocation, in bytes.
    pub chunk_bytes: u64,
    /// Where the first chunk begins, in bytes.
    pub data_start_bytes: u64,
    /// All chunks.
    pub chunks: u64,
    /// Chunks that hold the data of volumes and snapshots.
    pub data_chunks: u64,
    /// Those of them that hold only some of their blocks.
    pub partial_chunks: u64,
    /// Those of them that no version owns and that are kept because they lend to partial ones.
    pub orphan_chunks: u64,
    /// Those of them that hold the wrapped keys of encrypted volumes.
    pub key_chunks: u64,
    /// Chunks that hold map pages.
    pub metadata_chunks: u64,
    /// Chunks that can be allocated.
    pub free_chunks: u64,
    /// Map pages in use, both copies counted.
    pub metadata_pages: u64,
    /// The size of the redo log, in bytes.
    pub log_bytes: u64,
    /// How much of it recovery reads, in bytes.
    pub log_used_bytes: u64,
    /// Volumes.
    pub volumes: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Versions that are deleted and whose space is not all reclaimed.
    pub dead_versions: u64,
    /// Versions of all kinds whose data has checksums.
    pub checksummed_versions: u64,
    /// Whether the chunk table has an entry of every chunk that a version owns.
    pub is_table_complete: bool,
}

/// One copy of the superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuperblockCopy {
    /// Which copy, from 0.
    pub copy: usize,
    /// Where it is, in bytes.
    pub offset_bytes: u64,
    /// Its generation, or what is wrong with it.
    pub generation: Result<u64, String>,
}

/// One row of the version table, with the log applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRow {
    /// The version's number.
    pub node: u64,
    /// The volume's or snapshot's id.
    pub uuid: Uuid,
    /// `volume`, `snapshot` or `internal`.
    pub kind: &'static str,
    /// Whether it is deleted.
    pub dead: bool,
    /// The parent's number.
    pub parent: Option<u64>,
    /// Its depth below the first version of its line.
    pub depth: u32,
    /// What it was made from.
    pub source: Option<Uuid>,
    /// The size in bytes.
    pub size_bytes: u64,
    /// Chunks that its map names.
    pub mapped_chunks: u64,
    /// Chunks that it owns; what the others are owned by, it shares.
    pub own_chunks: i64,
    /// Leaves that have been reclaimed.
    pub reap_cursor: u64,
    /// Whether its data has checksums.
    pub checksums: bool,
}

/// A run of a version's map: consecutive chunk indices on consecutive chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapRun {
    /// The first chunk index.
    pub index: u64,
    /// The chunk that it maps to.
    pub chunk: u64,
    /// How many chunks.
    pub count: u64,
    /// The depth at which they were mapped.
    pub birth: u32,
}

/// A chunk that holds only some of its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialChunk {
    /// The chunk.
    pub chunk: u64,
    /// The chunk that holds the others; without one they read as zeros.
    pub lender: Option<u64>,
    /// Whether no version owns the lender any more.
    pub lender_is_orphan: bool,
    /// Its own blocks, as runs of blocks within the chunk.
    pub own_blocks: Vec<Range<u64>>,
}

/// A batch of the redo log that recovery applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogBatch {
    /// Its number.
    pub number: u64,
    /// Its length, in blocks of 4096 bytes.
    pub blocks: u64,
    /// Its records, each as a word and its fields.
    pub records: Vec<String>,
}

impl Pool {
    /// Returns the pool's figures.
    pub fn stat(&self) -> PoolStat {
        let state = read(&self.state);
        PoolStat {
            uuid: self.uuid,
            generation: state.stored.generation,
            device_bytes: state.geometry.device_bytes,
            chunk_bytes: self.geometry.chunk_bytes,
            data_start_bytes: self.geometry.data_start,
            chunks: state.geometry.chunk_count,
            data_chunks: state.space.data_chunks(),
            partial_chunks: state.partials.len() as u64,
            key_chunks: state.keys.chunks().count() as u64,
            orphan_chunks: state.partials.orphans().count() as u64,
            metadata_chunks: state.pages.chunk_count(),
            free_chunks: state.free_chunks(),
            metadata_pages: state.pages.used_pages(),
            log_bytes: self.geometry.log_blocks * crate::format::BLOCK,
            log_used_bytes: state.log.used_blocks() * crate::format::BLOCK,
            volumes: state.versions.volume_count(),
            snapshots: state.versions.snapshot_count(),
            dead_versions: state.versions.dead().count() as u64,
            checksummed_versions: (state.versions.iter())
                .filter(|version| version.checksums.are_on())
                .count() as u64,
            is_table_complete: state.table.walk.has_seen_everything(),
        }
    }

    /// Returns the four superblock copies as they are now.
    pub fn superblock_copies(&self) -> Vec<SuperblockCopy> {
        let geometry = read(&self.state).geometry;
        (0..SUPERBLOCK_COPIES)
            .map(|copy| {
                let offset_bytes = geometry.superblock_offset(copy);
                let generation = read_superblock(&*self.device, offset_bytes)
                    .and_then(|block| block.decode())
                    .map(|fields| fields.generation)
                    .map_err(|error| error.to_string());
                SuperblockCopy {
                    copy,
                    offset_bytes,
                    generation,
                }
            })
            .collect()
    }

    /// Returns all versions, ordered by number.
    pub fn version_rows(&self) -> Vec<VersionRow> {
        let state = read(&self.state);
        let mut rows: Vec<_> = state
            .versions
            .iter()
            .map(|version| VersionRow {
                node: version.node.0,
                uuid: version.uuid,
                kind: match version.kind {
                    VersionKind::Volume => "volume",
                    VersionKind::Snapshot => "snapshot",
                    VersionKind::Internal => "internal",
                },
                dead: version.dead,
                parent: version.parent.map(|parent| parent.0),
                depth: version.depth,
                source: match version.source {
                    Source::Blank => None,
                    Source::Snapshot(uuid) | Source::Volume(uuid) => Some(uuid),
                },
                size_bytes: version.size(),
                mapped_chunks: version.mapped_chunks,
                own_chunks: version.own_chunks,
                reap_cursor: version.reap_cursor,
                checksums: version.checksums.are_on(),
            })
            .collect();
        rows.sort_by_key(|row| row.node);
        rows
    }

    /// Returns all partial chunks, ordered by chunk.
    pub fn partial_chunks(&self) -> Vec<PartialChunk> {
        let state = read(&self.state);
        let orphans: HashSet<u64> = state.partials.orphans().collect();
        let masks = state.partials.masks();
        masks
            .map(|(chunk, lender, mask)| PartialChunk {
                chunk,
                lender,
                lender_is_orphan: lender.is_some_and(|lender| orphans.contains(&lender)),
                own_blocks: mask.runs().collect(),
            })
            .collect()
    }

    /// Returns the map of a volume or snapshot as runs, or `None` when there is no such version.
    ///
    /// # Errors
    /// `Damaged` when a map page is unreadable in both copies.
    pub fn map_runs(&self, uuid: Uuid) -> Result<Option<Vec<MapRun>>, PoolError> {
        let root = {
            let state = read(&self.state);
            let version = state
                .versions
                .volume(uuid)
                .or_else(|| state.versions.snapshot(uuid));
            match version {
                Some(version) => version.root.clone(),
                None => return Ok(None),
            }
        };
        let mut runs = Vec::new();
        self.collect_runs(&root, INNER_LEVELS, 0, &mut runs)?;
        Ok(Some(runs))
    }

    fn collect_runs(
        &self,
        slot: &Slot,
        level: u32,
        first: u64,
        runs: &mut Vec<MapRun>,
    ) -> Result<(), PoolError> {
        if slot.is_empty() {
            return Ok(());
        }
        let node = match slot.node() {
            Some(node) => Arc::clone(node),
            None => {
                let page = read_page(&*self.device, slot.pointer(), "map page")?;
                let gauge = Arc::clone(&read(&self.state).gauge);
                Arc::new(Node::load(level, slot.pointer(), &page, &gauge))
            }
        };
        match node.child() {
            Child::Leaf(entries) => {
                for (i, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.is_mapped()) {
                    let index = first * LEAF_ENTRIES as u64 + i as u64;
                    let (chunk, birth) = (entry.chunk(), entry.birth());
                    match runs.last_mut() {
                        Some(run)
                            if run.index + run.count == index
                                && run.chunk + run.count == chunk
                                && run.birth == birth =>
                        {
                            run.count += 1;
                        }
                        _ => runs.push(MapRun {
                            index,
                            chunk,
                            count: 1,
                            birth,
                        }),
                    }
                }
            }
            Child::Inner(slots) => {
                let slots = read(slots).clone();
                for (i, slot) in slots.iter().enumerate() {
                    self.collect_runs(
                        slot,
                        level - 1,
                        first + i as u64 * leaves_covered(level - 1),
                        runs,
                    )?;
                }
            }
        }
        Ok(())
    }
}

impl LogBatch {
    /// Reads the batches of the log that recovery applies to the pool on `device`.
    ///
    /// # Errors
    /// As [`Pool::open`].
    pub fn read_all(device: &dyn PoolDevice) -> Result<Vec<LogBatch>, PoolError> {
        let superblock = choose_superblock(device)?;
        let batches = read_log(device, &superblock)?.batches;
        Ok(batches
            .iter()
            .map(|batch| {
                let mut rest = batch.records();
                let records = std::iter::from_fn(|| Record::decode(&mut rest));
                LogBatch {
                    number: batch.number,
                    blocks: batch.blocks(),
                    records: records.map(|record| format!("{record:?}")).collect(),
                }
            })
            .collect())
    }
}
