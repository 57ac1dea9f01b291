//! Flushes through a queue, among everything else that flushes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use quarry_contract::{
    BlockDevice, BlockingQueue, Durability, IoBuffer, IoQueue, OpenMode, Request, SnapshotId, SnapshotSpec,
    Tag, Verb, wait_for_completions,
};
use uuid::Uuid;

use crate::bench_pool::{BenchPool, IntoVersion, each_kind};

const CHUNK: u64 = 64 << 10;

fn submit(queue: &mut dyn IoQueue, tag: u64, verb: Verb) {
    queue.submit(Request { tag: Tag(tag), verb }).unwrap();
}

fn write(offset: u64, byte: u8, length: usize) -> Verb {
    Verb::Write {
        offset,
        buffer: IoBuffer::from_slice(&vec![byte; length]),
        durability: Durability::Cached,
    }
}

fn all(queue: &mut dyn IoQueue, count: usize) {
    queue.kick();
    let mut completions = Vec::new();
    wait_for_completions(queue, &mut completions, count).unwrap();
    assert_eq!(completions.len(), count, "Q1");
    completions
        .into_iter()
        .for_each(|completion| completion.result.unwrap());
}

#[test]
fn what_many_flushes_at_once_have_flushed_is_there_when_the_pool_is_opened_again() {
    each_kind(|kind| {
        let mut bench = BenchPool::new(kind);
        let (id, device) = bench.volume(512 * CHUNK);
        let mut queue = Arc::clone(&device).open_queue(64).unwrap();
        for round in 0..20u64 {
            // Mapped, added to a partial chunk, overwritten; the log wraps on the way.
            for slot in 0..16 {
                let at = (slot * 20 + round) * CHUNK;
                submit(&mut *queue, slot, write(at, round as u8 + 1, 4096));
            }
            all(&mut *queue, 16);
            // Some come while a round is on its way.
            for tag in 0..8 {
                submit(&mut *queue, tag, Verb::Flush);
                queue.kick();
            }
            submit(
                &mut *queue,
                8,
                write(400 * CHUNK + round * 4096, round as u8 + 1, 4096),
            );
            all(&mut *queue, 9);
            submit(&mut *queue, 0, Verb::Flush);
            all(&mut *queue, 1);
        }
        drop((queue, device));
        bench = bench.reopen();
        let device: Arc<dyn BlockDevice> = bench.open(id.into_version(), OpenMode::ReadOnly);
        let mut check = BlockingQueue::open(&device).unwrap();
        for round in 0..20u64 {
            for at in (0..16)
                .map(|slot| (slot * 20 + round) * CHUNK)
                .chain([400 * CHUNK + round * 4096])
            {
                let found = check.read(at, 4096).unwrap();
                assert!(
                    found.iter().all(|byte| *byte == round as u8 + 1),
                    "{kind:?}: round {round} at {at}"
                );
            }
        }
        assert_eq!(bench.pool.check().unwrap().problems, Vec::<String>::new());
    });
}

#[test]
fn a_queue_that_goes_with_a_flush_on_its_way_finishes_it() {
    each_kind(|kind| {
        let mut bench = BenchPool::new(kind);
        let (id, device) = bench.volume(64 * CHUNK);
        for round in 0..20u8 {
            let mut queue = Arc::clone(&device).open_queue(4).unwrap();
            submit(&mut *queue, 0, write(u64::from(round) * CHUNK, round + 1, 4096));
            all(&mut *queue, 1);
            submit(&mut *queue, 0, Verb::Flush);
            queue.kick();
            submit(&mut *queue, 1, Verb::Flush);
            if round % 2 == 0 {
                queue.kick();
            }
            drop(queue);
            assert_eq!(bench.pool.stopped(), None, "{kind:?}");
        }
        drop(device);
        bench = bench.reopen();
        let device: Arc<dyn BlockDevice> = bench.open(id.into_version(), OpenMode::ReadWrite);
        let mut check = BlockingQueue::open(&device).unwrap();
        for round in 0..20u8 {
            let found = check.read(u64::from(round) * CHUNK, 4096).unwrap();
            assert!(
                found.iter().all(|byte| *byte == round + 1),
                "{kind:?}: round {round}"
            );
        }
        check.flush().unwrap();
    });
}

/// Ends the writers when the test ends, be it by a panic.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn queues_that_flush_and_control_calls_do_not_wait_for_each_other_for_ever() {
    each_kind(|kind| {
        let bench = BenchPool::new(kind);
        let (id, device) = bench.volume(64 * CHUNK);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for writer in 0..3u64 {
                let (device, stop) = (Arc::clone(&device), &stop);
                scope.spawn(move || {
                    let mut queue = device.open_queue(8).unwrap();
                    let mut round = 0;
                    while !stop.load(Ordering::Relaxed) {
                        round += 1;
                        for tag in 0..4 {
                            // All write to the same chunks.
                            let at = (round + tag) % 16 * CHUNK + writer * 4 * 4096 + tag * 4096;
                            submit(&mut *queue, tag, write(at, 1, 4096));
                            submit(&mut *queue, 4 + tag, Verb::Flush);
                        }
                        all(&mut *queue, 8);
                    }
                });
            }
            let _ending = StopOnDrop(&stop);
            for number in 0..8 {
                let snapshot = SnapshotSpec {
                    id: SnapshotId(Uuid::from_u128(number + 1)),
                    volume: id,
                };
                bench.pool.create_snapshots(&[snapshot]).unwrap();
                bench.pool.maintain().unwrap();
                bench.pool.checkpoint().unwrap();
            }
        });
        assert_eq!(bench.pool.check().unwrap().problems, Vec::<String>::new());
    });
}

#[test]
fn small_writes_to_new_chunks_arrive_however_many_at_once_go_to_the_same_chunk() {
    each_kind(|kind| {
        let bench = BenchPool::new(kind);
        let (id, device) = bench.volume(64 * CHUNK);
        let snapshot = SnapshotSpec {
            id: SnapshotId(Uuid::from_u128(1)),
            volume: id,
        };
        let device: Arc<dyn BlockDevice> = device;
        for half in 0..2u8 {
            thread::scope(|scope| {
                // Of two queues each takes every other block, front to back.
                for odd in 0..2u64 {
                    let device = Arc::clone(&device);
                    scope.spawn(move || {
                        let mut queue = device.open_queue(32).unwrap();
                        for first in (0..32 * 16).step_by(64) {
                            for tag in 0..32 {
                                let block = first + 2 * tag + odd;
                                submit(&mut *queue, tag, write(block * 4096, block as u8 ^ half, 4096));
                            }
                            all(&mut *queue, 32);
                        }
                    });
                }
            });
            let mut check = BlockingQueue::open(&device).unwrap();
            for block in 0..32 * 16u64 {
                let found = check.read(block * 4096, 4096).unwrap();
                assert!(
                    found.iter().all(|byte| *byte == block as u8 ^ half),
                    "{kind:?}: block {block}"
                );
            }
            // And once more, over what a snapshot shares.
            if half == 0 {
                bench.pool.create_snapshots(&[snapshot]).unwrap();
            }
        }
        assert_eq!(bench.pool.check().unwrap().problems, Vec::<String>::new());
    });
}
