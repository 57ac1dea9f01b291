//! Pools of a newer Quarry, as their feature bits tell.

use std::collections::BTreeMap;
use std::sync::Arc;

use quarry_contract::{
    DataSource, Durability, ErrorKind, IoError, OpenMode, SnapshotId, SnapshotSpec, VersionId, VolumeId,
    VolumeSpec,
};
use quarry_thin::PoolError;
use quarry_thin::sim::SimDevice;
use uuid::Uuid;

use crate::damage::{formatted, open, rewrite_superblocks};

/// None that any version defines.
const UNKNOWN: [u64; 3] = [1 << 40, 1 << 62, 1 << 63];

const CHUNK: u64 = 64 << 10;

fn everything(device: &SimDevice) -> BTreeMap<u64, Vec<u8>> {
    let cells = device.written_cells().into_iter();
    cells.map(|offset| (offset, device.peek(offset, 4096))).collect()
}

/// A pool with a volume, a snapshot, and records that are in its log only.
fn used() -> Arc<SimDevice> {
    let device = formatted();
    let pool = open(&device).expect("a new pool");
    let volume = VolumeId(Uuid::from_u128(1));
    let spec = VolumeSpec {
        // Otherwise there is nothing for a scrub to begin with.
        checksums: true,
        ..VolumeSpec::new(volume, 64 * CHUNK, DataSource::Blank)
    };
    pool.create_volume(&spec).expect("a volume");
    let handle = pool.open_version(VersionId::Volume(volume), OpenMode::ReadWrite);
    let handle = handle.expect("the volume");
    handle
        .write(0, &[1; 65536], Durability::Flushed)
        .expect("a write");
    pool.checkpoint().expect("a checkpoint");
    let id = SnapshotId(Uuid::from_u128(2));
    pool.create_snapshots(&[SnapshotSpec { id, volume }])
        .expect("a snapshot");
    handle
        .write(4096, &[2; 4096], Durability::Flushed)
        .expect("a write");
    device
}

fn set(device: &SimDevice, at: usize, bit: u64) {
    let known = device.peek(at as u64, 8);
    let known = u64::from_le_bytes(known.try_into().expect("eight bytes"));
    rewrite_superblocks(device, at, &(known | bit).to_le_bytes());
}

#[test]
fn a_pool_with_an_unknown_ro_compat_bit_is_read_and_nothing_of_it_is_changed() {
    for bit in UNKNOWN {
        let device = used();
        set(&device, 48, bit);
        // A copy that an open for writing would put right.
        device.overwrite(4096, &[0; 4096]);
        let before = everything(&device);
        let pool = open(&device).expect("it may be read");
        let names_it = |text: &str| assert!(text.contains(&format!("{bit:#x}")), "{text}");
        names_it(pool.stopped().expect("it takes no writes"));
        let volume = VolumeId(Uuid::from_u128(1));
        let handle = pool.open_version(VersionId::Volume(volume), OpenMode::ReadWrite);
        let handle = handle.expect("the volume");
        let mut bytes = [0; 8192];
        handle.read(0, &mut bytes).expect("a read");
        assert!(
            bytes[..4096] == [1; 4096] && bytes[4096..] == [2; 4096],
            "its log counts"
        );
        let snapshot = SnapshotId(Uuid::from_u128(2));
        let taken = pool.open_version(VersionId::Snapshot(snapshot), OpenMode::ReadOnly);
        taken.expect("the snapshot").read(0, &mut bytes).expect("a read");
        assert_eq!(bytes, [1; 8192]);

        let refused = [
            handle.write(0, &[3; 4096], Durability::Cached),
            handle.write(32 * CHUNK, &[3; 65536], Durability::Flushed),
            handle.discard(0, 65536),
            handle.flush(),
        ];
        for refused in refused {
            match refused {
                Err(IoError::Stopped { reason }) => names_it(&reason),
                other => panic!("{other:?}"),
            }
        }
        let other = VolumeId(Uuid::from_u128(3));
        let spec = SnapshotSpec {
            id: SnapshotId(Uuid::from_u128(4)),
            volume,
        };
        let refused = [
            pool.create_volume(&VolumeSpec::new(other, CHUNK, DataSource::Blank))
                .map(drop),
            pool.create_snapshots(&[spec]).map(drop),
            pool.extend_volume(volume, 128 * CHUNK).map(drop),
            pool.delete_snapshot(snapshot).map(drop),
            pool.start_scrub().map(drop),
        ];
        for refused in refused {
            let error = refused.expect_err("a change");
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            names_it(&error.to_string());
        }
        assert!(matches!(pool.checkpoint(), Err(PoolError::Stopped { .. })));
        assert!(pool.maintain().is_err() || everything(&device) == before);
        let found = pool.check().expect("it can be checked").problems;
        assert!(
            found.iter().all(|problem| problem.contains("superblock")),
            "{found:?}"
        );
        drop(handle);
        let _ = pool.close();
        drop(pool);
        assert!(everything(&device) == before, "{bit:#x}: something was written");
    }
}

#[test]
fn a_pool_with_an_unknown_incompat_bit_is_refused_by_its_name_and_not_touched() {
    for bit in UNKNOWN {
        let device = used();
        set(&device, 56, bit);
        let before = everything(&device);
        match open(&device).map(drop) {
            Err(error @ PoolError::NewerFormat { .. }) => {
                assert!(error.to_string().contains(&format!("{bit:#x}")), "{error}");
            }
            other => panic!("{other:?}"),
        }
        assert!(everything(&device) == before, "{bit:#x}: something was written");
    }
}
