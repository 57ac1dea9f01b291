//! Pages that a check keeps from being handed out again (P2, P3).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{PageChunk, PageSpace};
use crate::space::Space;

/// Pages that are not handed out, used or not (P2). Their chunks that have no page in use any more are held by [`Space`].
#[derive(Debug)]
pub(super) struct Held {
    /// As they were when it began.
    pub chunks: BTreeMap<u64, PageChunk>,
    /// Those that are in none but this use, of each class, in chunks that have others.
    pub idle_pages: [u64; 2],
    gave_way: Arc<AtomicBool>,
}

impl PageSpace {
    /// Copies it, without what is held, and what is in the stock or lacking.
    pub fn unheld(&self) -> Self {
        Self {
            chunks: self.chunks.clone(),
            chunks_of_class: self.chunks_of_class,
            used_pages: self.used_pages,
            ..Self::default()
        }
    }

    /// Holds all pages that are in use (P2), until [`let_go`](Self::let_go) or until they have given way: then what it returns
    /// says so (P3). Nobody else holds any.
    pub fn hold(&mut self) -> Arc<AtomicBool> {
        debug_assert!(self.held.is_none(), "one at a time");
        let gave_way = Arc::default();
        self.held = Some(Held {
            chunks: self.chunks.clone(),
            idle_pages: [0; 2],
            gave_way: Arc::clone(&gave_way),
        });
        gave_way
    }

    /// Ends the hold, if there is one.
    pub fn let_go(&mut self, space: &mut Space, discard: bool) {
        self.held = None;
        space.let_go_of_held(discard);
    }

    /// Ends the hold if that gives space back (P3), and tells whether it has.
    pub fn give_way(&mut self, space: &mut Space) -> bool {
        let gives = |held: &Held| held.idle_pages != [0; 2] || space.held() > 0;
        let Some(held) = self.held.take_if(|held| gives(held)) else {
            return false;
        };
        held.gave_way.store(true, Ordering::SeqCst);
        space.let_go_of_held(false);
        true
    }
}

impl Held {
    /// Counts what only this keeps from being handed out, in the chunks that there are now.
    pub fn count_idle(&mut self, now: &BTreeMap<u64, PageChunk>) {
        self.idle_pages = [0; 2];
        for (chunk, held) in &self.chunks {
            let idle = now.get(chunk).map(|now| held.used.but(&now.used));
            self.idle_pages[held.class as usize] += idle.map_or(0, |idle| idle.count());
        }
    }
}
