//! A lost page of a deleted version, while the pool is in use: its chunks are found by the chunk table, so that its reclaim goes on.
//!
//! Nobody reads a deleted version's map but its reclaim, and that looks only for what the version owns. So the page is made of just
//! that, in memory, and stored by a checkpoint before any record rests on it: until then the version is held up, and a power cut leaves
//! it as it was.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::pages::Rebuild;
use super::placed::Placed;
use crate::PoolError;
use crate::chunk_table::{Owners, TableScan};
use crate::format::{ChunkEntry, LEAF_ENTRIES, LeafEntry, PagePointer};
use crate::locks::{read, write};
use crate::map::{
    INNER_LEVELS, MAX_LEAVES, Missing, Ownership, ReapSide, Slot, Walk, leaves_covered, put_page,
};
use crate::page_io::read_page;
use crate::pool::{Pool, Priority};
use crate::state::{State, Wanted};
use crate::version::NodeId;

impl Pool {
    /// Makes the lost page again that the reclaim of a version has come to. False when it cannot be: it is its heir's page, or the
    /// chunk table does not have everything. The caller sees to it that nobody goes on with the reclaim meanwhile.
    ///
    /// # Errors
    /// What a checkpoint hit.
    pub(crate) fn rebuild_dead(&self, node: NodeId) -> Result<bool, PoolError> {
        let Some((lost, owns)) = self.lost_page_of_dead(node) else {
            return Ok(false);
        };
        if read_page(&*self.device, lost.pointer, "map page").is_ok() {
            return Ok(true);
        }
        // So that all that the table has of the version is stored: it is dead, and nothing is added.
        self.checkpoint()?;
        let span = lost.first_leaf..lost.first_leaf + leaves_covered(lost.level);
        let Some(placed) = self.chunks_of_dead(node, &span) else {
            return Ok(false);
        };
        let gauge = Arc::clone(&read(&self.state).gauge);
        let page = Rebuild::new(&*self.device, &gauge, placed).own_of(node, &lost)?;
        for _ in 0..MOST_LOADS {
            let put = write(&self.state).put_page_of_dead(node, &lost, &owns, &page);
            let wanted = match put {
                Put::Done => {
                    self.checkpoint()?;
                    tracing::warn!(
                        pool = %self.options.name, node = node.0,
                        "a lost page of a deleted version was made again from the chunk table; its reclaim goes on"
                    );
                    return Ok(true);
                }
                Put::Load(wanted) => wanted,
                Put::NoRoom => return Ok(false),
            };
            self.load(&wanted)?;
        }
        Ok(false)
    }

    /// Returns the page that the reclaim of a version needs next, if it is the version's own, and what that owns.
    fn lost_page_of_dead(&self, node: NodeId) -> Option<(Missing, Ownership)> {
        let state = read(&self.state);
        let is_complete = state.table.walk.has_seen_everything() && state.table.lost_tops().is_empty();
        let owns = state.versions.ownership(state.versions.find(node)?);
        let lost = scan_for_lost(&state, node).filter(|_| is_complete)?;
        Some((lost, owns))
    }

    /// Returns what a version owns in these leaves; `None` when a page of the table cannot be read.
    fn chunks_of_dead(&self, node: NodeId, leaves: &Range<u64>) -> Option<Placed> {
        let (mut owners, orphans, keys, top_count) = {
            let state = read(&self.state);
            let orphans: HashSet<u64> = state.partials.orphans().collect();
            let keys: HashSet<u64> = state.keys.chunks().collect();
            (Owners::of(&state), orphans, keys, state.table.tops().len())
        };
        let mut placed = Placed::default();
        for number in 0..top_count {
            for (chunk, entry) in self.entries_below(number)? {
                let leaf = entry.index / LEAF_ENTRIES as u64;
                let is_data = || read(&self.state).space.is_data(chunk);
                if leaves.contains(&leaf)
                    && owners.owner(&entry) == Some(node)
                    && !orphans.contains(&chunk)
                    && !keys.contains(&chunk)
                    && is_data()
                {
                    let within = entry.index as usize % LEAF_ENTRIES;
                    let mapped = LeafEntry::mapped(chunk, entry.birth);
                    placed
                        .chunks
                        .entry((node, leaf))
                        .or_default()
                        .push((within, mapped));
                }
            }
        }
        Some(placed)
    }

    /// Reads what is below one top page. A checkpoint may replace it meanwhile: then it is read where it is now.
    fn entries_below(&self, number: usize) -> Option<Vec<(u64, ChunkEntry)>> {
        loop {
            let top = top_page(&read(&self.state), number);
            let mut tops = vec![PagePointer::NONE; number];
            tops.push(top);
            let (mut entries, mut is_whole) = (Vec::new(), true);
            let scan = TableScan::new(&*self.device, &tops);
            scan.entries(
                |chunk, entry| {
                    entries.push((chunk, entry));
                    Ok(())
                },
                |_, _| {
                    is_whole = false;
                    Ok(())
                },
            )
            .ok()?;
            if is_whole {
                return Some(entries);
            }
            if top_page(&read(&self.state), number) == top {
                return None;
            }
        }
    }
}

impl State {
    /// Puts a page in the place of a lost one of a deleted version.
    fn put_page_of_dead(&mut self, node: NodeId, lost: &Missing, owned: &Ownership, page: &Slot) -> Put {
        match self.wanted_leaf(node, lost.first_leaf) {
            Some(wanted) if wanted.missing == *lost => {}
            Some(wanted) => return Put::Load(wanted),
            None => return Put::NoRoom,
        }
        // The pages made are counted already; those on the way to them are not.
        let pages = u64::from(INNER_LEVELS) + 1;
        if self.spare_chunks(pages).is_none() || self.stock_lacking(pages, Priority::Reclaim).is_some() {
            return Put::NoRoom;
        }
        let Some(version) = self.versions.find(node) else {
            return Put::NoRoom;
        };
        let owns = self.versions.ownership(version);
        // What its parent owned may have become its own meanwhile.
        if owns != *owned {
            return Put::NoRoom;
        }
        let Some(version) = self.versions.find_mut(node) else {
            return Put::NoRoom;
        };
        let mut walk = Walk {
            owns,
            depth: version.depth,
            garbage: &mut self.garbage,
            gauge: &self.gauge,
        };
        put_page(&mut version.root, lost, page.clone(), &mut walk);
        Put::Done
    }
}

/// What became of an attempt to put a page in its place.
enum Put {
    Done,
    /// A page on the way is not in memory.
    Load(Wanted),
    /// There is no room for another checkpoint's pages, or the place is gone.
    NoRoom,
}

/// How often pages on the way to a place are loaded: others may be evicted meanwhile.
const MOST_LOADS: u32 = 64;

fn top_page(state: &State, number: usize) -> PagePointer {
    state
        .table
        .tops()
        .get(number)
        .copied()
        .unwrap_or(PagePointer::NONE)
}

/// Returns the page of a version that its reclaim needs next, if it is not in memory and its own.
fn scan_for_lost(state: &State, node: NodeId) -> Option<Missing> {
    let scan = state.scan_reap(node, MAX_LEAVES, usize::MAX)?;
    let (side, missing) = scan.blocked?;
    (side == ReapSide::Dead).then_some(missing)
}
