//! Repeatable randomness: the same seed rolls the same numbers on every machine and version.

/// A SplitMix64 generator.
pub struct Dice(u64);

impl Dice {
    /// Makes dice that roll the sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Rolls a number of 64 bits.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Rolls a number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    /// Says yes in `numerator` of `denominator` cases.
    pub fn chance(&mut self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator
    }

    /// Picks one, or none of nothing.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() {
            return None;
        }
        Some(from[self.below(from.len() as u64) as usize])
    }

    /// Rolls a random UUID.
    pub fn uuid(&mut self) -> uuid::Uuid {
        let high = u128::from(self.roll());
        uuid::Builder::from_random_bytes((high << 64 | u128::from(self.roll())).to_be_bytes()).into_uuid()
    }
}
