//! The main job, from the first volume to the last delete, as a user and a host see it.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::agent_process::AgentProcess;
use crate::command::{self, quarry, refused};
use crate::initiator::{QEMU_NAME, attach, attach_as, detach};

const MIB: u64 = 1 << 20;

/// Fills a file with bytes that repeat nowhere near, so that a wrong offset shows.
fn write_pattern(path: &Path, bytes: u64) {
    let words = bytes / 8;
    let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap());
    for word in 0..words {
        // Holes of 1 MiB every 4 MiB: zeros are data too.
        let value = if (word * 8 / MIB).is_multiple_of(4) {
            0
        } else {
            word.wrapping_mul(0x9E37_79B9_7F4A_7C15)
        };
        content.extend_from_slice(&value.to_le_bytes());
    }
    std::fs::write(path, content).unwrap();
}

#[test]
fn an_image_survives_snapshot_overwrite_clone_and_restart_byte_for_byte() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("agent");
    let image = temporary.path().join("image.raw");
    write_pattern(&image, 32 * MIB);

    let agent = AgentProcess::start(&dir);
    let volume = command::volume(&agent, "32MiB");
    let attached = attach(&agent, volume);
    attached.write_image(&image);

    let snapshot = command::snapshot(&agent, volume);
    attached.qemu_io(&["write -P 0x55 5M 3M", "flush"]).unwrap();

    let clone = command::id(&command::json(
        &agent,
        &format!("volume create --from snapshot:{snapshot}"),
    ));
    let attached_clone = attach(&agent, clone);
    let copy = temporary.path().join("copy.raw");
    attached_clone.read_image(&copy);
    assert!(
        std::fs::read(&image).unwrap() == std::fs::read(&copy).unwrap(),
        "the clone differs from the image"
    );
    attached.qemu_io(&["read -P 0x55 5M 3M"]).unwrap();

    agent.kill();
    let agent = AgentProcess::start(&dir);
    attached_clone.read_image(&copy);
    assert!(
        std::fs::read(&image).unwrap() == std::fs::read(&copy).unwrap(),
        "the clone differs after a restart"
    );
    attached.qemu_io(&["read -P 0x55 5M 3M"]).unwrap();

    // Back to the snapshot, which the volume must be detached for.
    let complaint = refused(
        &agent,
        &format!("volume revert {volume} --to-snapshot {snapshot}"),
        1,
    );
    assert!(complaint.contains(&attached.id.to_string()), "{complaint}");
    detach(&agent, &attached);
    command::json(
        &agent,
        &format!("volume revert {volume} --to-snapshot {snapshot}"),
    );
    let attached = attach(&agent, volume);
    attached.read_image(&copy);
    assert!(
        std::fs::read(&image).unwrap() == std::fs::read(&copy).unwrap(),
        "the volume differs from the snapshot it was reverted to"
    );

    // Deletes, in an order that leaves the clone without its source.
    detach(&agent, &attached);
    let complaint = refused(&agent, &format!("volume delete {volume}"), 1);
    assert!(complaint.contains(&snapshot.to_string()), "{complaint}");
    command::json(&agent, &format!("volume delete {volume} --cascade"));
    attached_clone.read_image(&copy);
    assert!(
        std::fs::read(&image).unwrap() == std::fs::read(&copy).unwrap(),
        "the clone differs after its source is gone"
    );
    detach(&agent, &attached_clone);
    command::json(&agent, &format!("volume delete {clone}"));
    assert_eq!(command::json(&agent, "volume list"), json!([]));
    assert_eq!(command::json(&agent, "snapshot list"), json!([]));
    assert_eq!(command::json(&agent, "attachment list"), json!([]));
}

#[test]
fn a_volume_grows_while_a_host_writes_to_it() {
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&temporary.path().join("agent"));
    let volume = command::volume(&agent, "8MiB");
    let attached = attach(&agent, volume);
    let mut session = attached.session();
    session.run("write -P 0x11 0 8M");

    let grown = command::json(&agent, &format!("volume extend {volume} --size 16MiB"));
    assert_eq!(grown["size_bytes"], 16 * MIB);
    session.run("write -P 0x22 4M 4M");

    // A host that logs in afresh sees the new size; what was added reads zero.
    attached
        .qemu_io(&[
            "read -P 0x11 0 4M",
            "read -P 0x22 4M 4M",
            "read -P 0 8M 8M",
            "write -P 0x33 15M 1M",
        ])
        .unwrap();
    let complaint = refused(&agent, &format!("volume extend {volume} --size 8MiB"), 2);
    assert!(complaint.contains(&volume.to_string()), "{complaint}");
}

#[test]
fn a_read_only_attachment_can_read_and_not_write() {
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&temporary.path().join("agent"));
    let volume = command::volume(&agent, "8MiB");
    let writer = attach(&agent, volume);
    writer.qemu_io(&["write -P 0x77 0 1M", "flush"]).unwrap();

    let reader = attach_as(&agent, volume, "iqn.2026-11.io.quarry.test:reader", "--mode ro");
    assert_eq!(reader.connection_info["data"]["access_mode"], "ro");
    reader.qemu_io_read_only(&["read -P 0x77 0 1M"]).unwrap();
    let complaint = reader.qemu_io(&["write -P 0x88 0 1M"]).unwrap_err();
    assert!(
        complaint.contains("read-only")
            || complaint.contains("write protected")
            || complaint.contains("not permitted"),
        "{complaint}"
    );
    writer.qemu_io(&["read -P 0x77 0 1M"]).unwrap();
}

#[test]
fn only_the_attached_host_with_its_own_secret_can_log_in() {
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&temporary.path().join("agent"));
    let volume = command::volume(&agent, "8MiB");
    let attached = attach(&agent, volume);
    attached.qemu_io(&["read 0 4k"]).unwrap();

    let mut stranger = attached.clone();
    stranger.initiator = "iqn.2026-11.io.quarry.test:stranger".to_owned();
    stranger.qemu_io(&["read 0 4k"]).unwrap_err();

    let mut guesser = attached.clone();
    guesser.connection_info["data"]["auth_password"] = json!("abcdefghijklmnop");
    guesser.qemu_io(&["read 0 4k"]).unwrap_err();

    let other_volume = command::volume(&agent, "8MiB");
    let other = attach(&agent, other_volume);
    let mut crossed = attached.clone();
    crossed.connection_info["data"]["target_iqn"] = other.connection_info["data"]["target_iqn"].clone();
    if other.connection_info["data"]["auth_password"] != attached.connection_info["data"]["auth_password"] {
        crossed.qemu_io(&["read 0 4k"]).unwrap_err();
    }
    attached.qemu_io(&["read 0 4k"]).unwrap();
}

#[test]
fn the_secret_is_in_the_answer_and_in_no_log_and_no_argument() {
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&temporary.path().join("agent"));
    let volume = command::volume(&agent, "8MiB");
    let attached = attach(&agent, volume);
    attached.qemu_io(&["read 0 4k"]).unwrap();
    let secret = attached.connection_info["data"]["auth_password"]
        .as_str()
        .unwrap();
    assert!(secret.len() >= 12, "{secret}");
    assert!(!agent.log().contains(secret), "the log has the secret");
    let shown = quarry(&agent, &format!("attachment show {}", attached.id));
    assert!(!shown.stdout().contains(secret), "the table has the secret");
    let listed = quarry(&agent, "attachment list -o json");
    assert!(!listed.stdout().contains(secret), "the list has the secret");
}

#[test]
fn two_attachments_of_one_host_share_its_right_and_the_last_one_ends_it() {
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&temporary.path().join("agent"));
    let volume = command::volume(&agent, "8MiB");
    let first = attach(&agent, volume);
    let second = attach(&agent, volume);
    assert_ne!(first.id, second.id);
    assert_eq!(
        first.connection_info["data"]["auth_password"],
        second.connection_info["data"]["auth_password"]
    );

    let answer = command::json(&agent, &format!("attachment delete {}", first.id));
    assert_eq!(answer["host_still_attached"], true);
    second.qemu_io(&["write -P 1 0 4k"]).unwrap();
    let answer = command::json(&agent, &format!("attachment delete {}", second.id));
    assert_eq!(answer["host_still_attached"], false);
    second.qemu_io(&["read 0 4k"]).unwrap_err();
}

#[test]
fn a_reader_that_goes_away_early_is_no_failure() {
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&temporary.path().join("agent"));
    for _ in 0..3 {
        command::volume(&agent, "1MiB");
    }
    let line = format!(
        "{} volume list -o json | true; echo ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_quarry")
    );
    let output = Command::new("bash")
        .args(["-c", &line])
        .env("QUARRY_ENDPOINT", &agent.endpoint)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "0");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn discovery_tells_a_host_of_its_own_targets_only() {
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&temporary.path().join("agent"));
    let volume = command::volume(&agent, "1MiB");
    let attached = attach_as(&agent, volume, "iqn.2026-11.io.quarry.test:other", "");
    let listing = Command::new("iscsi-ls")
        .args(["-i", QEMU_NAME, &format!("iscsi://{}", agent.portal)])
        .output()
        .expect("iscsi-ls (package libiscsi-bin) is installed");
    let said = String::from_utf8_lossy(&listing.stdout).into_owned();
    let target = attached.connection_info["data"]["target_iqn"].as_str().unwrap();
    assert!(!said.contains(target), "a stranger was told of {target}: {said}");
}
