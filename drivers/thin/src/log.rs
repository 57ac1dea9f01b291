//! The redo log's ring: where the next batch goes, and what it will say.
//!
//! Part of the state, under its lock; the writing itself is in [`commit`](crate::commit), the reading in
//! [`recovery`](crate::recovery).
//!
//! Invariants
//! - G1: a batch never overwrites blocks from `head_block` on: they are not checkpointed yet.
//! - G2: the open batch always fits, because a record is appended only when the ring has room for it. So a
//!   checkpoint can always commit what is open.
//!
//! Format: docs/formats/pool.md, "Redo log".

use uuid::Uuid;

use crate::format::{BLOCK_BYTES, BatchHeader};
use crate::record::Record;

/// The longest batch, in blocks.
const MAX_BATCH_BLOCKS: u64 = 256;

/// The ring.
#[derive(Debug)]
pub(crate) struct LogRing {
    blocks: u64,
    /// The first block that recovery would read.
    pub head_block: u64,
    /// The number of the first batch that recovery would read.
    pub head_batch: u64,
    /// Where the open batch will go.
    pub next_block: u64,
    /// The number of the open batch.
    pub next_batch: u64,
    /// The last batch known durable.
    pub durable_batch: u64,
    open: Vec<u8>,
    open_count: u32,
}

/// Whether records can be appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// They can.
    Enough,
    /// The open batch has to be committed first.
    AfterCommit,
    /// A checkpoint has to free the ring first.
    AfterCheckpoint,
    /// Never: they are more than a batch can hold.
    Never,
}

/// A batch that takes no more records.
#[derive(Debug)]
pub(crate) struct SealedBatch {
    /// Its number.
    pub batch: u64,
    /// Its first block.
    pub block: u64,
    records: Vec<u8>,
    record_count: u32,
}

impl LogRing {
    /// A ring that continues with batch `batch` at block `block`, both also the head.
    pub fn new(blocks: u64, batch: u64, block: u64) -> Self {
        Self {
            blocks,
            head_block: block,
            head_batch: batch,
            next_block: block,
            next_batch: batch,
            durable_batch: batch - 1,
            open: Vec::new(),
            open_count: 0,
        }
    }

    /// Returns the longest batch of a ring, in blocks.
    pub fn max_batch_blocks(ring_blocks: u64) -> u64 {
        (ring_blocks / 4).clamp(1, MAX_BATCH_BLOCKS)
    }

    /// Tells whether `bytes` of records can be appended to the open batch (G1, G2).
    pub fn room(&self, bytes: usize) -> Room {
        let limit = Self::max_batch_blocks(self.blocks);
        if BatchHeader::blocks_for(bytes) > limit {
            return Room::Never;
        }
        let blocks = BatchHeader::blocks_for(self.open.len() + bytes);
        if self.used_blocks() + blocks > self.blocks {
            return Room::AfterCheckpoint;
        }
        if blocks > limit {
            return Room::AfterCommit;
        }
        Room::Enough
    }

    /// Appends a record to the open batch.
    pub fn append(&mut self, record: &Record) {
        record.encode(&mut self.open);
        self.open_count += 1;
    }

    /// Returns how many blocks recovery would read.
    pub fn used_blocks(&self) -> u64 {
        self.next_block - self.head_block
    }

    /// Tells whether a checkpoint should free the ring.
    pub fn is_half_full(&self) -> bool {
        self.used_blocks() > self.blocks / 2
    }

    /// Tells whether the open batch has records.
    pub fn has_open_records(&self) -> bool {
        self.open_count > 0
    }

    /// Tells whether anything has been logged since the last checkpoint.
    pub fn has_anything(&self) -> bool {
        self.used_blocks() > 0 || self.has_open_records()
    }

    /// Closes the open batch and begins the next; `None` when it has no records.
    pub fn seal(&mut self) -> Option<SealedBatch> {
        if self.open_count == 0 {
            return None;
        }
        let sealed = SealedBatch {
            batch: self.next_batch,
            block: self.next_block,
            records: std::mem::take(&mut self.open),
            record_count: std::mem::take(&mut self.open_count),
        };
        self.next_batch += 1;
        self.next_block += BatchHeader::blocks_for(sealed.records.len());
        debug_assert!(self.used_blocks() <= self.blocks, "G2");
        Some(sealed)
    }

    /// Notes a batch found in recovery.
    pub fn replayed(&mut self, blocks: u64) {
        self.durable_batch = self.next_batch;
        self.next_batch += 1;
        self.next_block += blocks;
    }

    /// Moves the head: a durable checkpoint covers everything before it.
    pub fn advance_head(&mut self, batch: u64, block: u64) {
        self.head_batch = batch;
        self.head_block = block;
    }
}

impl SealedBatch {
    /// Returns the blocks to write.
    pub fn frame(&self, uuid: Uuid, settled_upto: u64) -> Vec<u8> {
        let frame = BatchHeader::frame(
            uuid,
            self.batch,
            self.block,
            settled_upto,
            self.record_count,
            &self.records,
        );
        debug_assert_eq!(frame.len() % BLOCK_BYTES, 0);
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::NodeId;

    #[test]
    fn g1_g2_the_ring_refuses_what_would_overwrite_its_head() {
        let mut log = LogRing::new(16, 1, 5);
        let record = Record::Delete { node: NodeId(1) };
        assert_eq!(log.room(5 * BLOCK_BYTES), Room::Never);
        let mut batches = 0;
        loop {
            match log.room(9) {
                Room::Enough => log.append(&record),
                Room::AfterCommit => {
                    batches += 1;
                    let sealed = log.seal().unwrap();
                    assert_eq!(sealed.frame(Uuid::nil(), 0).len(), 4 * BLOCK_BYTES);
                }
                Room::AfterCheckpoint => break,
                Room::Never => unreachable!(),
            }
        }
        assert!(batches <= 4 && log.used_blocks() <= 16);
        let (batch, block) = {
            log.seal();
            (log.next_batch, log.next_block)
        };
        log.advance_head(batch, block);
        assert!(!log.has_anything());
        assert_eq!(log.room(9), Room::Enough);
    }
}
