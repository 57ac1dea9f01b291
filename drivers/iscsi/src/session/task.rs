//! One SCSI command on its way, and the table of them.
//!
//! A task moves its data in segments: pieces of the command's byte range that are device requests of their own,
//! so that the wire and the medium work at the same time and one buffer size serves all.
//!
//! Invariants
//! - K1: a task's slot is free again only when none of its device requests is in flight and no message to it is
//!   on its way: both always find the task they belong to.
//! - K2: a task is answered once, or, when aborted, never.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use quarry_contract::{Durability, IoBuffer, Verb};

use super::ordering::Claim;
use super::pacing::Pace;
use crate::background::Answer;
use crate::metrics::{Ended, Op};
use crate::range_locks::{EVERYTHING, overlap};
use crate::reservations::{Kind, OutAction};
use crate::sanitizer::Waiter;
use crate::scsi::{BlockRange, ByteCheck, CopyRun, Failure, SanitizeAction, Sanitizing};

/// The longest segment, in bytes; boundaries are multiples of it on the medium.
pub const SEGMENT_BYTES: u32 = 256 << 10;

/// Which tasks of its session a task lets go first (SAM-5 8.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    /// Those that are ordered or for the head of the queue.
    Simple,
    /// All that came before it, and those for the head of the queue.
    Ordered,
    /// None.
    HeadOfQueue,
}

impl Attribute {
    /// Reads it from a command's header (RFC 7143 11.3.1). There is no auto contingent allegiance here, and what names
    /// it is simple.
    pub fn of(bits: u8) -> Self {
        match bits {
            2 => Self::Ordered,
            3 => Self::HeadOfQueue,
            _ => Self::Simple,
        }
    }

    /// Tells whether simple and ordered tasks wait while one is carried out.
    pub fn is_barrier(self) -> bool {
        self != Self::Simple
    }
}

/// What a task does once its data is there.
#[derive(Debug)]
pub enum Work {
    /// Reads a span and sends it.
    Read,
    /// Writes a span as it comes in.
    Write(Durability),
    /// Reads a span and drops it, or compares it with the parameter.
    Verify(ByteCheck),
    /// Flushes the device.
    Flush,
    /// Collects a parameter list.
    List(ListUse),
    /// Collects the block of a WRITE SAME.
    SameBlock { range: BlockRange, unmap: bool },
    /// Writes a block again and again over the span.
    Repeat,
    /// Carries out requests that have no data.
    Verbs(Vec<Verb>),
    /// Reads and writes a span as one step.
    TwoPass {
        kind: TwoPass,
        durability: Durability,
        /// Segments whose first pass has begun.
        begun: usize,
    },
    /// Writes a span as a whole or not at all.
    Atomic(Durability),
    /// Copies runs within the medium.
    Copy(Copy),
    /// Waits for the unit, to sanitize it; the unit is marked for it.
    Sanitize { operation: Sanitizing, immediate: bool },
    /// Looks up what is mapped from a block on.
    LookUp { lba: u64, allocation: u32 },
    /// Answers at once.
    Nothing,
}

/// What a parameter list is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListUse {
    /// Ranges to unmap.
    Unmap,
    /// Mode pages.
    ModeSelect { ten: bool },
    /// Keys and ports of a PERSISTENT RESERVE OUT.
    PersistentOut { action: OutAction, kind: Option<Kind> },
    /// Descriptors of an EXTENDED COPY.
    Copy,
    /// The pattern of a SANITIZE, if it has one.
    Sanitize {
        action: SanitizeAction,
        immediate: bool,
        may_exit: bool,
    },
}

impl ListUse {
    /// Tells whether what the list asks for changes the medium.
    pub fn writes(self) -> bool {
        matches!(self, ListUse::Unmap | ListUse::Copy)
    }
}

/// What is done in two passes over a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TwoPass {
    /// Reads all; when it is the first half of the data, writes the second half.
    CompareAndWrite,
    /// Reads, and writes what was read or'ed with the data.
    OrWrite,
    /// Writes, and reads what was written; compares it or only sees whether it can be read.
    WriteAndVerify { compare: bool },
}

/// How far a copy is.
#[derive(Debug)]
pub struct Copy {
    /// By which its result is asked for.
    pub id: Option<u8>,
    pub runs: Vec<CopyRun>,
    /// The run that is being copied.
    pub run: usize,
    /// Bytes of it that have begun.
    pub begun: u64,
    /// Bytes of all runs that are over.
    pub copied: u64,
    /// Bytes of the part that began last, for which the limits have not been asked.
    pub unpaid: u64,
    /// The parts under way.
    pub lanes: [Option<Lane>; 4],
}

/// A part of a copy.
#[derive(Debug, Clone, Copy)]
pub struct Lane {
    /// Where it is written, in bytes.
    pub to: u64,
}

impl Copy {
    /// Makes a copy that has not begun.
    pub fn new(id: Option<u8>, runs: Vec<CopyRun>) -> Self {
        Self {
            id,
            runs,
            run: 0,
            begun: 0,
            copied: 0,
            unpaid: 0,
            lanes: [None; 4],
        }
    }
}

/// The part of the medium that a task covers, cut into segments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    start: u64,
    bytes: u32,
    step: u32,
}

impl Span {
    /// Makes a span of `bytes` from `start`, in steps of at most `max_transfer_bytes`.
    pub fn new(start: u64, bytes: u32, max_transfer_bytes: u32) -> Self {
        let step = match max_transfer_bytes.min(SEGMENT_BYTES) {
            0 => SEGMENT_BYTES,
            limit => 1 << limit.ilog2(),
        };
        Self { start, bytes, step }
    }

    /// Returns its length, in bytes.
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Returns how far `start` is into its step.
    fn lead(&self) -> u32 {
        (self.start % u64::from(self.step)) as u32
    }

    /// Returns the number of segments.
    pub fn segments(&self) -> usize {
        match self.bytes {
            0 => 0,
            bytes => (self.lead() + bytes).div_ceil(self.step) as usize,
        }
    }

    /// Returns where a segment begins in the task's data and how long it is, in bytes.
    pub fn segment(&self, index: usize) -> (u32, u32) {
        let lead = self.lead();
        let begin = (index as u32 * self.step).max(lead) - lead;
        let end = ((index as u32 + 1) * self.step - lead).min(self.bytes);
        (begin, end - begin)
    }

    /// Returns the segment that holds a byte of the task's data, and how far into it that is.
    pub fn locate(&self, offset: u32) -> (usize, u32) {
        let index = ((self.lead() + offset) / self.step) as usize;
        (index, offset - self.segment(index).0)
    }

    /// Returns the bytes of the medium.
    pub fn range(&self) -> Range<u64> {
        self.start..self.start + u64::from(self.bytes)
    }

    /// Returns where a segment is on the medium, in bytes.
    pub fn device_offset(&self, index: usize) -> u64 {
        self.start + u64::from(self.segment(index).0)
    }
}

/// What data a task waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaiting {
    /// None.
    Nothing,
    /// Unsolicited Data-Out, until one says it is the last.
    Unsolicited,
    /// What R2Ts have asked for.
    Bursts,
}

/// What an R2T has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Burst {
    /// Our tag.
    pub ttt: u32,
    /// Where it ends, in bytes of the task's data.
    pub end: u32,
}

/// A task. The vectors keep their memory when the slot is used again.
#[derive(Debug)]
pub struct Task {
    pub itt: u32,
    pub lun: u64,
    /// Holds a place in the command window.
    pub numbered: bool,
    pub attribute: Attribute,
    pub expected_bytes: u32,
    /// What the CDB would transfer, in bytes; against `expected_bytes` it gives the residual.
    pub command_bytes: u64,
    pub work: Work,
    pub span: Span,
    pub segments: Vec<Option<IoBuffer>>,
    /// Data collected for a parameter list or a comparison.
    pub parameter: Vec<u8>,

    /// Data-Out bytes that are of use.
    pub wanted: u32,
    /// Data-Out bytes that have come, wanted or not.
    pub received: u32,
    pub awaiting: Awaiting,
    /// The bursts that are awaited, in order. DataSequenceInOrder is Yes: the first comes first.
    pub bursts: VecDeque<Burst>,
    /// The number the next Data-Out of the sequence must have.
    pub data_sn: u32,
    pub r2t_sn: u32,

    /// In the queue of tasks that want to go on.
    pub queued: bool,
    /// Has got past the tasks before it.
    pub started: bool,
    /// Segments or verbs handed to the device.
    pub submitted: usize,
    /// Of those, completed.
    pub completed: usize,
    /// Segments sent to the initiator.
    pub sent: usize,
    pub data_in_sn: u32,
    pub burst_sent: u32,
    /// Bytes that count against the session's budget.
    pub charged: usize,
    pub failure: Option<Failure>,
    pub aborted: bool,
    /// What it is counted as, and since when.
    pub op: Op,
    pub begun: Option<Instant>,
    /// Things elsewhere that it waits for; each ends with a message to the session.
    pub awaited: usize,
    /// Where it stands with the volume's limits.
    pub pace: Pace,
    /// What it has of the ranges it works on.
    pub claim: Claim,
    /// What comes of work in the background.
    pub answer: Option<Arc<Answer>>,
    /// Its wait for a sanitize operation.
    pub waiter: Option<Waiter>,
}

impl Task {
    fn new() -> Self {
        Self {
            itt: 0,
            lun: 0,
            numbered: false,
            attribute: Attribute::Simple,
            expected_bytes: 0,
            command_bytes: 0,
            work: Work::Nothing,
            span: Span::default(),
            segments: Vec::new(),
            parameter: Vec::new(),
            wanted: 0,
            received: 0,
            awaiting: Awaiting::Nothing,
            bursts: VecDeque::new(),
            data_sn: 0,
            r2t_sn: 0,
            queued: false,
            started: false,
            submitted: 0,
            completed: 0,
            sent: 0,
            data_in_sn: 0,
            burst_sent: 0,
            charged: 0,
            failure: None,
            aborted: false,
            op: Op::Other,
            begun: None,
            awaited: 0,
            pace: Pace::Due,
            claim: Claim::None,
            answer: None,
            waiter: None,
        }
    }

    /// Makes the slot a new task's.
    fn reset(&mut self) {
        let (mut segments, mut parameter, mut bursts) = (
            std::mem::take(&mut self.segments),
            std::mem::take(&mut self.parameter),
            std::mem::take(&mut self.bursts),
        );
        segments.clear();
        parameter.clear();
        bursts.clear();
        *self = Self {
            segments,
            parameter,
            bursts,
            ..Self::new()
        };
    }

    /// Returns the device requests in flight.
    pub fn in_flight(&self) -> usize {
        self.submitted - self.completed
    }

    /// Tells whether every byte of use has come.
    pub fn has_all_data(&self) -> bool {
        self.received >= self.wanted
    }

    /// Returns up to where data has come or has been asked for, in bytes of the task's data.
    pub fn asked(&self) -> u32 {
        self.bursts.back().map_or(self.received, |burst| burst.end)
    }

    /// Tells whether anything outside the session knows the task's slot (K1).
    pub fn is_known_elsewhere(&self) -> bool {
        self.in_flight() > 0 || self.awaited > 0
    }

    /// Remembers the first thing that went wrong.
    pub fn fail(&mut self, failure: impl Into<Failure>) {
        self.failure.get_or_insert(failure.into());
    }

    /// Returns how it ends if it does now.
    pub fn ended(&self) -> Ended {
        match &self.failure {
            _ if self.aborted => Ended::Aborted,
            None => Ended::Good,
            Some(Failure::Check(_)) => Ended::CheckCondition,
            Some(Failure::Conflict) => Ended::Conflict,
        }
    }

    /// Returns how much data of the medium it has moved from or to the initiator, when it has ended well, in bytes.
    pub fn moved_bytes(&self) -> u64 {
        u64::from(match self.work {
            Work::Read => self.span.bytes().min(self.expected_bytes),
            Work::Write(_) | Work::TwoPass { .. } | Work::Atomic(_) => self.received.min(self.wanted),
            _ => 0,
        })
    }

    /// Returns how much of a read has been sent, in bytes: segments go in order.
    pub fn sent_bytes(&self) -> u64 {
        let sent = match self.sent == self.span.segments() {
            true => self.span.bytes(),
            false => self.span.segment(self.sent).0,
        };
        sent.min(self.expected_bytes).into()
    }

    /// Tells whether one of the task's device requests writes.
    pub fn step_writes(&self, step: usize) -> bool {
        match &self.work {
            Work::Read | Work::Verify(_) => false,
            Work::TwoPass { kind, .. } => kind.writes_first() == (step < self.span.segments()),
            Work::Copy(_) => step % 2 == 1,
            _ => true,
        }
    }

    /// Returns the bytes of the medium that the task has still to work on, and perhaps more of it.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        match &self.work {
            Work::Verbs(verbs) => verbs.iter().filter_map(range_of).collect(),
            Work::Copy(copy) => {
                let both = |run: &CopyRun| [run.from..run.from + run.bytes, run.to..run.to + run.bytes];
                copy.runs.iter().flat_map(both).collect()
            }
            Work::Sanitize { .. } => vec![EVERYTHING],
            _ => vec![self.span.range()],
        }
    }

    /// Tells whether what the task has at the device may touch some ranges.
    pub fn may_touch(&self, ranges: &[Range<u64>]) -> bool {
        match &self.work {
            // Those that are at the device are not in the list any more.
            Work::Verbs(_) => true,
            _ => overlap(&self.ranges(), ranges),
        }
    }

    /// Returns how many device requests the task is made of.
    pub fn steps(&self) -> usize {
        match &self.work {
            Work::Read | Work::Write(_) | Work::Verify(_) | Work::Repeat => self.span.segments(),
            Work::Flush => 1,
            Work::Atomic(_) => usize::from(self.span.bytes() > 0),
            Work::Verbs(verbs) => self.submitted + verbs.len(),
            Work::TwoPass { .. } => 2 * self.span.segments(),
            Work::Copy(copy) => self.submitted + usize::from(!copy.is_over()),
            // It is done when its work is none any more.
            Work::Sanitize { .. } => self.submitted + 1,
            Work::List(_) | Work::SameBlock { .. } | Work::LookUp { .. } | Work::Nothing => 0,
        }
    }
}

/// Returns the bytes that a request without data is about.
fn range_of(verb: &Verb) -> Option<Range<u64>> {
    match *verb {
        Verb::Discard { offset, length } | Verb::WriteZeroes { offset, length, .. } => {
            Some(offset..offset + length)
        }
        Verb::Read { .. } | Verb::Write { .. } | Verb::WriteAtomic { .. } | Verb::Flush => None,
    }
}

/// The tasks of a session, by slot.
#[derive(Debug, Default)]
pub struct TaskTable {
    slots: Vec<Task>,
    /// The tag in each slot; `None` when free. Kept apart so that a search touches little memory.
    tags: Vec<Option<u32>>,
    free: Vec<u16>,
}

impl TaskTable {
    /// Returns how many tasks there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes a slot for a tag.
    pub fn insert(&mut self, itt: u32) -> u16 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Task::new());
            self.tags.push(None);
            (self.slots.len() - 1) as u16
        });
        self.tags[usize::from(slot)] = Some(itt);
        let task = &mut self.slots[usize::from(slot)];
        task.reset();
        task.itt = itt;
        slot
    }

    /// Frees a slot (K1).
    pub fn remove(&mut self, slot: u16) {
        debug_assert!(!self.slots[usize::from(slot)].is_known_elsewhere(), "K1");
        if self.tags[usize::from(slot)].take().is_some() {
            self.free.push(slot);
        }
    }

    /// Finds the task with a tag.
    pub fn find(&self, itt: u32) -> Option<u16> {
        let at = self.tags.iter().position(|tag| *tag == Some(itt))?;
        Some(at as u16)
    }

    /// Returns a slot's task.
    pub fn get(&mut self, slot: u16) -> Option<&mut Task> {
        match self.tags.get(usize::from(slot)) {
            Some(Some(_)) => self.slots.get_mut(usize::from(slot)),
            _ => None,
        }
    }

    /// Tells whether a task waits for the device, or for data that is on its way.
    pub fn any_moving(&self) -> bool {
        let used = self.slots.iter().zip(&self.tags).filter(|(_, tag)| tag.is_some());
        used.map(|(task, _)| task)
            .any(|task| task.is_known_elsewhere() || !task.aborted && task.awaiting != Awaiting::Nothing)
    }

    /// Tells whether anything outside the session knows a task's slot (K1).
    pub fn any_known_elsewhere(&self) -> bool {
        let used = self.slots.iter().zip(&self.tags).filter(|(_, tag)| tag.is_some());
        used.map(|(task, _)| task).any(Task::is_known_elsewhere)
    }

    /// Tells whether a task has requests at the device.
    pub fn any_at_device(&self) -> bool {
        let used = self.slots.iter().zip(&self.tags).filter(|(_, tag)| tag.is_some());
        used.map(|(task, _)| task).any(|task| task.in_flight() > 0)
    }

    /// Returns the slots in use.
    pub fn live(&self) -> Vec<u16> {
        let used = self.tags.iter().enumerate().filter(|(_, tag)| tag.is_some());
        used.map(|(slot, _)| slot as u16).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_cover_a_span_without_gap_and_end_on_boundaries_of_the_medium() {
        for (start, bytes, limit) in [
            (0u64, 4096u32, 1 << 20),
            (512, 1 << 20, 16 << 20),
            (255 << 10, 513 << 10, 300 << 10),
            (7 * 512, 9 * 512, 4096),
            (0, 0, 4096),
        ] {
            let span = Span::new(start, bytes, limit);
            let mut at = 0;
            for index in 0..span.segments() {
                let (begin, len) = span.segment(index);
                assert_eq!(begin, at);
                assert!(len > 0 && len <= limit.min(SEGMENT_BYTES));
                assert_eq!(span.locate(begin), (index, 0));
                assert_eq!(span.locate(begin + len - 1), (index, len - 1));
                let end = span.device_offset(index) + u64::from(len);
                assert!(end.is_multiple_of(span.step.into()) || end == start + u64::from(bytes));
                at += len;
            }
            assert_eq!(at, bytes);
        }
    }

    #[test]
    fn slots_are_found_by_tag_and_used_again() {
        let mut table = TaskTable::default();
        let first = table.insert(7);
        let second = table.insert(9);
        assert_eq!(
            (table.find(7), table.find(9), table.find(8)),
            (Some(first), Some(second), None)
        );
        table.remove(first);
        assert!(table.get(first).is_none());
        assert_eq!(table.insert(11), first);
        assert_eq!(table.len(), 2);
        assert_eq!(table.live(), [first, second]);
    }
}
