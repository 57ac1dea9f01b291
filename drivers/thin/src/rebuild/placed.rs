//! What is left of the maps, and where the table puts what they do not name any more.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::chunk_table::{Owners, TableScan};
use crate::format::{LEAF_ENTRIES, LeafEntry, PagePointer};
use crate::locks::read;
use crate::map::{Child, INNER_LEVELS, Node, Slot, leaves_covered};
use crate::page_io::read_page;
use crate::state::State;
use crate::version::NodeId;
use crate::{PoolDevice, PoolError};

/// A place in the map of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PagePlace {
    pub owner: NodeId,
    pub level: u32,
    pub first_leaf: u64,
}

/// What a rebuild works from.
#[derive(Debug, Default)]
pub(super) struct Placed {
    pub lost_pages: u64,
    /// Pages that cannot be read, by their first copies.
    pub lost: HashSet<u64>,
    /// Pages that can be, by whose they are: of those of a lost page's, who shares them with another version still knows them.
    pub known: BTreeMap<PagePlace, PagePointer>,
    /// By owner and leaf: chunks that no page names any more.
    pub chunks: BTreeMap<(NodeId, u64), Vec<(usize, LeafEntry)>>,
}

/// Reads all maps, and places what they do not name.
///
/// # Errors
/// `Damaged` when the table does not have all of that (CT5).
pub(super) fn place_chunks(device: &dyn PoolDevice, state: &State) -> Result<Placed, PoolError> {
    let mut survey = Survey {
        device,
        state,
        owners: Owners::of(state),
        named: vec![false; state.geometry.chunk_count as usize],
        visited: HashSet::new(),
        placed: Placed::default(),
    };
    for version in state.versions.iter() {
        survey.visit(version.node, &version.root, INNER_LEVELS, 0);
    }
    if survey.placed.lost_pages > 0 {
        survey.place_unnamed()?;
    }
    Ok(survey.placed)
}

struct Survey<'a> {
    device: &'a dyn PoolDevice,
    state: &'a State,
    owners: Owners,
    /// Chunks that a page of their owner names.
    named: Vec<bool>,
    visited: HashSet<u64>,
    placed: Placed,
}

impl Survey<'_> {
    /// Goes through everything below a page that has not been come to before, whoever owns it.
    fn visit(&mut self, node: NodeId, slot: &Slot, level: u32, first: u64) {
        let pointer = slot.pointer();
        if slot.is_empty() || !self.visited.insert(pointer.first) {
            return;
        }
        let Ok(page) = read_page(self.device, pointer, "map page") else {
            self.placed.lost_pages += 1;
            self.placed.lost.insert(pointer.first);
            return;
        };
        let end = first + leaves_covered(level);
        let owner = self.owners.owner_of_page(node, pointer.birth, end);
        if let Some(owner) = owner {
            let place = PagePlace {
                owner,
                level,
                first_leaf: first,
            };
            self.placed.known.insert(place, pointer);
        }
        match Node::load(level, pointer, &page, &Arc::clone(&self.state.gauge)).child() {
            Child::Leaf(entries) => {
                let is_own = |entry: &&LeafEntry| {
                    entry.is_mapped()
                        && owner.is_some_and(|owner| self.owners.owns(owner, entry.birth(), end))
                };
                for entry in entries.iter().filter(is_own) {
                    if let Some(named) = self.named.get_mut(entry.chunk() as usize) {
                        *named = true;
                    }
                }
            }
            Child::Inner(slots) => {
                for (i, slot) in read(slots).iter().enumerate() {
                    self.visit(
                        node,
                        slot,
                        level - 1,
                        first + i as u64 * leaves_covered(level - 1),
                    );
                }
            }
        }
    }

    fn place_unnamed(&mut self) -> Result<(), PoolError> {
        let orphans: HashSet<u64> = self.state.partials.orphans().collect();
        let keys: HashSet<u64> = self.state.keys.chunks().collect();
        let mut unnamed: HashSet<u64> = (0..self.state.geometry.chunk_count)
            .filter(|chunk| self.state.space.is_data(*chunk) && !self.named[*chunk as usize])
            .filter(|chunk| !orphans.contains(chunk) && !keys.contains(chunk))
            .collect();
        let scan = TableScan::new(self.device, self.state.table.tops());
        let (owners, chunks) = (&mut self.owners, &mut self.placed.chunks);
        scan.entries(
            |chunk, entry| {
                if unnamed.contains(&chunk)
                    && let Some(owner) = owners.owner(&entry)
                {
                    unnamed.remove(&chunk);
                    let leaf = entry.index / LEAF_ENTRIES as u64;
                    let within = entry.index as usize % LEAF_ENTRIES;
                    let mapped = LeafEntry::mapped(chunk, entry.birth);
                    chunks.entry((owner, leaf)).or_default().push((within, mapped));
                }
                Ok(())
            },
            |_, _| Ok(()),
        )?;
        for ((owner, leaf), chunks) in &mut self.placed.chunks {
            chunks.sort_unstable_by_key(|(within, _)| *within);
            if let Some(two) = chunks.windows(2).find(|two| two[0].0 == two[1].0) {
                return Err(PoolError::damaged(
                    "chunk table",
                    format!(
                        "it has chunks {} and {} at one place in leaf {leaf} of version {}",
                        two[0].1.chunk(),
                        two[1].1.chunk(),
                        owner.0
                    ),
                ));
            }
        }
        if unnamed.is_empty() {
            return Ok(());
        }
        Err(PoolError::damaged(
            "chunk table",
            format!("it does not say whose {} chunks are", unnamed.len()),
        ))
    }
}
