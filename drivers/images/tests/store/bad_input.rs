//! What may be wrong around a store: each is a typed error that says what to do, and leaves the rest working.

use std::fs;
use std::io::Write;

use quarry_contract::conformance::block_on;
use quarry_contract::{DriverError, ErrorKind, ShareBackend, ShareSource, ShareVersion};
use quarry_images::{IfAbsent, ImageBackend, PoolPlace, StoreOptions};
use quarry_sys::filesystem::{mounts_below, unmount};

use crate::kit::{Folder, SHARE_BYTES, can_run, runtime, share, share_id, snapshot, snapshot_id};

fn refused(options: &StoreOptions) -> DriverError {
    match ImageBackend::open(options) {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    }
}

#[test]
fn a_place_that_is_no_pool_is_refused_and_left_alone() {
    if !can_run("a_place_that_is_no_pool_is_refused_and_left_alone") {
        return;
    }
    let folder = Folder::new();
    let options = |place| StoreOptions {
        place,
        ..folder.options(None)
    };
    let path = folder.path().join("nothing");
    for place in [
        PoolPlace::Folder {
            path: path.clone(),
            if_absent: IfAbsent::Fail,
        },
        PoolPlace::File {
            path: path.clone(),
            if_absent: IfAbsent::Fail,
        },
    ] {
        let error = refused(&options(place));
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(!path.exists());
    }
    let used = folder.path().join("used");
    fs::create_dir(&used).unwrap();
    fs::write(used.join("letter.txt"), "dear").unwrap();
    let create = IfAbsent::Create { size_bytes: 0 };
    let error = refused(&options(PoolPlace::Folder {
        path: used.clone(),
        if_absent: create,
    }));
    assert!(
        error.to_string().contains("is not empty and holds no pool"),
        "{error}"
    );
    assert!(!used.join("shares").exists());

    let garbage = folder.path().join("garbage");
    fs::write(&garbage, vec![7; 8 << 20]).unwrap();
    let error = refused(&options(PoolPlace::File {
        path: garbage.clone(),
        if_absent: create,
    }));
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(fs::read(&garbage).unwrap(), vec![7; 8 << 20]);
}

#[test]
fn a_folder_whose_files_cannot_share_blocks_is_refused_at_once() {
    if !can_run("a_folder_whose_files_cannot_share_blocks_is_refused_at_once") {
        return;
    }
    let folder = Folder::new();
    let memory = folder.path().join("memory");
    fs::create_dir(&memory).unwrap();
    quarry_sys::filesystem::mount_tmpfs(&memory, 1 << 20).unwrap();
    let error = refused(&StoreOptions {
        place: PoolPlace::Folder {
            path: memory,
            if_absent: IfAbsent::Create { size_bytes: 0 },
        },
        ..folder.options(None)
    });
    assert!(error.to_string().contains("reflink=1"), "{error}");
}

#[test]
fn a_second_user_is_told_who_has_the_pool() {
    if !can_run("a_second_user_is_told_who_has_the_pool") {
        return;
    }
    let runtime = runtime();
    let _entered = runtime.enter();
    let folder = Folder::new();
    let pool = folder.open();
    let error = refused(&folder.options(None)).to_string();
    let holder = format!("held by process {}", std::process::id());
    assert!(error.contains(&holder), "S10: {error}");
    // A program that is being started has what is open here until it runs: so long, whatever the shutdown does meanwhile.
    let open = std::fs::File::open(folder.root().join("pool.json")).unwrap();
    let program = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        drop(open);
    });
    pool.0.shutdown().unwrap();
    program.join().unwrap();
    assert_eq!(
        block_on(pool.0.pool_status()).unwrap_err().kind(),
        ErrorKind::Unavailable,
        "after the shutdown"
    );
    folder.open();
}

#[test]
fn a_pool_in_a_folder_is_as_good_as_one_in_a_file() {
    if !can_run("a_pool_in_a_folder_is_as_good_as_one_in_a_file") {
        return;
    }
    let runtime = runtime();
    let _entered = runtime.enter();
    let folder = Folder::new();
    // The file system of a pool in a file serves as the folder.
    let outer = folder.open();
    let options = StoreOptions {
        place: PoolPlace::Folder {
            path: folder.root().join("shared"),
            if_absent: IfAbsent::Create { size_bytes: 0 },
        },
        mounts: folder.path().join("inner"),
        ..folder.options(None)
    };
    let open = || crate::kit::Pool::open(&options);
    let inner = open();
    inner.create(1, ShareSource::Blank).unwrap();
    inner.write(share(1), "file", b"contents");
    inner.snapshots(&[(1, 1)]).unwrap();
    let uuid = inner.0.uuid();
    assert!(refused(&options).to_string().contains("two agents"));
    drop(inner);
    let inner = open();
    assert_eq!(inner.0.uuid(), uuid);
    assert_eq!(inner.read(snapshot(1), "file").unwrap(), b"contents");
    inner.0.shutdown().unwrap();
    outer.0.shutdown().unwrap();
}

#[test]
fn a_share_that_somebody_has_unmounted_or_replaced_is_not_handed_out() {
    if !can_run("a_share_that_somebody_has_unmounted_or_replaced_is_not_handed_out") {
        return;
    }
    let runtime = runtime();
    let _entered = runtime.enter();
    let folder = Folder::new();
    let pool = folder.open();
    pool.create(1, ShareSource::Blank).unwrap();
    pool.write(share(1), "file", b"contents");
    let mounted = pool.mount(share(1)).unwrap();
    unmount(&mounted.path).unwrap();
    assert!(!pool.is_mounted(share(1)), "S8: unmounted behind its back");
    let again = pool.mount(share(1)).unwrap();
    assert_eq!(fs::read(again.path.join("file")).unwrap(), b"contents");
    unmount(&again.path).unwrap();
    fs::remove_dir(&again.path).unwrap();
    let elsewhere = folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &again.path).unwrap();
    assert!(!pool.is_mounted(share(1)), "S8: a link elsewhere");
    let refused = pool.mount(share(1));
    assert!(refused.is_err(), "S8: {refused:?}");
    fs::remove_dir(&elsewhere).expect("S8: nothing is mounted where the link leads");
    fs::remove_file(&again.path).unwrap();
    pool.mount(share(1)).unwrap();
}

#[test]
fn a_busy_share_names_who_uses_it() {
    if !can_run("a_busy_share_names_who_uses_it") {
        return;
    }
    let runtime = runtime();
    let _entered = runtime.enter();
    let folder = Folder::new();
    let pool = folder.open();
    pool.create(1, ShareSource::Blank).unwrap();
    pool.write(share(1), "file", b"contents");
    let mounted = pool.mount(share(1)).unwrap();
    let open = fs::File::open(mounted.path.join("file")).unwrap();
    let error = pool.unmount(share(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    let holder = format!("process {}", std::process::id());
    assert!(error.to_string().contains(&holder), "{error}");
    drop(open);
    pool.unmount(share(1)).unwrap();
}

#[test]
fn an_image_without_a_file_system_is_damage_and_no_more() {
    if !can_run("an_image_without_a_file_system_is_damage_and_no_more") {
        return;
    }
    let runtime = runtime();
    let _entered = runtime.enter();
    let folder = Folder::new();
    let pool = folder.open();
    for number in [1, 2] {
        pool.create(number, ShareSource::Blank).unwrap();
    }
    pool.snapshots(&[(1, 1)]).unwrap();
    for (kind, id) in [("shares", share(1)), ("snapshots", snapshot(1))] {
        let uuid = id.to_string();
        let uuid = uuid.rsplit(' ').next().unwrap();
        let image = folder.root().join(kind).join(uuid).join("image");
        fs::write(&image, b"").unwrap();
        fs::File::options()
            .write(true)
            .open(&image)
            .unwrap()
            .set_len(SHARE_BYTES + (64 << 20))
            .unwrap();
        let error = pool.mount(id).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
    let clone = pool.create(3, ShareSource::Snapshot(snapshot_id(1)));
    assert_eq!(clone.unwrap_err().kind(), ErrorKind::Corrupt);
    pool.mount(share(2)).unwrap();
    for version in [share(1), snapshot(1)] {
        pool.delete(version).unwrap();
    }
}

#[test]
fn an_image_that_somebody_has_removed_is_damage_to_its_share_alone_and_a_revert_repairs_it() {
    let name = "an_image_that_somebody_has_removed_is_damage_to_its_share_alone_and_a_revert_repairs_it";
    if !can_run(name) {
        return;
    }
    let runtime = runtime();
    let _entered = runtime.enter();
    let folder = Folder::new();
    let pool = folder.open();
    let path_of = |kind: &str, id: quarry_contract::ShareVersion| {
        let uuid = id.to_string();
        folder.root().join(kind).join(uuid.rsplit(' ').next().unwrap())
    };
    for number in [1, 2, 3, 4] {
        pool.create(number, ShareSource::Blank).unwrap();
        pool.write(share(number), "file", b"contents");
        pool.unmount(share(number)).unwrap();
    }
    pool.snapshots(&[(1, 1)]).unwrap();
    fs::remove_file(path_of("shares", share(1)).join("image")).unwrap();
    let image = path_of("shares", share(3)).join("image");
    fs::remove_file(&image).unwrap();
    std::os::unix::fs::symlink(path_of("shares", share(2)).join("image"), &image).unwrap();
    fs::remove_file(path_of("shares", share(4)).join("record.json")).unwrap();
    let check = |pool: &crate::kit::Pool| {
        for number in [1, 3] {
            for error in [
                pool.mount(share(number)).map(drop).unwrap_err(),
                block_on(pool.0.usage(share(number))).map(drop).unwrap_err(),
                pool.resize(number, SHARE_BYTES * 2).map(drop).unwrap_err(),
                pool.snapshots(&[(9, number)]).map(drop).unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                assert!(error.to_string().contains("image"), "{error}");
            }
        }
        assert_eq!(pool.read(share(2), "file").unwrap(), b"contents");
        pool.unmount(share(2)).unwrap();
    };
    check(&pool);
    let damaged = |pool: &crate::kit::Pool| {
        let damaged = block_on(pool.0.damaged()).unwrap();
        damaged
            .into_iter()
            .map(|(version, _)| version)
            .collect::<Vec<_>>()
    };
    assert_eq!(damaged(&pool), [share(1), share(3)]);
    drop(pool);
    let pool = folder.open();
    check(&pool);
    assert_eq!(damaged(&pool), [share(1), share(3), share(4)]);
    assert!(pool.mount(share(4)).is_err(), "it has no record");
    pool.revert(1, 1).unwrap();
    assert_eq!(pool.read(share(1), "file").unwrap(), b"contents");
    pool.unmount(share(1)).unwrap();
    for number in [1, 2, 3] {
        pool.delete(share(number)).unwrap();
    }
    assert_eq!(damaged(&pool), [share(4)]);
}

/// S13.
#[test]
fn what_is_mounted_of_a_share_without_its_image_stays_until_the_share_is_deleted() {
    if !can_run("what_is_mounted_of_a_share_without_its_image_stays_until_the_share_is_deleted") {
        return;
    }
    let runtime = runtime();
    let _entered = runtime.enter();
    let folder = Folder::new();
    let mut pool = folder.open();
    let image_of = |number: u128| {
        let folder = folder.root().join("shares").join(share_id(number).to_string());
        folder.join("image")
    };
    let mut roots = Vec::new();
    for number in [1, 2, 3, 4] {
        pool.create(number, ShareSource::Blank).unwrap();
        pool.write(share(number), "file", b"contents");
        roots.push(pool.mount(share(number)).unwrap().path);
    }
    pool.snapshots(&[(1, 1)]).unwrap();
    fs::remove_file(image_of(1)).unwrap();
    // Another in its place, and all of it gone.
    fs::copy(image_of(4), image_of(4).with_file_name("other")).unwrap();
    fs::rename(image_of(4).with_file_name("other"), image_of(2)).unwrap();
    fs::remove_dir_all(image_of(3).parent().unwrap()).unwrap();
    // However the process ends.
    for is_orderly in [false, true, true] {
        for number in [1, 2] {
            for error in [
                pool.unmount(share(number)).unwrap_err(),
                pool.release(number, "released").unwrap_err(),
                pool.snapshots(&[(9, number)]).unwrap_err(),
                pool.resize(number, SHARE_BYTES * 2).unwrap_err(),
            ] {
                assert!(
                    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Busy),
                    "{error}"
                );
            }
            pool.mount(share(number)).unwrap();
        }
        let damaged = block_on(pool.0.damaged()).unwrap();
        let versions: Vec<ShareVersion> = damaged.iter().map(|(version, _)| *version).collect();
        assert_eq!(versions, [share(1), share(2), share(3)]);
        for ((_, problem), root) in damaged.iter().zip(&roots) {
            assert!(problem.contains(&*root.to_string_lossy()), "{problem}");
        }
        if is_orderly {
            let error = pool.0.shutdown().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        }
        drop(pool);
        let mounted = mounts_below(roots[0].parent().unwrap()).unwrap();
        assert_eq!(mounted.iter().any(|mount| mount.at == roots[3]), !is_orderly);
        pool = folder.open();
        for root in &roots[..3] {
            assert_eq!(fs::read(root.join("file")).unwrap(), b"contents");
        }
    }
    pool.delete(share(1)).unwrap();
    assert!(!roots[0].join("file").exists());
    unmount(&roots[1]).unwrap();
    unmount(&roots[2]).unwrap();
    assert_eq!(block_on(pool.0.damaged()).unwrap(), []);
    pool.0.shutdown().unwrap();
}

#[test]
fn a_full_pool_refuses_what_takes_space_and_goes_on() {
    if !can_run("a_full_pool_refuses_what_takes_space_and_goes_on") {
        return;
    }
    let runtime = runtime();
    let _entered = runtime.enter();
    let folder = Folder::new();
    let pool = folder.open();
    pool.create(1, ShareSource::Blank).unwrap();
    pool.write(share(1), "file", b"contents");
    // Something else on the pool's file system takes all but less than the reserve.
    let filler = folder.root().join("filler");
    let status = block_on(pool.0.pool_status()).unwrap();
    let file = fs::File::create(&filler).unwrap();
    let length = i64::try_from(status.free_bytes - (80 << 20)).unwrap();
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, length).unwrap();
    drop(file);
    for error in [
        pool.create(2, ShareSource::Blank).unwrap_err(),
        pool.snapshots(&[(1, 1)]).unwrap_err(),
        pool.resize(1, SHARE_BYTES * 2).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    }
    folder.assert_tidy(&pool);
    // What is written over needs no more space, and goes on whatever is kept back (F1).
    let mounted = pool.mount(share(1)).unwrap();
    let file = fs::File::options().write(true).open(mounted.path.join("file"));
    file.and_then(|mut file| file.write_all(b"replaced").and_then(|()| file.sync_all()))
        .unwrap();
    pool.unmount(share(1)).unwrap();
    pool.mount(share(1)).unwrap();
    fs::remove_file(&filler).unwrap();
    pool.create(2, ShareSource::Blank).unwrap();
    pool.unmount(share(1)).unwrap();
    pool.delete(share(1)).unwrap();
}
