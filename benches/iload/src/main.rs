//! iload: an iSCSI initiator that loads a target, measures it and checks what it reads.
//!
//! It shares no code with the target, so that the two cannot be wrong in the same way. How it compares with other
//! generators, and how to use it: benches/README.md.

mod account;
mod chap;
mod histogram;
mod ledger;
mod load;
mod login;
mod meter;
mod options;
mod outbox;
mod payload;
mod pdu;
mod scsi;
mod session;
mod url;
mod workload;

use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::Parser;

use load::{Extent, Finish, Load};
use meter::Report;
use options::Options;
use payload::Payload;
use scsi::Cdb;
use session::{Command, Outcome, Session};
use workload::Workload;

/// How often a new session may answer TEST UNIT READY with a unit attention.
const ATTENTIONS_MAX: usize = 16;

/// Bytes of READ CAPACITY (16) data that are asked for.
const CAPACITY_BYTES: u32 = 32;

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(report) => {
            print(&report, options.json);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("iload: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<Report> {
    let wishes = options.wishes();
    let mut sessions = Vec::new();
    let (mut medium_bytes, mut block_bytes) = (0, 0);
    for number in 0..options.sessions {
        let mut session = Session::open(&options.url, &wishes, number, options.qd)?;
        (medium_bytes, block_bytes) = make_ready(&mut session)?;
        session.socket().set_nonblocking(true)?;
        sessions.push(session);
    }
    let pattern = options.pattern(medium_bytes, block_bytes)?;
    let mut random = [0; 8];
    getrandom::fill(&mut random)?;
    let seed = u64::from_le_bytes(random);
    let mut workload = Workload::new(pattern, block_bytes, sessions.len(), seed, options.verify);
    let load = Load::new(&mut sessions, &mut workload, options.qd)?;
    let meter = load.run(options.extent(), options.finish(), &options.pid)?;
    if options.verify {
        workload.begin_sweep();
        Load::new(&mut sessions, &mut workload, options.qd)?.run(Extent::All, Finish::Plain, &[])?;
    }
    Ok(meter.report(&options.pid))
}

/// Clears unit attentions, and returns the medium's size and its logical block's, in bytes.
fn make_ready(session: &mut Session) -> anyhow::Result<(u64, u32)> {
    let ask = |cdb, read_bytes| Command {
        cdb,
        read_bytes,
        payload: Payload::default(),
        keeps_data: true,
    };
    for _ in 0..ATTENTIONS_MAX {
        match session.execute(ask(Cdb::test_unit_ready(), 0))?.0 {
            Outcome::Good => break,
            Outcome::Again => {}
            Outcome::Failed(why) => bail!("TEST UNIT READY: {why}"),
        }
    }
    let (outcome, data) = session.execute(ask(Cdb::read_capacity(CAPACITY_BYTES), CAPACITY_BYTES))?;
    ensure!(outcome == Outcome::Good, "READ CAPACITY (16): {outcome:?}");
    let (last, rest) = data.split_first_chunk().context("short capacity data")?;
    let block_bytes = u32::from_be_bytes(*rest.first_chunk().context("short capacity data")?);
    ensure!(
        block_bytes.is_power_of_two(),
        "logical blocks of {block_bytes} bytes"
    );
    let blocks = u64::from_be_bytes(*last)
        .checked_add(1)
        .context("too large a medium")?;
    Ok((blocks * u64::from(block_bytes), block_bytes))
}

fn print(report: &Report, json: bool) {
    if json {
        match serde_json::to_string(report) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("iload: {error}"),
        }
        return;
    }
    println!(
        "{:.0} IOPS, {:.1} MB/s; latency p50 {:.1} us, p99 {:.1} us, max {:.0} us; target {:.2} us of CPU per I/O, \
         {:.2} cores, {} MiB; generator {:.2} cores; stolen {:.1} %",
        report.iops,
        report.mb_per_s,
        report.p50_us,
        report.p99_us,
        report.max_us,
        report.target_cpu_us_per_io,
        report.target_cores,
        report.target_rss_kib >> 10,
        report.own_cores,
        report.stolen_percent,
    );
}
