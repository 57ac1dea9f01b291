//! A full pool refuses the write with the SCSI status for it, loses nothing, and goes on after space is freed.

use crate::agent_process::{AgentProcess, eventually};
use crate::command::{self, json};
use crate::initiator::{attach, detach};

#[test]
fn a_full_pool_refuses_writes_keeps_data_and_goes_on_after_a_delete() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("agent");
    let agent = AgentProcess::start_with(&dir, &["--dev-pool-size", "256MiB"]);
    let ballast = command::volume(&agent, "64MiB");
    let attached_ballast = attach(&agent, ballast);
    attached_ballast
        .qemu_io(&["write -P 0x0b 0 64M", "flush"])
        .unwrap();
    detach(&agent, &attached_ballast);

    // Thin: the volume is larger than the pool.
    let volume = command::volume(&agent, "1GiB");
    let attached = attach(&agent, volume);
    let mut written = 0;
    let complaint = loop {
        assert!(written < 256, "256 MiB fit beside 64 MiB in a pool of 256 MiB");
        match attached.qemu_io(&[&format!("write -P {} {written}M 8M", 1 + written / 8), "flush"]) {
            Ok(_) => written += 8,
            Err(complaint) => break complaint,
        }
    };
    assert!(complaint.contains("No space left on device"), "{complaint}");
    assert!(written >= 64, "only {written} MiB fit");

    let has_all = |written: u64| {
        let reads: Vec<String> = (0..written / 8)
            .map(|slot| format!("read -P {} {}M 8M", 1 + slot, slot * 8))
            .collect();
        let reads: Vec<&str> = reads.iter().map(String::as_str).collect();
        attached.qemu_io(&reads).unwrap();
    };
    has_all(written);
    // What is mapped can be overwritten in place, and a full pool survives a kill.
    attached.qemu_io(&["write -P 1 0 8M", "flush"]).unwrap();
    agent.kill();
    let agent = AgentProcess::start(&dir);
    has_all(written);

    json(&agent, &format!("volume delete {ballast}"));
    eventually("the deleted volume's space can be written", || {
        let tag = 1 + written / 8;
        attached
            .qemu_io(&[&format!("write -P {tag} {written}M 8M"), "flush"])
            .ok()
    });
    has_all(written + 8);
}

#[test]
fn a_full_pool_grows_in_its_file_and_onto_another_while_it_is_written_and_survives_a_kill() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("agent");
    let agent = AgentProcess::start_with(&dir, &["--dev-pool-size", "256MiB"]);
    let volume = command::volume(&agent, "1GiB");
    let attached = attach(&agent, volume);
    let mut written = 0;
    let mut write_until_full = |agent: &AgentProcess| {
        let before = written;
        let write = |at: u64| attached.qemu_io(&[&format!("write -P {} {at}M 8M", 1 + at / 8), "flush"]);
        while write(written).is_ok() {
            written += 8;
            assert!(written < 1024, "the pool was to run full first");
        }
        let free = &json(agent, "pool list")[0]["free_bytes"];
        assert!(written > before, "nothing fits; {free} bytes are said to be free");
        written
    };
    write_until_full(&agent);

    let grown = json(&agent, "pool grow --pool default --size 384MiB");
    let in_file = write_until_full(&agent);
    let more = temporary.path().join("more.pool");
    let add = format!("pool grow --pool default --add {} --size 256MiB", more.display());
    let grown_again = json(&agent, &add);
    assert!(grown_again["total_bytes"].as_u64() > grown["total_bytes"].as_u64());
    let in_both = write_until_full(&agent);
    assert!(
        in_both >= in_file + 192,
        "{in_both} MiB in both, {in_file} in one"
    );

    let has_all = || {
        let reads: Vec<String> = (0..in_both / 8)
            .map(|slot| format!("read -P {} {}M 8M", 1 + slot, slot * 8))
            .collect();
        let reads: Vec<&str> = reads.iter().map(String::as_str).collect();
        attached.qemu_io(&reads).unwrap();
    };
    has_all();
    agent.kill();
    let agent = AgentProcess::start(&dir);
    has_all();
    let repeated = json(&agent, &add);
    assert_eq!(
        repeated["total_bytes"], grown_again["total_bytes"],
        "once is enough"
    );
    let checked = command::quarry(&agent, "pool check --pool default");
    assert_eq!(checked.code(), 0, "{}", checked.stdout());
}

#[test]
fn discards_give_space_back() {
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start_with(&temporary.path().join("agent"), &["--dev-pool-size", "256MiB"]);
    let volume = command::volume(&agent, "1GiB");
    let attached = attach(&agent, volume);
    for _ in 0..3 {
        // Three times 128 MiB: without discard the pool would be full.
        attached
            .qemu_io(&["write -P 0x33 0 128M", "flush", "discard 0 128M", "flush"])
            .unwrap();
        attached.qemu_io(&["read -P 0 0 128M"]).unwrap();
        eventually("the space is back", || {
            let pool = &json(&agent, "pool list")[0];
            (pool["free_bytes"].as_u64().unwrap() > 160 << 20).then_some(())
        });
    }
}

#[test]
fn a_volume_that_is_created_as_a_reserved_one_is_one_until_told_otherwise() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("agent");
    let agent = AgentProcess::start(&dir);
    let created = json(&agent, "volume create --size 64MiB --reserved");
    assert_eq!(created["reserved"], true, "{created}");
    let id = created["id"].as_str().unwrap();
    // Repeated with the same id, it is not compared.
    let again = json(&agent, &format!("volume create --size 64MiB --id {id}"));
    assert_eq!(again["reserved"], true, "{again}");
    agent.kill();
    let agent = AgentProcess::start(&dir);
    let shown = json(&agent, &format!("volume show {id}"));
    assert_eq!(shown["reserved"], true, "{shown}");
    let changed = json(&agent, &format!("volume reserve {id} --off"));
    assert_eq!(changed["reserved"], false, "{changed}");
}
