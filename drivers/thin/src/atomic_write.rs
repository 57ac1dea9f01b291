//! Writes that happen as a whole or not at all, whatever cuts them short.
//!
//! The order is that of every write which changes a mapping (W1), but with new chunks whatever is there: take a chunk
//! for each chunk index that is touched · write the content · apply and log all mappings at once. The records of a batch
//! take effect together, so a power cut at any moment leaves all of them or none; until they are applied reads find
//! what was there before. What a new chunk does not hold of its own it borrows from the one it replaces, where that
//! is whole, or else is copied to it.
//!
//! Invariant X1: the latches of all chunk indexes are held exclusively to the end. So no read that one look-up plans, and
//! no other write, meets a part of it.

use std::ops::Range;

use quarry_contract::{Durability, IoBuffer, IoError};
use smallvec::SmallVec;

use crate::data_path::{Content, LOGICAL_BLOCK_BYTES, medium};
use crate::given::Given;
use crate::handle::VersionHandle;
use crate::locks::read;
use crate::partial::Blocks;
use crate::plan::ChunkPart;
use crate::pool::{Decision, Priority};
use crate::record::Record;
use crate::{PoolDevice, PoolError};

/// The longest write of this kind, in bytes: its records have to fit a batch of the shortest log.
pub(crate) const ATOMIC_WRITE_BYTES: u32 = 1 << 20;

impl VersionHandle {
    /// Writes all of the data or, when it is refused or cut short by anything, nothing of it. Takes space also where the
    /// volume is mapped, and gives as much back later. Blocks.
    ///
    /// # Errors
    /// `OutOfRange`, `Misaligned` also when it is longer than the limit, `ReadOnly`, `NoSpace`, `Medium`, `Stopped`, `Closed`.
    pub fn write_atomic(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), IoError> {
        let length = data.len() as u64;
        self.check_write(offset, length)?;
        if length > ATOMIC_WRITE_BYTES.into() {
            return Err(IoError::Misaligned {
                offset,
                length,
                block: LOGICAL_BLOCK_BYTES,
            });
        }
        match &self.cipher {
            _ if data.is_empty() => {}
            None => self.replace(offset, data)?,
            Some(_) => {
                let mut encrypted = IoBuffer::from_slice(data);
                self.encrypt(offset, &mut encrypted);
                self.replace(offset, &encrypted)?;
            }
        }
        match durability {
            Durability::Cached => Ok(()),
            Durability::Flushed => self.flush(),
        }
    }

    /// Writes what is to be on the medium to new chunks, and maps them together.
    fn replace(&self, offset: u64, data: &[u8]) -> Result<(), IoError> {
        let chunk_bytes = self.pool.geometry.chunk_bytes;
        let request = offset..offset + data.len() as u64;
        let indexes = request.start / chunk_bytes..request.end.div_ceil(chunk_bytes);
        let count = indexes.end - indexes.start;
        let _latches = self.pool.latches.exclusive(self.node, indexes.start, count);
        let mut pieces: SmallVec<[(u64, Given<'_>); 4]> = SmallVec::new();
        for index in indexes {
            let part = ChunkPart::of(&request, index, chunk_bytes);
            let bytes = &data[part.in_buffer(part.within.clone())];
            pieces.push((index, self.piece(index, &part.within, bytes)?));
        }
        let chunks = self.take_chunks(count).map_err(PoolError::into_io_error)?;
        let mapped = self.write_and_map_pieces(&pieces, &chunks);
        if mapped.is_err() {
            self.pool.give_back_written(&chunks);
        }
        mapped
    }

    /// Works out what the new chunk of an index is to hold of its own, so that it holds these bytes in this range and
    /// everything else as it is.
    fn piece<'a>(&self, index: u64, within: &Range<u64>, bytes: &'a [u8]) -> Result<Given<'a>, IoError> {
        let located = self.locate(index).map_err(PoolError::into_io_error)?;
        let old = located.entry.is_mapped().then(|| located.entry.chunk());
        // What it replaces stays as an orphan while it lends: a row of them would take space.
        let borrows = located.partial.is_none() && self.pool.may_begin_partial(&read(&self.pool.state));
        let content = Content::Data(bytes);
        let source = old.map(|chunk| (chunk, located.partial.as_ref()));
        match borrows {
            true => self.given_part(index, within, content, source),
            false => self.given_whole(index, within, content, source),
        }
    }

    fn write_and_map_pieces(&self, pieces: &[(u64, Given<'_>)], chunks: &[u64]) -> Result<(), IoError> {
        let pool = &self.pool;
        let node = self.node;
        let whole = Blocks::all(pool.geometry.chunk_bytes);
        let mut records: SmallVec<[Record; 2]> = SmallVec::new();
        for ((index, given), chunk) in pieces.iter().zip(chunks) {
            let (index, blocks, chunk) = (*index, given.blocks, *chunk);
            let at = pool.chunk_offset(chunk) + blocks.bytes().start;
            pool.device
                .write_at(at, &given.bytes)
                .map_err(medium("writing", at))?;
            records.push(match blocks == whole {
                true => Record::Map { node, index, chunk },
                false => Record::MapPart {
                    node,
                    index,
                    chunk,
                    blocks,
                },
            });
        }
        for ((_, given), chunk) in pieces.iter().zip(chunks) {
            records.extend(pool.vouch(*chunk, given.blocks, &given.bytes, given.sums.as_ref()));
        }
        pool.change(Priority::Normal, |_| Ok(Decision::Apply(records.clone())))
            .map_err(PoolError::into_io_error)
    }
}
