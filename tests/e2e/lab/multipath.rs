//! Two paths to one volume, one of them cut off and restored.

use super::guest::Guest;
use super::host::StorageHost;
use crate::command;

#[test]
fn one_of_two_paths_may_go_and_come_back_under_load() {
    let Some(guest) = Guest::initiator() else { return };
    let storage = StorageHost::new();
    let agent = storage.start();
    let volume = command::volume(&agent, "128MiB");
    let attached = guest.attach(&agent, volume, "--multipath");
    let data = &attached.connection_info["data"];
    let portals: Vec<&str> = data["target_portals"]
        .as_array()
        .unwrap()
        .iter()
        .map(|portal| portal.as_str().unwrap())
        .collect();
    assert_eq!(portals, ["10.9.0.1:3260", "10.9.1.1:3260"]);
    guest.add_node(&attached, portals[1]);
    // As hosts with multipath set it, so that a dead path is noticed and fails over within seconds.
    guest.run(
        "iscsiadm -m node -o update -n node.conn[0].timeo.noop_out_interval -v 1
         iscsiadm -m node -o update -n node.conn[0].timeo.noop_out_timeout -v 1
         iscsiadm -m node -o update -n node.session.timeo.replacement_timeout -v 1",
    );
    let first = guest.log_in(&attached, portals[0]);
    let second = guest.log_in(&attached, portals[1]);

    // Both are the same unit: the identity that multipath-tools compares.
    let id = |disk: &str| {
        guest.run(&format!(
            "cat /sys/block/{}/device/wwid",
            disk.trim_start_matches("/dev/")
        ))
    };
    assert_eq!(id(&first), id(&second));

    let sectors = guest.run(&format!(
        "cat /sys/block/{}/size",
        first.trim_start_matches("/dev/")
    ));
    let number = |disk: &str| {
        guest.run(&format!(
            "cat /sys/block/{}/dev",
            disk.trim_start_matches("/dev/")
        ))
    };
    // The table that multipathd would load: one group of both paths, round robin, requests wait when no path is left.
    guest.run(&format!(
        "modprobe dm-multipath; modprobe dm-round-robin
         echo '0 {} multipath 1 queue_if_no_path 0 1 1 round-robin 0 2 1 {} 1 {} 1' | dmsetup create --noudevsync both
         dmsetup mknodes both",
        sectors.trim(),
        number(&first).trim(),
        number(&second).trim(),
    ));

    let load = guest.start(
        "fio --name=load --filename=/dev/mapper/both --size=64m --rw=randrw --bs=4k --ioengine=psync --direct=1 \
             --verify=crc32c --verify_fatal=1 --time_based --runtime=25 --output-format=terse --terse-version=3",
    );
    guest.wait_for_requests(&second, 50);
    // The address of the second network goes; multipathd's part, finding out that it is back, is played here.
    guest.run(
        "ip link set vec1 down
         for i in $(seq 60); do ! dmsetup status both | grep -q ' F ' || break; sleep 0.3; done
         ip link set vec1 up",
    );
    let state = guest.run("dmsetup status both");
    assert!(state.contains(" F "), "the cut path was not noticed: {state}");
    guest.run(&format!(
        "for i in $(seq 60); do
             dd if={second} of=/dev/null bs=4k count=1 iflag=direct status=none 2>/dev/null && break
             sleep 0.5
         done
         dmsetup message both 0 reinstate_path {}",
        number(&second).trim()
    ));
    load.finish().unwrap();
    let state = guest.run("dmsetup status both");
    assert!(!state.contains(" F "), "a path has not come back: {state}");
    guest.run("dmsetup remove --noudevsync both");
    guest.log_out(&attached);
}
