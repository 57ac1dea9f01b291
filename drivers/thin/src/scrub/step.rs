//! One step of a scrub.

use quarry_contract::{IoBuffer, ScrubState};
use smallvec::SmallVec;

use super::calls::name_of;
use super::{Finding, MOST_FINDINGS, Position, is_to_be_scrubbed};
use crate::PoolError;
use crate::format::{BLOCK, BLOCK_BYTES, LEAF_ENTRIES};
use crate::locks::read;
use crate::map::{OwnedLeaf, leaves_covered, next_owned};
use crate::partial::{Blocks, PartialView};
use crate::pool::{Decision, Pool, Priority};
use crate::record::Record;
use crate::state::{State, Wanted};
use crate::version::NodeId;

/// What a step reads, in bytes, unless a chunk is more.
const STEP_BYTES: u64 = 2 << 20;
/// Leaves and versions that a step looks at under the lock.
const LEAVES_AT_ONCE: usize = 64;
/// Records that are logged at once: many blocks may be damaged, and a batch of a short log takes only so many.
const RECORDS_AT_ONCE: usize = 64;

/// A chunk to verify.
struct Subject {
    node: NodeId,
    index: u64,
    chunk: u64,
}

/// What a scrub does next.
enum Next {
    /// It verifies these, and goes on there.
    Verify(Vec<Subject>, Position),
    /// It has come to there, where a page has to be loaded first.
    Load(Wanted, Position),
    /// Nothing is left.
    End,
}

/// What a look at a chunk has found.
enum Look {
    /// These blocks are damaged.
    Bad(Vec<u16>),
    /// Its sums are lost.
    SumsLost,
}

impl State {
    fn next_to_scrub(&self, mut at: Position, most: usize) -> Next {
        let mut subjects = Vec::new();
        for _ in 0..LEAVES_AT_ONCE {
            let current = self.versions.find(at.node);
            let current = current.filter(|v| v.depth == at.depth && is_to_be_scrubbed(v));
            let owned = current.and_then(|version| {
                let owns = self.versions.ownership(version);
                Some((owns, next_owned(&version.root, &owns, at.index / ENTRIES)?))
            });
            match owned {
                None => match self
                    .versions
                    .behind(at.depth, at.node)
                    .find(|version| is_to_be_scrubbed(version))
                {
                    Some(next) => at = Position::beginning_of(next),
                    None if subjects.is_empty() => return Next::End,
                    None => break,
                },
                Some((_, OwnedLeaf::Missing(_))) if !subjects.is_empty() => break,
                Some((_, OwnedLeaf::Missing(missing))) => {
                    let node = at.node;
                    return Next::Load(Wanted { node, missing }, at);
                }
                Some((owns, OwnedLeaf::Leaf(leaf, entries))) => {
                    at.index = at.index.max(leaf * ENTRIES);
                    for index in at.index..(leaf + 1) * ENTRIES {
                        if subjects.len() == most {
                            return Next::Verify(subjects, at);
                        }
                        at.index = index + 1;
                        let entry = entries[index as usize % LEAF_ENTRIES];
                        if entry.is_mapped() && owns.owns(entry.birth(), leaf + 1) {
                            subjects.push(Subject {
                                node: at.node,
                                index,
                                chunk: entry.chunk(),
                            });
                        }
                    }
                }
            }
        }
        Next::Verify(subjects, at)
    }

    /// Returns the record that passes over what is below a page of the version that the scrub is in, and how much that is at most.
    fn pass_over(&self, wanted: &Wanted, at: Position, chunk_bytes: u64) -> Record {
        let page = &wanted.missing;
        let index = (page.first_leaf + leaves_covered(page.level)) * ENTRIES;
        let version = self.versions.find(at.node);
        let size = version.map_or(0, |version| version.size().div_ceil(chunk_bytes));
        let from = at.index.max(page.first_leaf * ENTRIES);
        Record::Scrubbed {
            at: Position { index, ..at },
            verified: 0,
            skipped: index.min(size).saturating_sub(from),
        }
    }
}

const ENTRIES: u64 = LEAF_ENTRIES as u64;

impl Pool {
    /// Returns how fast a scrub may go.
    pub(crate) fn scrub_chunks_per_second(&self) -> u32 {
        let chunks = self.options.scrub_bytes_per_second / self.geometry.chunk_bytes;
        u32::try_from(chunks).unwrap_or(u32::MAX)
    }

    /// Goes on with a scrub, and says how many chunks it has read; tells whether one is running.
    pub(crate) fn scrub_some(&self, chunks: &mut u64) -> Result<bool, PoolError> {
        let most = (STEP_BYTES / self.geometry.chunk_bytes).max(1) as usize;
        // All pages on the way in one step: between two, what has been loaded may be evicted.
        loop {
            let (from, next) = {
                let state = read(&self.state);
                let Some(from) = state.running_scrub() else {
                    return Ok(false);
                };
                (from, state.next_to_scrub(from, most))
            };
            match next {
                Next::Load(wanted, at) => self.load_to_scrub(&wanted, from, at)?,
                Next::Verify(subjects, at) => {
                    *chunks += subjects.len() as u64;
                    self.verify_all(&subjects, from, at)?;
                    return Ok(true);
                }
                Next::End => {
                    let state = ScrubState::Done;
                    self.log_scrub(&[Record::EndScrub { state }], from)?;
                    self.commit()?;
                    tracing::info!(pool = %self.options.name, "scrub done");
                    return Ok(true);
                }
            }
        }
    }

    /// Logs how a scrub that was at `from` has gone on, unless it has been ended since, or another begun.
    fn log_scrub(&self, records: &[Record], from: Position) -> Result<(), PoolError> {
        for some in records.chunks(RECORDS_AT_ONCE) {
            self.change(Priority::Reclaim, |state| {
                let records = match state.running_scrub() == Some(from) {
                    true => SmallVec::from_slice(some),
                    false => SmallVec::new(),
                };
                Ok::<_, PoolError>(Decision::Apply(records))
            })?;
        }
        Ok(())
    }

    /// Brings a page into memory for a scrub that was at `from` and has come to `at`; passes over what is below one that is
    /// lost (Z3).
    fn load_to_scrub(&self, wanted: &Wanted, from: Position, at: Position) -> Result<(), PoolError> {
        let error = match self.load(wanted) {
            Err(error @ PoolError::Damaged { .. }) => error,
            loaded => return loaded,
        };
        tracing::error!(
            pool = %self.options.name, node = wanted.node.0, %error,
            "a part of a version cannot be scrubbed, its map is lost"
        );
        let passed = read(&self.state).pass_over(wanted, at, self.geometry.chunk_bytes);
        self.log_scrub(&[passed], from)
    }

    /// Verifies chunks and logs what that finds, and that the scrub goes on at `at`.
    fn verify_all(&self, subjects: &[Subject], from: Position, at: Position) -> Result<(), PoolError> {
        let (mut records, mut lost) = (Vec::new(), 0);
        for subject in subjects {
            match self.scrub_chunk(subject)? {
                Look::SumsLost => lost += 1,
                Look::Bad(blocks) => records.extend(blocks.into_iter().map(|block| {
                    let finding = Finding {
                        node: subject.node,
                        index: subject.index,
                        chunk: subject.chunk,
                        block,
                    };
                    self.tell_of(&finding);
                    Record::FoundBad(finding)
                })),
            }
        }
        if lost > 0 {
            tracing::error!(
                pool = %self.options.name, chunks = lost,
                "chunks cannot be scrubbed, their checksums are lost"
            );
        }
        records.push(Record::Scrubbed {
            at,
            verified: subjects.len() as u64 - lost,
            skipped: lost,
        });
        self.log_scrub(&records, from)
    }

    /// Verifies a chunk, and what is wrong with it a second time (Z2).
    fn scrub_chunk(&self, subject: &Subject) -> Result<Look, PoolError> {
        Ok(match self.look_at(subject)? {
            Look::Bad(first) if !first.is_empty() => match self.look_at(subject)? {
                Look::Bad(mut bad) => {
                    bad.retain(|block| first.contains(block));
                    Look::Bad(bad)
                }
                Look::SumsLost => Look::SumsLost,
            },
            look => look,
        })
    }

    /// Reads a chunk that its version still maps, and compares it with its sums.
    fn look_at(&self, subject: &Subject) -> Result<Look, PoolError> {
        let all = Blocks::all(self.geometry.chunk_bytes);
        let Some(view) = self.view_of(subject)? else {
            return Ok(Look::Bad(Vec::new()));
        };
        let sums = match self.sums_under(subject.chunk, view.as_ref(), all) {
            Err(PoolError::Damaged { .. }) => return Ok(Look::SumsLost),
            sums => sums?,
        };
        let bad = self.bad_blocks(subject.chunk, view.as_ref(), &sums);
        // If it was freed while it was read, what was read may be another's.
        let is_same = bad.is_empty()
            || self.view_of(subject)?.is_some()
                && self.sums_under(subject.chunk, view.as_ref(), all)? == sums;
        Ok(Look::Bad(if is_same { bad } else { Vec::new() }))
    }

    /// Returns what a chunk consists of, if its version still maps it.
    fn view_of(&self, subject: &Subject) -> Result<Option<Option<PartialView>>, PoolError> {
        loop {
            let wanted = {
                let state = read(&self.state);
                match state.chunk_at(subject.node, subject.index) {
                    Ok(chunk) if chunk == Some(subject.chunk) => {
                        return Ok(Some(state.partials.view(subject.chunk)));
                    }
                    Ok(_) => return Ok(None),
                    Err(wanted) => wanted,
                }
            };
            self.load(&wanted)?;
        }
    }

    /// Reads a chunk and returns the blocks that do not have these sums, or cannot be read.
    fn bad_blocks(&self, chunk: u64, view: Option<&PartialView>, sums: &[u32]) -> Vec<u16> {
        let chunk_bytes = self.geometry.chunk_bytes;
        let mut bytes = IoBuffer::zeroed(chunk_bytes as usize);
        let whole = self.read_under(chunk, view, 0..chunk_bytes, &mut bytes).is_ok();
        let mut bad = Vec::new();
        for (number, sum) in sums.iter().enumerate() {
            let block = &mut bytes[number * BLOCK_BYTES..][..BLOCK_BYTES];
            let at = number as u64 * BLOCK;
            let is_read = whole || self.read_under(chunk, view, at..at + BLOCK, block).is_ok();
            if !is_read || crc32c::crc32c(block) != *sum {
                bad.push(number as u16);
            }
        }
        bad
    }

    /// Tells the operator of a damaged block, unless it is known or there are too many.
    fn tell_of(&self, finding: &Finding) {
        let state = read(&self.state);
        if state.scrub.findings.len() >= MOST_FINDINGS || state.scrub.knows(finding) {
            return;
        }
        let name = state.versions.find(finding.node).and_then(name_of);
        drop(state);
        let within = u64::from(finding.block) * BLOCK;
        tracing::error!(
            pool = %self.options.name,
            version = ?name,
            offset = finding.index * self.geometry.chunk_bytes + within,
            chunk = finding.chunk,
            at = self.chunk_offset(finding.chunk) + within,
            "the scrub has found a damaged block"
        );
    }
}
