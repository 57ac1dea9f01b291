//! Growing in the middle of a history: what was there stays, what is new is used, and a cut at every step of a growth leaves
//! the pool as before or as after it.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use quarry_contract::{DataSource, Durability, IoError, OpenMode, VersionId, VolumeId, VolumeSpec};
use quarry_thin::sim::{Setup, SimDevice, Stamp, Step, Violation, World};
use quarry_thin::{DeviceSet, DirectFile, OpenOptions, Pool, PoolDevice, PoolError, VersionHandle};
use uuid::Uuid;

use crate::seeds::for_each_seed;

fn violation(what: &str, error: impl std::fmt::Display) -> Violation {
    Violation(format!("{what}: {error}"))
}

/// Grows a pool that runs full again and again; all space is there in the end.
fn grow_now_and_then(seed: u64) -> Result<(), Violation> {
    let mut world = World::begin(Setup::tight(seed))?;
    let allocated_when_new = world.pool().status().allocated_bytes;
    let mut total = world.pool().status().total_bytes;
    for round in 0..6 {
        if world.run(25)? == Step::Interrupted {
            return Err(Violation("a healthy device interrupted a step".into()));
        }
        let chunks = 1 + (seed + round) % 40;
        world
            .enlarge(chunks)
            .map_err(|error| violation("J1: growing", error))?;
        total += chunks * world.setup().chunk_bytes;
        let status = world.pool().status();
        if status.total_bytes != total {
            return Err(Violation(format!("J1: {total} bytes were to be had: {status:?}")));
        }
        world.verify_now()?;
        if round % 2 == 0 {
            world.recover()?;
        }
    }
    world.empty_out(allocated_when_new)
}

#[test]
fn a_pool_grows_in_the_middle_of_any_history() {
    for_each_seed("a_pool_grows_in_the_middle_of_any_history", 60, grow_now_and_then);
}

/// Cuts a growth at each of its operations, and goes on from there.
fn cut_every_step(seed: u64) -> Result<(), Violation> {
    for cut in 0.. {
        let mut world = World::begin(Setup::tight(seed))?;
        world.run(40)?;
        let before = world.pool().status().total_bytes;
        let old_end = world.setup().device_bytes / 4096 * 4096;
        world.device().cut_power_at(cut);
        let chunks = 1 + seed % 50;
        let grown = world.enlarge(chunks);
        let was_cut = world.device().is_cut();
        if let Err(error) = &grown
            && !was_cut
        {
            return Err(violation("J1: growing", error));
        }
        world.recover()?;
        let after = before + chunks * world.setup().chunk_bytes;
        let found = world.pool().status().total_bytes;
        if found != after && (found != before || grown.is_ok()) {
            return Err(Violation(format!(
                "J1: cut {cut}: {found} bytes in all, not {before} or {after}; answered {grown:?}"
            )));
        }
        let new_end = world.setup().device_bytes / 4096 * 4096;
        let (end, other_end) = match found == after {
            true => (new_end, old_end),
            false => (old_end, new_end),
        };
        let has_superblock = |at: u64| world.device().peek(at, 8) == *b"QRYTHIN\0";
        if [8192, 4096]
            .iter()
            .any(|before| has_superblock(other_end - before) || !has_superblock(end - before))
        {
            return Err(Violation(format!(
                "J3: cut {cut}: superblocks are not at {end} alone"
            )));
        }
        world.verify_now()?;
        // It can be done again, and life goes on.
        world
            .enlarge(0)
            .map_err(|error| violation("J1: growing again", error))?;
        let found = world.pool().status().total_bytes;
        if found != after {
            return Err(Violation(format!("J1: {found} bytes in all, not {after}")));
        }
        world.run(10)?;
        world.recover()?;
        world.verify_now()?;
        match was_cut {
            true => {}
            // A superblock in two rounds, and its flushes.
            false if cut > 6 => return Ok(()),
            false => return Err(Violation(format!("J1: a growth of {cut} operations"))),
        }
    }
    Ok(())
}

#[test]
fn a_cut_at_every_step_of_a_growth_leaves_before_or_after() {
    for_each_seed(
        "a_cut_at_every_step_of_a_growth_leaves_before_or_after",
        30,
        cut_every_step,
    );
}

const CHUNK: u64 = 16 << 10;

/// A small pool on two media that fail together.
struct Pair {
    first: Arc<SimDevice>,
    second: Arc<SimDevice>,
    pool: Arc<Pool>,
}

fn small_pool(seed: u64) -> (Arc<SimDevice>, Arc<Pool>) {
    let setup = Setup {
        chunk_bytes: CHUNK,
        device_bytes: 2 << 20,
        log_bytes: 64 << 10,
        ..Setup::tight(seed)
    };
    let world = World::begin(setup).expect("an empty pool");
    (Arc::clone(world.device()), Arc::clone(world.pool()))
}

fn create(pool: &Arc<Pool>) -> Arc<VersionHandle> {
    let spec = VolumeSpec::new(VolumeId(Uuid::from_u128(1)), 1 << 30, DataSource::Blank);
    pool.create_volume(&spec).expect("a volume");
    open(pool)
}

fn open(pool: &Arc<Pool>) -> Arc<VersionHandle> {
    let id = VersionId::Volume(VolumeId(Uuid::from_u128(1)));
    pool.open_version(id, OpenMode::ReadWrite).expect("the volume")
}

/// Maps chunks from `next` on until the pool is full; returns the next.
fn fill(handle: &VersionHandle, mut next: u64) -> u64 {
    loop {
        let data = Stamp(next + 1).bytes(next * CHUNK, CHUNK as usize);
        match handle.write(next * CHUNK, &data, Durability::Cached) {
            Ok(()) => next += 1,
            Err(IoError::NoSpace) => return next,
            Err(error) => panic!("filling, chunk {next}: {error}"),
        }
    }
}

fn verify(pool: &Arc<Pool>, handle: &VersionHandle, chunks: u64, when: &str) {
    let mut bytes = vec![0; CHUNK as usize];
    for chunk in 0..chunks {
        handle.read(chunk * CHUNK, &mut bytes).unwrap();
        assert!(
            bytes == Stamp(chunk + 1).bytes(chunk * CHUNK, CHUNK as usize),
            "{when}: chunk {chunk}"
        );
    }
    let report = pool.check().unwrap();
    assert!(report.problems.is_empty(), "{when}: {:?}", report.problems);
}

impl Pair {
    /// Opens the pool on what a power cut leaves of both media.
    fn power_cycle(&self) -> Result<Self, PoolError> {
        Self::open(self.first.power_cycle(), self.second.power_cycle())
    }

    fn open(first: Arc<SimDevice>, second: Arc<SimDevice>) -> Result<Self, PoolError> {
        let set = DeviceSet::with(first.clone(), vec![second.clone()]);
        let pool = Pool::open_set(set, OpenOptions::default())?;
        Ok(Self { first, second, pool })
    }
}

#[test]
fn a_full_pool_grows_onto_another_device_and_into_it_and_keeps_everything() {
    let (first, pool) = small_pool(1);
    let handle = create(&pool);
    let mut next = fill(&handle, 0);
    let second = SimDevice::new(3 << 20, 2);
    let added = pool
        .add_device(second.clone(), "/second")
        .expect("V8: growing a full pool");
    assert!(added.is_changed());
    let again = fill(&handle, next);
    assert!(again > next + 100, "{next} and then {again} chunks");
    next = again;
    verify(&pool, &handle, next, "grown");
    handle.flush().unwrap();
    drop(handle);
    let mut pair = Pair { first, second, pool }.power_cycle().expect("recovery");
    let handle = open(&pair.pool);
    verify(&pair.pool, &handle, next, "after a power cut");
    // Both become larger: one more segment on the first, a longer one on the second.
    pair.first.grow(4 << 20).unwrap();
    pair.second.grow(5 << 20).unwrap();
    assert!(pair.pool.enlarge(None).unwrap().is_changed());
    assert!(!pair.pool.enlarge(None).unwrap().is_changed());
    next = fill(&handle, next);
    assert!(next > 9 * 64 - 120, "{next} chunks of 9 MiB");
    handle.flush().unwrap();
    drop(handle);
    pair.pool.close().unwrap();
    pair = pair.power_cycle().expect("a clean open");
    let handle = open(&pair.pool);
    verify(&pair.pool, &handle, next, "after a clean reopen");
    handle.discard(0, next * CHUNK).unwrap();
    handle.flush().unwrap();
    while pair.pool.maintain().unwrap().more {}
    pair.pool.checkpoint().unwrap();
    let report = pair.pool.check().unwrap();
    assert!(
        report.problems.is_empty() && report.data_chunks == 0,
        "{report:?}"
    );
}

/// Adds a device with the power cut at operation `cut` of one of the two media; false when it was over before.
fn add_and_cut(seed: u64, cut: u64, on_second: bool) -> bool {
    let (first, pool) = small_pool(seed);
    let handle = create(&pool);
    let next = fill(&handle, 0);
    handle.flush().unwrap();
    let second = SimDevice::new(1536 << 10, seed);
    match on_second {
        true => second.cut_power_at(cut),
        false => first.cut_power_at(cut),
    }
    let added = pool.add_device(second.clone(), "/second");
    let was_cut = first.is_cut() || second.is_cut();
    assert_eq!(added.is_err(), was_cut, "cut {cut}: {added:?}");
    let total = pool.status().total_bytes;
    drop((handle, pool));
    let (left, left_second) = (first.power_cycle(), second.power_cycle());
    let when = format!("cut {cut}, on the second: {on_second}");
    // Without the second it opens exactly when it does not need it.
    let alone = Pool::open(left.fork(1), OpenOptions::default());
    let (pool, second) = match alone {
        Ok(pool) => {
            assert!(was_cut, "J1: {when}: an answered growth is gone");
            drop(pool);
            let pool = Pool::open(left, OpenOptions::default()).unwrap();
            // J2: what was cut short can be done again, with the same device.
            let added = pool.add_device(left_second.clone(), "/second");
            assert!(
                added
                    .unwrap_or_else(|error| panic!("J2: {when}: {error}"))
                    .is_changed()
            );
            (pool, left_second)
        }
        Err(PoolError::MissingDevice { path, .. }) => {
            assert_eq!(path, "/second");
            let pair = Pair::open(left, left_second).unwrap_or_else(|error| panic!("J2: {when}: {error}"));
            (pair.pool, pair.second)
        }
        Err(error) => panic!("{when}: {error}"),
    };
    assert!(was_cut || pool.status().total_bytes == total);
    let handle = open(&pool);
    verify(&pool, &handle, next, &when);
    let more = fill(&handle, next);
    assert!(more > next + 10, "J1: {when}: {next} and then {more} chunks");
    verify(&pool, &handle, more, &when);
    assert!(second.counts().writes > 0);
    was_cut
}

#[test]
fn a_cut_at_every_step_of_adding_a_device_leaves_before_or_after() {
    for seed in 0..6 {
        for on_second in [false, true] {
            let cuts = (0..).take_while(|cut| add_and_cut(seed, *cut, on_second)).count();
            assert!(cuts >= 3, "only {cuts} operations");
        }
    }
}

#[test]
fn j2_a_device_that_holds_something_is_refused_and_left_as_it_is() {
    let (_, pool) = small_pool(3);
    let total = pool.status().total_bytes;
    let used = SimDevice::new(2 << 20, 1);
    used.overwrite(8192, &[7; 512]);
    assert!(pool.add_device(used.clone(), "/used").is_err());
    assert_eq!((used.counts().writes, used.peek(8192, 512)), (0, vec![7; 512]));
    let (other, other_pool) = small_pool(4);
    drop(other_pool);
    assert!(pool.add_device(other, "/other").is_err());
    let tiny = SimDevice::new((1 << 20) + CHUNK - 4096, 1);
    assert!(pool.add_device(tiny, "/tiny").is_err());
    let long = "/".repeat(300);
    assert!(pool.add_device(SimDevice::new(2 << 20, 1), &long).is_err());
    assert_eq!(pool.status().total_bytes, total);
    pool.add_device(SimDevice::new(2 << 20, 1), "/good")
        .expect("after all that");
    assert!(pool.status().total_bytes > total);
}

#[test]
fn j2_a_pool_without_one_of_its_devices_says_which_and_takes_no_other() {
    let (first, pool) = small_pool(5);
    let second = SimDevice::new(2 << 20, 1);
    pool.add_device(second.clone(), "/dev/second").unwrap();
    pool.close().unwrap();
    drop(pool);
    let missing = |opened: Result<Pair, PoolError>| match opened {
        Err(PoolError::MissingDevice { path, .. }) => assert_eq!(path, "/dev/second"),
        other => panic!("{:?}", other.map(|_| ())),
    };
    let alone = Pool::open(first.clone(), OpenOptions::default());
    assert!(matches!(alone, Err(PoolError::MissingDevice { .. })));
    missing(Pair::open(first.clone(), SimDevice::new(2 << 20, 1)));
    let (other_first, other) = small_pool(6);
    let other_second = SimDevice::new(2 << 20, 1);
    other.add_device(other_second.clone(), "/dev/second").unwrap();
    drop((other, other_first));
    missing(Pair::open(first.clone(), other_second));
    let short = second.fork(1);
    short.resize(1 << 20);
    let refused = Pair::open(first.clone(), short);
    assert!(
        matches!(refused, Err(PoolError::Truncated { .. })),
        "{:?}",
        refused.map(|_| ())
    );
    Pair::open(first, second).expect("with its own");
}

/// A medium that does not keep long runs of zeros, so that what is mapped takes no memory.
struct ZerosAreFree(Arc<SimDevice>);

impl PoolDevice for ZerosAreFree {
    fn size_bytes(&self) -> io::Result<u64> {
        self.0.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match data.len() > 64 << 10 && data.iter().all(|byte| *byte == 0) {
            true => Ok(()),
            false => self.0.write_at(offset, data),
        }
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

    fn grow(&self, least_bytes: u64) -> io::Result<u64> {
        self.0.grow(least_bytes)
    }

    fn direct_file(&self) -> Option<DirectFile<'_>> {
        None
    }
}

/// Grows the pool beyond the bitmap blocks that it was formatted with: 512 MiB at 16 KiB.
#[test]
fn the_bitmap_of_what_was_added_is_kept_in_pages() {
    let (first, pool) = small_pool(7);
    drop(pool);
    let open_on = |device: &Arc<SimDevice>| {
        let device = Arc::new(ZerosAreFree(Arc::clone(device)));
        Pool::open(device, OpenOptions::default()).unwrap()
    };
    let pool = open_on(&first);
    let handle = create(&pool);
    pool.enlarge(Some(600 << 20)).unwrap();
    let chunks = fill_far(&handle);
    handle.flush().unwrap();
    pool.checkpoint().unwrap();
    let report = pool.check().unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    drop((handle, pool));
    let left = first.power_cycle();
    let pool = open_on(&left);
    assert_eq!(pool.check().unwrap().data_chunks, chunks);
    let handle = open(&pool);
    // Emptied, its pages go too.
    handle.discard(0, 1 << 30).unwrap();
    handle.flush().unwrap();
    while pool.maintain().unwrap().more {}
    for _ in 0..3 {
        pool.checkpoint().unwrap();
    }
    let report = pool.check().unwrap();
    assert!(
        report.problems.is_empty() && report.data_chunks == 0,
        "{report:?}"
    );
    drop((handle, pool));
    let pool = open_on(&left.power_cycle());
    assert_eq!(pool.check().unwrap().data_chunks, 0);
}

/// Maps more chunks than the bitmap had room for.
fn fill_far(handle: &VersionHandle) -> u64 {
    let zeros = vec![0; 64 * CHUNK as usize];
    let mut at = 0;
    while at < 560 << 20 {
        handle.write(at, &zeros, Durability::Cached).unwrap();
        at += zeros.len() as u64;
    }
    at / CHUNK
}

#[test]
fn j3_no_superblock_of_before_or_after_is_left_where_the_pool_does_not_end() {
    let (first, pool) = small_pool(8);
    let old_end = first.size_bytes().unwrap();
    pool.enlarge(Some(old_end + 64 * CHUNK)).unwrap();
    pool.close().unwrap();
    drop(pool);
    let has_superblock = |device: &SimDevice, end: u64| device.peek(end - 4096, 8) == *b"QRYTHIN\0";
    assert!(!has_superblock(&first, old_end) && has_superblock(&first, old_end + 64 * CHUNK));
    // A later growth is cut short after its tail copy was written, and before any other.
    let larger = first.fork(1);
    larger.grow(old_end + 128 * CHUNK).unwrap();
    let stale = first.peek(old_end + 64 * CHUNK - 8192, 4096);
    larger.overwrite(old_end + 128 * CHUNK - 8192, &stale);
    larger.overwrite(old_end + 128 * CHUNK - 4096, &stale);
    drop(Pool::open(larger.clone(), OpenOptions::default()).unwrap());
    assert!(!has_superblock(&larger, old_end + 128 * CHUNK));
}

/// What is to happen before a call that changes a medium, and before how many more.
type Event = (u64, Box<dyn FnOnce() + Send>);

/// A medium that lets something happen before its `nth` call that changes it.
struct Interrupted {
    medium: Arc<SimDevice>,
    calls: Mutex<Option<Event>>,
}

impl Interrupted {
    /// Lets `happen` before the `nth` such call from now, 0 being the next.
    fn before(&self, nth: u64, happen: impl FnOnce() + Send + 'static) {
        *self.calls.lock().unwrap() = Some((nth, Box::new(happen)));
    }

    fn count(&self) {
        let due = {
            let mut calls = self.calls.lock().unwrap();
            match calls.take() {
                Some((0, happen)) => Some(happen),
                Some((nth, happen)) => {
                    *calls = Some((nth - 1, happen));
                    None
                }
                None => None,
            }
        };
        if let Some(happen) = due {
            happen();
        }
    }
}

impl PoolDevice for Interrupted {
    fn size_bytes(&self) -> io::Result<u64> {
        self.medium.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.medium.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.count();
        self.medium.write_at(offset, data)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.count();
        self.medium.write_zeroes(offset, length)
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.medium.discard(offset, length)
    }

    fn flush(&self) -> io::Result<()> {
        self.count();
        self.medium.flush()
    }

    fn grow(&self, least_bytes: u64) -> io::Result<u64> {
        self.medium.grow(least_bytes)
    }

    fn direct_file(&self) -> Option<DirectFile<'_>> {
        None
    }
}

/// Grows a full pool; before the `nth` call on its medium another thread writes, with a flush each time, as much as fits, and
/// then the power goes. Returns whether there was such a call, and how many writes were answered.
fn write_and_cut_while_growing(nth: u64) -> (bool, u64) {
    let (medium, pool) = small_pool(9);
    drop(pool);
    let device = Arc::new(Interrupted {
        medium: Arc::clone(&medium),
        calls: Mutex::default(),
    });
    let pool = Pool::open(device.clone(), OpenOptions::default()).unwrap();
    let handle = create(&pool);
    let next = fill(&handle, 0);
    handle.flush().unwrap();
    let answered = Arc::new(AtomicU64::new(0));
    let happen = {
        let (handle, answered, medium) = (Arc::clone(&handle), Arc::clone(&answered), Arc::clone(&medium));
        move || {
            let (done, is_done) = mpsc::channel();
            std::thread::spawn(move || {
                // What the reserve lets go of first is old space: the new one is behind it.
                for chunk in next.. {
                    let data = Stamp(chunk + 1).bytes(chunk * CHUNK, CHUNK as usize);
                    match handle.write(chunk * CHUNK, &data, Durability::Flushed) {
                        Ok(()) => answered.fetch_add(1, Ordering::Relaxed),
                        Err(_) => break,
                    };
                }
                // When it had to wait for the growth, nobody listens any more.
                let _ = done.send(());
            });
            let _ = is_done.recv_timeout(Duration::from_millis(200));
            medium.cut_power_at(0);
        }
    };
    device.before(nth, happen);
    let _ = pool.enlarge(Some((2 << 20) + 20 * CHUNK));
    let was_cut = medium.is_cut();
    let answered = answered.load(Ordering::Relaxed);
    // Whoever still waits finds the pool stopped and lets go of it.
    drop((handle, pool));
    let pool = Pool::open(medium.power_cycle(), OpenOptions::default())
        .unwrap_or_else(|error| panic!("J1: before call {nth}: {error}"));
    let handle = open(&pool);
    verify(&pool, &handle, next + answered, &format!("J1: before call {nth}"));
    (was_cut, answered)
}

#[test]
fn j1_a_write_that_is_answered_while_a_pool_grows_survives_a_cut() {
    let mut calls = 0;
    while write_and_cut_while_growing(calls).0 {
        calls += 1;
    }
    assert!(calls > 8, "a growth of {calls} calls");
}
