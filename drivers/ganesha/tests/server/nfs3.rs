//! NFSv3 (RFC 1813) where it is configured: the rules hold as for NFSv4.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use quarry_contract::AccessLevel::{ReadOnly, ReadWrite};
use quarry_contract::ShareServer;
use quarry_ganesha::{GaneshaConfig, GaneshaServer, Nfs3, StartError};

use crate::nfs::{Decoder, Encoder, begin_call, receive, send};
use crate::world::{PORT, PROBE, World, export, isolated};

const CLIENTS: [&str; 3] = ["10.77.0.11", "10.77.0.12", "10.77.0.13"];
const MOUNT_PORT: u16 = 20048;

const NFS3_OK: u32 = 0;
/// The same of both protocols.
const ACCES: u32 = 13;
const ROFS: u32 = 30;
const STALE: u32 = 70;
const BADHANDLE: u32 = 10001;
const JUKEBOX: u32 = 10008;
/// No answer of NFS, but of RPC: a client whom no rule of the export names is not talked with.
const DENIED: u32 = u32::MAX;

/// A client at one address, with a connection for each of the two protocols.
struct Client {
    mount: TcpStream,
    nfs: TcpStream,
}

/// Makes a call as root, and returns what follows the head of the answer; `None` when the server does not talk
/// with this client.
fn call(stream: &mut TcpStream, program: u32, procedure: u32, arguments: &Encoder) -> Option<Decoder> {
    static NEXT_ID: AtomicU32 = AtomicU32::new(1);

    // The same number again would be answered as the first time (RFC 1813, 4.6).
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let mut call = begin_call(id, program, 3, procedure);
    call.0.extend(&arguments.0);
    send(stream, &call.0);
    let mut reply = Decoder(receive(stream));
    let head: Vec<u32> = (0..3).map(|_| reply.word()).collect();
    if head[2] == 1 {
        assert_eq!(reply.word(), 1, "AUTH_ERROR");
        return None;
    }
    let verified: Vec<u32> = (0..3).map(|_| reply.word()).collect();
    assert_eq!(
        (&head[..], &verified[..]),
        (&[id, 1, 0][..], &[0, 0, 0][..]),
        "success"
    );
    Some(reply)
}

impl Client {
    fn at(world: &World, address: &str) -> Self {
        let connect = |port| world.connect(address, port).expect("connecting");
        Self {
            mount: connect(MOUNT_PORT),
            nfs: connect(PORT),
        }
    }

    /// Mounts an export; its root, or why not (RFC 1813, 5.2.1).
    fn mount(&mut self, export: &str) -> Result<Vec<u8>, u32> {
        let mut path = Encoder::default();
        path.opaque(export.as_bytes());
        let Some(mut reply) = call(&mut self.mount, 100_005, 1, &path) else {
            return Err(DENIED);
        };
        match reply.word() {
            0 => Ok(reply.opaque()),
            status => Err(status),
        }
    }

    /// Asks for the exports, as `showmount -e` does (RFC 1813, 5.2.5): their paths and for whom they are.
    fn exports(&mut self) -> Vec<(String, Vec<String>)> {
        let mut reply = call(&mut self.mount, 100_005, 5, &Encoder::default()).expect("an answer");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let mut exports = Vec::new();
        while reply.word() == 1 {
            let path = text(reply.opaque());
            let mut groups = Vec::new();
            while reply.word() == 1 {
                groups.push(text(reply.opaque()));
            }
            exports.push((path, groups));
        }
        exports
    }

    /// Makes a call of NFS, as often as the server asks to come again.
    fn nfs(&mut self, procedure: u32, arguments: &Encoder) -> (u32, Decoder) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let Some(mut reply) = call(&mut self.nfs, 100_003, procedure, arguments) else {
                return (DENIED, Decoder(Vec::new()));
            };
            match reply.word() {
                JUKEBOX if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(200)),
                status => return (status, reply),
            }
        }
    }

    fn lookup(&mut self, root: &[u8], name: &str) -> Result<Vec<u8>, u32> {
        let mut arguments = Encoder::default();
        arguments.opaque(root);
        arguments.opaque(name.as_bytes());
        match self.nfs(3, &arguments) {
            (NFS3_OK, mut reply) => Ok(reply.opaque()),
            (status, _) => Err(status),
        }
    }

    fn read(&mut self, handle: &[u8]) -> Result<Vec<u8>, u32> {
        let mut arguments = Encoder::default();
        arguments.opaque(handle);
        for word in [0, 0, 4096] {
            arguments.word(word);
        }
        match self.nfs(6, &arguments) {
            (NFS3_OK, mut reply) => {
                // Attributes of 84 bytes, when there are any; a count, and whether it is the end.
                if reply.word() == 1 {
                    reply.take(84);
                }
                reply.take(8);
                Ok(reply.opaque())
            }
            (status, _) => Err(status),
        }
    }

    /// Writes at the beginning, to the disk.
    fn write(&mut self, handle: &[u8], data: &[u8]) -> u32 {
        let mut arguments = Encoder::default();
        arguments.opaque(handle);
        for word in [0, 0, data.len() as u32, 2] {
            arguments.word(word);
        }
        arguments.opaque(data);
        self.nfs(7, &arguments).0
    }
}

fn config(world: &World) -> GaneshaConfig {
    GaneshaConfig {
        nfs3: Some(Nfs3 {
            mount_port: MOUNT_PORT,
        }),
        ..world.config("server")
    }
}

/// Starts the portmapper of this network name space, which ends with the test. False where there is none.
fn has_portmapper(world: &World) -> bool {
    if !Path::new("/usr/sbin/rpcbind").exists() {
        eprintln!("SKIPPED: needs rpcbind");
        return false;
    }
    let refused = world.block_on(GaneshaServer::start(config(world))).err().unwrap();
    assert!(
        matches!(
            refused,
            StartError::Missing {
                package: "rpcbind",
                ..
            }
        ),
        "{refused}"
    );
    // It goes into the background.
    assert!(Command::new("/usr/sbin/rpcbind").status().unwrap().success());
    let deadline = Instant::now() + Duration::from_secs(10);
    while !Path::new("/run/rpcbind.sock").exists() {
        assert!(Instant::now() < deadline, "the portmapper does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

#[test]
fn rules_hold_for_nfs3_as_for_nfs4_also_by_a_handle_from_before() {
    isolated(
        "nfs3::rules_hold_for_nfs3_as_for_nfs4_also_by_a_handle_from_before",
        || {
            let world = World::new();
            if !has_portmapper(&world) {
                return;
            }
            let server = world.block_on(GaneshaServer::start(config(&world))).unwrap();
            let mounted = world.mount();
            let path = server.path_of(mounted.version);
            let set = |rules: &[_]| {
                world.block_on(server.export(&export(&mounted, rules))).unwrap();
            };
            set(&[(CLIENTS[0], ReadWrite), (CLIENTS[1], ReadOnly)]);
            let [mut writer, mut reader, mut stranger] = CLIENTS.map(|address| Client::at(&world, address));
            let root = writer.mount(&path).unwrap();
            let handle = writer.lookup(&root, PROBE).unwrap();
            assert_eq!(writer.read(&handle).unwrap(), b"share number 1");
            assert_eq!(reader.mount(&path).unwrap(), root);
            assert_eq!(stranger.mount(&path), Err(ACCES));
            assert_eq!(stranger.exports(), [], "what it may not use it does not see");
            let listed = reader.exports();
            assert_eq!((listed.len(), &listed[0].0), (1, &path));
            assert_eq!(listed[0].1.len(), 2, "for whom, too: {listed:?}");
            // Whom no rule names gets nothing by a handle either.
            assert_eq!(stranger.lookup(&root, PROBE), Err(DENIED));
            assert_eq!(stranger.read(&handle), Err(DENIED));
            assert_eq!(stranger.write(&handle, b"share"), DENIED);
            assert_eq!(
                (reader.write(&handle, b"share"), reader.read(&handle).is_ok()),
                (ROFS, true)
            );
            for _ in 0..3 {
                assert_eq!(writer.write(&handle, b"share"), NFS3_OK);
                set(&[(CLIENTS[0], ReadOnly), (CLIENTS[1], ReadWrite)]);
                assert_eq!(writer.write(&handle, b"share"), ROFS);
                assert_eq!(reader.write(&handle, b"share"), NFS3_OK);
                set(&[(CLIENTS[1], ReadOnly)]);
                assert_eq!(writer.read(&handle), Err(DENIED), "revoked");
                assert_eq!(writer.write(&handle, b"share"), DENIED, "revoked");
                assert_eq!(reader.read(&handle).unwrap(), b"share number 1", "N4");
                set(&[(CLIENTS[0], ReadWrite), (CLIENTS[1], ReadOnly)]);
            }
            // NFSv4 beside it goes on, and both are told of a client.
            assert_eq!(
                world.attempt(&server, mounted.version, CLIENTS[0]),
                Some(ReadWrite)
            );
            let known = world.block_on(server.clients(mounted.version)).unwrap();
            let one = known
                .iter()
                .find(|client| client.address.to_string() == CLIENTS[0]);
            assert_eq!(one.unwrap().versions, ["3", "4.0"]);

            world.kill("server");
            let deadline = Instant::now() + Duration::from_secs(30);
            while !world
                .block_on(server.loaded(mounted.version))
                .is_ok_and(|loaded| loaded.is_some())
            {
                assert!(Instant::now() < deadline, "it is not started again");
                std::thread::sleep(Duration::from_millis(50));
            }
            let [mut writer, mut reader, mut stranger] = CLIENTS.map(|address| Client::at(&world, address));
            assert_eq!(writer.read(&handle).unwrap(), b"share number 1", "N7");
            assert_eq!(writer.write(&handle, b"share"), NFS3_OK, "N7");
            assert_eq!(reader.write(&handle, b"share"), ROFS, "N7");
            assert_eq!(stranger.read(&handle), Err(DENIED), "N7");
            world.block_on(server.unexport(mounted.version)).unwrap();
            let refused = writer.read(&handle).unwrap_err();
            assert!([STALE, BADHANDLE, ACCES].contains(&refused), "N5: {refused}");
            world.block_on(server.shutdown());
        },
    );
}

#[test]
fn a_client_of_one_share_cannot_reach_another_with_a_made_up_handle_of_nfs3() {
    isolated(
        "nfs3::a_client_of_one_share_cannot_reach_another_with_a_made_up_handle_of_nfs3",
        || {
            let world = World::new();
            if !has_portmapper(&world) {
                return;
            }
            let server = world.block_on(GaneshaServer::start(config(&world))).unwrap();
            let (one, two) = (world.mount(), world.mount());
            for (mounted, client) in [(&one, CLIENTS[0]), (&two, CLIENTS[1])] {
                world
                    .block_on(server.export(&export(mounted, &[(client, ReadWrite)])))
                    .unwrap();
            }
            let (mut client, mut other) = (Client::at(&world, CLIENTS[0]), Client::at(&world, CLIENTS[1]));
            let own = client.mount(&server.path_of(one.version)).unwrap();
            let root = other.mount(&server.path_of(two.version)).unwrap();
            let own = client.lookup(&own, PROBE).unwrap();
            let secret = other.lookup(&root, PROBE).unwrap();
            assert_eq!(client.mount(&server.path_of(two.version)), Err(ACCES));
            // As it is; and under the number of the export that the client may use.
            let mut forged = secret.clone();
            forged[2..4].copy_from_slice(&own[2..4]);
            assert_ne!(forged, secret);
            for handle in [&secret, &forged] {
                client.read(handle).expect_err("another share's file was read");
                assert_ne!(
                    client.write(handle, b"forged"),
                    NFS3_OK,
                    "another share's file was written"
                );
            }
            assert!([STALE, BADHANDLE].contains(&client.read(&forged).unwrap_err()));
            assert_eq!(client.read(&own).unwrap(), b"share number 1");
            assert_eq!(fs::read(two.path.join(PROBE)).unwrap(), b"share number 2");
            world.block_on(server.shutdown());
        },
    );
}
