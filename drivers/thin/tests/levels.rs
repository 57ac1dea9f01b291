//! The levels of a filling pool: who may still do what, and that it goes back.

use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use quarry_contract::{
    DataSource, DriverError, Durability, ErrorKind, IoError, OpenMode, PoolName, SnapshotId, SnapshotSpec,
    SpaceLevel, VersionId, VolumeId, VolumeSpec,
};
use quarry_thin::sim::{SimDevice, Stamp};
use quarry_thin::{FormatOptions, OpenOptions, Pool, SpaceLevels, Threshold, VersionHandle};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};
use uuid::Uuid;

const CHUNK: u64 = 64 << 10;

struct Filling {
    device: Arc<SimDevice>,
    pool: Arc<Pool>,
}

fn options() -> OpenOptions {
    OpenOptions {
        levels: SpaceLevels {
            warn: Threshold::Percent(50),
            brake: Threshold::Percent(30),
            critical: Threshold::Bytes(100 * CHUNK - 1),
        },
        ..OpenOptions::default()
    }
}

fn id(number: u128) -> VolumeId {
    VolumeId(Uuid::from_u128(number))
}

impl Filling {
    fn new(options: OpenOptions) -> Self {
        let device = SimDevice::new(64 << 20, 1);
        let format = FormatOptions {
            chunk_bytes: CHUNK as u32,
            log_bytes: 1 << 20,
            ..FormatOptions::default()
        };
        Pool::format(device.as_ref(), &format).unwrap();
        let pool = Pool::open(device.clone(), options).unwrap();
        Self { device, pool }
    }

    fn create(&self, number: u128, source: DataSource) -> Result<Arc<VersionHandle>, DriverError> {
        let spec = VolumeSpec::new(id(number), 1 << 30, source);
        self.pool.create_volume(&spec)?;
        Ok(self.open(number))
    }

    fn open(&self, number: u128) -> Arc<VersionHandle> {
        let version = VersionId::Volume(id(number));
        self.pool.open_version(version, OpenMode::ReadWrite).unwrap()
    }

    fn snapshot(&self, number: u128, volume: u128) -> Result<(), DriverError> {
        let spec = SnapshotSpec {
            id: SnapshotId(Uuid::from_u128(number)),
            volume: id(volume),
        };
        self.pool.create_snapshots(&[spec]).map(drop)
    }

    fn level(&self) -> SpaceLevel {
        self.pool.status().space.level
    }

    /// Writes chunk after chunk until the pool is at `level`; returns the next chunk.
    fn fill_to(&self, handle: &VersionHandle, mut next: u64, level: SpaceLevel) -> u64 {
        while self.level() < level {
            map(handle, next).unwrap_or_else(|error| panic!("on the way to {level:?}: {error}"));
            next += 1;
        }
        assert_eq!(self.level(), level);
        next
    }
}

fn map(handle: &VersionHandle, chunk: u64) -> Result<(), IoError> {
    let data = Stamp(1 + chunk).bytes(chunk * CHUNK, CHUNK as usize);
    handle.write(chunk * CHUNK, &data, Durability::Cached)
}

fn is_refused<T>(result: Result<T, DriverError>) -> bool {
    matches!(result, Err(error) if error.kind() == ErrorKind::Full)
}

#[test]
fn a4_each_level_begins_where_it_is_told_to_and_stops_whom_it_says() {
    let filling = Filling::new(options());
    let pool = &filling.pool;
    let ordinary = filling.create(1, DataSource::Blank).unwrap();
    let reserved = filling.create(2, DataSource::Blank).unwrap();
    assert!(pool.reserve_volume(id(2), true).unwrap().is_changed());
    let space = pool.status().space;
    assert_eq!(space.level, SpaceLevel::Normal);
    assert_eq!(space.critical_bytes, 100 * CHUNK, "whole chunks, rounded up");
    assert!(space.reserve_bytes > 0 && space.available_bytes > space.warn_bytes);

    let next = filling.fill_to(&ordinary, 0, SpaceLevel::Warn);
    let space = pool.status().space;
    assert!(
        space.available_bytes <= space.warn_bytes && space.available_bytes + 8 * CHUNK > space.warn_bytes
    );
    filling.snapshot(10, 1).expect("everything still works");
    pool.delete_snapshot(SnapshotId(Uuid::from_u128(10))).unwrap();

    let next = filling.fill_to(&ordinary, next, SpaceLevel::Brake);
    assert!(is_refused(filling.create(3, DataSource::Blank)), "a blank volume");
    let spec = VolumeSpec {
        reserved: true,
        ..VolumeSpec::new(id(5), 1 << 30, DataSource::Blank)
    };
    assert!(pool.create_volume(&spec).expect("a reserved volume").is_changed());
    assert!(
        is_refused(filling.create(3, DataSource::Volume(id(1)))),
        "a clone"
    );
    assert!(is_refused(filling.snapshot(11, 1)), "a snapshot");
    filling.snapshot(12, 2).expect("a snapshot of a reserved volume");
    let snapshot = SnapshotId(Uuid::from_u128(12));
    filling
        .create(4, DataSource::Snapshot(snapshot))
        .expect("its clone");
    pool.extend_volume(id(1), 2 << 30)
        .expect("an extend takes no space");

    let mut next = filling.fill_to(&ordinary, next, SpaceLevel::Critical);
    while map(&ordinary, next).is_ok() {
        next += 1;
    }
    let space = pool.status().space;
    assert!(space.available_bytes >= space.critical_bytes, "A4: {space:?}");
    let clone = filling.open(4);
    assert!(
        matches!(map(&clone, 0), Err(IoError::NoSpace)),
        "V11: it is not reserved itself"
    );
    map(&ordinary, next - 1).expect("V8: what is mapped stays writable");
    let mut taken = 0;
    while map(&reserved, taken).is_ok() {
        taken += 1;
    }
    assert!(taken >= 95, "A4: {taken} chunks for the reserved volume");
    assert_eq!(filling.level(), SpaceLevel::Reserve);
    map(&reserved, 0).expect("V8: what is mapped stays writable");

    // And back: discards and deletes work at the end of it.
    reserved
        .discard(0, taken * CHUNK)
        .expect("V8: a discard in a full pool");
    drop((clone, reserved));
    pool.delete_volume(id(4)).expect("V8: a delete in a full pool");
    while pool.maintain().unwrap().more {}
    pool.checkpoint().unwrap();
    let again = pool.status().space;
    assert!(
        again.available_bytes >= space.available_bytes,
        "{again:?}, {space:?}"
    );
    // The ordinary volume had stopped just at the level.
    ordinary.discard((next - 8) * CHUNK, 8 * CHUNK).unwrap();
    ordinary.flush().unwrap();
    while pool.maintain().unwrap().more {}
    assert_eq!(filling.level(), SpaceLevel::Brake);
    ordinary.discard(0, next * CHUNK).unwrap();
    ordinary.flush().unwrap();
    while pool.maintain().unwrap().more {}
    assert_eq!(filling.level(), SpaceLevel::Normal);
    filling.create(3, DataSource::Blank).expect("there is room again");
}

#[test]
fn a_pool_told_of_no_brake_and_no_critical_level_takes_all_from_everybody() {
    let filling = Filling::new(OpenOptions::default());
    let ordinary = filling.create(1, DataSource::Blank).unwrap();
    let mut next = filling.fill_to(&ordinary, 0, SpaceLevel::Warn);
    while map(&ordinary, next).is_ok() {
        next += 1;
    }
    let space = filling.pool.status().space;
    assert_eq!((space.level, space.available_bytes), (SpaceLevel::Reserve, 0));
    filling
        .create(2, DataSource::Blank)
        .expect("a volume takes no space");
}

#[test]
fn v11_a_reserved_volume_is_one_after_a_power_cut_and_a_revert() {
    let Filling { device, pool } = Filling::new(options());
    let filling = Filling { device, pool };
    drop(filling.create(1, DataSource::Blank).unwrap());
    filling.snapshot(10, 1).unwrap();
    assert!(filling.pool.reserve_volume(id(1), true).unwrap().is_changed());
    assert!(!filling.pool.reserve_volume(id(1), true).unwrap().is_changed());
    map(&filling.open(1), 0).unwrap();
    filling
        .pool
        .revert_volume(id(1), SnapshotId(Uuid::from_u128(10)))
        .unwrap();
    let reopened = Pool::open(filling.device.power_cycle(), options()).unwrap();
    assert!(reopened.volume(id(1)).unwrap().reserved);
    reopened.checkpoint().unwrap();
    assert!(reopened.reserve_volume(id(1), false).unwrap().is_changed());
    let missing = reopened.reserve_volume(id(7), true).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

/// What the log is told of the levels of a pool, in order.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<(Level, String)>>>);

impl Told {
    /// The pool that is listened to: the log is one for all tests of this process.
    const POOL: &str = "told";

    fn take(&self) -> Vec<(Level, String)> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Subscriber for Told {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if let (Some(level), true) = (fields.level, fields.pool == Self::POOL) {
            self.0.lock().unwrap().push((*event.metadata().level(), level));
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// The fields of an event that tells of a level.
#[derive(Default)]
struct Fields {
    pool: String,
    level: Option<String>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "level" {
            self.level = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "pool" {
            self.pool = format!("{value:?}");
        }
    }
}

#[test]
fn each_level_is_told_once_on_the_way_up_and_once_on_the_way_back() {
    let told = Told::default();
    tracing::subscriber::set_global_default(told.clone()).unwrap();
    let filling = Filling::new(OpenOptions {
        name: PoolName::parse(Told::POOL).unwrap(),
        ..options()
    });
    let reserved = filling.create(1, DataSource::Blank).unwrap();
    filling.pool.reserve_volume(id(1), true).unwrap();
    // A level is told by the next turn of the background at the latest.
    let settle = || {
        reserved.flush().unwrap();
        while filling.pool.maintain().unwrap().more {}
    };
    let mut filled = 0;
    while map(&reserved, filled).is_ok() {
        settle();
        filled += 1;
    }
    // What is refused, and what is written again, crosses nothing.
    for chunk in 0..20 {
        map(&reserved, filled + chunk).unwrap_err();
        map(&reserved, chunk).unwrap();
        settle();
    }
    let warned = ["warn", "brake", "critical", "reserve"].map(|name| (Level::WARN, name.to_owned()));
    assert_eq!(told.take(), warned);
    for chunk in (0..filled).rev() {
        reserved.discard(chunk * CHUNK, CHUNK).unwrap();
        settle();
    }
    let relieved = ["critical", "brake", "warn", "normal"].map(|name| (Level::INFO, name.to_owned()));
    assert_eq!(told.take(), relieved);
}
