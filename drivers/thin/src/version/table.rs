//! The version table: how versions become rows and rows versions.

use uuid::Uuid;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{NodeId, Source, Version, VersionKind, VersionTree};
use crate::format::{BLOCK_BYTES, FLAG_CHECKSUMS, FLAG_RESERVED, MAX_DEPTH, PagePointer, ROWS_PER_PAGE, Row};
use crate::keys::KeyRef;
use crate::map::Slot;
use crate::sums::Checksums;

/// The rows of one page as of a freeze. A row's root may be in memory only; its place is known when the
/// checkpoint has written it.
pub(crate) struct FrozenRows {
    /// Which row page.
    pub page: usize,
    rows: Vec<Option<(Row, Slot)>>,
}

impl FrozenRows {
    /// Returns the roots of the page's versions.
    pub fn roots(&self) -> impl Iterator<Item = &Slot> {
        self.rows.iter().flatten().map(|(_, root)| root)
    }

    /// Tells whether no row of the page is in use.
    pub fn is_empty(&self) -> bool {
        self.rows.iter().all(Option::is_none)
    }

    /// Encodes the page; `pointer_of` says where the roots are.
    pub fn encode(&self, pointer_of: impl Fn(&Slot) -> PagePointer) -> [u8; BLOCK_BYTES] {
        let mut page = [0; BLOCK_BYTES];
        for (bytes, row) in page.chunks_exact_mut(size_of::<Row>()).zip(&self.rows) {
            if let Some((row, root)) = row {
                let row = Row {
                    root: pointer_of(root).into(),
                    ..*row
                };
                bytes.copy_from_slice(row.as_bytes());
            }
        }
        page
    }
}

impl VersionTree {
    /// Returns how many rows the table has, free ones included.
    pub fn row_count(&self) -> usize {
        self.rows.len()
    }

    /// Returns how many row pages have changed.
    pub fn dirty_row_pages(&self) -> usize {
        self.dirty_row_pages.len()
    }

    /// Makes the next checkpoint write a row page.
    pub fn dirty_row_page(&mut self, page: usize) {
        self.dirty_row_pages.insert(page);
    }

    /// Copies the row pages that changed since the last call.
    pub fn take_dirty_rows(&mut self) -> Vec<FrozenRows> {
        let pages = std::mem::take(&mut self.dirty_row_pages);
        let freeze = |page: usize| {
            let rows = self.rows.iter().skip(page * ROWS_PER_PAGE).take(ROWS_PER_PAGE);
            FrozenRows {
                page,
                rows: rows
                    .map(|row| {
                        row.as_ref()
                            .map(|version| (encode(version), version.root.clone()))
                    })
                    .collect(),
            }
        };
        pages.into_iter().map(freeze).collect()
    }

    /// Decodes row page `page`.
    ///
    /// # Errors
    /// Says what is impossible in it.
    pub fn load_rows(&mut self, page: usize, bytes: &[u8; BLOCK_BYTES]) -> Result<(), String> {
        for (i, bytes) in bytes.chunks_exact(size_of::<Row>()).enumerate() {
            let index = page * ROWS_PER_PAGE + i;
            let row = Row::read_from_bytes(bytes).map_err(|_| "a row is cut short".to_owned())?;
            if row.node.get() == 0 {
                continue;
            }
            let version =
                decode(&row).ok_or_else(|| format!("row {index} (node {}) is impossible", row.node))?;
            if self.rows.len() <= index {
                self.rows.resize_with(index + 1, || None);
            }
            if self.row_of.insert(version.node, index).is_some() {
                return Err(format!("node {} has two rows", row.node));
            }
            self.rows[index] = Some(Box::new(version));
        }
        Ok(())
    }

    /// Links what was loaded.
    ///
    /// # Errors
    /// Says which rule of the tree is broken.
    pub fn finish_loading(&mut self, row_count: usize) -> Result<(), String> {
        self.rows.resize_with(row_count.max(self.rows.len()), || None);
        self.free_rows = (0..self.rows.len())
            .filter(|row| self.rows[*row].is_none())
            .collect();
        let links: Vec<(NodeId, Option<NodeId>, u32, u64, bool)> = self
            .iter()
            .map(|v| (v.node, v.parent, v.depth, v.reap_cursor, v.dead))
            .collect();
        for (node, parent, depth, cursor, dead) in links {
            if let Some(parent) = parent {
                let row = self
                    .row(parent)
                    .ok_or_else(|| format!("node {} has no parent {}", node.0, parent.0))?;
                let parent = self.rows[row].as_mut().expect("indexed rows are occupied");
                if parent.depth >= depth {
                    return Err(format!("node {} is not deeper than its parent", node.0));
                }
                parent.children.insert(node);
            }
            if cursor > 0 && (!dead || self.reaping.replace(node).is_some()) {
                return Err(format!("node {} cannot be in reclaim", node.0));
            }
        }
        let rows = std::mem::take(&mut self.rows);
        for version in rows.iter().flatten() {
            self.index(version);
        }
        self.rows = rows;
        Ok(())
    }
}

fn encode(version: &Version) -> Row {
    let (source_kind, source) = version.source.code();
    let mut row = Row::new_zeroed();
    row.node = version.node.0.into();
    row.uuid = *version.uuid.as_bytes();
    row.kind = version.kind.code();
    row.state = u8::from(version.dead);
    row.source_kind = source_kind;
    row.flags = if version.reserved { FLAG_RESERVED } else { 0 };
    if version.checksums.are_on() {
        row.flags |= FLAG_CHECKSUMS;
    }
    row.depth = version.depth.into();
    row.parent = version.parent.map_or(0, |parent| parent.0).into();
    row.size_bytes = version.size().into();
    row.mapped_chunks = version.mapped_chunks.into();
    row.own_chunks = (version.own_chunks as u64).into();
    row.reap_cursor = version.reap_cursor.into();
    row.source = *source.as_bytes();
    if let Some(key) = version.key {
        row.key_family = key.family.into();
        row.key_slot = key.slot.into();
    }
    row
}

fn decode(row: &Row) -> Option<Version> {
    let source = Source::from_code(row.source_kind, Uuid::from_bytes(row.source))?;
    let kind = VersionKind::from_code(row.kind)?;
    let node = NodeId(row.node.get());
    let mut version = Version::new(
        node,
        Uuid::from_bytes(row.uuid),
        kind,
        source,
        row.size_bytes.get(),
    );
    version.dead = match row.state {
        0 => false,
        1 => true,
        _ => return None,
    };
    version.reserved = row.flags & FLAG_RESERVED != 0;
    if row.flags & FLAG_CHECKSUMS != 0 {
        version.checksums = Checksums::On;
    }
    version.depth = row.depth.get();
    version.parent = Some(NodeId(row.parent.get())).filter(|parent| parent.0 != 0);
    version.root = Slot::stored(row.root.into());
    version.mapped_chunks = row.mapped_chunks.get();
    version.own_chunks = row.own_chunks.get() as i64;
    version.reap_cursor = row.reap_cursor.get();
    version.key = (row.key_family.get() != 0).then(|| KeyRef {
        family: row.key_family.get(),
        slot: row.key_slot.get(),
    });
    (version.depth > 0 && version.depth <= MAX_DEPTH).then_some(version)
}
