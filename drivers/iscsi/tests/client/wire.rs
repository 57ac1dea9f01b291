//! A small initiator that does what it is told, right or wrong. It knows the wire from the standard, not from
//! the crate under test.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use md5::{Digest, Md5};

/// How long anything may take that is expected to happen.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Long enough for an answer on loopback that is not to come, short enough for a test.
pub const SILENCE: Duration = Duration::from_millis(150);

#[derive(Debug, Clone)]
pub struct Pdu {
    pub header: [u8; 48],
    pub data: Vec<u8>,
}

impl Pdu {
    pub fn new(opcode: u8, flags: u8) -> Self {
        let mut header = [0; 48];
        header[0] = opcode;
        header[1] = flags;
        Self {
            header,
            data: Vec::new(),
        }
    }

    pub fn opcode(&self) -> u8 {
        self.header[0] & 0x3f
    }

    pub fn be32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.header[at..at + 4].try_into().unwrap())
    }

    pub fn put32(mut self, at: usize, value: u32) -> Self {
        self.header[at..at + 4].copy_from_slice(&value.to_be_bytes());
        self
    }

    pub fn with_data(mut self, data: &[u8]) -> Self {
        self.data = data.to_vec();
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header.to_vec();
        bytes[5..8].copy_from_slice(&(self.data.len() as u32).to_be_bytes()[1..]);
        bytes.extend_from_slice(&self.data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
}

/// Who to log in as, and to what.
#[derive(Debug, Clone)]
pub struct Login {
    pub initiator: String,
    pub target: String,
    pub user: String,
    pub secret: String,
    pub isid: [u8; 6],
    /// Operational keys.
    pub keys: Vec<(&'static str, String)>,
}

impl Login {
    /// The keys of an initiator that asks for immediate and unsolicited data.
    pub fn usual_keys() -> Vec<(&'static str, String)> {
        vec![
            ("InitialR2T", "No".into()),
            ("ImmediateData", "Yes".into()),
            ("MaxRecvDataSegmentLength", "262144".into()),
            ("MaxBurstLength", "262144".into()),
            ("FirstBurstLength", "65536".into()),
        ]
    }

    pub fn key(mut self, key: &'static str, value: &str) -> Self {
        self.keys.retain(|(known, _)| *known != key);
        self.keys.push((key, value.to_owned()));
        self
    }
}

pub struct Client {
    pub socket: TcpStream,
    pub cmd_sn: u32,
    pub exp_stat_sn: u32,
    pub next_itt: u32,
    pub tsih: u16,
}

/// The end of a SCSI command.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub status: u8,
    /// Sense key, additional sense code and qualifier.
    pub sense: Option<(u8, u8, u8)>,
    /// The sense data's INFORMATION field, when it is valid.
    pub information: Option<u32>,
    pub data: Vec<u8>,
    /// Positive: underflow.
    pub residual: i64,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).expect("a connection");
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.set_nodelay(true).unwrap();
        Self {
            socket,
            cmd_sn: 100,
            exp_stat_sn: 0,
            next_itt: 1,
            tsih: 0,
        }
    }

    /// Logs in, and clears the unit attention of a new nexus.
    pub fn log_in_at(address: SocketAddr, login: &Login) -> Result<Self, u16> {
        let mut client = Self::connect(address);
        client.authenticate(login)?;
        let keys: Vec<(&str, &str)> = login.keys.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let last = client.login_step(login, 0x87, &keys)?;
        assert_eq!(last.header[1] & 0x83, 0x83, "the login is complete");
        let outcome = client.command(&[0x00], 0, &[]);
        assert_eq!(
            outcome.sense,
            Some((6, 0x29, 0)),
            "a new nexus has a unit attention"
        );
        Ok(client)
    }

    /// Goes through the security stage.
    pub fn authenticate(&mut self, login: &Login) -> Result<(), u16> {
        let challenge = self.challenge(login)?;
        self.answer(login, &challenge)
    }

    /// Goes as far as the challenge, and returns it.
    pub fn challenge(&mut self, login: &Login) -> Result<Pdu, u16> {
        let hello = [
            ("InitiatorName", login.initiator.as_str()),
            ("TargetName", &login.target),
            ("SessionType", "Normal"),
            ("AuthMethod", "CHAP"),
        ];
        self.login_step(login, 0x00, &hello)?;
        self.login_step(login, 0x00, &[("CHAP_A", "5")])
    }

    /// Answers a challenge.
    pub fn answer(&mut self, login: &Login, challenge: &Pdu) -> Result<(), u16> {
        let keys = pairs(&challenge.data);
        let value = |key: &str| {
            let pair = keys.iter().find(|(k, _)| k == key);
            pair.expect("the challenge has its keys").1.clone()
        };
        let mut md5 = Md5::new();
        md5.update([value("CHAP_I").parse::<u8>().unwrap()]);
        md5.update(&login.secret);
        md5.update(hex::decode(&value("CHAP_C")[2..]).unwrap());
        let response = format!("0x{}", hex::encode(md5.finalize()));
        self.login_step(
            login,
            0x81,
            &[("CHAP_N", login.user.as_str()), ("CHAP_R", &response)],
        )?;
        Ok(())
    }

    /// Sends one login request; an answer with a status other than success is the error.
    pub fn login_step(&mut self, login: &Login, flags: u8, keys: &[(&str, &str)]) -> Result<Pdu, u16> {
        let mut text = Vec::new();
        for (key, value) in keys {
            text.extend_from_slice(format!("{key}={value}\0").as_bytes());
        }
        let mut request = Pdu::new(0x43, flags)
            .put32(16, 0x1000)
            .put32(24, self.cmd_sn)
            .put32(28, self.exp_stat_sn)
            .with_data(&text);
        request.header[8..14].copy_from_slice(&login.isid);
        self.send(&request);
        let answer = self.receive().expect("a login response");
        assert_eq!(answer.opcode(), 0x23);
        match u16::from_be_bytes([answer.header[36], answer.header[37]]) {
            0 => {
                self.tsih = u16::from_be_bytes([answer.header[14], answer.header[15]]);
                Ok(answer)
            }
            status => Err(status),
        }
    }

    pub fn send(&mut self, pdu: &Pdu) {
        self.socket.write_all(&pdu.bytes()).expect("the request is sent");
    }

    pub fn receive(&mut self) -> io::Result<Pdu> {
        let mut header = [0; 48];
        self.socket.read_exact(&mut header)?;
        let len = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        let mut data = vec![0; len.next_multiple_of(4)];
        self.socket.read_exact(&mut data)?;
        data.truncate(len);
        let pdu = Pdu { header, data };
        let numbered = match pdu.opcode() {
            0x31 => false,
            0x25 => header[1] & 1 != 0,
            0x20 => pdu.be32(16) != 0xffff_ffff,
            _ => true,
        };
        if numbered {
            self.exp_stat_sn = pdu.be32(24).wrapping_add(1);
        }
        Ok(pdu)
    }

    /// Asserts that nothing comes for a while.
    pub fn expect_silence(&mut self) {
        self.socket.set_read_timeout(Some(SILENCE)).unwrap();
        let mut byte = [0];
        let error = self
            .socket
            .read(&mut byte)
            .expect_err("nothing is to come, and the connection is to stay");
        assert!(
            matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
            "{error}"
        );
        self.socket.set_read_timeout(Some(DEADLINE)).unwrap();
    }

    /// Asserts that the target closes the connection, after whatever it still sends.
    pub fn expect_close(&mut self) {
        let mut rest = [0; 4096];
        loop {
            match self.socket.read(&mut rest) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
                Err(error) => panic!("the connection stays open: {error}"),
            }
        }
    }

    /// Makes a command PDU and counts it. `expected` is the transfer length, read unless there is data.
    pub fn command_pdu(&mut self, cdb: &[u8], expected: u32, flags: u8, data: &[u8]) -> Pdu {
        let itt = self.next_itt;
        self.next_itt += 1;
        let mut pdu = Pdu::new(0x01, flags)
            .put32(16, itt)
            .put32(20, expected)
            .put32(24, self.cmd_sn)
            .put32(28, self.exp_stat_sn)
            .with_data(data);
        pdu.header[32..32 + cdb.len()].copy_from_slice(cdb);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        pdu
    }

    /// Sends a command, its data as immediate data, and waits for its end.
    pub fn command(&mut self, cdb: &[u8], expected: u32, data: &[u8]) -> Outcome {
        let flags = if data.is_empty() { 0x80 | 0x40 } else { 0x80 | 0x20 };
        let pdu = self.command_pdu(cdb, expected, flags | 0x01, data);
        self.send(&pdu);
        self.outcome(pdu.be32(16))
    }

    /// Collects what belongs to a command until its status.
    pub fn outcome(&mut self, itt: u32) -> Outcome {
        let mut data = Vec::new();
        loop {
            let pdu = self.receive().expect("the end of a command");
            if pdu.opcode() == 0x20 {
                continue;
            }
            assert_eq!(pdu.be32(16), itt, "{pdu:x?}");
            let count = i64::from(pdu.be32(44));
            let residual = match pdu.header[1] & 0x06 {
                0x02 => count,
                0x04 => -count,
                _ => 0,
            };
            match pdu.opcode() {
                0x25 => {
                    assert_eq!(pdu.be32(40) as usize, data.len(), "Data-In is in order");
                    data.extend_from_slice(&pdu.data);
                    if pdu.header[1] & 0x01 != 0 {
                        return Outcome {
                            status: pdu.header[3],
                            sense: None,
                            information: None,
                            data,
                            residual,
                        };
                    }
                }
                0x21 => {
                    let sense = (pdu.data.len() >= 16).then(|| (pdu.data[4], pdu.data[14], pdu.data[15]));
                    let information = (sense.is_some() && pdu.data[2] & 0x80 != 0)
                        .then(|| u32::from_be_bytes(pdu.data[5..9].try_into().unwrap()));
                    return Outcome {
                        status: pdu.header[3],
                        sense,
                        information,
                        data,
                        residual,
                    };
                }
                _ => panic!("unexpected PDU {pdu:x?}"),
            }
        }
    }

    pub fn read(&mut self, lba: u32, blocks: u16) -> Outcome {
        self.command(&cdb10(0x28, lba, blocks), u32::from(blocks) * 512, &[])
    }

    pub fn write(&mut self, lba: u32, data: &[u8]) -> Outcome {
        let blocks = (data.len() / 512) as u16;
        self.command(&cdb10(0x2a, lba, blocks), data.len() as u32, data)
    }

    /// Makes a task management request.
    pub fn management_pdu(&mut self, function: u8, referenced: u32) -> Pdu {
        let itt = self.next_itt;
        self.next_itt += 1;
        Pdu::new(0x42, 0x80 | function)
            .put32(16, itt)
            .put32(20, referenced)
            .put32(24, self.cmd_sn)
            .put32(28, self.exp_stat_sn)
    }
}

pub fn cdb10(opcode: u8, lba: u32, blocks: u16) -> Vec<u8> {
    let mut cdb = vec![opcode, 0];
    cdb.extend_from_slice(&lba.to_be_bytes());
    cdb.push(0);
    cdb.extend_from_slice(&blocks.to_be_bytes());
    cdb.push(0);
    cdb
}

pub fn pairs(text: &[u8]) -> Vec<(String, String)> {
    let text = std::str::from_utf8(text).expect("text is UTF-8");
    let parts = text.split('\0').filter(|part| !part.is_empty());
    let pair = |part: &str| {
        let (key, value) = part.split_once('=').expect("a pair");
        (key.to_owned(), value.to_owned())
    };
    parts.map(pair).collect()
}
