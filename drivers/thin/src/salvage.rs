//! The chunk bitmap made from the maps, when its own blocks cannot be trusted.
//!
//! Every chunk that holds data is owned by exactly one version (docs/formats/pool.md, "Birth and ownership"), so
//! walking each version where it owns finds each of them once; but for lenders that have lost their version, which the
//! index stream lists and recovery adds. Nothing is guessed: a map page that is lost in both
//! copies, or a chunk that two versions claim, refuses it.

use std::sync::Arc;

use crate::locks::read;
use crate::map::{Child, INNER_LEVELS, Node, Ownership, Slot, leaves_covered};
use crate::page_io::read_page;
use crate::state::State;
use crate::{PoolDevice, PoolError};

/// Marks every chunk that the maps of the checkpoint own, and all bitmap blocks for the next checkpoint.
///
/// # Errors
/// `Damaged` when a map page is unreadable in both copies or the maps contradict each other.
pub(crate) fn bitmap_from_maps(device: &dyn PoolDevice, state: &mut State) -> Result<(), PoolError> {
    let subjects: Vec<_> = state
        .versions
        .iter()
        .map(|version| (version.root.clone(), state.versions.ownership(version)))
        .collect();
    for (root, owns) in subjects {
        mark_owned(device, state, &root, &owns, INNER_LEVELS, 0)?;
    }
    if !state.space.finish_loading() {
        return Err(PoolError::damaged(
            "chunk bitmap",
            "the maps name chunks beyond the end",
        ));
    }
    state.space.dirty_everything();
    Ok(())
}

fn mark_owned(
    device: &dyn PoolDevice,
    state: &mut State,
    slot: &Slot,
    owns: &Ownership,
    level: u32,
    first: u64,
) -> Result<(), PoolError> {
    let end = first + leaves_covered(level);
    if slot.is_empty() || !owns.owns(slot.birth(), end) {
        return Ok(());
    }
    let page = read_page(device, slot.pointer(), "map page")?;
    let node = Node::load(level, slot.pointer(), &page, &Arc::clone(&state.gauge));
    match node.child() {
        Child::Leaf(entries) => {
            for entry in entries.iter().filter(|entry| entry.is_mapped()) {
                if owns.owns(entry.birth(), end) && !state.space.load_chunk(entry.chunk()) {
                    return Err(PoolError::damaged(
                        "maps",
                        format!("chunk {} is owned twice or does not exist", entry.chunk()),
                    ));
                }
            }
        }
        Child::Inner(slots) => {
            for (i, slot) in read(slots).iter().enumerate() {
                let first = first + i as u64 * leaves_covered(level - 1);
                mark_owned(device, state, slot, owns, level - 1, first)?;
            }
        }
    }
    Ok(())
}
