//! What was measured.

use serde::Serialize;

use crate::calls::Timing;

/// What was measured: a line for each kind of call.
#[derive(Debug, Default, Serialize)]
pub struct Report(Vec<Line>);

#[derive(Debug, Serialize)]
struct Line {
    call: &'static str,
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

impl Report {
    /// Takes in how long the calls of a kind took.
    pub fn add(&mut self, call: &'static str, mut timing: Timing) {
        timing.each.sort_unstable();
        let quantile = |share: f64| {
            let at = (timing.each.len() as f64 * share) as usize;
            let at = at.min(timing.each.len().saturating_sub(1));
            timing.each.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e6)
        };
        self.0.push(Line {
            call,
            per_second: timing.each.len() as f64 / timing.all.as_secs_f64(),
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
        });
    }
}
