//! Keeping requests in flight, and measuring them.

use std::time::{Duration, Instant};

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{UsageWho, getrusage};
use quarry_contract::{Completion, Durability, IoBuffer, IoQueue, Request, Tag, Verb};
use serde::Serialize;

use crate::options::{Options, Rw};

/// What was measured. The names are those of iload, so that one table shows both.
#[derive(Debug, Serialize)]
pub struct Report {
    iops: f64,
    mb_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    target_cpu_us_per_io: f64,
}

/// One of the requests in flight.
struct Slot {
    /// `None` while a request has it.
    buffer: Option<IoBuffer>,
    since: Instant,
    /// Requests since its last flush.
    unflushed: u32,
    flushing: bool,
}

/// A load on a queue.
pub struct Load<'a> {
    options: &'a Options,
    queue: Box<dyn IoQueue>,
    slots: Vec<Slot>,
    next_offset: u64,
    submitted: u64,
    nanoseconds: Vec<u32>,
}

impl<'a> Load<'a> {
    /// A load that has not begun.
    pub fn new(options: &'a Options, queue: Box<dyn IoQueue>) -> Self {
        let slot = || Slot {
            buffer: Some(IoBuffer::zeroed(options.bs as usize)),
            since: Instant::now(),
            unflushed: 0,
            flushing: false,
        };
        Self {
            options,
            queue,
            slots: (0..options.qd).map(|_| slot()).collect(),
            next_offset: 0,
            submitted: 0,
            nanoseconds: Vec::with_capacity(1 << 20),
        }
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// The first of a request.
    pub fn run(mut self) -> anyhow::Result<Report> {
        let cpu_before = cpu_seconds()?;
        let started = Instant::now();
        let end = started + Duration::from_secs_f64(self.options.time);
        for number in 0..self.slots.len() {
            self.go_on(number)?;
        }
        self.queue.kick();
        let mut in_flight = self.slots.len();
        let mut completions = Vec::new();
        while in_flight > 0 {
            self.wait(&mut completions);
            let more = Instant::now() < end;
            for (index, completion) in completions.drain(..).enumerate() {
                if index != 0 && index.is_multiple_of(self.options.batch) {
                    self.queue.kick();
                }
                let number = completion.tag.0 as usize;
                self.take(number, completion)?;
                let limit = self.options.ops;
                if self.must_flush(number) || (more && (limit == 0 || self.submitted < limit)) {
                    self.go_on(number)?;
                } else {
                    in_flight -= 1;
                }
            }
            self.queue.kick();
        }
        if self.options.end_fsync {
            self.submit(0, Verb::Flush)?;
            self.queue.kick();
            self.wait(&mut completions);
            completions.pop().context("a flush completes")?.result?;
        }
        let seconds = started.elapsed().as_secs_f64();
        let cpu = cpu_seconds()? - cpu_before;
        Ok(self.report(seconds, cpu))
    }

    fn report(mut self, seconds: f64, cpu_seconds: f64) -> Report {
        self.nanoseconds.sort_unstable();
        let count = self.nanoseconds.len();
        let quantile = |share: f64| {
            let at = ((count as f64 * share) as usize).min(count.saturating_sub(1));
            self.nanoseconds
                .get(at)
                .map_or(0.0, |nanoseconds| f64::from(*nanoseconds) / 1e3)
        };
        Report {
            iops: count as f64 / seconds,
            mb_per_s: (count as u64 * self.options.bs) as f64 / seconds / 1e6,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            target_cpu_us_per_io: cpu_seconds * 1e6 / count.max(1) as f64,
        }
    }

    fn must_flush(&self, number: usize) -> bool {
        self.options.fsync != 0 && self.slots[number].unflushed == self.options.fsync
    }

    /// Submits what a vacant slot does next.
    fn go_on(&mut self, number: usize) -> anyhow::Result<()> {
        if self.must_flush(number) {
            let slot = &mut self.slots[number];
            slot.unflushed = 0;
            slot.flushing = true;
            return self.submit(number, Verb::Flush);
        }
        let (length, offset) = (self.options.bs, self.next_offset);
        self.next_offset += self.options.step;
        self.next_offset %= self.options.size;
        if self.next_offset + length > self.options.size {
            self.next_offset = 0;
        }
        self.submitted += 1;
        let slot = &mut self.slots[number];
        slot.since = Instant::now();
        let verb = match self.options.rw {
            Rw::Discard => Verb::Discard { offset, length },
            Rw::Read => Verb::Read {
                offset,
                buffer: slot.buffer.take().context("a vacant slot has its buffer")?,
            },
            Rw::Write => Verb::Write {
                offset,
                buffer: slot.buffer.take().context("a vacant slot has its buffer")?,
                durability: Durability::Cached,
            },
        };
        self.submit(number, verb)
    }

    fn submit(&mut self, number: usize, verb: Verb) -> anyhow::Result<()> {
        let request = Request {
            tag: Tag(number as u64),
            verb,
        };
        self.queue
            .submit(request)
            .ok()
            .context("the queue is full below its depth")
    }

    fn take(&mut self, number: usize, completion: Completion) -> anyhow::Result<()> {
        completion.result?;
        let slot = &mut self.slots[number];
        if completion.buffer.is_some() {
            slot.buffer = completion.buffer;
        }
        // With flushes, a request has ended when it is durable.
        let flushes = self.options.fsync == 1;
        if slot.flushing {
            slot.flushing = false;
            if !flushes {
                return Ok(());
            }
        } else {
            slot.unflushed += 1;
            if flushes {
                return Ok(());
            }
        }
        let elapsed = slot.since.elapsed().as_nanos();
        self.nanoseconds.push(u32::try_from(elapsed).unwrap_or(u32::MAX));
        Ok(())
    }

    /// Waits for at least one completion.
    fn wait(&mut self, completions: &mut Vec<Completion>) {
        loop {
            self.queue.reap(completions);
            if !completions.is_empty() {
                return;
            }
            let mut fds = [PollFd::new(self.queue.wake_fd(), PollFlags::POLLIN)];
            // A signal only leads to another look.
            let _ = poll(&mut fds, PollTimeout::from(1000u16));
        }
    }
}

fn cpu_seconds() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}
