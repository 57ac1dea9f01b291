//! Chunks that are not filled yet: some of their blocks are their own, the rest is lent by another chunk or zeros.
//!
//! A first write of less than a chunk writes only its own blocks; a background step fills in the rest later. Being
//! partial is a property of the chunk, not of a version: snapshots and clones that share the chunk share it, and
//! nothing in their maps changes when the chunk has been filled.
//!
//! Part of the state, under its lock, and like the rest of it a function of the records applied.
//!
//! Invariants
//! - F1: a block outside a chunk's mask is never read from the chunk: it reads as the lender's block, or as zeros.
//! - F2: a lender is not partial itself, and nothing is written to it while it lends.
//! - F3: a lender is not freed while it lends. A record that would free it makes it an orphan, which no version
//!   owns; the record that ends its last loan frees it.
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

/// A chunk to be freed, and who may be using it still.
#[derive(Debug)]
pub(crate) struct Freed {
    pub chunk: u64,
    pub users: Option<Users>,
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
        let lender = partial.lender.and_then(|lender| self.lenders.get(&lender));
        let lender_users = lender.map(|lender| Arc::clone(&lender.users));
        Some(PartialView {
            mask: partial.mask,
            lender: partial.lender,
            checksums: partial.checksums,
            users: [Arc::clone(&partial.users)]
                .into_iter()
                .chain(lender_users)
                .collect(),
        })
    }

    /// Returns some of the partial chunks: in order from `chunk` on, and then from the first.
    pub fn some_from(&self, chunk: u64, limit: usize) -> Vec<u64> {
        let behind = self.chunks.range(chunk..);
        let before = self.chunks.range(..chunk);
        behind
            .chain(before)
            .map(|(chunk, _)| *chunk)
            .take(limit)
            .collect()
    }

    /// A chunk begins with these blocks of its own and borrows the rest.
    ///
    /// # Errors
    /// When the lender is partial itself (F2), or the chunk is partial already.
    pub fn begin(
        &mut self,
        chunk: u64,
        blocks: Blocks,
        lender: Option<u64>,
        checksums: Checksums,
    ) -> Result<(), String> {
        let mut mask = BlockMask::default();
        mask.set(blocks);
        self.insert(chunk, mask, lender, checksums)
    }

    fn insert(
        &mut self,
        chunk: u64,
        mask: BlockMask,
        lender: Option<u64>,
        checksums: Checksums,
    ) -> Result<(), String> {
        if let Some(lender) = lender {
            if self.contains(lender) || lender == chunk {
                return Err(format!(
                    "chunk {chunk} borrows from chunk {lender}, which is not whole"
                ));
            }
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

    /// More blocks of a partial chunk are its own now. When all are, it is whole, and an orphaned lender may have to
    /// be freed (F3).
    ///
    /// # Errors
    /// When the chunk is not partial.
    pub fn add(&mut self, chunk: u64, blocks: Blocks, block_count: u64) -> Result<Option<Freed>, String> {
        let partial = self.chunks.get_mut(&chunk);
        let partial = partial.ok_or_else(|| format!("fills chunk {chunk}, which is not partial"))?;
        partial.mask.set(blocks);
        if u64::from(partial.mask.count()) < block_count {
            return Ok(None);
        }
        let lender = partial.lender;
        self.chunks.remove(&chunk);
        Ok(lender.and_then(|lender| self.end_loan(lender)))
    }

    fn end_loan(&mut self, chunk: u64) -> Option<Freed> {
        let lender = self.lenders.get_mut(&chunk)?;
        lender.loans -= 1;
        if lender.loans > 0 {
            return None;
        }
        if lender.orphan {
            let users = self.lenders.remove(&chunk).map(|lender| lender.users);
            return Some(Freed { chunk, users });
        }
        if Arc::get_mut(&mut lender.users).is_some() {
            self.lenders.remove(&chunk);
        }
        None
    }

    /// A chunk loses its owner. Returns what is to be freed: nothing while it lends (F3).
    ///
    /// # Errors
    /// When it has lost its owner before.
    pub fn release(&mut self, chunk: u64) -> Result<SmallVec<[Freed; 2]>, String> {
        if let Some(lender) = self.lenders.get_mut(&chunk)
            && lender.loans > 0
        {
            return match std::mem::replace(&mut lender.orphan, true) {
                false => Ok(SmallVec::new()),
                true => Err(format!("frees chunk {chunk}, which no version owns")),
            };
        }
        let lent = self.lenders.remove(&chunk).map(|lender| lender.users);
        let partial = self.chunks.remove(&chunk);
        let borrowed_from = partial.as_ref().and_then(|partial| partial.lender);
        let users = partial.map(|partial| partial.users).or(lent);
        let mut freed = SmallVec::from_iter([Freed { chunk, users }]);
        freed.extend(borrowed_from.and_then(|lender| self.end_loan(lender)));
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
        match partials
            .chunks
            .keys()
            .find(|chunk| partials.lenders.contains_key(chunk))
        {
            Some(chunk) => Err(format!("chunk {chunk} lends and is not whole")),
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
