//! Which seeds a suite runs over, and how a failure is told.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use quarry_thin::sim::Violation;

fn number_from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")),
    )
}

/// How long one seed may take, in seconds: hundreds of times what the slowest takes.
const SEED_DEADLINE: u64 = 120;

/// Runs the body of one seed, and ends the process with the seed's name when it hangs.
fn with_deadline<R>(name: &str, body: impl FnOnce() -> R) -> R {
    let (ended, running) = mpsc::channel::<()>();
    let name = name.to_owned();
    let deadline = number_from_environment("QUARRY_SIM_DEADLINE").unwrap_or(SEED_DEADLINE);
    thread::spawn(move || {
        if running.recv_timeout(Duration::from_secs(deadline)) == Err(RecvTimeoutError::Timeout) {
            eprintln!("{name}: hangs, no end after {deadline} s");
            std::process::abort();
        }
    });
    let result = body();
    drop(ended);
    result
}

/// Runs `body` for each seed and fails with the violations of the first few that find one.
pub fn for_each_seed(suite: &str, count: u64, body: impl Fn(u64) -> Result<(), Violation>) {
    let first = number_from_environment("QUARRY_SIM_FIRST").unwrap_or(0);
    let factor = number_from_environment("QUARRY_SIM_SEEDS").unwrap_or(1);
    let seeds = match number_from_environment("QUARRY_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => first..first + count * factor,
    };
    let total = seeds.end - seeds.start;
    let mut failures = Vec::new();
    for seed in seeds {
        let name = format!(
            "seed {seed} (replay: QUARRY_SIM_SEED={seed} cargo test -p quarry-thin --test crash {suite})"
        );
        let outcome = catch_unwind(AssertUnwindSafe(|| with_deadline(&name, || body(seed))));
        let problem = match outcome {
            Ok(Ok(())) => continue,
            Ok(Err(violation)) => violation.to_string(),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                format!("panicked: {}", text.unwrap_or("(no text)"))
            }
        };
        failures.push(format!("{name}: {problem}"));
        if failures.len() == 3 {
            break;
        }
    }
    assert!(
        failures.is_empty(),
        "{suite}: the first failures of {total} seeds\n{}",
        failures.join("\n\n")
    );
}
