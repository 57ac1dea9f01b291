//! An incremental backup: only what `extents` names is copied, and the copy is whole.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use serde_json::Value;

use crate::agent_process::AgentProcess;
use crate::command::{self, json};
use crate::initiator::{attach, detach};

const MIB: u64 = 1 << 20;

#[test]
fn a_copy_of_only_the_extents_is_the_volume() {
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&temporary.path().join("agent"));
    let volume = command::volume(&agent, "256MiB");
    let attached = attach(&agent, volume);
    attached
        .qemu_io(&["write -P 0x11 1M 3M", "write -P 0x12 200M 100k", "flush"])
        .unwrap();
    let first = command::snapshot(&agent, volume);
    attached
        .qemu_io(&[
            "write -P 0x21 2M 64k",
            "write -P 0x22 100M 1M",
            "discard 200M 1M",
            "flush",
        ])
        .unwrap();
    let second = command::snapshot(&agent, volume);
    // What goes on afterwards is in neither.
    attached.qemu_io(&["write -P 0x33 0 8M", "flush"]).unwrap();

    let backup = temporary.path().join("backup.raw");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&backup)
        .unwrap();
    file.set_len(256 * MIB).unwrap();
    let mut copied = Vec::new();
    for (snapshot, since) in [
        (first, String::new()),
        (second, format!("--since snapshot:{first}")),
    ] {
        let extents = json(&agent, &format!("snapshot extents {snapshot} {since}"));
        let source = temporary.path().join(format!("{snapshot}.raw"));
        let clone = command::id(&json(
            &agent,
            &format!("volume create --from snapshot:{snapshot}"),
        ));
        let attached = attach(&agent, clone);
        attached.read_image(&source);
        let contents = std::fs::read(&source).unwrap();
        let mut bytes = 0;
        for extent in extents.as_array().unwrap() {
            let number = |key: &str| extent[key].as_u64().unwrap();
            let (offset, length) = (number("offset_bytes"), number("length_bytes"));
            if extent["zeros"] == Value::Bool(true) {
                file.write_all_at(&vec![0; length as usize], offset).unwrap();
            } else {
                let range = offset as usize..(offset + length) as usize;
                file.write_all_at(&contents[range], offset).unwrap();
                bytes += length;
            }
        }
        copied.push(bytes);
        assert!(
            std::fs::read(&backup).unwrap() == contents,
            "the copy of {snapshot} differs: {extents}"
        );
        detach(&agent, &attached);
        json(&agent, &format!("volume delete {clone}"));
    }
    assert!(copied[0] <= 4 * MIB, "{copied:?}");
    assert!(copied[1] <= MIB + 2 * 65536, "{copied:?}");
}
