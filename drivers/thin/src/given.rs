//! Giving a new chunk its content: what a request brings, and what it takes over from the chunk that it replaces.
//!
//! The order is that of every write which changes a mapping (W1): take a free chunk · write what it is given · apply and
//! log the mapping and what vouches for it. A failure on the way gives the chunk back and leaves no trace.

use std::ops::Range;

use quarry_contract::{IoBuffer, IoError};
use smallvec::{SmallVec, smallvec};

use crate::data_path::{Content, medium};
use crate::format::BLOCK;
use crate::handle::VersionHandle;
use crate::locks::read;
use crate::part_write::{Cover, whole_blocks};
use crate::partial::{BlockMask, Blocks, PartialView};
use crate::pool::{Decision, Priority};
use crate::record::Record;
use crate::state::State;
use crate::sums::{BlockSums, Checksums};
use crate::version::NodeId;
use crate::{PoolDevice, PoolError};

/// Blocks for a new chunk.
pub(crate) struct Given<'a> {
    pub blocks: Blocks,
    pub bytes: Cover<'a>,
    /// Their sums, if they have any: what is copied takes them along (D3).
    pub sums: Option<BlockSums>,
}

/// The most runs of blocks that a new chunk takes over one by one: each is a read and a write.
const MOST_KEPT_RUNS: usize = 16;

impl VersionHandle {
    /// Maps a chunk index to a new chunk with these blocks; `map` makes the records of which the last gives it the first ones.
    /// The caller holds the latch of the chunk index exclusively.
    pub(crate) fn map_given(
        &self,
        given: &[Given<'_>],
        map: impl FnOnce(u64) -> SmallVec<[Record; 2]>,
    ) -> Result<(), IoError> {
        let chunks = self.take_chunks(1).map_err(PoolError::into_io_error)?;
        let chunk = chunks[0];
        let written = given.iter().try_for_each(|Given { blocks, bytes, .. }| {
            let at = self.pool.chunk_offset(chunk) + blocks.bytes().start;
            self.pool
                .device
                .write_at(at, bytes)
                .map_err(medium("writing", at))
        });
        let mut records = map(chunk);
        for (number, Given { blocks, bytes, sums }) in given.iter().enumerate() {
            if number > 0 {
                let blocks = *blocks;
                records.push(Record::Fill { chunk, blocks });
            }
            records.extend(self.pool.vouch(chunk, *blocks, bytes, sums.as_ref()));
        }
        let mapped = written.and_then(|()| {
            self.pool
                .change(Priority::Normal, |_| Ok(Decision::Apply(records.clone())))
                .map_err(PoolError::into_io_error)
        });
        if mapped.is_err() {
            self.pool.give_back_written(&chunks);
        }
        mapped
    }

    /// Maps a chunk index to a new chunk that is whole: this content, and around it what `source` holds, or zeros.
    pub(crate) fn map_whole(
        &self,
        index: u64,
        within: &Range<u64>,
        content: Content<'_>,
        source: Option<(u64, Option<&PartialView>)>,
    ) -> Result<(), IoError> {
        let given = self.given_whole(index, within, content, source)?;
        let node = self.node;
        self.map_given(&[given], |chunk| smallvec![Record::Map { node, index, chunk }])
    }

    /// Returns the blocks that this content touches, completed with what `lender` with its view holds, or zeros.
    pub(crate) fn given_part<'a>(
        &self,
        index: u64,
        within: &Range<u64>,
        content: Content<'a>,
        lender: Option<(u64, Option<&PartialView>)>,
    ) -> Result<Given<'a>, IoError> {
        let blocks = Blocks::touching(within);
        let bytes = whole_blocks(blocks, within, content, |bytes, target| match lender {
            Some((lender, view)) => self.read_blocks(index, lender, view, bytes, target),
            None => Ok(()),
        })?;
        let sums = self.checksums.of(&bytes);
        Ok(Given { blocks, bytes, sums })
    }

    /// Returns all blocks of a chunk: this content, and around it what `source` holds, or zeros.
    pub(crate) fn given_whole<'a>(
        &self,
        index: u64,
        within: &Range<u64>,
        content: Content<'a>,
        source: Option<(u64, Option<&PartialView>)>,
    ) -> Result<Given<'a>, IoError> {
        let whole = 0..self.pool.geometry.chunk_bytes;
        let blocks = Blocks::all(whole.end);
        if let Content::Data(data) = content
            && *within == whole
        {
            return Ok(Given {
                blocks,
                bytes: Cover::Request(data),
                sums: self.checksums.of(data),
            });
        }
        let mut bytes = IoBuffer::zeroed(whole.end as usize);
        let source = source.filter(|_| *within != whole);
        if let Some((source, view)) = source {
            let at = self.pool.chunk_offset(source);
            self.pool
                .read_under(source, view, whole, &mut bytes)
                .map_err(medium("reading", at))?;
        }
        let taken_along = match source {
            Some((source, view)) if self.checksums.are_on() => {
                for cut in cut_blocks(within) {
                    let range = cut.bytes().start as usize..cut.bytes().end as usize;
                    self.verify_blocks(index, source, view, cut, &bytes[range])?;
                }
                let sums = self.pool.sums_under(source, view, blocks);
                Some(sums.map_err(PoolError::into_io_error)?)
            }
            _ => None,
        };
        content.put(&mut bytes[within.start as usize..within.end as usize]);
        let sums = match taken_along {
            Some(mut sums) => {
                let touched = Blocks::touching(within);
                let range = touched.bytes().start as usize..touched.bytes().end as usize;
                sums.replace(usize::from(touched.first), &BlockSums::of(&bytes[range]));
                Some(sums)
            }
            None => self.checksums.of(&bytes),
        };
        Ok(Given {
            blocks,
            bytes: Cover::Completed(bytes),
            sums,
        })
    }

    /// Maps a chunk index to a new chunk with this content that takes the place of one that is partial: it borrows the rest from
    /// that one, or where it may not, or need not, takes it over. The caller holds the index's latch exclusively.
    pub(crate) fn map_over_partial(
        &self,
        index: u64,
        within: &Range<u64>,
        content: Content<'_>,
        (replaced, whose, view): (u64, Replaced, &PartialView),
    ) -> Result<(), IoError> {
        let blocks = Blocks::touching(within);
        let source = Some((replaced, Some(view)));
        let rest = {
            let state = read(&self.pool.state);
            self.rest_over_partial(&state, (replaced, whose, view), blocks)
        };
        let Some(rest) = rest else {
            return match self.checksums {
                Checksums::Off => self.map_whole(index, within, content, source),
                Checksums::On => self.map_with_kept(index, within, content, (replaced, view)),
            };
        };
        let given = self.given_part(index, within, content, source)?;
        self.map_given(&[given], |chunk| {
            records_of_part(self.node, index, chunk, blocks, rest)
        })
    }

    /// Tells where what a new chunk with these blocks does not hold is, when it takes the place of one that is partial and nothing
    /// else is copied to it; `None` when something has to be.
    pub(crate) fn rest_over_partial(
        &self,
        state: &State,
        (replaced, whose, view): (u64, Replaced, &PartialView),
        blocks: Blocks,
    ) -> Option<Rest> {
        // All that it holds itself is written over.
        let is_covered = view.mask.is_within(blocks);
        match self.checksums {
            Checksums::On if is_covered => return Some(Rest::Lent),
            Checksums::Off if is_covered && view.lenders.is_empty() => return Some(Rest::Zeros),
            Checksums::On | Checksums::Off => {}
        }
        let may_borrow = self
            .pool
            .may_borrow_from_partial(state, (replaced, whose), self.checksums);
        may_borrow.then_some(match self.checksums {
            Checksums::Off => Rest::Lent,
            Checksums::On => Rest::LentByReplaced,
        })
    }

    /// Maps a chunk index of a checksummed version to a new chunk with this content and all else that the replaced one, which is
    /// partial and may not lend, holds; it borrows from the lender of that.
    fn map_with_kept(
        &self,
        index: u64,
        within: &Range<u64>,
        content: Content<'_>,
        (replaced, view): (u64, &PartialView),
    ) -> Result<(), IoError> {
        let source = Some((replaced, Some(view)));
        let mut kept = view.mask;
        kept.clear(Blocks::touching(within));
        let runs: Vec<Blocks> = runs_of(&kept).take(MOST_KEPT_RUNS + 1).collect();
        if runs.len() > MOST_KEPT_RUNS {
            return self.map_whole(index, within, content, source);
        }
        let mut given = vec![self.given_part(index, within, content, source)?];
        for blocks in runs {
            let range = blocks.bytes();
            let at = self.pool.chunk_offset(replaced) + range.start;
            let mut bytes = IoBuffer::zeroed((range.end - range.start) as usize);
            self.pool
                .device
                .read_at(at, &mut bytes)
                .map_err(medium("reading", at))?;
            let sums = self.pool.sums_under(replaced, Some(view), blocks);
            given.push(Given {
                blocks,
                bytes: Cover::Completed(bytes),
                sums: Some(sums.map_err(PoolError::into_io_error)?),
            });
        }
        let blocks = given[0].blocks;
        self.map_given(&given, |chunk| {
            records_of_part(self.node, index, chunk, blocks, Rest::Lent)
        })
    }
}

/// Whose the chunk is that another takes the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replaced {
    /// The version's that is written: nobody else maps it.
    Own,
    /// An ancestor's.
    Shared,
}

/// Where what a chunk does not hold of its own is, when it takes the place of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    /// It is zeros, whatever was mapped there.
    Zeros,
    /// Lent by what was mapped there; but if the version is checksummed and that is partial, by what lends to it.
    Lent,
    /// Lent by what was mapped there, though that is partial and the version is checksummed.
    LentByReplaced,
}

impl Replaced {
    pub fn of(owned: bool) -> Self {
        match owned {
            true => Self::Own,
            false => Self::Shared,
        }
    }
}

/// Makes the records that map a chunk index to a chunk with these blocks.
pub(crate) fn records_of_part(
    node: NodeId,
    index: u64,
    chunk: u64,
    blocks: Blocks,
    rest: Rest,
) -> SmallVec<[Record; 2]> {
    let unmap = (rest == Rest::Zeros).then_some(Record::Unmap {
        node,
        first: index,
        count: 1,
    });
    let map = match rest {
        Rest::Zeros | Rest::Lent => Record::MapPart {
            node,
            index,
            chunk,
            blocks,
        },
        Rest::LentByReplaced => Record::MapOver {
            node,
            index,
            chunk,
            blocks,
        },
    };
    unmap.into_iter().chain([map]).collect()
}

impl Content<'_> {
    fn put(self, target: &mut [u8]) {
        match self {
            Content::Data(data) => target.copy_from_slice(data),
            Content::Zeros => target.fill(0),
        }
    }
}

/// Returns the blocks of which a range of a chunk covers a part.
fn cut_blocks(within: &Range<u64>) -> impl Iterator<Item = Blocks> {
    let ends = [within.start, within.end];
    let cut = ends.map(|end| (!end.is_multiple_of(BLOCK)).then_some((end / BLOCK) as u16));
    let second = cut[1].filter(|second| cut[0] != Some(*second));
    let one = |first| Blocks { first, count: 1 };
    cut[0].into_iter().chain(second).map(one)
}

fn runs_of(mask: &BlockMask) -> impl Iterator<Item = Blocks> + '_ {
    mask.runs()
        .map(|run| Blocks::touching(&(run.start * BLOCK..run.end * BLOCK)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_that_a_range_cuts_are_those_at_its_ends() {
        let cut = |range: Range<u64>| -> Vec<u16> { cut_blocks(&range).map(|blocks| blocks.first).collect() };
        assert!(cut(0..8192).is_empty());
        assert_eq!(cut(512..8192), [0]);
        assert_eq!(cut(4096..8704), [2]);
        assert_eq!(cut(512..1024), [0]);
        assert_eq!(cut(512..4096 * 3 + 512), [0, 3]);
    }
}
