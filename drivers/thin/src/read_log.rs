//! Reading the log after a crash: which batches count, and making sure that they will count the next time too.
//!
//! Format: docs/formats/pool.md, "Redo log", "One flush", "Recovery".

use quarry_contract::IoBuffer;
use uuid::Uuid;

use crate::format::{BATCH_HEADER_BYTES, BLOCK_BYTES, BatchHeader, FLAG_VERIFY, Geometry, SuperblockFields};
use crate::log::LogRing;
use crate::record::Record;
use crate::round::write_log;
use crate::{PoolDevice, PoolError};

/// A batch read from the log.
pub(crate) struct LoggedBatch {
    pub number: u64,
    block: u64,
    pub record_count: u32,
    flags: u32,
    record_bytes: usize,
    frame: Vec<u8>,
}

impl LoggedBatch {
    pub fn blocks(&self) -> u64 {
        (self.frame.len() / BLOCK_BYTES) as u64
    }

    pub fn records(&self) -> &[u8] {
        &self.frame[BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + self.record_bytes]
    }
}

/// Reads blocks of the ring, many at a time.
struct LogReader<'a> {
    device: &'a dyn PoolDevice,
    uuid: Uuid,
    geometry: Geometry,
    /// Behind the last block that can hold something.
    end: u64,
    first: u64,
    window: IoBuffer,
}

/// How much of the log is read at once, in blocks.
const LOG_WINDOW_BLOCKS: u64 = 256;

impl<'a> LogReader<'a> {
    /// Reads a log whose head is at a block.
    fn new(device: &'a dyn PoolDevice, uuid: Uuid, geometry: Geometry, head: u64) -> Self {
        Self {
            device,
            uuid,
            geometry,
            end: head + geometry.log_blocks,
            first: 0,
            window: IoBuffer::zeroed(0),
        }
    }

    fn block(&mut self, block: u64) -> Result<&[u8], PoolError> {
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
        let batch = LoggedBatch {
            number,
            block,
            record_count: header.record_count.get(),
            flags: header.flags.get(),
            record_bytes,
            frame,
        };
        Ok(header.matches(batch.records()).then_some(batch))
    }
}

/// Reads the log from its head to the first batch that is not valid, or whose claims are not true.
pub(crate) fn read_log(device: &dyn PoolDevice, superblock: &SuperblockFields) -> Result<ReadLog, PoolError> {
    let geometry = superblock.geometry;
    let mut reader = LogReader::new(device, superblock.uuid, geometry, superblock.log_block);
    let (mut number, mut block) = (superblock.log_batch, superblock.log_block);
    let mut batches = Vec::new();
    while block < reader.end {
        let Some(batch) = reader.batch(number, block)? else {
            break;
        };
        block += batch.blocks();
        number += 1;
        batches.push(batch);
    }
    // A batch is written only when the one before it is durable (C2): a valid later one means damage, not a tear.
    // One as long as can be has the next right behind it.
    let last_place = block + LogRing::max_batch_blocks(geometry.log_blocks);
    for later in block..reader.end.min(last_place + 1) {
        let Some(header) = reader.header(later)? else {
            continue;
        };
        let is_later = header.block.get() == later && header.batch.get() > number;
        if is_later && reader.batch(header.batch.get(), later)?.is_some() {
            return Err(PoolError::damaged(
                "redo log",
                format!(
                    "batch {number} at block {block} is not valid, but batch {} after it is",
                    header.batch
                ),
            ));
        }
    }
    let dropped = match block < reader.end && BatchHeader::resembles(reader.block(block)?, number, block) {
        true => Some(Dropped {
            batch: number,
            because: "is not whole",
        }),
        false => None,
    };
    let mut log = ReadLog {
        batches,
        dropped,
        claimed: Vec::new(),
        next_block: block,
        uuid: superblock.uuid,
        geometry,
        end: reader.end,
    };
    log.verify_last(device)?;
    Ok(log)
}

/// What the log ends with and does not count: a power cut in the middle of a commit leaves it, and then nobody was told that it
/// is durable. So may damage, and then somebody was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub batch: u64,
    /// In words.
    pub because: &'static str,
}

/// A part of the log: from the head of the ring to a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogPart {
    /// The first batch.
    pub batch: u64,
    /// Its first block.
    pub block: u64,
    /// The last batch; one less than the first when there is none.
    pub upto: u64,
}

impl LogPart {
    /// Reads it and returns the first batch that is not valid, with the block where it should begin.
    ///
    /// # Errors
    /// `Device`.
    pub fn first_damaged(
        &self,
        device: &dyn PoolDevice,
        uuid: Uuid,
        geometry: Geometry,
    ) -> Result<Option<(u64, u64)>, PoolError> {
        let mut reader = LogReader::new(device, uuid, geometry, self.block);
        let mut block = self.block;
        for number in self.batch..=self.upto {
            let batch = match block < reader.end {
                true => reader.batch(number, block)?,
                false => None,
            };
            match batch {
                Some(batch) => block += batch.blocks(),
                None => return Ok(Some((number, block))),
            }
        }
        Ok(None)
    }
}

/// The log as it counts.
pub(crate) struct ReadLog {
    pub batches: Vec<LoggedBatch>,
    pub dropped: Option<Dropped>,
    /// What the last batch claims: where on the medium, and the bytes found there.
    claimed: Vec<(u64, IoBuffer)>,
    /// Where the next batch goes.
    next_block: u64,
    uuid: Uuid,
    geometry: Geometry,
    end: u64,
}

impl ReadLog {
    /// Verifies the claims of the last batch, if it was written before its data was flushed, and drops it if they are not
    /// true: then it was never acknowledged (C1, U2). Those before it are settled by it.
    fn verify_last(&mut self, device: &dyn PoolDevice) -> Result<(), PoolError> {
        let Some(last) = self.batches.last().filter(|last| last.needs_verifying()) else {
            return Ok(());
        };
        match last.read_claimed(device, &self.geometry)? {
            Some(claimed) => self.claimed = claimed,
            None => {
                self.dropped = Some(Dropped {
                    batch: last.number,
                    because: "claims data that is not there",
                });
                self.next_block = last.block;
                self.batches.pop();
            }
        }
        Ok(())
    }

    /// Makes the log durable as it counts (O1). Every batch but the last was seen durable before the next one was
    /// written; the last one and the data that it claims are written again. What stands where the next batch goes must
    /// never count: it is overwritten. Only then is the last batch settled.
    pub fn make_durable(&self, device: &dyn PoolDevice) -> Result<(), PoolError> {
        for (offset, bytes) in &self.claimed {
            device
                .write_at(*offset, bytes)
                .map_err(PoolError::device(format!("rewriting data at byte {offset}")))?;
        }
        if let Some(last) = self.batches.last() {
            write_log(device, &self.geometry, last.block, &last.frame)?;
        }
        if self.next_block < self.end {
            write_log(device, &self.geometry, self.next_block, &[0; BLOCK_BYTES])?;
        }
        let flush = || {
            device
                .flush()
                .map_err(PoolError::device("flushing before the log is applied"))
        };
        flush()?;
        if let Some(last) = self.batches.last().filter(|last| last.needs_verifying()) {
            write_log(device, &self.geometry, last.block, &last.settled_block(self.uuid))?;
            flush()?;
        }
        Ok(())
    }
}

impl LoggedBatch {
    fn needs_verifying(&self) -> bool {
        self.flags & FLAG_VERIFY != 0
    }

    /// Reads what the batch claims; `None` when a claim is not true.
    fn read_claimed(
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
    fn settled_block(&self, uuid: Uuid) -> Vec<u8> {
        let (batch, block) = (self.number, self.block);
        let mut frame = BatchHeader::frame(
            uuid,
            batch,
            block,
            batch - 1,
            self.record_count,
            self.records(),
            0,
        );
        frame.truncate(BLOCK_BYTES);
        frame
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::recovery::choose_superblock;
    use crate::sim::SimDevice;
    use crate::{FormatOptions, Pool};

    fn formatted() -> (Arc<SimDevice>, SuperblockFields) {
        let device = SimDevice::new(16 << 20, 1);
        let format = FormatOptions {
            chunk_bytes: 16384,
            log_bytes: 1 << 20,
            ..FormatOptions::default()
        };
        Pool::format(&*device, &format).unwrap();
        let superblock = choose_superblock(&*device).unwrap();
        (device, superblock)
    }

    /// Writes a batch of so many blocks as number `ahead` behind the log's head, `at` blocks from it; returns its first byte.
    fn write(device: &SimDevice, superblock: &SuperblockFields, ahead: u64, at: u64, blocks: u64) -> u64 {
        let records = vec![7; blocks as usize * BLOCK_BYTES - BATCH_HEADER_BYTES];
        let (number, block) = (superblock.log_batch + ahead, superblock.log_block + at);
        let frame = BatchHeader::frame(superblock.uuid, number, block, number - 1, 1, &records, 0);
        write_log(device, &superblock.geometry, block, &frame).unwrap();
        superblock.geometry.log_offset(block)
    }

    fn flip(device: &SimDevice, at: u64) {
        let begin = at / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let mut block = IoBuffer::zeroed(BLOCK_BYTES);
        device.read_at(begin, &mut block).unwrap();
        block[(at - begin) as usize] ^= 0x10;
        device.write_at(begin, &block).unwrap();
    }

    #[test]
    fn a_last_batch_that_is_not_whole_is_told_of_wherever_it_is_torn() {
        let (device, superblock) = formatted();
        write(&device, &superblock, 0, 0, 1);
        let last = write(&device, &superblock, 1, 1, 2);
        let whole = read_log(&*device, &superblock).unwrap();
        assert_eq!((whole.batches.len(), whole.dropped), (2, None));
        for at in (0..BATCH_HEADER_BYTES as u64).chain([100, 4096, 8191]) {
            flip(&device, last + at);
            let log = read_log(&*device, &superblock).unwrap();
            let dropped = log.dropped.unwrap_or_else(|| panic!("flipped at {at}"));
            assert_eq!((log.batches.len(), dropped.batch), (1, superblock.log_batch + 1));
            flip(&device, last + at);
        }
        // What an earlier lap has left there is not its like.
        let geometry = &superblock.geometry;
        let lap = SuperblockFields {
            log_batch: superblock.log_batch + 100,
            log_block: superblock.log_block + geometry.log_blocks,
            ..superblock
        };
        let log = read_log(&*device, &lap).unwrap();
        assert_eq!((log.batches.len(), log.dropped), (0, None));
    }

    #[test]
    fn damage_of_the_longest_batch_is_not_taken_for_the_end() {
        let (device, superblock) = formatted();
        let longest = LogRing::max_batch_blocks(superblock.geometry.log_blocks);
        let first = write(&device, &superblock, 0, 0, longest);
        write(&device, &superblock, 1, longest, 1);
        assert_eq!(read_log(&*device, &superblock).unwrap().batches.len(), 2);
        flip(&device, first + 5000);
        let refused = read_log(&*device, &superblock).map(|log| log.batches.len());
        assert!(matches!(refused, Err(PoolError::Damaged { .. })), "{refused:?}");
    }
}
