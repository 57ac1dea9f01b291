//! Keeps shares from meeting the end of their pool.
//!
//! A device is thin: what a share's file system takes for free may not be there. A write to it that finds no block fails, and what then becomes of the share depends on what was written. Files: the flush fails with `ENOSPC`, and whoever
//! wrote is told. What the file system keeps beside them: it tries again until there is space. Its log: it stops, and answers
//! nothing but errors until it is mounted anew. So:
//!
//! - F1: when less than a tenth of the pool is left for shares, what they may allocate together is no more than that: the
//!   rest of what is free in them is kept back ([`set_xfs_reserve`]), and who writes is told `ENOSPC` at once. What the pool
//!   has for shares is what is free, less the reserve (D1), less what waits in memory to be written.
//! - F2: when less than a quarter is left, the log of a mounted share gets blocks of its own, so that writing to it takes
//!   none. A snapshot shares them, and so does what was cloned from one.
//!
//! What is overwritten takes blocks, too, when a snapshot shares them, and is not seen beforehand; for that the reserve is
//! there, and after that the flush that fails.
//!
//! Failure: what cannot be set is logged and tried again at the next look.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use quarry_contract::{DriverError, PoolName, ShareId, ShareVersion};
use quarry_sys::filesystem::{freeze, set_xfs_reserve, xfs_geometry, xfs_reserve};
use tracing::{info, warn};

use crate::error::StoreError;
use crate::filesystem::{BLOCK_BYTES, LOG_BYTES};
use crate::locks::{Locks, lock};
use crate::mounts::Mounts;
use crate::superblock::Superblock;

/// The reserve (D1): a twentieth of the pool, at most this, in bytes.
const RESERVE_MAX_BYTES: u64 = 1 << 30;
/// How often the pool is looked at: while there is room, and while there is little.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_NEAR_THE_END: Duration = Duration::from_millis(100);
/// What XFS keeps back of itself (xfs_mount.c, `xfs_default_resblks`): a twentieth, at most so many blocks.
const DEFAULT_RESERVE_MAX_BLOCKS: u64 = 8192;
/// A change of what a share keeps back by less is not worth a call, in blocks.
const LEAST_CHANGE_BLOCKS: u64 = 64;
/// How much of a log is copied at a time, in bytes.
const LOG_STEP_BYTES: u64 = 4 << 20;

/// What was deleted is counted as free a moment later: full is what stays so.
const FULL_TRIES: u32 = 10;
const FULL_PAUSE: Duration = Duration::from_millis(50);

/// Returns the reserve of a pool, in bytes (D1): nothing is made without that much left, so that what is there can go on
/// and be deleted.
pub fn reserve_bytes(total_bytes: u64) -> u64 {
    (total_bytes / 20).min(RESERVE_MAX_BYTES)
}

/// Checks that the reserve stays when something takes this much.
///
/// # Errors
/// `Full`, and what `space` says, which gives the size and the free space of the pool, in bytes.
pub fn check_space(
    pool: &PoolName,
    needed_bytes: u64,
    space: impl Fn() -> Result<(u64, u64), StoreError>,
) -> Result<(), StoreError> {
    for tries_left in (0..FULL_TRIES).rev() {
        let (total_bytes, free_bytes) = space()?;
        let needed_bytes = needed_bytes + reserve_bytes(total_bytes);
        if free_bytes >= needed_bytes {
            break;
        }
        if tries_left == 0 {
            return Err(DriverError::Full {
                pool: format!("pool {pool}"),
                needed_bytes,
                free_bytes,
            }
            .into());
        }
        std::thread::sleep(FULL_PAUSE);
    }
    Ok(())
}

/// Returns how much of what is not free in a mounted share is kept back beyond what XFS keeps back of itself, in bytes.
///
/// # Errors
/// What the operating system says.
pub fn kept_back_bytes(root: &File) -> io::Result<u64> {
    let held = xfs_reserve(root)?.held_blocks;
    Ok(held.saturating_sub(default_reserve_blocks(root)?) * BLOCK_BYTES)
}

fn default_reserve_blocks(root: &File) -> io::Result<u64> {
    Ok((xfs_geometry(root)?.data_blocks / 20).min(DEFAULT_RESERVE_MAX_BLOCKS))
}

/// What lies below the file systems of a pool.
pub trait Medium: Send + Sync + 'static {
    /// Returns the size and the free space of the pool, in bytes.
    ///
    /// # Errors
    /// What the operating system says.
    fn space(&self) -> io::Result<(u64, u64)>;

    /// Opens what a share lies on, to read and to write it beside its mounted file system, past what the file system's
    /// own device holds in memory. Offsets, lengths and memory are multiples of [`BLOCK_BYTES`].
    ///
    /// # Errors
    /// What the operating system says.
    fn open(&self, share: ShareVersion) -> io::Result<File>;
}

/// The thread that looks at a pool.
pub struct Brake {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    pool: String,
    medium: Box<dyn Medium>,
    locks: Arc<Locks>,
    mounts: Arc<Mounts>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_stopping: bool,
    /// The mounted shares whose log is known to have blocks of its own (F2).
    own_logs: BTreeSet<ShareId>,
}

/// What a pool has for shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    total_bytes: u64,
    left_bytes: u64,
}

/// What a mounted share is and has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Appetite {
    /// What it has free, what is kept back included, in bytes.
    spare_bytes: u64,
    /// Whether it has taken any since the last look.
    is_growing: bool,
}

impl Brake {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn start(
        pool: String,
        medium: Box<dyn Medium>,
        locks: Arc<Locks>,
        mounts: Arc<Mounts>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            pool,
            medium,
            locks,
            mounts,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("quarry-brake".into())
                .spawn(move || shared.work())?
        };
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Says that the log of a share may have no blocks of its own: it was mounted, or a copy was taken. A snapshot writes to none.
    pub fn shares_its_log(&self, version: ShareVersion) {
        if let ShareVersion::Share(share) = version {
            lock(&self.shared.state).own_logs.remove(&share);
        }
    }
}

impl Drop for Brake {
    fn drop(&mut self) {
        lock(&self.shared.state).is_stopping = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported there.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn work(&self) {
        let mut last = Looked {
            // Whatever a process before has left kept back.
            is_braking: true,
            ..Looked::default()
        };
        loop {
            let pause = match self.look(&mut last) {
                Ok(pause) => pause,
                Err(error) => {
                    warn!(pool = %self.pool, %error, "the space of the pool cannot be looked at");
                    PAUSE
                }
            };
            let state = lock(&self.state);
            let waited = self
                .changed
                .wait_timeout_while(state, pause, |state| !state.is_stopping);
            if waited.unwrap_or_else(PoisonError::into_inner).0.is_stopping {
                return;
            }
        }
    }

    /// Looks once. Returns when to look again.
    fn look(&self, last: &mut Looked) -> io::Result<Duration> {
        let (total_bytes, free_bytes) = self.medium.space()?;
        let left_bytes = free_bytes.saturating_sub(reserve_bytes(total_bytes));
        let waiting_bytes = waiting_bytes()?;
        let quarter = total_bytes / 4;
        if left_bytes.saturating_sub(waiting_bytes) >= quarter && !last.is_braking {
            return Ok(PAUSE);
        }
        let shares = self.mounted_shares();
        let used_bytes: u64 = shares.values().map(|share| share.used_bytes).sum();
        let room = Room {
            total_bytes,
            // What waits for others is in that sum, too; it can be no more than what shares hold.
            left_bytes: left_bytes.saturating_sub(waiting_bytes.min(used_bytes)),
        };
        let is_braking = self.keep_back(room, &shares, last);
        if is_braking != last.is_braking && !shares.is_empty() {
            info!(pool = %self.pool, left_bytes = room.left_bytes, is_braking, "the pool is near its end, or no longer");
        }
        last.used_bytes = shares.iter().map(|(id, share)| (*id, share.used_bytes)).collect();
        last.is_braking = is_braking;
        if room.left_bytes >= quarter {
            return Ok(PAUSE);
        }
        // For what is written over, in the reserve, half of that stays.
        let spendable_bytes = free_bytes.saturating_sub(reserve_bytes(total_bytes) / 2);
        self.give_a_log_its_own_blocks(spendable_bytes, &shares);
        Ok(PAUSE_NEAR_THE_END)
    }

    fn mounted_shares(&self) -> BTreeMap<ShareId, Mounted> {
        let mut shares = BTreeMap::new();
        for mounted in self.mounts.all() {
            let ShareVersion::Share(id) = mounted.version else {
                continue;
            };
            match Mounted::at(mounted.path) {
                Ok(share) => drop(shares.insert(id, share)),
                // Unmounted just now, or stopped: it allocates nothing.
                Err(error) => tracing::debug!(share = %id, %error, "no figures of a share"),
            }
        }
        shares
    }

    /// Keeps back what shares must not have (F1). True when that is more than what XFS does of itself.
    fn keep_back(&self, room: Room, shares: &BTreeMap<ShareId, Mounted>, last: &Looked) -> bool {
        let appetites: Vec<Appetite> = shares
            .iter()
            .map(|(id, share)| Appetite {
                spare_bytes: share.spare_bytes,
                is_growing: last
                    .used_bytes
                    .get(id)
                    .is_some_and(|used| share.used_bytes > *used),
            })
            .collect();
        let grants = grants(room, &appetites);
        if grants.is_none() && !last.is_braking {
            return false;
        }
        for (at, (id, share)) in shares.iter().enumerate() {
            let kept_bytes = grants
                .as_ref()
                .map_or(0, |grants| share.spare_bytes.saturating_sub(grants[at]));
            if let Err(error) = share.keep_back(kept_bytes / BLOCK_BYTES) {
                warn!(share = %id, %error, "it can take more of the pool than there is");
            }
        }
        grants.is_some()
    }

    /// Gives the log of one share, if there is any that wants it, blocks of its own (F2), out of this many bytes.
    fn give_a_log_its_own_blocks(&self, spendable_bytes: u64, shares: &BTreeMap<ShareId, Mounted>) {
        let wants = {
            let mut state = lock(&self.state);
            state.own_logs.retain(|id| shares.contains_key(id));
            shares.iter().find(|(id, _)| !state.own_logs.contains(id))
        };
        let Some((id, share)) = wants else { return };
        let version = ShareVersion::Share(*id);
        let Some(_held) = self.locks.try_take(version) else {
            return;
        };
        // It may be another by now.
        if spendable_bytes < LOG_BYTES || self.mounts.find(version).is_none_or(|one| one.path != share.root) {
            return;
        }
        match self.rewrite_log(version, &share.root) {
            Ok(()) => drop(lock(&self.state).own_logs.insert(*id)),
            Err(error) => {
                warn!(share = %id, %error, "its log has no blocks of its own; it stops if the pool fills")
            }
        }
    }

    /// Writes a log over itself, which gives it blocks of its own. Its file system is frozen meanwhile: it writes nothing
    /// to it.
    fn rewrite_log(&self, share: ShareVersion, root: &Path) -> io::Result<()> {
        let file = self.medium.open(share)?;
        let mut bytes = Aligned::zeroed(LOG_STEP_BYTES);
        // Where the log is never changes.
        let first = bytes.first(BLOCK_BYTES);
        file.read_exact_at(first, 0)?;
        let superblock = Superblock::parse(first).ok_or_else(|| io::Error::other("there is no XFS in it"))?;
        let _frozen = freeze(File::open(root)?)?;
        let log_bytes = u64::from(superblock.log_blocks) * u64::from(superblock.block_bytes);
        let mut done = 0;
        while done < log_bytes {
            let step = bytes.first(LOG_STEP_BYTES.min(log_bytes - done));
            let at = superblock.log_offset_bytes + done;
            file.read_exact_at(step, at)?;
            file.write_all_at(step, at)?;
            done += step.len() as u64;
        }
        // Before the file system writes there again, past the memory.
        file.sync_data()
    }
}

/// Memory that begins at a multiple of [`BLOCK_BYTES`], as direct I/O wants it.
struct Aligned {
    memory: Vec<u8>,
    begin: usize,
}

impl Aligned {
    fn zeroed(bytes: u64) -> Self {
        let memory = vec![0; (bytes + BLOCK_BYTES) as usize];
        let begin = memory.as_ptr().align_offset(BLOCK_BYTES as usize);
        Self { memory, begin }
    }

    fn first(&mut self, bytes: u64) -> &mut [u8] {
        &mut self.memory[self.begin..self.begin + bytes as usize]
    }
}

/// What was seen at the last look.
#[derive(Default)]
struct Looked {
    used_bytes: BTreeMap<ShareId, u64>,
    is_braking: bool,
}

/// What a mounted share has.
struct Mounted {
    root: PathBuf,
    spare_bytes: u64,
    used_bytes: u64,
    wanted_blocks: u64,
    default_blocks: u64,
}

impl Mounted {
    fn at(root: PathBuf) -> io::Result<Self> {
        let opened = File::open(&root)?;
        let told = statvfs(&root)?;
        let reserve = xfs_reserve(&opened)?;
        let default_blocks = default_reserve_blocks(&opened)?;
        let spare_bytes = told.blocks_free() * told.fragment_size()
            + reserve.held_blocks.saturating_sub(default_blocks) * BLOCK_BYTES;
        Ok(Self {
            used_bytes: (told.blocks() * told.fragment_size()).saturating_sub(spare_bytes),
            spare_bytes,
            wanted_blocks: reserve.wanted_blocks,
            default_blocks,
            root,
        })
    }

    fn keep_back(&self, blocks: u64) -> io::Result<()> {
        let wanted = self.default_blocks + blocks;
        if wanted.abs_diff(self.wanted_blocks) < LEAST_CHANGE_BLOCKS && blocks > 0 {
            return Ok(());
        }
        if wanted == self.wanted_blocks {
            return Ok(());
        }
        set_xfs_reserve(&File::open(&self.root)?, wanted)
    }
}

/// Decides what each share may allocate before the next look, in bytes; `None` while no limit is needed (F1). The sum is no
/// more than what is left. Most of it goes to those that are writing.
fn grants(room: Room, shares: &[Appetite]) -> Option<Vec<u64>> {
    let wanted: u64 = shares.iter().map(|share| share.spare_bytes).sum();
    if room.left_bytes >= wanted || room.left_bytes >= room.total_bytes / 10 {
        return None;
    }
    let growing = shares.iter().filter(|share| share.is_growing).count() as u64;
    let (for_growing, for_all) = match growing {
        0 => (0, room.left_bytes),
        _ => (room.left_bytes / 4 * 3, room.left_bytes / 4),
    };
    let each = for_all / (shares.len() as u64).max(1);
    let each_growing = for_growing / growing.max(1);
    Some(
        shares
            .iter()
            .map(|share| each + if share.is_growing { each_growing } else { 0 })
            .collect(),
    )
}

/// Returns what waits in the memory of this machine to be written to anything, in bytes (proc_meminfo(5)).
fn waiting_bytes() -> io::Result<u64> {
    Ok(parse_waiting(&fs::read_to_string("/proc/meminfo")?))
}

fn parse_waiting(text: &str) -> u64 {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    ["Dirty:", "Writeback:"]
        .into_iter()
        .filter_map(field)
        .sum::<u64>()
        * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn room(left_mib: u64) -> Room {
        Room {
            total_bytes: 1000 * MIB,
            left_bytes: left_mib * MIB,
        }
    }

    fn share(spare_mib: u64, is_growing: bool) -> Appetite {
        Appetite {
            spare_bytes: spare_mib * MIB,
            is_growing,
        }
    }

    #[test]
    fn nothing_is_kept_back_while_there_is_room() {
        assert_eq!(grants(room(100), &[share(5000, true)]), None);
        assert_eq!(
            grants(room(50), &[share(20, true), share(30, false)]),
            None,
            "enough for all"
        );
        assert_eq!(grants(room(0), &[]), None);
    }

    /// F1.
    #[test]
    fn shares_get_together_what_is_left_and_no_more() {
        for growing in [[false, false, false], [true, false, false], [true, true, true]] {
            for left in [0, 1, 7, 99] {
                let shares = growing.map(|is_growing| share(5000, is_growing));
                let grants = grants(room(left), &shares).unwrap();
                assert!(
                    grants.iter().sum::<u64>() <= left * MIB,
                    "{growing:?} {left}: {grants:?}"
                );
            }
        }
        let grants = grants(room(80), &[share(5000, false), share(5000, true)]).unwrap();
        assert_eq!(grants, [10 * MIB, 70 * MIB]);
    }

    #[test]
    fn what_waits_to_be_written_is_read_from_the_kernel() {
        let text = "MemTotal:       24689764 kB\nDirty:              1234 kB\nWriteback:            16 kB\nWritebackTmp: 5 kB\n";
        assert_eq!(parse_waiting(text), 1250 * 1024);
        assert!(waiting_bytes().is_ok());
    }
}
