//! The space of a pool to the chunk: after any history, when all background work is done, as many chunks hold data as the versions map
//! different ones.
//!
//! The oracle gives each chunk that a change may make a number of its own, and has copies share it. Of the engine it takes only the
//! tree of versions (docs/formats/pool.md, "Version table"; the design's "Version tree and birth depth"): a snapshot comes between a volume and
//! what it was made from, so does what a clone of a volume shares with it, and a version that is gone stays as long as two others hang on it.

use std::collections::{BTreeMap, BTreeSet};

use quarry_contract::Durability;
use quarry_contract::conformance::SplitMix;
use quarry_thin::sim::{Action, Setup, Step, Violation, World};

use crate::seeds::for_each_seed;

/// What a version maps: a number for each chunk index.
type Map = BTreeMap<u64, u64>;

/// A version.
struct Node {
    parent: Option<u64>,
    map: Map,
    /// Whether it is gone, or was never anybody's.
    is_hidden: bool,
}

/// The tree of versions.
#[derive(Default)]
struct Tree {
    nodes: BTreeMap<u64, Node>,
    last: u64,
}

impl Tree {
    fn add(&mut self, parent: Option<u64>, map: Map) -> u64 {
        self.last += 1;
        let node = Node {
            parent,
            map,
            is_hidden: false,
        };
        self.nodes.insert(self.last, node);
        self.last
    }

    fn node(&mut self, number: u64) -> &mut Node {
        self.nodes.get_mut(&number).expect("it is in the tree")
    }

    /// Adds a version with what another has, under it.
    fn add_below(&mut self, parent: u64) -> u64 {
        let map = self.node(parent).map.clone();
        self.add(Some(parent), map)
    }

    /// Adds a version with what another has, between that and its parent.
    fn add_above(&mut self, head: u64) -> u64 {
        let Node { parent, map, .. } = self.node(head);
        let (parent, map) = (*parent, map.clone());
        let above = self.add(parent, map);
        self.node(head).parent = Some(above);
        above
    }

    fn hide(&mut self, number: u64) {
        self.node(number).is_hidden = true;
    }

    /// Takes out what is hidden and has no two children.
    fn prune(&mut self) {
        let children = |nodes: &BTreeMap<u64, Node>, of: u64| -> Vec<u64> {
            let children = nodes.iter().filter(|(_, node)| node.parent == Some(of));
            children.map(|(number, _)| *number).collect()
        };
        let hidden = |nodes: &BTreeMap<u64, Node>| -> Option<u64> {
            let mut hidden = nodes.iter().filter(|(_, node)| node.is_hidden);
            let found = hidden.find(|(number, _)| children(nodes, **number).len() < 2);
            found.map(|(number, _)| *number)
        };
        while let Some(number) = hidden(&self.nodes) {
            let child = children(&self.nodes, number).pop();
            let node = self.nodes.remove(&number).expect("it was found");
            if let Some(child) = child {
                self.node(child).parent = node.parent;
            }
        }
    }
}

struct Space {
    world: World,
    random: SplitMix,
    tree: Tree,
    /// Their versions.
    volumes: BTreeMap<u64, u64>,
    /// With the volume that each was taken of.
    snapshots: BTreeMap<u64, (u64, u64)>,
    next: u64,
    size_chunks: u64,
}

impl Space {
    fn begin(seed: u64) -> Result<Self, Violation> {
        Ok(Self {
            world: World::begin(Setup::roomy(seed))?,
            random: SplitMix::new(seed),
            tree: Tree::default(),
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            next: 1,
            size_chunks: 1 + seed % 24,
        })
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn one_of<T: Copy>(&mut self, list: impl Iterator<Item = T>) -> Option<T> {
        let list: Vec<T> = list.collect();
        let at = self.random.below(list.len().max(1) as u64) as usize;
        list.get(at).copied()
    }

    fn carry_out(&mut self, action: Action) -> Result<(), Violation> {
        match self.world.carry_out(action)? {
            Step::Done => Ok(()),
            other => Err(Violation(format!("a healthy device: {other:?}"))),
        }
    }

    fn step(&mut self) -> Result<(), Violation> {
        let chunk_bytes = self.world.setup().chunk_bytes;
        let size_bytes = self.size_chunks * chunk_bytes;
        let volume = self.one_of(self.volumes.keys().copied().collect::<Vec<_>>().into_iter());
        let snapshot = self.one_of(self.snapshots.keys().copied().collect::<Vec<_>>().into_iter());
        match (self.random.below(100), volume, snapshot) {
            (0..50, Some(volume), _) => self.write(volume, size_bytes),
            (50..58, Some(volume), _) => {
                let first = self.random.below(self.size_chunks);
                let count = 1 + self.random.below(self.size_chunks - first);
                let map = &mut self.tree.node(self.volumes[&volume]).map;
                map.retain(|index, _| !(first..first + count).contains(index));
                self.carry_out(Action::Discard {
                    volume,
                    offset: first * chunk_bytes,
                    length: count * chunk_bytes,
                })
            }
            (58..68, Some(volume), _) if self.snapshots.len() < 6 => {
                let snapshot = self.number();
                let node = self.tree.add_above(self.volumes[&volume]);
                self.snapshots.insert(snapshot, (volume, node));
                let group = vec![(snapshot, volume)];
                self.carry_out(Action::Snapshot { group })
            }
            (68..74, _, Some(snapshot)) if self.volumes.len() < 5 => {
                let volume = self.number();
                let node = self.tree.add_below(self.snapshots[&snapshot].1);
                self.volumes.insert(volume, node);
                self.carry_out(Action::CloneSnapshot {
                    volume,
                    size_bytes,
                    snapshot,
                })
            }
            (74..78, Some(origin), _) if self.volumes.len() < 5 => {
                let volume = self.number();
                let shared = self.tree.add_above(self.volumes[&origin]);
                self.tree.hide(shared);
                let node = self.tree.add_below(shared);
                self.volumes.insert(volume, node);
                self.carry_out(Action::CloneVolume {
                    volume,
                    size_bytes,
                    origin,
                })
            }
            (78..82, _, Some(snapshot)) => {
                let (volume, node) = self.snapshots[&snapshot];
                let Some(head) = self.volumes.get(&volume).copied() else {
                    return Ok(());
                };
                // To what is there already nothing need be done.
                if self.tree.nodes[&head].map != self.tree.nodes[&node].map {
                    self.tree.hide(head);
                    let node = self.tree.add_below(node);
                    self.volumes.insert(volume, node);
                    self.carry_out(Action::Revert { volume, snapshot })?;
                }
                Ok(())
            }
            (82..87, Some(volume), _) => {
                let node = self.volumes.remove(&volume);
                self.tree.hide(node.expect("it is one of them"));
                self.carry_out(Action::DeleteVolume { volume })
            }
            (87..92, _, Some(snapshot)) => {
                let taken = self.snapshots.remove(&snapshot);
                self.tree.hide(taken.expect("it is one of them").1);
                self.carry_out(Action::DeleteSnapshot { snapshot })
            }
            (92..94, ..) => self.carry_out(Action::Checkpoint),
            (94..95, ..) => self.carry_out(Action::CleanReopen),
            (95..97, ..) => self.carry_out(Action::Maintain),
            _ if self.volumes.len() < 4 => {
                let volume = self.number();
                let node = self.tree.add(None, Map::new());
                self.volumes.insert(volume, node);
                self.carry_out(Action::Create { volume, size_bytes })
            }
            _ => Ok(()),
        }
    }

    fn write(&mut self, volume: u64, size_bytes: u64) -> Result<(), Violation> {
        let (chunk_bytes, block) = (self.world.setup().chunk_bytes, self.world.setup().block_bytes);
        let offset = self.random.below(size_bytes / block) * block;
        let most = (size_bytes - offset).min(3 * chunk_bytes) / block;
        let length = (1 + self.random.below(most)) * block;
        let indices = offset / chunk_bytes..(offset + length).div_ceil(chunk_bytes);
        for index in indices {
            let number = self.number();
            let node = self.volumes[&volume];
            self.tree.node(node).map.insert(index, number);
        }
        let durability = Durability::Cached;
        match self.random.below(4) {
            0 if length.is_multiple_of(4096) && offset.is_multiple_of(4096) => {
                self.carry_out(Action::WriteAtomic {
                    volume,
                    offset,
                    length,
                    durability,
                })
            }
            _ => self.carry_out(Action::Write {
                volume,
                offset,
                length,
                durability,
            }),
        }
    }

    /// Does all background work, and compares.
    fn compare(&mut self) -> Result<(), Violation> {
        self.world.reclaim()?;
        self.tree.prune();
        let nodes = self.tree.nodes.values();
        let wanted = nodes
            .flat_map(|node| node.map.values())
            .collect::<BTreeSet<_>>()
            .len();
        let pool = self.world.pool();
        let (stat, status) = (pool.stat(), pool.status());
        let versions = pool.version_rows().len();
        if versions != self.tree.nodes.len() {
            let wanted = self.tree.nodes.len();
            return Err(Violation(format!("{versions} versions are left, not {wanted}")));
        }
        let found = stat.data_chunks - stat.key_chunks - stat.orphan_chunks;
        if found != wanted as u64 {
            return Err(Violation(format!(
                "{found} chunks hold data, and {wanted} are mapped: {stat:?}"
            )));
        }
        let allocated = stat.data_chunks + stat.metadata_chunks;
        let allocated_bytes = allocated * self.world.setup().chunk_bytes;
        if status.allocated_bytes != allocated_bytes || stat.free_chunks + allocated != stat.chunks {
            return Err(Violation(format!("the figures differ: {status:?} and {stat:?}")));
        }
        Ok(())
    }
}

#[test]
fn as_many_chunks_hold_data_as_are_mapped() {
    for_each_seed("as_many_chunks_hold_data_as_are_mapped", 120, |seed| {
        let mut space = Space::begin(seed)?;
        for _ in 0..6 {
            for _ in 0..25 {
                space.step()?;
            }
            space.compare()?;
        }
        Ok(())
    });
}
