//! Nodes of a map in memory, and the slots that hold them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, RwLock};

use crate::format::{
    BLOCK_BYTES, INNER_ENTRIES, LEAF_ENTRIES, LeafEntry, PagePointer, decode_inner, decode_leaf,
    encode_inner, encode_leaf,
};
use crate::locks::read;

/// Counts the map pages in memory.
#[derive(Debug, Default)]
pub(crate) struct PageGauge {
    resident: AtomicU64,
    dirty: AtomicU64,
}

impl PageGauge {
    /// Returns how many pages are in memory.
    pub fn resident(&self) -> u64 {
        self.resident.load(Ordering::Relaxed)
    }

    /// Returns how many of them are not stored yet.
    pub fn dirty(&self) -> u64 {
        self.dirty.load(Ordering::Relaxed)
    }
}

/// One page of a map.
#[derive(Debug)]
pub(crate) struct Node {
    birth: u32,
    child: Child,
    stored: OnceLock<PagePointer>,
    recently_used: AtomicBool,
    gauge: Arc<PageGauge>,
}

/// What a page holds.
#[derive(Debug)]
pub(crate) enum Child {
    /// Chunk mappings.
    Leaf(Box<[LeafEntry; LEAF_ENTRIES]>),
    /// Further pages. The lock guards only the loading and eviction of stored children; what the slots mean
    /// does not change once the node is shared (M2).
    Inner(Box<RwLock<[Slot; INNER_ENTRIES]>>),
}

/// A place for a page: empty, only on the medium, or in memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slot {
    /// Where the page is, while it is not in memory.
    pointer: PagePointer,
    node: Option<Arc<Node>>,
}

impl Node {
    /// Makes a page without entries.
    pub fn empty(level: u32, birth: u32, gauge: &Arc<PageGauge>) -> Self {
        let child = if level == 0 {
            Child::Leaf(Box::new([LeafEntry::UNMAPPED; LEAF_ENTRIES]))
        } else {
            Child::Inner(Box::new(RwLock::new(std::array::from_fn(|_| Slot::default()))))
        };
        Self::dirty(birth, child, gauge)
    }

    /// Decodes a stored page.
    pub fn load(level: u32, pointer: PagePointer, page: &[u8; BLOCK_BYTES], gauge: &Arc<PageGauge>) -> Self {
        let child = if level == 0 {
            Child::Leaf(decode_leaf(page))
        } else {
            let slots = decode_inner(page).map(Slot::stored);
            Child::Inner(Box::new(RwLock::new(slots)))
        };
        gauge.resident.fetch_add(1, Ordering::Relaxed);
        Self {
            birth: pointer.birth,
            child,
            stored: OnceLock::from(pointer),
            recently_used: AtomicBool::new(true),
            gauge: Arc::clone(gauge),
        }
    }

    /// Makes a page that is not stored.
    pub fn dirty(birth: u32, child: Child, gauge: &Arc<PageGauge>) -> Self {
        gauge.resident.fetch_add(1, Ordering::Relaxed);
        gauge.dirty.fetch_add(1, Ordering::Relaxed);
        Self {
            birth,
            child,
            stored: OnceLock::new(),
            recently_used: AtomicBool::new(true),
            gauge: Arc::clone(gauge),
        }
    }

    /// Makes a changeable copy.
    pub fn copy(&self, birth: u32) -> Self {
        let child = match &self.child {
            Child::Leaf(entries) => Child::Leaf(entries.clone()),
            Child::Inner(slots) => Child::Inner(Box::new(RwLock::new(read(slots).clone()))),
        };
        Self::dirty(birth, child, &self.gauge)
    }

    /// Returns the depth of the version that made it.
    pub fn birth(&self) -> u32 {
        self.birth
    }

    /// Returns what it holds.
    pub fn child(&self) -> &Child {
        &self.child
    }

    /// Returns what it holds, to change it; only for a node that is not stored (M2).
    pub fn child_mut(&mut self) -> &mut Child {
        debug_assert!(self.stored.get().is_none(), "M2");
        &mut self.child
    }

    /// Returns where it is stored, or `None` while it is dirty.
    pub fn stored(&self) -> Option<PagePointer> {
        self.stored.get().copied()
    }

    /// Says where it has been written.
    pub fn set_stored(&self, pointer: PagePointer) {
        if self.stored.set(pointer).is_ok() {
            self.gauge.dirty.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Notes a use, for eviction.
    pub fn touch(&self) {
        if !self.recently_used.load(Ordering::Relaxed) {
            self.recently_used.store(true, Ordering::Relaxed);
        }
    }

    /// Forgets the last use and tells whether there was one.
    pub fn take_recently_used(&self) -> bool {
        self.recently_used.swap(false, Ordering::Relaxed)
    }

    /// Encodes the page; `pointer_of` says where the children in memory are.
    pub fn encode(&self, pointer_of: impl Fn(&Slot) -> PagePointer) -> [u8; BLOCK_BYTES] {
        match &self.child {
            Child::Leaf(entries) => encode_leaf(entries),
            Child::Inner(slots) => {
                let slots = read(slots);
                encode_inner(&std::array::from_fn(|i| pointer_of(&slots[i])))
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.gauge.resident.fetch_sub(1, Ordering::Relaxed);
        if self.stored.get().is_none() {
            self.gauge.dirty.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Slot {
    /// A page that is only on the medium; empty when `pointer` is none.
    pub fn stored(pointer: PagePointer) -> Self {
        Self { pointer, node: None }
    }

    /// A page in memory.
    pub fn resident(node: Arc<Node>) -> Self {
        Self {
            pointer: PagePointer::NONE,
            node: Some(node),
        }
    }

    /// Tells whether there is no page.
    pub fn is_empty(&self) -> bool {
        self.node.is_none() && self.pointer.is_none()
    }

    /// Returns the page if it is in memory.
    pub fn node(&self) -> Option<&Arc<Node>> {
        self.node.as_ref()
    }

    /// Returns the page if it is in memory, to change or replace it.
    pub fn node_mut(&mut self) -> Option<&mut Arc<Node>> {
        self.node.as_mut()
    }

    /// Returns the page in memory, or else where it is stored.
    pub fn into_node(self) -> Result<Arc<Node>, PagePointer> {
        self.node.ok_or(self.pointer)
    }

    /// Returns where the page is stored: none when it is empty or dirty.
    pub fn pointer(&self) -> PagePointer {
        match &self.node {
            Some(node) => node.stored().unwrap_or(PagePointer::NONE),
            None => self.pointer,
        }
    }

    /// Returns the birth of the page.
    pub fn birth(&self) -> u32 {
        match &self.node {
            Some(node) => node.birth,
            None => self.pointer.birth,
        }
    }

    /// Tells whether both hold the same page.
    pub fn is_same_page(&self, other: &Slot) -> bool {
        if let (Some(a), Some(b)) = (&self.node, &other.node)
            && Arc::ptr_eq(a, b)
        {
            return true;
        }
        let (a, b) = (self.pointer(), other.pointer());
        !a.is_none() && a == b
    }

    /// Puts a loaded page in, if the slot still wants it.
    pub fn set_loaded(&mut self, pointer: PagePointer, node: &Arc<Node>) {
        if self.node.is_none() && self.pointer == pointer {
            self.node = Some(Arc::clone(node));
        }
    }

    /// Drops the page from memory if it is stored (M3); returns whether it was dropped.
    pub fn evict(&mut self) -> bool {
        match self.node.as_ref().and_then(|node| node.stored()) {
            Some(pointer) => {
                *self = Slot::stored(pointer);
                true
            }
            None => false,
        }
    }
}
