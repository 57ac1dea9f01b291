//! Repair: what can be derived is put right, what cannot is named, nothing is made up and nothing gets worse.

use std::cell::Cell;
use std::sync::Arc;

use quarry_contract::conformance::SplitMix;
use quarry_contract::{DataSource, Durability, OpenMode, VersionId, VolumeId, VolumeSpec};
use quarry_thin::sim::{Action, Setup, SimDevice, Stamp, Violation, World};
use quarry_thin::{
    Access, DeviceSet, Discarded, FormatOptions, OpenOptions, Pool, PoolDevice, PoolError, RepairReport,
    repair,
};
use uuid::Uuid;

use crate::damage::{closed_pool, holds_data};
use crate::seeds::for_each_seed;

fn run(device: &Arc<SimDevice>, access: Access) -> Result<RepairReport, PoolError> {
    let device: Arc<dyn PoolDevice> = Arc::clone(device) as _;
    repair(
        &DeviceSet::of(device),
        &OpenOptions::default(),
        access,
        Discarded::StaysAway,
    )
}

fn failed(what: &str) -> impl Fn(PoolError) -> Violation {
    move |error| Violation(format!("{what}: {error}"))
}

/// Makes a pool whose process was killed in the middle of things, with records in its log.
pub fn killed_pool(seed: u64) -> Result<World, Violation> {
    let setup = Setup {
        discard_freed: false,
        encrypted: false,
        ..Setup::roomy(seed)
    };
    let mut world = World::begin(setup)?;
    world.run(60)?;
    world.carry_out(Action::CleanReopen)?;
    world.run(20)?;
    // The commit of this makes everything before it durable.
    world.carry_out(Action::Create {
        volume: 1_000_000,
        size_bytes: 1 << 20,
    })?;
    world.abandon();
    Ok(world)
}

/// Returns the blocks of metadata outside the log, which has no second copy.
fn metadata_cells(device: &SimDevice) -> Vec<u64> {
    let superblock = device.peek(0, 4096);
    let word = |at: usize| u64::from_le_bytes(superblock[at..at + 8].try_into().expect("eight bytes"));
    let log = word(80)..word(80) + word(88) * 4096;
    let cells = device.written_cells().into_iter();
    cells
        .filter(|offset| !log.contains(offset) && !holds_data(device, *offset))
        .collect()
}

/// Opens the repaired pool and finds nothing wrong with it.
fn assert_sound(world: &World, device: Arc<SimDevice>, what: &str) -> Result<(), Violation> {
    let mut world = world.branch(device);
    world.try_open().map_err(failed(what))?;
    let survey = world.survey_damage()?;
    if survey.unreadable > 0 || !survey.problems.is_empty() {
        let problems = survey.problems.join("; ");
        return Err(Violation(format!(
            "{what}: {} unreadable, {problems}",
            survey.unreadable
        )));
    }
    Ok(())
}

#[test]
fn damage_to_any_one_block_of_metadata_is_put_right() {
    let found = Cell::new(0u32);
    for_each_seed("damage_to_any_one_block_of_metadata_is_put_right", 12, |seed| {
        let world = if seed % 2 == 0 {
            closed_pool(seed)?
        } else {
            killed_pool(seed)?
        };
        let mut random = SplitMix::new(seed);
        for offset in metadata_cells(world.device()) {
            let what = format!("block {offset}");
            let device = world.device().fork(seed);
            match random.below(3) {
                0 => device.overwrite(offset, &[0; 4096]),
                1 => device.overwrite(offset, &[0xff; 4096]),
                _ => device.flip_bit(offset + random.below(4096), random.below(8) as u8),
            }
            let before = device.counts();
            let advice = run(&device, Access::ReadOnly).map_err(failed(&what))?;
            if device.counts().changes() != before.changes() {
                return Err(Violation(format!("{what}: looking at it changed it")));
            }
            let report = run(&device, Access::ReadWrite).map_err(failed(&what))?;
            if report.found != advice.found || !report.remaining.is_empty() || !advice.remaining.is_empty() {
                return Err(Violation(format!("{what}: {advice:?}, then {report:?}")));
            }
            found.set(found.get() + u32::from(!report.found.is_empty()));
            let again = run(&device, Access::ReadOnly).map_err(failed(&what))?;
            if !again.found.is_empty() {
                return Err(Violation(format!("{what}: after the repair {again:?}")));
            }
            assert_sound(&world, device, &what)?;
        }
        Ok(())
    });
    println!("{} damaged blocks were found and put right", found.get());
    assert!(found.get() > 100, "{} were found", found.get());
}

#[test]
fn a_repair_that_loses_power_can_be_begun_again() {
    for_each_seed("a_repair_that_loses_power_can_be_begun_again", 8, |seed| {
        let world = killed_pool(seed)?;
        let cells = metadata_cells(world.device());
        let mut random = SplitMix::new(seed);
        for _ in 0..6 {
            let offset = cells[random.below(cells.len() as u64) as usize];
            for nth in 0.. {
                let what = format!("block {offset}, power cut at change {nth}");
                let device = world.device().fork(seed);
                device.overwrite(offset, &[0xa5; 4096]);
                // What the dead process left is durable; what the repair writes is not.
                device.flush().map_err(|error| Violation(error.to_string()))?;
                device.cut_power_at(nth);
                let outcome = run(&device, Access::ReadWrite);
                if !device.is_cut() {
                    break;
                }
                if outcome.is_ok_and(|report| report.remaining.is_empty() && !report.found.is_empty()) {
                    // The cut hit the very last copies, after everything that the answer rests on.
                    continue;
                }
                let device = device.power_cycle();
                let report = run(&device, Access::ReadWrite).map_err(failed(&what))?;
                if !report.remaining.is_empty() {
                    return Err(Violation(format!("{what}: {report:?}")));
                }
                assert_sound(&world, device, &what)?;
            }
        }
        Ok(())
    });
}

#[test]
fn what_is_beyond_repair_is_named_and_left_alone() {
    let beyond = Cell::new(0u32);
    for_each_seed("what_is_beyond_repair_is_named_and_left_alone", 30, |seed| {
        let world = closed_pool(seed)?;
        let cells = metadata_cells(world.device());
        let mut random = SplitMix::new(seed);
        for round in 0..10 {
            let device = world.device().fork(seed);
            for _ in 0..2 + random.below(10) {
                let offset = cells[random.below(cells.len() as u64) as usize];
                device.overwrite(offset, &[0; 4096]);
            }
            let remaining = match run(&device, Access::ReadWrite) {
                Ok(report) => report.remaining,
                Err(PoolError::NotAPool) => continue,
                Err(error) => return Err(Violation(format!("round {round}: {error}"))),
            };
            let mut repaired = world.branch(device);
            match repaired.try_open() {
                Ok(()) => {
                    // Whatever can be read is right, and what cannot was named.
                    let survey = repaired.survey_damage()?;
                    if survey.unreadable > 0 && remaining.is_empty() {
                        return Err(Violation(format!(
                            "round {round}: unreadable, but nothing was named"
                        )));
                    }
                }
                Err(error) if remaining.is_empty() => {
                    return Err(Violation(format!("round {round}: repaired, but {error}")));
                }
                Err(_) => {}
            }
            beyond.set(beyond.get() + u32::from(!remaining.is_empty()));
        }
        Ok(())
    });
    assert!(beyond.get() > 0, "nothing was beyond repair");
}

/// An empty pool on two devices of so many MiB, with chunks of [`CHUNK`] and a short log.
pub fn new_pool_on_two(mib: [u64; 2]) -> ([Arc<SimDevice>; 2], Arc<Pool>) {
    let media = [SimDevice::new(mib[0] << 20, 1), SimDevice::new(mib[1] << 20, 2)];
    let pool = new_pool_on([media[0].clone(), media[1].clone()]);
    (media, pool)
}

/// As [`new_pool_on_two`], on these devices.
pub fn new_pool_on(devices: [Arc<dyn PoolDevice>; 2]) -> Arc<Pool> {
    let [first, second] = devices;
    let format = FormatOptions {
        chunk_bytes: CHUNK as u32,
        log_bytes: 64 << 10,
        ..FormatOptions::default()
    };
    Pool::format(&*first, &format).expect("formatting");
    let pool = Pool::open(first, OpenOptions::default()).expect("opening");
    pool.add_device(second, "/second").expect("growing");
    pool
}

/// A pool on two devices with a volume that is on both, closed.
fn grown_pool() -> [Arc<SimDevice>; 2] {
    let (media, pool) = new_pool_on_two([2, 3]);
    let spec = VolumeSpec::new(VolumeId(Uuid::from_u128(1)), 1 << 30, DataSource::Blank);
    pool.create_volume(&spec).expect("a volume");
    let handle = pool.open_version(VersionId::Volume(spec.id), OpenMode::ReadWrite);
    let handle = handle.expect("the volume");
    for chunk in 0..CHUNKS {
        let data = Stamp(chunk + 1).bytes(chunk * CHUNK, CHUNK as usize);
        handle
            .write(chunk * CHUNK, &data, Durability::Cached)
            .expect("writing");
    }
    drop(handle);
    pool.close().expect("closing");
    media
}

pub const CHUNK: u64 = 16 << 10;
/// More than the first device of a [`grown_pool`] holds.
const CHUNKS: u64 = 150;

fn run_on(media: &[Arc<SimDevice>; 2], access: Access) -> Result<RepairReport, PoolError> {
    repair(
        &set_of(media),
        &OpenOptions::default(),
        access,
        Discarded::StaysAway,
    )
}

fn set_of([first, second]: &[Arc<SimDevice>; 2]) -> Arc<DeviceSet> {
    DeviceSet::with(first.clone(), vec![second.clone() as _])
}

fn assert_whole(media: &[Arc<SimDevice>; 2], what: &str) {
    let pool = Pool::open_set(set_of(media), OpenOptions::default());
    let pool = pool.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(
        pool.check().expect("a check").problems,
        Vec::<String>::new(),
        "{what}"
    );
    let id = VersionId::Volume(VolumeId(Uuid::from_u128(1)));
    let handle = pool.open_version(id, OpenMode::ReadOnly).expect("the volume");
    let mut bytes = vec![0; CHUNK as usize];
    for chunk in 0..CHUNKS {
        handle.read(chunk * CHUNK, &mut bytes).expect("reading");
        let expected = Stamp(chunk + 1).bytes(chunk * CHUNK, CHUNK as usize);
        assert!(bytes == expected, "{what}: chunk {chunk}");
    }
}

type Spoil = fn(&SimDevice);

#[test]
fn a_damaged_label_of_an_added_device_is_written_again() {
    let damages: [(&str, usize, Spoil); 6] = [
        ("a bit of the first copy", 1, |medium| medium.flip_bit(3, 1)),
        ("the second copy", 1, |medium| medium.overwrite(4096, &[0; 4096])),
        ("the first copy, by something", 1, |medium| {
            medium.overwrite(0, &[0xa5; 4096])
        }),
        ("a bit of both copies", 2, |medium| {
            medium.flip_bit(3, 1);
            medium.flip_bit(4096 + 30, 1);
        }),
        ("both copies, but for an id", 2, |medium| {
            medium.overwrite(0, &[0; 4096]);
            medium.overwrite(4096, &[0xff; 24]);
        }),
        ("both checksums", 2, |medium| {
            medium.overwrite(40, &[0; 4]);
            medium.overwrite(4096 + 40, &[0; 4]);
        }),
    ];
    let healthy = grown_pool();
    for (what, copies, spoil) in damages {
        let fork = || {
            let media = healthy.each_ref().map(|medium| medium.fork(1));
            spoil(&media[1]);
            media
        };
        let label = healthy[1].peek(0, 8192);
        let media = fork();
        let before = media.each_ref().map(|medium| medium.counts().changes());
        let advice = run_on(&media, Access::ReadOnly).expect("advice");
        let after = media.each_ref().map(|medium| medium.counts().changes());
        assert_eq!(before, after, "{what}: looking at it changed it");
        assert_eq!(advice.found.len(), copies, "{what}: {advice:?}");
        assert!(
            advice.found.iter().all(|problem| problem.contains("label")),
            "{what}: {advice:?}"
        );
        assert_eq!(advice.remaining, Vec::<String>::new(), "{what}");
        let report = run_on(&media, Access::ReadWrite).expect("a repair");
        assert_eq!(
            (&report.found, report.remaining.len()),
            (&advice.found, 0),
            "{what}"
        );
        assert_eq!(media[1].peek(0, 8192), label, "{what}");
        assert_whole(&media.map(|medium| medium.power_cycle()), what);
        // An open writes it too.
        let media = fork();
        assert_whole(&media, what);
        assert_eq!(media[1].power_cycle().peek(0, 8192), label, "{what}");
        // A power cut in between leaves what can be repaired.
        for nth in 0..4 {
            let media = fork();
            media[1].flush().expect("flushing");
            media[1].cut_power_at(nth);
            let _ = run_on(&media, Access::ReadWrite);
            let media = media.map(|medium| medium.power_cycle());
            let report = run_on(&media, Access::ReadWrite);
            let report = report.unwrap_or_else(|error| panic!("{what}, cut at {nth}: {error}"));
            assert_eq!(report.remaining, Vec::<String>::new(), "{what}, cut at {nth}");
            assert_whole(&media, what);
        }
    }
}

#[test]
fn a_device_that_nothing_says_is_the_pools_is_not_labelled() {
    let healthy = grown_pool();
    let refuses = |second: Arc<SimDevice>, what: &str| {
        let media = [healthy[0].fork(1), second];
        let before = media.each_ref().map(|medium| medium.counts().changes());
        let label = media[1].peek(0, 8192);
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let refused = run_on(&media, access);
            assert!(
                matches!(&refused, Err(PoolError::MissingDevice { path, .. }) if path == "/second")
                    || matches!(&refused, Err(PoolError::Truncated { .. })),
                "{what}: {refused:?}"
            );
        }
        let after = media.each_ref().map(|medium| medium.counts().changes());
        assert_eq!(
            (before, label),
            (after, media[1].peek(0, 8192)),
            "{what}: it was written"
        );
    };
    refuses(SimDevice::new(3 << 20, 1), "a blank device");
    let other = grown_pool();
    let [_, other] = other;
    refuses(other.clone(), "another pool's");
    other.flip_bit(3, 1);
    other.flip_bit(4096 + 3, 1);
    refuses(other, "another pool's, damaged");
    let short = healthy[1].fork(1);
    short.resize(2 << 20);
    short.flip_bit(3, 1);
    short.flip_bit(4096 + 3, 1);
    refuses(short, "its own, damaged and cut off");
}
