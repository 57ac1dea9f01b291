//! Many requests in flight at once, against a plain byte array.

use std::sync::Arc;

use quarry_contract::{
    BlockDevice, BlockingQueue, Completion, Durability, IoBuffer, IoQueue, OpenMode, Request, Tag, Verb,
    ZeroMode, wait_for_completions,
};

use crate::bench_pool::{BenchPool, Dice, IntoVersion, each_kind};

const REGIONS: u64 = 48;
const REGION_BYTES: u64 = 96 << 10;
const SIZE_BYTES: u64 = REGIONS * REGION_BYTES;

/// What a request of a round is to leave or to find.
enum Expected {
    Reads(usize, Vec<u8>),
    Changes,
}

/// Picks a request inside one region, on 512-byte borders or on 4096-byte ones, and applies it to the model.
fn pick(dice: &mut Dice, region: u64, model: &mut [u8]) -> (Verb, Expected) {
    let unit = if dice.below(3) == 0 { 512 } else { 4096 };
    let units = REGION_BYTES / unit;
    let length = (1 + dice.below(units.min(20))) * unit;
    let offset = region * REGION_BYTES + dice.below(units - length / unit + 1) * unit;
    let range = offset as usize..(offset + length) as usize;
    match dice.below(12) {
        0..=4 => {
            let bytes = dice.bytes(length as usize);
            model[range].copy_from_slice(&bytes);
            let durability = if dice.below(6) == 0 {
                Durability::Flushed
            } else {
                Durability::Cached
            };
            let buffer = IoBuffer::from_slice(&bytes);
            let verb = Verb::Write {
                offset,
                buffer,
                durability,
            };
            (verb, Expected::Changes)
        }
        5 => {
            model[range].fill(0);
            (Verb::Discard { offset, length }, Expected::Changes)
        }
        6 => {
            model[range].fill(0);
            let mode = ZeroMode::KeepMapped;
            (Verb::WriteZeroes { offset, length, mode }, Expected::Changes)
        }
        7 => (Verb::Flush, Expected::Changes),
        _ => {
            let mut buffer = IoBuffer::zeroed(length as usize);
            buffer.fill(0xEE);
            let expected = model[range.clone()].to_vec();
            (
                Verb::Read { offset, buffer },
                Expected::Reads(range.start, expected),
            )
        }
    }
}

#[test]
fn rounds_of_many_requests_agree_with_the_model_and_survive_a_restart() {
    each_kind(|kind| {
        for seed in 1..=3 {
            let bench = BenchPool::new(kind);
            let (id, device) = bench.volume(SIZE_BYTES);
            let mut model = vec![0; SIZE_BYTES as usize];
            let mut dice = Dice::new(seed);
            let mut queue = Arc::clone(&device).open_queue(REGIONS as u32).unwrap();
            for round in 0..40 {
                let mut expected = Vec::new();
                for region in 0..REGIONS {
                    let (verb, expectation) = pick(&mut dice, region, &mut model);
                    expected.push(expectation);
                    queue
                        .submit(Request {
                            tag: Tag(region),
                            verb,
                        })
                        .unwrap();
                    if dice.below(8) == 0 {
                        queue.kick();
                    }
                }
                queue.kick();
                for Completion { tag, result, buffer } in all(queue.as_mut(), REGIONS as usize) {
                    result.unwrap_or_else(|error| panic!("{kind:?} seed {seed} round {round}: {error}"));
                    if let Expected::Reads(at, bytes) = &expected[tag.0 as usize] {
                        let found = buffer.expect("a read's buffer comes back");
                        assert!(
                            found[..] == bytes[..],
                            "{kind:?} seed {seed} round {round}: wrong bytes at {at}"
                        );
                    }
                }
                if round % 8 == 0 {
                    while bench.pool.maintain().unwrap().more {}
                }
            }
            drop(queue);
            BlockingQueue::open(&(Arc::clone(&device) as Arc<dyn BlockDevice>))
                .unwrap()
                .flush()
                .unwrap();
            drop(device);
            let bench = bench.reopen();
            let device: Arc<dyn BlockDevice> = bench.open(id.into_version(), OpenMode::ReadWrite);
            let mut queue = BlockingQueue::open(&device).unwrap();
            let found = queue.read(0, model.len()).unwrap();
            assert!(
                found == model,
                "{kind:?} seed {seed}: the volume differs after a restart"
            );
            assert_eq!(bench.pool.check().unwrap().problems, Vec::<String>::new());
        }
    });
}

fn all(queue: &mut dyn IoQueue, count: usize) -> Vec<Completion> {
    let mut completions = Vec::new();
    wait_for_completions(queue, &mut completions, count).unwrap();
    assert_eq!(completions.len(), count, "Q1: a request completed twice");
    completions
}
