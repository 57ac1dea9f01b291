//! Cuts chunks into map pages.
//!
//! Only a checkpoint hands out pages: it reserves what it may need when it freezes the state, and settles
//! afterwards what it used and which pages its superblock no longer needs. In between nothing else changes here.
//!
//! Invariants
//! - P1: a page is handed out only when no superblock, durable or being written, needs it: pages are
//!   freed only by [`settle`](PageSpace::settle), after the superblock is durable.
//! - P2: while pages are [held](PageSpace::hold), none of those that were in use when that began is handed out again, and their
//!   chunks hold nothing else. It is in memory only: the superblock says that they are free.
//! - P3: whoever needs the space of held pages gets it ([`give_way`](PageSpace::give_way)); who held them is told.
//! - P4: where the medium may run out of space, a page is handed out only of a chunk that has its space there: new chunks come
//!   from a stock of such, and chunks [without](PageSpace::note_lacking) hand out none (HF2, [`host_space`](crate::host_space)).

mod held;
mod stock;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use held::Held;

use crate::format::{Geometry, PagePointer};
use crate::space::{SearchFrom, Space};

/// Which copy of its pages a chunk holds. The two copies of a page never share a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CopyClass {
    /// First copies.
    First,
    /// Second copies.
    Second,
}

/// A bit for each page of a chunk; a chunk has at most 256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct PageMask(pub [u64; 4]);

/// A chunk of map pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageChunk {
    pub class: CopyClass,
    pub used: PageMask,
}

/// The chunks of map pages.
#[derive(Debug, Default)]
pub(crate) struct PageSpace {
    chunks: BTreeMap<u64, PageChunk>,
    chunks_of_class: [u64; 2],
    used_pages: [u64; 2],
    /// Chunks that will be of either class, which have their space on the medium; `None` where that never runs out (P4).
    stock: Option<BTreeSet<u64>>,
    /// Those of `chunks` that do not have theirs (P4).
    lacking: BTreeSet<u64>,
    held: Option<Held>,
}

/// Pages set aside for one checkpoint, in both classes; handed out in pairs.
#[derive(Debug, Default)]
pub(crate) struct Reservation {
    pages: [Vec<u64>; 2],
    handed_out: usize,
}

impl PageMask {
    fn get(&self, page: u64) -> bool {
        self.0[page as usize / 64] >> (page % 64) & 1 == 1
    }

    fn set(&mut self, page: u64) {
        self.0[page as usize / 64] |= 1 << (page % 64);
    }

    fn clear(&mut self, page: u64) {
        self.0[page as usize / 64] &= !(1 << (page % 64));
    }

    /// Tells whether any page from this one on is in use.
    pub fn has_any_from(&self, page: u64) -> bool {
        (page..u64::BITS as u64 * self.0.len() as u64).any(|page| self.get(page))
    }

    /// Returns how many pages are in use.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Returns those that are not in the other.
    fn but(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & !other.0[word]))
    }
}

impl Reservation {
    /// Hands out a page pair.
    pub fn next(&mut self) -> Option<(u64, u64)> {
        let pair = (
            *self.pages[0].get(self.handed_out)?,
            *self.pages[1].get(self.handed_out)?,
        );
        self.handed_out += 1;
        Some(pair)
    }
}

impl PageSpace {
    /// Returns the chunks, ordered.
    pub fn chunks(&self) -> impl Iterator<Item = (u64, &PageChunk)> {
        self.chunks.iter().map(|(chunk, page_chunk)| (*chunk, page_chunk))
    }

    /// Returns how many chunks there are.
    pub fn chunk_count(&self) -> u64 {
        self.chunks.len() as u64
    }

    /// Returns how many pages are in use, both classes.
    pub fn used_pages(&self) -> u64 {
        self.used_pages.iter().sum()
    }

    /// Adds a chunk found at open.
    pub fn load(&mut self, chunk: u64, page_chunk: PageChunk) {
        self.used_pages[page_chunk.class as usize] += page_chunk.used.count();
        self.chunks_of_class[page_chunk.class as usize] += 1;
        self.chunks.insert(chunk, page_chunk);
    }

    /// Tells whether a page is in use and its chunk of the class given.
    pub fn is_used(&self, geometry: &Geometry, number: u64, class: CopyClass) -> bool {
        geometry.locate_page(number).is_some_and(|(chunk, page)| {
            self.chunks
                .get(&chunk)
                .is_some_and(|c| c.class == class && c.used.get(page))
        })
    }

    /// Returns the pages in use that are not among these, as pairs; `None` when they are not as many of each class.
    pub fn pages_but(&self, geometry: &Geometry, known: &HashSet<u64>) -> Option<Vec<PagePointer>> {
        let mut unknown = [Vec::new(), Vec::new()];
        for (chunk, page_chunk) in &self.chunks {
            let used = (0..geometry.pages_per_chunk()).filter(|page| page_chunk.used.get(*page));
            let numbers = used.map(|page| geometry.page_number(*chunk, page));
            unknown[page_chunk.class as usize].extend(numbers.filter(|number| !known.contains(number)));
        }
        let [first, second] = unknown;
        let pair = |(first, second)| PagePointer {
            first,
            second,
            ..PagePointer::NONE
        };
        (first.len() == second.len()).then(|| first.into_iter().zip(second).map(pair).collect())
    }

    /// Returns how many further chunks a checkpoint of `pages` page pairs needs, from the stock or else.
    pub fn chunks_needed(&self, geometry: &Geometry, pages: u64) -> u64 {
        let per_chunk = geometry.pages_per_chunk();
        let idle = self.held.as_ref().map_or([0; 2], |held| held.idle_pages);
        let mut free = [0, 1]
            .map(|class| self.chunks_of_class[class] * per_chunk - self.used_pages[class] - idle[class]);
        for page_chunk in self.lacking.iter().filter_map(|chunk| self.chunks.get(chunk)) {
            let of_class = &mut free[page_chunk.class as usize];
            // Some of these may be idle, too.
            *of_class = of_class.saturating_sub(per_chunk - page_chunk.used.count());
        }
        free.map(|free| pages.saturating_sub(free).div_ceil(per_chunk))
            .iter()
            .sum()
    }

    /// Sets `pages` page pairs aside, taking chunks from `space` where needed; `None` when they do not suffice, and
    /// then nothing is taken.
    pub fn reserve(&mut self, geometry: &Geometry, space: &mut Space, pages: u64) -> Option<Reservation> {
        let mut needed = self.chunks_needed(geometry, pages);
        if self.stock.is_none() && needed > space.free() {
            space.abandon_discards();
        }
        if needed > self.stock().unwrap_or(space.free()) && self.give_way(space) {
            needed = self.chunks_needed(geometry, pages);
        }
        if needed > self.stock().unwrap_or(space.free()) {
            return None;
        }
        let mut reservation = Reservation::default();
        for (class, from) in [
            (CopyClass::First, SearchFrom::Front),
            (CopyClass::Second, SearchFrom::Back),
        ] {
            let list = &mut reservation.pages[class as usize];
            for (chunk, page_chunk) in self.chunks.iter_mut().filter(|(_, c)| c.class == class) {
                if self.lacking.contains(chunk) {
                    continue;
                }
                let held = self.held.as_ref().and_then(|held| held.chunks.get(chunk));
                let held = held.map(|chunk| chunk.used).unwrap_or_default();
                fill(geometry, *chunk, page_chunk, held, pages, list);
            }
            while (list.len() as u64) < pages {
                let chunk = match (&mut self.stock, class) {
                    (None, _) => space.take(from),
                    (Some(stock), CopyClass::First) => stock.pop_first(),
                    (Some(stock), CopyClass::Second) => stock.pop_last(),
                };
                let chunk = chunk.expect("enough chunks were counted free");
                let mut page_chunk = PageChunk {
                    class,
                    used: PageMask::default(),
                };
                fill(geometry, chunk, &mut page_chunk, PageMask::default(), pages, list);
                self.chunks.insert(chunk, page_chunk);
                self.chunks_of_class[class as usize] += 1;
            }
            self.used_pages[class as usize] += pages;
        }
        Some(reservation)
    }

    /// Returns the chunks as they are once `reservation` is settled and `freed` is free. Pages of `reservation`
    /// handed out so far and the next `more` are counted as used.
    ///
    /// # Errors
    /// When a page is to be freed that is not in use: the metadata contradicts itself, and whoever wrote to that page again
    /// could overwrite another one.
    pub fn after(
        &self,
        geometry: &Geometry,
        reservation: &Reservation,
        more: usize,
        freed: &[PagePointer],
    ) -> Result<PageSpace, String> {
        let mut after = self.unheld();
        let used = reservation.handed_out + more;
        let unused = reservation.pages.iter().flat_map(|pages| pages.iter().skip(used));
        let freed = freed.iter().flat_map(|pointer| [pointer.first, pointer.second]);
        for number in unused.copied().chain(freed) {
            let place = geometry.locate_page(number);
            let page_chunk = place.and_then(|(chunk, _)| after.chunks.get_mut(&chunk));
            let (Some((_, page)), Some(page_chunk)) = (place, page_chunk) else {
                return Err(format!("page {number} is replaced, and in no chunk of pages"));
            };
            if !page_chunk.used.get(page) {
                return Err(format!(
                    "page {number} is replaced, and not in use or replaced twice"
                ));
            }
            page_chunk.used.clear(page);
            after.used_pages[page_chunk.class as usize] -= 1;
        }
        let chunks_of_class = &mut after.chunks_of_class;
        after.chunks.retain(|_, page_chunk| {
            let kept = page_chunk.used.count() > 0;
            chunks_of_class[page_chunk.class as usize] -= u64::from(!kept);
            kept
        });
        Ok(after)
    }

    /// Goes over to `after`, the superblock that says so being durable (P1), and frees the emptied chunks, or puts them in the stock,
    /// but for those that are held (P2).
    pub fn settle(&mut self, after: PageSpace, space: &mut Space, discard: bool) {
        let mut held = self.held.take();
        let (mut stock, mut lacking) = (self.stock.take(), std::mem::take(&mut self.lacking));
        for chunk in self
            .chunks
            .keys()
            .filter(|chunk| !after.chunks.contains_key(chunk))
        {
            let lacks = lacking.remove(chunk);
            let is_held = held.as_ref().is_some_and(|held| held.chunks.contains_key(chunk));
            match &mut stock {
                _ if is_held => space.hold(*chunk),
                Some(stock) if !lacks => drop(stock.insert(*chunk)),
                Some(_) | None => space.free_now(*chunk, discard),
            }
        }
        if let Some(held) = &mut held {
            held.count_idle(&after.chunks);
        }
        *self = Self {
            held,
            stock,
            lacking,
            ..after
        };
    }
}

/// Takes free pages of one chunk, but for those held, until `list` has `pages`.
fn fill(
    geometry: &Geometry,
    chunk: u64,
    page_chunk: &mut PageChunk,
    held: PageMask,
    pages: u64,
    list: &mut Vec<u64>,
) {
    for page in 0..geometry.pages_per_chunk() {
        if list.len() as u64 == pages {
            return;
        }
        if !page_chunk.used.get(page) && !held.get(page) {
            page_chunk.used.set(page);
            list.push(geometry.page_number(chunk, page));
        }
    }
}

#[cfg(test)]
mod tests;
