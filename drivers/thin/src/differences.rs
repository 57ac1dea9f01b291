//! What has changed between two versions, or what a version maps at all (V9).
//!
//! A chunk that both versions map is the same bytes: it is written in place only while one version alone has it.
//! So two versions differ at most where their maps do, and only that is looked at. The state lock is held for one
//! step of the walk at a time; a page that is not in memory is loaded between two steps, like any other.

use quarry_contract::{Difference, Differences, DriverError, VersionId};

use crate::format::{LEAF_ENTRIES, LeafEntry};
use crate::handle::not_found;
use crate::locks::read;
use crate::map::{self, Child, DifferenceSide, Node, Slot, next_difference};
use crate::pool::Pool;
use crate::state::{State, Wanted};
use crate::version::Version;

/// The most leaves that one call looks at, so that it ends soon whatever has changed: 128 GiB with 64 KiB chunks.
const MAX_LEAVES: usize = 4096;

/// What one step found.
enum Step {
    /// The runs of this leaf.
    Leaf { leaf: u64, runs: Vec<Difference> },
    /// This page has to be loaded first.
    Load(Wanted),
    /// Nothing more.
    End,
}

impl Pool {
    /// Returns where `of` may differ from `since`, or from zeros, from byte `from_bytes` on: at most `most` runs.
    ///
    /// # Errors
    /// `NotFound` for either, `Corrupt` for a map page that cannot be read.
    pub fn differences(
        &self,
        of: VersionId,
        since: Option<VersionId>,
        from_bytes: u64,
        most: usize,
    ) -> Result<Differences, DriverError> {
        let leaf_bytes = self.geometry.chunk_bytes * LEAF_ENTRIES as u64;
        let mut found = Differences::default();
        let mut from = from_bytes / leaf_bytes;
        let mut leaves = 0;
        loop {
            self.check_open()?;
            let step = self.difference_step(&read(&self.state), of, since, from)?;
            match step {
                Step::End => return Ok(found),
                Step::Load(wanted) => self.load(&wanted).map_err(|error| self.driver_error(error))?,
                Step::Leaf { leaf, .. } if leaves == MAX_LEAVES => {
                    found.next_bytes = Some(leaf * leaf_bytes);
                    return Ok(found);
                }
                Step::Leaf { leaf, runs } => {
                    for run in runs.into_iter().filter_map(|run| behind(run, from_bytes)) {
                        if !found.append(run, most) {
                            return Ok(found);
                        }
                    }
                    from = leaf + 1;
                    leaves += 1;
                }
            }
        }
    }

    fn difference_step(
        &self,
        state: &State,
        of: VersionId,
        since: Option<VersionId>,
        from: u64,
    ) -> Result<Step, DriverError> {
        let new = find(state, of)?;
        let old = since.map(|since| find(state, since)).transpose()?;
        let nothing = Slot::default();
        let old_root = old.map_or(&nothing, |old| &old.root);
        let Some(difference) = next_difference(&new.root, old_root, from) else {
            return Ok(Step::End);
        };
        Ok(match difference {
            map::Difference::Missing(side, missing) => Step::Load(Wanted {
                node: match (side, old) {
                    (DifferenceSide::Old, Some(old)) => old.node,
                    (DifferenceSide::New, _) | (DifferenceSide::Old, None) => new.node,
                },
                missing,
            }),
            map::Difference::Leaf {
                leaf,
                new: new_leaf,
                old: old_leaf,
            } => Step::Leaf {
                leaf,
                runs: self.leaf_runs(leaf, new_leaf.as_deref(), old_leaf.as_deref(), new.size()),
            },
        })
    }

    /// Returns the runs of one leaf, a run for each chunk.
    fn leaf_runs(
        &self,
        leaf: u64,
        new: Option<&Node>,
        old: Option<&Node>,
        size_bytes: u64,
    ) -> Vec<Difference> {
        let chunk_bytes = self.geometry.chunk_bytes;
        let mut runs = Vec::new();
        for entry in 0..LEAF_ENTRIES {
            let (new, old) = (entry_of(new, entry), entry_of(old, entry));
            let offset = (leaf * LEAF_ENTRIES as u64 + entry as u64) * chunk_bytes;
            if chunk_of(new) != chunk_of(old) && offset < size_bytes {
                runs.push(Difference {
                    offset,
                    length: chunk_bytes.min(size_bytes - offset),
                    zeros: !new.is_mapped(),
                });
            }
        }
        runs
    }
}

fn find(state: &State, id: VersionId) -> Result<&Version, DriverError> {
    let version = match id {
        VersionId::Volume(id) => state.versions.volume(id.0),
        VersionId::Snapshot(id) => state.versions.snapshot(id.0),
    };
    version.ok_or_else(|| not_found(id))
}

fn entry_of(node: Option<&Node>, entry: usize) -> LeafEntry {
    match node.map(Node::child) {
        Some(Child::Leaf(entries)) => entries[entry],
        Some(Child::Inner(_)) | None => LeafEntry::UNMAPPED,
    }
}

fn chunk_of(entry: LeafEntry) -> Option<u64> {
    entry.is_mapped().then(|| entry.chunk())
}

/// Cuts off what lies before `from`.
fn behind(run: Difference, from: u64) -> Option<Difference> {
    let end = run.offset + run.length;
    let offset = run.offset.max(from);
    (offset < end).then(|| Difference {
        offset,
        length: end - offset,
        ..run
    })
}
