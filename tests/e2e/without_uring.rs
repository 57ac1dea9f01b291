//! An agent to which the kernel refuses io_uring, as most container runtimes have it do.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use crate::agent_process::AgentProcess;
use crate::command;
use crate::initiator::attach;

#[test]
fn an_agent_to_which_io_uring_is_refused_says_so_and_serves_its_volumes_all_the_same() {
    // On a disk: a pool in memory needs no ring.
    let temporary = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let folder = temporary.path().join("agent");
    let says_so = "io_uring is refused";
    let agent = AgentProcess::start(&folder);
    assert!(!agent.log().contains(says_so));
    let attached = attach(&agent, command::volume(&agent, "8MiB"));
    attached.qemu_io(&["write -P 0x61 0 1M", "flush"]).unwrap();
    agent.terminate();

    let program = temporary.path().join("start");
    let script = format!(
        "#!/bin/sh\nexec {}/scripts/lib/without-io-uring EPERM {} \"$@\"\n",
        env!("CARGO_MANIFEST_DIR"),
        env!("CARGO_BIN_EXE_quarry")
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let agent = AgentProcess::start_program(&program, &folder);
    let log = agent.log();
    assert!(log.contains(says_so), "{log}");
    let attached = attach(&agent, command::volume(&agent, "8MiB"));
    attached
        .qemu_io(&["write -P 0x62 0 1M", "flush", "read -P 0x62 0 1M"])
        .unwrap();
}
