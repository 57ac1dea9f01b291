//! Measures writes into unmapped space, and over a snapshot, by one thread: in sequence, and 4 KiB at random with
//! and without partial chunks; and 4 KiB in sequence through a queue, one at a time. MiB a second, with a flush at the
//! end.
//!
//! `cargo run --release -p quarry-thin --example first_write [DIRECTORY] [SIZE_MIB]` (defaults: /tmp, 512)

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use quarry_contract::{
    BlockDevice, Completion, DataSource, Durability, IoBuffer, OpenMode, Request, SnapshotId, SnapshotSpec,
    Tag, Verb, VersionId, VolumeId, VolumeSpec,
};
use quarry_thin::{
    FileDevice, FormatOptions, IoMode, OpenOptions, Pool, PoolDevice, VersionHandle, VolumeDevice, Workers,
};
use uuid::Uuid;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments
        .next()
        .map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
    let size_bytes = arguments.next().map_or(Ok(512), |text| text.parse::<u64>())? << 20;
    let directory = tempfile::tempdir_in(directory)?;
    let pool_bytes = size_bytes * 4 + (2 << 30);
    let device = FileDevice::create(&directory.path().join("pool"), pool_bytes, IoMode::Auto)?;
    // The file's own first writes are not what is measured.
    let zeros = IoBuffer::zeroed(1 << 20);
    for offset in (0..pool_bytes).step_by(zeros.len()) {
        device.write_at(offset, &zeros)?;
    }
    Pool::format(&device, &FormatOptions::default())?;
    let device: Arc<dyn PoolDevice> = Arc::new(device);
    for max_partial_chunks in [0, OpenOptions::default().max_partial_chunks] {
        let options = OpenOptions {
            max_partial_chunks,
            ..OpenOptions::default()
        };
        let pool = Pool::open(Arc::clone(&device), options)?;
        let number = max_partial_chunks as u128 + 100;
        let volume = VolumeId(Uuid::from_u128(number));
        pool.create_volume(&VolumeSpec::new(volume, RANDOM_BYTES, DataSource::Blank))?;
        let handle = pool.open_version(VersionId::Volume(volume), OpenMode::ReadWrite)?;
        let what = format!("at most {max_partial_chunks} partial chunks");
        measure_random(&handle, &format!("{what}, unmapped"))?;
        while pool.maintain()?.more {}
        fill(&handle)?;
        pool.create_snapshots(&[SnapshotSpec {
            id: SnapshotId(Uuid::from_u128(number)),
            volume,
        }])?;
        measure_random(&handle, &format!("{what}, after a snapshot"))?;
        drop(handle);
        let volume = VolumeId(Uuid::from_u128(number + 1));
        pool.create_volume(&VolumeSpec::new(volume, SEQUENTIAL_BYTES, DataSource::Blank))?;
        let handle = pool.open_version(VersionId::Volume(volume), OpenMode::ReadWrite)?;
        measure_queue(&handle, &format!("{what}, unmapped"))?;
        measure_queue(&handle, &format!("{what}, overwrite"))?;
        drop(handle);
        pool.close()?;
    }
    let pool = Pool::open(device, OpenOptions::default())?;
    for (number, request_bytes) in [(1, 64 << 10), (2, 256 << 10), (3, 1 << 20)] {
        let volume = VolumeId(Uuid::from_u128(number));
        pool.create_volume(&VolumeSpec::new(volume, size_bytes, DataSource::Blank))?;
        let handle = pool.open_version(VersionId::Volume(volume), OpenMode::ReadWrite)?;
        measure(&handle, request_bytes, "unmapped")?;
        if number == 3 {
            pool.create_snapshots(&[SnapshotSpec {
                id: SnapshotId(Uuid::from_u128(1)),
                volume,
            }])?;
            measure(&handle, request_bytes, "after a snapshot")?;
            measure(&handle, request_bytes, "overwrite")?;
        }
    }
    Ok(())
}

/// Small enough that the table of partial chunks does not run full.
const RANDOM_BYTES: u64 = 256 << 20;
const CHUNK_BYTES: u64 = 64 << 10;
const SEQUENTIAL_BYTES: u64 = 256 << 20;

fn fill(handle: &VersionHandle) -> anyhow::Result<()> {
    let buffer = IoBuffer::zeroed(1 << 20);
    for offset in (0..handle.size_bytes()).step_by(buffer.len()) {
        handle.write(offset, &buffer, Durability::Cached)?;
    }
    Ok(handle.flush()?)
}

/// Writes one block of each chunk, the chunks in a scattered order.
fn measure_random(handle: &VersionHandle, what: &str) -> anyhow::Result<()> {
    let mut buffer = IoBuffer::zeroed(4096);
    buffer.fill(0x5a);
    let chunks = handle.size_bytes() / CHUNK_BYTES;
    let started = Instant::now();
    for number in 0..chunks {
        // An odd factor visits each chunk once.
        let chunk = number * 2_654_435_761 % chunks;
        let block = number % (CHUNK_BYTES / 4096);
        handle.write(chunk * CHUNK_BYTES + block * 4096, &buffer, Durability::Cached)?;
    }
    handle.flush()?;
    let micros = started.elapsed().as_secs_f64() * 1e6 / chunks as f64;
    println!("{what}: {micros:.1} µs for each 4 KiB");
    Ok(())
}

/// Writes 4 KiB at a time in sequence, each when the one before it has completed.
fn measure_queue(handle: &Arc<VersionHandle>, what: &str) -> anyhow::Result<()> {
    let device = VolumeDevice::new(Arc::clone(handle), Workers::new());
    let mut queue = device.open_queue(1)?;
    let mut buffer = IoBuffer::zeroed(4096);
    buffer.fill(0x5a);
    let mut completions = Vec::new();
    let started = Instant::now();
    for offset in (0..SEQUENTIAL_BYTES).step_by(4096) {
        let verb = Verb::Write {
            offset,
            buffer,
            durability: Durability::Cached,
        };
        let submitted = queue.submit(Request { tag: Tag(0), verb });
        submitted.map_err(|_| anyhow::anyhow!("a queue that waits for each request is never full"))?;
        queue.kick();
        buffer = loop {
            if let Some(completion) = completions.pop() {
                let Completion { result, buffer, .. } = completion;
                result?;
                break buffer.context("a write gives its buffer back")?;
            }
            queue.reap(&mut completions);
            if completions.is_empty() {
                poll(
                    &mut [PollFd::new(queue.wake_fd(), PollFlags::POLLIN)],
                    PollTimeout::NONE,
                )?;
            }
        };
    }
    handle.flush()?;
    let seconds = started.elapsed().as_secs_f64();
    let mib = (SEQUENTIAL_BYTES >> 20) as f64;
    println!("{what}, 4 KiB through a queue: {:.0} MiB/s", mib / seconds);
    Ok(())
}

fn measure(handle: &VersionHandle, request_bytes: usize, what: &str) -> anyhow::Result<()> {
    let mut buffer = IoBuffer::zeroed(request_bytes);
    buffer.fill(0x5a);
    let started = Instant::now();
    for offset in (0..handle.size_bytes()).step_by(request_bytes) {
        handle.write(offset, &buffer, Durability::Cached)?;
    }
    handle.flush()?;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{what}, {} KiB a request: {:.0} MiB/s",
        request_bytes >> 10,
        (handle.size_bytes() >> 20) as f64 / seconds
    );
    Ok(())
}
