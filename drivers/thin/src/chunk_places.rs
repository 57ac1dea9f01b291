//! Where chunks are, for whoever has no lock: the part of the geometry that the data path needs.
//!
//! Places never change; a growth adds some before the first chunk there is handed out (J1 in [`grow`](crate::grow)).

use std::sync::OnceLock;

use crate::format::Geometry;

/// The beginnings of all segments.
pub(crate) struct ChunkPlaces {
    chunk_bytes: u64,
    data_start: u64,
    /// First chunk and address of each segment behind the first.
    added: [OnceLock<(u64, u64)>; 8],
}

impl ChunkPlaces {
    pub fn of(geometry: &Geometry) -> Self {
        let places = Self {
            chunk_bytes: geometry.chunk_bytes,
            data_start: geometry.data_start,
            added: Default::default(),
        };
        places.take_over(geometry);
        places
    }

    /// Adds the segments that are new in `geometry`.
    pub fn take_over(&self, geometry: &Geometry) {
        for (slot, segment) in self.added.iter().zip(geometry.added_segments()) {
            slot.get_or_init(|| (segment.first_chunk, segment.address));
        }
    }

    /// Returns where a chunk is.
    pub fn address(&self, chunk: u64) -> u64 {
        let (mut first, mut address) = (0, self.data_start);
        for slot in &self.added {
            match slot.get() {
                Some((next, at)) if chunk >= *next => (first, address) = (*next, *at),
                _ => break,
            }
        }
        address + (chunk - first) * self.chunk_bytes
    }
}
