//! Giving back the pages of sums that nobody needs any more.
//!
//! A chunk that is freed leaves its sums behind; a page goes when none of the chunks it is for holds data. Which pages have lost
//! a chunk is remembered in memory, a bit for each; after an open that may be any.

use smallvec::{SmallVec, smallvec};

use crate::PoolError;
use crate::format::{INNER_ENTRIES, LEAF_ENTRIES};
use crate::locks::write;
use crate::map::{LeafView, MAX_LEAVES, Walk, find_leaf, remove_leaf};
use crate::pool::{Decision, Pool, Priority};
use crate::record::Record;
use crate::state::{State, Wanted};
use crate::sums::tree::{BIRTH, OWNS_ALL, node_of};

/// The most leaves that are looked at under the lock at once.
const LEAVES_AT_ONCE: usize = 512;

/// Leaves below one inner page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LeafRun {
    first: u64,
    count: u64,
}

impl State {
    /// Remembers that a chunk holds no data any more.
    pub fn note_sums_unneeded(&mut self, chunk: u64) {
        if self.sums.wanted {
            let leaf = self.sums_leaf(chunk);
            self.sums.to_trim.add(leaf);
        }
    }

    fn sums_leaf(&self, chunk: u64) -> u64 {
        chunk * self.geometry.pages_per_chunk() / 2 / LEAF_ENTRIES as u64
    }

    fn is_unneeded(&self, leaf: u64) -> bool {
        let chunks_per_leaf = LEAF_ENTRIES as u64 * 2 / self.geometry.pages_per_chunk();
        let first = leaf * chunks_per_leaf;
        let holds_keys = |chunk| self.keys.chunks().any(|of_keys| of_keys == chunk);
        (first..first + chunks_per_leaf).all(|chunk| !self.space.is_data(chunk) || holds_keys(chunk))
    }

    /// Takes out leaves until some follow each other that nobody needs. Tells whether others are left.
    fn next_unneeded(&mut self) -> (Option<LeafRun>, bool) {
        let mut found = None;
        for _ in 0..LEAVES_AT_ONCE {
            let Some(first) = self.sums.to_trim.take_first() else {
                break;
            };
            if !self.is_unneeded(first) {
                continue;
            }
            let end = (first / INNER_ENTRIES as u64 + 1) * INNER_ENTRIES as u64;
            let rest = (first + 1..end).take_while(|leaf| self.is_unneeded(*leaf));
            let count = 1 + rest.count() as u64;
            for leaf in first..first + count {
                self.sums.to_trim.take(leaf);
            }
            found = Some(LeafRun { first, count });
            break;
        }
        (found, !self.sums.to_trim.is_empty())
    }

    /// Tells whether any of these leaves is there.
    ///
    /// # Errors
    /// The page that has to be loaded to tell.
    fn has_any_of(&self, run: LeafRun) -> Result<bool, Wanted> {
        for leaf in run.first..run.first + run.count {
            let tree = (leaf / MAX_LEAVES) as usize;
            let Some(root) = self.sums.roots().get(tree) else {
                return Ok(false);
            };
            let is_there = find_leaf(root, leaf % MAX_LEAVES, |view| match view {
                LeafView::Empty => Ok(false),
                // The leaf itself is not needed.
                LeafView::Missing(missing) if missing.level > 0 => Err(Wanted {
                    node: node_of(tree),
                    missing,
                }),
                LeafView::Missing(_) | LeafView::Leaf(_) => Ok(true),
            })?;
            if is_there {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns a page that has to be in memory before these leaves can be removed, if there is one.
    pub fn wanted_to_forget_sums(&self, first: u64, count: u64) -> Option<Wanted> {
        // All are below one inner page.
        self.has_any_of(LeafRun { first, count }).err()
    }

    /// Removes leaves of a sum tree that nobody needs. The pages above them are in memory.
    ///
    /// # Errors
    /// Says what makes the record impossible in this state.
    pub fn apply_forget_sums(&mut self, first: u64, count: u64) -> Result<(), String> {
        let page = first / INNER_ENTRIES as u64;
        let tree = (first / MAX_LEAVES) as usize;
        let is_in_page = count > 0 && (first + count - 1) / INNER_ENTRIES as u64 == page;
        if !is_in_page || tree >= self.sums.roots().len() {
            return Err(format!(
                "forgets {count} leaves of sums from {first}, which are not there"
            ));
        }
        for leaf in first..first + count {
            if !self.is_unneeded(leaf) {
                return Err(format!("forgets leaf {leaf} of sums, which is needed"));
            }
            let mut walk = Walk {
                owns: OWNS_ALL,
                depth: BIRTH,
                garbage: &mut self.garbage,
                gauge: &self.gauge,
            };
            remove_leaf(self.sums.root_of_tree(tree), leaf % MAX_LEAVES, &mut walk);
        }
        Ok(())
    }
}

impl Pool {
    /// Removes some pages of sums that nobody needs; tells whether there may be more.
    pub(crate) fn trim_sums(&self) -> Result<bool, PoolError> {
        let (run, more) = {
            let mut state = write(&self.state);
            // A read of what was freed a moment ago may still look up its sums.
            if state.space.quarantined() > 0 {
                return Ok(false);
            }
            state.next_unneeded()
        };
        let Some(run) = run else {
            return Ok(more);
        };
        let LeafRun { first, count } = run;
        let removed = self.change(Priority::Reclaim, |state| {
            let still_unneeded =
                state.space.quarantined() == 0 && (first..first + count).all(|leaf| state.is_unneeded(leaf));
            let records: SmallVec<[Record; 2]> = match state.has_any_of(run) {
                Err(wanted) => return Ok::<_, PoolError>(Decision::Load(wanted)),
                Ok(true) if still_unneeded => smallvec![Record::ForgetSums { first, count }],
                // A chunk that got data meanwhile may be freed again, and is then remembered again.
                Ok(_) => SmallVec::new(),
            };
            Ok(Decision::Apply(records))
        });
        match removed {
            // What is below a lost page stays, and other background work is not kept from getting on.
            Ok(()) | Err(PoolError::Damaged { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }
}
