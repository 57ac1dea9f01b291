//! The thread that does a pool's background work, and the pace of it.

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::locks::lock;
use crate::maintenance::{Turn, Turns};
use crate::{Pool, PoolError};

/// How long the thread sleeps when there was nothing to do. Work announces itself through
/// [`Maintainer::nudge`]; what does not (a log filling up) waits at most this long.
const IDLE: Duration = Duration::from_millis(250);
/// Changes that nobody flushed or checkpointed become durable after this long, and the log stays short.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);
/// Where one would give space back, the next checkpoint waits this long only, when there is nothing else to do; and no less than so
/// many times what the last one took, so that it costs a busy pool next to nothing.
const GIVE_BACK_AFTER: Duration = Duration::from_millis(500);
const GIVE_BACK_PART: u32 = 50;
/// Where no batch has come for this long, a checkpoint takes the log's in, too: what the log ends with has no second copy, and
/// nothing behind it that tells damage from what a power cut has left half written.
const FOLD_AFTER: Duration = Duration::from_secs(1);

/// Runs [`Pool::maintain`] on a thread of its own until it is dropped.
pub struct Maintainer {
    signal: Arc<Signal>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Signal {
    state: Mutex<SignalState>,
    changed: Condvar,
}

#[derive(Default)]
struct SignalState {
    stop: bool,
    nudged: bool,
}

impl Maintainer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the operating system refuses it.
    pub fn start(pool: Arc<Pool>) -> io::Result<Self> {
        let signal = Arc::new(Signal::default());
        let theirs = Arc::clone(&signal);
        let thread = std::thread::Builder::new()
            .name("thin-maintain".into())
            .spawn(move || run(&pool, &theirs))?;
        Ok(Self {
            signal,
            thread: Some(thread),
        })
    }

    /// Says that there may be work: a version was deleted.
    pub fn nudge(&self) {
        lock(&self.signal.state).nudged = true;
        self.signal.changed.notify_all();
    }

    /// Ends the thread after the step that it is in.
    pub fn stop(&mut self) {
        lock(&self.signal.state).stop = true;
        self.signal.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the maintenance thread panicked");
        }
    }
}

impl Drop for Maintainer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Signal {
    /// Waits for a nudge or for some time; false when the thread has to end.
    fn wait(&self, at_most: Duration) -> bool {
        let mut state = lock(&self.state);
        if !at_most.is_zero() && !state.nudged && !state.stop {
            let (woken, _) = self
                .changed
                .wait_timeout(state, at_most)
                .expect("no thread panicked while it held the signal");
            state = woken;
        }
        state.nudged = false;
        !state.stop
    }
}

/// Gives a kind of work its turns, so that it goes through so many things in a second and no more.
struct Pace {
    per_second: f64,
    /// Things that may be gone through at once; below 0 after a step that went through more.
    credit: f64,
    since: Instant,
}

/// What is paced.
struct Paces {
    /// In leaves.
    reclaim: Pace,
    /// In chunks.
    fill: Pace,
    /// In chunks.
    scrub: Pace,
}

impl Pace {
    fn new(per_second: u32, now: Instant) -> Self {
        Self {
            per_second: f64::from(per_second.max(1)),
            credit: 0.0,
            since: now,
        }
    }

    /// Returns how long the next step has to wait.
    fn until_next(&mut self, now: Instant) -> Duration {
        let grown = (now - self.since).as_secs_f64() * self.per_second;
        self.since = now;
        // What was not used in a quiet time does not become a burst.
        self.credit = (self.credit + grown).min(0.0);
        Duration::from_secs_f64(-self.credit / self.per_second)
    }

    fn went_through(&mut self, things: u64) {
        self.credit -= things as f64;
    }

    /// Tells whether it is its turn, and if not, how long until then. What is `urgent` need not wait.
    fn turn(&mut self, now: Instant, urgent: impl FnOnce() -> bool) -> (Turn, Duration) {
        let wait = self.until_next(now);
        match wait.is_zero() || urgent() {
            true => (Turn::Now, IDLE),
            false => (Turn::Later, wait),
        }
    }
}

/// The checkpoints that come by time, and not because of something else.
struct Checkpoints {
    last: Instant,
    last_took: Duration,
    /// Where the log ended when it was looked at last, and since when.
    log_end: (u64, Instant),
}

impl Checkpoints {
    fn new(now: Instant) -> Self {
        Self {
            last: now,
            last_took: Duration::ZERO,
            log_end: (0, now),
        }
    }

    fn is_due(&mut self, pool: &Pool, is_idle: bool) -> bool {
        let since = self.last.elapsed();
        let end = pool.end_of_log();
        if self.log_end.0 != end {
            self.log_end = (end, Instant::now());
        }
        let may_be_early = is_idle && since >= self.until_give_back();
        let folds = || self.log_end.1.elapsed() >= FOLD_AFTER && pool.has_batches();
        since >= CHECKPOINT_EVERY || may_be_early && (pool.has_pages_to_give_back() || folds())
    }

    fn until_give_back(&self) -> Duration {
        GIVE_BACK_AFTER.max(self.last_took * GIVE_BACK_PART)
    }

    fn store_one(&mut self, pool: &Pool) -> Result<Duration, PoolError> {
        let begun = Instant::now();
        let stored = pool.checkpoint();
        self.last = Instant::now();
        self.last_took = self.last - begun;
        stored.map(|()| Duration::ZERO)
    }
}

fn run(pool: &Pool, signal: &Signal) {
    let mut wait = Duration::ZERO;
    let now = Instant::now();
    let mut checkpoints = Checkpoints::new(now);
    let mut paces = Paces {
        reclaim: Pace::new(pool.options.reclaim_leaves_per_second, now),
        fill: Pace::new(pool.options.fill_chunks_per_second, now),
        scrub: Pace::new(pool.scrub_chunks_per_second(), now),
    };
    while signal.wait(wait) {
        let step = match checkpoints.is_due(pool, !wait.is_zero()) {
            true => checkpoints.store_one(pool),
            false => step(pool, &mut paces),
        };
        wait = match step {
            Ok(wait) => wait,
            // Reported when it happened; only a reopen helps.
            Err(PoolError::Stopped { .. }) => return,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "background work failed; trying again later"
                );
                checkpoints.last = Instant::now();
                IDLE
            }
        };
    }
}

/// Does one step; returns when the next one is due.
fn step(pool: &Pool, paces: &mut Paces) -> Result<Duration, PoolError> {
    let now = Instant::now();
    let (reclaim, until_reclaim) = paces.reclaim.turn(now, || pool.is_short_of_space());
    let (fill, until_fill) = paces
        .fill
        .turn(now, || pool.has_many_partial_chunks() || pool.is_short_of_space());
    let (scrub, until_scrub) = paces.scrub.turn(now, || false);
    let step = pool.maintain_and(Turns { reclaim, fill, scrub })?;
    paces.reclaim.went_through(step.reclaimed_leaves);
    paces.fill.went_through(step.filled_chunks);
    paces.scrub.went_through(step.scrubbed_chunks);
    Ok(match step.more {
        true => Duration::ZERO,
        false => until_reclaim.min(until_fill).min(until_scrub).min(IDLE),
    })
}

#[cfg(test)]
mod tests {
    use quarry_contract::{DataSource, Durability, OpenMode, VersionId, VolumeId, VolumeSpec};
    use uuid::Uuid;

    use super::*;
    use crate::sim::SimDevice;
    use crate::{FormatOptions, OpenOptions};

    /// What the leaf of a map covers, in bytes.
    const LEAF: u64 = 512 * 16384;

    /// A volume with so many leaves in its map, which a checkpoint has stored.
    fn volume_of_many_pages(pool: &Arc<Pool>) -> VolumeId {
        let id = VolumeId(Uuid::from_u128(1));
        let spec = VolumeSpec::new(id, 1 << 40, DataSource::Blank);
        pool.create_volume(&spec).unwrap();
        let handle = pool
            .open_version(VersionId::Volume(id), OpenMode::ReadWrite)
            .unwrap();
        for leaf in 0..200 {
            handle.write(leaf * LEAF, &[1; 4096], Durability::Cached).unwrap();
        }
        pool.checkpoint().unwrap();
        id
    }

    fn pool() -> Arc<Pool> {
        let device = SimDevice::new(16 << 20, 1);
        let format = FormatOptions {
            chunk_bytes: 16384,
            log_bytes: 1 << 20,
            ..FormatOptions::default()
        };
        Pool::format(&*device, &format).unwrap();
        Pool::open(device, OpenOptions::default()).unwrap()
    }

    #[test]
    fn pages_of_a_deleted_volume_come_back_long_before_a_checkpoint_is_due_by_time() {
        let pool = pool();
        pool.checkpoint().unwrap();
        let before = pool.stat().metadata_chunks;
        let volume = volume_of_many_pages(&pool);
        assert!(pool.stat().metadata_chunks > before + 90);
        let maintainer = Maintainer::start(Arc::clone(&pool)).unwrap();
        pool.delete_volume(volume).unwrap();
        maintainer.nudge();
        let limit = Instant::now() + CHECKPOINT_EVERY / 2;
        while pool.stat().metadata_chunks > before + 2 {
            assert!(Instant::now() < limit, "{} chunks", pool.stat().metadata_chunks);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn checkpoints_that_give_pages_back_are_as_far_apart_as_the_last_one_demands() {
        let pool = pool();
        let volume = volume_of_many_pages(&pool);
        pool.delete_volume(volume).unwrap();
        while pool.maintain().unwrap().more {}
        assert!(pool.has_pages_to_give_back());
        let second = Duration::from_secs(1);
        let long_ago = |last_took| Checkpoints {
            last: Instant::now() - 10 * second,
            last_took,
            ..Checkpoints::new(Instant::now())
        };
        assert!(long_ago(second / 10).is_due(&pool, true));
        assert!(!long_ago(second / 10).is_due(&pool, false), "there is other work");
        assert!(
            !long_ago(second).is_due(&pool, true),
            "it would be a tenth of the time"
        );
        let mut checkpoints = long_ago(Duration::ZERO);
        checkpoints.store_one(&pool).unwrap();
        assert!(!pool.has_pages_to_give_back() && !checkpoints.is_due(&pool, true));
    }

    #[test]
    fn the_log_of_a_pool_that_is_left_alone_is_soon_taken_in_and_of_one_that_is_not_by_and_by() {
        let pool = pool();
        pool.checkpoint().unwrap();
        assert!(!pool.has_batches());
        let name = |number| VolumeSpec::new(VolumeId(Uuid::from_u128(number)), 1 << 30, DataSource::Blank);
        pool.create_volume(&name(1)).unwrap();
        assert!(pool.has_batches());
        let now = Instant::now();
        let mut checkpoints = Checkpoints {
            last: now - 10 * FOLD_AFTER,
            ..Checkpoints::new(now)
        };
        assert!(!checkpoints.is_due(&pool, true), "it has just come");
        checkpoints.log_end.1 -= FOLD_AFTER;
        assert!(!checkpoints.is_due(&pool, false), "there is other work");
        pool.create_volume(&name(2)).unwrap();
        assert!(!checkpoints.is_due(&pool, true), "another has come");
        checkpoints.log_end.1 -= FOLD_AFTER;
        assert!(checkpoints.is_due(&pool, true));
        checkpoints.store_one(&pool).unwrap();
        checkpoints.last -= 10 * FOLD_AFTER;
        checkpoints.log_end.1 -= FOLD_AFTER;
        assert!(!checkpoints.is_due(&pool, true), "there is nothing to take in");

        let _maintainer = Maintainer::start(Arc::clone(&pool)).unwrap();
        pool.create_volume(&name(3)).unwrap();
        let limit = Instant::now() + CHECKPOINT_EVERY / 2;
        while pool.has_batches() {
            assert!(Instant::now() < limit, "the batch is still in the log");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn reclaim_waits_as_long_as_what_it_went_through_takes_and_saves_nothing_up() {
        let begin = Instant::now();
        let mut pace = Pace::new(1000, begin);
        assert_eq!(pace.until_next(begin), Duration::ZERO);
        pace.went_through(64);
        assert_eq!(pace.until_next(begin), Duration::from_millis(64));
        let later = begin + Duration::from_millis(60);
        let left = pace.until_next(later).as_secs_f64();
        assert!((left - 0.004).abs() < 1e-6, "{left} s");
        let much_later = begin + Duration::from_secs(60);
        assert_eq!(pace.until_next(much_later), Duration::ZERO);
        pace.went_through(1000);
        assert_eq!(pace.until_next(much_later), Duration::from_secs(1));
    }
}
