//! Clients that hold files, new agents, and what others do beside them.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::time::Instant;

use quarry_contract::AccessLevel::{ReadOnly, ReadWrite};
use quarry_contract::{DriverError, LoadedAccess, ShareServer};
use quarry_knfsd::{KnfsdServer, StartError};
use quarry_sys::filesystem::unmount;

use crate::nfs::{NFS4_OK, NFS4ERR_ACCESS, NFS4ERR_BADHANDLE, NFS4ERR_ROFS, NFS4ERR_STALE};
use crate::world::{PROBE, World, eventually, export, run};

const CLIENTS: [&str; 3] = ["10.77.0.11", "10.77.0.12", "10.77.0.13"];

#[test]
fn what_clients_hold_is_given_up_and_who_has_locks_elsewhere_is_named() {
    let Some(world) = World::new() else { return };
    let server = world.start("server");
    let (one, two) = (world.mount(), world.mount());
    for mounted in [&one, &two] {
        world
            .block_on(server.export(&export(mounted, &[("10.77.0.0/24", ReadWrite)])))
            .unwrap();
    }
    let at = world.mount_as(0, &server, one.version);
    let beside = world.mount_as(0, &server, two.version);
    let mut held = File::create(at.join("held")).unwrap();
    held.write_all(b"before").unwrap();
    held.sync_all().unwrap();
    let locked = OpenOptions::new()
        .read(true)
        .write(true)
        .open(beside.join(PROBE))
        .unwrap();
    locked.lock().unwrap();
    let known = world.block_on(server.clients(one.version)).unwrap();
    let [client] = &known[..] else { panic!("{known:?}") };
    assert_eq!(client.address.to_string(), CLIENTS[0]);
    assert!(client.held >= Some(1), "{client:?}");
    assert!(client.versions[0].starts_with("4."), "{client:?}");

    let refused = world
        .block_on(server.unexport(one.version))
        .expect_err("it is in use");
    let DriverError::Busy { blockers, .. } = &refused else {
        panic!("{refused}")
    };
    assert_eq!(blockers, &["NFS client 10.77.0.11"]);
    // It is out of reach all the same.
    assert_eq!(world.block_on(server.exports()).unwrap(), [two.version]);
    assert_eq!(world.block_on(server.loaded(one.version)).unwrap(), None);
    let written = held.write_all(b"after").and_then(|()| held.sync_all());
    written.expect_err("what is open is revoked, too");
    assert_eq!(world.attempt(&server, one.version, CLIENTS[0]), None);
    (&locked).write_all(b"the other").unwrap();
    locked
        .sync_all()
        .expect("N4: the other export goes on, with its lock");

    locked.unlock().unwrap();
    assert!(world.block_on(server.unexport(one.version)).unwrap().is_changed());
    unmount(&one.path).expect("N5: nothing is open on it");
    (&locked).write_all(b"and on").unwrap();
    locked.sync_all().expect("N4: the other export goes on");
    assert!(!world.block_on(server.unexport(one.version)).unwrap().is_changed());
    drop((held, locked));
    run(&format!("umount -f {}", at.display()));
    run(&format!("umount {}", beside.display()));
    world.block_on(server.shutdown());
    unmount(&two.path).expect("nothing is open on it");
}

#[test]
fn a_client_of_one_share_cannot_reach_another_with_a_made_up_handle() {
    let Some(world) = World::new() else { return };
    let server = world.start("server");
    let (one, two) = (world.mount(), world.mount());
    for (mounted, client) in [(&one, CLIENTS[0]), (&two, CLIENTS[1])] {
        world
            .block_on(server.export(&export(mounted, &[(client, ReadWrite)])))
            .unwrap();
    }
    let mut client = world.client(CLIENTS[0]);
    let mut other = world.client(CLIENTS[1]);
    let own = client.handle(&server.path_of(one.version), PROBE);
    let secret = other.handle(&server.path_of(two.version), PROBE);
    assert_eq!(other.read(&secret).unwrap(), b"share number 2");
    // Version, kind of export name (6: 16 bytes of `fsid`), kind of file name; the name of the export; the file.
    assert_eq!(
        (own[2], secret[2]),
        (6, 6),
        "the handles are not as this test knows them"
    );
    let mut forged = secret.clone();
    forged[4..20].copy_from_slice(&own[4..20]);
    let mut generation = forged.clone();
    *generation.last_mut().unwrap() ^= 1;
    for handle in [&secret, &generation] {
        client.read(handle).expect_err("another share's file was read");
        assert_ne!(
            client.write(handle, b"forged"),
            NFS4_OK,
            "another share's file was written"
        );
    }
    // Under the name of the own export it is the file of the same number there, if there is one of that generation.
    if let Err(status) = client.read(&forged) {
        assert!([NFS4ERR_STALE, NFS4ERR_BADHANDLE].contains(&status), "{status}");
    }
    assert_eq!(fs::read(two.path.join(PROBE)).unwrap(), b"share number 2");
    world.block_on(server.shutdown());
}

#[test]
fn a_new_agent_takes_up_the_server_and_clients_do_not_notice() {
    let Some(world) = World::new() else { return };
    let server = world.start("server");
    let (mounted, gone) = (world.mount(), world.mount());
    let wanted = export(&mounted, &[("10.77.0.0/24", ReadOnly), (CLIENTS[0], ReadWrite)]);
    for export in [&wanted, &export(&gone, &[("0.0.0.0/0", ReadWrite)])] {
        world.block_on(server.export(export)).unwrap();
    }
    let mut client = world.client(CLIENTS[0]);
    let handle = client.handle(&server.path_of(mounted.version), PROBE);
    let second = world.block_on(KnfsdServer::start(world.config("server")));
    assert!(matches!(second.err().unwrap(), StartError::Locked { .. }));
    let other = world.block_on(KnfsdServer::start(world.config("other")));
    assert!(matches!(other.err().unwrap(), StartError::InUse));
    let gone_folder = server.path_of(gone.version);
    drop(server);
    // As after a restart of the machine; the kernel's helper itself keeps what is below from being exported.
    unmount(gone_folder.as_ref()).unwrap();
    fs::write(format!("{gone_folder}/{PROBE}"), "below").unwrap();
    let mut started = None;
    eventually("the watcher lets go of the folder", || {
        match world.block_on(KnfsdServer::start(world.config("server"))) {
            Ok(server) => started = Some(server),
            Err(StartError::Locked { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        started.is_some()
    });
    let server = started.unwrap();
    // The same connection goes on.
    assert_eq!(client.read(&handle).unwrap(), b"share number 1");
    assert_eq!(world.block_on(server.exports()).unwrap(), [mounted.version]);
    assert_eq!(
        world.block_on(server.loaded(mounted.version)).unwrap(),
        Some(LoadedAccess::of(&wanted.access))
    );
    assert_eq!(world.attempt(&server, gone.version, CLIENTS[2]), None);
    assert!(!world.block_on(server.export(&wanted)).unwrap().is_changed());
    fs::remove_file(format!("{gone_folder}/{PROBE}")).unwrap();
    world.block_on(server.shutdown());
    assert!(!world.config("server").table.exists());
}

#[test]
fn a_change_holds_for_a_client_that_is_connected_and_has_the_file() {
    let Some(world) = World::new() else { return };
    let server = world.start("server");
    let mounted = world.mount();
    let set = |rules: &[_]| world.block_on(server.export(&export(&mounted, rules))).unwrap();
    set(&[(CLIENTS[0], ReadWrite), (CLIENTS[1], ReadWrite)]);
    let (mut client, mut other) = (world.client(CLIENTS[0]), world.client(CLIENTS[1]));
    let handle = client.handle(&server.path_of(mounted.version), PROBE);
    for _ in 0..3 {
        assert_eq!(client.write(&handle, b"share"), NFS4_OK);
        set(&[(CLIENTS[0], ReadOnly), (CLIENTS[1], ReadWrite)]);
        assert_eq!(client.write(&handle, b"share"), NFS4ERR_ROFS, "EROFS");
        assert_eq!(client.read(&handle).unwrap(), b"share number 1");
        set(&[(CLIENTS[1], ReadWrite)]);
        for status in [client.read(&handle).unwrap_err(), client.write(&handle, b"share")] {
            assert!([NFS4ERR_ACCESS, NFS4ERR_STALE].contains(&status), "{status}");
        }
        assert_eq!(other.write(&handle, b"share"), NFS4_OK, "N4: the other client");
        set(&[(CLIENTS[0], ReadWrite), (CLIENTS[1], ReadWrite)]);
    }
    assert_eq!(client.read(&handle).unwrap(), b"share number 1");
    world.block_on(server.shutdown());
}

#[test]
fn what_others_change_beside_the_agent_is_put_right() {
    let Some(world) = World::new() else { return };
    let server = world.start("server");
    let mounted = world.mount();
    world
        .block_on(server.export(&export(&mounted, &[("10.77.0.0/24", ReadOnly)])))
        .unwrap();
    let path = server.path_of(mounted.version);
    let attempt = || world.attempt(&server, mounted.version, CLIENTS[0]);
    assert_eq!(attempt(), Some(ReadOnly));

    // Somebody exports to everybody.
    run(&format!(
        "exportfs -i -o rw,insecure,no_root_squash,fsid=7 10.77.0.11:{path}"
    ));
    eventually("the line is gone", || {
        world
            .block_on(server.loaded(mounted.version))
            .unwrap()
            .unwrap()
            .0
            .len()
            == 1
    });
    eventually("it is read-only", || attempt() == Some(ReadOnly));

    // An answer that was made before a change comes after it: the kernel believes it for half an hour. The flags are
    // insecure, gathered writes, no subtree check, and not read-only (linux/nfsd/export.h).
    let stale = format!("10.77.0.0/24 {path} 2000000000 {} 65534 65534 0\n", 0x422);
    fs::write("/proc/net/rpc/nfsd.export/channel", stale).unwrap();
    let is_believed = || {
        let content = fs::read_to_string("/proc/net/rpc/nfsd.export/content").unwrap();
        content.contains(&format!("\n{path}\t10.77.0.0/24(rw"))
    };
    let since = Instant::now();
    eventually("the answer is forgotten", || !is_believed());
    assert!(since.elapsed().as_secs() < 5, "{:?}", since.elapsed());
    assert_eq!(attempt(), Some(ReadOnly));
    world.block_on(server.shutdown());
}
