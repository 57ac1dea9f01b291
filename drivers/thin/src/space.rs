//! Hands out chunks and takes them back.
//!
//! Part of the state, under its lock. Two bitmaps: `data` says which chunks hold data according to the records
//! applied so far, it is what a checkpoint stores; `busy` says which may not be handed out.
//!
//! Invariants
//! - A1: every chunk in `data` is in `busy`; so are chunks of map pages, held ones among them, chunks being filled, and the quarantine.
//! - A2: a chunk freed by a record of batch *n* stays in quarantine, neither handed out nor discarded on the
//!   medium, until batch *n* is durable. That no I/O uses it any more is what the latches see to (L1), and its
//!   users where no latch does (F4).
//!
//! Failure: nothing here does I/O; the only error is having no free chunk.
//! Format: docs/formats/pool.md, "Chunk bitmap".

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::format::{BITS_PER_BLOCK, BLOCK_BYTES};
use crate::partial::Freed;

const WORDS_PER_BLOCK: usize = BLOCK_BYTES / 8;
/// One count of free chunks covers this many words.
const WORDS_PER_GROUP: usize = 64;

/// A chunk freed by a batch that is not durable yet.
#[derive(Debug)]
struct Quarantined {
    batch: u64,
    freed: Freed,
}

/// The chunks of a pool.
#[derive(Debug)]
pub(crate) struct Space {
    chunk_count: u64,
    data: Vec<u64>,
    dirty_blocks: BTreeSet<u64>,
    busy: Vec<u64>,
    /// Free chunks in each group of words of `busy`.
    group_free: Vec<u32>,
    free: u64,
    data_chunks: u64,
    cursor: u64,
    quarantine: VecDeque<Quarantined>,
    /// Freed durably, but still in use (F4).
    in_use: Vec<Freed>,
    /// Out of quarantine, not yet discarded on the medium; still in `busy`.
    to_discard: Vec<u64>,
    /// Chunks of map pages that are in use no more and are held ([`page_space`](crate::page_space), P2); still in `busy`.
    held: Vec<u64>,
}

/// From which end a chunk is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SearchFrom {
    /// Behind the last one handed out, so that sequential writes lie in sequence.
    Cursor,
    /// The first free one.
    Front,
    /// The last free one.
    Back,
}

impl Space {
    /// All chunks free.
    pub fn new(chunk_count: u64) -> Self {
        let words = chunk_count.div_ceil(64) as usize;
        let mut space = Self {
            chunk_count,
            data: vec![0; words],
            dirty_blocks: BTreeSet::new(),
            busy: vec![0; words],
            group_free: vec![0; words.div_ceil(WORDS_PER_GROUP)],
            free: chunk_count,
            data_chunks: 0,
            cursor: 0,
            quarantine: VecDeque::new(),
            in_use: Vec::new(),
            to_discard: Vec::new(),
            held: Vec::new(),
        };
        if !chunk_count.is_multiple_of(64) {
            // Bits behind the last chunk are busy for ever.
            space.busy[words - 1] = u64::MAX << (chunk_count % 64);
        }
        space.recount();
        space
    }

    /// Adds chunks, all of them free, so that there are `chunk_count`.
    pub fn grow(&mut self, chunk_count: u64) {
        debug_assert!(chunk_count >= self.chunk_count);
        if !self.chunk_count.is_multiple_of(64) {
            // Those behind the last chunk were busy.
            let last = self.busy.len() - 1;
            self.busy[last] &= !(u64::MAX << (self.chunk_count % 64));
        }
        let words = chunk_count.div_ceil(64) as usize;
        self.data.resize(words, 0);
        self.busy.resize(words, 0);
        if !chunk_count.is_multiple_of(64) {
            self.busy[words - 1] |= u64::MAX << (chunk_count % 64);
        }
        self.chunk_count = chunk_count;
        self.recount();
    }

    fn recount(&mut self) {
        let groups = self.busy.chunks(WORDS_PER_GROUP);
        self.group_free = groups
            .map(|words| words.iter().map(|word| word.count_zeros()).sum())
            .collect();
        self.free = self.group_free.iter().map(|free| u64::from(*free)).sum();
    }

    /// Loads one block of the data bitmap; call [`finish_loading`](Self::finish_loading) after the last.
    /// Returns false when a bit behind the last chunk is set.
    pub fn load_block(&mut self, block: u64, bytes: &[u8; BLOCK_BYTES]) -> bool {
        let first = block as usize * WORDS_PER_BLOCK;
        for (i, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
            let word = u64::from_le_bytes(*word);
            match self.data.get_mut(first + i) {
                Some(slot) => *slot = word,
                None if word != 0 => return false,
                None => {}
            }
        }
        true
    }

    /// Marks a chunk found in a map while loading; false when it is marked already or does not exist.
    pub fn load_chunk(&mut self, chunk: u64) -> bool {
        if chunk >= self.chunk_count || self.is_data(chunk) {
            return false;
        }
        self.data[(chunk / 64) as usize] |= 1 << (chunk % 64);
        true
    }

    /// Takes over the loaded data bitmap; false when a bit behind the last chunk is set.
    pub fn finish_loading(&mut self) -> bool {
        if self
            .data
            .iter()
            .zip(&self.busy)
            .any(|(data, tail)| data & tail != 0)
        {
            return false;
        }
        for (busy, data) in self.busy.iter_mut().zip(&self.data) {
            *busy |= data;
        }
        self.data_chunks = self.data.iter().map(|word| u64::from(word.count_ones())).sum();
        self.recount();
        true
    }

    /// Returns how many chunks can be handed out.
    pub fn free(&self) -> u64 {
        self.free
    }

    /// Returns how many chunks hold data.
    pub fn data_chunks(&self) -> u64 {
        self.data_chunks
    }

    /// Returns how many freed chunks are not free yet.
    pub fn quarantined(&self) -> u64 {
        (self.quarantine.len() + self.in_use.len()) as u64
    }

    /// Tells whether freed chunks wait for their batch to become durable.
    pub fn awaits_commit(&self) -> bool {
        !self.quarantine.is_empty()
    }

    /// Returns how many chunks are free as soon as somebody needs them: they wait for being discarded on the medium, or are held.
    pub fn as_good_as_free(&self) -> u64 {
        (self.to_discard.len() + self.held.len()) as u64
    }

    /// Returns how many chunks are held.
    pub fn held(&self) -> u64 {
        self.held.len() as u64
    }

    /// Tells whether a chunk holds data.
    pub fn is_data(&self, chunk: u64) -> bool {
        bit(&self.data, chunk)
    }

    /// Returns which chunks hold data: chunk *n* is bit *n* mod 64 of word *n* / 64.
    pub fn data(&self) -> &[u64] {
        &self.data
    }

    /// Tells whether a chunk is anything but free.
    pub fn is_busy(&self, chunk: u64) -> bool {
        bit(&self.busy, chunk)
    }

    /// Hands out a free chunk.
    pub fn take(&mut self, from: SearchFrom) -> Option<u64> {
        if self.free == 0 {
            self.abandon_discards();
        }
        let chunk = match from {
            SearchFrom::Cursor => self
                .first_free_from(self.cursor)
                .or_else(|| self.first_free_from(0))?,
            SearchFrom::Front => self.first_free_from(0)?,
            SearchFrom::Back => self.last_free()?,
        };
        if from == SearchFrom::Cursor {
            self.cursor = chunk + 1;
        }
        self.set_busy(chunk);
        Some(chunk)
    }

    /// Hands out the first free chunk from `start` on.
    pub fn take_from(&mut self, start: u64) -> Option<u64> {
        let chunk = self.first_free_from(start)?;
        self.set_busy(chunk);
        Some(chunk)
    }

    fn first_free_from(&self, start: u64) -> Option<u64> {
        let mut word = (start / 64) as usize;
        if word >= self.busy.len() {
            return None;
        }
        let masked = !self.busy[word] & (u64::MAX << (start % 64));
        if masked != 0 {
            return Some(word as u64 * 64 + u64::from(masked.trailing_zeros()));
        }
        word += 1;
        while word < self.busy.len() {
            if word.is_multiple_of(WORDS_PER_GROUP) && self.group_free[word / WORDS_PER_GROUP] == 0 {
                word += WORDS_PER_GROUP;
                continue;
            }
            if self.busy[word] != u64::MAX {
                return Some(word as u64 * 64 + u64::from((!self.busy[word]).trailing_zeros()));
            }
            word += 1;
        }
        None
    }

    fn last_free(&self) -> Option<u64> {
        let group = self.group_free.iter().rposition(|free| *free > 0)?;
        let end = ((group + 1) * WORDS_PER_GROUP).min(self.busy.len());
        let word = (group * WORDS_PER_GROUP..end).rfind(|word| self.busy[*word] != u64::MAX)?;
        Some(word as u64 * 64 + 63 - u64::from((!self.busy[word]).leading_zeros()))
    }

    fn set_busy(&mut self, chunk: u64) {
        debug_assert!(!self.is_busy(chunk));
        self.busy[(chunk / 64) as usize] |= 1 << (chunk % 64);
        self.group_free[chunk as usize / (64 * WORDS_PER_GROUP)] -= 1;
        self.free -= 1;
    }

    fn clear_busy(&mut self, chunk: u64) {
        debug_assert!(self.is_busy(chunk) && !self.is_data(chunk), "A1");
        self.busy[(chunk / 64) as usize] &= !(1 << (chunk % 64));
        self.group_free[chunk as usize / (64 * WORDS_PER_GROUP)] += 1;
        self.free += 1;
    }

    /// Takes back a chunk that was handed out and that no record names.
    pub fn give_back(&mut self, chunk: u64) {
        self.clear_busy(chunk);
    }

    /// Marks a chunk of map pages found at open. False when it is taken or does not exist.
    pub fn claim(&mut self, chunk: u64) -> bool {
        if chunk >= self.chunk_count || self.is_busy(chunk) {
            return false;
        }
        self.set_busy(chunk);
        true
    }

    /// A record maps to the chunk: live it has been handed out, in recovery it is free. False when it holds
    /// data already, is not a chunk, or in recovery is used otherwise.
    pub fn record_mapped(&mut self, chunk: u64, replay: bool) -> bool {
        if chunk >= self.chunk_count || self.is_data(chunk) || self.is_busy(chunk) == replay {
            return false;
        }
        if replay {
            self.set_busy(chunk);
        }
        self.data[(chunk / 64) as usize] |= 1 << (chunk % 64);
        self.data_chunks += 1;
        self.dirty_blocks.insert(chunk / BITS_PER_BLOCK);
        true
    }

    /// A record of batch `batch` frees the chunk: it goes into quarantine (A2). False when it holds no data.
    pub fn record_freed(&mut self, freed: Freed, batch: u64) -> bool {
        let chunk = freed.chunk;
        if chunk >= self.chunk_count || !self.is_data(chunk) {
            return false;
        }
        self.data[(chunk / 64) as usize] &= !(1 << (chunk % 64));
        self.data_chunks -= 1;
        self.dirty_blocks.insert(chunk / BITS_PER_BLOCK);
        debug_assert!(self.quarantine.back().is_none_or(|last| last.batch <= batch));
        self.quarantine.push_back(Quarantined { batch, freed });
        true
    }

    /// Ends the quarantine of what batches up to `durable` freed (A2).
    pub fn release(&mut self, durable: u64, discard: bool) {
        let mut ended = std::mem::take(&mut self.in_use);
        while let Some(entry) = self.quarantine.pop_front_if(|entry| entry.batch <= durable) {
            ended.push(entry.freed);
        }
        for mut freed in ended {
            match freed.users.iter_mut().all(|users| Arc::get_mut(users).is_some()) {
                false => self.in_use.push(freed),
                true => self.free_now(freed.chunk, discard),
            }
        }
    }

    /// Takes back a chunk that no durable structure names.
    pub fn free_now(&mut self, chunk: u64, discard: bool) {
        if discard {
            self.to_discard.push(chunk);
        } else {
            self.clear_busy(chunk);
        }
    }

    /// Hands out up to `limit` chunks to be discarded on the medium, ordered; give them back with
    /// [`give_back`](Self::give_back).
    pub fn take_discards(&mut self, limit: usize) -> Vec<u64> {
        let rest = self.to_discard.len().saturating_sub(limit);
        let mut chunks = self.to_discard.split_off(rest);
        chunks.sort_unstable();
        chunks
    }

    /// Frees what waits for a discard without it: space is needed more.
    pub fn abandon_discards(&mut self) {
        for chunk in std::mem::take(&mut self.to_discard) {
            self.clear_busy(chunk);
        }
    }

    /// Keeps a chunk that no durable structure names from being handed out.
    pub fn hold(&mut self, chunk: u64) {
        debug_assert!(self.is_busy(chunk) && !self.is_data(chunk), "A1");
        self.held.push(chunk);
    }

    /// Takes back what is held.
    pub fn let_go_of_held(&mut self, discard: bool) {
        for chunk in std::mem::take(&mut self.held) {
            self.free_now(chunk, discard);
        }
    }

    /// Copies the bitmap blocks that changed since the last call.
    pub fn take_dirty_blocks(&mut self) -> Vec<(u64, Box<[u8; BLOCK_BYTES]>)> {
        let blocks = std::mem::take(&mut self.dirty_blocks);
        blocks
            .into_iter()
            .map(|block| (block, self.encode_block(block)))
            .collect()
    }

    fn encode_block(&self, block: u64) -> Box<[u8; BLOCK_BYTES]> {
        let mut bytes = Box::new([0; BLOCK_BYTES]);
        let words = self.data.iter().skip(block as usize * WORDS_PER_BLOCK);
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Tells whether a bitmap block has changed since the last checkpoint.
    pub fn is_dirty(&self) -> bool {
        !self.dirty_blocks.is_empty()
    }

    /// Marks all bitmap blocks changed, so that the next checkpoint writes them.
    pub fn dirty_everything(&mut self) {
        self.dirty_blocks = (0..self.chunk_count.div_ceil(BITS_PER_BLOCK)).collect();
    }

    /// Makes the next checkpoint write a block of the bitmap.
    pub fn dirty_block(&mut self, block: u64) {
        self.dirty_blocks.insert(block);
    }
}

fn bit(words: &[u64], chunk: u64) -> bool {
    words
        .get((chunk / 64) as usize)
        .is_some_and(|word| word >> (chunk % 64) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use smallvec::SmallVec;

    use super::*;

    #[test]
    fn chunks_come_in_sequence_and_each_once() {
        let mut space = Space::new(10_000);
        let taken: Vec<u64> = std::iter::from_fn(|| space.take(SearchFrom::Cursor)).collect();
        assert_eq!(taken, (0..10_000).collect::<Vec<_>>());
        assert_eq!(space.free(), 0);
        for chunk in [9_999, 5_000, 63, 64] {
            space.give_back(chunk);
        }
        assert_eq!(space.take(SearchFrom::Back), Some(9_999));
        assert_eq!(space.take(SearchFrom::Front), Some(63));
        assert_eq!(space.take(SearchFrom::Cursor), Some(64));
        assert_eq!(space.take(SearchFrom::Cursor), Some(5_000));
        assert_eq!(space.take(SearchFrom::Cursor), None);
    }

    #[test]
    fn a_grown_space_has_what_it_had_and_the_new_chunks_free() {
        for (before, after) in [
            (1, 2),
            (64, 65),
            (100, 128),
            (100, 130),
            (128, 8192),
            (5000, 70_000),
        ] {
            let mut space = Space::new(before);
            let taken: Vec<u64> = std::iter::from_fn(|| space.take(SearchFrom::Cursor)).collect();
            assert_eq!(taken.len() as u64, before);
            assert!(space.record_mapped(before - 1, false));
            space.grow(after);
            assert_eq!(space.free(), after - before);
            assert!(space.is_data(before - 1) && space.is_busy(0) && !space.is_busy(before));
            let new: Vec<u64> = std::iter::from_fn(|| space.take(SearchFrom::Cursor)).collect();
            assert_eq!(new, (before..after).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a2_a_freed_chunk_is_not_handed_out_before_its_batch_is_durable() {
        for discard in [false, true] {
            let mut space = Space::new(1);
            let chunk = space.take(SearchFrom::Cursor).unwrap();
            assert!(space.record_mapped(chunk, false));
            assert!(!space.record_mapped(chunk, false), "a chunk holds data once");
            let freed = || Freed {
                chunk,
                users: SmallVec::new(),
            };
            assert!(space.record_freed(freed(), 7));
            assert!(!space.record_freed(freed(), 7));
            space.release(6, discard);
            assert_eq!(space.take(SearchFrom::Cursor), None);
            assert!(space.take_discards(10).is_empty());
            space.release(7, discard);
            assert_eq!(space.take(SearchFrom::Cursor), Some(chunk));
        }
    }

    #[test]
    fn f4_a_freed_chunk_is_not_handed_out_before_its_users_are_done() {
        let mut space = Space::new(1);
        let chunk = space.take(SearchFrom::Cursor).unwrap();
        assert!(space.record_mapped(chunk, false));
        let reader = Arc::new(());
        let users = SmallVec::from_iter([Arc::default(), Arc::clone(&reader)]);
        assert!(space.record_freed(Freed { chunk, users }, 7));
        space.release(7, false);
        assert_eq!((space.take(SearchFrom::Cursor), space.quarantined()), (None, 1));
        assert!(!space.awaits_commit());
        drop(reader);
        space.release(7, false);
        assert_eq!(space.take(SearchFrom::Cursor), Some(chunk));
    }

    #[test]
    fn bitmap_blocks_round_trip_and_stray_bits_are_refused() {
        let mut space = Space::new(40_000);
        for _ in 0..39_999 {
            let chunk = space.take(SearchFrom::Cursor).unwrap();
            assert!(space.record_mapped(chunk, false));
        }
        let blocks = space.take_dirty_blocks();
        assert_eq!(blocks.len(), 2);
        assert!(space.take_dirty_blocks().is_empty());
        let mut loaded = Space::new(40_000);
        for (block, bytes) in &blocks {
            assert!(loaded.load_block(*block, bytes));
        }
        assert!(loaded.finish_loading());
        assert_eq!((loaded.free(), loaded.data_chunks()), (1, 39_999));
        assert_eq!(loaded.take(SearchFrom::Cursor), Some(39_999));
        let mut stray = blocks[1].1.clone();
        stray[(40_000 - 32_768) / 8 + 4] |= 1;
        let mut loaded = Space::new(40_000);
        assert!(loaded.load_block(0, &blocks[0].1));
        assert!(!loaded.load_block(1, &stray) || !loaded.finish_loading());
    }
}
