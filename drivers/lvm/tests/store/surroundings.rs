//! What may be wrong around a store, and what is in the group beside it: each is a typed error that says what to do, and
//! nothing that is not ours is touched.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use quarry_contract::conformance::block_on;
use quarry_contract::{DriverError, ErrorKind, ShareBackend, ShareSource, ShareVersion};
use quarry_lvm::{IfAbsent, LvmBackend, StoreOptions};
use quarry_sys::filesystem::{unmount, xfs_geometry, xfs_reserve};

use crate::kit::{
    Pool, SHARE_BYTES, ThinPool, can_run, eventually, lvm, run, runtime, share, share_id, snapshot,
    snapshot_id,
};

const MIB: u64 = 1 << 20;

fn refused(options: &StoreOptions) -> DriverError {
    match LvmBackend::open(options) {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    }
}

#[test]
fn what_is_no_pool_of_shares_is_refused_and_what_is_not_ours_stays_as_it_is() {
    if !can_run("what_is_no_pool_of_shares_is_refused_and_what_is_not_ours_stays_as_it_is") {
        return;
    }
    let runtime = runtime();
    let _entered = runtime.enter();
    let thin = ThinPool::new();
    let only = |if_absent| {
        let mut options = thin.options(None);
        options.place.if_absent = if_absent;
        options
    };
    let without = |name: &str| {
        let mut options = only(IfAbsent::Create { size_bytes: None });
        options.place.volume_group = name.into();
        options
    };
    for options in [
        only(IfAbsent::Fail),
        only(IfAbsent::Create { size_bytes: None }),
        without("nothing"),
    ] {
        let error = refused(&options);
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }
    assert_eq!(thin.volumes(), Vec::<String>::new());

    // Somebody's pool, in which writes wait when it is full, with somebody's volume, which has a name that could be ours.
    let theirs = format!("quarry-{}", "share-00000000-0000-0000-0000-000000007001");
    let pool = thin.path("thin-pool");
    lvm(&["lvcreate", "--yes", "--thin", "--size", "1g", &pool]);
    let create = ["lvcreate", "--yes", "--thin", "--virtualsize", "64m", "--name"];
    lvm(&[&create[..], &[&theirs, &pool]].concat());
    let error = refused(&thin.options(None)).to_string();
    assert!(
        error.contains(&format!("lvchange --errorwhenfull y {pool}")),
        "{error}"
    );
    lvm(&["lvchange", "--errorwhenfull", "y", &pool]);
    let error = refused(&only(IfAbsent::Fail)).to_string();
    assert!(error.contains("it is no pool of shares"), "{error}");

    let opened = thin.open();
    let second = refused(&thin.options(None)).to_string();
    let holder = format!("held by process {}", std::process::id());
    assert!(second.contains(&holder), "S10: {second}");
    assert!(block_on(opened.0.shares()).unwrap().is_empty(), "it is not ours");
    let error = opened.create(1, ShareSource::Blank).unwrap_err();
    assert!(error.to_string().contains("already exists"), "{error}");
    opened.create(2, ShareSource::Blank).unwrap();
    opened.0.shutdown().unwrap();
    let uuid = opened.0.uuid();
    drop(opened);
    let opened = thin.open();
    assert_eq!(opened.0.uuid(), uuid);
    assert_eq!(block_on(opened.0.shares()).unwrap().len(), 1);
    opened.delete(share(2)).unwrap();
    opened.0.shutdown().unwrap();
    let length = lvm(&[
        "lvs",
        "--noheadings",
        "-o",
        "lv_size,lv_tags",
        &thin.path(&theirs),
    ]);
    assert_eq!(length.trim(), "64.00m", "what is not ours is as it was");
}

/// S8, S9, and what a killed tool leaves.
#[test]
fn a_share_is_its_own_volume_and_goes_on_when_it_was_left_suspended() {
    if !can_run("a_share_is_its_own_volume_and_goes_on_when_it_was_left_suspended") {
        return;
    }
    let runtime = runtime();
    let _entered = runtime.enter();
    let thin = ThinPool::new();
    let pool = thin.open();
    pool.create(1, ShareSource::Blank).unwrap();
    pool.write(share(1), "file", b"contents");
    pool.snapshot(1, 1).unwrap();
    pool.create(2, ShareSource::Snapshot(snapshot_id(1))).unwrap();
    let mounted = [share(1), share(2), snapshot(1)].map(|version| pool.mount(version).unwrap());
    // All beside each other, as the server and its clients tell them apart.
    let identities = mounted
        .each_ref()
        .map(|one| run("findmnt", &["-no", "UUID", &one.path.to_string_lossy()]));
    assert_eq!(identities[0].trim(), share_id(1).to_string());
    assert_eq!(identities[1].trim(), share_id(2).to_string());
    assert!(!identities[..2].contains(&identities[2]), "{identities:?}");
    assert_eq!(fs::read(mounted[1].path.join("file")).unwrap(), b"contents");

    // Somebody has unmounted it, and put a link in its place.
    unmount(&mounted[0].path).unwrap();
    fs::remove_dir(&mounted[0].path).unwrap();
    let elsewhere = Path::new("/run/elsewhere");
    fs::create_dir(elsewhere).unwrap();
    std::os::unix::fs::symlink(elsewhere, &mounted[0].path).unwrap();
    assert!(!pool.is_mounted(share(1)), "S8: a link elsewhere");
    assert!(pool.mount(share(1)).is_err(), "S8");
    fs::remove_file(&mounted[0].path).unwrap();
    fs::remove_dir(elsewhere).expect("S8: nothing is mounted where the link leads");
    pool.mount(share(1)).unwrap();

    drop(pool);
    let device = mounted[0].path.clone();
    let source = run("findmnt", &["-no", "SOURCE", &device.to_string_lossy()]);
    run("dmsetup", &["suspend", source.trim()]);
    let pool = thin.open();
    pool.write(share(1), "file", b"it goes on");
    assert_eq!(block_on(pool.0.mounted()).unwrap(), mounted);
    pool.0.shutdown().unwrap();
    let active = lvm(&[
        "lvs",
        "--noheadings",
        "-S",
        "lv_active=active && lv_name=~quarry",
        "-o",
        "lv_name",
    ]);
    assert_eq!(active.trim(), "", "no device is left");
}

/// F1: what shares may write ends before the pool does, and where nothing sees it beforehand, it is refused.
#[test]
fn a_full_pool_refuses_and_goes_on_when_there_is_room() {
    if !can_run("a_full_pool_refuses_and_goes_on_when_there_is_room") {
        return;
    }
    let runtime = runtime();
    let _entered = runtime.enter();
    let thin = ThinPool::new();
    let pool = thin.open();
    pool.create(1, ShareSource::Blank).unwrap();
    let written = vec![0x77; 40 * MIB as usize];
    pool.write(share(1), "file", &written);
    let root = pool.mount(share(1)).unwrap().path;
    File::open(root.join("file")).unwrap().sync_all().unwrap();
    pool.snapshot(1, 1).unwrap();
    // Somebody else's volume takes most of the pool.
    let others = thin.path("others");
    lvm(&[
        "lvcreate",
        "--yes",
        "--thin",
        "--virtualsize",
        "4g",
        "--name",
        "others",
        &thin.path("thin-pool"),
    ]);
    let mut taken = 0;
    let mut take_all_but = |left_bytes: u64| {
        let free = block_on(pool.0.pool_status()).unwrap().free_bytes;
        let device = File::options()
            .write(true)
            .open("/dev/mapper/lab--group-others")
            .unwrap();
        let block = vec![1; MIB as usize];
        for _ in 0..free.saturating_sub(left_bytes) / MIB {
            device.write_all_at(&block, taken).unwrap();
            taken += MIB;
        }
        device.sync_all().unwrap();
    };
    take_all_but(200 * MIB);
    eventually("the log shares its blocks", || {
        block_on(pool.0.pool_status()).unwrap().free_bytes < 140 * MIB
    });
    // Less than the reserve.
    take_all_but(70 * MIB);
    eventually("nothing is kept back", || {
        let root = File::open(&root).unwrap();
        xfs_reserve(&root).unwrap().wanted_blocks > xfs_geometry(&root).unwrap().data_blocks / 4
    });
    for error in [
        pool.create(2, ShareSource::Blank).unwrap_err(),
        pool.snapshot(2, 1).unwrap_err(),
        block_on(pool.0.resize_share(share_id(1), SHARE_BYTES * 2)).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    }
    take_all_but(0);
    // What is overwritten takes chunks that a snapshot shares.
    let mut file = File::options().write(true).open(root.join("file")).unwrap();
    let refused = file
        .write_all(&written)
        .and_then(|()| file.sync_all())
        .unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    drop(file);
    assert_eq!(block_on(pool.0.stopped()).unwrap(), Vec::<ShareVersion>::new());
    lvm(&["lvremove", "--yes", &others]);
    eventually("it does not go on", || {
        fs::write(root.join("after"), b"it goes on").is_ok()
            && File::open(root.join("after")).unwrap().sync_all().is_ok()
    });
    pool.snapshot(2, 1).unwrap();
    assert_eq!(pool.read(snapshot(1), "file"), Some(written), "S4");
    pool.0.shutdown().unwrap();
}

/// L3: what a revert has taken away comes back by its successor, whatever keeps that from its name.
#[test]
fn a_revert_that_can_neither_end_nor_go_back_is_ended_by_the_next_start() {
    if !can_run("a_revert_that_can_neither_end_nor_go_back_is_ended_by_the_next_start") {
        return;
    }
    let runtime = runtime();
    let _entered = runtime.enter();
    let thin = ThinPool::new();
    let name = format!("quarry-share-{}", share_id(1));
    let in_the_way = thin.path(&name);
    let thin_pool = thin.path("thin-pool");
    let on_step = move |step: &'static str| {
        if step == "taken away" {
            lvm(&[
                "lvcreate",
                "--yes",
                "--type",
                "thin",
                "--virtualsize",
                "64m",
                "--thinpool",
                &thin_pool,
                "--name",
                &name,
            ]);
        }
    };
    let pool = Pool::open(&thin.options(Some(Arc::new(on_step))));
    pool.create(1, ShareSource::Blank).unwrap();
    pool.write(share(1), "file", b"first");
    pool.snapshot(1, 1).unwrap();
    pool.write(share(1), "file", b"second");
    pool.unmount(share(1)).unwrap();
    pool.revert(1, 1).unwrap_err();
    lvm(&["lvremove", "--yes", &in_the_way]);
    drop(pool);
    let pool = thin.open();
    assert_eq!(pool.read(share(1), "file").unwrap(), b"first");
    pool.revert(1, 1).unwrap();
    pool.0.shutdown().unwrap();
}

/// What somebody has deleted is damage to its share alone, and a revert brings it back.
#[test]
fn a_volume_that_somebody_has_deleted_is_damage_to_its_share_alone_and_a_revert_repairs_it() {
    let name = "a_volume_that_somebody_has_deleted_is_damage_to_its_share_alone_and_a_revert_repairs_it";
    if !can_run(name) {
        return;
    }
    let runtime = runtime();
    let _entered = runtime.enter();
    let thin = ThinPool::new();
    let pool = thin.open();
    for number in [1, 2, 3] {
        pool.create(number, ShareSource::Blank).unwrap();
        pool.write(share(number), "file", b"contents");
        pool.unmount(share(number)).unwrap();
    }
    pool.snapshot(1, 1).unwrap();
    assert_eq!(block_on(pool.0.damaged()).unwrap(), []);
    for number in [1, 2] {
        let name = format!("quarry-share-{}", share_id(number));
        lvm(&["lvremove", "--yes", &thin.path(&name)]);
    }
    for number in [1, 2] {
        for error in [
            pool.mount(share(number)).map(drop).unwrap_err(),
            block_on(pool.0.usage(share(number))).map(drop).unwrap_err(),
            block_on(pool.0.resize_share(share_id(number), SHARE_BYTES * 2))
                .map(drop)
                .unwrap_err(),
            pool.snapshot(9, number).unwrap_err(),
            pool.create(9, ShareSource::Share(share_id(number))).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        }
    }
    let damaged = block_on(pool.0.damaged()).unwrap();
    let versions: Vec<ShareVersion> = damaged.iter().map(|(version, _)| *version).collect();
    assert_eq!(versions, [share(1), share(2)]);
    assert!(damaged[0].1.contains("there is no volume"), "{damaged:?}");
    assert_eq!(pool.read(share(3), "file").unwrap(), b"contents");
    pool.revert(1, 1).unwrap();
    assert_eq!(pool.read(share(1), "file").unwrap(), b"contents");
    pool.delete(share(2)).unwrap();
    assert_eq!(block_on(pool.0.damaged()).unwrap(), []);
    pool.0.shutdown().unwrap();
}
