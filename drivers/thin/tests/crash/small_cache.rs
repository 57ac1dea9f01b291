//! A cache far smaller than what a checkpoint keeps in memory: reads go on all the same.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;

use quarry_contract::{DataSource, Durability, OpenMode, VersionId, VolumeId, VolumeSpec};
use quarry_thin::sim::{SimDevice, Stamp, Violation};
use quarry_thin::{DirectFile, FormatOptions, OpenOptions, Pool, PoolDevice, VersionHandle};

use crate::seeds::for_each_seed;

const CHUNK: u64 = 16 << 10;
const LEAF: u64 = 512 * CHUNK;
/// More leaves than a pool without a cache keeps in memory beyond its budget.
const LEAVES: u64 = 100;

/// A call at which a device stops, and which it tells about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Write,
    Flush,
}

/// A device whose next call of a kind waits until it is let go.
struct GatedDevice {
    inner: Arc<SimDevice>,
    gate: Mutex<Option<Gate>>,
}

struct Gate {
    call: Call,
    reached: Sender<()>,
    opened: Receiver<()>,
}

/// Lets a waiting call go on when it is dropped.
struct Waiting(#[expect(dead_code, reason = "held, not read")] Sender<()>);

impl GatedDevice {
    /// Makes the next call of this kind wait; tells when it does.
    fn hold(&self, call: Call) -> (Receiver<()>, Waiting) {
        let (reached, at_gate) = mpsc::channel();
        let (opener, opened) = mpsc::channel();
        let gate = Gate {
            call,
            reached,
            opened,
        };
        *self.gate.lock().unwrap() = Some(gate);
        (at_gate, Waiting(opener))
    }

    fn pass(&self, call: Call) {
        let gate = self.gate.lock().unwrap().take_if(|gate| gate.call == call);
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

fn volume(pool: &Arc<Pool>, number: u128) -> Arc<VersionHandle> {
    let id = VolumeId(uuid::Uuid::from_u128(number));
    let spec = VolumeSpec {
        id,
        size_bytes: LEAVES * LEAF,
        source: DataSource::Blank,
    };
    pool.create_volume(&spec).unwrap();
    pool.open_version(VersionId::Volume(id), OpenMode::ReadWrite)
        .unwrap()
}

fn write(handle: &VersionHandle, offset: u64) {
    let data = Stamp(1).bytes(offset, CHUNK as usize);
    handle.write(offset, &data, Durability::Cached).unwrap();
}

fn read(handle: &VersionHandle, offset: u64) {
    let mut bytes = vec![0xa5; CHUNK as usize];
    handle.read(offset, &mut bytes).unwrap();
    assert!(bytes == Stamp(1).bytes(offset, CHUNK as usize), "B1: {offset}");
}

fn reads_go_on_around_a_checkpoint(hold_at: Call) -> Result<(), Violation> {
    let device = Arc::new(GatedDevice {
        inner: SimDevice::new(128 << 20, 1),
        gate: Mutex::default(),
    });
    let format = FormatOptions {
        chunk_bytes: CHUNK as u32,
        log_bytes: 1 << 20,
        ..FormatOptions::default()
    };
    Pool::format(&*device, &format).unwrap();
    let options = OpenOptions {
        cache_bytes: 0,
        ..OpenOptions::default()
    };
    let pool = Pool::open(Arc::clone(&device) as Arc<dyn PoolDevice>, options).unwrap();
    let (still, busy) = (volume(&pool, 1), volume(&pool, 2));
    write(&still, 0);
    pool.checkpoint().unwrap();
    pool.maintain().unwrap();
    for leaf in 0..LEAVES {
        write(&busy, leaf * LEAF);
    }
    // Leaves nothing to log, so that the checkpoint's first write is a map page.
    busy.flush().unwrap();
    thread::scope(|scope| {
        let (at_gate, waiting) = device.hold(Call::Write);
        scope.spawn(|| pool.checkpoint().unwrap());
        at_gate.recv().unwrap();
        // Everything that the checkpoint is storing is replaced meanwhile.
        for leaf in 0..LEAVES {
            write(&busy, leaf * LEAF + CHUNK);
        }
        if hold_at == Call::Flush {
            let (at_flush, waiting_in_flush) = device.hold(Call::Flush);
            drop(waiting);
            at_flush.recv().unwrap();
            read(&still, 0);
            drop(waiting_in_flush);
        }
    });
    read(&still, 0);
    let report = pool.check().unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    Ok(())
}

#[test]
fn a_read_ends_after_a_checkpoint_whose_pages_were_all_replaced() {
    let suite = "a_read_ends_after_a_checkpoint_whose_pages_were_all_replaced";
    for_each_seed(suite, 1, |_| reads_go_on_around_a_checkpoint(Call::Write));
}

#[test]
fn a_read_ends_while_a_checkpoint_waits_for_the_medium() {
    let suite = "a_read_ends_while_a_checkpoint_waits_for_the_medium";
    for_each_seed(suite, 1, |_| reads_go_on_around_a_checkpoint(Call::Flush));
}
