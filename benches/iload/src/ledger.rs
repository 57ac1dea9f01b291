//! What was written where, so that what is read can be judged.
//!
//! Every 512-byte sector that is written says which one it is, the generation of its block and the run it
//! belongs to, and is filled up from these three. So a sector that was lost, misplaced, torn, damaged or left
//! over from an earlier run is told from a right one.
//!
//! Invariant
//! - L1: at most one command is in flight on a block (it is reserved), so its content is known at any time.

/// The unit in which generations are counted, in bytes: what a target writes whole or not at all.
pub const BLOCK_BYTES: usize = 4096;

const SECTOR_BYTES: usize = 512;
const WORDS: usize = SECTOR_BYTES / 8;
const MAGIC: u64 = 0x69A7 << 48;

/// See the module.
pub struct Ledger {
    run: u64,
    blocks: Vec<Block>,
}

#[derive(Clone, Copy, Default)]
struct Block {
    /// Of the last write; 0 when there was none.
    generation: u32,
    reserved: bool,
}

impl Ledger {
    /// Begins a ledger of `bytes`, of which nothing is known. `run` tells this run's data from another's.
    pub fn new(bytes: u64, run: u64) -> Self {
        Self {
            run,
            blocks: vec![Block::default(); (bytes / BLOCK_BYTES as u64) as usize],
        }
    }

    /// Reserves a range for a command; false when another command is on it (L1).
    pub fn reserve(&mut self, offset: u64, bytes: u32) -> bool {
        let range = blocks(offset, bytes as usize);
        let free = self.blocks[range.clone()].iter().all(|block| !block.reserved);
        if free {
            self.blocks[range]
                .iter_mut()
                .for_each(|block| block.reserved = true);
        }
        free
    }

    /// Ends a reservation.
    pub fn release(&mut self, offset: u64, bytes: u32) {
        for block in &mut self.blocks[blocks(offset, bytes as usize)] {
            debug_assert!(block.reserved, "L1");
            block.reserved = false;
        }
    }

    /// Makes the data of a write of a reserved range.
    pub fn write(&mut self, offset: u64, bytes: u32) -> Vec<u8> {
        let mut data = vec![0; bytes as usize];
        for (index, part) in blocks(offset, data.len()).zip(data.chunks_exact_mut(BLOCK_BYTES)) {
            let block = &mut self.blocks[index];
            block.generation += 1;
            let first = index as u64 * (BLOCK_BYTES / SECTOR_BYTES) as u64;
            for (number, sector) in (first..).zip(part.chunks_exact_mut(SECTOR_BYTES)) {
                let words = pattern(self.run, number, block.generation);
                for (bytes, word) in sector.chunks_exact_mut(8).zip(words) {
                    bytes.copy_from_slice(&word.to_le_bytes());
                }
            }
        }
        data
    }

    /// Judges what was read of a reserved range. Blocks that were never written may hold anything.
    ///
    /// # Errors
    /// What is wrong with the first wrong sector.
    pub fn check(&self, offset: u64, data: &[u8]) -> Result<(), String> {
        for (index, part) in blocks(offset, data.len()).zip(data.chunks_exact(BLOCK_BYTES)) {
            let generation = self.blocks[index].generation;
            if generation == 0 {
                continue;
            }
            let first = index as u64 * (BLOCK_BYTES / SECTOR_BYTES) as u64;
            for (number, sector) in (first..).zip(part.chunks_exact(SECTOR_BYTES)) {
                self.check_sector(number, generation, sector)?;
            }
        }
        Ok(())
    }

    fn check_sector(&self, number: u64, generation: u32, sector: &[u8]) -> Result<(), String> {
        let mut found = [0; WORDS];
        for (word, bytes) in found.iter_mut().zip(sector.chunks_exact(8)) {
            let mut raw = [0; 8];
            raw.copy_from_slice(bytes);
            *word = u64::from_le_bytes(raw);
        }
        if found == pattern(self.run, number, generation) {
            return Ok(());
        }
        let what = match found {
            _ if found == [0; WORDS] => "zeros".to_owned(),
            [mark, ..] if mark & 0xffff << 48 != MAGIC => "no pattern at all".to_owned(),
            [_, place, ..] if place != number => format!("the data of sector {place}"),
            [_, _, run, ..] if run != self.run => "the data of an earlier run".to_owned(),
            [mark, ..] if mark as u32 != generation => format!("generation {}", mark as u32),
            _ => "damaged data".to_owned(),
        };
        Err(format!(
            "sector {number} should hold generation {generation}, and holds {what}"
        ))
    }
}

fn blocks(offset: u64, bytes: usize) -> std::ops::Range<usize> {
    let first = offset as usize / BLOCK_BYTES;
    first..first + bytes / BLOCK_BYTES
}

/// Returns the words of a sector: three that say what it is, and more that follow from them.
fn pattern(run: u64, number: u64, generation: u32) -> [u64; WORDS] {
    let seed = mix(number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ u64::from(generation) << 40 ^ run);
    let mut words = [0; WORDS];
    for (at, word) in words.iter_mut().enumerate() {
        *word = mix(seed.wrapping_add(at as u64));
    }
    words[0] = MAGIC | u64::from(generation);
    words[1] = number;
    words[2] = run;
    words
}

/// Turns a number into one that looks random (the finalizer of SplitMix64).
pub fn mix(mut value: u64) -> u64 {
    value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u32 = BLOCK_BYTES as u32;

    fn written() -> (Ledger, Vec<u8>) {
        let mut ledger = Ledger::new(1 << 20, 77);
        assert!(ledger.reserve(8192, 2 * BLOCK));
        let data = ledger.write(8192, 2 * BLOCK);
        (ledger, data)
    }

    #[test]
    fn what_was_written_is_right_and_what_was_not_may_be_anything() {
        let (ledger, data) = written();
        assert_eq!(ledger.check(8192, &data), Ok(()));
        assert_eq!(ledger.check(65536, &[9; BLOCK_BYTES]), Ok(()));
    }

    #[test]
    fn every_kind_of_damage_is_told() {
        let (mut ledger, old) = written();
        let wrong = |ledger: &Ledger, data: &[u8]| ledger.check(8192, data).unwrap_err();
        let mut data = old.clone();
        data[5000] ^= 1;
        assert!(wrong(&ledger, &data).contains("sector 25") && wrong(&ledger, &data).contains("damaged"));
        data[4096..].fill(0);
        assert!(wrong(&ledger, &data).contains("zeros"));
        data.copy_within(0..4096, 4096);
        assert!(wrong(&ledger, &data).contains("the data of sector 16"));
        data.fill(3);
        assert!(wrong(&ledger, &data).contains("no pattern"));

        let new = ledger.write(8192, 2 * BLOCK);
        assert!(wrong(&ledger, &old).contains("holds generation 1"));
        let torn = [&new[..4096 + 512], &old[4096 + 512..]].concat();
        assert!(wrong(&ledger, &torn).contains("sector 25"));
        ledger.run = 78;
        assert!(wrong(&ledger, &new).contains("earlier run"));
    }

    #[test]
    fn a_block_is_reserved_once() {
        let (mut ledger, _) = written();
        assert!(!ledger.reserve(12288, 2 * BLOCK));
        assert!(ledger.reserve(16384, BLOCK));
        ledger.release(8192, 2 * BLOCK);
        assert!(ledger.reserve(12288, BLOCK));
    }
}
