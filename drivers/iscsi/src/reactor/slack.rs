//! Whether a reactor has time to spare.
//!
//! What has completed may be answered all at once, with the fewest system calls, or a little at a time. In the second
//! case the initiator sends its next commands while the rest is still being answered, and the device is not left
//! without work meanwhile: a device that tells of many completions together would else be given as many requests
//! together, and be idle in between. That is worth its system calls as long as the reactor would have waited anyway.

use std::time::{Duration, Instant};

/// How long is looked at before judging anew.
const WINDOW: Duration = Duration::from_millis(1);

/// See the module.
pub struct Slack {
    began: Instant,
    waited: Duration,
    is_plenty: bool,
}

impl Slack {
    /// Begins without any.
    pub fn new(now: Instant) -> Self {
        Self {
            began: now,
            waited: Duration::ZERO,
            is_plenty: false,
        }
    }

    /// Takes in that the reactor waited for events.
    ///
    /// There is plenty once it has waited half of the time, and no longer when it is less than a fifth: answering a little
    /// at a time takes some of it.
    pub fn waited(&mut self, from: Instant, until: Instant) {
        self.waited += until - from;
        let window = until - self.began;
        if window < WINDOW {
            return;
        }
        let least = window / if self.is_plenty { 5 } else { 2 };
        self.is_plenty = self.waited >= least;
        self.began = until;
        self.waited = Duration::ZERO;
    }

    /// Tells whether there is plenty.
    pub fn is_plenty(&self) -> bool {
        self.is_plenty
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Works and waits in turns of 100 us, `percent` of which is waiting, for some windows.
    fn run(slack: &mut Slack, now: &mut Instant, percent: u64) -> bool {
        for _ in 0..50 {
            let waits = *now + Duration::from_micros(100 - percent);
            *now = waits + Duration::from_micros(percent);
            slack.waited(waits, *now);
        }
        slack.is_plenty()
    }

    #[test]
    fn there_is_plenty_from_half_of_the_time_on_down_to_a_fifth() {
        let mut now = Instant::now();
        let mut slack = Slack::new(now);
        assert!(!slack.is_plenty());
        assert!(!run(&mut slack, &mut now, 40));
        assert!(run(&mut slack, &mut now, 60));
        assert!(run(&mut slack, &mut now, 30));
        assert!(!run(&mut slack, &mut now, 10));
        assert!(!run(&mut slack, &mut now, 30));
    }

    #[test]
    fn a_long_wait_is_plenty_at_once() {
        let now = Instant::now();
        let mut slack = Slack::new(now);
        slack.waited(now, now + Duration::from_secs(1));
        assert!(slack.is_plenty());
    }
}
