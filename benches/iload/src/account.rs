//! What a run costs: processor time and memory, from /proc.

use std::fs;
use std::time::Duration;

use anyhow::Context;
use nix::sys::resource::{UsageWho, getrusage};

/// Ticks per second in /proc, the same on every Linux in the field (proc_pid_stat(5): `sysconf(_SC_CLK_TCK)`).
const TICKS: f64 = 100.0;

/// A reading of all counters.
pub struct Reading {
    /// Processor time of the target's processes, in seconds.
    target: f64,
    /// Our own, in seconds.
    own: f64,
    /// Ticks of all processors that somebody else's virtual machine had.
    stolen: u64,
    /// Ticks of all processors.
    total: u64,
}

/// What happened between two readings.
pub struct Cost {
    /// Processor time of the target's processes, in seconds.
    pub target_seconds: f64,
    /// Our own, in seconds.
    pub own_seconds: f64,
    /// How much of the machine's time others had, in percent.
    pub stolen_percent: f64,
}

impl Reading {
    /// Reads the counters; the target is these processes.
    ///
    /// # Errors
    /// When a process is gone.
    pub fn take(pids: &[u32]) -> anyhow::Result<Self> {
        let mut target = 0.0;
        for pid in pids {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
                .with_context(|| format!("the target's process {pid} is gone"))?;
            target += process_ticks(&stat).context("/proc/PID/stat is malformed")? as f64 / TICKS;
        }
        let usage = getrusage(UsageWho::RUSAGE_SELF)?;
        let seconds = |time: nix::sys::time::TimeVal| {
            Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000).as_secs_f64()
        };
        let stat = fs::read_to_string("/proc/stat")?;
        let (stolen, total) = machine_ticks(&stat).context("/proc/stat is malformed")?;
        Ok(Self {
            target,
            own: seconds(usage.user_time()) + seconds(usage.system_time()),
            stolen,
            total,
        })
    }

    /// Returns what happened since an earlier reading.
    pub fn since(&self, earlier: &Reading) -> Cost {
        let total = (self.total - earlier.total).max(1);
        Cost {
            target_seconds: self.target - earlier.target,
            own_seconds: self.own - earlier.own,
            stolen_percent: 100.0 * (self.stolen - earlier.stolen) as f64 / total as f64,
        }
    }
}

/// Returns the resident memory of processes, in KiB; what cannot be read counts nothing.
pub fn resident_kib(pids: &[u32]) -> u64 {
    let of = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    pids.iter().filter_map(of).sum()
}

/// Sums user and system time (fields 14 and 15; the second, the name, may hold blanks).
fn process_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11);
    Some(times.next()?.parse::<u64>().ok()? + times.next()?.parse::<u64>().ok()?)
}

/// Returns the stolen ticks and all ticks (proc_stat(5): the first eight numbers; guest time is in user time).
fn machine_ticks(stat: &str) -> Option<(u64, u64)> {
    let fields = stat.lines().next()?.strip_prefix("cpu")?;
    let ticks: Vec<u64> = fields
        .split_whitespace()
        .take(8)
        .map_while(|field| field.parse().ok())
        .collect();
    Some((*ticks.get(7)?, ticks.iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_in_the_texts_of_proc() {
        let stat = "42 (a b) c) S 1 42 42 0 -1 4194560 1 2 3 4 100 23 0 0 20 0 1 0 5 6 7";
        assert_eq!(process_ticks(stat), Some(123));
        let machine = "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        assert_eq!(machine_ticks(machine), Some((8, 36)));
    }
}
