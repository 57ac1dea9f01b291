//! A thread's way into a [`MemoryDevice`].

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use super::device::MemoryDevice;
use super::lock;
use crate::{Completion, IoQueue, QueueFull, Request};

/// What a queue shares with its device, which finishes held requests from another thread.
pub(super) struct QueueState {
    started: Vec<Request>,
    completed: Vec<Completion>,
    bell: UnixStream,
}

impl QueueState {
    /// Returns how many requests were kicked and have not completed.
    pub(super) fn started(&self) -> usize {
        self.started.len()
    }

    /// Runs every started request, unless the device is held.
    pub(super) fn run(&mut self, device: &MemoryDevice) {
        if self.started.is_empty() || device.is_held() {
            return;
        }
        for Request { tag, verb } in self.started.drain(..) {
            let (result, buffer) = device.execute(verb);
            self.completed.push(Completion { tag, result, buffer });
        }
        // A full socket is readable already, which is all that the bell has to be.
        let _ = self.bell.write(&[1]);
    }
}

/// See [`IoQueue`].
pub(super) struct MemoryQueue {
    device: Arc<MemoryDevice>,
    state: Arc<Mutex<QueueState>>,
    submitted: Vec<Request>,
    in_flight: usize,
    depth: usize,
    wake: UnixStream,
}

impl MemoryQueue {
    pub(super) fn open(device: Arc<MemoryDevice>, depth: u32) -> io::Result<(Self, Arc<Mutex<QueueState>>)> {
        let (bell, wake) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        wake.set_nonblocking(true)?;
        let state = Arc::new(Mutex::new(QueueState {
            started: Vec::new(),
            completed: Vec::new(),
            bell,
        }));
        let queue = Self {
            device,
            state: Arc::clone(&state),
            submitted: Vec::new(),
            in_flight: 0,
            depth: depth as usize,
            wake,
        };
        Ok((queue, state))
    }
}

impl IoQueue for MemoryQueue {
    fn submit(&mut self, request: Request) -> Result<(), QueueFull> {
        if self.in_flight == self.depth {
            return Err(QueueFull(request));
        }
        self.in_flight += 1;
        self.submitted.push(request);
        Ok(())
    }

    fn kick(&mut self) {
        let mut state = lock(&self.state);
        state.started.append(&mut self.submitted);
        state.run(&self.device);
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        let mut state = lock(&self.state);
        // Emptied under the lock that the bell is rung under: no ring is lost.
        while matches!(self.wake.read(&mut [0; 64]), Ok(n) if n > 0) {}
        self.in_flight -= state.completed.len();
        completions.append(&mut state.completed);
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl Drop for MemoryQueue {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        while !state.started.is_empty() {
            state = self
                .device
                .released
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}
