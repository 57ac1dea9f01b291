//! Growing a pool while it is in use.
//!
//! Called by the backend; blocks for as long as a checkpoint takes.
//!
//! Invariants
//! - J1: no chunk of new space is handed out before the superblock that has it is durable, and the devices that it is
//!   on are known to whoever looks for chunks.
//! - J2: an added device has its label durably before a superblock names it, and is never one that holds something else.
//! - J3: of superblock copies at a place where the pool ends no more, or not yet, none is left for an open to find: a growth
//!   wipes the old ones when the new ones are durable, and an open wipes what a growth that was cut short has left.
//!
//! Order: make the first device larger, or label the new one, flush · a checkpoint with the new layout, which wipes the old
//! tail copies before it writes the second head copy · hand out the new chunks.
//!
//! Failure: what is refused before the checkpoint changes nothing; a failure from there on stops the pool, and an open
//! finds it as before or as after.
//! Format: docs/formats/pool.md, "Growing".

use std::sync::Arc;

use quarry_contract::{DriverError, IoBuffer, Outcome, PoolStatus};
use uuid::Uuid;

use crate::checkpoint::Layout;
use crate::format::{
    ADDED_DATA_START, AddedDevice, BLOCK, BLOCK_BYTES, Geometry, MAX_ADDED_DEVICES, SuperblockFields,
};
use crate::host_space::take_tail_copies;
use crate::labels::{read_label, write_labels};
use crate::locks::{lock, read, write};
use crate::page_io::read_block;
use crate::pool::Pool;
use crate::recovery::{is_blank, read_superblock};
use crate::{PoolDevice, PoolError};

impl Pool {
    /// Takes into use what its devices have become larger by. With `least_bytes`, makes the first device that large
    /// first, where it is a file.
    ///
    /// # Errors
    /// `InvalidArgument` when the first device is larger already, or cannot be made so large; `Unavailable`.
    pub fn enlarge(&self, least_bytes: Option<u64>) -> Result<Outcome<PoolStatus>, DriverError> {
        let control = lock(&self.control);
        self.check_open()?;
        let mut layout = read(&self.state).layout();
        if let Some(least) = least_bytes.filter(|least| *least < layout.geometry.device_bytes) {
            return Err(DriverError::InvalidArgument {
                field: "size_bytes".into(),
                problem: format!(
                    "{least} is less than the {} that the pool has; pools only grow",
                    layout.geometry.device_bytes
                ),
            });
        }
        let grown = self
            .check_running()
            .and_then(|()| self.sizes_of_devices(&layout, least_bytes.unwrap_or(0)))
            .and_then(|sizes| {
                for (number, size) in sizes.into_iter().enumerate() {
                    let before = layout.geometry;
                    layout.geometry = before.grown(number, size)?;
                    if let Some(added) = number.checked_sub(1)
                        && layout.geometry != before
                    {
                        layout.devices[added].set_device_bytes(size / BLOCK * BLOCK);
                    }
                }
                self.go_over_to(layout)
            });
        drop(control);
        self.answer_growth(grown)
    }

    /// Asks every device for its size; the first is made larger when it is a file that is less than `least_bytes`.
    fn sizes_of_devices(&self, layout: &Layout, least_bytes: u64) -> Result<Vec<u64>, PoolError> {
        let first = self.device.first().grow(least_bytes);
        let mut sizes = vec![first.map_err(PoolError::device("making the first device larger"))?];
        for (number, device) in layout.devices.iter().enumerate() {
            if device.is_none() {
                break;
            }
            let size = self.device.device(number + 1).map(|device| device.grow(0));
            let size = size.transpose().map_err(PoolError::device(format!(
                "asking device {} for its size",
                device.uuid()
            )))?;
            sizes.push(size.unwrap_or(0));
        }
        if let Some(missing) = least_bytes.checked_sub(sizes[0]).filter(|missing| *missing > 0) {
            return Err(PoolError::InvalidOption {
                option: "size_bytes",
                problem: format!("the device has {missing} bytes less; make it larger first"),
            });
        }
        Ok(sizes)
    }

    /// Adds a device that holds nothing. `path` is where it is looked for when the pool is opened.
    ///
    /// # Errors
    /// `InvalidArgument` when it holds something, is too small, or the pool has as many as it can have; `Unavailable`.
    pub fn add_device(
        &self,
        device: Arc<dyn PoolDevice>,
        path: &str,
    ) -> Result<Outcome<PoolStatus>, DriverError> {
        let control = lock(&self.control);
        self.check_open()?;
        let grown = self.add_and_go_over(device, path);
        drop(control);
        self.answer_growth(grown)
    }

    /// Tells whether a device was added by this path.
    pub(crate) fn has_device_at(&self, path: &str) -> bool {
        let state = read(&self.state);
        state
            .devices
            .iter()
            .any(|device| !device.is_none() && device.path() == path)
    }

    fn add_and_go_over(&self, device: Arc<dyn PoolDevice>, path: &str) -> Result<bool, PoolError> {
        self.check_running()?;
        let mut layout = read(&self.state).layout();
        let refused = |problem: String| PoolError::InvalidOption {
            option: "device",
            problem,
        };
        let size = device
            .size_bytes()
            .map_err(PoolError::device("asking for the size"))?
            / BLOCK
            * BLOCK;
        match read_label(&*device)? {
            Some((pool, id)) if pool == self.uuid && is_of(&layout, id) => return Ok(false),
            // Labelled by a growth that was cut short.
            Some((pool, _)) if pool == self.uuid => {}
            Some((pool, _)) => return Err(refused(format!("it belongs to pool {pool}"))),
            None if !is_blank(&*device)? => {
                return Err(refused(
                    "it holds something; wipe its beginning if nobody needs that".into(),
                ));
            }
            None => {}
        }
        let number = layout.devices.iter().position(AddedDevice::is_none);
        let number = number.ok_or_else(|| refused(format!("a pool has at most {MAX_ADDED_DEVICES} more")))?;
        let uuid = Uuid::new_v4();
        layout.devices[number] = AddedDevice::new(uuid, size, path)
            .ok_or_else(|| refused(format!("its path {path:?} is too long; use a shorter one")))?;
        let before = layout.geometry;
        layout.geometry = before.grown(number + 1, size)?;
        if layout.geometry == before {
            return Err(refused(format!(
                "it has {size} bytes, too few for a chunk of {} behind the first {ADDED_DATA_START}",
                before.chunk_bytes
            )));
        }
        write_labels(&*device, (self.uuid, uuid))?;
        self.device.set(number, Some(device));
        if self.device.may_run_out() {
            // Map pages that there are keep the space that they have.
            write(&self.state).pages.keep_stock();
        }
        let gone_over = self.go_over_to(layout);
        if gone_over.is_err() && self.stopped().is_none() {
            self.device.set(number, None);
        }
        gone_over
    }

    /// Makes a layout the pool's; false when it is already.
    fn go_over_to(&self, layout: Layout) -> Result<bool, PoolError> {
        let one_checkpoint = lock(&self.checkpointing);
        let before = read(&self.state).layout();
        if before.geometry == layout.geometry && before.devices == layout.devices {
            return Ok(false);
        }
        if before.geometry.device_bytes != layout.geometry.device_bytes {
            take_tail_copies(&**self.device.first(), &layout.geometry)?;
        }
        self.checkpoint_as(&one_checkpoint, Some(layout))?;
        tracing::info!(
            pool = %self.options.name,
            bytes = (layout.geometry.chunk_count - before.geometry.chunk_count) * layout.geometry.chunk_bytes,
            "the pool has grown"
        );
        Ok(true)
    }

    fn answer_growth(&self, grown: Result<bool, PoolError>) -> Result<Outcome<PoolStatus>, DriverError> {
        match grown.map_err(|error| self.driver_error(error))? {
            true => Ok(Outcome::Changed(self.status())),
            false => Ok(Outcome::Unchanged(self.status())),
        }
    }
}

/// Tells whether a layout has the device with this id.
fn is_of(layout: &Layout, id: Uuid) -> bool {
    layout.devices.iter().any(|device| device.uuid() == id)
}

/// Wipes where a layout has its tail copies of the superblock.
pub(crate) fn wipe_tails(first: &dyn PoolDevice, layout: &Geometry) -> Result<(), PoolError> {
    [2, 3]
        .into_iter()
        .try_for_each(|copy| wipe_copy(first, layout, copy))
}

fn wipe_copy(first: &dyn PoolDevice, layout: &Geometry, copy: usize) -> Result<(), PoolError> {
    first
        .write_at(layout.superblock_offset(copy), &IoBuffer::zeroed(BLOCK_BYTES))
        .map_err(PoolError::device("wiping a superblock copy of another layout"))
}

/// Wipes the tail copies of the layout before the last growth, if that was cut short before it wiped them itself (J3): then
/// a head copy still has that layout, and nobody has been given a chunk of what came after it. Returns whether it did.
pub(crate) fn wipe_outgrown_tails(
    first: &dyn PoolDevice,
    superblock: &SuperblockFields,
) -> Result<bool, PoolError> {
    let mut found = false;
    for copy in [0, 1] {
        let offset = superblock.geometry.superblock_offset(copy);
        let Ok(head) = read_superblock(first, offset).and_then(|block| block.decode()) else {
            continue;
        };
        let is_outgrown =
            head.uuid == superblock.uuid && head.geometry.device_bytes < superblock.geometry.device_bytes;
        for tail in [2, 3] {
            // Nothing else than what the head copy repeats is ever taken for one.
            let block = read_superblock(first, head.geometry.superblock_offset(tail));
            let is_there = block
                .and_then(|block| block.decode())
                .is_ok_and(|tail| tail == head);
            if is_outgrown && is_there {
                wipe_copy(first, &head.geometry, tail)?;
                found = true;
            }
        }
    }
    Ok(found)
}

/// Wipes superblock copies at the end of a first device that is larger than its pool: a growth that was cut short may
/// have written them (J3). Returns whether there were any.
pub(crate) fn wipe_unborn_tails(first: &dyn PoolDevice, layout: &Geometry) -> Result<bool, PoolError> {
    let size = first
        .size_bytes()
        .map_err(PoolError::device("asking for the size"))?
        / BLOCK
        * BLOCK;
    let ending_there = Geometry {
        device_bytes: size,
        ..*layout
    };
    // What lies in between belongs to chunks.
    if size < layout.device_bytes + 2 * BLOCK {
        return Ok(false);
    }
    let mut found = false;
    for copy in [2, 3] {
        let block = read_block(
            first,
            ending_there.superblock_offset(copy),
            "the end of the device",
        )?;
        found |= block.starts_with(b"QRYTHIN\0");
    }
    if found {
        wipe_tails(first, &ending_there)?;
    }
    Ok(found)
}
