//! Limits of a volume, as an operator sets them and a host feels them.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::agent_process::AgentProcess;
use crate::command::{self, json, refused};
use crate::initiator::{Attached, attach, detach};

const TEN_MIB: u64 = 10 << 20;

/// Writes 10 MiB, 256 KiB at a time, and returns how long that took without logging in and out.
fn write_ten_mebibytes(attached: &Attached) -> Duration {
    let commands: Vec<String> = (0..40).map(|at| format!("write -q {}k 256k", at * 256)).collect();
    let mut session = attached.session();
    let begin = Instant::now();
    for command in &commands {
        session.run(command);
    }
    begin.elapsed()
}

#[test]
fn limits_are_changed_under_a_host_and_survive_kill_and_restart() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("agent");
    let agent = AgentProcess::start(&dir);
    let volume = command::volume(&agent, "64MiB");
    let attached = attach(&agent, volume);
    assert_eq!(
        attached.connection_info["data"]["qos_specs"],
        json!(null),
        "ours to keep"
    );
    let free = write_ten_mebibytes(&attached);

    let limited = json(
        &agent,
        &format!("volume limit {volume} --limit write-bytes=5MiB --limit iops=1000:2000"),
    );
    assert_eq!(limited["limits"]["write"]["bytes_per_second"], json!(5 << 20));
    assert_eq!(limited["limits"]["total"]["burst_commands"], json!(2000));
    assert_eq!(limited["limits"]["read"]["iops"], json!(null));
    let near_two_seconds = Duration::from_millis(1700)..Duration::from_millis(3500);
    let slow = write_ten_mebibytes(&attached);
    assert!(
        near_two_seconds.contains(&slow),
        "{TEN_MIB} bytes in {slow:?}, {free:?} without a limit"
    );

    agent.kill();
    let agent = AgentProcess::start(&dir);
    let slow = write_ten_mebibytes(&attached);
    assert!(
        near_two_seconds.contains(&slow),
        "{TEN_MIB} bytes in {slow:?} after a restart"
    );

    // A host that waits is let go by a new limit, and cut by a detach.
    let crawl = format!("volume limit {volume} --limit write-bytes=4KiB");
    json(&agent, &crawl);
    let mut session = attached.session();
    session.run("aio_write -q 0 1M");
    session.run("aio_write -q 1M 1M");
    json(&agent, &format!("volume limit {volume}"));
    session.run("aio_flush");
    json(&agent, &crawl);
    session.run("aio_write -q 0 1M");
    session.run("aio_write -q 1M 1M");
    let begin = Instant::now();
    detach(&agent, &attached);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());

    let complaint = refused(&agent, &format!("volume limit {volume} --limit bytes=4095"), 2);
    assert!(complaint.contains("4096"), "{complaint}");
    refused(&agent, &format!("volume limit {volume} --limit speed=1"), 2);
}
