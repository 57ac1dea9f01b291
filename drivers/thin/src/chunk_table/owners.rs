//! Who owns the chunk of an entry.

use std::collections::HashMap;

use super::Links;
use crate::format::{ChunkEntry, LEAF_ENTRIES};
use crate::map::Ownership;
use crate::state::State;
use crate::version::{NodeId, Version};

/// The versions of one moment, and where the names of those that are gone lead.
#[derive(Debug)]
pub(crate) struct Owners {
    versions: HashMap<NodeId, Descent>,
    links: Links,
    /// The leaves below this one have been reclaimed, of the version that is being reclaimed.
    cursor: u64,
    /// The owners found so far: by name, birth, and whether the leaf is below the cursor.
    known: HashMap<(u64, u32, bool), Option<NodeId>>,
}

/// What has to be known of a version.
#[derive(Debug)]
struct Descent {
    parent: Option<NodeId>,
    owns: Ownership,
    /// Who has what it owned in the leaves below the cursor, if it is being reclaimed.
    heir_below_cursor: Option<NodeId>,
    is_reclaimed: bool,
}

impl Owners {
    /// Takes them from a state.
    pub fn of(state: &State) -> Self {
        let descent = |version: &Version| Descent {
            parent: version.parent,
            owns: state.versions.ownership(version),
            heir_below_cursor: version.children.first().copied(),
            is_reclaimed: version.reap_cursor > 0,
        };
        let versions = state.versions.iter();
        Self {
            versions: versions.map(|version| (version.node, descent(version))).collect(),
            links: state.table.links.clone(),
            cursor: state
                .versions
                .iter()
                .map(|version| version.reap_cursor)
                .max()
                .unwrap_or(0),
            known: HashMap::new(),
        }
    }

    /// Returns the version that owns the chunk of an entry, if that is allocated; `None` when its name leads nowhere.
    pub fn owner(&mut self, entry: &ChunkEntry) -> Option<NodeId> {
        let leaf = entry.index / LEAF_ENTRIES as u64;
        let key = (entry.name, entry.birth, leaf < self.cursor);
        if let Some(owner) = self.known.get(&key) {
            return *owner;
        }
        let owner = self.find_owner(NodeId(entry.name), entry.birth, leaf);
        self.known.insert(key, owner);
        owner
    }

    /// Returns the version that owns a page of a version's map, in a part that ends at leaf `end`.
    pub fn owner_of_page(&self, node: NodeId, birth: u32, end: u64) -> Option<NodeId> {
        let mut node = node;
        while !self.owns(node, birth, end) {
            node = self.versions.get(&node)?.parent?;
        }
        Some(node)
    }

    /// Tells whether a version owns what was born at this depth, in a part of its map that ends at leaf `end`.
    pub fn owns(&self, node: NodeId, birth: u32, end: u64) -> bool {
        let version = self.versions.get(&node);
        version.is_some_and(|version| version.owns.owns(birth, end))
    }

    /// Goes up from a name to the first version that owns what was born at this depth.
    fn find_owner(&self, name: NodeId, birth: u32, leaf: u64) -> Option<NodeId> {
        let mut node = match self.versions.contains_key(&name) {
            true => name,
            false => self.links.heir(name)?,
        };
        loop {
            let version = self.versions.get(&node)?;
            if version.owns.owns(birth, leaf + 1) {
                return match version.is_reclaimed && leaf < self.cursor {
                    true => version.heir_below_cursor,
                    false => Some(node),
                };
            }
            node = version.parent?;
        }
    }
}
