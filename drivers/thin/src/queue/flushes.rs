//! A queue's flushes: as many as wait ride together, without another thread.
//!
//! One round at a time: flushes that come while it is on its way wait for the next, which begins after them (C3).

use std::io;

use quarry_contract::{Completion, IoError, Tag};

use super::direct::DirectIo;
use crate::{DeviceSet, FlushStep, PlannedFlush, PoolDevice, VersionHandle};

/// The flushes of one queue.
#[derive(Default)]
pub(super) struct Flushes {
    waiting: Vec<Tag>,
    /// Whose round is on its way.
    riding: Vec<Tag>,
    /// Its rest.
    planned: Option<PlannedFlush>,
}

impl Flushes {
    pub(super) fn add(&mut self, tag: Tag) {
        self.waiting.push(tag);
    }

    /// Begins a round for those that wait if none is on its way. Answers false when it has to be left to a thread that may
    /// block.
    pub(super) fn start(
        &mut self,
        handle: &VersionHandle,
        direct: &mut DirectIo,
        ended: &mut Vec<Completion>,
    ) -> bool {
        if self.waiting.is_empty() || self.planned.is_some() {
            return true;
        }
        let devices = handle.pool().device();
        if !direct.knows_all(devices) {
            return false;
        }
        let Some(planned) = handle.plan_flush() else {
            return false;
        };
        self.planned = Some(planned);
        std::mem::swap(&mut self.waiting, &mut self.riding);
        self.go_on(Ok(()), direct, ended);
        true
    }

    /// Hands out those that wait.
    pub(super) fn take_waiting(&mut self) -> impl Iterator<Item = Tag> + '_ {
        self.waiting.drain(..)
    }

    /// Goes on after a step has been done.
    pub(super) fn go_on(
        &mut self,
        mut done: io::Result<()>,
        direct: &mut DirectIo,
        ended: &mut Vec<Completion>,
    ) {
        let Some(planned) = &mut self.planned else {
            return;
        };
        while done.is_ok()
            && let Some(step) = planned.next_step()
        {
            match direct.start_step(step) {
                Some(at_once) => done = at_once,
                None => return,
            }
        }
        let result = self.planned.take().map_or(Ok(()), |planned| planned.end(done));
        self.answer(&result, ended);
    }

    /// Does the rest of the round that is on its way, blocking, when its last step has been done. The flushes are not
    /// answered.
    pub(super) fn finish_blocking(&mut self, mut done: io::Result<()>, devices: &DeviceSet) {
        let Some(mut planned) = self.planned.take() else {
            return;
        };
        while done.is_ok()
            && let Some(step) = planned.next_step()
        {
            done = match step {
                FlushStep::Write { address, bytes } => devices.write_at(address, &bytes),
                FlushStep::Flush => devices.flush(),
            };
        }
        // A failure has stopped the pool, which tells whoever comes next.
        let _ = planned.end(done);
    }

    fn answer(&mut self, result: &Result<(), IoError>, ended: &mut Vec<Completion>) {
        ended.extend(self.riding.drain(..).map(|tag| Completion {
            tag,
            result: result.clone(),
            buffer: None,
        }));
    }
}
