//! Memory that direct I/O can use.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};

/// The alignment of every [`IoBuffer`], in bytes: what O_DIRECT needs on any device in the field.
pub const BUFFER_ALIGNMENT_BYTES: usize = 4096;

/// A zero-initialised byte buffer whose first byte is aligned to [`BUFFER_ALIGNMENT_BYTES`]. It moves into a
/// [`Request`](crate::Request) and comes back in its completion, so that memory under I/O has one owner.
///
/// Its address never changes while it lives: the storage is never grown. A buffer can be shortened and restored
/// with [`IoBuffer::set_len`] so that one allocation serves requests of several lengths.
pub struct IoBuffer {
    storage: Vec<u8>,
    start: usize,
    len: usize,
    capacity: usize,
}

impl IoBuffer {
    /// Allocates `len` bytes of zeros.
    pub fn zeroed(len: usize) -> Self {
        let storage = vec![0u8; len + BUFFER_ALIGNMENT_BYTES];
        let start = storage.as_ptr().align_offset(BUFFER_ALIGNMENT_BYTES);
        Self {
            storage,
            start,
            len,
            capacity: len,
        }
    }

    /// Copies `bytes` into a new buffer.
    pub fn from_slice(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// Returns how long the buffer can be made, in bytes.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Changes the visible length, in bytes. Bytes that become visible again hold whatever was last in them.
    ///
    /// # Panics
    /// When `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.capacity,
            "length {len} exceeds the capacity {}",
            self.capacity
        );
        self.len = len;
    }
}

/// Which part of its storage an [`IoBuffer`] shows, while the two are apart.
#[derive(Debug, Clone, Copy)]
pub struct IoBufferShape {
    start: usize,
    len: usize,
    capacity: usize,
}

impl IoBufferShape {
    /// Returns where the buffer's visible bytes are in the storage.
    pub fn visible(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

impl IoBuffer {
    /// Takes the buffer apart, for owners of memory under I/O that know only vectors. The storage must not be
    /// grown: it would move.
    pub fn into_storage(self) -> (Vec<u8>, IoBufferShape) {
        let shape = IoBufferShape {
            start: self.start,
            len: self.len,
            capacity: self.capacity,
        };
        (self.storage, shape)
    }

    /// Puts a buffer together again.
    ///
    /// # Panics
    /// When the storage is not the one the shape came with.
    pub fn from_storage(storage: Vec<u8>, shape: IoBufferShape) -> Self {
        let IoBufferShape { start, len, capacity } = shape;
        assert!(
            storage.len() == capacity + BUFFER_ALIGNMENT_BYTES
                && storage.as_ptr().align_offset(BUFFER_ALIGNMENT_BYTES) == start,
            "the storage is another buffer's"
        );
        Self {
            storage,
            start,
            len,
            capacity,
        }
    }
}

impl Deref for IoBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.len]
    }
}

impl DerefMut for IoBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.len]
    }
}

impl fmt::Debug for IoBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBuffer({} of {} bytes)", self.len, self.capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_stays_aligned_and_in_place_when_moved_and_shortened() {
        for len in [0, 1, 511, 4096, 65536, 1 << 20] {
            let mut buffer = IoBuffer::zeroed(len);
            let address = buffer.as_ptr() as usize;
            assert_eq!(address % BUFFER_ALIGNMENT_BYTES, 0);
            assert!(buffer.iter().all(|b| *b == 0));
            buffer.set_len(len / 2);
            let mut moved = Box::new(buffer);
            moved.set_len(len);
            assert_eq!(moved.as_ptr() as usize, address);
            assert_eq!(moved.len(), len);
        }
    }

    #[test]
    fn buffer_taken_apart_and_put_together_is_the_same() {
        let mut buffer = IoBuffer::from_slice(&[7; 9000]);
        buffer.set_len(5000);
        let address = buffer.as_ptr();
        let (storage, shape) = buffer.into_storage();
        assert_eq!(storage[shape.visible()].len(), 5000);
        let again = IoBuffer::from_storage(storage, shape);
        assert_eq!(again.as_ptr(), address);
        assert_eq!((again.len(), again.capacity()), (5000, 9000));
    }
}
