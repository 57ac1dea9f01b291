//! Thousands of connections: what they cost is bounded, and idle ones cost next to nothing. `benches/crowd.rs` has the figures.

mod client;
mod rig;

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use client::{Client, Login};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use quarry_contract::Access;
use rig::{DEADLINE, INITIATOR, Rig, eventually, grant};

/// What is measured here is the whole process's, so its tests run one after the other.
static ALONE: Mutex<()> = Mutex::new(());

/// Keeps the other tests away, and allows as many descriptors as the system does.
fn alone() -> MutexGuard<'static, ()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("a limit");
    assert!(
        most > 13_000,
        "these tests have 12,300 descriptors open, and {most} are allowed"
    );
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The threads of a target: two reactors, and one in the background.
const THREADS: usize = 3;

fn target_for_many() -> Rig {
    let rig = Rig::with(
        64 << 20,
        |config| config.max_sessions = 20_000,
        &[grant(INITIATOR, Access::ReadWrite)],
    );
    eventually("its threads are there, and no others", || {
        work().threads == THREADS
    });
    rig
}

fn log_in(rig: &Rig, number: usize) -> Client {
    let [high, middle, low] = [number >> 16, number >> 8, number].map(|byte| byte as u8);
    let login = Login {
        isid: [0x40, 0, 0, high, middle, low],
        ..Login::to(rig)
    };
    Client::log_in(rig, &login).expect("the login")
}

/// What the target's threads have done since they began (man 5 proc).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Work {
    threads: usize,
    cpu: Duration,
    wake_ups: u64,
}

fn work() -> Work {
    let mut work = Work {
        threads: 0,
        cpu: Duration::ZERO,
        wake_ups: 0,
    };
    for task in fs::read_dir("/proc/self/task").expect("the threads") {
        let path = task.expect("a thread").path();
        let read = |name: &str| fs::read_to_string(path.join(name)).unwrap_or_default();
        if !read("comm").starts_with("iscsi-") {
            continue;
        }
        work.threads += 1;
        let on_processor = read("schedstat");
        let nanos = on_processor.split(' ').next().and_then(|text| text.parse().ok());
        work.cpu += Duration::from_nanos(nanos.expect("a time"));
        let status = read("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        work.wake_ups += line
            .and_then(|count| count.trim().parse::<u64>().ok())
            .expect("a count");
    }
    work
}

/// The memory of this process, both ends of all connections, in KiB.
fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("the status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.expect("a number")
}

/// Waits until the target's threads have been still for a while.
fn settle() {
    let mut before = (work().cpu, Instant::now());
    eventually("the target has nothing to do", || {
        let cpu = work().cpu;
        if before.1.elapsed() < Duration::from_millis(100) {
            return false;
        }
        let is_still = cpu - before.0 < Duration::from_millis(1);
        before = (cpu, Instant::now());
        is_still
    });
}

/// Listens to a session for so long; the target says nothing to one that is idle, but for a ping every half minute.
fn assert_silent_for(client: &mut Client, time: Duration) {
    client.socket.set_read_timeout(Some(time)).expect("a timeout");
    let heard = client.socket.read(&mut [0; 48]);
    let is_silence = heard
        .as_ref()
        .is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    assert!(is_silence, "{heard:?}");
    client.socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
}

#[test]
fn a_thousand_idle_sessions_take_no_processor_and_little_memory() {
    let _alone = alone();
    let rig = target_for_many();
    let mut first = log_in(&rig, 0);
    let resident = resident_kib();
    let sessions: Vec<Client> = (1..=1000).map(|number| log_in(&rig, number)).collect();
    assert_eq!(rig.session_count(), 1001);
    settle();
    let before = work();
    let begin = Instant::now();
    assert_silent_for(&mut first, Duration::from_secs(2));
    let (after, taken) = (work(), begin.elapsed());
    let busy = (after.cpu - before.cpu).as_secs_f64() / taken.as_secs_f64();
    let wake_ups = (after.wake_ups - before.wake_ups) as f64 / taken.as_secs_f64();
    let each = (resident_kib().saturating_sub(resident)) as f64 / 1000.0;
    println!(
        "{:.3} % of a processor, {wake_ups:.1} wake-ups a second, {each:.1} KiB each",
        busy * 100.0
    );
    assert!(busy < 0.005, "{:.2} % of a processor", busy * 100.0);
    assert!(wake_ups < 10.0, "{wake_ups:.1} wake-ups a second");
    assert!(each < 8.0, "{each:.1} KiB a session");
    assert_eq!(after.threads, THREADS);
    assert_eq!(first.read(0, 8).status, 0);
    drop(sessions);
}

#[test]
fn ten_thousand_connections_are_bounded_and_everybody_else_goes_on() {
    let _alone = alone();
    let rig = target_for_many();
    let mut first = log_in(&rig, 0);
    assert_eq!(first.write(0, &[7; 4096]).status, 0);
    let resident = resident_kib();
    let sessions: Vec<Client> = (1..=2000).map(|number| log_in(&rig, number)).collect();
    // Of these only as many are kept as may be on their way to a login.
    let silent: Vec<TcpStream> = (0..8000)
        .map(|_| TcpStream::connect(rig.address()).expect("a connection"))
        .collect();
    let last = log_in(&rig, 2001);
    assert_eq!(first.read(0, 8).data, [7; 4096]);
    let grown_mib = resident_kib().saturating_sub(resident) / 1024;
    println!("{grown_mib} MiB for 2,001 sessions and 8,000 connections that say nothing");
    assert!(grown_mib < 48, "{grown_mib} MiB");
    assert_eq!(work().threads, THREADS);
    assert_eq!(rig.session_count(), 2002);
    drop((sessions, silent, last));
    eventually("their sessions have ended", || rig.session_count() == 1);
    assert_eq!(first.read(0, 8).data, [7; 4096]);
}
