//! Map pages that were replaced and wait for the superblock that no longer needs them.

use std::sync::Arc;

use crate::format::PagePointer;
use crate::map::{Node, Slot};

/// Replaced pages. The page of a node that is being stored at this moment gets its place only when the checkpoint
/// has written it, so such nodes are kept until then.
#[derive(Debug, Default)]
pub(crate) struct Garbage {
    pointers: Vec<PagePointer>,
    nodes: Vec<Arc<Node>>,
    /// Whether there are some that nothing takes the place of.
    has_removed: bool,
}

impl Garbage {
    /// Adds a replaced page.
    pub fn push(&mut self, node: Arc<Node>) {
        match node.stored() {
            Some(pointer) => self.pointers.push(pointer),
            // Nobody else holds it, so nobody is storing it.
            None if Arc::strong_count(&node) == 1 => {}
            None => self.nodes.push(node),
        }
    }

    /// Adds a page taken out of its slot; nothing takes its place.
    pub fn push_removed(&mut self, slot: Slot) {
        self.has_removed = true;
        self.push_slot(slot);
    }

    /// Adds a page whose slot holds another one now.
    pub fn push_slot(&mut self, slot: Slot) {
        match slot.into_node() {
            Ok(node) => self.push(node),
            Err(pointer) => self.push_pointer(pointer),
        }
    }

    /// Adds a stored page.
    pub fn push_pointer(&mut self, pointer: PagePointer) {
        if !pointer.is_none() {
            self.pointers.push(pointer);
        }
    }

    /// Tells whether there are pages that nothing takes the place of: a checkpoint leaves fewer than there were.
    pub fn has_removed(&self) -> bool {
        self.has_removed && !self.is_empty()
    }

    /// Tells whether there is nothing to free.
    pub fn is_empty(&self) -> bool {
        self.pointers.is_empty() && self.nodes.is_empty()
    }

    /// Lets go of nodes that have been stored by now, so that they take no memory until they are freed.
    pub fn let_go_of_stored(&mut self) {
        let Self { pointers, nodes, .. } = self;
        nodes.retain(|node| match node.stored() {
            Some(pointer) => {
                pointers.push(pointer);
                false
            }
            None => true,
        });
    }

    /// Returns where the garbage is stored so far.
    pub fn pointers(&self) -> Vec<PagePointer> {
        let stored = self.nodes.iter().filter_map(|node| node.stored());
        self.pointers.iter().copied().chain(stored).collect()
    }

    /// Returns where the garbage is stored. What was never stored needs no freeing.
    pub fn into_pointers(self) -> Vec<PagePointer> {
        self.pointers()
    }
}
