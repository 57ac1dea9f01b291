//! Reading batches of the log: block by block, and one that is damaged from the copy in a later one.
//!
//! Format: docs/formats/pool.md, "Redo log", "A batch carries those before it".

use std::sync::Arc;

use quarry_contract::IoBuffer;
use uuid::Uuid;

use crate::format::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, BatchCopy, BatchHeader, FLAG_CARRIES, FLAG_VERIFY, Geometry,
};
use crate::log::LogRing;
use crate::record::Record;
use crate::{PoolDevice, PoolError};

/// A batch read from the log.
pub(crate) struct LoggedBatch {
    pub number: u64,
    pub block: u64,
    pub record_count: u32,
    flags: u32,
    /// Of its own records, and with what it carries.
    record_bytes: usize,
    held_bytes: usize,
    /// Whether it is damaged and this is made of what a later one carries.
    pub is_restored: bool,
    pub frame: Vec<u8>,
}

impl LoggedBatch {
    pub fn blocks(&self) -> u64 {
        (self.frame.len() / BLOCK_BYTES) as u64
    }

    pub fn records(&self) -> &[u8] {
        &self.held()[..self.record_bytes]
    }

    /// Its records, and what it carries behind them.
    fn held(&self) -> &[u8] {
        &self.frame[BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + self.held_bytes]
    }

    /// Returns what the next batch carries of it.
    pub fn copy(&self) -> BatchCopy {
        BatchCopy {
            record_count: self.record_count,
            records: Arc::new(self.records().to_vec()),
        }
    }

    /// Takes a frame apart whose header has been read; `None` when it is not whole.
    fn of(header: &BatchHeader, frame: Vec<u8>, is_restored: bool) -> Option<Self> {
        let held_bytes = header.record_bytes.get() as usize;
        let held = &frame[BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + held_bytes];
        if !header.matches(held) {
            return None;
        }
        let flags = header.flags.get();
        let record_bytes = match flags & FLAG_CARRIES {
            0 => held_bytes,
            _ => BatchCopy::split_off(held)?.0.len(),
        };
        Some(Self {
            number: header.batch.get(),
            block: header.block.get(),
            record_count: header.record_count.get(),
            flags,
            record_bytes,
            held_bytes,
            is_restored,
            frame,
        })
    }

    /// Makes a batch before again, which begins at a block, from what this one carries. It was durable with its data, or this one would
    /// not have been written (C2). All up to this one have to be made so, one behind the other; the last is filled up as if it carried an
    /// empty batch.
    fn restore(&self, uuid: Uuid, number: u64, block: u64) -> Option<Self> {
        if self.flags & FLAG_CARRIES == 0 {
            return None;
        }
        let (_, newest_first) = BatchCopy::split_off(self.held())?;
        let back = usize::try_from(self.number.checked_sub(number + 1)?).ok()?;
        let before = newest_first.get(back).filter(|copy| copy.record_count > 0)?;
        let mut held = before.records.to_vec();
        let mut flags = 0;
        let mut blocks = BatchHeader::blocks_for(held.len());
        if back == 0 {
            blocks = self.block - block;
            let room = (blocks as usize * BLOCK_BYTES).checked_sub(BATCH_HEADER_BYTES)?;
            if let Some(filler) = room.checked_sub(before.carried_bytes()) {
                let nothing = BatchCopy {
                    record_count: 0,
                    records: Arc::new(vec![0; filler]),
                };
                BatchCopy::append_all(&[nothing], &mut held);
                flags = FLAG_CARRIES;
            }
        }
        let settled_upto = number.saturating_sub(1);
        let frame = BatchHeader::frame(
            uuid,
            number,
            block,
            settled_upto,
            before.record_count,
            &held,
            flags,
        );
        let header = BatchHeader::read(uuid, &frame)?;
        let fits = frame.len() == blocks as usize * BLOCK_BYTES && block + blocks <= self.block;
        Self::of(&header, frame, true).filter(|_| fits)
    }
}

/// Reads blocks of the ring, many at a time.
pub(crate) struct LogReader<'a> {
    device: &'a dyn PoolDevice,
    uuid: Uuid,
    geometry: Geometry,
    /// Behind the last block that can hold something.
    pub end: u64,
    first: u64,
    window: IoBuffer,
}

/// How much of the log is read at once, in blocks.
const LOG_WINDOW_BLOCKS: u64 = 256;

impl<'a> LogReader<'a> {
    /// Reads a log whose head is at a block.
    pub fn new(device: &'a dyn PoolDevice, uuid: Uuid, geometry: Geometry, head: u64) -> Self {
        Self {
            device,
            uuid,
            geometry,
            end: head + geometry.log_blocks,
            first: 0,
            window: IoBuffer::zeroed(0),
        }
    }

    pub fn block(&mut self, block: u64) -> Result<&[u8], PoolError> {
        let held = (self.window.len() / BLOCK_BYTES) as u64;
        if !(self.first..self.first + held).contains(&block) {
            let to_wrap = self.geometry.log_blocks - block % self.geometry.log_blocks;
            let count = LOG_WINDOW_BLOCKS.min(to_wrap).min(self.end - block);
            let offset = self.geometry.log_offset(block);
            self.first = block;
            self.window = IoBuffer::zeroed(count as usize * BLOCK_BYTES);
            self.device
                .read_at(offset, &mut self.window)
                .map_err(PoolError::device(format!("reading the log at byte {offset}")))?;
        }
        let at = (block - self.first) as usize * BLOCK_BYTES;
        Ok(&self.window[at..at + BLOCK_BYTES])
    }

    fn header(&mut self, block: u64) -> Result<Option<BatchHeader>, PoolError> {
        let uuid = self.uuid;
        Ok(BatchHeader::read(uuid, self.block(block)?))
    }

    /// Reads batch `number` at `block`; `None` when it is not there as a whole.
    fn batch(&mut self, number: u64, block: u64) -> Result<Option<LoggedBatch>, PoolError> {
        let Some(header) = self.header(block)? else {
            return Ok(None);
        };
        let record_bytes = header.record_bytes.get() as usize;
        let blocks = BatchHeader::blocks_for(record_bytes);
        if header.batch.get() != number || header.block.get() != block || blocks > self.end - block {
            return Ok(None);
        }
        let mut frame = Vec::with_capacity(blocks as usize * BLOCK_BYTES);
        for next in block..block + blocks {
            frame.extend_from_slice(self.block(next)?);
        }
        Ok(LoggedBatch::of(&header, frame, false))
    }

    /// Returns the first whole batch behind batch `number`, which is not at `block` as a whole. One as long as can be has the next
    /// right behind it.
    fn later_than(&mut self, number: u64, block: u64) -> Result<Option<LoggedBatch>, PoolError> {
        let last_place = block + LogRing::max_batch_blocks(self.geometry.log_blocks);
        for later in block..self.end.min(last_place + 1) {
            let Some(header) = self.header(later)? else {
                continue;
            };
            if header.block.get() != later || header.batch.get() <= number {
                continue;
            }
            if let Some(batch) = self.batch(header.batch.get(), later)? {
                return Ok(Some(batch));
            }
        }
        Ok(None)
    }

    /// Reads batch `number` at `block`, or makes it again from what the next whole one carries (G3).
    pub fn batch_or_copy(&mut self, number: u64, block: u64) -> Result<Found, PoolError> {
        if block >= self.end {
            return Ok(Found::End);
        }
        if let Some(batch) = self.batch(number, block)? {
            return Ok(Found::Batch(batch));
        }
        let Some(later) = self.later_than(number, block)? else {
            return Ok(Found::End);
        };
        Ok(match later.restore(self.uuid, number, block) {
            Some(batch) => Found::Batch(batch),
            None => Found::Damage { later: later.number },
        })
    }
}

/// What stands in the log where a batch is to begin.
pub(crate) enum Found {
    Batch(LoggedBatch),
    /// No batch that is whole, and none behind it.
    End,
    /// No batch that is whole, but this one behind it: a batch is written only when the one before it is durable (C2), so this is damage and
    /// not a tear.
    Damage {
        later: u64,
    },
}

impl LoggedBatch {
    pub fn needs_verifying(&self) -> bool {
        self.flags & FLAG_VERIFY != 0
    }

    /// Reads what the batch claims; `None` when a claim is not true.
    pub fn read_claimed(
        &self,
        device: &dyn PoolDevice,
        geometry: &Geometry,
    ) -> Result<Option<Vec<(u64, IoBuffer)>>, PoolError> {
        let mut rest = self.records();
        let mut claimed = Vec::new();
        for record in std::iter::from_fn(|| Record::decode(&mut rest)) {
            let Record::Claim {
                chunk,
                blocks,
                crc32c,
            } = record
            else {
                continue;
            };
            let bytes = blocks.bytes();
            if chunk >= geometry.chunk_count || bytes.end > geometry.chunk_bytes {
                return Err(PoolError::damaged(
                    format!("redo log batch {}", self.number),
                    format!("it claims {blocks:?} of chunk {chunk}"),
                ));
            }
            let offset = geometry.chunk_offset(chunk) + bytes.start;
            let mut found = IoBuffer::zeroed((bytes.end - bytes.start) as usize);
            device
                .read_at(offset, &mut found)
                .map_err(PoolError::device(format!("verifying data at byte {offset}")))?;
            if crc32c::crc32c(&found) != crc32c {
                return Ok(None);
            }
            claimed.push((offset, found));
        }
        Ok(Some(claimed))
    }

    /// Returns its first block with a header that says that the data is durable.
    pub fn settled_block(&self, uuid: Uuid) -> Vec<u8> {
        let (batch, block) = (self.number, self.block);
        let mut frame = BatchHeader::frame(
            uuid,
            batch,
            block,
            batch - 1,
            self.record_count,
            self.held(),
            self.flags & !FLAG_VERIFY,
        );
        frame.truncate(BLOCK_BYTES);
        frame
    }
}
