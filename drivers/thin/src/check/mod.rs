//! The check: every chunk and every map page is owned exactly once, and every checksum is right.
//!
//! It looks at the state as of one moment, while I/O and checkpoints go on. Each version is walked where it owns: a shared page is looked
//! at once. Everything that a restart would read is read, also what a pool in use has in memory and never reads itself; what a pool in use
//! can write again, it does.
//!
//! Invariants
//! - CK1: what a check compares is as of one moment between two checkpoints, at which the last one says where everything is stored that is not
//!   dirty. So each page that it reads was in use then.
//! - CK2: nobody waits while a check reads. The pages of that moment are held until it ends (P2); what else checkpoints and commits overwrite
//!   in its place is looked at again when it seems wrong, as of then: for a bitmap block, the directory or a superblock copy while no
//!   checkpoint runs, for the log while nobody writes it.
//! - CK3: who needs the space of the held pages takes it (P3), and the check ends without a report.
//!
//! So a finding is never of something that was replaced meanwhile and overwritten; and what was damaged when a check began, and is needed by a
//! restart when it ends, is found. What checkpoints write while it runs is for the next one.
//! Format: docs/formats/pool.md, "What a check reads".

mod picture;
mod stored;
mod table;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::PoolError;
use crate::format::{BLOCK_BYTES, ChunkEntry, LEAF_ENTRIES, PagePointer, RawChunkEntry};
use crate::keys::KeyRef;
use crate::locks::{lock, read};
use crate::map::{Child, INNER_LEVELS, Node, PageGauge, Slot, leaves_covered};
use crate::page_io::read_copy;
use crate::page_space::CopyClass;
use crate::pool::Pool;
use picture::{HeldPages, Picture, Subject};
use stored::Stale;

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// One sentence for each violation; empty when the pool is sound.
    pub problems: Vec<String>,
    /// Those of them that [`repair`](crate::repair()) does not put right.
    pub beyond_repair: Vec<String>,
    /// Copies that their other copy can replace: the page, and who has what belongs there.
    pub(crate) lost_copies: Vec<(u64, PagePointer)>,
    /// Keys of which the other copy is left.
    pub(crate) lost_keys: Vec<KeyRef>,
    /// The chunk table is not what the maps say.
    pub(crate) table_is_wrong: bool,
    /// Top pages of the chunk table of which no copy is left: what they point to is not known.
    pub(crate) lost_tops: Vec<PagePointer>,
    /// Pages that are in use, but not of anything.
    pub(crate) leaked_pages: Vec<PagePointer>,
    /// Chunks that hold data.
    pub data_chunks: u64,
    /// Chunks that hold map pages.
    pub metadata_chunks: u64,
    /// Map pages in use on the medium, both copies counted.
    pub metadata_pages: u64,
}

/// Whether the stored bitmap is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BitmapBlocks {
    Verify,
    /// It is known bad and about to be replaced.
    Ignore,
}

struct Check<'a> {
    pool: &'a Pool,
    held: &'a HeldPages<'a>,
    /// Of the pages that are read for it.
    gauge: Arc<PageGauge>,
    report: CheckReport,
    /// What is not on the medium as it is in memory.
    stale: Stale,
    /// For each chunk that a version owns what the chunk table has to say of it.
    seen_chunks: Vec<RawChunkEntry>,
    seen_pages: HashSet<u64>,
    mapped_below: HashMap<PageIdentity, u64>,
    /// What is wrong with both copies of pages of maps.
    lost_maps: Vec<String>,
    /// Counters that are not what was counted; where a page is lost, nothing was counted.
    wrong_counters: Vec<String>,
    /// Both copies of some page are lost, and what it pointed to may not have been seen.
    has_lost_pages: bool,
}

/// Names a page for counting what is mapped below it once.
#[derive(PartialEq, Eq, Hash)]
enum PageIdentity {
    Stored(u64),
    InMemory(*const Node),
}

impl Pool {
    /// Verifies exactly-once ownership of every chunk and map page, the counters, and the checksums of everything that a restart would
    /// read. In a pool in use, what is damaged only on the medium, and is no page of a map, is written again from memory, and the report says so.
    ///
    /// Reads, writes and checkpoints go on meanwhile, and wait for nothing that it does. A second check waits for the first.
    ///
    /// # Errors
    /// `CheckGaveWay` when writes needed the space of pages that it had still to read: it can be tried again. Otherwise when the check cannot be
    /// made at all; what it finds is in the report.
    pub fn check(&self) -> Result<CheckReport, PoolError> {
        let _one_check = lock(&self.checking);
        let (mut report, stale) = self.look(BitmapBlocks::Verify)?;
        // What contradicts itself in memory is better not written.
        let may_write = self.is_in_use() && report.beyond_repair.is_empty();
        let written = (may_write && !stale.is_empty()).then(|| self.write_anew(&stale));
        report.tell_of_stale(stale, written);
        Ok(report)
    }

    /// Tells whether it may be written.
    fn is_in_use(&self) -> bool {
        self.stopped().is_none() && !self.is_closed()
    }

    /// As [`check`](Self::check), and writes nothing.
    pub(crate) fn check_parts(&self, bitmap_blocks: BitmapBlocks) -> Result<CheckReport, PoolError> {
        let _one_check = lock(&self.checking);
        let (mut report, stale) = self.look(bitmap_blocks)?;
        report.tell_of_stale(stale, None);
        Ok(report)
    }

    fn look(&self, bitmap_blocks: BitmapBlocks) -> Result<(CheckReport, Stale), PoolError> {
        let (mut picture, held) = self.picture();
        let mut check = Check {
            pool: self,
            held: &held,
            gauge: Arc::default(),
            report: CheckReport {
                data_chunks: picture.data.count(),
                metadata_chunks: picture.pages.chunk_count(),
                metadata_pages: picture.pages.used_pages(),
                ..CheckReport::default()
            },
            stale: Stale::default(),
            seen_chunks: vec![[0; 2]; picture.geometry.chunk_count as usize],
            seen_pages: HashSet::new(),
            mapped_below: HashMap::new(),
            lost_maps: Vec::new(),
            wrong_counters: Vec::new(),
            has_lost_pages: false,
        };
        check.stored(&picture, bitmap_blocks);
        for subject in &picture.subjects {
            check.version(subject, &picture);
        }
        for root in &picture.sum_roots {
            check.sum_pages(root, INNER_LEVELS, &picture);
        }
        check.table(&mut picture)?;
        check.totals(&picture);
        check.keys(&picture.keys);
        let Check { report, stale, .. } = check;
        held.let_go()?;
        Ok((report, stale))
    }
}

impl Check<'_> {
    /// Notes what only a backup puts right.
    fn problem(&mut self, problem: String) {
        self.report.beyond_repair.push(problem.clone());
        self.report.problems.push(problem);
    }

    /// Notes what `repair` puts right.
    fn repairable(&mut self, problem: String) {
        self.report.problems.push(problem);
    }

    fn version(&mut self, subject: &Subject, picture: &Picture) {
        let node = subject.node.0;
        if subject
            .inherited
            .is_some_and(|inherited| inherited != subject.checksums)
        {
            self.problem(format!(
                "version {node} has checksums and its parent has none, or the other way round"
            ));
        }
        let mut owned = 0;
        self.walk_owned(subject, &subject.root, INNER_LEVELS, 0, picture, &mut owned);
        if owned != subject.own_chunks && !picture.reclaim_in_progress {
            self.wrong_counters.push(format!(
                "version {node} owns {owned} chunks, its counter says {}",
                subject.own_chunks
            ));
        }
        if subject.owns.cursor == 0 && !picture.reclaim_in_progress {
            let mapped = self.count_mapped(&subject.root, INNER_LEVELS);
            if mapped != subject.mapped_chunks {
                self.wrong_counters.push(format!(
                    "version {node} maps {mapped} chunks, its counter says {}",
                    subject.mapped_chunks
                ));
            }
        }
    }

    fn walk_owned(
        &mut self,
        subject: &Subject,
        slot: &Slot,
        level: u32,
        first: u64,
        picture: &Picture,
        owned: &mut i64,
    ) {
        let end = first + leaves_covered(level);
        if slot.is_empty() || !subject.owns.owns(slot.birth(), end) {
            return;
        }
        let node = subject.node.0;
        let pointer = slot.pointer();
        if !pointer.is_none() {
            let leaf_bytes = LEAF_ENTRIES as u64 * picture.geometry.chunk_bytes;
            let what = format!(
                "level {level} page of version {node}, for bytes {} to {}",
                first * leaf_bytes,
                end * leaf_bytes
            );
            let lost = self.own_copies(pointer, picture, &what);
            self.has_lost_pages |= !lost.is_empty();
            self.lost_maps.extend(lost);
        }
        let Some(page) = self.page(slot, level) else {
            return;
        };
        match page.child() {
            Child::Leaf(entries) => {
                for (i, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.is_mapped()) {
                    if !subject.owns.owns(entry.birth(), end) {
                        continue;
                    }
                    *owned += 1;
                    let chunk = entry.chunk();
                    let index = first * entries.len() as u64 + i as u64;
                    let entry_of_chunk = ChunkEntry {
                        name: node,
                        index,
                        birth: entry.birth(),
                    };
                    if !self.see_chunk(chunk, entry_of_chunk) {
                        self.problem(format!(
                            "chunk {chunk} is owned twice, by version {node} at {index} too"
                        ));
                    }
                    if !picture.data.holds(chunk) {
                        self.repairable(format!(
                            "chunk {chunk} of version {node} at {index} is free in the bitmap"
                        ));
                    }
                }
            }
            Child::Inner(slots) => {
                let slots = read(slots).clone();
                for (i, slot) in slots.iter().enumerate() {
                    let child_first = first + i as u64 * leaves_covered(level - 1);
                    self.walk_owned(subject, slot, level - 1, child_first, picture, owned);
                }
            }
        }
    }

    /// Verifies the pages of a sum tree, both copies of each. What they say of data is a scrub's to verify.
    fn sum_pages(&mut self, slot: &Slot, level: u32, picture: &Picture) {
        if slot.is_empty() {
            return;
        }
        let pointer = slot.pointer();
        if !pointer.is_none() {
            self.own_page(pointer, picture, "page of checksums");
        }
        if let Some(page) = self.page(slot, level)
            && let Child::Inner(slots) = page.child()
        {
            let slots = read(slots).clone();
            for slot in &slots {
                self.sum_pages(slot, level - 1, picture);
            }
        }
    }

    /// Notes who owns a chunk; false when somebody does already. A chunk that does not exist is free in the bitmap, which is noted.
    fn see_chunk(&mut self, chunk: u64, entry: ChunkEntry) -> bool {
        let seen = self.seen_chunks.get_mut(chunk as usize);
        seen.is_none_or(|seen| std::mem::replace(seen, entry.to_raw()) == [0; 2])
    }

    pub(crate) fn has_seen(&self, chunk: u64) -> bool {
        self.seen_chunks
            .get(chunk as usize)
            .is_some_and(|seen| *seen != [0; 2])
    }

    /// Notes the owner of a stored page and verifies both copies.
    fn own_page(&mut self, pointer: PagePointer, picture: &Picture, what: &str) {
        for problem in self.own_copies(pointer, picture, what) {
            self.has_lost_pages = true;
            self.problem(problem);
        }
    }

    /// As [`own_page`](Self::own_page); returns what is wrong with both copies when none is left.
    fn own_copies(&mut self, pointer: PagePointer, picture: &Picture, what: &str) -> Vec<String> {
        self.own_numbers(pointer, picture, what);
        let lost = self.bad_copies(pointer, what);
        match <[_; 1]>::try_from(lost) {
            Ok([(number, problem)]) => {
                self.report.lost_copies.push((number, pointer));
                self.repairable(problem);
                Vec::new()
            }
            Err(both) => both.into_iter().map(|(_, problem)| problem).collect(),
        }
    }

    /// Notes whose the places of a page's copies are.
    fn own_numbers(&mut self, pointer: PagePointer, picture: &Picture, what: &str) {
        let copies = [
            (pointer.first, CopyClass::First),
            (pointer.second, CopyClass::Second),
        ];
        for (number, class) in copies {
            if !self.seen_pages.insert(number) {
                self.problem(format!("page {number} is owned twice, as {what} too"));
            }
            if !picture.pages.is_used(&picture.geometry, number, class) {
                self.problem(format!("page {number}, a {what}, is free"));
            }
        }
    }

    /// Returns the page, from memory or read for this walk only.
    fn page(&mut self, slot: &Slot, level: u32) -> Option<Arc<Node>> {
        if let Some(node) = slot.node() {
            return Some(Arc::clone(node));
        }
        if self.held.have_given_way() {
            return None;
        }
        let pointer = slot.pointer();
        // Both copies have been verified, and a bad one been reported, by the owner's walk.
        let page = [pointer.first, pointer.second]
            .iter()
            .find_map(|number| read_copy(&*self.pool.device, *number, pointer.crc32c, "map page").ok())?;
        Some(Arc::new(Node::load(level, pointer, &page, &self.gauge)))
    }

    /// Verifies both copies of the wrapped keys.
    fn keys(&mut self, keys: &[KeyRef]) {
        for key in keys {
            let lost = match self.pool.read_slot(*key) {
                Ok(copies) => copies.iter().filter(|copy| copy.is_none()).count(),
                Err(_) => 2,
            };
            // It may have been deleted meanwhile, and its slot be erased or another's.
            let lives = read(&self.pool.state).versions.key_in(key.slot) == Some(*key);
            match lost {
                1 if lives => {
                    self.report.lost_keys.push(*key);
                    self.repairable(format!("one copy of the key of family {} is lost", key.family));
                }
                2 if lives => self.problem(format!(
                    "both copies of the key of family {} are lost, and its data with them",
                    key.family
                )),
                _ => {}
            }
        }
    }

    fn count_mapped(&mut self, slot: &Slot, level: u32) -> u64 {
        if slot.is_empty() {
            return 0;
        }
        let identity = match slot.node() {
            _ if !slot.pointer().is_none() => PageIdentity::Stored(slot.pointer().first),
            Some(node) => PageIdentity::InMemory(Arc::as_ptr(node)),
            None => return 0,
        };
        if let Some(count) = self.mapped_below.get(&identity) {
            return *count;
        }
        let count = match self.page(slot, level).as_deref().map(Node::child) {
            Some(Child::Leaf(entries)) => entries.iter().filter(|entry| entry.is_mapped()).count() as u64,
            Some(Child::Inner(slots)) => {
                let slots = read(slots).clone();
                slots.iter().map(|slot| self.count_mapped(slot, level - 1)).sum()
            }
            None => 0,
        };
        self.mapped_below.insert(identity, count);
        count
    }

    fn totals(&mut self, picture: &Picture) {
        for chunk in picture.data.iter() {
            let owned = self.has_seen(chunk);
            let is_orphan = picture.orphans.contains(&chunk);
            let holds_keys = picture.key_chunks.contains(&chunk);
            if holds_keys && (owned || is_orphan) {
                self.problem(format!("chunk {chunk} holds keys and data"));
            }
            match (owned, is_orphan || holds_keys) {
                // What is below a lost page is told of together.
                (false, false) if !self.lost_maps.is_empty() => {}
                (false, false) => {
                    self.repairable(format!("chunk {chunk} is allocated, but no version owns it"));
                }
                (true, true) => self.problem(format!("chunk {chunk} is an orphan, but a version owns it")),
                (true, false) | (false, true) => {}
            }
        }
        for (chunk, lender) in &picture.loans {
            if !self.has_seen(*chunk) && !picture.orphans.contains(chunk) && self.lost_maps.is_empty() {
                self.problem(format!(
                    "chunk {chunk} is partial, but no version owns it and it does not lend"
                ));
            }
            if let Some(lender) = lender.filter(|lender| !picture.data.holds(*lender)) {
                self.repairable(format!(
                    "chunk {chunk} borrows from chunk {lender}, which is free"
                ));
            }
        }
        self.lists(picture);
        for pointer in &picture.garbage {
            // It may be garbage because it cannot be read.
            self.own_numbers(*pointer, picture, "replaced page");
        }
        for (chunk, page_chunk) in picture.pages.chunks() {
            if picture.data.holds(chunk) {
                self.problem(format!("chunk {chunk} holds data and map pages"));
            }
            debug_assert!(page_chunk.used.count() as usize <= BLOCK_BYTES);
        }
        let (used, seen) = (picture.pages.used_pages(), self.seen_pages.len() as u64);
        if used == seen {
            return;
        }
        let problem = format!("{used} map pages are in use, but {seen} are owned");
        let leaked = picture.pages.pages_but(&picture.geometry, &self.seen_pages);
        match leaked.filter(|leaked| !self.has_lost_pages && 2 * leaked.len() as u64 + seen == used) {
            Some(leaked) => {
                self.report.leaked_pages = leaked;
                self.repairable(problem);
            }
            None => self.problem(problem),
        }
    }
}
