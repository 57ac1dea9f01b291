//! The life of a disk: discovery, login, file systems, grow, trim, logout, detach under a mounted file system.

use super::guest::Guest;
use super::host::{StorageHost, portal};
use crate::command::{self, json};
use crate::initiator::detach;

const MIB: u64 = 1 << 20;

#[test]
fn file_systems_live_on_a_volume_that_grows_and_is_trimmed() {
    let Some(guest) = Guest::initiator() else { return };
    let storage = StorageHost::new();
    let agent = storage.start();
    let volume = command::volume(&agent, "512MiB");
    let attached = guest.attach(&agent, volume, "");
    let portal = portal(&attached);

    // Discovery without CHAP, as open-iscsi does it by default, shows this target and no other.
    command::json(
        &agent,
        &format!(
            "attachment create --volume {} --initiator iqn.2026-11.io.quarry.test:other",
            command::volume(&agent, "8MiB")
        ),
    );
    let found = guest.run(&format!(
        "iscsiadm -m discovery -t sendtargets -p {portal} -o nonpersistent"
    ));
    let target = attached.connection_info["data"]["target_iqn"].as_str().unwrap();
    assert!(
        found.lines().count() >= 1 && found.lines().all(|line| line.ends_with(target)),
        "{found}"
    );

    let disk = guest.log_in(&attached, &portal);
    let name = disk.trim_start_matches("/dev/");
    let facts = guest.run(&format!(
        "cd /sys/block/{name}; cat size queue/logical_block_size queue/physical_block_size queue/rotational \
         queue/discard_granularity queue/write_cache queue/fua device/vendor; \
         cat device/wwid"
    ));
    let facts: Vec<&str> = facts.lines().map(str::trim).collect();
    assert_eq!(
        facts[..8],
        [
            "1048576",
            "512",
            "4096",
            "0",
            "65536",
            "write back",
            "1",
            "QUARRY"
        ],
        "{facts:?}"
    );

    for file_system in ["ext4", "xfs"] {
        guest.run(&format!(
            "mkfs.{file_system} -q {} {disk}
             mkdir -p /mnt/volume
             mount {disk} /mnt/volume
             cp -r /usr/share/doc/e2fsprogs /usr/bin/bash /mnt/volume
             dd if=/dev/urandom of=/mnt/volume/random bs=1M count=64 status=none conv=fsync
             cksum /mnt/volume/random > /run/cksum
             umount /mnt/volume
             mount {disk} /mnt/volume
             cksum /mnt/volume/random | cmp - /run/cksum
             cmp /usr/bin/bash /mnt/volume/bash
             diff -r /usr/share/doc/e2fsprogs /mnt/volume/e2fsprogs
             umount /mnt/volume",
            if file_system == "ext4" { "-F" } else { "-f" }
        ));
    }

    // Grown under a mounted file system, seen after the rescan that os-brick does, without a new login.
    guest.run(&format!("mount {disk} /mnt/volume"));
    json(&agent, &format!("volume extend {volume} --size 1GiB"));
    let size = guest.run(&format!(
        "echo 1 > /sys/block/{name}/device/rescan
         xfs_growfs /mnt/volume > /dev/null
         cat /sys/block/{name}/size
         df --output=size -m /mnt/volume | tail -1"
    ));
    let size: Vec<u64> = size
        .split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect();
    assert_eq!(size[0], 2 << 20, "blocks of the disk");
    assert!(size[1] > 900, "MiB of the file system: {}", size[1]);

    // Trimming a deleted file gives its space back to the pool.
    guest.run("dd if=/dev/urandom of=/mnt/volume/big bs=1M count=128 status=none conv=fsync");
    let mapped = || {
        json(&agent, &format!("volume show {volume}"))["mapped_bytes"]
            .as_u64()
            .unwrap()
    };
    let full = mapped();
    guest.run("rm /mnt/volume/big; sync; fstrim /mnt/volume; sync");
    let trimmed = mapped();
    assert!(
        trimmed + 120 * MIB < full,
        "mapped {full} before the trim, {trimmed} after"
    );

    guest.run("umount /mnt/volume");
    guest.log_out(&attached);
    detach(&agent, &attached);
    json(&agent, &format!("volume delete {volume}"));
    let log = guest.run("dmesg");
    assert!(!log.contains("I/O error"), "{log}");
}

#[test]
fn a_detach_cuts_off_a_host_that_is_still_writing() {
    let Some(guest) = Guest::initiator() else { return };
    let storage = StorageHost::new();
    let agent = storage.start();
    let volume = command::volume(&agent, "64MiB");
    let attached = guest.attach(&agent, volume, "");
    let portal = portal(&attached);
    // The host waits this long for its session to come back before it fails what it has queued.
    guest.run("iscsiadm -m node -o update -n node.session.timeo.replacement_timeout -v 3");
    let disk = guest.log_in(&attached, &portal);
    guest.run(&format!(
        "dd if=/dev/zero of={disk} bs=1M count=4 oflag=direct status=none"
    ));
    let writer = guest.start(&format!(
        "touch /run/writing
         while dd if=/dev/urandom of={disk} bs=64k count=64 oflag=direct status=none; do :; done
         echo refused"
    ));
    guest.run("while [ ! -e /run/writing ]; do sleep 0.05; done");

    detach(&agent, &attached);
    // From here on nothing the host does reaches the volume, whatever it had in flight.
    let snapshot = command::snapshot(&agent, volume);
    let said = writer.finish().unwrap();
    assert!(said.contains("refused"), "{said}");
    let difference = |of: &str| {
        let copy = crate::initiator::attach(&agent, command::id(&json(&agent, of)));
        copy.qemu_io_read_only(&["read -v 0 64M"]).unwrap()
    };
    let then = difference(&format!("volume create --from snapshot:{snapshot}"));
    let now = difference(&format!("volume create --from volume:{volume}"));
    assert!(
        bytes_of(&then) == bytes_of(&now),
        "the volume changed after the detach"
    );

    // A new login is told that the target is not there for it.
    let again = guest.try_run(&format!(
        "iscsiadm -m node -T {} --logout > /dev/null || true
         iscsiadm -m node -T {0} -p {portal} --login",
        attached.connection_info["data"]["target_iqn"].as_str().unwrap()
    ));
    assert!(again.is_err(), "{again:?}");
}

#[test]
fn a_file_system_that_is_detached_while_mounted_can_be_unmounted_and_mounted_again_later() {
    let Some(guest) = Guest::initiator() else { return };
    let storage = StorageHost::new();
    let agent = storage.start();
    let volume = command::volume(&agent, "128MiB");
    let attached = guest.attach(&agent, volume, "");
    let target = attached.connection_info["data"]["target_iqn"].as_str().unwrap();
    guest.run("iscsiadm -m node -o update -n node.session.timeo.replacement_timeout -v 3");
    let disk = guest.log_in(&attached, &portal(&attached));
    guest.run(&format!(
        "mkfs.ext4 -q -F {disk}
         mkdir -p /mnt/volume
         mount {disk} /mnt/volume
         dd if=/dev/urandom of=/run/kept bs=1M count=8 status=none
         dd if=/run/kept of=/mnt/volume/kept bs=1M conv=fsync status=none"
    ));
    let writer = guest.start(
        "i=0
         while dd if=/dev/urandom of=/mnt/volume/$((i % 8)) bs=64k count=32 conv=fsync status=none; do
             i=$((i + 1)); echo $i > /run/written
         done
         echo refused",
    );
    guest.run("for i in $(seq 600); do [ -s /run/written ] && exit 0; sleep 0.1; done; exit 1");
    detach(&agent, &attached);
    let said = writer.finish().unwrap();
    assert!(said.contains("refused"), "{said}");
    // The host gets rid of it all: nothing waits for a target that is not there any more.
    guest.run(&format!(
        "umount /mnt/volume
         iscsiadm -m node -T {target} --logout > /dev/null
         iscsiadm -m node -T {target} -o delete
         for i in $(seq 300); do [ ! -e /sys/block/{} ] && exit 0; sleep 0.1; done
         exit 1",
        disk.trim_start_matches("/dev/")
    ));

    // The journal brings back what was synchronized, and the file system is whole.
    let again = guest.attach(&agent, volume, "");
    let disk = guest.log_in(&again, &portal(&again));
    guest.run(&format!(
        "mount {disk} /mnt/volume
         cmp /run/kept /mnt/volume/kept
         umount /mnt/volume
         e2fsck -fn {disk}"
    ));
    guest.log_out(&again);
}

/// Returns the lines of a `qemu-io` dump, without those that tell how long it took.
fn bytes_of(dump: &str) -> Vec<&str> {
    dump.lines().filter(|line| line.contains(":  ")).collect()
}
