//! Giving space back, and making ranges read zero.
//!
//! Chunks that a range covers as a whole are unmapped; parts of chunks are zeroed in place.

use std::ops::Range;

use quarry_contract::{IoError, ZeroMode};
use smallvec::SmallVec;

use crate::PoolError;
use crate::data_path::{Content, chunk_parts};
use crate::format::LEAF_ENTRIES;
use crate::handle::VersionHandle;
use crate::locks::read;
use crate::map::{LeafView, find_leaf};
use crate::pool::{Decision, Priority};
use crate::record::Record;

/// Chunks whose latches a discard holds at once.
const UNMAP_BATCH: u64 = 128;

impl VersionHandle {
    /// Gives the space of a range back; parts of chunks are zeroed in place. Blocks.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn discard(&self, offset: u64, length: u64) -> Result<(), IoError> {
        self.check_write(offset, length)?;
        let chunk_bytes = self.pool.geometry.chunk_bytes;
        let end = offset + length;
        // The last chunk of a volume counts as whole although the volume may end inside of it.
        let whole_end = if end == self.size_bytes() {
            end.div_ceil(chunk_bytes)
        } else {
            end / chunk_bytes
        };
        let whole = offset.div_ceil(chunk_bytes)..whole_end;
        if whole.is_empty() {
            return self.zero_parts(offset, length);
        }
        self.zero_parts(offset, (whole.start * chunk_bytes).min(end) - offset)?;
        let tail = (whole.end * chunk_bytes).min(end);
        self.zero_parts(tail, end - tail)?;
        self.unmap(whole, end)
    }

    /// Makes a range read zero. Blocks.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), IoError> {
        match mode {
            ZeroMode::MayUnmap => self.discard(offset, length),
            ZeroMode::KeepMapped => {
                self.check_write(offset, length)?;
                self.zero_parts(offset, length)
            }
        }
    }

    /// Zeroes a range chunk by chunk, without mapping what is not mapped.
    fn zero_parts(&self, offset: u64, length: u64) -> Result<(), IoError> {
        let chunk_bytes = self.pool.geometry.chunk_bytes;
        for (index, within, _) in chunk_parts(offset, length, chunk_bytes) {
            if self.leaf_is_empty(index / LEAF_ENTRIES as u64) {
                continue;
            }
            self.fill_chunk(index, within, Content::Zeros)?;
        }
        Ok(())
    }

    fn leaf_is_empty(&self, leaf: u64) -> bool {
        let state = read(&self.pool.state);
        state
            .versions
            .at_row(self.row, self.node)
            .is_some_and(|version| find_leaf(&version.root, leaf, |view| matches!(view, LeafView::Empty)))
    }

    /// Unmaps chunks that a discard up to byte `end` covers as a whole, or up to the volume's end.
    fn unmap(&self, chunks: Range<u64>, end: u64) -> Result<(), IoError> {
        let mut first = chunks.start;
        while first < chunks.end {
            let leaf = first / LEAF_ENTRIES as u64;
            let leaf_end = (leaf + 1) * LEAF_ENTRIES as u64;
            if self.leaf_is_empty(leaf) {
                first = leaf_end;
                continue;
            }
            let count = UNMAP_BATCH.min(leaf_end - first).min(chunks.end - first);
            let batch_end = (first + count) * self.pool.geometry.chunk_bytes;
            let mut grown = false;
            let latches = self.pool.latches.exclusive(self.node, first, count);
            self.pool
                .change(Priority::Discard, |state| {
                    if let Some(wanted) = state.wanted_leaf(self.node, leaf) {
                        return Ok(Decision::Load(wanted));
                    }
                    // An extend since the range was cut may have made the last chunk's tail part of the volume.
                    grown = batch_end > end && self.size_bytes() > end;
                    if grown {
                        return Ok(Decision::Apply(SmallVec::new()));
                    }
                    let root = state
                        .versions
                        .at_row(self.row, self.node)
                        .map(|version| &version.root);
                    let mapped = root.is_some_and(|root| {
                        find_leaf(root, leaf, |view| match view {
                            LeafView::Leaf(entries) => {
                                let begin = first as usize % LEAF_ENTRIES;
                                entries[begin..begin + count as usize]
                                    .iter()
                                    .any(|entry| entry.is_mapped())
                            }
                            LeafView::Empty | LeafView::Missing(_) => false,
                        })
                    });
                    let unmap = Record::Unmap {
                        node: self.node,
                        first,
                        count,
                    };
                    Ok(Decision::Apply(
                        mapped.then_some(unmap).into_iter().collect::<SmallVec<_>>(),
                    ))
                })
                .map_err(PoolError::into_io_error)?;
            drop(latches);
            if grown {
                self.unmap(first..first + count - 1, end)?;
                let tail = (first + count - 1) * self.pool.geometry.chunk_bytes;
                self.zero_parts(tail, end - tail)?;
            }
            first += count;
        }
        Ok(())
    }
}
