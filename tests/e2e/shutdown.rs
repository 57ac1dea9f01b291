//! Starting and stopping: one ready line, a fast stop, one agent for one pool.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::agent_process::AgentProcess;
use crate::command;
use crate::initiator::attach;

#[test]
fn an_idle_agent_stops_in_under_a_second() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("agent");
    let agent = AgentProcess::start(&dir);
    let attached = attach(&agent, command::volume(&agent, "8MiB"));
    attached.qemu_io(&["write -P 0x31 0 1M"]).unwrap();
    // An idle session is still idle.
    let session = attached.session();
    let (took, status) = agent.terminate();
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(1), "it took {took:?}");
    drop(session);

    // A clean stop flushes: nobody has flushed the write above.
    let agent = AgentProcess::start(&dir);
    attached.qemu_io(&["read -P 0x31 0 1M"]).unwrap();
    let (took, _) = agent.terminate();
    assert!(took < Duration::from_secs(1), "it took {took:?}");
}

#[test]
fn a_second_agent_is_refused_with_the_first_ones_pid_and_does_not_disturb_it() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("agent");
    let agent = AgentProcess::start(&dir);
    let attached = attach(&agent, command::volume(&agent, "8MiB"));
    let refusal = AgentProcess::try_start(&dir, &[])
        .err()
        .expect("a second agent must not start");
    assert!(!refusal.status.success());
    assert!(
        refusal.stderr.contains(&agent.pid().to_string()),
        "no pid {} in: {}",
        agent.pid(),
        refusal.stderr
    );
    attached.qemu_io(&["write 0 1M"]).unwrap();

    // The lock dies with its holder, however that dies.
    agent.kill();
    AgentProcess::start(&dir);
}

#[test]
fn a_command_without_an_agent_says_where_it_looked_and_exits_with_4() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("agent");
    let (took, status) = {
        let agent = AgentProcess::start(&dir);
        let endpoint = agent.endpoint.clone();
        let stopped = agent.terminate();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_quarry"))
            .args(["pool", "list", "--endpoint", &endpoint])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(4));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("error: no agent answers at unix:"), "{said}");
        assert!(said.contains("next step: "), "{said}");
        stopped
    };
    assert!(status.success() && took < Duration::from_secs(1));
}

#[test]
fn an_agent_that_was_started_without_children_in_mind_can_wait_for_those_it_has() {
    let temporary = tempfile::tempdir().unwrap();
    let program = temporary.path().join("start");
    let quarry = env!("CARGO_BIN_EXE_quarry");
    // A shell takes the default back before it starts anything.
    let script = format!(
        "#!/usr/bin/env python3\nimport os, signal, sys\n\
         signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nos.execv('{quarry}', ['{quarry}', *sys.argv[1:]])\n"
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let agent = AgentProcess::start_program(&program, &temporary.path().join("agent"));
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .unwrap();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    assert_eq!(
        ignored >> (nix::sys::signal::Signal::SIGCHLD as i32 - 1) & 1,
        0,
        "SIGCHLD is not ignored"
    );
}
