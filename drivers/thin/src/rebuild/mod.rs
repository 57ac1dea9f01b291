//! Making the pages of maps again that are lost in both copies, from the chunk table.
//!
//! Part of an open that a repair asks for: between the checkpoint and the log, where table, bitmap and maps are of the same moment.
//! What a version maps at a chunk index is what it owns there, or else what its parent maps there. So versions are gone through
//! parents first, and a lost page is its parent's page with the version's own chunks in it.
//!
//! Invariants
//! - CT5: every allocated chunk that no page names any more, but for those that no version owns, is put where the table has it, or
//!   nothing is made at all. So a page has what it had; what it may have beside that is what had been discarded in its version,
//!   and an ancestor still owns.
//! - CT6: a page that has been made takes the place of the lost one in every version that had it, born at the same depth: who owns it
//!   does not change. Pages that can still be read are kept.
//!
//! A version's counter of what it maps tells how much has come back: with as many as before, nothing has.

mod dead;
mod pages;
mod placed;

use self::pages::Rebuild;
use self::placed::place_chunks;
use crate::map::Slot;
use crate::state::State;
use crate::version::{NodeId, VersionKind};
use crate::{PoolDevice, PoolError};

/// What has been made again of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RebuiltVersion {
    pub node: NodeId,
    /// `volume` or `snapshot`, and its id; what is left of one otherwise.
    pub name: String,
    pub dead: bool,
    /// Chunks that it maps and did not map before: they had been discarded.
    pub came_back: u64,
}

/// What has been made again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rebuilt {
    /// The pages that were lost.
    pub lost_pages: u64,
    pub versions: Vec<RebuiltVersion>,
}

impl Rebuilt {
    /// Says for each version that somebody sees what has become of it.
    pub fn sentences(&self, chunk_bytes: u64) -> Vec<String> {
        let live = self.versions.iter().filter(|version| !version.dead);
        let sentence = |version: &RebuiltVersion| match version.came_back {
            0 => format!("{}: its map is as it was", version.name),
            chunks => format!(
                "{}: its map is as it was, but {} bytes that had been discarded hold again what they held before",
                version.name,
                chunks * chunk_bytes
            ),
        };
        live.map(sentence).collect()
    }

    /// Returns how many chunks live versions map that they did not map before.
    pub fn came_back(&self) -> u64 {
        let live = self.versions.iter().filter(|version| !version.dead);
        live.map(|version| version.came_back).sum()
    }
}

/// Makes every lost page of the maps of a checkpoint again, in memory. Nothing of the log has been applied.
///
/// # Errors
/// `Damaged` when the table does not say where all belongs that the lost pages were for; then nothing has changed.
pub(crate) fn rebuild_maps(device: &dyn PoolDevice, state: &mut State) -> Result<Rebuilt, PoolError> {
    let placed = place_chunks(device, state)?;
    if placed.lost_pages == 0 {
        return Ok(Rebuilt::default());
    }
    let mut order: Vec<(u32, NodeId)> = state.versions.iter().map(|v| (v.depth, v.node)).collect();
    order.sort_unstable();
    let reaping = state.versions.iter().find(|version| version.reap_cursor > 0);
    let reaping = reaping.map(|version| version.node);
    let mut rebuilt = Rebuilt {
        lost_pages: placed.lost_pages,
        versions: Vec::new(),
    };
    let mut rebuild = Rebuild::new(device, &state.gauge, placed);
    let mut roots: Vec<(NodeId, Slot, u64)> = Vec::new();
    for (_, node) in order {
        let Some(root) = rebuild.version(state, node, &roots)? else {
            continue;
        };
        let mapped = rebuild.count_mapped(&root)?;
        roots.push((node, root, mapped));
    }
    for (node, _, mapped) in &roots {
        let version = state.versions.find(*node).expect("it was found above");
        // What has been reclaimed of a version is not in its map any more, but counted.
        let before = if reaping == Some(*node) {
            0
        } else {
            version.mapped_chunks
        };
        let Some(came_back) = mapped.checked_sub(before) else {
            return Err(PoolError::damaged(
                "chunk table",
                format!(
                    "with what it says, version {} maps {mapped} chunks, and its counter says {before}",
                    node.0
                ),
            ));
        };
        rebuilt.versions.push(RebuiltVersion {
            node: *node,
            name: match version.kind {
                _ if version.dead => format!("deleted version {}", node.0),
                VersionKind::Volume => format!("volume {}", version.uuid),
                VersionKind::Snapshot | VersionKind::Internal => format!("snapshot {}", version.uuid),
            },
            dead: version.dead,
            came_back: if reaping == Some(*node) { 0 } else { came_back },
        });
    }
    let garbage = rebuild.into_replaced();
    for (node, root, mapped) in roots {
        let is_reaping = reaping == Some(node);
        if let Some(version) = state.versions.find_mut(node) {
            version.root = root;
            if !is_reaping {
                version.mapped_chunks = mapped;
            }
        }
    }
    for pointer in garbage {
        state.garbage.push_pointer(pointer);
    }
    Ok(rebuilt)
}
