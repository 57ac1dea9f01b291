//! Chunks that have their space on the medium and wait for pages (P4, [`host_space`](crate::host_space)).

use super::PageSpace;
use crate::space::Space;

impl PageSpace {
    /// Returns how many chunks are in the stock; `None` where there is none, and none is needed (P4).
    pub fn stock(&self) -> Option<u64> {
        self.stock.as_ref().map(|stock| stock.len() as u64)
    }

    /// Begins to keep a stock.
    pub fn keep_stock(&mut self) {
        self.stock.get_or_insert_default();
    }

    /// Ends keeping one, and gives it back.
    pub fn give_up_stock(&mut self, space: &mut Space) {
        for chunk in self.stock.take().into_iter().flatten() {
            space.give_back(chunk);
        }
        self.lacking.clear();
    }

    /// Adds a chunk to the stock that has its space on the medium.
    pub fn put_in_stock(&mut self, chunk: u64) {
        self.stock.get_or_insert_default().insert(chunk);
    }

    /// Gives back what the stock has more than so many chunks.
    pub fn trim_stock(&mut self, at_most: u64, space: &mut Space, discard: bool) {
        let Some(stock) = &mut self.stock else { return };
        while stock.len() as u64 > at_most {
            // Some are left at both ends, where the copies of pages are.
            let chunk = match stock.len() % 2 {
                0 => stock.pop_first(),
                _ => stock.pop_last(),
            };
            let chunk = chunk.expect("it has more");
            space.free_now(chunk, discard);
        }
    }

    /// Notes of a chunk whether it lacks its space on the medium (P4).
    pub fn note_lacking(&mut self, chunk: u64, lacks: bool) {
        match lacks {
            true => self.lacking.insert(chunk),
            false => self.lacking.remove(&chunk),
        };
    }

    /// Returns the chunks that lack their space.
    pub fn lacking(&self) -> Vec<u64> {
        self.lacking.iter().copied().collect()
    }
}
