//! Memory for the encrypted copies of what is written, used again and again: to get new memory from the system for each
//! large write costs more than to encrypt it.

use std::sync::Mutex;

use quarry_contract::IoBuffer;

use crate::locks::lock;

/// The most that one queue keeps, in bytes.
const KEPT_BYTES: usize = 4 << 20;

/// The buffers of one queue that are not in use.
#[derive(Default)]
pub(super) struct Spares(Mutex<Vec<IoBuffer>>);

impl Spares {
    /// Copies `bytes` into a buffer.
    pub(super) fn copy(&self, bytes: &[u8]) -> IoBuffer {
        let mut buffer = {
            let mut spares = lock(&self.0);
            let fitting = spares.iter().rposition(|spare| spare.capacity() >= bytes.len());
            match fitting {
                Some(at) => spares.swap_remove(at),
                None => return IoBuffer::from_slice(bytes),
            }
        };
        buffer.set_len(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// Takes a buffer back, if there is not enough yet.
    pub(super) fn keep(&self, buffer: IoBuffer) {
        let mut spares = lock(&self.0);
        let kept: usize = spares.iter().map(IoBuffer::capacity).sum();
        if kept + buffer.capacity() <= KEPT_BYTES {
            spares.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spare_holds_just_what_was_copied_and_no_more_is_kept_than_may_be() {
        let spares = Spares::default();
        spares.keep(spares.copy(&[1; 8192]));
        let smaller = spares.copy(&[2; 4096]);
        assert_eq!((&smaller[..], smaller.capacity()), (&[2; 4096][..], 8192));
        let larger = spares.copy(&[3; 16384]);
        assert_eq!(larger.capacity(), 16384, "none fits");
        for _ in 0..8 {
            spares.keep(IoBuffer::zeroed(1 << 20));
        }
        spares.keep(smaller);
        let kept: usize = lock(&spares.0).iter().map(IoBuffer::capacity).sum();
        assert_eq!(kept, KEPT_BYTES);
    }
}
