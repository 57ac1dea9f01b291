//! Restarts, crashes and bad surroundings.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quarry_contract::AccessLevel::{ReadOnly, ReadWrite};
use quarry_contract::{DriverError, ErrorKind, LoadedAccess, ShareServer, Squash};
use quarry_ganesha::{GaneshaServer, StartError};
use quarry_sys::filesystem::{unmount, xfs_geometry};

use crate::nfs::{NFS4_OK, NFS4ERR_ACCESS, NFS4ERR_BADHANDLE, NFS4ERR_ROFS, NFS4ERR_STALE};
use crate::world::{PROBE, World, export, isolated, table};

const CLIENTS: [&str; 3] = ["10.77.0.11", "10.77.0.12", "10.77.0.13"];

#[test]
fn a_client_of_one_share_cannot_reach_another_with_a_made_up_handle() {
    isolated(
        "life::a_client_of_one_share_cannot_reach_another_with_a_made_up_handle",
        || {
            let world = World::new();
            let server = world.start("server");
            let (one, two) = (world.mount(), world.mount());
            world
                .block_on(server.export(&export(&one, &[(CLIENTS[0], ReadWrite)])))
                .unwrap();
            world
                .block_on(server.export(&export(&two, &[(CLIENTS[1], ReadWrite)])))
                .unwrap();
            let mut client = world.client(CLIENTS[0]);
            let mut other = world.client(CLIENTS[1]);
            let own = client.handle(&server.path_of(one.version), PROBE);
            let secret = other.handle(&server.path_of(two.version), PROBE);
            assert_eq!(client.read(&own).unwrap(), b"share number 1");
            assert_eq!(other.read(&secret).unwrap(), b"share number 2");
            // The handle as it is; and under the number of the export that the client may use. Both number and file
            // system are in it: version, flags, export, then what the file system made.
            let mut forged = secret.clone();
            forged[2..4].copy_from_slice(&own[2..4]);
            assert_ne!(forged, secret);
            for handle in [&secret, &forged] {
                let refused = client.read(handle).expect_err("another share's file was read");
                assert_ne!(refused, NFS4_OK);
                assert_ne!(
                    client.write(handle, b"forged"),
                    NFS4_OK,
                    "another share's file was written"
                );
            }
            assert!([NFS4ERR_STALE, NFS4ERR_BADHANDLE].contains(&client.read(&forged).unwrap_err()));
            assert_eq!(fs::read(two.path.join(PROBE)).unwrap(), b"share number 2");
            world.block_on(server.shutdown());
        },
    );
}

#[test]
fn a_new_agent_takes_up_the_server_and_clients_do_not_notice() {
    isolated(
        "life::a_new_agent_takes_up_the_server_and_clients_do_not_notice",
        || {
            let world = World::new();
            let server = world.start("server");
            let mounted = world.mount();
            let wanted = export(&mounted, &[("10.77.0.0/24", ReadOnly), (CLIENTS[0], ReadWrite)]);
            world.block_on(server.export(&wanted)).unwrap();
            let mut client = world.client(CLIENTS[0]);
            let handle = client.handle(&server.path_of(mounted.version), PROBE);
            let pid = world.ganesha("server");
            let second = world.block_on(GaneshaServer::start(world.config("server")));
            assert!(matches!(second.err().unwrap(), StartError::Locked { .. }));
            drop(server);
            // The watcher lets go of the folder a moment later.
            let deadline = Instant::now() + Duration::from_secs(10);
            let server = loop {
                match world.block_on(GaneshaServer::start(world.config("server"))) {
                    Ok(server) => break server,
                    Err(StartError::Locked { .. }) if Instant::now() < deadline => {}
                    Err(error) => panic!("{error}"),
                }
            };
            assert_eq!(world.ganesha("server"), pid, "the same process");
            // The same connection goes on.
            assert_eq!(client.read(&handle).unwrap(), b"share number 1");
            assert_eq!(world.block_on(server.exports()).unwrap(), [mounted.version]);
            assert_eq!(
                world.block_on(server.loaded(mounted.version)).unwrap(),
                Some(LoadedAccess::of(&wanted.access))
            );
            assert!(!world.block_on(server.export(&wanted)).unwrap().is_changed());
            world.block_on(server.unexport(mounted.version)).unwrap();
            unmount(&mounted.path).expect("nothing is open on it");
            world.block_on(server.shutdown());
        },
    );
}

#[test]
fn handles_outlive_the_server_the_agent_and_the_mount() {
    isolated("life::handles_outlive_the_server_the_agent_and_the_mount", || {
        let world = World::new();
        let server = world.start("server");
        let (other, mounted) = (world.mount(), world.mount());
        let wanted = export(&mounted, &[(CLIENTS[0], ReadWrite)]);
        world.block_on(server.export(&export(&other, &[]))).unwrap();
        world.block_on(server.export(&wanted)).unwrap();
        let handle = world
            .client(CLIENTS[0])
            .handle(&server.path_of(mounted.version), PROBE);
        world.block_on(server.shutdown());
        drop(server);
        unmount(&mounted.path).unwrap();
        let server = world.start("server");
        assert_eq!(
            world.block_on(server.exports()).unwrap(),
            [],
            "shutdown ends all exports"
        );
        let mounted = world.remount(&mounted);
        // In another order than the first time.
        world
            .block_on(server.export(&export(&mounted, &[(CLIENTS[0], ReadWrite)])))
            .unwrap();
        world.block_on(server.export(&export(&other, &[]))).unwrap();
        assert_eq!(world.client(CLIENTS[0]).read(&handle).unwrap(), b"share number 2");
        world.block_on(server.shutdown());
    });
}

/// N2. libblkid believes for two seconds what it has in its cache of a device.
#[test]
fn a_share_on_the_device_that_another_has_just_left_has_its_own_identity_in_its_handles() {
    isolated(
        "life::a_share_on_the_device_that_another_has_just_left_has_its_own_identity_in_its_handles",
        || {
            let world = World::new();
            let server = world.start("server");
            let (one, two) = (world.mount(), world.mount());
            unmount(&two.path).unwrap();
            let rules = [(CLIENTS[0], ReadWrite)];
            world.block_on(server.export(&export(&one, &rules))).unwrap();
            world.block_on(server.unexport(one.version)).unwrap();
            unmount(&one.path).unwrap();
            let deadline = Instant::now() + Duration::from_secs(1);
            // The kernel gives the lowest number that is free; others of the machine may have been faster.
            let two = loop {
                let two = world.remount(&two);
                if two.device == one.device || Instant::now() > deadline {
                    break two;
                }
                unmount(&two.path).unwrap();
            };
            let root = fs::File::open(&two.path).unwrap();
            let identity = xfs_geometry(&root).unwrap().uuid;
            drop(root);
            world.block_on(server.export(&export(&two, &rules))).unwrap();
            let handle = world
                .client(CLIENTS[0])
                .handle(&server.path_of(two.version), PROBE);
            assert!(
                handle.windows(identity.len()).any(|part| part == identity),
                "a handle with another identity is stale after the next restart"
            );
            world.block_on(server.shutdown());
        },
    );
}

#[test]
fn clients_are_known_by_their_address_and_what_they_speak() {
    isolated(
        "life::clients_are_known_by_their_address_and_what_they_speak",
        || {
            let world = World::new();
            let server = world.start("server");
            let mounted = world.mount();
            assert_eq!(world.block_on(server.clients(mounted.version)).unwrap(), []);
            let rules = [("10.77.0.0/24", ReadOnly), ("fd77::/64", ReadWrite)];
            world.block_on(server.export(&export(&mounted, &rules))).unwrap();
            for address in [CLIENTS[1], "fd77::13"] {
                world.attempt(&server, mounted.version, address).unwrap();
            }
            let known = world.block_on(server.clients(mounted.version)).unwrap();
            let addresses: Vec<String> = known.iter().map(|client| client.address.to_string()).collect();
            assert!(addresses.contains(&CLIENTS[1].into()), "{known:?}");
            assert!(addresses.contains(&"fd77::13".into()), "{known:?}");
            assert!(!addresses.contains(&CLIENTS[0].into()), "{known:?}");
            let one = known
                .iter()
                .find(|client| client.address.to_string() == CLIENTS[1])
                .unwrap();
            assert_eq!((&one.versions[..], one.held), (&["4.0".to_owned()][..], None));
            let ago = one.last_seen.unwrap().elapsed().unwrap();
            assert!(ago < Duration::from_secs(60), "{ago:?}");
            world.block_on(server.shutdown());
        },
    );
}

/// Tells whether all threads of a process are stopped (proc_pid_stat(5): the state follows the name).
fn is_stopped(pid: i32) -> bool {
    fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok())
        .all(|stat| {
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('T'))
        })
}

#[test]
fn a_hung_server_is_ended_and_started_again() {
    isolated("life::a_hung_server_is_ended_and_started_again", || {
        let world = World::new();
        let server = world.start("server");
        let mounted = world.mount();
        let wanted = export(&mounted, &[(CLIENTS[0], ReadWrite)]);
        world.block_on(server.export(&wanted)).unwrap();
        let pid = world.ganesha("server");
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        // Each thread stops when it gets to it, and the one that answers may answer before.
        while !is_stopped(pid) {
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
        while !world
            .block_on(server.loaded(mounted.version))
            .is_ok_and(|loaded| loaded.is_some())
        {
            assert!(Instant::now() < deadline, "it is not started again");
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_ne!(world.ganesha("server"), pid);
        assert_eq!(
            world.attempt(&server, mounted.version, CLIENTS[0]),
            Some(ReadWrite)
        );
        assert_eq!(world.attempt(&server, mounted.version, CLIENTS[1]), None);
        world.block_on(server.shutdown());
    });
}

/// N7.
#[test]
fn a_call_that_finds_the_server_just_killed_is_unavailable_and_no_damage() {
    isolated(
        "life::a_call_that_finds_the_server_just_killed_is_unavailable_and_no_damage",
        || {
            let world = World::new();
            let server = world.start("server");
            let mounted = world.mount();
            let levels = [ReadWrite, ReadOnly];
            let mut found_dead = 0;
            for round in 0..4 {
                let wanted = export(&mounted, &[(CLIENTS[0], levels[round % 2])]);
                world.block_on(server.export(&wanted)).unwrap();
                let pid = world.ganesha("server");
                let other = export(&mounted, &[(CLIENTS[0], levels[(round + 1) % 2])]);
                world.kill("server");
                let left = match world.block_on(server.export(&other)) {
                    Ok(_) => &other,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                        found_dead += 1;
                        &wanted
                    }
                };
                let deadline = Instant::now() + Duration::from_secs(60);
                let loaded = loop {
                    match world.block_on(server.loaded(mounted.version)) {
                        Ok(loaded) if world.ganesha("server") != pid => break loaded,
                        _ => assert!(Instant::now() < deadline, "it is not started again"),
                    }
                    std::thread::sleep(Duration::from_millis(50));
                };
                assert_eq!(loaded, Some(LoadedAccess::of(&left.access)), "it was not lost");
            }
            assert!(found_dead > 0, "no call came in between");
            world.block_on(server.shutdown());
        },
    );
}

#[test]
fn a_server_whose_program_has_gone_says_so_until_it_is_back() {
    isolated(
        "life::a_server_whose_program_has_gone_says_so_until_it_is_back",
        || {
            let world = World::new();
            let mut config = world.config("server");
            let program = config.state_dir.with_file_name("ganesha-program");
            std::os::unix::fs::symlink(&config.programs.ganesha, &program).unwrap();
            let real = std::mem::replace(&mut config.programs.ganesha, program.clone());
            let server = world.block_on(GaneshaServer::start(config)).unwrap();
            let mounted = world.mount();
            let wanted = export(&mounted, &[(CLIENTS[0], ReadWrite)]);
            world.block_on(server.export(&wanted)).unwrap();
            let second = world.block_on(GaneshaServer::start(world.config("second")));
            let said = second.err().unwrap().to_string();
            assert!(said.contains("another program listens on [::]:"), "{said}");
            fs::remove_file(&program).unwrap();
            world.kill("server");
            let deadline = Instant::now() + Duration::from_secs(30);
            let missing = format!("{} is missing; install nfs-ganesha", program.display());
            while !world.block_on(server.exports()).is_err_and(|error| {
                error.kind() == ErrorKind::Unavailable && error.to_string().contains(&missing)
            }) {
                assert!(Instant::now() < deadline, "it does not say what is missing");
                std::thread::sleep(Duration::from_millis(50));
            }
            std::os::unix::fs::symlink(&real, &program).unwrap();
            while world.block_on(server.loaded(mounted.version)).is_err() {
                assert!(Instant::now() < deadline, "it is not started again");
                std::thread::sleep(Duration::from_millis(50));
            }
            assert_eq!(
                world.attempt(&server, mounted.version, CLIENTS[0]),
                Some(ReadWrite)
            );
            world.block_on(server.shutdown());
        },
    );
}

/// G3.
#[test]
fn a_share_that_is_not_mounted_is_not_exported_by_a_server_that_starts() {
    isolated(
        "life::a_share_that_is_not_mounted_is_not_exported_by_a_server_that_starts",
        || {
            let world = World::new();
            let server = world.start("server");
            let (gone, there) = (world.mount(), world.mount());
            let everybody = [("0.0.0.0/0", ReadWrite)];
            for mounted in [&gone, &there] {
                world
                    .block_on(server.export(&export(mounted, &everybody)))
                    .unwrap();
            }
            // As after a restart of the machine: nothing runs, and a folder is where the share was.
            drop(server);
            world.kill("server");
            let deadline = Instant::now() + Duration::from_secs(10);
            while let Err(error) = unmount(&gone.path) {
                assert!(Instant::now() < deadline, "{error}");
                std::thread::sleep(Duration::from_millis(20));
            }
            fs::write(gone.path.join(PROBE), "below").unwrap();
            let server = world.start("server");
            assert_eq!(world.block_on(server.exports()).unwrap(), [there.version]);
            assert_eq!(world.attempt(&server, there.version, CLIENTS[2]), Some(ReadWrite));
            assert_eq!(world.attempt(&server, gone.version, CLIENTS[2]), None);
            let refused = world.block_on(server.export(&export(&gone, &everybody)));
            assert!(matches!(refused, Err(DriverError::Corrupt { .. })), "{refused:?}");
            world.block_on(server.shutdown());
        },
    );
}

#[test]
fn what_cannot_be_told_is_refused_and_the_rest_goes_on() {
    isolated(
        "life::what_cannot_be_told_is_refused_and_the_rest_goes_on",
        || {
            let world = World::new();
            let server = world.start("server");
            let mounted = world.mount();
            let before = export(&mounted, &[(CLIENTS[0], ReadOnly)]);
            world.block_on(server.export(&before)).unwrap();
            let many: Vec<String> = (0..1025)
                .map(|index| format!("10.{}.{}.1", index / 256, index % 256))
                .collect();
            let many: Vec<_> = many.iter().map(|client| (&**client, ReadWrite)).collect();
            let refused = world.block_on(server.export(&export(&mounted, &many)));
            assert!(matches!(refused, Err(DriverError::Limit { .. })), "{refused:?}");
            let refused = world.block_on(server.export(&export(&mounted, &[("fd00::/110", ReadWrite)])));
            assert!(
                matches!(refused, Err(DriverError::InvalidArgument { .. })),
                "{refused:?}"
            );
            assert_eq!(
                world.block_on(server.loaded(mounted.version)).unwrap(),
                Some(LoadedAccess::of(&table(&[(CLIENTS[0], ReadOnly)])))
            );
            world
                .block_on(server.export(&export(&mounted, &many[..1000])))
                .unwrap();
            let squashed = quarry_contract::ShareExport {
                squash: Squash::All,
                ..export(&mounted, &[(CLIENTS[0], ReadWrite)])
            };
            assert!(world.block_on(server.export(&squashed)).unwrap().is_changed());
            // Nobody may not write to what is root's.
            let mut client = world.client(CLIENTS[0]);
            let handle = client.handle(&server.path_of(mounted.version), PROBE);
            assert_ne!(client.write(&handle, b"anonymous"), NFS4_OK, "squashed");
            world
                .block_on(server.export(&export(&mounted, &[(CLIENTS[0], ReadWrite)])))
                .unwrap();
            assert_eq!(client.write(&handle, b"share"), NFS4_OK, "as root");

            let missing = quarry_ganesha::GaneshaConfig {
                programs: quarry_ganesha::Programs {
                    ganesha: "/nowhere/ganesha.nfsd".into(),
                    ..Default::default()
                },
                ..world.config("missing")
            };
            let error = world.block_on(GaneshaServer::start(missing)).err().unwrap();
            assert_eq!(
                error.to_string(),
                "/nowhere/ganesha.nfsd is missing; install nfs-ganesha"
            );
            // The port is taken.
            let error = world
                .block_on(GaneshaServer::start(world.config("second")))
                .err()
                .unwrap();
            assert!(
                matches!(
                    error,
                    StartError::Process {
                        program: "ganesha.nfsd",
                        ..
                    }
                ),
                "{error}"
            );
            world.block_on(server.shutdown());
        },
    );
}

#[test]
fn a_change_holds_for_a_client_that_is_connected_and_has_the_file() {
    isolated(
        "life::a_change_holds_for_a_client_that_is_connected_and_has_the_file",
        || {
            let world = World::new();
            let server = world.start("server");
            let mounted = world.mount();
            let set = |rules: &[_]| {
                world.block_on(server.export(&export(&mounted, rules))).unwrap();
            };
            set(&[(CLIENTS[0], ReadWrite), (CLIENTS[1], ReadWrite)]);
            let (mut client, mut other) = (world.client(CLIENTS[0]), world.client(CLIENTS[1]));
            let handle = client.handle(&server.path_of(mounted.version), PROBE);
            for _ in 0..3 {
                assert_eq!(client.write(&handle, b"share"), NFS4_OK);
                set(&[(CLIENTS[0], ReadOnly), (CLIENTS[1], ReadWrite)]);
                assert_eq!(client.write(&handle, b"share"), NFS4ERR_ROFS, "EROFS");
                assert_eq!(client.read(&handle).unwrap(), b"share number 1");
                set(&[(CLIENTS[1], ReadWrite)]);
                assert_eq!(client.read(&handle).unwrap_err(), NFS4ERR_ACCESS, "EACCES");
                assert_eq!(client.write(&handle, b"share"), NFS4ERR_ACCESS, "EACCES");
                assert_eq!(other.write(&handle, b"share"), NFS4_OK, "N4: the other client");
                set(&[(CLIENTS[0], ReadWrite), (CLIENTS[1], ReadWrite)]);
            }
            assert_eq!(client.read(&handle).unwrap(), b"share number 1");
            world.block_on(server.shutdown());
        },
    );
}
