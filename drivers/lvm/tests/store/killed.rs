//! S2: a process ends at every step of every call that has several, and the pool is opened anew. It ends for the store, which
//! is dropped in the middle of the call: nothing is unmounted, and nothing undone.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::statvfs::statvfs;
use quarry_contract::conformance::block_on;
use quarry_contract::{ErrorKind, ShareBackend, ShareSource};

use crate::kit::{Pool, SHARE_BYTES, ThinPool, can_run, runtime, share, share_id, snapshot, snapshot_id};

const GROWN_BYTES: u64 = SHARE_BYTES + (32 << 20);

/// A call on a pool in which share 1 is mounted, share 2 is not, both hold `file`, and each has a snapshot of its number of
/// when it held `first`. `theirs` is a volume that was a share, with the same file.
struct Call {
    name: &'static str,
    run: fn(&Pool) -> Result<(), quarry_contract::DriverError>,
    /// Tells whether its end state is there; asserts that it is whole, or that nothing of it is.
    is_done: fn(&Pool) -> bool,
    /// What is in the group when it is done and was not before.
    adds: &'static [&'static str],
    /// What is not, and was before.
    takes: &'static [&'static str],
}

const CALLS: &[Call] = &[
    Call {
        name: "clone what is mounted",
        run: |pool| pool.create(10, ShareSource::Share(share_id(1))),
        is_done: |pool| pool.exists(share(10)) && pool.read(share(10), "file").unwrap() == b"second",
        adds: &["quarry-share-00000000-0000-0000-0000-00000000700a"],
        takes: &[],
    },
    Call {
        name: "revert",
        run: |pool| pool.revert(2, 2),
        is_done: |pool| {
            let held = pool.read(share(2), "file").unwrap();
            assert!([&b"first"[..], b"second"].contains(&&*held));
            held == b"first"
        },
        adds: &[],
        takes: &[],
    },
    Call {
        name: "grow what is mounted",
        run: |pool| block_on(pool.0.resize_share(share_id(1), GROWN_BYTES)).map(drop),
        is_done: |pool| {
            let said = block_on(pool.0.share(share_id(1))).unwrap().size_bytes;
            let told = statvfs(&pool.mount(share(1)).unwrap().path).unwrap();
            assert_eq!(told.blocks() * told.fragment_size(), said, "S6: what statfs says");
            said == GROWN_BYTES
        },
        adds: &[],
        takes: &[],
    },
    Call {
        name: "mount a snapshot",
        run: |pool| pool.mount(snapshot(1)).map(drop),
        is_done: |pool| pool.is_mounted(snapshot(1)) && pool.read(snapshot(1), "file").unwrap() == b"first",
        adds: &["quarry-view-00000000-0000-0000-0000-000000005001"],
        takes: &[],
    },
    Call {
        name: "adopt",
        run: |pool| pool.adopt(11, "theirs"),
        is_done: |pool| pool.exists(share(11)) && pool.read(share(11), "file").unwrap() == b"first",
        adds: &["quarry-share-00000000-0000-0000-0000-00000000700b"],
        takes: &["theirs"],
    },
    Call {
        name: "release",
        run: |pool| pool.release(11, "released"),
        is_done: |pool| {
            let is_done = !pool.exists(share(11));
            if is_done {
                // Whoever has had no answer asks again, and then nothing of ours is on it.
                pool.release(11, "released").unwrap();
                assert_eq!(ThinPool::tags("released"), "");
            }
            is_done
        },
        adds: &["released"],
        takes: &["quarry-share-00000000-0000-0000-0000-00000000700b"],
    },
];

fn prepare(thin: &ThinPool) {
    let pool = thin.open();
    for number in [1, 2] {
        pool.create(number, ShareSource::Blank).unwrap();
        pool.write(share(number), "file", b"first");
        pool.snapshot(number, number).unwrap();
        pool.write(share(number), "file", b"second");
    }
    pool.unmount(share(2)).unwrap();
    pool.create(3, ShareSource::Snapshot(snapshot_id(1))).unwrap();
    pool.release(3, "theirs").unwrap();
    // A process that dies takes nothing with it that was written before.
    nix::unistd::sync();
}

/// Runs a call that ends at a step. False when it has fewer steps.
fn ended_at(thin: &ThinPool, call: &Call, die_at: u32) -> bool {
    let steps = AtomicU32::new(0);
    let on_step = move |_: &'static str| {
        if steps.fetch_add(1, Ordering::SeqCst) == die_at {
            resume_unwind(Box::new("the end of the process"));
        }
    };
    let options = thin.options(Some(Arc::new(on_step)));
    let pool = Pool::open(&options);
    match (call.run)(&pool) {
        Ok(()) => false,
        Err(error) if error.kind() == ErrorKind::Internal => true,
        Err(error) => panic!("{}: {error}", call.name),
    }
}

#[test]
fn a_call_that_ends_at_any_step_is_done_or_not_and_can_be_made_again() {
    if !can_run("a_call_that_ends_at_any_step_is_done_or_not_and_can_be_made_again") {
        return;
    }
    let runtime = runtime();
    let _entered = runtime.enter();
    let thin = ThinPool::new();
    prepare(&thin);
    for call in CALLS {
        let before = thin.volumes();
        let mut after = before.clone();
        after.retain(|name| !call.takes.contains(&name.as_str()));
        after.extend(call.adds.iter().map(|name| (*name).to_owned()));
        after.sort_unstable();
        let mut undone = 0;
        for die_at in 0.. {
            let was_ended = ended_at(&thin, call, die_at);
            let pool = thin.open();
            let is_done = (call.is_done)(&pool);
            assert!(is_done || was_ended, "{}: answered, and lost", call.name);
            let expected = if is_done { &after } else { &before };
            assert_eq!(
                &thin.volumes(),
                expected,
                "{} that ended at step {die_at}",
                call.name
            );
            // Writes go on.
            pool.write(share(1), "later", b"later");
            if is_done {
                break;
            }
            undone += 1;
        }
        assert!(undone > 0, "{}: was never undone", call.name);
    }
    thin.open().0.shutdown().unwrap();
}
