//! Which parts of a version are mapped.

use quarry_contract::{Extent, IoError};

use crate::PoolError;
use crate::handle::VersionHandle;

/// The most chunks that one call looks up, so that it ends in a while on a large volume.
const MAX_LOOK_UPS: u64 = 1 << 16;

impl VersionHandle {
    /// Tells which chunks of a range are mapped, whoever owns them. Each is looked up by itself: beside writes, the
    /// answer is true of each chunk at some moment of the call. Blocks.
    ///
    /// # Errors
    /// `OutOfRange`, `Misaligned`, `Medium`, `Stopped`, `Closed`.
    pub fn extents(&self, offset: u64, length: u64, most: usize) -> Result<Vec<Extent>, IoError> {
        self.check_range(offset, length)?;
        let chunk_bytes = self.pool.geometry.chunk_bytes;
        let end = offset + length;
        let mut extents = Vec::new();
        let mut at = offset;
        for _ in 0..MAX_LOOK_UPS {
            if at == end {
                break;
            }
            let index = at / chunk_bytes;
            let next = end.min((index + 1) * chunk_bytes);
            let located = self.locate(index).map_err(PoolError::into_io_error)?;
            let run = Extent {
                length: next - at,
                mapped: located.entry.is_mapped(),
            };
            if !Extent::append(&mut extents, run, most) {
                break;
            }
            at = next;
        }
        Ok(extents)
    }
}
