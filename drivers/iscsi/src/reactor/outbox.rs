//! What a connection has yet to send.
//!
//! PDUs are queued as pieces and leave in batches with one system call, data straight from the I/O buffers.
//! A buffer that has been sent goes back to the pool, and its bytes off the session's budget.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::sync::Arc;

use quarry_contract::IoBuffer;

use super::BufferPool;
use crate::pdu::{BHS_BYTES, Bhs, padded};

/// Pieces per system call.
const BATCH: usize = 64;

/// What is sent at once, until other connections have had their turn, in bytes: at least so much, if there is.
const FLUSH_BYTES: usize = 512 << 10;

enum Piece {
    /// A header with its digest, or a data digest.
    Head([u8; BHS_BYTES + 4], u8),
    /// Data of ours, padded.
    Small(Vec<u8>),
    /// A buffer's first bytes.
    Whole(IoBuffer, u32),
    /// A part of a buffer that several PDUs carry.
    Part(Arc<IoBuffer>, u32, u32),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Head(bytes, len) => &bytes[..usize::from(*len)],
            Piece::Small(bytes) => bytes,
            Piece::Whole(buffer, len) => &buffer[..*len as usize],
            Piece::Part(buffer, start, end) => &buffer[*start as usize..*end as usize],
        }
    }
}

/// Which digests to add.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digests {
    /// After headers.
    pub header: bool,
    /// After data segments.
    pub data: bool,
}

/// See the module.
#[derive(Default)]
pub struct Outbox {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are sent.
    sent: usize,
    /// Bytes queued that are not of I/O buffers.
    small_bytes: usize,
    /// The socket has taken something since [`Outbox::has_moved`] was asked.
    moved: bool,
    /// Applied to what is queued from now on.
    pub digests: Digests,
}

/// How a flush ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// Everything is sent.
    All,
    /// There is more than goes at once.
    Paused,
    /// The socket takes no more for now.
    Blocked,
}

impl Outbox {
    /// Tells whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Returns how many bytes are queued that are not accounted for by the session's budget.
    pub fn small_bytes(&self) -> usize {
        self.small_bytes
    }

    /// Queues a header.
    pub fn header(&mut self, bhs: &Bhs) {
        let mut bytes = [0; BHS_BYTES + 4];
        bytes[..BHS_BYTES].copy_from_slice(bhs);
        let mut len = BHS_BYTES;
        if self.digests.header {
            bytes[BHS_BYTES..].copy_from_slice(&crc32c::crc32c(bhs).to_le_bytes());
            len += 4;
        }
        self.small_bytes += len;
        self.pieces.push_back(Piece::Head(bytes, len as u8));
    }

    /// Queues a header with data of ours.
    pub fn small(&mut self, bhs: &Bhs, mut data: Vec<u8>) {
        self.header(bhs);
        if data.is_empty() {
            return;
        }
        data.resize(padded(data.len()), 0);
        let crc = self.digests.data.then(|| crc32c::crc32c(&data));
        self.small_bytes += data.len();
        self.pieces.push_back(Piece::Small(data));
        self.data_digest(crc);
    }

    /// Queues a header with the first `len` bytes of a buffer, which is at least as long as `len` padded.
    pub fn whole(&mut self, bhs: &Bhs, buffer: IoBuffer, len: usize) {
        self.header(bhs);
        let crc = self.digests.data.then(|| crc32c::crc32c(&buffer[..padded(len)]));
        self.pieces.push_back(Piece::Whole(buffer, padded(len) as u32));
        self.data_digest(crc);
    }

    /// Queues a header with a part of a buffer.
    pub fn part(&mut self, bhs: &Bhs, buffer: &Arc<IoBuffer>, start: usize, len: usize) {
        self.header(bhs);
        let end = start + padded(len);
        let crc = self.digests.data.then(|| crc32c::crc32c(&buffer[start..end]));
        self.pieces
            .push_back(Piece::Part(Arc::clone(buffer), start as u32, end as u32));
        self.data_digest(crc);
    }

    fn data_digest(&mut self, crc: Option<u32>) {
        if let Some(crc) = crc {
            let mut bytes = [0; BHS_BYTES + 4];
            bytes[..4].copy_from_slice(&crc.to_le_bytes());
            self.small_bytes += 4;
            self.pieces.push_back(Piece::Head(bytes, 4));
        }
    }

    /// Sends what the socket takes. Adds the bytes of buffers that are sent to `released`.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn flush(
        &mut self,
        socket: &mut impl Write,
        buffers: &mut BufferPool,
        released: &mut usize,
    ) -> io::Result<Flushed> {
        let mut total = 0;
        while !self.pieces.is_empty() {
            if total >= FLUSH_BYTES {
                return Ok(Flushed::Paused);
            }
            let mut slices = [IoSlice::new(&[]); BATCH];
            let mut count = 0;
            let mut wanted = 0;
            for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                if total + wanted >= FLUSH_BYTES {
                    break;
                }
                let sent = if count == 0 { self.sent } else { 0 };
                *slice = IoSlice::new(&piece.bytes()[sent..]);
                wanted += slice.len();
                count += 1;
            }
            match socket.write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.consume(written, buffers, released);
                    if written < wanted {
                        return Ok(Flushed::Blocked);
                    }
                    total += written;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Flushed::Blocked),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Flushed::All)
    }

    /// Tells whether the socket has taken something since this was asked last.
    pub fn has_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    fn consume(&mut self, written: usize, buffers: &mut BufferPool, released: &mut usize) {
        self.moved |= written > 0;
        self.sent += written;
        while let Some(first) = self.pieces.front() {
            let len = first.bytes().len();
            if self.sent < len {
                return;
            }
            self.sent -= len;
            if let Some(piece) = self.pieces.pop_front() {
                self.retire(piece, buffers, released);
            }
        }
    }

    fn retire(&mut self, piece: Piece, buffers: &mut BufferPool, released: &mut usize) {
        match piece {
            Piece::Head(_, len) => self.small_bytes -= usize::from(len),
            Piece::Small(data) => self.small_bytes -= data.len(),
            Piece::Whole(buffer, _) => {
                *released += buffer.len();
                buffers.give(buffer);
            }
            Piece::Part(buffer, ..) => {
                if let Ok(buffer) = Arc::try_unwrap(buffer) {
                    *released += buffer.len();
                    buffers.give(buffer);
                }
            }
        }
    }

    /// Forgets everything queued.
    pub fn discard(&mut self, buffers: &mut BufferPool, released: &mut usize) {
        while let Some(piece) = self.pieces.pop_front() {
            self.retire(piece, buffers, released);
        }
        self.sent = 0;
    }
}
