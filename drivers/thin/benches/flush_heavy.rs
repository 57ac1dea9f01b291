//! What a write costs that is flushed before the next: every writer writes 4 KiB and flushes, in a loop.
//!
//! `cargo bench -p quarry-thin --bench flush_heavy` prints a table; `-- --seconds 5` makes each run longer.
//! `QUARRY_BENCH_DIR` is where the pool lies, /tmp unless set: in memory a flush costs nothing, and what is left is the
//! engine's own.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quarry_contract::{
    DataSource, Durability, IoBuffer, OpenMode, SnapshotId, SnapshotSpec, VersionId, VolumeId, VolumeSpec,
};
use quarry_thin::{
    DirectFile, FileDevice, FormatOptions, IoMode, Maintainer, OpenOptions, Pool, PoolDevice, VersionHandle,
};
use uuid::Uuid;

const BLOCK: u64 = 4096;
/// What each writer has for itself.
const SPAN_BYTES: u64 = 32 << 20;
const MOST_WRITERS: u64 = 16;

/// Counts the flushes that reach the medium.
struct Counting {
    file: FileDevice,
    flushes: AtomicU64,
}

impl PoolDevice for Counting {
    fn size_bytes(&self) -> io::Result<u64> {
        self.file.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, data)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.file.write_zeroes(offset, length)
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.file.discard(offset, length)
    }

    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.file.flush()
    }

    fn direct_file(&self) -> Option<DirectFile<'_>> {
        None
    }
}

/// What is written between two flushes.
#[derive(Clone, Copy)]
enum Pattern {
    /// Each block once, at random.
    Scattered,
    /// Each block once, front to back.
    InOrder,
    /// 512 bytes behind the last: each block eight times.
    Appended,
}

struct Bench {
    device: Arc<Counting>,
    pool: Arc<Pool>,
    volumes: u128,
    run_time: Duration,
}

impl Bench {
    fn new(folder: &Path, run_time: Duration) -> Self {
        let pool_bytes = 10 * MOST_WRITERS * SPAN_BYTES;
        let file = FileDevice::create(&folder.join("pool"), pool_bytes, IoMode::Auto).expect("a pool file");
        // The file's own first writes are not what is measured.
        let zeros = IoBuffer::zeroed(1 << 20);
        for offset in (0..pool_bytes).step_by(zeros.len()) {
            file.write_at(offset, &zeros).expect("room for the pool");
        }
        Pool::format(&file, &FormatOptions::default()).expect("a pool");
        let device = Arc::new(Counting {
            file,
            flushes: AtomicU64::new(0),
        });
        let options = OpenOptions {
            discard_freed: false,
            ..OpenOptions::default()
        };
        let pool = Pool::open(Arc::clone(&device) as Arc<dyn PoolDevice>, options).expect("the pool");
        Self {
            device,
            pool,
            volumes: 0,
            run_time,
        }
    }

    fn volume(&mut self) -> (VolumeId, Arc<VersionHandle>) {
        self.volumes += 1;
        let id = VolumeId(Uuid::from_u128(self.volumes));
        let spec = VolumeSpec::new(id, MOST_WRITERS * SPAN_BYTES, DataSource::Blank);
        self.pool.create_volume(&spec).expect("a volume");
        let handle = self.pool.open_version(VersionId::Volume(id), OpenMode::ReadWrite);
        (id, handle.expect("the volume"))
    }

    fn row(&self, what: &str, handle: &VersionHandle, writers: u64, pattern: Pattern) {
        let flushes = self.device.flushes.load(Ordering::Relaxed);
        let started = Instant::now();
        let mut waits: Vec<Duration> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..writers)
                .map(|writer| scope.spawn(move || write_and_flush(handle, writer, pattern, self.run_time)))
                .collect();
            writers
                .into_iter()
                .flat_map(|writer| writer.join().expect("no writer panics"))
                .collect()
        });
        let rate = waits.len() as f64 / started.elapsed().as_secs_f64();
        let flushes = self.device.flushes.load(Ordering::Relaxed) - flushes;
        waits.sort_unstable();
        let at = |share: usize| waits[waits.len() * share / 100].as_micros();
        let per_write = flushes as f64 / waits.len() as f64;
        println!(
            "| {what} | {writers} | {rate:.0} | {} / {} | {per_write:.2} |",
            at(50),
            at(99)
        );
    }
}

/// Writes and flushes until the time is over, or everything has been written, and returns how long each took.
fn write_and_flush(
    handle: &VersionHandle,
    writer: u64,
    pattern: Pattern,
    run_time: Duration,
) -> Vec<Duration> {
    let data = vec![writer as u8 + 1; BLOCK as usize];
    let blocks = SPAN_BYTES / BLOCK;
    let end = Instant::now() + run_time;
    let mut waits = Vec::new();
    let mut step = 0;
    let (steps, length) = match pattern {
        Pattern::Scattered | Pattern::InOrder => (blocks, BLOCK),
        Pattern::Appended => (blocks * 8, 512),
    };
    while step < steps && Instant::now() < end {
        let at = match pattern {
            // An odd factor visits each block of a power of two once.
            Pattern::Scattered => step * 0x9e37_79b1 % blocks * BLOCK,
            Pattern::InOrder | Pattern::Appended => step * length,
        };
        let started = Instant::now();
        handle
            .write(
                writer * SPAN_BYTES + at,
                &data[..length as usize],
                Durability::Flushed,
            )
            .expect("a write");
        waits.push(started.elapsed());
        step += 1;
    }
    waits
}

fn main() {
    let mut seconds = 3.0;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seconds" => {
                let value = arguments.next().and_then(|text| text.parse().ok());
                seconds = value.expect("--seconds takes a number");
            }
            // What cargo bench passes.
            "--bench" => {}
            other => panic!("unknown argument {other}"),
        }
    }
    let folder = std::env::var_os("QUARRY_BENCH_DIR").unwrap_or_else(|| "/tmp".into());
    let folder = tempfile::tempdir_in(folder).expect("QUARRY_BENCH_DIR is a directory");
    let mut bench = Bench::new(folder.path(), Duration::from_secs_f64(seconds));
    println!("| 4 KiB, each flushed | writers | writes/s | p50 / p99 us | device flushes a write |");
    println!("|---|---|---|---|---|");
    for writers in [1, MOST_WRITERS] {
        let (id, handle) = bench.volume();
        bench.row("unmapped, at random", &handle, writers, Pattern::Scattered);
        let (_, in_order) = bench.volume();
        bench.row("unmapped, in order", &in_order, writers, Pattern::InOrder);
        let (_, appended) = bench.volume();
        bench.row("unmapped, 512 B appended", &appended, writers, Pattern::Appended);
        let maintainer = Maintainer::start(Arc::clone(&bench.pool)).expect("a thread");
        for at in (0..MOST_WRITERS * SPAN_BYTES).step_by(1 << 20) {
            handle
                .write(at, &[7; 1 << 20], Durability::Cached)
                .expect("a write");
        }
        drop(maintainer);
        while bench.pool.maintain().expect("background work").more {}
        bench.pool.checkpoint().expect("a checkpoint");
        bench.row("overwrite, at random", &handle, writers, Pattern::Scattered);
        let snapshot = SnapshotSpec {
            id: SnapshotId(Uuid::from_u128(bench.volumes)),
            volume: id,
        };
        bench.pool.create_snapshots(&[snapshot]).expect("a snapshot");
        bench.row(
            "after a snapshot, at random",
            &handle,
            writers,
            Pattern::Scattered,
        );
    }
}
