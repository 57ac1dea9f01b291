//! How full a pool is, and who may still take space.
//!
//! Invariants
//! - A4: a volume that is not reserved takes space only while more than the threshold of level critical is available;
//!   a reserved one as long as anything is.
//! - A5: a change that gives space back needs none of what is counted here: it lives on the reserve
//!   ([`Priority`](crate::pool::Priority)).

use std::sync::atomic::Ordering;

use quarry_contract::{PoolSpace, SpaceLevel};

use crate::PoolError;
use crate::locks::read;
use crate::options::{SpaceLevels, Threshold};
use crate::pool::Pool;
use crate::state::State;

/// Whose space is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpaceClass {
    Reserved,
    BestEffort,
}

impl Threshold {
    /// Returns how many chunks that is of a pool, rounded up.
    fn chunks(self, chunk_count: u64, chunk_bytes: u64) -> u64 {
        match self {
            Threshold::Bytes(bytes) => bytes.div_ceil(chunk_bytes),
            Threshold::Percent(percent) => (chunk_count * u64::from(percent)).div_ceil(100),
        }
    }
}

impl State {
    /// Returns how many chunks data may still take.
    pub(crate) fn available_chunks(&self) -> u64 {
        let spare = self.spare_chunks(4).unwrap_or(0) + self.space.as_good_as_free();
        spare.saturating_sub(self.reserve_chunks())
    }

    fn threshold(&self, threshold: Threshold) -> u64 {
        threshold.chunks(self.geometry.chunk_count, self.geometry.chunk_bytes)
    }

    /// Returns how many chunks a class has to leave to others (A4).
    pub(crate) fn left_to_others(&self, class: SpaceClass, levels: &SpaceLevels) -> u64 {
        match class {
            SpaceClass::Reserved => 0,
            SpaceClass::BestEffort => self.threshold(levels.critical),
        }
    }

    fn level(&self, levels: &SpaceLevels) -> SpaceLevel {
        let available = self.available_chunks();
        let is_at = |threshold| available <= self.threshold(threshold);
        match () {
            () if available == 0 => SpaceLevel::Reserve,
            () if is_at(levels.critical) => SpaceLevel::Critical,
            () if is_at(levels.brake) => SpaceLevel::Brake,
            () if is_at(levels.warn) => SpaceLevel::Warn,
            () => SpaceLevel::Normal,
        }
    }

    /// Tells whether new versions are refused to ordinary volumes.
    pub(crate) fn brakes(&self, levels: &SpaceLevels) -> bool {
        let has_brake = self.threshold(levels.brake) > 0 || self.threshold(levels.critical) > 0;
        has_brake && self.level(levels) >= SpaceLevel::Brake
    }
}

impl Pool {
    /// Returns how full the pool is, and who waits for it.
    pub(crate) fn space_status(&self, state: &State) -> PoolSpace {
        let levels = &self.options.levels;
        let bytes = |chunks: u64| chunks * self.geometry.chunk_bytes;
        let threshold = |threshold| bytes(state.threshold(threshold));
        PoolSpace {
            level: state.level(levels),
            available_bytes: bytes(state.available_chunks()),
            warn_bytes: threshold(levels.warn),
            brake_bytes: threshold(levels.brake),
            critical_bytes: threshold(levels.critical),
            reserve_bytes: bytes(state.reserve_chunks()),
            waiting_writes: self.waiters.count(),
            first_deadline: self.waiters.until_first_deadline(),
            refused_writes: self.waiters.refused.load(Ordering::Relaxed),
        }
    }

    /// Tells the log when the level has changed.
    pub(crate) fn note_level(&self) {
        let (level, available) = {
            let state = read(&self.state);
            (state.level(&self.options.levels), state.available_chunks())
        };
        let before = self.level.swap(level as u8, Ordering::Relaxed);
        if before == level as u8 {
            return;
        }
        let available_bytes = available * self.geometry.chunk_bytes;
        let (pool, level_name) = (&self.options.name, level.as_str());
        if level as u8 > before {
            tracing::warn!(%pool, level = level_name, available_bytes, "the pool is getting full");
        } else {
            tracing::info!(%pool, level = level_name, available_bytes, "the pool has more room");
        }
    }

    /// Returns the error of who needs space and gets none.
    pub(crate) fn full(&self, chunks: u64) -> PoolError {
        PoolError::Full {
            needed_bytes: chunks * self.geometry.chunk_bytes,
            free_bytes: read(&self.state).space.free() * self.geometry.chunk_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_bytes_or_parts_of_the_pool_rounded_up() {
        let chunk = 64 << 10;
        assert_eq!(Threshold::Bytes(1).chunks(1000, chunk), 1);
        assert_eq!(Threshold::Bytes(0).chunks(1000, chunk), 0);
        assert_eq!(Threshold::Percent(20).chunks(1001, chunk), 201);
        assert_eq!(Threshold::Percent(0).chunks(1001, chunk), 0);
    }
}
