//! The limiter by a clock that the tests move.

use std::num::NonZeroU64;

use super::*;

const READ: Demand = Demand {
    read: Amount {
        commands: 1,
        bytes: 4096,
    },
    write: Amount {
        commands: 0,
        bytes: 0,
    },
};

const WRITE: Demand = Demand {
    read: Amount {
        commands: 0,
        bytes: 0,
    },
    write: Amount {
        commands: 1,
        bytes: 4096,
    },
};

fn rate(per_second: u64, burst: u64) -> Option<Rate> {
    let per_second = NonZeroU64::new(per_second).unwrap();
    Some(Rate { per_second, burst })
}

fn commands(per_second: u64, burst: u64) -> RateLimits {
    RateLimits {
        commands: rate(per_second, burst),
        bytes: None,
    }
}

fn bytes(per_second: u64, burst: u64) -> RateLimits {
    RateLimits {
        commands: None,
        bytes: rate(per_second, burst),
    }
}

fn total(total: RateLimits) -> IoLimits {
    IoLimits {
        total,
        ..IoLimits::NONE
    }
}

fn taker(session: u64, slot: u16) -> Taker {
    let session = ConnectionAddress {
        reactor: 0,
        index: session as u32,
        serial: session,
    };
    Taker { session, slot }
}

/// A limiter, sessions that always have so many commands waiting, and a timer that is late as a real one is.
struct World {
    limiter: Limiter,
    began: Instant,
    now: Instant,
    timers: Vec<Instant>,
    /// For each session what it does and how often it has.
    sessions: Vec<(Demand, u64)>,
}

impl World {
    fn new(limits: IoLimits) -> Self {
        let now = Instant::now();
        Self {
            limiter: Limiter::new(limits, now),
            began: now,
            now,
            timers: Vec::new(),
            sessions: Vec::new(),
        }
    }

    fn session(&mut self, demand: Demand, depth: u16) {
        self.sessions.push((demand, 0));
        for _ in 0..depth {
            self.ask(self.sessions.len() - 1);
        }
    }

    /// Asks as long as it is granted at once.
    fn ask(&mut self, session: usize) {
        loop {
            let demand = self.sessions[session].0;
            let (place, turn) = self.limiter.ask(taker(session as u64, 0), demand, self.now);
            let waits = place.is_some();
            self.take(turn);
            if waits {
                return;
            }
            self.sessions[session].1 += 1;
        }
    }

    fn take(&mut self, turn: Turn) {
        self.timers.extend(turn.wake);
        for (taker, _) in turn.granted {
            let session = taker.session.index as usize;
            self.sessions[session].1 += 1;
            self.ask(session);
        }
    }

    /// Lets time go on. Returns how many timers have fired.
    fn run(&mut self, time: Duration) -> usize {
        let end = self.now + time;
        let mut fired = 0;
        while let Some(at) = self.timers.iter().copied().min().filter(|at| *at < end) {
            self.timers.retain(|timer| *timer != at);
            self.now = self.now.max(at + Duration::from_micros(1500));
            fired += 1;
            let turn = self.limiter.wake(at, self.now);
            self.take(turn);
        }
        self.now = self.now.max(end);
        fired
    }

    #[track_caller]
    fn assert_count(&self, session: usize, expected: u64, percent: u64) {
        let count = self.sessions[session].1;
        assert!(
            count.abs_diff(expected) * 100 <= expected * percent,
            "session {session} has done {count}, expected {expected} after {:?}",
            self.now - self.began
        );
    }
}

const TEN: Duration = Duration::from_secs(10);

#[test]
fn a_rate_holds_over_ten_seconds_whatever_the_depth_and_the_lateness_of_timers() {
    for per_second in [1, 7, 100, 2_500, 100_000] {
        for depth in [1, 32] {
            let mut world = World::new(total(commands(per_second, 0)));
            world.session(READ, depth);
            world.run(TEN);
            world.assert_count(0, per_second * 10, if per_second == 1 { 10 } else { 2 });
        }
    }
    for mib in [1, 64, 10_000] {
        let mut world = World::new(total(bytes(mib << 20, 0)));
        world.session(WRITE, 8);
        world.run(TEN);
        world.assert_count(0, (mib << 20) * 10 / 4096, 2);
    }
}

#[test]
fn commands_larger_than_the_burst_get_through_at_the_rate() {
    let mut world = World::new(total(bytes(1 << 20, 4096)));
    let mut large = READ;
    large.read.bytes = 4 << 20;
    world.session(large, 4);
    world.run(Duration::from_secs(40));
    world.assert_count(0, 10, 10);
}

#[test]
fn a_burst_is_saved_up_in_a_pause_and_no_more_than_it() {
    let limiter = Limiter::new(total(commands(10, 50)), Instant::now());
    let mut now = Instant::now();
    for pause in [0, 5, 60, 1] {
        now += Duration::from_secs(pause);
        let expected = match pause {
            1 => 10,
            _ => 50,
        };
        let mut at_once = 0;
        let place = loop {
            match limiter.ask(taker(0, 0), READ, now).0 {
                None => at_once += 1,
                Some(place) => break place,
            }
        };
        assert_eq!(at_once, expected, "after {pause} s");
        let _ = limiter.leave(taker(0, 0).session, place, now);
    }
}

#[test]
fn sessions_share_alike_whatever_their_depth_and_the_size_of_their_commands() {
    let mut world = World::new(total(commands(1000, 0)));
    for depth in [1, 4, 64] {
        world.session(READ, depth);
    }
    world.run(TEN);
    (0..3).for_each(|session| world.assert_count(session, 3333, 5));

    let mut world = World::new(total(bytes(8 << 20, 0)));
    let mut large = READ;
    large.read.bytes = 1 << 20;
    world.session(large, 32);
    world.session(READ, 32);
    world.run(TEN);
    world.assert_count(0, 40, 5);
    world.assert_count(1, 10240, 5);
}

#[test]
fn a_limit_of_writes_holds_up_no_read_of_the_same_session() {
    let mut limits = IoLimits {
        write: commands(10, 0),
        ..IoLimits::NONE
    };
    let mut world = World::new(limits);
    world.session(WRITE, 8);
    for _ in 0..1000 {
        assert_eq!(world.limiter.ask(taker(0, 1), READ, world.now).0, None);
    }
    limits.total = commands(100, 0);
    let mut world = World::new(limits);
    world.session(WRITE, 8);
    world.session(READ, 8);
    world.run(TEN);
    world.assert_count(0, 100, 5);
    world.assert_count(1, 900, 5);
}

#[test]
fn new_limits_hold_from_now_on_for_those_who_wait_too() {
    let mut world = World::new(total(commands(1, 0)));
    world.session(READ, 4);
    world.run(TEN);
    let before = world.sessions[0].1;
    let (changed, turn) = world.limiter.set(total(commands(100, 0)), world.now);
    assert!(changed);
    world.take(turn);
    world.run(TEN);
    assert!((990..1020).contains(&(world.sessions[0].1 - before)));

    // A long debt does not outlive a higher limit, and no limit lets everybody go.
    let (first, _) = world.limiter.ask(taker(9, 0), READ, world.now);
    assert!(first.is_some());
    let (changed, turn) = world.limiter.set(IoLimits::NONE, world.now);
    assert!(changed && world.limiter.is_off());
    assert!(turn.granted.contains(&(taker(9, 0), first.unwrap())));
    assert_eq!(turn.wake, None);
    assert!(!world.limiter.set(IoLimits::NONE, world.now).0, "the same");
}

#[test]
fn nothing_wakes_while_nobody_waits_and_once_for_those_who_do() {
    let mut world = World::new(total(commands(1000, 0)));
    world.session(READ, 1);
    assert_eq!(world.timers.len(), 1, "P2: armed by the first who waits");
    world.session(READ, 1);
    assert_eq!(world.timers.len(), 1, "P2: and for no other");
    let fired = world.run(TEN);
    assert!(fired <= 7_000, "{fired} timers for 10 s of late timers");
    let last = world.limiter.lock().last_place;
    for session in 0..2 {
        for place in 1..=last {
            let session = taker(session, 0).session;
            let _ = world.limiter.leave(session, Place(place), world.now);
        }
    }
    assert!(world.run(TEN) <= 1, "the one that was armed, and none after it");
    assert!(world.timers.is_empty());
}

#[test]
fn leaving_gives_up_the_place_and_lets_who_needs_less_go() {
    let mut limits = total(bytes(4096, 0));
    limits.write.commands = rate(1000, 0);
    let limiter = Limiter::new(limits, Instant::now());
    let now = Instant::now();
    assert_eq!(limiter.ask(taker(0, 0), WRITE, now).0, None);
    let (first, turn) = limiter.ask(taker(0, 1), WRITE, now);
    assert!(turn.wake.is_some());
    let mut discard = WRITE;
    discard.write.bytes = 0;
    let (second, _) = limiter.ask(taker(0, 2), discard, now);
    let turn = limiter.leave(taker(0, 1).session, first.unwrap(), now);
    assert_eq!(turn.granted, [(taker(0, 2), second.unwrap())]);
    assert_eq!(turn.wake, None);
    let turn = limiter.wake(now, now + TEN);
    assert_eq!(turn, Turn::default(), "P3: nobody is left");
}
