//! The command line.

use std::time::Duration;

use clap::Parser;

use crate::load::{Extent, Finish};
use crate::login::Wishes;
use crate::scsi::Durability;
use crate::url::Url;
use crate::workload::Pattern;

/// Loads an iSCSI target, measures it and checks what it reads.
///
/// Exit status: 0 when all went well, 1 when a command failed or read what it should not, 2 when the command line
/// is wrong.
#[derive(Debug, Parser)]
pub struct Options {
    /// `iscsi://[USER%SECRET@]HOST[:PORT]/TARGET/LUN`
    pub url: Url,
    /// read, write, or rw:PERCENT with so many reads in a hundred
    #[arg(long, default_value = "read", value_parser = read_percent)]
    rw: u8,
    /// One transfer after the other instead of anywhere
    #[arg(long)]
    seq: bool,
    /// Bytes of one transfer: 4k, 1m
    #[arg(long, default_value = "4k", value_parser = size)]
    bs: u64,
    /// Commands in flight per session
    #[arg(long, default_value = "32", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub qd: u32,
    /// Sessions
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub sessions: u16,
    /// Bytes at the volume's start that are used; all by default
    #[arg(long, value_parser = size)]
    size: Option<u64>,
    /// Seconds that are measured
    #[arg(long, default_value = "5")]
    time: f64,
    /// Seconds before that
    #[arg(long, default_value = "1")]
    warmup: f64,
    /// Stop after so many commands instead
    #[arg(long)]
    ops: Option<u64>,
    /// Flush after so many writes
    #[arg(long, default_value = "0")]
    fsync: u64,
    /// Flush at the end and measure that too: a write counts when it is on the medium
    #[arg(long)]
    end_fsync: bool,
    /// Writes survive a power cut when they end (FUA)
    #[arg(long)]
    fua: bool,
    /// Write what can be told apart, check all that is read, and read everything at the end
    #[arg(long)]
    pub verify: bool,
    /// CRC32C after headers
    #[arg(long)]
    header_digest: bool,
    /// CRC32C after data
    #[arg(long)]
    data_digest: bool,
    /// No data in the command's own PDU
    #[arg(long)]
    no_immediate: bool,
    /// No data that was not asked for
    #[arg(long)]
    initial_r2t: bool,
    /// Unsolicited data of a command, at most, in bytes
    #[arg(long, default_value = "256k", value_parser = size)]
    first_burst: u64,
    /// Data of one sequence, at most, in bytes
    #[arg(long, default_value = "16m", value_parser = size)]
    max_burst: u64,
    /// Data of one PDU that we take, at most, in bytes
    #[arg(long, default_value = "256k", value_parser = size)]
    receive_segment: u64,
    /// Our name
    #[arg(long, default_value = "iqn.2026-11.io.quarry:iload")]
    initiator: String,
    /// The target's processes, whose time and memory are told
    #[arg(long, value_delimiter = ',')]
    pub pid: Vec<u32>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl Options {
    /// Returns what to ask for at the login.
    pub fn wishes(&self) -> Wishes {
        // Field lengths of 24 bits (RFC 7143 13.12 to 13.14).
        let bounded = |bytes: u64| bytes.min((1 << 24) - 1) as u32;
        Wishes {
            initiator: self.initiator.clone(),
            header_digest: self.header_digest,
            data_digest: self.data_digest,
            immediate_data: !self.no_immediate,
            initial_r2t: self.initial_r2t,
            first_burst_bytes: bounded(self.first_burst),
            max_burst_bytes: bounded(self.max_burst),
            receive_segment_bytes: bounded(self.receive_segment),
        }
    }

    /// Returns when the run ends.
    pub fn extent(&self) -> Extent {
        match self.ops {
            Some(ops) => Extent::Commands(ops),
            None => Extent::Time {
                warm_up: Duration::from_secs_f64(self.warmup.max(0.0)),
                measured: Duration::from_secs_f64(self.time.max(0.0)),
            },
        }
    }

    /// Returns what happens at the run's end.
    pub fn finish(&self) -> Finish {
        match self.end_fsync {
            true => Finish::Flushed,
            false => Finish::Plain,
        }
    }

    /// Returns the pattern for a medium of that size.
    ///
    /// # Errors
    /// When a transfer does not fit the medium.
    pub fn pattern(&self, medium_bytes: u64, block_bytes: u32) -> anyhow::Result<Pattern> {
        let unit = match self.verify {
            true => crate::ledger::BLOCK_BYTES as u64,
            false => u64::from(block_bytes),
        };
        let range_bytes = self.size.unwrap_or(medium_bytes).min(medium_bytes);
        anyhow::ensure!(
            self.bs > 0 && self.bs.is_multiple_of(unit) && self.bs <= range_bytes.min(16 << 20),
            "--bs must be a multiple of {unit}, and no more than the range and 16 MiB"
        );
        Ok(Pattern {
            read_percent: self.rw,
            sequential: self.seq,
            transfer_bytes: self.bs as u32,
            range_bytes: range_bytes / self.bs * self.bs,
            flush_every: self.fsync,
            durability: match self.fua {
                true => Durability::Flushed,
                false => Durability::Cached,
            },
        })
    }
}

fn read_percent(text: &str) -> Result<u8, String> {
    match text {
        "read" => Ok(100),
        "write" => Ok(0),
        _ => text
            .strip_prefix("rw:")
            .and_then(|percent| percent.parse().ok())
            .filter(|percent| *percent <= 100)
            .ok_or_else(|| "want read, write or rw:PERCENT".to_owned()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    let units = [("k", 10), ("m", 20), ("g", 30)];
    let unit = units
        .iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
    let (digits, shift) = unit.unwrap_or((text, 0));
    let number: u64 = digits
        .parse()
        .map_err(|_| "want a number, with k, m or g behind it")?;
    number
        .checked_shl(shift)
        .filter(|bytes| bytes >> shift == number)
        .ok_or_else(|| "too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_mixes() {
        assert_eq!(size("4k"), Ok(4096));
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("1g"), Ok(1 << 30));
        assert!(size("x").is_err() && size("99999999999g").is_err());
        assert_eq!([read_percent("read"), read_percent("rw:30")], [Ok(100), Ok(30)]);
        assert!(read_percent("rw:101").is_err() && read_percent("trim").is_err());
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Options::command().debug_assert();
    }
}
