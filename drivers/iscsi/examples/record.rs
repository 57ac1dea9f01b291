//! Makes seeds for the fuzz targets of what real initiators send.
//!
//!     record FOLDER NAME COMMAND [ARGUMENT...]
//!
//! Runs the command, in whose arguments URL, PORTAL, TARGET and INITIATOR stand for what it needs to find volume 1 (a
//! name that ends in -3 is volume 3), and writes FOLDER/session/NAME, unless that gets too long, and, of the same traffic, the logins and the
//! SCSI commands to FOLDER/login, FOLDER/cdb and FOLDER/pdu. See `quarry_iscsi::fuzzing` for what is in them.
//! Needs the feature `fuzzing`.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};

use quarry_contract::Target;
use quarry_contract::conformance::block_on;
use quarry_iscsi::fuzzing::{INITIATOR, Recorder, serve, volume};

/// Longer recordings make poor seeds as a whole.
const MOST_BYTES: usize = 24 << 10;

/// What was sent on each connection, and all of it in the order it came.
#[derive(Default)]
struct Tape {
    together: Recorder,
    connections: Vec<Vec<u8>>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, name, program, arguments @ ..] = &arguments[..] else {
        eprintln!("usage: record FOLDER NAME COMMAND [ARGUMENT...]");
        return ExitCode::from(2);
    };
    let target = serve().expect("the target starts");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let portal = listener.local_addr().expect("it is bound");
    let tape = Arc::new(Mutex::new(Tape::default()));
    let (tapes, address) = (Arc::clone(&tape), target.portals()[0].0);
    std::thread::spawn(move || listen(&listener, address, &tapes));

    let iqn = target
        .address_of(volume(if name.ends_with("-3") { 3 } else { 1 }))
        .target_name;
    let url = format!("iscsi://user-1%secret-secret-16@{portal}/{iqn}/0");
    let status = Command::new(program)
        .args(arguments.iter().map(|argument| {
            argument
                .replace("URL", &url)
                .replace("PORTAL", &portal.to_string())
                .replace("TARGET", &iqn)
                .replace("INITIATOR", INITIATOR)
        }))
        .status()
        .expect("the command can be run");
    block_on(target.shutdown());

    let tape = std::mem::take(&mut *tape.lock().expect("no thread has panicked"));
    let session = tape.together.into_bytes();
    println!(
        "{name}: {status}, {} connections, {} bytes",
        tape.connections.len(),
        session.len()
    );
    let folder = Path::new(folder);
    for connection in &tape.connections {
        split(folder, name, connection);
    }
    if !(1..=MOST_BYTES).contains(&session.len()) {
        return ExitCode::FAILURE;
    }
    write(&folder.join("session"), name, &session);
    ExitCode::SUCCESS
}

/// Takes connections and passes them on to the target.
fn listen(listener: &TcpListener, address: SocketAddr, tape: &Arc<Mutex<Tape>>) {
    for initiator in listener.incoming() {
        let mut initiator = initiator.expect("a connection");
        let mut target = TcpStream::connect(address).expect("the target listens");
        for socket in [&initiator, &target] {
            socket.set_nodelay(true).expect("a socket");
        }
        let (mut back, mut to) = (
            target.try_clone().expect("a socket"),
            initiator.try_clone().expect("a socket"),
        );
        std::thread::spawn(move || {
            // Either may end first.
            let _ = std::io::copy(&mut back, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
        let number = {
            let mut tape = tape.lock().expect("no thread has panicked");
            tape.connections.push(Vec::new());
            tape.connections.len() - 1
        };
        let tape = Arc::clone(tape);
        std::thread::spawn(move || {
            let mut bytes = vec![0; 64 << 10];
            while let Ok(len @ 1..) = initiator.read(&mut bytes) {
                let mut tape = tape.lock().expect("no thread has panicked");
                tape.together.sent(number as u8, &bytes[..len]);
                tape.connections[number].extend_from_slice(&bytes[..len]);
                if target.write_all(&bytes[..len]).is_err() {
                    break;
                }
            }
            let _ = target.shutdown(Shutdown::Write);
        });
    }
}

/// Takes the PDUs of a connection apart, unless they carry digests.
fn split(folder: &Path, name: &str, mut bytes: &[u8]) {
    let mut login = Vec::new();
    while bytes.len() >= 48 {
        let data_bytes = u32::from_be_bytes([0, bytes[5], bytes[6], bytes[7]]) as usize;
        let len = 48 + data_bytes.next_multiple_of(4);
        let Some(pdu) = bytes.get(..len) else { return };
        bytes = &bytes[len..];
        match pdu[0] & 0x3f {
            0x01 => {
                let (cdb, data) = (&pdu[32..48], &pdu[48..48 + data_bytes]);
                // Data of a write says nothing to who parses parameter lists.
                let list = if data.len() <= 512 { data } else { &[] };
                let seed = [cdb, list].concat();
                write(
                    &folder.join("cdb"),
                    &format!("{:02x}-{:02x}", cdb[0], cdb[1]),
                    &seed,
                );
            }
            0x03 => {
                login.extend_from_slice(pdu);
                // T, and the next stage is full feature: digests may follow.
                if pdu[1] & 0x83 == 0x83 {
                    write(&folder.join("login"), name, &login);
                    if login.windows(13).any(|window| window == b"Digest=CRC32C") {
                        return;
                    }
                }
            }
            opcode => write(&folder.join("pdu"), &format!("{opcode:02x}"), pdu),
        }
        if pdu[0] & 0x3f == 0x03 {
            write(&folder.join("pdu"), &format!("login-{:02x}", pdu[1]), pdu);
        }
    }
}

fn write(folder: &Path, name: &str, bytes: &[u8]) {
    std::fs::create_dir_all(folder).expect("a folder");
    std::fs::write(folder.join(name), bytes).expect("a file");
}
