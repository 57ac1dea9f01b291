//! Measures 4 KiB random I/O of one thread: on a raw file through the ring alone, or on a filled volume of a
//! fresh pool through the queue. Comparing both with fio on the same file shows what each layer costs.
//!
//! `queue_bench raw|volume|uring|threads PATH [SIZE_MIB] [SECONDS]`: PATH is created and removed.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{UsageWho, getrusage};
use quarry_contract::{
    BlockDevice, Completion, DataSource, Durability, IoBuffer, IoBufferShape, IoQueue, OpenMode, Request,
    Tag, Verb, VersionId, VolumeId, VolumeSpec,
};
use quarry_sys::ring::{Finished, Persistence, Ring, Segment, Token, Waker};
use quarry_thin::{FileDevice, FormatOptions, IoMode, OpenOptions, Pool, PoolDevice, VolumeDevice, Workers};
use uuid::Uuid;

const BLOCK_BYTES: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

/// What is measured: something that takes one block of I/O and hands finished buffers back.
trait Subject {
    fn submit(&mut self, direction: Direction, offset: u64, buffer: IoBuffer);
    fn kick(&mut self);
    fn reap(&mut self, buffers: &mut Vec<IoBuffer>);
    fn wake_fd(&self) -> BorrowedFd<'_>;
}

struct RawFile {
    ring: Ring,
    finished: Vec<Finished>,
    /// Of the buffers in flight, by token.
    shapes: Vec<IoBufferShape>,
    vacant: Vec<usize>,
}

impl Subject for RawFile {
    fn submit(&mut self, direction: Direction, file_offset: u64, buffer: IoBuffer) {
        let (storage, shape) = buffer.into_storage();
        let slot = self.vacant.pop().unwrap_or(self.shapes.len());
        if slot == self.shapes.len() {
            self.shapes.push(shape);
        }
        self.shapes[slot] = shape;
        let token = Token(slot as u64);
        let segment = [Segment {
            file_offset,
            memory: shape.visible(),
        }];
        match direction {
            Direction::Read => self.ring.read(token, storage, &segment),
            Direction::Write => self.ring.write(token, storage, &segment, Persistence::Cached),
        }
    }

    fn kick(&mut self) {
        self.ring.kick();
    }

    fn reap(&mut self, buffers: &mut Vec<IoBuffer>) {
        self.ring.reap(&mut self.finished);
        for finished in self.finished.drain(..) {
            finished.result.expect("I/O on the raw file");
            let storage = finished.memory.expect("a transfer has memory");
            let slot = finished.token.0 as usize;
            self.vacant.push(slot);
            buffers.push(IoBuffer::from_storage(storage, self.shapes[slot]));
        }
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.ring.as_fd()
    }
}

struct Volume {
    queue: Box<dyn IoQueue>,
    completions: Vec<Completion>,
}

impl Subject for Volume {
    fn submit(&mut self, direction: Direction, offset: u64, buffer: IoBuffer) {
        let verb = match direction {
            Direction::Read => Verb::Read { offset, buffer },
            Direction::Write => Verb::Write {
                offset,
                buffer,
                durability: Durability::Cached,
            },
        };
        let request = Request { tag: Tag(0), verb };
        self.queue.submit(request).expect("the depth is kept");
    }

    fn kick(&mut self) {
        self.queue.kick();
    }

    fn reap(&mut self, buffers: &mut Vec<IoBuffer>) {
        self.queue.reap(&mut self.completions);
        for completion in self.completions.drain(..) {
            completion.result.expect("I/O on the volume");
            buffers.extend(completion.buffer);
        }
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.queue.wake_fd()
    }
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, path, rest @ ..] = arguments.as_slice() else {
        bail!("usage: queue_bench raw|volume|uring|threads PATH [SIZE_MIB] [SECONDS]");
    };
    let path = Path::new(path);
    let size_mib: u64 = rest.first().map_or(Ok(1024), |text| text.parse())?;
    let seconds: u64 = rest.get(1).map_or(Ok(3), |text| text.parse())?;
    let size_bytes = size_mib << 20;
    let mode = match kind.as_str() {
        "raw" | "uring" => IoMode::Uring,
        "volume" => IoMode::Auto,
        "threads" => IoMode::Threads,
        other => bail!("{other} is not a kind"),
    };
    let file_bytes = if kind == "raw" {
        size_bytes
    } else {
        size_bytes + (size_bytes / 4) + (256 << 20)
    };
    let device: Arc<dyn PoolDevice> = Arc::new(FileDevice::create(path, file_bytes, mode)?);
    let outcome = measure_all(kind, device, size_bytes, Duration::from_secs(seconds));
    std::fs::remove_file(path)?;
    outcome
}

fn measure_all(
    kind: &str,
    device: Arc<dyn PoolDevice>,
    size_bytes: u64,
    duration: Duration,
) -> anyhow::Result<()> {
    let block_device = if kind == "raw" {
        let megabyte = IoBuffer::from_slice(&vec![0xA5; 1 << 20]);
        for at in (0..size_bytes).step_by(megabyte.len()) {
            device.write_at(at, &megabyte)?;
        }
        device.flush()?;
        None
    } else {
        Some(filled_volume(&device, size_bytes)?)
    };
    for (direction, depth) in [
        (Direction::Read, 1),
        (Direction::Write, 1),
        (Direction::Read, 32),
        (Direction::Write, 32),
    ] {
        let mut subject: Box<dyn Subject> = match &block_device {
            None => {
                let file = device.direct_file().context("io_uring is not allowed here")?.file;
                Box::new(RawFile {
                    ring: Ring::new(file, depth, Waker::new()?)?,
                    finished: Vec::new(),
                    shapes: Vec::new(),
                    vacant: Vec::new(),
                })
            }
            Some(volume) => Box::new(Volume {
                queue: Arc::clone(volume).open_queue(depth)?,
                completions: Vec::new(),
            }),
        };
        measure(kind, subject.as_mut(), direction, depth, size_bytes, duration)?;
    }
    Ok(())
}

fn filled_volume(device: &Arc<dyn PoolDevice>, size_bytes: u64) -> anyhow::Result<Arc<dyn BlockDevice>> {
    Pool::format(device.as_ref(), &FormatOptions::default())?;
    let pool = Pool::open(Arc::clone(device), OpenOptions::default())?;
    let id = VolumeId(Uuid::from_u128(1));
    pool.create_volume(&VolumeSpec {
        id,
        size_bytes,
        source: DataSource::Blank,
    })?;
    let handle = pool.open_version(VersionId::Volume(id), OpenMode::ReadWrite)?;
    let megabyte = vec![0xA5; 1 << 20];
    for at in (0..size_bytes).step_by(megabyte.len()) {
        handle.write(at, &megabyte, Durability::Cached)?;
    }
    handle.flush()?;
    while pool.maintain()?.more {}
    Ok(VolumeDevice::new(handle, Workers::new()))
}

fn measure(
    kind: &str,
    subject: &mut dyn Subject,
    direction: Direction,
    depth: u32,
    size_bytes: u64,
    duration: Duration,
) -> anyhow::Result<()> {
    let mut free: Vec<IoBuffer> = (0..depth).map(|_| IoBuffer::zeroed(BLOCK_BYTES)).collect();
    let mut random = 0x9E37_79B9_7F4A_7C15u64;
    let mut finished = 0u64;
    let started = Instant::now();
    let cpu_before = cpu_seconds()?;
    let mut running = true;
    while running || free.len() < depth as usize {
        if running && !free.is_empty() {
            for buffer in free.drain(..) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let offset = random % (size_bytes / BLOCK_BYTES as u64) * BLOCK_BYTES as u64;
                subject.submit(direction, offset, buffer);
            }
            subject.kick();
        }
        let had = free.len();
        subject.reap(&mut free);
        if free.len() == had {
            let mut fds = [PollFd::new(subject.wake_fd(), PollFlags::POLLIN)];
            // EINTR only leads to another look.
            let _ = poll(&mut fds, PollTimeout::from(1000u16));
            subject.reap(&mut free);
        }
        finished += (free.len() - had) as u64;
        running = started.elapsed() < duration;
    }
    let cpu = cpu_seconds()? - cpu_before;
    println!(
        "{kind} {direction:?} 4 KiB depth {depth}: {:.0} IOPS, {:.2} us CPU per I/O",
        finished as f64 / started.elapsed().as_secs_f64(),
        cpu * 1e6 / finished as f64
    );
    Ok(())
}

fn cpu_seconds() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}
