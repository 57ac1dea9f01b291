//! What the target counts. Each reactor has counters of its own, which it alone writes and anybody may read; a figure is
//! the sum over the reactors.
//!
//! | metric | labels |
//! |---|---|
//! | `quarry_iscsi_sessions` | |
//! | `quarry_iscsi_pending_logins` | |
//! | `quarry_iscsi_buffer_bytes` | |
//! | `quarry_iscsi_logins_total` | `result`: `ok`, or the login status |
//! | `quarry_iscsi_commands_total` | `op`, `result` |
//! | `quarry_iscsi_command_bytes_total` | `op` |
//! | `quarry_iscsi_command_seconds` | `op` |

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quarry_contract::{Metric, MetricKind, MetricValue, Sample};

use crate::login::LoginStatus;

/// What a command does, as far as it is counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Reads data.
    Read,
    /// Writes data, of the initiator's or not.
    Write,
    /// Makes what is written durable.
    Flush,
    /// Gives space back.
    Discard,
    /// Anything else.
    Other,
}

impl Op {
    const ALL: [(Op, &'static str); 5] = [
        (Op::Read, "read"),
        (Op::Write, "write"),
        (Op::Flush, "flush"),
        (Op::Discard, "discard"),
        (Op::Other, "other"),
    ];

    /// Tells what a command does by its operation code (SBC-3 5.1).
    pub fn of(opcode: u8) -> Self {
        match opcode {
            0x08 | 0x28 | 0xa8 | 0x88 => Op::Read,
            0x0a | 0x2a | 0xaa | 0x8a | 0x2e | 0xae | 0x8e | 0x89 | 0x8b | 0x9c | 0x41 | 0x93 => Op::Write,
            0x35 | 0x91 => Op::Flush,
            0x42 => Op::Discard,
            _ => Op::Other,
        }
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// GOOD.
    Good,
    /// CHECK CONDITION.
    CheckCondition,
    /// RESERVATION CONFLICT.
    Conflict,
    /// Ended before its time: by task management, a logout, or the end of its session.
    Aborted,
}

impl Ended {
    const ALL: [(Ended, &'static str); 4] = [
        (Ended::Good, "good"),
        (Ended::CheckCondition, "check_condition"),
        (Ended::Conflict, "reservation_conflict"),
        (Ended::Aborted, "aborted"),
    ];
}

/// How a login ended, by its place among the counters.
const LOGINS: [(Option<LoginStatus>, &str); 8] = [
    (None, "ok"),
    (Some(LoginStatus::AuthenticationFailed), "authentication_failed"),
    (Some(LoginStatus::NotAuthorized), "not_authorized"),
    (Some(LoginStatus::NotFound), "not_found"),
    (Some(LoginStatus::TargetRemoved), "target_removed"),
    (Some(LoginStatus::ServiceUnavailable), "service_unavailable"),
    (Some(LoginStatus::OutOfResources), "out_of_resources"),
    // All others: the initiator does not do as the standard says.
    (Some(LoginStatus::InitiatorError), "initiator_error"),
];

/// Upper bounds of the times that commands take, in microseconds.
const BOUNDS_US: [u64; 16] = [
    50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
    5_000_000, 30_000_000,
];

/// A counter with one writer.
#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Count {
    fn add(&self, amount: u64) {
        self.0.store(self.get() + amount, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one reactor.
#[derive(Debug, Default)]
pub struct Counters {
    logins: [Count; LOGINS.len()],
    commands: [[Count; Ended::ALL.len()]; Op::ALL.len()],
    bytes: [Count; Op::ALL.len()],
    /// By bound, and beyond the last one.
    times: [[Count; BOUNDS_US.len() + 1]; Op::ALL.len()],
    time_us: [Count; Op::ALL.len()],
    buffer_bytes: AtomicU64,
}

impl Counters {
    /// Counts a login; with a status, one that was refused.
    pub fn login(&self, refused: Option<LoginStatus>) {
        let known = LOGINS.iter().position(|(status, _)| *status == refused);
        self.logins[known.unwrap_or(LOGINS.len() - 1)].add(1);
    }

    /// Counts a command that has ended, what it has moved and how long it took.
    pub fn command(&self, op: Op, ended: Ended, bytes: u64, time: Duration) {
        let at = op as usize;
        self.commands[at][ended as usize].add(1);
        self.bytes[at].add(bytes);
        let micros = time.as_micros() as u64;
        self.times[at][BOUNDS_US.partition_point(|bound| *bound < micros)].add(1);
        self.time_us[at].add(micros);
    }

    /// Says how much data is on its way.
    pub fn set_buffer_bytes(&self, bytes: usize) {
        self.buffer_bytes.store(bytes as u64, Ordering::Relaxed);
    }
}

/// Adds up the counters of all reactors.
pub fn collect<'a>(
    reactors: impl Iterator<Item = &'a Counters> + Clone,
    sessions: usize,
    pending_logins: usize,
) -> Vec<Metric> {
    let sum = |count: &dyn Fn(&Counters) -> u64| reactors.clone().map(count).sum::<u64>();
    let number = |labels: &[(&'static str, &'static str)], value| Sample {
        labels: labels
            .iter()
            .map(|(label, value)| (*label, (*value).into()))
            .collect(),
        value: MetricValue::Number(value),
    };
    let of_logins = LOGINS
        .iter()
        .enumerate()
        .map(|(at, (_, result))| number(&[("result", result)], sum(&|counters| counters.logins[at].get())));
    let mut commands = Vec::new();
    let mut bytes = Vec::new();
    let mut times = Vec::new();
    for (op, name) in Op::ALL {
        let at = op as usize;
        for (ended, result) in Ended::ALL {
            let count = sum(&|counters| counters.commands[at][ended as usize].get());
            commands.push(number(&[("op", name), ("result", result)], count));
        }
        bytes.push(number(&[("op", name)], sum(&|counters| counters.bytes[at].get())));
        let bucket = |index: usize| sum(&|counters| counters.times[at][index].get());
        times.push(Sample {
            labels: vec![("op", name.into())],
            value: MetricValue::Distribution {
                buckets: BOUNDS_US
                    .iter()
                    .enumerate()
                    .map(|(index, bound)| (*bound as f64 / 1e6, bucket(index)))
                    .collect(),
                beyond: bucket(BOUNDS_US.len()),
                sum: sum(&|counters| counters.time_us[at].get()) as f64 / 1e6,
            },
        });
    }
    let labelled = |name, help, kind, samples| Metric {
        name,
        help,
        kind,
        samples,
    };
    vec![
        Metric::single(
            "quarry_iscsi_sessions",
            "Normal sessions that are open.",
            MetricKind::Gauge,
            sessions as u64,
        ),
        Metric::single(
            "quarry_iscsi_pending_logins",
            "Connections that have not logged in, and discovery sessions.",
            MetricKind::Gauge,
            pending_logins as u64,
        ),
        Metric::single(
            "quarry_iscsi_buffer_bytes",
            "Data on its way between initiators and devices.",
            MetricKind::Gauge,
            sum(&|counters| counters.buffer_bytes.load(Ordering::Relaxed)),
        ),
        labelled(
            "quarry_iscsi_logins_total",
            "Logins by their result. Initiators that keep trying what is gone show as target_removed or not_found.",
            MetricKind::Counter,
            of_logins.collect(),
        ),
        labelled(
            "quarry_iscsi_commands_total",
            "SCSI commands that have ended.",
            MetricKind::Counter,
            commands,
        ),
        labelled(
            "quarry_iscsi_command_bytes_total",
            "Data that commands have moved to or from initiators.",
            MetricKind::Counter,
            bytes,
        ),
        labelled(
            "quarry_iscsi_command_seconds",
            "Time from a command's arrival to its end, waits under limits included.",
            MetricKind::Histogram,
            times,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_falls_into_the_bucket_that_holds_its_time() {
        let counters = Counters::default();
        for micros in [1, 50, 51, 1_000_000, 31_000_000] {
            counters.command(Op::Read, Ended::Good, 4096, Duration::from_micros(micros));
        }
        let metrics = collect([&counters].into_iter(), 0, 0);
        let times = metrics
            .iter()
            .find(|metric| metric.kind == MetricKind::Histogram)
            .unwrap();
        let MetricValue::Distribution { buckets, beyond, sum } = &times.samples[0].value else {
            panic!("a distribution")
        };
        assert_eq!(buckets[0], (0.000_05, 2));
        assert_eq!(buckets[1], (0.0001, 1));
        assert_eq!(buckets[13], (1.0, 1));
        assert_eq!(*beyond, 1);
        assert!((sum - 32.000_102).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn every_metric_is_in_the_table_of_the_module() {
        let text = include_str!("metrics.rs");
        for metric in collect(std::iter::empty(), 0, 0) {
            assert!(
                text.contains(&format!("//! | `{}` |", metric.name)),
                "{}",
                metric.name
            );
            assert_eq!(
                metric.name.ends_with("_total"),
                metric.kind == MetricKind::Counter
            );
        }
    }

    #[test]
    fn login_statuses_that_have_no_name_are_errors_of_the_initiator() {
        let counters = Counters::default();
        for status in [
            None,
            Some(LoginStatus::TargetRemoved),
            Some(LoginStatus::SessionDoesNotExist),
        ] {
            counters.login(status);
        }
        let counts: Vec<u64> = counters.logins.iter().map(Count::get).collect();
        assert_eq!(counts, [1, 0, 0, 0, 1, 0, 0, 1]);
    }
}
