//! Garbage on the iSCSI port closes that connection and nothing else.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::agent_process::AgentProcess;
use crate::command::{self, json};
use crate::dice::Dice;
use crate::initiator::attach;

/// How long the target may look at garbage before it hangs up.
const DEADLINE: Duration = Duration::from_secs(30);

/// Sends bytes and waits until the target has hung up. Returns what it answered.
fn hung_up_on(agent: &AgentProcess, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(agent.portal).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    // The target may close while we are still sending.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => answer,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => answer,
        Err(error) => panic!("the connection is not closed: {error}"),
    }
}

/// A login request's header with the lengths given (RFC 7143 11.12).
fn login_header(total_ahs_words: u8, data_bytes: u32) -> Vec<u8> {
    let mut header = vec![0u8; 48];
    header[0] = 0x43;
    header[1] = 0x87;
    header[4] = total_ahs_words;
    header[5..8].copy_from_slice(&data_bytes.to_be_bytes()[1..]);
    header
}

#[test]
fn garbage_closes_its_connection_and_nothing_else() {
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&temporary.path().join("agent"));
    let attached = attach(&agent, command::volume(&agent, "8MiB"));
    let mut session = attached.session();
    session.run("write -P 0x61 0 1M");
    let before = json(&agent, "attachment sessions");

    let mut dice = Dice::new(1);
    let mut samples: Vec<Vec<u8>> = vec![
        Vec::new(),
        vec![0],
        vec![0; 47],
        vec![0; 48],
        vec![0xff; 48],
        vec![0xff; 1 << 20],
        b"GET / HTTP/1.1\r\nHost: storage\r\n\r\n".to_vec(),
        login_header(0, 0),
        login_header(255, 0),
        login_header(0, 0x00ff_ffff),
        [login_header(0, 16), b"no equals sign\0\0".to_vec()].concat(),
        [login_header(0, 16), b"InitiatorName=\0\0".to_vec()].concat(),
        [login_header(0, 8), vec![0xff; 8]].concat(),
    ];
    for _ in 0..50 {
        let mut noise = vec![0; dice.below(600) as usize];
        noise.fill_with(|| dice.below(256) as u8);
        samples.push(noise.clone());
        // The same noise behind a plausible opcode gets further in.
        if let Some(first) = noise.first_mut() {
            *first = [0x40, 0x43, 0x03, 0x01, 0x05, 0x06][dice.below(6) as usize];
        }
        samples.push(noise);
    }
    for sample in &samples {
        hung_up_on(&agent, sample);
    }

    session.run("read -P 0x61 0 1M");
    assert_eq!(
        json(&agent, "attachment sessions"),
        before,
        "the session did not live through it"
    );
    attached.qemu_io(&["read -P 0x61 0 1M"]).unwrap();
}

#[test]
fn hundreds_of_silent_connections_keep_nobody_out() {
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&temporary.path().join("agent"));
    let attached = attach(&agent, command::volume(&agent, "8MiB"));
    let before = agent.resident_bytes();
    let silent: Vec<TcpStream> = (0..300)
        .map_while(|_| TcpStream::connect(agent.portal).ok())
        .collect();
    assert!(silent.len() > 200, "only {} connections", silent.len());
    attached
        .qemu_io(&["write -P 0x62 0 1M", "read -P 0x62 0 1M"])
        .unwrap();
    let grown = agent.resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "300 silent connections cost {grown} bytes");
}
