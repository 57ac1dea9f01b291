//! Parts of lists.

/// A part of a list that is ordered by a key: what comes after one, and how much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page<K> {
    /// Begin after this one.
    pub after: Option<K>,
    /// At most so many.
    pub limit: usize,
}

impl<K> Page<K> {
    /// Returns the page that is the whole list.
    pub fn all() -> Self {
        Self {
            after: None,
            limit: usize::MAX,
        }
    }
}
