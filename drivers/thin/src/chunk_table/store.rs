//! Writing the table's changes, by a checkpoint.
//!
//! Pages are replaced like those of maps: read, changed, written to a reserved place; the one before is freed by the superblock that
//! names the new one. One page is in memory at a time.

use super::scan::{PAGE, TOP_PAGE};
use std::collections::{BTreeMap, BTreeSet};

use super::{ChunkTable, Links, LostTop, NewEntry, PAGE_CHUNKS, TOP_CHUNKS, TableWalk};
use crate::checkpoint::reserved;
use crate::format::{
    BLOCK_BYTES, INNER_ENTRIES, PagePointer, TABLE_ENTRIES, decode_inner, decode_table_page, encode_inner,
    encode_table_page,
};
use crate::page_io::{PageWriter, read_page};
use crate::page_set::PageSet;
use crate::page_space::Reservation;
use crate::{PoolDevice, PoolError};

/// The table as of a freeze.
#[derive(Default)]
pub(crate) struct FrozenTable {
    tops: Vec<PagePointer>,
    new: Vec<NewEntry>,
    /// Pages that no chunk with data needs.
    unneeded: BTreeSet<u64>,
    lost_tops: Vec<LostTop>,
    links: Links,
    walk: TableWalk,
}

/// What a checkpoint has stored of it.
#[derive(Debug, Clone)]
pub(crate) struct StoredTable {
    pub tops: Vec<PagePointer>,
    lost_tops: Vec<LostTop>,
    links: Vec<u64>,
    walk: TableWalk,
    /// A page could not be read, and its entries are lost.
    has_lost: bool,
}

impl ChunkTable {
    /// Hands over what is to be stored; no chunk with data needs the pages in `unneeded`.
    pub fn freeze(&mut self, unneeded: BTreeSet<u64>) -> FrozenTable {
        self.changed_pages.clear();
        self.changed_tops.clear();
        FrozenTable {
            tops: self.tops.clone(),
            new: std::mem::take(&mut self.new),
            unneeded,
            lost_tops: self.lost_tops.clone(),
            links: self.links.clone(),
            walk: self.walk.freeze(),
        }
    }

    /// Goes over to a durable checkpoint.
    pub fn settle(&mut self, stored: StoredTable) {
        self.tops = stored.tops;
        self.lost_tops = stored.lost_tops;
        if stored.has_lost {
            self.begin_walk();
        }
    }

    /// The table as the index stream has it, of a pool of so many chunks; `None` when that is cut short or impossible.
    pub fn decode(chunk_count: u64, mut word: impl FnMut() -> Option<u64>) -> Option<Self> {
        let mut tops = Vec::new();
        for _ in 0..word()? {
            tops.push(decode_pointer(&mut word)?);
        }
        let mut lost_tops = Vec::new();
        for _ in 0..word()? {
            lost_tops.push(LostTop {
                number: word()?,
                pointer: decode_pointer(&mut word)?,
            });
        }
        Some(Self {
            tops,
            lost_tops,
            links: Links::decode(&mut word)?,
            walk: TableWalk::decode(word)?,
            to_trim: PageSet::first(chunk_count.div_ceil(PAGE_CHUNKS)),
            ..Self::default()
        })
    }
}

fn decode_pointer(mut word: impl FnMut() -> Option<u64>) -> Option<PagePointer> {
    let (first, second, rest) = (word()?, word()?, word()?);
    Some(PagePointer {
        first,
        second,
        birth: rest as u32,
        crc32c: (rest >> 32) as u32,
    })
}

/// What changes below a top page.
#[derive(Default)]
struct Changes<'a> {
    new: &'a [NewEntry],
    unneeded: Vec<u64>,
}

impl FrozenTable {
    /// Writes the pages that have changed, and appends those that are not needed any more to `freed`.
    pub fn store(
        mut self,
        device: &dyn PoolDevice,
        writer: &mut PageWriter<'_>,
        reservation: &mut Reservation,
        freed: &mut Vec<PagePointer>,
    ) -> Result<StoredTable, PoolError> {
        self.new
            .retain(|new| !self.unneeded.contains(&(new.chunk / PAGE_CHUNKS)));
        // Stable: of those for one chunk the last stays the last.
        self.new.sort_by_key(|new| new.chunk);
        let mut changes: BTreeMap<u64, Changes<'_>> = BTreeMap::new();
        for new in self
            .new
            .chunk_by(|a, b| a.chunk / TOP_CHUNKS == b.chunk / TOP_CHUNKS)
        {
            changes.entry(new[0].chunk / TOP_CHUNKS).or_default().new = new;
        }
        for page in &self.unneeded {
            let of_top = changes.entry(page / INNER_ENTRIES as u64).or_default();
            of_top.unneeded.push(*page);
        }
        let mut storing = Storing {
            device,
            writer,
            reservation,
            freed,
            has_lost: false,
        };
        for (number, changes) in &changes {
            if self.tops.len() as u64 <= *number {
                self.tops.resize(*number as usize + 1, PagePointer::NONE);
            }
            let top = &mut self.tops[*number as usize];
            *top = storing.store_below(*number, *top, changes, &mut self.lost_tops)?;
        }
        let has_lost = storing.has_lost;
        Ok(StoredTable {
            tops: self.tops,
            lost_tops: self.lost_tops,
            links: self.links.encode(),
            walk: match has_lost {
                true => self.walk.begun_again(),
                false => self.walk,
            },
            has_lost,
        })
    }
}

/// What storing goes with.
struct Storing<'a, 'd> {
    device: &'a dyn PoolDevice,
    writer: &'a mut PageWriter<'d>,
    reservation: &'a mut Reservation,
    freed: &'a mut Vec<PagePointer>,
    has_lost: bool,
}

impl Storing<'_, '_> {
    /// Changes pages below one top page and returns the pointer to the top page that leads to them.
    fn store_below(
        &mut self,
        number: u64,
        top: PagePointer,
        changes: &Changes<'_>,
        lost_tops: &mut Vec<LostTop>,
    ) -> Result<PagePointer, PoolError> {
        let page = self.read(top, TOP_PAGE);
        let is_lost = page.is_none() && !top.is_none();
        if is_lost {
            lost_tops.push(LostTop { number, pointer: top });
        }
        let before = page.map_or([PagePointer::NONE; INNER_ENTRIES], |page| decode_inner(&page));
        let mut pages = before;
        self.take_back_lost(number, lost_tops, &mut pages);
        for page in &changes.unneeded {
            self.free(std::mem::take(&mut pages[*page as usize % INNER_ENTRIES]));
        }
        for in_page in changes
            .new
            .chunk_by(|a, b| a.chunk / PAGE_CHUNKS == b.chunk / PAGE_CHUNKS)
        {
            let pointer = &mut pages[(in_page[0].chunk / PAGE_CHUNKS) as usize % INNER_ENTRIES];
            let mut entries = match self.read(*pointer, PAGE) {
                Some(page) => decode_table_page(&page),
                None => Box::new([[0; 2]; TABLE_ENTRIES]),
            };
            for new in in_page {
                entries[(new.chunk % PAGE_CHUNKS) as usize] = new.entry.to_raw();
            }
            self.free(*pointer);
            *pointer = self.write(&encode_table_page(&entries))?;
        }
        if pages == before && !is_lost {
            return Ok(top);
        }
        if !is_lost {
            self.free(top);
        }
        match pages == [PagePointer::NONE; INNER_ENTRIES] {
            true => Ok(PagePointer::NONE),
            false => self.write(&encode_inner(&pages)),
        }
    }

    /// Takes over what top pages point to that were lost and can be read again: what has been replaced since is freed.
    fn take_back_lost(
        &mut self,
        number: u64,
        lost_tops: &mut Vec<LostTop>,
        pages: &mut [PagePointer; INNER_ENTRIES],
    ) {
        for lost in std::mem::take(lost_tops) {
            let page = Some(lost.pointer).filter(|_| lost.number == number);
            let Some(Ok(page)) = page.map(|pointer| read_page(self.device, pointer, TOP_PAGE)) else {
                lost_tops.push(lost);
                continue;
            };
            for (page, found) in pages.iter_mut().zip(decode_inner(&page)) {
                match page.is_none() {
                    true => *page = found,
                    false => self.free(found),
                }
            }
            self.free(lost.pointer);
        }
    }

    fn free(&mut self, pointer: PagePointer) {
        self.freed
            .extend(Some(pointer).filter(|pointer| !pointer.is_none()));
    }

    fn write(&mut self, page: &[u8; BLOCK_BYTES]) -> Result<PagePointer, PoolError> {
        self.writer.write(reserved(self.reservation), 0, page)
    }

    /// Reads a page; `None` when there is none, or none any more: what it said comes from the maps again.
    fn read(&mut self, pointer: PagePointer, what: &str) -> Option<[u8; BLOCK_BYTES]> {
        if pointer.is_none() {
            return None;
        }
        let page = read_page(self.device, pointer, what);
        page.inspect_err(|error| {
            tracing::error!(%error, "entries of the chunk table are lost and are made from the maps again");
            self.has_lost = true;
        })
        .ok()
    }
}

impl StoredTable {
    /// Returns what follows the tops in the index stream.
    pub fn words(&self) -> Vec<u64> {
        let mut words = vec![self.lost_tops.len() as u64];
        for LostTop { number, pointer } in &self.lost_tops {
            let rest = u64::from(pointer.birth) | u64::from(pointer.crc32c) << 32;
            words.extend([*number, pointer.first, pointer.second, rest]);
        }
        words.extend(&self.links);
        words.extend(self.walk.encode());
        words
    }
}
