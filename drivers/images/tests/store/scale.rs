//! What many shares cost: nothing that grows with them but the time to open the pool.

use std::time::{Duration, Instant};

use quarry_contract::ShareBackend;
use quarry_contract::ShareSource;
use quarry_contract::conformance::block_on;

use crate::kit::{Folder, can_run, runtime, share_id, snapshot_id};

/// Snapshots and clones of one share, which take little of the pool.
const SNAPSHOTS: u128 = 300;

#[test]
fn hundreds_of_snapshots_are_taken_listed_and_found_again_and_none_is_mounted() {
    if !can_run("hundreds_of_snapshots_are_taken_listed_and_found_again_and_none_is_mounted") {
        return;
    }
    let runtime = runtime();
    let _entered = runtime.enter();
    let folder = Folder::new();
    let pool = folder.open();
    pool.create(1, ShareSource::Blank).unwrap();
    let start = Instant::now();
    for number in 0..SNAPSHOTS {
        pool.snapshots(&[(number, 1)]).unwrap();
    }
    let each = start.elapsed() / SNAPSHOTS as u32;
    assert!(each < Duration::from_millis(500), "a snapshot takes {each:?}");
    drop(pool);
    let start = Instant::now();
    let pool = folder.open();
    let opened = start.elapsed();
    eprintln!("a snapshot takes {each:?}, opening the pool with {SNAPSHOTS} of them {opened:?}");
    assert!(opened < Duration::from_secs(10), "opening takes {opened:?}");
    let snapshots = block_on(pool.0.snapshots()).unwrap();
    assert_eq!(snapshots.len(), SNAPSHOTS as usize);
    assert!(snapshots.iter().all(|one| one.share == share_id(1)));
    assert_eq!(snapshots[7].id, snapshot_id(7));
    folder.assert_tidy(&pool);
}
