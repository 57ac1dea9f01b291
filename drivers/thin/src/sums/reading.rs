//! Verifying what was read (D3), and finding the sums that go along with what is copied.

use std::fmt;
use std::sync::atomic::Ordering;

use quarry_contract::IoError;

use crate::PoolError;
use crate::format::{BLOCK, BLOCK_BYTES};
use crate::locks::read;
use crate::partial::{Blocks, Home, PartialView};
use crate::pool::Pool;
use crate::sums::BlockSums;

/// A block that does not hold what its sum is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadBlock {
    /// The chunk that it is in.
    pub chunk: u64,
    /// Its number in the chunk.
    pub block: u64,
    expected: u32,
    found: u32,
}

impl fmt::Display for BadBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            chunk,
            block,
            expected,
            found,
        } = self;
        write!(
            f,
            "block {block} of chunk {chunk} has crc32c {found:08x}, not {expected:08x}"
        )
    }
}

/// What a planned read has to find.
#[derive(Debug)]
pub(crate) struct ExpectedSums {
    /// Where the request begins in its version, in bytes.
    offset: u64,
    pieces: Vec<ExpectedPiece>,
}

#[derive(Debug)]
struct ExpectedPiece {
    /// Where it begins in the request.
    buffer: usize,
    chunk: u64,
    blocks: Blocks,
    sums: BlockSums,
}

impl ExpectedSums {
    /// Nothing yet of a request at byte `offset` of a version.
    pub fn of_request(offset: u64) -> Self {
        let pieces = Vec::new();
        Self { offset, pieces }
    }

    /// Says that these blocks of a chunk are at byte `buffer` of the request, and their sums.
    pub fn add(&mut self, buffer: usize, chunk: u64, blocks: Blocks, sums: BlockSums) {
        self.pieces.push(ExpectedPiece {
            buffer,
            chunk,
            blocks,
            sums,
        });
    }

    /// Verifies the bytes of the whole request.
    ///
    /// # Errors
    /// `Corrupt`, which names the first bad block.
    pub fn verify(&self, pool: &Pool, request: &[u8]) -> Result<(), IoError> {
        for piece in &self.pieces {
            let bytes = &request[piece.buffer..][..piece.sums.len() * BLOCK_BYTES];
            if let Err(bad) = verify_blocks(piece.chunk, piece.blocks, bytes, &piece.sums) {
                let in_request = piece.buffer as u64 + (bad.block - u64::from(piece.blocks.first)) * BLOCK;
                return Err(pool.corrupt(self.offset + in_request, bad));
            }
        }
        Ok(())
    }
}

fn verify_blocks(chunk: u64, blocks: Blocks, bytes: &[u8], sums: &BlockSums) -> Result<(), BadBlock> {
    let numbers = u64::from(blocks.first)..;
    let found = bytes.chunks_exact(BLOCK_BYTES).map(crc32c::crc32c);
    for ((block, found), expected) in numbers.zip(found).zip(sums.iter().copied()) {
        if found != expected {
            return Err(BadBlock {
                chunk,
                block,
                expected,
                found,
            });
        }
    }
    Ok(())
}

impl Pool {
    /// Returns the sums of blocks of a chunk of a checksummed version, wherever these are. What nobody holds reads as zeros,
    /// and so has the sum of zeros.
    pub(crate) fn sums_under(
        &self,
        chunk: u64,
        view: Option<&PartialView>,
        blocks: Blocks,
    ) -> Result<BlockSums, PoolError> {
        let Some(view) = view else {
            return self.load_sums(chunk, blocks);
        };
        let mut sums = BlockSums::default();
        for (piece, home) in view.pieces(blocks.bytes()) {
            let some = Blocks::touching(&piece);
            sums.append(&match home {
                Home::Own => self.load_sums(chunk, some)?,
                Home::Lender(lender) => self.load_sums(lender, some)?,
                Home::Nowhere => (0..some.count)
                    .map(|_| crc32c::crc32c(&[0; BLOCK_BYTES]))
                    .collect(),
            });
        }
        Ok(sums)
    }

    fn load_sums(&self, chunk: u64, blocks: Blocks) -> Result<BlockSums, PoolError> {
        loop {
            let found = read(&self.state).sums_of(chunk, blocks);
            match found {
                Ok(sums) => return Ok(sums),
                Err(wanted) => self.load(&wanted)?,
            }
        }
    }

    /// Finds the first block of a chunk that does not hold what its sum is of. `bytes` are those of the blocks, from wherever
    /// they are.
    pub(crate) fn find_bad_block(
        &self,
        chunk: u64,
        view: Option<&PartialView>,
        blocks: Blocks,
        bytes: &[u8],
    ) -> Result<Option<BadBlock>, PoolError> {
        let sums = self.sums_under(chunk, view, blocks)?;
        let Err(mut bad) = verify_blocks(chunk, blocks, bytes, &sums) else {
            return Ok(None);
        };
        let at = bad.block * BLOCK;
        let home = view.and_then(|view| view.pieces(at..at + BLOCK).next());
        if let Some((_, Home::Lender(lender))) = home {
            bad.chunk = lender;
        }
        Ok(Some(bad))
    }

    /// Tells the operator and the requester of a bad block at byte `offset` of a version.
    pub(crate) fn corrupt(&self, offset: u64, bad: BadBlock) -> IoError {
        self.damaged_reads.fetch_add(1, Ordering::Relaxed);
        let at = self.chunk_offset(bad.chunk) + bad.block * BLOCK;
        tracing::error!(
            pool = %self.options.name, offset, chunk = bad.chunk, at,
            "a block does not have its checksum: {bad}"
        );
        IoError::Corrupt {
            offset,
            detail: format!("{bad}, at byte {at} of the pool"),
        }
    }
}
