//! Reclaiming a dead version: the lock-step walk against its only child (or against nothing).
//!
//! What the dead version owns and the child does not hold is freed; what both hold passes to the child. The walk
//! goes from low leaves to high ones in bounded steps. Behind it the dead version's map is empty, and the child
//! owns what the dead version owned there ([`Ownership::cursor`]).
//!
//! Invariant R1: where the two differ, the dead version's page is its own alone, so it may be changed and freed;
//! where they are the same page, nothing below differs and the whole page passes to the child, at once: a step
//! never ends inside a shared page.

use std::sync::Arc;

use crate::format::LeafEntry;
use crate::locks::read;
use crate::map::tree::missing;
use crate::map::{Child, INNER_LEVELS, MAX_LEAVES, Missing, Node, Ownership, Slot, Walk, leaves_covered};

/// Whose page is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReapSide {
    /// The dead version's.
    Dead,
    /// The child's.
    Heir,
}

/// How far a step can go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReapScan {
    /// The leaf up to which everything needed is in memory; [`MAX_LEAVES`] at the end.
    pub reached: u64,
    /// How many leaves that differ it went past.
    pub leaves: usize,
    /// The page that stopped the scan, if one did.
    pub blocked: Option<(ReapSide, Missing)>,
}

/// Finds how far a step from leaf `from` can go: to about leaf `upto`, past at most `leaf_budget` differing leaves,
/// and as far as the pages in memory reach.
pub(crate) fn scan_reap(
    dead: &Slot,
    heir: Option<&Slot>,
    owns: &Ownership,
    from: u64,
    upto: u64,
    leaf_budget: usize,
) -> ReapScan {
    let mut scan = Scan {
        owns: *owns,
        from,
        upto,
        budget: leaf_budget,
        reached: from,
        blocked: None,
    };
    let finished = scan.visit(dead, heir, INNER_LEVELS, 0);
    ReapScan {
        reached: if finished { MAX_LEAVES } else { scan.reached },
        leaves: leaf_budget - scan.budget,
        blocked: scan.blocked,
    }
}

struct Scan {
    owns: Ownership,
    from: u64,
    upto: u64,
    budget: usize,
    reached: u64,
    blocked: Option<(ReapSide, Missing)>,
}

impl Scan {
    /// Returns whether the walk may go on behind this page.
    fn visit(&mut self, dead: &Slot, heir: Option<&Slot>, level: u32, first: u64) -> bool {
        let end = first + leaves_covered(level);
        if end <= self.from {
            return true;
        }
        if first >= self.upto {
            return false;
        }
        if is_nothing_to_free(dead, heir, &self.owns, end) {
            self.reached = end;
            return true;
        }
        if self.budget == 0 {
            return false;
        }
        let Some(dead_node) = dead.node() else {
            self.blocked = Some((ReapSide::Dead, missing(dead, level, first)));
            return false;
        };
        let heir = heir.filter(|heir| !heir.is_empty());
        if let Some(heir) = heir
            && heir.node().is_none()
        {
            self.blocked = Some((ReapSide::Heir, missing(heir, level, first)));
            return false;
        }
        match dead_node.child() {
            Child::Leaf(_) => {
                self.budget -= 1;
                self.reached = end;
                true
            }
            Child::Inner(slots) => {
                let slots = read(slots);
                for_each_child(heir, |heir_slot| {
                    slots.iter().enumerate().all(|(i, slot)| {
                        let child_first = first + i as u64 * leaves_covered(level - 1);
                        self.visit(slot, heir_slot(i).as_ref(), level - 1, child_first)
                    })
                })
            }
        }
    }
}

/// Gives `visit` a way to the heir's slots, as copies: the heir's page may be locked by a reader at the same time.
fn for_each_child<R>(heir: Option<&Slot>, visit: impl FnOnce(&dyn Fn(usize) -> Option<Slot>) -> R) -> R {
    let inner = heir.and_then(Slot::node).and_then(|node| match node.child() {
        Child::Inner(slots) => Some(read(slots)),
        Child::Leaf(_) => None,
    });
    visit(&|i| inner.as_ref().map(|slots| slots[i].clone()))
}

/// Nothing owned, or nothing that the heir does not hold too.
fn is_nothing_to_free(dead: &Slot, heir: Option<&Slot>, owns: &Ownership, end: u64) -> bool {
    dead.is_empty() || !owns.owns(dead.birth(), end) || heir.is_some_and(|heir| heir.is_same_page(dead))
}

/// Reclaims the leaves in `from..upto`, calling `free` with each chunk that nobody holds any more. The caller has
/// found `upto` with [`scan_reap`] on the same two maps.
pub(crate) fn reap_range(
    dead: &mut Slot,
    heir: Option<&Slot>,
    walk: &mut Walk<'_>,
    from: u64,
    upto: u64,
    free: &mut dyn FnMut(u64),
) {
    reap(dead, heir, INNER_LEVELS, 0, walk, from, upto, free);
}

#[expect(clippy::too_many_arguments, reason = "the recursion carries the whole step")]
fn reap(
    dead: &mut Slot,
    heir: Option<&Slot>,
    level: u32,
    first: u64,
    walk: &mut Walk<'_>,
    from: u64,
    upto: u64,
    free: &mut dyn FnMut(u64),
) {
    let end = first + leaves_covered(level);
    if end <= from || first >= upto {
        return;
    }
    if is_nothing_to_free(dead, heir, &walk.owns, end) {
        if end <= upto {
            // It passes to the heir, or was an ancestor's all along (R1).
            *dead = Slot::default();
        } else {
            debug_assert!(
                dead.is_empty() || !heir.is_some_and(|heir| heir.is_same_page(dead)),
                "R1"
            );
        }
        return;
    }
    if level == 0 {
        let owns = walk.owns;
        let dead_node = Arc::clone(dead.node().expect("the scan has seen the page in memory"));
        let heir_node = heir.and_then(Slot::node).cloned();
        let heir_entry = |i: usize| match heir_node.as_deref().map(Node::child) {
            Some(Child::Leaf(entries)) => entries[i],
            _ => LeafEntry::UNMAPPED,
        };
        if let Child::Leaf(entries) = dead_node.child() {
            for (i, entry) in entries.iter().enumerate() {
                if entry.is_mapped() && owns.owns(entry.birth(), end) && *entry != heir_entry(i) {
                    free(entry.chunk());
                }
            }
        }
        drop(dead_node);
        walk.remove(dead, end);
        return;
    }
    let heir = heir.filter(|heir| !heir.is_empty()).cloned();
    let Child::Inner(slots) = walk.make_mut(dead, level, end) else {
        return;
    };
    let slots = slots
        .get_mut()
        .expect("no thread panicked while it changed a page");
    for_each_child(heir.as_ref(), |heir_slot| {
        for (i, slot) in slots.iter_mut().enumerate() {
            let child_first = first + i as u64 * leaves_covered(level - 1);
            reap(
                slot,
                heir_slot(i).as_ref(),
                level - 1,
                child_first,
                walk,
                from,
                upto,
                free,
            );
        }
    });
    if slots.iter().all(Slot::is_empty) {
        walk.remove(dead, end);
    }
}
