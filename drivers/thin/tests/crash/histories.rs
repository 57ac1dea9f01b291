//! Random histories without a crash: every read, list, size and figure against the model, and all space back at
//! the end.

use quarry_thin::sim::{Setup, Step, Violation, World};

use crate::seeds::for_each_seed;

fn history(setup: Setup, steps: usize) -> Result<(), Violation> {
    let mut world = World::begin(setup)?;
    let allocated_when_new = world.pool().status().allocated_bytes;
    for _ in 0..4 {
        if world.run(steps / 4)? == Step::Interrupted {
            return Err(Violation("a healthy device interrupted a step".into()));
        }
        world.verify_now()?;
    }
    world.empty_out(allocated_when_new)
}

#[test]
fn random_histories_match_the_model() {
    for_each_seed("random_histories_match_the_model", 400, |seed| {
        history(Setup::roomy(seed), 120)
    });
}

#[test]
fn random_histories_in_a_pool_that_runs_full_match_the_model() {
    for_each_seed(
        "random_histories_in_a_pool_that_runs_full_match_the_model",
        300,
        |seed| history(Setup::tight(seed), 160),
    );
}
