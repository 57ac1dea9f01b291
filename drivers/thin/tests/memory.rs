//! Memory is a budget: a pool whose maps are many times as large works within it, under random I/O.
//!
//! One chunk is mapped in each leaf of the maps, which costs memory as if all of each were: with 64 KiB chunks
//! 32 MiB are a leaf. Work is done by a process of its own in a control group of its own, which the kernel ends when it
//! takes more than the limit; where no control group can be made, its peak of resident memory is looked at instead. By
//! default maps of 1 TiB meet a budget of 32 MiB; `QUARRY_MEMORY_FULL=1` makes it 10 TiB and the default budget.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;

use quarry_contract::conformance::SplitMix;
use quarry_contract::conformance::requirement::{MEMORY_GROUP, skip};
use quarry_contract::{DataSource, Durability, OpenMode, VersionId, VolumeId, VolumeSpec};
use quarry_thin::{
    DirectFile, FileDevice, FormatOptions, IoMode, Maintainer, OpenOptions, Pool, PoolDevice, VersionHandle,
};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const CHUNK: u64 = 64 << 10;
const LEAF: u64 = 512 * CHUNK;
const THREADS: u64 = 4;

/// Tells a process of this test what to do, in which pool and in which group.
const ROLE: &str = "QUARRY_MEMORY_ROLE";
const POOL: &str = "QUARRY_MEMORY_POOL";
const GROUP: &str = "QUARRY_MEMORY_GROUP";

struct Scale {
    mapped_bytes: u64,
    cache_bytes: u64,
    checkpoint_dirty_pages: u64,
    limit_bytes: u64,
    operations: u64,
}

fn scale() -> Scale {
    let defaults = OpenOptions::default();
    match std::env::var_os("QUARRY_MEMORY_FULL") {
        None => Scale {
            mapped_bytes: TIB,
            cache_bytes: 32 * MIB,
            checkpoint_dirty_pages: 2048,
            limit_bytes: 96 * MIB,
            operations: 20_000,
        },
        Some(_) => Scale {
            mapped_bytes: 10 * TIB,
            cache_bytes: defaults.cache_bytes,
            checkpoint_dirty_pages: defaults.checkpoint_dirty_pages,
            limit_bytes: 768 * MIB,
            operations: 100_000,
        },
    }
}

/// A medium that keeps everything but blocks of zeros: what fills memory here are maps, not data.
struct ZeroesAreFree(FileDevice);

impl PoolDevice for ZeroesAreFree {
    fn size_bytes(&self) -> io::Result<u64> {
        self.0.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        // No page of a map is all zeros; blocks of the bitmap may be, and lie in front.
        if offset >= GIB && data.iter().all(|byte| *byte == 0) {
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

fn volume_id() -> VolumeId {
    VolumeId(Uuid::from_u128(1))
}

fn open(path: &Path, cache_bytes: u64) -> (Arc<Pool>, Arc<VersionHandle>) {
    let device = FileDevice::open(path, IoMode::Threads).expect("opening the file");
    let options = OpenOptions {
        cache_bytes,
        checkpoint_dirty_pages: scale().checkpoint_dirty_pages,
        ..OpenOptions::default()
    };
    let pool = Pool::open(Arc::new(ZeroesAreFree(device)), options).expect("opening the pool");
    let spec = VolumeSpec::new(volume_id(), scale().mapped_bytes, DataSource::Blank);
    pool.create_volume(&spec).expect("creating the volume");
    let handle = pool
        .open_version(VersionId::Volume(volume_id()), OpenMode::ReadWrite)
        .expect("opening the volume");
    (pool, handle)
}

/// Maps a chunk of each leaf.
fn fill(path: &Path) {
    let (pool, handle) = open(path, scale().cache_bytes);
    let chunk = vec![0; CHUNK as usize];
    for leaf in 0..scale().mapped_bytes / LEAF {
        handle
            .write(leaf * LEAF, &chunk, Durability::Cached)
            .expect("mapping a chunk");
        if leaf % 256 == 0 {
            pool.maintain().expect("maintaining");
        }
    }
    drop(handle);
    pool.close().expect("closing");
}

/// Reads, overwrites and maps at random, from several threads, beside the background work.
fn work(path: &Path, cache_bytes: u64) {
    let (pool, handle) = open(path, cache_bytes);
    let maintainer = Maintainer::start(Arc::clone(&pool)).expect("starting the background work");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let handle = &handle;
            scope.spawn(move || {
                let mut random = SplitMix::new(thread);
                let mut block = vec![0xa5; 4096];
                for operation in 0..scale().operations {
                    let leaf = random.below(scale().mapped_bytes / LEAF) * LEAF;
                    let within = random.below(CHUNK / 4096) * 4096;
                    match random.below(10) {
                        0..6 => {
                            handle.read(leaf + within, &mut block).expect("reading");
                            assert!(block.iter().all(|byte| *byte == 0), "only zeros are written");
                        }
                        6..9 => handle
                            .write(leaf + within, &[0; 4096], Durability::Cached)
                            .expect("overwriting"),
                        _ => {
                            let chunk = random.below(512) * CHUNK;
                            handle
                                .write(leaf + chunk + within, &[0; 4096], Durability::Cached)
                                .expect("mapping a block");
                        }
                    }
                    if operation % 500 == 0 {
                        handle.flush().expect("flushing");
                    }
                }
            });
        }
    });
    drop(maintainer);
    drop(handle);
    pool.close().expect("closing");
}

/// Returns the highest resident memory of this process so far, in bytes.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<u64>().ok())
        .expect("the kernel tells it")
        << 10
}

/// A control group with a limit, gone when dropped.
struct Group(PathBuf);

impl Group {
    /// Makes one, where that is allowed: cgroup v2, or v1.
    fn new(limit_bytes: u64) -> Option<Self> {
        let name = format!("quarry-memory-{}", std::process::id());
        [
            ("/sys/fs/cgroup", "memory.max"),
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ]
        .into_iter()
        .find_map(|(parent, limit)| {
            let folder = Path::new(parent).join(&name);
            std::fs::create_dir(&folder).ok()?;
            let group = Self(folder);
            // Where the controller is not there, neither is its file.
            group.set(limit, limit_bytes)?;
            let _ = group
                .set("memory.swap.max", 0)
                .or_else(|| group.set("memory.swappiness", 0));
            Some(group)
        })
    }
}

impl Group {
    fn set(&self, file: &str, value: u64) -> Option<()> {
        let path = self.0.join(file);
        path.exists()
            .then(|| std::fs::write(path, value.to_string()).ok())?
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Runs this test again as a process with a role and a limit.
fn run(role: &str, pool: &Path) -> ExitStatus {
    let group = Group::new(scale().limit_bytes);
    let how = match &group {
        Some(group) => format!("in {}", group.0.display()),
        None => {
            skip(
                MEMORY_GROUP,
                "no control group can be made here: the process looks at its memory itself",
            );
            "without a control group".to_owned()
        }
    };
    println!("{role}, limit {} MiB, {how}", scale().limit_bytes / MIB);
    let mut command = Command::new(std::env::current_exe().expect("a test is a file"));
    command
        .args([
            "--exact",
            "maps_far_larger_than_the_budget_stay_within_it",
            "--nocapture",
        ])
        .env(ROLE, role)
        .env(POOL, pool);
    if let Some(group) = &group {
        command.env(GROUP, &group.0);
    }
    command.status().expect("starting the process")
}

fn play(role: &str) {
    if let Some(group) = std::env::var_os(GROUP) {
        std::fs::write(Path::new(&group).join("cgroup.procs"), "0").expect("entering the group");
    }
    let pool = PathBuf::from(std::env::var_os(POOL).expect("the pool is named"));
    match role {
        "fill" => fill(&pool),
        "work" => work(&pool, scale().cache_bytes),
        "work without a budget" => work(&pool, u64::MAX / 4),
        other => panic!("there is no role {other}"),
    }
    let peak = peak_bytes();
    println!("{role}: at most {} MiB resident", peak / MIB);
    assert!(peak <= scale().limit_bytes, "{role}: {} MiB", peak / MIB);
}

#[test]
fn maps_far_larger_than_the_budget_stay_within_it() {
    if let Ok(role) = std::env::var(ROLE) {
        return play(&role);
    }
    // Not in memory: files there are charged to the group.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let path = folder.path().join("pool");
    let bytes = scale().mapped_bytes / 64 * 66;
    let device = FileDevice::create(&path, bytes, IoMode::Threads).expect("making a sparse file");
    Pool::format(&device, &FormatOptions::default()).expect("formatting");
    drop(device);
    assert!(run("fill", &path).success());
    assert!(run("work", &path).success());
    let control = run("work without a budget", &path);
    assert!(!control.success(), "the limit is none: maps of any size fit");
}
