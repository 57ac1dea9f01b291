//! Cuts chunks into map pages.
//!
//! Only a checkpoint hands out pages: it reserves what it may need when it freezes the state, and settles
//! afterwards what it used and which pages its superblock no longer needs. In between nothing else changes here.
//!
//! Invariant P1: a page is handed out only when no superblock, durable or being written, needs it: pages are
//! freed only by [`settle`](PageSpace::settle), after the superblock is durable.

use std::collections::{BTreeMap, HashSet};

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
#[derive(Debug, Clone, Default)]
pub(crate) struct PageSpace {
    chunks: BTreeMap<u64, PageChunk>,
    chunks_of_class: [u64; 2],
    used_pages: [u64; 2],
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

    /// Returns how many pages are in use.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
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

    /// Returns how many further chunks a checkpoint of `pages` page pairs needs.
    pub fn chunks_needed(&self, geometry: &Geometry, pages: u64) -> u64 {
        let per_chunk = geometry.pages_per_chunk();
        [CopyClass::First, CopyClass::Second]
            .map(|class| {
                let held = self.chunks_of_class[class as usize] * per_chunk - self.used_pages[class as usize];
                pages.saturating_sub(held).div_ceil(per_chunk)
            })
            .iter()
            .sum()
    }

    /// Sets `pages` page pairs aside, taking chunks from `space` where needed; `None` when they do not suffice, and
    /// then nothing is taken.
    pub fn reserve(&mut self, geometry: &Geometry, space: &mut Space, pages: u64) -> Option<Reservation> {
        let needed = self.chunks_needed(geometry, pages);
        if needed > space.free() {
            space.abandon_discards();
        }
        if needed > space.free() {
            return None;
        }
        let mut reservation = Reservation::default();
        for (class, from) in [
            (CopyClass::First, SearchFrom::Front),
            (CopyClass::Second, SearchFrom::Back),
        ] {
            let list = &mut reservation.pages[class as usize];
            for (chunk, page_chunk) in self.chunks.iter_mut().filter(|(_, c)| c.class == class) {
                fill(geometry, *chunk, page_chunk, pages, list);
            }
            while (list.len() as u64) < pages {
                let chunk = space.take(from).expect("enough chunks were counted free");
                let mut page_chunk = PageChunk {
                    class,
                    used: PageMask::default(),
                };
                fill(geometry, chunk, &mut page_chunk, pages, list);
                self.chunks.insert(chunk, page_chunk);
                self.chunks_of_class[class as usize] += 1;
            }
            self.used_pages[class as usize] += pages;
        }
        Some(reservation)
    }

    /// Returns the chunks as they are once `reservation` is settled and `freed` is free. Pages of `reservation`
    /// handed out so far and the next `more` are counted as used.
    pub fn after(
        &self,
        geometry: &Geometry,
        reservation: &Reservation,
        more: usize,
        freed: &[PagePointer],
    ) -> PageSpace {
        let mut after = self.clone();
        let used = reservation.handed_out + more;
        let unused = reservation.pages.iter().flat_map(|pages| pages.iter().skip(used));
        let freed = freed.iter().flat_map(|pointer| [pointer.first, pointer.second]);
        for number in unused.copied().chain(freed) {
            let (chunk, page) = geometry.locate_page(number).expect("the page was handed out");
            let page_chunk = after.chunks.get_mut(&chunk).expect("the page was handed out");
            debug_assert!(page_chunk.used.get(page), "a page is freed once");
            page_chunk.used.clear(page);
            after.used_pages[page_chunk.class as usize] -= 1;
        }
        let chunks_of_class = &mut after.chunks_of_class;
        after.chunks.retain(|_, page_chunk| {
            let kept = page_chunk.used.count() > 0;
            chunks_of_class[page_chunk.class as usize] -= u64::from(!kept);
            kept
        });
        after
    }

    /// Goes over to `after`, the superblock that says so being durable (P1), and frees the emptied chunks.
    pub fn settle(&mut self, after: PageSpace, space: &mut Space, discard: bool) {
        for chunk in self.chunks.keys() {
            if !after.chunks.contains_key(chunk) {
                space.free_now(*chunk, discard);
            }
        }
        *self = after;
    }
}

/// Takes free pages of one chunk until `list` has `pages`.
fn fill(geometry: &Geometry, chunk: u64, page_chunk: &mut PageChunk, pages: u64, list: &mut Vec<u64>) {
    for page in 0..geometry.pages_per_chunk() {
        if list.len() as u64 == pages {
            return;
        }
        if !page_chunk.used.get(page) {
            page_chunk.used.set(page);
            list.push(geometry.page_number(chunk, page));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FormatOptions;

    #[test]
    fn p1_pages_come_in_pairs_from_different_chunks_and_return_when_settled() {
        let options = FormatOptions {
            log_bytes: 64 << 10,
            ..FormatOptions::default()
        };
        let geometry = Geometry::new(4 << 20, &options).unwrap();
        let mut space = Space::new(geometry.chunk_count);
        let mut pages = PageSpace::default();
        let free = space.free();
        let mut reservation = pages.reserve(&geometry, &mut space, 20).unwrap();
        assert_eq!(space.free(), free - 4);
        let mut used = Vec::new();
        for _ in 0..17 {
            let (first, second) = reservation.next().unwrap();
            assert_ne!(
                geometry.locate_page(first).unwrap().0,
                geometry.locate_page(second).unwrap().0
            );
            used.push(PagePointer {
                first,
                second,
                birth: 0,
                crc32c: 0,
            });
        }
        let after = pages.after(&geometry, &reservation, 0, &[]);
        pages.settle(after, &mut space, false);
        assert_eq!(pages.used_pages(), 34);
        assert!(pages.is_used(&geometry, used[16].first, CopyClass::First));
        assert!(!pages.is_used(&geometry, used[16].first, CopyClass::Second));
        let reservation = pages.reserve(&geometry, &mut space, 1).unwrap();
        let after = pages.after(&geometry, &reservation, 0, &used[..16]);
        assert_eq!(pages.used_pages(), 36, "nothing is free before it is settled");
        pages.settle(after, &mut space, false);
        assert_eq!((pages.used_pages(), pages.chunk_count()), (2, 2));
        assert!(pages.reserve(&geometry, &mut space, 10_000).is_none());
        assert_eq!(space.free(), free - 2, "a refused reservation takes nothing");
    }
}
