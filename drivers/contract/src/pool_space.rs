//! How full a pool is, and what it does about it.

use std::path::PathBuf;
use std::time::Duration;

/// How near a pool is to being full, in the order in which it gets there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpaceLevel {
    /// There is room.
    Normal,
    /// An operator should look: everything still works.
    Warn,
    /// New volumes, snapshots and clones are refused, but those of reserved volumes.
    Brake,
    /// Only reserved volumes take space.
    Critical,
    /// No volume takes space. What is mapped stays writable; deletes and discards work, and so does growing the pool.
    Reserve,
}

impl SpaceLevel {
    /// Returns the word for it, as in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            SpaceLevel::Normal => "normal",
            SpaceLevel::Warn => "warn",
            SpaceLevel::Brake => "brake",
            SpaceLevel::Critical => "critical",
            SpaceLevel::Reserve => "reserve",
        }
    }
}

/// How full a pool is, and who waits for it. All sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSpace {
    /// The level.
    pub level: SpaceLevel,
    /// What writes may still take, reserved volumes' included.
    pub available_bytes: u64,
    /// The pool is at level warn when no more than this is available.
    pub warn_bytes: u64,
    /// The same for level brake; 0 for a pool without it.
    pub brake_bytes: u64,
    /// The same for level critical; 0 for a pool without it.
    pub critical_bytes: u64,
    /// What is kept back for the pool's own changes, so that deletes and discards work when it is full.
    pub reserve_bytes: u64,
    /// How many writes wait for space.
    pub waiting_writes: u64,
    /// When the first of them is given up, from now.
    pub first_deadline: Option<Duration>,
    /// How many writes have been refused for lack of space since the pool was opened.
    pub refused_writes: u64,
}

/// How a pool is to grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolGrowth {
    /// By what its devices have become larger.
    Noticed,
    /// Its first device, where it is a file, is made so large, in bytes.
    To {
        /// The size that it shall have.
        size_bytes: u64,
    },
    /// By a file or block device that holds nothing.
    Device {
        /// Where it is, as the agent sees it.
        path: PathBuf,
        /// The size, in bytes, of a file to be made if there is none.
        size_bytes: Option<u64>,
    },
}

impl PoolSpace {
    /// Returns what is said of a pool that knows no levels: reserve when nothing is available, normal otherwise.
    pub fn without_levels(available_bytes: u64) -> Self {
        Self {
            level: match available_bytes {
                0 => SpaceLevel::Reserve,
                _ => SpaceLevel::Normal,
            },
            available_bytes,
            warn_bytes: 0,
            brake_bytes: 0,
            critical_bytes: 0,
            reserve_bytes: 0,
            waiting_writes: 0,
            first_deadline: None,
            refused_writes: 0,
        }
    }
}
