//! Keeps those apart who fill the same blocks of a partial chunk (F5).

use std::collections::HashMap;
use std::sync::{Condvar, Mutex};

use super::{BlockMask, Blocks};
use crate::locks::lock;

/// Chunks are spread over so many tables.
const TABLES: usize = 64;

/// Latches of chunks that are being filled: of single blocks of them, or of all.
pub(crate) struct FillLatches(Box<[Table]>);

#[derive(Default)]
struct Table {
    /// Only chunks of which something is held or waited for.
    chunks: Mutex<HashMap<u64, Holders>>,
    freed: Condvar,
}

#[derive(Default)]
struct Holders {
    /// Held one by one.
    blocks: BlockMask,
    /// All are held by one.
    whole: bool,
    waiting: u32,
}

/// A whole chunk, held until this is dropped.
pub(crate) struct WholeChunk<'a> {
    table: &'a Table,
    chunk: u64,
}

impl FillLatches {
    pub fn new() -> Self {
        Self((0..TABLES).map(|_| Table::default()).collect())
    }

    fn table(&self, chunk: u64) -> &Table {
        &self.0[(chunk % TABLES as u64) as usize]
    }

    /// Waits for all blocks of a chunk. The caller holds nothing else of these.
    pub fn whole(&self, chunk: u64) -> WholeChunk<'_> {
        let table = self.table(chunk);
        let mut chunks = lock(&table.chunks);
        chunks.entry(chunk).or_default().waiting += 1;
        loop {
            let holders = chunks.entry(chunk).or_default();
            if !holders.whole && holders.blocks == BlockMask::default() {
                holders.waiting -= 1;
                holders.whole = true;
                return WholeChunk { table, chunk };
            }
            chunks = table
                .freed
                .wait(chunks)
                .expect("no thread panicked while it held a table");
        }
    }

    /// Takes all blocks of a chunk unless that needs waiting.
    pub fn try_whole(&self, chunk: u64) -> Option<WholeChunk<'_>> {
        let table = self.table(chunk);
        let mut chunks = lock(&table.chunks);
        let holders = chunks.entry(chunk).or_default();
        if holders.whole || holders.waiting > 0 || holders.blocks != BlockMask::default() {
            return None;
        }
        holders.whole = true;
        Some(WholeChunk { table, chunk })
    }

    /// Takes blocks of a chunk unless that needs waiting. Give them back with [`release`](Self::release).
    pub fn try_blocks(&self, chunk: u64, blocks: Blocks) -> bool {
        let mut chunks = lock(&self.table(chunk).chunks);
        let holders = chunks.entry(chunk).or_default();
        if holders.whole || holders.waiting > 0 || holders.blocks.touches(blocks) {
            return false;
        }
        holders.blocks.set(blocks);
        true
    }

    /// Gives back what [`try_blocks`](Self::try_blocks) took.
    pub fn release(&self, chunk: u64, blocks: Blocks) {
        self.table(chunk)
            .release(chunk, |holders| holders.blocks.clear(blocks));
    }
}

impl Table {
    fn release(&self, chunk: u64, give_back: impl FnOnce(&mut Holders)) {
        let mut chunks = lock(&self.chunks);
        let Some(holders) = chunks.get_mut(&chunk) else {
            debug_assert!(false, "what is given back was held");
            return;
        };
        give_back(holders);
        if holders.waiting > 0 {
            self.freed.notify_all();
        } else if !holders.whole && holders.blocks == BlockMask::default() {
            chunks.remove(&chunk);
        }
    }
}

impl Drop for WholeChunk<'_> {
    fn drop(&mut self) {
        self.table.release(self.chunk, |holders| holders.whole = false);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const fn blocks(first: u16, count: u16) -> Blocks {
        Blocks { first, count }
    }

    #[test]
    fn f5_blocks_are_held_by_one_and_a_whole_chunk_by_nobody_else() {
        let latches = FillLatches::new();
        assert!(latches.try_blocks(7, blocks(0, 2)) && latches.try_blocks(7, blocks(2, 1)));
        assert!(!latches.try_blocks(7, blocks(1, 1)), "held");
        assert!(
            latches.try_blocks(7 + TABLES as u64, blocks(1, 1)),
            "another chunk"
        );
        let taken = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let whole = latches.whole(7);
                taken.store(true, Ordering::SeqCst);
                assert!(!latches.try_blocks(7, blocks(9, 1)));
                drop(whole);
            });
            while lock(&latches.table(7).chunks)[&7].waiting == 0 {
                std::thread::yield_now();
            }
            assert!(
                !latches.try_blocks(7, blocks(9, 1)),
                "nobody who waits is overtaken"
            );
            latches.release(7, blocks(0, 2));
            assert!(!taken.load(Ordering::SeqCst));
            latches.release(7, blocks(2, 1));
        });
        assert!(taken.load(Ordering::SeqCst));
        let other = 7 + TABLES as u64;
        assert!(latches.try_whole(other).is_none(), "a block of it is held");
        latches.release(other, blocks(1, 1));
        let whole = latches.try_whole(7);
        assert!(whole.is_some() && latches.try_whole(7).is_none() && !latches.try_blocks(7, blocks(0, 1)));
        drop(whole);
        assert!(latches.0.iter().all(|table| lock(&table.chunks).is_empty()));
    }
}
