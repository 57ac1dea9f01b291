//! Latencies in logarithmic buckets, each at most 1/64 wide of its value.

/// Buckets per power of two.
const FINE_BITS: u32 = 6;
const FINE: usize = 1 << FINE_BITS;

/// A histogram of durations in nanoseconds.
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    sum: u128,
    largest: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; 64 * FINE],
            total: 0,
            sum: 0,
            largest: 0,
        }
    }
}

impl Histogram {
    /// Takes a duration in.
    pub fn record(&mut self, nanos: u64) {
        self.counts[bucket_of(nanos)] += 1;
        self.total += 1;
        self.sum += u128::from(nanos);
        self.largest = self.largest.max(nanos);
    }

    /// Returns the duration below which the share `quantile` (0 to 1) lies, in microseconds; 0 when empty.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        let wanted = ((quantile * self.total as f64) as u64).min(self.total.saturating_sub(1));
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen > wanted {
                return middle_of(bucket) as f64 / 1000.0;
            }
        }
        0.0
    }

    /// Returns the mean, in microseconds; 0 when empty.
    pub fn mean_us(&self) -> f64 {
        match self.total {
            0 => 0.0,
            total => self.sum as f64 / total as f64 / 1000.0,
        }
    }

    /// Returns the longest, in microseconds.
    pub fn largest_us(&self) -> f64 {
        self.largest as f64 / 1000.0
    }
}

fn bucket_of(nanos: u64) -> usize {
    let Some(exponent) = nanos.max(1).ilog2().checked_sub(FINE_BITS) else {
        return nanos as usize;
    };
    let fine = (nanos >> exponent) as usize & (FINE - 1);
    (exponent as usize + 1) * FINE + fine
}

fn middle_of(bucket: usize) -> u64 {
    if bucket < FINE {
        return bucket as u64;
    }
    let exponent = (bucket / FINE - 1) as u32;
    let fine = (bucket % FINE + FINE) as u64;
    (fine << exponent) + (1 << exponent >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_close_to_what_is_in_it() {
        for nanos in [0, 1, 63, 64, 65, 100, 4095, 123_456, 1 << 40, u64::MAX >> 1] {
            let middle = middle_of(bucket_of(nanos));
            assert!(
                middle.abs_diff(nanos) <= nanos / FINE as u64,
                "{nanos} became {middle}"
            );
        }
    }

    #[test]
    fn quantiles_of_a_uniform_spread() {
        let mut histogram = Histogram::default();
        (1..=100_000).for_each(|nanos| histogram.record(nanos));
        for (quantile, expected) in [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            let found = histogram.quantile_us(quantile);
            assert!((found - expected).abs() < expected / 50.0, "{quantile}: {found}");
        }
        assert!((histogram.mean_us() - 50.0).abs() < 0.1);
        assert_eq!(histogram.largest_us(), 100.0);
        assert_eq!(Histogram::default().quantile_us(0.5), 0.0);
    }
}
