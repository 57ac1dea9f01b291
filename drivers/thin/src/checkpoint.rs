//! Checkpoints: the state written in its place, so that the log before it is not needed any more.
//!
//! The state is frozen under its lock, in memory only: roots are cloned, changed rows and bitmap blocks copied, pages
//! reserved. Everything is then written without a lock, to places that no superblock names.
//!
//! It is also how a pool grows: the superblock that a checkpoint ends with may have a new geometry (J1, [`grow`](crate::grow)).
//!
//! Order: commit of what is frozen · pages, bitmap blocks, directory · flush · superblock copies 0 and 2 · flush ·
//! copies 1 and 3 · the replaced pages are free.
//!
//! Invariants
//! - K1: nothing that the previous superblock needs is overwritten before the new one is durable: pages come from
//!   a reservation, bitmap blocks and directory go to their other side, log blocks are kept until then.
//! - K2: the frozen state is exactly the records of the batches before its log position.
//! - K3: two superblock copies stay untouched until the two others are durable.
//! - K4: a node counts as stored only after its page has been written, so eviction never loses it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, MutexGuard};

use uuid::Uuid;
use zerocopy::IntoBytes;

use crate::chunk_table::{FrozenTable, StoredTable};
use crate::format::{
    AddedDevices, BASE_INCOMPAT, BASE_RO_COMPAT, BLOCK_BYTES, DirectoryEntry, Geometry,
    INCOMPAT_CHECKSUMMED_LENDERS, INCOMPAT_CHECKSUMS, INCOMPAT_ENCRYPTION, INCOMPAT_SCRUB, INCOMPAT_SEGMENTS,
    INDEX_PAYLOAD_BYTES, IndexPageHeader, PagePointer, ROWS_PER_PAGE, SuperblockFields,
};
use crate::garbage::Garbage;
use crate::grow::wipe_tails;
use crate::locks::{lock, read, write};
use crate::map::{Child, Node, Slot};
use crate::page_io::PageWriter;
use crate::page_space::{PageSpace, Reservation};
use crate::pool::Pool;
use crate::state::{State, StoredIndex};
use crate::version::FrozenRows;
use crate::{PoolDevice, PoolError};

/// The state as of one log position, ready to be written.
pub(crate) struct Frozen {
    /// As it is to be once this checkpoint is durable.
    layout: Layout,
    /// As it is until then.
    geometry: Geometry,
    rows: Vec<FrozenRows>,
    bitmap: Vec<(u64, Box<[u8; BLOCK_BYTES]>)>,
    garbage: Garbage,
    pages: PageSpace,
    /// As the index stream lists them.
    partials: Vec<u64>,
    /// As the index stream lists them; `None` in a pool without encrypted volumes.
    keys: Option<Vec<u64>>,
    /// The roots of the sum trees; `None` in a pool without checksummed volumes.
    sum_roots: Option<Vec<Slot>>,
    /// As the index stream has it; `None` in a pool without one.
    scrub: Option<Vec<u64>>,
    table: FrozenTable,
    reservation: Reservation,
    previous: StoredIndex,
    version_rows: usize,
    next_node: u64,
    log_batch: u64,
    log_block: u64,
}

/// Where what the index stream lists has been written.
struct Lists {
    bitmap_pages: Vec<PagePointer>,
    row_pages: Vec<PagePointer>,
    sum_roots: Option<Vec<PagePointer>>,
    table: StoredTable,
}

/// How often a checkpoint tries to freeze while others change more than what it has space for.
const FREEZES: usize = 4;

/// How a checkpoint flushes: what it says it is doing is for an error.
pub(crate) type Flush<'a> = dyn Fn(&'static str) -> Result<(), PoolError> + 'a;

/// What growing changes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub geometry: Geometry,
    pub devices: AddedDevices,
}

/// What has been written.
pub(crate) struct Stored {
    layout: Layout,
    incompat: u64,
    index: StoredIndex,
    pages: PageSpace,
    table: StoredTable,
    log_batch: u64,
    log_block: u64,
}

impl State {
    /// Returns how many page pairs a checkpoint may need when `extra_nodes` further map pages become dirty.
    pub fn checkpoint_pages(&self, extra_nodes: u64) -> u64 {
        let row_pages = self.versions.dirty_row_pages() as u64 + extra_nodes.min(1);
        let nodes = self.gauge.dirty() + self.table.changed_pages() + extra_nodes;
        // Every further page may open a chunk of its own in each class.
        let new_chunks = 2 * ((nodes + row_pages) / self.geometry.pages_per_chunk() + 2);
        // Any of the bitmap's pages may change.
        nodes + row_pages + self.geometry.bitmap_pages() + self.index_pages(new_chunks)
    }

    fn index_pages(&self, new_chunks: u64) -> u64 {
        let row_pages = (self.versions.row_count() / ROWS_PER_PAGE + 2) as u64;
        let chunks = self.pages.chunk_count() + new_chunks;
        let words = mask_words(&self.geometry);
        let partials = 8 * self.partials.most_encoded_words(words) as u64;
        let keys = 8 * self.keys.most_encoded_words() as u64;
        let bitmap_pages = 8 + self.geometry.bitmap_pages() * 24;
        // Another tree may come to be.
        let sums = 8 + 24 * (self.sums.roots().len() as u64 + 1);
        let scrub = 8 * self.scrub.most_encoded_words() as u64;
        let bytes = 16
            + bitmap_pages
            + row_pages * 24
            + chunks * (16 + 8 * words as u64)
            + partials
            + keys
            + sums
            + scrub
            + 8 * self.table.most_encoded_words(&self.geometry);
        bytes.div_ceil(INDEX_PAYLOAD_BYTES as u64)
    }

    /// Returns how many free chunks are left when everything dirty has been written.
    pub fn spare_chunks(&self, extra_nodes: u64) -> Option<u64> {
        let needed = self
            .pages
            .chunks_needed(&self.geometry, self.checkpoint_pages(extra_nodes));
        (self.space.free() + self.pages.stock().unwrap_or(0)).checked_sub(needed)
    }

    /// Returns the layout as it is.
    pub fn layout(&self) -> Layout {
        Layout {
            geometry: self.geometry,
            devices: self.devices,
        }
    }

    /// Freezes the state at the log's present end, to be stored as `layout` says; `None`, and nothing changes, when the
    /// free space does not suffice. The caller has sealed the open batch in the same critical section (K2).
    pub fn freeze(&mut self, layout: Layout) -> Option<Frozen> {
        let needed = self.checkpoint_pages(0);
        let (mut unneeded, more_tops) = self.take_unneeded_of_table();
        let mut reserve = |pages| self.pages.reserve(&self.geometry, &mut self.space, pages);
        let (reservation, postponed) = match reserve(needed + more_tops) {
            Some(reservation) => (Some(reservation), BTreeSet::new()),
            None => (reserve(needed), std::mem::take(&mut unneeded)),
        };
        self.table.postpone(postponed);
        let reservation = reservation?;
        let rows = self.versions.take_dirty_rows();
        let mut garbage = std::mem::take(&mut self.garbage);
        for page in &rows {
            let replaced = self.stored.row_pages.get(page.page).copied();
            garbage.push_pointer(replaced.unwrap_or(PagePointer::NONE));
        }
        let bitmap = self.space.take_dirty_blocks();
        for (block, _) in &bitmap {
            let page = block.checked_sub(self.geometry.bitmap_blocks);
            let replaced = page.and_then(|page| self.stored.bitmap_pages.get(page as usize));
            garbage.push_pointer(replaced.copied().unwrap_or(PagePointer::NONE));
        }
        for page in &self.stored.index_pages {
            garbage.push_pointer(*page);
        }
        Some(Frozen {
            layout,
            geometry: self.geometry,
            rows,
            bitmap,
            partials: self.partials.encode(mask_words(&self.geometry)),
            keys: self.keys.wanted.then(|| self.keys.encode()),
            sum_roots: self.sums.wanted.then(|| self.sums.roots().to_vec()),
            scrub: self.scrub.wanted.then(|| self.scrub.encode()),
            table: self.table.freeze(unneeded),
            garbage,
            pages: self.pages.unheld(),
            reservation,
            previous: self.stored.clone(),
            version_rows: self.versions.row_count(),
            next_node: self.next_node,
            log_batch: self.log.next_batch,
            log_block: self.log.next_block,
        })
    }

    /// Goes over to a durable checkpoint: its predecessor's pages and log are free (K1).
    pub fn settle(&mut self, stored: Stored, discard: bool) {
        self.pages.settle(stored.pages, &mut self.space, discard);
        if stored.layout.geometry.chunk_count > self.geometry.chunk_count {
            self.space.grow(stored.layout.geometry.chunk_count);
        }
        self.geometry = stored.layout.geometry;
        self.devices = stored.layout.devices;
        self.log.advance_head(stored.log_batch, stored.log_block);
        self.stored = stored.index;
        self.allows_partials = true;
        self.log.unsettled.allowed = true;
        self.log.may_carry = true;
        self.incompat = stored.incompat;
        self.table.settle(stored.table);
        self.garbage.let_go_of_stored();
        let stock = self.stock_wanted();
        self.pages.trim_stock(stock, &mut self.space, discard);
    }
}

impl Pool {
    /// Makes everything durable in its place, so that recovery has nothing to replay.
    ///
    /// # Errors
    /// `Full` when not even the reserve suffices, `HostFull` when the medium has no space for it, and then nothing has changed; what
    /// the medium hit, and then the pool has stopped.
    pub fn checkpoint(&self) -> Result<(), PoolError> {
        let one = lock(&self.checkpointing);
        self.checkpoint_as(&one, None)
    }

    /// As [`checkpoint`](Self::checkpoint), and goes over to a new layout, if there is one; with one, even the same, it is made
    /// though nothing has changed. `_one` says that no other checkpoint runs.
    pub(crate) fn checkpoint_as(
        &self,
        _one: &MutexGuard<'_, ()>,
        new_layout: Option<Layout>,
    ) -> Result<(), PoolError> {
        // Ends the quarantine first, which may free the space that the checkpoint needs.
        self.commit()?;
        {
            let state = read(&self.state);
            let unchanged = state.garbage.is_empty()
                && state.versions.dirty_row_pages() == 0
                && !state.space.is_dirty()
                && state.table.is_clean();
            let says_all = (state.allows_encryption() || !state.keys.wanted)
                && (state.allows_checksums() || !state.sums.wanted)
                && (state.allows_scrub() || !state.scrub.wanted);
            if unchanged && says_all && !state.log.has_anything() && new_layout.is_none() {
                return Ok(());
            }
        }
        let mut frozen = None;
        for _attempt in 0..FREEZES {
            let stocked = self.stock_for_checkpoint();
            let turn = self.turns.wait();
            self.commit_round(&turn, || {
                let mut state = write(&self.state);
                let sealed = state.log.seal();
                let layout = new_layout.unwrap_or_else(|| state.layout());
                frozen = state.freeze(layout);
                sealed
            })?;
            drop(turn);
            if frozen.is_some() {
                break;
            }
            // If there was enough, others have changed more since.
            stocked?;
        }
        let Some(frozen) = frozen else {
            let state = read(&self.state);
            return Err(PoolError::Full {
                needed_bytes: state.checkpoint_pages(0) * 2 * crate::format::BLOCK,
                free_bytes: state.space.free() * self.geometry.chunk_bytes,
            });
        };
        let stored = frozen
            .store(&*self.device, self.uuid, &|doing| self.flush_devices(doing))
            .map_err(|error| self.stop("a checkpoint failed", error))?;
        // Before the first new chunk is handed out (J1).
        self.places.take_over(&stored.layout.geometry);
        write(&self.state).settle(stored, self.options.discard_freed);
        self.space_came();
        self.note_level();
        Ok(())
    }
}

impl Frozen {
    /// Writes the frozen state and then the superblock that names it. `flush` flushes the device, and says so in an error.
    pub fn store(
        mut self,
        device: &dyn PoolDevice,
        uuid: Uuid,
        flush: &Flush<'_>,
    ) -> Result<Stored, PoolError> {
        let geometry = &self.layout.geometry.clone();
        let mut trees = TreeWriter {
            writer: PageWriter::new(device),
            reservation: &mut self.reservation,
            written: Vec::new(),
            places: HashMap::new(),
        };
        let sum_roots = self.sum_roots.iter().flatten();
        for root in self.rows.iter().flat_map(FrozenRows::roots).chain(sum_roots) {
            trees.store(root)?;
        }
        let place_of = |root| trees.place_of(root);
        let sum_roots: Option<Vec<PagePointer>> =
            (self.sum_roots.as_ref()).map(|roots| roots.iter().map(place_of).collect());
        let row_pages = trees.store_rows(&self.rows, std::mem::take(&mut self.previous.row_pages))?;
        let bitmap_pages = std::mem::take(&mut self.previous.bitmap_pages);
        let bitmap_pages = trees.store_bitmap_pages(geometry, &self.bitmap, bitmap_pages)?;
        let TreeWriter {
            mut writer,
            reservation,
            written,
            ..
        } = trees;
        let mut freed = std::mem::take(&mut self.garbage).into_pointers();
        let table = std::mem::take(&mut self.table);
        let table = table.store(device, &mut writer, reservation, &mut freed)?;
        writer.finish()?;
        for (node, pointer) in written {
            node.set_stored(pointer);
        }

        let lists = Lists {
            bitmap_pages,
            row_pages,
            sum_roots,
            table,
        };
        let (index, pages) = self
            .index_stream(&lists, &freed)
            .map_err(|contradiction| PoolError::damaged("the list of pages in use", contradiction))?;
        let index_bytes = index.len() as u64;
        let index_pages = self.store_index(device, &index)?;
        let (directory, directory_side, directory_crc32c) = self.store_bitmap(device, geometry)?;
        flush("flushing a checkpoint")?;

        let generation = self.previous.generation + 1;
        let incompat = self.incompat();
        let superblock = SuperblockFields {
            uuid,
            generation,
            compat: 0,
            ro_compat: BASE_RO_COMPAT,
            incompat,
            geometry: *geometry,
            directory_crc32c,
            directory_side,
            log_batch: self.log_batch,
            log_block: self.log_block,
            index: index_pages[0],
            index_bytes,
            next_node: self.next_node,
            version_rows: self.version_rows as u64,
            devices: self.layout.devices,
        };
        store_superblock(device, &superblock, &self.geometry, flush)?;
        Ok(Stored {
            layout: self.layout,
            incompat,
            index: StoredIndex {
                generation,
                directory_side,
                directory,
                row_pages: lists.row_pages,
                bitmap_pages: lists.bitmap_pages,
                index_pages,
            },
            pages,
            table: lists.table,
            log_batch: self.log_batch,
            log_block: self.log_block,
        })
    }

    /// Returns the features that the superblock has to tell of.
    fn incompat(&self) -> u64 {
        let g = &self.layout.geometry;
        let has_segments = g.added_segments().next().is_some() || g.bitmap_pages() > 0;
        let segments = if has_segments { INCOMPAT_SEGMENTS } else { 0 };
        let encryption = if self.keys.is_some() {
            INCOMPAT_ENCRYPTION
        } else {
            0
        };
        let checksums = if self.sum_roots.is_some() {
            INCOMPAT_CHECKSUMS | INCOMPAT_CHECKSUMMED_LENDERS
        } else {
            0
        };
        let scrub = if self.scrub.is_some() { INCOMPAT_SCRUB } else { 0 };
        BASE_INCOMPAT | segments | encryption | checksums | scrub
    }

    /// Encodes the index stream and returns it with the page chunks that it lists: those that are left once this
    /// checkpoint is durable, with the pages that the stream itself is going to take.
    fn index_stream(&self, lists: &Lists, freed: &[PagePointer]) -> Result<(Vec<u8>, PageSpace), String> {
        let geometry = &self.layout.geometry;
        let mut own_pages = 1;
        loop {
            let pages = self.pages.after(geometry, &self.reservation, own_pages, freed)?;
            let stream = self.encode_index(lists, &pages);
            let needed = stream.len().div_ceil(INDEX_PAYLOAD_BYTES);
            if needed <= own_pages {
                debug_assert_eq!(needed, own_pages, "the stream only grows with its own pages");
                return Ok((stream, pages));
            }
            own_pages = needed;
        }
    }

    fn encode_index(&self, lists: &Lists, pages: &PageSpace) -> Vec<u8> {
        let mask_words = mask_words(&self.layout.geometry);
        let mut stream = IndexWriter(Vec::new());
        if self.incompat() & INCOMPAT_SEGMENTS != 0 {
            stream.pointers(&lists.bitmap_pages);
        }
        stream.pointers(&lists.row_pages);
        stream.word(pages.chunk_count());
        for (chunk, page_chunk) in pages.chunks() {
            stream.word(chunk);
            stream.word(page_chunk.class as u64);
            stream.words(&page_chunk.used.0[..mask_words]);
        }
        stream.words(&self.partials);
        stream.words(self.keys.as_deref().unwrap_or_default());
        if let Some(roots) = &lists.sum_roots {
            stream.pointers(roots);
        }
        stream.words(self.scrub.as_deref().unwrap_or_default());
        stream.pointers(&lists.table.tops);
        stream.words(&lists.table.words());
        stream.0
    }

    /// Writes the index stream, the last page first because each page points to the next.
    fn store_index(&mut self, device: &dyn PoolDevice, stream: &[u8]) -> Result<Vec<PagePointer>, PoolError> {
        let payloads: Vec<&[u8]> = stream.chunks(INDEX_PAYLOAD_BYTES).collect();
        let mut writer = PageWriter::new(device);
        let mut pointers = vec![PagePointer::NONE; payloads.len()];
        let mut next = PagePointer::NONE;
        for (pointer, payload) in pointers.iter_mut().zip(payloads).rev() {
            let mut page = [0; BLOCK_BYTES];
            let header = IndexPageHeader {
                next: next.into(),
                used: (payload.len() as u32).into(),
                magic: IndexPageHeader::MAGIC,
            };
            let (head, body) = page.split_at_mut(size_of::<IndexPageHeader>());
            head.copy_from_slice(header.as_bytes());
            body[..payload.len()].copy_from_slice(payload);
            next = writer.write(reserved(&mut self.reservation), 0, &page)?;
            *pointer = next;
        }
        writer.finish()?;
        Ok(pointers)
    }

    /// Writes changed bitmap blocks to their other side and the directory to its other side (K1).
    fn store_bitmap(
        &self,
        device: &dyn PoolDevice,
        geometry: &Geometry,
    ) -> Result<(Vec<DirectoryEntry>, u32, u32), PoolError> {
        let mut directory = self.previous.directory.clone();
        let in_their_place = self
            .bitmap
            .iter()
            .filter(|(block, _)| *block < geometry.bitmap_blocks);
        for (block, bytes) in in_their_place {
            let entry = &mut directory[*block as usize];
            entry.side ^= 1;
            entry.crc32c = crc32c::crc32c(&**bytes);
            let offset = geometry.bitmap_offset(*block, entry.side);
            device
                .write_at(offset, &quarry_contract::IoBuffer::from_slice(&**bytes))
                .map_err(PoolError::device(format!("writing the bitmap at byte {offset}")))?;
        }
        let bytes = encode_directory(geometry, &directory);
        let side = self.previous.directory_side ^ 1;
        let offset = geometry.directory_offset(side);
        device
            .write_at(offset, &bytes)
            .map_err(PoolError::device(format!(
                "writing the bitmap directory at byte {offset}"
            )))?;
        Ok((directory, side, crc32c::crc32c(&bytes)))
    }
}

/// Encodes the bitmap directory, as all blocks of a side.
pub(crate) fn encode_directory(
    geometry: &Geometry,
    directory: &[DirectoryEntry],
) -> quarry_contract::IoBuffer {
    let mut bytes = quarry_contract::IoBuffer::zeroed(geometry.directory_blocks as usize * BLOCK_BYTES);
    for (slot, entry) in bytes.chunks_exact_mut(8).zip(directory) {
        slot.copy_from_slice(&entry.to_bytes());
    }
    bytes
}

/// Writes a superblock in two rounds (K3). The second needs no flush of its own: the next checkpoint flushes before
/// it touches the first two copies again.
///
/// When the pool has grown, the tail copies of `before` are wiped in between: the second head copy, which still says where
/// they are, goes only when they are gone (J3).
fn store_superblock(
    device: &dyn PoolDevice,
    superblock: &SuperblockFields,
    before: &Geometry,
    flush: &Flush<'_>,
) -> Result<(), PoolError> {
    let block = quarry_contract::IoBuffer::from_slice(superblock.encode().as_bytes());
    let store = |copy: usize| {
        device
            .write_at(superblock.geometry.superblock_offset(copy), &block)
            .map_err(PoolError::device(format!("writing superblock copy {copy}")))
    };
    store(0)?;
    store(2)?;
    flush("flushing the superblock")?;
    if before.device_bytes != superblock.geometry.device_bytes {
        wipe_tails(device, before)?;
        flush("flushing wiped superblock copies")?;
    }
    store(1)?;
    store(3)
}

/// How many words hold a bit for each block of a chunk.
pub(crate) fn mask_words(geometry: &Geometry) -> usize {
    geometry.pages_per_chunk().div_ceil(64) as usize
}

/// Appends to the index stream.
struct IndexWriter(Vec<u8>);

impl IndexWriter {
    fn word(&mut self, word: u64) {
        self.0.extend_from_slice(&word.to_le_bytes());
    }

    fn words(&mut self, words: &[u64]) {
        words.iter().for_each(|word| self.word(*word));
    }

    /// Appends how many there are, and each.
    fn pointers(&mut self, pointers: &[PagePointer]) {
        self.word(pointers.len() as u64);
        for pointer in pointers {
            self.word(pointer.first);
            self.word(pointer.second);
            self.word(u64::from(pointer.birth) | u64::from(pointer.crc32c) << 32);
        }
    }
}

pub(crate) fn reserved(reservation: &mut Reservation) -> (u64, u64) {
    reservation
        .next()
        .expect("the freeze reserved a page for everything that can be dirty")
}

/// Writes the dirty parts of trees bottom-up.
struct TreeWriter<'a> {
    writer: PageWriter<'a>,
    reservation: &'a mut Reservation,
    written: Vec<(Arc<Node>, PagePointer)>,
    /// Where nodes are that are not marked stored yet (K4), by their address in memory.
    places: HashMap<*const Node, PagePointer>,
}

impl TreeWriter<'_> {
    fn store(&mut self, slot: &Slot) -> Result<(), PoolError> {
        let Some(node) = slot.node().filter(|node| self.is_unwritten(node)) else {
            return Ok(());
        };
        if let Child::Inner(slots) = node.child() {
            // The lock is not held while writing: readers load pages into these slots meanwhile.
            let dirty: Vec<Slot> = read(slots)
                .iter()
                .filter(|slot| slot.node().is_some_and(|node| self.is_unwritten(node)))
                .cloned()
                .collect();
            for child in &dirty {
                self.store(child)?;
            }
        }
        let page = node.encode(|slot| self.place_of(slot));
        let pointer = self
            .writer
            .write(reserved(self.reservation), node.birth(), &page)?;
        self.places.insert(Arc::as_ptr(node), pointer);
        self.written.push((Arc::clone(node), pointer));
        Ok(())
    }

    fn is_unwritten(&self, node: &Arc<Node>) -> bool {
        node.stored().is_none() && !self.places.contains_key(&Arc::as_ptr(node))
    }

    fn place_of(&self, slot: &Slot) -> PagePointer {
        slot.node()
            .and_then(|node| self.places.get(&Arc::as_ptr(node)).copied())
            .unwrap_or_else(|| slot.pointer())
    }

    /// Writes the changed bitmap blocks that have no place of their own and returns the places of all.
    fn store_bitmap_pages(
        &mut self,
        geometry: &Geometry,
        blocks: &[(u64, Box<[u8; BLOCK_BYTES]>)],
        mut bitmap_pages: Vec<PagePointer>,
    ) -> Result<Vec<PagePointer>, PoolError> {
        bitmap_pages.resize(geometry.bitmap_pages() as usize, PagePointer::NONE);
        for (block, bytes) in blocks {
            let Some(page) = block.checked_sub(geometry.bitmap_blocks) else {
                continue;
            };
            bitmap_pages[page as usize] = match bytes.iter().all(|byte| *byte == 0) {
                true => PagePointer::NONE,
                false => self.writer.write(reserved(self.reservation), 0, bytes)?,
            };
        }
        Ok(bitmap_pages)
    }

    /// Writes the changed row pages and returns the places of all.
    fn store_rows(
        &mut self,
        rows: &[FrozenRows],
        mut row_pages: Vec<PagePointer>,
    ) -> Result<Vec<PagePointer>, PoolError> {
        for frozen in rows {
            if row_pages.len() <= frozen.page {
                row_pages.resize(frozen.page + 1, PagePointer::NONE);
            }
            row_pages[frozen.page] = if frozen.is_empty() {
                PagePointer::NONE
            } else {
                let page = frozen.encode(|root| self.place_of(root));
                self.writer.write(reserved(self.reservation), 0, &page)?
            };
        }
        Ok(row_pages)
    }
}
