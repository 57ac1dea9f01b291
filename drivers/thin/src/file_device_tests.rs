use super::*;

const MIB: u64 = 1 << 20;

const THROUGH_PAGE_CACHE: FileOptions = FileOptions {
    mode: IoMode::Auto,
    caching: Caching::PageCache,
};

/// Runs `test` on a fresh device of 8 MiB on disk and on tmpfs, in all modes.
fn each_device(test: impl Fn(&FileDevice)) {
    for directory in ["/tmp", "/dev/shm"] {
        for options in [IoMode::Auto.into(), IoMode::Threads.into(), THROUGH_PAGE_CACHE] {
            let directory = tempfile::tempdir_in(directory).unwrap();
            let path = directory.path().join("pool");
            test(&FileDevice::create(&path, 8 * MIB, options).unwrap());
        }
    }
}

#[test]
fn files_of_one_file_system_are_on_one_medium() {
    let [disk, too, memory] = ["/var/tmp", "/var/tmp", "/dev/shm"].map(|directory| {
        let directory = tempfile::tempdir_in(directory).unwrap();
        let device = FileDevice::create(&directory.path().join("pool"), MIB, IoMode::Threads).unwrap();
        device.medium()
    });
    assert_eq!(disk, too);
    assert_ne!(disk, memory);
}

#[test]
fn page_cache_is_used_where_it_was_asked_for_and_only_there() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = directory.path().join("pool");
    let device = FileDevice::create(&path, MIB, IoMode::Auto).unwrap();
    assert!(matches!(device.io_path(), IoPath::Direct { .. }));
    drop(device);
    let device = FileDevice::open(&path, THROUGH_PAGE_CACHE).unwrap();
    assert_eq!(device.io_path(), IoPath::Buffered);
}

#[test]
fn what_was_written_is_read_back_from_any_memory_address() {
    each_device(|device| {
        let data: Vec<u8> = (0..3 * MIB as usize + 4097).map(|i| (i % 251) as u8).collect();
        for shift in [0, 1, 7, 512] {
            let data = &data[shift..shift + 3 * MIB as usize];
            device.write_at(MIB, data).unwrap();
            device.flush().unwrap();
            let mut memory = vec![0; data.len() + shift];
            device.read_at(MIB, &mut memory[shift..]).unwrap();
            assert!(&memory[shift..] == data);
        }
        let mut before = vec![1; MIB as usize];
        device.read_at(0, &mut before).unwrap();
        assert!(before.iter().all(|byte| *byte == 0));
    });
}

#[test]
fn zeroed_and_discarded_ranges_read_zero_and_their_neighbours_stay() {
    each_device(|device| {
        device.write_at(0, &vec![0xCD; 4 * MIB as usize]).unwrap();
        device.write_zeroes(MIB, 65536).unwrap();
        device.discard(2 * MIB, 65536).unwrap();
        let mut bytes = vec![0; 4 * MIB as usize];
        device.read_at(0, &mut bytes).unwrap();
        for (position, byte) in bytes.into_iter().enumerate() {
            let position = position as u64;
            let zero = [MIB, 2 * MIB]
                .iter()
                .any(|start| (*start..start + 65536).contains(&position));
            assert_eq!(byte, if zero { 0 } else { 0xCD }, "byte {position}");
        }
    });
}

#[test]
fn nothing_reaches_beyond_the_end() {
    each_device(|device| {
        let mut memory = vec![0; 8192];
        let errors = [
            device.read_at(8 * MIB - 4096, &mut memory),
            device.write_at(8 * MIB - 4096, &memory),
            device.write_zeroes(8 * MIB, 4096),
            device.discard(u64::MAX - 4095, 8192),
        ];
        for result in errors {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
        assert_eq!(device.size_bytes().unwrap(), 8 * MIB);
    });
}

#[test]
fn second_opener_is_told_the_holder_and_gets_in_once_the_first_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    let first = FileDevice::create(&path, MIB, IoMode::Auto).unwrap();
    let error = FileDevice::open(&path, IoMode::Auto).unwrap_err();
    let own_pid = std::process::id();
    assert!(matches!(error, FileDeviceError::Locked { holder: Some(pid), .. } if pid == own_pid));
    assert!(
        error
            .to_string()
            .contains(&format!("in use by process {own_pid}"))
    );
    drop(first);
    FileDevice::open(&path, IoMode::Auto).unwrap();
}

#[test]
fn lock_goes_with_the_device_even_when_a_ring_was_just_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    drop(FileDevice::create(&path, MIB, IoMode::Auto).unwrap());
    for _ in 0..100 {
        let device = FileDevice::open(&path, IoMode::Auto).unwrap();
        if let Some(direct) = device.direct_file() {
            let waker = ring::Waker::new().unwrap();
            drop(ring::Ring::new(direct.file, 8, waker).unwrap());
        }
    }
}

#[test]
fn missing_existing_and_unfit_files_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    let missing = FileDevice::open(&path, IoMode::Auto).unwrap_err();
    assert!(matches!(missing, FileDeviceError::NotFound { .. }));
    drop(FileDevice::create(&path, MIB, IoMode::Auto).unwrap());
    let existing = FileDevice::create(&path, MIB, IoMode::Auto).unwrap_err();
    assert!(matches!(existing, FileDeviceError::Exists { .. }));
    let character_device = FileDevice::open(Path::new("/dev/null"), IoMode::Auto).unwrap_err();
    assert!(matches!(character_device, FileDeviceError::Io { .. }));
}

#[test]
fn threads_mode_offers_no_file_for_rings() {
    let directory = tempfile::tempdir().unwrap();
    let device = FileDevice::create(&directory.path().join("pool"), MIB, IoMode::Threads).unwrap();
    assert!(device.direct_file().is_none());
}

#[test]
fn dead_and_living_processes_are_told_apart() {
    assert!(!is_dead(std::process::id()));
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let pid = child.id();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_dead(pid) {
        assert!(Instant::now() < deadline, "a zombie counts as dead");
        std::thread::yield_now();
    }
    child.wait().unwrap();
    assert!(is_dead(pid));
}
