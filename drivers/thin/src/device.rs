//! What the engine needs of the medium under a pool.
//!
//! One small trait, so that the real file, the fallback and the simulated device that loses, tears and reorders
//! are the same to the engine. The methods block; the I/O that must not block goes around them through
//! [`PoolDevice::direct_file`].

use std::fs::File;
use std::io;

use quarry_contract::MediumId;

/// The medium of a pool: a file or a block device, or a simulation of one.
///
/// Contract
/// - D1: a completed `flush` makes everything that completed before it was called durable. Without it, each
///   aligned 4 KiB block of what was written may later be found old, new, or torn at 512-byte sectors, in any
///   order.
/// - D2: a failed write leaves each 512-byte sector it covers old or new; a failed flush leaves everything
///   since the last good flush unknown, for ever (the kernel may have dropped the pages).
/// - D3: offsets and lengths are multiples of 4096, except where `read_at`/`write_at` are called by
///   [`direct_file`](Self::direct_file)'s user under its own rules.
pub trait PoolDevice: Send + Sync + 'static {
    /// Returns the size in bytes, as of now.
    ///
    /// # Errors
    /// When the medium is gone.
    fn size_bytes(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset`, in bytes. Sparse ranges read zero.
    ///
    /// # Errors
    /// `UnexpectedEof` beyond the end; what the medium says.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data` at `offset`, in bytes.
    ///
    /// # Errors
    /// [`is_out_of_space`] when a sparse file cannot grow into its host; what the medium says.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes a range read zero, keeping or dropping its space.
    ///
    /// # Errors
    /// What the medium says.
    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Tells whether writes may fail for lack of space on what the medium is on ([`is_out_of_space`]) where nothing was written before,
    /// or was discarded: it is a file with holes.
    fn may_run_out(&self) -> bool {
        false
    }

    /// Takes the space that a range needs, so that writes there do not fail for lack of any until it is discarded. What the range
    /// reads does not change.
    ///
    /// # Errors
    /// [`is_out_of_space`], after which a part may have its space; `Unsupported` when the medium cannot; what the medium says.
    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        let _ = (offset, length);
        Ok(())
    }

    /// Tells the medium that a range is not needed. What it reads afterwards is undefined. A hint: a medium
    /// that cannot do it answers `Ok`.
    ///
    /// # Errors
    /// What the medium says.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Tells whether a range reads zero, where the medium knows that at once: it is in a hole. False says nothing. The answer
    /// holds, across a power cut after the next flush too, until something is written there.
    fn is_hole(&self, offset: u64, length: u64) -> bool {
        let _ = (offset, length);
        false
    }

    /// Returns what the medium is on, so that pools that share it can be told from those that do not.
    fn medium(&self) -> MediumId {
        MediumId::default()
    }

    /// Makes completed writes durable (D1).
    ///
    /// # Errors
    /// What the medium says; the pool then stops (D2).
    fn flush(&self) -> io::Result<()>;

    /// Checks what [`flush`](Self::flush) checks first, for who flushes the [file](Self::direct_file) in another way. Does
    /// not block.
    ///
    /// # Errors
    /// Why a flush would fail.
    fn check_before_flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Makes the medium larger where it is a file of less than `least_bytes`, durably, takes notice of how large it has
    /// become, and returns that, in bytes.
    ///
    /// # Errors
    /// What the medium says.
    fn grow(&self, least_bytes: u64) -> io::Result<u64> {
        let _ = least_bytes;
        self.size_bytes()
    }

    /// Returns the open file for asynchronous direct I/O, or `None` where all I/O has to go through this trait.
    fn direct_file(&self) -> Option<DirectFile<'_>>;
}

/// Tells whether an error says that what the medium is on, a file system, has no space, or none for the pool's owner.
pub(crate) fn is_out_of_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// How a queue best gets I/O on a file done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submission {
    /// Through an io_uring of its own.
    Ring,
    /// By reading and writing at once: the medium is memory, and handing a copy to another thread costs more
    /// than the copy.
    Inline,
}

/// A file that asynchronous I/O may use beside the [`PoolDevice`] it comes from.
#[derive(Debug, Clone, Copy)]
pub struct DirectFile<'a> {
    /// The file, open for reading and writing.
    pub file: &'a File,
    /// What offsets, lengths and memory addresses must be multiples of, in bytes; 1 for buffered files.
    pub alignment_bytes: u32,
    /// How to get I/O done.
    pub submission: Submission,
}
