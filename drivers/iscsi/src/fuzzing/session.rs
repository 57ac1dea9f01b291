//! Connections from their first byte on, up to four at a time, and what happens to their unit meanwhile.
//!
//! The input is a sequence of records:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | bits 0 and 1: the connection, opened when it is not; bit 2: the bytes come in two parts; bits 4 to 7: an [`Event`] that happens first |
//! | 2 | how many bytes follow, big endian |
//! | n | what the initiator sends |

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use quarry_contract::{Access, IoError, Target};

use super::answers::Answers;
use super::world::{SIZE_BYTES, World, grant, volume_id};

/// The longest input that is looked at, in bytes.
const MOST_BYTES: usize = 64 << 10;

/// What happens before a record's bytes are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Nothing,
    /// The connection breaks; another takes its place.
    Break,
    /// The initiator says that it sends no more.
    HalfClose,
    /// Requests at the device stay there.
    Hold,
    /// They go on.
    Release,
    /// The next one fails.
    Fail,
    /// The volume grows.
    Grow,
    /// The initiator loses its right, and has it again once that has taken effect.
    Revoke,
    /// It may only read, from now on.
    ReadOnly,
    /// It may write again.
    ReadWrite,
}

impl Event {
    fn of(control: u8) -> Self {
        match control >> 4 {
            1 => Event::Break,
            2 => Event::HalfClose,
            3 => Event::Hold,
            4 => Event::Release,
            5 => Event::Fail,
            6 => Event::Grow,
            7 => Event::Revoke,
            8 => Event::ReadOnly,
            9 => Event::ReadWrite,
            _ => Event::Nothing,
        }
    }
}

/// The initiator's end of a connection.
struct Initiator {
    socket: TcpStream,
    answers: Answers,
    over: bool,
}

impl Initiator {
    /// Reads what is there and tells whether that was anything.
    fn read(&mut self, scratch: &mut [u8]) -> bool {
        if self.over {
            return false;
        }
        match self.socket.read(scratch) {
            Ok(bytes @ 1..) => {
                self.answers.take(&scratch[..bytes]);
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => false,
            _ => {
                self.over = true;
                false
            }
        }
    }
}

/// Takes records as the module says, and tells how many connections have logged in.
pub fn session(input: &[u8]) -> usize {
    let mut world = World::new();
    let mut initiators: [Option<Initiator>; 4] = Default::default();
    let mut scratch = vec![0; 64 << 10];
    let mut input = &input[..input.len().min(MOST_BYTES)];
    let mut logged_in = 0;
    while let Some(([control, high, low], rest)) = input.split_first_chunk::<3>() {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (bytes, rest) = rest.split_at(len);
        input = rest;
        let number = usize::from(control & 0x03);
        let event = Event::of(*control);
        if event == Event::Break {
            logged_in += has_logged_in(&initiators[number]);
        }
        happen(event, &mut world, &mut initiators[number]);
        initiators[number].get_or_insert_with(|| Initiator {
            socket: world.connect(),
            answers: Answers::default(),
            over: false,
        });
        let parts = match control & 0x04 {
            0 => [bytes, &[]],
            _ => bytes.split_at(bytes.len() / 2).into(),
        };
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            // What a full socket does not take is lost, as if the initiator had never said it.
            if let Some(initiator) = &mut initiators[number] {
                let _ = initiator.socket.write(part);
            }
            settle(&mut world, &mut initiators, &mut scratch);
        }
    }
    logged_in += initiators.iter().map(has_logged_in).sum::<usize>();
    drop(initiators);
    world.end();
    logged_in
}

fn has_logged_in(initiator: &Option<Initiator>) -> usize {
    initiator
        .as_ref()
        .map_or(0, |initiator| usize::from(initiator.answers.full_feature()))
}

fn settle(world: &mut World, initiators: &mut [Option<Initiator>; 4], scratch: &mut [u8]) {
    world.settle(|| {
        let live = initiators.iter_mut().flatten();
        live.fold(false, |moved, initiator| moved | initiator.read(scratch))
    });
}

fn happen(event: Event, world: &mut World, initiator: &mut Option<Initiator>) {
    match event {
        Event::Nothing => {}
        Event::Break => *initiator = None,
        Event::HalfClose => {
            if let Some(initiator) = initiator {
                // It may be closed already.
                let _ = initiator.socket.shutdown(Shutdown::Write);
            }
        }
        Event::Hold => world.device.hold(),
        Event::Release => world.device.release(),
        Event::Fail => world.device.fail_next(IoError::NoSpace),
        Event::Grow => {
            world.device.extend(2 * SIZE_BYTES);
            world.call(async |target| {
                target.size_changed(volume_id(1)).await.expect("exported");
            });
        }
        Event::Revoke => world.call(async |target| {
            let volume = volume_id(1);
            target
                .revoke(volume, &super::world::initiator())
                .await
                .expect("nothing fails");
            let sessions = target.sessions(Some(volume)).await.expect("nothing fails");
            assert_eq!(sessions, [], "T4");
            target
                .grant(volume, grant(Access::ReadWrite))
                .await
                .expect("exported");
        }),
        Event::ReadOnly | Event::ReadWrite => {
            let access = match event {
                Event::ReadOnly => Access::ReadOnly,
                _ => Access::ReadWrite,
            };
            world.call(async move |target| {
                target.grant(volume_id(1), grant(access)).await.expect("exported");
            });
        }
    }
}

/// Writes down what an initiator sends, as input for [`session`].
#[derive(Debug, Default)]
pub struct Recorder(Vec<u8>);

impl Recorder {
    /// Adds bytes that were sent at once on a connection, 0 to 3.
    pub fn sent(&mut self, connection: u8, bytes: &[u8]) {
        for part in bytes.chunks(usize::from(u16::MAX)) {
            let len = part.len() as u16;
            self.0.push(connection & 0x03);
            self.0.extend_from_slice(&len.to_be_bytes());
            self.0.extend_from_slice(part);
        }
    }

    /// Returns the input.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}
