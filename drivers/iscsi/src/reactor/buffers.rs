//! Buffers for data in flight, kept for reuse.
//!
//! One pool per reactor; after warm-up no request allocates. A buffer that comes back holds old data: it is
//! given out only to be filled whole, by the device or by the wire, before anybody sees it.
//!
//! The pool knows how much all sessions of its reactor have in use. Beyond its limit buffers are scarce: each session
//! gets along with little, so that those who fill them and do not empty them cannot take the memory of all.

use quarry_contract::IoBuffer;

/// The smallest class, in bytes.
const SMALLEST_BYTES: usize = 4096;

/// Classes double: 4 KiB to 1 MiB.
const CLASSES: usize = 9;

/// How much is kept idle in each class, in bytes.
const IDLE_BYTES: usize = 16 << 20;

/// Idle buffers by size, and what is in use.
pub struct BufferPool {
    idle: [Vec<IoBuffer>; CLASSES],
    /// What the reactor's sessions have in use, in bytes.
    in_use: usize,
    limit: usize,
}

/// The class that holds `bytes`; `None` beyond the largest.
fn class_of(bytes: usize) -> Option<usize> {
    let class = bytes.max(1).div_ceil(SMALLEST_BYTES).next_power_of_two().ilog2() as usize;
    (class < CLASSES).then_some(class)
}

impl BufferPool {
    /// Makes an empty pool in which buffers are scarce when more than `limit` bytes are in use.
    pub fn new(limit: usize) -> Self {
        Self {
            idle: Default::default(),
            in_use: 0,
            limit,
        }
    }

    /// Says that a session that had `before` bytes in use has `now`.
    pub fn account(&mut self, before: usize, now: usize) {
        self.in_use = self.in_use - before + now;
    }

    /// Returns what all sessions use, in bytes.
    pub fn in_use(&self) -> usize {
        self.in_use
    }

    /// Tells whether sessions have to get along with little.
    pub fn are_scarce(&self) -> bool {
        self.in_use > self.limit
    }

    /// Gives a buffer of exactly `bytes`, holding anything.
    pub fn take(&mut self, bytes: usize) -> IoBuffer {
        let Some(class) = class_of(bytes) else {
            return IoBuffer::zeroed(bytes);
        };
        let mut buffer = self.idle[class]
            .pop()
            .unwrap_or_else(|| IoBuffer::zeroed(SMALLEST_BYTES << class));
        buffer.set_len(bytes);
        buffer
    }

    /// Takes a buffer back.
    pub fn give(&mut self, buffer: IoBuffer) {
        let Some(class) = class_of(buffer.capacity()) else {
            return;
        };
        let exact = buffer.capacity() == SMALLEST_BYTES << class;
        if exact && self.idle[class].len() < IDLE_BYTES / (SMALLEST_BYTES << class) {
            self.idle[class].push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_reused_within_their_class() {
        let mut pool = BufferPool::new(usize::MAX);
        let first = pool.take(5000);
        assert_eq!((first.len(), first.capacity()), (5000, 8192));
        let address = first.as_ptr() as usize;
        pool.give(first);
        let second = pool.take(8192);
        assert_eq!(second.as_ptr() as usize, address);
        assert_eq!(pool.take(3 << 20).len(), 3 << 20);
        assert_eq!(
            [class_of(0), class_of(4096), class_of(4097)],
            [Some(0), Some(0), Some(1)]
        );
        assert_eq!([class_of(1 << 20), class_of((1 << 20) + 1)], [Some(8), None]);
    }
}
