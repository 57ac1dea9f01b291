//! The chunks that hold wrapped family keys, and nothing else.
//!
//! Part of the state, under its lock. The chunks count as data in the bitmap; no version owns them.

use super::slot::SLOT_BYTES;
use crate::format::Geometry;

/// The key areas of a pool: pairs of chunks that hold the same.
#[derive(Debug, Default, Clone)]
pub(crate) struct KeyAreas {
    /// Whether the next checkpoint is to say that there may be areas, so that no older Quarry takes encrypted data for
    /// other.
    pub wanted: bool,
    pairs: Vec<[u64; 2]>,
}

impl KeyAreas {
    /// Adds an area.
    pub fn push(&mut self, pair: [u64; 2]) {
        self.pairs.push(pair);
    }

    /// Returns the areas.
    pub fn pairs(&self) -> &[[u64; 2]] {
        &self.pairs
    }

    /// Returns their chunks.
    pub fn chunks(&self) -> impl Iterator<Item = u64> + '_ {
        self.pairs.iter().flatten().copied()
    }

    /// Returns how many slots there are.
    pub fn slots(&self, geometry: &Geometry) -> u64 {
        self.pairs.len() as u64 * slots_per_area(geometry)
    }

    /// Returns where the two copies of a slot are, in bytes; `None` when there is no such slot.
    pub fn places(&self, geometry: &Geometry, slot: u32) -> Option<[u64; 2]> {
        let (area, within) = (
            u64::from(slot) / slots_per_area(geometry),
            u64::from(slot) % slots_per_area(geometry),
        );
        let pair = self.pairs.get(area as usize)?;
        Some(pair.map(|chunk| geometry.chunk_offset(chunk) + within * SLOT_BYTES as u64))
    }

    /// Returns how many words [`encode`](Self::encode) gives at most with one more area.
    pub fn most_encoded_words(&self) -> usize {
        1 + 2 * (self.pairs.len() + 1)
    }

    /// Encodes everything for the index stream.
    pub fn encode(&self) -> Vec<u64> {
        let count = [self.pairs.len() as u64];
        count.into_iter().chain(self.chunks()).collect()
    }

    /// Decodes what [`encode`](Self::encode) encoded. `word` gives the next word; `None` when it is cut short.
    pub fn decode(mut word: impl FnMut() -> Option<u64>) -> Option<Self> {
        let count = word()?;
        let pairs = (0..count)
            .map(|_| Some([word()?, word()?]))
            .collect::<Option<_>>()?;
        Some(Self { wanted: true, pairs })
    }
}

/// Returns how many slots an area has.
pub(super) fn slots_per_area(geometry: &Geometry) -> u64 {
    geometry.chunk_bytes / SLOT_BYTES as u64
}
