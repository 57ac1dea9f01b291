//! An open pool: what its parts share, and how a change gets into state and log.
//!
//! Locks, in the order in which they are taken: `checking` (one check at a time) · `control` (one control call at a time) · `checkpointing` ·
//! a turn to flush · `state` · slots of map pages. Latches, and after them at most one fill latch, are taken before
//! `checkpointing` and may be held while a checkpoint or commit runs. No I/O happens under `state`.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use quarry_contract::SpaceLevel;
use smallvec::SmallVec;
use uuid::Uuid;

use crate::chunk_places::ChunkPlaces;
use crate::chunk_table::ChunkTable;
use crate::commit::Rounds;
use crate::format::{Geometry, LEAF_ENTRIES};
use crate::handle::Openings;
use crate::host_space::HostSpace;
use crate::keys::KeyRing;
use crate::latch::LatchTable;
use crate::locks::{read, write};
use crate::log::Room;
use crate::map::{INNER_LEVELS, Node, install};
use crate::page_io::read_page;
use crate::partial::FillLatches;
use crate::record::{MAX_RECORD_BYTES, Record};
use crate::state::{Origin, State, Wanted};
use crate::turns::Turns;
use crate::version::NodeId;
use crate::waiters::SpaceWaiters;
use crate::{DeviceSet, OnFull, OpenOptions, PoolError};

/// An open pool. All calls may be made from any thread and block; none needs an async runtime or a thread of the
/// pool's own.
pub struct Pool {
    pub(crate) device: Arc<DeviceSet>,
    pub(crate) options: OpenOptions,
    pub(crate) uuid: Uuid,
    /// As of the open: what growing changes of it is in the state, and in `places`.
    pub(crate) geometry: Geometry,
    pub(crate) places: ChunkPlaces,
    pub(crate) state: RwLock<State>,
    pub(crate) latches: LatchTable,
    pub(crate) fill_latches: FillLatches,
    pub(crate) fill_cursor: AtomicU64,
    pub(crate) control: Mutex<()>,
    pub(crate) checking: Mutex<()>,
    pub(crate) checkpointing: Mutex<()>,
    pub(crate) turns: Turns,
    pub(crate) rounds: Mutex<Rounds>,
    /// The batch that was unsettled when the background work last looked; 0 for none.
    pub(crate) idle_batch: AtomicU64,
    /// Deleted versions whose reclaim has come to a page that is lost, since the pool was opened.
    pub(crate) held_up: Mutex<BTreeSet<NodeId>>,
    pub(crate) openings: Mutex<HashMap<NodeId, Openings>>,
    pub(crate) waiters: SpaceWaiters,
    /// The level that was last told of, as a number.
    pub(crate) level: AtomicU8,
    pub(crate) host: HostSpace,
    pub(crate) keys: KeyRing,
    /// Reads that were refused because a block did not have its checksum.
    pub(crate) damaged_reads: AtomicU64,
    stopped: OnceLock<String>,
    closed: AtomicBool,
}

/// What a change consists of, decided under the state lock.
pub(crate) enum Decision {
    /// These records, applied together; none at all is fine.
    Apply(SmallVec<[Record; 2]>),
    /// A map page has to be loaded before it can be decided.
    Load(Wanted),
}

/// How much of the reserve a change may use, so that what frees space works in a full pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Leaves half of the reserve.
    Normal,
    /// Leaves a third of it: a discard may have to copy map pages that snapshots share.
    Discard,
    /// May use all of it: deleting and reclaiming only ever give space back.
    Reclaim,
}

/// What stands in the way of applying records.
pub(crate) enum Obstacle {
    Page(Wanted),
    OpenBatch,
    Log,
    Space,
    /// The stock has to have so many chunks.
    Stock(u64),
    TooMany,
}

impl Pool {
    pub(crate) fn new(
        device: Arc<DeviceSet>,
        options: OpenOptions,
        uuid: Uuid,
        state: State,
        host: HostSpace,
    ) -> Self {
        Self {
            device,
            options,
            uuid,
            geometry: state.geometry,
            places: ChunkPlaces::of(&state.geometry),
            state: RwLock::new(state),
            latches: LatchTable::new(),
            fill_latches: FillLatches::new(),
            fill_cursor: AtomicU64::new(0),
            control: Mutex::default(),
            checking: Mutex::default(),
            checkpointing: Mutex::default(),
            turns: Turns::default(),
            rounds: Mutex::default(),
            idle_batch: AtomicU64::new(0),
            held_up: Mutex::default(),
            openings: Mutex::default(),
            waiters: SpaceWaiters::default(),
            level: AtomicU8::new(SpaceLevel::Normal as u8),
            host,
            keys: KeyRing::default(),
            damaged_reads: AtomicU64::new(0),
            stopped: OnceLock::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// Returns the medium.
    pub fn device(&self) -> &Arc<DeviceSet> {
        &self.device
    }

    /// Returns the address of a chunk.
    pub(crate) fn chunk_offset(&self, chunk: u64) -> u64 {
        self.places.address(chunk)
    }

    /// Returns the pool's identity on disk.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Returns the unit of allocation, in bytes.
    pub fn chunk_bytes(&self) -> u64 {
        self.geometry.chunk_bytes
    }

    pub(crate) fn on_full(&self) -> OnFull {
        self.options.on_full
    }

    /// Returns why the pool has stopped taking writes, if it has.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.get().map(String::as_str)
    }

    /// Commits, checkpoints and refuses everything afterwards. Does nothing the second time.
    ///
    /// # Errors
    /// What the checkpoint hit.
    pub fn close(&self) -> Result<(), PoolError> {
        if self.is_closed() {
            return Ok(());
        }
        let result = self.checkpoint();
        self.closed.store(true, Ordering::SeqCst);
        self.space_came();
        result
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Stops the pool for writing after a failure that leaves unknown what is durable, and returns the error.
    pub(crate) fn stop(&self, what: &str, error: PoolError) -> PoolError {
        if !matches!(error, PoolError::Stopped { .. }) {
            let reason = match &error {
                PoolError::Device { action, source } => format!("{what}: {action}: {source}"),
                other => format!("{what}: {other}"),
            };
            tracing::error!(pool = %self.options.name, reason, "pool stopped; reopen it once the medium is sound");
            self.stop_because(format!("{reason}; reopen the pool once the medium is sound"));
        }
        error
    }

    pub(crate) fn stop_because(&self, reason: String) {
        self.stopped.get_or_init(|| reason);
        self.space_came();
    }

    pub(crate) fn check_running(&self) -> Result<(), PoolError> {
        match self.stopped() {
            None => Ok(()),
            Some(reason) => Err(PoolError::Stopped {
                reason: reason.to_owned(),
            }),
        }
    }

    /// Applies what `decide` decides and appends it to the open batch, in one critical section (S2). `decide` is
    /// called again whenever a page had to be loaded or room had to be made first.
    pub(crate) fn change<E: From<PoolError>>(
        &self,
        priority: Priority,
        mut decide: impl FnMut(&State) -> Result<Decision, E>,
    ) -> Result<(), E> {
        let mut made_space = false;
        loop {
            self.check_running()?;
            let obstacle = {
                let mut state = write(&self.state);
                match decide(&state)? {
                    Decision::Load(wanted) => Obstacle::Page(wanted),
                    Decision::Apply(records) => match state.obstacle(&records, priority) {
                        Some(obstacle) => obstacle,
                        None => {
                            return Ok(state
                                .apply_and_log(&records)
                                .map_err(|bug| self.stop_for_bug(bug))?);
                        }
                    },
                }
            };
            match obstacle {
                Obstacle::Page(wanted) => self.load(&wanted)?,
                Obstacle::OpenBatch => self.commit()?,
                Obstacle::Log => self.checkpoint()?,
                Obstacle::Space if write(&self.state).check_gives_way() => {}
                Obstacle::Space if !made_space => {
                    made_space = true;
                    self.checkpoint()?;
                }
                Obstacle::Space => return Err(self.full(1).into()),
                Obstacle::Stock(chunks) => match self.stock_up(chunks) {
                    // So that the next changes need not.
                    Ok(()) => self.keep_stocked(),
                    Err(error) if error.is_full() && write(&self.state).check_gives_way() => {}
                    Err(error) if error.is_full() && !made_space => {
                        made_space = true;
                        self.checkpoint()?;
                    }
                    Err(error) => return Err(error.into()),
                },
                Obstacle::TooMany => {
                    return Err(PoolError::InvalidOption {
                        option: "group",
                        problem: "it is larger than the pool's log can take at once; split it".into(),
                    }
                    .into());
                }
            }
        }
    }

    pub(crate) fn stop_for_bug(&self, bug: String) -> PoolError {
        self.stop(
            "a change was impossible",
            PoolError::damaged("metadata in memory", bug),
        )
    }

    /// Brings a map page into memory. Whoever changed the map meanwhile makes it try again from the start.
    pub(crate) fn load(&self, wanted: &Wanted) -> Result<(), PoolError> {
        let missing = &wanted.missing;
        let what = match missing.level {
            _ if wanted.is_of_sums() => "page of checksums",
            0 => "map leaf",
            _ => "inner map page",
        };
        let page = match read_page(&*self.device, missing.pointer, what) {
            Ok(page) => page,
            // The page may have been replaced, freed and reused while it was read: then the look-up finds another.
            Err(_) if !self.is_still_wanted(wanted) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut state = write(&self.state);
        let node = Arc::new(Node::load(missing.level, missing.pointer, &page, &state.gauge));
        if let Some(root) = state.root_mut(wanted.node) {
            install(root, missing, &node);
        }
        drop(state);
        self.evict_if_far_over_budget();
        Ok(())
    }

    fn is_still_wanted(&self, wanted: &Wanted) -> bool {
        debug_assert!(wanted.missing.level <= INNER_LEVELS);
        read(&self.state).wanted_leaf(wanted.node, wanted.missing.first_leaf) == Some(*wanted)
    }
}

impl State {
    /// Says what has to be done before records can be applied, if anything has.
    pub(crate) fn obstacle(&self, records: &[Record], priority: Priority) -> Option<Obstacle> {
        if records.is_empty() {
            return None;
        }
        match self.log.room(records.len() * MAX_RECORD_BYTES) {
            Room::Enough => {}
            Room::AfterCommit => return Some(Obstacle::OpenBatch),
            Room::AfterCheckpoint => return Some(Obstacle::Log),
            Room::Never => return Some(Obstacle::TooMany),
        }
        self.obstacle_beside_log(records, priority)
    }

    /// As [`obstacle`](Self::obstacle), for records that the log has room for.
    pub(crate) fn obstacle_beside_log(&self, records: &[Record], priority: Priority) -> Option<Obstacle> {
        let extra_nodes = self.dirtied_pages(records);
        let floor = match priority {
            Priority::Normal => self.reserve_chunks() / 2,
            Priority::Discard => self.reserve_chunks() / 3,
            Priority::Reclaim => 0,
        };
        if self.spare_chunks(extra_nodes).is_none_or(|spare| spare < floor) {
            return Some(Obstacle::Space);
        }
        if let Some(chunks) = self.stock_lacking(extra_nodes, priority) {
            return Some(Obstacle::Stock(chunks));
        }
        records
            .iter()
            .find_map(|record| self.wanted(record))
            .map(Obstacle::Page)
    }

    /// Returns how many map pages, pages of sums and pages of the chunk table records make dirty at most. Neighbours are in the same leaf.
    fn dirtied_pages(&self, records: &[Record]) -> u64 {
        let (mut last_leaf, mut last_sums, mut last_page) = (None, None, None);
        let pages = records.iter().map(|record| {
            let is_same = match *record {
                Record::Map { node, index, .. } => {
                    let leaf = Some((node, index / LEAF_ENTRIES as u64));
                    std::mem::replace(&mut last_leaf, leaf) == leaf
                }
                Record::Sums { chunk, .. } => {
                    let page = Some(self.sums_page(chunk));
                    std::mem::replace(&mut last_sums, page) == page
                }
                _ => false,
            };
            let of_table = match *record {
                Record::Map { chunk, .. } | Record::MapPart { chunk, .. } | Record::MapOver { chunk, .. } => {
                    let page = Some(ChunkTable::page_of(chunk));
                    match std::mem::replace(&mut last_page, page) == page {
                        true => 0,
                        false => self.table.pages_changed_by(chunk),
                    }
                }
                _ => 0,
            };
            of_table + if is_same { 0 } else { dirtied_by(record) }
        });
        pages.sum()
    }

    /// Has a check give up the space that it holds, if it holds any (P3).
    pub(crate) fn check_gives_way(&mut self) -> bool {
        self.pages.give_way(&mut self.space)
    }

    pub(crate) fn apply_and_log(&mut self, records: &[Record]) -> Result<(), String> {
        let claims = self.log.unsettled.wants_claims();
        self.log.unsettled.note(records);
        for record in records {
            self.apply(record, self.log.next_batch, Origin::Live)?;
            if claims || !matches!(record, Record::Claim { .. }) {
                self.log.append(record);
            }
        }
        Ok(())
    }

    /// Returns how many chunks data may not use, so that checkpoints, discards and deletes work in a full pool.
    pub(crate) fn reserve_chunks(&self) -> u64 {
        let least = self.least_reserve_chunks();
        let most = (1 << 30) / self.geometry.chunk_bytes;
        (self.geometry.chunk_count / 64).clamp(least, most.max(least))
    }
}

impl State {
    /// Returns how many chunks the smallest reserve has.
    pub(crate) fn least_reserve_chunks(&self) -> u64 {
        2 * RESERVE_PAGES.div_ceil(self.geometry.pages_per_chunk())
    }
}

/// The least reserve, in page pairs: a reclaim step needs a path through the map, a row page and the index stream,
/// and a third of the reserve has to hold them.
const RESERVE_PAGES: u64 = 24;

fn dirtied_by(record: &Record) -> u64 {
    match record {
        Record::Map { .. }
        | Record::MapPart { .. }
        | Record::MapOver { .. }
        | Record::Sums { .. }
        | Record::ForgetSums { .. }
        | Record::Unmap { .. }
        | Record::Reap { .. } => u64::from(INNER_LEVELS) + 1,
        Record::CreateVolume { .. }
        | Record::CreateEncrypted { .. }
        | Record::KeyArea { .. }
        | Record::Checksum { .. }
        | Record::BeginScrub { .. }
        | Record::Scrubbed { .. }
        | Record::FoundBad(_)
        | Record::EndScrub { .. }
        | Record::Snapshot { .. }
        | Record::Clone { .. }
        | Record::Extend { .. }
        | Record::Reserve { .. }
        | Record::Delete { .. }
        | Record::Fill { .. }
        | Record::Claim { .. }
        | Record::Revert { .. } => 0,
    }
}
