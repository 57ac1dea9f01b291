//! Calls of the device that fail: whatever was answered holds, and a pool that cannot be sure stops.

use quarry_contract::conformance::SplitMix;
use quarry_contract::{
    DataSource, Durability, IoError, OpenMode, PoolState, VersionId, VolumeId, VolumeSpec,
};
use quarry_thin::sim::{Fault, Mix, OpKind, Setup, SimDevice, Step, Violation, World};
use quarry_thin::{FormatOptions, OpenOptions, Pool};

use crate::seeds::for_each_seed;

/// Runs a history in which the `nth` call of a kind fails, for every `nth`, then cuts the power.
fn fail_everywhere(setup: &Setup, steps: usize, kind: OpKind, fault: Fault) -> Result<(), Violation> {
    for nth in 0.. {
        let mut world = World::begin(setup.clone())?;
        let done_before = world.device().counts();
        world.device().fail(kind, nth, 1 + nth % 2, fault);
        world.expect_faults();
        let step = world.run(steps)?;
        let done = world.device().counts();
        let asked = match kind {
            OpKind::Read => done.reads - done_before.reads,
            OpKind::Write => done.writes - done_before.writes,
            OpKind::Discard => done.discards - done_before.discards,
            OpKind::Flush => done.flushes - done_before.flushes,
            OpKind::Allocate => done.allocations - done_before.allocations,
        };
        if step == Step::Done {
            if asked <= nth {
                return Ok(());
            }
            world.device().heal();
            // An interrupted background step may have stopped the pool without failing a call.
            if world.pool().status().state == PoolState::Up {
                world.verify_now()?;
            }
        }
        world.recover()?;
        world.run(4)?;
        world.recover()?;
    }
    Ok(())
}

#[test]
fn a_failed_write_at_every_index_loses_nothing_that_was_answered() {
    let suite = "a_failed_write_at_every_index_loses_nothing_that_was_answered";
    for_each_seed(suite, 12, |seed| {
        fail_everywhere(&Setup::roomy(seed), 14, OpKind::Write, Fault::Io)
    });
}

#[test]
fn a_full_host_at_every_write_loses_nothing_that_was_answered() {
    let suite = "a_full_host_at_every_write_loses_nothing_that_was_answered";
    for_each_seed(suite, 12, |seed| {
        fail_everywhere(&Setup::roomy(seed), 14, OpKind::Write, Fault::NoSpace)
    });
}

#[test]
fn a_failed_flush_at_every_index_loses_nothing_that_was_answered() {
    let suite = "a_failed_flush_at_every_index_loses_nothing_that_was_answered";
    for_each_seed(suite, 20, |seed| {
        fail_everywhere(&Setup::roomy(seed), 14, OpKind::Flush, Fault::Io)
    });
}

#[test]
fn a_failed_read_at_every_index_loses_nothing_that_was_answered() {
    let suite = "a_failed_read_at_every_index_loses_nothing_that_was_answered";
    for_each_seed(suite, 12, |seed| {
        fail_everywhere(&Setup::roomy(seed), 14, OpKind::Read, Fault::Io)
    });
}

#[test]
fn a_failed_discard_at_every_index_loses_nothing_that_was_answered() {
    let suite = "a_failed_discard_at_every_index_loses_nothing_that_was_answered";
    for_each_seed(suite, 6, |seed| {
        // Much is freed, and background work gets to discard it.
        let mix = Mix {
            discard: 30,
            delete: 16,
            maintain: 40,
            ..Mix::everything(2)
        };
        let setup = Setup {
            discard_freed: true,
            mix,
            ..Setup::roomy(seed)
        };
        fail_everywhere(&setup, 60, OpKind::Discard, Fault::Io)
    });
}

/// A flush fails, the process is started again with the power on, lives on, and then the power is cut: what
/// reads showed in between was in caches that the failed flush had given up.
fn fail_flush_restart_and_cut(setup: &Setup, steps: usize) -> Result<(), Violation> {
    for nth in 0.. {
        let mut world = World::begin(setup.clone())?;
        world.device().fail(OpKind::Flush, nth, 1, Fault::Io);
        world.expect_faults();
        if world.run(steps)? == Step::Done && !world.device().pretends() {
            return Ok(());
        }
        world.restart()?;
        if nth % 3 == 0 {
            // Nobody writes before the cut: the open alone has to make durable what it was built on.
            world.recover()?;
        }
        world.run(12)?;
        world.recover()?;
    }
    Ok(())
}

#[test]
fn a_failed_flush_and_a_restart_lose_nothing_that_is_answered_later() {
    let suite = "a_failed_flush_and_a_restart_lose_nothing_that_is_answered_later";
    for_each_seed(suite, 40, |seed| {
        fail_flush_restart_and_cut(&Setup::roomy(seed), 14)
    });
}

/// The same with little but control calls and checkpoints, which rewrite log and superblocks all the time.
#[test]
fn a_failed_flush_under_checkpoints_and_a_restart_lose_nothing_that_is_answered_later() {
    let suite = "a_failed_flush_under_checkpoints_and_a_restart_lose_nothing_that_is_answered_later";
    for_each_seed(suite, 40, |seed| {
        let mix = Mix {
            write: 10,
            flush: 4,
            checkpoint: 20,
            ..Mix::everything(0)
        };
        let setup = Setup {
            mix,
            ..Setup::roomy(seed)
        };
        fail_flush_restart_and_cut(&setup, 14)
    });
}

/// Many faults of all kinds in one long life.
#[test]
fn random_faults_lose_nothing_that_was_answered() {
    let suite = "random_faults_lose_nothing_that_was_answered";
    for_each_seed(suite, 500, |seed| {
        let mut random = SplitMix::new(seed);
        let mut world = World::begin(Setup::roomy(seed))?;
        for _ in 0..5 {
            for _ in 0..3 {
                let kinds = [OpKind::Write, OpKind::Flush, OpKind::Read, OpKind::Discard];
                let kind = kinds[random.below(4) as usize];
                let fault = if random.below(2) == 0 {
                    Fault::Io
                } else {
                    Fault::NoSpace
                };
                world
                    .device()
                    .fail(kind, random.below(60), 1 + random.below(3), fault);
            }
            world.expect_faults();
            world.run(40)?;
            if random.below(3) == 0 {
                world.restart()?;
                world.run(10)?;
            }
            world.recover()?;
        }
        Ok(())
    });
}

fn volume() -> VolumeSpec {
    VolumeSpec::new(VolumeId(uuid::Uuid::from_u128(1)), 1 << 20, DataSource::Blank)
}

#[test]
fn a_failed_flush_stops_the_pool_until_it_is_reopened() {
    let device = SimDevice::new(32 << 20, 1);
    let format = FormatOptions {
        log_bytes: 64 << 10,
        ..FormatOptions::default()
    };
    Pool::format(device.as_ref(), &format).unwrap();
    let pool = Pool::open(device.clone(), OpenOptions::default()).unwrap();
    pool.create_volume(&volume()).unwrap();
    let id = VersionId::Volume(volume().id);
    let handle = pool.open_version(id, OpenMode::ReadWrite).unwrap();
    // The second one settles the batch of the first, so that the third needs no flush.
    handle.write(0, &[1; 4096], Durability::Flushed).unwrap();
    handle.write(0, &[1; 4096], Durability::Flushed).unwrap();
    device.fail(OpKind::Flush, 0, 1, Fault::Io);
    handle.write(0, &[2; 4096], Durability::Cached).unwrap();
    assert!(
        matches!(handle.flush(), Err(IoError::Stopped { .. })),
        "the flush that failed"
    );
    // The medium works again, and the pool must not believe it.
    assert!(matches!(handle.flush(), Err(IoError::Stopped { .. })));
    assert!(matches!(
        handle.write(0, &[3; 4096], Durability::Cached),
        Err(IoError::Stopped { .. })
    ));
    assert!(matches!(handle.discard(0, 65536), Err(IoError::Stopped { .. })));
    assert!(matches!(
        handle.plan_write(0, 4096),
        quarry_thin::Planned::NeedsSlowPath
    ));
    assert!(matches!(pool.status().state, PoolState::ReadOnly { .. }));
    let other = VolumeSpec {
        id: VolumeId(uuid::Uuid::from_u128(2)),
        ..volume()
    };
    assert!(pool.create_volume(&other).is_err());
    assert!(
        pool.close().is_err(),
        "a stopped pool cannot be closed in good order"
    );
    drop((handle, pool));
    let pool = Pool::open(device.power_cycle(), OpenOptions::default()).unwrap();
    let handle = pool.open_version(id, OpenMode::ReadOnly).unwrap();
    let mut bytes = [0; 4096];
    handle.read(0, &mut bytes).unwrap();
    assert!(bytes == [1; 4096] || bytes == [2; 4096] || bytes.chunks(512).all(|s| s[0] == 1 || s[0] == 2));
    assert!(pool.check().unwrap().problems.is_empty());
}
