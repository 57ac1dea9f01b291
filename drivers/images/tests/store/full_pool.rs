//! Shares in a pool that fills: they are told so early, lose nothing that was flushed, and go on by themselves.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use quarry_contract::conformance::block_on;
use quarry_contract::{ShareBackend, ShareSource, ShareVersion};
use quarry_sys::filesystem::{xfs_geometry, xfs_reserve};

use crate::kit::{Folder, Pool, can_run, names, runtime, share, snapshot, snapshot_id};

const MIB: u64 = 1 << 20;
/// Larger than two looks at the pool are apart (`brake.rs`).
const DEADLINE: Duration = Duration::from_secs(20);

/// Waits until something holds.
#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn free_bytes(pool: &Pool) -> u64 {
    block_on(pool.0.pool_status()).unwrap().free_bytes
}

/// Has something else on the pool's file system take all but this much.
fn fill_up(folder: &Folder, pool: &Pool, left_bytes: u64) {
    let name = format!("filler-{left_bytes}");
    let file = File::create(folder.root().join(name)).unwrap();
    let length = i64::try_from(free_bytes(pool) - left_bytes).unwrap();
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, length).unwrap();
}

fn make_room(folder: &Folder) {
    for name in names(&folder.root()) {
        if name.starts_with("filler") {
            fs::remove_file(folder.root().join(name)).unwrap();
        }
    }
}

/// Writes a file and flushes it, a MiB at a time; tells how much was written when it fails.
fn write_until_refused(path: &Path, most_bytes: u64) -> (u64, io::Result<()>) {
    let mut file = File::create(path).unwrap();
    let block = vec![0x11; MIB as usize];
    let mut written = 0;
    while written < most_bytes {
        if let Err(error) = file.write_all(&block).and_then(|()| file.sync_data()) {
            return (written, Err(error));
        }
        written += MIB;
    }
    (written, Ok(()))
}

#[track_caller]
fn assert_no_space(result: io::Result<()>) {
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
}

fn is_working(pool: &Pool) -> bool {
    block_on(pool.0.stopped()).unwrap().is_empty()
}

/// F1.
#[test]
fn what_shares_may_write_ends_before_the_pool_does_and_comes_back() {
    if !can_run("what_shares_may_write_ends_before_the_pool_does_and_comes_back") {
        return;
    }
    let runtime = runtime();
    let _entered = runtime.enter();
    let folder = Folder::new();
    let pool = folder.open();
    for number in [1, 2] {
        pool.create(number, ShareSource::Blank).unwrap();
        pool.mount(share(number)).unwrap();
    }
    // A twentieth of it is the reserve.
    let reserve = block_on(pool.0.pool_status()).unwrap().total_bytes / 20;
    fill_up(&folder, &pool, reserve + 160 * MIB);
    let root = |number| pool.mount(share(number)).unwrap().path;
    let used = |number| {
        let ShareVersion::Share(_) = share(number) else {
            unreachable!()
        };
        block_on(pool.0.usage(share(number))).unwrap().used_bytes
    };
    let before = used(2);
    eventually("nothing is kept back", || {
        let root = File::open(root(2)).unwrap();
        xfs_reserve(&root).unwrap().wanted_blocks > xfs_geometry(&root).unwrap().data_blocks / 4
    });
    assert_eq!(used(2), before, "what is kept back is not used");
    let (written, refused) = write_until_refused(&root(1).join("much"), 220 * MIB);
    assert_no_space(refused);
    assert!(written >= 30 * MIB, "refused after {written} bytes");
    assert!(
        free_bytes(&pool) >= reserve - 10 * MIB,
        "{} bytes are left of the reserve",
        free_bytes(&pool)
    );
    assert!(is_working(&pool));
    fs::remove_file(root(1).join("much")).unwrap();
    make_room(&folder);
    eventually("it is kept back still", || {
        let root = File::open(root(2)).unwrap();
        xfs_reserve(&root).unwrap().wanted_blocks <= 8192
    });
    let (_, done) = write_until_refused(&root(2).join("more"), 150 * MIB);
    done.unwrap();
    folder.assert_tidy(&pool);
}

/// F2. Nothing sees beforehand that what is overwritten takes blocks since a snapshot shares them.
#[test]
fn a_share_survives_a_full_pool_and_says_no_space() {
    if !can_run("a_share_survives_a_full_pool_and_says_no_space") {
        return;
    }
    let runtime = runtime();
    let _entered = runtime.enter();
    let folder = Folder::new();
    let pool = folder.open();
    // The log of a clone has no blocks but those that it has in common.
    pool.create(2, ShareSource::Blank).unwrap();
    pool.snapshots(&[(2, 2)]).unwrap();
    pool.create(1, ShareSource::Snapshot(snapshot_id(2))).unwrap();
    let flushed = vec![0x77; 100 * MIB as usize];
    pool.write(share(1), "flushed", &flushed);
    let root = pool.mount(share(1)).unwrap().path;
    let file = File::options()
        .read(true)
        .write(true)
        .open(root.join("flushed"))
        .unwrap();
    file.sync_all().unwrap();
    pool.snapshots(&[(1, 1)]).unwrap();
    fill_up(&folder, &pool, 180 * MIB);
    // The log takes 64 MiB of that.
    eventually("the log shares its blocks", || free_bytes(&pool) < 120 * MIB);
    fill_up(&folder, &pool, 4 * MIB);
    // The log is written at every step, also after data is refused.
    let refused: Vec<io::Error> = (0..300)
        .filter_map(|step| {
            fs::set_permissions(&root, fs::Permissions::from_mode(0o700 + step as u32 % 8))
                .and_then(|()| File::open(&root)?.sync_all())
                .expect("the log has no room");
            file.write_all_at(&vec![0x11; MIB as usize], step % 40 * MIB)
                .and_then(|()| file.sync_all())
                .err()
        })
        .collect();
    assert!(!refused.is_empty(), "flushed without room");
    for error in refused {
        assert_no_space(Err(error));
    }
    drop(file);
    assert!(is_working(&pool), "it has stopped");
    let tail = 40 * MIB as usize;
    assert!(fs::read(root.join("flushed")).unwrap()[tail..flushed.len()] == flushed[tail..]);
    make_room(&folder);
    // Mounted as it was: nobody has done anything.
    eventually("it does not go on", || {
        fs::write(root.join("after"), b"it goes on").is_ok()
            && File::open(root.join("after")).unwrap().sync_all().is_ok()
    });
    pool.unmount(share(1)).unwrap();
    assert_eq!(pool.read(share(1), "after").unwrap(), b"it goes on");
    assert!(pool.read(snapshot(1), "flushed").unwrap() == flushed);
    folder.assert_tidy(&pool);
}

/// S11.
#[test]
fn a_share_that_has_stopped_is_told_and_mounted_anew() {
    if !can_run("a_share_that_has_stopped_is_told_and_mounted_anew") {
        return;
    }
    let runtime = runtime();
    let _entered = runtime.enter();
    let folder = Folder::new();
    let pool = folder.open();
    for number in [1, 2] {
        pool.create(number, ShareSource::Blank).unwrap();
        pool.write(share(number), "flushed", b"contents");
    }
    let root = pool.mount(share(1)).unwrap().path;
    File::open(root.join("flushed")).unwrap().sync_all().unwrap();
    // As when the device below fails it.
    let stopped = Command::new("xfs_io")
        .args(["-x", "-c", "shutdown"])
        .arg(&root)
        .status();
    assert!(stopped.unwrap().success());
    assert!(fs::read(root.join("flushed")).is_err());
    assert_eq!(block_on(pool.0.stopped()).unwrap(), [share(1)]);
    assert!(pool.is_mounted(share(1)));
    pool.unmount(share(1)).unwrap();
    assert!(is_working(&pool));
    assert_eq!(pool.read(share(1), "flushed").unwrap(), b"contents");
    pool.unmount(share(2)).unwrap();
    folder.assert_tidy(&pool);
}
