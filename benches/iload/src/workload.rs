//! Which command comes next.

use crate::ledger::{Ledger, mix};
use crate::payload::Payload;
use crate::scsi::{Cdb, Durability};
use crate::session::Command;

/// Random bytes that writes are cut from, so that no target can compress or share them.
const NOISE_BYTES: usize = 32 << 20;

/// How often a random place is tried before the command waits for others to end.
const TRIES: usize = 1000;

/// What a command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Makes what was written survive.
    Flush,
}

/// What to load a target with. Sizes are in bytes.
#[derive(Debug, Clone)]
pub struct Pattern {
    /// How many of a hundred transfers are reads.
    pub read_percent: u8,
    /// One after the other, instead of anywhere.
    pub sequential: bool,
    /// Of one transfer.
    pub transfer_bytes: u32,
    /// The part of the volume that is used.
    pub range_bytes: u64,
    /// Flushes after so many writes; 0 for never.
    pub flush_every: u64,
    /// When a write counts as done.
    pub durability: Durability,
}

/// A command and what is needed at its end.
pub struct Step {
    /// The command.
    pub command: Command,
    /// What it does.
    pub verb: Verb,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub bytes: u32,
}

/// See the module.
pub struct Workload {
    pattern: Pattern,
    block_bytes: u32,
    noise: Payload,
    random: u64,
    /// Per session, the next transfer's place in the session's share.
    cursors: Vec<u64>,
    writes_since_flush: u64,
    flushing: bool,
    /// Kept when what is read is to be checked.
    pub ledger: Option<Ledger>,
    /// Reading everything once, instead of the pattern: up to where it has got, in bytes.
    sweep: Option<u64>,
}

impl Workload {
    /// Prepares a workload for so many sessions on a medium with blocks of `block_bytes`.
    pub fn new(pattern: Pattern, block_bytes: u32, sessions: usize, seed: u64, verify: bool) -> Self {
        let words = (0..NOISE_BYTES as u64 / 8).map(|at| mix(seed.wrapping_add(at)));
        let noise: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        let ledger = verify.then(|| Ledger::new(pattern.range_bytes, seed));
        Self {
            pattern,
            block_bytes,
            noise: Payload::from(noise),
            random: seed,
            cursors: vec![0; sessions],
            writes_since_flush: 0,
            flushing: false,
            ledger,
            sweep: None,
        }
    }

    /// From now on reads everything once.
    pub fn begin_sweep(&mut self) {
        self.sweep = Some(0);
    }

    /// Returns a session's next step; `None` when there is none for now.
    pub fn next(&mut self, session: usize) -> Option<Step> {
        if self.sweep.is_some() {
            return self.next_of_sweep();
        }
        let every = self.pattern.flush_every;
        if every > 0 && self.writes_since_flush >= every && !self.flushing {
            self.flushing = true;
            self.writes_since_flush = 0;
            return Some(Self::flush());
        }
        let offset = self.place(session)?;
        let reads = self.random() % 100 < u64::from(self.pattern.read_percent);
        Some(self.transfer(if reads { Verb::Read } else { Verb::Write }, offset))
    }

    /// Makes what was written survive.
    pub fn flush() -> Step {
        Step {
            command: Command {
                cdb: Cdb::flush(),
                read_bytes: 0,
                payload: Payload::default(),
                keeps_data: false,
            },
            verb: Verb::Flush,
            offset: 0,
            bytes: 0,
        }
    }

    /// Says that a step has ended well.
    ///
    /// # Errors
    /// What is wrong with the data that was read.
    pub fn ended(&mut self, step: &Step, data: &[u8]) -> Result<(), String> {
        match step.verb {
            Verb::Flush => self.flushing = false,
            Verb::Write => self.writes_since_flush += 1,
            Verb::Read => {}
        }
        let Some(ledger) = self.ledger.as_mut().filter(|_| step.bytes > 0) else {
            return Ok(());
        };
        ledger.release(step.offset, step.bytes);
        match step.verb {
            Verb::Read => ledger.check(step.offset, data),
            _ => Ok(()),
        }
    }

    fn next_of_sweep(&mut self) -> Option<Step> {
        let at = self.sweep?;
        let bytes = u64::from(self.pattern.transfer_bytes);
        if at + bytes > self.pattern.range_bytes {
            return None;
        }
        // What other commands hold is waited for.
        let ledger = self.ledger.as_mut()?;
        if !ledger.reserve(at, self.pattern.transfer_bytes) {
            return None;
        }
        self.sweep = Some(at + bytes);
        Some(self.transfer(Verb::Read, at))
    }

    /// Chooses where the next transfer goes, in bytes.
    fn place(&mut self, session: usize) -> Option<u64> {
        let bytes = u64::from(self.pattern.transfer_bytes);
        let places = self.pattern.range_bytes / bytes;
        for _ in 0..TRIES {
            let place = if self.pattern.sequential {
                let share = (places / self.cursors.len() as u64).max(1);
                let cursor = &mut self.cursors[session];
                let place = session as u64 * share + *cursor;
                *cursor = (*cursor + 1) % share;
                place % places
            } else {
                self.random() % places
            };
            let offset = place * bytes;
            let free = match &mut self.ledger {
                Some(ledger) => ledger.reserve(offset, self.pattern.transfer_bytes),
                None => true,
            };
            if free {
                return Some(offset);
            }
        }
        None
    }

    fn transfer(&mut self, verb: Verb, offset: u64) -> Step {
        let bytes = self.pattern.transfer_bytes;
        let (lba, blocks) = (offset / u64::from(self.block_bytes), bytes / self.block_bytes);
        let command = match verb {
            Verb::Write => Command {
                cdb: Cdb::write(lba, blocks, self.pattern.durability),
                read_bytes: 0,
                payload: self.payload(offset),
                keeps_data: false,
            },
            _ => Command {
                cdb: Cdb::read(lba, blocks),
                read_bytes: bytes,
                payload: Payload::default(),
                keeps_data: self.ledger.is_some(),
            },
        };
        Step {
            command,
            verb,
            offset,
            bytes,
        }
    }

    fn payload(&mut self, offset: u64) -> Payload {
        let bytes = self.pattern.transfer_bytes;
        if let Some(ledger) = &mut self.ledger {
            return Payload::from(ledger.write(offset, bytes));
        }
        let starts = (NOISE_BYTES - bytes as usize) / 512 + 1;
        let start = self.random() as usize % starts * 512;
        self.noise.part(start..start + bytes as usize)
    }

    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern() -> Pattern {
        Pattern {
            read_percent: 0,
            sequential: true,
            transfer_bytes: 8192,
            range_bytes: 64 << 10,
            flush_every: 3,
            durability: Durability::Cached,
        }
    }

    #[test]
    fn sequential_sessions_share_the_range_and_flush_after_so_many_writes() {
        let mut workload = Workload::new(pattern(), 512, 2, 1, false);
        let mut seen = Vec::new();
        for session in [0, 1, 0, 1] {
            let step = workload.next(session).unwrap();
            seen.push((step.verb, step.offset));
            workload.ended(&step, &[]).unwrap();
        }
        let write = Verb::Write;
        assert_eq!(
            seen,
            [(write, 0), (write, 32768), (write, 8192), (Verb::Flush, 0)]
        );
    }

    #[test]
    fn sweep_after_writes_checks_what_was_written() {
        let mut workload = Workload::new(pattern(), 512, 1, 1, true);
        let mut medium = vec![0; 64 << 10];
        for _ in 0..7 {
            let step = workload.next(0).unwrap();
            let range = step.offset as usize..(step.offset + u64::from(step.bytes)) as usize;
            medium[range].copy_from_slice(step.command.payload.bytes());
            workload.ended(&step, &[]).unwrap();
        }
        medium[8192] ^= 1;
        workload.begin_sweep();
        let results: Vec<_> = std::iter::from_fn(|| {
            let step = workload.next(0)?;
            let range = step.offset as usize..(step.offset + u64::from(step.bytes)) as usize;
            Some(workload.ended(&step, &medium[range]).is_ok())
        })
        .collect();
        assert_eq!(results, [true, false, true, true, true, true, true, true]);
    }
}
