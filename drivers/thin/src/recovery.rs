//! Formatting a pool, and opening one whatever happened to it before.
//!
//! Order of an open: choose the superblock · make all its copies equal, and all labels whole, flush · read bitmap, index and version
//! table · read the log, verify its last batch · rewrite that, flush, settle it · apply the log.
//!
//! Invariant O1: nothing is built on what a power cut could still take away. What a killed process left in caches
//! is made durable by a flush, unless its own flush failed: then reads still show it, and no later flush writes it.
//! So what may have had no good flush after it is written again. Of the log that is the last batch (C2) with the
//! data that it claims (U1). Of the superblock copies two are durable at any time (K3), and the others are made equal
//! to the newest one found.
//!
//! Format: docs/formats/pool.md, "Recovery".

use std::sync::Arc;

use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use crate::checkpoint::mask_words;
use crate::chunk_table::ChunkTable;
use crate::format::{
    AddedDevice, BITS_PER_BLOCK, BLOCK, BLOCK_BYTES, DirectoryEntry, Geometry, INDEX_PAYLOAD_BYTES,
    IndexPageHeader, MAX_ADDED_DEVICES, PagePointer, ROWS_PER_PAGE, SUPERBLOCK_COPIES, Superblock,
    SuperblockFields,
};
use crate::garbage::Garbage;
use crate::grow::{wipe_outgrown_tails, wipe_unborn_tails};
use crate::host_space::{HostSpace, take_fixed_areas};
use crate::keys::KeyAreas;
use crate::labels::{FoundLabel, find_label, heal_labels};
use crate::log::LogRing;
use crate::log_reader::LoggedBatch;
use crate::map::{Node, PageGauge, install};
use crate::page_io::{read_block, read_page};
use crate::page_space::{CopyClass, PageChunk, PageMask, PageSpace};
use crate::partial::PartialChunks;
use crate::pool::Pool;
use crate::read_log::{Dropped, read_log};
use crate::rebuild::{Rebuilt, rebuild_maps};
use crate::record::Record;
use crate::salvage::bitmap_from_maps;
use crate::scrub::Scrub;
use crate::space::Space;
use crate::state::{Origin, State, StoredIndex};
use crate::sums::SumTrees;
use crate::version::VersionTree;
use crate::{Access, BitmapSource, DeviceSet, FormatOptions, OpenOptions, PoolDevice, PoolError};

impl Pool {
    /// Writes an empty pool onto a device that holds none.
    ///
    /// # Errors
    /// `InvalidOption` for a bad geometry or a device too small; `AlreadyAPool`; `HostFull`; `Device`.
    pub fn format(device: &dyn PoolDevice, options: &FormatOptions) -> Result<(), PoolError> {
        let size = device
            .size_bytes()
            .map_err(PoolError::device("asking for the size"))?;
        let geometry = Geometry::new(size, options)?;
        for copy in 0..2 {
            if let Ok(found) = read_superblock(device, copy * BLOCK)?.decode() {
                return Err(PoolError::AlreadyAPool { uuid: found.uuid });
            }
        }
        take_fixed_areas(device, &geometry)?;
        let mut state = State::empty(geometry);
        state.space.dirty_everything();
        let needed = || PoolError::InvalidOption {
            option: "device",
            problem: "it is too small for the first checkpoint".into(),
        };
        let layout = state.layout();
        let frozen = state.freeze(layout).ok_or_else(needed)?;
        frozen.store(device, options.uuid, &|doing| {
            device.flush().map_err(PoolError::device(doing))
        })?;
        device
            .flush()
            .map_err(PoolError::device("flushing the last superblock copies"))
    }

    /// Opens a pool that is on one device and recovers it.
    ///
    /// # Errors
    /// `NotAPool`, `Truncated`, `NewerFormat`, `Damaged`, `Device`; `MissingDevice` when it is on more than one.
    pub fn open(device: Arc<dyn PoolDevice>, options: OpenOptions) -> Result<Arc<Pool>, PoolError> {
        Self::open_set(DeviceSet::of(device), options)
    }

    /// Opens a pool, all of whose devices are given ([`assemble`](crate::assemble())), and recovers it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_set(device: Arc<DeviceSet>, options: OpenOptions) -> Result<Arc<Pool>, PoolError> {
        Self::open_and(device, options, |_, _| Ok(())).map(|(pool, ())| pool)
    }

    /// As [`open_set`](Self::open_set), with the pages of maps made again that are lost; in memory, until the next checkpoint.
    ///
    /// # Errors
    /// As [`open`](Self::open); `Damaged` also when they cannot be made.
    pub(crate) fn open_rebuilt(
        device: Arc<DeviceSet>,
        options: OpenOptions,
    ) -> Result<(Arc<Pool>, Rebuilt), PoolError> {
        Self::open_and(device, options, rebuild_maps)
    }

    /// Opens a pool; `put_right` sees its checkpoint before the log is applied.
    fn open_and<R>(
        device: Arc<DeviceSet>,
        options: OpenOptions,
        put_right: impl FnOnce(&dyn PoolDevice, &mut State) -> Result<R, PoolError>,
    ) -> Result<(Arc<Pool>, R), PoolError> {
        let superblock = choose_superblock(&*device)?;
        check_devices(&device, &superblock)?;
        let writable = options.access == Access::ReadWrite && superblock.unknown_ro_compat() == 0;
        let mut host = HostSpace::default();
        if writable {
            host = HostSpace::at_open(&*device, &superblock.geometry);
            heal_superblocks(&*device, &superblock)?;
            heal_labels(&device, &superblock)?;
        }
        let mut state = load_checkpoint(&*device, &superblock, options.bitmap)?;
        let result = put_right(&*device, &mut state)?;
        let log = read_log(&*device, &superblock)?;
        for batch in log.restored() {
            tracing::warn!(
                pool = %options.name,
                batch,
                "a batch of the log is damaged, and was read from the copy in a later one; the medium has lost what was written"
            );
        }
        if let Some(Dropped { batch, because }) = log.dropped {
            tracing::warn!(
                pool = %options.name,
                batch,
                "the last batch of the log {because}, and does not count: a power cut in the middle of a commit leaves this, and \
                 nothing acknowledged is lost with it; if there was none, the medium has lost what was changed last"
            );
        }
        if writable {
            log.make_durable(&*device)?;
        }
        let batches = log.batches;
        for batch in &batches {
            replay(&*device, &mut state, batch)?;
        }
        for batch in &batches {
            state.log.remember(batch.number, batch.copy());
        }
        tracing::info!(
            pool = %options.name,
            uuid = %superblock.uuid,
            generation = superblock.generation,
            batches = batches.len(),
            "pool opened"
        );
        let pool = Pool::new(device, options, superblock.uuid, state, host);
        if superblock.unknown_ro_compat() == 0 && !writable {
            pool.stop_because("it was opened for reading only".to_owned());
        } else if !writable {
            pool.stop_because(format!(
                "it has features ({:#x}) with which this Quarry can only read it; use a newer version",
                superblock.unknown_ro_compat()
            ));
        }
        if pool.stopped().is_none() {
            pool.take_space_at_open();
            pool.erase_stale_slots()?;
        }
        Ok((Arc::new(pool), result))
    }
}

impl State {
    fn empty(geometry: Geometry) -> Self {
        Self {
            geometry,
            versions: VersionTree::default(),
            space: Space::new(geometry.chunk_count),
            table: ChunkTable::default(),
            partials: PartialChunks::default(),
            allows_partials: false,
            incompat: 0,
            keys: KeyAreas::default(),
            sums: SumTrees::default(),
            scrub: Scrub::default(),
            devices: [AddedDevice::none(); MAX_ADDED_DEVICES],
            pages: PageSpace::default(),
            garbage: Garbage::default(),
            gauge: Arc::new(PageGauge::default()),
            log: LogRing::new(geometry.log_blocks, 1, 0),
            next_node: 1,
            stored: StoredIndex {
                directory: vec![DirectoryEntry::default(); geometry.bitmap_blocks as usize],
                ..StoredIndex::default()
            },
        }
    }
}

pub(crate) fn read_superblock(device: &dyn PoolDevice, offset: u64) -> Result<Superblock, PoolError> {
    let block = read_block(device, offset, "a superblock")?;
    Ok(Superblock::read_from_bytes(&block).expect("a superblock is one block"))
}

/// Returns the newest valid copy.
pub(crate) fn choose_superblock(device: &dyn PoolDevice) -> Result<SuperblockFields, PoolError> {
    let size = device
        .size_bytes()
        .map_err(PoolError::device("asking for the size"))?
        / BLOCK
        * BLOCK;
    let copy_at = |offset: u64| {
        if offset + BLOCK > size {
            return Err(PoolError::NotAPool);
        }
        read_superblock(device, offset).and_then(|block| block.decode())
    };
    let heads = [0, BLOCK].map(copy_at);
    // The head copies know where the tail copies are; without them, they are at the present end.
    let end = heads
        .iter()
        .flatten()
        .map(|fields| fields.geometry.device_bytes)
        .next()
        .unwrap_or(size);
    if end > size {
        return Err(PoolError::Truncated {
            expected_bytes: end,
            actual_bytes: size,
        });
    }
    let tails = [2, 1].map(|blocks| copy_at(end.saturating_sub(blocks * BLOCK)));
    let mut best: Option<SuperblockFields> = None;
    let mut problem = PoolError::NotAPool;
    for copy in heads.into_iter().chain(tails) {
        match copy {
            Ok(fields) if best.is_none_or(|best| best.generation < fields.generation) => best = Some(fields),
            Ok(_) => {}
            // The most telling problem is reported when no copy is good.
            Err(error) => {
                let rank = |error: &PoolError| match error {
                    PoolError::NotAPool => 0,
                    PoolError::Device { .. } => 1,
                    PoolError::Damaged { .. } => 2,
                    _ => 3,
                };
                if rank(&error) > rank(&problem) {
                    problem = error;
                }
            }
        }
    }
    let best = match best {
        // A newer Quarry's copies beside an old one of ours: it has been here.
        Some(_) if matches!(problem, PoolError::NewerFormat { .. }) => return Err(problem),
        Some(best) => best,
        None => return Err(problem),
    };
    if best.geometry.device_bytes > size {
        return Err(PoolError::Truncated {
            expected_bytes: best.geometry.device_bytes,
            actual_bytes: size,
        });
    }
    Ok(best)
}

/// Verifies that every device of the pool is there, is its own, and has what the pool needs of it.
fn check_devices(set: &DeviceSet, superblock: &SuperblockFields) -> Result<(), PoolError> {
    for (number, wanted) in superblock.devices.iter().enumerate() {
        if wanted.is_none() {
            break;
        }
        let missing = |problem: &str| PoolError::MissingDevice {
            uuid: wanted.uuid(),
            path: wanted.path().into(),
            problem: problem.into(),
        };
        let device = set
            .device(number + 1)
            .ok_or_else(|| missing("it was not given"))?;
        match find_label(&*device, (superblock.uuid, wanted.uuid()))? {
            FoundLabel::Right => {}
            FoundLabel::Other => return Err(missing("another device of a pool is there")),
            FoundLabel::None => return Err(missing("what is there has no label of a pool")),
        }
        let actual_bytes = device
            .size_bytes()
            .map_err(PoolError::device("asking for the size"))?;
        if actual_bytes < wanted.device_bytes() {
            return Err(PoolError::Truncated {
                expected_bytes: wanted.device_bytes(),
                actual_bytes,
            });
        }
    }
    Ok(())
}

/// Rewrites copies that differ from the chosen one. The good ones are not touched (K3).
fn heal_superblocks(device: &dyn PoolDevice, superblock: &SuperblockFields) -> Result<(), PoolError> {
    let good = superblock.encode();
    let block = quarry_contract::IoBuffer::from_slice(good.as_bytes());
    // Also what a growth that was cut short has left where the pool does not end (J3), before the heads forget where.
    let mut healed =
        wipe_outgrown_tails(device, superblock)? | wipe_unborn_tails(device, &superblock.geometry)?;
    for copy in 0..SUPERBLOCK_COPIES {
        let offset = superblock.geometry.superblock_offset(copy);
        let same = read_superblock(device, offset).is_ok_and(|found| found.as_bytes() == good.as_bytes());
        if !same {
            device
                .write_at(offset, &block)
                .map_err(PoolError::device(format!("rewriting superblock copy {copy}")))?;
            healed = true;
        }
    }
    if healed {
        device
            .flush()
            .map_err(PoolError::device("flushing rewritten superblock copies"))?;
    }
    Ok(())
}

/// Reads everything that the superblock names; the maps only when the bitmap is to be made of them.
fn load_checkpoint(
    device: &dyn PoolDevice,
    superblock: &SuperblockFields,
    bitmap: BitmapSource,
) -> Result<State, PoolError> {
    let geometry = superblock.geometry;
    let mut state = State::empty(geometry);
    state.log = LogRing::new(geometry.log_blocks, superblock.log_batch, superblock.log_block);
    state.next_node = superblock.next_node;
    state.stored.generation = superblock.generation;
    state.stored.directory_side = superblock.directory_side;
    state.devices = superblock.devices;
    let (stream, index_pages) = load_index(device, superblock)?;
    state.stored.index_pages = index_pages;
    let damaged = |detail: &str| PoolError::damaged("index stream", detail);
    let mut reader = WordReader(&stream);
    if superblock.has_segments() {
        let bitmap_pages = reader.word().ok_or_else(|| damaged("no bitmap page count"))?;
        if bitmap_pages != geometry.bitmap_pages() {
            return Err(damaged("it has not as many bitmap pages as the pool needs"));
        }
        for _ in 0..bitmap_pages {
            let pointer = reader.pointer();
            let pointer = pointer.ok_or_else(|| damaged("cut short in the bitmap pages"))?;
            state.stored.bitmap_pages.push(pointer);
        }
    }
    if bitmap == BitmapSource::Stored {
        state.stored.directory = load_directory(device, superblock)?;
        load_bitmap(device, &mut state)?;
    }

    let row_pages = reader.word().ok_or_else(|| damaged("no row page count"))?;
    for page in 0..row_pages {
        let pointer = reader
            .pointer()
            .ok_or_else(|| damaged("cut short in the row pages"))?;
        state.stored.row_pages.push(pointer);
        if !pointer.is_none() {
            let bytes = read_page(device, pointer, "version table page")?;
            state
                .versions
                .load_rows(page as usize, &bytes)
                .map_err(|detail| PoolError::damaged("version table", detail))?;
        }
    }
    if superblock.version_rows > (row_pages + 1) * ROWS_PER_PAGE as u64 {
        return Err(PoolError::damaged(
            "superblock",
            "version_rows exceeds the row pages",
        ));
    }
    state
        .versions
        .finish_loading(superblock.version_rows as usize)
        .map_err(|detail| PoolError::damaged("version table", detail))?;

    if bitmap == BitmapSource::Maps {
        bitmap_from_maps(device, &mut state)?;
    }

    let words = geometry.pages_per_chunk().div_ceil(64) as usize;
    let chunks = reader.word().ok_or_else(|| damaged("no page chunk count"))?;
    for _ in 0..chunks {
        let (chunk, page_chunk) = reader
            .page_chunk(words)
            .ok_or_else(|| damaged("cut short in the page chunks"))?;
        if page_chunk.used.has_any_from(geometry.pages_per_chunk()) {
            return Err(damaged(&format!(
                "chunk {chunk} has more pages in use than there are in it"
            )));
        }
        if !state.space.claim(chunk) {
            return Err(damaged(&format!(
                "chunk {chunk} holds map pages and something else"
            )));
        }
        state.pages.load(chunk, page_chunk);
    }
    state.log.unsettled.allowed = superblock.allows_claims();
    state.log.may_carry = superblock.allows_carried_batches();
    state.allows_partials = superblock.allows_partials();
    state.incompat = superblock.incompat;
    if state.allows_partials {
        let partials = PartialChunks::decode(mask_words(&geometry), || reader.word());
        state.partials = partials.map_err(|detail| damaged(&detail))?;
        if bitmap == BitmapSource::Maps {
            // No map names them.
            for orphan in state.partials.orphans() {
                if !state.space.record_mapped(orphan, true) {
                    return Err(damaged(&format!(
                        "chunk {orphan} is an orphan and something else"
                    )));
                }
            }
        }
        for (chunk, lender) in state.partials.loans() {
            if !state.space.is_data(chunk) || lender.is_some_and(|lender| !state.space.is_data(lender)) {
                return Err(damaged(&format!(
                    "chunk {chunk} is partial, and it or its lender is free"
                )));
            }
        }
    }
    if superblock.allows_encryption() {
        state.keys =
            KeyAreas::decode(|| reader.word()).ok_or_else(|| damaged("cut short in the key areas"))?;
        for chunk in state.keys.chunks() {
            let is_there = match bitmap {
                BitmapSource::Stored => state.space.is_data(chunk),
                // No map names them.
                BitmapSource::Maps => state.space.record_mapped(chunk, true),
            };
            if !is_there {
                return Err(damaged(&format!(
                    "chunk {chunk} holds keys, and it is free or more"
                )));
            }
        }
    }
    if superblock.allows_checksums() {
        let count = reader.word().ok_or_else(|| damaged("no count of sum trees"))?;
        let roots: Option<Vec<_>> = (0..count).map(|_| reader.pointer()).collect();
        let roots = roots.ok_or_else(|| damaged("cut short in the sum trees"))?;
        state.sums = SumTrees::stored(roots.into_iter(), &geometry);
    }
    if superblock.allows_scrub() {
        state.scrub = Scrub::decode(|| reader.word()).map_err(|detail| damaged(&detail))?;
    }
    state.table = match superblock.has_chunk_table() {
        true => ChunkTable::decode(geometry.chunk_count, || reader.word())
            .ok_or_else(|| damaged("cut short in the chunk table"))?,
        false => ChunkTable::to_be_filled(),
    };
    let slots = state.keys.slots(&geometry);
    if let Some(slot) = state
        .versions
        .used_key_slots()
        .last()
        .filter(|slot| u64::from(**slot) >= slots)
    {
        return Err(PoolError::damaged(
            "version table",
            format!("a key is in slot {slot}, of {slots}"),
        ));
    }
    Ok(state)
}

fn load_directory(
    device: &dyn PoolDevice,
    superblock: &SuperblockFields,
) -> Result<Vec<DirectoryEntry>, PoolError> {
    let geometry = &superblock.geometry;
    let mut bytes = quarry_contract::IoBuffer::zeroed(geometry.directory_blocks as usize * BLOCK_BYTES);
    let offset = geometry.directory_offset(superblock.directory_side);
    device
        .read_at(offset, &mut bytes)
        .map_err(PoolError::device(format!(
            "reading the bitmap directory at byte {offset}"
        )))?;
    let found = crc32c::crc32c(&bytes);
    if found != superblock.directory_crc32c {
        return Err(PoolError::damaged(
            "bitmap directory",
            format!(
                "crc32c at byte {offset} is {found:08x}, not {:08x}",
                superblock.directory_crc32c
            ),
        ));
    }
    let entries = bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|bytes| DirectoryEntry::from_bytes(*bytes));
    let entries: Vec<_> = entries.take(geometry.bitmap_blocks as usize).collect();
    match entries.iter().position(|entry| entry.side > 1) {
        Some(block) => Err(PoolError::damaged(
            "bitmap directory",
            format!("entry {block} has no side"),
        )),
        None => Ok(entries),
    }
}

fn load_bitmap(device: &dyn PoolDevice, state: &mut State) -> Result<(), PoolError> {
    let used_blocks = state.geometry.chunk_count.div_ceil(BITS_PER_BLOCK);
    for block in 0..used_blocks {
        let bytes = match block.checked_sub(state.geometry.bitmap_blocks) {
            None => {
                let entry = state.stored.directory[block as usize];
                read_bitmap_block(device, &state.geometry, block, entry)?
            }
            Some(page) => match state.stored.bitmap_pages[page as usize] {
                pointer if pointer.is_none() => [0; BLOCK_BYTES],
                pointer => read_page(device, pointer, "chunk bitmap page")?,
            },
        };
        if !state.space.load_block(block, &bytes) {
            return Err(PoolError::damaged(
                "chunk bitmap",
                format!("block {block} names chunks beyond the end"),
            ));
        }
    }
    if state.space.finish_loading() {
        Ok(())
    } else {
        Err(PoolError::damaged(
            "chunk bitmap",
            "it names chunks beyond the end",
        ))
    }
}

/// Reads the current side of a bitmap block and verifies it.
pub(crate) fn read_bitmap_block(
    device: &dyn PoolDevice,
    geometry: &Geometry,
    block: u64,
    entry: DirectoryEntry,
) -> Result<[u8; BLOCK_BYTES], PoolError> {
    let offset = geometry.bitmap_offset(block, entry.side);
    let bytes = read_block(device, offset, "a chunk bitmap block")?;
    let found = crc32c::crc32c(&bytes);
    if found == entry.crc32c {
        return Ok(bytes);
    }
    Err(PoolError::damaged(
        "chunk bitmap",
        format!(
            "block {block} at byte {offset} has crc32c {found:08x}, not {:08x}",
            entry.crc32c
        ),
    ))
}

fn load_index(
    device: &dyn PoolDevice,
    superblock: &SuperblockFields,
) -> Result<(Vec<u8>, Vec<PagePointer>), PoolError> {
    let damaged = |detail: &str| PoolError::damaged("index stream", detail);
    let mut stream = Vec::new();
    let mut pages = Vec::new();
    let mut next = superblock.index;
    while !next.is_none() {
        let page = read_page(device, next, "index stream page")?;
        let (header, payload) =
            IndexPageHeader::read_from_prefix(&page).map_err(|_| damaged("a page is cut short"))?;
        let used = header.used.get() as usize;
        if header.magic != IndexPageHeader::MAGIC || used == 0 || used > INDEX_PAYLOAD_BYTES {
            return Err(damaged("a page is not of the stream"));
        }
        stream.extend_from_slice(&payload[..used]);
        pages.push(next);
        if stream.len() as u64 > superblock.index_bytes {
            return Err(damaged("it is longer than the superblock says"));
        }
        next = header.next.into();
    }
    if stream.len() as u64 != superblock.index_bytes {
        return Err(damaged("it is shorter than the superblock says"));
    }
    Ok((stream, pages))
}

struct WordReader<'a>(&'a [u8]);

impl WordReader<'_> {
    fn word(&mut self) -> Option<u64> {
        let (word, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*word))
    }

    fn pointer(&mut self) -> Option<PagePointer> {
        let (first, second, rest) = (self.word()?, self.word()?, self.word()?);
        Some(PagePointer {
            first,
            second,
            birth: rest as u32,
            crc32c: (rest >> 32) as u32,
        })
    }

    fn page_chunk(&mut self, words: usize) -> Option<(u64, PageChunk)> {
        let chunk = self.word()?;
        let class = match self.word()? {
            0 => CopyClass::First,
            1 => CopyClass::Second,
            _ => return None,
        };
        let mut used = PageMask::default();
        for word in used.0.iter_mut().take(words) {
            *word = self.word()?;
        }
        Some((chunk, PageChunk { class, used }))
    }
}

/// Applies a batch.
fn replay(device: &dyn PoolDevice, state: &mut State, batch: &LoggedBatch) -> Result<(), PoolError> {
    let damaged = |detail: String| PoolError::damaged(format!("redo log batch {}", batch.number), detail);
    let mut rest = batch.records();
    for _ in 0..batch.record_count {
        let record = Record::decode(&mut rest).ok_or_else(|| damaged("a record is not one".into()))?;
        while let Some(wanted) = state.wanted(&record) {
            let missing = &wanted.missing;
            let page = read_page(device, missing.pointer, "map page")?;
            let node = Arc::new(Node::load(missing.level, missing.pointer, &page, &state.gauge));
            if let Some(root) = state.root_mut(wanted.node) {
                install(root, missing, &node);
            }
        }
        state
            .apply(&record, batch.number, Origin::Replay)
            .map_err(|detail| damaged(format!("{record:?} {detail}")))?;
    }
    if !rest.is_empty() {
        return Err(damaged("it holds more than its records".into()));
    }
    state.log.replayed(batch.blocks());
    state.space.release(batch.number, false);
    Ok(())
}

/// The superblock's identity, for tools that only want to know whose device this is.
///
/// # Errors
/// As [`Pool::open`].
pub fn identify(device: &dyn PoolDevice) -> Result<Uuid, PoolError> {
    choose_superblock(device).map(|superblock| superblock.uuid)
}

/// Tells whether a device without superblocks has nothing where a pool or a file system would begin: it was made
/// for a pool, and its formatting never got to the superblocks, which come last.
pub(crate) fn is_blank(device: &dyn PoolDevice) -> Result<bool, PoolError> {
    let size = device
        .size_bytes()
        .map_err(PoolError::device("asking for the size"))?;
    for offset in (0..BLANK_HEAD_BYTES.min(size / BLOCK * BLOCK)).step_by(BLOCK_BYTES) {
        if read_block(device, offset, "the head of the device")?
            .iter()
            .any(|byte| *byte != 0)
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Superblocks and the beginning of the log, which formatting does not write before the superblocks.
const BLANK_HEAD_BYTES: u64 = 72 << 10;
