//! Reading and writing where something may have to be loaded, allocated, copied or waited for.
//!
//! The order of every write that changes a mapping: take a free chunk · write the content that the mapping will claim
//! it has · apply and log the mapping. A failure on the way gives the chunk back and leaves no trace. A write of less
//! than a chunk makes a partial chunk of just its blocks ([`part_write`](crate::part_write)) where it may, or else
//! copies the rest at once.
//!
//! Invariants
//! - W1: the blocks that a mapping claims are written before it is applied, so nothing of the chunk's previous owner
//!   is ever read.
//! - W2: bytes beyond a volume's end are zero in its last chunk, so an extend shows zeros.

use std::ops::Range;

use quarry_contract::{Durability, IoBuffer, IoError};

use crate::commit::stopped_by;
use crate::device::is_out_of_space;
use crate::format::{BLOCK, BLOCK_BYTES, LEAF_ENTRIES, LeafEntry};
use crate::given::Replaced;
use crate::handle::VersionHandle;
use crate::latch::LatchTable;
use crate::locks::read;
use crate::map::{LeafView, find_leaf};
use crate::part_write::Landed;
use crate::partial::{Blocks, PartialView};
use crate::plan::{Place, Plan, Planned};
use crate::pool::Pool;
use crate::write_epoch::EpochGuard;
use crate::{PoolDevice, PoolError};

/// The unit of addressing of volumes, in bytes.
pub(crate) const LOGICAL_BLOCK_BYTES: u32 = 512;

/// What a chunk is to hold in a range.
#[derive(Clone, Copy)]
pub(crate) enum Content<'a> {
    Data(&'a [u8]),
    Zeros,
}

/// Where a chunk of a version is.
pub(crate) struct Located {
    pub entry: LeafEntry,
    pub owned: bool,
    /// What it consists of, if it is partial.
    pub partial: Option<PartialView>,
    /// Held while the chunk is written in place.
    _epoch: Option<EpochGuard>,
}

impl Located {
    /// Tells whether any of these blocks is the chunk's own.
    fn holds_any(&self, blocks: Blocks) -> bool {
        let mask = self.partial.as_ref().map(|view| view.mask);
        mask.is_none_or(|mask| mask.touches(blocks))
    }
}

impl VersionHandle {
    /// Reads. Blocks.
    ///
    /// # Errors
    /// `OutOfRange`, `Misaligned`, `Medium`, `Corrupt`, `Closed`.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), IoError> {
        self.check_range(offset, buffer.len() as u64)?;
        if buffer.is_empty() {
            return Ok(());
        }
        self.read_stored(offset, buffer)?;
        self.decrypt(offset, buffer);
        Ok(())
    }

    /// Reads what is on the medium: of an encrypted version, encrypted bytes.
    fn read_stored(&self, offset: u64, buffer: &mut [u8]) -> Result<(), IoError> {
        if let Planned::Direct(plan) = self.plan_read(offset, buffer.len()) {
            return self.read_planned(&plan, buffer);
        }
        let chunk_bytes = self.pool.geometry.chunk_bytes;
        for (index, within, part) in chunk_parts(offset, buffer.len() as u64, chunk_bytes) {
            let target = &mut buffer[part];
            let _latch = self.pool.latches.shared(LatchTable::stripe(self.node, index));
            let located = self.locate(index).map_err(PoolError::into_io_error)?;
            if !located.entry.is_mapped() {
                target.fill(0);
                continue;
            }
            let (chunk, view) = (located.entry.chunk(), located.partial.as_ref());
            let blocks = Blocks::touching(&within).bytes();
            if self.checksums.are_on() && blocks != within {
                // Parts of a block cannot be verified.
                let mut whole = IoBuffer::zeroed((blocks.end - blocks.start) as usize);
                self.read_blocks(index, chunk, view, blocks.clone(), &mut whole)?;
                target.copy_from_slice(&whole[(within.start - blocks.start) as usize..][..target.len()]);
            } else {
                self.read_blocks(index, chunk, view, within, target)?;
            }
        }
        Ok(())
    }

    fn read_planned(&self, plan: &Plan, buffer: &mut [u8]) -> Result<(), IoError> {
        for segment in &plan.segments {
            let target = &mut buffer[segment.buffer.clone()];
            match segment.place {
                Place::Zeros => target.fill(0),
                Place::Device(at) => self.pool.read_bytes(at, target).map_err(medium("reading", at))?,
            }
        }
        plan.guard.verify(buffer)
    }

    /// Writes. Blocks.
    ///
    /// # Errors
    /// `OutOfRange`, `Misaligned`, `ReadOnly`, `NoSpace`, `Medium`, `Corrupt`, `Stopped`, `Closed`.
    pub fn write(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), IoError> {
        self.check_write(offset, data.len() as u64)?;
        match &self.cipher {
            None => self.write_stored(offset, data)?,
            Some(_) => {
                let mut encrypted = IoBuffer::from_slice(data);
                self.encrypt(offset, &mut encrypted);
                self.write_stored(offset, &encrypted)?;
            }
        }
        match durability {
            Durability::Cached => Ok(()),
            Durability::Flushed => self.flush(),
        }
    }

    /// Writes what is to be on the medium.
    fn write_stored(&self, offset: u64, data: &[u8]) -> Result<(), IoError> {
        match self.plan_write(offset, data.len()) {
            Planned::Direct(plan) => {
                for segment in &plan.segments {
                    if let Place::Device(at) = segment.place {
                        let part = &data[segment.buffer.clone()];
                        self.pool
                            .device
                            .write_at(at, part)
                            .map_err(medium("writing", at))?;
                    }
                }
                plan.guard.finish_blocking(data)?;
            }
            Planned::Contended | Planned::NeedsSlowPath => self.write_mapping(offset, data)?,
        }
        Ok(())
    }

    /// Writes where mappings may have to change: whole chunks together, parts of chunks one by one.
    fn write_mapping(&self, offset: u64, data: &[u8]) -> Result<(), IoError> {
        let chunk_bytes = self.pool.geometry.chunk_bytes;
        let mut done = 0;
        while done < data.len() {
            let rest = &data[done..];
            let at = offset + done as u64;
            let whole = rest.len() as u64 / chunk_bytes;
            if at.is_multiple_of(chunk_bytes) && whole > 0 {
                let length = (self.run_of_whole_chunks(whole) * chunk_bytes) as usize;
                self.write_whole_chunks(at / chunk_bytes, &rest[..length])?;
                done += length;
            } else {
                let length = (chunk_bytes - at % chunk_bytes).min(rest.len() as u64);
                let within = at % chunk_bytes..at % chunk_bytes + length;
                self.fill_chunk(at / chunk_bytes, within, Content::Data(&rest[..length as usize]))?;
                done += length as usize;
            }
        }
        Ok(())
    }

    /// Makes completed writes durable, in one commit shared with all who wait. Blocks.
    ///
    /// # Errors
    /// `Stopped`, `Closed`.
    pub fn flush(&self) -> Result<(), IoError> {
        if self.pool.is_closed() {
            return Err(IoError::Closed);
        }
        self.pool.commit().map_err(stopped_by)
    }

    pub(crate) fn check_range(&self, offset: u64, length: u64) -> Result<(), IoError> {
        if self.pool.is_closed() {
            return Err(IoError::Closed);
        }
        let block = u64::from(LOGICAL_BLOCK_BYTES);
        if !offset.is_multiple_of(block) || !length.is_multiple_of(block) {
            return Err(IoError::Misaligned {
                offset,
                length,
                block: LOGICAL_BLOCK_BYTES,
            });
        }
        let size = self.size_bytes();
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(IoError::OutOfRange { offset, length, size });
        }
        Ok(())
    }

    pub(crate) fn check_write(&self, offset: u64, length: u64) -> Result<(), IoError> {
        if self.is_read_only() {
            return Err(IoError::ReadOnly);
        }
        self.check_range(offset, length)?;
        self.pool.check_running().map_err(PoolError::into_io_error)
    }

    /// Looks a chunk up, loading map pages as needed. The caller holds its latch.
    pub(crate) fn locate(&self, index: u64) -> Result<Located, PoolError> {
        let leaf = index / LEAF_ENTRIES as u64;
        loop {
            let wanted = {
                let state = read(&self.pool.state);
                let Some(version) = state.versions.at_row(self.row, self.node) else {
                    return Err(PoolError::Stopped {
                        reason: "the version is gone while it is open".into(),
                    });
                };
                let entry = find_leaf(&version.root, leaf, |view| match view {
                    LeafView::Leaf(entries) => Some(entries[index as usize % LEAF_ENTRIES]),
                    LeafView::Empty => Some(LeafEntry::UNMAPPED),
                    LeafView::Missing(_) => None,
                });
                if let Some(entry) = entry {
                    let owns = state.versions.ownership(version);
                    let owned = entry.is_mapped() && owns.owns(entry.birth(), leaf + 1);
                    let partial = match entry.is_mapped() {
                        true => state.partials.view(entry.chunk()),
                        false => None,
                    };
                    return Ok(Located {
                        entry,
                        owned,
                        partial,
                        _epoch: (owned && !self.is_read_only()).then(|| version.epoch.enter()),
                    });
                }
                state.wanted_leaf(self.node, leaf)
            };
            if let Some(wanted) = wanted {
                self.pool.load(&wanted)?;
            }
        }
    }

    /// Puts content into a range of a chunk, in place or by mapping another chunk.
    pub(crate) fn fill_chunk(
        &self,
        index: u64,
        within: Range<u64>,
        content: Content<'_>,
    ) -> Result<(), IoError> {
        let _latch = self.pool.latches.exclusive(self.node, index, 1);
        let blocks = Blocks::touching(&within);
        let located = loop {
            let located = self.locate(index).map_err(PoolError::into_io_error)?;
            // What a checksummed version has been given it keeps (D2).
            if !located.owned || self.checksums.are_on() && located.holds_any(blocks) {
                break located;
            }
            let chunk = located.entry.chunk();
            if located.partial.is_none() {
                return self.write_in_place(chunk, &within, content);
            }
            match self.write_into_partial(index, chunk, &within, content)? {
                Landed::Here => return Ok(()),
                Landed::Nowhere => {}
            }
        };
        let mapped = located.entry.is_mapped().then(|| located.entry.chunk());
        let begins_partial = !self.is_whole_chunk(&within)
            && self
                .pool
                .may_begin_partial_with_room()
                .map_err(PoolError::into_io_error)?;
        let source = mapped.map(|chunk| (chunk, located.partial.as_ref()));
        match source {
            None if matches!(content, Content::Zeros) => Ok(()),
            Some((chunk, Some(view))) if begins_partial => {
                let whose = Replaced::of(located.owned);
                self.map_over_partial(index, &within, content, (chunk, whose, view))
            }
            lender if begins_partial => self.map_part(index, &within, content, lender),
            _ => self.map_whole(index, &within, content, source),
        }
    }

    fn is_whole_chunk(&self, within: &Range<u64>) -> bool {
        Blocks::touching(within) == Blocks::all(self.pool.geometry.chunk_bytes)
    }

    /// Writes into an owned chunk where it is whole.
    pub(crate) fn write_in_place(
        &self,
        chunk: u64,
        within: &Range<u64>,
        content: Content<'_>,
    ) -> Result<(), IoError> {
        self.pool
            .make_overwritable(chunk, Blocks::touching(within))
            .map_err(PoolError::into_io_error)?;
        let at = self.pool.chunk_offset(chunk) + within.start;
        let written = match content {
            Content::Data(data) => self.pool.write_bytes(at, data),
            Content::Zeros => self.pool.zero_bytes(at, within.end - within.start),
        };
        written.map_err(medium("writing", at))
    }
}

impl Pool {
    /// Reads bytes at any 512-byte boundary.
    pub(crate) fn read_bytes(&self, at: u64, target: &mut [u8]) -> std::io::Result<()> {
        let length = target.len() as u64;
        if at.is_multiple_of(BLOCK) && length.is_multiple_of(BLOCK) {
            return self.device.read_at(at, target);
        }
        let (start, cover) = self.read_cover(at, length)?;
        target.copy_from_slice(&cover[(at - start) as usize..][..target.len()]);
        Ok(())
    }

    /// Writes bytes at any 512-byte boundary; the caller keeps others away from the blocks.
    fn write_bytes(&self, at: u64, data: &[u8]) -> std::io::Result<()> {
        let length = data.len() as u64;
        if at.is_multiple_of(BLOCK) && length.is_multiple_of(BLOCK) {
            return self.device.write_at(at, data);
        }
        let (start, mut cover) = self.read_cover(at, length)?;
        cover[(at - start) as usize..][..data.len()].copy_from_slice(data);
        self.device.write_at(start, &cover)
    }

    fn zero_bytes(&self, at: u64, length: u64) -> std::io::Result<()> {
        if at.is_multiple_of(BLOCK) && length.is_multiple_of(BLOCK) {
            return self.device.write_zeroes(at, length);
        }
        let (start, mut cover) = self.read_cover(at, length)?;
        cover[(at - start) as usize..][..length as usize].fill(0);
        self.device.write_at(start, &cover)
    }

    /// Reads the whole blocks that cover a range.
    fn read_cover(&self, at: u64, length: u64) -> std::io::Result<(u64, IoBuffer)> {
        let start = at / BLOCK * BLOCK;
        let mut cover = IoBuffer::zeroed(((at + length).next_multiple_of(BLOCK) - start) as usize);
        debug_assert_eq!(cover.len() % BLOCK_BYTES, 0);
        self.device.read_at(start, &mut cover)?;
        Ok((start, cover))
    }
}

/// Cuts a range into chunks: chunk index, range within the chunk, range within the request.
pub(crate) fn chunk_parts(
    offset: u64,
    length: u64,
    chunk_bytes: u64,
) -> impl Iterator<Item = (u64, Range<u64>, Range<usize>)> {
    let end = offset + length;
    let indices = if length == 0 {
        0..0
    } else {
        offset / chunk_bytes..(end - 1) / chunk_bytes + 1
    };
    indices.map(move |index| {
        let base = index * chunk_bytes;
        let from = offset.max(base);
        let upto = end.min(base + chunk_bytes);
        let part = (from - offset) as usize..(upto - offset) as usize;
        (index, from - base..upto - base, part)
    })
}

/// Turns a failed data I/O into what the initiator is told. A sparse file that its host cannot grow is a full pool.
pub(crate) fn medium(action: &'static str, at: u64) -> impl FnOnce(std::io::Error) -> IoError {
    move |error| match is_out_of_space(&error) {
        true => IoError::NoSpace,
        false => IoError::Medium {
            detail: format!("{action} at byte {at} of the pool: {error}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_parts_cover_a_range_exactly() {
        let parts: Vec<_> = chunk_parts(100, 250, 128).collect();
        assert_eq!(
            parts,
            [(0, 100..128, 0..28), (1, 0..128, 28..156), (2, 0..94, 156..250)]
        );
        assert_eq!(
            chunk_parts(128, 128, 128).collect::<Vec<_>>(),
            [(1, 0..128, 0..128)]
        );
        assert_eq!(chunk_parts(128, 0, 128).count(), 0);
    }
}
