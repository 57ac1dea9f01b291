//! The host of a simulated medium that is a file with holes: how much space it has left, and what the file has of it.
//!
//! Invariants
//! - S10: a cell that was written, or given its space, has it until it is discarded; what it takes, and gives back, the host has less,
//!   and more.
//! - S11: space that was taken since the last flush may be gone after a power cut, with what was written there; no other.

use std::collections::BTreeSet;

use quarry_contract::conformance::SplitMix;

use super::cells::{CELL_BYTES, Cells};

#[derive(Clone)]
pub(super) struct Host {
    free_cells: u64,
    /// The file's cells that have their space.
    taken: BTreeSet<u64>,
    /// Those of them that no flush has made durable.
    fresh: BTreeSet<u64>,
}

impl Host {
    /// The host of a file that has space where these cells were written.
    pub(super) fn of(cells: &Cells, free_bytes: u64) -> Self {
        Self {
            free_cells: free_bytes / CELL_BYTES as u64,
            taken: cells.written().into_iter().collect(),
            fresh: BTreeSet::new(),
        }
    }

    pub(super) fn fill(&mut self, but_bytes: u64) -> u64 {
        let left = self.free_cells.min(but_bytes / CELL_BYTES as u64);
        let taken = self.free_cells - left;
        self.free_cells = left;
        taken * CELL_BYTES as u64
    }

    pub(super) fn relieve(&mut self, bytes: u64) {
        self.free_cells += bytes / CELL_BYTES as u64;
    }

    /// Takes the space of a range; returns for how many bytes of it, from its beginning, there is some (S10).
    pub(super) fn take(&mut self, offset: u64, length: usize) -> usize {
        let cell = CELL_BYTES as u64;
        let end = offset + length as u64;
        for index in offset / cell..end.div_ceil(cell) {
            if self.taken.contains(&index) {
                continue;
            }
            if self.free_cells == 0 {
                return (index * cell).saturating_sub(offset) as usize;
            }
            self.free_cells -= 1;
            self.taken.insert(index);
            self.fresh.insert(index);
        }
        length
    }

    /// Gives the space of a range back (S10).
    pub(super) fn give_back(&mut self, offset: u64, length: u64) {
        let cell = CELL_BYTES as u64;
        for index in offset.div_ceil(cell)..(offset + length) / cell {
            self.fresh.remove(&index);
            self.free_cells += u64::from(self.taken.remove(&index));
        }
    }

    pub(super) fn settle(&mut self) {
        self.fresh.clear();
    }

    /// Cuts the power, and takes from the file what it has not kept (S11). `cells` are what is left of it.
    pub(super) fn cut(&mut self, cells: &Cells, random: &mut SplitMix) {
        let kept: BTreeSet<u64> = cells.written().into_iter().collect();
        for index in std::mem::take(&mut self.fresh) {
            if !kept.contains(&index) && random.below(2) == 0 {
                self.taken.remove(&index);
                self.free_cells += 1;
            }
        }
    }
}
