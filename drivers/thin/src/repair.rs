//! Putting a damaged pool right, as far as what is left of it says what belongs where.
//!
//! | damage | put right from |
//! |---|---|
//! | a superblock copy | the newest valid copy |
//! | one copy of a map, version table or index page, or of a wrapped key | the other copy |
//! | the chunk bitmap or its directory: damaged, or contradicting the maps | the maps |
//!
//! Nothing is guessed: what cannot be derived is reported and left as it is. What is written is what is there
//! already, elsewhere; so a repair that is cut off can be begun again.

use std::sync::Arc;

use quarry_contract::IoBuffer;

use crate::check::BitmapBlocks;
use crate::format::BLOCK;
use crate::page_io::read_page;
use crate::{Access, BitmapSource, CheckReport, DeviceSet, OpenOptions, Pool, PoolDevice, PoolError};

/// What a repair found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// One sentence for each violation found.
    pub found: Vec<String>,
    /// Those that are left; with [`Access::ReadOnly`], those that would be.
    pub remaining: Vec<String>,
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
        Err(error @ PoolError::Damaged { .. }) => vec![error.to_string()],
        Err(error) => return Err(error),
    };
    Ok(RepairReport { found, remaining })
}

impl Pool {
    /// Rewrites copies from their other copies and everything else by a checkpoint; returns what is still wrong.
    fn put_right(&self, report: &CheckReport) -> Result<Vec<String>, PoolError> {
        for key in &report.lost_keys {
            self.heal_slot(*key)?;
        }
        for (number, pointer) in &report.lost_copies {
            let page = read_page(&*self.device, *pointer, "page")?;
            self.device
                .write_at(number * BLOCK, &IoBuffer::from_slice(&page))
                .map_err(PoolError::device(format!("rewriting page {number}")))?;
        }
        self.device
            .flush()
            .map_err(PoolError::device("flushing rewritten pages"))?;
        self.checkpoint()?;
        Ok(self.check()?.problems)
    }
}
