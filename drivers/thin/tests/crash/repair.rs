//! Repair: what can be derived is put right, what cannot is named, nothing is made up and nothing gets worse.

use std::cell::Cell;
use std::sync::Arc;

use quarry_contract::conformance::SplitMix;
use quarry_thin::sim::{Action, Setup, SimDevice, Violation, World};
use quarry_thin::{Access, DeviceSet, Discarded, OpenOptions, PoolDevice, PoolError, RepairReport, repair};

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
