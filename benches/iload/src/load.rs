//! Keeps every session busy with as many commands as it may have, and measures.
//!
//! One thread drives all sessions. Each turn: wait; read what has come; start a new command for each that ended;
//! send everything at once.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::account::Reading;
use crate::meter::Meter;
use crate::session::{Ended, Outcome, Session};
use crate::workload::{Step, Verb, Workload};

/// Reads of one session in a turn.
const READS_PER_TURN: usize = 4;

/// How often a command is sent again that the target did not execute.
const REPEATS_MAX: u32 = 200;

/// How long nothing may end before the target counts as stuck.
const STALL: Duration = Duration::from_secs(60);

/// The longest wait, so that the clock is looked at.
const NAP_MILLIS: u16 = 10;

/// When a run ends.
#[derive(Debug, Clone, Copy)]
pub enum Extent {
    /// After a time that is not measured and one that is.
    Time {
        /// Not measured.
        warm_up: Duration,
        /// Measured.
        measured: Duration,
    },
    /// After so many commands.
    Commands(u64),
    /// When the workload has none left.
    All,
}

/// What happens when a run is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// Nothing.
    Plain,
    /// What was written is flushed, and the time of that is measured too: a write counts when it is on the medium.
    Flushed,
}

/// See the module.
pub struct Load<'a> {
    sessions: &'a mut [Session],
    workload: &'a mut Workload,
    epoll: Epoll,
    slots: Vec<Vec<Slot>>,
    /// Slots that found nothing to do: session and tag.
    idle: Vec<(usize, u32)>,
    in_flight: usize,
    started: u64,
    commands_max: u64,
    stopping: bool,
    last_end: Instant,
    meter: Option<Meter>,
}

#[derive(Default)]
struct Slot {
    step: Option<Step>,
    begin: Option<Instant>,
    repeats: u32,
    /// What epoll is asked for, for the session's first slot.
    wants_room: bool,
}

impl<'a> Load<'a> {
    /// Prepares a run of sessions whose sockets do not block, each with up to `depth` commands in flight.
    ///
    /// # Errors
    /// When the system refuses the descriptors.
    pub fn new(sessions: &'a mut [Session], workload: &'a mut Workload, depth: u32) -> anyhow::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (number, session) in sessions.iter().enumerate() {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, number as u64);
            epoll.add(session.socket(), event)?;
        }
        let slots = sessions
            .iter()
            .map(|_| (0..depth).map(|_| Slot::default()).collect())
            .collect();
        Ok(Self {
            sessions,
            workload,
            epoll,
            slots,
            idle: Vec::new(),
            in_flight: 0,
            started: 0,
            commands_max: u64::MAX,
            stopping: false,
            last_end: Instant::now(),
            meter: None,
        })
    }

    /// Runs and returns what was measured; the processes are the target's.
    ///
    /// # Errors
    /// When a command fails, reads what it should not, or takes too long; when a session is lost.
    pub fn run(mut self, extent: Extent, finish: Finish, pids: &[u32]) -> anyhow::Result<Meter> {
        let begin = Instant::now();
        let (measure_from, measure_until) = match extent {
            Extent::Time { warm_up, measured } => (begin + warm_up, Some(begin + warm_up + measured)),
            Extent::Commands(most) => {
                self.commands_max = most;
                (begin, None)
            }
            Extent::All => (begin, None),
        };
        for session in 0..self.sessions.len() {
            for tag in 0..self.slots[session].len() as u32 {
                self.idle.push((session, tag));
            }
        }
        let mut measured = None;
        let mut to_flush = finish == Finish::Flushed;
        let mut events = [EpollEvent::empty(); 64];
        let mut ended = Vec::new();
        loop {
            let now = Instant::now();
            if self.meter.is_none() && measured.is_none() && now >= measure_from {
                self.meter = Some(Meter::begin(now, Reading::take(pids)?));
            }
            if measure_until.is_some_and(|until| now >= until) {
                self.stopping = true;
                if finish == Finish::Plain
                    && let Some(mut meter) = self.meter.take()
                {
                    meter.end(now, Reading::take(pids)?);
                    measured = Some(meter);
                }
            }
            self.start_idle(now)?;
            if self.in_flight == 0 {
                if !std::mem::take(&mut to_flush) {
                    break;
                }
                self.launch(0, 0, Workload::flush(), now);
                self.send(0)?;
            }
            ensure!(now - self.last_end < STALL, "no command has ended for {STALL:?}");
            let count = match self.epoll.wait(&mut events, EpollTimeout::from(NAP_MILLIS)) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => return Err(error).context("waiting for events"),
            };
            for event in &events[..count] {
                self.serve(event.data() as usize, event.events(), &mut ended)?;
            }
        }
        match (measured, self.meter.take()) {
            (Some(meter), _) => Ok(meter),
            (None, Some(mut meter)) => {
                meter.end(Instant::now(), Reading::take(pids)?);
                Ok(meter)
            }
            (None, None) => bail!("nothing was measured"),
        }
    }

    fn serve(&mut self, number: usize, events: EpollFlags, ended: &mut Vec<Ended>) -> anyhow::Result<()> {
        if events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            for _ in 0..READS_PER_TURN {
                let more = self.sessions[number].receive(ended)?;
                let now = Instant::now();
                for ended in ended.drain(..) {
                    self.end(number, ended, now)?;
                }
                if !more {
                    break;
                }
            }
        }
        self.send(number)
    }

    fn send(&mut self, number: usize) -> anyhow::Result<()> {
        let session = &mut self.sessions[number];
        session.send().context("sending")?;
        let blocked = session.is_blocked();
        let slot = &mut self.slots[number][0];
        if blocked != slot.wants_room {
            slot.wants_room = blocked;
            let mut wanted = EpollFlags::EPOLLIN;
            wanted.set(EpollFlags::EPOLLOUT, blocked);
            let mut event = EpollEvent::new(wanted, number as u64);
            self.epoll.modify(session.socket(), &mut event)?;
        }
        Ok(())
    }

    /// Tries again to find work for slots that found none.
    fn start_idle(&mut self, now: Instant) -> anyhow::Result<()> {
        if self.idle.is_empty() || self.stopping {
            return Ok(());
        }
        for (session, tag) in std::mem::take(&mut self.idle) {
            self.start(session, tag, now);
        }
        for number in 0..self.sessions.len() {
            if !self.slots[number][0].wants_room {
                self.send(number)?;
            }
        }
        Ok(())
    }

    fn start(&mut self, session: usize, tag: u32, now: Instant) {
        if self.stopping || self.started >= self.commands_max {
            return;
        }
        let Some(step) = self.workload.next(session) else {
            self.idle.push((session, tag));
            return;
        };
        self.launch(session, tag, step, now);
    }

    fn launch(&mut self, session: usize, tag: u32, step: Step, now: Instant) {
        self.started += 1;
        self.in_flight += 1;
        let slot = &mut self.slots[session][tag as usize];
        self.sessions[session].start(tag, step.command.clone());
        slot.step = Some(step);
        slot.begin = Some(now);
        slot.repeats = 0;
    }

    fn end(&mut self, session: usize, ended: Ended, now: Instant) -> anyhow::Result<()> {
        let slot = &mut self.slots[session][ended.tag as usize];
        let (Some(step), Some(begin)) = (&slot.step, slot.begin) else {
            bail!("an answer to no command");
        };
        match ended.outcome {
            Outcome::Good => {}
            Outcome::Again if slot.repeats < REPEATS_MAX => {
                slot.repeats += 1;
                self.sessions[session].start(ended.tag, step.command.clone());
                return Ok(());
            }
            Outcome::Again => bail!("the target does not take a command, however often it is sent"),
            Outcome::Failed(why) => bail!(
                "{:?} of {} bytes at {}: {why}",
                step.verb,
                step.bytes,
                step.offset
            ),
        }
        if let Err(wrong) = self.workload.ended(step, &ended.data) {
            bail!("MISCOMPARE: {wrong}");
        }
        if let Some(meter) = &mut self.meter {
            match step.verb {
                Verb::Flush => meter.count_flush(now),
                Verb::Read | Verb::Write => meter.count(now, now - begin, step.bytes),
            }
        }
        slot.step = None;
        self.last_end = now;
        self.in_flight -= 1;
        self.start(session, ended.tag, now);
        Ok(())
    }
}
