//! The chunk table: for each chunk whose it is, at which chunk index and since which depth. It says the same as the maps, from
//! the other side, and in pages of its own: what a lost page of a map was can be made from it again.
//!
//! Part of the state, under its lock. A record that maps a chunk adds an entry in memory; the checkpoint that stores the record
//! writes the entry to its page. Nothing of it is read or written before, so no acknowledgement waits for it. A chunk that is freed
//! keeps its entry until it is mapped again: the bitmap says which are worth reading.
//!
//! An entry names who mapped the chunk, and is not changed when the chunk passes to another version: from the name upwards, the
//! first version that owns what was born at that depth is its owner ([`Owners`]). A version that goes leaves a link to where its
//! name leads from then on ([`Links`]).
//!
//! Invariants
//! - CT1: the entry of a chunk that a version owns leads to that version, and has its chunk index and birth. Pools that are older
//!   than the table may have none, until the [`walk`] has come by.
//! - CT2: an entry is durable with the checkpoint that takes its record out of the log; nothing of the table is read or written but by a
//!   checkpoint, and by who looks for damage.
//! - CT3: a name leads to a version for as long as an entry of an allocated chunk may have it.
//! - CT4: a page all of whose chunks are free is given back by the next checkpoint that has room for it.
//!
//! Failure: a page that is lost in both copies costs its entries; a checkpoint goes on with those it knows, and the walk makes the
//! others from the maps.
//! Format: docs/formats/pool.md, "Chunk table". Why so: docs/decisions/0012-lost-map-pages.md.

mod links;
mod owners;
mod scan;
mod store;
mod trim;
mod walk;

use std::collections::BTreeSet;

use crate::format::{ChunkEntry, Geometry, INNER_ENTRIES, PagePointer, TABLE_ENTRIES};
use crate::page_set::PageSet;
use crate::version::{NodeId, Version};

pub(crate) use links::Links;
pub(crate) use owners::Owners;
pub(crate) use scan::{TOP_PAGE, TableScan};
pub(crate) use store::{FrozenTable, StoredTable};
pub(crate) use walk::TableWalk;
#[cfg(test)]
pub(crate) use walk::WalkStep;

/// Chunks of a page.
const PAGE_CHUNKS: u64 = TABLE_ENTRIES as u64;
/// Chunks below a top page.
const TOP_CHUNKS: u64 = PAGE_CHUNKS * INNER_ENTRIES as u64;

/// An entry that no checkpoint has stored yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewEntry {
    pub chunk: u64,
    pub entry: ChunkEntry,
}

/// A top page that could not be read when it was to be changed. If it can be again, what it points to is not lost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LostTop {
    pub number: u64,
    pub pointer: PagePointer,
}

/// The table of a pool.
#[derive(Debug, Default)]
pub(crate) struct ChunkTable {
    /// As the last checkpoint has stored them: pages of pointers to the pages of entries.
    tops: Vec<PagePointer>,
    /// In the order in which they came: of two for a chunk the last one counts.
    new: Vec<NewEntry>,
    changed_pages: BTreeSet<u64>,
    changed_tops: BTreeSet<u64>,
    /// Pages for chunks that may all be free.
    to_trim: PageSet,
    /// A checkpoint had no room for giving some of them back.
    is_trim_due: bool,
    /// Top pages that could not be read, and have been replaced by others, which leads to nothing that they point to.
    lost_tops: Vec<LostTop>,
    pub links: Links,
    pub walk: TableWalk,
}

impl ChunkTable {
    /// The table of a pool that has none yet, and whose maps say what belongs into it.
    pub fn to_be_filled() -> Self {
        Self {
            walk: TableWalk::beginning(),
            ..Self::default()
        }
    }

    /// Adds the entry of a chunk that a version has mapped.
    pub fn add(&mut self, chunk: u64, entry: ChunkEntry) {
        let page = chunk / PAGE_CHUNKS;
        let follows = self
            .new
            .last()
            .is_some_and(|last| last.chunk / PAGE_CHUNKS == page);
        if !follows && self.changed_pages.insert(page) {
            self.changed_tops.insert(chunk / TOP_CHUNKS);
        }
        self.new.push(NewEntry { chunk, entry });
    }

    /// Returns what has come since the last checkpoint.
    pub fn new_entries(&self) -> &[NewEntry] {
        &self.new
    }

    /// Returns the top pages as they are stored.
    pub fn tops(&self) -> &[PagePointer] {
        &self.tops
    }

    /// Returns the top pages that have been lost.
    pub fn lost_tops(&self) -> &[LostTop] {
        &self.lost_tops
    }

    /// Returns how many pages a checkpoint changes.
    pub fn changed_pages(&self) -> u64 {
        (self.changed_pages.len() + self.changed_tops.len()) as u64
    }

    /// Returns how many more pages a checkpoint changes when this chunk gets an entry.
    pub fn pages_changed_by(&self, chunk: u64) -> u64 {
        let is_changed = self.changed_pages.contains(&(chunk / PAGE_CHUNKS));
        let is_top_changed = self.changed_tops.contains(&(chunk / TOP_CHUNKS));
        u64::from(!is_changed) + u64::from(!is_top_changed)
    }

    /// Returns which page an entry is in: two of one page make as many pages dirty as one.
    pub fn page_of(chunk: u64) -> u64 {
        chunk / PAGE_CHUNKS
    }

    /// A version goes; what it owned is its heir's, if it has one.
    pub fn retire(&mut self, version: &Version, heir: Option<NodeId>) {
        let named =
            version.kind == crate::version::VersionKind::Volume || self.walk.may_have_named(version.node);
        self.links.retire(version.node, version.parent, heir, named);
    }

    /// Gives up top pages that cannot be read, for good: what they point to is nobody's from now on. Returns those that it had.
    pub fn forget_tops(&mut self, unreadable: &[PagePointer]) -> Vec<PagePointer> {
        let mut forgotten = Vec::new();
        for top in self.tops.iter_mut().filter(|top| unreadable.contains(top)) {
            forgotten.push(std::mem::take(top));
        }
        let is_forgotten = |lost: &mut LostTop| unreadable.contains(&lost.pointer);
        forgotten.extend(
            self.lost_tops
                .extract_if(.., is_forgotten)
                .map(|lost| lost.pointer),
        );
        forgotten
    }

    /// Begins a walk, whether or not one is under way: at its end no entry has a name that is a link now.
    pub fn begin_walk(&mut self) {
        self.links.age();
        self.walk = self.walk.begun_again();
    }

    /// Tells whether a checkpoint has nothing to store of it.
    pub fn is_clean(&self) -> bool {
        self.new.is_empty() && !self.walk.has_moved() && !self.is_trim_due
    }

    /// Returns how many words the index stream has of it at most, with one link more.
    pub fn most_encoded_words(&self, geometry: &Geometry) -> u64 {
        let tops = geometry
            .chunk_count
            .div_ceil(TOP_CHUNKS)
            .max(self.tops.len() as u64);
        let lost_tops = self.lost_tops.len() as u64 + tops;
        2 + 3 * tops + 4 * lost_tops + self.links.encoded_words() + 2 + TableWalk::WORDS
    }
}

/// Returns the page of entries that a place in a top page points to.
fn page_number(top: u64, place: usize) -> u64 {
    top * INNER_ENTRIES as u64 + place as u64
}

#[cfg(test)]
mod tests;
