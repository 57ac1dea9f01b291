//! Writes that wait for space in a full pool.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quarry_contract::{
    BlockDevice, Completion, DataSource, Durability, IoBuffer, IoError, IoQueue, OpenMode, PoolState,
    Request, Tag, Verb, VersionId, VolumeId, VolumeSpec, wait_for_completions,
};
use quarry_thin::sim::SimDevice;
use quarry_thin::{
    FormatOptions, Maintainer, OnFull, OpenOptions, Pool, SpaceLevels, Threshold, VolumeDevice, Workers,
};
use uuid::Uuid;

const CHUNK: u64 = 64 << 10;
/// Longer than any of these tests may take.
const LONG: Duration = Duration::from_secs(600);

struct Full {
    pool: Arc<Pool>,
    workers: Arc<Workers>,
    _maintainer: Maintainer,
}

fn id(number: u128) -> VolumeId {
    VolumeId(Uuid::from_u128(number))
}

impl Full {
    /// A pool with two volumes, of which the first has taken all there is for ordinary ones.
    fn new(patience: Duration, critical: Threshold) -> Self {
        let device = SimDevice::new(16 << 20, 1);
        let format = FormatOptions {
            chunk_bytes: CHUNK as u32,
            log_bytes: 1 << 20,
            ..FormatOptions::default()
        };
        Pool::format(device.as_ref(), &format).unwrap();
        let options = OpenOptions {
            on_full: OnFull::Wait(patience),
            levels: SpaceLevels {
                critical,
                ..SpaceLevels::default()
            },
            ..OpenOptions::default()
        };
        let pool = Pool::open(device, options).unwrap();
        let full = Self {
            _maintainer: Maintainer::start(Arc::clone(&pool)).unwrap(),
            pool,
            workers: Workers::new(),
        };
        drop(full.volume(2));
        let device = full.volume(1);
        let mut chunk = 0;
        while device
            .handle()
            .write(chunk * CHUNK, &[1; CHUNK as usize], Durability::Cached)
            .is_ok()
        {
            chunk += 1;
        }
        assert!(chunk > 16, "{chunk} chunks fitted");
        full
    }

    fn volume(&self, number: u128) -> Arc<VolumeDevice> {
        let spec = VolumeSpec::new(id(number), 1 << 30, DataSource::Blank);
        self.pool.create_volume(&spec).unwrap();
        self.open(number)
    }

    fn open(&self, number: u128) -> Arc<VolumeDevice> {
        let version = VersionId::Volume(id(number));
        let handle = self.pool.open_version(version, OpenMode::ReadWrite).unwrap();
        VolumeDevice::new(handle, Arc::clone(&self.workers))
    }

    fn waiting(&self) -> u64 {
        self.pool.status().space.waiting_writes
    }

    fn eventually_waiting(&self, count: u64) {
        eventually(&format!("{count} writes wait"), || self.waiting() == count);
    }
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Hands a write of chunk `chunk` in.
fn write(queue: &mut dyn IoQueue, chunk: u64) {
    let verb = Verb::Write {
        offset: chunk * CHUNK,
        buffer: IoBuffer::from_slice(&[9; CHUNK as usize]),
        durability: Durability::Cached,
    };
    queue
        .submit(Request {
            tag: Tag(chunk),
            verb,
        })
        .unwrap();
    queue.kick();
}

fn next_completion(queue: &mut dyn IoQueue) -> Completion {
    let mut completions = Vec::new();
    wait_for_completions(queue, &mut completions, 1).unwrap();
    assert_eq!(completions.len(), 1);
    completions.remove(0)
}

#[test]
fn p1_freed_space_goes_to_those_that_wait_in_order() {
    let full = Full::new(LONG, Threshold::Bytes(0));
    let device = full.open(2);
    let mut queue = Arc::clone(&device).open_queue(64).unwrap();
    for chunk in 0..8 {
        write(queue.as_mut(), chunk);
        full.eventually_waiting(chunk + 1);
    }
    let space = full.pool.status().space;
    assert!(
        space.first_deadline.is_some_and(|left| left > LONG / 2),
        "{space:?}"
    );
    assert_eq!(space.refused_writes, 0);
    // What is mapped goes on meanwhile, and who does not wait takes nothing from those who do (H1).
    let first = full.open(1);
    first.handle().write(0, &[2; 4096], Durability::Flushed).unwrap();
    for chunk in 0.. {
        let before = full.waiting();
        if before == 0 {
            break;
        }
        first.handle().discard(chunk * CHUNK, CHUNK).unwrap();
        let intruder = first.handle().write(1 << 29, &[3; 4096], Durability::Cached);
        assert!(matches!(intruder, Err(IoError::NoSpace)), "H1: {intruder:?}");
        // One chunk may go to the map; then it takes another.
        let deadline = Instant::now() + Duration::from_secs(2);
        while full.waiting() == before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let mut completions = Vec::new();
    wait_for_completions(queue.as_mut(), &mut completions, 8).unwrap();
    for (chunk, completion) in (0..).zip(completions) {
        completion.result.unwrap();
        assert_eq!(completion.tag, Tag(chunk), "P1");
    }
    let mut bytes = vec![0; 8 * CHUNK as usize];
    device.handle().read(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 9));
}

#[test]
fn p2_a_write_that_waits_too_long_is_refused() {
    let full = Full::new(Duration::from_millis(200), Threshold::Bytes(0));
    let mut queue = full.open(2).open_queue(4).unwrap();
    let started = Instant::now();
    write(queue.as_mut(), 0);
    let completion = next_completion(queue.as_mut());
    assert!(
        matches!(completion.result, Err(IoError::NoSpace)),
        "{completion:?}"
    );
    assert!(started.elapsed() >= Duration::from_millis(200));
    let space = full.pool.status().space;
    assert_eq!((space.waiting_writes, space.refused_writes), (0, 1));
    assert_eq!(space.first_deadline, None);
}

#[test]
fn p2_a_queue_that_goes_does_not_wait_for_its_writes() {
    let full = Full::new(LONG, Threshold::Bytes(0));
    let mut queue = full.open(2).open_queue(4).unwrap();
    write(queue.as_mut(), 0);
    full.eventually_waiting(1);
    drop(queue);
    assert_eq!(full.waiting(), 0);
    full.pool.delete_volume(id(2)).expect("Q4: the volume is closed");
}

#[test]
fn p2_a_pool_that_closes_refuses_those_that_wait() {
    let full = Full::new(LONG, Threshold::Bytes(0));
    let mut queue = full.open(2).open_queue(4).unwrap();
    write(queue.as_mut(), 0);
    full.eventually_waiting(1);
    full.pool.close().unwrap();
    let completion = next_completion(queue.as_mut());
    assert!(
        matches!(completion.result, Err(IoError::Closed)),
        "{completion:?}"
    );
    assert_eq!(full.pool.status().state, PoolState::Up);
}

#[test]
fn a4_a_reserved_volume_does_not_wait_behind_others() {
    let full = Full::new(LONG, Threshold::Bytes(20 * CHUNK));
    let mut queue = full.open(2).open_queue(4).unwrap();
    write(queue.as_mut(), 0);
    full.eventually_waiting(1);
    full.pool.reserve_volume(id(1), true).unwrap();
    let reserved = full.open(1);
    let mut own = reserved.open_queue(4).unwrap();
    for chunk in 0..10 {
        write(own.as_mut(), 5000 + chunk);
        next_completion(own.as_mut()).result.expect("A4");
    }
    assert_eq!(full.waiting(), 1);
    // Made a reserved one itself, what waits gets on.
    full.pool.reserve_volume(id(2), true).unwrap();
    next_completion(queue.as_mut()).result.expect("A4");
}
