//! Both copies of a page of a map lost: what is below it is fenced and named, and everything else goes on
//! (docs/decisions/0012-lost-map-pages.md).

use std::sync::Arc;

use quarry_contract::{
    DataSource, Durability, IoError, OpenMode, ScrubState, SnapshotId, SnapshotSpec, VersionId, VolumeId,
    VolumeSpec,
};
use quarry_thin::sim::SimDevice;
use quarry_thin::{
    Access, DeviceSet, Discarded, FormatOptions, OpenOptions, Pool, PoolDevice, VersionHandle, repair,
};

const CHUNK: u64 = 16 << 10;
const MIB: u64 = 1 << 20;
/// What a leaf of a map is for.
const LEAF_BYTES: u64 = 512 * CHUNK;

fn volume_id(number: u128) -> VolumeId {
    VolumeId(uuid::Uuid::from_u128(number))
}

fn spec(number: u128) -> VolumeSpec {
    VolumeSpec::new(volume_id(number), 4 * LEAF_BYTES, DataSource::Blank)
}

fn open(device: &Arc<SimDevice>) -> Arc<Pool> {
    Pool::open(device.clone(), OpenOptions::default()).unwrap()
}

fn volume(pool: &Arc<Pool>, number: u128) -> Arc<VersionHandle> {
    let id = VersionId::Volume(volume_id(number));
    pool.open_version(id, OpenMode::ReadWrite).unwrap()
}

fn write(handle: &VersionHandle, offset: u64, seed: u8) {
    let data = vec![seed; 4 * CHUNK as usize];
    handle.write(offset, &data, Durability::Flushed).unwrap();
}

fn is_fenced(handle: &VersionHandle, offset: u64) -> bool {
    let mut found = [0; 512];
    match handle.read(offset, &mut found) {
        Ok(()) => false,
        Err(IoError::Medium { .. }) => true,
        Err(error) => panic!("{error}"),
    }
}

fn new_pool() -> (Arc<SimDevice>, Arc<Pool>) {
    let device = SimDevice::new(8 * MIB, 5);
    let options = FormatOptions {
        chunk_bytes: CHUNK as u32,
        log_bytes: 64 << 10,
        ..FormatOptions::default()
    };
    Pool::format(device.as_ref(), &options).unwrap();
    let pool = open(&device);
    (device, pool)
}

/// Volumes 1 to 3, version 1 to 3 of the pool, with something below two leaves each.
fn stored() -> Arc<SimDevice> {
    let (device, pool) = new_pool();
    for number in 1..=3 {
        pool.create_volume(&spec(number)).unwrap();
        let handle = volume(&pool, number);
        write(&handle, 0, number as u8);
        write(&handle, LEAF_BYTES, 0x10 + number as u8);
    }
    pool.close().unwrap();
    device.power_cycle()
}

/// Loses both copies of the page that a check calls so.
fn lose(stored: &SimDevice, page: &str) -> Arc<SimDevice> {
    let names_it = |device: &Arc<SimDevice>| {
        let opened = Pool::open(device.clone(), OpenOptions::default());
        opened.is_ok_and(|pool| names(&pool, page))
    };
    let is_copy = |cell: &u64| {
        let device = stored.fork(*cell);
        device.overwrite(*cell, &[0; 4096]);
        names_it(&device)
    };
    let copies: Vec<u64> = stored.written_cells().into_iter().filter(is_copy).collect();
    assert_eq!(copies.len(), 2, "{page}");
    let device = stored.fork(0);
    copies
        .into_iter()
        .for_each(|copy| device.overwrite(copy, &[0; 4096]));
    device
}

fn leaf_of_version(node: u64) -> String {
    format!("level 0 page of version {node}, for bytes 0 to {LEAF_BYTES}")
}

/// Tells whether a check names a page.
fn names(pool: &Pool, page: &str) -> bool {
    let problems = pool.check().unwrap().problems;
    problems.iter().any(|problem| problem.starts_with(page))
}

#[test]
fn what_is_below_a_lost_page_is_fenced_and_named_and_the_rest_works() {
    let device = lose(&stored(), &leaf_of_version(2));
    let pool = open(&device);
    let handle = volume(&pool, 2);
    assert!(is_fenced(&handle, 0) && is_fenced(&handle, LEAF_BYTES - 512));
    assert!(!is_fenced(&handle, LEAF_BYTES) && !is_fenced(&volume(&pool, 1), 0));
    let refused = handle.write(CHUNK, &[7; 512], Durability::Cached);
    assert!(matches!(refused, Err(IoError::Medium { .. })), "{refused:?}");
    write(&handle, LEAF_BYTES + CHUNK, 9);
    assert!(names(&pool, &leaf_of_version(2)));
    let id = SnapshotId(uuid::Uuid::from_u128(11));
    let snapshot = SnapshotSpec {
        id,
        volume: volume_id(2),
    };
    pool.create_snapshots(&[snapshot]).unwrap();
    let view = pool.open_version(VersionId::Snapshot(id), OpenMode::ReadOnly);
    let view = view.unwrap();
    assert!(is_fenced(&view, 0) && !is_fenced(&view, LEAF_BYTES));
    // The page is the snapshot's now.
    assert!(names(&pool, &leaf_of_version(4)));
    drop((handle, view));
    pool.close().unwrap();
    drop(pool);
    // A repair makes it again.
    let set = DeviceSet::of(Arc::clone(&device) as Arc<dyn PoolDevice>);
    let discarded = Discarded::StaysAway;
    let report = repair(&set, &OpenOptions::default(), Access::ReadWrite, discarded).unwrap();
    assert_eq!(report.remaining, [] as [String; 0]);
    let as_it_was = "its map is as it was";
    assert_eq!(report.rebuilt.len(), 2, "{:?}", report.rebuilt);
    assert!(
        report
            .rebuilt
            .iter()
            .all(|sentence| sentence.ends_with(as_it_was))
    );
    let pool = open(&device);
    assert!(!is_fenced(&volume(&pool, 2), 0) && !is_fenced(&volume(&pool, 3), 0));
    let mut found = vec![0; 4 * CHUNK as usize];
    volume(&pool, 2).read(0, &mut found).unwrap();
    assert_eq!(found, vec![2; 4 * CHUNK as usize]);
}

#[test]
fn without_the_chunk_table_a_repair_names_what_is_lost_and_leaves_it_alone() {
    let device = lose(&lose(&stored(), "page of the chunk table"), &leaf_of_version(2));
    let before = open(&device).status().free_bytes;
    let set = DeviceSet::of(Arc::clone(&device) as Arc<dyn PoolDevice>);
    let discarded = Discarded::MayComeBack;
    let report = repair(&set, &OpenOptions::default(), Access::ReadWrite, discarded).unwrap();
    assert!(
        report.remaining.iter().any(|problem| problem.contains("whose")),
        "{report:?}"
    );
    let pool = open(&device);
    // What is below it is not free.
    assert_eq!(pool.status().free_bytes, before);
    assert!(is_fenced(&volume(&pool, 2), 0) && !is_fenced(&volume(&pool, 3), 0));
}

/// Deletes volumes 1 to 3, of which 2 has lost this page, and lets the background work do what it can.
fn delete_all(pool: &Arc<Pool>) {
    let checksummed = VolumeSpec {
        checksums: true,
        ..spec(4)
    };
    pool.create_volume(&checksummed).unwrap();
    write(&volume(pool, 4), 0, 4);
    for number in 1..=3 {
        pool.delete_volume(volume_id(number)).unwrap();
    }
}

fn work_and_scrub(pool: &Pool) {
    assert!(pool.start_scrub().unwrap().is_changed());
    while pool.maintain().unwrap().more {}
    assert_eq!(pool.scrub_status().unwrap().state, ScrubState::Done);
}

fn dead_versions(pool: &Pool) -> Vec<u64> {
    let rows = pool.version_rows();
    rows.iter().filter(|row| row.dead).map(|row| row.node).collect()
}

#[test]
fn the_space_of_a_deleted_version_comes_back_although_a_page_of_its_map_is_lost() {
    for page in [leaf_of_version(2), "level 3 page of version 2".to_owned()] {
        let device = lose(&stored(), &page);
        let pool = open(&device);
        delete_all(&pool);
        work_and_scrub(&pool);
        assert_eq!(pool.status().reclaim_debt_bytes, 0, "{page}");
        assert_eq!(dead_versions(&pool), [], "{page}");
        assert_eq!(pool.stat().data_chunks, 4, "{page}: what volume 4 has");
        pool.close().unwrap();
        drop(pool);
        // What was below the root is not known to anybody but a repair.
        let problems = open(&device).check().unwrap().problems;
        assert_eq!(problems.is_empty(), page == leaf_of_version(2), "{problems:?}");
        let set = DeviceSet::of(Arc::clone(&device) as Arc<dyn PoolDevice>);
        let discarded = Discarded::StaysAway;
        let report = repair(&set, &OpenOptions::default(), Access::ReadWrite, discarded).unwrap();
        assert_eq!(report.remaining, [] as [String; 0], "{page}");
        assert_eq!(
            open(&device).check().unwrap().problems,
            [] as [String; 0],
            "{page}"
        );
    }
}

#[test]
fn a_power_cut_while_a_page_of_a_deleted_version_is_made_again_leaves_before_or_after() {
    let lost = lose(&stored(), &leaf_of_version(2));
    let pool = open(&lost);
    pool.delete_volume(volume_id(2)).unwrap();
    pool.close().unwrap();
    drop(pool);
    for nth in 0.. {
        let device = lost.fork(nth);
        let pool = open(&device);
        device.cut_power_at(nth);
        while pool.maintain().is_ok_and(|step| step.more) {}
        let _ = pool.close();
        drop(pool);
        let was_cut = device.is_cut();
        let device = device.power_cycle();
        let pool = open(&device);
        while pool.maintain().unwrap().more {}
        assert_eq!(dead_versions(&pool), [], "cut at {nth}");
        assert_eq!(pool.stat().data_chunks, 16, "cut at {nth}");
        pool.checkpoint().unwrap();
        assert_eq!(pool.check().unwrap().problems, [] as [String; 0], "cut at {nth}");
        if !was_cut {
            assert!(nth > 10, "{nth} changes");
            break;
        }
    }
}

#[test]
fn a_deleted_version_whose_chunks_nobody_knows_holds_up_nothing_else() {
    let without_table = lose(&stored(), "page of the chunk table");
    for page in [leaf_of_version(2), "level 3 page of version 2".to_owned()] {
        let device = lose(&without_table, &page);
        for round in 0..2 {
            let pool = open(&device);
            if round == 0 {
                delete_all(&pool);
            }
            work_and_scrub(&pool);
            // Only what version 2 has stays: eight chunks.
            let status = pool.status();
            assert_eq!(status.reclaim_debt_bytes, 8 * CHUNK, "{page}, round {round}");
            assert_eq!(dead_versions(&pool), [2], "{page}, round {round}");
            pool.close().unwrap();
        }
    }
}

/// Volume 1, checksummed: its first chunk borrows from one that is partial and nobody's, and that from a whole one which is
/// nobody's either. Returns what it holds, too.
fn stored_with_a_row() -> (Arc<SimDevice>, Vec<u8>) {
    let (device, pool) = new_pool();
    let checksummed = VolumeSpec {
        checksums: true,
        ..spec(1)
    };
    pool.create_volume(&checksummed).unwrap();
    pool.create_volume(&spec(2)).unwrap();
    write(&volume(&pool, 2), 0, 7);
    write(&volume(&pool, 1), 0, 1);
    let mut expected = vec![1; 4 * CHUNK as usize];
    let mut overwrite = |pool: &Arc<Pool>, block: u64, seed: u8| {
        let data = [seed; 4096];
        volume(pool, 1)
            .write(block * 4096, &data, Durability::Flushed)
            .unwrap();
        expected[block as usize * 4096..][..4096].fill(seed);
    };
    overwrite(&pool, 0, 2);
    overwrite(&pool, 1, 3);
    // Free chunks are looked for from the first one: what borrows comes before what lends.
    volume(&pool, 2).discard(0, 4 * CHUNK).unwrap();
    pool.close().unwrap();
    drop(pool);
    let pool = open(&device);
    overwrite(&pool, 0, 4);
    assert_eq!(row_of(&pool), (6, 2, 2));
    pool.close().unwrap();
    (device.power_cycle(), expected)
}

/// Returns how many chunks hold data, are partial, and are nobody's but lend.
fn row_of(pool: &Pool) -> (u64, u64, u64) {
    let stat = pool.stat();
    (stat.data_chunks, stat.partial_chunks, stat.orphan_chunks)
}

#[test]
fn a_partial_chunk_that_only_a_lost_page_maps_is_mapped_again_with_all_that_lends_to_it() {
    let (stored, expected) = stored_with_a_row();
    let device = lose(&stored, &leaf_of_version(1));
    let (pages, others): (Vec<String>, Vec<String>) = open(&device)
        .check()
        .unwrap()
        .problems
        .into_iter()
        .partition(|problem| problem.starts_with(&leaf_of_version(1)));
    assert_eq!(pages.len(), 2);
    // What only lends is not among them.
    let below = "4 chunks are below lost pages of maps; the chunk table says where each belongs";
    assert_eq!(others, [below]);
    let set = DeviceSet::of(Arc::clone(&device) as Arc<dyn PoolDevice>);
    let report = repair(
        &set,
        &OpenOptions::default(),
        Access::ReadWrite,
        Discarded::StaysAway,
    )
    .unwrap();
    assert_eq!(report.remaining, [] as [String; 0]);
    let pool = open(&device);
    assert_eq!(row_of(&pool), (6, 2, 2));
    let holds = |pool: &Arc<Pool>| {
        let mut found = vec![0; expected.len()];
        volume(pool, 1).read(0, &mut found).unwrap();
        assert!(found == expected);
        assert_eq!(pool.check().unwrap().problems, [] as [String; 0]);
    };
    holds(&pool);
    while pool.maintain().unwrap().more {}
    holds(&pool);
    assert_eq!(row_of(&pool), (4, 0, 0), "filled, and nothing leaks");
}

#[test]
fn what_lends_to_a_chunk_that_only_a_lost_page_of_a_deleted_version_maps_comes_back() {
    let (stored, _) = stored_with_a_row();
    let device = lose(&stored, &leaf_of_version(1));
    let pool = open(&device);
    pool.delete_volume(volume_id(1)).unwrap();
    while pool.maintain().unwrap().more {}
    assert_eq!(dead_versions(&pool), []);
    assert_eq!(row_of(&pool), (0, 0, 0));
    pool.checkpoint().unwrap();
    assert_eq!(pool.check().unwrap().problems, [] as [String; 0]);
}
