//! Checksums of data: each block that a checksummed volume has written has one, and nothing of it is handed out unverified.
//!
//! A block and its sum are two things on the medium, and a power cut may keep either without the other. So a checksummed
//! volume writes to blocks that no record has given it, and the sum is in the log with the record that does: what a
//! chunk is given it keeps, sums included, until it is freed. Sums are found by chunk ([`SumTrees`]), whoever maps it.
//!
//! Invariants
//! - D1: what gives blocks to a chunk of a checksummed version is logged and applied together with their sums.
//! - D2: a block that a record has given to such a chunk is not written again while the chunk is allocated. So where a
//!   batch counts, its blocks are those that its sums are of (C1), and a sum that was looked up stays right for as long as
//!   its chunk stays where it is (L1, F4).
//! - D3: data of such a version is handed out only when each block that it comes from has been verified. What is copied to another
//!   chunk takes its sums along: what was wrong stays wrong.
//! - D4: all versions that map a chunk are checksummed or none is, and its lender is like it: a version is what its parent
//!   is.
//!
//! Format: docs/formats/pool.md, "Data checksums". Why so: docs/decisions/0011-data-checksums.md.

mod blocks;
mod reading;
mod tree;
mod trim;

pub(crate) use blocks::{BlockSums, FewSums};
pub(crate) use reading::ExpectedSums;
pub(crate) use tree::SumTrees;

/// Whether data has checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Checksums {
    /// It has none.
    #[default]
    Off,
    /// Each block has one.
    On,
}

impl Checksums {
    /// Tells whether there are any.
    pub fn are_on(self) -> bool {
        self == Checksums::On
    }

    /// Computes the sums of whole blocks, if there are to be any.
    pub fn of(self, bytes: &[u8]) -> Option<BlockSums> {
        self.are_on().then(|| BlockSums::of(bytes))
    }
}
