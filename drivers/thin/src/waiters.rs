//! Writes that wait for space: how many, how long still, and whose turn it is.
//!
//! The requests themselves wait in the queue layer (`queue/waiting_room`), served by one thread; this is what the engine
//! has to know of them.
//!
//! Invariants
//! - H1: while a write of a class waits, only the thread that serves those that wait takes space for that class, or
//!   for a class below it: space goes to who has waited longest.
//! - H2: whatever may have given space back says so ([`Pool::space_came`]), so nobody waits beside free space.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crate::levels::SpaceClass;
use crate::locks::lock;
use crate::pool::Pool;

/// Who waits.
#[derive(Debug, Default)]
pub(crate) struct SpaceWaiters {
    line: Mutex<Line>,
    changed: Condvar,
    /// All in the line; spares whoever only asks whether there is anybody the lock.
    waiting: AtomicU64,
    /// Writes refused for lack of space.
    pub refused: AtomicU64,
}

#[derive(Debug, Default)]
struct Line {
    /// The deadlines of those who wait, by class and ticket; tickets grow.
    reserved: BTreeMap<u64, Instant>,
    best_effort: BTreeMap<u64, Instant>,
    next_ticket: u64,
    /// Who serves them.
    server: Option<ThreadId>,
    /// Counts what may have changed something for them.
    news: u64,
}

impl Line {
    fn of(&mut self, class: SpaceClass) -> &mut BTreeMap<u64, Instant> {
        match class {
            SpaceClass::Reserved => &mut self.reserved,
            SpaceClass::BestEffort => &mut self.best_effort,
        }
    }
}

impl SpaceWaiters {
    /// Returns how many wait.
    pub fn count(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Returns how long the first to be given up still has.
    pub fn until_first_deadline(&self) -> Option<Duration> {
        let line = lock(&self.line);
        let first = line.reserved.values().chain(line.best_effort.values()).min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    /// Tells whether the calling thread may take space now (H1).
    pub fn may_take(&self, class: SpaceClass) -> bool {
        if self.count() == 0 {
            return true;
        }
        let line = lock(&self.line);
        let nobody_before = match class {
            SpaceClass::Reserved => line.reserved.is_empty(),
            SpaceClass::BestEffort => line.reserved.is_empty() && line.best_effort.is_empty(),
        };
        nobody_before || line.server == Some(std::thread::current().id())
    }

    /// Puts somebody at the end of the line; returns the ticket.
    pub fn join(&self, class: SpaceClass, deadline: Instant) -> u64 {
        let ticket = {
            let mut line = lock(&self.line);
            line.next_ticket += 1;
            let ticket = line.next_ticket;
            line.of(class).insert(ticket, deadline);
            ticket
        };
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.tell();
        ticket
    }

    /// Takes who has this ticket out of the line.
    pub fn leave(&self, class: SpaceClass, ticket: u64) {
        let left = lock(&self.line).of(class).remove(&ticket);
        debug_assert!(left.is_some(), "who leaves has joined");
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// Makes the calling thread the one that serves the line, or nobody.
    pub fn set_server(&self, server: Option<ThreadId>) {
        lock(&self.line).server = server;
    }

    /// Returns the number of the last news.
    pub fn news(&self) -> u64 {
        lock(&self.line).news
    }

    /// Waits for news after `seen`, for at most so long.
    pub fn wait_for_news(&self, seen: u64, at_most: Duration) {
        let line = lock(&self.line);
        let (_line, _) = self
            .changed
            .wait_timeout_while(line, at_most, |line| line.news == seen)
            .expect("no thread panicked while it held the line");
    }

    /// Says that something has changed for those who wait.
    pub fn tell(&self) {
        lock(&self.line).news += 1;
        self.changed.notify_all();
    }
}

impl Pool {
    /// Says that there may be more space than before, or that there never will be (H2).
    pub(crate) fn space_came(&self) {
        if self.waiters.count() > 0 {
            self.waiters.tell();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use quarry_contract::{DataSource, Durability, OpenMode, VersionId, VolumeId, VolumeSpec};
    use uuid::Uuid;

    use super::*;
    use crate::sim::SimDevice;
    use crate::{FormatOptions, OpenOptions, VersionHandle};

    fn volume(pool: &Arc<Pool>, number: u128) -> Arc<VersionHandle> {
        let id = VolumeId(Uuid::from_u128(number));
        pool.create_volume(&VolumeSpec::new(id, 1 << 24, DataSource::Blank))
            .unwrap();
        let handle = pool
            .open_version(VersionId::Volume(id), OpenMode::ReadWrite)
            .unwrap();
        handle.write(0, &[1; 1 << 18], Durability::Flushed).unwrap();
        handle
    }

    /// The thread that serves those who wait looks now and then without being told, so nothing else shows that.
    #[test]
    fn h2_whatever_may_have_given_space_back_says_so() {
        let device = SimDevice::new(64 << 20, 1);
        let format = FormatOptions {
            log_bytes: 1 << 20,
            ..FormatOptions::default()
        };
        Pool::format(device.as_ref(), &format).unwrap();
        let pool = Pool::open(device, OpenOptions::default()).unwrap();
        let (first, second) = (volume(&pool, 1), volume(&pool, 2));
        pool.waiters
            .join(SpaceClass::BestEffort, Instant::now() + Duration::from_secs(60));
        let told_of = |what: &str, call: &dyn Fn()| {
            let before = pool.waiters.news();
            call();
            assert!(pool.waiters.news() > before, "H2: {what}");
        };
        first.discard(0, 1 << 17).unwrap();
        told_of("a commit that ends a quarantine", &|| first.flush().unwrap());
        second.discard(0, 1 << 17).unwrap();
        told_of("a checkpoint", &|| pool.checkpoint().unwrap());
        told_of("what the medium was told to discard", &|| {
            while pool.maintain().unwrap().more {}
        });
        told_of("a volume that others leave more to", &|| {
            pool.reserve_volume(VolumeId(Uuid::from_u128(1)), true).unwrap();
        });
        told_of("a pool that has stopped", &|| {
            pool.stop_because("for a test".into())
        });
    }
}
