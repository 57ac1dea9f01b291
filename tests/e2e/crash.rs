//! `kill -9` under load: what was flushed is there, and hosts find everything where it was.

use serde_json::Value;

use crate::agent_process::AgentProcess;
use crate::command::{self, json};
use crate::config;
use crate::initiator::{Attached, attach, attach_as};

/// Returns the connection info of an attachment as the command line prints it now.
fn connection_info(agent: &AgentProcess, attached: &Attached) -> Value {
    json(agent, &format!("attachment show {}", attached.id))["connection_info"].clone()
}

#[test]
fn flushed_data_survives_a_kill_in_the_middle_of_writes() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("agent");
    kill_in_the_middle_of_writes(|| AgentProcess::start(&dir));
}

/// The pool's file is written through the page cache: a flush must still put both data and mappings behind it.
#[test]
fn flushed_data_survives_a_kill_when_the_pool_goes_through_the_page_cache() {
    let temporary = tempfile::tempdir().unwrap();
    // It must be the same one after each start.
    let portal = config::free_address(73);
    let pool = "size = \"1GiB\"\npage_cache = true";
    let config = config::write(temporary.path(), pool, &[&portal.to_string()], "");
    kill_in_the_middle_of_writes(|| AgentProcess::start_configured(&config));
}

fn kill_in_the_middle_of_writes(start: impl Fn() -> AgentProcess) {
    let mut agent = start();
    let volume = command::volume(&agent, "64MiB");
    let attached = attach(&agent, volume);

    for round in 1..=5u8 {
        let mut session = attached.session();
        session.run(&format!("write -P {round} 0 8M"));
        session.run(&format!("write -P {round} 40M 512k"));
        session.run("flush");
        // Many writes under way, none of them flushed, when the end comes.
        for slot in 0..16 {
            session.run(&format!("aio_write -q -P 0xee {}M 1M", 16 + slot));
        }
        agent.kill();
        drop(session);
        agent = start();
        attached
            .qemu_io(&[
                &format!("read -P {round} 0 8M"),
                &format!("read -P {round} 40M 512k"),
            ])
            .unwrap_or_else(|said| panic!("round {round}: flushed data is gone: {said}"));
    }
}

#[test]
fn a_restart_keeps_exports_and_connection_info_to_the_byte() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("agent");
    let agent = AgentProcess::start(&dir);
    let first = attach(&agent, command::volume(&agent, "8MiB"));
    let second = attach_as(
        &agent,
        command::volume(&agent, "8MiB"),
        "iqn.2026-11.io.quarry.test:host2",
        "--multipath --mode ro --host host2 --label a=b",
    );
    let portal = agent.portal;
    let before = [connection_info(&agent, &first), connection_info(&agent, &second)];
    assert_eq!(before[0], first.connection_info, "create and show differ");
    first.qemu_io(&["write -P 0x41 0 1M", "flush"]).unwrap();

    agent.kill();
    let agent = AgentProcess::start(&dir);
    assert_eq!(agent.portal, portal, "the portal has moved");
    // The first thing after the ready line is a login: exports are there before calls are answered.
    first.qemu_io(&["read -P 0x41 0 1M"]).unwrap();
    second.qemu_io_read_only(&["read -P 0 0 1M"]).unwrap();
    let after = [connection_info(&agent, &first), connection_info(&agent, &second)];
    assert_eq!(
        before.map(|info| info.to_string()),
        after.map(|info| info.to_string())
    );

    let (_, status) = agent.terminate();
    assert!(status.success(), "{status}");
    let agent = AgentProcess::start(&dir);
    first.qemu_io(&["read -P 0x41 0 1M"]).unwrap();
    assert_eq!(connection_info(&agent, &first), first.connection_info);
}

#[test]
fn a_session_goes_on_after_a_restart_without_an_error() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("agent");
    let agent = AgentProcess::start(&dir);
    let attached = attach(&agent, command::volume(&agent, "8MiB"));
    let mut session = attached.session();
    session.run("write -P 0x21 0 1M");
    session.run("flush");
    agent.kill();
    let _agent = AgentProcess::start(&dir);
    // The initiator reconnects by itself and sends the command again.
    session.run("write -P 0x22 1M 1M");
    session.run("read -P 0x21 0 1M");
    session.run("read -P 0x22 1M 1M");
}
