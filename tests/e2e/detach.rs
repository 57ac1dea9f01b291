//! Detach cuts the host's session before it answers; nothing of that host reaches the volume afterwards.

use crate::agent_process::AgentProcess;
use crate::command::{self, json};
use crate::initiator::{QEMU_NAME, attach, attach_as, detach};

#[test]
fn a_detached_host_is_cut_off_before_the_answer_and_can_not_come_back() {
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&temporary.path().join("agent"));
    let volume = command::volume(&agent, "64MiB");
    let attached = attach(&agent, volume);
    let mut session = attached.session();
    session.run("write -P 0x01 0 64M");
    assert_eq!(json(&agent, "attachment sessions")[0]["initiator"], QEMU_NAME);

    // Writes are on their way when the right is taken.
    for slot in 0..32 {
        session.run(&format!("aio_write -q -P 0xbb {}M 2M", slot * 2));
    }
    detach(&agent, &attached);
    assert_eq!(json(&agent, "attachment sessions"), serde_json::json!([]));

    // What the volume holds now is what it keeps: another host reads it twice, with the cut one still trying.
    let other = attach_as(&agent, volume, "iqn.2026-11.io.quarry.test:other", "");
    let first = temporary.path().join("first.raw");
    let second = temporary.path().join("second.raw");
    other.read_image(&first);
    session.send("aio_write -q -P 0xcc 0 64M");
    attached.qemu_io(&["read 0 4k"]).unwrap_err();
    other.read_image(&second);
    let (first, second) = (std::fs::read(first).unwrap(), std::fs::read(second).unwrap());
    assert!(first == second, "a detached host has written");
    assert!(!second.contains(&0xcc), "a detached host has written");
}

#[test]
fn detaching_one_host_leaves_the_others_alone() {
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&temporary.path().join("agent"));
    let volume = command::volume(&agent, "8MiB");
    let stays = attach_as(&agent, volume, "iqn.2026-11.io.quarry.test:stays", "");
    let leaves = attach_as(&agent, volume, "iqn.2026-11.io.quarry.test:leaves", "");
    let mut session = stays.session();
    session.run("write -P 0x01 0 1M");
    leaves.qemu_io(&["read -P 0x01 0 1M"]).unwrap();
    let before = json(&agent, "attachment sessions");
    detach(&agent, &leaves);
    session.run("write -P 0x02 0 1M");
    assert_eq!(
        json(&agent, "attachment sessions"),
        before,
        "the other host's session is a new one"
    );
    leaves.qemu_io(&["read 0 4k"]).unwrap_err();
}

#[test]
fn detach_can_be_repeated_and_a_new_attachment_has_a_new_secret() {
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&temporary.path().join("agent"));
    let volume = command::volume(&agent, "8MiB");
    let first = attach(&agent, volume);
    detach(&agent, &first);
    detach(&agent, &first);
    let second = attach(&agent, volume);
    assert_ne!(
        first.connection_info["data"]["auth_password"],
        second.connection_info["data"]["auth_password"]
    );
    assert_eq!(
        first.connection_info["data"]["target_iqn"],
        second.connection_info["data"]["target_iqn"]
    );
    first.qemu_io(&["read 0 4k"]).unwrap_err();
    second.qemu_io(&["read 0 4k"]).unwrap();
}
