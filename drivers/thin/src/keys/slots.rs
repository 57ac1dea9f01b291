//! Reading, writing and erasing slots on the medium.
//!
//! Each slot is written by itself, one copy and then the other, with a flush after each: at any time one copy is as it was
//! or as it is going to be. The other slots of a block are written again as they are, which tearing does not change. All of
//! it happens under the pool's `control` lock, or before the pool is open.

use quarry_contract::IoBuffer;
use zerocopy::IntoBytes;

use super::KeyRef;
use super::slot::{SLOT_BYTES, Slot};
use crate::format::{BLOCK, BLOCK_BYTES};
use crate::locks::read;
use crate::pool::Pool;
use crate::{PoolDevice, PoolError};

impl Pool {
    /// Writes both copies of a slot, durably.
    pub(super) fn write_slot(&self, places: [u64; 2], slot: &Slot) -> Result<(), PoolError> {
        for place in places {
            write_sector(&*self.device, place, slot.as_bytes())?;
            self.flush_devices("flushing a key slot")?;
        }
        Ok(())
    }

    /// Reads both copies of the slot of a family; `None` for one that does not hold its key.
    pub(crate) fn read_slot(&self, key: KeyRef) -> Result<[Option<Slot>; 2], PoolError> {
        let places = read(&self.state).key_places(key.slot);
        let places = places.ok_or_else(|| {
            PoolError::damaged(
                format!("the key of family {}", key.family),
                "its slot does not exist",
            )
        })?;
        Ok(places.map(|place| {
            // A copy that cannot be read is as good as one that is damaged.
            let block = read_block_of(&*self.device, place).ok()?;
            Slot::decode(&block[sector_in(place)], self.uuid, key)
        }))
    }

    /// Rewrites a lost copy from the other.
    pub(crate) fn heal_slot(&self, key: KeyRef) -> Result<(), PoolError> {
        let copies = self.read_slot(key)?;
        let places = read(&self.state).key_places(key.slot);
        if let ([Some(good), None] | [None, Some(good)], Some(places)) = (copies, places) {
            self.write_slot(places, &good)?;
        }
        Ok(())
    }

    /// Overwrites the key of a family that is gone, durably (Y3).
    pub(super) fn erase_slot(&self, key: KeyRef) -> Result<(), PoolError> {
        let places = read(&self.state).key_places(key.slot);
        for place in places.into_iter().flatten() {
            write_sector(&*self.device, place, &[0; SLOT_BYTES])?;
        }
        self.flush_devices("flushing a key slot")
    }

    /// Overwrites whatever stands in slots that no family has (Y3): a crash came between a delete and the erasing, or
    /// between a slot and the volume that it was for.
    pub(crate) fn erase_stale_slots(&self) -> Result<(), PoolError> {
        let (pairs, used) = {
            let state = read(&self.state);
            (state.keys.pairs().to_vec(), state.versions.used_key_slots())
        };
        let slots_per_block = BLOCK_BYTES / SLOT_BYTES;
        let blocks = self.geometry.pages_per_chunk();
        let mut erased = false;
        for (area, pair) in pairs.iter().enumerate() {
            for (chunk, block) in pair
                .iter()
                .flat_map(|chunk| (0..blocks).map(move |block| (*chunk, block)))
            {
                let at = self.chunk_offset(chunk) + block * BLOCK;
                let mut bytes = read_block_of(&*self.device, at)?;
                let first = (area as u64 * blocks + block) * slots_per_block as u64;
                let mut stale = false;
                for (slot, sector) in (first..).zip(bytes.chunks_exact_mut(SLOT_BYTES)) {
                    if sector.iter().any(|byte| *byte != 0) && !used.contains(&(slot as u32)) {
                        sector.fill(0);
                        stale = true;
                    }
                }
                if stale {
                    write_block(&*self.device, at, &bytes)?;
                    erased = true;
                }
            }
        }
        match erased {
            true => self.flush_devices("flushing a key slot"),
            false => Ok(()),
        }
    }
}

fn sector_in(place: u64) -> std::ops::Range<usize> {
    let from = (place % BLOCK) as usize;
    from..from + SLOT_BYTES
}

fn read_block_of(device: &dyn PoolDevice, place: u64) -> Result<IoBuffer, PoolError> {
    let at = place / BLOCK * BLOCK;
    let mut block = IoBuffer::zeroed(BLOCK_BYTES);
    device
        .read_at(at, &mut block)
        .map_err(PoolError::device(format!("reading key slots at byte {at}")))?;
    Ok(block)
}

fn write_block(device: &dyn PoolDevice, at: u64, block: &IoBuffer) -> Result<(), PoolError> {
    device
        .write_at(at, block)
        .map_err(PoolError::device(format!("writing key slots at byte {at}")))
}

fn write_sector(device: &dyn PoolDevice, place: u64, sector: &[u8]) -> Result<(), PoolError> {
    let mut block = read_block_of(device, place)?;
    block[sector_in(place)].copy_from_slice(sector);
    write_block(device, place / BLOCK * BLOCK, &block)
}
