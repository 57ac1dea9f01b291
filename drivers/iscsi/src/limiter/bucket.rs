//! One rate: a token bucket, told as a time.
//!
//! What has been taken is paid for at the rate; `paid` is when all of it will be. Something may be taken while less
//! than the burst is owed, and is then owed whole: so one command that is larger than the burst gets through, and
//! those after it wait the longer.

use quarry_contract::Rate;

/// Picoseconds in a second: fine enough for a single byte at any rate a machine can reach.
const SECOND: u128 = 1_000_000_000_000;

/// A moment or a time, in picoseconds since the limiter began.
pub type Picos = u128;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    per_second: u64,
    /// What may be owed, as the time it takes to pay.
    credit: Picos,
    paid: Picos,
}

impl Bucket {
    /// Makes a bucket at a rate. One that was there before hands its debt on, as far as the new burst goes; a new
    /// one is full.
    pub fn new(rate: Rate, before: Option<Bucket>, now: Picos) -> Self {
        let per_second = rate.per_second.get();
        // A timer is late by some milliseconds; what it misses must not be lost.
        let credit = cost(rate.burst, per_second).max(SECOND / 10);
        let paid = before.map_or(now, |bucket| bucket.paid.min(now + credit));
        Self {
            per_second,
            credit,
            paid,
        }
    }

    /// Returns from when on something may be taken.
    pub fn opens(&self) -> Picos {
        self.paid.saturating_sub(self.credit - 1)
    }

    /// Takes an amount, whether the bucket is open or not.
    pub fn take(&mut self, amount: u64, now: Picos) {
        self.paid = self.paid.max(now) + self.cost(amount);
    }

    /// Returns how long an amount takes at the rate.
    pub fn cost(&self, amount: u64) -> Picos {
        cost(amount, self.per_second)
    }
}

fn cost(amount: u64, per_second: u64) -> Picos {
    u128::from(amount) * SECOND / u128::from(per_second)
}
