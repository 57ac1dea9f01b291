//! Reading the log after a crash: which batches count, and making sure that they will count the next time too.
//!
//! Format: docs/formats/pool.md, "Redo log", "One flush", "Recovery".

use quarry_contract::IoBuffer;
use uuid::Uuid;

use crate::format::{BLOCK_BYTES, BatchHeader, Geometry, SuperblockFields};
use crate::log_reader::{Found, LogReader, LoggedBatch};
use crate::round::write_log;
use crate::{PoolDevice, PoolError};

/// Reads the log from its head to the first batch that is not valid, or whose claims are not true.
pub(crate) fn read_log(device: &dyn PoolDevice, superblock: &SuperblockFields) -> Result<ReadLog, PoolError> {
    let geometry = superblock.geometry;
    let mut reader = LogReader::new(device, superblock.uuid, geometry, superblock.log_block);
    let (mut number, mut block) = (superblock.log_batch, superblock.log_block);
    let mut batches = Vec::new();
    loop {
        match reader.batch_or_copy(number, block)? {
            Found::Batch(batch) => {
                block += batch.blocks();
                number += 1;
                batches.push(batch);
            }
            Found::End => break,
            Found::Damage { later } => {
                return Err(PoolError::damaged(
                    "redo log",
                    format!("batch {number} at block {block} is not valid, but batch {later} after it is"),
                ));
            }
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
    /// Reads it and returns what is wrong with it.
    ///
    /// # Errors
    /// `Device`.
    pub fn damage(
        &self,
        device: &dyn PoolDevice,
        uuid: Uuid,
        geometry: Geometry,
    ) -> Result<LogDamage, PoolError> {
        let mut reader = LogReader::new(device, uuid, geometry, self.block);
        let mut block = self.block;
        let mut damage = LogDamage::default();
        for number in self.batch..=self.upto {
            match reader.batch_or_copy(number, block)? {
                Found::Batch(batch) => {
                    if batch.is_restored {
                        damage.restored.push((number, block));
                    }
                    block += batch.blocks();
                }
                Found::End | Found::Damage { .. } => {
                    damage.lost = Some((number, block));
                    break;
                }
            }
        }
        Ok(damage)
    }
}

/// Batches that are not valid: their numbers, and the blocks where they begin.
#[derive(Debug, Default)]
pub(crate) struct LogDamage {
    /// Those of which a later one has a copy.
    pub restored: Vec<(u64, u64)>,
    /// The first one without.
    pub lost: Option<(u64, u64)>,
}

impl LogDamage {
    pub fn is_none(&self) -> bool {
        self.restored.is_empty() && self.lost.is_none()
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

    /// Returns the numbers of the batches that are damaged, and were read from a later one (G3).
    pub fn restored(&self) -> impl Iterator<Item = u64> {
        let restored = self.batches.iter().filter(|batch| batch.is_restored);
        restored.map(|batch| batch.number)
    }

    /// Makes the log durable as it counts (O1). What was read from copies in a later batch is written in its own place first, since
    /// that one may not count; one after the other, since a whole batch behind one that is not has no copy of it. Every batch but the last was seen durable before the next one was
    /// written; the last one and the data that it claims are written again. What stands where the next batch goes must
    /// never count: it is overwritten. Only then is the last batch settled.
    pub fn make_durable(&self, device: &dyn PoolDevice) -> Result<(), PoolError> {
        let flush = || {
            device
                .flush()
                .map_err(PoolError::device("flushing before the log is applied"))
        };
        for batch in self.batches.iter().filter(|batch| batch.is_restored) {
            write_log(device, &self.geometry, batch.block, &batch.frame)?;
            flush()?;
        }
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
        flush()?;
        if let Some(last) = self.batches.last().filter(|last| last.needs_verifying()) {
            write_log(device, &self.geometry, last.block, &last.settled_block(self.uuid))?;
            flush()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::format::BATCH_HEADER_BYTES;
    use crate::log::LogRing;
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
