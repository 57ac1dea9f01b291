//! The version tree against an oracle: the port of the design's `version_tree.py`, with the reclaim in steps of
//! `merge_under_write.py`. Every step checks that each version reads what the oracle says, that every chunk is
//! owned exactly once and that nothing leaks.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::FormatOptions;
use crate::chunk_table::{Owners, WalkStep};
use crate::format::{AddedDevice, BASE_INCOMPAT, MAX_ADDED_DEVICES};
use crate::space::SearchFrom;
use crate::sums::FewSums;
use uuid::Uuid;

/// Chunk indices that the histories use: in two leaves under one inner page, and one far away.
const INDICES: [u64; 6] = [0, 1, 511, 512, 70_000, 8_500_000];

/// splitmix64.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

struct Model {
    state: State,
    /// What each live version's indices hold: the number of the write that is visible there.
    contents: BTreeMap<NodeId, BTreeMap<u64, u64>>,
    heads: Vec<NodeId>,
    snapshots: Vec<NodeId>,
    /// What each chunk holds.
    chunk_contents: BTreeMap<u64, u64>,
    writes: u64,
}

impl Model {
    fn new() -> Self {
        let geometry = Geometry::new(1 << 30, &FormatOptions::default()).unwrap();
        Self {
            state: State {
                sums: SumTrees::default(),
                scrub: Scrub::default(),
                geometry,
                versions: VersionTree::default(),
                space: Space::new(geometry.chunk_count),
                table: ChunkTable::default(),
                partials: PartialChunks::default(),
                allows_partials: true,
                incompat: BASE_INCOMPAT,
                keys: KeyAreas::default(),
                devices: [AddedDevice::none(); MAX_ADDED_DEVICES],
                pages: PageSpace::default(),
                garbage: Garbage::default(),
                gauge: Arc::default(),
                log: LogRing::new(geometry.log_blocks, 1, 0),
                next_node: 1,
                stored: StoredIndex::default(),
            },
            contents: BTreeMap::new(),
            heads: Vec::new(),
            snapshots: Vec::new(),
            chunk_contents: BTreeMap::new(),
            writes: 0,
        }
    }

    fn apply(&mut self, record: Record) {
        self.state.apply(&record, 1, Origin::Live).unwrap();
        self.state.space.release(1, false);
    }

    fn fresh(&self) -> NodeId {
        NodeId(self.state.next_node)
    }

    fn create(&mut self) {
        let node = self.fresh();
        self.apply(Record::CreateVolume {
            node,
            uuid: Uuid::from_u128(u128::from(node.0)),
            size_bytes: 1 << 40,
        });
        self.contents.insert(node, BTreeMap::new());
        self.heads.push(node);
    }

    /// Overwrites in place where the version owns the chunk, as the data path does, else maps a new one.
    fn write(&mut self, node: NodeId, index: u64) {
        self.writes += 1;
        let entry = self.entry(node, index);
        let version = self.state.versions.find(node).unwrap();
        let owns = self.state.versions.ownership(version);
        if entry.is_mapped() && owns.owns(entry.birth(), index / 512 + 1) {
            self.chunk_contents.insert(entry.chunk(), self.writes);
        } else {
            let chunk = self.state.space.take(SearchFrom::Cursor).unwrap();
            self.apply(Record::Map { node, index, chunk });
            self.chunk_contents.insert(chunk, self.writes);
        }
        self.contents.get_mut(&node).unwrap().insert(index, self.writes);
    }

    fn unmap(&mut self, node: NodeId, first: u64, count: u64) {
        self.apply(Record::Unmap { node, first, count });
        let contents = self.contents.get_mut(&node).unwrap();
        contents.retain(|index, _| !(first..first + count).contains(index));
    }

    fn snapshot(&mut self, head: NodeId) {
        let node = self.fresh();
        let uuid = Uuid::from_u128(u128::from(node.0));
        self.apply(Record::Snapshot {
            head,
            node,
            uuid,
            kind: VersionKind::Snapshot,
        });
        self.contents.insert(node, self.contents[&head].clone());
        self.snapshots.push(node);
    }

    fn clone_of(&mut self, parent: NodeId) {
        let node = self.fresh();
        self.apply(Record::Clone {
            parent,
            node,
            uuid: Uuid::from_u128(u128::from(node.0)),
            size_bytes: 1 << 40,
            source: Source::Blank,
        });
        self.contents.insert(node, self.contents[&parent].clone());
        self.heads.push(node);
    }

    fn revert(&mut self, head: NodeId, parent: NodeId) {
        let node = self.fresh();
        self.apply(Record::Revert { head, parent, node });
        self.contents.remove(&head);
        self.contents.insert(node, self.contents[&parent].clone());
        self.heads.retain(|other| *other != head);
        self.heads.push(node);
    }

    fn delete(&mut self, node: NodeId) {
        self.apply(Record::Delete { node });
        self.contents.remove(&node);
        self.heads.retain(|other| *other != node);
        self.snapshots.retain(|other| *other != node);
    }

    fn reap_step(&mut self) -> bool {
        let Some(node) = self.state.versions.reapable(&BTreeSet::new()) else {
            return false;
        };
        let scan = self.state.scan_reap(node, MAX_LEAVES, 1).unwrap();
        assert_eq!(scan.blocked, None);
        self.apply(Record::Reap {
            node,
            upto_leaf: scan.reached,
        });
        true
    }

    fn entry(&self, node: NodeId, index: u64) -> LeafEntry {
        let root = &self.state.versions.find(node).unwrap().root;
        find_leaf(root, index / 512, |view| match view {
            LeafView::Leaf(entries) => entries[index as usize % 512],
            LeafView::Empty => LeafEntry::UNMAPPED,
            LeafView::Missing(_) => panic!("nothing is evicted here"),
        })
    }

    fn check(&self) {
        let mut owned = BTreeMap::new();
        for version in self.state.versions.iter() {
            let owns = self.state.versions.ownership(version);
            for index in INDICES {
                let entry = self.entry(version.node, index);
                if entry.is_mapped() && owns.owns(entry.birth(), index / 512 + 1) {
                    let other = owned.insert(entry.chunk(), version.node);
                    assert_eq!(other, None, "chunk {} is owned twice", entry.chunk());
                    assert!(self.state.space.is_data(entry.chunk()));
                }
            }
        }
        assert_eq!(
            owned.len() as u64,
            self.state.space.data_chunks(),
            "nothing leaks"
        );
        for (node, contents) in &self.contents {
            for index in INDICES {
                let entry = self.entry(*node, index);
                let found = entry.is_mapped().then(|| self.chunk_contents[&entry.chunk()]);
                assert_eq!(found, contents.get(&index).copied(), "node {} at {index}", node.0);
            }
            let version = self.state.versions.find(*node).unwrap();
            assert_eq!(version.mapped_chunks, contents.len() as u64);
        }
        let versions = self.state.versions.iter();
        let mut order: Vec<_> = versions.map(|version| (version.depth, version.node)).collect();
        order.sort_unstable();
        let behind = self.state.versions.behind(0, NodeId(0));
        let found: Vec<_> = behind.map(|version| (version.depth, version.node)).collect();
        assert_eq!(found, order, "N4");
        self.check_table(&owned);
    }

    /// The table says of each chunk whose it is (CT1), and with that what each version maps, but for what was discarded.
    fn check_table(&self, owned: &BTreeMap<u64, NodeId>) {
        let new = self.state.table.new_entries().iter();
        let entries: BTreeMap<u64, ChunkEntry> = new.map(|new| (new.chunk, new.entry)).collect();
        let mut owners = Owners::of(&self.state);
        let mut placed = BTreeMap::new();
        for (chunk, node) in owned {
            let entry = entries[chunk];
            assert_eq!(owners.owner(&entry), Some(*node), "CT1: chunk {chunk}, {entry:?}");
            let other = placed.insert((*node, entry.index), LeafEntry::mapped(*chunk, entry.birth));
            assert_eq!(other, None, "two chunks in one place");
        }
        for version in self.state.versions.iter() {
            for index in INDICES {
                let mut line = std::iter::successors(Some(version), |version| {
                    version.parent.and_then(|parent| self.state.versions.find(parent))
                });
                let rebuilt = line.find_map(|version| placed.get(&(version.node, index)).copied());
                let real = self.entry(version.node, index);
                let was_reclaimed = index / 512 < version.reap_cursor;
                let as_before = rebuilt == Some(real) || rebuilt.is_none() && !real.is_mapped();
                let was_discarded = !real.is_mapped();
                assert!(
                    as_before || was_discarded || was_reclaimed,
                    "version {} at {index}: {real:?} would be {rebuilt:?}",
                    version.node.0
                );
            }
        }
    }

    fn walk_step(&mut self) {
        match self.state.walk_for_table() {
            WalkStep::Moved(_) | WalkStep::Nothing => {}
            step => panic!("{step:?}"),
        }
    }
}

#[test]
fn s1_every_history_reads_as_the_oracle_and_owns_every_chunk_once() {
    for seed in 0..400 {
        let mut random = Seeded(seed);
        let mut model = Model::new();
        model.create();
        for _ in 0..150 {
            if model.heads.is_empty() {
                model.create();
            }
            let head = random.pick(&model.heads);
            let index = random.pick(&INDICES);
            let few = model.contents.len() < 20;
            match random.below(100) {
                0..50 => model.write(head, index),
                50..58 => model.unmap(head, index, 1),
                58..60 => model.unmap(head, 0, 512),
                60..70 if few => model.snapshot(head),
                70..76 if few && !model.snapshots.is_empty() => {
                    let parent = random.pick(&model.snapshots);
                    model.clone_of(parent);
                }
                76..79 if !model.snapshots.is_empty() => {
                    let parent = random.pick(&model.snapshots);
                    model.revert(head, parent);
                }
                79..87 => {
                    let live: Vec<NodeId> = model.contents.keys().copied().collect();
                    model.delete(random.pick(&live));
                }
                87..89 => model.state.table.begin_walk(),
                89..93 => model.walk_step(),
                _ => drop(model.reap_step()),
            }
            model.check();
        }
        let live: Vec<NodeId> = model.contents.keys().copied().collect();
        live.into_iter().for_each(|node| model.delete(node));
        while model.reap_step() {
            model.check();
        }
        assert_eq!(
            model.state.versions.iter().count(),
            0,
            "seed {seed}: all versions are gone"
        );
        assert_eq!(model.state.table.links.len(), 0, "CT3: no name leads anywhere");
        assert_eq!(model.state.space.free(), model.state.geometry.chunk_count);
        model.state.garbage = Garbage::default();
        assert_eq!(
            model.state.gauge.resident(),
            0,
            "seed {seed}: no page is left in memory"
        );
    }
}

#[test]
fn impossible_records_are_refused() {
    let mut model = Model::new();
    model.create();
    let node = NodeId(1);
    let impossible = [
        Record::Map {
            node,
            index: 0,
            chunk: u64::MAX,
        },
        Record::Map {
            node,
            index: MAX_CHUNKS,
            chunk: 1,
        },
        Record::Map {
            node: NodeId(9),
            index: 0,
            chunk: 1,
        },
        Record::Unmap {
            node,
            first: 500,
            count: 13,
        },
        Record::Reap {
            node,
            upto_leaf: MAX_LEAVES,
        },
        Record::Delete { node: NodeId(9) },
        // No superblock says that there may be such records.
        Record::MapOver {
            node,
            index: 0,
            chunk: 1,
            blocks: Blocks { first: 0, count: 1 },
        },
        Record::CreateVolume {
            node,
            uuid: Uuid::nil(),
            size_bytes: 512,
        },
    ];
    for record in impossible {
        assert!(
            model.state.apply(&record, 1, Origin::Replay).is_err(),
            "{record:?}"
        );
    }
}

#[test]
fn sums_of_what_holds_no_data_and_the_end_of_sums_that_are_needed_are_refused() {
    let mut model = Model::new();
    model.create();
    let node = NodeId(1);
    model.write(node, 0);
    let chunk = model.entry(node, 0).chunk();
    let sums = FewSums::read(Blocks { first: 0, count: 1 }, || Some(7)).unwrap();
    let sums_of = |chunk| Record::Sums { chunk, sums };
    let mut apply = |record: Record| model.state.apply(&record, 1, Origin::Replay);
    assert!(apply(sums_of(chunk)).is_err(), "no superblock tells of any");
    model.state.sums.wanted = true;
    let mut apply = |record: Record| model.state.apply(&record, 1, Origin::Replay);
    assert!(apply(sums_of(chunk + 1)).is_err());
    apply(sums_of(chunk)).unwrap();
    let forget = Record::ForgetSums { first: 0, count: 1 };
    assert!(apply(forget).is_err());
    model.unmap(node, 0, 1);
    model.state.apply(&forget, 1, Origin::Replay).unwrap();
}
