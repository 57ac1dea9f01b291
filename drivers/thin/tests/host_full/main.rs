//! Pools in files with holes, in file systems that others have filled.
//!
//! Real file systems on loop devices, and tmpfs: only as root. Without root, or without what makes a file system, a test says
//! so and does nothing.

mod kit;

use quarry_contract::Durability;

use kit::{CHUNK, Host, can_run};

#[test]
fn hf1_commits_go_on_when_others_have_filled_the_file_system() {
    for kind in Host::KINDS {
        let test = format!("hf1_commits_go_on_when_others_have_filled_the_file_system on {kind}");
        if !can_run(&test, kind) {
            continue;
        }
        let host = Host::new(kind);
        let pool = host.format();
        let handle = kit::volume(&pool, 1);
        handle.write(0, &vec![1; CHUNK], Durability::Flushed).unwrap();
        host.fill();
        // Each takes another block of the log, of which none was written yet.
        for round in 0..LOG_BLOCKS / 4 {
            kit::reserve(&pool, 1, round % 2 == 0)
                .unwrap_or_else(|error| panic!("{kind}: commit {round}: {error}"));
        }
        assert_eq!(pool.stopped(), None, "{kind}");
        kit::assert_sound(&pool);
    }
}

/// Of the log of these pools.
const LOG_BLOCKS: u64 = kit::LOG_BYTES / 4096;
