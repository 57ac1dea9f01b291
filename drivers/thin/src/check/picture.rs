//! What a check looks at: the pool as of one moment (CK1), and the pages on the medium that this is stored in, which are kept there
//! meanwhile (CK2).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::table::TablePicture;
use crate::PoolError;
use crate::format::{AddedDevices, Geometry, PagePointer};
use crate::keys::KeyRef;
use crate::locks::{lock, read, write};
use crate::map::{Ownership, Slot, detached};
use crate::page_space::PageSpace;
use crate::pool::Pool;
use crate::read_log::LogPart;
use crate::state::{State, StoredIndex};
use crate::sums::Checksums;
use crate::version::{NodeId, Version};

/// One version as of the check's moment.
pub(super) struct Subject {
    pub node: NodeId,
    pub root: Slot,
    pub owns: Ownership,
    pub mapped_chunks: u64,
    pub own_chunks: i64,
    pub checksums: Checksums,
    /// Its parent's.
    pub inherited: Option<Checksums>,
}

/// The state as of the check's moment. What is dirty of its trees is a copy of its own, so that nobody's change of a page costs more and no page
/// stays in memory for it.
pub(super) struct Picture {
    pub geometry: Geometry,
    pub subjects: Vec<Subject>,
    pub data: DataChunks,
    pub pages: PageSpace,
    pub stored: StoredIndex,
    /// What of the log is durable.
    pub log: LogPart,
    pub devices: AddedDevices,
    pub garbage: Vec<PagePointer>,
    pub loans: Vec<(u64, Option<u64>)>,
    pub orphans: HashSet<u64>,
    pub key_chunks: HashSet<u64>,
    pub sum_roots: Vec<Slot>,
    pub keys: Vec<KeyRef>,
    pub table: TablePicture,
    pub reclaim_in_progress: bool,
}

/// Which chunks hold data.
pub(super) struct DataChunks {
    words: Vec<u64>,
}

impl DataChunks {
    pub fn holds(&self, chunk: u64) -> bool {
        let word = self.words.get((chunk / 64) as usize);
        word.is_some_and(|word| word >> (chunk % 64) & 1 == 1)
    }

    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Returns them, ordered.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        let words = (0..).zip(&self.words).filter(|(_, word)| **word != 0);
        words.flat_map(|(at, word)| {
            (0..64)
                .filter(move |bit| word >> bit & 1 == 1)
                .map(move |bit| at * 64 + bit)
        })
    }
}

/// Keeps the pages that a check reads as they are (CK2), until it is dropped.
pub(super) struct HeldPages<'a> {
    pool: &'a Pool,
    gave_way: Arc<AtomicBool>,
}

impl HeldPages<'_> {
    /// Tells whether they may have been overwritten: what is read of them says nothing.
    pub fn have_given_way(&self) -> bool {
        self.gave_way.load(Ordering::SeqCst)
    }

    /// Lets go of them.
    ///
    /// # Errors
    /// `CheckGaveWay` when they may have been overwritten before.
    pub fn let_go(self) -> Result<(), PoolError> {
        let gave_way = Arc::clone(&self.gave_way);
        drop(self);
        match gave_way.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(PoolError::CheckGaveWay),
        }
    }
}

impl Drop for HeldPages<'_> {
    fn drop(&mut self) {
        let mut state = write(&self.pool.state);
        let State { pages, space, .. } = &mut *state;
        pages.let_go(space, self.pool.options.discard_freed);
        drop(state);
        self.pool.space_came();
    }
}

impl Pool {
    /// Takes the picture between two checkpoints, and holds its pages. No I/O: nobody waits for the medium.
    pub(super) fn picture(&self) -> (Picture, HeldPages<'_>) {
        let _no_checkpoint = lock(&self.checkpointing);
        let held = HeldPages {
            pool: self,
            gave_way: write(&self.state).pages.hold(),
        };
        let mut picture = Picture::of(&read(&self.state));
        picture.detach();
        (picture, held)
    }
}

impl Picture {
    fn of(state: &State) -> Self {
        let subject = |version: &Version| Subject {
            node: version.node,
            root: version.root.clone(),
            owns: state.versions.ownership(version),
            mapped_chunks: version.mapped_chunks,
            own_chunks: version.own_chunks,
            checksums: version.checksums,
            inherited: version
                .parent
                .and_then(|parent| state.versions.find(parent))
                .map(|parent| parent.checksums),
        };
        Self {
            geometry: state.geometry,
            subjects: state.versions.iter().map(subject).collect(),
            data: DataChunks {
                words: state.space.data().to_vec(),
            },
            pages: state.pages.unheld(),
            stored: state.stored.clone(),
            log: LogPart {
                batch: state.log.head_batch,
                block: state.log.head_block,
                upto: state.log.durable_batch,
            },
            devices: state.devices,
            garbage: state.garbage.pointers(),
            loans: state.partials.loans().collect(),
            orphans: state.partials.orphans().collect(),
            key_chunks: state.keys.chunks().collect(),
            sum_roots: state.sums.roots().to_vec(),
            keys: state.versions.live_keys().collect(),
            table: TablePicture::of(state),
            reclaim_in_progress: state.versions.iter().any(|version| version.reap_cursor > 0),
        }
    }

    /// Takes copies of what is dirty of the trees in the place of what the pool goes on with.
    fn detach(&mut self) {
        let Self {
            subjects, sum_roots, ..
        } = self;
        let roots: Vec<&Slot> = subjects
            .iter()
            .map(|subject| &subject.root)
            .chain(&*sum_roots)
            .collect();
        let copies = detached(&roots);
        let places = subjects
            .iter_mut()
            .map(|subject| &mut subject.root)
            .chain(sum_roots);
        for (place, copy) in places.zip(copies) {
            *place = copy;
        }
    }
}
