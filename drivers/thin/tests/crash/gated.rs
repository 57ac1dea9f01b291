//! A device on which a chosen call waits, for tests of what may happen meanwhile.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use quarry_thin::sim::SimDevice;
use quarry_thin::{DirectFile, PoolDevice};

/// A call at which a device stops, and which it tells about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Read,
    Write,
    Flush,
}

/// A device of which a chosen call waits until it is let go.
pub struct GatedDevice {
    inner: Arc<SimDevice>,
    gate: Mutex<Option<Gate>>,
}

struct Gate {
    call: Call,
    /// How many calls of this kind pass before.
    pass: u64,
    reached: Sender<()>,
    opened: Receiver<()>,
}

/// Lets a waiting call go on when it is dropped.
pub struct Waiting(#[expect(dead_code, reason = "held, not read")] Sender<()>);

impl GatedDevice {
    /// Wraps a device; nothing waits yet.
    pub fn new(inner: Arc<SimDevice>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            gate: Mutex::default(),
        })
    }

    /// Makes the next call of this kind wait; tells when it does.
    pub fn hold(&self, call: Call) -> (Receiver<()>, Waiting) {
        self.hold_after(0, call)
    }

    /// Makes the call of this kind wait that comes after so many others; tells when it does.
    pub fn hold_after(&self, pass: u64, call: Call) -> (Receiver<()>, Waiting) {
        let (reached, at_gate) = mpsc::channel();
        let (opener, opened) = mpsc::channel();
        let gate = Gate {
            call,
            pass,
            reached,
            opened,
        };
        *self.gate.lock().unwrap() = Some(gate);
        (at_gate, Waiting(opener))
    }

    /// Makes no call wait any more; whoever waits to be told that one does is told that none will.
    pub fn open(&self) {
        *self.gate.lock().unwrap() = None;
    }

    fn pass(&self, call: Call) {
        let gate = self.gate.lock().unwrap().take_if(|gate| {
            let is_held = gate.call == call && gate.pass == 0;
            gate.pass -= u64::from(gate.call == call && gate.pass > 0);
            is_held
        });
        if let Some(gate) = gate {
            gate.reached.send(()).unwrap();
            // Ends with the sender.
            let _ = gate.opened.recv();
        }
    }
}

impl PoolDevice for GatedDevice {
    fn size_bytes(&self) -> io::Result<u64> {
        self.inner.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.pass(Call::Read);
        self.inner.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.pass(Call::Write);
        self.inner.write_at(offset, data)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.inner.write_zeroes(offset, length)
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.inner.discard(offset, length)
    }

    fn flush(&self) -> io::Result<()> {
        self.pass(Call::Flush);
        self.inner.flush()
    }

    fn direct_file(&self) -> Option<DirectFile<'_>> {
        None
    }
}
