//! Bytes that say where they come from: every sector written in a simulation is a function of the write that
//! wrote it and of its address, so that old, torn, misplaced and foreign bytes are told apart.

use quarry_contract::conformance::SplitMix;

/// The unit in which contents are tracked, in bytes; what a medium never tears.
pub const SECTOR_BYTES: u64 = 512;

/// One write's mark; unique in a simulation, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub u64);

/// What a sector holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// Zeros.
    Zero,
    /// What the write with this stamp put at this very address.
    Written(Stamp),
    /// Bytes that no write put there.
    Foreign,
}

impl Stamp {
    /// Returns the bytes that a write with this stamp puts at `offset`; both ends are whole sectors.
    pub fn bytes(self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for (at, sector) in bytes.chunks_mut(SECTOR_BYTES as usize).enumerate() {
            fill(sector, self.0, offset / SECTOR_BYTES + at as u64);
        }
        bytes
    }
}

/// Tells what `sector`, read at sector number `lba`, is.
pub(super) fn identify(sector: &[u8], lba: u64) -> Value {
    if sector.iter().all(|byte| *byte == 0) {
        return Value::Zero;
    }
    let stamp = u64::from_le_bytes(sector[..8].try_into().unwrap_or_default());
    let mut expected = [0; SECTOR_BYTES as usize];
    fill(&mut expected, stamp, lba);
    if stamp != 0 && expected == *sector {
        Value::Written(Stamp(stamp))
    } else {
        Value::Foreign
    }
}

/// Says as much as the bytes of a foreign sector tell.
pub(super) fn describe_foreign(sector: &[u8]) -> String {
    let word = |at: usize| u64::from_le_bytes(sector[at..at + 8].try_into().unwrap_or_default());
    let mut expected = [0; SECTOR_BYTES as usize];
    fill(&mut expected, word(0), word(8));
    if expected == *sector {
        format!("write {} of sector {}", word(0), word(8))
    } else {
        format!("bytes of no write ({:016x} {:016x} …)", word(0), word(8))
    }
}

fn fill(sector: &mut [u8], stamp: u64, lba: u64) {
    let mut word = SplitMix::new(stamp ^ lba.rotate_left(32)).next_u64();
    for (at, bytes) in sector.chunks_mut(8).enumerate() {
        let value = match at {
            0 => stamp,
            1 => lba,
            _ => word,
        };
        bytes.copy_from_slice(&value.to_le_bytes());
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_are_known_by_their_bytes_and_their_place() {
        let bytes = Stamp(7).bytes(1024, 1024);
        assert_eq!(identify(&bytes[..512], 2), Value::Written(Stamp(7)));
        assert_eq!(identify(&bytes[512..], 3), Value::Written(Stamp(7)));
        assert_eq!(identify(&bytes[512..], 2), Value::Foreign);
        assert_eq!(identify(&[0; 512], 9), Value::Zero);
        let mut torn = bytes[..512].to_vec();
        torn[300] ^= 1;
        assert_eq!(identify(&torn, 2), Value::Foreign);
    }
}
