//! A planned upgrade: on SIGUSR2 another program takes over in the same process, under hosts that stay logged in.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::agent_process::{AgentProcess, eventually};
use crate::command::{self, json};
use crate::initiator::attach;

/// How long a host's request may take while another program takes over.
const STALL: Duration = Duration::from_secs(1);

/// Makes a link name another file, as an upgrade does.
fn point(link: &Path, to: &Path) {
    let new = link.with_extension("new");
    symlink(to, &new).unwrap();
    std::fs::rename(new, link).unwrap();
}

#[test]
fn a_new_program_takes_over_and_hosts_see_a_pause_of_less_than_a_second() {
    // A hard link to the binary stands for the new program: another name for another file.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (old, new) = (
        Path::new(env!("CARGO_BIN_EXE_quarry")),
        folder.path().join("quarry-2"),
    );
    std::fs::hard_link(old, &new).unwrap();
    let link = folder.path().join("quarry");
    symlink(old, &link).unwrap();
    let dir = folder.path().join("agent");
    let agent = AgentProcess::start_program(&link, &dir);
    let pid = agent.pid();
    let volume = command::volume(&agent, "16MiB");
    let attached = attach(&agent, volume);
    let mut session = attached.session();
    session.run("write -P 0x11 0 1M");

    point(&link, &new);
    agent.ask_to_succeed();
    let (mut longest, begin) = (Duration::ZERO, Instant::now());
    for round in (0..=u8::MAX).cycle() {
        let request = Instant::now();
        session.run(&format!("write -P {round} 1M 64k"));
        session.run(&format!("read -P {round} 1M 64k"));
        longest = longest.max(request.elapsed());
        if agent.program() == new && begin.elapsed() > STALL {
            break;
        }
        assert!(begin.elapsed() < 20 * STALL, "nothing took over: {}", agent.log());
    }
    eprintln!("the longest pause was {longest:?}");
    assert!(longest < STALL, "{longest:?}");
    session.run("read -P 0x11 0 1M");
    assert_eq!(agent.pid(), pid);
    agent.expect_ready_again();
    assert_eq!(
        json(&agent, &format!("volume show {volume}"))["id"],
        volume.to_string()
    );

    // And that one lets another take over.
    point(&link, old);
    agent.succeed();
    assert_eq!(agent.program(), old);
    session.run("read -P 0x11 0 1M");
    let (took, status) = agent.terminate();
    assert!(
        status.success() && took < Duration::from_secs(5),
        "{status} {took:?}"
    );
}

#[test]
fn a_program_that_does_not_start_or_refuses_the_configuration_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("quarry");
    symlink(env!("CARGO_BIN_EXE_quarry"), &link).unwrap();
    let agent = AgentProcess::start_program(&link, &folder.path().join("agent"));
    let attached = attach(&agent, command::volume(&agent, "8MiB"));
    let mut session = attached.session();
    session.run("write -P 0x31 0 1M");
    let refusing = folder.path().join("refusing");
    std::fs::write(&refusing, "#!/bin/sh\necho no such key >&2\nexit 2\n").unwrap();
    std::fs::set_permissions(&refusing, std::fs::Permissions::from_mode(0o755)).unwrap();
    for (program, complaint) in [
        (folder.path().join("absent"), "cannot be run"),
        (refusing, "no such key"),
    ] {
        point(&link, &program);
        agent.ask_to_succeed();
        eventually("the agent says why nothing takes over", || {
            agent.log().contains(complaint).then_some(())
        });
        session.run("read -P 0x31 0 1M");
    }
    assert_eq!(agent.program(), Path::new(env!("CARGO_BIN_EXE_quarry")));
    assert!(!agent.log().contains("session closed"), "{}", agent.log());
    let (_, status) = agent.terminate();
    assert!(status.success(), "{status}");
}
