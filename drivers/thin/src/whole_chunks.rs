//! Writing chunks that a request covers as a whole: neighbours are written together and mapped together.
//!
//! The order is that of every write which changes a mapping (W1): take free chunks · write their whole content · apply
//! and log the mappings. Nothing of what was there before is read.

use std::ops::Range;

use quarry_contract::IoError;
use smallvec::SmallVec;

use crate::data_path::{Content, medium};
use crate::handle::VersionHandle;
use crate::partial::Blocks;
use crate::pool::{Decision, Priority};
use crate::record::Record;
use crate::{PoolDevice, PoolError};

/// The most that is written and mapped at once, in bytes: what an initiator sends in one request.
const RUN_BYTES: u64 = 1 << 20;

/// A part of a request on its way to one place.
struct Piece {
    chunk: u64,
    bytes: Range<usize>,
}

impl VersionHandle {
    /// Returns how many of `count` chunks to write at once.
    pub(crate) fn run_of_whole_chunks(&self, count: u64) -> u64 {
        count.min((RUN_BYTES / self.pool.geometry.chunk_bytes).max(1))
    }

    /// Writes whole chunks from chunk index `first` on, at most a [run](Self::run_of_whole_chunks): in place where
    /// the version owns them, else to new ones. Refused for lack of space, it leaves those new ones unmapped.
    pub(crate) fn write_whole_chunks(&self, first: u64, data: &[u8]) -> Result<(), IoError> {
        let chunk_bytes = self.pool.geometry.chunk_bytes as usize;
        let count = data.len() / chunk_bytes;
        let _latches = self.pool.latches.exclusive(self.node, first, count as u64);
        let mut in_place: SmallVec<[Piece; 16]> = SmallVec::new();
        let mut to_map: SmallVec<[(u64, Range<usize>); 16]> = SmallVec::new();
        {
            // The epochs are held until what is written in place has landed.
            let mut epochs: SmallVec<[_; 16]> = SmallVec::new();
            for (index, at) in (first..).zip((0..data.len()).step_by(chunk_bytes)) {
                let located = self.locate(index).map_err(PoolError::into_io_error)?;
                let bytes = at..at + chunk_bytes;
                // What a checksummed version has been given it keeps (D2).
                if !located.owned || self.checksums.are_on() {
                    to_map.push((index, bytes));
                    continue;
                }
                let chunk = located.entry.chunk();
                if located.partial.is_some() {
                    let whole = 0..chunk_bytes as u64;
                    self.write_into_partial(index, chunk, &whole, Content::Data(&data[bytes]))?;
                } else {
                    self.pool
                        .make_overwritable(chunk, Blocks::all(chunk_bytes as u64))
                        .map_err(PoolError::into_io_error)?;
                    in_place.push(Piece { chunk, bytes });
                    epochs.push(located);
                }
            }
            self.write_pieces(&in_place, data)?;
        }
        if to_map.is_empty() {
            return Ok(());
        }
        let chunks = self
            .take_chunks(to_map.len() as u64)
            .map_err(PoolError::into_io_error)?;
        let mapped = self.write_and_map(&to_map, &chunks, data);
        if mapped.is_err() {
            self.pool.give_back_written(&chunks);
        }
        mapped
    }

    fn write_and_map(
        &self,
        to_map: &[(u64, Range<usize>)],
        chunks: &[u64],
        data: &[u8],
    ) -> Result<(), IoError> {
        let pieces: SmallVec<[Piece; 16]> = chunks
            .iter()
            .zip(to_map)
            .map(|(chunk, (_, bytes))| Piece {
                chunk: *chunk,
                bytes: bytes.clone(),
            })
            .collect();
        self.write_pieces(&pieces, data)?;
        let mut maps: SmallVec<[Record; 2]> = chunks
            .iter()
            .zip(to_map)
            .map(|(chunk, (index, _))| Record::Map {
                node: self.node,
                index: *index,
                chunk: *chunk,
            })
            .collect();
        let all = Blocks::all(self.pool.geometry.chunk_bytes);
        for piece in &pieces {
            let bytes = &data[piece.bytes.clone()];
            maps.extend(
                self.pool
                    .vouch(piece.chunk, all, bytes, self.checksums.of(bytes).as_ref()),
            );
        }
        self.pool
            .change(Priority::Normal, |_| Ok(Decision::Apply(maps.clone())))
            .map_err(PoolError::into_io_error)
    }

    /// Writes pieces, with one call for neighbours on the device that are neighbours in the request too.
    fn write_pieces(&self, pieces: &[Piece], data: &[u8]) -> Result<(), IoError> {
        let chunk_bytes = self.pool.geometry.chunk_bytes;
        let neighbours = |a: &Piece, b: &Piece| {
            self.pool.chunk_offset(a.chunk) + chunk_bytes == self.pool.chunk_offset(b.chunk)
                && a.bytes.end == b.bytes.start
        };
        for run in pieces.chunk_by(neighbours) {
            let [first, ..] = run else { continue };
            let at = self.pool.chunk_offset(first.chunk);
            let length: usize = run.iter().map(|piece| piece.bytes.len()).sum();
            let start = first.bytes.start;
            self.pool
                .device
                .write_at(at, &data[start..start + length])
                .map_err(medium("writing", at))?;
        }
        Ok(())
    }
}
