//! Versions in any order: what control calls ask of the medium, and what becomes of the space of deleted ones.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quarry_contract::{
    DataSource, Durability, OpenMode, Outcome, PoolStatus, SnapshotId, SnapshotSpec, VersionId, VolumeId,
    VolumeSpec,
};
use quarry_thin::sim::{OpCounts, SimDevice, Stamp};
use quarry_thin::{FormatOptions, OpenOptions, Pool, ThinBackend, VersionHandle};
use uuid::Uuid;

const CHUNK: u64 = 16 << 10;
/// What one leaf of a map covers.
const LEAF: u64 = 512 * CHUNK;
/// The size of every volume here.
const SIZE: u64 = 1024 * LEAF;

fn volume_id(number: u128) -> VolumeId {
    VolumeId(Uuid::from_u128(number))
}

fn snapshot_id(number: u128) -> SnapshotId {
    SnapshotId(Uuid::from_u128(0x5_0000 + number))
}

fn fresh() -> (Arc<SimDevice>, Arc<Pool>) {
    let device = SimDevice::new(256 << 20, 1);
    let format = FormatOptions {
        chunk_bytes: CHUNK as u32,
        log_bytes: 1 << 20,
        ..FormatOptions::default()
    };
    Pool::format(&*device, &format).expect("formatting");
    let pool = open(&device);
    (device, pool)
}

fn open(device: &Arc<SimDevice>) -> Arc<Pool> {
    Pool::open(Arc::clone(device) as Arc<_>, OpenOptions::default()).expect("opening the pool")
}

fn create(pool: &Pool, number: u128, source: DataSource) {
    let spec = VolumeSpec::new(volume_id(number), SIZE, source);
    let created = pool.create_volume(&spec).expect("creating a volume");
    assert!(matches!(created, Outcome::Changed(_)));
}

fn snapshot(pool: &Pool, number: u128, volume: u128) {
    let spec = SnapshotSpec {
        id: snapshot_id(number),
        volume: volume_id(volume),
    };
    pool.create_snapshots(&[spec]).expect("taking a snapshot");
}

fn volume(pool: &Arc<Pool>, number: u128) -> Arc<VersionHandle> {
    let id = VersionId::Volume(volume_id(number));
    pool.open_version(id, OpenMode::ReadWrite)
        .expect("opening a volume")
}

/// Writes one whole chunk at the start of each of these leaves.
fn write_leaves(handle: &VersionHandle, leaves: impl Iterator<Item = u64>, stamp: u64) {
    for leaf in leaves {
        let data = Stamp(stamp).bytes(leaf * LEAF, CHUNK as usize);
        handle
            .write(leaf * LEAF, &data, Durability::Cached)
            .expect("writing");
    }
    handle.flush().expect("flushing");
}

fn maintain(pool: &Pool) {
    while pool.maintain().expect("maintaining").more {}
}

fn assert_sound(pool: &Pool) {
    let report = pool.check().expect("checking");
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

/// Calls each control call once on a pool in which volume 1 and its snapshot 1 map `leaves` leaves, of which no page is in
/// memory, beside `others` snapshots. Returns what each asked of the device.
fn costs(leaves: u64, others: u128) -> Vec<(&'static str, OpCounts)> {
    let (device, pool) = fresh();
    create(&pool, 1, DataSource::Blank);
    create(&pool, 2, DataSource::Blank);
    let handle = volume(&pool, 1);
    write_leaves(&handle, 0..leaves, 1);
    snapshot(&pool, 1, 1);
    write_leaves(&handle, 0..leaves, 2);
    for other in 0..others {
        snapshot(&pool, 100 + other, 1 + other % 2);
    }
    drop(handle);
    pool.close().expect("closing");
    drop(pool);
    let pool = open(&device);
    let mut costs = Vec::new();
    let mut measure = |what, call: &dyn Fn()| {
        let before = device.counts();
        call();
        let after = device.counts();
        let cost = OpCounts {
            reads: after.reads - before.reads,
            writes: after.writes - before.writes,
            discards: after.discards - before.discards,
            flushes: after.flushes - before.flushes,
            allocations: after.allocations - before.allocations,
            read_bytes: after.read_bytes - before.read_bytes,
            written_bytes: after.written_bytes - before.written_bytes,
        };
        costs.push((what, cost));
    };
    measure("create", &|| create(&pool, 10, DataSource::Blank));
    measure("snapshot", &|| snapshot(&pool, 2, 1));
    measure("clone of a snapshot", &|| {
        create(&pool, 11, DataSource::Snapshot(snapshot_id(1)));
    });
    measure("clone of a volume", &|| {
        create(&pool, 12, DataSource::Volume(volume_id(1)));
    });
    measure("extend", &|| {
        pool.extend_volume(volume_id(1), SIZE + LEAF).expect("extending");
    });
    measure("revert to an old snapshot", &|| {
        let reverted = pool.revert_volume(volume_id(1), snapshot_id(1));
        assert!(matches!(reverted, Ok(Outcome::Changed(_))));
    });
    measure("delete a snapshot", &|| {
        pool.delete_snapshot(snapshot_id(1)).expect("deleting");
    });
    measure("delete a volume", &|| {
        pool.delete_volume(volume_id(1)).expect("deleting");
    });
    measure("status", &|| assert_eq!(pool.status().volume_count, 4));
    costs
}

#[test]
fn no_control_call_reads_a_map_or_costs_more_in_a_larger_one() {
    let small = costs(1, 0);
    for (what, cost) in &small {
        assert_eq!(cost.reads, 0, "{what} reads");
        assert!(
            cost.written_bytes <= 4096,
            "{what} writes {} bytes",
            cost.written_bytes
        );
    }
    assert_eq!(costs(900, 0), small, "900 times as much is mapped");
    assert_eq!(costs(3, 1500), small, "there are 1,500 more snapshots");
}

/// Returns the leaves that differ and how many reads of the device it took to tell, by a pool that has just been opened.
fn differing_leaves(device: &Arc<SimDevice>, of: VersionId, since: VersionId) -> (Vec<u64>, u64) {
    let pool = open(device);
    let before = device.counts().reads;
    let found = pool.differences(of, Some(since), 0, 1000).expect("comparing");
    let reads = device.counts().reads - before;
    assert_eq!(found.next_bytes, None);
    assert!(
        found.runs.iter().all(|run| run.length == CHUNK && !run.zeros),
        "V9: {found:?}"
    );
    let leaves = found.runs.iter().map(|run| run.offset / LEAF).collect();
    pool.close().expect("closing");
    (leaves, reads)
}

#[test]
fn differences_read_as_much_as_has_changed() {
    /// Pages from the root of a map to a leaf: three levels above the leaves.
    const HEIGHT: u64 = 4;
    let (device, pool) = fresh();
    create(&pool, 1, DataSource::Blank);
    write_leaves(&volume(&pool, 1), 0..900, 1);
    snapshot(&pool, 1, 1);
    create(&pool, 2, DataSource::Snapshot(snapshot_id(1)));
    create(&pool, 3, DataSource::Snapshot(snapshot_id(1)));
    // As far from each other as they can be, so that they have little more than a root in common.
    write_leaves(&volume(&pool, 1), [5, 400, 890].into_iter(), 2);
    write_leaves(&volume(&pool, 2), [7, 500, 890].into_iter(), 3);
    write_leaves(&volume(&pool, 3), [300].into_iter(), 4);
    pool.close().expect("closing");
    drop(pool);

    let [original, second, third] = [1, 2, 3].map(|number| VersionId::Volume(volume_id(number)));
    let old = VersionId::Snapshot(snapshot_id(1));
    for (of, since, leaves) in [
        (original, old, vec![5, 400, 890]),
        (old, original, vec![5, 400, 890]),
        (second, old, vec![7, 500, 890]),
        (second, third, vec![7, 300, 500, 890]),
        (original, second, vec![5, 7, 400, 500, 890]),
    ] {
        let (found, reads) = differing_leaves(&device, of, since);
        let name = format!("{of:?} since {since:?}");
        assert_eq!(found, leaves, "{name}");
        let most = 2 * HEIGHT * leaves.len() as u64;
        assert!((1..=most).contains(&reads), "{name}: {reads} reads");
    }
    let (found, reads) = differing_leaves(&device, old, old);
    assert_eq!((found, reads <= 2), (Vec::new(), true), "{reads} reads");
}

#[test]
fn a_reclaim_goes_on_where_a_power_cut_stopped_it_and_tells_what_is_left() {
    const LEAVES: u64 = 900;
    let (device, pool) = fresh();
    create(&pool, 1, DataSource::Blank);
    write_leaves(&volume(&pool, 1), 0..LEAVES, 1);
    assert_eq!(pool.status().reclaim_debt_bytes, 0);
    pool.delete_volume(volume_id(1)).expect("deleting");
    let status = pool.status();
    assert_eq!(status.reclaim_debt_bytes, LEAVES * CHUNK);
    assert_eq!(
        status.reclaimable_bytes,
        LEAVES * CHUNK,
        "nothing else has any of it"
    );

    let mut before_the_cut = 0;
    while pool.status().reclaim_debt_bytes > LEAVES * CHUNK / 2 {
        before_the_cut += pool.maintain().expect("maintaining").reclaimed_leaves;
    }
    // Any commit makes it durable how far the reclaim is.
    create(&pool, 2, DataSource::Blank);
    let device = device.power_cycle();
    drop(pool);
    let pool = open(&device);
    let left = pool.status().reclaim_debt_bytes;
    assert!(left <= LEAVES * CHUNK / 2, "{left} bytes are left after the cut");
    assert!(left > 0);
    let mut after_the_cut = 0;
    while pool.status().reclaim_debt_bytes > 0 {
        after_the_cut += pool.maintain().expect("maintaining").reclaimed_leaves;
    }
    assert_eq!(before_the_cut + after_the_cut, LEAVES, "none twice");
    maintain(&pool);
    let stat = pool.stat();
    assert_eq!((stat.data_chunks, stat.dead_versions), (0, 0));
    assert_eq!(pool.status().reclaimable_bytes, 0);
    assert_sound(&pool);
}

#[test]
fn what_a_reclaim_frees_does_not_pile_up_until_it_has_ended() {
    const LEAVES: u64 = 900;
    const CHUNKS_A_LEAF: u64 = 12;
    let (_, pool) = fresh();
    create(&pool, 1, DataSource::Blank);
    let handle = volume(&pool, 1);
    for leaf in 0..LEAVES {
        let data = vec![1; (CHUNKS_A_LEAF * CHUNK) as usize];
        handle
            .write(leaf * LEAF, &data, Durability::Cached)
            .expect("writing");
    }
    drop(handle);
    pool.delete_volume(volume_id(1)).expect("deleting");
    let mut most = 0;
    while pool.maintain().expect("maintaining").more {
        let status = pool.status();
        most = most.max((status.reclaimable_bytes - status.reclaim_debt_bytes) / CHUNK);
    }
    assert_eq!(pool.stat().data_chunks, 0);
    let a_step = 64 * CHUNKS_A_LEAF;
    assert!(most <= 4096 + a_step, "{most} chunks were waiting for one commit");
}

/// A pool that reclaims this much a second, with one volume.
fn paced(device_bytes: u64, reclaim_leaves_per_second: u32) -> Arc<Pool> {
    let device = SimDevice::new(device_bytes, 1);
    let format = FormatOptions {
        chunk_bytes: CHUNK as u32,
        log_bytes: 1 << 20,
        ..FormatOptions::default()
    };
    Pool::format(&*device, &format).expect("formatting");
    let options = OpenOptions {
        reclaim_leaves_per_second,
        ..OpenOptions::default()
    };
    let pool = Pool::open(device, options).expect("opening the pool");
    create(&pool, 1, DataSource::Blank);
    pool
}

/// Runs the background work, deletes the volume, and returns how long it takes until `done`.
fn time_until(pool: &Arc<Pool>, done: impl Fn(&PoolStatus) -> bool) -> Duration {
    let backend = ThinBackend::new(Arc::clone(pool)).expect("starting the backend");
    pool.delete_volume(volume_id(1)).expect("deleting");
    let begin = Instant::now();
    while !done(&pool.status()) {
        assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", pool.status());
        std::thread::sleep(Duration::from_millis(5));
    }
    let taken = begin.elapsed();
    backend.shutdown().expect("closing");
    taken
}

#[test]
fn the_background_reclaims_at_the_rate_that_is_set() {
    let pool = paced(256 << 20, 100);
    write_leaves(&volume(&pool, 1), 0..300, 1);
    let taken = time_until(&pool, |status| status.reclaim_debt_bytes == 0);
    // Nothing waits for the last step, of 64 leaves at most.
    assert!(taken >= Duration::from_millis(2300), "300 leaves took {taken:?}");
}

#[test]
fn the_background_hurries_while_the_pool_is_short_of_space() {
    // One step of 64 leaves a minute, and each gives back one chunk.
    let pool = paced(18 << 20, 1);
    let handle = volume(&pool, 1);
    let chunk = vec![1; CHUNK as usize];
    let written = (0..SIZE / LEAF)
        .take_while(|leaf| handle.write(leaf * LEAF, &chunk, Durability::Cached).is_ok())
        .count();
    assert!((400..1024).contains(&written), "{written} leaves fill the pool");
    drop(handle);
    let total = pool.status().total_bytes;
    assert!(pool.status().free_bytes < total / 16);
    time_until(&pool, |status| status.free_bytes > total / 16 + 64 * CHUNK);
}

/// Indices of the chunks that generation `number` writes: some that others write too, and one of its own.
fn written_by(number: u64) -> [u64; 4] {
    [number % 7, 10 + number % 5, 600 + number % 3, 2000 + number]
}

fn write_chunks(handle: &VersionHandle, chunks: &[u64], stamp: u64) {
    for chunk in chunks {
        let data = Stamp(stamp).bytes(chunk * CHUNK, CHUNK as usize);
        handle
            .write(chunk * CHUNK, &data, Durability::Cached)
            .expect("writing");
    }
}

/// What the volume of the last of `generations` holds: for each chunk the generation that wrote it.
fn contents_after(generations: u64) -> std::collections::BTreeMap<u64, u64> {
    (1..=generations)
        .flat_map(|number| written_by(number).map(|chunk| (chunk, number)))
        .collect()
}

fn assert_contents(pool: &Arc<Pool>, number: u64) {
    let handle = volume(pool, u128::from(number));
    for (chunk, stamp) in contents_after(number) {
        let mut found = vec![0; CHUNK as usize];
        handle.read(chunk * CHUNK, &mut found).expect("reading");
        let expected = Stamp(stamp).bytes(chunk * CHUNK, CHUNK as usize);
        assert!(
            found == expected,
            "V4: chunk {chunk} of generation {number} was written by {stamp}"
        );
    }
}

/// Makes generation `number` a clone of the one before, through a snapshot or straight from the volume, and writes.
fn generation(pool: &Arc<Pool>, number: u64) {
    let before = u128::from(number) - 1;
    let source = match number {
        1 => DataSource::Blank,
        odd if odd % 2 == 1 => DataSource::Volume(volume_id(before)),
        _ => {
            snapshot(pool, before, before);
            DataSource::Snapshot(snapshot_id(before))
        }
    };
    create(pool, u128::from(number), source);
    write_chunks(&volume(pool, u128::from(number)), &written_by(number), number);
}

const GENERATIONS: u64 = 50;

#[test]
fn fifty_generations_of_clones_whose_ancestors_are_deleted_hold_exactly_what_the_last_one_maps() {
    // The order of the deletes: from the oldest, from the latest, and neither.
    for step in [1, GENERATIONS - 2, 11] {
        let (_, pool) = fresh();
        (1..=GENERATIONS).for_each(|number| generation(&pool, number));
        let distinct = 4 * GENERATIONS;
        maintain(&pool);
        assert_eq!(
            pool.stat().data_chunks,
            distinct,
            "each chunk written is kept once"
        );
        for turn in 0..GENERATIONS - 1 {
            let number = 1 + turn * step % (GENERATIONS - 1);
            pool.delete_volume(volume_id(u128::from(number)))
                .expect("deleting a volume");
            pool.delete_snapshot(snapshot_id(u128::from(number)))
                .expect("deleting a snapshot");
            if turn % 8 == 0 {
                maintain(&pool);
                assert_contents(&pool, GENERATIONS);
            }
        }
        maintain(&pool);
        let stat = pool.stat();
        let mapped = contents_after(GENERATIONS).len() as u64;
        assert_eq!(stat.data_chunks, mapped, "deletes in steps of {step}");
        assert_eq!(
            (stat.volumes, stat.snapshots, stat.dead_versions),
            (1, 0, 0),
            "no ancestor is left"
        );
        assert_contents(&pool, GENERATIONS);
        assert_sound(&pool);
    }
}

#[test]
fn space_does_not_grow_with_the_generations_when_each_replaces_the_one_before() {
    let (_, pool) = fresh();
    for number in 1..=3 * GENERATIONS {
        generation(&pool, number);
        if number > 1 {
            let before = u128::from(number - 1);
            pool.delete_snapshot(snapshot_id(before)).expect("deleting");
            pool.delete_volume(volume_id(before)).expect("deleting");
        }
        maintain(&pool);
        let stat = pool.stat();
        assert_eq!(
            (stat.data_chunks, stat.dead_versions),
            (contents_after(number).len() as u64, 0),
            "after generation {number}"
        );
    }
    assert_contents(&pool, 3 * GENERATIONS);
    assert_sound(&pool);
}

#[test]
fn an_ancestor_is_kept_while_two_branches_live_and_no_longer() {
    let (_, pool) = fresh();
    create(&pool, 1, DataSource::Blank);
    let first: Vec<u64> = (0..64).collect();
    write_chunks(&volume(&pool, 1), &first, 1);
    create(&pool, 2, DataSource::Volume(volume_id(1)));
    // Both branches overwrite what they have in common: nobody can see it, but it is not given back yet.
    write_chunks(&volume(&pool, 1), &first, 2);
    write_chunks(&volume(&pool, 2), &first, 3);
    maintain(&pool);
    assert_eq!(pool.stat().data_chunks, 3 * 64);
    assert_eq!(pool.status().reclaim_debt_bytes, 0, "nothing is due");
    pool.delete_volume(volume_id(1)).expect("deleting");
    maintain(&pool);
    let stat = pool.stat();
    assert_eq!((stat.data_chunks, stat.dead_versions), (64, 0));
    assert_sound(&pool);
}
