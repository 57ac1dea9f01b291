//! Writing less than a chunk where no chunk is owned yet: only the blocks that are written go to the device.
//!
//! The order is that of every write which changes a mapping (W1): take a free chunk · write its blocks · apply and log
//! the mapping, which says which blocks these are. Later writes to other blocks of the chunk are the same without
//! the first step. What is written in part is completed with what was there before, to whole blocks.
//!
//! Whole blocks for a chunk that is partial already need nothing that blocks: they can be [planned](crate::plan).

use std::io;
use std::ops::{Deref, Range};
use std::sync::LazyLock;

use quarry_contract::{IoBuffer, IoError};
use smallvec::{SmallVec, smallvec};

use crate::data_path::{Content, medium};
use crate::format::{BLOCK, BLOCK_BYTES};
use crate::handle::VersionHandle;
use crate::locks::{read, write};
use crate::partial::{Blocks, Home, MASK_BLOCKS, PartialView};
use crate::pool::{Decision, Pool, Priority};
use crate::record::Record;
use crate::state::State;
use crate::{PoolDevice, PoolError};

/// The checksum of so many blocks of zeros.
static ZEROS_CRC32C: LazyLock<Vec<u32>> = LazyLock::new(|| {
    let one_more = |crc32c: &u32| Some(crc32c::crc32c_append(*crc32c, &[0; BLOCK_BYTES]));
    std::iter::successors(Some(0), one_more)
        .take(MASK_BLOCKS + 1)
        .collect()
});

impl VersionHandle {
    /// Maps a chunk index to a new chunk that holds only this content; the rest is lent by `lender`, or zeros. The caller
    /// holds the index's latch exclusively.
    pub(crate) fn map_part(
        &self,
        index: u64,
        within: &Range<u64>,
        content: Content<'_>,
        lender: Option<u64>,
    ) -> Result<(), IoError> {
        let blocks = Blocks::touching(within);
        let cover = whole_blocks(blocks, within, content, |bytes, target| match lender {
            Some(lender) => {
                let at = self.pool.chunk_offset(lender) + bytes.start;
                self.pool.device.read_at(at, target)
            }
            None => Ok(()),
        });
        let cover = cover.map_err(medium("completing", within.start))?;
        let map = |chunk| Record::MapPart {
            node: self.node,
            index,
            chunk,
            blocks,
        };
        self.map_new(blocks, &cover, map)
    }

    /// Writes into an owned chunk that was partial when it was looked up. The caller holds the index's latch exclusively,
    /// and the epoch until this returns: what becomes part of the chunk belongs to a snapshot taken meanwhile.
    pub(crate) fn write_into_partial(
        &self,
        chunk: u64,
        within: &Range<u64>,
        content: Content<'_>,
    ) -> Result<(), IoError> {
        let _filling = self.pool.fill_latches.whole(chunk);
        let blocks = Blocks::touching(within);
        let view = read(&self.pool.state).partials.view(chunk);
        let view = match view {
            Some(view) if !view.mask.covers(blocks) => view,
            // Whole by now, at least where it matters.
            _ => return self.write_in_place(chunk, within, content),
        };
        if matches!(content, Content::Zeros) && view.lender.is_none() && !view.mask.touches(blocks) {
            return Ok(());
        }
        // Blocks of the mask among them are overwritten.
        self.pool
            .make_overwritable(chunk, blocks)
            .map_err(PoolError::into_io_error)?;
        let at = self.pool.chunk_offset(chunk) + blocks.bytes().start;
        let cover = whole_blocks(blocks, within, content, |bytes, target| {
            self.pool.read_partial(chunk, &view, bytes, target)
        });
        let cover = cover.map_err(medium("completing", at))?;
        self.pool
            .device
            .write_at(at, &cover)
            .map_err(medium("writing", at))?;
        self.pool
            .record_filled(chunk, &[(blocks, self.pool.claim(chunk, blocks, &cover))])
            .map_err(PoolError::into_io_error)
    }
}

impl Pool {
    /// Makes the claim that blocks hold these bytes (U1).
    pub(crate) fn claim(&self, chunk: u64, blocks: Blocks, bytes: &[u8]) -> Option<Record> {
        self.claim_with(chunk, blocks, || crc32c::crc32c(bytes))
    }

    /// Makes the claim that blocks hold zeros (U1).
    pub(crate) fn claim_zeros(&self, chunk: u64, blocks: Blocks) -> Option<Record> {
        self.claim_with(chunk, blocks, || ZEROS_CRC32C[usize::from(blocks.count)])
    }

    fn claim_with(&self, chunk: u64, blocks: Blocks, crc32c: impl FnOnce() -> u32) -> Option<Record> {
        let wanted = read(&self.state).log.unsettled.wants_claims();
        wanted.then(|| Record::Claim {
            chunk,
            blocks,
            crc32c: crc32c(),
        })
    }

    /// Records that a partial chunk holds these blocks, with their claims, if it still is partial. The caller holds its
    /// fill latch and has written them (F5).
    pub(crate) fn record_filled(
        &self,
        chunk: u64,
        filled: &[(Blocks, Option<Record>)],
    ) -> Result<(), PoolError> {
        // It needs no space and may give some back, so it works in a full pool.
        self.change(Priority::Reclaim, |state| {
            let still_partial = state.partials.contains(chunk);
            let mut records = SmallVec::new();
            if still_partial {
                for (blocks, claim) in filled {
                    let blocks = *blocks;
                    records.push(Record::Fill { chunk, blocks });
                    records.extend(*claim);
                }
            }
            Ok(Decision::Apply(records))
        })
    }

    /// As [`record_filled`](Self::record_filled), without waiting: room in the log has been reserved.
    pub(crate) fn record_filled_as_reserved(
        &self,
        chunk: u64,
        blocks: Blocks,
        bytes: &[u8],
    ) -> Result<(), PoolError> {
        self.check_running()?;
        let mut records: SmallVec<[Record; 2]> = smallvec![Record::Fill { chunk, blocks }];
        records.extend(self.claim(chunk, blocks, bytes));
        let mut state = write(&self.state);
        if !state.partials.contains(chunk) {
            return Ok(());
        }
        state
            .apply_and_log(&records)
            .map_err(|bug| self.stop_for_bug(bug))
    }

    /// Reads a range of a partial chunk from wherever its pieces are (F1).
    pub(crate) fn read_partial(
        &self,
        chunk: u64,
        view: &PartialView,
        within: Range<u64>,
        target: &mut [u8],
    ) -> io::Result<()> {
        let start = within.start;
        for (piece, home) in view.pieces(within) {
            let target = &mut target[(piece.start - start) as usize..(piece.end - start) as usize];
            match home {
                Home::Own => self.read_bytes(self.chunk_offset(chunk) + piece.start, target)?,
                Home::Lender(lender) => {
                    self.read_bytes(self.chunk_offset(lender) + piece.start, target)?;
                }
                Home::Nowhere => target.fill(0),
            }
        }
        Ok(())
    }

    /// Tells whether another chunk may become partial.
    pub(crate) fn may_begin_partial(&self, state: &State) -> bool {
        state.allows_partials && state.partials.len() < self.options.max_partial_chunks
    }
}

/// Whole blocks: a request's own bytes, or a copy of them completed with what was around them.
pub(crate) enum Cover<'a> {
    Request(&'a [u8]),
    Completed(IoBuffer),
}

impl Deref for Cover<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Cover::Request(bytes) => bytes,
            Cover::Completed(buffer) => buffer,
        }
    }
}

/// Completes a range to whole blocks: `read_under` gives the block at a range of bytes of the chunk.
pub(crate) fn whole_blocks<'a>(
    blocks: Blocks,
    within: &Range<u64>,
    content: Content<'a>,
    mut read_under: impl FnMut(Range<u64>, &mut [u8]) -> io::Result<()>,
) -> io::Result<Cover<'a>> {
    let bytes = blocks.bytes();
    if let Content::Data(data) = content
        && bytes == *within
    {
        return Ok(Cover::Request(data));
    }
    let mut cover = IoBuffer::zeroed((bytes.end - bytes.start) as usize);
    let last = bytes.end - BLOCK;
    let is_cut_first = within.start > bytes.start || (last == bytes.start && within.end < bytes.end);
    if is_cut_first {
        read_under(bytes.start..bytes.start + BLOCK, &mut cover[..BLOCK as usize])?;
    }
    if within.end < bytes.end && last > bytes.start {
        let at = (last - bytes.start) as usize;
        read_under(last..bytes.end, &mut cover[at..])?;
    }
    let target = &mut cover[(within.start - bytes.start) as usize..(within.end - bytes.start) as usize];
    match content {
        Content::Data(data) => target.copy_from_slice(data),
        Content::Zeros => target.fill(0),
    }
    Ok(Cover::Completed(cover))
}
