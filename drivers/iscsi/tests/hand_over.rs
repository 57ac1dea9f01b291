//! One target takes over from another: sessions are dropped when what they have under way is answered, and whoever comes
//! back finds the portal open.

mod client;
mod rig;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use client::{Client, Login, SILENCE, cdb10};
use quarry_contract::conformance::block_on;
use quarry_contract::{Access, Target};
use quarry_iscsi::{IscsiTarget, TargetConfig};
use rig::{DEADLINE, INITIATOR, Rig, eventually, grant, loopback};

/// Takes the notice that the session is dropped, with no wait before the next login.
fn expect_notice(client: &mut Client) {
    let told = client.receive().unwrap();
    assert_eq!(told.opcode(), 0x32);
    assert_eq!(told.header[36..44], [3, 0, 0, 0, 0, 0, 0, 0]);
}

/// Starts the hand-over of a rig's target on a thread of its own, and returns where its sockets come out.
fn begin(rig: &Rig) -> mpsc::Receiver<Vec<std::net::TcpListener>> {
    let (sender, receiver) = mpsc::channel();
    let target = Arc::clone(&rig.target);
    std::thread::spawn(move || sender.send(block_on(target.hand_over())));
    receiver
}

#[test]
fn who_connects_between_two_targets_waits_in_the_portal_and_is_let_in_by_the_second() {
    let mut rig = Rig::new();
    let address = rig.address();
    let mut client = Client::login(&rig);
    rig.device.hold();
    let write = client.command_pdu(&cdb10(0x2a, 0, 8), 4096, 0xa1, &[7; 4096]);
    client.send(&write);
    eventually("the write is at the device", || rig.device.held_requests() > 0);

    let handed_over = begin(&rig);
    expect_notice(&mut client);
    assert!(
        handed_over.recv_timeout(SILENCE).is_err(),
        "a write is at the device"
    );
    // Nobody is let in, and nobody is turned away.
    let mut early = Client::connect(address);
    early.expect_silence();
    rig.device.release();
    assert_eq!(client.outcome(write.be32(16)).status, 0);
    client.expect_close();
    let sockets = handed_over.recv_timeout(DEADLINE).unwrap();
    assert_eq!(sockets.len(), 1);
    assert!(block_on(rig.target.hand_over()).is_empty(), "a second time");

    let login = Login::to(&rig);
    let returned = std::thread::spawn(move || {
        let mut client = Client::log_in_at(address, &login).unwrap();
        client.read(0, 8).data
    });
    early.expect_silence();
    let mut config = TargetConfig::listening_on(vec![address]);
    config.hold_logins = true;
    let second = IscsiTarget::succeed(config, sockets).unwrap();
    assert_eq!(second.portals()[0].0, address);
    rig.target = Arc::new(second);
    rig.export(rig.volume, &[grant(INITIATOR, Access::ReadWrite)]);
    early.expect_silence();
    rig.target.accept_logins();
    assert_eq!(returned.join().unwrap(), [7; 4096]);
    early.authenticate(&Login::to(&rig)).unwrap();
}

#[test]
fn a_session_that_owes_data_holds_nothing_up() {
    // Those that do not come to an end by themselves are given a second. A machine that is busy may take as long for
    // other reasons, but not every time.
    let took = |()| {
        let rig = Rig::new();
        let mut client = Client::login(&rig);
        let write = client.command_pdu(&cdb10(0x2a, 0, 0x800), 1 << 20, 0xa1, &[]);
        client.send(&write);
        assert_eq!(client.receive().unwrap().opcode(), 0x31, "an R2T");
        let began = Instant::now();
        let handed_over = begin(&rig);
        expect_notice(&mut client);
        client.expect_close();
        handed_over.recv_timeout(DEADLINE).unwrap();
        began.elapsed()
    };
    let times = [(); 3].map(took);
    assert!(
        times.iter().any(|time| *time < Duration::from_millis(900)),
        "{times:?}"
    );
}

#[test]
fn sockets_of_portals_that_are_no_more_are_closed() {
    let rig = Rig::new();
    let old = rig.address();
    let sockets = block_on(rig.target.hand_over());
    let second = IscsiTarget::succeed(TargetConfig::listening_on(vec![loopback()]), sockets).unwrap();
    assert_ne!(second.portals()[0].0, old);
    assert!(std::net::TcpStream::connect(old).is_err());
}
