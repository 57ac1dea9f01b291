//! Commands that read and write as one step, against what other sessions do to the same blocks at the same time.

mod client;
mod rig;

use client::{Client, Login, Pdu, cdb10};
use quarry_contract::memory::{MemoryDevice, MemoryDeviceOptions};
use quarry_contract::{Access, IoError};
use rig::{INITIATOR, Rig, eventually, grant};

/// A session of the host's initiator port with this number.
fn session(rig: &Rig, number: u8) -> Client {
    let mut login = Login::to(rig);
    login.isid[5] = number;
    Client::log_in(rig, &login).expect("the login succeeds")
}

fn cdb16(opcode: u8, flags: u8, lba: u64, blocks: u32) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    cdb.extend_from_slice(&lba.to_be_bytes());
    cdb.extend_from_slice(&blocks.to_be_bytes());
    cdb.extend_from_slice(&[0, 0]);
    cdb
}

/// A COMPARE AND WRITE of one block.
fn compare_and_write(client: &mut Client, lba: u64, expected: &[u8; 512], new: &[u8; 512]) -> Pdu {
    let data = [&expected[..], &new[..]].concat();
    client.command_pdu(&cdb16(0x89, 0, lba, 1), 1024, 0xa1, &data)
}

#[test]
fn compare_and_write_writes_only_what_compares() {
    let rig = Rig::new();
    let mut client = Client::login(&rig);
    let good = compare_and_write(&mut client, 7, &[0; 512], &[1; 512]);
    client.send(&good);
    assert_eq!(client.outcome(good.be32(16)).status, 0);
    let mut other = [1; 512];
    other[300] = 9;
    let bad = compare_and_write(&mut client, 7, &other, &[2; 512]);
    client.send(&bad);
    assert_eq!(client.outcome(bad.be32(16)).sense, Some((0x0e, 0x1d, 0)));
    assert_eq!(client.read(7, 1).data, [1; 512]);
    for (cdb, bytes) in [(cdb16(0x89, 0, 7, 1), 512u32), (cdb16(0x89, 0, 7, 2), 1024)] {
        let outcome = client.command(&cdb, bytes, &vec![0; bytes as usize]);
        assert_eq!(outcome.sense, Some((5, 0x24, 0)), "not two times the range");
    }
}

#[test]
fn compare_and_write_waits_for_a_write_that_is_at_the_device() {
    let rig = Rig::new();
    let (mut first, mut second) = (session(&rig, 1), session(&rig, 2));
    rig.device.hold();
    let write = second.command_pdu(&cdb10(0x2a, 0, 8), 4096, 0xa1, &[5; 4096]);
    second.send(&write);
    eventually("the write is at the device", || rig.device.held_requests() == 1);
    let exchange = compare_and_write(&mut first, 3, &[0; 512], &[1; 512]);
    first.send(&exchange);
    first.expect_silence();
    assert_eq!(rig.device.held_requests(), 1, "O1: nothing is read yet");
    rig.device.release();
    assert_eq!(second.outcome(write.be32(16)).status, 0);
    let outcome = first.outcome(exchange.be32(16));
    assert_eq!(outcome.sense, Some((0x0e, 0x1d, 0)), "it sees the write");
    assert_eq!(second.read(3, 1).data, [5; 512]);
}

#[test]
fn writes_and_reads_wait_for_a_compare_and_write_of_their_blocks_only() {
    let rig = Rig::new();
    let (mut first, mut second) = (session(&rig, 1), session(&rig, 2));
    rig.device.hold();
    let exchange = compare_and_write(&mut first, 3, &[0; 512], &[1; 512]);
    first.send(&exchange);
    eventually("it reads", || rig.device.held_requests() == 1);
    let elsewhere = second.command_pdu(&cdb10(0x2a, 64, 1), 512, 0xa1, &[6; 512]);
    second.send(&elsewhere);
    eventually("a write elsewhere goes on", || rig.device.held_requests() == 2);
    let write = second.command_pdu(&cdb10(0x2a, 0, 8), 4096, 0xa1, &[5; 4096]);
    second.send(&write);
    let read = first.command_pdu(&cdb10(0x28, 3, 1), 512, 0xc1, &[]);
    first.send(&read);
    first.expect_silence();
    assert_eq!(rig.device.held_requests(), 2, "O1: they wait");
    rig.device.release();
    assert_eq!(first.outcome(exchange.be32(16)).status, 0);
    let seen = first.outcome(read.be32(16)).data;
    assert!(seen == [1; 512] || seen == [5; 512]);
    assert_eq!(second.outcome(elsewhere.be32(16)).status, 0);
    assert_eq!(second.outcome(write.be32(16)).status, 0);
    assert_eq!(second.read(3, 1).data, [5; 512], "the write came last");
}

#[test]
fn a_session_that_is_cut_lets_those_behind_it_through() {
    let rig = Rig::new();
    let (mut first, mut second) = (session(&rig, 1), session(&rig, 2));
    let mut third = session(&rig, 3);
    rig.device.hold();
    let exchange = compare_and_write(&mut first, 3, &[0; 512], &[1; 512]);
    first.send(&exchange);
    eventually("it reads", || rig.device.held_requests() == 1);
    let waiting = compare_and_write(&mut second, 3, &[0; 512], &[2; 512]);
    second.send(&waiting);
    second.expect_silence();
    drop(second);
    drop(first);
    let write = third.command_pdu(&cdb10(0x2a, 3, 1), 512, 0xa1, &[7; 512]);
    third.send(&write);
    rig.device.release();
    assert_eq!(third.outcome(write.be32(16)).status, 0);
    assert_eq!(third.read(3, 1).data, [7; 512]);
    eventually("the sessions are gone", || rig.session_count() == 1);
}

/// Several sessions count in one block, each step only if nobody else has counted since it looked.
#[test]
fn no_increment_by_compare_and_write_is_lost() {
    const SESSIONS: u8 = 4;
    const STEPS: u64 = 100;
    let rig = Rig::new();
    std::thread::scope(|scope| {
        for number in 1..=SESSIONS {
            let mut client = session(&rig, number);
            scope.spawn(move || {
                let mut counted = 0;
                while counted < STEPS {
                    let seen: [u8; 512] = client.read(0, 1).data.try_into().unwrap();
                    let mut next = seen;
                    let value = u64::from_be_bytes(seen[..8].try_into().unwrap());
                    next[..8].copy_from_slice(&(value + 1).to_be_bytes());
                    let step = compare_and_write(&mut client, 0, &seen, &next);
                    client.send(&step);
                    match client.outcome(step.be32(16)) {
                        outcome if outcome.status == 0 => counted += 1,
                        outcome => assert_eq!(outcome.sense, Some((0x0e, 0x1d, 0))),
                    }
                }
            });
        }
    });
    let data = session(&rig, 9).read(0, 1).data;
    let value = u64::from_be_bytes(data[..8].try_into().unwrap());
    assert_eq!(value, u64::from(SESSIONS) * STEPS);
}

#[test]
fn no_bit_of_an_orwrite_is_lost() {
    const SESSIONS: u8 = 4;
    let rig = Rig::new();
    std::thread::scope(|scope| {
        for number in 0..SESSIONS {
            let mut client = session(&rig, number);
            scope.spawn(move || {
                for at in 0..64usize {
                    let mut bits = [0; 1024];
                    bits[at * 16] = 1 << number;
                    bits[at * 16 + 1] = 0x10 << number;
                    assert_eq!(client.command(&cdb16(0x8b, 0, 40, 2), 1024, &bits).status, 0);
                }
            });
        }
    });
    let data = session(&rig, 9).read(40, 2).data;
    assert!(data.chunks(16).all(|part| part[..3] == [0x0f, 0xf0, 0]));
}

#[test]
fn write_and_verify_writes_all_it_is_sent() {
    let rig = Rig::new();
    let mut client = Client::login(&rig);
    // Longer than a segment, and across its boundary.
    let data: Vec<u8> = (0..300 << 10).map(|at: u32| (at / 7) as u8).collect();
    let blocks = (data.len() / 512) as u32;
    let length = data.len() as u32;
    let mut verified = cdb16(0x8e, 0x02, 500, blocks);
    verified.truncate(16);
    let pdu = client.command_pdu(&verified, length, 0xa1, &data[..65536]);
    client.send(&pdu);
    let mut at = 65536;
    while at < data.len() {
        let r2t = client.receive().unwrap();
        assert_eq!(r2t.opcode(), 0x31);
        let (offset, desired) = (r2t.be32(40) as usize, r2t.be32(44) as usize);
        let out = Pdu::new(0x05, 0x80)
            .put32(16, pdu.be32(16))
            .put32(20, r2t.be32(20))
            .put32(28, client.exp_stat_sn)
            .put32(40, offset as u32)
            .with_data(&data[offset..offset + desired]);
        client.send(&out);
        at += desired;
    }
    assert_eq!(client.outcome(pdu.be32(16)).status, 0);
    let read = client.command(&cdb16(0x88, 0, 500, blocks), length, &[]);
    assert!(read.data == data);
}

#[test]
fn extended_copy_copies_within_the_volume_and_keeps_its_result() {
    let rig = Rig::new();
    let mut client = Client::login(&rig);
    assert_eq!(client.write(0, &[7; 64 << 10]).status, 0);
    let names = client.command(&[0x12, 1, 0x83, 0, 255, 0], 255, &[]).data;
    let mut list = vec![5, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0];
    let mut target = vec![0; 32];
    target[0] = 0xe4;
    target[4..24].copy_from_slice(&names[4..24]);
    target[30] = 2;
    list.extend_from_slice(&target);
    let mut segment = vec![2, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 128];
    segment.extend_from_slice(&0u64.to_be_bytes());
    segment.extend_from_slice(&1001u64.to_be_bytes());
    list.extend_from_slice(&segment);
    let mut cdb = vec![0; 16];
    cdb[0] = 0x83;
    cdb[13] = list.len() as u8;
    let status =
        |client: &mut Client| client.command(&[0x84, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0], 12, &[]);
    assert_eq!(status(&mut client).sense, Some((5, 0x24, 0)), "no such copy");
    assert_eq!(client.command(&cdb, list.len() as u32, &list).status, 0);
    assert_eq!(status(&mut client).data, [0, 0, 0, 8, 1, 0, 1, 1, 0, 0, 0, 64]);
    assert_eq!(client.read(1001, 128).data, [7; 64 << 10]);
    assert_eq!(client.read(1129, 1).data, [0; 512]);
    list[16 + 10] ^= 1;
    let elsewhere = client.command(&cdb, list.len() as u32, &list);
    assert_eq!(elsewhere.sense, Some((0x0a, 0x08, 0x04)), "another unit");
}

/// The CDB of a WRITE ATOMIC (16) without flags.
fn atomic_cdb(lba: u64, boundary: u16, blocks: u16) -> Vec<u8> {
    let mut cdb = vec![0x9c, 0];
    cdb.extend_from_slice(&lba.to_be_bytes());
    cdb.extend_from_slice(&boundary.to_be_bytes());
    cdb.extend_from_slice(&blocks.to_be_bytes());
    cdb.extend_from_slice(&[0, 0]);
    cdb
}

/// What page B0h says of atomic writes: the longest, alignment, granularity, the longest with boundaries, and boundary.
fn atomic_limits(client: &mut Client) -> [u32; 5] {
    let page = client.command(&[0x12, 1, 0xb0, 0, 64, 0], 64, &[]).data;
    [44, 48, 52, 56, 60].map(|at| u32::from_be_bytes(page[at..at + 4].try_into().unwrap()))
}

/// Whether REPORT SUPPORTED OPERATION CODES knows WRITE ATOMIC, asked for it alone and among all.
fn reports_write_atomic(client: &mut Client) -> [bool; 2] {
    let ask = |client: &mut Client, options: u8| {
        let cdb = [0xa3, 0x0c, options, 0x9c, 0, 0, 0, 0, 4, 0, 0, 0];
        client.command(&cdb, 1024, &[]).data
    };
    let one = ask(client, 1)[1] & 0x07 == 3;
    let all = ask(client, 0);
    [one, all[4..].chunks_exact(8).any(|command| command[0] == 0x9c)]
}

#[test]
fn write_atomic_is_one_request_that_nothing_else_meets() {
    let rig = Rig::new();
    let (mut first, mut second) = (session(&rig, 1), session(&rig, 2));
    assert_eq!(atomic_limits(&mut first), [2048, 0, 0, 0, 0]);
    assert_eq!(reports_write_atomic(&mut first), [true; 2]);
    // Across the boundaries of segments, with data in several bursts.
    let data: Vec<u8> = (0..600 << 10).map(|at: u32| (at / 11) as u8).collect();
    let blocks = (data.len() / 512) as u16;
    let pdu = first.command_pdu(&atomic_cdb(3, 0, blocks), data.len() as u32, 0xa1, &data[..65536]);
    rig.device.hold();
    first.send(&pdu);
    let mut at = 65536;
    while at < data.len() {
        let r2t = first.receive().unwrap();
        let (offset, desired) = (r2t.be32(40) as usize, r2t.be32(44) as usize);
        let out = Pdu::new(0x05, 0x80)
            .put32(16, pdu.be32(16))
            .put32(20, r2t.be32(20))
            .put32(28, first.exp_stat_sn)
            .put32(40, offset as u32)
            .with_data(&data[offset..offset + desired]);
        first.send(&out);
        at += desired;
    }
    eventually("it is one request", || rig.device.held_requests() == 1);
    let read = second.command_pdu(&cdb10(0x28, 0, 8), 4096, 0xc1, &[]);
    second.send(&read);
    second.expect_silence();
    assert_eq!(rig.device.held_requests(), 1, "O1: a read of a part waits");
    rig.device.release();
    assert_eq!(first.outcome(pdu.be32(16)).status, 0);
    assert_eq!(second.outcome(read.be32(16)).data[3 * 512..], data[..5 * 512]);
    let whole = cdb16(0x88, 0, 3, blocks.into());
    assert!(second.command(&whole, data.len() as u32, &[]).data == data);
    assert_eq!(
        second.command(&atomic_cdb(7, 0, 0), 0, &[]).status,
        0,
        "no blocks"
    );

    // An error of the device leaves nothing of it, and one of the command does not get that far.
    rig.device.fail_next(IoError::NoSpace);
    let refused = first.command(&atomic_cdb(0, 0, 8), 4096, &[9; 4096]);
    assert_eq!(refused.sense, Some((7, 0x27, 7)));
    for (cdb, bytes, sense) in [
        (atomic_cdb(0, 0, 2049), 0, (5, 0x24, 0)),
        (atomic_cdb(0, 8, 8), 4096, (5, 0x24, 0)),
        (atomic_cdb(0, 0, 9), 4096, (5, 0x24, 0)),
        (atomic_cdb(131_071, 0, 8), 4096, (5, 0x21, 0)),
    ] {
        let outcome = first.command(&cdb, bytes, &vec![9; bytes as usize]);
        assert_eq!(outcome.sense, Some(sense), "{cdb:?}");
    }
    assert_eq!(second.read(3, 5).data, data[..5 * 512]);
}

#[test]
fn a_unit_whose_device_has_no_atomic_writes_has_no_write_atomic() {
    let device = MemoryDevice::new(&MemoryDeviceOptions {
        atomic_write_bytes: 0,
        ..MemoryDeviceOptions::of_size(1 << 20)
    });
    let rig = Rig::over(device, |_| {}, &[grant(INITIATOR, Access::ReadWrite)]);
    let mut client = Client::login(&rig);
    assert_eq!(atomic_limits(&mut client), [0; 5]);
    assert_eq!(reports_write_atomic(&mut client), [false; 2]);
    let refused = client.command(&atomic_cdb(0, 0, 8), 4096, &[9; 4096]);
    assert_eq!(refused.sense, Some((5, 0x20, 0)));
}
