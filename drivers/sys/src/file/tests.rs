use super::*;
use crate::loop_device::{LoopDevice, LoopMode};

fn filled(directory: &str, length: usize) -> File {
    let file = tempfile::tempfile_in(directory).unwrap();
    file.write_all_at(&vec![0xAB; length], 0).unwrap();
    file.sync_all().unwrap();
    file
}

#[test]
fn sparse_file_has_its_size_reads_zero_and_is_made_only_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    let file = create_sparse(&path, 10 << 30).unwrap();
    assert_eq!(size_bytes(&file).unwrap(), 10 << 30);
    let mut bytes = [1; 4096];
    file.read_exact_at(&mut bytes, 9 << 30).unwrap();
    assert_eq!(bytes, [0; 4096]);
    let error = create_sparse(&path, 1).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
}

#[test]
fn holes_are_told_from_what_was_written() {
    for directory in ["/tmp", "/dev/shm"] {
        let file = tempfile::tempfile_in(directory).unwrap();
        file.set_len(1 << 20).unwrap();
        assert!(is_hole(&file, 0, 1 << 20).unwrap());
        file.write_all_at(&[0; 4096], 128 << 10).unwrap();
        let holes = |offset: u64, length: u64| is_hole(&file, offset << 10, length << 10).unwrap();
        assert!(holes(64, 64) && holes(192, 64), "{directory}");
        assert!(
            !holes(64, 68) && !holes(128, 4),
            "{directory}: zeros that were written are data"
        );
        assert!(!holes(960, 68), "{directory}: behind the end is no hole");
        punch_hole(&file, 128 << 10, 64 << 10).unwrap();
        assert!(holes(64, 192), "{directory}");
    }
}

#[test]
fn an_allocated_range_has_its_space_and_reads_and_counts_as_before() {
    for directory in ["/tmp", "/dev/shm"] {
        let file = tempfile::tempfile_in(directory).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[7; 4096], 0).unwrap();
        match allocate_range(&file, 0, 512 << 10) {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{directory}");
                continue;
            }
        }
        let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
        assert!(blocks * 512 >= 512 << 10, "{directory}: {blocks} sectors");
        // On tmpfs only until it is read.
        assert!(
            is_hole(&file, 4096, 508 << 10).unwrap(),
            "{directory}: it was not written"
        );
        let mut bytes = vec![1; 512 << 10];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes[..4096].iter().all(|byte| *byte == 7), "{directory}");
        assert!(bytes[4096..].iter().all(|byte| *byte == 0), "{directory}");
        allocate_range(&file, 1 << 20, 4096).unwrap();
        assert_eq!(
            size_bytes(&file).unwrap(),
            1 << 20,
            "{directory}: no longer than before"
        );
    }
}

#[test]
fn directories_and_character_devices_are_no_medium() {
    let null = File::open("/dev/null").unwrap();
    assert_eq!(medium(&null).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    let directory = File::open("/tmp").unwrap();
    assert!(size_bytes(&directory).is_err());
}

#[test]
fn file_turned_to_direct_io_reads_the_same_and_keeps_its_lock() {
    for directory in ["/tmp", "/dev/shm"] {
        let file = filled(directory, 65536);
        lock_exclusive(&file).unwrap();
        let io_path = enable_direct_io(&file, 4096).unwrap();
        println!("{directory}: {io_path:?}");
        if directory == "/dev/shm" {
            assert_eq!(io_path, IoPath::Memory);
        }
        let mut memory = vec![0u8; 8192];
        let start = memory.as_ptr().align_offset(4096);
        file.read_exact_at(&mut memory[start..start + 4096], 4096)
            .unwrap();
        assert!(memory[start..start + 4096].iter().all(|byte| *byte == 0xAB));

        let other = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        assert!(matches!(lock_exclusive(&other), Err(LockError::Held { .. })));
        let io_user = file.try_clone().unwrap();
        drop(file);
        assert!(matches!(lock_exclusive(&other), Err(LockError::Held { .. })));
        drop(io_user);
        lock_exclusive(&other).unwrap();
    }
}

/// Its node is a file of devtmpfs, which looks like a file system in memory.
#[test]
fn a_block_device_is_no_memory_and_takes_direct_io() {
    let backing = tempfile::NamedTempFile::new_in("/tmp").unwrap();
    backing.as_file().set_len(1 << 20).unwrap();
    let device = match LoopDevice::attach(backing.path(), LoopMode::ReadWrite) {
        Ok(device) => device,
        Err(error) => {
            let required = std::env::var_os("QUARRY_REQUIRE_LOOP_DEVICES").is_some();
            assert!(!required, "no loop device can be attached: {error}");
            return println!("SKIPPED: no loop device can be attached here: {error}");
        }
    };
    let file = File::open(device.path()).unwrap();
    assert_eq!(page_cache_path(&file).unwrap(), IoPath::Buffered);
    let path = enable_direct_io(&file, 4096).unwrap();
    assert_eq!(
        path,
        IoPath::Direct {
            alignment_bytes: 4096
        }
    );
}

#[test]
fn holes_and_zeroed_ranges_read_zero_and_nothing_beside_them_changes() {
    for directory in ["/tmp", "/dev/shm"] {
        let file = filled(directory, 1 << 20);
        punch_hole(&file, 65536, 65536).unwrap();
        let mut zeroed = Vec::new();
        zeroed.push(65536..131072);
        match zero_range(&file, 262144, 8192) {
            Ok(()) => zeroed.push(262144..270336),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP), "{directory}"),
        }
        let mut bytes = vec![0; 1 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        for (position, byte) in bytes.into_iter().enumerate() {
            let expected = if zeroed.iter().any(|range| range.contains(&position)) {
                0
            } else {
                0xAB
            };
            assert_eq!(byte, expected, "{directory}, byte {position}");
        }
    }
}

#[test]
fn block_device_calls_on_a_regular_file_are_refused() {
    let file = filled("/tmp", 4096);
    assert!(discard_blocks(&file, 0, 4096).is_err());
    assert!(zero_blocks(&file, 0, 4096).is_err());
}

#[test]
fn ranges_beyond_what_the_kernel_counts_are_refused() {
    let file = filled("/tmp", 4096);
    assert_eq!(
        punch_hole(&file, u64::MAX, 1).unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );
}
