//! `connection_info` as OpenStack's own client library reads it.
//!
//! Needs Python with `os-brick` from PyPI, which `scripts/test` puts into `target/os-brick`. Without it the test
//! says so and does nothing, unless `QUARRY_REQUIRE_OS_BRICK` is set.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::agent_process::AgentProcess;
use crate::command;
use crate::initiator::{Attached, attach_as};

fn check(python: &Path, attached: &Attached, multipath: bool, mode: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/os_brick/check_connection_info.py");
    let mut child = Command::new(python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let input = json!({
        "connection_info": attached.connection_info,
        "multipath": multipath,
        "mode": mode,
    });
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.to_string().as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "os-brick does not take {}:\n{}{}",
        attached.connection_info,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn os_brick_reads_the_connection_info_and_logs_in_with_it() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/os-brick/bin/python");
    if !python.exists() {
        assert!(
            std::env::var_os("QUARRY_REQUIRE_OS_BRICK").is_none(),
            "{} is missing; scripts/test makes it",
            python.display()
        );
        eprintln!("SKIPPED: {} is missing; scripts/test makes it", python.display());
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&temporary.path().join("agent"));
    let volume = command::volume(&agent, "8MiB");
    let single = attach_as(&agent, volume, "iqn.1993-08.org.debian:01:single", "");
    check(&python, &single, false, "rw");
    let multipath = attach_as(
        &agent,
        volume,
        "iqn.1993-08.org.debian:01:multi",
        "--multipath --mode ro",
    );
    check(&python, &multipath, true, "ro");
}
