//! SANITIZE: the operation, what is refused meanwhile, and that nothing but its end stops it.

mod client;
mod rig;

use std::sync::Arc;

use client::{Client, Login, Pdu, cdb10};
use quarry_contract::conformance::block_on;
use quarry_contract::{Access, Target};
use rig::{INITIATOR, Rig, eventually, grant, initiator};

const SIZE: u64 = 8 << 20;
const IN_PROGRESS: Option<(u8, u8, u8)> = Some((2, 4, 0x1b));

/// A volume that is sanitized at so many bytes a second.
fn rig(bytes_per_second: u64) -> Rig {
    Rig::with(
        SIZE,
        |config| config.sanitize_bytes_per_second = bytes_per_second,
        &[grant(INITIATOR, Access::ReadWrite)],
    )
}

fn session(rig: &Rig, number: u8) -> Client {
    let mut login = Login::to(rig);
    login.isid[5] = number;
    Client::log_in(rig, &login).expect("the login succeeds")
}

/// Waits until an operation works, and is not only a task that waits for the unit: such a one ends with its session.
fn eventually_begun(rig: &Rig) {
    eventually("it has begun", || !rig.keeper.kept(rig.volume).is_empty());
}

/// The CDB of an overwrite with a list of 8 bytes.
fn overwrite(flags: u8) -> [u8; 10] {
    [0x48, flags | 0x01, 0, 0, 0, 0, 0, 0, 8, 0]
}

const PATTERN: [u8; 8] = [1, 0, 0, 4, 0xde, 0xad, 0xbe, 0xef];

#[test]
fn block_erase_leaves_zeros_and_no_mapped_block() {
    let rig = rig(u64::MAX);
    let mut client = Client::login(&rig);
    for lba in [0, 1000, 16000] {
        client.write(lba, &[7; 4096]);
    }
    let erase = [0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(client.command(&erase, 0, &[]).status, 0);
    assert_eq!(client.read(1000, 8).data, [0; 4096]);
    assert_eq!(rig.device.mapped_bytes(), 0);
    assert_eq!(rig.keeper.kept(rig.volume), [], "nothing is left to do");
}

#[test]
fn overwrite_fills_every_block_and_refuses_other_commands_meanwhile() {
    let rig = rig(4 << 20);
    let (mut first, mut second) = (session(&rig, 1), session(&rig, 2));
    first.write(5, &[7; 512]);
    let command = first.command_pdu(&overwrite(0), 8, 0xa1, &PATTERN);
    first.send(&command);
    eventually("the unit is marked", || {
        second.command(&[0], 0, &[]).sense == IN_PROGRESS
    });
    assert_eq!(second.read(0, 1).sense, IN_PROGRESS);
    assert_eq!(second.command(&overwrite(0), 8, &PATTERN).sense, IN_PROGRESS);
    assert_eq!(second.command(&[0x12, 0, 0, 0, 96, 0], 96, &[]).status, 0);
    let sense = second.command(&[3, 0, 0, 0, 18, 0], 18, &[]).data;
    assert_eq!((sense[2], sense[12], sense[13], sense[15]), (2, 4, 0x1b, 0x80));
    assert_eq!(first.outcome(command.be32(16)).status, 0);
    let expected = PATTERN[4..].repeat(128);
    for lba in [0, 5, (SIZE / 512 - 1) as u32] {
        assert_eq!(second.read(lba, 1).data, expected);
    }
}

#[test]
fn operation_goes_on_when_its_task_and_its_session_end_and_over_a_restart() {
    let grants = [grant(INITIATOR, Access::ReadWrite)];
    // It would take eight seconds; after the restart it goes faster.
    let mut rig = rig(1 << 20);
    let (mut first, mut second) = (session(&rig, 1), session(&rig, 2));
    let command = first.command_pdu(&overwrite(0), 8, 0xa1, &PATTERN);
    first.send(&command);
    eventually_begun(&rig);
    let reset = first.management_pdu(5, 0xffff_ffff);
    first.send(&reset);
    assert_eq!(
        first.receive().unwrap().header[2],
        0,
        "the reset does not wait for it"
    );
    drop(first);
    second.command(&[0], 0, &[]);
    assert_eq!(second.command(&[0], 0, &[]).sense, IN_PROGRESS);
    rig.restart(&grants);
    let mut client = Client::connect(rig.address());
    let login = Login::to(&rig);
    client.authenticate(&login).unwrap();
    client.login_step(&login, 0x87, &[]).unwrap();
    client.command(&[0], 0, &[]);
    eventually("it is done", || client.command(&[0], 0, &[]).status == 0);
    assert_eq!(client.read(16000, 1).data, PATTERN[4..].repeat(128));
    assert_eq!(rig.keeper.kept(rig.volume), []);
}

#[test]
fn sanitize_waits_for_what_is_at_the_device_and_a_revoke_does_not_wait_for_it() {
    let rig = rig(1 << 20);
    let (mut first, mut second) = (session(&rig, 1), session(&rig, 2));
    rig.device.hold();
    let write = second.command_pdu(&cdb10(0x2a, 0, 8), 4096, 0xa1, &[5; 4096]);
    second.send(&write);
    eventually("the write is at the device", || rig.device.held_requests() == 1);
    let command = first.command_pdu(&overwrite(0), 8, 0xa1, &PATTERN);
    first.send(&command);
    first.expect_silence();
    assert_eq!(rig.device.held_requests(), 1, "it has not begun");
    rig.device.release();
    assert_eq!(second.outcome(write.be32(16)).status, 0);
    assert_eq!(second.command(&[0], 0, &[]).sense, IN_PROGRESS);
    eventually_begun(&rig);
    block_on(rig.target.revoke(rig.volume, &initiator(INITIATOR))).unwrap();
    assert!(!rig.keeper.kept(rig.volume).is_empty(), "it goes on");
    block_on(rig.target.unexport(rig.volume)).unwrap();
    assert_eq!(Arc::strong_count(&rig.device), 1, "T5");
    assert_eq!(rig.keeper.kept(rig.volume), []);
}

#[test]
fn immediate_failure_keeps_the_unit_until_it_is_sanitized_or_given_back() {
    let rig = rig(u64::MAX);
    let mut client = Client::login(&rig);
    let fail = || {
        rig.device.fail_next(quarry_contract::IoError::Medium {
            detail: "bad".to_owned(),
        });
    };
    let failed = Some((3, 0x31, 3));
    fail();
    assert_eq!(client.command(&overwrite(0x80), 8, &PATTERN).status, 0);
    eventually("it has failed", || client.command(&[0], 0, &[]).sense == failed);
    assert_eq!(client.read(0, 1).sense, failed);
    let exit = [0x48, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(
        client.command(&exit, 0, &[]).sense,
        Some((5, 0x24, 0)),
        "AUSE was not set"
    );
    let with_exit = client.command(&overwrite(0x20), 8, &PATTERN);
    assert_eq!(with_exit.sense, Some((5, 0x24, 0)), "it cannot be added");
    assert_eq!(client.command(&[0], 0, &[]).sense, failed);
    assert_eq!(client.command(&overwrite(0), 8, &PATTERN).status, 0);
    assert_eq!(client.command(&[0], 0, &[]).status, 0);
    fail();
    assert_eq!(client.command(&overwrite(0x20), 8, &PATTERN).sense, failed);
    assert_eq!(client.command(&exit, 0, &[]).status, 0);
    assert_eq!(client.command(&[0], 0, &[]).status, 0);
    assert_eq!(rig.keeper.kept(rig.volume), []);
}

#[test]
fn an_operation_that_is_aborted_before_it_begins_is_not_kept_and_leaves_the_data() {
    let rig = rig(u64::MAX);
    let (mut first, mut second) = (session(&rig, 1), session(&rig, 2));
    rig.device.hold();
    let write = second.command_pdu(&cdb10(0x2a, 0, 8), 4096, 0xa1, &[5; 4096]);
    second.send(&write);
    eventually("the write is at the device", || rig.device.held_requests() == 1);
    let sanitize = first.command_pdu(&overwrite(0), 8, 0xa1, &PATTERN);
    first.send(&sanitize);
    eventually("the unit is marked", || {
        second.command(&[0], 0, &[]).sense == IN_PROGRESS
    });
    let stranger = initiator("iqn.2026-11.io.x:stranger");
    block_on(rig.target.revoke(rig.volume, &stranger)).unwrap();
    assert_eq!(
        rig.keeper.kept(rig.volume),
        [],
        "the next start would begin with it"
    );
    let abort = first.management_pdu(1, sanitize.be32(16));
    first.send(&abort);
    // What comes after it is answered: it has been heard, and waits for the device.
    let ping = Pdu::new(0x40, 0x80)
        .put32(16, 77)
        .put32(20, 0xffff_ffff)
        .put32(24, first.cmd_sn);
    first.send(&ping);
    assert_eq!(first.receive().unwrap().be32(16), 77);
    rig.device.release();
    assert_eq!(second.outcome(write.be32(16)).status, 0);
    let answer = first.receive().unwrap();
    assert_eq!((answer.opcode(), answer.header[2]), (0x22, 0));
    assert_eq!(first.read(0, 8).data, [5; 4096]);
}
