//! A medium in memory that loses, tears and reorders what was not flushed, and fails when told to. It may be a file with holes on a
//! host that runs out of space ([`SimDevice::put_on_host`]).

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quarry_contract::conformance::SplitMix;

use super::cells::{CELL_BYTES, Cells, TEAR_BYTES};
use super::host::Host;
use crate::{DirectFile, PoolDevice};

/// The kinds of calls that faults are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OpKind {
    /// [`PoolDevice::read_at`].
    Read,
    /// [`PoolDevice::write_at`] and [`PoolDevice::write_zeroes`].
    Write,
    /// [`PoolDevice::discard`].
    Discard,
    /// [`PoolDevice::flush`].
    Flush,
    /// [`PoolDevice::allocate`], of a medium on a host.
    Allocate,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with EIO. A write may have happened in part; a flush loses what it should have written,
    /// while reads still show it.
    Io,
    /// The call fails with ENOSPC; a write may have happened in part.
    NoSpace,
    /// The call succeeds and does nothing: a medium that lies. Only for proving that a suite notices.
    Ignored,
    /// The call succeeds, and the first block of what a write was given goes to another place, where it takes that of what was
    /// there: a medium that lies.
    Misplaced {
        /// Where, in bytes.
        to: u64,
    },
}

/// What was asked of a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpCounts {
    /// Calls that read.
    pub reads: u64,
    /// Calls that write, zeroing included.
    pub writes: u64,
    /// Calls that discard.
    pub discards: u64,
    /// Calls that flush.
    pub flushes: u64,
    /// Calls that take space of the host.
    pub allocations: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written, zeroing not included.
    pub written_bytes: u64,
}

impl OpCounts {
    /// Returns how many calls could change the medium: what [`SimDevice::cut_power_at`] counts.
    pub fn changes(&self) -> u64 {
        self.writes + self.discards + self.flushes + self.allocations
    }

    fn of(&mut self, kind: OpKind) -> &mut u64 {
        match kind {
            OpKind::Read => &mut self.reads,
            OpKind::Write => &mut self.writes,
            OpKind::Discard => &mut self.discards,
            OpKind::Flush => &mut self.flushes,
            OpKind::Allocate => &mut self.allocations,
        }
    }
}

/// A fault for calls `first..first + count` of a kind, counted from the device's start.
#[derive(Debug, Clone, Copy)]
struct Planned {
    kind: OpKind,
    first: u64,
    count: u64,
    fault: Fault,
}

/// The simulated medium. Sparse; all of it is in memory.
pub struct SimDevice {
    state: Mutex<State>,
}

#[derive(Clone)]
struct State {
    size_bytes: u64,
    cells: Cells,
    host: Option<Host>,
    random: SplitMix,
    counts: OpCounts,
    faults: Vec<Planned>,
    ignore_every_flush: Option<u64>,
    cut_at: Option<u64>,
    is_cut: bool,
    trace: VecDeque<String>,
}

/// How many calls a device remembers for the report of a violation.
const TRACE_CALLS: usize = 64;

impl SimDevice {
    /// Makes a blank medium. What a power cut leaves of unflushed writes follows from `seed`.
    pub fn new(size_bytes: u64, seed: u64) -> Arc<Self> {
        Self::from_state(State {
            size_bytes,
            cells: Cells::default(),
            host: None,
            random: SplitMix::new(seed ^ 0x7369_6d64_6576),
            counts: OpCounts::default(),
            faults: Vec::new(),
            ignore_every_flush: None,
            cut_at: None,
            is_cut: false,
            trace: VecDeque::new(),
        })
    }

    fn from_state(state: State) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies the medium with everything in it, volatile or not, and no faults planned; its luck follows from
    /// `seed`.
    pub fn fork(&self, seed: u64) -> Arc<Self> {
        let state = self.state();
        Self::from_state(State {
            random: SplitMix::new(seed ^ 0x666f_726b),
            faults: Vec::new(),
            cut_at: None,
            counts: OpCounts::default(),
            trace: VecDeque::new(),
            ..state.clone()
        })
    }

    /// Cuts the power now and returns the medium as it is found afterwards: each unflushed sector old or new. It
    /// keeps no fault that was planned. Calls on `self` fail from now on.
    pub fn power_cycle(&self) -> Arc<Self> {
        let mut after = self.cut();
        after.cut_at = None;
        after.faults.clear();
        after.counts = OpCounts::default();
        after.trace.clear();
        Self::from_state(after)
    }

    /// As [`power_cycle`](Self::power_cycle), but what is planned stays planned, and calls are counted on.
    pub fn power_cycle_as_planned(&self) -> Arc<Self> {
        Self::from_state(self.cut())
    }

    /// Cuts the power and returns what is found afterwards.
    fn cut(&self) -> State {
        let mut state = self.state();
        state.is_cut = true;
        let mut after = state.clone();
        drop(state);
        let State {
            cells, random, host, ..
        } = &mut after;
        cells.cut(random);
        if let Some(host) = host {
            host.cut(cells, random);
        }
        after.is_cut = false;
        after
    }

    /// Cuts the power at the `nth` call from now that could change the medium (0 is the next). That call may
    /// take effect in part; it and all later ones fail.
    pub fn cut_power_at(&self, nth: u64) {
        let mut state = self.state();
        state.cut_at = Some(state.counts.changes() + nth);
    }

    /// Makes the medium a file on a host that has so many bytes left for it, with holes wherever nothing was written yet. Writes
    /// there take space of the host, and are refused when it has none.
    pub fn put_on_host(&self, free_bytes: u64) {
        let mut state = self.state();
        let host = Host::of(&state.cells, free_bytes);
        state.host = Some(host);
    }

    /// Has others take what the host has left, but so many bytes; returns what they took.
    pub fn fill_host(&self, but_bytes: u64) -> u64 {
        let mut state = self.state();
        state.host.as_mut().map_or(0, |host| host.fill(but_bytes))
    }

    /// Has others give so many bytes back to the host.
    pub fn relieve_host(&self, bytes: u64) {
        if let Some(host) = &mut self.state().host {
            host.relieve(bytes);
        }
    }

    /// Tells whether the power is cut.
    pub fn is_cut(&self) -> bool {
        self.state().is_cut
    }

    /// Tells whether reads show bytes that a failed flush lost and that no flush will make durable.
    pub fn pretends(&self) -> bool {
        self.state().cells.pretend()
    }

    /// Plans a fault for the `nth` call of a kind from now (0 is the next) and the `count - 1` after it.
    pub fn fail(&self, kind: OpKind, nth: u64, count: u64, fault: Fault) {
        let mut state = self.state();
        let first = *state.counts.of(kind) + nth;
        state.faults.push(Planned {
            kind,
            first,
            count,
            fault,
        });
    }

    /// Forgets all faults that were planned.
    pub fn heal(&self) {
        self.state().faults.clear();
    }

    /// Makes every `k`-th flush a lie from now on, also across power cycles: it succeeds and does nothing.
    pub fn ignore_every_flush(&self, k: u64) {
        self.state().ignore_every_flush = Some(k);
    }

    /// Inverts bit `bit` (0 to 7) of the byte at `offset`.
    pub fn flip_bit(&self, offset: u64, bit: u8) {
        self.state().cells.flip(offset, bit);
    }

    /// Returns the offsets of all 4 KiB cells that were ever written, ordered.
    pub fn written_cells(&self) -> Vec<u64> {
        let cell = CELL_BYTES as u64;
        let written = self.state().cells.written();
        written.into_iter().map(|index| index * cell).collect()
    }

    /// Changes the size; what is beyond a smaller one is gone.
    pub fn resize(&self, size_bytes: u64) {
        let mut state = self.state();
        state.size_bytes = size_bytes;
        state.cells.truncate(size_bytes);
    }

    /// Writes bytes behind the engine's back, durably and uncounted.
    pub fn overwrite(&self, offset: u64, data: &[u8]) {
        let mut state = self.state();
        state.cells.write(offset, data);
        state.cells.settle();
    }

    /// Reads bytes behind the engine's back, uncounted and without faults.
    pub fn peek(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut buffer = vec![0; length];
        self.state().cells.read(offset, &mut buffer);
        buffer
    }

    /// Returns what was asked since the device was made or cycled.
    pub fn counts(&self) -> OpCounts {
        self.state().counts
    }

    /// Returns the latest calls that could change the medium, oldest first, in words.
    pub fn trace(&self) -> Vec<String> {
        self.state().trace.iter().cloned().collect()
    }
}

/// What a call has to do.
enum Course {
    Proceed,
    /// The power goes during this call.
    Cut,
    Fail(Fault),
}

impl State {
    /// Counts a call and finds what becomes of it.
    fn begin(&mut self, kind: OpKind, offset: u64, length: u64) -> io::Result<Course> {
        if self.is_cut {
            return Err(power_is_cut());
        }
        let changes = self.counts.changes();
        let counter = self.counts.of(kind);
        let nth = *counter;
        *counter += 1;
        let fault = self
            .faults
            .iter()
            .find(|one| one.kind == kind && (one.first..one.first.saturating_add(one.count)).contains(&nth))
            .map(|one| one.fault);
        if kind != OpKind::Read {
            if self.trace.len() == TRACE_CALLS {
                self.trace.pop_front();
            }
            self.trace
                .push_back(format!("#{changes} {kind:?} {offset}+{length} {fault:?}"));
            if self.cut_at == Some(changes) {
                self.is_cut = true;
                return Ok(Course::Cut);
            }
        }
        Ok(fault.map_or(Course::Proceed, Course::Fail))
    }

    fn check_range(&self, offset: u64, length: u64) -> io::Result<()> {
        let tear = TEAR_BYTES as u64;
        assert!(
            offset.is_multiple_of(tear) && length.is_multiple_of(tear),
            "D3: the engine asked for {offset}+{length}"
        );
        if offset.checked_add(length).is_none_or(|end| end > self.size_bytes) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{offset}+{length} is beyond the end at {}", self.size_bytes),
            ));
        }
        Ok(())
    }

    fn put(&mut self, course: Course, offset: u64, data: &[u8]) -> io::Result<()> {
        let whole = data.len();
        let data = match &mut self.host {
            Some(host) if !matches!(course, Course::Fail(Fault::Ignored)) => {
                &data[..host.take(offset, whole)]
            }
            Some(_) | None => data,
        };
        match course {
            Course::Proceed if data.len() < whole => {
                self.cells.write_partly(offset, data, &mut self.random);
                return Err(error_of(Fault::NoSpace));
            }
            Course::Proceed => self.cells.write(offset, data),
            Course::Fail(Fault::Ignored) => {}
            Course::Fail(Fault::Misplaced { to }) => {
                let (first, rest) = data.split_at(data.len().min(CELL_BYTES));
                self.cells.write(to, first);
                self.cells.write(offset + first.len() as u64, rest);
            }
            Course::Cut => {
                self.cells.write_partly(offset, data, &mut self.random);
                return Err(power_is_cut());
            }
            Course::Fail(fault) => {
                self.cells.write_partly(offset, data, &mut self.random);
                return Err(error_of(fault));
            }
        }
        Ok(())
    }
}

fn power_is_cut() -> io::Error {
    io::Error::other("simulated power cut")
}

fn error_of(fault: Fault) -> io::Error {
    match fault {
        Fault::NoSpace => io::Error::new(io::ErrorKind::StorageFull, "simulated ENOSPC"),
        Fault::Io | Fault::Ignored | Fault::Misplaced { .. } => io::Error::other("simulated EIO"),
    }
}

impl PoolDevice for SimDevice {
    fn size_bytes(&self) -> io::Result<u64> {
        let state = self.state();
        if state.is_cut {
            return Err(power_is_cut());
        }
        Ok(state.size_bytes)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        let course = state.begin(OpKind::Read, offset, buffer.len() as u64)?;
        state.check_range(offset, buffer.len() as u64)?;
        match course {
            Course::Proceed | Course::Cut => {
                state.counts.read_bytes += buffer.len() as u64;
                state.cells.read(offset, buffer);
                Ok(())
            }
            Course::Fail(fault) => Err(error_of(fault)),
        }
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let course = state.begin(OpKind::Write, offset, data.len() as u64)?;
        state.check_range(offset, data.len() as u64)?;
        state.counts.written_bytes += data.len() as u64;
        state.put(course, offset, data)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut state = self.state();
        let course = state.begin(OpKind::Write, offset, length)?;
        state.check_range(offset, length)?;
        let state = &mut *state;
        state.put(course, offset, &vec![0; length as usize])?;
        // Some file systems zero by making a hole.
        if let Some(host) = &mut state.host
            && state.random.below(2) == 0
        {
            host.give_back(offset, length);
        }
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut state = self.state();
        let course = state.begin(OpKind::Discard, offset, length)?;
        state.check_range(offset, length)?;
        // What is discarded reads as anything: zeros would hide a read of freed space.
        let mut garbage = vec![0; length as usize];
        let state = &mut *state;
        for word in garbage.chunks_mut(8) {
            word.copy_from_slice(&state.random.next_u64().to_le_bytes()[..word.len()]);
        }
        state.put(course, offset, &garbage)?;
        if let Some(host) = &mut state.host {
            host.give_back(offset, length);
        }
        Ok(())
    }

    fn may_run_out(&self) -> bool {
        self.state().host.is_some()
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut state = self.state();
        let state = &mut *state;
        if state.host.is_none() {
            return Ok(());
        }
        let course = state.begin(OpKind::Allocate, offset, length)?;
        state.check_range(offset, length)?;
        let taken = state.host.as_mut().map(|host| host.take(offset, length as usize));
        match course {
            Course::Cut => Err(power_is_cut()),
            Course::Fail(Fault::Ignored) => Ok(()),
            Course::Fail(fault) => Err(error_of(fault)),
            Course::Proceed if taken == Some(length as usize) => Ok(()),
            Course::Proceed => Err(error_of(Fault::NoSpace)),
        }
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state();
        let course = state.begin(OpKind::Flush, 0, 0)?;
        let lie = state
            .ignore_every_flush
            .is_some_and(|k| state.counts.flushes.is_multiple_of(k));
        let state = &mut *state;
        match course {
            _ if lie => {}
            Course::Proceed => {
                state.cells.settle();
                if let Some(host) = &mut state.host {
                    host.settle();
                }
            }
            Course::Fail(Fault::Ignored) => {}
            Course::Cut => {
                // The cut may fall before the medium has it all or just after.
                if state.random.below(2) == 0 {
                    state.cells.settle();
                }
                return Err(power_is_cut());
            }
            Course::Fail(fault) => {
                state.cells.lose(&mut state.random);
                return Err(error_of(fault));
            }
        }
        Ok(())
    }

    fn grow(&self, least_bytes: u64) -> io::Result<u64> {
        let mut state = self.state();
        if state.is_cut {
            return Err(io::ErrorKind::NotConnected.into());
        }
        state.size_bytes = state.size_bytes.max(least_bytes);
        Ok(state.size_bytes)
    }

    fn direct_file(&self) -> Option<DirectFile<'_>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_fail_from_the_cut_on_and_flushed_bytes_survive_it() {
        let device = SimDevice::new(1 << 20, 1);
        device.write_at(0, &[1; 4096]).unwrap();
        device.flush().unwrap();
        device.cut_power_at(1);
        device.write_at(4096, &[2; 4096]).unwrap();
        assert!(device.write_at(8192, &[3; 4096]).is_err());
        assert!(device.is_cut());
        assert!(device.read_at(0, &mut [0; 4096]).is_err());
        assert!(device.flush().is_err());
        let after = device.power_cycle();
        assert_eq!(after.peek(0, 4096), vec![1; 4096]);
        after.write_at(0, &[4; 4096]).unwrap();
    }

    #[test]
    fn planned_faults_hit_the_calls_they_are_for() {
        let device = SimDevice::new(1 << 20, 1);
        device.fail(OpKind::Write, 1, 2, Fault::NoSpace);
        device.write_at(0, &[1; 4096]).unwrap();
        for _ in 0..2 {
            let error = device.write_at(0, &[2; 4096]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
        device.write_at(0, &[3; 4096]).unwrap();
        device.fail(OpKind::Read, 0, 1, Fault::Io);
        assert!(device.read_at(0, &mut [0; 4096]).is_err());
        device.read_at(0, &mut [0; 4096]).unwrap();
        assert_eq!(device.counts().writes, 4);
        assert_eq!(device.counts().reads, 2);
    }

    #[test]
    fn lost_and_misplaced_writes_are_acknowledged() {
        let device = SimDevice::new(1 << 20, 1);
        device.write_at(0, &[1; 8192]).unwrap();
        device.fail(OpKind::Write, 0, 1, Fault::Ignored);
        device.write_at(0, &[2; 8192]).unwrap();
        assert_eq!(device.peek(0, 8192), vec![1; 8192]);
        device.fail(OpKind::Write, 0, 1, Fault::Misplaced { to: 65536 });
        device.write_at(0, &[3; 8192]).unwrap();
        assert_eq!(device.peek(0, 4096), vec![1; 4096]);
        assert_eq!(device.peek(4096, 4096), vec![3; 4096]);
        assert_eq!(device.peek(65536, 8192), [[3; 4096], [0; 4096]].concat());
    }

    #[test]
    fn lying_flush_keeps_nothing() {
        let device = SimDevice::new(1 << 20, 3);
        device.ignore_every_flush(1);
        let mut lost = 0;
        for index in 0..64 {
            device.write_at(index * 4096, &[1; 4096]).unwrap();
            device.flush().unwrap();
        }
        let after = device.power_cycle();
        for index in 0..64 {
            lost += u32::from(after.peek(index * 4096, 4096) != vec![1; 4096]);
        }
        assert!(lost > 0);
    }
}
