use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;

/// Every wait in these tests gives up after this long.
const DEADLINE: Duration = Duration::from_secs(20);

/// A file of `length` bytes on a real disk or on tmpfs, whose byte at `i` is [`pattern`]`(i)`.
fn patterned_file(directory: &str, length: usize) -> File {
    let file = tempfile::tempfile_in(directory).unwrap();
    let bytes: Vec<u8> = (0..length).map(pattern).collect();
    file.write_all_at(&bytes, 0).unwrap();
    file
}

fn pattern(position: usize) -> u8 {
    (position / 4096 * 31 + position * 7) as u8
}

/// Runs `test` over both kinds of file, or says why not.
fn on_disk_and_tmpfs(test: impl Fn(&str)) {
    if let Err(error) = probe() {
        let is_required = std::env::var_os("QUARRY_REQUIRE_URING").is_some();
        assert!(!is_required, "io_uring is not allowed: {error}");
        println!("SKIPPED: io_uring is not allowed here: {error}");
        return;
    }
    for directory in ["/tmp", "/dev/shm"] {
        if Path::new(directory).is_dir() {
            test(directory);
        } else {
            println!("skipped for {directory}: no such directory");
        }
    }
}

fn ring_on(file: &File, depth: u32) -> Ring {
    Ring::new(file, depth, Waker::new().unwrap()).unwrap()
}

fn wait_readable(ring: &Ring) {
    let mut fds = [PollFd::new(ring.as_fd(), PollFlags::POLLIN)];
    let started = std::time::Instant::now();
    loop {
        assert!(
            started.elapsed() < DEADLINE,
            "the ring did not become readable in time"
        );
        match poll(&mut fds, PollTimeout::try_from(DEADLINE).unwrap()) {
            // Task work of the kernel's interrupts a sleeping poll.
            Err(nix::errno::Errno::EINTR) | Ok(0) => {}
            Ok(_) => return,
            Err(error) => panic!("poll: {error}"),
        }
    }
}

fn is_readable(ring: &Ring) -> bool {
    let mut fds = [PollFd::new(ring.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

fn reap_count(ring: &mut Ring, count: usize) -> Vec<Finished> {
    let mut finished = Vec::new();
    ring.reap(&mut finished);
    while finished.len() < count {
        wait_readable(ring);
        ring.reap(&mut finished);
    }
    assert_eq!(finished.len(), count, "an operation was reported twice");
    finished
}

fn segment(file_offset: u64, memory: Range<usize>) -> Segment {
    Segment {
        file: 0,
        file_offset,
        memory,
    }
}

#[test]
fn read_fills_the_named_ranges_and_gives_the_memory_back() {
    on_disk_and_tmpfs(|directory| {
        let file = patterned_file(directory, 1 << 20);
        let mut ring = ring_on(&file, 8);
        let memory = vec![0xEE; 12288];
        let address = memory.as_ptr();
        let segments = [segment(8192, 4096..8192), segment(512_000, 0..4096)];
        ring.read(Token(3), memory, &segments);
        ring.kick();
        let end = reap_count(&mut ring, 1).pop().unwrap();
        assert_eq!(end.token, Token(3));
        end.result.unwrap();
        let memory = end.memory.unwrap();
        assert_eq!(memory.as_ptr(), address);
        assert!((0..4096).all(|i| memory[i] == pattern(512_000 + i)));
        assert!((0..4096).all(|i| memory[4096 + i] == pattern(8192 + i)));
        assert!(memory[8192..].iter().all(|byte| *byte == 0xEE));
        assert!(ring.is_idle());
    });
}

#[test]
fn many_more_operations_than_entries_all_finish_once() {
    on_disk_and_tmpfs(|directory| {
        let file = patterned_file(directory, 1 << 20);
        let mut ring = ring_on(&file, 4);
        for round in 0..3u64 {
            for number in 0..500u64 {
                let memory = vec![(round + number) as u8; 4096];
                let at = number % 256 * 4096;
                if number % 2 == 0 {
                    ring.write(
                        Token(number),
                        memory,
                        &[segment(at, 0..4096)],
                        Persistence::Cached,
                    );
                } else {
                    ring.read(Token(number), memory, &[segment(at, 0..4096)]);
                }
            }
            ring.kick();
            let mut tokens: Vec<u64> = reap_count(&mut ring, 500)
                .into_iter()
                .map(|end| {
                    end.result.unwrap();
                    end.token.0
                })
                .collect();
            tokens.sort_unstable();
            assert!(tokens.into_iter().eq(0..500));
        }
    });
}

#[test]
fn durable_write_sync_and_allocate_do_what_they_say() {
    on_disk_and_tmpfs(|directory| {
        let file = patterned_file(directory, 1 << 20);
        let mut ring = ring_on(&file, 4);
        ring.write(
            Token(1),
            vec![9; 4096],
            &[segment(4096, 0..4096)],
            Persistence::Durable,
        );
        ring.kick();
        reap_count(&mut ring, 1).pop().unwrap().result.unwrap();
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        ring.sync_data(Token(2), [0]);
        ring.allocate(Token(3), punch, 65536, 65536);
        ring.kick();
        for end in reap_count(&mut ring, 2) {
            end.result.unwrap();
            assert!(end.memory.is_none());
        }
        let mut bytes = vec![1; 1 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes[4096..8192].iter().all(|byte| *byte == 9));
        assert!(bytes[65536..131072].iter().all(|byte| *byte == 0));
        assert_eq!(bytes[131072], pattern(131072));
    });
}

#[test]
fn transfers_and_syncs_reach_the_files_they_name_also_those_added_while_others_are_in_flight() {
    on_disk_and_tmpfs(|directory| {
        let files = [1, 2, 3].map(|_| patterned_file(directory, 1 << 20));
        let mut ring = ring_on(&files[0], 8);
        ring.read(Token(9), vec![0; 1 << 20], &[segment(0, 0..1 << 20)]);
        ring.kick();
        ring.add_file(1, &files[1]).unwrap();
        ring.add_file(FILES_MAX - 1, &files[2]).unwrap();
        assert!(ring.add_file(FILES_MAX, &files[2]).is_err());
        let parts =
            [(0, 0..4096), (1, 4096..8192), (FILES_MAX - 1, 8192..12288)].map(|(file, memory)| Segment {
                file,
                file_offset: 4096,
                memory,
            });
        let bytes: Vec<u8> = (0..3u8).flat_map(|file| [0x40 + file; 4096]).collect();
        ring.write(Token(1), bytes, &parts, Persistence::Cached);
        ring.kick();
        for end in reap_count(&mut ring, 2) {
            end.result.unwrap();
        }
        ring.sync_data(Token(2), [0, 1, FILES_MAX - 1]);
        // There is no such file.
        ring.sync_data(Token(3), [0, 2]);
        ring.kick();
        for end in reap_count(&mut ring, 2) {
            assert_eq!(end.result.is_ok(), end.token == Token(2), "{end:?}");
        }
        for (file, byte) in files.iter().zip(0x40..) {
            let mut bytes = [0; 12288];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes[4096..8192].iter().all(|found| *found == byte));
            assert_eq!((bytes[4095], bytes[8192]), (pattern(4095), pattern(8192)));
        }
    });
}

#[test]
fn read_across_the_end_of_the_file_fails_and_gives_the_memory_back() {
    on_disk_and_tmpfs(|directory| {
        let file = patterned_file(directory, 6000);
        let mut ring = ring_on(&file, 4);
        ring.read(Token(1), vec![0; 8192], &[segment(0, 0..8192)]);
        ring.kick();
        let end = reap_count(&mut ring, 1).pop().unwrap();
        assert_eq!(end.result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(end.memory.unwrap().len(), 8192);
    });
}

#[test]
fn write_to_a_file_opened_for_reading_fails() {
    on_disk_and_tmpfs(|directory| {
        let named = tempfile::NamedTempFile::new_in(directory).unwrap();
        named.as_file().set_len(8192).unwrap();
        let file = File::open(named.path()).unwrap();
        let mut ring = ring_on(&file, 4);
        ring.write(
            Token(1),
            vec![0; 4096],
            &[segment(0, 0..4096)],
            Persistence::Cached,
        );
        ring.kick();
        let end = reap_count(&mut ring, 1).pop().unwrap();
        assert_eq!(end.result.unwrap_err().raw_os_error(), Some(libc::EBADF));
    });
}

#[test]
fn wake_from_another_thread_makes_the_ring_readable_every_time() {
    on_disk_and_tmpfs(|directory| {
        let file = patterned_file(directory, 4096);
        let mut ring = ring_on(&file, 4);
        for _ in 0..50 {
            let waker = ring.waker.clone();
            let thread = std::thread::spawn(move || waker.wake());
            wait_readable(&ring);
            thread.join().unwrap();
            let mut finished = Vec::new();
            ring.reap(&mut finished);
            assert!(finished.is_empty());
        }
    });
}

#[test]
fn ring_goes_on_after_the_thread_that_made_and_used_it_has_exited() {
    on_disk_and_tmpfs(|directory| {
        let file = patterned_file(directory, 1 << 20);
        let maker = std::thread::spawn({
            let file = file.try_clone().unwrap();
            move || {
                let mut ring = ring_on(&file, 4);
                ring.read(Token(1), vec![0; 1 << 20], &[segment(0, 0..1 << 20)]);
                ring.kick();
                ring
            }
        });
        let mut ring = maker.join().unwrap();
        reap_count(&mut ring, 1).pop().unwrap().result.unwrap();
    });
}

#[test]
fn ring_still_wakes_after_more_wakes_than_it_has_room_for() {
    on_disk_and_tmpfs(|directory| {
        let file = patterned_file(directory, 4096);
        let mut ring = ring_on(&file, 1);
        for _ in 0..3 {
            for _ in 0..1000 {
                ring.waker.clone().wake();
                // The kernel posts one answer for each wake that it sees on its own.
                wait_readable(&ring);
            }
            while is_readable(&ring) {
                ring.reap(&mut Vec::new());
            }
        }
        ring.waker.clone().wake();
        wait_readable(&ring);
    });
}

#[test]
fn dropping_the_ring_waits_for_writes_in_flight() {
    on_disk_and_tmpfs(|directory| {
        let file = patterned_file(directory, 1 << 20);
        for round in 1..20u8 {
            let mut ring = ring_on(&file, 16);
            for at in 0..16u64 {
                let part = segment(at * 65536, 0..65536);
                ring.write(Token(at), vec![round; 65536], &[part], Persistence::Cached);
            }
            if round % 2 == 0 {
                ring.kick();
            }
            drop(ring);
            let mut bytes = vec![0; 1 << 20];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes.iter().all(|byte| *byte == round));
        }
    });
}
