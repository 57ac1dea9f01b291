//! Where the names of versions lead that are gone.
//!
//! A version that goes leaves what it owned to its child, or owned nothing any more: then only what snapshots of it own can still have
//! its name. Those come after it, so they have greater numbers; an ancestor from before it has nothing of that name, and no link
//! is needed (CT3).

use std::collections::{BTreeMap, BTreeSet};

use crate::version::NodeId;

/// A name that leads to a version of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Link {
    heir: NodeId,
    /// The walk that is under way began when it was there already: when it ends, no entry has the name.
    is_old: bool,
}

/// The names that lead to versions of others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Links {
    links: BTreeMap<NodeId, Link>,
    /// The names by where they lead.
    names: BTreeMap<NodeId, BTreeSet<NodeId>>,
}

/// In a name in the index stream: the link is old.
const OLD: u64 = 1 << 63;

impl Links {
    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Returns the version that a name of one that is gone leads to.
    pub fn heir(&self, name: NodeId) -> Option<NodeId> {
        self.links.get(&name).map(|link| link.heir)
    }

    /// A version goes, and its child, if it has one, takes its place; `named` tells whether entries may have its name.
    pub fn retire(&mut self, gone: NodeId, parent: Option<NodeId>, heir: Option<NodeId>, named: bool) {
        for name in self.names.remove(&gone).unwrap_or_default() {
            let is_old = self.links.remove(&name).is_some_and(|link| link.is_old);
            self.lead(name, parent, heir, is_old);
        }
        if named {
            self.lead(gone, parent, heir, false);
        }
    }

    fn lead(&mut self, name: NodeId, parent: Option<NodeId>, heir: Option<NodeId>, is_old: bool) {
        let snapshot_of_it = parent.filter(|parent| *parent > name);
        if let Some(heir) = heir.or(snapshot_of_it) {
            self.insert(name, Link { heir, is_old });
        }
    }

    fn insert(&mut self, name: NodeId, link: Link) {
        self.links.insert(name, link);
        self.names.entry(link.heir).or_default().insert(name);
    }

    /// All that there are now are old.
    pub fn age(&mut self) {
        self.links.values_mut().for_each(|link| link.is_old = true);
    }

    /// Forgets those that are old: no entry has their names any more.
    pub fn forget_old(&mut self) {
        let old = self.links.extract_if(.., |_, link| link.is_old);
        for (name, link) in old {
            if let Some(names) = self.names.get_mut(&link.heir) {
                names.remove(&name);
                if names.is_empty() {
                    self.names.remove(&link.heir);
                }
            }
        }
    }

    /// Returns how many words [`encode`](Self::encode) gives.
    pub fn encoded_words(&self) -> u64 {
        1 + 2 * self.len() as u64
    }

    /// Encodes them for the index stream.
    pub fn encode(&self) -> Vec<u64> {
        let mut words = vec![self.len() as u64];
        for (name, link) in &self.links {
            words.extend([name.0 | if link.is_old { OLD } else { 0 }, link.heir.0]);
        }
        words
    }

    /// Decodes what [`encode`](Self::encode) encoded; `None` when it is cut short.
    pub fn decode(mut word: impl FnMut() -> Option<u64>) -> Option<Self> {
        let mut links = Self::default();
        for _ in 0..word()? {
            let (name, heir) = (word()?, NodeId(word()?));
            let is_old = name & OLD != 0;
            links.insert(NodeId(name & !OLD), Link { heir, is_old });
        }
        Some(links)
    }
}
