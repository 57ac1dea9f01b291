//! Bytes to be written, shared without copying.

use std::ops::Range;
use std::rc::Rc;

/// A part of bytes that others may use too.
#[derive(Debug, Clone)]
pub struct Payload {
    bytes: Rc<Vec<u8>>,
    range: Range<usize>,
}

impl Default for Payload {
    /// Nothing.
    fn default() -> Self {
        Self::from(Vec::new())
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self {
            bytes: Rc::new(bytes),
            range,
        }
    }
}

impl Payload {
    /// Returns the length, in bytes.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.range.clone()]
    }

    /// Returns a part of it.
    pub fn part(&self, range: Range<usize>) -> Self {
        assert!(range.end <= self.len(), "a part lies inside the whole");
        Self {
            bytes: Rc::clone(&self.bytes),
            range: self.range.start + range.start..self.range.start + range.end,
        }
    }
}
