//! The checksums of some blocks, in memory and in a record.

use std::ops::Deref;

use smallvec::SmallVec;

use crate::format::BLOCK_BYTES;
use crate::partial::Blocks;
use crate::record::Record;

/// One sum for each of some blocks that follow each other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct BlockSums(SmallVec<[u32; 16]>);

/// As many sums as a record takes, and which blocks of a chunk they are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FewSums {
    first: u16,
    count: u16,
    sums: [u32; FewSums::MOST],
}

impl BlockSums {
    /// Computes the sums of whole blocks.
    pub fn of(bytes: &[u8]) -> Self {
        debug_assert!(bytes.len().is_multiple_of(BLOCK_BYTES));
        bytes.chunks_exact(BLOCK_BYTES).map(crc32c::crc32c).collect()
    }

    /// Replaces the sums from block `at` on.
    pub fn replace(&mut self, at: usize, sums: &BlockSums) {
        self.0[at..at + sums.len()].copy_from_slice(sums);
    }

    /// Appends the sums of the blocks that follow.
    pub fn append(&mut self, sums: &BlockSums) {
        self.0.extend_from_slice(sums);
    }

    /// Returns the records that say that these blocks of a chunk have these sums.
    pub fn records(&self, chunk: u64, blocks: Blocks) -> impl Iterator<Item = Record> + '_ {
        debug_assert_eq!(self.len(), usize::from(blocks.count));
        let firsts = (blocks.first..).step_by(FewSums::MOST);
        firsts.zip(self.chunks(FewSums::MOST)).map(move |(first, some)| {
            let mut sums = [0; FewSums::MOST];
            sums[..some.len()].copy_from_slice(some);
            let count = some.len() as u16;
            let sums = FewSums { first, count, sums };
            Record::Sums { chunk, sums }
        })
    }
}

impl FromIterator<u32> for BlockSums {
    fn from_iter<I: IntoIterator<Item = u32>>(sums: I) -> Self {
        Self(sums.into_iter().collect())
    }
}

impl Deref for BlockSums {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.0
    }
}

impl FewSums {
    /// The most that a record takes.
    pub const MOST: usize = 8;

    /// Takes a sum for each of these blocks from `next`; `None` when they are none, too many or cut short.
    pub fn read(blocks: Blocks, mut next: impl FnMut() -> Option<u32>) -> Option<Self> {
        let Blocks { first, count } = blocks;
        if count == 0 || usize::from(count) > Self::MOST {
            return None;
        }
        let mut sums = [0; Self::MOST];
        for sum in &mut sums[..usize::from(count)] {
            *sum = next()?;
        }
        Some(Self { first, count, sums })
    }

    /// Returns which blocks they are of.
    pub fn blocks(&self) -> Blocks {
        Blocks {
            first: self.first,
            count: self.count,
        }
    }

    /// Returns them in the order of their blocks.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.sums[..usize::from(self.count)].iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_hold_every_sum_of_its_block_once() {
        for count in [1, 7, 8, 9, 16, 255, 256] {
            let sums: BlockSums = (0..count).map(|number| number * 3).collect();
            let blocks = Blocks {
                first: 256 - count as u16,
                count: count as u16,
            };
            let found: Vec<(u16, u32)> = sums
                .records(5, blocks)
                .flat_map(|record| match record {
                    Record::Sums { chunk: 5, sums } => (sums.blocks().first..)
                        .zip(sums.iter().collect::<Vec<_>>())
                        .collect::<Vec<_>>(),
                    other => panic!("{other:?}"),
                })
                .collect();
            let expected: Vec<(u16, u32)> = (0..count)
                .map(|number| (blocks.first + number as u16, number * 3))
                .collect();
            assert_eq!(found, expected);
        }
    }
}
