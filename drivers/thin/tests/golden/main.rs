//! Pools that older versions have written open, hold what they held, and can be gone on with.
//!
//! An image is never changed and never deleted. A new one is added when the format has changed:
//! `QUARRY_GOLDEN_IMAGE=drivers/thin/tests/golden/images/NAME cargo test -p quarry-thin --test golden` writes it; with
//! `QUARRY_GOLDEN_BYTES=SIZE` too, of a pool that has grown to so many bytes. It
//! holds the size of the medium (8 bytes, little-endian), then each block that is not all zeros: its offset (8 bytes)
//! and its 4096 bytes.

mod history;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use quarry_contract::{Durability, Encryption, OpenMode, ScrubState, VersionId, VolumeId, VolumeKey};
use quarry_thin::{FileDevice, FormatOptions, IoMode, OpenOptions, Pool};

use history::{Model, PoolSubject, play};

const POOL_BYTES: u64 = 4 << 20;
/// The image whose volumes are encrypted.
const ENCRYPTED_IMAGE: &str = "1-encryption";
/// The image whose volumes have checksums.
const CHECKSUMS_IMAGE: &str = "1-checksums";
/// The image of a pool like that, in which a scrub is running.
const SCRUB_IMAGE: &str = "1-scrub";
/// The image in which a partial chunk lends.
const LENDERS_IMAGE: &str = "1-partial-lenders";
/// The image in which one does and its volumes have checksums.
const CHECKSUMMED_LENDERS_IMAGE: &str = "1-checksummed-lenders";
const BLOCK: usize = 4096;

fn is_checksummed(image: &Path) -> bool {
    [CHECKSUMS_IMAGE, SCRUB_IMAGE, CHECKSUMMED_LENDERS_IMAGE]
        .iter()
        .any(|name| image.ends_with(name))
}

fn has_lenders(image: &Path) -> bool {
    image.ends_with(LENDERS_IMAGE) || image.ends_with(CHECKSUMMED_LENDERS_IMAGE)
}

/// The key of the volumes in the images that have encrypted ones.
fn key() -> VolumeKey {
    VolumeKey::new(*b"the key of every encrypted image")
}

fn open(path: &Path) -> Arc<Pool> {
    let device = FileDevice::open(path, IoMode::Threads).unwrap();
    let pool = Pool::open(Arc::new(device), OpenOptions::default()).unwrap();
    for volume in pool.volumes() {
        if volume.encryption != Encryption::None {
            pool.unlock_version(VersionId::Volume(volume.id), &key()).unwrap();
        }
    }
    pool
}

/// Makes the pool of the history, as a killed process leaves it.
fn write_image(image: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    let device = FileDevice::create(&path, POOL_BYTES, IoMode::Threads).unwrap();
    let options = FormatOptions {
        uuid: uuid::Uuid::from_u128(0x901d),
        chunk_bytes: 16 << 10,
        log_bytes: 64 << 10,
    };
    Pool::format(&device, &options).unwrap();
    drop(device);
    let mut subject = PoolSubject::of(open(&path));
    subject.key = image.ends_with(ENCRYPTED_IMAGE).then(key);
    subject.checksums = is_checksummed(image);
    play(&mut subject);
    drop(subject);
    if let Some(size) = std::env::var_os("QUARRY_GOLDEN_BYTES") {
        let pool = open(&path);
        let size_bytes = size.to_str().and_then(|size| size.parse().ok());
        pool.enlarge(size_bytes).unwrap();
        let id = VersionId::Volume(VolumeId(uuid::Uuid::from_u128(1)));
        let volume = pool.open_version(id, OpenMode::ReadWrite).unwrap();
        volume.flush().unwrap();
    }
    if image.ends_with(SCRUB_IMAGE) {
        let pool = open(&path);
        pool.start_scrub().unwrap();
        pool.maintain().unwrap();
        let id = VersionId::Volume(VolumeId(uuid::Uuid::from_u128(1)));
        let volume = pool.open_version(id, OpenMode::ReadWrite).unwrap();
        volume.flush().unwrap();
    }
    if has_lenders(image) {
        let pool = open(&path);
        // A clone that shares a partial chunk; what it is given there is what it holds.
        let id = VersionId::Volume(VolumeId(uuid::Uuid::from_u128(3)));
        let volume = pool.open_version(id, OpenMode::ReadWrite).unwrap();
        let (at, mut bytes) = (104 << 10, [0; BLOCK]);
        volume.read(at, &mut bytes).unwrap();
        volume.write(at, &bytes, Durability::Flushed).unwrap();
    }
    let bytes = fs::read(&path).unwrap();
    let mut packed = (bytes.len() as u64).to_le_bytes().to_vec();
    for (number, block) in bytes.chunks(BLOCK).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            packed.extend_from_slice(&((number * BLOCK) as u64).to_le_bytes());
            packed.extend_from_slice(block);
        }
    }
    fs::write(image, packed).unwrap();
}

fn unpack(image: &Path, path: &Path) {
    let packed = fs::read(image).unwrap();
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    let file = File::create_new(path).unwrap();
    file.set_len(word(&packed[..8])).unwrap();
    for block in packed[8..].chunks_exact(8 + BLOCK) {
        file.write_all_at(&block[8..], word(&block[..8])).unwrap();
    }
}

#[test]
fn every_image_ever_written_opens_and_holds_its_contents() {
    if let Some(image) = std::env::var_os("QUARRY_GOLDEN_IMAGE") {
        write_image(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(image));
    }
    let mut model = Model::default();
    play(&mut model);
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images");
    let mut opened = 0;
    for entry in fs::read_dir(images).unwrap() {
        let image = entry.unwrap().path();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pool");
        unpack(&image, &path);
        // As it was left, after a checkpoint in today's format, and opened once more.
        for round in 0..3 {
            let pool = open(&path);
            let has_checksums = pool.volumes().iter().all(|volume| volume.checksums);
            assert_eq!(has_checksums, is_checksummed(&image), "{image:?}");
            let scrub = match (image.ends_with(SCRUB_IMAGE), round) {
                (false, _) => ScrubState::Never,
                (true, 0 | 1) => ScrubState::Running,
                (true, _) => ScrubState::Done,
            };
            assert_eq!(pool.scrub_status().unwrap().state, scrub, "{image:?}");
            let partial = pool.partial_chunks();
            let is_partial = |chunk| partial.iter().any(|partial| partial.chunk == chunk);
            let some_lend = partial
                .iter()
                .filter_map(|partial| partial.lender)
                .any(is_partial);
            assert_eq!(some_lend, has_lenders(&image) && round < 2, "{image:?}");
            let report = pool.check().unwrap();
            assert!(report.problems.is_empty(), "{image:?}, round {round}: {report:?}");
            model.compare(&pool, &format!("{image:?}, round {round}"));
            if round == 1 {
                while pool.maintain().unwrap().more {}
                pool.close().unwrap();
                assert!(pool.stat().is_table_complete, "{image:?}");
            }
        }
        // And it can be gone on with, with what the format did not have then.
        let pool = open(&path);
        let reserved = pool.reserve_volume(VolumeId(uuid::Uuid::from_u128(1)), true);
        assert!(reserved.unwrap().is_changed(), "{image:?}");
        let id = VersionId::Volume(VolumeId(uuid::Uuid::from_u128(1)));
        let volume = pool.open_version(id, OpenMode::ReadWrite).unwrap();
        volume.write(8192, &[7; 4096], Durability::Flushed).unwrap();
        drop(volume);
        drop(pool);
        let pool = open(&path);
        assert!(pool.volume(VolumeId(uuid::Uuid::from_u128(1))).unwrap().reserved);
        let mut bytes = [0; 4096];
        let volume = pool.open_version(id, OpenMode::ReadOnly).unwrap();
        volume.read(8192, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 4096], "{image:?}");
        opened += 1;
    }
    assert!(opened >= 8, "{opened} images");
}
