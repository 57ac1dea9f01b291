//! A pool in a file with holes, on a host that others fill (HF1, HF2): what needs space is refused as in a full pool, everything that
//! gives some back goes on without a reopen, and nothing is lost, wherever it happens.

use std::sync::Arc;

use quarry_contract::conformance::SplitMix;
use quarry_thin::sim::{Fault, OpKind, Setup, SimDevice, Step, Violation, World};

use crate::seeds::for_each_seed;

/// A pool that may run full because its host does: it has more chunks than that has space for.
fn setup(seed: u64) -> Setup {
    let roomy = Setup::roomy(seed);
    Setup {
        may_be_full: true,
        discard_freed: true,
        device_bytes: roomy.log_bytes + (8 << 20),
        host_bytes: Some(roomy.log_bytes + (3 << 20) + seed % 5 * (1 << 20)),
        ..roomy
    }
}

fn run(world: &mut World, steps: usize) -> Result<(), Violation> {
    match world.run(steps)? {
        Step::Done => Ok(()),
        Step::Interrupted => Err(Violation("HF2: a full host interrupted a step".into())),
    }
}

/// Others fill the host and make room again and again; the pool is opened again now and then, also on a full one.
fn others_come_and_go(seed: u64) -> Result<(), Violation> {
    let mut world = World::begin(setup(seed))?;
    let allocated_when_new = world.pool().status().allocated_bytes;
    let mut random = SplitMix::new(seed ^ 0x686f_7374);
    for _ in 0..6 {
        run(&mut world, 20)?;
        let left = match random.below(3) {
            0 => 0,
            _ => random.below(64) * 4096,
        };
        let taken = world.device().fill_host(left);
        run(&mut world, 25)?;
        world.verify_now()?;
        if random.below(3) == 0 {
            world.recover()?;
            run(&mut world, 10)?;
        }
        world.device().relieve_host(taken);
    }
    leave_a_full_host(&mut world, allocated_when_new)
}

/// Deletes everything while the host is full, and goes on with what the host has got back.
fn leave_a_full_host(world: &mut World, allocated_when_new: u64) -> Result<(), Violation> {
    world.device().fill_host(0);
    world.empty_out(allocated_when_new)?;
    run(world, 20)?;
    world.verify_now()
}

#[test]
fn others_fill_the_host_and_leave_in_the_middle_of_any_history() {
    for_each_seed(
        "others_fill_the_host_and_leave_in_the_middle_of_any_history",
        100,
        others_come_and_go,
    );
}

/// Fills the host after half of the steps, and cuts the power at operation `cut`; `None` when the history ends before that.
fn run_until_cut(setup: &Setup, blank: &Arc<SimDevice>, cut: u64) -> Result<Option<World>, Violation> {
    let device = blank.fork(setup.seed ^ cut.rotate_left(17));
    device.cut_power_at(cut);
    let mut world = match World::on(setup.clone(), Arc::clone(&device)) {
        Ok(world) => world,
        // The cut fell into opening the empty pool.
        Err(_) if device.is_cut() => return Ok(None),
        Err(violation) => return Err(violation),
    };
    for steps in [10, 15] {
        if world.device().is_cut() || world.run(steps)? == Step::Interrupted || world.device().is_cut() {
            return Ok(Some(world));
        }
        device.fill_host(0);
    }
    Ok(None)
}

fn cut_everywhere(seed: u64) -> Result<(), Violation> {
    let setup = setup(seed);
    let blank = World::begin(setup.clone())?;
    let allocated_when_new = blank.pool().status().allocated_bytes;
    let blank = blank.device().power_cycle();
    let mut cuts = 0;
    let mut after_last = 0;
    for cut in 0.. {
        let Some(mut world) = run_until_cut(&setup, &blank, cut)? else {
            // Those that fall into the open come first.
            after_last += 1;
            match cuts {
                0 if after_last < 1000 => continue,
                _ => break,
            }
        };
        cuts += 1;
        world.abandon();
        world.device().fill_host(0);
        world.recover()?;
        run(&mut world, 6)?;
        if cut % 16 == 0 {
            leave_a_full_host(&mut world, allocated_when_new)?;
        }
    }
    match cuts {
        0 => Err(Violation("no cut hit the history".into())),
        _ => Ok(()),
    }
}

#[test]
fn a_cut_at_every_step_on_a_host_that_gets_full_leaves_before_or_after() {
    for_each_seed(
        "a_cut_at_every_step_on_a_host_that_gets_full_leaves_before_or_after",
        8,
        cut_everywhere,
    );
}

/// Each call that takes space of the host is refused once.
fn refuse_every_taking(seed: u64) -> Result<(), Violation> {
    for nth in 0.. {
        let mut world = World::begin(setup(seed))?;
        let allocated_when_new = world.pool().status().allocated_bytes;
        let before = world.device().counts().allocations;
        world.device().fail(OpKind::Allocate, nth, 1, Fault::NoSpace);
        run(&mut world, 30)?;
        if world.device().counts().allocations - before <= nth {
            return Ok(());
        }
        world.verify_now()?;
        leave_a_full_host(&mut world, allocated_when_new)?;
    }
    Ok(())
}

#[test]
fn a_host_that_refuses_any_one_call_stops_nothing() {
    for_each_seed(
        "a_host_that_refuses_any_one_call_stops_nothing",
        30,
        refuse_every_taking,
    );
}
