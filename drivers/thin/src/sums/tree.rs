//! Where sums are kept: trees of pages like those of a map, found by the number of a block in the pool.
//!
//! Part of the state, under its lock. A leaf of a map has 512 words of 64 bits; here each holds the sums of two blocks.
//! Pages are loaded, changed, stored and evicted like those of maps (M1 to M3); the trees own all of theirs.

use crate::format::{Geometry, LEAF_ENTRIES, LeafEntry, PagePointer};
use crate::map::{LeafView, MAX_CHUNKS, Ownership, Slot, Walk, find_leaf, missing_leaf, update_leaf};
use crate::page_set::PageSet;
use crate::partial::Blocks;
use crate::state::{State, Wanted};
use crate::sums::{BlockSums, FewSums};
use crate::version::NodeId;

/// The trees of a pool's sums.
#[derive(Debug, Default)]
pub(crate) struct SumTrees {
    roots: Vec<Slot>,
    /// Whether the next checkpoint says that volumes may be checksummed.
    pub wanted: bool,
    /// Leaves, numbered through all trees, that may be needed no more.
    pub(super) to_trim: PageSet,
}

/// More trees than the largest pool needs, in which each chunk has 256 blocks.
const MOST_TREES: u64 = (1 << 36) * 256 / 2 / MAX_CHUNKS + 1;
/// The birth of every page of a sum tree.
pub(super) const BIRTH: u32 = 1;
/// The trees have no parent.
pub(super) const OWNS_ALL: Ownership = Ownership {
    base: 0,
    cursor: 0,
    base_below_cursor: 0,
};

/// Where the sums of a chunk are: all in one leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SumPlace {
    tree: usize,
    leaf: u64,
    /// The first one's number in the leaf.
    number: usize,
}

impl SumPlace {
    fn of(chunk: u64, blocks_per_chunk: u64) -> Self {
        let word = chunk * blocks_per_chunk / 2;
        let in_tree = word % MAX_CHUNKS;
        Self {
            tree: (word / MAX_CHUNKS) as usize,
            leaf: in_tree / LEAF_ENTRIES as u64,
            number: (in_tree % LEAF_ENTRIES as u64) as usize * 2,
        }
    }
}

impl SumTrees {
    /// The trees that a checkpoint of a pool of this geometry has stored.
    pub fn stored(roots: impl Iterator<Item = PagePointer>, geometry: &Geometry) -> Self {
        let words = geometry.chunk_count * geometry.pages_per_chunk() / 2;
        Self {
            roots: roots.map(Slot::stored).collect(),
            wanted: true,
            to_trim: PageSet::first(words.div_ceil(LEAF_ENTRIES as u64)),
        }
    }

    /// Returns the roots.
    pub fn roots(&self) -> &[Slot] {
        &self.roots
    }

    /// Returns what names the trees among versions.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.roots.len()).map(node_of)
    }

    pub(super) fn root_of_tree(&mut self, tree: usize) -> &mut Slot {
        &mut self.roots[tree]
    }

    fn root(&self, node: NodeId) -> Option<&Slot> {
        self.roots.get(tree_of(node)?)
    }

    fn root_mut(&mut self, node: NodeId) -> Option<&mut Slot> {
        self.roots.get_mut(tree_of(node)?)
    }
}

/// Versions are numbered from 1; trees from the other end.
pub(super) fn node_of(tree: usize) -> NodeId {
    NodeId(u64::MAX - tree as u64)
}

fn tree_of(node: NodeId) -> Option<usize> {
    let tree = u64::MAX - node.0;
    (tree < MOST_TREES).then_some(tree as usize)
}

impl Wanted {
    /// Tells whether the page is one of a sum tree.
    pub fn is_of_sums(&self) -> bool {
        tree_of(self.node).is_some()
    }
}

impl State {
    /// Returns the root of a version's map, or of a sum tree.
    pub fn root(&self, node: NodeId) -> Option<&Slot> {
        let version = self.versions.find(node);
        version
            .map(|version| &version.root)
            .or_else(|| self.sums.root(node))
    }

    /// As [`root`](Self::root), to load or evict pages, which is no change.
    pub fn root_mut(&mut self, node: NodeId) -> Option<&mut Slot> {
        match self.versions.row(node) {
            Some(_) => self.versions.root_mut(node),
            None => self.sums.root_mut(node),
        }
    }

    /// Returns which page has the sums of a chunk: two chunks with the same one make as many pages dirty as one.
    pub fn sums_page(&self, chunk: u64) -> (NodeId, u64) {
        let place = SumPlace::of(chunk, self.geometry.pages_per_chunk());
        (node_of(place.tree), place.leaf)
    }

    /// Returns a page on the way to the sums of a chunk that is not in memory, if there is one.
    pub fn wanted_sums(&self, chunk: u64) -> Option<Wanted> {
        let (tree, leaf) = self.sums_page(chunk);
        self.wanted_leaf(tree, leaf)
    }

    /// Returns the sums of blocks of a chunk of a checksummed version.
    ///
    /// # Errors
    /// The page that has to be loaded first.
    pub fn sums_of(&self, chunk: u64, blocks: Blocks) -> Result<BlockSums, Wanted> {
        let place = SumPlace::of(chunk, self.geometry.pages_per_chunk());
        let first = place.number + usize::from(blocks.first);
        let numbers = first..first + usize::from(blocks.count);
        let Some(root) = self.sums.roots.get(place.tree) else {
            return Ok(numbers.map(|_| 0).collect());
        };
        find_leaf(root, place.leaf, |view| match view {
            LeafView::Leaf(words) => Ok(numbers
                .map(|number| (words[number / 2].0 >> (number % 2 * 32)) as u32)
                .collect()),
            LeafView::Empty => Ok(numbers.map(|_| 0).collect()),
            LeafView::Missing(missing) => Err(Wanted {
                node: node_of(place.tree),
                missing,
            }),
        })
    }

    /// Applies a record of sums. The page that it needs is in memory.
    ///
    /// # Errors
    /// Says what makes the record impossible in this state.
    pub fn apply_sums(&mut self, chunk: u64, sums: &FewSums) -> Result<(), String> {
        self.check_blocks(sums.blocks())?;
        if !self.sums.wanted || !self.space.is_data(chunk) {
            return Err(format!(
                "has sums for chunk {chunk}, which holds no data with sums"
            ));
        }
        let place = SumPlace::of(chunk, self.geometry.pages_per_chunk());
        if self.sums.roots.len() <= place.tree {
            self.sums.roots.resize(place.tree + 1, Slot::default());
        }
        let root = &mut self.sums.roots[place.tree];
        debug_assert!(
            missing_leaf(root, place.leaf).is_none(),
            "the caller has loaded it"
        );
        let mut walk = Walk {
            owns: OWNS_ALL,
            depth: BIRTH,
            garbage: &mut self.garbage,
            gauge: &self.gauge,
        };
        update_leaf(root, place.leaf, &mut walk, |words| {
            let numbers = place.number + usize::from(sums.blocks().first)..;
            for (number, sum) in numbers.zip(sums.iter()) {
                let shift = number % 2 * 32;
                let LeafEntry(word) = &mut words[number / 2];
                *word = *word & !(0xffff_ffff << shift) | u64::from(sum) << shift;
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_of_a_chunk_are_in_one_leaf_and_no_two_blocks_share_a_place() {
        for blocks_per_chunk in [4, 16, 256] {
            let mut last = None;
            for chunk in
                (0..5000).chain((1 << 31) / blocks_per_chunk - 300..(1 << 31) / blocks_per_chunk + 300)
            {
                let place = SumPlace::of(chunk, blocks_per_chunk);
                assert!(place.number + blocks_per_chunk as usize <= LEAF_ENTRIES * 2);
                let absolute = (place.tree as u64 * MAX_CHUNKS + place.leaf * LEAF_ENTRIES as u64) * 2
                    + place.number as u64;
                assert_eq!(absolute, chunk * blocks_per_chunk);
                assert!(last < Some(absolute));
                last = Some(absolute);
            }
        }
        assert_eq!(SumPlace::of(1 << 27, 16).tree, 1);
    }
}
