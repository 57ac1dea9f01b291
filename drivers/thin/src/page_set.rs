//! Numbers of pages, a bit for each.

/// Pages that may be needed no more.
#[derive(Debug, Default)]
pub(crate) struct PageSet {
    bits: Vec<u64>,
}

impl PageSet {
    /// The first `pages`.
    pub fn first(pages: u64) -> Self {
        Self {
            bits: vec![u64::MAX; pages.div_ceil(64) as usize],
        }
    }

    /// Adds a page.
    pub fn add(&mut self, page: u64) {
        let word = (page / 64) as usize;
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        self.bits[word] |= 1 << (page % 64);
    }

    /// Takes out the first page.
    pub fn take_first(&mut self) -> Option<u64> {
        let word = self.bits.iter().position(|word| *word != 0)?;
        let bit = self.bits[word].trailing_zeros();
        self.bits[word] &= !(1 << bit);
        Some(word as u64 * 64 + u64::from(bit))
    }

    /// Takes a page out; false when it was not in.
    pub fn take(&mut self, page: u64) -> bool {
        let bit = 1 << (page % 64);
        match self.bits.get_mut((page / 64) as usize) {
            Some(word) => std::mem::replace(word, *word & !bit) & bit != 0,
            None => false,
        }
    }

    /// Keeps the pages of which `is_kept` says so; it is asked in order.
    pub fn retain(&mut self, mut is_kept: impl FnMut(u64) -> bool) {
        for (number, word) in self.bits.iter_mut().enumerate() {
            let mut rest = *word;
            while rest != 0 {
                let bit = rest.trailing_zeros();
                rest &= rest - 1;
                if !is_kept(number as u64 * 64 + u64::from(bit)) {
                    *word &= !(1 << bit);
                }
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.bits.iter().all(|word| *word == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_is_taken_once() {
        let mut pages = PageSet::default();
        for page in [70, 3, 64, 3] {
            pages.add(page);
        }
        assert!(pages.take(64) && !pages.take(64) && !pages.take(1000));
        assert_eq!((pages.take_first(), pages.take_first()), (Some(3), Some(70)));
        assert!(pages.is_empty() && pages.take_first().is_none());
    }

    #[test]
    fn what_is_not_kept_goes_and_each_is_asked_for_once() {
        let mut pages = PageSet::first(130);
        let mut asked = Vec::new();
        pages.retain(|page| {
            asked.push(page);
            page == 5 || page == 64
        });
        assert_eq!(asked, (0..192).collect::<Vec<_>>());
        assert_eq!(
            (pages.take_first(), pages.take_first(), pages.take_first()),
            (Some(5), Some(64), None)
        );
    }
}
