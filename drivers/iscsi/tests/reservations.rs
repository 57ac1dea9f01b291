//! Reservations and write protection between sessions, as initiators see them.

mod client;
mod rig;

use client::{Client, Login, cdb10};
use quarry_contract::conformance::block_on;
use quarry_contract::{Access, Target};
use rig::{INITIATOR, Rig, eventually, grant};

const CONFLICT: u8 = 0x18;

/// A session of the host's initiator port with this number.
fn session(rig: &Rig, number: u8) -> Client {
    let mut login = Login::to(rig);
    login.isid[5] = number;
    Client::log_in(rig, &login).expect("the login succeeds")
}

/// PERSISTENT RESERVE OUT; returns the status.
fn reserve_out(client: &mut Client, action: u8, kind: u8, key: u64, action_key: u64) -> u8 {
    reserve_out_with(client, action, kind, key, action_key, 0)
}

/// The same with the flags of byte 20; 1 is APTPL.
fn reserve_out_with(client: &mut Client, action: u8, kind: u8, key: u64, action_key: u64, flags: u8) -> u8 {
    let mut list = [0; 24];
    list[20] = flags;
    list[..8].copy_from_slice(&key.to_be_bytes());
    list[8..16].copy_from_slice(&action_key.to_be_bytes());
    let cdb = [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
    client.command(&cdb, 24, &list).status
}

/// The keys that are registered.
fn keys(client: &mut Client) -> Vec<u64> {
    let data = client.command(&[0x5e, 0, 0, 0, 0, 0, 0, 1, 0, 0], 256, &[]).data;
    let key = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
    data[8..].chunks_exact(8).map(key).collect()
}

#[test]
fn persistent_reservation_fences_another_session_and_outlives_its_own() {
    let rig = Rig::new();
    let (mut first, mut second) = (session(&rig, 1), session(&rig, 2));
    assert_eq!(reserve_out(&mut first, 0, 0, 0, 11), 0);
    assert_eq!(reserve_out(&mut second, 0, 0, 0, 22), 0);
    assert_eq!(reserve_out(&mut first, 1, 1, 11, 0), 0);
    assert_eq!(second.write(0, &[1; 512]).status, CONFLICT);
    assert_eq!(second.read(0, 1).status, 0);
    assert_eq!(first.write(0, &[2; 512]).status, 0);
    drop(first);
    eventually("the session is gone", || rig.session_count() == 1);
    assert_eq!(second.write(0, &[1; 512]).status, CONFLICT);
    let mut first = session(&rig, 1);
    assert_eq!(
        first.write(0, &[3; 512]).status,
        0,
        "the same port, another session"
    );
    assert_eq!(keys(&mut first), [11, 22]);
    let mut third = session(&rig, 3);
    assert_eq!(third.write(0, &[1; 512]).status, CONFLICT);
    assert_eq!(third.read(0, 1).status, 0);
}

#[test]
fn preempted_session_hears_of_it_once() {
    let rig = Rig::new();
    let (mut first, mut second) = (session(&rig, 1), session(&rig, 2));
    reserve_out(&mut first, 0, 0, 0, 11);
    reserve_out(&mut second, 0, 0, 0, 22);
    reserve_out(&mut first, 1, 5, 11, 0);
    assert_eq!(reserve_out(&mut second, 4, 5, 22, 11), 0);
    assert_eq!(first.command(&[0], 0, &[]).sense, Some((6, 0x2a, 5)));
    assert_eq!(first.command(&[0], 0, &[]).status, 0);
    assert_eq!(first.write(0, &[1; 512]).status, CONFLICT);
    assert_eq!(keys(&mut second), [22]);
}

#[test]
fn preempt_and_abort_is_answered_after_the_other_sessions_writes_have_left_the_device() {
    let rig = Rig::new();
    let (mut first, mut second) = (session(&rig, 1), session(&rig, 2));
    reserve_out(&mut first, 0, 0, 0, 11);
    reserve_out(&mut second, 0, 0, 0, 22);
    reserve_out(&mut first, 1, 3, 11, 0);
    rig.device.hold();
    let write = first.command_pdu(&cdb10(0x2a, 0, 8), 4096, 0xa1, &[1; 4096]);
    first.send(&write);
    eventually("the write is at the device", || rig.device.held_requests() == 1);
    let mut list = [0; 24];
    list[7] = 22;
    list[15] = 11;
    let preempt = second.command_pdu(&[0x5f, 5, 3, 0, 0, 0, 0, 0, 24, 0], 24, 0xa1, &list);
    second.send(&preempt);
    second.expect_silence();
    rig.device.release();
    assert_eq!(second.outcome(preempt.be32(16)).status, 0);
    first.expect_silence();
    assert_eq!(first.write(8, &[1; 512]).sense, Some((6, 0x2a, 5)));
    assert_eq!(first.write(8, &[1; 512]).status, CONFLICT);
}

#[test]
fn reserve_6_ends_with_its_session_and_with_a_reset() {
    let rig = Rig::new();
    let (mut first, mut second) = (session(&rig, 1), session(&rig, 2));
    assert_eq!(first.command(&[0x16, 0, 0, 0, 0, 0], 0, &[]).status, 0);
    assert_eq!(second.command(&[0], 0, &[]).status, CONFLICT);
    assert_eq!(second.command(&[0x17, 0, 0, 0, 0, 0], 0, &[]).status, 0);
    assert_eq!(second.command(&[0x16, 0, 0, 0, 0, 0], 0, &[]).status, CONFLICT);
    drop(first);
    eventually("the nexus is lost", || second.command(&[0], 0, &[]).status == 0);
    let mut first = session(&rig, 1);
    assert_eq!(second.command(&[0x16, 0, 0, 0, 0, 0], 0, &[]).status, 0);
    let reset = first.management_pdu(5, 0xffff_ffff);
    first.send(&reset);
    assert_eq!(first.receive().unwrap().header[2], 0);
    assert_eq!(first.command(&[0], 0, &[]).sense, Some((6, 0x29, 3)));
    assert_eq!(first.command(&[0], 0, &[]).status, 0);
}

#[test]
fn software_write_protection_holds_for_every_session_and_goes_with_a_reset() {
    let rig = Rig::new();
    let (mut first, mut second) = (session(&rig, 1), session(&rig, 2));
    let mut list = [0; 16];
    list[4..8].copy_from_slice(&[0x0a, 10, 0, 0x10]);
    list[8] = 0x08;
    assert_eq!(first.command(&[0x15, 0x10, 0, 0, 16, 0], 16, &list).status, 0);
    assert_eq!(second.write(0, &[1; 512]).sense, Some((6, 0x2a, 1)));
    assert_eq!(second.write(0, &[1; 512]).sense, Some((7, 0x27, 0)));
    assert_eq!(first.write(0, &[1; 512]).sense, Some((7, 0x27, 0)));
    let sense = second.command(&[0x1a, 0x08, 0x0a, 0, 255, 0], 255, &[]).data;
    assert_eq!((sense[2] & 0x80, sense[8]), (0x80, 0x08));
    let reset = first.management_pdu(5, 0xffff_ffff);
    first.send(&reset);
    assert_eq!(first.receive().unwrap().header[2], 0);
    first.command(&[0], 0, &[]);
    assert_eq!(first.write(0, &[1; 512]).status, 0);
}

#[test]
fn cold_reset_is_answered_and_ends_every_session_of_the_target() {
    let rig = Rig::with(
        1 << 20,
        |_| {},
        &[
            grant(INITIATOR, Access::ReadWrite),
            grant("iqn.2026-11.io.quarry.test:other", Access::ReadWrite),
        ],
    );
    let (mut first, mut second) = (session(&rig, 1), session(&rig, 2));
    let reset = first.management_pdu(7, 0xffff_ffff);
    first.send(&reset);
    let answer = first.receive().unwrap();
    assert_eq!((answer.opcode(), answer.header[2]), (0x22, 0));
    first.expect_close();
    second.expect_close();
    eventually("the sessions are gone", || rig.session_count() == 0);
    assert_eq!(session(&rig, 1).command(&[0], 0, &[]).status, 0);
    assert!(!rig.target.portals().is_empty());
}

#[test]
fn reservations_outlive_a_restart_when_they_were_asked_to() {
    let grants = [grant(INITIATOR, Access::ReadWrite)];
    let mut rig = Rig::new();
    let mut first = session(&rig, 1);
    assert_eq!(reserve_out(&mut first, 0, 0, 0, 11), 0);
    assert_eq!(reserve_out(&mut first, 1, 3, 11, 0), 0);
    rig.restart(&grants);
    let mut second = session(&rig, 2);
    assert_eq!(second.write(0, &[1; 512]).status, 0, "APTPL was not set");

    assert_eq!(reserve_out_with(&mut second, 0, 0, 0, 22, 1), 0);
    assert_eq!(reserve_out(&mut second, 1, 3, 22, 0), 0);
    rig.restart(&grants);
    let (mut first, mut second) = (session(&rig, 1), session(&rig, 2));
    assert_eq!(first.write(0, &[1; 512]).status, CONFLICT, "T7");
    assert_eq!(first.read(0, 1).status, CONFLICT, "T7");
    assert_eq!(second.write(0, &[2; 512]).status, 0);
    assert_eq!(keys(&mut second), [22]);

    assert_eq!(reserve_out(&mut second, 3, 0, 22, 0), 0);
    assert_eq!(rig.keeper.kept(rig.volume), [], "cleared is cleared");
    rig.restart(&grants);
    assert_eq!(session(&rig, 1).write(0, &[1; 512]).status, 0);
}

#[test]
fn an_export_after_an_unexport_that_nobody_waited_for_has_no_reservations() {
    let rig = Rig::new();
    let mut client = session(&rig, 1);
    assert_eq!(reserve_out_with(&mut client, 0, 0, 0, 11, 1), 0);
    // What the caller has read before.
    let spec = rig.spec(rig.volume, &[grant(INITIATOR, Access::ReadWrite)]);
    assert_ne!(spec.kept, []);
    rig.device.hold();
    let write = client.command_pdu(&cdb10(0x2a, 0, 8), 4096, 0xa1, &[5; 4096]);
    client.send(&write);
    eventually("the write is at the device", || rig.device.held_requests() == 1);
    let waker = std::task::Waker::noop();
    let polled = rig
        .target
        .unexport(rig.volume)
        .as_mut()
        .poll(&mut std::task::Context::from_waker(waker));
    assert!(polled.is_pending());
    rig.device.release();
    block_on(rig.target.export(spec)).unwrap();
    assert_eq!(keys(&mut session(&rig, 2)), [], "T7");
    assert_eq!(rig.keeper.kept(rig.volume), []);
}

#[test]
fn registration_is_refused_when_it_cannot_be_kept() {
    let rig = Rig::new();
    let mut client = session(&rig, 1);
    rig.keeper.refuse(true);
    let mut list = [0; 24];
    list[15] = 7;
    list[20] = 1;
    let outcome = client.command(&[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0], 24, &list);
    assert_eq!(outcome.sense, Some((4, 0x44, 0)));
    rig.keeper.refuse(false);
    assert_eq!(reserve_out_with(&mut client, 6, 0, 0, 8, 1), 0);
    assert!(!rig.keeper.kept(rig.volume).is_empty());
}

#[test]
fn revoked_initiator_leaves_no_reservation_behind() {
    const OTHER: &str = "iqn.2026-11.io.quarry.test:other";
    let grants = [
        grant(INITIATOR, Access::ReadWrite),
        grant(OTHER, Access::ReadWrite),
    ];
    let mut rig = Rig::with(1 << 20, |_| {}, &grants);
    let login = Login {
        initiator: OTHER.to_owned(),
        ..Login::to(&rig)
    };
    let mut other = Client::log_in(&rig, &login).unwrap();
    let mut host = session(&rig, 1);
    assert_eq!(reserve_out_with(&mut other, 0, 0, 0, 5, 1), 0);
    assert_eq!(reserve_out(&mut other, 1, 1, 5, 0), 0);
    assert_eq!(host.write(0, &[1; 512]).status, CONFLICT);
    let other_name = rig::initiator(OTHER);
    block_on(rig.target.revoke(rig.volume, &other_name)).unwrap();
    assert_eq!(host.write(0, &[1; 512]).status, 0);
    assert_eq!(rig.keeper.kept(rig.volume), [], "T7");

    // What was kept may be older than the grants.
    assert_eq!(reserve_out_with(&mut host, 0, 0, 0, 6, 1), 0);
    assert_eq!(reserve_out(&mut host, 1, 1, 6, 0), 0);
    rig.restart(&[grant(OTHER, Access::ReadWrite)]);
    let mut other = Client::log_in(
        &rig,
        &Login {
            target: rig.name(),
            ..login
        },
    )
    .unwrap();
    assert_eq!(other.write(0, &[1; 512]).status, 0);
    assert_eq!(rig.keeper.kept(rig.volume), []);
    block_on(rig.target.unexport(rig.volume)).unwrap();
}

/// Sends registrations, each with a reservation, until the session is cut.
fn reserve_until_cut(mut client: Client) {
    let mut list = [0; 24];
    list[15] = 7;
    list[20] = 1;
    let mut reserve = [0; 24];
    reserve[7] = 7;
    let mut wire = Vec::new();
    for _ in 0..60 {
        let register = [0x5f, 6, 0, 0, 0, 0, 0, 0, 24, 0];
        wire.extend(client.command_pdu(&register, 24, 0xa1, &list).bytes());
        let exclusive = [0x5f, 1, 3, 0, 0, 0, 0, 0, 24, 0];
        wire.extend(client.command_pdu(&exclusive, 24, 0xa1, &reserve).bytes());
    }
    // The target may close the connection while this is sent.
    let _ = std::io::Write::write_all(&mut client.socket, &wire);
    client.expect_close();
}

/// What a host that is cut off has sent before may be carried out until it is cut, and is taken back then: nobody else
/// could end its reservation.
#[test]
fn nothing_is_reserved_any_more_by_a_host_that_reserves_while_it_is_revoked() {
    const OTHER: &str = "iqn.2026-11.io.quarry.test:other";
    let host = grant(INITIATOR, Access::ReadWrite);
    let grants = [host.clone(), grant(OTHER, Access::ReadWrite)];
    let rig = Rig::with(1 << 20, |config| config.reactors = 1, &grants);
    let other = rig::initiator(OTHER);
    let login = Login {
        initiator: OTHER.to_owned(),
        ..Login::to(&rig)
    };
    let mut stays = session(&rig, 1);
    for round in 0..60 {
        let leaves = Client::log_in(&rig, &login).unwrap();
        let sends = std::thread::spawn(move || reserve_until_cut(leaves));
        eventually("it reserves", || !rig.keeper.kept(rig.volume).is_empty());
        match round % 3 {
            0 => drop(block_on(rig.target.revoke(rig.volume, &other)).unwrap()),
            1 => rig.export(rig.volume, std::slice::from_ref(&host)),
            _ => {
                block_on(rig.target.unexport(rig.volume)).unwrap();
                assert_eq!(rig.keeper.kept(rig.volume), [], "T7, round {round}");
                rig.export(rig.volume, &grants);
                stays = session(&rig, 1);
            }
        }
        assert_eq!(rig.keeper.kept(rig.volume), [], "T7, round {round}");
        let mut written = stays.write(0, &[1; 512]);
        while written.sense.is_some_and(|(key, ..)| key == 6) {
            written = stays.write(0, &[1; 512]);
        }
        assert_eq!(written.status, 0, "round {round}: {written:?}");
        assert_eq!(keys(&mut stays), [0; 0], "round {round}");
        sends.join().unwrap();
        rig.export(rig.volume, &grants);
    }
}

#[test]
fn a_host_that_may_only_read_keeps_nobody_from_writing() {
    let rig = Rig::with(1 << 20, |_| {}, &[grant(INITIATOR, Access::ReadOnly)]);
    let mut reader = session(&rig, 1);
    let refused = Some((7, 0x27, 0));
    let mut list = [0; 24];
    list[15] = 7;
    let register = reader.command(&[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0], 24, &list);
    assert_eq!(register.sense, refused);
    assert_eq!(reader.command(&[0x16, 0, 0, 0, 0, 0], 0, &[]).sense, refused);
    assert_eq!(
        reader.command(&[0x15, 0x10, 0, 0, 16, 0], 16, &[0; 16]).sense,
        refused
    );
    assert_eq!(
        reader.command(&[0x48, 2, 0, 0, 0, 0, 0, 0, 0, 0], 0, &[]).sense,
        refused
    );
    assert_eq!(keys(&mut reader), [0; 0]);
    assert_eq!(reader.read(0, 1).status, 0);
}
