//! How other threads make a ring's descriptor readable.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

/// A handle with which any thread can make a descriptor readable: an eventfd's own, or that of the
/// [`Ring`](super::Ring) that watches it.
#[derive(Debug, Clone)]
pub struct Waker {
    event: Arc<EventFd>,
}

impl Waker {
    /// Makes a waker that nothing watches yet.
    ///
    /// # Errors
    /// When the operating system refuses the descriptor.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_value_and_flags(0, flags)?;
        Ok(Self {
            event: Arc::new(event),
        })
    }

    /// Makes the descriptor readable.
    pub fn wake(&self) {
        // The only possible failure is a counter at its maximum, and then the descriptor is readable already.
        let _ = self.event.write(1);
    }

    /// Makes the eventfd unreadable again until the next wake.
    pub fn clear(&self) {
        // Fails only when there was nothing to clear.
        let _ = self.event.read();
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
