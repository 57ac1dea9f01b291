//! Where two maps differ.
//!
//! Both are walked in step, and what both share is skipped as a whole: a page that is the same page has the same
//! contents, whatever the two versions are to each other. So a walk costs as much as has changed.

use std::sync::Arc;

use super::tree::{Missing, missing};
use super::{Child, INNER_LEVELS, Node, Slot, entry_of, leaves_covered};
use crate::format::INNER_ENTRIES;
use crate::locks::read;

/// Whose page is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DifferenceSide {
    New,
    Old,
}

/// The next place where two maps may differ.
pub(crate) enum Difference {
    /// A leaf that they do not share; `None` where a map has none.
    Leaf {
        leaf: u64,
        new: Option<Arc<Node>>,
        old: Option<Arc<Node>>,
    },
    /// A page has to be loaded to tell.
    Missing(DifferenceSide, Missing),
}

/// Returns the first leaf from `from` on that two maps do not share; `None` when there is none.
pub(crate) fn next_difference(new: &Slot, old: &Slot, from: u64) -> Option<Difference> {
    search(new, old, INNER_LEVELS, 0, from)
}

fn search(new: &Slot, old: &Slot, level: u32, first: u64, from: u64) -> Option<Difference> {
    if first + leaves_covered(level) <= from || new.is_same_page(old) || (new.is_empty() && old.is_empty()) {
        return None;
    }
    for (side, slot) in [(DifferenceSide::New, new), (DifferenceSide::Old, old)] {
        if slot.node().is_none() && !slot.is_empty() {
            return Some(Difference::Missing(side, missing(slot, level, first)));
        }
    }
    if level == 0 {
        return Some(Difference::Leaf {
            leaf: first,
            new: new.node().cloned(),
            old: old.node().cloned(),
        });
    }
    let start = if from > first { entry_of(level, from) } else { 0 };
    (start..INNER_ENTRIES).find_map(|entry| {
        let first = first + entry as u64 * leaves_covered(level - 1);
        search(&child(new, entry), &child(old, entry), level - 1, first, from)
    })
}

/// Returns a copy of a slot of a page in memory, empty when there is no page.
fn child(parent: &Slot, entry: usize) -> Slot {
    match parent.node().map(|node| node.child()) {
        Some(Child::Inner(slots)) => read(slots)[entry].clone(),
        Some(Child::Leaf(_)) | None => Slot::default(),
    }
}
