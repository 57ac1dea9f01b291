//! Reproducible randomness and recognisable bytes.

/// A small generator of reproducible randomness (splitmix64). Not for secrets.
#[derive(Debug, Clone)]
pub struct SplitMix(u64);

impl SplitMix {
    /// Begins the sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
}

/// Returns `length` bytes that nothing else in the suites holds, in 512-byte blocks that say where they belong.
pub(super) fn pattern(tag: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    for (index, block) in bytes.chunks_mut(512).enumerate() {
        let mut random = SplitMix::new(tag ^ ((index as u64) << 40));
        for word in block.chunks_mut(8) {
            let value = random.next_u64().to_le_bytes();
            word.copy_from_slice(&value[..word.len()]);
        }
    }
    bytes
}

/// Asserts that two ranges are equal, naming the first byte that is not.
pub(super) fn assert_same(label: &str, at: u64, found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len(), "{label}: length read at {at}");
    if let Some(first) = found.iter().zip(expected).position(|(a, b)| a != b) {
        panic!(
            "{label}: byte {} is {:#04x}, expected {:#04x} (request at {at}, {} bytes)",
            at + first as u64,
            found[first],
            expected[first],
            found.len()
        );
    }
}
