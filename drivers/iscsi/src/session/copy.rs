//! EXTENDED COPY as a task: parts of its runs are read and written again, a few at a time (SPC-4 5.16).
//!
//! The task holds its ranges alone, so that what it copies is what was there when it began. Buffers are as in
//! `two_pass`. A run whose source and destination overlap goes one part at a time, from the end that is not
//! overwritten before it is read.

use std::collections::VecDeque;

use quarry_contract::{Durability, IoBuffer, Request as DeviceRequest, Verb};

use super::pacing::Pace;
use super::steps::{Advance, tag_of};
use super::task::{Copy, Lane, SEGMENT_BYTES, Task, Work};
use super::{Io, Role, Session};
use crate::scsi::{CopyStatus, copy_status};

/// Results that are kept to be asked for.
const RESULTS: usize = 16;

/// The results of the session's last copies, by list identifier.
#[derive(Default)]
pub struct CopyResults(VecDeque<CopyResult>);

struct CopyResult {
    id: u8,
    status: CopyStatus,
    segments: u16,
    bytes: u64,
}

impl CopyResults {
    /// Answers COPY STATUS for an identifier, if there is such a copy.
    pub fn status(&self, id: u8) -> Option<Vec<u8>> {
        let found = self.0.iter().find(|result| result.id == id)?;
        Some(copy_status(found.status, found.segments, found.bytes))
    }

    fn keep(&mut self, id: u8, status: CopyStatus, copy: &Copy) {
        self.0.retain(|result| result.id != id);
        if self.0.len() == RESULTS {
            self.0.pop_front();
        }
        self.0.push_back(CopyResult {
            id,
            status,
            segments: copy.run as u16,
            bytes: copy.copied,
        });
    }
}

impl Session {
    /// Takes up a copy; its status can be asked for from now on.
    pub(super) fn begin_copy(&mut self, slot: u16) {
        if let Some(task) = self.tasks.get(slot)
            && let Work::Copy(copy) = &task.work
            && let Some(id) = copy.id
        {
            self.copies.keep(id, CopyStatus::UnderWay, copy);
        }
    }

    /// Keeps the result of a copy that has ended.
    pub(super) fn end_copy(&mut self, slot: u16) {
        if let Some(task) = self.tasks.get(slot)
            && let Work::Copy(copy) = &task.work
            && let Some(id) = copy.id
        {
            let status = match task.failure.is_some() || task.aborted {
                true => CopyStatus::Failed,
                false => CopyStatus::Done,
            };
            self.copies.keep(id, status, copy);
        }
    }

    /// Begins as many parts as may be under way.
    pub(super) fn submit_copy(&mut self, slot: u16, io: &mut Io<'_>) -> Advance {
        if !self.has_to_itself(slot, io) {
            return Advance::Done;
        }
        let Role::Normal(medium) = &self.role else {
            return Advance::Done;
        };
        let (queue, limit) = (medium.queue(), medium.unit().limits().max_transfer_bytes);
        loop {
            let over = |task: &mut Task| task.failure.is_some() || task.aborted;
            // A part is paid for before the next begins, and the last before the copy is over.
            if self.tasks.get(slot).is_none_or(over) || !self.keeps_pace(slot, io) {
                break;
            }
            let Some(task) = self.tasks.get(slot) else {
                break;
            };
            let Work::Copy(copy) = &mut task.work else {
                break;
            };
            let Some((lane, from, len)) = copy.next_part(limit.min(SEGMENT_BYTES)) else {
                break;
            };
            copy.unpaid = len.into();
            task.pace = Pace::Due;
            task.submitted += 1;
            let buffer = self.take_charged(slot, len as usize, io);
            let verb = Verb::Read { offset: from, buffer };
            let tag = tag_of(io.connection, slot, 2 * lane);
            io.devices.submit(queue, DeviceRequest { tag, verb });
        }
        Advance::Done
    }

    /// Goes on with a part whose request has ended: what was read is written.
    pub(super) fn copy_completed(&mut self, slot: u16, step: usize, buffer: IoBuffer, io: &mut Io<'_>) {
        let Role::Normal(medium) = &self.role else {
            return;
        };
        let queue = medium.queue();
        let Some(task) = self.tasks.get(slot) else {
            return;
        };
        let over = task.failure.is_some() || task.aborted;
        let Work::Copy(copy) = &mut task.work else {
            return;
        };
        let lane = step / 2;
        if over {
            copy.lanes[lane] = None;
            self.give_charged(slot, buffer, io);
        } else if let (0, Some(part)) = (step % 2, copy.lanes[lane]) {
            task.submitted += 1;
            let verb = Verb::Write {
                offset: part.to,
                buffer,
                durability: Durability::Cached,
            };
            let tag = tag_of(io.connection, slot, step + 1);
            io.devices.submit(queue, DeviceRequest { tag, verb });
        } else {
            copy.lanes[lane] = None;
            copy.copied += buffer.len() as u64;
            self.give_charged(slot, buffer, io);
        }
        self.submit_copy(slot, io);
    }
}

impl Copy {
    /// Begins the next part if one may begin: returns its lane, where it is read and its length, in bytes.
    fn next_part(&mut self, limit: u32) -> Option<(usize, u64, u32)> {
        let is_quiet = self.lanes.iter().all(Option::is_none);
        // A run may read what the run before wrote.
        if is_quiet && self.runs.get(self.run).is_some_and(|run| self.begun == run.bytes) {
            self.run += 1;
            self.begun = 0;
            return self.next_part(limit);
        }
        let run = self.runs.get(self.run)?;
        if self.begun == run.bytes || run.overlaps_itself() && !is_quiet {
            return None;
        }
        let lane = self.lanes.iter().position(Option::is_none)?;
        let len = (run.bytes - self.begun).min(limit.into());
        let at = match run.overlaps_itself() && run.to > run.from {
            true => run.bytes - self.begun - len,
            false => self.begun,
        };
        let (from, to) = (run.from + at, run.to + at);
        self.lanes[lane] = Some(Lane { to });
        self.begun += len;
        Some((lane, from, len as u32))
    }

    /// Tells whether everything is copied.
    pub fn is_over(&self) -> bool {
        self.run == self.runs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::CopyRun;

    fn copy(runs: &[(u64, u64, u64)]) -> Copy {
        let run = |&(from, to, bytes): &(u64, u64, u64)| CopyRun { from, to, bytes };
        Copy::new(None, runs.iter().map(run).collect())
    }

    #[test]
    fn parts_cover_each_run_and_runs_follow_each_other() {
        let mut copy = copy(&[(0, 1000, 25), (0, 0, 0), (500, 2000, 5)]);
        assert_eq!(copy.next_part(10), Some((0, 0, 10)));
        assert_eq!(copy.next_part(10), Some((1, 10, 10)));
        assert_eq!(copy.next_part(10), Some((2, 20, 5)));
        assert_eq!(copy.next_part(10), None, "the run is not written yet");
        copy.lanes = Default::default();
        assert_eq!(copy.next_part(10), Some((0, 500, 5)));
        assert!(!copy.is_over());
        copy.lanes = Default::default();
        assert_eq!(copy.next_part(10), None);
        assert!(copy.is_over());
    }

    #[test]
    fn a_run_over_itself_goes_one_part_at_a_time() {
        let mut copy = copy(&[(0, 5, 20)]);
        assert_eq!(copy.next_part(8), Some((0, 12, 8)), "from the end");
        assert_eq!(copy.next_part(8), None);
        copy.lanes = Default::default();
        assert_eq!(copy.next_part(8), Some((0, 4, 8)));
        copy.lanes = Default::default();
        assert_eq!(copy.next_part(8), Some((0, 0, 4)));
        let mut down = self::copy(&[(5, 0, 20)]);
        assert_eq!(down.next_part(8), Some((0, 5, 8)));
    }
}
