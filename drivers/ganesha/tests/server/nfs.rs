//! A client for tests: NFSv4.0 (RFC 7530) without state, so that every operation stands for itself and any file handle
//! can be sent. Reads and writes use the anonymous state id (RFC 7530 9.1.4.3).

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use quarry_contract::AccessLevel;

/// How long a server may have clients wait after its start.
const GRACE_DEADLINE: Duration = Duration::from_secs(30);

pub const NFS4_OK: u32 = 0;
const NFS4ERR_PERM: u32 = 1;
const NFS4ERR_NOENT: u32 = 2;
pub const NFS4ERR_ACCESS: u32 = 13;
pub const NFS4ERR_ROFS: u32 = 30;
pub const NFS4ERR_STALE: u32 = 70;
pub const NFS4ERR_BADHANDLE: u32 = 10001;
const NFS4ERR_DELAY: u32 = 10008;
const NFS4ERR_GRACE: u32 = 10013;

/// One operation of a compound.
pub enum Operation<'a> {
    PutRoot,
    PutHandle(&'a [u8]),
    Lookup(&'a str),
    GetHandle,
    Read,
    Write(&'a [u8]),
}

/// A connection from one address.
pub struct Client {
    stream: TcpStream,
    next_id: u32,
}

/// The end of a compound: the status of the last operation, and what the last read or handle was.
pub struct Answer {
    pub status: u32,
    pub handle: Vec<u8>,
    pub data: Vec<u8>,
}

/// Returns what leads to a file of an export.
fn path<'a>(export: &'a str, file: &'a str) -> impl Iterator<Item = Operation<'a>> {
    let names = export.split('/').filter(|name| !name.is_empty()).chain([file]);
    [Operation::PutRoot]
        .into_iter()
        .chain(names.map(Operation::Lookup))
}

impl Client {
    /// Connects from a network name space.
    pub fn connect(name_space: PathBuf, server: SocketAddr) -> Self {
        let stream = connect(name_space, server).expect("connecting to the server");
        Self { stream, next_id: 1 }
    }

    /// Finds out what can be done with a file: nothing, read it, or write to it too (its own contents).
    pub fn attempt(&mut self, export: &str, file: &str) -> Option<AccessLevel> {
        let read = self.call(path(export, file).chain([Operation::GetHandle, Operation::Read]));
        match read.status {
            NFS4_OK => {}
            // Linux gives a client that may use no export at all not even a root.
            NFS4ERR_NOENT | NFS4ERR_ACCESS | NFS4ERR_PERM => return None,
            other => panic!("reading {export}/{file}: status {other}"),
        }
        match self.write(&read.handle, &read.data) {
            NFS4_OK => Some(AccessLevel::ReadWrite),
            NFS4ERR_ROFS => Some(AccessLevel::ReadOnly),
            other => panic!("writing {export}/{file}: status {other}"),
        }
    }

    /// Returns the handle of a file.
    pub fn handle(&mut self, export: &str, file: &str) -> Vec<u8> {
        let answer = self.call(path(export, file).chain([Operation::GetHandle]));
        assert_eq!(answer.status, NFS4_OK, "the handle of {export}/{file}");
        answer.handle
    }

    /// Reads by a handle; the status when it fails.
    pub fn read(&mut self, handle: &[u8]) -> Result<Vec<u8>, u32> {
        let answer = self.call([Operation::PutHandle(handle), Operation::Read]);
        match answer.status {
            NFS4_OK => Ok(answer.data),
            status => Err(status),
        }
    }

    /// Writes by a handle, at the beginning; returns the status.
    pub fn write(&mut self, handle: &[u8], data: &[u8]) -> u32 {
        self.call([Operation::PutHandle(handle), Operation::Write(data)])
            .status
    }

    /// Makes a call, as often as the server asks to come again.
    pub fn call<'a>(&mut self, operations: impl IntoIterator<Item = Operation<'a>>) -> Answer {
        let operations: Vec<Operation<'a>> = operations.into_iter().collect();
        let deadline = Instant::now() + GRACE_DEADLINE;
        loop {
            let answer = self.call_once(&operations);
            match answer.status {
                NFS4ERR_DELAY | NFS4ERR_GRACE if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(200));
                }
                _ => return answer,
            }
        }
    }

    fn call_once(&mut self, operations: &[Operation<'_>]) -> Answer {
        self.next_id += 1;
        // COMPOUND of NFS version 4.
        let mut call = begin_call(self.next_id, 100_003, 4, 1);
        call.opaque(b"");
        call.word(0);
        call.word(operations.len() as u32);
        for operation in operations {
            match operation {
                Operation::PutRoot => call.word(24),
                Operation::PutHandle(handle) => {
                    call.word(22);
                    call.opaque(handle);
                }
                Operation::Lookup(name) => {
                    call.word(15);
                    call.opaque(name.as_bytes());
                }
                Operation::GetHandle => call.word(10),
                Operation::Read => {
                    call.word(25);
                    call.0.extend([0; 16 + 8]);
                    call.word(4096);
                }
                Operation::Write(data) => {
                    call.word(38);
                    call.0.extend([0; 16 + 8]);
                    // FILE_SYNC4
                    call.word(2);
                    call.opaque(data);
                }
            }
        }
        send(&mut self.stream, &call.0);
        let mut reply = Decoder(receive(&mut self.stream));
        let header: Vec<u32> = (0..3).map(|_| reply.word()).collect();
        if header[2] == 1 {
            // Denied, for who it is (RFC 5531, 9): Linux says so to a client that no export names.
            assert_eq!(reply.word(), 1, "AUTH_ERROR");
            return Answer {
                status: NFS4ERR_ACCESS,
                handle: Vec::new(),
                data: Vec::new(),
            };
        }
        let verified: Vec<u32> = (0..3).map(|_| reply.word()).collect();
        // Reply, accepted, no verifier, success.
        assert_eq!((header[1], header[2]), (1, 0), "the RPC reply");
        assert_eq!(verified, [0, 0, 0], "the RPC reply");
        let mut answer = Answer {
            status: reply.word(),
            handle: Vec::new(),
            data: Vec::new(),
        };
        reply.opaque();
        for _ in 0..reply.word() {
            let (operation, status) = (reply.word(), reply.word());
            match operation {
                _ if status != NFS4_OK => break,
                10 => answer.handle = reply.opaque(),
                25 => {
                    reply.word();
                    answer.data = reply.opaque();
                }
                // Count, stability and verifier.
                38 => drop(reply.take(16)),
                _ => {}
            }
        }
        answer
    }
}

/// Connects from a network name space.
pub fn connect(name_space: PathBuf, server: SocketAddr) -> io::Result<TcpStream> {
    // The thread stays in the name space, and so does the socket.
    let connected = std::thread::spawn(move || {
        let name_space = File::open(name_space).unwrap();
        setns(name_space, CloneFlags::CLONE_NEWNET).unwrap();
        TcpStream::connect_timeout(&server, Duration::from_secs(5))
    });
    let stream = connected.join().unwrap()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    Ok(stream)
}

/// Sends one record (RFC 5531, 11).
pub fn send(stream: &mut TcpStream, call: &[u8]) {
    let mut record = (0x8000_0000 | call.len() as u32).to_be_bytes().to_vec();
    record.extend(call);
    stream.write_all(&record).unwrap();
}

/// Receives one record.
pub fn receive(stream: &mut TcpStream) -> Vec<u8> {
    let mut record = Vec::new();
    loop {
        let mut header = [0; 4];
        stream.read_exact(&mut header).unwrap();
        let header = u32::from_be_bytes(header);
        let mut fragment = vec![0; (header & 0x7fff_ffff) as usize];
        stream.read_exact(&mut fragment).unwrap();
        record.extend(fragment);
        if header & 0x8000_0000 != 0 {
            return record;
        }
    }
}

/// XDR (RFC 4506).
#[derive(Default)]
pub struct Encoder(pub Vec<u8>);

impl Encoder {
    pub fn word(&mut self, word: u32) {
        self.0.extend(word.to_be_bytes());
    }

    pub fn opaque(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u32);
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// Begins a call as root (RFC 5531): version 2, AUTH_SYS, no verifier. Its arguments follow.
pub fn begin_call(id: u32, program: u32, version: u32, procedure: u32) -> Encoder {
    let mut call = Encoder::default();
    for word in [id, 0, 2, program, version, procedure, 1] {
        call.word(word);
    }
    let mut credentials = Encoder::default();
    credentials.word(0);
    credentials.opaque(b"test");
    for word in [0, 0, 0] {
        credentials.word(word);
    }
    call.opaque(&credentials.0);
    call.word(0);
    call.word(0);
    call
}

/// XDR (RFC 4506).
pub struct Decoder(pub Vec<u8>);

impl Decoder {
    pub fn take(&mut self, length: usize) -> Vec<u8> {
        let rest = self.0.split_off(length);
        std::mem::replace(&mut self.0, rest)
    }

    pub fn word(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    pub fn opaque(&mut self) -> Vec<u8> {
        let length = self.word() as usize;
        let mut bytes = self.take(length.next_multiple_of(4));
        bytes.truncate(length);
        bytes
    }
}
