//! Detach races the writes of the host that is detached: what it has in flight is done or never, what it sends later
//! is nothing, and other hosts do not notice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quarry_proto::v1::{
    Connector, CreateAttachmentRequest, CreateSnapshotRequest, DeleteAttachmentRequest, DeleteSnapshotRequest,
};
use uuid::Uuid;

use crate::agent_process::{AgentProcess, eventually};
use crate::command::{self, json};
use crate::dice::Dice;
use crate::grpc::Api;
use crate::scripted_initiator::{Client, Login, cdb10};

/// Detaches that are raced, each by two sessions.
const ROUNDS: u64 = 40;

const BLOCK_BYTES: usize = 4096;
/// What one session of the detached host writes to, in blocks and bytes.
const REGION_BLOCKS: usize = 256;
const REGION_BYTES: u64 = (REGION_BLOCKS * BLOCK_BYTES) as u64;
/// Where the host that stays attached writes.
const STAYING_LBA: u32 = (3 * REGION_BYTES / 512) as u32;

/// Writes that a session has in flight.
const DEPTH: usize = 32;

const AUTHENTICATION_FAILED: u16 = 0x0201;
const NOT_AUTHORIZED: u16 = 0x0202;
const TARGET_REMOVED: u16 = 0x0204;

/// An agent, spoken to directly: a command line would give a late write time to come to its end.
struct Storage {
    runtime: tokio::runtime::Runtime,
    api: Api,
    portal: SocketAddr,
    dice: Dice,
}

/// An attachment and how its host logs in.
struct Attachment {
    id: Uuid,
    login: Login,
}

impl Storage {
    fn of(agent: &AgentProcess) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        Self {
            api: runtime.block_on(Api::connect(agent)),
            runtime,
            portal: agent.portal,
            dice: Dice::new(1),
        }
    }

    fn attach(&mut self, volume: Uuid, host: &str) -> Attachment {
        let id = self.dice.uuid();
        let initiator = format!("iqn.2026-11.io.quarry.test:{host}");
        let request = CreateAttachmentRequest {
            id: id.to_string(),
            volume_id: volume.to_string(),
            connector: Some(Connector {
                initiator: initiator.clone(),
                ..Connector::default()
            }),
            ..CreateAttachmentRequest::default()
        };
        let made = self.api.attachments.create_attachment(request);
        let made = self.runtime.block_on(made).unwrap().into_inner();
        let cinder: serde_json::Value =
            serde_json::from_str(&made.connection_info.unwrap().cinder_json).unwrap();
        let data = |key: &str| cinder["data"][key].as_str().unwrap().to_owned();
        let login = Login {
            initiator,
            target: data("target_iqn"),
            user: data("auth_username"),
            secret: data("auth_password"),
            isid: [0x40, 0, 0, 0, 0, 1],
            keys: Login::usual_keys(),
        };
        Attachment { id, login }
    }

    fn detach(&mut self, attachment: &Attachment, force: bool) {
        let request = DeleteAttachmentRequest {
            id: attachment.id.to_string(),
            force,
            mutation: None,
        };
        let detached = self.api.attachments.delete_attachment(request);
        let detached = self.runtime.block_on(detached).unwrap().into_inner();
        assert!(!detached.host_still_attached);
    }

    fn snapshot(&mut self, volume: Uuid) -> Uuid {
        let id = self.dice.uuid();
        let request = CreateSnapshotRequest {
            id: id.to_string(),
            volume_id: volume.to_string(),
            ..CreateSnapshotRequest::default()
        };
        let made = self.api.snapshots.create_snapshot(request);
        self.runtime.block_on(made).unwrap();
        id
    }

    fn delete_snapshot(&mut self, id: Uuid) {
        let request = DeleteSnapshotRequest {
            id: id.to_string(),
            mutation: None,
        };
        let deleted = self.api.snapshots.delete_snapshot(request);
        self.runtime.block_on(deleted).unwrap();
    }
}

/// What a session knows of each block of its region; 0 is nothing.
#[derive(Clone)]
struct Ledger {
    /// The last write that was answered well.
    done: [u64; REGION_BLOCKS],
    /// One that was not answered.
    in_flight: [u64; REGION_BLOCKS],
}

/// Writes a region round and round, as deep as [`DEPTH`], until the session is cut.
fn write_until_cut(
    client: &mut Client,
    first_lba: u32,
    ledger: &mut Ledger,
    number: &mut u64,
    answered: &AtomicU64,
) {
    let mut tags: std::collections::HashMap<u32, usize> = std::collections::HashMap::new();
    for block in (0..REGION_BLOCKS).cycle() {
        while tags.len() == DEPTH {
            let Ok(answer) = client.receive() else { return };
            if answer.opcode() != 0x21 {
                continue;
            }
            let block: usize = tags.remove(&answer.be32(16)).expect("an answer to a command");
            if answer.header[3] == 0 {
                ledger.done[block] = ledger.in_flight[block];
                ledger.in_flight[block] = 0;
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }
        // What a block holds is known only if one write of it is under way at a time.
        if tags.values().any(|other| *other == block) {
            continue;
        }
        *number += 1;
        let data = number.to_ne_bytes().repeat(BLOCK_BYTES / 8);
        let lba = first_lba + (block * BLOCK_BYTES / 512) as u32;
        let write = client.command_pdu(&cdb10(0x2a, lba, 8), BLOCK_BYTES as u32, 0xa1, &data);
        ledger.in_flight[block] = *number;
        tags.insert(write.be32(16), block);
        if std::io::Write::write_all(&mut client.socket, &write.bytes()).is_err() {
            return;
        }
    }
}

/// Asks for much, reads nothing of it, and stops in the middle of a request.
fn hang(client: &mut Client) {
    for _ in 0..120 {
        let read = client.command_pdu(&cdb10(0x28, 0, 2048), 1 << 20, 0xc1, &[]);
        client.send(&read);
    }
    let write = client.command_pdu(&cdb10(0x2a, 0, 8), BLOCK_BYTES as u32, 0xa1, &[0xee; BLOCK_BYTES]);
    std::io::Write::write_all(&mut client.socket, &write.bytes()[..BLOCK_BYTES]).unwrap();
}

/// Writes and reads its own blocks over one session until it is told to stop; nothing may go wrong.
fn stay(mut client: Client, stop: &AtomicBool, rounds: &AtomicU64) -> Client {
    for fill in (1..=u8::MAX).cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let data = vec![fill; 16 * BLOCK_BYTES];
        assert_eq!(client.write(STAYING_LBA, &data).status, 0);
        let read = client.read(STAYING_LBA, (data.len() / 512) as u16);
        assert!(read.status == 0 && read.data == data, "the other host's data");
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    client
}

/// Reads what the detached host could write to.
fn contents(reader: &mut Client) -> Vec<u8> {
    let mut bytes = Vec::new();
    for region in 0..2 {
        let lba = (region * REGION_BYTES / 512) as u32;
        let read = reader.read(lba, (REGION_BYTES / 512) as u16);
        assert_eq!(read.status, 0);
        bytes.extend_from_slice(&read.data);
    }
    bytes
}

#[test]
fn nothing_of_a_detached_host_reaches_the_volume_however_it_races_the_detach() {
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&temporary.path().join("agent"));
    let mut storage = Storage::of(&agent);
    let portal = storage.portal;
    let volume = command::volume(&agent, "4MiB");
    let stays = storage.attach(volume, "stays");
    let log_in = |login: &Login, number: u8| {
        let login = Login {
            isid: [0x40, 0, 0, 0, 0, number],
            ..login.clone()
        };
        Client::log_in_at(portal, &login)
    };
    let mut reader = log_in(&stays.login, 1).unwrap();
    let staying = log_in(&stays.login, 2).unwrap();
    let tsih = staying.tsih;
    let (stop, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let stayer = std::thread::spawn({
        let (stop, turns) = (Arc::clone(&stop), Arc::clone(&turns));
        move || stay(staying, &stop, &turns)
    });
    let blank = Ledger {
        done: [0; REGION_BLOCKS],
        in_flight: [0; REGION_BLOCKS],
    };
    let mut ledgers = [blank.clone(), blank];
    let mut number = 0;

    for round in 0..ROUNDS {
        let leaves = storage.attach(volume, "leaves");
        // Every other time the host has a second attachment, and a session that hangs, and is fenced by force.
        let force = round % 2 == 1;
        let hanging = force.then(|| {
            storage.attach(volume, "leaves");
            let mut client = log_in(&leaves.login, 3).unwrap();
            hang(&mut client);
            client
        });
        let (done, over) = ([0; 2].map(AtomicU64::new), AtomicBool::new(false));
        let turns_before = turns.load(Ordering::Relaxed);
        let before = number;
        let mut clients = [1, 2].map(|session| log_in(&leaves.login, session).unwrap());
        let (first, later, snapshot) = std::thread::scope(|scope| {
            for (session, (client, ledger)) in clients.iter_mut().zip(&mut ledgers).enumerate() {
                let (done, over, leaves) = (&done[session], &over, &leaves);
                scope.spawn(move || {
                    let lba = (session as u64 * REGION_BYTES / 512) as u32;
                    // Numbers that no other session or round has.
                    let mut number = before + (session as u64) * 1_000_000;
                    write_until_cut(client, lba, ledger, &mut number, done);
                    assert!(number < before + (session as u64 + 1) * 1_000_000);
                    // It does not give up: its right is gone by the time its session is.
                    while !over.load(Ordering::Relaxed) {
                        assert_eq!(
                            log_in(&leaves.login, session as u8 + 1).err(),
                            Some(NOT_AUTHORIZED)
                        );
                    }
                });
            }
            eventually("both write", || {
                let writes = |done: &AtomicU64| done.load(Ordering::Relaxed) > 50;
                done.iter().all(writes).then_some(())
            });
            std::thread::sleep(Duration::from_micros(storage.dice.below(5000)));
            storage.detach(&leaves, force);
            let snapshot = storage.snapshot(volume);
            let first = contents(&mut reader);
            std::thread::sleep(Duration::from_millis(20));
            let later = contents(&mut reader);
            over.store(true, Ordering::Relaxed);
            (first, later, snapshot)
        });
        drop(hanging);
        number += 2_000_000;
        assert!(first == later, "round {round}: the volume has changed");
        let changes = json(
            &agent,
            &format!("volume extents {volume} --since snapshot:{snapshot}"),
        );
        let fenced = |extent: &serde_json::Value| extent["offset_bytes"].as_u64().unwrap() < 2 * REGION_BYTES;
        assert!(
            !changes.as_array().unwrap().iter().any(fenced),
            "round {round}: written since the snapshot: {changes}"
        );
        storage.delete_snapshot(snapshot);
        for (ledger, region) in ledgers.iter_mut().zip(later.chunks(REGION_BYTES as usize)) {
            for (block, bytes) in region.chunks(BLOCK_BYTES).enumerate() {
                let (holds, rest) = bytes.split_first_chunk().unwrap();
                let whole = rest.chunks(8).all(|word| word == holds);
                let holds = u64::from_ne_bytes(*holds);
                let (done, in_flight) = (ledger.done[block], ledger.in_flight[block]);
                assert!(
                    whole && (holds == done || holds == in_flight),
                    "round {round}, block {block}: {holds} (whole: {whole}), neither {done} nor {in_flight}"
                );
                (ledger.done[block], ledger.in_flight[block]) = (holds, 0);
            }
        }
        assert!(
            turns.load(Ordering::Relaxed) > turns_before,
            "round {round}: the other host stood still"
        );
    }

    stop.store(true, Ordering::Relaxed);
    let staying = stayer.join().unwrap();
    assert_eq!(staying.tsih, tsih);
    let sessions = json(&agent, "attachment sessions");
    assert_eq!(sessions.as_array().unwrap().len(), 2, "{sessions}");
}

#[test]
fn a_revoked_secret_fails_from_the_very_next_attempt() {
    let temporary = tempfile::tempdir().unwrap();
    let agent = AgentProcess::start(&temporary.path().join("agent"));
    let mut storage = Storage::of(&agent);
    let portal = storage.portal;
    let volume = command::volume(&agent, "4MiB");
    let mut before: Option<Login> = None;
    for round in 0..30 {
        // At first the host's attachment is the only one, and the target goes with it.
        let refusal = if round < 15 {
            TARGET_REMOVED
        } else {
            NOT_AUTHORIZED
        };
        if round == 15 {
            storage.attach(volume, "other");
        }
        let attachment = storage.attach(volume, "host");
        if let Some(old) = &before {
            assert_ne!(old.secret, attachment.login.secret, "round {round}");
            let refused = Client::log_in_at(portal, old).err();
            assert_eq!(
                refused,
                Some(AUTHENTICATION_FAILED),
                "round {round}: attached anew"
            );
        }
        let mut client = Client::log_in_at(portal, &attachment.login).unwrap();
        // One login is half done when the right goes.
        let mut halfway = Client::connect(portal);
        let other = Login {
            isid: [0x40, 0, 0, 0, 0, 2],
            ..attachment.login.clone()
        };
        halfway.authenticate(&other).unwrap();
        storage.detach(&attachment, false);
        let refused = Client::log_in_at(portal, &attachment.login).err();
        assert_eq!(refused, Some(refusal), "round {round}");
        client.expect_close();
        let again = storage.attach(volume, "host");
        let late = halfway.login_step(&other, 0x87, &[]).err();
        assert_eq!(late, Some(AUTHENTICATION_FAILED), "round {round}: begun before");
        storage.detach(&again, false);
        before = Some(attachment.login);
    }
}
