//! Giving space back, and making ranges read zero.
//!
//! Chunks that a range covers as a whole are unmapped; parts of chunks are zeroed in place.
//!
//! Zeros in a part of a chunk that is shared with a snapshot take a chunk, and so, in the end, does a map that no longer has
//! what a snapshot keeps. When there is none, a discard leaves these as they are: it is there to give space back, and is not
//! refused for lack of it (A5). Who asks for zeros is refused.

use std::ops::Range;

use quarry_contract::{IoError, ZeroMode};
use smallvec::{SmallVec, smallvec};

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

/// What becomes of what cannot be zeroed or unmapped for lack of space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WithoutSpace {
    Refuse,
    LeaveAsItIs,
}

impl VersionHandle {
    /// Gives the space of a range back; parts of chunks are zeroed in place. What a snapshot shares is left as it is when there
    /// is no space to note that the volume does not have it any more. Blocks.
    ///
    /// # Errors
    /// As [`write`](Self::write), but for `NoSpace`.
    pub fn discard(&self, offset: u64, length: u64) -> Result<(), IoError> {
        self.unmap_and_zero(offset, length, WithoutSpace::LeaveAsItIs)
    }

    fn unmap_and_zero(&self, offset: u64, length: u64, without: WithoutSpace) -> Result<(), IoError> {
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
            return self.zero_parts(offset, length, without);
        }
        self.zero_parts(offset, (whole.start * chunk_bytes).min(end) - offset, without)?;
        let tail = (whole.end * chunk_bytes).min(end);
        self.zero_parts(tail, end - tail, without)?;
        self.unmap(whole, end, without)
    }

    /// Makes a range read zero. Blocks.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), IoError> {
        match mode {
            ZeroMode::MayUnmap => self.unmap_and_zero(offset, length, WithoutSpace::Refuse),
            ZeroMode::KeepMapped => {
                self.check_write(offset, length)?;
                self.zero_parts(offset, length, WithoutSpace::Refuse)
            }
        }
    }

    /// Zeroes a range chunk by chunk, without mapping what is not mapped.
    fn zero_parts(&self, offset: u64, length: u64, without: WithoutSpace) -> Result<(), IoError> {
        let chunk_bytes = self.pool.geometry.chunk_bytes;
        for (index, within, _) in chunk_parts(offset, length, chunk_bytes) {
            if self.leaf_is_empty(index / LEAF_ENTRIES as u64) {
                continue;
            }
            match self.fill_chunk(index, within, Content::Zeros) {
                Err(IoError::NoSpace) if without == WithoutSpace::LeaveAsItIs => {}
                zeroed => zeroed?,
            }
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
    fn unmap(&self, chunks: Range<u64>, end: u64, without: WithoutSpace) -> Result<(), IoError> {
        let mut first = chunks.start;
        while first < chunks.end {
            let leaf = first / LEAF_ENTRIES as u64;
            let leaf_end = (leaf + 1) * LEAF_ENTRIES as u64;
            if self.leaf_is_empty(leaf) {
                first = leaf_end;
                continue;
            }
            let count = UNMAP_BATCH.min(leaf_end - first).min(chunks.end - first);
            let latches = self.pool.latches.exclusive(self.node, first, count);
            let mut unmapped = self.unmap_in_leaf(first, count, end, Priority::Discard);
            if unmapped.as_ref().is_err_and(PoolError::is_full) {
                unmapped = self.unmap_in_leaf(first, count, end, Priority::Reclaim);
            }
            let grown = match unmapped {
                Ok(Unmapped::All) => false,
                Ok(Unmapped::RangeHasGrown) => true,
                Ok(Unmapped::Left) if without == WithoutSpace::LeaveAsItIs => false,
                Err(error) if error.is_full() && without == WithoutSpace::LeaveAsItIs => false,
                Ok(Unmapped::Left) => return Err(IoError::NoSpace),
                Err(error) => return Err(error.into_io_error()),
            };
            drop(latches);
            if grown {
                self.unmap(first..first + count - 1, end, without)?;
                let tail = (first + count - 1) * self.pool.geometry.chunk_bytes;
                self.zero_parts(tail, end - tail, without)?;
            }
            first += count;
        }
        Ok(())
    }

    /// Unmaps chunks of one leaf. The caller holds their latches.
    ///
    /// With [`Priority::Reclaim`] only if that frees any: then the map's pages on the way are the version's own, the next
    /// checkpoint replaces them, and it takes nothing for good.
    fn unmap_in_leaf(
        &self,
        first: u64,
        count: u64,
        end: u64,
        priority: Priority,
    ) -> Result<Unmapped, PoolError> {
        let leaf = first / LEAF_ENTRIES as u64;
        let begin = first as usize % LEAF_ENTRIES;
        let batch_end = (first + count) * self.pool.geometry.chunk_bytes;
        let mut outcome = Unmapped::All;
        self.pool.change(priority, |state| {
            if let Some(wanted) = state.wanted_leaf(self.node, leaf) {
                return Ok::<_, PoolError>(Decision::Load(wanted));
            }
            outcome = Unmapped::All;
            let nothing = Ok(Decision::Apply(SmallVec::new()));
            // An extend since the range was cut may have made the last chunk's tail part of the volume.
            if batch_end > end && self.size_bytes() > end {
                outcome = Unmapped::RangeHasGrown;
                return nothing;
            }
            let Some(version) = state.versions.at_row(self.row, self.node) else {
                return nothing;
            };
            let owns = state.versions.ownership(version);
            let (mapped, owned) = find_leaf(&version.root, leaf, |view| match view {
                LeafView::Leaf(entries) => {
                    let mut mapped = entries[begin..begin + count as usize]
                        .iter()
                        .filter(|entry| entry.is_mapped())
                        .peekable();
                    (
                        mapped.peek().is_some(),
                        mapped.any(|entry| owns.owns(entry.birth(), leaf + 1)),
                    )
                }
                LeafView::Empty | LeafView::Missing(_) => (false, false),
            });
            if !mapped {
                return nothing;
            }
            if priority == Priority::Reclaim && !owned {
                outcome = Unmapped::Left;
                return nothing;
            }
            Ok(Decision::Apply(smallvec![Record::Unmap {
                node: self.node,
                first,
                count,
            }]))
        })?;
        Ok(outcome)
    }
}

/// What has become of chunks that were to be unmapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unmapped {
    All,
    /// Nothing: the volume goes on behind the end that was taken for its own.
    RangeHasGrown,
    /// Nothing: it would have taken space and given none back.
    Left,
}
