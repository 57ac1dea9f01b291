//! Writes of metadata that the medium acknowledges and loses, or puts into another block.
//!
//! What points to a page has its checksum, so the old contents of a page are found as damage as foreign ones are. Everything
//! that a checkpoint writes is lost once, and misplaced once; after that nothing may read wrong, in the pool that is open or in the
//! one that is opened after a crash. (Of the log, whose last batch nothing points to, and of data, only checksummed
//! volumes can tell: `tests/checksums.rs`.)

use std::cell::Cell;

use quarry_contract::conformance::SplitMix;
use quarry_thin::PoolError;
use quarry_thin::sim::{Action, Fault, OpKind, Setup, Violation, World};

use crate::damage::holds_data;
use crate::seeds::for_each_seed;

/// A pool with changes that are in no checkpoint yet. The same each time for the same seed.
fn before_a_checkpoint(seed: u64) -> Result<World, Violation> {
    let setup = Setup {
        discard_freed: false,
        // Encrypted data cannot be told from other blocks (`holds_data`).
        encrypted: false,
        // Pages are read again soon after they have been written.
        cache_bytes: 16 << 10,
        ..Setup::roomy(seed)
    };
    let mut world = World::begin(setup)?;
    world.run(40)?;
    world.carry_out(Action::Checkpoint)?;
    world.run(25)?;
    Ok(world)
}

/// How often what was noticed: an open that was refused, damage that was named, nothing.
type Outcomes = [u32; 3];

/// Opens the pool after a crash and looks at all that it has.
fn survey_after_a_crash(world: &mut World, what: &str) -> Result<usize, Violation> {
    world.abandon();
    let mut after = world.branch(world.device().power_cycle());
    match after.try_open() {
        Err(PoolError::Damaged { structure, detail }) if !structure.is_empty() && !detail.is_empty() => Ok(0),
        Err(error) => Err(Violation(format!("{what}: {error}: not said to be damage"))),
        Ok(()) => {
            let survey = after.survey_damage();
            let survey =
                survey.map_err(|violation| Violation(format!("{what}: after a crash: {violation}")))?;
            let is_noticed = !survey.problems.is_empty() || survey.unreadable > 0;
            Ok(if is_noticed { 1 } else { 2 })
        }
    }
}

/// Lets the checkpoint's writes go wrong one by one; `fault` says how, for a block of the medium's metadata.
fn misplace(suite: &str, seeds: u64, fault: impl Fn(u64) -> Fault) -> Outcomes {
    let outcomes = Cell::new([0; 3]);
    for_each_seed(suite, seeds, |seed| {
        let mut world = before_a_checkpoint(seed)?;
        let before = world.device().counts().writes;
        world.carry_out(Action::Checkpoint)?;
        let writes = world.device().counts().writes - before;
        let mut random = SplitMix::new(seed);
        for nth in 0..writes {
            let mut world = before_a_checkpoint(seed)?;
            let device = world.device().clone();
            let metadata: Vec<u64> = device
                .written_cells()
                .into_iter()
                .filter(|offset| !holds_data(&device, *offset))
                .collect();
            let victim = metadata[random.below(metadata.len() as u64) as usize];
            let what = format!("write {nth} of {writes}, victim {victim}");
            device.fail(OpKind::Write, nth, 1, fault(victim));
            world
                .carry_out(Action::Checkpoint)
                .map_err(|violation| Violation(format!("{what}: {violation}")))?;
            device.heal();
            // A check of an open pool puts right what it can.
            if seed % 2 == 0 {
                world
                    .survey_damage()
                    .map_err(|violation| Violation(format!("{what}: {violation}")))?;
            }
            let outcome = survey_after_a_crash(&mut world, &what)?;
            let mut counts = outcomes.get();
            counts[outcome] += 1;
            outcomes.set(counts);
        }
        Ok(())
    });
    let [refused, found, unnoticed] = outcomes.get();
    println!("{suite}: {refused} refused to open, {found} found, {unnoticed} of no consequence");
    outcomes.get()
}

#[test]
fn a_lost_write_of_metadata_never_gives_wrong_data() {
    let [refused, found, _] = misplace("a_lost_write_of_metadata_never_gives_wrong_data", 12, |_| {
        Fault::Ignored
    });
    assert!(refused > 0 && found > 0, "{refused} refused, {found} found");
}

#[test]
fn a_misplaced_write_of_metadata_never_gives_wrong_data() {
    let [refused, found, _] = misplace("a_misplaced_write_of_metadata_never_gives_wrong_data", 12, |to| {
        Fault::Misplaced { to }
    });
    assert!(refused > 0 && found > 0, "{refused} refused, {found} found");
}
