//! The scrub: reading everything that has checksums, in the background, and finding what is damaged before somebody needs it.
//!
//! It goes through the versions that have checksums and reads what each owns, so every chunk once. Where it is, and what it
//! has found, is part of the state: a restart goes on from there.
//!
//! Invariants
//! - Z1: versions are gone through by depth, parents first, and by number among those of one depth. What a version owns passes
//!   only to its child when it is merged, or to a new parent of the same depth when a snapshot is taken; both come later. So a
//!   chunk that is there from the beginning of a scrub to its end is verified.
//! - Z2: a block counts as damaged only when it is found so twice, and its version maps its chunk, with the same sum, before and after
//!   each reading. A chunk that is freed while it is read, and is another's by then, proves nothing.
//! - Z3: a step ends with its scrub further on, whatever is lost: a page of a map or of sums without a good copy is counted as
//!   what could not be verified, and passed over from wherever the scrub is by then.
//!
//! Failure: what cannot be read counts as damaged; what cannot be looked up is counted, told of and passed over.
//! Format: docs/formats/pool.md, "Scrub".

mod calls;
mod step;

use quarry_contract::ScrubState;

use crate::format::LEAF_ENTRIES;
use crate::map::{LeafView, find_leaf};
use crate::record::Record;
use crate::state::{State, Wanted};
use crate::version::{NodeId, Version};

/// The most damaged blocks that are remembered one by one; others are counted.
const MOST_FINDINGS: usize = 256;
/// Findings that may come while a checkpoint is made: what its index stream has room for beside those it knows.
const MORE_FINDINGS: usize = 64;

/// How the running scrub is, or the last one was.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Scrub {
    /// Whether the next checkpoint says that there may be one.
    pub wanted: bool,
    state: ScrubState,
    /// When it was begun, in seconds since 1970.
    begun: u64,
    /// Where it goes on.
    at: Position,
    verified_chunks: u64,
    /// What it had to pass over.
    skipped_chunks: u64,
    bad_blocks: u64,
    findings: Vec<Finding>,
}

/// What is counted of a scrub.
pub(crate) struct ScrubFigures {
    pub is_running: bool,
    pub verified_bytes: u64,
    pub skipped_bytes: u64,
    pub bad_blocks: u64,
}

/// A place in the order in which a scrub goes (Z1). It begins at the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Position {
    pub depth: u32,
    pub node: NodeId,
    /// The chunk index to go on with.
    pub index: u64,
}

impl Position {
    /// Returns where a version begins.
    pub fn beginning_of(version: &Version) -> Self {
        Self {
            depth: version.depth,
            node: version.node,
            index: 0,
        }
    }
}

/// A damaged block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The version that owns, or borrows, it.
    pub node: NodeId,
    /// Its chunk index there.
    pub index: u64,
    /// What that is mapped to.
    pub chunk: u64,
    /// Its number in the chunk.
    pub block: u16,
}

impl Scrub {
    fn begun_at(begun: u64) -> Self {
        Self {
            wanted: true,
            state: ScrubState::Running,
            begun,
            ..Self::default()
        }
    }

    fn is_running(&self) -> bool {
        self.state == ScrubState::Running
    }

    /// Tells whether a damaged block is one that a scrub has found before: in a step that a power cut undid, or for another
    /// version.
    fn knows(&self, finding: &Finding) -> bool {
        let same = |known: &Finding| (known.chunk, known.block) == (finding.chunk, finding.block);
        self.findings.iter().any(same)
    }

    /// Returns its figures.
    pub fn figures(&self, chunk_bytes: u64) -> ScrubFigures {
        ScrubFigures {
            is_running: self.is_running(),
            verified_bytes: self.verified_chunks * chunk_bytes,
            skipped_bytes: self.skipped_chunks * chunk_bytes,
            bad_blocks: self.bad_blocks,
        }
    }

    /// Encodes it for the index stream.
    pub fn encode(&self) -> Vec<u64> {
        if self.state == ScrubState::Never {
            return vec![0];
        }
        let Position { depth, node, index } = self.at;
        let mut words = vec![
            state_code(self.state).into(),
            self.begun,
            depth.into(),
            node.0,
            index,
            self.verified_chunks,
            self.skipped_chunks,
            self.bad_blocks,
            self.findings.len() as u64,
        ];
        for finding in &self.findings {
            let block = u64::from(finding.block);
            words.extend([finding.node.0, finding.index, finding.chunk, block]);
        }
        words
    }

    /// Returns how many words [`encode`](Self::encode) gives at most, with some more findings.
    pub fn most_encoded_words(&self) -> usize {
        9 + 4 * (self.findings.len() + MORE_FINDINGS)
    }

    /// Decodes what [`encode`](Self::encode) encoded. `word` gives the next word.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(mut word: impl FnMut() -> Option<u64>) -> Result<Self, String> {
        let mut next = || word().ok_or_else(|| "cut short in the scrub".to_owned());
        let state = u8::try_from(next()?).ok().and_then(state_of_code);
        let state = state.ok_or("a scrub in no known state")?;
        let mut scrub = Self {
            wanted: true,
            state,
            ..Self::default()
        };
        if state == ScrubState::Never {
            return Ok(scrub);
        }
        scrub.begun = next()?;
        scrub.at = Position {
            depth: u32::try_from(next()?).map_err(|_| "a scrub at no depth")?,
            node: NodeId(next()?),
            index: next()?,
        };
        scrub.verified_chunks = next()?;
        scrub.skipped_chunks = next()?;
        scrub.bad_blocks = next()?;
        for _ in 0..next()? {
            scrub.findings.push(Finding {
                node: NodeId(next()?),
                index: next()?,
                chunk: next()?,
                block: u16::try_from(next()?).map_err(|_| "a finding in no block")?,
            });
        }
        Ok(scrub)
    }
}

/// The number of a state in a record and in the index stream.
pub(crate) fn state_code(state: ScrubState) -> u8 {
    match state {
        ScrubState::Never => 0,
        ScrubState::Running => 1,
        ScrubState::Done => 2,
        ScrubState::Stopped => 3,
    }
}

/// The state with this number.
pub(crate) fn state_of_code(code: u8) -> Option<ScrubState> {
    use ScrubState::{Done, Never, Running, Stopped};

    [Never, Running, Done, Stopped]
        .into_iter()
        .find(|state| state_code(*state) == code)
}

impl State {
    /// Applies what a scrub has logged.
    ///
    /// # Errors
    /// Says what makes the record impossible in this state.
    pub fn apply_scrub(&mut self, record: &Record) -> Result<(), String> {
        if let Record::BeginScrub { begun } = *record {
            self.scrub = Scrub::begun_at(begun);
            return Ok(());
        }
        let scrub = &mut self.scrub;
        if !scrub.is_running() {
            return Err("goes on with a scrub that does not run".into());
        }
        match *record {
            Record::Scrubbed {
                at,
                verified,
                skipped,
            } => {
                scrub.at = at;
                scrub.verified_chunks += verified;
                scrub.skipped_chunks += skipped;
            }
            Record::FoundBad(finding) if scrub.knows(&finding) => {}
            Record::FoundBad(finding) => {
                scrub.bad_blocks += 1;
                if scrub.findings.len() < MOST_FINDINGS {
                    scrub.findings.push(finding);
                }
            }
            Record::EndScrub { state } => scrub.state = state,
            _ => return Err("is no record of a scrub".into()),
        }
        Ok(())
    }

    /// Returns where the running scrub goes on, if one is running.
    fn running_scrub(&self) -> Option<Position> {
        self.scrub.is_running().then_some(self.scrub.at)
    }

    /// Returns the chunk that a version maps at a chunk index, if it exists and maps any.
    ///
    /// # Errors
    /// The page that has to be loaded to tell.
    fn chunk_at(&self, node: NodeId, index: u64) -> Result<Option<u64>, Wanted> {
        let Some(version) = self.versions.find(node) else {
            return Ok(None);
        };
        find_leaf(&version.root, index / LEAF_ENTRIES as u64, |view| match view {
            LeafView::Leaf(entries) => {
                let entry = entries[index as usize % LEAF_ENTRIES];
                Ok(entry.is_mapped().then(|| entry.chunk()))
            }
            LeafView::Empty => Ok(None),
            LeafView::Missing(missing) => Err(Wanted { node, missing }),
        })
    }
}

/// Tells whether a version has chunks that somebody sees: a deleted one keeps what its children share until they have it.
fn is_of_use(version: &Version) -> bool {
    !(version.dead && version.children.is_empty())
}

/// Tells whether a version has something to scrub.
fn is_to_be_scrubbed(version: &Version) -> bool {
    version.checksums.are_on() && is_of_use(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrub_round_trips_and_is_not_taken_for_one_when_cut_short() {
        let finding = Finding {
            node: NodeId(3),
            index: 4,
            chunk: 5,
            block: 255,
        };
        let never = Scrub {
            wanted: true,
            ..Scrub::default()
        };
        let mut scrub = Scrub::begun_at(77);
        scrub.findings = vec![finding; 3];
        scrub.skipped_chunks = 6;
        scrub.at = Position {
            depth: 9,
            node: NodeId(8),
            index: 7,
        };
        for scrub in [never, scrub] {
            let words = scrub.encode();
            assert!(words.len() <= scrub.most_encoded_words());
            let decode = |words: &[u64]| {
                let mut words = words.iter().copied();
                Scrub::decode(|| words.next())
            };
            assert_eq!(decode(&words), Ok(scrub));
            for cut in 0..words.len() {
                assert!(decode(&words[..cut]).is_err());
            }
        }
        assert!(Scrub::decode(|| Some(4)).is_err());
    }
}
