//! Whether a process that gives no answer works or waits for a disk, or does neither.
//!
//! A server on an overloaded disk is silent for long and comes back by itself; ended and started again, it would cost its
//! clients more, and find the same disk. So it is given time as long as it shows life, and little when it does not.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How much processor time is work and not the idling of a server's timers: hundredths of a second in [`Limits::look`].
const WORK_TICKS: u64 = 10;
/// How often a thread has to be seen that has work to do, in one of how many glances, for the same.
const ONE_IN: u32 = 5;

/// How long silence is borne.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long life is looked for, before what was seen is judged.
    pub look: Duration,
    /// How often nothing may be seen, one time after the other.
    pub looks: u32,
    /// The longest silence of a process that shows life.
    pub longest: Duration,
}

impl Default for Limits {
    /// Twice five seconds without life, two minutes with.
    fn default() -> Self {
        Self {
            look: Duration::from_secs(5),
            looks: 2,
            longest: Duration::from_secs(120),
        }
    }
}

/// The patience with one process, from when it was asked something.
#[derive(Debug)]
pub struct Patience {
    limits: Limits,
    /// Its folder below /proc.
    process: PathBuf,
    began: Instant,
    look_began: Instant,
    ticks: u64,
    /// How often it was looked at since `look_began`, and seen with work to do.
    glances: u32,
    at_work: u32,
    lifeless: u32,
}

impl Patience {
    /// Begins to wait for a process.
    pub fn with(pid: u32, limits: Limits) -> Self {
        Self::with_folder(PathBuf::from(format!("/proc/{pid}")), limits)
    }

    fn with_folder(process: PathBuf, limits: Limits) -> Self {
        let pulse = Pulse::of(&process);
        let now = Instant::now();
        Self {
            limits,
            process,
            began: now,
            look_began: now,
            ticks: pulse.ticks,
            glances: 0,
            at_work: 0,
            lifeless: 0,
        }
    }

    /// Tells whether to wait on. Called every now and then, several times in a [`Limits::look`]: waiting for a disk or for a
    /// processor is seen only while it lasts.
    pub fn goes_on(&mut self) -> bool {
        let pulse = Pulse::of(&self.process);
        self.glances += 1;
        self.at_work += u32::from(pulse.has_work);
        if self.began.elapsed() >= self.limits.longest {
            return false;
        }
        if self.look_began.elapsed() < self.limits.look {
            return true;
        }
        let shows_life = pulse.ticks >= self.ticks + WORK_TICKS || self.at_work * ONE_IN >= self.glances;
        self.lifeless = if shows_life { 0 } else { self.lifeless + 1 };
        (self.look_began, self.ticks) = (Instant::now(), pulse.ticks);
        (self.glances, self.at_work) = (0, 0);
        self.lifeless < self.limits.looks
    }
}

/// What can be seen of a process.
#[derive(Debug, Default, PartialEq, Eq)]
struct Pulse {
    /// The processor time of all its threads, in hundredths of a second.
    ticks: u64,
    /// Whether a thread runs or waits for a processor, or is in a wait that cannot be interrupted, as for a disk.
    has_work: bool,
}

impl Pulse {
    fn of(process: &Path) -> Self {
        let mut pulse = Self::default();
        for thread in fs::read_dir(process.join("task")).into_iter().flatten().flatten() {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            if let Some((state, ticks)) = parse(&stat) {
                pulse.ticks += ticks;
                pulse.has_work |= matches!(state, "R" | "D");
            }
        }
        pulse
    }
}

/// Parses a line of proc_pid_stat(5): the state is field 3, time in user mode field 14, in kernel mode field 15.
fn parse(stat: &str) -> Option<(&str, u64)> {
    // The name before may hold anything, parentheses too.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let user: u64 = fields.nth(10)?.parse().ok()?;
    let kernel: u64 = fields.next()?.parse().ok()?;
    Some((state, user + kernel))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::process::Command;

    const LIMITS: Limits = Limits {
        look: Duration::from_millis(300),
        looks: 2,
        longest: Duration::from_secs(3),
    };

    /// Waits until it is to end, and returns how long that was.
    fn patience_with(mut patience: Patience) -> Duration {
        let began = Instant::now();
        while patience.goes_on() {
            std::thread::sleep(Duration::from_millis(20));
        }
        began.elapsed()
    }

    #[test]
    fn one_that_does_nothing_is_given_up_soon_and_one_that_works_late() {
        let mut idle = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut busy = Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        let idle_wait = patience_with(Patience::with(idle.id(), LIMITS));
        let busy_wait = patience_with(Patience::with(busy.id(), LIMITS));
        for process in [&mut idle, &mut busy] {
            process.kill().unwrap();
            process.wait().unwrap();
        }
        assert!(
            idle_wait >= LIMITS.look * LIMITS.looks,
            "not at the first look: {idle_wait:?}"
        );
        assert!(idle_wait < LIMITS.longest, "{idle_wait:?}");
        assert!(busy_wait >= LIMITS.longest, "{busy_wait:?}");
    }

    #[test]
    fn one_that_waits_for_a_disk_is_given_time() {
        let folder = tempfile::tempdir().unwrap();
        let thread = |number: u32, state: &str| {
            let thread = folder.path().join(format!("task/{number}"));
            fs::create_dir_all(&thread).unwrap();
            let stat = format!("{number} (a ) b) {state} 1 1 1 0 -1 0 0 0 0 0 40 2 0 0 20 0 1 0 77 0 0");
            fs::write(thread.join("stat"), stat).unwrap();
        };
        thread(1, "S");
        thread(2, "D");
        let pulse = Pulse::of(folder.path());
        assert_eq!((pulse.ticks, pulse.has_work), (84, true));
        let wait = patience_with(Patience::with_folder(folder.path().to_owned(), LIMITS));
        assert!(wait >= LIMITS.longest, "{wait:?}");
        thread(2, "S");
        let wait = patience_with(Patience::with_folder(folder.path().to_owned(), LIMITS));
        assert!(wait < LIMITS.longest, "{wait:?}");
    }
}
