//! What a restart after a crash reads, read again: the superblock copies, the bitmap and its directory, the log, the pages that were
//! replaced since the last checkpoint, the labels of added devices. A pool in use has all of it in memory, and would not notice.
//!
//! So a pool in use can write it again, all but the labels by a checkpoint: [`Pool::write_anew`].

use std::collections::BTreeSet;

use super::{BitmapBlocks, Check, CheckReport, Picture};
use crate::PoolError;
use crate::checkpoint::encode_directory;
use crate::device::PoolDevice;
use crate::format::{BITS_PER_BLOCK, Geometry, PagePointer, SUPERBLOCK_COPIES, Superblock};
use crate::labels::{FoundLabel, find_label, is_only_damaged, lost_copies, write_label};
use crate::locks::{lock, read, write};
use crate::page_io::{read_block, read_copy};
use crate::pool::Pool;
use crate::recovery::read_bitmap_block;
use crate::state::StoredIndex;
use zerocopy::FromBytes;

/// What is not on the medium as it is in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stale {
    /// Sentences, and whether `repair` puts right what they tell of.
    findings: Vec<(String, IsRepairable)>,
    /// Blocks of the bitmap.
    bitmap: BTreeSet<u64>,
    /// Pages of the version table.
    row_pages: BTreeSet<usize>,
    /// Copies of labels, by the number of the added device.
    labels: Vec<(usize, u64)>,
}

/// Whether [`repair`](crate::repair()) puts something right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IsRepairable {
    Yes,
    No,
}

impl Pool {
    /// Writes again what is in memory, by a checkpoint even if nothing has changed; and labels.
    pub(super) fn write_anew(&self, stale: &Stale) -> Result<(), PoolError> {
        self.check_running()?;
        let one = lock(&self.checkpointing);
        let devices = read(&self.state).devices;
        for (number, copy) in &stale.labels {
            if let Some(device) = self.device.device(number + 1) {
                write_label(&*device, (self.uuid, devices[*number].uuid()), [*copy])?;
            }
        }
        let layout = {
            let mut state = write(&self.state);
            stale
                .bitmap
                .iter()
                .for_each(|block| state.space.dirty_block(*block));
            for page in &stale.row_pages {
                state.versions.dirty_row_page(*page);
            }
            state.layout()
        };
        self.checkpoint_as(&one, Some(layout))
    }
}

impl CheckReport {
    /// Tells of what is stale, and what has become of it: it has been written anew, could not be, or nobody tried.
    pub(super) fn tell_of_stale(&mut self, stale: Stale, written: Option<Result<(), PoolError>>) {
        for (finding, is_repairable) in stale.findings {
            let (sentence, is_left) = match &written {
                Some(Ok(())) => (format!("{finding}; it has been written anew"), false),
                Some(Err(error)) => (
                    format!("{finding}; it could not be written anew: {error}"),
                    is_repairable == IsRepairable::No,
                ),
                None => (finding, is_repairable == IsRepairable::No),
            };
            if is_left {
                self.beyond_repair.push(sentence.clone());
            }
            self.problems.push(sentence);
        }
    }
}

impl Stale {
    pub(super) fn is_empty(&self) -> bool {
        self.findings.is_empty()
    }

    fn push(&mut self, finding: String, is_repairable: IsRepairable) {
        self.findings.push((finding, is_repairable));
    }
}

impl Check<'_> {
    /// Verifies what a restart reads beside the pages that have owners.
    pub(super) fn stored(&mut self, picture: &Picture, bitmap_blocks: BitmapBlocks) {
        self.superblocks(picture);
        if bitmap_blocks == BitmapBlocks::Verify {
            self.directory(picture);
            self.bitmap_blocks(picture);
        }
        self.bitmap_pages(picture, bitmap_blocks);
        self.log(picture);
        self.replaced_pages(picture);
        self.labels(picture);
    }

    /// Returns what `look` finds wrong with something that checkpoints write in its place, if it still is when none runs (CK2).
    fn is_wrong(
        &self,
        picture: &Picture,
        look: impl Fn(&Geometry, &StoredIndex) -> Option<String>,
    ) -> Option<String> {
        look(&picture.geometry, &picture.stored)?;
        let _no_checkpoint = lock(&self.pool.checkpointing);
        let (geometry, stored) = {
            let state = read(&self.pool.state);
            (state.geometry, state.stored.clone())
        };
        look(&geometry, &stored)
    }

    fn superblocks(&mut self, picture: &Picture) {
        for copy in 0..SUPERBLOCK_COPIES {
            let problem = self.is_wrong(picture, |geometry, stored| {
                let offset = geometry.superblock_offset(copy);
                let fields = read_block(&*self.pool.device, offset, "a superblock").and_then(|block| {
                    Superblock::read_from_bytes(&block)
                        .expect("a superblock is one block")
                        .decode()
                });
                match fields {
                    Ok(fields) if fields.uuid != self.pool.uuid => {
                        Some(format!("superblock copy {copy} is of pool {}", fields.uuid))
                    }
                    Ok(fields) if fields.generation == stored.generation => None,
                    Ok(fields) => Some(format!(
                        "superblock copy {copy} has generation {}, not {}",
                        fields.generation, stored.generation
                    )),
                    Err(PoolError::NotAPool) => Some(format!("superblock copy {copy} has no magic")),
                    Err(error) => Some(format!("superblock copy {copy}: {error}")),
                }
            });
            if let Some(problem) = problem {
                self.stale.push(problem, IsRepairable::Yes);
            }
        }
    }

    /// The side that the superblock names; what stands on the other one nobody reads.
    fn directory(&mut self, picture: &Picture) {
        let problem = self.is_wrong(picture, |geometry, stored| {
            let expected = encode_directory(geometry, &stored.directory);
            let offset = geometry.directory_offset(stored.directory_side);
            let mut found = quarry_contract::IoBuffer::zeroed(expected.len());
            let problem = match self.pool.device.read_at(offset, &mut found) {
                Ok(()) if found[..] == expected[..] => return None,
                Ok(()) => "it is not what was written".to_owned(),
                Err(error) => error.to_string(),
            };
            Some(format!(
                "bitmap directory at byte {offset}: {problem}; the pool would not open after a crash"
            ))
        });
        if let Some(problem) = problem {
            self.stale.push(problem, IsRepairable::Yes);
        }
    }

    fn bitmap_blocks(&mut self, picture: &Picture) {
        let blocks = picture.geometry.chunk_count.div_ceil(BITS_PER_BLOCK);
        for block in 0..blocks.min(picture.geometry.bitmap_blocks) {
            let problem = self.is_wrong(picture, |geometry, stored| {
                let entry = stored.directory[block as usize];
                let found = read_bitmap_block(&*self.pool.device, geometry, block, entry);
                found.err().map(|error| error.to_string())
            });
            if let Some(problem) = problem {
                self.stale.push(problem, IsRepairable::Yes);
                self.stale.bitmap.insert(block);
            }
        }
    }

    /// Blocks of the bitmap that are pages: when both copies are lost, the maps still say what belongs there.
    fn bitmap_pages(&mut self, picture: &Picture, blocks: BitmapBlocks) {
        let pages = (picture.geometry.bitmap_blocks..).zip(&picture.stored.bitmap_pages);
        for (block, pointer) in pages.filter(|(_, pointer)| !pointer.is_none()) {
            for number in [pointer.first, pointer.second] {
                if !self.seen_pages.insert(number) {
                    self.problem(format!(
                        "page {number} is owned twice, as a chunk bitmap page too"
                    ));
                }
            }
            if blocks == BitmapBlocks::Ignore {
                continue;
            }
            for (_, problem) in self.bad_copies(*pointer, "chunk bitmap page") {
                self.stale.push(problem, IsRepairable::Yes);
                self.stale.bitmap.insert(block);
            }
        }
    }

    /// The log from its head to the last batch that was durable when the check began. The next checkpoint takes all of it in, and then it is
    /// overwritten; and the last batch may just be settled (U2). So what is found is looked at again when nobody writes it (CK2).
    fn log(&mut self, picture: &Picture) {
        let damage = || {
            let part = picture.log;
            part.damage(&*self.pool.device, self.pool.uuid, picture.geometry)
        };
        let mut found = damage();
        if !matches!(&found, Ok(damage) if damage.is_none()) {
            let _nobody_writes_it = self.pool.turns.wait();
            let is_needed = read(&self.pool.state).log.head_batch == picture.log.batch;
            if !is_needed {
                return;
            }
            found = damage();
        }
        let found = match found {
            Ok(damage) => damage,
            Err(error) => {
                self.stale.push(format!("redo log: {error}"), IsRepairable::No);
                return;
            }
        };
        for (batch, block) in found.restored {
            let sentence =
                format!("redo log: batch {batch} at block {block} is damaged; a later one has a copy");
            self.stale.push(sentence, IsRepairable::Yes);
        }
        if let Some((batch, block)) = found.lost {
            let means = "after a crash the pool would not open, or what was acknowledged would be missing";
            let sentence = format!("redo log: batch {batch} at block {block} is damaged; {means}");
            self.stale.push(sentence, IsRepairable::No);
        }
    }

    /// Pages that have been replaced in memory: until the next checkpoint a restart begins with them. Where nothing can be written, the
    /// open has just done so, and did without those of which no copy is left.
    fn replaced_pages(&mut self, picture: &Picture) {
        for pointer in &picture.garbage {
            let bad = self.bad_copies(*pointer, "page that was replaced since the last checkpoint");
            if bad.len() == 2 && !self.pool.is_in_use() {
                continue;
            }
            self.stale_copies(*pointer, bad, "the pool may not open after a crash");
        }
    }

    /// Notes copies of a page that are not good, and what it means when both are not.
    fn stale_copies(&mut self, pointer: PagePointer, bad: Vec<(u64, String)>, means: &str) {
        let both = bad.len() == 2;
        for (number, problem) in bad {
            match both {
                true => self.stale.push(format!("{problem}; {means}"), IsRepairable::No),
                false => {
                    self.report.lost_copies.push((number, pointer));
                    self.stale.push(problem, IsRepairable::Yes);
                }
            }
        }
    }

    /// Pages that every checkpoint writes, or can be made to write; no page is below them.
    pub(super) fn lists(&mut self, picture: &Picture) {
        for (page, pointer) in picture.stored.row_pages.iter().enumerate() {
            if !pointer.is_none() && !self.own_list_page(*pointer, picture, "version table page") {
                self.stale.row_pages.insert(page);
            }
        }
        for pointer in &picture.stored.index_pages {
            self.own_list_page(*pointer, picture, "index stream page");
        }
    }

    /// Notes the owner of such a page; false when not both copies are good.
    fn own_list_page(&mut self, pointer: PagePointer, picture: &Picture, what: &str) -> bool {
        self.own_numbers(pointer, picture, what);
        let bad = self.bad_copies(pointer, what);
        let is_good = bad.is_empty();
        self.stale_copies(pointer, bad, "the pool would not open after a crash");
        is_good
    }

    /// Returns which copies of a page are not good, and what is wrong with each.
    pub(super) fn bad_copies(&self, pointer: PagePointer, what: &str) -> Vec<(u64, String)> {
        if self.held.have_given_way() {
            return Vec::new();
        }
        let copies = [pointer.first, pointer.second].into_iter();
        copies
            .filter_map(|number| {
                let bad = read_copy(&*self.pool.device, number, pointer.crc32c, what);
                bad.err().map(|problem| (number, format!("{what}: {problem}")))
            })
            .collect()
    }

    fn labels(&mut self, picture: &Picture) {
        for (number, wanted) in picture.devices.iter().enumerate() {
            let Some(device) = self.pool.device.device(number + 1).filter(|_| !wanted.is_none()) else {
                continue;
            };
            let (id, path) = (wanted.uuid(), wanted.path());
            let ids = (self.pool.uuid, id);
            let lost = lost_copies(&*device, ids);
            let none_is_left = lost.len() == 2;
            let is_known = matches!(find_label(&*device, ids), Ok(FoundLabel::Right));
            if none_is_left && !is_known && !is_only_damaged(&*device).unwrap_or(false) {
                self.problem(format!(
                    "device {id} at {path:?} begins with something that is not its label; without it the pool does not open"
                ));
                continue;
            }
            for (copy, problem) in lost {
                let means = match is_known {
                    true => "",
                    false => "; the pool would not open after a restart",
                };
                let finding = format!("label {copy} of device {id} at {path:?}: {problem}{means}");
                let is_repairable = match is_known {
                    true => IsRepairable::Yes,
                    false => IsRepairable::No,
                };
                self.stale.push(finding, is_repairable);
                self.stale.labels.push((number, copy));
            }
        }
    }
}
