//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Loads a volume of a fresh pool and prints what it measured as JSON.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  eload --pool /dev/shm/pool --prepare filled --rw write                  overwrites
  eload --pool /dev/shm/pool --prepare blank --rw write --step 64k        first writes, each in another chunk
  eload --pool /dev/shm/pool --prepare filled --snapshots 1000 --rw read
  eload --pool /var/tmp/pool --prepare filled --rw write --qd 16 --fsync 1    16 writers that flush after each write")]
pub struct Options {
    /// Where the pool is made; the file is removed at the end
    #[arg(long, value_name = "FILE")]
    pub pool: PathBuf,
    /// The size of the volume
    #[arg(long, default_value = "1g", value_parser = bytes)]
    pub size: u64,
    /// What the volume is like at the start
    #[arg(long, value_enum, default_value = "filled")]
    pub prepare: Prepare,
    /// How many snapshots are taken after that
    #[arg(long, default_value_t = 0)]
    pub snapshots: u32,
    /// Give the volume data checksums
    #[arg(long)]
    pub checksums: bool,
    /// What is done
    #[arg(long, value_enum, default_value = "read")]
    pub rw: Rw,
    /// The length of a request
    #[arg(long, default_value = "4k", value_parser = bytes)]
    pub bs: u64,
    /// From the start of a request to that of the next
    #[arg(long, default_value = "68k", value_parser = bytes)]
    pub step: u64,
    /// Requests in flight
    #[arg(long, default_value_t = 32)]
    pub qd: u32,
    /// Requests that are handed over at once, when as many have ended
    #[arg(long, default_value_t = 1)]
    pub batch: usize,
    /// Each of those in flight is followed by a flush after so many; 0 is never
    #[arg(long, default_value_t = 0)]
    pub fsync: u32,
    /// Flush at the end, and count its time
    #[arg(long)]
    pub end_fsync: bool,
    /// Seconds
    #[arg(long, default_value_t = 2.0)]
    pub time: f64,
    /// End after so many requests, if that is sooner; 0 is no limit
    #[arg(long, default_value_t = 0)]
    pub ops: u64,
    /// Put the host's page cache between pool and disk
    #[arg(long)]
    pub page_cache: bool,
    /// How the queue does I/O on the pool
    #[arg(long, value_enum, default_value = "auto")]
    pub io: Io,
}

/// How the queue does I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Io {
    /// At once in memory, else through io_uring, else with threads.
    Auto,
    /// Through io_uring.
    Uring,
    /// With threads.
    Threads,
}

/// What the volume is like at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Prepare {
    /// Nothing is mapped.
    Blank,
    /// Everything was written.
    Filled,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Rw {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Discards.
    Discard,
}

fn bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k') => (&text[..text.len() - 1], 10),
        Some(b'm') => (&text[..text.len() - 1], 20),
        Some(b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("{text:?} is not a number of bytes, like 4k, 1m or 2g"))?;
    match number.checked_mul(1 << shift) {
        Some(0) | None => Err(format!("{text:?} is out of range")),
        Some(bytes) => Ok(bytes),
    }
}
