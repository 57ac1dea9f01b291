//! Giving back the pages of the table that are for free chunks only.

use std::collections::BTreeSet;

use super::{ChunkTable, PAGE_CHUNKS, TOP_CHUNKS};
use crate::format::INNER_ENTRIES;
use crate::state::State;

/// Top pages that a checkpoint changes only to give pages back.
const MOST_TOPS: usize = 64;

impl ChunkTable {
    /// Remembers that a chunk holds no data any more.
    pub fn note_unneeded(&mut self, chunk: u64) {
        self.to_trim.add(chunk / PAGE_CHUNKS);
    }

    /// A checkpoint had no room for giving these back.
    pub fn postpone(&mut self, pages: BTreeSet<u64>) {
        self.is_trim_due = !pages.is_empty();
        pages.into_iter().for_each(|page| self.to_trim.add(page));
    }
}

impl State {
    /// Takes out pages to be given back, and says how many top pages have to be changed for them beside those that change anyway.
    pub fn take_unneeded_of_table(&mut self) -> (BTreeSet<u64>, u64) {
        let (mut unneeded, mut more_tops) = (BTreeSet::new(), BTreeSet::new());
        let mut to_trim = std::mem::take(&mut self.table.to_trim);
        to_trim.retain(|page| {
            let top = page / INNER_ENTRIES as u64;
            let is_there = self
                .table
                .tops
                .get(top as usize)
                .is_some_and(|top| !top.is_none());
            let is_changed = self.table.changed_tops.contains(&top);
            if !is_there && !is_changed || self.is_needed_for_table(page) {
                return false;
            }
            let has_room = is_changed || more_tops.contains(&top) || more_tops.len() < MOST_TOPS;
            if has_room {
                unneeded.insert(page);
            }
            if has_room && !is_changed {
                more_tops.insert(top);
            }
            !has_room
        });
        self.table.to_trim = to_trim;
        (unneeded, more_tops.len() as u64)
    }

    /// Tells whether any chunk of a page holds data of a version.
    fn is_needed_for_table(&self, page: u64) -> bool {
        let holds_keys = |chunk| self.keys.chunks().any(|of_keys| of_keys == chunk);
        let first = page * PAGE_CHUNKS;
        debug_assert!(TOP_CHUNKS.is_multiple_of(PAGE_CHUNKS));
        (first..first + PAGE_CHUNKS).any(|chunk| self.space.is_data(chunk) && !holds_keys(chunk))
    }
}
