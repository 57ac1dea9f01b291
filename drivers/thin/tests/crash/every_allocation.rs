//! The same short history in pools that are larger by one chunk each time, so that each of its allocations is the
//! first to be refused in one of them; and right there the power is cut, or the pool is given room.

use std::cell::Cell;

use quarry_thin::sim::{Setup, Step, Violation, World};

use crate::seeds::for_each_seed;

/// How long the history is, and how much of it follows when the power is back.
const STEPS: usize = 40;
const STEPS_AFTER: usize = 15;
/// More chunks than any of these histories takes.
const MOST_CHUNKS: u64 = 1200;

/// More chunks than one action takes.
const ROOM_CHUNKS: u64 = 64;

/// What happens once the first change has been refused.
#[derive(Debug, Clone, Copy)]
enum OnceRefused {
    CutPower,
    Enlarge,
}

/// Makes the pool larger and does again what was refused: now there is room.
fn enlarge_and_repeat(world: &mut World) -> Result<(), Violation> {
    let refused = world.refused();
    let action = world.last_action().expect("it was refused").clone();
    let grown = world.enlarge(ROOM_CHUNKS);
    grown.map_err(|error| Violation(format!("J1: growing a full pool: {error}")))?;
    world.carry_out(action.clone())?;
    match world.refused() == refused {
        true => world.verify_now(),
        false => Err(Violation(format!(
            "J1: {action:?} is refused in a pool that has got room: {:?}",
            world.pool().status()
        ))),
    }
}

/// Runs the history in a pool of `setup` with `chunks` chunks more than the least; returns how many of its changes were
/// refused.
fn run(setup: &Setup, chunks: u64, once_refused: OnceRefused) -> Result<u64, Violation> {
    let setup = Setup {
        device_bytes: setup.device_bytes + chunks * setup.chunk_bytes,
        ..setup.clone()
    };
    let mut world = World::begin(setup)?;
    let allocated_when_new = world.pool().status().allocated_bytes;
    let mut was_refused = false;
    for _ in 0..STEPS {
        if world.step()? == Step::Interrupted {
            return Err(Violation("a healthy device interrupted a step".into()));
        }
        if world.refused() > 0 && !was_refused {
            was_refused = true;
            match once_refused {
                OnceRefused::CutPower => {
                    world.verify_now()?;
                    world.recover()?;
                }
                OnceRefused::Enlarge => enlarge_and_repeat(&mut world)?,
            }
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

fn in_every_pool(suite: &str, once_refused: OnceRefused) {
    let all_refusing = Cell::new(0);
    for_each_seed(suite, 6, |seed| {
        let roomy = Setup::roomy(seed);
        // With its checkpoints and the reserve, about the least that can be formatted.
        let setup = Setup {
            device_bytes: roomy.log_bytes + 20 * roomy.chunk_bytes,
            may_be_full: true,
            ..roomy
        };
        let mut refusing = 0;
        for chunks in 0..MOST_CHUNKS {
            match run(&setup, chunks, once_refused)? {
                0 => break,
                _ => refusing += 1,
            }
        }
        if refusing == MOST_CHUNKS {
            return Err(Violation("no pool was large enough".into()));
        }
        all_refusing.set(all_refusing.get() + refusing);
        Ok(())
    });
    // A history may find room in the least of its pools; all of them would prove nothing.
    let refusing = all_refusing.get();
    assert!(refusing >= 20, "{refusing} pools refused something");
}

#[test]
fn every_allocation_of_a_history_may_be_the_one_that_is_refused() {
    in_every_pool(
        "every_allocation_of_a_history_may_be_the_one_that_is_refused",
        OnceRefused::CutPower,
    );
}

#[test]
fn a_pool_that_grows_at_any_allocation_that_was_refused_does_it_then() {
    in_every_pool(
        "a_pool_that_grows_at_any_allocation_that_was_refused_does_it_then",
        OnceRefused::Enlarge,
    );
}
