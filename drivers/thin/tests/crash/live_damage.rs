//! Damage under a pool that is in use, to what it has in memory and would not read again before a restart needs it: a check finds it,
//! and what the pool can write again is whole after a crash.

use std::sync::Arc;

use quarry_contract::{DataSource, Durability, OpenMode, VersionId, VolumeId, VolumeKey, VolumeSpec};
use quarry_thin::sim::{SimDevice, Stamp};
use quarry_thin::{DeviceSet, OpenOptions, Pool};
use uuid::Uuid;

use crate::gated::{Call, GatedDevice};
use crate::repair::{CHUNK, new_pool_on, new_pool_on_two};

/// Takes writes after the last checkpoint; the others do not.
const BUSY: u128 = 1;
const ENCRYPTED: u128 = 2;
const CHECKSUMMED: u128 = 3;

fn id(number: u128) -> VolumeId {
    VolumeId(Uuid::from_u128(number))
}

fn key() -> VolumeKey {
    VolumeKey::new([7; 32])
}

/// A pool on two devices with a volume of every kind, a checkpoint, and a log behind it.
struct Live {
    media: [Arc<SimDevice>; 2],
    pool: Arc<Pool>,
}

impl Live {
    fn new() -> Self {
        let (media, pool) = new_pool_on_two([4, 4]);
        Self::on(media, pool)
    }

    /// As [`new`](Self::new), with the first device behind a gate.
    fn behind_gate() -> (Self, Arc<GatedDevice>) {
        let media = [SimDevice::new(4 << 20, 1), SimDevice::new(4 << 20, 2)];
        let gate = GatedDevice::new(media[0].clone());
        let pool = new_pool_on([gate.clone(), media[1].clone()]);
        (Self::on(media, pool), gate)
    }

    fn on(media: [Arc<SimDevice>; 2], pool: Arc<Pool>) -> Self {
        let spec = |number| VolumeSpec::new(id(number), 1 << 30, DataSource::Blank);
        pool.create_volume(&spec(BUSY)).expect("a volume");
        pool.create_encrypted_volume(&spec(ENCRYPTED), &key())
            .expect("an encrypted volume");
        let checksummed = VolumeSpec {
            checksums: true,
            ..spec(CHECKSUMMED)
        };
        pool.create_volume(&checksummed).expect("a checksummed volume");
        let live = Self { media, pool };
        for volume in [BUSY, ENCRYPTED, CHECKSUMMED] {
            live.write(volume, 0);
        }
        while live.pool.maintain().expect("maintaining").more {}
        live.pool.checkpoint().expect("a checkpoint");
        for chunk in 1..4 {
            live.write(BUSY, chunk);
        }
        live
    }

    fn write(&self, volume: u128, chunk: u64) {
        let handle = self
            .pool
            .open_version(VersionId::Volume(id(volume)), OpenMode::ReadWrite);
        let data = Stamp(chunk + 1).bytes(chunk * CHUNK, CHUNK as usize);
        handle
            .expect("opening it")
            .write(chunk * CHUNK, &data, Durability::Flushed)
            .expect("writing");
    }

    /// Writes chunks from this one on, in one batch.
    fn write_many(&self, first: u64) {
        let handle = self
            .pool
            .open_version(VersionId::Volume(id(BUSY)), OpenMode::ReadWrite);
        let handle = handle.expect("opening it");
        for chunk in first..first + 110 {
            let data = Stamp(chunk + 1).bytes(chunk * CHUNK, CHUNK as usize);
            handle
                .write(chunk * CHUNK, &data, Durability::Cached)
                .expect("writing");
        }
        handle.flush().expect("flushing");
    }

    fn problems(&self) -> Vec<String> {
        self.pool.check().expect("a check").problems
    }

    fn flip(&self, address: u64) {
        self.media[(address >> 52) as usize].flip_bit(address & ((1 << 52) - 1), 3);
    }

    fn block(&self, address: u64) -> Vec<u8> {
        self.media[(address >> 52) as usize].peek(address & ((1 << 52) - 1), 4096)
    }

    /// Opens what a crash leaves, and reads what the busy volume was given.
    fn crash(self, what: &str) {
        drop(self.pool);
        let media = self.media.map(|medium| medium.power_cycle());
        let set = DeviceSet::with(media[0].clone(), vec![media[1].clone() as _]);
        let pool = Pool::open_set(set, OpenOptions::default());
        let pool = pool.unwrap_or_else(|error| panic!("{what}: after a crash: {error}"));
        pool.unlock_version(VersionId::Volume(id(ENCRYPTED)), &key())
            .unwrap_or_else(|error| panic!("{what}: after a crash: {error}"));
        let after = Self { media, pool };
        for (volume, chunks) in [(BUSY, 4), (ENCRYPTED, 1), (CHECKSUMMED, 1)] {
            let handle = after
                .pool
                .open_version(VersionId::Volume(id(volume)), OpenMode::ReadOnly);
            let handle = handle.expect("opening it");
            for chunk in 0..chunks {
                let mut bytes = vec![0; CHUNK as usize];
                handle.read(chunk * CHUNK, &mut bytes).expect("reading");
                assert!(
                    bytes == Stamp(chunk + 1).bytes(chunk * CHUNK, CHUNK as usize),
                    "{what}: chunk {chunk} of volume {volume} after a crash"
                );
            }
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Addresses of both copies of a page.
type Copies = [u64; 2];

/// Decodes the page pointer at a place of a block.
fn pointer(bytes: &[u8], at: usize) -> Copies {
    [word(bytes, at) * 4096, word(bytes, at + 8) * 4096]
}

/// Where the metadata of a [`Live`] pool is (docs/formats/pool.md).
struct Layout {
    directory: u64,
    bitmap: u64,
    log: Vec<u64>,
    index: Copies,
    rows: Copies,
    /// Of the volumes in their order.
    roots: [Copies; 3],
    keys: [u64; 2],
    sums: Copies,
    table_top: Copies,
}

impl Layout {
    fn of(live: &Live) -> Self {
        let superblock = live.block(0);
        let side = u64::from(superblock[148]);
        let directory = word(&superblock, 96) + side * word(&superblock, 104) * 4096;
        let bitmap_side = u64::from(live.block(directory)[4]);
        let (log_start, log_blocks) = (word(&superblock, 80), word(&superblock, 88));
        let first_batch = word(&superblock, 152);
        let log = (0..log_blocks)
            .map(|block| log_start + block * 4096)
            .filter(|offset| {
                let block = live.block(*offset);
                block.starts_with(b"QRYBATCH") && word(&block, 24) >= first_batch
            })
            .collect();
        let index = pointer(&superblock, 168);
        let page = live.block(index[0]);
        assert_eq!(page[..24], [0; 24], "the index stream has one page");
        let mut words = page[32..]
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_le_bytes(*word));
        let mut next = || words.next().expect("the stream goes on");
        let pointers = |next: &mut dyn FnMut() -> u64| -> Vec<Copies> {
            let count = next();
            (0..count)
                .map(|_| {
                    let copies = [next() * 4096, next() * 4096];
                    next();
                    copies
                })
                .collect()
        };
        let bitmap_pages = pointers(&mut next);
        assert!(bitmap_pages.is_empty(), "the bitmap has no pages");
        let rows = pointers(&mut next)[0];
        for _ in 0..3 * next() {
            next();
        }
        for _ in 0..3 * next() {
            next();
        }
        for _ in 0..next() {
            next();
        }
        assert_eq!(next(), 1, "one key area");
        let chunk_at = |chunk: u64| {
            let first = word(&superblock, 136) - word(&superblock, 216);
            match chunk.checked_sub(first) {
                None => word(&superblock, 128) + chunk * CHUNK,
                Some(second) => word(&superblock, 224) + second * CHUNK,
            }
        };
        let keys = [next(), next()].map(chunk_at);
        let sums = pointers(&mut next)[0];
        let table_top = pointers(&mut next)[0];
        let row_page = live.block(rows[0]);
        let root_of = |volume: u128| {
            let mut rows = row_page.chunks(128);
            let row = rows.find(|row| row[8..24] == *id(volume).0.as_bytes());
            pointer(row.expect("the volume's row"), 48)
        };
        Self {
            directory,
            bitmap: word(&superblock, 112) + bitmap_side * 4096,
            log,
            index,
            rows,
            roots: [BUSY, ENCRYPTED, CHECKSUMMED].map(root_of),
            keys,
            sums,
            table_top,
        }
    }
}

/// Blocks that are damaged together.
struct Damage {
    what: &'static str,
    /// Which byte of which block.
    at: Vec<u64>,
    /// What a finding says.
    says: &'static str,
    /// Whether the pool writes it anew.
    is_healed: bool,
}

fn every_class(live: &Live) -> Vec<Damage> {
    let layout = Layout::of(live);
    let end = word(&live.block(0), 64);
    let written = |what, at: &[u64], says| Damage {
        what,
        at: at.to_vec(),
        says,
        is_healed: true,
    };
    let left = |what, at: &[u64], says| Damage {
        is_healed: false,
        ..written(what, at, says)
    };
    let second = 1 << 52;
    let child = |page: Copies| pointer(&live.block(page[0]), 0);
    let leaf = child(child(child(layout.roots[1])));
    let last = *layout.log.last().expect("a log");
    assert!(layout.log.len() >= 3, "{} batches", layout.log.len());
    vec![
        written("superblock copy 0", &[64], "superblock copy 0"),
        written("superblock copy 1", &[4096 + 64], "superblock copy 1"),
        written("superblock copy 2", &[end - 8192 + 64], "superblock copy 2"),
        written("superblock copy 3", &[end - 4096 + 64], "superblock copy 3"),
        written("the directory", &[layout.directory + 1], "bitmap directory"),
        written("a bitmap block", &[layout.bitmap + 9], "chunk bitmap"),
        written(
            "a copy of the index",
            &[layout.index[0] + 40],
            "index stream page",
        ),
        written(
            "the index",
            &layout.index.map(|copy| copy + 40),
            "index stream page",
        ),
        written("a copy of the rows", &[layout.rows[1] + 40], "version table page"),
        written(
            "the rows",
            &layout.rows.map(|copy| copy + 40),
            "version table page",
        ),
        left("a copy of a root", &[layout.roots[1][0]], "level 3 page"),
        left("a copy of a leaf", &[leaf[1]], "level 0 page"),
        left(
            "a copy of a page of sums",
            &[layout.sums[1] + 5],
            "page of checksums",
        ),
        left(
            "a copy of the table's top",
            &[layout.table_top[0] + 5],
            "top page of the chunk table",
        ),
        left(
            "a page of the table",
            &child(layout.table_top),
            "page of the chunk table",
        ),
        left("a copy of a key", &[layout.keys[1] + 60], "one copy of the key"),
        written("the first batch", &[layout.log[0] + 30], "redo log"),
        written("a batch", &[layout.log[1] + 70], "redo log"),
        written("the last batch", &[last + 30], "redo log"),
        written("a replaced root", &layout.roots[0], "page that was replaced"),
        written("a copy of it", &[layout.roots[0][0]], "page that was replaced"),
        written("label copy 0", &[second + 20], "label 0 of device"),
        written("label copy 1", &[second + 4096 + 20], "label 1 of device"),
        written("both label copies", &[second, second + 4096], "label 1 of device"),
    ]
}

#[test]
fn every_live_metadata_block_that_is_flipped_is_found_by_an_online_check() {
    let classes = every_class(&Live::new()).len();
    for class in 0..classes {
        let live = Live::new();
        assert_eq!(live.problems(), Vec::<String>::new(), "before");
        let damage = every_class(&live).swap_remove(class);
        let what = damage.what;
        damage.at.iter().for_each(|at| live.flip(*at));
        let problems = live.problems();
        let found = problems.iter().find(|problem| problem.contains(damage.says));
        let found = found.unwrap_or_else(|| panic!("{what}: not found, but {problems:?}"));
        assert_eq!(
            found.ends_with("; it has been written anew"),
            damage.is_healed,
            "{what}: {found}"
        );
        let again = live.problems();
        assert_eq!(again.is_empty(), damage.is_healed, "{what}: then {again:?}");
        live.crash(what);
    }
}

/// Leaves out the ids of devices, which differ from pool to pool.
fn without_ids(problems: Vec<String>) -> Vec<String> {
    let without = |problem: String| {
        let words = problem.split(' ').filter(|word| Uuid::parse_str(word).is_err());
        words.collect::<Vec<_>>().join(" ")
    };
    problems.into_iter().map(without).collect()
}

#[test]
fn damage_that_no_write_puts_right_is_found_though_checkpoints_go_on_beside_the_check() {
    let classes = every_class(&Live::new()).len();
    for class in 0..classes {
        let damaged = || {
            let (live, gate) = Live::behind_gate();
            let damage = every_class(&live).swap_remove(class);
            damage.at.iter().for_each(|at| live.flip(*at));
            (live, gate, damage)
        };
        let (live, ..) = damaged();
        let alone = without_ids(live.problems());
        let (live, gate, Damage { what, is_healed, .. }) = damaged();
        let problems = std::thread::scope(|scope| {
            let (at_gate, waiting) = gate.hold(Call::Read);
            let check = scope.spawn(|| live.problems());
            at_gate.recv().expect("a check reads");
            // More than the log takes, and what replaces pages that have been replaced since the check began.
            for chunk in 4..30 {
                live.write(BUSY, chunk);
            }
            live.pool.checkpoint().expect("a checkpoint");
            live.write(BUSY, 30);
            live.pool.checkpoint().expect("a checkpoint");
            drop(waiting);
            without_ids(check.join().expect("the check"))
        });
        match is_healed {
            false => assert_eq!(problems, alone, "{what}"),
            // A checkpoint may have come first.
            true => assert!(
                problems.iter().all(|problem| alone.contains(problem)),
                "{what}: {problems:?}"
            ),
        }
        live.crash(what);
    }
}

#[test]
fn a_pool_with_nothing_to_write_writes_what_is_damaged() {
    let live = Live::new();
    live.pool.checkpoint().expect("a checkpoint");
    let layout = Layout::of(&live);
    live.flip(layout.directory + 1);
    assert_eq!(live.problems().len(), 1);
    assert_eq!(live.problems(), Vec::<String>::new());
    assert_ne!(Layout::of(&live).directory, layout.directory, "on its other side");
    live.crash("the directory of an idle pool");
}

#[test]
fn a_pool_that_has_stopped_says_what_is_damaged_and_writes_nothing() {
    let live = Live::new();
    let short = Layout::of(&live).log.len();
    // So long that none carries two.
    (0..3).for_each(|batch| live.write_many(4 + batch * 110));
    let two_batches = Layout::of(&live).log[short..short + 2].to_vec();
    two_batches.iter().for_each(|batch| live.flip(batch + 70));
    live.flip(1 << 52);
    drop(live.pool);
    let media = live.media;
    let read_only = OpenOptions {
        access: quarry_thin::Access::ReadOnly,
        ..OpenOptions::default()
    };
    let set = DeviceSet::with(media[0].clone(), vec![media[1].clone() as _]);
    let refused = Pool::open_set(Arc::clone(&set), read_only.clone()).map(drop);
    assert!(refused.is_err_and(|error| error.to_string().contains("log")));
    two_batches
        .iter()
        .for_each(|batch| media[0].flip_bit(batch + 70, 3));
    let pool = Pool::open_set(set, read_only).expect("the log is whole again");
    two_batches
        .iter()
        .for_each(|batch| media[0].flip_bit(batch + 70, 3));
    let before = media.each_ref().map(|medium| medium.counts().changes());
    let report = pool.check().expect("a check");
    assert_eq!(report.problems.len(), 2, "{:?}", report.problems);
    assert!(report.problems[0].contains("redo log"), "{:?}", report.problems);
    assert_eq!(
        report.beyond_repair,
        report.problems[..1],
        "two batches of the log are beyond repair"
    );
    assert_eq!(media.each_ref().map(|medium| medium.counts().changes()), before);
}
