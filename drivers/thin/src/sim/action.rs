//! What can happen in a history, and how the next thing is chosen.

use quarry_contract::conformance::SplitMix;
use quarry_contract::{Durability, ZeroMode};

use super::Setup;
use super::model::Model;

/// One step of a history. Objects are numbers; offsets and lengths are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are what their names say")]
pub enum Action {
    /// Creates a blank volume.
    Create { volume: u64, size_bytes: u64 },
    /// Creates a volume from a snapshot.
    CloneSnapshot {
        volume: u64,
        size_bytes: u64,
        snapshot: u64,
    },
    /// Creates a volume from a volume.
    CloneVolume {
        volume: u64,
        size_bytes: u64,
        origin: u64,
    },
    /// Repeats a creation and expects that nothing changes.
    CreateAgain { volume: u64 },
    /// Takes snapshots, as pairs of snapshot and volume, at one time.
    Snapshot { group: Vec<(u64, u64)> },
    /// Deletes a volume.
    DeleteVolume { volume: u64 },
    /// Deletes a snapshot.
    DeleteSnapshot { snapshot: u64 },
    /// Reverts a volume to one of its snapshots.
    Revert { volume: u64, snapshot: u64 },
    /// Extends a volume.
    Extend { volume: u64, size_bytes: u64 },
    /// Makes a volume a reserved one, or an ordinary one.
    Reserve { volume: u64, reserved: bool },
    /// Writes.
    Write {
        volume: u64,
        offset: u64,
        length: u64,
        durability: Durability,
    },
    /// Writes all or nothing.
    WriteAtomic {
        volume: u64,
        offset: u64,
        length: u64,
        durability: Durability,
    },
    /// Discards.
    Discard { volume: u64, offset: u64, length: u64 },
    /// Zeroes.
    Zero {
        volume: u64,
        offset: u64,
        length: u64,
        mode: ZeroMode,
    },
    /// Flushes.
    Flush { volume: u64 },
    /// Reads and compares.
    Read { volume: u64, offset: u64, length: u64 },
    /// Does one step of background work.
    Maintain,
    /// Writes a checkpoint.
    Checkpoint,
    /// Closes the pool in good order and opens it again.
    CleanReopen,
    /// Kills the process: opens the pool again on the medium as its caches show it.
    Kill,
}

/// How often what happens; parts of the sum.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the fields are what their names say")]
pub struct Mix {
    pub write: u64,
    pub discard: u64,
    pub zero: u64,
    pub flush: u64,
    pub read: u64,
    pub create: u64,
    pub clone: u64,
    pub snapshot: u64,
    pub revert: u64,
    pub extend: u64,
    pub delete: u64,
    pub maintain: u64,
    pub checkpoint: u64,
    pub reopen: u64,
}

impl Mix {
    /// Some of everything, with and without reopening the pool in between.
    pub fn everything(reopen: u64) -> Self {
        Self {
            write: 44,
            discard: 6,
            zero: 4,
            flush: 8,
            read: 6,
            create: 3,
            clone: 5,
            snapshot: 7,
            revert: 3,
            extend: 2,
            delete: 8,
            maintain: 8,
            checkpoint: 2,
            reopen,
        }
    }
}

/// At most so many volumes and so many snapshots at a time.
const MAX_VOLUMES: usize = 5;
const MAX_SNAPSHOTS: usize = 8;

fn pick<T: Copy>(random: &mut SplitMix, from: impl Iterator<Item = T>) -> Option<T> {
    let all: Vec<T> = from.collect();
    if all.is_empty() {
        return None;
    }
    all.get(random.below(all.len() as u64) as usize).copied()
}

impl Action {
    /// Chooses the next action for a pool that holds what `model` says. `next` is a number that no object has.
    pub fn choose(random: &mut SplitMix, setup: &Setup, model: &Model, next: u64) -> Action {
        loop {
            if let Some(action) = Self::try_choose(random, setup, model, next) {
                return action;
            }
        }
    }

    fn try_choose(random: &mut SplitMix, setup: &Setup, model: &Model, next: u64) -> Option<Action> {
        let mix = setup.mix;
        let room_for_volume = model.volumes.len() < MAX_VOLUMES;
        let volume = pick(random, model.volumes.keys().copied());
        let snapshot = pick(random, model.snapshots.keys().copied());
        let weights = [
            mix.write,
            mix.discard,
            mix.zero,
            mix.flush,
            mix.read,
            mix.create,
            mix.clone,
            mix.snapshot,
            mix.revert,
            mix.extend,
            mix.delete,
            mix.maintain,
            mix.checkpoint,
            mix.reopen,
        ];
        let mut ticket = random.below(weights.iter().sum());
        let mut kind = 0;
        while ticket >= weights[kind] {
            ticket -= weights[kind];
            kind += 1;
        }
        if model.volumes.is_empty() && kind < 11 {
            kind = 5;
        }
        Some(match kind {
            0 => {
                let (offset, length) = range(random, setup, model.volumes[&volume?].size_bytes);
                let durability = if random.below(8) == 0 {
                    Durability::Flushed
                } else {
                    Durability::Cached
                };
                let volume = volume?;
                match random.below(6) {
                    0 => Action::WriteAtomic {
                        volume,
                        offset,
                        length,
                        durability,
                    },
                    _ => Action::Write {
                        volume,
                        offset,
                        length,
                        durability,
                    },
                }
            }
            1 => {
                let (offset, length) = range(random, setup, model.volumes[&volume?].size_bytes);
                Action::Discard {
                    volume: volume?,
                    offset,
                    length,
                }
            }
            2 => {
                let (offset, length) = range(random, setup, model.volumes[&volume?].size_bytes);
                let mode = if random.below(2) == 0 {
                    ZeroMode::KeepMapped
                } else {
                    ZeroMode::MayUnmap
                };
                Action::Zero {
                    volume: volume?,
                    offset,
                    length,
                    mode,
                }
            }
            3 => Action::Flush { volume: volume? },
            4 => {
                let (offset, length) = range(random, setup, model.volumes[&volume?].size_bytes);
                Action::Read {
                    volume: volume?,
                    offset,
                    length,
                }
            }
            5 if random.below(4) == 0 => Action::CreateAgain { volume: volume? },
            5 if room_for_volume => Action::Create {
                volume: next,
                size_bytes: size(random, setup, setup.block_bytes),
            },
            6 if room_for_volume && random.below(3) > 0 => {
                let least = model.snapshots[&snapshot?].size_bytes;
                Action::CloneSnapshot {
                    volume: next,
                    size_bytes: size(random, setup, least),
                    snapshot: snapshot?,
                }
            }
            6 if room_for_volume => Action::CloneVolume {
                volume: next,
                size_bytes: size(random, setup, model.volumes[&volume?].size_bytes),
                origin: volume?,
            },
            7 if model.snapshots.len() < MAX_SNAPSHOTS => {
                let mut group = vec![(next, volume?)];
                if random.below(4) == 0 {
                    let others = model.volumes.keys().copied().filter(|one| Some(*one) != volume);
                    if let Some(other) = pick(random, others) {
                        group.push((next + 1, other));
                    }
                }
                Action::Snapshot { group }
            }
            8 => {
                let reverts = model
                    .snapshots
                    .iter()
                    .filter(|(_, snapshot)| model.volumes.contains_key(&snapshot.volume))
                    .map(|(number, snapshot)| (*number, snapshot.volume));
                let (snapshot, volume) = pick(random, reverts)?;
                Action::Revert { volume, snapshot }
            }
            9 if random.below(3) == 0 => Action::Reserve {
                volume: volume?,
                reserved: !model.volumes[&volume?].reserved,
            },
            9 => {
                let present = model.volumes[&volume?].size_bytes;
                Action::Extend {
                    volume: volume?,
                    size_bytes: size(random, setup, present),
                }
            }
            10 if random.below(5) < 2 => Action::DeleteVolume { volume: volume? },
            10 => Action::DeleteSnapshot { snapshot: snapshot? },
            11 => Action::Maintain,
            12 => Action::Checkpoint,
            13 if random.below(2) == 0 => Action::CleanReopen,
            13 => Action::Kill,
            _ => return None,
        })
    }
}

/// Chooses a size of at least `least` bytes.
fn size(random: &mut SplitMix, setup: &Setup, least: u64) -> u64 {
    let block = setup.block_bytes;
    let wanted = match random.below(4) {
        0 => (1 + random.below(40)) * block,
        1 => (1 + random.below(6)) * setup.chunk_bytes,
        2 => setup.max_volume_bytes,
        _ => random.below(setup.max_volume_bytes / block) * block,
    };
    wanted
        .max(least)
        .max(block)
        .min(setup.max_volume_bytes.max(least))
}

/// Returns the chunks in which histories read and write: few, so that they meet, and at the edges of map pages.
pub(super) fn hot_chunks(setup: &Setup, size_bytes: u64) -> Vec<u64> {
    let chunks = size_bytes.div_ceil(setup.chunk_bytes);
    let leaf = 512;
    let spots = [
        0,
        1,
        2,
        3,
        leaf - 1,
        leaf,
        leaf * 128 - 1,
        leaf * 128,
        leaf * 128 * 2,
    ];
    let mut hot: Vec<u64> = spots.into_iter().filter(|chunk| *chunk < chunks).collect();
    hot.extend(chunks.saturating_sub(2)..chunks);
    hot.sort_unstable();
    hot.dedup();
    hot
}

/// Chooses a range of whole blocks in a hot chunk, perhaps reaching into those after it.
fn range(random: &mut SplitMix, setup: &Setup, size_bytes: u64) -> (u64, u64) {
    let (chunk, block) = (setup.chunk_bytes, setup.block_bytes);
    let hot = hot_chunks(setup, size_bytes);
    let start = hot[random.below(hot.len() as u64) as usize] * chunk;
    let (offset, length) = match random.below(6) {
        0 => (start, chunk),
        1 => (start, (1 + random.below(3)) * chunk),
        2 => (start + random.below(chunk / block) * block, chunk + block),
        3 => {
            let four = 4096.max(block);
            (start + random.below(chunk / four) * four, four)
        }
        _ => {
            let from = random.below(chunk / block);
            let most = chunk / block - from;
            (start + from * block, (1 + random.below(most)) * block)
        }
    };
    let offset = offset.min(size_bytes - block);
    (offset, length.min(size_bytes - offset))
}
