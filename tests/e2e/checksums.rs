//! A checksummed volume on a medium that rots, as an operator and a host see it.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::agent_process::{AgentProcess, eventually, pool_file};
use crate::command::{self, id};
use crate::initiator::attach;

/// Where in a file the first block is that holds nothing but `byte`.
fn block_of(file: &Path, byte: u8) -> u64 {
    let bytes = std::fs::read(file).unwrap();
    let mut blocks = bytes.chunks(4096);
    let number = blocks.position(|block| block.iter().all(|found| *found == byte));
    number.expect("the block is on the medium") as u64 * 4096
}

#[test]
fn a_rotten_block_is_an_error_to_its_host_and_is_named_by_the_scrub() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("agent");
    let agent = AgentProcess::start_with(&dir, &["--dev-pool-size", "256MiB"]);
    let nothing = command::json(&agent, "pool scrub --pool default");
    assert_eq!(
        (&nothing["state"], &nothing["begin_time"]),
        (&json!("never"), &Value::Null)
    );
    let made = command::json(&agent, "volume create --size 16MiB --checksums");
    assert_eq!(made["checksums"], json!(true));
    let volume = id(&made);
    let attached = attach(&agent, volume);
    attached
        .qemu_io(&["write -P 0x31 0 4M", "write -P 0x32 1M 4k", "flush"])
        .unwrap();
    let read = |range: &str, byte: &str| attached.qemu_io(&[&format!("read -P {byte} {range}")]);
    read("0 1M", "0x31").unwrap();
    read("1M 4k", "0x32").unwrap();

    let file = pool_file(&dir);
    let at = block_of(&file, 0x32);
    let medium = OpenOptions::new().write(true).open(&file).unwrap();
    medium.write_all_at(&[0x33], at + 100).unwrap();
    medium.sync_all().unwrap();
    let said = read("1M 4k", "0x32").unwrap_err();
    assert!(said.to_lowercase().contains("error"), "{said}");
    read("0 1M", "0x31").unwrap();
    read("1028k 1M", "0x31").unwrap();

    let scrub = |more: &str, code: i32| -> Value {
        let ran = command::quarry(&agent, &format!("pool scrub --pool default {more} -o json"));
        assert_eq!(ran.code(), code, "{}", ran.stderr());
        serde_json::from_str(&ran.stdout()).unwrap()
    };
    assert_eq!(command::quarry(&agent, "pool scrub --pool nope").code(), 3);
    let begun = command::quarry(&agent, "pool scrub --pool default");
    assert!(matches!(begun.code(), 0 | 5), "{}", begun.stderr());
    let done = eventually("the scrub is done", || {
        let ran = command::quarry(&agent, "pool scrub --pool default --status -o json");
        let status: Value = serde_json::from_str(&ran.stdout()).unwrap();
        (status["state"] == "done").then_some((status, ran.code()))
    });
    assert_eq!((&done.0["bad_blocks"], done.1), (&json!(1), 5), "{}", done.0);
    let found = &done.0["findings"][0];
    assert_eq!(found["volume_id"], json!(volume.to_string()));
    assert_eq!(found["offset_bytes"], json!(1 << 20));
    assert_eq!(found["pool_offset_bytes"], json!(at));

    // Written anew, it is healed.
    attached.qemu_io(&["write -P 0x34 1M 4k", "flush"]).unwrap();
    read("1M 4k", "0x34").unwrap();
    assert_eq!(scrub("--status", 5)["findings"][0]["volume_id"], json!(""));
    drop(agent);
    let agent = AgentProcess::start(&dir);
    let shown = command::json(&agent, &format!("volume show {volume}"));
    assert_eq!(shown["checksums"], json!(true));
}
