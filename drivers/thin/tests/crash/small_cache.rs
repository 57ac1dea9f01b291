//! A cache far smaller than what a checkpoint keeps in memory: reads go on all the same.

use std::sync::Arc;
use std::thread;

use quarry_contract::{DataSource, Durability, OpenMode, VersionId, VolumeId, VolumeSpec};
use quarry_thin::sim::{SimDevice, Stamp, Violation};
use quarry_thin::{FormatOptions, OpenOptions, Pool, PoolDevice, VersionHandle};

use crate::gated::{Call, GatedDevice};
use crate::seeds::for_each_seed;

const CHUNK: u64 = 16 << 10;
const LEAF: u64 = 512 * CHUNK;
/// More leaves than a pool without a cache keeps in memory beyond its budget.
const LEAVES: u64 = 100;

fn volume(pool: &Arc<Pool>, number: u128) -> Arc<VersionHandle> {
    let id = VolumeId(uuid::Uuid::from_u128(number));
    let spec = VolumeSpec::new(id, LEAVES * LEAF, DataSource::Blank);
    pool.create_volume(&spec).unwrap();
    pool.open_version(VersionId::Volume(id), OpenMode::ReadWrite)
        .unwrap()
}

fn write(handle: &VersionHandle, offset: u64) {
    let data = Stamp(1).bytes(offset, CHUNK as usize);
    handle.write(offset, &data, Durability::Cached).unwrap();
}

fn read(handle: &VersionHandle, offset: u64) {
    let mut bytes = vec![0xa5; CHUNK as usize];
    handle.read(offset, &mut bytes).unwrap();
    assert!(bytes == Stamp(1).bytes(offset, CHUNK as usize), "B1: {offset}");
}

fn reads_go_on_around_a_checkpoint(hold_at: Call) -> Result<(), Violation> {
    let device = GatedDevice::new(SimDevice::new(128 << 20, 1));
    let format = FormatOptions {
        chunk_bytes: CHUNK as u32,
        log_bytes: 1 << 20,
        ..FormatOptions::default()
    };
    Pool::format(&*device, &format).unwrap();
    let options = OpenOptions {
        cache_bytes: 0,
        ..OpenOptions::default()
    };
    let pool = Pool::open(Arc::clone(&device) as Arc<dyn PoolDevice>, options).unwrap();
    let (still, busy) = (volume(&pool, 1), volume(&pool, 2));
    write(&still, 0);
    pool.checkpoint().unwrap();
    pool.maintain().unwrap();
    for leaf in 0..LEAVES {
        write(&busy, leaf * LEAF);
    }
    // Leaves nothing to log, so that the checkpoint's first write is a map page.
    busy.flush().unwrap();
    thread::scope(|scope| {
        let (at_gate, waiting) = device.hold(Call::Write);
        scope.spawn(|| pool.checkpoint().unwrap());
        at_gate.recv().unwrap();
        // Everything that the checkpoint is storing is replaced meanwhile.
        for leaf in 0..LEAVES {
            write(&busy, leaf * LEAF + CHUNK);
        }
        if hold_at == Call::Flush {
            let (at_flush, waiting_in_flush) = device.hold(Call::Flush);
            drop(waiting);
            at_flush.recv().unwrap();
            read(&still, 0);
            drop(waiting_in_flush);
        }
    });
    read(&still, 0);
    let report = pool.check().unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    Ok(())
}

#[test]
fn a_read_ends_after_a_checkpoint_whose_pages_were_all_replaced() {
    let suite = "a_read_ends_after_a_checkpoint_whose_pages_were_all_replaced";
    for_each_seed(suite, 1, |_| reads_go_on_around_a_checkpoint(Call::Write));
}

#[test]
fn a_read_ends_while_a_checkpoint_waits_for_the_medium() {
    let suite = "a_read_ends_while_a_checkpoint_waits_for_the_medium";
    for_each_seed(suite, 1, |_| reads_go_on_around_a_checkpoint(Call::Flush));
}
