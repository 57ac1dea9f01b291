//! What every [`BlockDevice`] and its queues promise (B1 to B10).

use std::sync::Arc;
use std::thread;

use super::pattern::{SplitMix, assert_same, pattern};
use crate::{
    BlockDevice, BlockingQueue, Durability, Extent, IoBuffer, IoError, IoQueue, QueueFull, Request, Tag,
    Verb, ZeroMode, wait_for_completions,
};

/// How the suite gets devices.
pub trait DeviceFixture {
    /// Makes a blank writable device of `size_bytes`, a multiple of 64 KiB of at most 16 MiB, with room for all
    /// of it.
    fn blank(&mut self, size_bytes: u64) -> Arc<dyn BlockDevice>;

    /// Makes a blank device that refuses writes, if the driver has such.
    fn read_only(&mut self, size_bytes: u64) -> Option<Arc<dyn BlockDevice>>;

    /// Cuts the power and brings the device back with what is durable; `None` for a driver that keeps nothing.
    fn power_cut(&mut self, device: Arc<dyn BlockDevice>) -> Option<Arc<dyn BlockDevice>>;
}

const SIZE_BYTES: u64 = 4 << 20;

/// Runs every check.
///
/// # Panics
/// When the device breaks its contract; the message begins with the clause.
pub fn run(fixture: &mut dyn DeviceFixture) {
    reads_return_the_last_completed_change(fixture);
    queues_see_what_others_completed(fixture);
    flushed_data_survives_a_power_cut(fixture);
    discarded_and_zeroed_ranges_read_zero(fixture);
    extents_say_what_is_mapped(fixture);
    requests_beyond_the_end_touch_nothing(fixture);
    misaligned_and_overlong_requests_are_refused(fixture);
    overlapping_writes_are_atomic_per_logical_block(fixture);
    atomic_writes_are_writes_of_a_limited_length(fixture);
    read_only_devices_refuse_every_change(fixture);
    every_request_completes_once_with_its_own_buffer(fixture);
    the_queue_is_bounded_by_its_depth(fixture);
    dropping_a_queue_waits_for_what_is_in_flight(fixture);
}

/// B10, as far as no power is cut: what they change, and that one which is refused changes nothing.
fn atomic_writes_are_writes_of_a_limited_length(fixture: &mut dyn DeviceFixture) {
    let device = fixture.blank(SIZE_BYTES);
    let limit = u64::from(device.limits().atomic_write_bytes);
    let block = u64::from(device.limits().logical_block_bytes);
    let mut queue = open(&device);
    let mut expected = vec![0; SIZE_BYTES as usize];
    let mut random = SplitMix::new(10);
    for tag in 0..if limit == 0 { 0 } else { 60 } {
        let most = limit.min(256 << 10) / block;
        let length = block * (1 + random.below(most));
        let offset = block * random.below((SIZE_BYTES - length) / block);
        let range = offset as usize..(offset + length) as usize;
        let bytes = pattern(10_000 + tag, length as usize);
        expected[range.clone()].copy_from_slice(&bytes);
        match random.below(4) {
            0 => queue.write(offset, &bytes, Durability::Cached).expect("B1"),
            1 => {
                queue.discard(offset, length).expect("B4");
                expected[range].fill(0);
            }
            2 => queue
                .write_atomic(offset, &bytes, Durability::Flushed)
                .expect("B10"),
            _ => queue
                .write_atomic(offset, &bytes, Durability::Cached)
                .expect("B10"),
        }
        if tag % 10 == 9 {
            let found = queue.read(0, SIZE_BYTES as usize).expect("B1");
            assert_same("B10: its range and nothing else", 0, &found, &expected);
        }
    }
    let too_long = pattern(1, (limit + block) as usize);
    assert!(
        matches!(
            queue.write_atomic(0, &too_long, Durability::Cached),
            Err(IoError::Misaligned { .. })
        ),
        "B10: longer than the limit"
    );
    if limit > 0 {
        let last = pattern(2, 2 * block as usize);
        assert!(
            matches!(
                queue.write_atomic(SIZE_BYTES - block, &last, Durability::Cached),
                Err(IoError::OutOfRange { .. })
            ),
            "B5"
        );
    }
    let found = queue.read(0, SIZE_BYTES as usize).expect("B1");
    assert_same("B10: a refused write", 0, &found, &expected);
}

/// B9.
fn extents_say_what_is_mapped(fixture: &mut dyn DeviceFixture) {
    let device = fixture.blank(SIZE_BYTES);
    let granule = u64::from(device.limits().discard_granularity_bytes);
    let all = |most| device.extents(0, SIZE_BYTES, most).expect("B9");
    let run = |length, mapped| Extent { length, mapped };
    assert_eq!(all(9), [run(SIZE_BYTES, false)], "B9: a new device");
    let mut queue = open(&device);
    let block = vec![0x33; device.limits().physical_block_bytes as usize];
    for at in [2, 3, 5] {
        queue.write(at * granule, &block, Durability::Cached).unwrap();
    }
    let expected = [
        run(2 * granule, false),
        run(2 * granule, true),
        run(granule, false),
        run(granule, true),
        run(SIZE_BYTES - 6 * granule, false),
    ];
    assert_eq!(all(9), expected, "B9: what was written is mapped");
    assert_eq!(all(3), expected[..3], "B9: no more than asked for");
    let half = granule / 2;
    let part = device.extents(3 * granule + half, granule, 9).expect("B9");
    assert_eq!(part, [run(half, true), run(half, false)], "B9: a part");
    queue.discard(2 * granule, 4 * granule).unwrap();
    assert_eq!(all(9), [run(SIZE_BYTES, false)], "B9: what was discarded is not");
    assert_eq!(
        device.extents(SIZE_BYTES, 0, 9).unwrap(),
        [],
        "B9: nothing of nothing"
    );
    assert!(
        matches!(
            device.extents(SIZE_BYTES, granule, 9),
            Err(IoError::OutOfRange { .. })
        ),
        "B5"
    );
}

fn open(device: &Arc<dyn BlockDevice>) -> BlockingQueue {
    BlockingQueue::open(device).expect("opening a queue")
}

/// B1, with requests of every kind compared to a plain byte array.
fn reads_return_the_last_completed_change(fixture: &mut dyn DeviceFixture) {
    let device = fixture.blank(SIZE_BYTES);
    let block = u64::from(device.limits().logical_block_bytes);
    assert_eq!(device.size_bytes(), SIZE_BYTES, "B7: size of a new device");
    let mut queue = open(&device);
    let mut model = vec![0u8; SIZE_BYTES as usize];
    assert_same(
        "B1 never written",
        0,
        &queue.read(0, model.len()).unwrap(),
        &model,
    );
    let mut random = SplitMix::new(1);
    for step in 0..400u64 {
        let blocks = 1 + random.below(if step % 7 == 0 { 600 } else { 24 });
        let length = (blocks * block).min(SIZE_BYTES);
        let offset = random.below((SIZE_BYTES - length) / block + 1) * block;
        let range = offset as usize..(offset + length) as usize;
        match random.below(10) {
            0..=4 => {
                let bytes = pattern(step << 8, length as usize);
                let durability = if step % 5 == 0 {
                    Durability::Flushed
                } else {
                    Durability::Cached
                };
                queue.write(offset, &bytes, durability).expect("B1: a write");
                model[range].copy_from_slice(&bytes);
            }
            5 => {
                queue.discard(offset, length).expect("B4: a discard");
                model[range].fill(0);
            }
            6 => {
                let mode = if step % 2 == 0 {
                    ZeroMode::KeepMapped
                } else {
                    ZeroMode::MayUnmap
                };
                queue
                    .write_zeroes(offset, length, mode)
                    .expect("B1: write zeroes");
                model[range].fill(0);
            }
            7 if step % 3 == 0 => queue.flush().expect("B2: a flush"),
            _ => {
                let found = queue.read(offset, length as usize).expect("B1: a read");
                assert_same("B1", offset, &found, &model[range]);
            }
        }
    }
    assert_same("B1 at the end", 0, &queue.read(0, model.len()).unwrap(), &model);
}

/// B1 across queues.
fn queues_see_what_others_completed(fixture: &mut dyn DeviceFixture) {
    let device = fixture.blank(SIZE_BYTES);
    let mut queues: Vec<BlockingQueue> = (0..3).map(|_| open(&device)).collect();
    for step in 0..30usize {
        let offset = (step as u64 * 3 % 7) * 12288;
        let bytes = pattern(step as u64, 12288);
        queues[step % 3]
            .write(offset, &bytes, Durability::Cached)
            .unwrap();
        for queue in &mut queues {
            assert_same(
                "B1 other queue",
                offset,
                &queue.read(offset, bytes.len()).unwrap(),
                &bytes,
            );
        }
    }
}

/// B2, B3, B4 and B1 after a restart.
fn flushed_data_survives_a_power_cut(fixture: &mut dyn DeviceFixture) {
    let device = fixture.blank(SIZE_BYTES);
    let mut queue = open(&device);
    let flushed = pattern(1, 200 * 1024);
    queue.write(4096, &flushed, Durability::Cached).unwrap();
    queue.write(1 << 20, &flushed, Durability::Cached).unwrap();
    queue.discard(1 << 20, 128 * 1024).unwrap();
    queue.flush().unwrap();
    let alone = pattern(2, 8192);
    queue.write(2 << 20, &alone, Durability::Flushed).unwrap();
    drop(queue);
    let Some(device) = fixture.power_cut(device) else {
        return;
    };
    assert_eq!(device.size_bytes(), SIZE_BYTES, "B7: size after a power cut");
    let mut queue = open(&device);
    assert_same("B2", 4096, &queue.read(4096, flushed.len()).unwrap(), &flushed);
    let mut expected = flushed;
    expected[..128 * 1024].fill(0);
    assert_same(
        "B4 after a power cut",
        1 << 20,
        &queue.read(1 << 20, expected.len()).unwrap(),
        &expected,
    );
    assert_same("B3", 2 << 20, &queue.read(2 << 20, alone.len()).unwrap(), &alone);
    let rest = queue.read(3 << 20, 1 << 20).unwrap();
    assert!(
        rest.iter().all(|byte| *byte == 0),
        "B1: a range never written reads zero after a power cut"
    );
}

/// B4 and write-zeroes, at and off the granularity.
fn discarded_and_zeroed_ranges_read_zero(fixture: &mut dyn DeviceFixture) {
    let device = fixture.blank(SIZE_BYTES);
    let limits = device.limits();
    let block = u64::from(limits.logical_block_bytes);
    let granule = u64::from(limits.discard_granularity_bytes).max(block);
    let mut queue = open(&device);
    let ranges = [
        (0, granule),
        (granule, 2 * granule),
        (block, block),
        (granule - block, 2 * block),
        (granule + block, granule),
        (0, SIZE_BYTES),
        (SIZE_BYTES - block, block),
    ];
    for (kind, (offset, length)) in (0..3).flat_map(|kind| ranges.map(|range| (kind, range))) {
        let mut model = pattern(offset ^ length, SIZE_BYTES as usize);
        queue.write(0, &model, Durability::Cached).unwrap();
        match kind {
            0 => queue.discard(offset, length),
            1 => queue.write_zeroes(offset, length, ZeroMode::MayUnmap),
            _ => queue.write_zeroes(offset, length, ZeroMode::KeepMapped),
        }
        .unwrap_or_else(|error| panic!("B4: zeroing {offset}+{length}: {error}"));
        model[offset as usize..(offset + length) as usize].fill(0);
        assert_same("B4", 0, &queue.read(0, model.len()).unwrap(), &model);
    }
}

fn changes_of(offset: u64, length: u64) -> Vec<Verb> {
    vec![
        Verb::Write {
            offset,
            buffer: IoBuffer::zeroed(length as usize),
            durability: Durability::Cached,
        },
        Verb::Write {
            offset,
            buffer: IoBuffer::zeroed(length as usize),
            durability: Durability::Flushed,
        },
        Verb::Discard { offset, length },
        Verb::WriteZeroes {
            offset,
            length,
            mode: ZeroMode::MayUnmap,
        },
        Verb::WriteZeroes {
            offset,
            length,
            mode: ZeroMode::KeepMapped,
        },
    ]
}

/// B5.
fn requests_beyond_the_end_touch_nothing(fixture: &mut dyn DeviceFixture) {
    let device = fixture.blank(SIZE_BYTES);
    let block = u64::from(device.limits().logical_block_bytes);
    let mut queue = open(&device);
    let tail = pattern(9, 65536);
    let tail_offset = SIZE_BYTES - 65536;
    queue.write(tail_offset, &tail, Durability::Cached).unwrap();
    let starts = [
        SIZE_BYTES - block,
        SIZE_BYTES,
        SIZE_BYTES + (1 << 30),
        u64::MAX - block + 1,
    ];
    for offset in starts {
        let length = 2 * block;
        let mut verbs = changes_of(offset, length);
        verbs.push(Verb::Read {
            offset,
            buffer: IoBuffer::zeroed(length as usize),
        });
        for verb in verbs {
            let shown = format!("{verb:?}");
            let error = queue
                .run(verb)
                .expect_err(&format!("B5: {shown} is beyond the end"));
            assert!(
                matches!(error, IoError::OutOfRange { size: SIZE_BYTES, .. }),
                "B5: {shown} answered {error:?}"
            );
        }
    }
    let found = queue.read(tail_offset, tail.len()).unwrap();
    assert_same("B5: a refused request", tail_offset, &found, &tail);
}

/// The unit of addressing and the longest transfer.
fn misaligned_and_overlong_requests_are_refused(fixture: &mut dyn DeviceFixture) {
    let device = fixture.blank(SIZE_BYTES);
    let limits = device.limits();
    let block = u64::from(limits.logical_block_bytes);
    assert!(
        matches!(limits.logical_block_bytes, 512 | 4096),
        "limits: the logical block is 512 or 4096, not {block}"
    );
    let powers = [
        limits.physical_block_bytes,
        limits.optimal_io_bytes,
        limits.discard_granularity_bytes,
        limits.max_transfer_bytes,
    ];
    assert!(
        powers
            .iter()
            .all(|bytes| bytes.is_power_of_two() && u64::from(*bytes) >= block),
        "limits: powers of two, at least a block: {limits:?}"
    );
    let mut queue = open(&device);
    for (offset, length) in [(1, block), (block / 2, block), (0, block - 1), (0, block + 1)] {
        let mut verbs = changes_of(offset, length);
        verbs.push(Verb::Read {
            offset,
            buffer: IoBuffer::zeroed(length as usize),
        });
        for verb in verbs {
            let shown = format!("{verb:?}");
            let result = queue.run(verb);
            assert!(
                matches!(result, Err(IoError::Misaligned { .. })),
                "limits: {shown} answered {result:?}"
            );
        }
    }
    let overlong = u64::from(limits.max_transfer_bytes) + block;
    let verb = Verb::Read {
        offset: 0,
        buffer: IoBuffer::zeroed(overlong as usize),
    };
    assert!(
        queue.run(verb).is_err(),
        "limits: a read of {overlong} bytes is refused"
    );
}

/// B8, from one queue with many requests in flight and from several threads.
fn overlapping_writes_are_atomic_per_logical_block(fixture: &mut dyn DeviceFixture) {
    let device = fixture.blank(SIZE_BYTES);
    let block = device.limits().logical_block_bytes as usize;
    let area = 192 * 1024;
    thread::scope(|scope| {
        for thread in 0..3u64 {
            let device = Arc::clone(&device);
            scope.spawn(move || {
                let mut queue = device.open_queue(16).expect("opening a queue");
                let mut random = SplitMix::new(thread);
                for round in 0..20 {
                    for slot in 0..16 {
                        let length = (1 + random.below(16)) as usize * block;
                        let offset = random.below(((area - length) / block) as u64 + 1) * block as u64;
                        let mark = 1 + ((thread * 20 + round) * 16 + slot) % 250;
                        let mut buffer = IoBuffer::zeroed(length);
                        buffer.fill(mark as u8);
                        let verb = Verb::Write {
                            offset,
                            buffer,
                            durability: Durability::Cached,
                        };
                        queue
                            .submit(Request { tag: Tag(slot), verb })
                            .expect("B8: below the depth");
                    }
                    queue.kick();
                    let mut done = Vec::new();
                    wait_for_completions(queue.as_mut(), &mut done, 16).expect("B8: completions");
                    assert!(done.iter().all(|one| one.result.is_ok()), "B8: {done:?}");
                }
            });
        }
    });
    let bytes = open(&device).read(0, area).unwrap();
    for (index, one) in bytes.chunks(block).enumerate() {
        assert!(
            one.iter().all(|byte| *byte == one[0]),
            "B8: logical block {index} is a mixture of writes"
        );
    }
}

/// A device that is read-only.
fn read_only_devices_refuse_every_change(fixture: &mut dyn DeviceFixture) {
    let Some(device) = fixture.read_only(SIZE_BYTES) else {
        return;
    };
    assert!(device.is_read_only(), "ReadOnly: is_read_only");
    let mut queue = open(&device);
    for verb in changes_of(0, 65536) {
        let shown = format!("{verb:?}");
        let result = queue.run(verb);
        assert!(
            matches!(result, Err(IoError::ReadOnly)),
            "ReadOnly: {shown} answered {result:?}"
        );
    }
    let bytes = queue.read(0, SIZE_BYTES as usize).unwrap();
    assert!(
        bytes.iter().all(|byte| *byte == 0),
        "ReadOnly: refused writes leave no trace"
    );
    queue
        .flush()
        .expect("ReadOnly: a flush has nothing to do and succeeds");
}

/// The queue's promise: one completion for each request, with the buffer that went in.
fn every_request_completes_once_with_its_own_buffer(fixture: &mut dyn DeviceFixture) {
    let device = fixture.blank(SIZE_BYTES);
    let mut queue = Arc::clone(&device).open_queue(32).expect("opening a queue");
    let mut random = SplitMix::new(5);
    for _ in 0..20 {
        let mut addresses = Vec::new();
        for slot in 0..32u64 {
            let beyond = slot % 8 == 7;
            let offset = if beyond {
                SIZE_BYTES
            } else {
                random.below(SIZE_BYTES / 4096) * 4096
            };
            let buffer = IoBuffer::zeroed(4096);
            addresses.push(buffer.as_ptr() as usize);
            let verb = if slot % 2 == 0 {
                Verb::Read { offset, buffer }
            } else {
                Verb::Write {
                    offset,
                    buffer,
                    durability: Durability::Cached,
                }
            };
            queue
                .submit(Request { tag: Tag(slot), verb })
                .expect("queue: below the depth");
        }
        queue.kick();
        let mut done = Vec::new();
        wait_for_completions(queue.as_mut(), &mut done, 32).expect("queue: completions");
        done.sort_by_key(|one| one.tag);
        assert_eq!(done.len(), 32, "queue: one completion for each request");
        for (slot, one) in done.iter().enumerate() {
            assert_eq!(one.tag, Tag(slot as u64), "queue: each tag once");
            assert_eq!(one.result.is_err(), slot % 8 == 7, "queue: {one:?}");
            let buffer = one
                .buffer
                .as_ref()
                .expect("queue: the buffer comes back, also on failure");
            assert_eq!(
                buffer.as_ptr() as usize,
                addresses[slot],
                "queue: the request's own buffer"
            );
            assert_eq!(buffer.len(), 4096, "queue: the buffer keeps its length");
        }
    }
    let mut none = Vec::new();
    queue.reap(&mut none);
    assert!(none.is_empty(), "queue: nothing completes twice: {none:?}");
}

/// The queue's bound.
fn the_queue_is_bounded_by_its_depth(fixture: &mut dyn DeviceFixture) {
    let device = fixture.blank(SIZE_BYTES);
    let mut queue = Arc::clone(&device).open_queue(4).expect("opening a queue");
    let read = |slot| Request {
        tag: Tag(slot),
        verb: Verb::Read {
            offset: slot * 4096,
            buffer: IoBuffer::zeroed(4096),
        },
    };
    for round in 0..3 {
        for slot in 0..4 {
            queue.submit(read(slot)).expect("depth: up to the depth");
        }
        let Err(QueueFull(back)) = queue.submit(read(4)) else {
            panic!("depth: round {round}: a request above the depth was taken");
        };
        assert_eq!(back.tag, Tag(4), "depth: the request comes back");
        queue.kick();
        let mut done = Vec::new();
        wait_for_completions(queue.as_mut(), &mut done, 4).expect("depth: completions");
        assert_eq!(done.len(), 4, "depth: round {round}");
    }
}

/// A queue dropped with requests in flight.
fn dropping_a_queue_waits_for_what_is_in_flight(fixture: &mut dyn DeviceFixture) {
    let device = fixture.blank(SIZE_BYTES);
    let bytes = pattern(3, 65536);
    for round in 0..8u64 {
        let mut queue: Box<dyn IoQueue> = Arc::clone(&device).open_queue(8).expect("opening a queue");
        for slot in 0..8 {
            let verb = Verb::Write {
                offset: (slot * 8 + round % 8) * 65536 % SIZE_BYTES,
                buffer: IoBuffer::from_slice(&bytes),
                durability: Durability::Cached,
            };
            queue
                .submit(Request { tag: Tag(slot), verb })
                .expect("drop: below the depth");
        }
        queue.kick();
        drop(queue);
        let mut check = open(&device);
        for slot in 0..8 {
            let offset = (slot * 8 + round % 8) * 65536 % SIZE_BYTES;
            let found = check.read(offset, bytes.len()).unwrap();
            assert_same("drop: a kicked write", offset, &found, &bytes);
        }
    }
}
