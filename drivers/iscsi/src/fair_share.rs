//! How much a volume may have at its device while others want to be served too.
//!
//! A disk serves what it has been given in an order of its own. Who comes after a neighbour's 64 MiB of reads waits for all
//! of them, though little of it keeps the disk busy. So what a queue has there is bounded: where only one volume is used, by
//! what its fastest stream takes; where several are, all of them together by [`SHARED_BYTES`], in equal parts. Equal parts
//! of a queue are equal parts of what the disk moves, and nobody waits for more than the parts of the others.
//!
//! The bound is looked up, not handed out: each queue says now and then that it is used ([`Census`]), so nothing has to be
//! given back, and no reactor waits for another. It holds for all volumes of a medium together, whatever pools they are
//! of: with so much at it, a disk moves as much as with more.
//!
//! Invariants
//! - H1: a queue may always have one request at its device.
//! - H2: a volume's part does not depend on how many reactors serve it, but for H1.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use quarry_contract::MediumId;

/// What all volumes of a medium together may have at it when several are used, in bytes: a few milliseconds of a fast disk's
/// time.
const SHARED_BYTES: u64 = 4 << 20;

/// What a request counts at least, in bytes: small ones take a disk's time too.
const LEAST_COST_BYTES: usize = 32 << 10;

/// The unit of an [`Epoch`]. A volume counts as used for so long after its last request, and up to twice as long.
const EPOCH: Duration = Duration::from_millis(500);

/// A moment, roughly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch(u32);

/// Counts who has been there in this epoch and in the one before, if each says so once an epoch.
///
/// In one word: the epoch, then 16 bits for the count of the one before and 16 for that of this one.
#[derive(Debug, Default)]
pub struct Census(AtomicU64);

/// Tells the time, roughly.
#[derive(Debug)]
pub struct EpochClock {
    begun: Instant,
}

/// The volumes of one medium that are used.
#[derive(Debug, Default)]
pub struct FairShare {
    volumes: Census,
}

/// What serves volumes, while it does.
#[derive(Debug, Default)]
pub struct Media(Mutex<HashMap<MediumId, Weak<FairShare>>>);

impl Media {
    /// Returns what the volumes of a medium share.
    pub fn of(&self, medium: MediumId) -> Arc<FairShare> {
        let mut media = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = media.get(&medium).and_then(Weak::upgrade) {
            return known;
        }
        media.retain(|_, shared| shared.strong_count() > 0);
        let shared = Arc::default();
        media.insert(medium, Arc::downgrade(&shared));
        shared
    }
}

impl Census {
    /// Counts one more; tells whether it is the first of this epoch.
    fn note(&self, Epoch(now): Epoch) -> bool {
        let mut known = self.0.load(Ordering::Relaxed);
        loop {
            let (before, count) = Self::counts(known, now);
            let count = count.saturating_add(1);
            let noted = u64::from(now) << 32 | u64::from(before) << 16 | u64::from(count);
            match self
                .0
                .compare_exchange_weak(known, noted, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return count == 1,
                Err(other) => known = other,
            }
        }
    }

    /// Returns how many there have been of late.
    fn count(&self, Epoch(now): Epoch) -> u64 {
        let (before, count) = Self::counts(self.0.load(Ordering::Relaxed), now);
        before.max(count).into()
    }

    /// Takes a word apart as of an epoch: the count of the one before and its own.
    fn counts(word: u64, now: u32) -> (u16, u16) {
        let (before, count) = ((word >> 16) as u16, word as u16);
        match now.wrapping_sub((word >> 32) as u32) {
            0 => (before, count),
            1 => (count, 0),
            _ => (0, 0),
        }
    }
}

impl EpochClock {
    /// Begins.
    pub fn new(now: Instant) -> Self {
        Self { begun: now }
    }

    /// Returns the epoch of a moment.
    pub fn epoch(&self, now: Instant) -> Epoch {
        let since = now.saturating_duration_since(self.begun);
        // A new census is of epoch 0, so the first one is 2. In 68 years they begin again.
        Epoch((since.as_millis() / EPOCH.as_millis()) as u32 + 2)
    }
}

impl FairShare {
    /// Says, once an epoch, that one queue of a volume is used.
    pub fn note_use(&self, queues: &Census, epoch: Epoch) {
        if queues.note(epoch) {
            self.volumes.note(epoch);
        }
    }

    /// Returns what one queue of a volume in use may have at its device, in bytes, a request counting at least
    /// [`least_cost`]; `useful_bytes` is what its fastest stream takes.
    pub fn share_of(&self, queues: &Census, useful_bytes: u32, epoch: Epoch) -> u64 {
        let useful = u64::from(useful_bytes);
        match self.volumes.count(epoch) {
            0 | 1 => useful,
            volumes => useful.min(SHARED_BYTES / volumes) / queues.count(epoch).max(1),
        }
    }
}

/// Returns what a request counts at least at a device whose fastest stream takes `useful_bytes`, in bytes: no more than
/// lets a lone volume have `depth` of them there.
pub fn least_cost(useful_bytes: u32, depth: u32) -> usize {
    LEAST_COST_BYTES.min((useful_bytes / depth) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const USEFUL_BYTES: u32 = 16 << 20;

    #[test]
    fn volumes_in_use_have_equal_parts_whatever_their_queues() {
        let begun = Instant::now();
        let (fair, clock) = (FairShare::default(), EpochClock::new(begun));
        let [noisy, quiet] = [Census::default(), Census::default()];
        let shares = |epoch| [&noisy, &quiet].map(|queues| fair.share_of(queues, USEFUL_BYTES, epoch));
        let first = clock.epoch(begun);
        assert_eq!(shares(first), [16 * MIB; 2], "nobody has asked for anything");
        fair.note_use(&noisy, first);
        fair.note_use(&noisy, first);
        assert_eq!(shares(first), [16 * MIB; 2], "one volume, two queues");
        fair.note_use(&quiet, first);
        assert_eq!(shares(first), [MIB, 2 * MIB], "H2");

        // The quiet one is remembered for an epoch, and then forgotten.
        let second = clock.epoch(begun + EPOCH);
        assert_ne!(second, first);
        fair.note_use(&noisy, second);
        assert_eq!(shares(second), [MIB, 2 * MIB]);
        let third = clock.epoch(begun + 2 * EPOCH);
        fair.note_use(&noisy, third);
        fair.note_use(&noisy, third);
        assert_eq!(shares(third), [16 * MIB; 2]);
        fair.note_use(&quiet, third);
        assert_eq!(shares(third), [MIB, 2 * MIB]);
    }

    #[test]
    fn nobody_has_more_than_is_useful_to_its_device() {
        let fair = FairShare::default();
        let epoch = Epoch(2);
        let volumes = [Census::default(), Census::default()];
        for queues in &volumes {
            fair.note_use(queues, epoch);
        }
        assert_eq!(fair.share_of(&volumes[0], 1 << 20, epoch), MIB);
        assert_eq!(least_cost(1 << 20, 128), 8 << 10);
        assert_eq!(least_cost(USEFUL_BYTES, 128), LEAST_COST_BYTES);
    }

    #[test]
    fn volumes_of_another_medium_take_nothing_away() {
        let media = Media::default();
        let [here, too, there] = [1, 1, 2].map(|medium| media.of(MediumId(medium)));
        let volumes: [Census; 3] = Default::default();
        for (fair, queues) in [&here, &too, &there].into_iter().zip(&volumes) {
            fair.note_use(queues, Epoch(2));
        }
        assert_eq!(here.share_of(&volumes[0], USEFUL_BYTES, Epoch(2)), 2 * MIB);
        assert_eq!(there.share_of(&volumes[2], USEFUL_BYTES, Epoch(2)), 16 * MIB);
        // What nobody uses is forgotten when another comes.
        drop((here, too));
        let _elsewhere = media.of(MediumId(3));
        assert_eq!(media.0.lock().unwrap().len(), 2);
    }

    #[test]
    fn a_census_forgets_what_is_two_epochs_old_and_never_overflows() {
        let census = Census::default();
        assert_eq!(census.count(Epoch(2)), 0);
        assert!(census.note(Epoch(2)));
        assert!(!census.note(Epoch(2)));
        assert_eq!([2, 3, 4].map(|now| census.count(Epoch(now))), [2, 2, 0]);
        assert!(census.note(Epoch(3)));
        assert_eq!([3, 4, 5].map(|now| census.count(Epoch(now))), [2, 1, 0]);
        for _ in 0..70_000 {
            census.note(Epoch(9));
        }
        assert_eq!(census.count(Epoch(9)), u16::MAX.into());
    }
}
