//! Copies of trees as they are at one moment, which nobody else changes, evicts or stores.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use crate::locks::read;
use crate::map::{Child, Node, PageGauge, Slot};

/// Copies what is dirty of the trees under these roots; of the rest they say where it is stored. What trees share their copies share.
/// No checkpoint runs meanwhile: what is dirty stays so.
///
/// The copies do not count in the pool's gauge: no checkpoint is going to write them.
pub(crate) fn detached(roots: &[&Slot]) -> Vec<Slot> {
    let mut copies = Copies {
        of: HashMap::new(),
        gauge: Arc::default(),
    };
    roots.iter().map(|root| copies.slot(root)).collect()
}

struct Copies {
    /// By the address of the original, which the roots keep in memory.
    of: HashMap<*const Node, Arc<Node>>,
    gauge: Arc<PageGauge>,
}

impl Copies {
    fn slot(&mut self, slot: &Slot) -> Slot {
        match slot.node().filter(|node| node.stored().is_none()) {
            Some(node) => Slot::resident(self.node(node)),
            None => Slot::stored(slot.pointer()),
        }
    }

    fn node(&mut self, node: &Arc<Node>) -> Arc<Node> {
        let original = Arc::as_ptr(node);
        if let Some(copy) = self.of.get(&original) {
            return Arc::clone(copy);
        }
        let child = match node.child() {
            Child::Leaf(entries) => Child::Leaf(entries.clone()),
            Child::Inner(slots) => {
                let slots = read(slots);
                let copies = std::array::from_fn(|entry| self.slot(&slots[entry]));
                Child::Inner(Box::new(RwLock::new(copies)))
            }
        };
        let copy = Arc::new(Node::dirty(node.birth(), child, &self.gauge));
        self.of.insert(original, Arc::clone(&copy));
        copy
    }
}
