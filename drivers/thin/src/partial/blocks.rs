//! Which blocks of a chunk are its own, and where the others are.

use std::ops::Range;

use smallvec::SmallVec;

use crate::format::BLOCK;
use crate::partial::Users;
use crate::sums::Checksums;

/// The most blocks that a chunk has.
pub(crate) const MASK_BLOCKS: usize = 256;

/// A bit for each block of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct BlockMask(pub [u64; MASK_BLOCKS / 64]);

/// Blocks of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub first: u16,
    pub count: u16,
}

/// A partial chunk as of one moment. While it is held, neither it nor what it borrows from is handed out again (F4).
#[derive(Debug, Clone)]
pub(crate) struct PartialView {
    pub mask: BlockMask,
    /// Whom to ask for what it does not hold, one after the other: each with the blocks that it holds, or `None` when it is
    /// whole.
    pub lenders: SmallVec<[(u64, Option<BlockMask>); 1]>,
    /// Whether it has checksums, and its lenders.
    pub checksums: Checksums,
    #[expect(dead_code, reason = "held, not read")]
    pub(super) users: SmallVec<[Users; 2]>,
}

/// Where a piece of a partial chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    /// In the chunk.
    Own,
    /// At the same place of this chunk.
    Lender(u64),
    /// Nowhere: it reads as zeros.
    Nowhere,
}

impl Blocks {
    /// The blocks that a range of bytes of a chunk touches.
    pub fn touching(within: &Range<u64>) -> Self {
        let first = within.start / BLOCK;
        Self {
            first: first as u16,
            count: (within.end.div_ceil(BLOCK) - first) as u16,
        }
    }

    /// All blocks of a chunk of `chunk_bytes`.
    pub fn all(chunk_bytes: u64) -> Self {
        Self::touching(&(0..chunk_bytes))
    }

    /// Returns the bytes within the chunk.
    pub fn bytes(&self) -> Range<u64> {
        u64::from(self.first) * BLOCK..(u64::from(self.first) + u64::from(self.count)) * BLOCK
    }

    fn indices(self) -> Range<usize> {
        usize::from(self.first)..usize::from(self.first) + usize::from(self.count)
    }
}

impl BlockMask {
    fn get(&self, block: usize) -> bool {
        self.0[block / 64] >> (block % 64) & 1 == 1
    }

    pub fn set(&mut self, blocks: Blocks) {
        for block in blocks.indices() {
            self.0[block / 64] |= 1 << (block % 64);
        }
    }

    /// Takes blocks out of the mask.
    pub fn clear(&mut self, blocks: Blocks) {
        for block in blocks.indices() {
            self.0[block / 64] &= !(1 << (block % 64));
        }
    }

    /// Tells whether all these blocks are in the mask.
    pub fn covers(&self, blocks: Blocks) -> bool {
        blocks.indices().all(|block| self.get(block))
    }

    /// Tells whether any of these blocks is in the mask.
    pub fn touches(&self, blocks: Blocks) -> bool {
        blocks.indices().any(|block| self.get(block))
    }

    /// Returns the blocks in the mask, as runs.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let first = (from..MASK_BLOCKS).find(|block| self.get(*block))?;
            let end = (first..MASK_BLOCKS).find(|block| !self.get(*block));
            from = end.unwrap_or(MASK_BLOCKS);
            Some(first as u64..from as u64)
        })
    }

    /// Tells whether there is no block in the mask but these.
    pub fn is_within(&self, blocks: Blocks) -> bool {
        let mut others = *self;
        others.clear(blocks);
        others == BlockMask::default()
    }

    /// Returns how many blocks are in the mask.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }
}

impl PartialView {
    /// Cuts a range of bytes of the chunk into pieces with one home each (F1).
    pub fn pieces(&self, within: Range<u64>) -> impl Iterator<Item = (Range<u64>, Home)> + '_ {
        let mut from = within.start;
        std::iter::from_fn(move || {
            if from >= within.end {
                return None;
            }
            let home = self.home((from / BLOCK) as usize);
            let mut upto = from / BLOCK * BLOCK + BLOCK;
            while upto < within.end && self.home((upto / BLOCK) as usize) == home {
                upto += BLOCK;
            }
            let piece = from..upto.min(within.end);
            from = piece.end;
            Some((piece, home))
        })
    }

    fn home(&self, block: usize) -> Home {
        let holds = |mask: &Option<BlockMask>| mask.is_none_or(|mask| mask.get(block));
        if self.mask.get(block) {
            return Home::Own;
        }
        let lender = self.lenders.iter().find(|(_, mask)| holds(mask));
        lender.map_or(Home::Nowhere, |(lender, _)| Home::Lender(*lender))
    }
}
