//! The n-th answer of the kernel replaced by an error, and what a queue and its pool make of it.
//!
//! The I/O itself is the ring's own, on a real file: only how it ended is said to be otherwise. So a failed write has
//! changed the medium and a failed flush has flushed, of which nobody may make anything (D2). The other half, writes that
//! fail and change nothing, is what `tests/queue/refusals.rs` has from real file systems.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use quarry_contract::conformance::requirement::{URING, skip};
use quarry_contract::{
    BlockDevice, DataSource, Durability, IoBuffer, IoError, IoQueue, OpenMode, Request, SnapshotId,
    SnapshotSpec, Tag, Verb, VersionId, VolumeId, VolumeSpec, wait_for_completions,
};
use quarry_sys::ring::{self, Finished};
use uuid::Uuid;

use super::{VolumeDevice, Workers};
use crate::{FileDevice, FormatOptions, IoMode, OpenOptions, Pool, PoolDevice};

/// What a ring does for a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
    /// The write of a flush: a batch of the log, or the mark that settles one.
    LogWrite,
    Sync,
}

/// An error that one operation is to end with.
#[derive(Debug, Clone, Copy)]
struct Fault {
    operation: Operation,
    /// How many of them end well before.
    after: u32,
    errno: Errno,
}

thread_local! {
    /// Of the queues that this thread reaps.
    static FAULT: Cell<Option<Fault>> = const { Cell::new(None) };
}

/// Makes an operation end with the error whose turn it is, if that is now.
pub(super) fn strike(operation: Operation, finished: &mut Finished) {
    let Some(fault) = FAULT.get().filter(|fault| fault.operation == operation) else {
        return;
    };
    if fault.after > 0 {
        let after = fault.after - 1;
        return FAULT.set(Some(Fault { after, ..fault }));
    }
    FAULT.set(None);
    finished.result = Err(io::Error::from_raw_os_error(fault.errno as i32));
}

const BLOCK: u64 = 4096;
const CHUNK: u64 = 64 << 10;
const VOLUME_BYTES: u64 = 64 * CHUNK;

/// A pool on a file, a volume in it and one queue, with what each of its blocks may hold.
struct Bench {
    pool: Arc<Pool>,
    queue: Box<dyn IoQueue>,
    /// By block: the bytes that it may be found full of. The last one is what a reader sees now, unless a write of it failed.
    blocks: BTreeMap<u64, Vec<u8>>,
    /// How many runs of blocks have been written: each is full of a byte of its own.
    written: u8,
    stopped: bool,
}

fn volume_id() -> VolumeId {
    VolumeId(Uuid::from_u128(1))
}

fn open(path: &Path) -> Arc<Pool> {
    let device = Arc::new(FileDevice::open(path, IoMode::Uring).unwrap());
    Pool::open(device, OpenOptions::default()).unwrap()
}

fn open_queue(pool: &Arc<Pool>) -> Box<dyn IoQueue> {
    let handle = pool
        .open_version(VersionId::Volume(volume_id()), OpenMode::ReadWrite)
        .unwrap();
    let queue = VolumeDevice::new(handle, Workers::new()).open_queue(32).unwrap();
    let is_on_a_ring = pool.device().direct_file().is_some();
    assert!(is_on_a_ring, "nothing here is about threads");
    queue
}

impl Bench {
    fn new(path: &Path, checksums: bool) -> Self {
        let device = FileDevice::create(path, 16 << 20, IoMode::Uring).unwrap();
        let format = FormatOptions {
            log_bytes: 256 << 10,
            ..FormatOptions::default()
        };
        Pool::format(&device, &format).unwrap();
        drop(device);
        let pool = open(path);
        pool.create_volume(&VolumeSpec {
            checksums,
            ..VolumeSpec::new(volume_id(), VOLUME_BYTES, DataSource::Blank)
        })
        .unwrap();
        Self {
            queue: open_queue(&pool),
            pool,
            blocks: BTreeMap::new(),
            written: 0,
            stopped: false,
        }
    }

    /// Has requests done all at once.
    fn run(&mut self, verbs: Vec<Verb>) -> Vec<(Result<(), IoError>, Option<IoBuffer>)> {
        let count = verbs.len();
        for (tag, verb) in verbs.into_iter().enumerate() {
            let tag = Tag(tag as u64);
            self.queue.submit(Request { tag, verb }).unwrap();
        }
        self.queue.kick();
        let mut completions = Vec::new();
        wait_for_completions(&mut *self.queue, &mut completions, count).unwrap();
        completions.sort_by_key(|completion| completion.tag.0);
        let ended = completions.into_iter();
        ended
            .map(|completion| (completion.result, completion.buffer))
            .collect()
    }

    /// Writes runs of blocks, each a request of its own.
    fn write(&mut self, runs: &[(u64, u64)]) {
        let bytes: Vec<u8> = runs
            .iter()
            .map(|_| {
                self.written += 1;
                self.written
            })
            .collect();
        let verbs = runs.iter().zip(&bytes).map(|((first, count), byte)| Verb::Write {
            offset: first * BLOCK,
            buffer: IoBuffer::from_slice(&vec![*byte; (count * BLOCK) as usize]),
            durability: Durability::Cached,
        });
        let ended = self.run(verbs.collect());
        for ((result, buffer), ((first, count), byte)) in ended.into_iter().zip(runs.iter().zip(bytes)) {
            let buffer = buffer.expect("Q1: a write gives its buffer back");
            assert!(
                buffer.iter().all(|found| *found == byte),
                "Q1: as it was handed in"
            );
            match &result {
                Ok(()) => assert!(!self.stopped, "a stopped pool takes no write"),
                Err(IoError::Stopped { .. }) => assert!(self.stopped),
                Err(IoError::Medium { .. } | IoError::NoSpace) => {
                    assert!(!self.stopped);
                    assert_eq!(
                        self.pool.stopped(),
                        None,
                        "a failed write is that write's failure"
                    );
                }
                Err(error) => panic!("{error}"),
            }
            for block in *first..first + count {
                let may_be = self.blocks.entry(block).or_insert_with(|| vec![0]);
                match &result {
                    Ok(()) => may_be.push(byte),
                    // Old or new, and which of them has to be looked for.
                    Err(IoError::Medium { .. } | IoError::NoSpace) => may_be.insert(0, byte),
                    Err(_) => {}
                }
            }
            if matches!(result, Err(IoError::Medium { .. } | IoError::NoSpace)) {
                self.see(*first, *count);
            }
        }
    }

    /// Reads blocks in one request, and takes what one of those holds of which a write has failed for what it holds.
    fn see(&mut self, first: u64, count: u64) {
        let found = self.read(first, count).unwrap_or_else(|| {
            // The fault has struck this read, and there is but one.
            self.read(first, count).expect("a second read")
        });
        for (block, bytes) in (first..).zip(found.chunks(BLOCK as usize)) {
            let may_be = self.blocks.get_mut(&block).expect("it was written");
            assert!(may_be.contains(&bytes[0]), "block {block} holds {}", bytes[0]);
            may_be.push(bytes[0]);
        }
    }

    /// Reads blocks in one request; `None` when the medium refused.
    fn read(&mut self, first: u64, count: u64) -> Option<Vec<u8>> {
        let verb = Verb::Read {
            offset: first * BLOCK,
            buffer: IoBuffer::zeroed((count * BLOCK) as usize),
        };
        let (result, buffer) = self.run(vec![verb]).pop().unwrap();
        let buffer = buffer.expect("Q1: a read gives its buffer back");
        match result {
            Ok(()) => Some(buffer.to_vec()),
            Err(IoError::Medium { .. }) => None,
            Err(error) => panic!("reads go on: {error}"),
        }
    }

    fn read_all(&mut self) {
        for first in (0..VOLUME_BYTES / BLOCK).step_by(32) {
            let Some(found) = self.read(first, 32) else {
                continue;
            };
            for (block, bytes) in (first..).zip(found.chunks(BLOCK as usize)) {
                let now = self
                    .blocks
                    .get(&block)
                    .map_or(0, |may_be| may_be[may_be.len() - 1]);
                assert!(
                    bytes.iter().all(|byte| *byte == now),
                    "block {block}: {} is not {now}",
                    bytes[0]
                );
            }
        }
    }

    /// Has several flushes done at once.
    fn flush(&mut self) {
        let ended = self.run(vec![Verb::Flush, Verb::Flush, Verb::Flush]);
        for (result, _) in &ended {
            match result {
                Ok(()) => assert!(!self.stopped, "after a failed flush none succeeds"),
                Err(IoError::Stopped { .. }) => self.stopped = true,
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(self.pool.stopped().is_some(), self.stopped, "C4");
        if ended[0].0.is_ok() {
            // Durable before the first of them was answered.
            for may_be in self.blocks.values_mut() {
                *may_be = vec![may_be[may_be.len() - 1]];
            }
        }
    }

    /// First writes of parts and of whole chunks, over what a snapshot shares and over what the volume owns.
    fn live(&mut self) {
        for round in 0..3u64 {
            let first = round * 160;
            self.write(&[(first, 1), (first + 16, 16), (first + 40, 3), (first + 60, 40)]);
            self.flush();
            self.write(&[(first + 1, 1), (first + 16, 2), (first + 5, 2), (first + 64, 16)]);
            self.read_all();
            if round == 1 && !self.stopped {
                let id = SnapshotId(Uuid::from_u128(2));
                let spec = SnapshotSpec {
                    id,
                    volume: volume_id(),
                };
                self.pool.create_snapshots(&[spec]).unwrap();
                self.write(&[(first - 160, 1), (first - 144, 16), (first - 100, 40)]);
            }
            self.flush();
            self.flush();
        }
        self.read_all();
    }

    /// Does all background work, after which every chunk is free or somebody's (I1).
    fn settle(&mut self, what: &str) {
        for _ in 0..2 {
            while self.pool.maintain().unwrap().more {}
            self.pool.checkpoint().unwrap();
        }
        let stat = self.pool.stat();
        let known = stat.free_chunks + stat.data_chunks + stat.metadata_chunks;
        assert_eq!(known, stat.chunks, "{what}: not given back: {stat:?}");
    }

    /// Opens the pool again without closing it, and looks at everything.
    fn reopen_and_verify(self, path: &Path, what: &str) {
        let Self {
            pool,
            queue,
            blocks,
            stopped,
            ..
        } = self;
        if !stopped {
            let problems = pool.check().unwrap().problems;
            assert_eq!(
                problems,
                Vec::<String>::new(),
                "{what}: before it was opened again"
            );
        }
        drop(queue);
        assert_eq!(Arc::strong_count(&pool), 1, "Q4");
        drop(pool);
        let pool = open(path);
        assert_eq!(pool.check().unwrap().problems, Vec::<String>::new(), "{what}");
        let mut bench = Self {
            queue: open_queue(&pool),
            pool,
            blocks: BTreeMap::new(),
            written: 0,
            stopped: false,
        };
        for (block, may_be) in blocks {
            let found = bench.read(block, 1).expect("the medium is sound");
            assert!(
                may_be.iter().any(|byte| found.iter().all(|found| found == byte)),
                "{what}: block {block} holds {}, and may hold {may_be:?}",
                found[0]
            );
        }
        bench.write(&[(0, 64)]);
        bench.flush();
        assert!(!bench.stopped);
        // Nothing is left over of what failed.
        let Self { pool, queue, .. } = bench;
        drop(queue);
        for snapshot in pool.version_rows().iter().filter(|row| row.kind == "snapshot") {
            pool.delete_snapshot(SnapshotId(snapshot.uuid)).unwrap();
        }
        pool.delete_volume(volume_id()).unwrap();
        while pool.maintain().unwrap().more {}
        assert_eq!(pool.stat().data_chunks, 0, "{what}: chunks of nobody");
    }
}

/// Lets the n-th of these operations fail, for every n that there is; returns how many there are.
fn fail_each(operation: Operation, errno: Errno) -> u32 {
    if let Err(error) = ring::probe() {
        skip(URING, format!("io_uring is not allowed here: {error}"));
        return u32::MAX;
    }
    let mut most = 0;
    for (checksums, settles) in [(false, false), (false, true), (true, false), (true, true)] {
        for after in 0.. {
            let directory = tempfile::tempdir_in("/dev/shm").unwrap();
            let path = directory.path().join("pool");
            let mut bench = Bench::new(&path, checksums);
            let what = format!("{operation:?} {after}, checksums {checksums}, settles {settles}");
            FAULT.set(Some(Fault {
                operation,
                after,
                errno,
            }));
            bench.live();
            let struck = FAULT.take().is_none();
            let stops = matches!(operation, Operation::LogWrite | Operation::Sync);
            assert_eq!(bench.stopped, struck && stops, "{what}");
            if settles && !bench.stopped {
                bench.settle(&what);
            }
            bench.reopen_and_verify(&path, &what);
            most = most.max(after);
            if !struck {
                break;
            }
        }
    }
    most
}

#[test]
fn a_failed_write_is_that_writes_error_and_gives_its_chunks_back() {
    assert!(fail_each(Operation::Write, Errno::EIO) >= 20);
    assert!(fail_each(Operation::Write, Errno::ENOSPC) >= 20);
}

#[test]
fn a_failed_read_is_that_reads_error_and_nothing_else() {
    assert!(fail_each(Operation::Read, Errno::EIO) >= 20);
}

#[test]
fn a_failed_flush_stops_the_pool_and_loses_nothing_that_was_flushed() {
    assert!(fail_each(Operation::Sync, Errno::EIO) >= 6);
}

#[test]
fn a_failed_write_of_the_log_stops_the_pool_and_loses_nothing_that_was_flushed() {
    assert!(fail_each(Operation::LogWrite, Errno::EIO) >= 6);
}
