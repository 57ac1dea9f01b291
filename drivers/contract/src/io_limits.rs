//! How fast a volume may be used.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

/// The limits of one volume, over all who use it. Each holds for itself: a read counts against `total` and
/// against `read`. None by default.
///
/// Catalogs store it as it is: fields are added with a default, never renamed or given another meaning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IoLimits {
    /// Reads and writes together.
    pub total: RateLimits,
    /// What reads.
    pub read: RateLimits,
    /// What writes, discards or zeroes.
    pub write: RateLimits,
}

impl IoLimits {
    /// Nothing is limited.
    pub const NONE: Self = Self {
        total: RateLimits::NONE,
        read: RateLimits::NONE,
        write: RateLimits::NONE,
    };

    /// Tells whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

/// Two limits of what reads, writes or does either.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RateLimits {
    /// Commands; `None` is any number.
    pub commands: Option<Rate>,
    /// Bytes of data that commands move; `None` is any number.
    pub bytes: Option<Rate>,
}

impl RateLimits {
    /// Nothing is limited.
    pub const NONE: Self = Self {
        commands: None,
        bytes: None,
    };
}

/// So many a second in the long run, and some more at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// How many a second.
    pub per_second: NonZeroU64,
    /// How many may be saved up in a pause and spent at once. What a tenth of a second allows may always be.
    pub burst: u64,
}
