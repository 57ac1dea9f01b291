//! Planned writes whose mapping has to wait, while everybody who could wait for it waits for them.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use quarry_contract::{
    BlockDevice, BlockingQueue, Durability, IoBuffer, Request, Tag, Verb, wait_for_completions,
};
use quarry_thin::IoMode;

use crate::bench_pool::{BenchPool, each_kind};

const CHUNK: u64 = 64 << 10;
const ROUNDS: u64 = 60;
/// First writes of chunks in each round: they are planned, and hold their latches until they are mapped.
const FIRST_WRITES: u64 = 30;
/// Writes of sectors to the last of these chunks: more than there are workers, which all wait for its latch.
const SECTOR_WRITES: u64 = 20;

/// The log is so short that every few rounds it takes no more records in the middle of the mapping.
#[test]
fn a_planned_write_is_mapped_while_all_workers_wait_for_its_latch() {
    each_kind(|kind| {
        // Without a ring a planned write is mapped before the next request is looked at.
        if kind.mode != IoMode::Uring || kind.directory != "/dev/shm" {
            return;
        }
        let bench = BenchPool::new(kind);
        let (_, device) = bench.volume(ROUNDS * FIRST_WRITES * CHUNK);
        let device: Arc<dyn BlockDevice> = device;
        let depth = FIRST_WRITES + SECTOR_WRITES;
        let mut queue = Arc::clone(&device).open_queue(depth as u32).unwrap();
        for round in 0..ROUNDS {
            let chunk = |number: u64| (round * FIRST_WRITES + number) * CHUNK;
            let first = (0..FIRST_WRITES).map(|number| (chunk(number), 4096));
            let sectors =
                (0..SECTOR_WRITES).map(|number| (chunk(FIRST_WRITES - 1) + 8192 + 512 * number, 512));
            for (tag, (offset, length)) in first.chain(sectors).enumerate() {
                let verb = Verb::Write {
                    offset,
                    buffer: IoBuffer::from_slice(&vec![round as u8 + 1; length]),
                    durability: Durability::Cached,
                };
                let tag = Tag(tag as u64);
                queue.submit(Request { tag, verb }).unwrap();
            }
            queue.kick();
            // Time for the workers to come to wait.
            thread::sleep(Duration::from_millis(2));
            let mut completions = Vec::new();
            wait_for_completions(queue.as_mut(), &mut completions, depth as usize).unwrap();
            completions
                .into_iter()
                .for_each(|completion| completion.result.unwrap());
        }
        let mut check = BlockingQueue::open(&device).unwrap();
        for index in 0..ROUNDS * FIRST_WRITES {
            let found = check.read(index * CHUNK, CHUNK as usize).unwrap();
            let written = (index / FIRST_WRITES) as u8 + 1;
            let sectors = match index % FIRST_WRITES {
                last if last == FIRST_WRITES - 1 => written,
                _ => 0,
            };
            let sectors_end = 8192 + 512 * SECTOR_WRITES as usize;
            for (range, byte) in [
                (0..4096, written),
                (4096..8192, 0),
                (8192..sectors_end, sectors),
                (sectors_end..CHUNK as usize, 0),
            ] {
                assert!(
                    found[range.clone()].iter().all(|b| *b == byte),
                    "{kind:?}: chunk {index}, {range:?}"
                );
            }
        }
    });
}
