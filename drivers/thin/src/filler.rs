//! Filling partial chunks in the background, so that lenders are let go and the table of partial chunks stays short.
//!
//! What reads zero and is in a hole of the medium is filled as it is: nobody else writes there (F5), so only the record of
//! it is needed, and no I/O.
//!
//! A chunk that cannot be filled, because its lender or its sums cannot be read, or the medium is full, stays partial: what it
//! holds is read as before, and only the blocks that cannot be read are lost to whoever reads them.

use std::sync::atomic::Ordering;

use crate::locks::read;
use crate::part_write::fill_records;
use crate::partial::{Blocks, Home};
use crate::pool::Pool;
use crate::sums::Checksums;
use crate::{PoolDevice, PoolError};
use quarry_contract::IoBuffer;

/// Chunks that one step fills.
const FILL_CHUNKS: usize = 32;
/// Runs of blocks that are recorded at once.
const RUNS_AT_ONCE: usize = 32;

impl Pool {
    /// Fills some partial chunks, and says how many it has gone to; tells whether it got any further.
    pub(crate) fn fill_some(&self, gone_to: &mut u64) -> Result<bool, PoolError> {
        let from = self.fill_cursor.load(Ordering::Relaxed);
        let chunks = read(&self.state).partials.some_from(from, FILL_CHUNKS);
        let mut filled = false;
        for chunk in chunks {
            *gone_to += 1;
            self.fill_cursor.store(chunk + 1, Ordering::Relaxed);
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
        Ok(filled)
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
        // Together they may be more than a batch of a short log takes.
        for some in filled.chunks(RUNS_AT_ONCE) {
            self.record_filled(chunk, &some.concat())?;
        }
        Ok(Ok(()))
    }
}
