//! The pages themselves.

use std::collections::HashMap;
use std::sync::Arc;

use super::placed::{PagePlace, Placed};
use crate::format::{INNER_ENTRIES, LEAF_ENTRIES, LeafEntry, PagePointer};
use crate::locks::read;
use crate::map::{Child, INNER_LEVELS, Missing, Node, PageGauge, Slot, leaves_covered};
use crate::page_io::read_page;
use crate::state::State;
use crate::version::NodeId;
use crate::{PoolDevice, PoolError};

/// Makes lost pages again, version by version.
pub(super) struct Rebuild<'a> {
    device: &'a dyn PoolDevice,
    gauge: Arc<PageGauge>,
    placed: Placed,
    /// By the first copy of a page: what takes its place, if anything has to.
    replaced: HashMap<u64, Option<Slot>>,
    garbage: Vec<PagePointer>,
    mapped_below: HashMap<u64, u64>,
}

/// What a version inherits in a part of its map: where the parent has been reclaimed, what the parent's parent has.
#[derive(Clone, Default)]
struct Above {
    parent: Slot,
    below_cursor: Slot,
    cursor: u64,
}

/// The part of a map that a page is for.
#[derive(Clone, Copy)]
struct Part {
    node: NodeId,
    level: u32,
    first: u64,
}

impl Part {
    fn end(self) -> u64 {
        self.first + leaves_covered(self.level)
    }

    fn child(self, entry: usize) -> Self {
        let level = self.level - 1;
        Self {
            level,
            first: self.first + entry as u64 * leaves_covered(level),
            ..self
        }
    }
}

impl<'a> Rebuild<'a> {
    pub fn new(device: &'a dyn PoolDevice, gauge: &Arc<PageGauge>, placed: Placed) -> Self {
        Self {
            device,
            gauge: Arc::clone(gauge),
            placed,
            replaced: HashMap::new(),
            garbage: Vec::new(),
            mapped_below: HashMap::new(),
        }
    }

    /// Returns the pages that have been replaced.
    pub fn into_replaced(self) -> Vec<PagePointer> {
        self.garbage
    }

    /// Returns the root of a version with every lost page made again; `None` when none was lost. `rebuilt` has the roots of those
    /// that come before it.
    ///
    /// # Errors
    /// When a page that could be read a moment ago cannot be any more.
    pub fn version(
        &mut self,
        state: &State,
        node: NodeId,
        rebuilt: &[(NodeId, Slot, u64)],
    ) -> Result<Option<Slot>, PoolError> {
        let root_of = |node: Option<NodeId>| {
            let version = node.and_then(|node| state.versions.find(node))?;
            let new = rebuilt.iter().find(|(node, ..)| *node == version.node);
            Some(new.map_or_else(|| version.root.clone(), |(_, root, _)| root.clone()))
        };
        let Some(version) = state.versions.find(node) else {
            return Ok(None);
        };
        let parent = version.parent.and_then(|parent| state.versions.find(parent));
        let above = Above {
            parent: root_of(version.parent).unwrap_or_default(),
            below_cursor: root_of(parent.and_then(|parent| parent.parent)).unwrap_or_default(),
            cursor: parent.map_or(0, |parent| parent.reap_cursor),
        };
        let whole = Part {
            node,
            level: INNER_LEVELS,
            first: 0,
        };
        self.replace(&version.root, whole, &above)
    }

    /// Makes a page of just what a version owns itself, in the part that a lost page was for.
    ///
    /// # Errors
    /// None: nothing is read for it.
    pub fn own_of(&mut self, node: NodeId, lost: &Missing) -> Result<Slot, PoolError> {
        let part = Part {
            node,
            level: lost.level,
            first: lost.first_leaf,
        };
        self.make(part, lost.pointer.birth, &Above::default())
    }

    /// Returns what takes the place of a page, if it or one below it is lost.
    fn replace(&mut self, slot: &Slot, part: Part, above: &Above) -> Result<Option<Slot>, PoolError> {
        let pointer = slot.pointer();
        if slot.is_empty() {
            return Ok(None);
        }
        if let Some(known) = self.replaced.get(&pointer.first) {
            return Ok(known.clone());
        }
        let new = if self.placed.lost.contains(&pointer.first) {
            Some(self.make(part, pointer.birth, above)?)
        } else if part.level == 0 {
            None
        } else {
            self.replace_below(slot, part, above)?
        };
        if new.is_some() {
            self.garbage.push(pointer);
        }
        self.replaced.insert(pointer.first, new.clone());
        Ok(new)
    }

    /// As [`replace`](Self::replace), for an inner page that can be read.
    fn replace_below(&mut self, slot: &Slot, part: Part, above: &Above) -> Result<Option<Slot>, PoolError> {
        let page = self.page(slot, part.level)?;
        let children = inner(&page);
        let mut changed = Vec::new();
        let above = self.above_children(above, part)?;
        for (entry, child) in children.iter().enumerate() {
            if let Some(new) = self.replace(child, part.child(entry), &above[entry])? {
                changed.push((entry, new));
            }
        }
        if changed.is_empty() {
            return Ok(None);
        }
        let mut copy = page.copy(page.birth());
        if let Child::Inner(slots) = copy.child_mut() {
            let slots = slots.get_mut().expect("nobody else has the copy");
            changed.into_iter().for_each(|(entry, new)| slots[entry] = new);
        }
        Ok(Some(Slot::resident(Arc::new(copy))))
    }

    /// Makes what a version maps in a part of its map; new pages are born at this depth.
    fn make(&mut self, part: Part, birth: u32, above: &Above) -> Result<Slot, PoolError> {
        let place = PagePlace {
            owner: part.node,
            level: part.level,
            first_leaf: part.first,
        };
        if let Some(pointer) = self.placed.known.get(&place) {
            // What is below it may be lost.
            let known = Slot::stored(*pointer);
            return Ok(self.replace(&known, part, above)?.unwrap_or(known));
        }
        let leaves = (part.node, part.first)..(part.node, part.end());
        let has_own = self.placed.chunks.range(leaves).next().is_some() || self.knows_any_below(part);
        let is_cut = part.first < above.cursor && above.cursor < part.end();
        if !has_own && !is_cut {
            return Ok(above.slot(part));
        }
        let mut new = Node::empty(part.level, birth, &self.gauge);
        if part.level == 0 {
            let inherited = above.slot(part);
            let mut entries = match inherited.is_empty() {
                true => [LeafEntry::UNMAPPED; LEAF_ENTRIES],
                false => leaf(&*self.page(&inherited, 0)?),
            };
            for (within, entry) in self
                .placed
                .chunks
                .get(&(part.node, part.first))
                .into_iter()
                .flatten()
            {
                entries[*within] = *entry;
            }
            if let Child::Leaf(of_new) = new.child_mut() {
                **of_new = entries;
            }
        } else {
            let mut children: [Slot; INNER_ENTRIES] = std::array::from_fn(|_| Slot::default());
            let above = self.above_children(above, part)?;
            for (entry, child) in children.iter_mut().enumerate() {
                *child = self.make(part.child(entry), birth, &above[entry])?;
            }
            if children.iter().all(Slot::is_empty) {
                return Ok(Slot::default());
            }
            if let Child::Inner(slots) = new.child_mut() {
                *slots.get_mut().expect("nobody else has the new page") = children;
            }
        }
        Ok(Slot::resident(Arc::new(new)))
    }

    /// Tells whether a page of a version below this part is known.
    fn knows_any_below(&self, part: Part) -> bool {
        (0..part.level).any(|level| {
            let place = |first_leaf| PagePlace {
                owner: part.node,
                level,
                first_leaf,
            };
            let below = place(part.first)..place(part.end());
            self.placed.known.range(below).next().is_some()
        })
    }

    /// Returns what is inherited in the parts below a part.
    fn above_children(&self, above: &Above, part: Part) -> Result<Vec<Above>, PoolError> {
        let children = |slot: &Slot| match slot.is_empty() {
            true => Ok(std::array::from_fn(|_| Slot::default())),
            false => self.page(slot, part.level).map(|page| inner(&page)),
        };
        let both = children(&above.parent)?
            .into_iter()
            .zip(children(&above.below_cursor)?);
        let cursor = above.cursor;
        let above = both.map(|(parent, below_cursor)| Above {
            parent,
            below_cursor,
            cursor,
        });
        Ok(above.collect())
    }

    /// Returns a page, from memory when it has been made, or read.
    fn page(&self, slot: &Slot, level: u32) -> Result<Arc<Node>, PoolError> {
        match slot.node() {
            Some(node) => Ok(Arc::clone(node)),
            None => {
                let page = read_page(self.device, slot.pointer(), "map page")?;
                Ok(Arc::new(Node::load(level, slot.pointer(), &page, &self.gauge)))
            }
        }
    }

    /// Counts what a map has mapped.
    pub fn count_mapped(&mut self, root: &Slot) -> Result<u64, PoolError> {
        self.count_below(root, INNER_LEVELS)
    }

    fn count_below(&mut self, slot: &Slot, level: u32) -> Result<u64, PoolError> {
        let stored = slot.pointer().first;
        if slot.is_empty() {
            return Ok(0);
        }
        if let Some(count) = self.mapped_below.get(&stored).filter(|_| stored != 0) {
            return Ok(*count);
        }
        let page = self.page(slot, level)?;
        let count = match page.child() {
            Child::Leaf(entries) => entries.iter().filter(|entry| entry.is_mapped()).count() as u64,
            Child::Inner(_) => {
                let children = inner(&page);
                let mut count = 0;
                for child in &children {
                    count += self.count_below(child, level - 1)?;
                }
                count
            }
        };
        if stored != 0 {
            self.mapped_below.insert(stored, count);
        }
        Ok(count)
    }
}

impl Above {
    /// Returns the page for a part that the cursor does not cut.
    fn slot(&self, part: Part) -> Slot {
        match part.end() <= self.cursor {
            true => self.below_cursor.clone(),
            false => self.parent.clone(),
        }
    }
}

/// Returns the slots of an inner page.
fn inner(page: &Node) -> [Slot; INNER_ENTRIES] {
    match page.child() {
        Child::Inner(slots) => read(slots).clone(),
        Child::Leaf(_) => std::array::from_fn(|_| Slot::default()),
    }
}

/// Returns the entries of a leaf.
fn leaf(page: &Node) -> [LeafEntry; LEAF_ENTRIES] {
    match page.child() {
        Child::Leaf(entries) => **entries,
        Child::Inner(_) => [LeafEntry::UNMAPPED; LEAF_ENTRIES],
    }
}
