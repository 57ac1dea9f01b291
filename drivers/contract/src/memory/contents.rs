//! What a volume or snapshot holds: a copy-on-write map of chunks.
//!
//! Invariants
//! - M1: every live [`Chunk`] holds exactly one credit of its [`Space`]; dropping the chunk returns it.
//! - M2: a request takes all the credits it needs before it changes anything, so a refused one leaves no trace.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Difference, Differences, Extent, IoError, ZeroMode};

/// The unit of allocation of the in-memory drivers, in bytes.
pub const CHUNK_BYTES: u64 = 64 * 1024;

/// How many chunks there may be, and how many there are.
#[derive(Debug)]
pub(super) struct Space {
    capacity_chunks: u64,
    live_chunks: AtomicU64,
}

impl Space {
    pub(super) fn of_bytes(capacity_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            capacity_chunks: capacity_bytes / CHUNK_BYTES,
            live_chunks: AtomicU64::new(0),
        })
    }

    pub(super) fn total_bytes(&self) -> u64 {
        self.capacity_chunks * CHUNK_BYTES
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        self.live_chunks.load(Ordering::SeqCst) * CHUNK_BYTES
    }

    fn take_credit(self: &Arc<Self>) -> Result<Credit, IoError> {
        let take = |live: u64| (live < self.capacity_chunks).then_some(live + 1);
        match self
            .live_chunks
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take)
        {
            Ok(_) => Ok(Credit(Arc::clone(self))),
            Err(_) => Err(IoError::NoSpace),
        }
    }
}

/// The right to hold one chunk.
struct Credit(Arc<Space>);

impl Drop for Credit {
    fn drop(&mut self) {
        self.0.live_chunks.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Chunk {
    bytes: Box<[u8]>,
    _credit: Credit,
}

type ChunkMap = BTreeMap<u64, Arc<Chunk>>;

/// The contents of one version. Cloning shares everything and takes constant time.
#[derive(Clone)]
pub(super) struct Contents {
    space: Arc<Space>,
    size_bytes: u64,
    chunks: Arc<ChunkMap>,
}

impl Contents {
    pub(super) fn blank(space: Arc<Space>, size_bytes: u64) -> Self {
        Self {
            space,
            size_bytes,
            chunks: Arc::default(),
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(super) fn grow(&mut self, size_bytes: u64) {
        self.size_bytes = self.size_bytes.max(size_bytes);
    }

    pub(super) fn mapped_bytes(&self) -> u64 {
        self.chunks.len() as u64 * CHUNK_BYTES
    }

    /// Tells whether the two are one version that nothing was written to since.
    pub(super) fn is_same_version(&self, other: &Self) -> bool {
        self.size_bytes == other.size_bytes && Arc::ptr_eq(&self.chunks, &other.chunks)
    }

    /// Fills `buffer` from `offset`; the range is within the size.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) {
        for piece in pieces(offset, buffer.len() as u64) {
            let into = &mut buffer[piece.in_request()];
            match self.chunks.get(&piece.chunk) {
                Some(chunk) => into.copy_from_slice(&chunk.bytes[piece.in_chunk()]),
                None => into.fill(0),
            }
        }
    }

    /// Tells which parts of a range are mapped; the range is within the size.
    pub(super) fn extents(&self, offset: u64, length: u64, most: usize) -> Vec<Extent> {
        let mut extents = Vec::new();
        for piece in pieces(offset, length) {
            let run = Extent {
                length: piece.len as u64,
                mapped: self.chunks.contains_key(&piece.chunk),
            };
            if !Extent::append(&mut extents, run, most) {
                break;
            }
        }
        extents
    }

    /// Tells where these contents may differ from others, or from zeros (V9).
    pub(super) fn differences(&self, since: Option<&Self>, from_bytes: u64, most: usize) -> Differences {
        let nothing = ChunkMap::new();
        let old = since.map_or(&nothing, |since| &since.chunks);
        let indices: BTreeSet<u64> = self.chunks.keys().chain(old.keys()).copied().collect();
        let mut found = Differences::default();
        for index in indices {
            let (new, old) = (self.chunks.get(&index), old.get(&index));
            let offset = (index * CHUNK_BYTES).max(from_bytes);
            let end = ((index + 1) * CHUNK_BYTES).min(self.size_bytes);
            if new.map(Arc::as_ptr) == old.map(Arc::as_ptr) || offset >= end {
                continue;
            }
            let run = Difference {
                offset,
                length: end - offset,
                zeros: new.is_none(),
            };
            if !found.append(run, most) {
                break;
            }
        }
        found
    }

    /// Writes `data` at `offset`; the range is within the size.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), IoError> {
        let touched: Vec<Piece> = pieces(offset, data.len() as u64).collect();
        self.change(&touched, |piece, bytes| {
            bytes.copy_from_slice(&data[piece.in_request()])
        })
    }

    /// Makes a range read zero; the range is within the size. Whole chunks go back to the space unless they are
    /// to stay mapped.
    pub(super) fn zero(&mut self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), IoError> {
        let end = self.size_bytes;
        let goes = |piece: &Piece| {
            let reaches_end = piece.chunk * CHUNK_BYTES + piece.start as u64 + piece.len as u64 == end;
            mode == ZeroMode::MayUnmap && piece.start == 0 && (piece.len as u64 == CHUNK_BYTES || reaches_end)
        };
        let (whole, partial): (Vec<Piece>, Vec<Piece>) = pieces(offset, length)
            .filter(|piece| self.chunks.contains_key(&piece.chunk))
            .partition(goes);
        self.change(&partial, |_, bytes| bytes.fill(0))?;
        if !whole.is_empty() {
            let chunks = Arc::make_mut(&mut self.chunks);
            for piece in whole {
                chunks.remove(&piece.chunk);
            }
        }
        Ok(())
    }

    /// Applies `edit` to each piece, giving the contents a chunk of their own where they have none (M2).
    fn change(&mut self, touched: &[Piece], edit: impl Fn(&Piece, &mut [u8])) -> Result<(), IoError> {
        if touched.is_empty() {
            return Ok(());
        }
        // While another version shares the map, every chunk in it is shared as well.
        let map_is_shared = Arc::get_mut(&mut self.chunks).is_none();
        let is_own = |chunk: &Arc<Chunk>| !map_is_shared && Arc::strong_count(chunk) == 1;
        let needed = touched
            .iter()
            .filter(|piece| !self.chunks.get(&piece.chunk).is_some_and(is_own));
        let mut credits = needed
            .map(|piece| Ok((piece.chunk, self.space.take_credit()?)))
            .collect::<Result<BTreeMap<u64, Credit>, IoError>>()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        for piece in touched {
            if let Some(credit) = credits.remove(&piece.chunk) {
                let bytes = match chunks.get(&piece.chunk) {
                    Some(shared) => shared.bytes.clone(),
                    None => vec![0; CHUNK_BYTES as usize].into_boxed_slice(),
                };
                chunks.insert(
                    piece.chunk,
                    Arc::new(Chunk {
                        bytes,
                        _credit: credit,
                    }),
                );
            }
            let own = chunks.get_mut(&piece.chunk).and_then(Arc::get_mut);
            let own = own.expect("a chunk without a credit taken for it is exclusive");
            edit(piece, &mut own.bytes[piece.in_chunk()]);
        }
        Ok(())
    }
}

/// The part of a request that falls into one chunk.
struct Piece {
    chunk: u64,
    start: usize,
    len: usize,
    request_start: usize,
}

impl Piece {
    fn in_chunk(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.len
    }

    fn in_request(&self) -> std::ops::Range<usize> {
        self.request_start..self.request_start + self.len
    }
}

fn pieces(offset: u64, length: u64) -> impl Iterator<Item = Piece> {
    let end = offset + length;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at == end {
            return None;
        }
        let chunk = at / CHUNK_BYTES;
        let stop = end.min((chunk + 1) * CHUNK_BYTES);
        let piece = Piece {
            chunk,
            start: (at % CHUNK_BYTES) as usize,
            len: (stop - at) as usize,
            request_start: (at - offset) as usize,
        };
        at = stop;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_write_leaves_no_trace_and_space_comes_back_when_the_last_sharer_goes() {
        let space = Space::of_bytes(2 * CHUNK_BYTES);
        let mut head = Contents::blank(Arc::clone(&space), 8 * CHUNK_BYTES);
        head.write(0, &[1; 2 * CHUNK_BYTES as usize]).unwrap();
        let kept = head.clone();
        assert!(matches!(
            head.write(CHUNK_BYTES - 512, &[2; 1024]),
            Err(IoError::NoSpace)
        ));
        assert!(head.is_same_version(&kept));
        drop(kept);
        head.write(CHUNK_BYTES - 512, &[2; 1024]).unwrap();
        assert_eq!(space.allocated_bytes(), 2 * CHUNK_BYTES);
        head.zero(0, 2 * CHUNK_BYTES, ZeroMode::MayUnmap).unwrap();
        assert_eq!(space.allocated_bytes(), 0);
    }
}
