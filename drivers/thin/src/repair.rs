//! Putting a damaged pool right, as far as what is left of it says what belongs where.
//!
//! | damage | put right from |
//! |---|---|
//! | a superblock copy | the newest valid copy |
//! | one copy of a map, version table or index page, or of a wrapped key | the other copy |
//! | both copies of a page of a map | the chunk table |
//! | the chunk table | the maps |
//! | pages that are in use and nobody's | the maps |
//! | the chunk bitmap or its directory: damaged, or contradicting the maps | the maps |
//!
//! Nothing is guessed: what cannot be derived is reported and left as it is. What is written is what is there
//! already, elsewhere; so a repair that is cut off can be begun again.

use std::sync::Arc;

use quarry_contract::IoBuffer;

use crate::check::BitmapBlocks;
use crate::format::BLOCK;
use crate::locks::{read, write};
use crate::page_io::read_page;
use crate::page_space::CopyClass;
use crate::{Access, BitmapSource, CheckReport, DeviceSet, OpenOptions, Pool, PoolDevice, PoolError};

/// What a repair found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// One sentence for each violation found.
    pub found: Vec<String>,
    /// Those that are left; with [`Access::ReadOnly`], those that would be.
    pub remaining: Vec<String>,
    /// What the chunk table has made again, or can make again; one sentence for each volume and snapshot.
    pub rebuilt: Vec<String>,
}

/// What becomes of chunks below a lost page of a map that had been discarded there, and that an ancestor still owns: the chunk table
/// knows nothing of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discarded {
    /// Where there are any, the page is not made again.
    StaysAway,
    /// They hold again what they held before they were discarded.
    MayComeBack,
}

/// Finds what is wrong with the pool on `device`, which nobody else has open, and puts right what can be, or with
/// [`Access::ReadOnly`] only says what that is.
///
/// # Errors
/// When the medium holds no pool, a newer or a cut-off one, or fails.
pub fn repair(
    device: &Arc<DeviceSet>,
    options: &OpenOptions,
    access: Access,
    discarded: Discarded,
) -> Result<RepairReport, PoolError> {
    let open = |access, bitmap| {
        let options = OpenOptions {
            access,
            bitmap,
            ..options.clone()
        };
        Pool::open_set(Arc::clone(device), options)
    };
    let found = match open(Access::ReadOnly, BitmapSource::Stored) {
        Ok(pool) => pool.check()?.problems,
        Err(error @ PoolError::Damaged { .. }) => vec![error.to_string()],
        Err(error) => return Err(error),
    };
    if found.is_empty() {
        return Ok(RepairReport::default());
    }
    let remaining = match open(access, BitmapSource::Maps) {
        Ok(pool) => {
            let report = pool.check_parts(BitmapBlocks::Ignore)?;
            match access {
                Access::ReadOnly => report.beyond_repair,
                Access::ReadWrite => pool.put_right(&report)?,
            }
        }
        Err(error @ PoolError::Damaged { .. }) => {
            let (remaining, rebuilt) = rebuild_lost(device, options, access, discarded, &error)?;
            return Ok(RepairReport {
                found,
                remaining,
                rebuilt,
            });
        }
        Err(error) => return Err(error),
    };
    Ok(RepairReport {
        found,
        remaining,
        rebuilt: Vec::new(),
    })
}

/// Makes pages of maps again that are lost, which is what has kept the bitmap from being made from the maps. Returns what is left, and
/// what has been made.
fn rebuild_lost(
    device: &Arc<DeviceSet>,
    options: &OpenOptions,
    access: Access,
    discarded: Discarded,
    error: &PoolError,
) -> Result<(Vec<String>, Vec<String>), PoolError> {
    let open = |access| {
        let options = OpenOptions {
            access,
            bitmap: BitmapSource::Stored,
            ..options.clone()
        };
        Pool::open_rebuilt(Arc::clone(device), options)
    };
    let (pool, rebuilt) = match open(Access::ReadOnly) {
        Ok((_, rebuilt)) if rebuilt.lost_pages == 0 => return Ok((vec![error.to_string()], Vec::new())),
        Ok(both) => both,
        Err(other @ PoolError::Damaged { .. }) => {
            let mut remaining = vec![error.to_string(), other.to_string()];
            remaining.dedup();
            return Ok((remaining, Vec::new()));
        }
        Err(other) => return Err(other),
    };
    let sentences = rebuilt.sentences(pool.chunk_bytes());
    if rebuilt.came_back() > 0 && discarded == Discarded::StaysAway {
        return Ok((vec![error.to_string()], sentences));
    }
    let report = pool.check()?;
    if access == Access::ReadOnly {
        return Ok((report.beyond_repair, sentences));
    }
    drop(pool);
    let (pool, _) = open(access)?;
    Ok((pool.put_right(&report)?, sentences))
}

impl Pool {
    /// Rewrites copies from their other copies and everything else by a checkpoint; returns what is still wrong.
    fn put_right(&self, report: &CheckReport) -> Result<Vec<String>, PoolError> {
        {
            let mut state = write(&self.state);
            let tops = state.table.forget_tops(&report.lost_tops);
            for page in report.leaked_pages.iter().chain(&tops) {
                state.garbage.push_pointer(*page);
            }
            if report.table_is_wrong {
                state.table.begin_walk();
            }
        }
        for key in &report.lost_keys {
            self.heal_slot(*key)?;
        }
        let is_in_use = |number: u64| {
            let state = read(&self.state);
            [CopyClass::First, CopyClass::Second]
                .into_iter()
                .any(|class| state.pages.is_used(&state.geometry, number, class))
        };
        // A pointer that contradicts the list of pages may name data: what is there stays as it is.
        let lost = report.lost_copies.iter().filter(|(number, _)| is_in_use(*number));
        for (number, pointer) in lost {
            let page = read_page(&*self.device, *pointer, "page")?;
            self.device
                .write_at(number * BLOCK, &IoBuffer::from_slice(&page))
                .map_err(PoolError::device(format!("rewriting page {number}")))?;
        }
        self.device
            .flush()
            .map_err(PoolError::device("flushing rewritten pages"))?;
        self.checkpoint()?;
        while report.table_is_wrong && self.walk_for_table(&mut 0)? {}
        self.checkpoint()?;
        Ok(self.check()?.problems)
    }
}
