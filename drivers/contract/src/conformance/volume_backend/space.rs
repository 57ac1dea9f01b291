//! V6 and V8: whose bytes are whose, and a pool without room.

use super::{BackendFixture, MIB, Subject, snapshot_id};
use crate::conformance::eventually;
use crate::conformance::pattern::{assert_same, pattern};
use crate::{BlockingQueue, DataSource, Durability, IoError, ZeroMode};

pub(super) fn run(fixture: &mut dyn BackendFixture) {
    space_is_taken_when_written_and_given_back(fixture);
    no_volume_reads_what_another_left(fixture);
    a_full_pool_serves_what_is_mapped_and_recovers(fixture);
}

fn space_is_taken_when_written_and_given_back(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    let baseline = subject.status().allocated_bytes;
    subject.blank(1, 1 << 40);
    let slack = 2 * MIB;
    assert!(
        subject.status().allocated_bytes <= baseline + slack,
        "thin: a blank volume takes no space"
    );
    let mut queue = subject.writer(1);
    queue.write(0, &pattern(1, 8 << 20), Durability::Flushed).unwrap();
    let written = subject.status().allocated_bytes;
    assert!(
        written >= baseline + 8 * MIB && written <= baseline + 8 * MIB + slack,
        "thin: 8 MiB written took {} bytes",
        written - baseline
    );
    let mapped = super::block_on(subject.backend.volume(super::volume_id(1))).expect("volume");
    assert_eq!(mapped.mapped_bytes, 8 * MIB, "thin: mapped_bytes");
    queue.discard(4 * MIB, 4 * MIB).unwrap();
    queue.flush().unwrap();
    subject.wait_for_space(baseline + 4 * MIB + slack);
    subject.snapshot(1, 1);
    subject.clone_of(2, 1 << 40, DataSource::Snapshot(snapshot_id(1)));
    assert!(
        subject.status().allocated_bytes <= baseline + 4 * MIB + 2 * slack,
        "thin: snapshot and clone share"
    );
    drop(queue);
    subject.delete(1).expect("delete");
    subject.delete_snapshot(1).expect("delete");
    subject.delete(2).expect("delete");
    subject.wait_for_space(baseline);
}

fn no_volume_reads_what_another_left(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    let baseline = subject.status().allocated_bytes;
    let total = subject.status().total_bytes;
    for round in 0..3u64 {
        subject.blank(1, 2 * total);
        let mut queue = subject.writer(1);
        fill(&mut queue, 0xee);
        drop(queue);
        subject.delete(1).expect("V8: delete in a full pool");
        subject.wait_for_space(baseline);
        subject.blank(2, 8 * MIB);
        let mut queue = subject.writer(2);
        let mut expected = vec![0; 8 << 20];
        for index in 0..64u64 {
            let at = index * 131072 + 4096 * (index % 13);
            let bytes = pattern(round << 8 | index, 512 * (1 + index as usize % 9));
            let bytes = &bytes[..bytes.len() / 512 * 512];
            let block = queue.device().limits().logical_block_bytes as usize;
            let bytes = &bytes[..bytes.len() / block * block];
            queue.write(at, bytes, Durability::Cached).unwrap();
            expected[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        }
        assert_same(
            "V6: another's old data",
            0,
            &queue.read(0, 8 << 20).unwrap(),
            &expected,
        );
        drop(queue);
        subject.delete(2).expect("delete");
        subject.wait_for_space(baseline);
    }
}

/// Writes until the pool refuses; returns how many bytes were taken.
fn fill(queue: &mut BlockingQueue, byte: u8) -> u64 {
    let piece = vec![byte; 256 * 1024];
    let mut at = 0;
    while at < queue.device().size_bytes() {
        match queue.write(at, &piece, Durability::Cached) {
            Ok(()) => at += piece.len() as u64,
            Err(IoError::NoSpace) => return at,
            Err(error) => panic!("V8: filling the pool at {at}: {error}"),
        }
    }
    panic!("V8: a volume of twice the pool's size was filled without NoSpace");
}

fn a_full_pool_serves_what_is_mapped_and_recovers(fixture: &mut dyn BackendFixture) {
    let subject = Subject::fresh(fixture);
    let total = subject.status().total_bytes;
    let baseline = subject.status().allocated_bytes;
    subject.blank(1, 2 * total);
    subject.blank(2, 2 * total);
    let mut other = subject.writer(2);
    other.write(0, &pattern(2, 4 << 20), Durability::Flushed).unwrap();
    let mut queue = subject.writer(1);
    let taken = fill(&mut queue, 0xaa);
    let whole = taken / MIB * MIB;
    assert!(
        whole >= 16 * MIB,
        "V8: only {taken} bytes fitted into a pool of {total}"
    );

    let refused = queue.write(total + MIB, &pattern(3, 1 << 20), Durability::Cached);
    assert!(
        matches!(refused, Err(IoError::NoSpace)),
        "V8: a write to a full pool: {refused:?}"
    );
    queue.flush().expect("V8: a flush of a full pool");
    let middle = pattern(4, 1 << 20);
    queue
        .write(MIB, &middle, Durability::Flushed)
        .expect("V8: what is mapped stays writable");
    assert_same("V8: mapped", MIB, &queue.read(MIB, 1 << 20).unwrap(), &middle);
    other
        .write(0, &middle, Durability::Cached)
        .expect("V8: another volume's mapped range");
    queue
        .write_zeroes(2 * MIB, 65536, ZeroMode::KeepMapped)
        .expect("V8: zeroing what is mapped");
    let rest = queue.read(4 * MIB, (whole - 4 * MIB) as usize).unwrap();
    assert!(rest.iter().all(|byte| *byte == 0xaa), "V8: the fill is intact");

    // Space given back is space to write to, by discard and by delete.
    queue
        .discard(4 * MIB, 8 * MIB)
        .expect("V8: discard in a full pool");
    queue.flush().expect("V8: flush after the discard");
    let again = pattern(5, 4 << 20);
    eventually("V8: writing goes on after a discard", || {
        let _ = other.flush();
        other.write(8 * MIB, &again, Durability::Cached).is_ok()
    });
    assert_same(
        "V8: after a discard",
        8 * MIB,
        &other.read(8 * MIB, 4 << 20).unwrap(),
        &again,
    );
    let gone = queue.read(4 * MIB, 8 << 20).unwrap();
    assert!(gone.iter().all(|byte| *byte == 0), "B4: discarded in a full pool");
    drop(queue);
    fill_rest(&mut other, 16 * MIB);
    subject.delete(1).expect("V8: delete in a full pool");
    eventually("V8: writing goes on after a delete", || {
        let _ = other.flush();
        other.write(total, &again, Durability::Cached).is_ok()
    });
    drop(other);
    subject.delete(2).expect("delete");
    subject.wait_for_space(baseline);
}

/// Fills what is left, from `at` on.
fn fill_rest(queue: &mut BlockingQueue, mut at: u64) {
    let piece = vec![0x55; 65536];
    while queue.write(at, &piece, Durability::Cached).is_ok() {
        at += piece.len() as u64;
    }
}
