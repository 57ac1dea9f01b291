//! The same short history in pools that are larger by one chunk each time, so that each of its allocations is the
//! first to be refused in one of them; and the power is cut right there.

use std::cell::Cell;

use quarry_thin::sim::{Setup, Step, Violation, World};

use crate::seeds::for_each_seed;

/// How long the history is, and how much of it follows when the power is back.
const STEPS: usize = 40;
const STEPS_AFTER: usize = 15;
/// More chunks than any of these histories takes.
const MOST_CHUNKS: u64 = 1200;

/// Runs the history in a pool of `setup` with `chunks` chunks more than the least; returns how many of its changes were
/// refused.
fn run(setup: &Setup, chunks: u64) -> Result<u64, Violation> {
    let setup = Setup {
        device_bytes: setup.device_bytes + chunks * setup.chunk_bytes,
        ..setup.clone()
    };
    let mut world = World::begin(setup)?;
    let allocated_when_new = world.pool().status().allocated_bytes;
    let mut was_cut = false;
    for _ in 0..STEPS {
        if world.step()? == Step::Interrupted {
            return Err(Violation("a healthy device interrupted a step".into()));
        }
        if world.refused() > 0 && !was_cut {
            was_cut = true;
            world.verify_now()?;
            world.recover()?;
        }
    }
    world.verify_now()?;
    world.recover()?;
    world.run(STEPS_AFTER)?;
    let refused = world.refused();
    world.verify_now()?;
    world.empty_out(allocated_when_new)?;
    Ok(refused)
}

#[test]
fn every_allocation_of_a_history_may_be_the_one_that_is_refused() {
    let all_refusing = Cell::new(0);
    for_each_seed(
        "every_allocation_of_a_history_may_be_the_one_that_is_refused",
        6,
        |seed| {
            let roomy = Setup::roomy(seed);
            // With its checkpoints and the reserve, about the least that can be formatted.
            let setup = Setup {
                device_bytes: roomy.log_bytes + 20 * roomy.chunk_bytes,
                may_be_full: true,
                ..roomy
            };
            let mut refusing = 0;
            for chunks in 0..MOST_CHUNKS {
                match run(&setup, chunks)? {
                    0 => break,
                    _ => refusing += 1,
                }
            }
            if refusing == MOST_CHUNKS {
                return Err(Violation("no pool was large enough".into()));
            }
            all_refusing.set(all_refusing.get() + refusing);
            Ok(())
        },
    );
    // A history may find room in the least of its pools; all of them would prove nothing.
    let refusing = all_refusing.get();
    assert!(refusing >= 20, "{refusing} pools refused something");
}
