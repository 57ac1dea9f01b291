//! Many threads on one pool: writers of neighbouring sectors, snapshots, clones, deletes, discards, maintenance
//! and checks at once; then a power cut in the middle of it all.
//!
//! Every sector carries a version that only grows. `started`, `completed` and `flushed` bound what a read, a
//! snapshot and a recovery may find.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use quarry_contract::conformance::SplitMix;
use quarry_contract::{
    DataSource, Durability, IoError, OpenMode, SnapshotId, SnapshotSpec, VersionId, VolumeId, VolumeSpec,
};
use quarry_thin::sim::{SECTOR_BYTES, SimDevice, Stamp};
use quarry_thin::{FormatOptions, OpenOptions, Place, Planned, Pool, PoolDevice, VersionHandle};

use crate::seeds::for_each_seed;

const CHUNK: u64 = 16 << 10;
const SECTORS: u64 = 8 * CHUNK / SECTOR_BYTES;
const WRITERS: u64 = 4;

/// The history of one sector.
#[derive(Default)]
struct Sector {
    started: AtomicU64,
    completed: AtomicU64,
    flushed: AtomicU64,
}

struct Volume {
    id: VolumeId,
    handle: Arc<VersionHandle>,
    sectors: Vec<Sector>,
}

fn volume_id(number: u128) -> VolumeId {
    VolumeId(uuid::Uuid::from_u128(number))
}

fn snapshot_id(number: u64) -> SnapshotId {
    SnapshotId(uuid::Uuid::from_u128(0xffff_0000 + u128::from(number)))
}

/// Returns the version that a sector's bytes say they are.
fn version_of(bytes: &[u8], lba: u64, when: &str) -> u64 {
    let version = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    let expected = if version == 0 {
        vec![0; SECTOR_BYTES as usize]
    } else {
        Stamp(version).bytes(lba * SECTOR_BYTES, SECTOR_BYTES as usize)
    };
    assert!(bytes == expected, "{when}: sector {lba} is torn or foreign");
    version
}

/// Reads by the fast path where there is one.
fn read(pool: &Pool, handle: &VersionHandle, offset: u64, buffer: &mut [u8]) -> Result<(), IoError> {
    match handle.plan_read(offset, buffer.len()) {
        Planned::Contended | Planned::NeedsSlowPath => handle.read(offset, buffer),
        Planned::Direct(plan) => {
            for segment in &plan.segments {
                let part = &mut buffer[segment.buffer.clone()];
                match segment.place {
                    Place::Zeros => part.fill(0),
                    Place::Device(at) => pool.device().read_at(at, part).map_err(medium)?,
                }
            }
            Ok(())
        }
    }
}

/// Writes by the fast path where there is one.
fn write(pool: &Pool, handle: &VersionHandle, offset: u64, data: &[u8]) -> Result<(), IoError> {
    match handle.plan_write(offset, data.len()) {
        Planned::Contended | Planned::NeedsSlowPath => handle.write(offset, data, Durability::Cached),
        Planned::Direct(plan) => {
            for segment in &plan.segments {
                let Place::Device(at) = segment.place else {
                    panic!("a plan for an overwrite has a hole");
                };
                let part = &data[segment.buffer.clone()];
                pool.device().write_at(at, part).map_err(medium)?;
            }
            plan.guard.finish_blocking(data)
        }
    }
}

fn medium(error: std::io::Error) -> IoError {
    IoError::Medium {
        detail: error.to_string(),
    }
}

/// Writes, reads and flushes the sectors of a volume that belong to `writer` until told to stop.
fn work(pool: &Pool, volume: &Volume, writer: u64, stop: &AtomicBool, seed: u64) {
    let mut random = SplitMix::new(seed);
    while !stop.load(Ordering::Relaxed) {
        let lba = random.below(SECTORS / WRITERS) * WRITERS + writer;
        let sector = &volume.sectors[lba as usize];
        let offset = lba * SECTOR_BYTES;
        match random.below(12) {
            0 => {
                let completed: Vec<u64> = volume
                    .sectors
                    .iter()
                    .map(|one| one.completed.load(Ordering::SeqCst))
                    .collect();
                if volume.handle.flush().is_err() {
                    return;
                }
                for (one, completed) in volume.sectors.iter().zip(completed) {
                    one.flushed.fetch_max(completed, Ordering::SeqCst);
                }
            }
            1..=4 => {
                let mut bytes = [0xa5; SECTOR_BYTES as usize];
                if read(pool, &volume.handle, offset, &mut bytes).is_err() {
                    return;
                }
                let found = version_of(&bytes, lba, "B1");
                let expected = sector.completed.load(Ordering::SeqCst);
                assert_eq!(found, expected, "B1: sector {lba}, which only this thread writes");
            }
            _ => {
                let version = sector.started.fetch_add(1, Ordering::SeqCst) + 1;
                let data = Stamp(version).bytes(offset, SECTOR_BYTES as usize);
                if write(pool, &volume.handle, offset, &data).is_err() {
                    return;
                }
                sector.completed.store(version, Ordering::SeqCst);
            }
        }
    }
}

/// Maps and discards whole chunks that nobody else touches, and checks what they read.
fn churn(pool: &Pool, volume: &Volume, stop: &AtomicBool, seed: u64) {
    let mut random = SplitMix::new(seed);
    let mut version = 1;
    while !stop.load(Ordering::Relaxed) {
        let chunk = 520 + random.below(20);
        let offset = chunk * CHUNK;
        version += 1;
        let data = Stamp(version).bytes(offset, CHUNK as usize);
        let result = match random.below(3) {
            0 => volume
                .handle
                .discard(offset, CHUNK)
                .map(|()| vec![0; CHUNK as usize]),
            _ => write(pool, &volume.handle, offset, &data).map(|()| data),
        };
        let Ok(expected) = result else { return };
        let mut bytes = vec![0xa5; CHUNK as usize];
        if read(pool, &volume.handle, offset, &mut bytes).is_err() {
            return;
        }
        assert!(
            bytes == expected,
            "B1, B4: chunk {chunk}, which only this thread changes"
        );
    }
}

fn load(sectors: &[Sector], which: impl Fn(&Sector) -> &AtomicU64) -> Vec<u64> {
    sectors
        .iter()
        .map(|one| which(one).load(Ordering::SeqCst))
        .collect()
}

/// Reads the shared sectors of a version.
fn versions(handle: &VersionHandle, when: &str) -> Option<Vec<u64>> {
    let mut bytes = vec![0xa5; (SECTORS * SECTOR_BYTES) as usize];
    handle.read(0, &mut bytes).ok()?;
    let sectors = bytes.chunks(SECTOR_BYTES as usize).enumerate();
    Some(
        sectors
            .map(|(lba, sector)| version_of(sector, lba as u64, when))
            .collect(),
    )
}

fn assert_between(found: &[u64], least: &[u64], most: &[u64], when: &str) {
    for (lba, found) in found.iter().enumerate() {
        assert!(
            (least[lba]..=most[lba]).contains(found),
            "{when}: sector {lba} is at version {found}, not {}..={}",
            least[lba],
            most[lba]
        );
    }
}

/// Takes snapshots and clones under load, checks them twice and deletes them.
fn photograph(pool: &Arc<Pool>, volumes: &[Volume], stop: &AtomicBool, seed: u64) {
    let mut random = SplitMix::new(seed);
    let mut number = seed << 32;
    while !stop.load(Ordering::Relaxed) {
        number += 2;
        let both = random.below(3) == 0;
        let first = random.below(2) as usize;
        let members: Vec<usize> = if both { vec![0, 1] } else { vec![first] };
        let specs: Vec<SnapshotSpec> = members
            .iter()
            .map(|member| SnapshotSpec {
                id: snapshot_id(number + *member as u64),
                volume: volumes[*member].id,
            })
            .collect();
        let least: Vec<_> = volumes
            .iter()
            .map(|v| load(&v.sectors, |s| &s.completed))
            .collect();
        if pool.create_snapshots(&specs).is_err() {
            return;
        }
        let most: Vec<_> = volumes.iter().map(|v| load(&v.sectors, |s| &s.started)).collect();
        for (member, spec) in members.iter().zip(&specs) {
            let Ok(view) = pool.open_version(VersionId::Snapshot(spec.id), OpenMode::ReadOnly) else {
                return;
            };
            let Some(found) = versions(&view, "V4: a snapshot") else {
                return;
            };
            assert_between(&found, &least[*member], &most[*member], "V4: a snapshot");
            // A clone holds the same and goes its own way.
            let clone = VolumeSpec::new(
                volume_id(0x1000_0000 + u128::from(number) + *member as u128),
                view.size_bytes(),
                DataSource::Snapshot(spec.id),
            );
            if pool.create_volume(&clone).is_err() {
                return;
            }
            let Ok(own) = pool.open_version(VersionId::Volume(clone.id), OpenMode::ReadWrite) else {
                return;
            };
            let lba = random.below(SECTORS);
            let data = Stamp(u64::MAX - 1).bytes(lba * SECTOR_BYTES, SECTOR_BYTES as usize);
            if write(pool, &own, lba * SECTOR_BYTES, &data).is_err() {
                return;
            }
            let (Some(mut cloned), Some(again)) = (versions(&own, "a clone"), versions(&view, "V4: again"))
            else {
                return;
            };
            assert_eq!(again, found, "V4: a snapshot changed");
            assert_eq!(cloned[lba as usize], u64::MAX - 1, "B1: a clone");
            cloned[lba as usize] = found[lba as usize];
            assert_eq!(cloned, found, "V4: a clone differs from its snapshot");
            drop((view, own));
            if pool.delete_snapshot(spec.id).is_err() || pool.delete_volume(clone.id).is_err() {
                return;
            }
        }
    }
}

fn maintain(pool: &Pool, stop: &AtomicBool, seed: u64) {
    let mut random = SplitMix::new(seed);
    while !stop.load(Ordering::Relaxed) {
        let ended = match random.below(40) {
            0 => pool.checkpoint().is_err(),
            _ => pool.maintain().is_err(),
        };
        if ended {
            return;
        }
    }
}

/// Checks one time after the other. The writes beside them are never short of space.
fn check(pool: &Pool, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let report = pool.check().expect("a check under load");
        // What a check cannot read once the power is cut says nothing.
        if pool.device().size_bytes().is_err() {
            return;
        }
        assert!(
            report.problems.is_empty(),
            "check under load: {:?}",
            report.problems
        );
    }
}

fn create(pool: &Arc<Pool>, number: u128) -> Volume {
    let id = volume_id(number);
    let spec = VolumeSpec::new(id, 600 * CHUNK, DataSource::Blank);
    pool.create_volume(&spec).expect("creating a volume");
    Volume {
        id,
        handle: pool
            .open_version(VersionId::Volume(id), OpenMode::ReadWrite)
            .expect("opening it"),
        sectors: (0..SECTORS).map(|_| Sector::default()).collect(),
    }
}

/// Runs all threads for a while; `when` is called in the middle.
fn storm(pool: &Arc<Pool>, volumes: &[Volume], seed: u64, length: Duration, when: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    let stop = &stop;
    thread::scope(|scope| {
        for (number, volume) in volumes.iter().enumerate() {
            for writer in 0..WRITERS {
                let seed = seed * 100 + writer + 10 * number as u64;
                scope.spawn(move || work(pool, volume, writer, stop, seed));
            }
            scope.spawn(move || churn(pool, volume, stop, seed + number as u64));
        }
        scope.spawn(move || photograph(pool, volumes, stop, 2 * seed + 1));
        scope.spawn(move || photograph(pool, volumes, stop, 2 * seed + 2));
        scope.spawn(move || maintain(pool, stop, seed));
        scope.spawn(move || check(pool, stop));
        let deadline = Instant::now() + length;
        while Instant::now() < deadline {
            thread::park_timeout(Duration::from_millis(5));
        }
        when();
        stop.store(true, Ordering::SeqCst);
    });
}

fn format(device: &dyn PoolDevice) {
    let options = FormatOptions {
        chunk_bytes: CHUNK as u32,
        log_bytes: 256 << 10,
        ..FormatOptions::default()
    };
    Pool::format(device, &options).expect("formatting");
}

fn options() -> OpenOptions {
    OpenOptions {
        cache_bytes: 64 << 10,
        checkpoint_dirty_pages: 64,
        ..OpenOptions::default()
    }
}

#[test]
fn threads_see_their_writes_and_snapshots_stay_as_they_were() {
    let suite = "threads_see_their_writes_and_snapshots_stay_as_they_were";
    for_each_seed(suite, 4, |seed| {
        let device = SimDevice::new(64 << 20, seed);
        format(device.as_ref());
        let pool = Pool::open(device.clone(), options()).expect("opening");
        let allocated_when_new = pool.status().allocated_bytes;
        let volumes = [create(&pool, 1), create(&pool, 2)];
        storm(&pool, &volumes, seed, Duration::from_millis(1500), || {});
        for volume in &volumes {
            let found = versions(&volume.handle, "at the end").expect("reading");
            assert_eq!(found, load(&volume.sectors, |s| &s.completed), "B1: at the end");
        }
        let report = pool.check().expect("check");
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        drop(volumes);
        // What the control threads were in the middle of, too.
        for volume in pool.volumes() {
            pool.delete_volume(volume.id).expect("delete");
        }
        for snapshot in pool.snapshots() {
            pool.delete_snapshot(snapshot.id).expect("delete");
        }
        for _ in 0..2 {
            while pool.maintain().expect("maintenance").more {}
            pool.checkpoint().expect("checkpoint");
        }
        let status = pool.status();
        assert_eq!(status.allocated_bytes, allocated_when_new, "space: {status:?}");
        Ok(())
    });
}

#[test]
fn what_threads_flushed_survives_a_power_cut_in_the_middle() {
    let suite = "what_threads_flushed_survives_a_power_cut_in_the_middle";
    for_each_seed(suite, 10, |seed| {
        let device = SimDevice::new(64 << 20, seed);
        format(device.as_ref());
        let pool = Pool::open(device.clone(), options()).expect("opening");
        let volumes = [create(&pool, 1), create(&pool, 2)];
        let length = Duration::from_millis(100 + seed % 10 * 20);
        let cut = device.clone();
        storm(&pool, &volumes, seed, length, move || drop(cut.power_cycle()));
        let bounds: Vec<_> = volumes
            .iter()
            .map(|v| {
                (
                    v.id,
                    load(&v.sectors, |s| &s.flushed),
                    load(&v.sectors, |s| &s.started),
                )
            })
            .collect();
        drop((volumes, pool));
        let pool = Pool::open(device.power_cycle(), options()).expect("recovery");
        let report = pool.check().expect("check");
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        for (id, flushed, started) in bounds {
            let handle = pool
                .open_version(VersionId::Volume(id), OpenMode::ReadOnly)
                .expect("opening");
            let found = versions(&handle, "B2: after a power cut").expect("reading");
            assert_between(&found, &flushed, &started, "B2: after a power cut");
        }
        // Clones and snapshots that were in the making are whole and can go.
        for snapshot in pool.snapshots() {
            let id = VersionId::Snapshot(snapshot.id);
            let view = pool.open_version(id, OpenMode::ReadOnly).expect("opening");
            versions(&view, "V4: a snapshot after a power cut").expect("reading");
            drop(view);
            pool.delete_snapshot(snapshot.id).expect("delete");
        }
        for volume in pool.volumes() {
            pool.delete_volume(volume.id).expect("delete");
        }
        while pool.maintain().expect("maintenance").more {}
        let report = pool.check().expect("check");
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        assert_eq!(report.data_chunks, 0, "space: everything came back");
        Ok(())
    });
}
