//! The agent is killed, or stopped, and started again under load: for the host a pause, never an error.

use std::time::Duration;

use super::guest::Guest;
use super::host::{StorageHost, portal};
use crate::agent_process::AgentProcess;
use crate::command;

#[test]
fn kills_under_load_are_a_pause_without_an_error_or_a_lost_block() {
    restart_under_load(|_, agent| agent.kill());
}

#[test]
fn stops_under_load_are_a_pause_for_which_the_host_logs_out() {
    restart_under_load(|guest, agent| {
        guest.run("dmesg -c > /dev/null; : > /run/iscsid.log");
        let (took, status) = agent.terminate();
        assert!(status.success(), "{status}");
        // The host is asked to log out and does so at once, or the stop would have taken two seconds.
        assert!(took < Duration::from_millis(1500), "{took:?}");
        let said = guest.run("cat /run/iscsid.log");
        assert!(said.contains("requests logout"), "{said}");
    });
}

/// Ends the agent three times while a file system on a volume is written and verified.
fn restart_under_load(end: impl Fn(&Guest, AgentProcess)) {
    let Some(guest) = Guest::initiator() else { return };
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
             --fsync=16 --verify=crc32c --verify_fatal=1 --time_based --runtime=40 --output-format=terse \
             --terse-version=3
         sync",
    );
    for _ in 0..3 {
        guest.wait_for_requests(&disk, 300);
        end(&guest, agent);
        agent = storage.start();
    }
    load.finish().unwrap();

    guest.run(&format!("umount /mnt/volume; e2fsck -fn {disk}"));
    let log = guest.run("dmesg");
    for complaint in ["I/O error", "EXT4-fs error", "Aborting journal"] {
        assert!(!log.contains(complaint), "{log}");
    }
    guest.log_out(&attached);
}
