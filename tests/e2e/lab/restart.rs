//! The agent is killed, or stopped, and started again, or another takes over, under load: for the host a pause, never an
//! error.

use std::time::Duration;

use serde_json::Value;

use super::guest::Guest;
use super::host::{StorageHost, portal};
use crate::agent_process::AgentProcess;
use crate::command;

#[test]
fn kills_under_load_are_a_pause_without_an_error_or_a_lost_block() {
    restart_under_load(|_, storage, agent| {
        agent.kill();
        storage.start()
    });
}

#[test]
fn stops_under_load_are_a_pause_for_which_the_host_logs_out() {
    restart_under_load(|guest, storage, agent| {
        guest.run("dmesg -c > /dev/null; : > /run/iscsid.log");
        let (took, status) = agent.terminate();
        assert!(status.success(), "{status}");
        // The host is asked to log out and does so at once, or the stop would have taken two seconds.
        assert!(took < Duration::from_millis(1500), "{took:?}");
        let said = guest.run("cat /run/iscsid.log");
        assert!(said.contains("requests logout"), "{said}");
        storage.start()
    });
}

#[test]
fn successions_under_load_are_pauses_of_less_than_a_second() {
    let Some(longest) = restart_under_load(|_, _, agent| {
        eprintln!("a successor was ready after {:?}", agent.succeed());
        agent
    }) else {
        return;
    };
    eprintln!("the longest pause was {longest:?}");
    assert!(longest < Duration::from_secs(1), "{longest:?}");
}

/// Has the agent replaced three times while a file system on a volume is written and verified, and returns how long the
/// slowest request took.
fn restart_under_load(
    replace: impl Fn(&Guest, &StorageHost, AgentProcess) -> AgentProcess,
) -> Option<Duration> {
    let guest = Guest::initiator()?;
    let storage = StorageHost::new();
    let mut agent = storage.start();
    let volume = command::volume(&agent, "256MiB");
    let attached = guest.attach(&agent, volume, "");
    let disk = guest.log_in(&attached, &portal(&attached));
    guest.run(&format!(
        "mkfs.ext4 -q -F {disk}
         mkdir -p /mnt/volume
         mount {disk} /mnt/volume"
    ));

    let load = guest.start(
        "cd /mnt/volume
         fio --name=load --filename=/mnt/volume/file --size=64m --rw=randrw --bs=4k --ioengine=psync --direct=1 \
             --fsync=16 --verify=crc32c --verify_fatal=1 --time_based --runtime=40 --output-format=json
         sync",
    );
    for _ in 0..3 {
        guest.wait_for_requests(&disk, 300);
        agent = replace(&guest, &storage, agent);
    }
    let said = load.finish().unwrap();

    guest.run(&format!("umount /mnt/volume; e2fsck -fn {disk}"));
    let log = guest.run("dmesg");
    for complaint in ["I/O error", "EXT4-fs error", "Aborting journal"] {
        assert!(!log.contains(complaint), "{log}");
    }
    guest.log_out(&attached);
    Some(slowest(&said))
}

/// Reads out of fio's report how long the slowest request took.
fn slowest(report: &str) -> Duration {
    let report = &report[report.find('{').unwrap()..=report.rfind('}').unwrap()];
    let report: Value = serde_json::from_str(report).unwrap();
    let job = &report["jobs"][0];
    let kinds = [
        &job["read"]["clat_ns"],
        &job["write"]["clat_ns"],
        &job["sync"]["lat_ns"],
    ];
    let longest = kinds.map(|kind| kind["max"].as_u64().unwrap()).into_iter().max();
    Duration::from_nanos(longest.unwrap())
}
