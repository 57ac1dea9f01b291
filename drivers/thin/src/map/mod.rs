//! The map of a version: a radix tree from chunk index to chunk, shared between versions page by page.
//!
//! In memory it is a persistent tree of reference-counted nodes. Taking a snapshot clones the root; changing a leaf
//! copies the path to it where the path is shared. A checkpoint freezes roots by cloning them, and writes what is
//! dirty without holding any lock.
//!
//! Invariants
//! - M1: a version changes only pages that it owns (birth > base); what it does not own it copies. Ownership is
//!   decided by births, never by reference counts: those only tell whether memory may be changed in place.
//! - M2: a node that has been stored, or that a checkpoint may be storing, is never changed: it is replaced, and
//!   the replaced one becomes garbage, to be freed once the next superblock is durable.
//! - M3: only stored nodes are evicted from memory.
//!
//! Format: docs/formats/pool.md, "Map".

mod detached;
mod difference;
mod node;
mod owned;
mod reap;
mod tree;

pub(crate) use detached::detached;
pub(crate) use difference::{Difference, DifferenceSide, next_difference};
pub(crate) use node::{Child, Node, PageGauge, Slot};
pub(crate) use owned::{OwnedLeaf, next_owned};
pub(crate) use reap::{ReapScan, ReapSide, reap_range, scan_reap};
pub(crate) use tree::{
    LeafView, Missing, Ownership, Walk, find_leaf, install, missing_leaf, put_page, remove_leaf, update_leaf,
};

use crate::format::{INNER_ENTRIES, LEAF_ENTRIES};

/// Levels of inner pages above the leaves, which are level 0.
pub(crate) const INNER_LEVELS: u32 = 3;
/// Leaves of a full map.
pub(crate) const MAX_LEAVES: u64 = (INNER_ENTRIES as u64).pow(INNER_LEVELS);
/// Chunks of a full map.
pub(crate) const MAX_CHUNKS: u64 = MAX_LEAVES * LEAF_ENTRIES as u64;

/// Returns how many leaves a page of `level` covers.
pub(crate) fn leaves_covered(level: u32) -> u64 {
    (INNER_ENTRIES as u64).pow(level)
}

/// Returns in which entry of an inner page of `level` a leaf lies.
pub(crate) fn entry_of(level: u32, leaf: u64) -> usize {
    (leaf / leaves_covered(level - 1)) as usize % INNER_ENTRIES
}
