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
use smallvec::SmallVec;

use crate::data_path::{Content, medium};
use crate::format::{BLOCK, BLOCK_BYTES};
use crate::given::{Replaced, Rest, records_of_part};
use crate::handle::VersionHandle;
use crate::locks::{read, write};
use crate::partial::{Blocks, Home, MASK_BLOCKS, PartialView};
use crate::pool::{Decision, Pool, Priority};
use crate::record::Record;
use crate::state::State;
use crate::sums::{BlockSums, Checksums};
use crate::{PoolDevice, PoolError};

/// The checksum of so many blocks of zeros.
static ZEROS_CRC32C: LazyLock<Vec<u32>> = LazyLock::new(|| {
    let one_more = |crc32c: &u32| Some(crc32c::crc32c_append(*crc32c, &[0; BLOCK_BYTES]));
    std::iter::successors(Some(0), one_more)
        .take(MASK_BLOCKS + 1)
        .collect()
});

/// What has become of a write into a partial chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Landed {
    /// It is there.
    Here,
    /// The chunk holds these blocks and has checksums: they have to go to another one (D2).
    Nowhere,
}

impl VersionHandle {
    /// Maps a chunk index to a new chunk that holds only this content; the rest is lent by what is mapped there, `lender` with
    /// its view, or zeros. The caller holds the index's latch exclusively.
    pub(crate) fn map_part(
        &self,
        index: u64,
        within: &Range<u64>,
        content: Content<'_>,
        lender: Option<(u64, Option<&PartialView>)>,
    ) -> Result<(), IoError> {
        let given = self.given_part(index, within, content, lender)?;
        let blocks = given.blocks;
        self.map_given(&[given], |chunk| {
            records_of_part(self.node, index, chunk, blocks, Rest::Lent)
        })
    }

    /// Writes into an owned chunk that was partial when it was looked up. The caller holds the index's latch exclusively,
    /// and the epoch until this returns: what becomes part of the chunk belongs to a snapshot taken meanwhile.
    pub(crate) fn write_into_partial(
        &self,
        index: u64,
        chunk: u64,
        within: &Range<u64>,
        content: Content<'_>,
    ) -> Result<Landed, IoError> {
        let _filling = self.pool.fill_latches.whole(chunk);
        let blocks = Blocks::touching(within);
        let view = read(&self.pool.state).partials.view(chunk);
        let view = match view {
            Some(view) if !view.mask.covers(blocks) => view,
            _ if self.checksums.are_on() => return Ok(Landed::Nowhere),
            // Whole by now, at least where it matters.
            _ => return self.write_in_place(chunk, within, content).map(|()| Landed::Here),
        };
        if self.checksums.are_on() && view.mask.touches(blocks) {
            return Ok(Landed::Nowhere);
        }
        if matches!(content, Content::Zeros) && view.lenders.is_empty() && !view.mask.touches(blocks) {
            return Ok(Landed::Here);
        }
        // Blocks of the mask among them are overwritten.
        self.pool
            .make_overwritable(chunk, blocks)
            .map_err(PoolError::into_io_error)?;
        let at = self.pool.chunk_offset(chunk) + blocks.bytes().start;
        let cover = whole_blocks(blocks, within, content, |bytes, target| {
            self.read_blocks(index, chunk, Some(&view), bytes, target)
        })?;
        self.pool
            .device
            .write_at(at, &cover)
            .map_err(medium("writing", at))?;
        let claim = self.pool.claim(chunk, blocks, &cover);
        let records = fill_records(chunk, blocks, claim, self.checksums.of(&cover).as_ref());
        self.pool
            .record_filled(chunk, &records)
            .map_err(PoolError::into_io_error)?;
        Ok(Landed::Here)
    }

    /// Reads whole blocks of a chunk at chunk index `index`, and verifies them if they have checksums (D3).
    pub(crate) fn read_blocks(
        &self,
        index: u64,
        chunk: u64,
        view: Option<&PartialView>,
        bytes: Range<u64>,
        target: &mut [u8],
    ) -> Result<(), IoError> {
        let at = self.pool.chunk_offset(chunk) + bytes.start;
        self.pool
            .read_under(chunk, view, bytes.clone(), target)
            .map_err(medium("reading", at))?;
        match self.checksums.are_on() {
            true => self.verify_blocks(index, chunk, view, Blocks::touching(&bytes), target),
            false => Ok(()),
        }
    }

    /// Verifies blocks of a chunk at chunk index `index` that have been read (D3).
    pub(crate) fn verify_blocks(
        &self,
        index: u64,
        chunk: u64,
        view: Option<&PartialView>,
        blocks: Blocks,
        bytes: &[u8],
    ) -> Result<(), IoError> {
        let bad = self
            .pool
            .find_bad_block(chunk, view, blocks, bytes)
            .map_err(PoolError::into_io_error)?;
        let offset = index * self.pool.geometry.chunk_bytes;
        bad.map_or(Ok(()), |bad| {
            Err(self.pool.corrupt(offset + bad.block * BLOCK, bad))
        })
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

    /// Makes the records that go behind one that gives these blocks to a chunk: the claim that they hold these bytes (U1),
    /// and their sums, if they have any (D1).
    pub(crate) fn vouch(
        &self,
        chunk: u64,
        blocks: Blocks,
        bytes: &[u8],
        sums: Option<&BlockSums>,
    ) -> SmallVec<[Record; 4]> {
        let claim = self.claim(chunk, blocks, bytes);
        let sums = sums.map(|sums| sums.records(chunk, blocks));
        claim.into_iter().chain(sums.into_iter().flatten()).collect()
    }

    /// Records what fills a partial chunk, if it still is partial. The caller holds its fill latch and has written the
    /// blocks (F5).
    pub(crate) fn record_filled(&self, chunk: u64, records: &[Record]) -> Result<(), PoolError> {
        // It needs no space, but for sums, and may give some back, so it works in a full pool.
        self.change(Priority::Reclaim, |state| {
            let still_partial = state.partials.contains(chunk);
            Ok(Decision::Apply(match still_partial {
                true => SmallVec::from_slice(records),
                false => SmallVec::new(),
            }))
        })
    }

    /// As [`record_filled`](Self::record_filled), without waiting: room in the log has been reserved. `None` when something
    /// else has to be waited for, which only sums need.
    pub(crate) fn try_record_filled(
        &self,
        chunk: u64,
        records: &[Record],
        checksums: Checksums,
    ) -> Option<Result<(), PoolError>> {
        if let Err(stopped) = self.check_running() {
            return Some(Err(stopped));
        }
        let mut state = write(&self.state);
        if !state.partials.contains(chunk) {
            return Some(Ok(()));
        }
        if checksums.are_on() && state.obstacle_beside_log(records, Priority::Reclaim).is_some() {
            return None;
        }
        Some(state.apply_and_log(records).map_err(|bug| self.stop_for_bug(bug)))
    }

    /// Reads a range of a chunk, wherever its pieces are.
    pub(crate) fn read_under(
        &self,
        chunk: u64,
        view: Option<&PartialView>,
        within: Range<u64>,
        target: &mut [u8],
    ) -> io::Result<()> {
        match view {
            None => self.read_bytes(self.chunk_offset(chunk) + within.start, target),
            Some(view) => self.read_partial(chunk, view, within, target),
        }
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

    /// Tells whether a new chunk of a version may borrow from this one, which is partial (F2).
    pub(crate) fn may_borrow_from_partial(
        &self,
        state: &State,
        (chunk, whose): (u64, Replaced),
        checksums: Checksums,
    ) -> bool {
        let is_known = match checksums {
            Checksums::Off => state.partials_may_lend(),
            Checksums::On => state.checksummed_partials_may_lend(),
        };
        // A chunk that no version has any more stays for as long as it lends.
        let has_space = whose == Replaced::Shared || !state.is_short_of_space();
        is_known && has_space && state.partials.may_lend(chunk)
    }
}

/// Makes the records that give more blocks to a partial chunk.
pub(crate) fn fill_records(
    chunk: u64,
    blocks: Blocks,
    claim: Option<Record>,
    sums: Option<&BlockSums>,
) -> SmallVec<[Record; 4]> {
    let sums = sums.map(|sums| sums.records(chunk, blocks));
    let fill = Record::Fill { chunk, blocks };
    let vouching = claim.into_iter().chain(sums.into_iter().flatten());
    [fill].into_iter().chain(vouching).collect()
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
    mut read_under: impl FnMut(Range<u64>, &mut [u8]) -> Result<(), IoError>,
) -> Result<Cover<'a>, IoError> {
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
