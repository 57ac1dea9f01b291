//! An encrypted volume, from its creation to its end, as an operator and a host see it.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::agent_process::AgentProcess;
use crate::command::{self, id, json, refused};
use crate::initiator::{attach, detach};

/// Whether these bytes are in any file below a folder; the agent is not running.
fn is_in_a_file(folder: &Path, bytes: &[u8]) -> bool {
    fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return is_in_a_file(&path, bytes);
        }
        let is_regular = path.metadata().is_ok_and(|found| found.is_file());
        is_regular && memchr_of(&fs::read(&path).unwrap(), bytes)
    })
}

/// Searches for bytes that do not begin with a zero, in what is mostly zeros.
fn memchr_of(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.chunks(4096).enumerate().any(|(block, bytes)| {
        bytes.iter().any(|byte| *byte != 0)
            && (block * 4096..block * 4096 + bytes.len())
                .any(|at| haystack[at] == needle[0] && haystack[at..].starts_with(needle))
    })
}

#[test]
fn an_encrypted_volume_waits_for_its_key_after_a_kill_and_leaves_no_plaintext() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("agent");
    let key_file = |name: &str, byte: u8| {
        let path = temporary.path().join(name);
        fs::write(&path, format!("{}\n", format!("{byte:02x}").repeat(32))).unwrap();
        path.display().to_string()
    };
    let (right, wrong, new) = (
        key_file("right", 0xc5),
        key_file("wrong", 0xc6),
        key_file("new", 0xc7),
    );
    let agent = AgentProcess::start_with(&dir, &["--dev-pool-size", "256MiB"]);
    let made = json(&agent, &format!("volume create --size 64MiB --key-file {right}"));
    assert_eq!(made["encryption"], json!("unlocked"));
    let volume = id(&made);
    let attached = attach(&agent, volume);
    attached
        .qemu_io(&["write -P 0x5a 0 1M", "write -P 0x5b 4M 4k", "flush"])
        .unwrap();
    command::snapshot(&agent, volume);
    attached.qemu_io(&["write -P 0x5c 64k 4k", "flush"]).unwrap();
    agent.kill();
    for byte in [0x5a, 0x5b, 0x5c] {
        assert!(!is_in_a_file(&dir, &[byte; 64]), "the plaintext {byte:x}");
    }
    assert!(!is_in_a_file(&dir, &[0xc5; 32]), "the key");
    assert!(
        !is_in_a_file(&dir, "c5".repeat(32).as_bytes()),
        "the key in digits"
    );

    let agent = AgentProcess::start(&dir);
    assert_eq!(
        json(&agent, &format!("volume show {volume}"))["encryption"],
        json!("locked")
    );
    let shown = json(&agent, &format!("attachment show {}", attached.id));
    assert_eq!(shown["state"], json!("degraded"), "{shown}");
    assert!(attached.qemu_io(&["read 0 4k"]).is_err(), "there is no target");
    let complaint = refused(&agent, &format!("volume unlock {volume} --key-file {wrong}"), 1);
    assert!(complaint.contains("not the key"), "{complaint}");
    refused(&agent, &format!("volume unlock {volume} --key-file /dev/null"), 2);

    let unlocked = json(&agent, &format!("volume unlock {volume} --key-file {right}"));
    assert_eq!(unlocked["encryption"], json!("unlocked"));
    let shown = json(&agent, &format!("attachment show {}", attached.id));
    assert_ne!(shown["state"], json!("degraded"), "{shown}");
    attached
        .qemu_io(&[
            "read -P 0x5a 0 64k",
            "read -P 0x5c 64k 4k",
            "read -P 0x5a 68k 956k",
            "read -P 0 1M 3M",
            "read -P 0x5b 4M 4k",
        ])
        .unwrap();
    let complaint = refused(&agent, &format!("volume lock {volume}"), 1);
    assert!(complaint.contains("in use"), "{complaint}");
    json(
        &agent,
        &format!("volume change-key {volume} --key-file {right} --new-key-file {new}"),
    );
    detach(&agent, &attached);
    json(&agent, &format!("volume lock {volume}"));
    let complaint = refused(
        &agent,
        &format!("attachment create --volume {volume} --initiator iqn.2026-11.io.example:a"),
        1,
    );
    assert!(complaint.contains("quarry volume unlock"), "{complaint}");
    refused(&agent, &format!("volume unlock {volume} --key-file {right}"), 1);
    json(&agent, &format!("volume unlock {volume} --key-file {new}"));
    json(&agent, &format!("volume delete {volume} --cascade"));
    let log = agent.log();
    assert!(
        !log.contains("c5c5c5") && !log.contains("197, 197"),
        "the log has the key"
    );
}
