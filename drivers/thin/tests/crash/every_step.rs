//! Short histories cut at every single device operation, and the recovery cut at every one of its own.

use std::sync::Arc;

use quarry_contract::conformance::SplitMix;
use quarry_thin::sim::{Setup, SimDevice, Step, Violation, World};

use crate::seeds::for_each_seed;

/// Runs the history of `setup` on a copy of `blank` with the power cut at operation `cut`; `None` when the history
/// ends before that.
fn run_until_cut(
    setup: &Setup,
    blank: &Arc<SimDevice>,
    steps: usize,
    cut: u64,
) -> Result<Option<World>, Violation> {
    let device = blank.fork(setup.seed ^ cut.rotate_left(17));
    device.cut_power_at(cut);
    let mut world = match World::on(setup.clone(), Arc::clone(&device)) {
        Ok(world) => world,
        // The cut fell into opening the empty pool.
        Err(_) if device.is_cut() => return World::on(setup.clone(), device.power_cycle()).map(Some),
        Err(violation) => return Err(violation),
    };
    if world.device().is_cut() || world.run(steps)? == Step::Interrupted || world.device().is_cut() {
        return Ok(Some(world));
    }
    Ok(None)
}

fn cut_everywhere(setup: &Setup, steps: usize) -> Result<(), Violation> {
    let blank = World::begin(setup.clone())?;
    let blank = blank.device().power_cycle();
    let mut random = SplitMix::new(setup.seed);
    for cut in 0.. {
        let Some(mut world) = run_until_cut(setup, &blank, steps, cut)? else {
            return Ok(());
        };
        world.abandon();
        let left = world.device().power_cycle();
        cut_the_recovery(&world, &left, &mut random)?;
        let mut world = world.branch(left);
        world.come_back()?;
        // A second recovery finds what the first one found, and life goes on.
        world.recover()?;
        world.run(6)?;
        world.recover()?;
    }
    Ok(())
}

/// Cuts the recovery of what a cut left: at every operation of it, or for most crashes at one.
fn cut_the_recovery(crashed: &World, left: &Arc<SimDevice>, random: &mut SplitMix) -> Result<(), Violation> {
    let mut undisturbed = crashed.branch(left.fork(0));
    // Whether it succeeds is for the caller to judge, with all that has to hold afterwards.
    let _ = undisturbed.try_open();
    let operations = undisturbed.device().counts().changes();
    let cuts = match operations {
        0 => 0..0,
        _ if random.below(4) == 0 => 0..operations,
        _ => {
            let one = random.below(operations);
            one..one + 1
        }
    };
    for cut in cuts {
        let device = left.fork(random.next_u64());
        device.cut_power_at(cut);
        let mut second = crashed.branch(device);
        let _ = second.try_open();
        second.recover()?;
    }
    Ok(())
}

#[test]
fn a_cut_at_every_step_leaves_before_or_after() {
    for_each_seed("a_cut_at_every_step_leaves_before_or_after", 40, |seed| {
        cut_everywhere(&Setup::roomy(seed), 30)
    });
}

#[test]
fn a_cut_at_every_step_of_a_full_pool_leaves_before_or_after() {
    for_each_seed(
        "a_cut_at_every_step_of_a_full_pool_leaves_before_or_after",
        20,
        |seed| cut_everywhere(&Setup::tight(seed), 40),
    );
}
