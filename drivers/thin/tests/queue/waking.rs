//! The wake descriptor: readable whenever a reap would find something (Q3).

use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use quarry_contract::{BlockDevice, Durability, IoBuffer, IoQueue, Request, Tag, Verb};

use crate::bench_pool::{BenchPool, Kind, each_kind};

const SIZE_BYTES: u64 = 1 << 20;

fn read(offset: u64) -> Verb {
    Verb::Read {
        offset,
        buffer: IoBuffer::zeroed(4096),
    }
}

fn write(offset: u64) -> Verb {
    Verb::Write {
        offset,
        buffer: IoBuffer::zeroed(4096),
        durability: Durability::Cached,
    }
}

/// Waits for the descriptor before every reap, as a reactor does.
fn complete_by_waiting(kind: Kind, queue: &mut dyn IoQueue, what: &str, verb: Verb) -> bool {
    queue.submit(Request { tag: Tag(1), verb }).unwrap();
    queue.kick();
    let mut completions = Vec::new();
    while completions.is_empty() {
        let mut fds = [PollFd::new(queue.wake_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(20_000u16)) {
            Ok(0) => panic!("{kind:?}: the queue was never readable after {what}"),
            // EINTR: the kernel's task work has run.
            Ok(_) | Err(_) => queue.reap(&mut completions),
        }
    }
    assert_eq!(completions.len(), 1);
    completions[0].result.is_ok()
}

#[test]
fn every_kind_of_completion_makes_the_descriptor_readable() {
    each_kind(|kind| {
        let bench = BenchPool::new(kind);
        let (_, device) = bench.volume(SIZE_BYTES);
        let mut queue = device.open_queue(4).unwrap();
        let mut complete = |what, verb| complete_by_waiting(kind, queue.as_mut(), what, verb);
        for _ in 0..20 {
            assert!(complete("a read of nothing", read(SIZE_BYTES / 2)));
            assert!(complete("a first write or overwrite", write(0)));
            assert!(complete("an overwrite", write(0)));
            assert!(complete("a read", read(0)));
            assert!(complete("a flush", Verb::Flush));
            assert!(!complete("a read beyond the end", read(SIZE_BYTES)));
            let too_long = Verb::Read {
                offset: 0,
                buffer: IoBuffer::zeroed(64 << 20),
            };
            assert!(!complete("a read that is too long", too_long));
            let length = 65536;
            assert!(complete("a discard", Verb::Discard { offset: 0, length }));
        }
    });
}

#[test]
fn queue_with_nothing_to_do_is_not_readable() {
    each_kind(|kind| {
        let bench = BenchPool::new(kind);
        let (_, device) = bench.volume(SIZE_BYTES);
        let mut queue = device.open_queue(4).unwrap();
        assert!(complete_by_waiting(kind, queue.as_mut(), "a write", write(0)));
        // A wake may be in excess; after a reap or two it has to be over, or an idle queue costs a core.
        for _ in 0..3 {
            queue.reap(&mut Vec::new());
        }
        let mut fds = [PollFd::new(queue.wake_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::ZERO), Ok(0), "{kind:?}");
    });
}

#[test]
fn queue_moves_between_threads() {
    each_kind(|kind| {
        let bench = BenchPool::new(kind);
        let (_, device) = bench.volume(SIZE_BYTES);
        let mut queue = Arc::clone(&device).open_queue(4).unwrap();
        for _ in 0..10 {
            queue = std::thread::spawn(move || {
                assert!(complete_by_waiting(kind, queue.as_mut(), "a write", write(4096)));
                assert!(complete_by_waiting(kind, queue.as_mut(), "a read", read(4096)));
                queue
            })
            .join()
            .unwrap();
        }
    });
}
