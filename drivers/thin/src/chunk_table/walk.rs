//! Going through all maps once, in the background, and giving each chunk that a version owns the entry that is right now.
//!
//! It fills the table of a pool that is older than the table, and one that has lost a page of it; and when there are many links, it
//! gives entries the names of their present owners, so that the links are not needed any more (CT3).
//!
//! Where it is comes with each checkpoint, as do the entries that it has made until then. Versions are gone through by depth and number,
//! as a scrub does (Z1): what changes its owner passes to one that comes later.

use crate::PoolError;
use crate::format::{ChunkEntry, LEAF_ENTRIES, LeafEntry};
use crate::locks::{lock, read, write};
use crate::map::{OwnedLeaf, Ownership, leaves_covered, next_owned};
use crate::pool::{Pool, Priority};
use crate::scrub::Position;
use crate::state::{State, Wanted};
use crate::version::NodeId;

/// How far the walk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TableWalk {
    at: Option<Position>,
    /// It could not see what is below some page: old links stay, and the table has not everything.
    has_passed_over: bool,
    /// Versions from this number on have never been named by a walk.
    named_upto: u64,
    /// It has gone on since the last checkpoint.
    has_moved: bool,
}

/// Leaves and versions that a step looks at under the lock.
const LEAVES_AT_ONCE: usize = 16;
/// With fewer links no walk begins.
const LINKS_WORTH_A_WALK: usize = 4096;
const ENTRIES: u64 = LEAF_ENTRIES as u64;

/// What a walk does next.
#[derive(Debug)]
pub(crate) enum WalkStep {
    /// It has gone on, past so many leaves, or has ended.
    Moved(u64),
    /// A page has to be loaded first.
    Load(Wanted),
    /// There is no room for more changed pages before a checkpoint.
    Checkpoint,
    /// None is under way.
    Nothing,
}

impl TableWalk {
    /// How many words [`encode`](Self::encode) gives.
    pub const WORDS: u64 = 5;

    /// A walk that is to go through everything.
    pub fn beginning() -> Self {
        let first = Position {
            depth: 0,
            node: NodeId(0),
            index: 0,
        };
        Self {
            at: Some(first),
            has_moved: true,
            ..Self::default()
        }
    }

    /// The same, to go through everything from the start.
    pub fn begun_again(self) -> Self {
        Self {
            named_upto: self.named_upto,
            ..Self::beginning()
        }
    }

    /// Tells whether one is under way.
    pub fn is_under_way(&self) -> bool {
        self.at.is_some()
    }

    /// Tells whether the table has an entry of every chunk that a version owns.
    pub fn has_seen_everything(&self) -> bool {
        self.at.is_none() && !self.has_passed_over
    }

    /// Tells whether a walk may have given entries the name of this version.
    pub fn may_have_named(&self, node: NodeId) -> bool {
        node.0 < self.named_upto
    }

    /// Tells whether it has gone on since the last freeze.
    pub fn has_moved(&self) -> bool {
        self.has_moved
    }

    /// Returns how far it is, to be stored.
    pub fn freeze(&mut self) -> Self {
        self.has_moved = false;
        *self
    }

    /// Encodes it for the index stream.
    pub fn encode(&self) -> [u64; Self::WORDS as usize] {
        let at = self.at.unwrap_or_default();
        let state = match (self.at, self.has_passed_over) {
            (None, false) => 0,
            (None, true) => 3,
            (Some(_), false) => 1,
            (Some(_), true) => 2,
        };
        [state, at.depth.into(), at.node.0, at.index, self.named_upto]
    }

    /// Decodes what [`encode`](Self::encode) encoded; `None` when it is cut short or impossible.
    pub fn decode(mut word: impl FnMut() -> Option<u64>) -> Option<Self> {
        let state = word().filter(|state| *state <= 3)?;
        let at = Position {
            depth: u32::try_from(word()?).ok()?,
            node: NodeId(word()?),
            index: word()?,
        };
        Some(Self {
            at: (state == 1 || state == 2).then_some(at),
            has_passed_over: state >= 2,
            named_upto: word()?,
            has_moved: false,
        })
    }
}

impl State {
    /// Goes through some leaves.
    pub fn walk_for_table(&mut self) -> WalkStep {
        let Some(begin) = self.table.walk.at else {
            return WalkStep::Nothing;
        };
        let (mut at, mut leaves) = (begin, 0);
        for _ in 0..LEAVES_AT_ONCE {
            let current = self.versions.find(at.node);
            let current = current.filter(|version| version.depth == at.depth);
            let owned = current.and_then(|version| {
                let owns = self.versions.ownership(version);
                Some((owns, next_owned(&version.root, &owns, at.index / ENTRIES)?))
            });
            match owned {
                None => {
                    let next = self.versions.behind(at.depth, at.node).next();
                    let Some(next) = next.map(Position::beginning_of) else {
                        self.end_walk();
                        return WalkStep::Moved(leaves);
                    };
                    at = next;
                }
                Some((_, OwnedLeaf::Missing(missing))) if at == begin => {
                    let node = at.node;
                    return WalkStep::Load(Wanted { node, missing });
                }
                Some((_, OwnedLeaf::Missing(_))) => break,
                Some((owns, OwnedLeaf::Leaf(leaf, entries))) => {
                    if !self.add_leaf(at.node, leaf, &entries, &owns) {
                        if at == begin {
                            return WalkStep::Checkpoint;
                        }
                        break;
                    }
                    at.index = (leaf + 1) * ENTRIES;
                    leaves += 1;
                }
            }
        }
        self.move_walk(at);
        WalkStep::Moved(leaves)
    }

    fn move_walk(&mut self, at: Position) {
        self.table.walk = TableWalk {
            at: Some(at),
            named_upto: self.next_node,
            has_moved: true,
            ..self.table.walk
        };
    }

    fn end_walk(&mut self) {
        if !self.table.walk.has_passed_over {
            self.table.links.forget_old();
        }
        self.table.walk = TableWalk {
            at: None,
            named_upto: self.next_node,
            has_moved: true,
            ..self.table.walk
        };
    }

    /// Adds the entries of a leaf; false, and none is added, when a checkpoint has to make room first.
    fn add_leaf(
        &mut self,
        node: NodeId,
        leaf: u64,
        entries: &[LeafEntry; LEAF_ENTRIES],
        owns: &Ownership,
    ) -> bool {
        let owned = entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.is_mapped() && owns.owns(entry.birth(), leaf + 1));
        let mut last = None;
        let pages = owned.clone().map(|(_, entry)| {
            let page = Some(super::ChunkTable::page_of(entry.chunk()));
            match std::mem::replace(&mut last, page) == page {
                true => 0,
                false => self.table.pages_changed_by(entry.chunk()),
            }
        });
        let pages = pages.sum();
        let spare = self.spare_chunks(pages);
        let lacks = spare.is_none_or(|spare| spare < self.reserve_chunks() / 2)
            || self.stock_lacking(pages, Priority::Normal).is_some();
        if pages > 0 && lacks {
            return false;
        }
        for (at, entry) in owned {
            let entry_of_chunk = ChunkEntry {
                name: node.0,
                index: leaf * ENTRIES + at as u64,
                birth: entry.birth(),
            };
            self.table.add(entry.chunk(), entry_of_chunk);
        }
        true
    }

    /// Passes over what is below a page that is lost.
    fn walk_past(&mut self, wanted: &Wanted) {
        if let Some(at) = self.table.walk.at.filter(|at| at.node == wanted.node) {
            let page = &wanted.missing;
            let index = (page.first_leaf + leaves_covered(page.level)) * ENTRIES;
            self.table.walk.has_passed_over = true;
            self.move_walk(Position { index, ..at });
        }
    }

    /// Begins a walk when there are so many links that it is worth it.
    fn walk_if_many_links(&mut self) {
        let worth_it = LINKS_WORTH_A_WALK.max(2 * self.versions.row_count());
        if self.table.links.len() > worth_it && !self.table.walk.is_under_way() {
            self.table.begin_walk();
        }
    }
}

impl Pool {
    /// Goes on with the walk, if one is under way; tells whether it has, and adds how many leaves it has gone through.
    pub(crate) fn walk_for_table(&self, leaves: &mut u64) -> Result<bool, PoolError> {
        {
            let state = read(&self.state);
            if !state.table.walk.is_under_way() && state.table.links.len() <= LINKS_WORTH_A_WALK {
                return Ok(false);
            }
        }
        write(&self.state).walk_if_many_links();
        let mut made_room = false;
        loop {
            let next = write(&self.state).walk_for_table();
            match next {
                WalkStep::Nothing => return Ok(false),
                WalkStep::Moved(walked) => {
                    *leaves += walked;
                    if !read(&self.state).table.walk.is_under_way() {
                        // What they wait for may be in the table now.
                        lock(&self.held_up).clear();
                    }
                    return Ok(true);
                }
                WalkStep::Load(wanted) => match self.load(&wanted) {
                    Err(error @ PoolError::Damaged { .. }) => {
                        tracing::error!(
                            pool = %self.options.name, node = wanted.node.0, %error,
                            "a part of a version cannot be put into the chunk table, its map is lost"
                        );
                        write(&self.state).walk_past(&wanted);
                        return Ok(true);
                    }
                    loaded => loaded?,
                },
                // In a full pool it waits for space.
                WalkStep::Checkpoint if made_room => return Ok(false),
                WalkStep::Checkpoint => {
                    made_room = true;
                    self.checkpoint()?;
                }
            }
        }
    }
}
