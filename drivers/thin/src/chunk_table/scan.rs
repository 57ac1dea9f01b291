//! Reading the table, a top page at a time.

use super::{PAGE_CHUNKS, TOP_CHUNKS, page_number};
use crate::format::{ChunkEntry, PagePointer, decode_inner, decode_table_page};
use crate::page_io::read_page;
use crate::{PoolDevice, PoolError};

/// Reads what a checkpoint has stored.
pub(crate) struct TableScan<'a> {
    device: &'a dyn PoolDevice,
    tops: &'a [PagePointer],
}

impl<'a> TableScan<'a> {
    pub fn new(device: &'a dyn PoolDevice, tops: &'a [PagePointer]) -> Self {
        Self { device, tops }
    }

    /// Calls `see` with each entry, ordered by chunk, and `lost` with what is wrong with a page that cannot be read, and for which
    /// chunks it is.
    ///
    /// # Errors
    /// What `see` and `lost` return.
    pub fn entries(
        &self,
        mut see: impl FnMut(u64, ChunkEntry) -> Result<(), PoolError>,
        mut lost: impl FnMut(PoolError, std::ops::Range<u64>) -> Result<(), PoolError>,
    ) -> Result<(), PoolError> {
        for (number, top) in (0..).zip(self.tops).filter(|(_, top)| !top.is_none()) {
            let pages = match read_page(self.device, *top, TOP_PAGE) {
                Ok(page) => decode_inner(&page),
                Err(error) => {
                    lost(error, number * TOP_CHUNKS..(number + 1) * TOP_CHUNKS)?;
                    continue;
                }
            };
            for (place, pointer) in pages.iter().enumerate().filter(|(_, page)| !page.is_none()) {
                let first = page_number(number, place) * PAGE_CHUNKS;
                match read_page(self.device, *pointer, PAGE) {
                    Ok(page) => {
                        for (chunk, raw) in (first..).zip(decode_table_page(&page).iter()) {
                            if let Some(entry) = ChunkEntry::from_raw(*raw) {
                                see(chunk, entry)?;
                            }
                        }
                    }
                    Err(error) => lost(error, first..first + PAGE_CHUNKS)?,
                }
            }
        }
        Ok(())
    }

    /// Calls `see` with the pointer to each page, the top ones first, whether it can be read or not, but for those below a lost one.
    pub fn pages(&self, mut see: impl FnMut(PagePointer, &'static str)) {
        for top in self.tops.iter().filter(|top| !top.is_none()) {
            see(*top, TOP_PAGE);
            if let Ok(page) = read_page(self.device, *top, TOP_PAGE) {
                decode_inner(&page)
                    .iter()
                    .filter(|page| !page.is_none())
                    .for_each(|page| see(*page, PAGE));
            }
        }
    }
}

/// What a top page is called.
pub(crate) const TOP_PAGE: &str = "top page of the chunk table";
/// What a page of entries is called.
pub(super) const PAGE: &str = "page of the chunk table";
