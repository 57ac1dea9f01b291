//! How the engine's control calls, its start and its memory grow with what a pool holds.
//!
//! `cargo bench -p quarry-thin --bench scale` prints a table; `-- --full` goes up to 1 TiB mapped and 100,000
//! snapshots. `QUARRY_BENCH_DIR` is where the pool lies, /dev/shm unless set: the figures are the engine's own, and
//! on a disk the disk's flush is in every call.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quarry_contract::{
    DataSource, Durability, OpenMode, Outcome, SnapshotId, SnapshotSpec, VersionId, VolumeId, VolumeSpec,
};
use quarry_thin::{DirectFile, FileDevice, FormatOptions, IoMode, OpenOptions, Pool, PoolDevice};
use uuid::Uuid;

const GIB: u64 = 1 << 30;
/// What one write maps.
const WRITE_BYTES: usize = 1 << 20;

/// A medium that keeps everything but blocks of zeros, so that a mapped volume of zeros takes no space: what is
/// measured are maps, not data.
struct ZeroesAreFree(FileDevice);

impl PoolDevice for ZeroesAreFree {
    fn size_bytes(&self) -> io::Result<u64> {
        self.0.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        // A page of metadata is never all zeros.
        if data.len() >= 64 << 10 && data[..4096] == [0; 4096] {
            return Ok(());
        }
        self.0.write_at(offset, data)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.0.write_zeroes(offset, length)
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.0.discard(offset, length)
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }

    fn direct_file(&self) -> Option<DirectFile<'_>> {
        None
    }
}

struct Bench {
    path: PathBuf,
    pool: Arc<Pool>,
}

impl Bench {
    fn new(folder: &Path, pool_bytes: u64) -> Self {
        let path = folder.join("scale.pool");
        let _ = std::fs::remove_file(&path);
        let device = FileDevice::create(&path, pool_bytes, IoMode::Threads).unwrap();
        Pool::format(&device, &FormatOptions::default()).unwrap();
        drop(device);
        let pool = Self::open(&path);
        Self { path, pool }
    }

    fn open(path: &Path) -> Arc<Pool> {
        let device = FileDevice::open(path, IoMode::Threads).unwrap();
        Pool::open(Arc::new(ZeroesAreFree(device)), OpenOptions::default()).unwrap()
    }

    /// Drops the pool as a killed process does and opens it again; returns how long that took.
    fn crash(self) -> (Self, Duration) {
        let Self { path, pool } = self;
        drop(pool);
        let begin = Instant::now();
        let pool = Self::open(&path);
        (Self { path, pool }, begin.elapsed())
    }

    fn create(&self, source: DataSource) -> VolumeId {
        let id = VolumeId(Uuid::new_v4());
        let spec = VolumeSpec::new(id, GIB, source);
        self.pool.create_volume(&spec).unwrap();
        id
    }

    fn snapshot(&self, volume: VolumeId) -> SnapshotId {
        let id = SnapshotId(Uuid::new_v4());
        self.pool
            .create_snapshots(&[SnapshotSpec { id, volume }])
            .unwrap();
        id
    }

    fn maintain(&self) {
        while self.pool.maintain().unwrap().more {}
    }
}

/// Times `call` many times.
fn rate(what: &str, calls: usize, mut call: impl FnMut(usize)) {
    let mut times: Vec<Duration> = (0..calls)
        .map(|number| {
            let begin = Instant::now();
            call(number);
            begin.elapsed()
        })
        .collect();
    let total: Duration = times.iter().sum();
    times.sort_unstable();
    println!(
        "| {what} | {:.0} | {:.0} | {:.0} |",
        calls as f64 / total.as_secs_f64(),
        times[calls / 2].as_secs_f64() * 1e6,
        times[calls * 99 / 100].as_secs_f64() * 1e6
    );
}

fn resident_mib() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    (pages * 4096) >> 20
}

/// Checks the pool; returns how long that took, and how many MiB more were resident at most.
fn check(pool: &Pool) -> (Duration, u64) {
    // The peak from here on: proc(5), clear_refs.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = peak_mib();
    let begin = Instant::now();
    let report = pool.check().unwrap();
    let took = begin.elapsed();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    (took, peak_mib() - before)
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|peak| peak.trim().strip_suffix(" kB")).unwrap();
    kib.parse::<u64>().unwrap() >> 10
}

fn control_calls(folder: &Path, volumes: usize) {
    let bench = Bench::new(folder, 64 * GIB);
    let mut ids: Vec<VolumeId> = (0..volumes).map(|_| bench.create(DataSource::Blank)).collect();
    println!(
        "\nControl calls with {volumes} volumes\n\n| call | per second | p50 µs | p99 µs |\n|---|---|---|---|"
    );
    let calls = 500;
    rate("create", calls, |_| ids.push(bench.create(DataSource::Blank)));
    let subject = ids[0];
    let handle = bench
        .pool
        .open_version(VersionId::Volume(subject), OpenMode::ReadWrite)
        .unwrap();
    handle.write(0, &[1; 4096], Durability::Cached).unwrap();
    let mut snapshots = Vec::new();
    rate("snapshot of one volume", calls, |_| {
        snapshots.push(bench.snapshot(subject))
    });
    // Each with contents of its own, so that a revert changes something.
    for (number, snapshot) in snapshots.iter_mut().enumerate() {
        let contents = [number as u8; 4096];
        handle.write(0, &contents, Durability::Cached).unwrap();
        *snapshot = bench.snapshot(subject);
    }
    let mut clones = Vec::new();
    rate("clone of a snapshot", calls, |number| {
        clones.push(bench.create(DataSource::Snapshot(snapshots[number])));
    });
    drop(handle);
    rate("revert to any snapshot", calls, |number| {
        let reverted = bench.pool.revert_volume(subject, snapshots[number * 7 % calls]);
        assert!(matches!(reverted, Ok(Outcome::Changed(_))));
    });
    rate("delete a clone", calls, |number| {
        bench.pool.delete_volume(clones[number]).unwrap();
    });
    rate("delete a snapshot", calls, |number| {
        bench.pool.delete_snapshot(snapshots[number]).unwrap();
    });
    rate("status", calls, |_| {
        bench.pool.status();
    });
    bench.maintain();
}

fn many_objects(folder: &Path, volumes: usize, snapshots: usize) {
    let before = resident_mib();
    let bench = Bench::new(folder, 64 * GIB);
    let begin = Instant::now();
    let ids: Vec<VolumeId> = (0..volumes).map(|_| bench.create(DataSource::Blank)).collect();
    for number in 0..snapshots {
        bench.snapshot(ids[number % volumes]);
    }
    let made = begin.elapsed();
    let resident = resident_mib() - before;
    let (bench, opened) = bench.crash();
    let (checked, for_check) = check(&bench.pool);
    println!(
        "| {volumes} volumes, {snapshots} snapshots | made in {:.1} s, {resident} MiB more memory | {:.0} ms | {:.1} s, {for_check} MiB |",
        made.as_secs_f64(),
        opened.as_secs_f64() * 1e3,
        checked.as_secs_f64()
    );
    assert_eq!(bench.pool.status().snapshot_count, snapshots as u64);
}

fn mapped(folder: &Path, mapped_gib: u64) {
    let before = resident_mib();
    let bench = Bench::new(folder, (mapped_gib + 8) * GIB * 17 / 16);
    let zeros = vec![0; WRITE_BYTES];
    let begin = Instant::now();
    for first in (0..mapped_gib).step_by(64) {
        let size_bytes = 64.min(mapped_gib - first) * GIB;
        let id = VolumeId(Uuid::new_v4());
        let source = DataSource::Blank;
        bench
            .pool
            .create_volume(&VolumeSpec::new(id, size_bytes, source))
            .unwrap();
        let volume = bench
            .pool
            .open_version(VersionId::Volume(id), OpenMode::ReadWrite)
            .unwrap();
        for offset in (0..size_bytes).step_by(WRITE_BYTES) {
            volume.write(offset, &zeros, Durability::Cached).unwrap();
            if offset % (256 << 20) == 0 {
                bench.pool.maintain().unwrap();
            }
        }
        volume.flush().unwrap();
    }
    let made = begin.elapsed();
    let resident = resident_mib().saturating_sub(before);
    let (bench, opened) = bench.crash();
    let (checked, for_check) = check(&bench.pool);
    println!(
        "| {mapped_gib} GiB mapped | made in {:.1} s, {resident} MiB more memory | {:.0} ms | {:.1} s, {for_check} MiB |",
        made.as_secs_f64(),
        opened.as_secs_f64() * 1e3,
        checked.as_secs_f64()
    );
    assert!(bench.pool.status().allocated_bytes >= mapped_gib * GIB);
}

fn main() {
    let full = std::env::args().any(|argument| argument == "--full");
    let folder = std::env::var_os("QUARRY_BENCH_DIR").map_or_else(|| "/dev/shm".into(), PathBuf::from);
    let folder = tempfile::tempdir_in(folder).unwrap();
    for volumes in [10, 10_000] {
        control_calls(folder.path(), volumes);
    }
    println!("\nOpening after a crash, and a check\n\n| pool | before | open | check |\n|---|---|---|---|");
    many_objects(folder.path(), 1_000, 10_000);
    mapped(folder.path(), 64);
    if full {
        many_objects(folder.path(), 10_000, 100_000);
        mapped(folder.path(), 1024);
    }
}
