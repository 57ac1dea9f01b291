//! Growing on real files and block devices, and what happens when they shrink.
//!
//! Block devices are loop devices: as root, where the kernel has any; else those tests say that they are skipped.

mod disk;

use std::fs::OpenOptions as FileOpenOptions;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quarry_contract::conformance::requirement::{URING, skip};
use quarry_contract::{
    BlockDevice, BlockingQueue, DataSource, DriverError, Durability, ErrorKind, IoError, OpenMode,
    PoolGrowth, PoolState, VersionId, VolumeBackend, VolumeId, VolumeSpec,
};
use quarry_sys::loop_device::LoopDevice;
use quarry_thin::{FileOptions, FormatOptions, IoMode, OpenOptions, PoolFile, ThinBackend};
use uuid::Uuid;

const MIB: u64 = 1 << 20;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
        .block_on(future)
}

fn format() -> FormatOptions {
    FormatOptions {
        log_bytes: MIB,
        ..FormatOptions::default()
    }
}

fn file_at(path: &Path, mode: IoMode) -> PoolFile {
    PoolFile {
        path: path.into(),
        options: FileOptions::from(mode),
    }
}

fn open(path: &Path) -> Result<ThinBackend, DriverError> {
    ThinBackend::open_file(&file_at(path, IoMode::Auto), OpenOptions::default())
}

fn volume(backend: &ThinBackend) -> Arc<dyn BlockDevice> {
    let spec = VolumeSpec::new(VolumeId(Uuid::from_u128(1)), 1 << 30, DataSource::Blank);
    block_on(backend.create_volume(&spec)).expect("a volume");
    block_on(backend.open(VersionId::Volume(spec.id), OpenMode::ReadWrite)).expect("the volume")
}

fn piece(at: u64) -> Vec<u8> {
    (0..MIB).map(|byte| (byte / 512 + at / MIB * 7) as u8).collect()
}

/// Writes from `from` on until the pool is full; returns the end.
fn fill(queue: &mut BlockingQueue, from: u64) -> u64 {
    for at in (from..).step_by(MIB as usize) {
        match queue.write(at, &piece(at), Durability::Cached) {
            Ok(()) => {}
            Err(IoError::NoSpace) => return at,
            Err(error) => panic!("at {at}: {error}"),
        }
    }
    unreachable!()
}

fn verify(queue: &mut BlockingQueue, end: u64) {
    for at in (0..end).step_by(MIB as usize) {
        assert!(queue.read(at, MIB as usize).unwrap() == piece(at), "at {at}");
    }
    // Overwrites in place, which go through the ring where there is one.
    for at in (0..end).step_by(MIB as usize) {
        queue
            .write(at + 4096, &piece(at)[4096..65536], Durability::Cached)
            .unwrap();
    }
    queue.flush().unwrap();
    for at in (0..end).step_by(MIB as usize) {
        assert!(
            queue.read(at, MIB as usize).unwrap() == piece(at),
            "overwritten at {at}"
        );
    }
}

fn grow(backend: &ThinBackend, growth: PoolGrowth) -> bool {
    block_on(backend.grow(&growth))
        .unwrap_or_else(|error| panic!("{growth:?}: {error}"))
        .is_changed()
}

fn device(path: &Path, size_bytes: Option<u64>) -> PoolGrowth {
    PoolGrowth::Device {
        path: path.into(),
        size_bytes,
    }
}

#[test]
fn a_pool_in_a_file_grows_into_it_and_onto_another_in_every_way_of_doing_io() {
    for mode in [IoMode::Auto, IoMode::Uring, IoMode::Threads] {
        if mode == IoMode::Uring
            && let Err(refused) = quarry_sys::ring::probe()
        {
            skip(
                URING,
                format!("{mode:?} cannot be: io_uring is not allowed here: {refused}"),
            );
            continue;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pool");
        let file = file_at(&path, mode);
        let backend = ThinBackend::create_file(&file, 16 * MIB, &format(), OpenOptions::default()).unwrap();
        let opened = volume(&backend);
        let mut queue = BlockingQueue::open(&opened).unwrap();
        let end = fill(&mut queue, 0);
        assert!(grow(&backend, PoolGrowth::To { size_bytes: 32 * MIB }));
        assert!(!grow(&backend, PoolGrowth::To { size_bytes: 32 * MIB }), "V1");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 32 * MIB);
        let end = fill(&mut queue, end);
        let more = directory.path().join("more");
        assert!(grow(&backend, device(&more, Some(20 * MIB))));
        assert!(!grow(&backend, device(&more, Some(20 * MIB))), "V1");
        let end = fill(&mut queue, end);
        assert!(end >= 44 * MIB, "{end} bytes fitted");
        verify(&mut queue, end);
        let smaller = block_on(backend.grow(&PoolGrowth::To { size_bytes: MIB })).unwrap_err();
        assert_eq!(smaller.kind(), ErrorKind::InvalidArgument);
        let relative = block_on(backend.grow(&device(Path::new("some"), Some(MIB)))).unwrap_err();
        assert_eq!(relative.kind(), ErrorKind::InvalidArgument);
        let itself = block_on(backend.grow(&device(&path, None))).unwrap_err();
        assert_eq!(itself.kind(), ErrorKind::Unavailable, "{itself}");
        drop((queue, opened));
        backend.shutdown().unwrap();
        drop(backend);

        // Moved: the other one is looked for where it was added, then beside the first.
        let elsewhere = tempfile::tempdir().unwrap();
        let moved = elsewhere.path().join("renamed");
        std::fs::rename(&path, &moved).unwrap();
        open(&moved).expect("the other one is where it was added");
        std::fs::rename(&more, elsewhere.path().join("more")).unwrap();
        let backend = open(&moved).unwrap();
        let opened = volume(&backend);
        verify(&mut BlockingQueue::open(&opened).unwrap(), end);
        drop(opened);
        drop(backend);
        std::fs::remove_file(elsewhere.path().join("more")).unwrap();
        let error = open(&moved).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains(more.to_str().unwrap()), "{error}");
    }
}

/// A loop device over a file of its own, or why there is none.
fn loop_device(directory: &Path, name: &str, size_bytes: u64) -> Option<(PathBuf, LoopDevice)> {
    let backing = directory.join(name);
    let file = std::fs::File::create(&backing).unwrap();
    file.set_len(size_bytes).unwrap();
    let device = disk::loop_device(&backing)?;
    Some((backing, device))
}

#[test]
fn a_pool_on_a_block_device_grows_with_it_and_onto_another() {
    let directory = tempfile::tempdir().unwrap();
    let Some((backing, first)) = loop_device(directory.path(), "first", 16 * MIB) else {
        return;
    };
    let (_, second) = loop_device(directory.path(), "second", 16 * MIB).expect("another like the first");
    let file = file_at(first.path(), IoMode::Auto);
    let backend = ThinBackend::open_or_create_file(&file, 0, &format(), OpenOptions::default()).unwrap();
    let opened = volume(&backend);
    let mut queue = BlockingQueue::open(&opened).unwrap();
    let end = fill(&mut queue, 0);
    assert!(!grow(&backend, PoolGrowth::Noticed), "it is as large as it was");
    let refused = block_on(backend.grow(&PoolGrowth::To { size_bytes: 24 * MIB })).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    FileOpenOptions::new()
        .write(true)
        .open(&backing)
        .unwrap()
        .set_len(24 * MIB)
        .unwrap();
    first.update_capacity().unwrap();
    assert!(grow(&backend, PoolGrowth::Noticed));
    let end = fill(&mut queue, end);
    assert!(grow(&backend, device(second.path(), None)));
    let end = fill(&mut queue, end);
    assert!(end >= 32 * MIB, "{end} bytes fitted");
    verify(&mut queue, end);
    drop((queue, opened));
    backend.shutdown().unwrap();
    drop(backend);
    let backend = ThinBackend::open_file(&file, OpenOptions::default()).unwrap();
    let opened = volume(&backend);
    verify(&mut BlockingQueue::open(&opened).unwrap(), end);
    assert!(block_on(backend.check()).unwrap().is_empty());
}

/// A medium that shrinks under a pool, by this.
fn shrink_and_expect_a_stop(backend: &ThinBackend, shrink: impl FnOnce()) {
    let opened = volume(backend);
    let mut queue = BlockingQueue::open(&opened).unwrap();
    let end = fill(&mut queue, 0);
    queue.flush().unwrap();
    shrink();
    // Whatever is tried: an answer, and from some flush on the pool has stopped.
    let _ = queue.read(0, MIB as usize);
    let _ = queue.read(end - MIB, MIB as usize);
    let _ = queue.write(0, &piece(3), Durability::Cached);
    let _ = queue.write(end - MIB, &piece(end), Durability::Cached);
    let flushed = queue.flush();
    assert!(matches!(flushed, Err(IoError::Stopped { .. })), "{flushed:?}");
    let written = queue.write(0, &piece(0), Durability::Cached);
    assert!(matches!(written, Err(IoError::Stopped { .. })), "{written:?}");
    let status = block_on(backend.pool_status()).unwrap();
    assert!(matches!(status.state, PoolState::ReadOnly { .. }), "{status:?}");
    let created = block_on(backend.create_volume(&VolumeSpec::new(
        VolumeId(Uuid::from_u128(9)),
        MIB,
        DataSource::Blank,
    )));
    assert_eq!(created.unwrap_err().kind(), ErrorKind::Unavailable);
    let grown = block_on(backend.grow(&PoolGrowth::Noticed));
    assert_eq!(grown.unwrap_err().kind(), ErrorKind::Unavailable);
    drop((queue, opened));
    assert!(backend.shutdown().is_err());
}

#[test]
fn f3_a_pool_stops_when_its_file_or_one_that_was_added_is_cut_off() {
    for added in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pool");
        let file = file_at(&path, IoMode::Auto);
        let backend = ThinBackend::create_file(&file, 16 * MIB, &format(), OpenOptions::default()).unwrap();
        let mut cut = path.clone();
        if added {
            cut = directory.path().join("more");
            grow(&backend, device(&cut, Some(16 * MIB)));
        }
        shrink_and_expect_a_stop(&backend, || {
            FileOpenOptions::new()
                .write(true)
                .open(&cut)
                .unwrap()
                .set_len(4 * MIB)
                .unwrap();
        });
        drop(backend);
        let error = open(&path).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains("truncated"), "{error}");
    }
}

#[test]
fn f3_a_pool_stops_when_its_file_is_cut_off_and_made_as_long_again() {
    for threads in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pool");
        if !quarry_sys::file::tells_holes_at_once(&std::fs::File::create(&path).unwrap()).unwrap() {
            println!("SKIPPED: the file system here does not tell of holes");
            return;
        }
        std::fs::remove_file(&path).unwrap();
        let file = file_at(&path, if threads { IoMode::Threads } else { IoMode::Auto });
        let backend = ThinBackend::create_file(&file, 16 * MIB, &format(), OpenOptions::default()).unwrap();
        // Where the end is after a growth.
        grow(&backend, PoolGrowth::To { size_bytes: 24 * MIB });
        shrink_and_expect_a_stop(&backend, || {
            let file = FileOpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(24 * MIB - 4096).unwrap();
            file.set_len(24 * MIB).unwrap();
        });
    }
}

#[test]
fn a_pool_stops_when_the_disk_under_it_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let Some((backing, first)) = loop_device(directory.path(), "first", 16 * MIB) else {
        return;
    };
    let file = file_at(first.path(), IoMode::Auto);
    let backend = ThinBackend::open_or_create_file(&file, 0, &format(), OpenOptions::default()).unwrap();
    // What a pulled disk looks like: the device is there, and nothing it is asked succeeds.
    shrink_and_expect_a_stop(&backend, || {
        FileOpenOptions::new()
            .write(true)
            .open(&backing)
            .unwrap()
            .set_len(0)
            .unwrap();
        first.update_capacity().unwrap();
    });
}
