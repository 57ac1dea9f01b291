//! Control calls beside a busy queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use quarry_contract::{
    BlockDevice, BlockingQueue, Durability, IoBuffer, OpenMode, Request, SnapshotId, SnapshotSpec, Tag, Verb,
    VersionId, wait_for_completions,
};
use uuid::Uuid;

use crate::bench_pool::{BenchPool, IntoVersion, each_kind};

const SLOTS: u64 = 32;
const SLOT_BYTES: u64 = 20 << 10;

/// Writes generation after generation to all slots at once, each generation after the one before has completed.
fn write_generations(device: Arc<dyn BlockDevice>, stop: &AtomicBool) -> u64 {
    let mut queue = device.open_queue(SLOTS as u32).unwrap();
    let mut generation = 0u64;
    while !stop.load(Ordering::Relaxed) {
        generation += 1;
        for slot in 0..SLOTS {
            let mut buffer = IoBuffer::zeroed(SLOT_BYTES as usize);
            buffer
                .chunks_mut(8)
                .for_each(|word| word.copy_from_slice(&generation.to_le_bytes()));
            let verb = Verb::Write {
                offset: slot * SLOT_BYTES,
                buffer,
                durability: Durability::Cached,
            };
            queue.submit(Request { tag: Tag(slot), verb }).unwrap();
        }
        queue.kick();
        let mut completions = Vec::new();
        wait_for_completions(queue.as_mut(), &mut completions, SLOTS as usize).unwrap();
        completions
            .into_iter()
            .for_each(|completion| completion.result.unwrap());
    }
    generation
}

/// Ends the writer when the test ends, be it by a panic.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn snapshots_beside_a_busy_queue_hold_one_point_in_time_and_never_change() {
    each_kind(|kind| {
        let bench = BenchPool::new(kind);
        let (id, device) = bench.volume(SLOTS * SLOT_BYTES);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let writer =
                scope.spawn(|| write_generations(Arc::clone(&device) as Arc<dyn BlockDevice>, &stop));
            let ending = StopOnDrop(&stop);
            let mut taken: Vec<(VersionId, Vec<u8>)> = Vec::new();
            for _ in 0..12 {
                let snapshot = SnapshotSpec {
                    id: SnapshotId(Uuid::new_v4()),
                    volume: id,
                };
                bench.pool.create_snapshots(&[snapshot]).unwrap();
                let version = VersionId::Snapshot(snapshot.id);
                let contents = read_all(&bench, version);
                let generations: Vec<u64> = contents
                    .chunks(512)
                    .map(|sector| u64::from_le_bytes(sector[..8].try_into().unwrap()))
                    .collect();
                let oldest = generations.iter().min().unwrap();
                let newest = generations.iter().max().unwrap();
                assert!(
                    newest - oldest <= 1,
                    "{kind:?}: a snapshot holds generations {oldest} to {newest}"
                );
                taken.push((version, contents));
            }
            drop(ending);
            let last = writer.join().unwrap();
            for (version, contents) in &taken {
                assert!(
                    read_all(&bench, *version) == *contents,
                    "{kind:?}: {version:?} has changed"
                );
            }
            let device: Arc<dyn BlockDevice> = Arc::clone(&device) as Arc<dyn BlockDevice>;
            let found = BlockingQueue::open(&device).unwrap().read(0, 512).unwrap();
            assert_eq!(found[..8], last.to_le_bytes());
        });
        assert_eq!(bench.pool.check().unwrap().problems, Vec::<String>::new());
    });
}

fn read_all(bench: &BenchPool, version: VersionId) -> Vec<u8> {
    let device: Arc<dyn BlockDevice> = bench.open(version, OpenMode::ReadOnly);
    let size_bytes = device.size_bytes() as usize;
    BlockingQueue::open(&device).unwrap().read(0, size_bytes).unwrap()
}

#[test]
fn volume_is_closed_as_soon_as_its_device_and_queues_are_dropped() {
    each_kind(|kind| {
        let bench = BenchPool::new(kind);
        let (id, device) = bench.volume(SLOTS * SLOT_BYTES);
        drop(device);
        for round in 0..50u8 {
            // Were anything of the round before still open, this would be refused.
            let device = bench.open(id.into_version(), OpenMode::ReadWrite);
            assert!(
                bench
                    .pool
                    .open_version(id.into_version(), OpenMode::ReadWrite)
                    .is_err(),
                "{kind:?}: a volume is open for writing twice"
            );
            let mut queue = Arc::clone(&device).open_queue(SLOTS as u32).unwrap();
            drop(device);
            for slot in 0..SLOTS {
                let mut buffer = IoBuffer::zeroed(SLOT_BYTES as usize);
                buffer.fill(round);
                let verb = Verb::Write {
                    offset: slot * SLOT_BYTES,
                    buffer,
                    durability: Durability::Cached,
                };
                queue.submit(Request { tag: Tag(slot), verb }).unwrap();
            }
            queue.kick();
            drop(queue);
        }
        bench.pool.delete_volume(id).unwrap();
    });
}
