//! One operation in flight: its memory, and how far each of its segments has got.

use std::io;
use std::ops::Range;

use io_uring::{opcode, squeue, types};

use super::{Finished, Persistence, Segment, Token, user_data};

/// How often one segment is started again after the kernel gave it up without having tried (`EINTR`, `EAGAIN`,
/// and `ECANCELED` when the thread that started it has exited).
const RESTARTS_MAX: u8 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write(Persistence),
}

#[derive(Debug)]
enum Work {
    Transfer { direction: Direction, memory: Vec<u8> },
    SyncData,
    Allocate { mode: i32, offset: u64, length: u64 },
}

/// A segment's part that is still to be done.
#[derive(Debug, Clone)]
struct Progress {
    file: u32,
    file_offset: u64,
    memory: Range<usize>,
    restarts: u8,
}

/// A slot of the ring's table. It is reused, so that no allocation happens once the ring is warm.
#[derive(Debug, Default)]
pub(super) struct Job {
    token: Token,
    work: Option<Work>,
    segments: Vec<Progress>,
    unfinished: usize,
    first_error: Option<io::Error>,
}

impl Job {
    /// Fills the slot with a transfer.
    ///
    /// # Panics
    /// When a segment is empty, longer than the kernel takes, or not inside `memory`: the bound on which the
    /// ring's safety rests (R1).
    pub(super) fn start_transfer(
        &mut self,
        token: Token,
        direction: Direction,
        memory: Vec<u8>,
        segments: &[Segment],
    ) {
        assert!(!segments.is_empty(), "a transfer has at least one segment");
        self.segments.clear();
        for segment in segments {
            let Range { start, end } = segment.memory;
            assert!(
                start < end && end <= memory.len() && u32::try_from(end - start).is_ok(),
                "segment {start}..{end} does not lie in memory of {} bytes",
                memory.len()
            );
            self.segments.push(Progress {
                file: segment.file,
                file_offset: segment.file_offset,
                memory: start..end,
                restarts: 0,
            });
        }
        self.start(token, Work::Transfer { direction, memory });
    }

    /// Fills the slot with the fdatasync of some files.
    ///
    /// # Panics
    /// When there is none.
    pub(super) fn start_sync_data(&mut self, token: Token, files: impl IntoIterator<Item = u32>) {
        self.segments.clear();
        self.segments.extend(files.into_iter().map(Progress::whole));
        assert!(!self.segments.is_empty(), "a sync has at least one file");
        self.start(token, Work::SyncData);
    }

    pub(super) fn start_allocate(&mut self, token: Token, mode: i32, offset: u64, length: u64) {
        self.segments.clear();
        self.segments.push(Progress::whole(0));
        self.start(token, Work::Allocate { mode, offset, length });
    }

    fn start(&mut self, token: Token, work: Work) {
        debug_assert!(self.work.is_none(), "R2: a slot holds one operation");
        self.token = token;
        self.work = Some(work);
        self.unfinished = self.segments.len();
        self.first_error = None;
    }

    pub(super) fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// Returns the kernel's entry for what is left of a segment.
    pub(super) fn entry(&mut self, slot: u32, segment: u32) -> squeue::Entry {
        let Progress {
            file,
            file_offset,
            memory,
            ..
        } = &self.segments[segment as usize];
        let file = types::Fixed(*file);
        let entry = match self.work.as_mut().expect("entries are made for slots in use") {
            Work::Transfer {
                direction,
                memory: storage,
            } => {
                let part = &mut storage[memory.clone()];
                let length = u32::try_from(part.len()).expect("checked when the transfer was started");
                match direction {
                    Direction::Read => opcode::Read::new(file, part.as_mut_ptr(), length)
                        .offset(*file_offset)
                        .build(),
                    Direction::Write(persistence) => opcode::Write::new(file, part.as_ptr(), length)
                        .offset(*file_offset)
                        .rw_flags(match persistence {
                            Persistence::Cached => 0,
                            Persistence::Durable => libc::RWF_DSYNC,
                        })
                        .build(),
                }
            }
            Work::SyncData => opcode::Fsync::new(file)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Work::Allocate { mode, offset, length } => opcode::Fallocate::new(file, *length)
                .offset(*offset)
                .mode(*mode)
                .build(),
        };
        entry.user_data(user_data(slot, segment))
    }

    /// Takes in how one entry ended: a count of bytes, or a negated error number.
    pub(super) fn advance(&mut self, segment: u32, result: i32) -> Step {
        let transfer = match self.work.as_ref().expect("the kernel answers slots in use") {
            Work::Transfer { direction, .. } => Some(*direction),
            Work::SyncData | Work::Allocate { .. } => None,
        };
        let progress = &mut self.segments[segment as usize];
        let error = match (result, transfer) {
            (errno, _) if errno < 0 => {
                let error = io::Error::from_raw_os_error(-errno);
                let untried = matches!(-errno, libc::EINTR | libc::EAGAIN | libc::ECANCELED);
                if untried && progress.restarts < RESTARTS_MAX {
                    progress.restarts += 1;
                    return Step::Again;
                }
                Some(error)
            }
            (0, Some(Direction::Read)) => Some(io::ErrorKind::UnexpectedEof.into()),
            (0, Some(Direction::Write(_))) => Some(io::ErrorKind::WriteZero.into()),
            (count, Some(_)) => {
                let count = count.unsigned_abs();
                progress.file_offset += u64::from(count);
                progress.memory.start += count as usize;
                if progress.memory.start < progress.memory.end {
                    return Step::Again;
                }
                None
            }
            (_, None) => None,
        };
        if self.first_error.is_none() {
            self.first_error = error;
        }
        self.unfinished -= 1;
        if self.unfinished == 0 {
            Step::Finished
        } else {
            Step::Waiting
        }
    }

    /// Empties the slot, handing the memory back.
    pub(super) fn finish(&mut self) -> Finished {
        debug_assert_eq!(self.unfinished, 0, "R1: the kernel is done with the memory");
        let memory = match self.work.take() {
            Some(Work::Transfer { memory, .. }) => Some(memory),
            _ => None,
        };
        Finished {
            token: self.token,
            result: self.first_error.take().map_or(Ok(()), Err),
            memory,
        }
    }

    /// Gives the memory up for good: the kernel may still write to it.
    pub(super) fn abandon(&mut self) {
        std::mem::forget(self.work.take());
    }
}

impl Progress {
    /// The segment of an operation that moves no bytes.
    fn whole(file: u32) -> Self {
        Self {
            file,
            file_offset: 0,
            memory: 0..0,
            restarts: 0,
        }
    }
}

/// What an answer of the kernel means for its operation.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The rest of the segment has to be submitted.
    Again,
    /// Other segments are still out.
    Waiting,
    /// That was the last.
    Finished,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(direction: Direction, segments: &[Segment]) -> Job {
        let mut job = Job::default();
        job.start_transfer(Token(7), direction, vec![0; 8192], segments);
        job
    }

    fn two_segments() -> [Segment; 2] {
        [
            Segment {
                file: 0,
                file_offset: 0,
                memory: 0..4096,
            },
            Segment {
                file: 0,
                file_offset: 65536,
                memory: 4096..8192,
            },
        ]
    }

    #[test]
    fn short_transfer_goes_on_where_it_stopped() {
        let mut job = job(Direction::Read, &two_segments());
        assert_eq!(job.advance(1, 1000), Step::Again);
        assert_eq!(job.segments[1].file_offset, 66536);
        assert_eq!(job.segments[1].memory, 5096..8192);
        assert_eq!(job.advance(0, 4096), Step::Waiting);
        assert_eq!(job.advance(1, 3096), Step::Finished);
        let finished = job.finish();
        assert!(finished.result.is_ok());
        assert_eq!(finished.memory.unwrap().len(), 8192);
    }

    #[test]
    fn first_error_is_kept_and_all_segments_are_waited_for() {
        let mut job = job(Direction::Write(Persistence::Cached), &two_segments());
        assert_eq!(job.advance(0, -libc::ENOSPC), Step::Waiting);
        assert_eq!(job.advance(1, -libc::EIO), Step::Finished);
        let error = job.finish().result.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }

    #[test]
    fn untried_entries_are_started_again_but_not_for_ever() {
        let mut job = job(Direction::Read, &two_segments()[..1]);
        for _ in 0..RESTARTS_MAX {
            assert_eq!(job.advance(0, -libc::EAGAIN), Step::Again);
        }
        assert_eq!(job.advance(0, -libc::EAGAIN), Step::Finished);
        assert_eq!(
            job.finish().result.unwrap_err().raw_os_error(),
            Some(libc::EAGAIN)
        );
    }

    #[test]
    fn end_of_file_is_an_error() {
        let mut job = job(Direction::Read, &two_segments()[..1]);
        assert_eq!(job.advance(0, 0), Step::Finished);
        assert_eq!(
            job.finish().result.unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[test]
    #[should_panic(expected = "does not lie in memory")]
    fn segment_outside_the_memory_is_refused() {
        let segment = Segment {
            file: 0,
            file_offset: 0,
            memory: 4096..8193,
        };
        job(Direction::Read, &[segment]);
    }
}
