//! Long histories with power cuts at random operations, small logs that wrap, and small pools that run full.

use quarry_contract::conformance::SplitMix;
use quarry_thin::sim::{Mix, Setup, Step, Violation, World};

use crate::seeds::for_each_seed;

/// Runs several lives of a pool, each ended by a power cut somewhere.
fn lives(setup: Setup, count: u64, steps: usize, operations: u64) -> Result<(), Violation> {
    let mut random = SplitMix::new(setup.seed ^ 0x006c_6976_6573);
    let mut world = World::begin(setup)?;
    let allocated_when_new = world.pool().status().allocated_bytes;
    for _ in 0..count {
        let near = random.below(4) == 0;
        let cut = random.below(if near { 12 } else { operations });
        world.device().cut_power_at(cut);
        let step = world.run(steps)?;
        if step == Step::Done && !world.device().is_cut() {
            world.verify_now()?;
        }
        world.recover()?;
        if random.below(3) == 0 {
            world.recover()?;
        }
    }
    world.empty_out(allocated_when_new)
}

#[test]
fn random_cuts_leave_before_or_after() {
    for_each_seed("random_cuts_leave_before_or_after", 800, |seed| {
        lives(Setup::roomy(seed), 6, 60, 160)
    });
}

#[test]
fn random_cuts_of_full_pools_leave_before_or_after() {
    for_each_seed("random_cuts_of_full_pools_leave_before_or_after", 500, |seed| {
        lives(Setup::tight(seed), 6, 80, 220)
    });
}

#[test]
fn random_cuts_leave_before_or_after_when_the_log_wraps() {
    for_each_seed(
        "random_cuts_leave_before_or_after_when_the_log_wraps",
        200,
        |seed| {
            let roomy = Setup::roomy(seed);
            // Little but commits: the log goes round many times between the cuts.
            let mix = Mix {
                flush: 60,
                maintain: 2,
                checkpoint: 0,
                reopen: 0,
                ..Mix::everything(0)
            };
            let setup = Setup {
                log_bytes: 64 << 10,
                checkpoint_dirty_pages: 1000,
                mix,
                ..roomy
            };
            lives(setup, 4, 250, 500)
        },
    );
}
