//! What recovery may still have to verify on the medium, and so may not change.
//!
//! A batch of the log can be written together with the data that its records name: one flush then makes both durable.
//! Recovery finds out whether it did by the checksums in the batch, which *claim* what blocks hold. So the blocks that
//! a batch claims are left alone until nobody will verify them any more.
//!
//! Part of the state, under its lock.
//!
//! Invariants
//! - U1 (claim): a batch that is written before its data was flushed claims every block that its records give to a
//!   chunk. A batch for which that cannot be said, or that claims too much to verify at every open, or that changes more
//!   than mappings, has its data flushed first.
//! - U2 (settle): a block claimed by a batch that is sealed is overwritten in place only once that batch is *settled*: a
//!   later batch is durable, or its header says that its data is, or a checkpoint has made it superfluous. A block
//!   claimed by the open batch is overwritten only if that batch has its data flushed first.
//! - U3 (quarantine): a batch that frees a chunk which it claims itself has its data flushed first. So a chunk whose
//!   quarantine has ended (A2) is claimed by no batch that recovery may verify.
//!
//! Format: docs/formats/pool.md, "One flush".

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::partial::{BlockMask, Blocks};
use crate::record::Record;

/// The most that a batch claims: what an open reads and writes again, in blocks of 4096 bytes.
const MAX_CLAIMED_BLOCKS: u64 = 4096;

type Claims = HashMap<u64, BlockMask>;

/// The claims of batches that are not settled.
#[derive(Debug, Default)]
pub(crate) struct Unsettled {
    /// Whether the superblock says that batches may claim, so that no older Quarry meets one.
    pub allowed: bool,
    /// The open batch has its data flushed first. Set under the state lock, shared or not.
    flush_first: AtomicBool,
    open: Claims,
    open_blocks: u64,
    sealed: VecDeque<(u64, Claims)>,
}

impl Unsettled {
    /// Tells whether claims of the open batch are of use.
    pub fn wants_claims(&self) -> bool {
        self.allowed && !self.flush_first.load(Ordering::Relaxed)
    }

    /// Takes notice of records that are about to be appended together to the open batch (U1).
    pub fn note(&mut self, records: &[Record]) {
        let mut unclaimed = 0;
        for record in records {
            match *record {
                Record::Map { .. }
                | Record::MapPart { .. }
                | Record::MapOver { .. }
                | Record::Fill { .. } => {
                    unclaimed += 1;
                }
                Record::Claim { chunk, blocks, .. } => {
                    unclaimed -= 1;
                    self.open.entry(chunk).or_default().set(blocks);
                    self.open_blocks += u64::from(blocks.count);
                }
                Record::Unmap { .. }
                | Record::Reap { .. }
                | Record::Sums { .. }
                | Record::ForgetSums { .. }
                | Record::BeginScrub { .. }
                | Record::Scrubbed { .. }
                | Record::FoundBad(_)
                | Record::EndScrub { .. } => {}
                _ => self.require_flush_first(),
            }
        }
        if unclaimed != 0 || self.open_blocks > MAX_CLAIMED_BLOCKS {
            self.require_flush_first();
        }
    }

    fn require_flush_first(&self) {
        self.flush_first.store(true, Ordering::Relaxed);
    }

    /// A record of the open batch frees the chunk (U3).
    pub fn note_freed(&self, chunk: u64) {
        if self.open.contains_key(&chunk) {
            self.require_flush_first();
        }
    }

    /// Tells whether blocks may be overwritten in place now. False when a sealed batch has to be settled first (U2).
    pub fn may_overwrite(&self, chunk: u64, blocks: Blocks) -> bool {
        let claims = |claims: &Claims| claims.get(&chunk).is_some_and(|mask| mask.touches(blocks));
        if self.sealed.iter().any(|(_, sealed)| claims(sealed)) {
            return false;
        }
        if claims(&self.open) {
            self.require_flush_first();
        }
        true
    }

    /// The open batch is sealed as `batch`. Tells whether its data has to be flushed before it is written.
    pub fn seal(&mut self, batch: u64) -> bool {
        let flush_first = !self.wants_claims();
        let claims = std::mem::take(&mut self.open);
        if !flush_first && !claims.is_empty() {
            self.sealed.push_back((batch, claims));
        }
        self.open_blocks = 0;
        self.flush_first.store(false, Ordering::Relaxed);
        flush_first
    }

    /// Batches up to `batch` are settled.
    pub fn settle_upto(&mut self, batch: u64) {
        while self.sealed.pop_front_if(|(sealed, _)| *sealed <= batch).is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::NodeId;

    const FIRST: Blocks = Blocks { first: 0, count: 1 };
    const SECOND: Blocks = Blocks { first: 1, count: 1 };

    fn map_and_claim(chunk: u64, blocks: Blocks) -> [Record; 2] {
        let (node, index, crc32c) = (NodeId(1), 0, 0);
        [
            Record::MapPart {
                node,
                index,
                chunk,
                blocks,
            },
            Record::Claim {
                chunk,
                blocks,
                crc32c,
            },
        ]
    }

    fn unsettled() -> Unsettled {
        Unsettled {
            allowed: true,
            ..Unsettled::default()
        }
    }

    #[test]
    fn u1_what_is_not_claimed_is_flushed_first() {
        let mut unsettled = unsettled();
        unsettled.note(&map_and_claim(7, FIRST));
        assert!(!unsettled.seal(1));
        unsettled.note(&map_and_claim(7, FIRST)[..1]);
        assert!(unsettled.seal(2), "a mapping without a claim");
        unsettled.note(&[Record::Delete { node: NodeId(1) }]);
        assert!(unsettled.seal(3), "more than mappings");
        let whole = Blocks { first: 0, count: 256 };
        for chunk in 0..17 {
            unsettled.note(&map_and_claim(chunk, whole));
        }
        assert!(unsettled.seal(4), "too much to verify");
        unsettled.allowed = false;
        assert!(unsettled.seal(5), "an older Quarry may read the log");
    }

    #[test]
    fn u2_a_claimed_block_is_overwritten_only_when_nobody_will_verify_it() {
        let mut unsettled = unsettled();
        unsettled.note(&map_and_claim(7, FIRST));
        assert!(unsettled.may_overwrite(7, SECOND));
        assert!(!unsettled.seal(1));
        assert!(unsettled.may_overwrite(7, SECOND) && !unsettled.may_overwrite(7, FIRST));
        unsettled.note(&map_and_claim(8, FIRST));
        assert!(unsettled.may_overwrite(8, FIRST));
        assert!(unsettled.seal(2), "its claim is not true any more");
        unsettled.settle_upto(0);
        assert!(!unsettled.may_overwrite(7, FIRST));
        unsettled.settle_upto(1);
        assert!(unsettled.may_overwrite(7, FIRST) && unsettled.may_overwrite(8, FIRST));
    }

    #[test]
    fn u3_a_batch_that_frees_what_it_claims_is_flushed_first() {
        let mut unsettled = unsettled();
        unsettled.note(&map_and_claim(7, FIRST));
        assert!(!unsettled.seal(1));
        unsettled.note(&map_and_claim(8, FIRST));
        unsettled.note_freed(7);
        assert!(!unsettled.seal(2));
        unsettled.note(&map_and_claim(9, FIRST));
        unsettled.note_freed(9);
        assert!(unsettled.seal(3));
    }
}
