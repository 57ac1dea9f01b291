//! The thin driver's control side, judged by the contract's own suite, and the life of its file.

use std::sync::Arc;

use quarry_contract::conformance::volume_backend::{self, BackendFixture};
use quarry_contract::{DriverError, ErrorKind, PoolName, VolumeBackend};
use quarry_thin::sim::SimDevice;
use quarry_thin::{FormatOptions, IoMode, OpenOptions, Pool, PoolFile, ThinBackend};

const POOL_BYTES: u64 = 64 << 20;

fn format() -> FormatOptions {
    FormatOptions {
        log_bytes: 256 << 10,
        ..FormatOptions::default()
    }
}

/// Pools on media that lose what was not flushed.
#[derive(Default)]
struct Simulated(Option<Arc<SimDevice>>);

impl Simulated {
    fn open(&self) -> Arc<dyn VolumeBackend> {
        let device = Arc::clone(self.0.as_ref().expect("a device was made"));
        let pool = Pool::open(device, OpenOptions::default()).expect("opening the pool");
        Arc::new(ThinBackend::new(pool).expect("starting the backend"))
    }
}

impl BackendFixture for Simulated {
    fn fresh(&mut self) -> Arc<dyn VolumeBackend> {
        let device = SimDevice::new(POOL_BYTES, 1);
        Pool::format(&*device, &format()).expect("formatting");
        self.0 = Some(device);
        self.open()
    }

    fn power_cut(&mut self, backend: Arc<dyn VolumeBackend>) -> Option<Arc<dyn VolumeBackend>> {
        let device = self.0.take().expect("a device was made").power_cycle();
        drop(backend);
        self.0 = Some(device);
        Some(self.open())
    }
}

#[test]
fn the_thin_backend_keeps_the_contract() {
    volume_backend::run(&mut Simulated::default());
}

/// Pools in files, opened each time with the next of some ways of doing I/O.
struct Files {
    directory: tempfile::TempDir,
    ways: &'static [IoMode],
    openings: usize,
    files: u32,
}

impl Files {
    fn file(&mut self) -> PoolFile {
        self.openings += 1;
        PoolFile {
            path: self.directory.path().join(format!("pool-{}", self.files)),
            options: self.ways[self.openings % self.ways.len()].into(),
        }
    }
}

impl BackendFixture for Files {
    fn fresh(&mut self) -> Arc<dyn VolumeBackend> {
        self.files += 1;
        let made = ThinBackend::create_file(&self.file(), POOL_BYTES, &format(), OpenOptions::default());
        Arc::new(made.expect("making a pool"))
    }

    /// What the kernel holds survives, so this loses only the engine's own memory, as a kill does.
    fn power_cut(&mut self, backend: Arc<dyn VolumeBackend>) -> Option<Arc<dyn VolumeBackend>> {
        drop(backend);
        let opened = ThinBackend::open_file(&self.file(), OpenOptions::default());
        Some(Arc::new(opened.expect("recovery")))
    }
}

#[test]
fn the_thin_backend_keeps_the_contract_on_files_with_io_uring_without_and_by_turns() {
    let all: [&'static [IoMode]; 2] = [&[IoMode::Threads], &[IoMode::Uring, IoMode::Threads]];
    for ways in all {
        if ways.contains(&IoMode::Uring)
            && let Err(refused) = quarry_sys::ring::probe()
        {
            println!("SKIPPED: {ways:?}, because io_uring is not allowed here: {refused}");
            continue;
        }
        println!("{ways:?}");
        let mut files = Files {
            directory: tempfile::tempdir().expect("a temporary directory"),
            ways,
            openings: 0,
            files: 0,
        };
        volume_backend::run(&mut files);
    }
}

#[test]
fn a_pool_file_is_made_once_opened_again_and_never_made_over() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = PoolFile::at(directory.path().join("pool"));
    let options = || OpenOptions::named(PoolName::parse("default").expect("a good name"));
    let missing = ThinBackend::open_file(&file, options())
        .err()
        .expect("there is no file");
    assert!(missing.to_string().contains("does not exist"), "{missing}");

    let made = ThinBackend::open_or_create_file(&file, POOL_BYTES, &format(), options()).expect("making it");
    let uuid = made.pool().uuid();
    let second = ThinBackend::open_file(&file, options())
        .err()
        .expect("it is in use");
    assert!(
        second.to_string().contains(&std::process::id().to_string()),
        "{second}"
    );
    made.shutdown().expect("closing");
    drop(made);

    let again =
        ThinBackend::open_or_create_file(&file, POOL_BYTES, &format(), options()).expect("opening it");
    assert_eq!(again.pool().uuid(), uuid, "the pool that was there");
    again.shutdown().expect("closing");
    again.shutdown().expect("closing twice is fine");
    drop(again);
    let over = ThinBackend::create_file(&file, POOL_BYTES, &format(), options());
    assert!(matches!(over, Err(DriverError::Unavailable { .. })));
}

#[test]
fn a_file_whose_formatting_was_cut_short_is_formatted_and_a_foreign_one_is_not() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = PoolFile::at(directory.path().join("pool"));
    std::fs::File::create(&file.path)
        .and_then(|made| made.set_len(POOL_BYTES))
        .expect("making a sparse file");
    let backend = ThinBackend::open_or_create_file(&file, POOL_BYTES, &format(), OpenOptions::default());
    backend.expect("formatting it").shutdown().expect("closing");

    let mut foreign = vec![0; POOL_BYTES as usize];
    foreign[1080] = 0x53;
    std::fs::write(&file.path, &foreign).expect("writing a foreign file");
    let refused = ThinBackend::open_or_create_file(&file, POOL_BYTES, &format(), OpenOptions::default());
    let refused = refused.err().expect("a foreign file is refused");
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.to_string().contains("not a Quarry pool"), "{refused}");
    assert_eq!(
        std::fs::read(&file.path).expect("reading"),
        foreign,
        "it was not touched"
    );
}
