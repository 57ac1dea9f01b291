//! The chunk table against the maps (CT1).

use std::collections::HashMap;

use super::{Check, Picture};
use crate::PoolError;
use crate::chunk_table::{Owners, TOP_PAGE, TableScan};
use crate::format::{ChunkEntry, PagePointer, RawChunkEntry};
use crate::state::State;

/// The chunk table as of the check's moment.
pub(super) struct TablePicture {
    owners: Owners,
    tops: Vec<PagePointer>,
    lost_tops: Vec<PagePointer>,
    new: HashMap<u64, ChunkEntry>,
    is_complete: bool,
}

impl TablePicture {
    pub fn of(state: &State) -> Self {
        let new = state.table.new_entries().iter();
        Self {
            owners: Owners::of(state),
            tops: state.table.tops().to_vec(),
            lost_tops: state.table.lost_tops().iter().map(|lost| lost.pointer).collect(),
            new: new.map(|new| (new.chunk, new.entry)).collect(),
            is_complete: !state.table.walk.is_under_way(),
        }
    }
}

/// The most problems of the table that are named one by one.
const MOST_NAMED: u64 = 16;

impl Check<'_> {
    /// Verifies the pages of the table, and that the entry of each chunk that a version owns says so.
    ///
    /// # Errors
    /// None that the table can cause.
    pub(super) fn table(&mut self, picture: &mut Picture) -> Result<(), PoolError> {
        let device = std::sync::Arc::clone(&self.pool.device);
        let tops = std::mem::take(&mut picture.table.tops);
        let scan = TableScan::new(&*device, &tops);
        let mut pages = Vec::new();
        scan.pages(|pointer, what| pages.push((pointer, what)));
        TableScan::new(&*device, &picture.table.lost_tops).pages(|pointer, what| pages.push((pointer, what)));
        for (pointer, what) in pages {
            let both_lost = self.own_copies(pointer, picture, what);
            if !both_lost.is_empty() {
                self.report.table_is_wrong = true;
                self.report
                    .lost_tops
                    .extend((what == TOP_PAGE).then_some(pointer));
            }
            both_lost.into_iter().for_each(|problem| self.repairable(problem));
        }
        let new = std::mem::take(&mut picture.table.new);
        let mut told = vec![false; self.seen_chunks.len()];
        let mut wrong = 0;
        scan.entries(
            |chunk, entry| {
                if !new.contains_key(&chunk) {
                    self.compare_entry(chunk, entry, picture, &mut told, &mut wrong);
                }
                Ok(())
            },
            |_, _| Ok(()),
        )?;
        for (chunk, entry) in new {
            self.compare_entry(chunk, entry, picture, &mut told, &mut wrong);
        }
        if picture.table.is_complete {
            let owned = self.seen_chunks.iter().zip(&told);
            let without = owned.filter(|(seen, told)| **seen != [0; 2] && !**told).count();
            if without > 0 {
                self.wrong_table(format!("the chunk table has nothing of {without} chunks"));
            }
        }
        self.lost_maps(picture, &told);
        if wrong > MOST_NAMED {
            self.wrong_table(format!("the chunk table is wrong for {wrong} chunks"));
        }
        Ok(())
    }

    /// Tells of the lost pages of maps, and whether the table says where everything belongs that they were for; and of counters.
    fn lost_maps(&mut self, picture: &Picture, told: &[bool]) {
        if self.lost_maps.is_empty() {
            let counters = std::mem::take(&mut self.wrong_counters);
            return counters.into_iter().for_each(|problem| self.problem(problem));
        }
        let nobodys: Vec<u64> = (picture.data.iter())
            .filter(|chunk| !self.has_seen(*chunk))
            .filter(|chunk| !picture.orphans.contains(chunk) && !picture.key_chunks.contains(chunk))
            .collect();
        let unknown = nobodys.iter().filter(|chunk| !told[**chunk as usize]).count();
        let lost = self.lost_maps.clone();
        let chunks = nobodys.len();
        if unknown == 0 {
            lost.into_iter().for_each(|problem| self.repairable(problem));
            self.repairable(format!(
                "{chunks} chunks are below lost pages of maps; the chunk table says where each belongs"
            ));
        } else {
            lost.into_iter().for_each(|problem| self.problem(problem));
            self.problem(format!(
                "{chunks} chunks are below lost pages of maps; the chunk table does not say where {unknown} of them belong"
            ));
        }
    }

    fn wrong_table(&mut self, problem: String) {
        self.report.table_is_wrong = true;
        self.repairable(problem);
    }

    /// Compares an entry with what a version owns. What is free, or no version owns as far as its map can be read, has none to
    /// compare.
    fn compare_entry(
        &mut self,
        chunk: u64,
        entry: ChunkEntry,
        picture: &mut Picture,
        told: &mut [bool],
        wrong: &mut u64,
    ) {
        let seen: Option<&RawChunkEntry> = self.seen_chunks.get(chunk as usize);
        let owner = picture.table.owners.owner(&entry).map(|owner| owner.0);
        let Some(seen) = seen.copied().and_then(ChunkEntry::from_raw) else {
            if let Some(told) = told.get_mut(chunk as usize) {
                *told = owner.is_some();
            }
            return;
        };
        told[chunk as usize] = true;
        if (owner, entry.index, entry.birth) == (Some(seen.name), seen.index, seen.birth) {
            return;
        }
        *wrong += 1;
        if *wrong <= MOST_NAMED {
            self.wrong_table(format!(
                "chunk {chunk} is version {}'s at {}, born at depth {}; the chunk table has {entry:?}, which leads to {owner:?}",
                seen.name, seen.index, seen.birth
            ));
        }
    }
}
