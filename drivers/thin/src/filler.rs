//! Filling partial chunks in the background, so that lenders are let go and the table of partial chunks stays short.
//!
//! What reads zero and is in a hole of the medium is filled as it is: nobody else writes there (F5), so only the record of
//! it is needed, and no I/O.
//!
//! A chunk that cannot be filled, because its lender or its sums cannot be read, or the medium is full, stays partial: what it
//! holds is read as before, and only the blocks that cannot be read are lost to whoever reads them.

use std::ops::Range;
use std::sync::atomic::Ordering;

use crate::locks::read;
use crate::part_write::fill_records;
use crate::partial::{Blocks, Home, PartialView, WholeChunk};
use crate::pool::{Decision, Pool, Priority};
use crate::record::Record;
use crate::sums::Checksums;
use crate::{PoolDevice, PoolError};
use quarry_contract::IoBuffer;
use smallvec::SmallVec;

/// Chunks that one step of the background fills.
const FILL_CHUNKS: usize = 32;
/// Chunks that are filled so that one can begin to be partial: others may be about to, as well.
const FILL_FOR_ONE: usize = 2;
/// Runs of blocks that are recorded at once: together more may be more than a batch of a short log takes.
const RUNS_AT_ONCE: usize = 32;

/// Holes of a chunk that is recorded together with others.
const MOST_HOLES: usize = 4;

/// Partial chunks of which what is missing is in holes: nothing but records is needed to fill them.
#[derive(Default)]
struct Holes<'a> {
    /// Each held until it is recorded (F4, F5).
    chunks: Vec<(u64, PartialView, WholeChunk<'a>)>,
    runs: Vec<(u64, SmallVec<[Record; 4]>)>,
}

impl Pool {
    /// Fills some partial chunks, and says how many it has gone to; tells whether it got any further.
    pub(crate) fn fill_some(&self, gone_to: &mut u64) -> Result<bool, PoolError> {
        self.fill_next(FILL_CHUNKS, gone_to)
    }

    /// Tells whether another chunk may become partial, when there are too many after some of them have been filled: that
    /// moves no more bytes than making the other chunk whole at once would.
    pub(crate) fn may_begin_partial_with_room(&self) -> Result<bool, PoolError> {
        let may_begin = || self.may_begin_partial(&read(&self.state));
        if !may_begin() && self.options.max_partial_chunks > 0 {
            self.fill_next(FILL_FOR_ONE, &mut 0)?;
        }
        Ok(may_begin())
    }

    fn fill_next(&self, count: usize, gone_to: &mut u64) -> Result<bool, PoolError> {
        let from = self.fill_cursor.load(Ordering::Relaxed);
        let chunks = read(&self.state).partials.some_from(from, count);
        let mut filled = false;
        let mut holes = Holes::default();
        for chunk in chunks {
            *gone_to += 1;
            self.fill_cursor.store(chunk + 1, Ordering::Relaxed);
            if holes.runs.len() + MOST_HOLES > RUNS_AT_ONCE {
                self.record_holes(std::mem::take(&mut holes))?;
            }
            if self.find_holes(chunk, &mut holes) {
                filled = true;
                continue;
            }
            let problem = match self.fill(chunk) {
                Ok(Ok(())) => {
                    filled = true;
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(error @ PoolError::Damaged { .. }) => error.to_string(),
                Err(error) => return Err(error),
            };
            tracing::warn!(pool = %self.options.name, chunk, problem, "a chunk cannot be filled");
        }
        self.record_holes(holes)?;
        Ok(filled)
    }

    /// Adds a chunk to those that are filled as they are, if it is one and nobody is filling any of it.
    fn find_holes<'a>(&'a self, chunk: u64, holes: &mut Holes<'a>) -> bool {
        let Some(filling) = self.fill_latches.try_whole(chunk) else {
            return false;
        };
        let Some(view) = read(&self.state).partials.view(chunk) else {
            return true;
        };
        if !view.lenders.is_empty() || view.checksums.are_on() {
            return false;
        }
        let place = self.chunk_offset(chunk);
        let pieces = view.pieces(0..self.geometry.chunk_bytes);
        let missing = pieces.filter(|(_, home)| *home == Home::Nowhere);
        let missing: SmallVec<[Range<u64>; MOST_HOLES]> =
            missing.map(|(piece, _)| piece).take(MOST_HOLES + 1).collect();
        let in_hole = |piece: &Range<u64>| self.device.is_hole(place + piece.start, piece.end - piece.start);
        if missing.len() > MOST_HOLES || !missing.iter().all(in_hole) {
            return false;
        }
        for piece in missing {
            let blocks = Blocks::touching(&piece);
            let claim = self.claim_zeros(chunk, blocks);
            holes.runs.push((chunk, fill_records(chunk, blocks, claim, None)));
        }
        holes.chunks.push((chunk, view, filling));
        true
    }

    /// Records what is filled as it is, all at once.
    fn record_holes(&self, holes: Holes<'_>) -> Result<(), PoolError> {
        if holes.runs.is_empty() {
            return Ok(());
        }
        self.change(Priority::Reclaim, |state| {
            let partial = holes
                .runs
                .iter()
                .filter(|(chunk, _)| state.partials.contains(*chunk));
            Ok(Decision::Apply(
                partial.flat_map(|(_, records)| records.iter().cloned()).collect(),
            ))
        })
    }

    /// Writes the blocks that a chunk borrows into the chunk. The inner error is the medium's.
    fn fill(&self, chunk: u64) -> Result<std::io::Result<()>, PoolError> {
        let _filling = self.fill_latches.whole(chunk);
        // Held to the end: no one else gets the chunk or its lender meanwhile (F4).
        let Some(view) = read(&self.state).partials.view(chunk) else {
            return Ok(Ok(()));
        };
        let mut filled = Vec::new();
        for (piece, home) in view.pieces(0..self.geometry.chunk_bytes) {
            let at = self.chunk_offset(chunk) + piece.start;
            let length = piece.end - piece.start;
            // Only what was missing: the chunk's own blocks may be being overwritten.
            let blocks = Blocks::touching(&piece);
            let claim = match home {
                Home::Own => continue,
                Home::Nowhere if self.device.is_hole(at, length) => self.claim_zeros(chunk, blocks),
                Home::Nowhere | Home::Lender(_) => {
                    let mut bytes = IoBuffer::zeroed(length as usize);
                    if let Home::Lender(lender) = home {
                        let from = self.chunk_offset(lender) + piece.start;
                        if let Err(error) = self.device.read_at(from, &mut bytes) {
                            return Ok(Err(error));
                        }
                    }
                    if let Err(error) = self.device.write_at(at, &bytes) {
                        return Ok(Err(error));
                    }
                    self.claim(chunk, blocks, &bytes)
                }
            };
            // What is copied takes its sums along (D3).
            let sums = match view.checksums {
                Checksums::Off => None,
                Checksums::On => Some(self.sums_under(chunk, Some(&view), blocks)?),
            };
            filled.push(fill_records(chunk, blocks, claim, sums.as_ref()));
        }
        for some in filled.chunks(RUNS_AT_ONCE) {
            self.record_filled(chunk, &some.concat())?;
        }
        Ok(Ok(()))
    }
}
