//! The space that a pool needs of the file system that its file is in, taken before it is needed.
//!
//! A pool's file has holes, and whoever else uses the file system may fill it. A write into a hole is refused then. For a volume's
//! data that is an answer like that of a full pool; for a write of the pool's own it would be a failed write, which stops it.
//!
//! Invariants
//! - HF1: the fixed areas (superblock copies, log, bitmap and its directory) have their space from the format on, new tail copies
//!   before a growth writes them, and so have key areas. So commits, and what a checkpoint writes there, are not refused.
//! - HF2: a checkpoint writes pages only to chunks that have their space (P4): those of map pages that there are, and new ones
//!   from a stock. The stock has what a checkpoint of all that is dirty may need, and for changes that give space back a
//!   reserve beyond that, as the free space has (A5); a change that would have it be less stocks up first, or is refused.
//!
//! So on a full file system a pool is like a full one: what needs space is refused and leaves no trace; deletes, reclaim, discards
//! and checkpoints go on, and chunks that are discarded are space for whoever comes first.
//!
//! Failure: a format, a growth and a change are refused, and nothing has changed. An open goes on with what it gets: of an older
//! pool, which has holes there; what it lacks it says, and takes in the background as soon as there is any. A file system that
//! cannot give a range its space beforehand promises nothing: everything goes on as if it had, and a refused write of
//! the pool's own stops it.
//! Why so, and what was measured: docs/decisions/0014-host-file-system-full.md.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use smallvec::SmallVec;

use crate::device::is_out_of_space;
use crate::format::{BLOCK, Geometry};
use crate::locks::{read, write};
use crate::maintenance::runs;
use crate::pool::{Pool, Priority};
use crate::space::SearchFrom;
use crate::state::State;
use crate::{PoolDevice, PoolError};

/// The stock beyond what a checkpoint may need, in bytes: fewer changes have to stock up first.
const STOCK_BYTES: u64 = 4 << 20;
/// How many free chunks the open of a pool tries, to find such as have their space.
const MOST_CANDIDATES: usize = 1 << 14;

/// What a pool has of its host's space.
#[derive(Debug, Default)]
pub(crate) struct HostSpace {
    /// Whether fixed areas are without their space.
    lacks_fixed: AtomicBool,
}

/// How taking space went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taking {
    /// The range has it, or needs none.
    Taken,
    /// The medium cannot take space beforehand.
    Impossible,
}

/// Takes the space of a range.
///
/// # Errors
/// `HostFull`; `Device`.
pub(crate) fn take_space(device: &dyn PoolDevice, offset: u64, length: u64) -> Result<Taking, PoolError> {
    match device.allocate(offset, length) {
        Ok(()) => Ok(Taking::Taken),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(Taking::Impossible),
        Err(error) => {
            let action = format!("taking space for {length} bytes at byte {offset}");
            Err(host_full_or(action, length)(error))
        }
    }
}

/// Makes `HostFull` of a failure for lack of space, and `Device` of others.
pub(crate) fn host_full_or(
    action: impl Into<String>,
    needed_bytes: u64,
) -> impl FnOnce(io::Error) -> PoolError {
    move |source| match is_out_of_space(&source) {
        true => PoolError::HostFull { needed_bytes, source },
        false => PoolError::device(action)(source),
    }
}

/// Takes the space of the fixed areas (HF1).
///
/// # Errors
/// As [`take_space`].
pub(crate) fn take_fixed_areas(device: &dyn PoolDevice, geometry: &Geometry) -> Result<Taking, PoolError> {
    if take_space(device, 0, geometry.data_start)? == Taking::Impossible {
        tracing::warn!(
            "the file system under the pool cannot give a file space beforehand: keep it from getting full, which would stop the pool"
        );
        return Ok(Taking::Impossible);
    }
    take_tail_copies(device, geometry)
}

/// Takes the space of the superblock's tail copies (HF1).
///
/// # Errors
/// As [`take_space`].
pub(crate) fn take_tail_copies(device: &dyn PoolDevice, geometry: &Geometry) -> Result<Taking, PoolError> {
    take_space(device, geometry.superblock_offset(2), 2 * BLOCK)
}

impl HostSpace {
    /// Takes the space of a pool that is being opened, as far as there is any.
    pub fn at_open(device: &dyn PoolDevice, geometry: &Geometry) -> Self {
        let lacks_fixed = match take_fixed_areas(device, geometry) {
            Ok(_) => false,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the pool's log and bitmap have no space of their own: a write to them may be refused, which stops the pool"
                );
                true
            }
        };
        Self {
            lacks_fixed: AtomicBool::new(lacks_fixed),
        }
    }

    /// Tells whether fixed areas are without their space.
    pub fn lacks_fixed(&self) -> bool {
        self.lacks_fixed.load(Ordering::Relaxed)
    }
}

impl State {
    /// Returns how many chunks can be handed out, or are in the stock until they are needed.
    pub(crate) fn free_chunks(&self) -> u64 {
        self.space.free() + self.pages.stock().unwrap_or(0)
    }

    /// Returns how many chunks the stock is to have, when these further pages are going to be dirty and this priority leaves to
    /// others what it has to; `None` when it has as many (HF2).
    pub(crate) fn stock_lacking(&self, extra_nodes: u64, priority: Priority) -> Option<u64> {
        let stock = self.pages.stock()?;
        let floor = match priority {
            Priority::Normal => self.least_reserve_chunks() / 2,
            Priority::Discard => self.least_reserve_chunks() / 3,
            Priority::Reclaim => 0,
        };
        let needed = self.stock_needed(extra_nodes) + floor;
        (stock < needed).then_some(needed)
    }

    fn stock_needed(&self, extra_nodes: u64) -> u64 {
        self.pages
            .chunks_needed(&self.geometry, self.checkpoint_pages(extra_nodes))
    }

    /// Returns how many chunks the stock should have: not more than the reserve beside what a checkpoint may need, so that it has
    /// nothing that data could take.
    pub(crate) fn stock_wanted(&self) -> u64 {
        let beyond = (STOCK_BYTES / self.geometry.chunk_bytes).max(self.least_reserve_chunks());
        self.stock_needed(0) + beyond.min(self.reserve_chunks())
    }
}

impl Pool {
    /// Takes the space of what an open has found, and begins the stock, as far as there is any space. The medium is written.
    pub(crate) fn take_space_at_open(&self) {
        if !self.device.may_run_out() {
            return;
        }
        let chunks: Vec<u64> = {
            let mut state = write(&self.state);
            state.pages.keep_stock();
            state.pages.chunks().map(|(chunk, _)| chunk).collect()
        };
        for chunk in self.without_space(&chunks) {
            write(&self.state).pages.note_lacking(chunk, true);
        }
        if self.take_key_areas().is_err() {
            self.host.lacks_fixed.store(true, Ordering::Relaxed);
        }
        let wanted = read(&self.state).stock_wanted();
        if let Err(error) = self.stock_up(wanted) {
            tracing::warn!(
                pool = %self.options.name,
                error = &error as &dyn std::error::Error,
                "there is little space for the pool's own changes"
            );
            self.stock_up_with_what_is_left(wanted);
        }
    }

    /// Takes the space of chunks; returns those that do not get any.
    fn without_space(&self, chunks: &[u64]) -> Vec<u64> {
        let takes = |place, length| take_space(&*self.device, place, length).is_ok();
        let chunk_bytes = self.geometry.chunk_bytes;
        let places = chunks.iter().map(|chunk| self.chunk_offset(*chunk));
        // In most pools they have theirs, and are few runs.
        if runs(places, chunk_bytes)
            .iter()
            .all(|run| takes(run.start, run.end - run.start))
        {
            return Vec::new();
        }
        let lacking = chunks
            .iter()
            .filter(|chunk| !takes(self.chunk_offset(**chunk), chunk_bytes));
        lacking.copied().collect()
    }

    /// Takes the space of a chunk.
    ///
    /// # Errors
    /// As [`take_space`].
    pub(crate) fn take_space_of_chunk(&self, chunk: u64) -> Result<Taking, PoolError> {
        take_space(&*self.device, self.chunk_offset(chunk), self.geometry.chunk_bytes)
    }

    fn take_key_areas(&self) -> Result<(), PoolError> {
        let chunks: SmallVec<[u64; 4]> = read(&self.state).keys.chunks().collect();
        chunks
            .into_iter()
            .try_for_each(|chunk| self.take_space_of_chunk(chunk).map(drop))
    }

    /// Takes the space that the pool is still without, and fills the stock up, as far as there is any space.
    pub(crate) fn take_lacking_space(&self) {
        if self.host.lacks_fixed() {
            let geometry = read(&self.state).geometry;
            let taken = take_fixed_areas(&*self.device, &geometry).and_then(|_| self.take_key_areas());
            if taken.is_ok() {
                self.host.lacks_fixed.store(false, Ordering::Relaxed);
                tracing::info!(pool = %self.options.name, "the pool's log and bitmap have their space now");
            }
        }
        self.keep_stocked();
    }

    /// Fills the stock up to what it should have, as far as there is any space.
    pub(crate) fn keep_stocked(&self) {
        let (has, wanted, lacking) = {
            let state = read(&self.state);
            let Some(stock) = state.pages.stock() else { return };
            (stock, state.stock_wanted(), state.pages.lacking())
        };
        let still = self.without_space(&lacking);
        for chunk in lacking.into_iter().filter(|chunk| !still.contains(chunk)) {
            write(&self.state).pages.note_lacking(chunk, false);
        }
        if has < wanted {
            // What needs it is told.
            let _ = self.stock_up(wanted);
        }
    }

    /// Fills the stock up to what a checkpoint needs.
    ///
    /// # Errors
    /// As [`stock_up`](Self::stock_up).
    pub(crate) fn stock_for_checkpoint(&self) -> Result<(), PoolError> {
        let lacking = read(&self.state).stock_lacking(0, Priority::Reclaim);
        lacking.map_or(Ok(()), |chunks| self.stock_up(chunks))
    }

    /// Fills the stock up to so many chunks.
    ///
    /// # Errors
    /// `HostFull`; `Full`; `Device`. What it has got until then, it has.
    pub(crate) fn stock_up(&self, chunks: u64) -> Result<(), PoolError> {
        loop {
            let taken = {
                let mut state = write(&self.state);
                // From both ends, as the copies of pages are.
                let from = match state.pages.stock() {
                    None => return Ok(()),
                    Some(stock) if stock >= chunks => return Ok(()),
                    Some(stock) if stock % 2 == 0 => SearchFrom::Front,
                    Some(_) => SearchFrom::Back,
                };
                state.space.take(from)
            };
            let chunk = taken.ok_or_else(|| self.full(1))?;
            self.put_in_stock(chunk)?;
        }
    }

    /// As [`stock_up`](Self::stock_up), with whatever free chunks have their space already: a pool that was open before has left some.
    fn stock_up_with_what_is_left(&self, chunks: u64) {
        let mut from = 0;
        for _candidate in 0..MOST_CANDIDATES {
            let taken = {
                let mut state = write(&self.state);
                match state.pages.stock() {
                    Some(stock) if stock < chunks => state.space.take_from(from),
                    Some(_) | None => return,
                }
            };
            let Some(chunk) = taken else { return };
            from = chunk + 1;
            match self.put_in_stock(chunk) {
                Ok(()) => {}
                Err(error) if error.is_full() => {}
                Err(_) => return,
            }
        }
    }

    /// Puts a chunk that was handed out in the stock, with its space, or gives it back.
    fn put_in_stock(&self, chunk: u64) -> Result<(), PoolError> {
        let taking = self.take_space_of_chunk(chunk);
        if taking.is_err() && self.options.discard_freed {
            // It may have got a part. Nobody else has the chunk yet.
            let _ = self
                .device
                .discard(self.chunk_offset(chunk), self.geometry.chunk_bytes);
        }
        let mut state = write(&self.state);
        let State { pages, space, .. } = &mut *state;
        match taking {
            Ok(Taking::Taken) => pages.put_in_stock(chunk),
            Ok(Taking::Impossible) => {
                space.give_back(chunk);
                pages.give_up_stock(space);
            }
            Err(error) => {
                space.give_back(chunk);
                return Err(error);
            }
        }
        Ok(())
    }
}
