//! Walking what a version owns of its map.

use super::tree::{Missing, Ownership, missing};
use super::{Child, INNER_LEVELS, Slot, entry_of, leaves_covered};
use crate::format::{INNER_ENTRIES, LEAF_ENTRIES, LeafEntry};
use crate::locks::read;

/// The next leaf that a version owns.
pub(crate) enum OwnedLeaf {
    /// This one, and what it holds.
    Leaf(u64, Box<[LeafEntry; LEAF_ENTRIES]>),
    /// A page has to be loaded to tell.
    Missing(Missing),
}

/// Returns the first leaf from `from` on that is owned; `None` when there is none. What is shared with an ancestor is passed
/// as a whole.
pub(crate) fn next_owned(root: &Slot, owns: &Ownership, from: u64) -> Option<OwnedLeaf> {
    search(root, owns, INNER_LEVELS, 0, from)
}

fn search(slot: &Slot, owns: &Ownership, level: u32, first: u64, from: u64) -> Option<OwnedLeaf> {
    let end = first + leaves_covered(level);
    if end <= from || slot.is_empty() || !owns.owns(slot.birth(), end) {
        return None;
    }
    let Some(node) = slot.node() else {
        return Some(OwnedLeaf::Missing(missing(slot, level, first)));
    };
    match node.child() {
        Child::Leaf(entries) => Some(OwnedLeaf::Leaf(first, entries.clone())),
        Child::Inner(slots) => {
            let start = if from > first { entry_of(level, from) } else { 0 };
            let slots = read(slots);
            (start..INNER_ENTRIES).find_map(|entry| {
                let first = first + entry as u64 * leaves_covered(level - 1);
                search(&slots[entry], owns, level - 1, first, from)
            })
        }
    }
}
