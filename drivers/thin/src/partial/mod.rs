//! Chunks that are not filled yet: some of their blocks are their own, the rest is lent by another chunk or zeros.
//!
//! A first write of less than a chunk writes only its own blocks; a background step fills in the rest later. Being
//! partial is a property of the chunk, not of a version: snapshots and clones that share the chunk share it, and
//! nothing in their maps changes when the chunk has been filled.
//!
//! Part of the state, under its lock, and like the rest of it a function of the records applied.
//!
//! Invariants
//! - F1: a block outside a chunk's mask is never read from the chunk: it reads as the lender's block, or as zeros. Where the
//!   lender is partial itself, its block is found in the same way.
//! - F2: while a chunk lends, nothing is written to it but what it borrows itself. No more than [`MOST_LENDERS`] lie below a
//!   chunk, and it is not one of them.
//! - F3: a lender is not freed while it lends. A record that would free it makes it an orphan, which no version
//!   owns; the record that ends its last loan frees it, and ends its own loan with that.
//! - F4: what is freed is not handed out again while a read from a lender, or the filling of a chunk, that began
//!   before is in progress: each holds the `users` of what it uses.
//! - F5: blocks outside the mask are written only by who holds them, or the whole chunk, of the [`FillLatches`], until the
//!   record that adds them to the mask has been applied.
//!
//! Format: docs/formats/pool.md, "Partial chunks".

mod blocks;
mod fill_latches;

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::sums::Checksums;

pub(crate) use blocks::{BlockMask, Blocks, Home, MASK_BLOCKS, PartialView};
pub(crate) use fill_latches::{FillLatches, WholeChunk};

/// Held by whoever uses a chunk in a way that no latch covers (F4).
pub(crate) type Users = Arc<()>;

/// The most chunks that what a chunk holds may come from, besides itself: each has to be asked for what the ones above it do not
/// hold.
pub(crate) const MOST_LENDERS: usize = 8;

/// The chunks of a pool that are partial, and those that lend to them.
#[derive(Debug, Default)]
pub(crate) struct PartialChunks {
    chunks: BTreeMap<u64, Partial>,
    lenders: BTreeMap<u64, Lender>,
}

#[derive(Debug)]
struct Partial {
    mask: BlockMask,
    lender: Option<u64>,
    checksums: Checksums,
    users: Users,
}

#[derive(Debug, Default)]
struct Lender {
    /// Chunks that borrow from it; may be 0 while a read is in progress (F4).
    loans: u32,
    orphan: bool,
    users: Users,
}

/// A chunk to be freed, and who may be using it still: as a partial chunk, and as a lender.
#[derive(Debug)]
pub(crate) struct Freed {
    pub chunk: u64,
    pub users: SmallVec<[Users; 2]>,
}

impl PartialChunks {
    /// Tells how many chunks are partial.
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Tells whether a chunk is partial.
    pub fn contains(&self, chunk: u64) -> bool {
        self.chunks.contains_key(&chunk)
    }

    /// Tells whether any of these blocks of a chunk is its own: of a chunk that is whole all are.
    pub fn holds_any(&self, chunk: u64, blocks: Blocks) -> bool {
        let partial = self.chunks.get(&chunk);
        partial.is_none_or(|partial| partial.mask.touches(blocks))
    }

    /// Returns who lends to a chunk that takes the place of this one and of all blocks that this one holds: what lends to
    /// this one, or if it is whole, it does.
    pub fn lender_behind(&self, chunk: u64) -> Option<u64> {
        match self.chunks.get(&chunk) {
            Some(partial) => partial.lender,
            None => Some(chunk),
        }
    }

    /// Returns what a partial chunk consists of now; `None` for a chunk that is whole.
    pub fn view(&self, chunk: u64) -> Option<PartialView> {
        let partial = self.chunks.get(&chunk)?;
        let mut users = SmallVec::from_iter([Arc::clone(&partial.users)]);
        let mut lenders = SmallVec::new();
        for lender in self.below(chunk) {
            let mask = self.chunks.get(&lender).map(|partial| partial.mask);
            lenders.push((lender, mask));
            users.extend(self.lenders.get(&lender).map(|lender| Arc::clone(&lender.users)));
        }
        Some(PartialView {
            mask: partial.mask,
            lenders,
            checksums: partial.checksums,
            users,
        })
    }

    /// Returns what lies below a chunk: its lender, the lender of that, and so on.
    fn below(&self, chunk: u64) -> impl Iterator<Item = u64> + '_ {
        let lender_of = |chunk: &u64| self.chunks.get(chunk).and_then(|partial| partial.lender);
        std::iter::successors(lender_of(&chunk), lender_of)
    }

    /// Tells whether a new chunk may borrow from this one (F2).
    pub fn may_lend(&self, chunk: u64) -> bool {
        self.below(chunk).take(MOST_LENDERS).count() < MOST_LENDERS
    }

    /// Returns some of the partial chunks that versions own: in order from `chunk` on, and then from the first. Orphans go
    /// when those that borrow from them are whole.
    pub fn some_from(&self, chunk: u64, limit: usize) -> Vec<u64> {
        let behind = self.chunks.range(chunk..);
        let before = self.chunks.range(..chunk);
        let is_orphan = |chunk: &u64| self.lenders.get(chunk).is_some_and(|lender| lender.orphan);
        behind
            .chain(before)
            .map(|(chunk, _)| *chunk)
            .filter(|chunk| !is_orphan(chunk))
            .take(limit)
            .collect()
    }

    /// A chunk begins with these blocks of its own and borrows the rest.
    ///
    /// # Errors
    /// When the lender may not lend (F2), or the chunk is partial already or lends itself.
    pub fn begin(
        &mut self,
        chunk: u64,
        blocks: Blocks,
        lender: Option<u64>,
        checksums: Checksums,
    ) -> Result<(), String> {
        let mut mask = BlockMask::default();
        mask.set(blocks);
        if self.lends(chunk) {
            return Err(format!("chunk {chunk} lends before it is anything"));
        }
        if lender.is_some_and(|lender| lender == chunk || !self.may_lend(lender)) {
            return Err(format!(
                "chunk {chunk} borrows from chunk {lender:?}, which may not lend"
            ));
        }
        self.insert(chunk, mask, lender, checksums)
    }

    /// Tells whether another chunk borrows from this one.
    fn lends(&self, chunk: u64) -> bool {
        self.lenders.get(&chunk).is_some_and(|lender| lender.loans > 0)
    }

    fn insert(
        &mut self,
        chunk: u64,
        mask: BlockMask,
        lender: Option<u64>,
        checksums: Checksums,
    ) -> Result<(), String> {
        if let Some(lender) = lender {
            self.lenders.entry(lender).or_default().loans += 1;
        }
        let partial = Partial {
            mask,
            lender,
            checksums,
            users: Users::default(),
        };
        match self.chunks.insert(chunk, partial) {
            None => Ok(()),
            Some(_) => Err(format!("chunk {chunk} is partial already")),
        }
    }

    /// More blocks of a partial chunk are its own now. When all are, it is whole, and orphaned lenders may have to be freed
    /// (F3).
    ///
    /// # Errors
    /// When the chunk is not partial.
    pub fn add(
        &mut self,
        chunk: u64,
        blocks: Blocks,
        block_count: u64,
    ) -> Result<SmallVec<[Freed; 2]>, String> {
        let mut freed = SmallVec::new();
        let partial = self.chunks.get_mut(&chunk);
        let partial = partial.ok_or_else(|| format!("fills chunk {chunk}, which is not partial"))?;
        partial.mask.set(blocks);
        if u64::from(partial.mask.count()) < block_count {
            return Ok(freed);
        }
        let lender = partial.lender;
        self.chunks.remove(&chunk);
        if let Some(lender) = lender {
            self.end_loan(lender, &mut freed);
        }
        Ok(freed)
    }

    fn end_loan(&mut self, chunk: u64, freed: &mut SmallVec<[Freed; 2]>) {
        let Some(lender) = self.lenders.get_mut(&chunk) else {
            return;
        };
        lender.loans -= 1;
        if lender.loans > 0 {
            return;
        }
        if lender.orphan {
            self.free(chunk, freed);
        } else if Arc::get_mut(&mut lender.users).is_some() {
            self.lenders.remove(&chunk);
        }
    }

    /// Forgets a chunk that nobody owns or borrows from, and what it has borrowed.
    fn free(&mut self, chunk: u64, freed: &mut SmallVec<[Freed; 2]>) {
        let lent = self.lenders.remove(&chunk).map(|lender| lender.users);
        let partial = self.chunks.remove(&chunk);
        let lender = partial.as_ref().and_then(|partial| partial.lender);
        let users = partial.map(|partial| partial.users).into_iter().chain(lent);
        freed.push(Freed {
            chunk,
            users: users.collect(),
        });
        if let Some(lender) = lender {
            self.end_loan(lender, freed);
        }
    }

    /// A chunk loses its owner. Returns what is to be freed: nothing while it lends (F3).
    ///
    /// # Errors
    /// When it has lost its owner before.
    pub fn release(&mut self, chunk: u64) -> Result<SmallVec<[Freed; 2]>, String> {
        let mut freed = SmallVec::new();
        if let Some(lender) = self.lenders.get_mut(&chunk)
            && lender.loans > 0
        {
            return match std::mem::replace(&mut lender.orphan, true) {
                false => Ok(freed),
                true => Err(format!("frees chunk {chunk}, which no version owns")),
            };
        }
        self.free(chunk, &mut freed);
        Ok(freed)
    }

    /// Forgets lenders that were kept only for reads that have ended since.
    pub fn forget_idle_lenders(&mut self) {
        if self.lenders.len() > self.chunks.len() {
            self.lenders
                .retain(|_, lender| lender.loans > 0 || Arc::get_mut(&mut lender.users).is_none());
        }
    }

    /// Returns each partial chunk, its lender and which blocks are its own, ordered by chunk.
    pub fn masks(&self) -> impl Iterator<Item = (u64, Option<u64>, &BlockMask)> + '_ {
        let chunks = self.chunks.iter();
        chunks.map(|(chunk, partial)| (*chunk, partial.lender, &partial.mask))
    }

    /// Returns each partial chunk and its lender.
    pub fn loans(&self) -> impl Iterator<Item = (u64, Option<u64>)> + '_ {
        self.chunks
            .iter()
            .map(|(chunk, partial)| (*chunk, partial.lender))
    }

    /// Returns the lenders that no version owns.
    pub fn orphans(&self) -> impl Iterator<Item = u64> + '_ {
        let orphans = self.lenders.iter().filter(|(_, lender)| lender.orphan);
        orphans.map(|(chunk, _)| *chunk)
    }

    /// Returns how many words [`encode`](Self::encode) gives at most, whatever is orphaned and with one more partial
    /// chunk.
    pub fn most_encoded_words(&self, mask_words: usize) -> usize {
        let lender_may_be_orphaned = 1;
        2 + (self.chunks.len() + 1) * (2 + mask_words + lender_may_be_orphaned)
    }

    /// Encodes everything for the index stream.
    pub fn encode(&self, mask_words: usize) -> Vec<u64> {
        let mut words = vec![self.chunks.len() as u64];
        for (chunk, partial) in &self.chunks {
            let flag = if partial.checksums.are_on() {
                CHECKSUMMED
            } else {
                0
            };
            words.extend([*chunk | flag, partial.lender.unwrap_or(NO_LENDER)]);
            words.extend(&partial.mask.0[..mask_words]);
        }
        words.push(self.orphans().count() as u64);
        words.extend(self.orphans());
        words
    }

    /// Decodes what [`encode`](Self::encode) encoded. `word` gives the next word.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(mask_words: usize, mut word: impl FnMut() -> Option<u64>) -> Result<Self, String> {
        let mut next = || word().ok_or_else(|| "cut short in the partial chunks".to_owned());
        let mut partials = Self::default();
        for _ in 0..next()? {
            let (chunk, lender) = (next()?, next()?);
            let mut mask = BlockMask::default();
            for word in &mut mask.0[..mask_words] {
                *word = next()?;
            }
            let lender = (lender != NO_LENDER).then_some(lender);
            let checksums = match chunk & CHECKSUMMED {
                0 => Checksums::Off,
                _ => Checksums::On,
            };
            partials.insert(chunk & !CHECKSUMMED, mask, lender, checksums)?;
        }
        for _ in 0..next()? {
            let orphan = next()?;
            match partials.lenders.get_mut(&orphan) {
                Some(lender) => lender.orphan = true,
                None => return Err(format!("orphan {orphan} lends to no chunk")),
            }
        }
        let too_deep = |chunk: &&u64| partials.below(**chunk).take(MOST_LENDERS + 1).count() > MOST_LENDERS;
        match partials.chunks.keys().find(too_deep) {
            Some(chunk) => Err(format!("chunk {chunk} has too many lenders")),
            None => Ok(partials),
        }
    }
}

/// Stands for no lender in the index stream.
const NO_LENDER: u64 = u64::MAX;
/// In the number of a partial chunk in the index stream: it belongs to checksummed versions.
const CHECKSUMMED: u64 = 1 << 63;

#[cfg(test)]
mod tests;
