//! The limits of one volume, shared by all its sessions (contract T8).
//!
//! A task asks before it moves anything. When it has to wait it gets a place in the line of its session, and a
//! message when its turn has come. Reads and writes of a session have a line each: a limit of writes holds up no
//! read. The line that has had the least goes first (start-time fair queueing: each line has a tag, which grows by
//! what it is given, measured by the limit that it takes most of).
//!
//! Nothing runs while nobody waits. While somebody does, one reactor has a timer for the moment the next can go.
//!
//! Invariants
//! - P1: nobody is granted anything while a rate that it counts against is not open.
//! - P2: while somebody waits, a timer is armed for no later than the first that can go.
//! - P3: a place is granted once or left, and never used again.

mod bucket;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bucket::{Bucket, Picos};
use quarry_contract::{IoLimits, Rate, RateLimits};

use crate::exports::ConnectionAddress;
use crate::range_locks::Taker;

/// What a task is about to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demand {
    /// What it reads.
    pub read: Amount,
    /// What it writes.
    pub write: Amount,
}

/// How much.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Commands.
    pub commands: u64,
    /// Bytes that they move.
    pub bytes: u64,
}

impl Demand {
    /// Tells whether it is nothing that could be limited.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// A place in a line (P3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(u64);

/// What follows from a call: whoever makes it tells those whose turn it is and arms the timer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Whose turn it is.
    pub granted: Vec<(Taker, Place)>,
    /// When [`Limiter::wake`] is to be called, if not known already.
    pub wake: Option<Instant>,
}

/// See the module.
pub struct Limiter {
    is_on: AtomicBool,
    state: Mutex<State>,
}

struct State {
    began: Instant,
    limits: IoLimits,
    buckets: Buckets,
    lines: Vec<Line>,
    /// The tag of what was granted last.
    tag: Picos,
    last_place: u64,
    armed: Option<Instant>,
}

/// Those of one session that wait to read, or to write.
struct Line {
    session: ConnectionAddress,
    writes: bool,
    tag: Picos,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    place: Place,
    slot: u16,
    demand: Demand,
}

impl Limiter {
    /// Makes a limiter whose rates have not been used.
    pub fn new(limits: IoLimits, now: Instant) -> Self {
        Self {
            is_on: AtomicBool::new(!limits.is_none()),
            state: Mutex::new(State {
                began: now,
                limits,
                buckets: Buckets::new(&limits, &Buckets::default(), 0),
                lines: Vec::new(),
                tag: 0,
                last_place: 0,
                armed: None,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whether nothing is limited. One load.
    pub fn is_off(&self) -> bool {
        !self.is_on.load(Ordering::Acquire)
    }

    /// Replaces the limits. Tells whether they are others.
    pub fn set(&self, limits: IoLimits, now: Instant) -> (bool, Turn) {
        let mut state = self.lock();
        if state.limits == limits {
            return (false, Turn::default());
        }
        let at = state.picos(now);
        state.limits = limits;
        state.buckets = Buckets::new(&limits, &state.buckets, at);
        self.is_on.store(!limits.is_none(), Ordering::Release);
        (true, state.turn(at))
    }

    /// Asks for a task. Without a place it may go at once.
    pub fn ask(&self, taker: Taker, demand: Demand, now: Instant) -> (Option<Place>, Turn) {
        let mut state = self.lock();
        let at = state.picos(now);
        let alone = state.lines.iter().all(|line| line.waiting.is_empty());
        let line = state.line_of(taker.session, demand.write != Amount::default());
        if alone && state.buckets.opens(&demand) <= at {
            state.give(line, &demand, at);
            return (None, Turn::default());
        }
        state.last_place += 1;
        let place = Place(state.last_place);
        state.lines[line].waiting.push_back(Waiting {
            place,
            slot: taker.slot,
            demand,
        });
        let mut turn = state.turn(at);
        let waits = !turn.granted.iter().any(|(_, granted)| *granted == place);
        turn.granted.retain(|(_, granted)| *granted != place);
        (waits.then_some(place), turn)
    }

    /// Gives a place up, if it is not granted yet.
    pub fn leave(&self, session: ConnectionAddress, place: Place, now: Instant) -> Turn {
        let mut state = self.lock();
        for line in state.lines.iter_mut().filter(|line| line.session == session) {
            line.waiting.retain(|waiting| waiting.place != place);
        }
        // Who stood behind may need less.
        let at = state.picos(now);
        state.turn(at)
    }

    /// Lets those go whose time has come. `armed` is the moment the timer was for.
    pub fn wake(&self, armed: Instant, now: Instant) -> Turn {
        let mut state = self.lock();
        if state.armed == Some(armed) {
            state.armed = None;
        }
        let at = state.picos(now);
        state.turn(at)
    }
}

impl State {
    fn picos(&self, moment: Instant) -> Picos {
        moment.saturating_duration_since(self.began).as_nanos() * 1000
    }

    /// Returns the line of a session, which may be new.
    fn line_of(&mut self, session: ConnectionAddress, writes: bool) -> usize {
        let is_it = |line: &Line| line.session == session && line.writes == writes;
        let at = self.lines.iter().position(is_it).unwrap_or_else(|| {
            self.lines.push(Line {
                session,
                writes,
                tag: self.tag,
                waiting: VecDeque::new(),
            });
            self.lines.len() - 1
        });
        let line = &mut self.lines[at];
        if line.waiting.is_empty() {
            // A pause earns nothing against the others.
            line.tag = line.tag.max(self.tag);
        }
        at
    }

    /// Gives a line what it demands.
    fn give(&mut self, line: usize, demand: &Demand, now: Picos) {
        debug_assert!(self.buckets.opens(demand) <= now, "P1");
        let cost = self.buckets.take(demand, now);
        let line = &mut self.lines[line];
        self.tag = self.tag.max(line.tag);
        line.tag += cost;
    }

    /// Lets go whoever can, and says when the next can.
    fn turn(&mut self, now: Picos) -> Turn {
        let mut granted = Vec::new();
        let mut next: Option<Picos>;
        loop {
            let mut first: Option<usize> = None;
            next = None;
            for (at, line) in self.lines.iter().enumerate() {
                let Some(head) = line.waiting.front() else {
                    continue;
                };
                let opens = self.buckets.opens(&head.demand);
                if opens > now {
                    next = Some(next.map_or(opens, |next| next.min(opens)));
                } else if first.is_none_or(|first| line.tag < self.lines[first].tag) {
                    first = Some(at);
                }
            }
            let Some(at) = first else {
                break;
            };
            let line = &mut self.lines[at];
            let Some(head) = line.waiting.pop_front() else {
                break;
            };
            let taker = Taker {
                session: line.session,
                slot: head.slot,
            };
            self.give(at, &head.demand, now);
            granted.push((taker, head.place));
        }
        // A line that is behind the others is as good as a new one.
        let tag = self.tag;
        self.lines
            .retain(|line| !line.waiting.is_empty() || line.tag > tag);
        let wake = next.and_then(|next| self.arm(next));
        Turn { granted, wake }
    }

    /// Returns the moment to arm a timer for, unless one is armed for no later (P2).
    fn arm(&mut self, next: Picos) -> Option<Instant> {
        let nanos = u64::try_from(next.div_ceil(1000)).unwrap_or(u64::MAX);
        let moment = self.began + Duration::from_nanos(nanos);
        let sooner = self.armed.is_none_or(|armed| moment < armed);
        if sooner {
            self.armed = Some(moment);
        }
        sooner.then_some(moment)
    }
}

/// The buckets of all limits there are.
#[derive(Default)]
struct Buckets {
    total: Pair,
    read: Pair,
    write: Pair,
}

#[derive(Default)]
struct Pair {
    commands: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Pair {
    fn new(limits: &RateLimits, before: &Pair, now: Picos) -> Self {
        let bucket = |rate: Option<Rate>, before| rate.map(|rate| Bucket::new(rate, before, now));
        Self {
            commands: bucket(limits.commands, before.commands),
            bytes: bucket(limits.bytes, before.bytes),
        }
    }
}

impl Buckets {
    fn new(limits: &IoLimits, before: &Buckets, now: Picos) -> Self {
        Self {
            total: Pair::new(&limits.total, &before.total, now),
            read: Pair::new(&limits.read, &before.read, now),
            write: Pair::new(&limits.write, &before.write, now),
        }
    }

    /// Returns the buckets that a demand counts against, with what it takes of each.
    fn of(&mut self, demand: &Demand) -> impl Iterator<Item = (&mut Bucket, u64)> {
        let Demand { read, write } = *demand;
        [
            (&mut self.total.commands, read.commands + write.commands),
            (&mut self.total.bytes, read.bytes + write.bytes),
            (&mut self.read.commands, read.commands),
            (&mut self.read.bytes, read.bytes),
            (&mut self.write.commands, write.commands),
            (&mut self.write.bytes, write.bytes),
        ]
        .into_iter()
        .filter(|(_, amount)| *amount > 0)
        .filter_map(|(bucket, amount)| bucket.as_mut().map(|bucket| (bucket, amount)))
    }

    /// Returns from when on a demand can be met.
    fn opens(&mut self, demand: &Demand) -> Picos {
        self.of(demand)
            .map(|(bucket, _)| bucket.opens())
            .max()
            .unwrap_or(0)
    }

    /// Takes a demand. Returns how long it takes at the rate that is hardest on it; at one of the total, if any is.
    fn take(&mut self, demand: &Demand, now: Picos) -> Picos {
        let mut most = 0;
        for (bucket, amount) in self.of(demand) {
            bucket.take(amount, now);
            most = most.max(bucket.cost(amount));
        }
        let Demand { read, write } = *demand;
        let cost = |bucket: &Option<Bucket>, amount| bucket.as_ref().map_or(0, |bucket| bucket.cost(amount));
        let commands = cost(&self.total.commands, read.commands + write.commands);
        let bytes = cost(&self.total.bytes, read.bytes + write.bytes);
        match commands.max(bytes) {
            0 => most,
            shared => shared,
        }
    }
}
