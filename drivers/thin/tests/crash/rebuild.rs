//! Pages of maps lost in both copies and made again from the chunk table: what is read afterwards is what was there, but for what
//! had been discarded, and only when that is allowed.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use quarry_contract::Durability;
use quarry_contract::conformance::SplitMix;
use quarry_thin::sim::{Action, SimDevice, Violation, World};
use quarry_thin::{
    Access, DeviceSet, Discarded, OpenOptions, Pool, PoolDevice, PoolError, RepairReport, repair,
};

use crate::damage::{closed_pool, holds_data};
use crate::repair::killed_pool;
use crate::seeds::for_each_seed;

fn run(device: &Arc<SimDevice>, access: Access, discarded: Discarded) -> Result<RepairReport, Violation> {
    let device: Arc<dyn PoolDevice> = Arc::clone(device) as _;
    let set = DeviceSet::of(device);
    repair(&set, &OpenOptions::default(), access, discarded)
        .map_err(|error: PoolError| Violation(format!("the repair: {error}")))
}

/// Returns the places of the copies of the pages that a check calls so, by all of what it calls them.
fn pages_called(device: &SimDevice, beginning: &str) -> BTreeMap<String, Vec<u64>> {
    let mut pages: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for cell in device.written_cells() {
        if holds_data(device, cell) {
            continue;
        }
        let damaged = device.fork(0);
        damaged.overwrite(cell, &[0; 4096]);
        let options = OpenOptions {
            access: Access::ReadOnly,
            ..OpenOptions::default()
        };
        let Ok(pool) = Pool::open(damaged, options) else {
            continue;
        };
        for problem in pool.check().expect("a pool with one lost block").problems {
            if let Some((page, _)) = problem.split_once(": page ")
                && page.starts_with(beginning)
            {
                pages.entry(page.to_owned()).or_default().push(cell);
            }
        }
    }
    pages
}

/// Returns the places of both copies of each page of a map.
fn map_pages(device: &SimDevice) -> Vec<[u64; 2]> {
    let pages = pages_called(device, "level").into_values();
    let pairs = pages.map(|cells| <[u64; 2]>::try_from(cells).expect("two copies"));
    pairs.collect()
}

/// Loses these pages, repairs, and looks at all there is. Tells whether something discarded has come back.
fn lose_and_repair(world: &World, pages: &[[u64; 2]]) -> Result<bool, Violation> {
    let device = world.device().fork(1);
    for cell in pages.iter().flatten() {
        device.overwrite(*cell, &[0; 4096]);
    }
    let before = device.counts();
    let advice = run(&device, Access::ReadOnly, Discarded::MayComeBack)?;
    if device.counts().changes() != before.changes() {
        return Err(Violation("looking at it changed it".into()));
    }
    if !advice.remaining.is_empty() || advice.found.is_empty() {
        return Err(Violation(format!("{advice:?}")));
    }
    let comes_back = advice
        .rebuilt
        .iter()
        .any(|sentence| sentence.contains("hold again"));
    if comes_back {
        let refused = run(&device, Access::ReadWrite, Discarded::StaysAway)?;
        if refused.remaining.is_empty() || refused.rebuilt != advice.rebuilt {
            return Err(Violation(format!("not asked for: {refused:?}")));
        }
    }
    let discarded = match comes_back {
        true => Discarded::MayComeBack,
        false => Discarded::StaysAway,
    };
    let report = run(&device, Access::ReadWrite, discarded)?;
    if !report.remaining.is_empty() || report.rebuilt != advice.rebuilt {
        return Err(Violation(format!("{advice:?}, then {report:?}")));
    }
    let again = run(&device, Access::ReadOnly, Discarded::StaysAway)?;
    if !again.found.is_empty() {
        return Err(Violation(format!("after the repair {again:?}")));
    }
    let mut repaired = world.branch(device);
    repaired
        .try_open()
        .map_err(|error| Violation(error.to_string()))?;
    let survey = match comes_back {
        true => repaired.survey_undiscarded()?,
        false => repaired.survey_damage()?,
    };
    if survey.unreadable > 0 || !survey.problems.is_empty() {
        return Err(Violation(format!("CT5: {survey:?}")));
    }
    // It can be gone on with, and nothing leaks.
    if !comes_back {
        repaired.run(10)?;
    }
    Ok(comes_back)
}

#[test]
fn lost_pages_of_maps_are_made_again_from_the_chunk_table() {
    let suite = "lost_pages_of_maps_are_made_again_from_the_chunk_table";
    let (exact, come_back) = (Cell::new(0), Cell::new(0));
    for_each_seed(suite, 18, |seed| {
        let world = match seed % 3 {
            0 => closed_pool(seed)?,
            _ => killed_pool(seed)?,
        };
        let pages = map_pages(world.device());
        let mut random = SplitMix::new(seed);
        let mut losses: Vec<Vec<[u64; 2]>> = pages.iter().map(|page| vec![*page]).collect();
        for _ in 0..10 {
            let mut some = pages.clone();
            some.retain(|_| random.below(4) == 0);
            losses.push(some);
        }
        losses.push(pages);
        for lost in losses.iter().filter(|lost| !lost.is_empty()) {
            let has_come_back = lose_and_repair(&world, lost)
                .map_err(|violation| Violation(format!("lost {lost:?}: {violation}")))?;
            let counter = if has_come_back { &come_back } else { &exact };
            counter.set(counter.get() + 1);
        }
        Ok(())
    });
    println!(
        "{} losses were made good exactly, {} with something that had been discarded",
        exact.get(),
        come_back.get()
    );
    assert!(exact.get() > 100 && come_back.get() > 0);
}

/// Returns a fork on which these blocks are lost.
fn lose(world: &World, cells: &[u64]) -> Arc<SimDevice> {
    let device = world.device().fork(1);
    cells.iter().for_each(|cell| device.overwrite(*cell, &[0; 4096]));
    device
}

#[test]
fn lost_pages_of_the_chunk_table_cost_nothing_and_are_made_again_from_the_maps() {
    let suite = "lost_pages_of_the_chunk_table_cost_nothing_and_are_made_again_from_the_maps";
    for_each_seed(suite, 12, |seed| {
        let world = match seed % 2 {
            0 => closed_pool(seed)?,
            _ => killed_pool(seed)?,
        };
        let mut losses: Vec<Vec<u64>> = ["page of the chunk table", "top page of the chunk table"]
            .iter()
            .flat_map(|page| pages_called(world.device(), page).into_values())
            .collect();
        losses.push(losses.concat());
        if losses.len() != 3 {
            return Err(Violation("there is no chunk table".into()));
        }
        for lost in losses {
            let device = lose(&world, &lost);
            let found = run(&device, Access::ReadOnly, Discarded::StaysAway)?;
            if found.found.is_empty() || !found.remaining.is_empty() {
                return Err(Violation(format!("lost {lost:?}: {found:?}")));
            }
            // It can be gone on with as it is: a checkpoint that needs such a page has it made again.
            let mut used = world.branch(lose(&world, &lost));
            used.try_open().map_err(|error| Violation(error.to_string()))?;
            let (volume, size_bytes) = (9_000_000, 1 << 20);
            used.carry_out(Action::Create { volume, size_bytes })?;
            used.carry_out(Action::Write {
                volume,
                offset: 0,
                length: size_bytes,
                durability: Durability::Cached,
            })?;
            used.carry_out(Action::Checkpoint)?;
            while used.pool().maintain().expect("maintenance").more {}
            used.carry_out(Action::Checkpoint)?;
            let survey = used.survey_damage()?;
            if survey.unreadable > 0 {
                return Err(Violation(format!("lost {lost:?}, then {survey:?}")));
            }
            used.abandon();
            let used = used.device();
            for device in [&device, used] {
                let report = run(device, Access::ReadWrite, Discarded::StaysAway)?;
                let again = run(device, Access::ReadOnly, Discarded::StaysAway)?;
                if !report.remaining.is_empty() || !again.found.is_empty() {
                    return Err(Violation(format!("lost {lost:?}: {report:?}, then {again:?}")));
                }
            }
        }
        Ok(())
    });
}
