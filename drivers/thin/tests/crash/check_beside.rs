//! A check that stands still at any of its reads, and writes, checkpoints and all else beside it: nobody waits for it, it finds nothing that
//! is not so, and it gives way where space is short (check, CK1 to CK3).

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use quarry_contract::{
    DataSource, Durability, ErrorKind, IoError, OpenMode, SnapshotId, SnapshotSpec, VersionId, VolumeId,
    VolumeSpec,
};
use quarry_thin::sim::{SimDevice, Stamp};
use quarry_thin::{CheckReport, FormatOptions, OpenOptions, Pool, PoolDevice, PoolError, VersionHandle};
use uuid::Uuid;

use crate::gated::{Call, GatedDevice};

const CHUNK: u64 = 16 << 10;
/// What a leaf of a map covers, in bytes.
const LEAF: u64 = 512 * CHUNK;
/// Of the log, and so the most commits that one checkpoint is good for.
const LOG_BLOCKS: u64 = 16;
const PLAIN: u128 = 1;
const CHECKSUMMED: u128 = 2;
/// Nobody who does not wait for the check takes as long.
const DEADLINE: Duration = Duration::from_secs(20);

fn id(number: u128) -> VolumeId {
    VolumeId(Uuid::from_u128(number))
}

fn data(offset: u64) -> Vec<u8> {
    Stamp(offset / CHUNK + 1).bytes(offset, CHUNK as usize)
}

struct Beside {
    medium: Arc<SimDevice>,
    gate: Arc<GatedDevice>,
    pool: Arc<Pool>,
}

impl Beside {
    /// A pool with two volumes of so many leaves and a snapshot; the second half of the leaves, and one behind them, have changed since the last
    /// checkpoint.
    fn new(mib: u64, leaves: u64) -> Self {
        let medium = SimDevice::new(mib << 20, 1);
        let gate = GatedDevice::new(Arc::clone(&medium));
        let format = FormatOptions {
            chunk_bytes: CHUNK as u32,
            log_bytes: LOG_BLOCKS * 4096,
            ..FormatOptions::default()
        };
        Pool::format(&*gate, &format).expect("formatting");
        let options = OpenOptions {
            cache_bytes: 0,
            ..OpenOptions::default()
        };
        let pool = Pool::open(Arc::clone(&gate) as Arc<dyn PoolDevice>, options).expect("opening");
        let beside = Self { medium, gate, pool };
        for volume in [PLAIN, CHECKSUMMED] {
            let spec = VolumeSpec {
                checksums: volume == CHECKSUMMED,
                ..VolumeSpec::new(id(volume), 1 << 40, DataSource::Blank)
            };
            beside.pool.create_volume(&spec).expect("a volume");
            for leaf in 0..leaves {
                beside.write(volume, leaf * LEAF);
            }
        }
        beside.snapshot(1);
        while beside.pool.maintain().expect("maintaining").more {}
        beside.pool.checkpoint().expect("a checkpoint");
        // Of the last one nobody changes anything any more: its page is stored as it is.
        for leaf in leaves / 2..=leaves {
            beside.write(PLAIN, leaf * LEAF + CHUNK);
        }
        beside
    }

    fn handle(&self, volume: u128) -> Arc<VersionHandle> {
        let id = VersionId::Volume(id(volume));
        self.pool
            .open_version(id, OpenMode::ReadWrite)
            .expect("opening it")
    }

    fn write(&self, volume: u128, offset: u64) {
        let written = self
            .handle(volume)
            .write(offset, &data(offset), Durability::Flushed);
        written.expect("writing");
    }

    fn snapshot(&self, number: u128) {
        let spec = SnapshotSpec {
            id: SnapshotId(Uuid::from_u128(number << 64)),
            volume: id(PLAIN),
        };
        self.pool.create_snapshots(&[spec]).expect("a snapshot");
    }

    /// More commits than the log takes without a checkpoint, in all leaves; versions that come and go; and what checkpoints free, others
    /// use again.
    fn work(&self, leaves: u64) {
        for chunk in 2..2 + 2 * LOG_BLOCKS {
            self.write(PLAIN, chunk % leaves * LEAF + chunk * CHUNK);
        }
        self.snapshot(2);
        self.pool
            .delete_snapshot(SnapshotId(Uuid::from_u128(1 << 64)))
            .expect("deleting it");
        while self.pool.maintain().expect("maintaining").more {}
        for round in 0..3 {
            for volume in [PLAIN, CHECKSUMMED] {
                for leaf in 0..leaves {
                    self.write(volume, leaf * LEAF + (100 + round) * CHUNK);
                }
            }
            self.handle(PLAIN)
                .discard(round * LEAF, CHUNK)
                .expect("discarding");
            self.pool.checkpoint().expect("a checkpoint");
        }
    }

    /// Runs a check of which the read stands still that comes after so many others, and `work` meanwhile; `None` when there is no such read.
    fn check(&self, reads: u64, work: impl FnOnce() + Send) -> Option<Result<CheckReport, PoolError>> {
        thread::scope(|scope| {
            let (at_gate, waiting) = self.gate.hold_after(reads, Call::Read);
            let check = scope.spawn(|| {
                let report = self.pool.check();
                self.gate.open();
                report
            });
            if at_gate.recv().is_err() {
                let report = check.join().expect("the check").expect("a check");
                assert_eq!(report.problems, Vec::<String>::new());
                return None;
            }
            let (done, is_done) = mpsc::channel();
            scope.spawn(move || {
                work();
                // Nobody listens when it was too late.
                let _ = done.send(());
            });
            let in_time = is_done.recv_timeout(DEADLINE);
            drop(waiting);
            let report = check.join().expect("the check");
            in_time.unwrap_or_else(|_| {
                panic!("CK2: who works beside a check that stands at read {reads} waits for it")
            });
            Some(report)
        })
    }

    fn assert_sound(self, when: &str, leaves: u64) {
        let report = self.pool.check().expect("a check");
        assert_eq!(report.problems, Vec::<String>::new(), "{when}: the next check");
        let medium = self.medium.power_cycle();
        drop(self.pool);
        let pool = Pool::open(medium, OpenOptions::default()).expect("after a crash");
        let report = pool.check().expect("a check");
        assert_eq!(report.problems, Vec::<String>::new(), "{when}: after a crash");
        for volume in [PLAIN, CHECKSUMMED] {
            let handle = pool.open_version(VersionId::Volume(id(volume)), OpenMode::ReadOnly);
            let handle = handle.expect("opening it");
            for leaf in 0..leaves {
                let offset = leaf * LEAF + 102 * CHUNK;
                let mut found = vec![0; CHUNK as usize];
                handle.read(offset, &mut found).expect("reading");
                assert!(
                    found == data(offset),
                    "{when}: {offset} of volume {volume} after a crash"
                );
            }
        }
    }
}

#[test]
fn ck1_ck2_nobody_waits_for_a_check_that_stands_still_and_it_finds_nothing_that_is_not_so() {
    const LEAVES: u64 = 6;
    for reads in 0.. {
        let beside = Beside::new(16, LEAVES);
        let Some(report) = beside.check(reads, || beside.work(LEAVES)) else {
            assert!(reads > 50, "{reads} reads");
            break;
        };
        let problems = report.expect("a check").problems;
        assert_eq!(problems, Vec::<String>::new(), "CK1: at read {reads}");
        beside.assert_sound(&format!("at read {reads}"), LEAVES);
    }
}

/// Writes to all leaves, which a checkpoint stores elsewhere, and then as much as fits, beside a check or alone; returns how much fitted.
fn fill(is_checked: bool) -> u64 {
    const LEAVES: u64 = 40;
    let beside = Beside::new(8, LEAVES);
    let fill = || {
        for leaf in 0..LEAVES {
            beside.write(PLAIN, leaf * LEAF + 2 * CHUNK);
        }
        beside.pool.checkpoint().expect("a checkpoint");
        let handle = beside.handle(CHECKSUMMED);
        let fits = |chunk: &u64| match handle.write(chunk * CHUNK, &data(chunk * CHUNK), Durability::Cached) {
            Ok(()) => true,
            Err(IoError::NoSpace) => false,
            Err(error) => panic!("chunk {chunk}: {error}"),
        };
        (1..512).take_while(fits).count() as u64
    };
    let mut fitted = 0;
    match is_checked {
        false => fitted = fill(),
        true => {
            let ended = beside.check(20, || fitted = fill());
            let Some(Err(error @ PoolError::CheckGaveWay)) = ended else {
                panic!("CK3: {ended:?}");
            };
            let error = error.into_driver_error("default");
            assert_eq!(error.kind(), ErrorKind::Conflict, "it can be repeated");
            assert!(error.to_string().contains("space of pool default"), "{error}");
        }
    }
    let report = beside.pool.check().expect("a check of a full pool");
    assert_eq!(report.problems, Vec::<String>::new());
    fitted
}

#[test]
fn ck3_a_check_takes_no_space_from_a_pool_that_gets_full_and_says_that_it_gave_way() {
    let (alone, beside) = (fill(false), fill(true));
    assert!(alone < 511, "it never got full");
    assert!(
        beside >= alone,
        "{beside} chunks fit beside a check, {alone} without"
    );
}
