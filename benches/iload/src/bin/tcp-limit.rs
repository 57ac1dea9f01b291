//! tcp-limit: how fast requests and answers of iSCSI's sizes are over TCP when nothing is behind them.
//!
//! What no target of one connection can be faster than on this machine. `serve` answers each request of 48 bytes, and of a
//! write its data, with 48 bytes, and for a read its data; `load` keeps so many requests under way and tells the same as iload.

use std::collections::VecDeque;
use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;

#[path = "../account.rs"]
#[allow(dead_code, reason = "iload uses all of it")]
mod account;
#[path = "../histogram.rs"]
mod histogram;
#[path = "../meter.rs"]
#[allow(dead_code, reason = "iload uses all of it")]
mod meter;

use account::Reading;
use meter::Meter;

/// What an iSCSI header has (RFC 7143 11.2.1).
const HEADER_BYTES: usize = 48;
/// What is read, and answered, at once.
const BATCH_BYTES: usize = 256 << 10;

/// Serves, or loads who serves.
#[derive(Debug, Parser)]
enum Options {
    /// Answers until it is killed
    Serve {
        /// At this port of loopback
        port: u16,
    },
    /// Measures, and prints JSON
    Load {
        /// The port of loopback
        port: u16,
        /// So many reads in a hundred
        #[arg(long, value_parser = clap::value_parser!(u8).range(..=100))]
        reads: u8,
        /// Bytes of one transfer
        #[arg(long)]
        bytes: u32,
        /// Requests under way
        #[arg(long)]
        depth: usize,
        /// Seconds that are measured, after half a second
        #[arg(long)]
        time: f64,
        /// The server's process, whose time is told
        #[arg(long)]
        pid: u32,
    },
}

fn main() -> ExitCode {
    let ended = match Options::parse() {
        Options::Serve { port } => serve(port),
        Options::Load {
            port,
            reads,
            bytes,
            depth,
            time,
            pid,
        } => load(port, (reads, bytes), depth, Duration::from_secs_f64(time), pid),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tcp-limit: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(port: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context("listening")?;
    for connection in listener.incoming() {
        let connection = connection?;
        thread::spawn(move || answer(&connection));
    }
    bail!("nobody comes any more")
}

/// The request's kind and length are its first bytes.
fn request(is_read: bool, bytes: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[0] = u8::from(is_read);
    header[4..8].copy_from_slice(&bytes.to_be_bytes());
    header
}

/// Answers requests until the other side has gone.
fn answer(mut connection: &TcpStream) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let mut requests = BufReader::with_capacity(BATCH_BYTES, connection);
    let (mut answers, mut data) = (Vec::new(), Vec::new());
    loop {
        let mut header = [0; HEADER_BYTES];
        requests.read_exact(&mut header)?;
        let bytes = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
        answers.extend_from_slice(&header);
        if header[0] == 1 {
            answers.resize(answers.len() + bytes, 0);
        } else {
            data.resize(bytes, 0);
            requests.read_exact(&mut data)?;
        }
        if requests.buffer().len() < HEADER_BYTES || answers.len() >= BATCH_BYTES {
            connection.write_all(&answers)?;
            answers.clear();
        }
    }
}

fn load(port: u16, (reads, bytes): (u8, u32), depth: usize, time: Duration, pid: u32) -> anyhow::Result<()> {
    let connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("connecting")?;
    connection.set_nodelay(true)?;
    let mut answers = BufReader::with_capacity(BATCH_BYTES, &connection);
    let mut under_way = VecDeque::new();
    let (mut batch, mut data) = (Vec::new(), vec![0; bytes as usize]);
    let mut number = 0u32;
    let warm = Instant::now() + Duration::from_millis(500);
    let mut meter = None;
    loop {
        while under_way.len() < depth {
            // 37 has no factor with 100: the kinds mix.
            number = (number + 37) % 100;
            let is_read = number < u32::from(reads);
            batch.extend_from_slice(&request(is_read, bytes));
            if !is_read {
                batch.resize(batch.len() + bytes as usize, 0);
            }
            under_way.push_back((is_read, Instant::now()));
        }
        (&connection).write_all(&batch)?;
        batch.clear();
        // As many answers as have come, one at least.
        loop {
            let mut header = [0; HEADER_BYTES];
            answers.read_exact(&mut header)?;
            let (is_read, sent) = under_way.pop_front().context("an answer to nothing")?;
            if is_read {
                answers.read_exact(&mut data)?;
            }
            let now = Instant::now();
            match &mut meter {
                None if now >= warm => meter = Some((Meter::begin(now, Reading::take(&[pid])?), now + time)),
                None => {}
                Some((meter, _)) => meter.count(now, now - sent, bytes),
            }
            if under_way.is_empty() || answers.buffer().len() < HEADER_BYTES {
                break;
            }
        }
        if let Some((meter, until)) = &mut meter
            && Instant::now() >= *until
        {
            meter.end(Instant::now(), Reading::take(&[pid])?);
            println!("{}", serde_json::to_string(&meter.report(&[pid]))?);
            return Ok(());
        }
    }
}
