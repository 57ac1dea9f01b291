//! The redo log's ring: where the next batch goes, and what it will say.
//!
//! Part of the state, under its lock; the writing itself is in [`commit`](crate::commit), the reading in
//! [`recovery`](crate::recovery).
//!
//! Invariants
//! - G1: a batch never overwrites blocks from `head_block` on: they are not checkpointed yet.
//! - G2: the open batch always fits, because a record is appended only when the ring has room for it. So a
//!   checkpoint can always commit what is open. Records for which room is [reserved](LogRing::try_reserve) fit too, each
//!   in a batch of its own if need be.
//! - G3: a batch carries a copy of the one before it, where recovery would read that one and the ring has room for both beside what
//!   is reserved (G2); and of as many before that as fit into what is left of its last block. So batches of which the medium
//!   loses blocks are read from the next one.
//!
//! Format: docs/formats/pool.md, "Redo log".

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

use crate::format::{BLOCK_BYTES, BatchCopy, BatchHeader, FLAG_CARRIES, FLAG_VERIFY};
use crate::record::Record;
use crate::unsettled::Unsettled;

/// The longest batch, in blocks, without what reservations add to it and what it carries.
const MAX_BATCH_BLOCKS: u64 = 256;
/// The most reservations at a time; their records take no more than a block together.
const MAX_RESERVATIONS: u64 = 32;
const _: () = assert!(MAX_RESERVATIONS as usize * RESERVED_BYTES <= BLOCK_BYTES);
/// What one reservation is for: a `fill`, its claim and its sums, in bytes (docs/formats/pool.md, "Redo log").
const RESERVED_BYTES: usize = 13 + 17 + 45;

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
    /// What may not be overwritten yet, because of open and past batches.
    pub unsettled: Unsettled,
    /// The last durable batch, while its claims may have to be verified.
    last: Option<SealedBatch>,
    /// Whether the superblock says that batches may carry copies, so that no older Quarry meets one.
    pub may_carry: bool,
    /// The numbers of the last batches before the open one, and their records, for that one to carry: the newest last.
    before: VecDeque<(u64, BatchCopy)>,
    /// Records that are going to be appended. Raised and lowered under the state lock, shared or not.
    reserved: AtomicU64,
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
    own: BatchCopy,
    /// The newest first.
    carried: Vec<BatchCopy>,
    /// Whether the data that it names has to be flushed before it is written (U1).
    pub flush_first: bool,
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
            unsettled: Unsettled::default(),
            last: None,
            may_carry: false,
            before: VecDeque::new(),
            reserved: AtomicU64::new(0),
        }
    }

    /// Returns the longest batch of a ring, in blocks.
    pub fn max_batch_blocks(ring_blocks: u64) -> u64 {
        let for_reservations = 1;
        let with_what_it_carries = 2;
        with_what_it_carries * (Self::batch_limit(ring_blocks) + for_reservations)
    }

    fn batch_limit(ring_blocks: u64) -> u64 {
        (ring_blocks / 4).clamp(1, MAX_BATCH_BLOCKS)
    }

    /// Reserves room for one `fill`, its claim and one record of its sums, so that appending them later needs no commit and no checkpoint.
    /// False when there is none now. Give it back with [`end_reservation`](Self::end_reservation) after the record was appended, or instead.
    pub fn try_reserve(&self) -> bool {
        let reserved = self.reserved.fetch_add(1, Ordering::Relaxed) + 1;
        let open = BatchHeader::blocks_for(self.open.len());
        let fits = reserved <= MAX_RESERVATIONS.min(self.blocks / 4)
            && open < Self::batch_limit(self.blocks)
            && self.used_blocks() + open + reserved <= self.blocks;
        if !fits {
            self.end_reservation();
        }
        fits
    }

    /// Gives back what [`try_reserve`](Self::try_reserve) reserved.
    pub fn end_reservation(&self) {
        self.reserved.fetch_sub(1, Ordering::Relaxed);
    }

    /// Tells whether `bytes` of records can be appended to the open batch (G1, G2).
    pub fn room(&self, bytes: usize) -> Room {
        let limit = Self::batch_limit(self.blocks);
        if BatchHeader::blocks_for(bytes) > limit {
            return Room::Never;
        }
        let blocks = BatchHeader::blocks_for(self.open.len() + bytes);
        let reserved = self.reserved.load(Ordering::Relaxed);
        if self.used_blocks() + blocks + reserved > self.blocks {
            return Room::AfterCheckpoint;
        }
        if blocks > limit {
            return Room::AfterCommit;
        }
        Room::Enough
    }

    /// Takes notice that a batch is durable, and the one before it settled (U2).
    pub fn set_durable(&mut self, sealed: SealedBatch) {
        self.durable_batch = sealed.batch;
        self.unsettled.settle_upto(sealed.batch - 1);
        self.last = (!sealed.flush_first).then_some(sealed);
    }

    /// Returns the number of the last durable batch if its claims may have to be verified.
    pub fn unsettled_batch(&self) -> Option<u64> {
        self.last.as_ref().map(|last| last.batch)
    }

    /// Hands out the last durable batch if its claims may have to be verified. Its data is durable by now.
    pub fn take_unsettled(&mut self) -> Option<SealedBatch> {
        self.last.take()
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
        let own = BatchCopy {
            record_count: std::mem::take(&mut self.open_count),
            records: Arc::new(std::mem::take(&mut self.open)),
        };
        let carried = self.choose_carried(&own);
        self.remember(self.next_batch, own.clone());
        let sealed = SealedBatch {
            batch: self.next_batch,
            block: self.next_block,
            own,
            carried,
            flush_first: self.unsettled.seal(self.next_batch),
        };
        self.next_batch += 1;
        self.next_block += BatchHeader::blocks_for(sealed.held_bytes());
        debug_assert!(self.used_blocks() <= self.blocks, "G2");
        Some(sealed)
    }

    /// Returns what a batch with these records is to carry (G3), the newest first.
    fn choose_carried(&self, own: &BatchCopy) -> Vec<BatchCopy> {
        let mut bytes = own.records.len();
        let mut most_blocks = None;
        let fits = |copy: &&BatchCopy| {
            bytes += copy.carried_bytes();
            let blocks = BatchHeader::blocks_for(bytes);
            match most_blocks {
                Some(most) => blocks <= most,
                None => {
                    most_blocks = Some(blocks);
                    self.used_blocks() + blocks + self.reserved.load(Ordering::Relaxed) <= self.blocks
                }
            }
        };
        let newest_first = self.before.iter().rev().map(|(_, copy)| copy);
        match self.may_carry {
            true => newest_first.take_while(fits).cloned().collect(),
            false => Vec::new(),
        }
    }

    /// Remembers a batch for later ones to carry, and those before it that may still fit beside it.
    pub fn remember(&mut self, batch: u64, copy: BatchCopy) {
        self.before.push_back((batch, copy));
        let mut older = self.before.iter().rev().skip(1);
        let mut bytes = 0;
        let kept = older.by_ref().take_while(|(_, copy)| {
            bytes += copy.carried_bytes();
            bytes < BLOCK_BYTES
        });
        let forgotten = self.before.len() - 1 - kept.count();
        self.before.drain(..forgotten);
    }

    /// Notes a batch found in recovery.
    pub fn replayed(&mut self, blocks: u64) {
        self.durable_batch = self.next_batch;
        self.next_batch += 1;
        self.next_block += blocks;
    }

    /// Moves the head: a durable checkpoint covers everything before it.
    pub fn advance_head(&mut self, batch: u64, block: u64) {
        self.unsettled.settle_upto(batch - 1);
        self.last = self.last.take().filter(|last| last.batch >= batch);
        self.before.retain(|(before, _)| *before >= batch);
        self.head_batch = batch;
        self.head_block = block;
    }
}

impl SealedBatch {
    fn held_bytes(&self) -> usize {
        let carried = self.carried.iter().map(BatchCopy::carried_bytes);
        self.own.records.len() + carried.sum::<usize>()
    }

    /// Returns the blocks to write.
    pub fn frame(&self, uuid: Uuid) -> Vec<u8> {
        self.frame_with(uuid, if self.flush_first { 0 } else { FLAG_VERIFY })
    }

    /// Returns its first block as it is once its data is durable (U2).
    pub fn settled_block(&self, uuid: Uuid) -> Vec<u8> {
        let mut frame = self.frame_with(uuid, 0);
        frame.truncate(BLOCK_BYTES);
        frame
    }

    fn frame_with(&self, uuid: Uuid, flags: u32) -> Vec<u8> {
        let settled_upto = self.batch - 1;
        let mut held = Vec::with_capacity(self.held_bytes());
        held.extend_from_slice(&self.own.records);
        BatchCopy::append_all(&self.carried, &mut held);
        let carries = if self.carried.is_empty() { 0 } else { FLAG_CARRIES };
        let frame = BatchHeader::frame(
            uuid,
            self.batch,
            self.block,
            settled_upto,
            self.own.record_count,
            &held,
            flags | carries,
        );
        debug_assert_eq!(frame.len() % BLOCK_BYTES, 0);
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::BATCH_HEADER_BYTES;
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
                    assert_eq!(sealed.frame(Uuid::nil()).len(), 4 * BLOCK_BYTES);
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

    #[test]
    fn g3_a_batch_carries_those_before_it_that_recovery_would_read_and_that_fit() {
        let mut log = LogRing::new(1024, 1, 0);
        let seal = |log: &mut LogRing, node| {
            log.append(&Record::Delete { node: NodeId(node) });
            log.seal().unwrap()
        };
        let carried =
            |sealed: SealedBatch| -> Vec<u8> { sealed.carried.iter().map(|copy| copy.records[1]).collect() };
        assert_eq!(carried(seal(&mut log, 1)), [], "the superblock does not say so");
        log.may_carry = true;
        assert_eq!(carried(seal(&mut log, 2)), [1]);
        let third = seal(&mut log, 3);
        let (batch, block) = (third.batch, third.block);
        let held = third.frame(Uuid::nil())[BATCH_HEADER_BYTES..][..third.held_bytes()].to_vec();
        let (own, before) = BatchCopy::split_off(&held).unwrap();
        assert_eq!((own[1], before[0].records[1], before[1].records[1]), (3, 2, 1));
        log.advance_head(batch, block);
        assert_eq!(carried(seal(&mut log, 4)), [3], "the third is still read");
        log.advance_head(log.next_batch, log.next_block);
        assert_eq!(carried(seal(&mut log, 5)), [], "a checkpoint covers the fourth");
        // The newest even if it takes a block, the others only where they take none.
        let records = |log: &mut LogRing, count| {
            (0..count).for_each(|_| log.append(&Record::Delete { node: NodeId(9) }));
            log.seal().unwrap()
        };
        assert_eq!(records(&mut log, 400).carried.len(), 1);
        let long = records(&mut log, 400);
        assert_eq!(BatchHeader::blocks_for(long.held_bytes()), 2);
        assert_eq!(carried(long), [9, 5]);
        assert_eq!(
            carried(seal(&mut log, 6)),
            [9],
            "the one before that would need another block"
        );
        assert_eq!(carried(seal(&mut log, 7)), [6, 9]);
        let many = (0..300).map(|_| carried(seal(&mut log, 8)).len()).max();
        assert_eq!(many, Some((BLOCK_BYTES - BATCH_HEADER_BYTES - 9) / (9 + 8)));
        assert!(
            log.before.len() <= BLOCK_BYTES / (9 + 8) + 1,
            "{}",
            log.before.len()
        );
    }

    #[test]
    fn g2_reserved_records_fit_however_full_the_ring_gets() {
        let record = Record::Delete { node: NodeId(1) };
        let mut log = LogRing::new(16, 1, 0);
        log.may_carry = true;
        let reserved = (0..).take_while(|_| log.try_reserve()).count();
        assert_eq!(reserved, 4, "a quarter of the ring");
        loop {
            match log.room(9) {
                Room::Enough => log.append(&record),
                Room::AfterCommit => drop(log.seal()),
                Room::AfterCheckpoint => break,
                Room::Never => unreachable!(),
            }
        }
        log.seal();
        for _ in 0..reserved {
            log.append(&record);
            log.end_reservation();
            assert!(log.seal().is_some());
        }
        assert!(log.used_blocks() <= 16, "G2");
        assert!(!log.try_reserve(), "the ring is full");
        // None in a batch that has got as long as may be.
        let mut log = LogRing::new(16, 1, 0);
        while log.room(9) == Room::Enough {
            log.append(&record);
        }
        assert!(!log.try_reserve());
    }
}
