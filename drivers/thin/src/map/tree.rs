//! Looking up and changing one leaf.

use std::sync::Arc;

use crate::format::{LEAF_ENTRIES, LeafEntry, PagePointer};
use crate::garbage::Garbage;
use crate::locks::{read, write};
use crate::map::{Child, INNER_LEVELS, Node, PageGauge, Slot, entry_of, leaves_covered};

/// What a version owns of its map (docs/formats/pool.md, "Birth and ownership").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ownership {
    /// Births above this are owned.
    pub base: u32,
    /// Leaves below this have a lower base, because the dead parent has been reclaimed there.
    pub cursor: u64,
    /// The base below the cursor.
    pub base_below_cursor: u32,
}

impl Ownership {
    /// Tells whether a page or entry born at `birth`, in a range that ends at leaf `end`, is owned.
    pub fn owns(&self, birth: u32, end: u64) -> bool {
        birth
            > if end <= self.cursor {
                self.base_below_cursor
            } else {
                self.base
            }
    }
}

/// A page that has to be loaded first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Missing {
    /// Where it is.
    pub pointer: PagePointer,
    /// Its level in the tree.
    pub level: u32,
    /// The first leaf it covers.
    pub first_leaf: u64,
}

/// What a look-up finds.
pub(crate) enum LeafView<'a> {
    /// The leaf.
    Leaf(&'a [LeafEntry; LEAF_ENTRIES]),
    /// No leaf: everything in it is unmapped.
    Empty,
    /// A page on the way is not in memory.
    Missing(Missing),
}

/// Calls `see` with leaf `leaf` of the map under `root`.
pub(crate) fn find_leaf<R>(root: &Slot, leaf: u64, see: impl FnOnce(LeafView<'_>) -> R) -> R {
    descend(root, INNER_LEVELS, leaf, see)
}

fn descend<R>(slot: &Slot, level: u32, leaf: u64, see: impl FnOnce(LeafView<'_>) -> R) -> R {
    let Some(node) = slot.node() else {
        return see(if slot.is_empty() {
            LeafView::Empty
        } else {
            LeafView::Missing(missing(slot, level, leaf))
        });
    };
    node.touch();
    match node.child() {
        Child::Leaf(entries) => see(LeafView::Leaf(entries)),
        Child::Inner(slots) => descend(&read(slots)[entry_of(level, leaf)], level - 1, leaf, see),
    }
}

pub(crate) fn missing(slot: &Slot, level: u32, leaf: u64) -> Missing {
    Missing {
        pointer: slot.pointer(),
        level,
        first_leaf: leaf / leaves_covered(level) * leaves_covered(level),
    }
}

/// Returns the first page on the way to a leaf that is not in memory.
pub(crate) fn missing_leaf(root: &Slot, leaf: u64) -> Option<Missing> {
    find_leaf(root, leaf, |view| match view {
        LeafView::Missing(missing) => Some(missing),
        LeafView::Leaf(_) | LeafView::Empty => None,
    })
}

/// Puts a loaded page into the map, if its place still wants it.
pub(crate) fn install(root: &mut Slot, wanted: &Missing, node: &Arc<Node>) {
    if wanted.level == INNER_LEVELS {
        return root.set_loaded(wanted.pointer, node);
    }
    if let Some(root) = root.node() {
        install_below(root, INNER_LEVELS, wanted, node);
    }
}

fn install_below(parent: &Node, level: u32, wanted: &Missing, node: &Arc<Node>) {
    let Child::Inner(slots) = parent.child() else {
        return;
    };
    let entry = entry_of(level, wanted.first_leaf);
    if level - 1 == wanted.level {
        return write(slots)[entry].set_loaded(wanted.pointer, node);
    }
    if let Some(child) = read(slots)[entry].node() {
        install_below(child, level - 1, wanted, node);
    }
}

/// How a version changes its map.
pub(crate) struct Walk<'a> {
    /// What it owns.
    pub owns: Ownership,
    /// Its depth: the birth of the pages that it makes.
    pub depth: u32,
    /// Takes the pages that it replaced (M2).
    pub garbage: &'a mut Garbage,
    /// Counts new pages.
    pub gauge: &'a Arc<PageGauge>,
}

impl Walk<'_> {
    /// Makes the page in `slot` changeable: copies it when it is not owned, stored or shared in memory (M1, M2).
    pub fn make_mut<'s>(&mut self, slot: &'s mut Slot, level: u32, end: u64) -> &'s mut Child {
        match slot.node_mut() {
            None => {
                debug_assert!(slot.is_empty(), "the caller has loaded the path");
                *slot = Slot::resident(Arc::new(Node::empty(level, self.depth, self.gauge)));
            }
            Some(node) => {
                let owned = self.owns.owns(node.birth(), end);
                if !(owned && node.stored().is_none() && Arc::get_mut(node).is_some()) {
                    let copy = Arc::new(node.copy(self.depth));
                    let replaced = std::mem::replace(node, copy);
                    if owned {
                        self.garbage.push(replaced);
                    }
                }
            }
        }
        let node = slot.node_mut().expect("the slot was just filled");
        Arc::get_mut(node)
            .expect("the node was found or made unshared")
            .child_mut()
    }

    /// Takes an owned page out of the map.
    pub fn remove(&mut self, slot: &mut Slot, end: u64) {
        let owned = self.owns.owns(slot.birth(), end);
        let removed = std::mem::take(slot);
        if owned {
            self.garbage.push_removed(removed);
        }
    }
}

/// Changes a leaf, making it and the way to it where needed; drops pages that have become empty. The caller has
/// seen that no page on the way is [`Missing`].
pub(crate) fn update_leaf<R>(
    root: &mut Slot,
    leaf: u64,
    walk: &mut Walk<'_>,
    change: impl FnOnce(&mut [LeafEntry; LEAF_ENTRIES]) -> R,
) -> R {
    update(root, INNER_LEVELS, leaf, walk, change).0
}

/// Returns the result of the change and whether the page in `slot` is still needed; an unneeded one is removed.
fn update<R>(
    slot: &mut Slot,
    level: u32,
    leaf: u64,
    walk: &mut Walk<'_>,
    change: impl FnOnce(&mut [LeafEntry; LEAF_ENTRIES]) -> R,
) -> (R, bool) {
    let span = leaves_covered(level);
    let end = (leaf / span + 1) * span;
    let (result, needed) = match walk.make_mut(slot, level, end) {
        Child::Leaf(entries) => {
            let result = change(entries);
            (result, entries.iter().any(|entry| *entry != LeafEntry::UNMAPPED))
        }
        Child::Inner(slots) => {
            let slots = slots
                .get_mut()
                .expect("no thread panicked while it changed a page");
            let (result, child_needed) =
                update(&mut slots[entry_of(level, leaf)], level - 1, leaf, walk, change);
            let needed = child_needed || slots.iter().any(|slot| !slot.is_empty());
            (result, needed)
        }
    };
    if !needed {
        walk.remove(slot, end);
    }
    (result, needed)
}

/// Removes a leaf, and pages above it that have become empty. The caller has seen that those are in memory; the leaf itself
/// need not be.
pub(crate) fn remove_leaf(root: &mut Slot, leaf: u64, walk: &mut Walk<'_>) {
    remove_below(root, INNER_LEVELS, leaf, walk);
}

/// Returns whether the page in `slot` is still needed; an unneeded one is removed.
fn remove_below(slot: &mut Slot, level: u32, leaf: u64, walk: &mut Walk<'_>) -> bool {
    if slot.is_empty() {
        return false;
    }
    let span = leaves_covered(level);
    let end = (leaf / span + 1) * span;
    let needed = level > 0
        && match walk.make_mut(slot, level, end) {
            Child::Leaf(_) => false,
            Child::Inner(slots) => {
                let slots = slots
                    .get_mut()
                    .expect("no thread panicked while it changed a page");
                remove_below(&mut slots[entry_of(level, leaf)], level - 1, leaf, walk);
                slots.iter().any(|slot| !slot.is_empty())
            }
        };
    if !needed {
        walk.remove(slot, end);
    }
    needed
}

/// Puts another page in the place of one that cannot be loaded; the version owns it, and the pages above it are in memory.
pub(crate) fn put_page(root: &mut Slot, place: &Missing, page: Slot, walk: &mut Walk<'_>) {
    put_below(root, INNER_LEVELS, place, page, walk);
}

/// Returns whether the page in `slot` is still needed; an unneeded one is removed.
fn put_below(slot: &mut Slot, level: u32, place: &Missing, page: Slot, walk: &mut Walk<'_>) -> bool {
    let span = leaves_covered(level);
    let end = (place.first_leaf / span + 1) * span;
    if level == place.level {
        walk.garbage.push_slot(std::mem::replace(slot, page));
        return !slot.is_empty();
    }
    let needed = match walk.make_mut(slot, level, end) {
        Child::Leaf(_) => true,
        Child::Inner(slots) => {
            let slots = slots
                .get_mut()
                .expect("no thread panicked while it changed a page");
            let child = &mut slots[entry_of(level, place.first_leaf)];
            put_below(child, level - 1, place, page, walk) || slots.iter().any(|slot| !slot.is_empty())
        }
    };
    if !needed {
        walk.remove(slot, end);
    }
    needed
}
