//! S2: the process is killed at every step of every call, in a process of its own, and the pool opened anew.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use quarry_contract::ShareSource;

use crate::kit::{
    FIRST_ID, Folder, Pool, SHARE_BYTES, can_run, options_in, runtime, share, share_id, snapshot, snapshot_id,
};

const FOLDER: &str = "QUARRY_TEST_FOLDER";
const CALL: &str = "QUARRY_TEST_CALL";
const DIE_AT: &str = "QUARRY_TEST_DIE_AT";
const FIRST: &str = "QUARRY_TEST_FIRST_ID";

const GROWN_BYTES: u64 = SHARE_BYTES + (32 << 20);

/// A call on a pool in which share 1 is mounted, share 2 is not, both hold `file`, share 1 has snapshot 1 of when it
/// held `first`, and snapshot 2 of share 2 is mounted.
struct Call {
    name: &'static str,
    run: fn(&Pool),
    /// Tells whether its end state is there; asserts that it is whole, or that nothing of it is.
    is_done: fn(&Pool) -> bool,
}

const CALLS: &[Call] = &[
    Call {
        name: "create",
        run: |pool| pool.create(10, ShareSource::Blank).unwrap(),
        is_done: |pool| pool.exists(share(10)) && pool.read(share(10), "file").is_none(),
    },
    Call {
        name: "clone what is mounted",
        run: |pool| pool.create(10, ShareSource::Share(share_id(1))).unwrap(),
        is_done: |pool| pool.exists(share(10)) && pool.read(share(10), "file").unwrap() == b"second",
    },
    Call {
        name: "clone a snapshot",
        run: |pool| pool.create(10, ShareSource::Snapshot(snapshot_id(1))).unwrap(),
        is_done: |pool| pool.exists(share(10)) && pool.read(share(10), "file").unwrap() == b"first",
    },
    Call {
        name: "take a group of snapshots",
        run: |pool| pool.snapshots(&[(10, 1), (11, 2)]).unwrap(),
        is_done: |pool| {
            let there = [10, 11].map(|number| pool.exists(snapshot(number)));
            assert_eq!(there[0], there[1], "S4: all of a group or none");
            if there[0] {
                assert_eq!(pool.read(snapshot(10), "file").unwrap(), b"second");
                assert_eq!(pool.read(snapshot(11), "file").unwrap(), b"other");
            }
            there[0]
        },
    },
    Call {
        name: "grow what is mounted",
        run: |pool| pool.resize(1, GROWN_BYTES).unwrap(),
        is_done: |pool| {
            let size = size_of(pool, 1);
            assert!([SHARE_BYTES, GROWN_BYTES].contains(&size.0), "{size:?}");
            assert_eq!(size.0, size.1, "S6: what statfs says");
            size.0 == GROWN_BYTES
        },
    },
    Call {
        name: "revert",
        run: |pool| {
            pool.unmount(share(1)).unwrap();
            pool.revert(1, 1).unwrap();
        },
        is_done: |pool| {
            let held = pool.read(share(1), "file").unwrap();
            assert!([&b"first"[..], b"second"].contains(&&*held));
            held == b"first"
        },
    },
    Call {
        name: "adopt",
        run: |pool| pool.adopt(10, "kept").unwrap(),
        is_done: |pool| {
            let is_done = pool.exists(share(10));
            assert!(!is_done || pool.read(share(10), "file").unwrap() == b"third");
            is_done
        },
    },
    Call {
        name: "release",
        run: |pool| pool.release(2, "kept").unwrap(),
        is_done: |pool| !pool.exists(share(2)),
    },
    Call {
        name: "delete a share",
        run: |pool| pool.delete(share(2)).unwrap(),
        is_done: |pool| !pool.exists(share(2)),
    },
    Call {
        name: "delete a snapshot",
        run: |pool| pool.delete(snapshot(1)).unwrap(),
        is_done: |pool| !pool.exists(snapshot(1)),
    },
    Call {
        name: "mount a share",
        run: |pool| drop(pool.mount(share(2)).unwrap()),
        is_done: |pool| pool.is_mounted(share(2)) && pool.read(share(2), "file").unwrap() == b"other",
    },
    Call {
        name: "mount a snapshot",
        run: |pool| drop(pool.mount(snapshot(1)).unwrap()),
        is_done: |pool| pool.is_mounted(snapshot(1)) && pool.read(snapshot(1), "file").unwrap() == b"first",
    },
    Call {
        name: "unmount a snapshot",
        run: |pool| pool.unmount(snapshot(2)).unwrap(),
        is_done: |pool| !pool.is_mounted(snapshot(2)),
    },
];

/// Returns the size that the pool and that the file system says.
fn size_of(pool: &Pool, number: u128) -> (u64, u64) {
    use quarry_contract::ShareBackend;
    use quarry_contract::conformance::block_on;

    let info = block_on(pool.0.share(share_id(number))).unwrap();
    let mounted = pool.mount(share(number)).unwrap();
    let told = nix::sys::statvfs::statvfs(&mounted.path).unwrap();
    (info.size_bytes, told.blocks() * told.fragment_size())
}

/// Prepares a pool for a call; for an adoption with an image that is no share's.
fn prepare(folder: &Folder, call: &Call) {
    let pool = folder.open();
    if call.name == "adopt" {
        pool.create(3, ShareSource::Blank).unwrap();
        pool.write(share(3), "file", b"third");
        pool.unmount(share(3)).unwrap();
        pool.release(3, "kept").unwrap();
    }
    for number in [1, 2] {
        pool.create(number, ShareSource::Blank).unwrap();
    }
    pool.write(share(1), "file", b"first");
    pool.write(share(2), "file", b"other");
    pool.unmount(share(2)).unwrap();
    pool.snapshots(&[(1, 1)]).unwrap();
    pool.snapshots(&[(2, 2)]).unwrap();
    pool.write(share(1), "file", b"second");
    // A process that dies takes nothing with it that was written before.
    nix::unistd::sync();
    pool.mount(snapshot(2)).unwrap();
}

/// The process that is killed.
#[test]
fn victim() {
    let variable = |name| std::env::var(name).ok();
    let (Some(folder), Some(call), Some(die_at)) = (variable(FOLDER), variable(CALL), variable(DIE_AT))
    else {
        return;
    };
    FIRST_ID.set(variable(FIRST).unwrap().parse().unwrap());
    let runtime = runtime();
    let _entered = runtime.enter();
    let die_at: u32 = die_at.parse().unwrap();
    let steps = AtomicU32::new(0);
    let on_step = move |_: &'static str| {
        if steps.fetch_add(1, Ordering::SeqCst) == die_at {
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).unwrap();
        }
    };
    let options = options_in(Path::new(&folder), Some(Arc::new(on_step)));
    let pool = Pool::open(&options);
    let call = CALLS.iter().find(|one| one.name == call).unwrap();
    (call.run)(&pool);
}

/// Runs a call in a process of its own that dies at a step. False when it has fewer steps.
fn killed_at(folder: &Folder, call: &Call, die_at: u32) -> bool {
    let ended = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::victim", "--nocapture"])
        .env(FOLDER, folder.path())
        .env(CALL, call.name)
        .env(DIE_AT, die_at.to_string())
        .env(FIRST, FIRST_ID.get().to_string())
        .output()
        .unwrap();
    let was_killed = ended.status.signal() == Some(9);
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(was_killed || ended.status.success(), "{}: {said}", call.name);
    was_killed
}

#[test]
fn a_call_killed_at_any_step_is_done_or_not_and_can_be_made_again() {
    if !can_run("a_call_killed_at_any_step_is_done_or_not_and_can_be_made_again") {
        return;
    }
    let runtime = runtime();
    let _entered = runtime.enter();
    for call in CALLS {
        let mut outcomes = [0, 0];
        for die_at in 0.. {
            let folder = Folder::new();
            prepare(&folder, call);
            let was_killed = killed_at(&folder, call, die_at);
            let pool = folder.open();
            folder.assert_tidy(&pool);
            let is_done = (call.is_done)(&pool);
            assert!(is_done || was_killed, "{}: answered, and lost", call.name);
            outcomes[usize::from(is_done)] += 1;
            (call.run)(&pool);
            assert!(
                (call.is_done)(&pool),
                "{} after a kill at step {die_at}",
                call.name
            );
            if call.name == "release" {
                // Whole, and nothing else has changed.
                pool.adopt(10, "kept").unwrap();
                assert_eq!(pool.read(share(10), "file").unwrap(), b"other");
            }
            // Writes go on: nothing is frozen.
            pool.write(share(1), "later", b"later");
            folder.assert_tidy(&pool);
            if !was_killed {
                break;
            }
        }
        let [undone, done] = outcomes;
        eprintln!("{}: {undone} kills undid it, {done} times it was done", call.name);
        assert!(undone + done > 1, "{}: has no steps", call.name);
    }
}
