//! How control calls and other reactors talk to a reactor: a message and a wake-up.

use std::io;
use std::net::TcpStream;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nix::sys::eventfd::{EfdFlags, EventFd};
use quarry_contract::Portal;

use crate::exports::Export;
use crate::limiter::Place;
use crate::pass::Pass;
use crate::range_locks::Ticket;

/// What a reactor is asked to do. A pass is dropped when it is done.
pub enum Message {
    /// Begin to take connections from the listeners.
    Accept,
    /// Take a new connection.
    Adopt(TcpStream, Portal),
    /// Cut a session; done when nothing of it is at the device and its queue is dropped.
    CloseSession {
        /// The connection's slot.
        index: u32,
        /// Which connection in the slot.
        serial: u64,
        /// Dropped when done.
        pass: Pass,
    },
    /// End all tasks of a session, which goes on.
    AbortTasks {
        /// The connection's slot.
        index: u32,
        /// Which connection in the slot.
        serial: u64,
        /// Dropped when the tasks are gone.
        pass: Pass,
    },
    /// The tasks of other sessions, which a task management function waits for, are gone.
    OthersEnded {
        /// The connection's slot.
        index: u32,
        /// Which connection in the slot.
        serial: u64,
        /// The function's number in its session.
        ending: u32,
    },
    /// Something that a task waited for is over.
    Awaited {
        /// The connection's slot.
        index: u32,
        /// Which connection in the slot.
        serial: u64,
        /// The task's slot in its session.
        slot: u16,
    },
    /// Let what a session has at the device for some ranges end.
    Drain {
        /// The connection's slot.
        index: u32,
        /// Which connection in the slot.
        serial: u64,
        /// In bytes of the unit.
        ranges: Arc<[Range<u64>]>,
        /// Dropped when it has ended.
        pass: Pass,
    },
    /// It is a task's turn to have its ranges.
    Granted {
        /// The connection's slot.
        index: u32,
        /// Which connection in the slot.
        serial: u64,
        /// The task's slot in its session.
        slot: u16,
        /// Whose turn it is, should the slot be another task's by now.
        ticket: Ticket,
    },
    /// It is a task's turn under the volume's limits.
    Paced {
        /// The connection's slot.
        index: u32,
        /// Which connection in the slot.
        serial: u64,
        /// The task's slot in its session.
        slot: u16,
        /// Whose turn it is, should the slot be another task's by now.
        place: Place,
    },
    /// Wake an export's limiter when its time has come.
    Pace {
        /// The export.
        export: Arc<Export>,
        /// When.
        at: Instant,
    },
    /// The old session that a login waits for is gone.
    OldSessionEnded {
        /// The connection's slot.
        index: u32,
        /// Which connection in the slot.
        serial: u64,
    },
    /// Close everything and end the thread.
    Stop(Pass, Farewell),
}

/// How sessions end when the target stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// Their initiators are asked to log out, and have some time to do so.
    Asked,
    /// What is under way is answered.
    Drained,
    /// The same, and they are told to come back at once: another process takes over.
    Succeeded,
}

impl Farewell {
    /// How long an initiator is told to wait before it comes back, in seconds.
    pub fn wait_seconds(self) -> u16 {
        match self {
            Farewell::Asked | Farewell::Drained => 1,
            Farewell::Succeeded => 0,
        }
    }
}

/// Where a reactor's messages come out.
pub struct Inbox {
    /// The messages.
    pub messages: Receiver<Message>,
    /// Readable when there are some.
    pub wake: Arc<EventFd>,
}

/// Where a reactor's messages go in.
#[derive(Clone)]
pub struct Mailbox {
    sender: Arc<Mutex<Sender<Message>>>,
    wake: Arc<EventFd>,
}

impl Mailbox {
    /// Makes a mailbox: a channel joined with an event descriptor.
    ///
    /// # Errors
    /// When the system refuses the descriptor.
    pub fn open() -> io::Result<(Self, Inbox)> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let wake = Arc::new(EventFd::from_flags(flags)?);
        let (sender, messages) = channel();
        let mailbox = Self {
            sender: Arc::new(Mutex::new(sender)),
            wake: Arc::clone(&wake),
        };
        Ok((mailbox, Inbox { messages, wake }))
    }

    /// Puts a message in. When the reactor has ended the message is dropped, and its pass with it.
    pub fn send(&self, message: Message) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if sender.send(message).is_ok() {
            // An event counter that is full is a wake-up already.
            let _ = self.wake.write(1);
        }
    }
}
