//! Encrypted volumes: what lies on the medium, who can open them, and what is left when they are gone.

use std::sync::Arc;

use quarry_contract::{
    DataSource, DriverError, Durability, Encryption, ErrorKind, OpenMode, Outcome, SnapshotId, SnapshotSpec,
    VersionId, VolumeId, VolumeKey, VolumeSpec, ZeroMode,
};
use quarry_thin::sim::SimDevice;
use quarry_thin::{
    Access, DeviceSet, Discarded, FormatOptions, OpenOptions, Pool, PoolError, VersionHandle, repair,
};
use uuid::Uuid;

const CHUNK: u64 = 16 << 10;
const SIZE: u64 = 600 * CHUNK;
/// What a slot begins with, and where in it the wrapped key is.
const SLOT_MAGIC: &[u8] = b"QRYKEY\0\0";
const SLOT_BYTES: usize = 512;
const WRAPPED: std::ops::Range<usize> = 40..112;

fn volume(number: u128) -> VolumeId {
    VolumeId(Uuid::from_u128(number))
}

fn snapshot(number: u128) -> SnapshotId {
    SnapshotId(Uuid::from_u128(0x5_0000 + number))
}

fn key(number: u8) -> VolumeKey {
    VolumeKey::new([number; 32])
}

fn spec(number: u128, source: DataSource) -> VolumeSpec {
    VolumeSpec::new(volume(number), SIZE, source)
}

fn formatted(device_bytes: u64) -> Arc<SimDevice> {
    let device = SimDevice::new(device_bytes, 1);
    let format = FormatOptions {
        chunk_bytes: CHUNK as u32,
        log_bytes: 256 << 10,
        ..FormatOptions::default()
    };
    Pool::format(&*device, &format).expect("formatting");
    device
}

fn open(device: &Arc<SimDevice>) -> Arc<Pool> {
    try_open(device).expect("opening the pool")
}

fn try_open(device: &Arc<SimDevice>) -> Result<Arc<Pool>, PoolError> {
    Pool::open(Arc::clone(device) as Arc<_>, OpenOptions::default())
}

fn create(pool: &Pool, number: u128, key_number: u8) {
    let created = pool.create_encrypted_volume(&spec(number, DataSource::Blank), &key(key_number));
    assert!(matches!(created, Ok(Outcome::Changed(_))), "{created:?}");
}

fn writable(pool: &Arc<Pool>, number: u128) -> Arc<VersionHandle> {
    pool.open_version(VersionId::Volume(volume(number)), OpenMode::ReadWrite)
        .expect("opening a volume")
}

fn take(pool: &Pool, number: u128, of: u128) {
    let spec = SnapshotSpec {
        id: snapshot(number),
        volume: volume(of),
    };
    pool.create_snapshots(&[spec]).expect("taking a snapshot");
}

fn maintain(pool: &Pool) {
    while pool.maintain().expect("maintaining").more {}
}

fn assert_sound(pool: &Pool) {
    let report = pool.check().expect("checking");
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

fn read(handle: &VersionHandle, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0xa5; length as usize];
    handle.read(offset, &mut bytes).expect("reading");
    bytes
}

/// Everything that was ever written to a medium, in 4 KiB cells.
fn cells(device: &SimDevice) -> impl Iterator<Item = (u64, Vec<u8>)> + '_ {
    let offsets = device.written_cells().into_iter();
    offsets.map(|offset| (offset, device.peek(offset, 4096)))
}

fn holds(device: &SimDevice, pattern: &[u8]) -> Option<u64> {
    cells(device).find_map(|(offset, cell)| {
        let at = cell.windows(pattern.len()).position(|window| window == pattern)?;
        Some(offset + at as u64)
    })
}

/// Where slots are that hold a key, and the wrapped keys.
fn wrapped_keys(device: &SimDevice) -> Vec<(u64, Vec<u8>)> {
    let slots = cells(device).flat_map(|(offset, cell)| {
        let sectors = cell.chunks(SLOT_BYTES).map(<[u8]>::to_vec).collect::<Vec<_>>();
        (offset..).step_by(SLOT_BYTES).zip(sectors)
    });
    slots
        .filter(|(_, sector)| sector.starts_with(SLOT_MAGIC))
        .map(|(offset, sector)| (offset, sector[WRAPPED].to_vec()))
        .collect()
}

/// Bytes that are found again wherever they end up, whatever their offset is.
fn secret(length: u64) -> Vec<u8> {
    b"a secret of 16 B".repeat(length as usize / 16)
}

/// Writes secrets in every way that there is.
fn write_in_every_way(pool: &Arc<Pool>, number: u128) {
    let handle = writable(pool, number);
    let write = |offset: u64, length: u64, durability| {
        handle
            .write(offset, &secret(length), durability)
            .expect("writing");
    };
    // Whole chunks, parts of a chunk, unaligned parts, and parts of a partial chunk.
    write(0, 8 * CHUNK, Durability::Cached);
    write(20 * CHUNK + 4096, 4096, Durability::Flushed);
    write(20 * CHUNK + 512, 1024, Durability::Cached);
    write(30 * CHUNK - 512, 1024 + CHUNK, Durability::Cached);
    handle.flush().expect("flushing");
    // In place, and after a snapshot.
    write(CHUNK, 4096, Durability::Cached);
    take(pool, number, number);
    write(2 * CHUNK + 8192, 4096, Durability::Cached);
    write(3 * CHUNK + 512, 512, Durability::Cached);
    write(4 * CHUNK, 2 * CHUNK, Durability::Cached);
    handle.discard(6 * CHUNK, CHUNK).expect("discarding");
    handle
        .write_zeroes(7 * CHUNK + 512, 4096, ZeroMode::KeepMapped)
        .expect("zeroing");
    handle.flush().expect("flushing");
    pool.create_volume(&spec(number + 1, DataSource::Snapshot(snapshot(number))))
        .expect("cloning");
    writable(pool, number + 1)
        .write(9 * CHUNK + 1024, &secret(3072), Durability::Flushed)
        .expect("writing to a clone");
}

/// Checks what [`write_in_every_way`] wrote.
fn assert_written_in_every_way(pool: &Arc<Pool>, number: u128) {
    let handle = writable(pool, number);
    let mut expected = vec![0; 40 * CHUNK as usize];
    let mut put = |offset: u64, bytes: &[u8]| {
        expected[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    };
    put(0, &secret(8 * CHUNK));
    put(20 * CHUNK + 4096, &secret(4096));
    put(20 * CHUNK + 512, &secret(1024));
    put(30 * CHUNK - 512, &secret(1024 + CHUNK));
    put(6 * CHUNK, &vec![0; CHUNK as usize]);
    put(7 * CHUNK + 512, &[0; 4096]);
    assert!(read(&handle, 0, 40 * CHUNK) == expected, "V6, B1");
    let view = pool
        .open_version(VersionId::Snapshot(snapshot(number)), OpenMode::ReadOnly)
        .expect("opening the snapshot");
    assert!(read(&view, 0, 8 * CHUNK) == secret(8 * CHUNK), "V4");
    let clone = writable(pool, number + 1);
    assert!(read(&clone, 9 * CHUNK + 1024, 3072) == secret(3072));
    assert_eq!(read(&clone, 9 * CHUNK, 1024), [0; 1024]);
    assert_eq!(read(&clone, 100 * CHUNK, CHUNK), vec![0; CHUNK as usize]);
}

#[test]
fn no_plaintext_reaches_the_medium_and_all_of_it_is_read_back() {
    let device = formatted(32 << 20);
    let pool = open(&device);
    create(&pool, 1, 1);
    write_in_every_way(&pool, 1);
    assert_written_in_every_way(&pool, 1);
    maintain(&pool);
    pool.checkpoint().expect("a checkpoint");
    assert_eq!(pool.stat().partial_chunks, 0, "all are filled");
    assert_written_in_every_way(&pool, 1);
    assert_eq!(holds(&device, &secret(16)), None, "Y1");
    assert_eq!(holds(&device, key(1).expose()), None, "K1");
    assert_sound(&pool);
    pool.close().expect("closing");
    drop(pool);

    let pool = open(&device);
    pool.unlock_version(VersionId::Volume(volume(1)), &key(1))
        .expect("unlocking");
    assert_written_in_every_way(&pool, 1);

    // The control: the same without encryption is found.
    let device = formatted(32 << 20);
    let pool = open(&device);
    pool.create_volume(&spec(1, DataSource::Blank)).expect("creating");
    write_in_every_way(&pool, 1);
    assert_written_in_every_way(&pool, 1);
    assert!(holds(&device, &secret(16)).is_some());
}

#[test]
fn equal_data_in_two_families_or_at_two_places_looks_different() {
    let device = formatted(32 << 20);
    let pool = open(&device);
    for number in [1, 2] {
        create(&pool, number, 1);
        writable(&pool, number)
            .write(0, &vec![7; 2 * CHUNK as usize], Durability::Flushed)
            .expect("writing");
    }
    let mut seen = std::collections::HashSet::new();
    let data_start = pool.stat().data_start_bytes;
    let mut data_cells = 0;
    for (offset, cell) in cells(&device).filter(|(offset, _)| *offset >= data_start) {
        let is_plain = cell.iter().filter(|byte| **byte == 0).count() > 1000;
        if !is_plain {
            data_cells += 1;
            for block in cell.chunks(16) {
                assert!(seen.insert(block.to_vec()), "twice, at {offset}");
            }
        }
    }
    assert_eq!(data_cells, 2 * 2 * CHUNK / 4096);
}

#[test]
fn after_a_restart_a_family_is_locked_until_its_key_is_handed_in() {
    let device = formatted(32 << 20);
    let pool = open(&device);
    create(&pool, 1, 1);
    create(&pool, 5, 2);
    write_in_every_way(&pool, 1);
    assert_eq!(
        pool.volume(volume(2)).expect("the clone").encryption,
        Encryption::Unlocked
    );
    drop(pool);
    let pool = open(&device);
    let id = VersionId::Volume(volume(1));
    for member in [id, VersionId::Volume(volume(2)), VersionId::Snapshot(snapshot(1))] {
        let refused = pool.open_version(member, OpenMode::ReadOnly).err();
        assert!(
            matches!(refused, Some(DriverError::Locked { .. })),
            "K3: {refused:?}"
        );
    }
    assert_eq!(pool.volumes().len(), 3, "K3: it is listed");
    assert_eq!(
        pool.volume(volume(1)).expect("it is there").encryption,
        Encryption::Locked
    );
    // All that needs no data works.
    take(&pool, 9, 1);
    pool.create_volume(&spec(9, DataSource::Snapshot(snapshot(9))))
        .expect("cloning");
    pool.extend_volume(volume(1), 2 * SIZE).expect("extending");
    maintain(&pool);

    let reads_before = device.counts().read_bytes;
    for wrong in [2, 3] {
        let refused = pool.unlock_version(id, &key(wrong)).err();
        let refused = refused.expect("K2: a wrong key");
        assert!(matches!(refused, DriverError::WrongKey { .. }), "{refused}");
        assert_eq!(refused.kind(), ErrorKind::WrongKey);
    }
    assert!(
        device.counts().read_bytes - reads_before <= 4 * 4096,
        "only the slot was read"
    );
    assert!(
        matches!(
            pool.open_version(id, OpenMode::ReadOnly).err(),
            Some(DriverError::Locked { .. })
        ),
        "K2"
    );
    // Any member's id will do, for all of them and for no other family.
    let unlocked = pool.unlock_version(VersionId::Snapshot(snapshot(9)), &key(1));
    assert!(matches!(unlocked, Ok(Outcome::Changed(()))));
    assert!(matches!(
        pool.unlock_version(id, &key(1)),
        Ok(Outcome::Unchanged(()))
    ));
    assert_eq!(
        pool.volume(volume(9)).expect("the clone").encryption,
        Encryption::Unlocked
    );
    assert_eq!(
        pool.volume(volume(5)).expect("the other").encryption,
        Encryption::Locked
    );
    assert_written_in_every_way(&pool, 1);
    assert_eq!(
        read(&writable(&pool, 1), SIZE, CHUNK),
        vec![0; CHUNK as usize],
        "V6: what an extend adds"
    );

    let held = writable(&pool, 2);
    assert!(matches!(pool.lock_version(id), Err(DriverError::Busy { .. })));
    drop(held);
    assert!(matches!(pool.lock_version(id), Ok(Outcome::Changed(()))));
    assert!(matches!(pool.lock_version(id), Ok(Outcome::Unchanged(()))));
    assert!(matches!(
        pool.open_version(id, OpenMode::ReadWrite).err(),
        Some(DriverError::Locked { .. })
    ));
}

#[test]
fn creating_again_is_the_same_volume_only_with_the_same_key() {
    let device = formatted(32 << 20);
    let pool = open(&device);
    create(&pool, 1, 1);
    drop(pool);
    let pool = open(&device);
    let blank = spec(1, DataSource::Blank);
    for refused in [
        pool.create_encrypted_volume(&blank, &key(2)),
        pool.create_volume(&blank),
        pool.create_encrypted_volume(
            &VolumeSpec {
                size_bytes: 2 * SIZE,
                ..blank
            },
            &key(1),
        ),
    ] {
        let Err(DriverError::AlreadyExists { differences, .. }) = refused else {
            panic!("V1: {refused:?}");
        };
        assert_eq!(differences.len(), 1, "{differences:?}");
    }
    let again = pool.create_encrypted_volume(&blank, &key(1));
    let Ok(Outcome::Unchanged(info)) = again else {
        panic!("V1: {again:?}");
    };
    assert_eq!(info.encryption, Encryption::Unlocked, "its key is there now");
    pool.create_volume(&spec(2, DataSource::Blank)).expect("creating");
    let refused = pool.create_encrypted_volume(&spec(2, DataSource::Blank), &key(1));
    assert!(matches!(refused, Err(DriverError::AlreadyExists { .. })));
    let refused = pool.create_encrypted_volume(&spec(3, DataSource::Volume(volume(1))), &key(1));
    assert_eq!(
        refused.expect_err("a clone with a key").kind(),
        ErrorKind::InvalidArgument
    );
    let refused = pool.unlock_version(VersionId::Volume(volume(2)), &key(1));
    assert_eq!(
        refused.expect_err("not encrypted").kind(),
        ErrorKind::InvalidArgument
    );
}

#[test]
fn a_change_of_the_key_leaves_one_that_opens_wherever_it_is_cut() {
    let change = |pool: &Pool| pool.change_key(VersionId::Volume(volume(1)), &key(1), &key(2));
    for cut in 0.. {
        let device = formatted(32 << 20);
        let pool = open(&device);
        create(&pool, 1, 1);
        write_in_every_way(&pool, 1);
        device.cut_power_at(cut);
        let changed = change(&pool);
        if changed.is_ok() {
            assert!(matches!(changed, Ok(Outcome::Changed(()))));
            assert!(cut >= 4, "two copies are written and flushed");
        }
        let was_cut = device.is_cut();
        let device = device.power_cycle();
        drop(pool);
        let pool = open(&device);
        let id = VersionId::Volume(volume(1));
        let opens = [1, 2].map(|number| {
            let opens = pool.unlock_version(id, &key(number)).is_ok();
            pool.lock_version(id).expect("locking");
            opens
        });
        assert!(opens.contains(&true), "cut {cut}: no key opens it");
        if changed.is_ok() {
            assert_eq!(opens, [false, true], "cut {cut}: it was changed durably");
        }
        // Whoever was not told repeats it.
        change(&pool).unwrap_or_else(|error| panic!("cut {cut}: {error}"));
        assert!(matches!(change(&pool), Ok(Outcome::Unchanged(()))));
        assert!(matches!(
            pool.unlock_version(id, &key(1)),
            Err(DriverError::WrongKey { .. })
        ));
        pool.unlock_version(id, &key(2)).expect("the new key");
        assert_written_in_every_way(&pool, 1);
        assert_sound(&pool);
        if !was_cut {
            break;
        }
    }
    let device = formatted(32 << 20);
    let pool = open(&device);
    create(&pool, 1, 1);
    let refused = pool.change_key(VersionId::Volume(volume(1)), &key(3), &key(4));
    assert!(matches!(refused, Err(DriverError::WrongKey { .. })));
}

#[test]
fn the_last_of_a_family_takes_its_key_with_it_wherever_the_delete_is_cut() {
    for cut in 0.. {
        let device = formatted(32 << 20);
        let pool = open(&device);
        create(&pool, 1, 1);
        create(&pool, 7, 1);
        write_in_every_way(&pool, 1);
        let all_keys = wrapped_keys(&device);
        assert_eq!(all_keys.len(), 4, "two copies for each family");
        pool.delete_snapshot(snapshot(1)).expect("deleting");
        pool.delete_volume(volume(1)).expect("deleting");
        assert_eq!(wrapped_keys(&device), all_keys, "the clone lives");
        pool.change_key(VersionId::Volume(volume(7)), &key(1), &key(7))
            .expect("changing the other's");
        let both = wrapped_keys(&device);
        let doomed = both
            .iter()
            .map(|(_, wrapped)| wrapped)
            .find(|wrapped| all_keys.iter().any(|(_, before)| before == *wrapped))
            .expect("that of the first family has not changed");
        device.cut_power_at(cut);
        let deleted = pool.delete_volume(volume(2));
        let was_cut = device.is_cut();
        if deleted.is_ok() {
            assert_eq!(holds(&device, doomed), None, "K4, Y3");
        }
        let device = device.power_cycle();
        drop(pool);
        let pool = open(&device);
        let gone = pool.volume(volume(2)).is_err();
        assert!(gone || deleted.is_err(), "V2");
        assert_eq!(holds(&device, doomed).is_some(), !gone, "cut {cut}: K4, Y3");
        if !gone {
            pool.unlock_version(VersionId::Volume(volume(2)), &key(1))
                .unwrap_or_else(|error| panic!("cut {cut}: {error}"));
            let clone = writable(&pool, 2);
            assert!(read(&clone, 0, 8 * CHUNK) == secret(8 * CHUNK));
        }
        pool.unlock_version(VersionId::Volume(volume(7)), &key(7))
            .expect("the other family has its key");
        maintain(&pool);
        assert_sound(&pool);
        if !was_cut {
            break;
        }
    }
}

#[test]
fn a_volume_is_made_with_its_key_or_not_at_all_wherever_it_is_cut() {
    for cut in 0.. {
        let device = formatted(32 << 20);
        let pool = open(&device);
        device.cut_power_at(cut);
        let created = pool.create_encrypted_volume(&spec(1, DataSource::Blank), &key(1));
        let was_cut = device.is_cut();
        let device = device.power_cycle();
        drop(pool);
        let pool = open(&device);
        let id = VersionId::Volume(volume(1));
        match pool.volume(volume(1)) {
            Ok(_) => pool
                .unlock_version(id, &key(1))
                .map(drop)
                .unwrap_or_else(|error| panic!("cut {cut}: {error}")),
            Err(_) => {
                assert!(created.is_err(), "V2");
                assert_eq!(wrapped_keys(&device), [], "cut {cut}: Y3");
            }
        }
        pool.create_encrypted_volume(&spec(1, DataSource::Blank), &key(1))
            .unwrap_or_else(|error| panic!("cut {cut}: {error}"));
        assert_eq!(wrapped_keys(&device).len(), 2);
        assert_sound(&pool);
        if !was_cut {
            assert!(created.is_ok());
            break;
        }
    }
}

#[test]
fn there_are_as_many_keys_as_there_are_families_and_slots_are_used_again() {
    let device = formatted(64 << 20);
    let pool = open(&device);
    let slots_per_area = CHUNK / SLOT_BYTES as u64;
    let families = 2 * slots_per_area + 3;
    for number in 1..=families {
        create(&pool, u128::from(number), number as u8);
    }
    assert_eq!(pool.stat().key_chunks, 6);
    for number in (2..=families).step_by(2) {
        pool.delete_volume(volume(u128::from(number))).expect("deleting");
    }
    for number in (2..=families).step_by(2) {
        create(&pool, u128::from(number), number as u8 + 100);
    }
    assert_eq!(pool.stat().key_chunks, 6, "slots are used again");
    drop(pool);
    let pool = open(&device);
    assert_eq!(pool.stat().key_chunks, 6);
    for number in 1..=families {
        let id = VersionId::Volume(volume(u128::from(number)));
        let own = number as u8 + if number % 2 == 0 { 100 } else { 0 };
        pool.unlock_version(id, &key(own)).expect("its own key");
        assert!(pool.unlock_version(id, &key(own + 1)).is_err());
    }
    maintain(&pool);
    assert_sound(&pool);
    let report = pool.check().expect("checking");
    assert_eq!(report.data_chunks, 6, "nothing but keys");
}

#[test]
fn a_full_pool_refuses_an_encrypted_volume_and_keeps_no_trace_of_it() {
    let device = formatted(2 << 20);
    let pool = open(&device);
    pool.create_volume(&spec(1, DataSource::Blank)).expect("creating");
    let handle = writable(&pool, 1);
    let full = (0..SIZE / CHUNK)
        .map(|chunk| handle.write(chunk * CHUNK, &vec![1; CHUNK as usize], Durability::Cached))
        .any(|written| written.is_err());
    assert!(full);
    let before = (pool.status().volume_count, pool.stat().key_chunks);
    let refused = pool.create_encrypted_volume(&spec(2, DataSource::Blank), &key(1));
    assert_eq!(refused.expect_err("V8").kind(), ErrorKind::Full);
    assert_eq!((pool.status().volume_count, pool.stat().key_chunks), before);
    assert_sound(&pool);
    handle.discard(0, 8 * CHUNK).expect("discarding");
    handle.flush().expect("flushing");
    maintain(&pool);
    create(&pool, 2, 1);
    assert_sound(&pool);
}

#[test]
fn a_lost_copy_of_a_key_is_told_put_right_and_not_needed() {
    let device = formatted(32 << 20);
    let pool = open(&device);
    create(&pool, 1, 1);
    write_in_every_way(&pool, 1);
    pool.close().expect("closing");
    drop(pool);
    let sound = device.power_cycle();
    let places: Vec<u64> = wrapped_keys(&sound).into_iter().map(|(at, _)| at).collect();
    assert_eq!(places.len(), 2);
    for lost in &places {
        // In the magic, the family, the checksum and the wrapped key.
        for byte in [3, 25, 38, 77] {
            let device = sound.fork(1);
            device.flip_bit(lost + byte, 2);
            let pool = open(&device);
            pool.unlock_version(VersionId::Volume(volume(1)), &key(1))
                .expect("the other copy");
            assert_written_in_every_way(&pool, 1);
            let problems = pool.check().expect("checking").problems;
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains("one copy of the key"), "{problems:?}");
            drop(pool);
            let medium = DeviceSet::of(device.clone());
            let report = repair(
                &medium,
                &OpenOptions::default(),
                Access::ReadWrite,
                Discarded::StaysAway,
            )
            .expect("repairing");
            assert_eq!((report.found.len(), report.remaining.len()), (1, 0), "{report:?}");
            assert_eq!(wrapped_keys(&device), wrapped_keys(&sound));
        }
    }
    let device = sound.fork(1);
    places.iter().for_each(|at| device.flip_bit(at + 77, 2));
    let pool = open(&device);
    let refused = pool.unlock_version(VersionId::Volume(volume(1)), &key(1));
    assert_eq!(refused.expect_err("both are lost").kind(), ErrorKind::Corrupt);
    let report = pool.check().expect("checking");
    assert_eq!(report.beyond_repair.len(), 1, "{report:?}");
    pool.delete_volume(volume(1)).expect("it can be deleted");
}

#[test]
fn a_pool_says_that_it_has_encrypted_volumes_only_when_it_has() {
    let incompat = |device: &SimDevice| device.peek(56, 8)[0];
    let device = formatted(32 << 20);
    let pool = open(&device);
    pool.create_volume(&spec(1, DataSource::Blank)).expect("creating");
    pool.checkpoint().expect("a checkpoint");
    assert_eq!(incompat(&device) & 8, 0, "who cannot decrypt may open it");
    create(&pool, 2, 1);
    assert_eq!(incompat(&device) & 8, 8);
}
