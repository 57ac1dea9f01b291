//! What was measured, and how it is told.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::account::{Cost, Reading, resident_kib};
use crate::histogram::Histogram;

/// The measured part of a run.
pub struct Meter {
    begin: Instant,
    reading: Reading,
    seconds: f64,
    cost: Option<Cost>,
    latencies: Histogram,
    transfers: u64,
    bytes: u64,
    flushes: u64,
    last_end: Instant,
    longest_gap: Duration,
}

/// A run's result. Latencies are those of transfers; flushes are only counted, and their cost is spread over the
/// transfers.
#[derive(Debug, Serialize)]
pub struct Report {
    /// How long was measured.
    pub seconds: f64,
    /// Reads and writes.
    pub transfers: u64,
    /// Flushes.
    pub flushes: u64,
    /// Reads and writes per second.
    pub iops: f64,
    /// 10⁶ bytes per second.
    pub mb_per_s: f64,
    /// Mean latency.
    pub mean_us: f64,
    /// Half of all transfers took no longer.
    pub p50_us: f64,
    /// 99 of 100 transfers took no longer.
    pub p99_us: f64,
    /// 999 of 1000 transfers took no longer.
    pub p999_us: f64,
    /// The longest latency.
    pub max_us: f64,
    /// The longest time in which nothing ended.
    pub longest_gap_ms: f64,
    /// Processor time of the target per transfer.
    pub target_cpu_us_per_io: f64,
    /// Processor time of the target per 10⁹ bytes.
    pub target_cpu_s_per_gb: f64,
    /// Processors that the target had, on average.
    pub target_cores: f64,
    /// The target's resident memory at the end.
    pub target_rss_kib: u64,
    /// Processors that the load generator had, on average.
    pub own_cores: f64,
    /// The machine's time that others had.
    pub stolen_percent: f64,
}

impl Meter {
    /// Begins to measure.
    pub fn begin(now: Instant, reading: Reading) -> Self {
        Self {
            begin: now,
            reading,
            seconds: 0.0,
            cost: None,
            latencies: Histogram::default(),
            transfers: 0,
            bytes: 0,
            flushes: 0,
            last_end: now,
            longest_gap: Duration::ZERO,
        }
    }

    /// Ends measuring.
    pub fn end(&mut self, now: Instant, reading: Reading) {
        self.mark_end(now);
        self.seconds = (now - self.begin).as_secs_f64();
        self.cost = Some(reading.since(&self.reading));
    }

    /// Takes a transfer in.
    pub fn count(&mut self, now: Instant, latency: Duration, bytes: u32) {
        self.mark_end(now);
        self.latencies.record(latency.as_nanos() as u64);
        self.transfers += 1;
        self.bytes += u64::from(bytes);
    }

    /// Takes a flush in.
    pub fn count_flush(&mut self, now: Instant) {
        self.mark_end(now);
        self.flushes += 1;
    }

    fn mark_end(&mut self, now: Instant) {
        self.longest_gap = self.longest_gap.max(now.saturating_duration_since(self.last_end));
        self.last_end = now;
    }

    /// Makes the report; the processes are the target's.
    pub fn report(&self, pids: &[u32]) -> Report {
        let per_second = |count: f64| {
            if self.seconds > 0.0 {
                count / self.seconds
            } else {
                0.0
            }
        };
        let (target, own, stolen_percent) = self.cost.as_ref().map_or((0.0, 0.0, 0.0), |cost| {
            (cost.target_seconds, cost.own_seconds, cost.stolen_percent)
        });
        Report {
            seconds: self.seconds,
            transfers: self.transfers,
            flushes: self.flushes,
            iops: per_second(self.transfers as f64),
            mb_per_s: per_second(self.bytes as f64) / 1e6,
            mean_us: self.latencies.mean_us(),
            p50_us: self.latencies.quantile_us(0.5),
            p99_us: self.latencies.quantile_us(0.99),
            p999_us: self.latencies.quantile_us(0.999),
            max_us: self.latencies.largest_us(),
            longest_gap_ms: self.longest_gap.as_secs_f64() * 1e3,
            target_cpu_us_per_io: target * 1e6 / self.transfers.max(1) as f64,
            target_cpu_s_per_gb: target * 1e9 / self.bytes.max(1) as f64,
            target_cores: per_second(target),
            target_rss_kib: resident_kib(pids),
            own_cores: per_second(own),
            stolen_percent,
        }
    }
}
