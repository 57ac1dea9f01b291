//! Reads and writes metadata blocks.

use quarry_contract::IoBuffer;

use crate::format::{BLOCK, BLOCK_BYTES, PagePointer};
use crate::{PoolDevice, PoolError};

/// Contiguous pages are written together up to this many.
const RUN_PAGES: usize = 64;

/// Reads one block.
pub(crate) fn read_block(
    device: &dyn PoolDevice,
    offset: u64,
    what: &str,
) -> Result<[u8; BLOCK_BYTES], PoolError> {
    let mut buffer = IoBuffer::zeroed(BLOCK_BYTES);
    device
        .read_at(offset, &mut buffer)
        .map_err(PoolError::device(format!("reading {what} at byte {offset}")))?;
    let mut block = [0; BLOCK_BYTES];
    block.copy_from_slice(&buffer);
    Ok(block)
}

/// Reads a page: the first copy, or the second where the first is unreadable or damaged.
pub(crate) fn read_page(
    device: &dyn PoolDevice,
    pointer: PagePointer,
    what: &str,
) -> Result<[u8; BLOCK_BYTES], PoolError> {
    let mut problems = Vec::new();
    for number in [pointer.first, pointer.second] {
        match read_copy(device, number, pointer.crc32c, what) {
            Ok(page) => {
                if let Some(problem) = problems.first() {
                    tracing::warn!(page = pointer.first, problem, "read the second copy of a {what}");
                }
                return Ok(page);
            }
            Err(problem) => problems.push(problem),
        }
    }
    Err(PoolError::damaged(
        format!("{what} in pages {} and {}", pointer.first, pointer.second),
        problems.join("; "),
    ))
}

/// Reads one copy of a page and verifies it; says what is wrong with it.
pub(crate) fn read_copy(
    device: &dyn PoolDevice,
    number: u64,
    crc32c: u32,
    what: &str,
) -> Result<[u8; BLOCK_BYTES], String> {
    let offset = number.checked_mul(BLOCK).ok_or("the page number is impossible")?;
    let page = read_block(device, offset, what).map_err(|error| match error {
        PoolError::Device { action, source } => format!("{action}: {source}"),
        other => other.to_string(),
    })?;
    let found = crc32c::crc32c(&page);
    if found != crc32c {
        return Err(format!("page {number} has crc32c {found:08x}, not {crc32c:08x}"));
    }
    Ok(page)
}

/// Writes pages, neighbours in one go.
pub(crate) struct PageWriter<'a> {
    device: &'a dyn PoolDevice,
    /// One run for each copy class: the two interleave.
    runs: [Run; 2],
}

#[derive(Default)]
struct Run {
    first: u64,
    bytes: Vec<u8>,
}

impl<'a> PageWriter<'a> {
    pub fn new(device: &'a dyn PoolDevice) -> Self {
        Self {
            device,
            runs: Default::default(),
        }
    }

    /// Writes both copies of a page, now or by [`finish`](Self::finish), and returns the pointer to it.
    pub fn write(
        &mut self,
        place: (u64, u64),
        birth: u32,
        page: &[u8; BLOCK_BYTES],
    ) -> Result<PagePointer, PoolError> {
        for (class, number) in [place.0, place.1].into_iter().enumerate() {
            let run = &self.runs[class];
            let next = run.first + (run.bytes.len() / BLOCK_BYTES) as u64;
            if next != number || run.bytes.len() >= RUN_PAGES * BLOCK_BYTES {
                self.write_run(class)?;
                self.runs[class].first = number;
            }
            self.runs[class].bytes.extend_from_slice(page);
        }
        Ok(PagePointer {
            first: place.0,
            second: place.1,
            birth,
            crc32c: crc32c::crc32c(page),
        })
    }

    fn write_run(&mut self, class: usize) -> Result<(), PoolError> {
        let run = std::mem::take(&mut self.runs[class]);
        if run.bytes.is_empty() {
            return Ok(());
        }
        let offset = run.first * BLOCK;
        self.device
            .write_at(offset, &IoBuffer::from_slice(&run.bytes))
            .map_err(PoolError::device(format!("writing map pages at byte {offset}")))
    }

    /// Writes what is left.
    pub fn finish(mut self) -> Result<(), PoolError> {
        (0..self.runs.len()).try_for_each(|class| self.write_run(class))
    }
}
