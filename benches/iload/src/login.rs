//! How a session begins: security, then parameters (RFC 7143 6, 13).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::chap;
use crate::pdu::{self, Header, get32, put32};
use crate::url::Url;

/// What an initiator asks for.
#[derive(Debug, Clone)]
pub struct Wishes {
    /// The initiator's name.
    pub initiator: String,
    /// CRC32C after headers.
    pub header_digest: bool,
    /// CRC32C after data.
    pub data_digest: bool,
    /// Data in the command's own PDU.
    pub immediate_data: bool,
    /// Every byte beyond immediate data is asked for.
    pub initial_r2t: bool,
    /// Unsolicited data of a command, at most, in bytes.
    pub first_burst_bytes: u32,
    /// Data of one sequence, at most, in bytes.
    pub max_burst_bytes: u32,
    /// Data of one PDU that we take, at most, in bytes.
    pub receive_segment_bytes: u32,
}

/// What the two sides agreed on.
#[derive(Debug, Clone)]
pub struct Agreed {
    /// CRC32C after headers.
    pub header_digest: bool,
    /// CRC32C after data.
    pub data_digest: bool,
    /// Data in the command's own PDU.
    pub immediate_data: bool,
    /// Every byte beyond immediate data is asked for.
    pub initial_r2t: bool,
    /// Unsolicited data of a command, at most, in bytes.
    pub first_burst_bytes: u32,
    /// Data of one PDU that the target takes, at most, in bytes.
    pub send_segment_bytes: u32,
}

/// A connection that is logged in, and the numbers it goes on with.
pub struct LoggedIn {
    /// The connection.
    pub socket: TcpStream,
    /// What was agreed on.
    pub agreed: Agreed,
    /// The next command's number.
    pub cmd_sn: u32,
    /// The last number that the target takes.
    pub max_cmd_sn: u32,
    /// The next status number.
    pub exp_stat_sn: u32,
}

const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL_FEATURE: u8 = 3;

/// Requests of one login, at most.
const ROUNDS_MAX: usize = 10;

/// How long the target may take for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Connects and logs in a normal session.
///
/// # Errors
/// When the target cannot be reached, refuses, or does not grant the digests asked for.
pub fn login(url: &Url, wishes: &Wishes, number: u16) -> anyhow::Result<LoggedIn> {
    let socket =
        TcpStream::connect(&url.address).with_context(|| format!("connecting to {}", url.address))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut random = [0; 3];
    getrandom::fill(&mut random)?;
    let mut talk = Talk {
        socket,
        isid: [
            0x80,
            random[0],
            random[1],
            random[2],
            (number >> 8) as u8,
            number as u8,
        ],
        cmd_sn: 1,
        max_cmd_sn: 1,
        exp_stat_sn: 0,
    };
    let mut keys = vec![
        ("InitiatorName", wishes.initiator.clone()),
        ("TargetName", url.target.clone()),
        ("SessionType", "Normal".to_owned()),
    ];
    if let Some((user, secret)) = &url.credentials {
        keys.push(("AuthMethod", "CHAP".to_owned()));
        prove(&mut talk, &keys, user, secret)?;
        keys.clear();
    }
    let agreed = negotiate(&mut talk, keys, wishes)?;
    ensure!(
        agreed.header_digest == wishes.header_digest && agreed.data_digest == wishes.data_digest,
        "the target does not grant the digests asked for"
    );
    talk.socket.set_read_timeout(None)?;
    Ok(LoggedIn {
        socket: talk.socket,
        agreed,
        cmd_sn: talk.cmd_sn,
        max_cmd_sn: talk.max_cmd_sn,
        exp_stat_sn: talk.exp_stat_sn,
    })
}

/// The security stage.
fn prove(talk: &mut Talk, keys: &[(&str, String)], user: &str, secret: &str) -> anyhow::Result<()> {
    let answer = talk.exchange(SECURITY, None, keys)?;
    ensure!(
        answer.value("AuthMethod") == Some("CHAP"),
        "the target does not take CHAP"
    );
    let challenge = talk.exchange(SECURITY, None, &[("CHAP_A", chap::ALGORITHMS.to_owned())])?;
    let value = |key| {
        challenge
            .value(key)
            .with_context(|| format!("the target's challenge lacks {key}"))
    };
    let response = chap::response(value("CHAP_A")?, value("CHAP_I")?, value("CHAP_C")?, secret)?;
    let proof = [("CHAP_N", user.to_owned()), ("CHAP_R", response)];
    let answer = talk.exchange(SECURITY, Some(OPERATIONAL), &proof)?;
    ensure!(answer.transit, "the target does not go on after CHAP");
    Ok(())
}

/// The operational stage.
fn negotiate(
    talk: &mut Talk,
    mut keys: Vec<(&'static str, String)>,
    wishes: &Wishes,
) -> anyhow::Result<Agreed> {
    let digest = |wanted| if wanted { "CRC32C" } else { "None" }.to_owned();
    let yes = |wanted| if wanted { "Yes" } else { "No" }.to_owned();
    keys.extend([
        ("HeaderDigest", digest(wishes.header_digest)),
        ("DataDigest", digest(wishes.data_digest)),
        ("InitialR2T", yes(wishes.initial_r2t)),
        ("ImmediateData", yes(wishes.immediate_data)),
        ("MaxBurstLength", wishes.max_burst_bytes.to_string()),
        ("FirstBurstLength", wishes.first_burst_bytes.to_string()),
        (
            "MaxRecvDataSegmentLength",
            wishes.receive_segment_bytes.to_string(),
        ),
        ("MaxOutstandingR2T", "1".to_owned()),
        ("MaxConnections", "1".to_owned()),
        ("DefaultTime2Wait", "2".to_owned()),
        ("DefaultTime2Retain", "0".to_owned()),
        ("ErrorRecoveryLevel", "0".to_owned()),
        ("DataPDUInOrder", "Yes".to_owned()),
        ("DataSequenceInOrder", "Yes".to_owned()),
    ]);
    // The defaults of RFC 7143 13.
    let mut agreed = Agreed {
        header_digest: false,
        data_digest: false,
        immediate_data: true,
        initial_r2t: true,
        first_burst_bytes: 65536,
        send_segment_bytes: 8192,
    };
    for _ in 0..ROUNDS_MAX {
        let answer = talk.exchange(OPERATIONAL, Some(FULL_FEATURE), &keys)?;
        keys.clear();
        for (key, value) in &answer.keys {
            match key.as_str() {
                "HeaderDigest" => agreed.header_digest = value == "CRC32C",
                "DataDigest" => agreed.data_digest = value == "CRC32C",
                "ImmediateData" => agreed.immediate_data = value == "Yes",
                "InitialR2T" => agreed.initial_r2t = value == "Yes",
                "FirstBurstLength" => agreed.first_burst_bytes = value.parse()?,
                "MaxRecvDataSegmentLength" => agreed.send_segment_bytes = value.parse()?,
                _ => {}
            }
        }
        if answer.transit {
            return Ok(agreed);
        }
    }
    bail!("the target does not come to the end of the login")
}

/// One login's side of the conversation.
struct Talk {
    socket: TcpStream,
    isid: [u8; 6],
    cmd_sn: u32,
    max_cmd_sn: u32,
    exp_stat_sn: u32,
}

/// One answer of the target.
struct Said {
    transit: bool,
    keys: Vec<(String, String)>,
}

impl Said {
    fn value(&self, key: &str) -> Option<&str> {
        let entry = self.keys.iter().find(|(name, _)| name == key);
        entry.map(|(_, value)| value.as_str())
    }
}

impl Talk {
    fn exchange(&mut self, stage: u8, next: Option<u8>, keys: &[(&str, String)]) -> anyhow::Result<Said> {
        let mut text = Vec::new();
        for (key, value) in keys {
            text.extend_from_slice(format!("{key}={value}\0").as_bytes());
        }
        let flags = stage << 2 | next.map_or(0, |next| 0x80 | next);
        let mut request = pdu::header(0x43, flags, text.len());
        request[8..14].copy_from_slice(&self.isid);
        put32(&mut request, 24, self.cmd_sn);
        put32(&mut request, 28, self.exp_stat_sn);
        text.resize(pdu::padded(text.len()), 0);
        self.socket.write_all(&[&request[..], &text].concat())?;

        let mut answer: Header = [0; 48];
        self.socket
            .read_exact(&mut answer)
            .context("the target hung up during the login")?;
        ensure!(
            answer[0] & 0x3f == 0x23,
            "opcode {:#04x} is no login response",
            answer[0]
        );
        let mut text = vec![0; pdu::padded(pdu::data_bytes(&answer))];
        self.socket.read_exact(&mut text)?;
        ensure!(
            answer[36] == 0,
            "the target refuses the login: status {:02x}{:02x}",
            answer[36],
            answer[37]
        );
        self.exp_stat_sn = get32(&answer, 24).wrapping_add(1);
        self.cmd_sn = get32(&answer, 28);
        self.max_cmd_sn = get32(&answer, 32);
        let text = String::from_utf8(text).context("the target's text is no UTF-8")?;
        let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
        Ok(Said {
            transit: answer[1] & 0x80 != 0,
            keys: pairs
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        })
    }
}
