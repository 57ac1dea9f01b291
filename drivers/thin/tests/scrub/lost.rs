//! What a scrub does about what it cannot read.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use quarry_contract::{ScrubState, ScrubStatus, VolumeSpec};
use quarry_thin::sim::{Fault, OpKind, SimDevice};
use quarry_thin::{OpenOptions, Pool};

use crate::{BLOCK, CHUNK, Fixture, MIB, blank, write};

/// More calls than any scrub here makes.
const FOR_EVER: u64 = 1 << 32;

#[test]
fn what_cannot_be_read_counts_as_damaged_when_it_fails_again() {
    let fixture = Fixture::new();
    write(&fixture.writer(1), 0, CHUNK, 1);
    while fixture.pool.maintain().unwrap().more {}
    // The chunk and then its first block by itself; or the chunk, all of its blocks, and both again.
    for (failures, bad) in [(2, 0), (1 + CHUNK / BLOCK + 2, 1)] {
        fixture.pool.start_scrub().unwrap();
        fixture.device.fail(OpKind::Read, 0, failures, Fault::Io);
        let status = fixture.scrub_to_the_end();
        assert_eq!(status.bad_blocks, bad, "{failures} failures");
        assert!(
            status.findings.iter().all(|found| found.offset < 2 * BLOCK),
            "{status:?}"
        );
        fixture.device.heal();
    }
    assert_eq!(fixture.scrub().bad_blocks, 0);
}

/// Three volumes, the one in the middle without checksums, with nothing of their maps in memory.
fn stored() -> Arc<SimDevice> {
    let fixture = Fixture::new();
    let plain = VolumeSpec {
        checksums: false,
        ..blank(2)
    };
    fixture.pool.create_volume(&plain).unwrap();
    fixture.pool.create_volume(&blank(3)).unwrap();
    for number in 1..=3 {
        write(&fixture.writer(number), 0, MIB / 2, number as u8);
    }
    assert_eq!(fixture.scrub().verified_bytes, MIB);
    fixture.pool.close().unwrap();
    fixture.device.power_cycle()
}

/// Scrubs a pool whose reads fail from the `nth` of the scrub on, so many of them; says whether any has, and how it went.
fn scrub_failing(stored: &SimDevice, nth: u64, failures: u64) -> (bool, ScrubStatus) {
    let device = stored.fork(nth);
    let pool = Pool::open(device.clone(), OpenOptions::default()).unwrap();
    // What an open leaves to do.
    while pool.maintain().unwrap().more {}
    pool.start_scrub().unwrap();
    let first = device.counts().reads + nth;
    device.fail(OpKind::Read, nth, failures, Fault::Io);
    let (ended, end) = mpsc::channel();
    thread::spawn(move || {
        while pool.maintain().unwrap().more {}
        ended.send(pool.scrub_status().unwrap()).unwrap();
    });
    let status = end.recv_timeout(Duration::from_secs(60));
    let status = status.unwrap_or_else(|_| panic!("Z3: read {nth} fails {failures} times: no end"));
    assert_eq!(status.state, ScrubState::Done, "read {nth}");
    (device.counts().reads > first, status)
}

#[test]
fn z3_a_scrub_ends_whatever_cannot_be_read_and_says_what_it_has_not_verified() {
    let stored = stored();
    for nth in 0.. {
        let (failed, status) = scrub_failing(&stored, nth, FOR_EVER);
        if !failed {
            assert_eq!((status.verified_bytes, status.skipped_bytes), (MIB, 0));
            assert!(nth > 20, "a scrub of two volumes makes more reads than {nth}");
            break;
        }
        assert!(
            status.bad_blocks > 0 || status.skipped_bytes > 0,
            "read {nth}: {status:?}"
        );
        // At most the whole of both volumes.
        assert!(status.skipped_bytes <= 16 * MIB, "read {nth}: {status:?}");
    }
}

/// Both copies of a page, for each page that a scrub reads: the other volume is verified all the same.
#[test]
fn z3_a_lost_page_costs_what_is_below_it_and_no_more() {
    let stored = stored();
    let mut lost = 0;
    for nth in 0.. {
        let (failed, status) = scrub_failing(&stored, nth, 2);
        if !failed {
            break;
        }
        assert_eq!(status.bad_blocks, 0, "read {nth}: {status:?}");
        assert_eq!(status.verified_bytes + status.skipped_bytes, status.total_bytes);
        // The map of one volume, or the sums of both.
        let most = if status.verified_bytes == 0 { MIB } else { 8 * MIB };
        assert!(status.skipped_bytes <= most, "read {nth}: {status:?}");
        lost += u32::from(status.skipped_bytes > 0);
    }
    assert!(lost >= 8, "{lost} pages were lost");
}

/// What the background copies needs its sums: without them the chunk stays as it is, and nothing else waits for it.
#[test]
fn a_chunk_that_cannot_be_filled_holds_up_nothing() {
    let fixture = Fixture::new();
    write(&fixture.writer(1), 0, CHUNK, 1);
    write(&fixture.writer(1), 7 * BLOCK, BLOCK, 2);
    fixture.pool.close().unwrap();
    let stored = fixture.device.power_cycle();
    for nth in 0..12 {
        let device = stored.fork(nth);
        let pool = Pool::open(device.clone(), OpenOptions::default()).unwrap();
        assert_eq!(pool.stat().partial_chunks, 1);
        device.fail(OpKind::Read, nth, 2, Fault::Io);
        for _ in 0..8 {
            let maintained = pool.maintain();
            assert!(maintained.is_ok(), "read {nth}: {maintained:?}");
        }
        assert_eq!(pool.stat().partial_chunks, 0, "read {nth}");
    }
}
