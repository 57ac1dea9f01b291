//! What a pool counts.
//!
//! | metric | what |
//! |---|---|
//! | `quarry_pool_size_bytes` | |
//! | `quarry_pool_free_bytes` | |
//! | `quarry_pool_reclaim_debt_bytes` | |
//! | `quarry_pool_damaged_reads_total` | reads that were refused because of a checksum |
//! | `quarry_pool_scrub_running` | 0 or 1 |
//! | `quarry_pool_scrub_verified_bytes` | by the running scrub, or the last one |
//! | `quarry_pool_scrub_skipped_bytes` | like that |
//! | `quarry_pool_scrub_damaged_blocks` | like that |
//!
//! Each has one label, `pool`.

use std::sync::atomic::Ordering;

use quarry_contract::{Metric, MetricKind, MetricValue, Sample};

use crate::locks::read;
use crate::pool::Pool;

impl Pool {
    /// Returns what the pool counts. Does no I/O.
    pub fn metrics(&self) -> Vec<Metric> {
        let status = self.status();
        let scrub = read(&self.state).scrub.figures(self.geometry.chunk_bytes);
        let of_pool = |name, help, kind, value| Metric {
            name,
            help,
            kind,
            samples: vec![Sample {
                labels: vec![("pool", self.options.name.to_string().into())],
                value: MetricValue::Number(value),
            }],
        };
        vec![
            of_pool(
                "quarry_pool_size_bytes",
                "How much the pool holds.",
                MetricKind::Gauge,
                status.total_bytes,
            ),
            of_pool(
                "quarry_pool_free_bytes",
                "How much of that is free.",
                MetricKind::Gauge,
                status.free_bytes,
            ),
            of_pool(
                "quarry_pool_reclaim_debt_bytes",
                "What deleted versions hold that has yet to be gone through.",
                MetricKind::Gauge,
                status.reclaim_debt_bytes,
            ),
            of_pool(
                "quarry_pool_damaged_reads_total",
                "Reads that were refused because a block did not have its checksum.",
                MetricKind::Counter,
                self.damaged_reads.load(Ordering::Relaxed),
            ),
            of_pool(
                "quarry_pool_scrub_running",
                "Whether a scrub is running.",
                MetricKind::Gauge,
                u64::from(scrub.is_running),
            ),
            of_pool(
                "quarry_pool_scrub_verified_bytes",
                "What the running scrub has verified, or the last one had.",
                MetricKind::Gauge,
                scrub.verified_bytes,
            ),
            of_pool(
                "quarry_pool_scrub_skipped_bytes",
                "What that scrub could not verify, because what says where it is, or what it holds, is lost.",
                MetricKind::Gauge,
                scrub.skipped_bytes,
            ),
            of_pool(
                "quarry_pool_scrub_damaged_blocks",
                "Blocks of 4 KiB that that scrub has found damaged.",
                MetricKind::Gauge,
                scrub.bad_blocks,
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use crate::sim::SimDevice;
    use crate::{FormatOptions, OpenOptions, Pool};
    use quarry_contract::MetricKind;

    #[test]
    fn every_metric_is_in_the_table_of_the_module() {
        let device = SimDevice::new(96 << 20, 1);
        Pool::format(device.as_ref(), &FormatOptions::default()).unwrap();
        let pool = Pool::open(device, OpenOptions::default()).unwrap();
        let text = include_str!("metrics.rs");
        for metric in pool.metrics() {
            let row = format!("//! | `{}` |", metric.name);
            assert!(text.contains(&row), "{}", metric.name);
            let is_counter = metric.kind == MetricKind::Counter;
            assert_eq!(metric.name.ends_with("_total"), is_counter);
        }
    }
}
