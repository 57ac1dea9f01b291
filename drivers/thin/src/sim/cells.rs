//! The simulated medium's bytes: 4 KiB cells, each with a durable state and what was written since.
//!
//! Invariants
//! - S1: what a read sees is the newest write; what a power cut leaves of a cell is, sector by sector, one of
//!   its durable state and the writes since the last flush.
//! - S2: a flush that succeeds makes the newest write of every cell its durable state.
//! - S3: after a flush that fails, reads still see the newest writes (the kernel keeps the pages and calls them
//!   clean), while the durable state is whatever got out; no later flush writes them again.

use std::collections::BTreeMap;
use std::sync::Arc;

use quarry_contract::conformance::SplitMix;

/// The unit in which a medium keeps what it is given, in bytes.
pub(super) const CELL_BYTES: usize = 4096;
/// The unit that is never torn, in bytes.
pub(super) const TEAR_BYTES: usize = 512;

type Cell = Arc<[u8; CELL_BYTES]>;

/// All cells; those never written read zero.
#[derive(Clone, Default)]
pub(super) struct Cells {
    durable: BTreeMap<u64, Cell>,
    /// Writes since the last flush, oldest first.
    volatile: BTreeMap<u64, Vec<Cell>>,
    /// What reads see of cells whose flush failed (S3).
    pretended: BTreeMap<u64, Cell>,
}

fn zeros() -> Cell {
    Arc::new([0; CELL_BYTES])
}

impl Cells {
    /// Returns what a read of the cell sees (S1).
    fn newest(&self, index: u64) -> Option<&Cell> {
        self.volatile
            .get(&index)
            .and_then(|versions| versions.last())
            .or_else(|| self.pretended.get(&index))
            .or_else(|| self.durable.get(&index))
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) {
        for (index, within, part) in spans(offset, buffer.len()) {
            match self.newest(index) {
                Some(cell) => buffer[part].copy_from_slice(&cell[within]),
                None => buffer[part].fill(0),
            }
        }
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        for (index, within, part) in spans(offset, data.len()) {
            let mut cell = self.newest(index).cloned().unwrap_or_else(zeros);
            Arc::make_mut(&mut cell)[within].copy_from_slice(&data[part]);
            self.volatile.entry(index).or_default().push(cell);
        }
    }

    /// Writes a random part of `data`, sector by sector: what a failed write leaves (D2).
    pub(super) fn write_partly(&mut self, offset: u64, data: &[u8], random: &mut SplitMix) {
        for (at, sector) in data.chunks(TEAR_BYTES).enumerate() {
            if random.below(2) == 0 {
                self.write(offset + (at * TEAR_BYTES) as u64, sector);
            }
        }
    }

    /// Makes everything written durable (S2).
    pub(super) fn settle(&mut self) {
        for (index, versions) in std::mem::take(&mut self.volatile) {
            if let Some(newest) = versions.last() {
                self.pretended.remove(&index);
                self.durable.insert(index, Arc::clone(newest));
            }
        }
    }

    /// Fails a flush: some of it got out, none of it will again (S3).
    pub(super) fn lose(&mut self, random: &mut SplitMix) {
        let seen: Vec<(u64, Cell)> = self
            .volatile
            .iter()
            .filter_map(|(index, versions)| Some((*index, Arc::clone(versions.last()?))))
            .collect();
        self.collapse(random);
        self.pretended.extend(seen);
    }

    /// Tells whether reads see anything that a failed flush lost (S3).
    pub(super) fn pretend(&self) -> bool {
        !self.pretended.is_empty()
    }

    /// Cuts the power: every cell becomes one of its possible states (S1).
    pub(super) fn cut(&mut self, random: &mut SplitMix) {
        self.pretended.clear();
        self.collapse(random);
    }

    fn collapse(&mut self, random: &mut SplitMix) {
        // The extremes find what a fair coin rarely shows: all lost, all kept, nearly all of either.
        let lose_of_16 = match random.below(8) {
            0 => 16,
            1 => 0,
            2 => 15,
            3 => 1,
            _ => 8,
        };
        for (index, versions) in std::mem::take(&mut self.volatile) {
            let old = self.durable.get(&index).cloned();
            let pick = |random: &mut SplitMix| -> Option<Cell> {
                if random.below(16) < lose_of_16 {
                    return old.clone();
                }
                let newest_first = random.below(2) == 0;
                let at = if newest_first {
                    versions.len() - 1
                } else {
                    random.below(versions.len() as u64) as usize
                };
                versions.get(at).cloned()
            };
            let torn = random.below(4) == 0;
            let state = if torn {
                let mut mixed = [0; CELL_BYTES];
                for sector in mixed.chunks_mut(TEAR_BYTES).enumerate() {
                    let range = sector.0 * TEAR_BYTES..(sector.0 + 1) * TEAR_BYTES;
                    if let Some(cell) = pick(random) {
                        sector.1.copy_from_slice(&cell[range]);
                    }
                }
                Some(Arc::new(mixed))
            } else {
                pick(random)
            };
            if let Some(state) = state {
                self.durable.insert(index, state);
            }
        }
    }

    /// Inverts one bit in every state of a cell.
    pub(super) fn flip(&mut self, byte: u64, bit: u8) {
        let (index, at) = (byte / CELL_BYTES as u64, (byte % CELL_BYTES as u64) as usize);
        let durable = self.durable.entry(index).or_insert_with(zeros);
        Arc::make_mut(durable)[at] ^= 1 << bit;
        for version in self.volatile.get_mut(&index).into_iter().flatten() {
            Arc::make_mut(version)[at] ^= 1 << bit;
        }
        if let Some(pretended) = self.pretended.get_mut(&index) {
            Arc::make_mut(pretended)[at] ^= 1 << bit;
        }
    }

    /// Returns the indexes of cells that were ever written, ordered.
    pub(super) fn written(&self) -> Vec<u64> {
        let mut indexes: Vec<u64> = self.durable.keys().chain(self.volatile.keys()).copied().collect();
        indexes.sort_unstable();
        indexes.dedup();
        indexes
    }

    /// Forgets cells from `size_bytes` on.
    pub(super) fn truncate(&mut self, size_bytes: u64) {
        let end = size_bytes / CELL_BYTES as u64;
        self.durable.retain(|index, _| *index < end);
        self.volatile.retain(|index, _| *index < end);
        self.pretended.retain(|index, _| *index < end);
    }
}

/// Splits a range into cells: index, range within the cell, range within the request.
fn spans(
    offset: u64,
    length: usize,
) -> impl Iterator<Item = (u64, std::ops::Range<usize>, std::ops::Range<usize>)> {
    let cell = CELL_BYTES as u64;
    let end = offset + length as u64;
    (offset / cell..end.div_ceil(cell)).map(move |index| {
        let from = offset.max(index * cell);
        let to = end.min((index + 1) * cell);
        let within = (from - index * cell) as usize..(to - index * cell) as usize;
        let part = (from - offset) as usize..(to - offset) as usize;
        (index, within, part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector_of(cells: &Cells, sector: u64) -> u8 {
        let mut buffer = [0; TEAR_BYTES];
        cells.read(sector * TEAR_BYTES as u64, &mut buffer);
        assert!(buffer.iter().all(|byte| *byte == buffer[0]), "a sector is torn");
        buffer[0]
    }

    #[test]
    fn power_cut_leaves_each_sector_in_one_of_its_states_and_reaches_all_of_them() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..300 {
            let mut cells = Cells::default();
            cells.write(0, &[1; CELL_BYTES]);
            cells.settle();
            cells.write(0, &[2; CELL_BYTES]);
            cells.write(512, &[3; 1024]);
            cells.cut(&mut SplitMix::new(seed));
            let found: Vec<u8> = (0..8).map(|sector| sector_of(&cells, sector)).collect();
            assert!(found.iter().all(|byte| matches!(byte, 1..=3)), "{found:?}");
            assert!(found[0] != 3 && found[3] != 3, "{found:?}");
            seen.insert((found[0], found[1]));
        }
        assert!(seen.len() >= 5, "only {seen:?}");
    }

    #[test]
    fn failed_flush_keeps_the_reads_and_loses_the_writes_for_ever() {
        let mut lost = 0;
        for seed in 0..64 {
            let mut cells = Cells::default();
            let mut random = SplitMix::new(seed);
            cells.write(0, &[7; CELL_BYTES]);
            cells.lose(&mut random);
            assert_eq!(sector_of(&cells, 0), 7);
            cells.settle();
            cells.cut(&mut random);
            lost += u32::from(sector_of(&cells, 0) == 0);
        }
        assert!((10..60).contains(&lost), "{lost} of 64 lost");
    }
}
