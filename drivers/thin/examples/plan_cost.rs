//! Prints what a look-up costs: nanoseconds per plan for reads and overwrites of one chunk and of many, with none
//! and with a thousand snapshots of the volume.
//!
//! `cargo run --release -p quarry-thin --example plan_cost [DIRECTORY]` (default: /dev/shm)

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use quarry_contract::{
    DataSource, Durability, OpenMode, SnapshotId, SnapshotSpec, VersionId, VolumeId, VolumeSpec,
};
use quarry_thin::{FileDevice, FormatOptions, IoMode, OpenOptions, Planned, Pool, VersionHandle};
use uuid::Uuid;

const VOLUME_BYTES: u64 = 256 << 20;
const PLANS: u64 = 1_000_000;

fn main() -> anyhow::Result<()> {
    let directory = std::env::args()
        .nth(1)
        .map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from);
    let directory = tempfile::tempdir_in(directory)?;
    let device = FileDevice::create(&directory.path().join("pool"), 1 << 30, IoMode::Threads)?;
    Pool::format(&device, &FormatOptions::default())?;
    let pool = Pool::open(Arc::new(device), OpenOptions::default())?;
    let volume = VolumeId(Uuid::from_u128(1));
    pool.create_volume(&VolumeSpec::new(volume, VOLUME_BYTES, DataSource::Blank))?;
    let handle = pool.open_version(VersionId::Volume(volume), OpenMode::ReadWrite)?;
    fill(&handle)?;
    measure(&handle, "no snapshot");

    let started = Instant::now();
    for number in 0..1000 {
        pool.create_snapshots(&[SnapshotSpec {
            id: SnapshotId(Uuid::from_u128(number)),
            volume,
        }])?;
    }
    println!(
        "1000 snapshots: {:.1} µs each",
        started.elapsed().as_secs_f64() * 1e3
    );
    fill(&handle)?;
    measure(&handle, "1000 snapshots");
    Ok(())
}

fn fill(handle: &VersionHandle) -> anyhow::Result<()> {
    let data = vec![7; 1 << 20];
    for offset in (0..VOLUME_BYTES).step_by(data.len()) {
        handle.write(offset, &data, Durability::Cached)?;
    }
    Ok(handle.flush()?)
}

fn measure(handle: &VersionHandle, what: &str) {
    for (length, plans) in [(4096usize, PLANS), (1 << 20, PLANS / 16)] {
        let each = |plan: &dyn Fn(u64) -> Planned| {
            let blocks = (VOLUME_BYTES - length as u64) / 4096;
            let started = Instant::now();
            for i in 0..plans {
                let offset = i.wrapping_mul(0x9E37_79B9_7F4A_7C15) % blocks * 4096;
                let planned = black_box(plan(offset));
                assert!(matches!(planned, Planned::Direct(_)));
            }
            started.elapsed().as_nanos() as f64 / plans as f64
        };
        let read = each(&|offset| handle.plan_read(offset, length));
        let write = each(&|offset| handle.plan_write(offset, length));
        println!("{what}, {length} bytes: read {read:.0} ns, overwrite {write:.0} ns");
    }
}
