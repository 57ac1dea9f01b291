//! Figures that a driver counts, for those who watch an agent.

use std::borrow::Cow;

/// One figure, with its values by label.
///
/// Names are `quarry_AREA_WHAT_UNIT`, in seconds and bytes, with `_total` for counters. Labels take few values: never
/// the id of a volume or the name of a host.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it says, in one sentence.
    pub help: &'static str,
    /// What kind of figure it is.
    pub kind: MetricKind,
    /// Its values, none of which has the labels of another.
    pub samples: Vec<Sample>,
}

/// What kind of figure a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows, from the start of the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution, from the start of the process.
    Histogram,
}

/// A value with its labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Label names and values.
    pub labels: Vec<(&'static str, Cow<'static, str>)>,
    /// The value.
    pub value: MetricValue,
}

/// The value of a metric.
#[derive(Debug, Clone, PartialEq)]
pub enum MetricValue {
    /// Of a counter or a gauge.
    Number(u64),
    /// Of a histogram.
    Distribution {
        /// Upper bounds in the metric's unit, rising, and how many values are in each bucket alone.
        buckets: Vec<(f64, u64)>,
        /// How many values are beyond the last bound.
        beyond: u64,
        /// The sum of all values.
        sum: f64,
    },
}

impl Metric {
    /// Makes a metric with one value and no labels.
    pub fn single(name: &'static str, help: &'static str, kind: MetricKind, value: u64) -> Self {
        Self {
            name,
            help,
            kind,
            samples: vec![Sample {
                labels: Vec::new(),
                value: MetricValue::Number(value),
            }],
        }
    }
}
