//! The agent is killed and started again under load: for the host a pause, never an error.

use super::guest::Guest;
use super::host::{StorageHost, portal};
use crate::command;

#[test]
fn kills_under_load_are_a_pause_without_an_error_or_a_lost_block() {
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
        agent.kill();
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
