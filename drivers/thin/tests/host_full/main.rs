//! Pools in files with holes, in file systems that others have filled.
//!
//! Real file systems on loop devices, and tmpfs: only as root. Without root, or without what makes a file system, a test says
//! so and does without it. What happens at every step of it: tests/crash/host_full.rs, on a simulated medium.

mod kit;

use std::sync::Arc;

use quarry_contract::{Durability, IoError};
use quarry_thin::{Pool, VersionHandle};

use kit::{CHUNK, Host};

#[test]
fn hf1_commits_go_on_when_others_have_filled_the_file_system() {
    for kind in Host::kinds() {
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

/// Fills a pool's volumes, and then its host; returns what the first held.
fn filled(host: &Host, pool: &Arc<Pool>) -> u64 {
    let (first, second) = (kit::volume(pool, 1), kit::volume(pool, 2));
    for index in 0..CHUNKS {
        let at = index * CHUNK as u64;
        first.write(at, &vec![1; CHUNK], Durability::Cached).unwrap();
        second.write(at, &vec![2; CHUNK], Durability::Cached).unwrap();
    }
    first.flush().unwrap();
    host.fill();
    CHUNKS * CHUNK as u64
}

/// Chunks of each volume.
const CHUNKS: u64 = 600;

fn assert_holds(handle: &VersionHandle, chunks: u64, byte: u8) {
    let mut found = vec![0; CHUNK];
    for index in 0..chunks {
        handle.read(index * CHUNK as u64, &mut found).unwrap();
        assert!(found.iter().all(|found| *found == byte), "chunk {index}");
    }
}

/// On a full file system: what is new is refused, what is there is written, and a delete gives space to whoever comes.
fn assert_lives_on_a_full_host(kind: &str, host: &Host, pool: &Arc<Pool>, held: u64) {
    let second = kit::volume_again(pool, 2);
    let (mut refused, far) = (0, 1 << 29);
    for index in 0..2 * LEFT_BLOCKS {
        match second.write(far + index * CHUNK as u64, &vec![3; CHUNK], Durability::Cached) {
            Ok(()) => {}
            Err(IoError::NoSpace) => refused += 1,
            Err(error) => panic!("{kind}: {error}"),
        }
    }
    assert!(refused > 0, "{kind}: the host is full");
    second.discard(far, 2 * LEFT_BLOCKS * CHUNK as u64).unwrap();
    second.write(0, &vec![4; CHUNK], Durability::Flushed).unwrap();
    pool.checkpoint()
        .unwrap_or_else(|error| panic!("{kind}: a checkpoint: {error}"));
    kit::reclaim(pool);
    host.fill();
    kit::delete(pool, 1);
    kit::reclaim(pool);
    let free = host.free_bytes();
    assert!(
        free > held / 2,
        "{kind}: the host got {free} of {held} bytes back"
    );
    for index in 0..CHUNKS / 2 {
        let at = far + index * CHUNK as u64;
        second.write(at, &vec![5; CHUNK], Durability::Cached).unwrap();
    }
    second.flush().unwrap();
    assert_eq!(pool.stopped(), None, "{kind}");
    second.write(0, &vec![2; CHUNK], Durability::Flushed).unwrap();
    assert_holds(&second, CHUNKS, 2);
    kit::assert_sound(pool);
}

/// Blocks that a file system may still have when it says that it is full.
const LEFT_BLOCKS: u64 = 32;

#[test]
fn hf2_deletes_give_space_back_when_others_have_filled_the_file_system() {
    for kind in Host::kinds() {
        let host = Host::new(kind);
        let pool = host.format();
        let held = filled(&host, &pool);
        assert_lives_on_a_full_host(kind, &host, &pool, held);
    }
}

#[test]
fn hf2_a_pool_that_is_killed_opens_on_a_full_file_system_and_goes_on() {
    for kind in Host::kinds() {
        let host = Host::new(kind);
        let pool = host.format();
        let held = filled(&host, &pool);
        kit::reserve(&pool, 1, true).unwrap();
        drop(pool);
        let pool = host.open();
        assert_lives_on_a_full_host(kind, &host, &pool, held);
    }
}

/// Of the log of these pools.
const LOG_BLOCKS: u64 = kit::LOG_BYTES / 4096;
