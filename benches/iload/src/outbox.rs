//! What a session has yet to send: headers and payloads, sent in batches with one system call.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};

use crate::payload::Payload;
use crate::pdu::{Header, padded};

/// Pieces per system call.
const BATCH: usize = 256;

enum Piece {
    /// A header and its digest, or padding, or a data digest.
    Small([u8; 52], u8),
    Data(Payload),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Small(bytes, len) => &bytes[..usize::from(*len)],
            Piece::Data(payload) => payload.bytes(),
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct Outbox {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are sent.
    sent: usize,
}

impl Outbox {
    /// Tells whether everything is sent.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Queues a header.
    pub fn header(&mut self, header: &Header, digest: bool) {
        let crc = digest.then(|| crc32c::crc32c(header).to_le_bytes());
        self.small(header, crc.as_ref().map_or(&[], |crc| &crc[..]));
    }

    /// Queues a header's data.
    pub fn data(&mut self, payload: Payload, digest: bool) {
        const PADDING: [u8; 3] = [0; 3];
        let padding = &PADDING[..padded(payload.len()) - payload.len()];
        let crc = digest.then(|| {
            let crc = crc32c::crc32c(payload.bytes());
            crc32c::crc32c_append(crc, padding).to_le_bytes()
        });
        self.pieces.push_back(Piece::Data(payload));
        let crc = crc.as_ref().map_or(&[][..], |crc| &crc[..]);
        if !padding.is_empty() || !crc.is_empty() {
            self.small(padding, crc);
        }
    }

    fn small(&mut self, first: &[u8], second: &[u8]) {
        let mut bytes = [0; 52];
        let len = first.len() + second.len();
        bytes[..first.len()].copy_from_slice(first);
        bytes[first.len()..len].copy_from_slice(second);
        self.pieces.push_back(Piece::Small(bytes, len as u8));
    }

    /// Sends what the socket takes.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn send(&mut self, socket: &mut impl Write) -> io::Result<()> {
        while !self.pieces.is_empty() {
            let mut slices = [IoSlice::new(&[]); BATCH];
            let mut count = 0;
            for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                *slice = IoSlice::new(piece.bytes());
                count += 1;
            }
            slices[0] = IoSlice::new(&self.pieces[0].bytes()[self.sent..]);
            match socket.write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.retire(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn retire(&mut self, written: usize) {
        self.sent += written;
        while let Some(first) = self.pieces.front() {
            let len = first.bytes().len();
            if self.sent < len {
                return;
            }
            self.sent -= len;
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a few bytes at a time, then nothing.
    struct Narrow {
        taken: Vec<u8>,
        room: usize,
    }

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let len = bytes.len().min(7).min(self.room);
            if len == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.room -= len;
            self.taken.extend_from_slice(&bytes[..len]);
            Ok(len)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn pieces_leave_whole_and_in_order_through_a_narrow_socket() {
        let mut outbox = Outbox::default();
        outbox.header(&[1; 48], true);
        outbox.data(Payload::from(vec![2; 6]), true);
        let mut expected = vec![1; 48];
        expected.extend_from_slice(&crc32c::crc32c(&[1; 48]).to_le_bytes());
        expected.extend_from_slice(&[2, 2, 2, 2, 2, 2, 0, 0]);
        expected.extend_from_slice(&crc32c::crc32c(&[2, 2, 2, 2, 2, 2, 0, 0]).to_le_bytes());
        let mut socket = Narrow {
            taken: Vec::new(),
            room: 0,
        };
        while !outbox.is_empty() {
            socket.room = 10;
            outbox.send(&mut socket).unwrap();
        }
        assert_eq!(socket.taken, expected);
    }
}
