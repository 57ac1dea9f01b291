//! What Linux can ask of the protocol beyond the usual: an IPv6 portal, digests, news of a change of size, and
//! persistent reservations of several hosts.

use super::guest::Guest;
use super::host::{StorageHost, portal};
use crate::command::{self, json};
use crate::initiator::{attach_as, detach};

/// The storage host's address on the first network (scripts/lab/net).
const PORTAL: &str = "[fd09::1]:3260";

#[test]
fn a_session_over_ipv6_with_digests_carries_data_and_hears_of_a_new_size() {
    let Some(guest) = Guest::initiator() else { return };
    let storage = StorageHost::listening_on(&[PORTAL]);
    let agent = storage.start();
    let volume = command::volume(&agent, "64MiB");
    guest.run("modprobe ipv6; ip -6 addr add fd09::11/64 dev vec0 nodad");
    let attached = guest.attach(&agent, volume, "");
    assert_eq!(portal(&attached), PORTAL);
    guest.run(
        "iscsiadm -m node -o update -n node.conn[0].iscsi.HeaderDigest -v CRC32C
         iscsiadm -m node -o update -n node.conn[0].iscsi.DataDigest -v CRC32C",
    );
    let disk = guest.log_in(&attached, PORTAL);
    let agreed = guest.run(
        "cd /sys/class/iscsi_connection/connection*
         cat header_digest data_digest persistent_address",
    );
    assert_eq!(
        agreed.split_whitespace().collect::<Vec<_>>(),
        ["1", "1", "fd09::1"]
    );
    // What the target sends is checked by the kernel, what it gets by the target.
    guest.run(&format!(
        "dd if=/dev/urandom of=/run/data bs=1M count=16 status=none
         dd if=/run/data of={disk} bs=1M oflag=direct status=none
         dd if={disk} bs=1M count=16 iflag=direct status=none | cmp - /run/data
         dd if={disk} of=/run/odd bs=4k count=3 skip=5 iflag=direct status=none
         dd if=/run/data bs=4k count=3 skip=5 status=none | cmp - /run/odd"
    ));

    json(&agent, &format!("volume extend {volume} --size 128MiB"));
    let name = disk.trim_start_matches("/dev/");
    let size = guest.run(&format!(
        "dmesg -c > /dev/null
         dd if={disk} of=/dev/null bs=4k count=1 iflag=direct status=none
         dmesg | grep -q 'Capacity data has changed'
         echo 1 > /sys/block/{name}/device/rescan
         cat /sys/block/{name}/size"
    ));
    assert_eq!(size.trim(), (128 * 2048).to_string());
    let log = guest.run("dmesg");
    assert!(!log.contains("I/O error") && !log.contains("digest"), "{log}");
    guest.log_out(&attached);
}

#[test]
fn a_target_proves_itself_to_linux_with_each_hash_and_one_that_cannot_is_left() {
    let Some(guest) = Guest::initiator() else { return };
    let storage = StorageHost::new();
    let agent = storage.start();
    let volume = command::volume(&agent, "16MiB");
    let attached = guest.attach(&agent, volume, "");
    let portal = portal(&attached);
    let own = &json(&agent, &format!("attachment show {}", attached.id))["target_chap"];
    let set = |key: &str, value: &str| {
        guest.run(&format!(
            "iscsiadm -m node -o update -n node.session.auth.{key} -v {value}"
        ));
    };
    set("username_in", own["username"].as_str().unwrap());
    for hash in ["MD5", "SHA1", "SHA256", "SHA3-256"] {
        set("chap_algs", hash);
        set("password_in", own["secret"].as_str().unwrap());
        let disk = guest.log_in(&attached, &portal);
        guest.run(&format!(
            "dd if={disk} of=/dev/null bs=4k count=1 iflag=direct status=none"
        ));
        guest.log_out(&attached);
        // Whoever does not know the target's secret is not this target.
        set("password_in", "not-its-secret-16");
        let refused = guest.try_run("iscsiadm -m node --login 2>&1").unwrap_err();
        assert!(refused.contains("initiator reported error"), "{hash}: {refused}");
    }
}

#[test]
fn reservations_of_one_host_hold_against_another_and_over_a_restart() {
    const SECOND: &str = "iqn.1993-08.org.debian:01:second";
    let Some(guest) = Guest::initiator() else { return };
    let storage = StorageHost::new();
    let mut agent = storage.start();
    let volume = command::volume(&agent, "16MiB");
    let first = guest.attach(&agent, volume, "");
    let portal = portal(&first);
    let mine = guest.log_in(&first, &portal);
    // Another host, as far as the target can tell.
    let second = attach_as(&agent, volume, SECOND, "");
    guest.run(&format!(
        "iscsiadm -m iface -I second -o new
         iscsiadm -m iface -I second -o update -n iface.initiatorname -v {SECOND}"
    ));
    guest.add_node_through("second", &second, &portal);
    let theirs = guest.log_in_through("second", &second, &portal);
    let reserve =
        |options: &str, disk: &str| guest.try_run(&format!("sg_persist --out {options} {disk} 2>&1"));
    let write = |disk: &str| {
        guest.try_run(&format!(
            "dd if=/dev/zero of={disk} bs=4k count=1 oflag=direct status=none 2>&1"
        ))
    };
    let read = |disk: &str| {
        guest.run(&format!(
            "dd if={disk} of=/dev/null bs=4k count=1 iflag=direct status=none"
        ))
    };

    reserve("--register --param-sark=0xa --param-aptpl", &mine).unwrap();
    reserve("--register --param-sark=0xb --param-aptpl", &theirs).unwrap();
    reserve("--reserve --param-rk=0xa --prout-type=1", &mine).unwrap();
    write(&mine).unwrap();
    write(&theirs).unwrap_err();
    read(&theirs);
    let refused = reserve("--reserve --param-rk=0xb --prout-type=1", &theirs).unwrap_err();
    assert!(refused.to_lowercase().contains("conflict"), "{refused}");

    agent.kill();
    agent = storage.start();
    // Takes the unit attention of the new session, which sg_persist would fail with.
    read(&theirs);
    let keys = guest.run(&format!("sg_persist --in --read-keys {theirs}"));
    assert!(keys.contains("0xa") && keys.contains("0xb"), "{keys}");
    write(&theirs).unwrap_err();
    write(&mine).unwrap();

    // As a cluster fences a node: its key is taken away, and it cannot write any more.
    reserve(
        "--preempt-abort --param-rk=0xb --param-sark=0xa --prout-type=1",
        &theirs,
    )
    .unwrap();
    write(&theirs).unwrap();
    write(&mine).unwrap_err();
    let held = guest.run(&format!("sg_persist --in --read-reservation {mine}"));
    assert!(held.contains("0xb") && held.contains("Write Exclusive"), "{held}");
    // A host that is detached leaves nothing behind.
    guest.log_out_through("second", &second);
    detach(&agent, &second);
    write(&mine).unwrap();
    let keys = guest.run(&format!("sg_persist --in --read-keys {mine}"));
    assert!(keys.contains("NO registered reservation keys"), "{keys}");
    guest.log_out(&first);
}
