//! Commands and their data: what is written is read back, however it travels; errors are told as they are.

mod client;
mod rig;

use std::collections::VecDeque;
use std::sync::Arc;

use client::{Client, Login, Outcome, Pdu, cdb10};
use quarry_contract::conformance::block_on;
use quarry_contract::memory::{MemoryDevice, MemoryDeviceOptions};
use quarry_contract::{Access, IoError, Target};
use rig::{INITIATOR, Rig, grant};

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| (at / 512) as u8 ^ (at as u8).wrapping_mul(31) ^ seed)
        .collect()
}

/// How a write's data travels, in bytes.
#[derive(Debug, Clone, Copy)]
struct Way {
    /// With the command.
    immediate: usize,
    /// With and after the command, unasked.
    unsolicited: usize,
    /// In each Data-Out.
    segment: usize,
    /// Asked for by each R2T.
    burst: usize,
    /// R2Ts that may be outstanding.
    outstanding: usize,
}

/// Sends a write's data as unsolicited Data-Out and as R2Ts ask for it, none before as many as may have come.
fn write_in_pieces(client: &mut Client, lba: u32, data: &[u8], way: Way) -> Outcome {
    let Way {
        immediate,
        unsolicited,
        segment,
        burst,
        outstanding,
    } = way;
    let blocks = (data.len() / 512) as u16;
    let (immediate, unsolicited) = (immediate.min(data.len()), unsolicited.min(data.len()));
    let last = unsolicited <= immediate;
    let flags = if last { 0xa1 } else { 0x21 };
    let command = client.command_pdu(
        &cdb10(0x2a, lba, blocks),
        data.len() as u32,
        flags,
        &data[..immediate],
    );
    let itt = command.be32(16);
    client.send(&command);
    let send_burst = |client: &mut Client, ttt: u32, start: usize, end: usize| {
        let mut at = start;
        let mut data_sn = 0;
        while at < end {
            let len = segment.min(end - at);
            let flags = if at + len == end { 0x80 } else { 0 };
            let pdu = Pdu::new(0x05, flags)
                .put32(16, itt)
                .put32(20, ttt)
                .put32(36, data_sn)
                .put32(40, at as u32)
                .with_data(&data[at..at + len]);
            client.send(&pdu);
            at += len;
            data_sn += 1;
        }
    };
    if !last {
        send_burst(client, 0xffff_ffff, immediate, unsolicited);
    }
    let mut asked = unsolicited.max(immediate);
    let mut bursts = VecDeque::new();
    for r2t_sn in 0.. {
        while bursts.len() == outstanding || asked == data.len() {
            let Some((ttt, at, end)) = bursts.pop_front() else {
                return client.outcome(itt);
            };
            send_burst(client, ttt, at, end);
        }
        let r2t = client.receive().expect("an R2T");
        assert_eq!((r2t.opcode(), r2t.be32(16)), (0x31, itt));
        assert_eq!((r2t.be32(36), r2t.be32(40) as usize), (r2t_sn, asked));
        assert_eq!(r2t.be32(44) as usize, burst.min(data.len() - asked));
        let end = asked + r2t.be32(44) as usize;
        bursts.push_back((r2t.be32(20), asked, end));
        asked = end;
    }
    unreachable!("R2Ts end with the data")
}

#[test]
fn data_survives_every_way_of_sending_it() {
    let rig = Rig::new();
    let mut number = 0u16;
    let mut try_way = |initial_r2t: &str,
                       immediate_data: &str,
                       (first, max): (usize, usize),
                       segment,
                       outstanding: usize| {
        number += 1;
        let [high, low] = number.to_be_bytes();
        let login = Login {
            isid: [0x40, 0, 0, 0, high, low],
            ..Login::to(&rig)
        }
        .key("InitialR2T", initial_r2t)
        .key("ImmediateData", immediate_data)
        .key("FirstBurstLength", &first.to_string())
        .key("MaxBurstLength", &max.to_string())
        .key("MaxOutstandingR2T", &outstanding.to_string())
        .key("MaxRecvDataSegmentLength", "8192");
        let mut client = Client::log_in(&rig, &login).unwrap();
        // FirstBurstLength may not exceed MaxBurstLength, and covers immediate data.
        let first = first.min(max);
        let immediate = match immediate_data {
            "Yes" => first.min(2048),
            _ => 0,
        };
        let way = Way {
            immediate,
            unsolicited: if initial_r2t == "No" { first } else { immediate },
            segment,
            burst: max,
            outstanding,
        };
        // From within a segment of the target's over two of its boundaries, and within a block of a burst.
        for (lba, len) in [(333, 700 << 10), (509, 1024), (7, 66_048)] {
            let data = pattern(len, low ^ high);
            let outcome = write_in_pieces(&mut client, lba, &data, way);
            assert_eq!((outcome.status, outcome.residual), (0, 0), "{login:?} {way:?}");
            let read = client.read(lba, (data.len() / 512) as u16);
            assert!(read.data == data, "{login:?} {way:?}");
        }
    };
    for initial_r2t in ["No", "Yes"] {
        for immediate_data in ["No", "Yes"] {
            for bursts in [
                (512, 512),
                (4096, 65_536),
                (65_536, 65_536),
                (262_144, 1 << 20),
                (65_536, 4096),
            ] {
                for segment in [1024, 65_536] {
                    for outstanding in [1, 2, 8] {
                        try_way(initial_r2t, immediate_data, bursts, segment, outstanding);
                    }
                }
            }
        }
    }
}

#[test]
fn no_more_data_is_asked_for_than_may_be_outstanding() {
    let rig = Rig::new();
    for (offered, outstanding) in [("1", 1), ("3", 3), ("100", 8)] {
        let login = Login::to(&rig)
            .key("MaxOutstandingR2T", offered)
            .key("InitialR2T", "Yes")
            .key("MaxBurstLength", "4096");
        let mut client = Client::log_in(&rig, &login).unwrap();
        let command = client.command_pdu(&cdb10(0x2a, 0, 128), 65_536, 0xa1, &[]);
        client.send(&command);
        let tags: Vec<u32> = (0..outstanding)
            .map(|_| client.receive().unwrap().be32(20))
            .collect();
        client.expect_silence();
        // A burst that has come makes room for one more.
        let data = Pdu::new(0x05, 0x80)
            .put32(16, command.be32(16))
            .put32(20, tags[0])
            .with_data(&[1; 4096]);
        client.send(&data);
        assert_eq!(client.receive().unwrap().opcode(), 0x31);
        client.expect_silence();
    }
}

#[test]
fn command_whose_first_burst_is_wrong_is_answered_when_all_that_was_asked_for_has_come() {
    let rig = Rig::new();
    let login = Login::to(&rig)
        .key("MaxOutstandingR2T", "2")
        .key("InitialR2T", "Yes")
        .key("MaxBurstLength", "4096");
    for (tag, len) in [(0, 512), (1, 4096)] {
        let mut client = Client::log_in(&rig, &login).unwrap();
        let command = client.command_pdu(&cdb10(0x2a, 0, 24), 12_288, 0xa1, &[]);
        client.send(&command);
        let tags = [(); 2].map(|()| client.receive().unwrap().be32(20));
        let send = |client: &mut Client, ttt, offset, len| {
            let data = Pdu::new(0x05, 0x80)
                .put32(16, command.be32(16))
                .put32(20, ttt)
                .put32(40, offset)
                .with_data(&vec![9; len]);
            client.send(&data);
        };
        // Too short, or the second before the first.
        send(&mut client, tags[tag], 4096 * tag as u32, len);
        client.expect_silence();
        send(&mut client, tags[1 - tag], 4096 * (1 - tag) as u32, 4096);
        let outcome = client.outcome(command.be32(16));
        assert_eq!(outcome.status, 2, "{outcome:?}");
        assert!(
            client.read(0, 24).data.iter().all(|byte| *byte == 0),
            "nothing is written"
        );
    }
}

#[test]
fn residuals_say_what_was_not_moved() {
    let rig = Rig::new();
    let mut client = Client::login(&rig);
    assert_eq!(client.write(0, &pattern(1024, 1)).status, 0);
    let under = client.command(&cdb10(0x28, 0, 1), 10_000, &[]);
    assert_eq!(
        (under.status, under.residual, under.data.len()),
        (0, 10_000 - 512, 512)
    );
    let over = client.command(&cdb10(0x28, 0, 2), 700, &[]);
    assert_eq!((over.status, over.residual, over.data.len()), (0, -324, 700));
    let none = client.command(&cdb10(0x28, 0, 2), 0, &[]);
    assert_eq!((none.status, none.residual, none.data.len()), (0, -1024, 0));
    // Only the whole blocks that come are written.
    let short = client.command(&cdb10(0x2a, 8, 2), 700, &pattern(700, 9));
    assert_eq!((short.status, short.residual), (0, -324));
    let blocks = client.read(8, 2).data;
    assert_eq!(blocks[..512], pattern(700, 9)[..512]);
    assert!(blocks[512..].iter().all(|byte| *byte == 0));
}

#[test]
fn read_only_grant_refuses_writes_until_it_is_changed() {
    let rig = Rig::with(1 << 20, |_| {}, &[grant(INITIATOR, Access::ReadOnly)]);
    let mut client = Client::login(&rig);
    let protected =
        |client: &mut Client| client.command(&[0x1a, 8, 8, 0, 64, 0], 64, &[]).data[2] & 0x80 != 0;
    assert!(protected(&mut client));
    let unmap_nothing: [&[u8]; 3] = [&cdb10(0x2a, 0, 1), &cdb10(0x42, 0, 24), &cdb10(0x41, 0, 1)];
    for cdb in unmap_nothing {
        let outcome = client.command(cdb, 512, &[7; 512]);
        assert_eq!(outcome.sense, Some((7, 0x27, 0)), "T3 {cdb:x?}");
    }
    assert_eq!(client.read(0, 1).data, vec![0; 512]);

    block_on(rig.target.grant(rig.volume, grant(INITIATOR, Access::ReadWrite))).unwrap();
    assert_eq!(
        client.command(&[0], 0, &[]).sense,
        Some((6, 0x2a, 1)),
        "told once"
    );
    assert!(!protected(&mut client));
    assert_eq!(client.write(0, &[7; 512]).status, 0, "T3: for the next command");
    block_on(rig.target.grant(rig.volume, grant(INITIATOR, Access::ReadOnly))).unwrap();
    assert_eq!(client.command(&[0], 0, &[]).sense, Some((6, 0x2a, 1)));
    assert_eq!(client.write(0, &[8; 512]).sense, Some((7, 0x27, 0)), "T3");
    assert_eq!(client.read(0, 1).data, vec![7; 512]);
}

#[test]
fn read_only_device_refuses_writes() {
    let device = MemoryDevice::new(&MemoryDeviceOptions {
        read_only: true,
        ..MemoryDeviceOptions::of_size(1 << 20)
    });
    let rig = Rig::over(device, |_| {}, &[grant(INITIATOR, Access::ReadWrite)]);
    let mut client = Client::login(&rig);
    assert_eq!(client.write(0, &[1; 512]).sense, Some((7, 0x27, 0)));
    assert_eq!(client.read(0, 1).status, 0);
}

#[test]
fn full_pool_refuses_the_write_with_its_own_sense_and_goes_on() {
    let device = MemoryDevice::new(&MemoryDeviceOptions {
        capacity_bytes: 1 << 20,
        ..MemoryDeviceOptions::of_size(64 << 20)
    });
    let rig = Rig::over(device, |_| {}, &[grant(INITIATOR, Access::ReadWrite)]);
    let mut client = Client::login(&rig);
    let data = pattern(32 << 10, 3);
    let refused = (0..2048u32)
        .map(|index| (index, client.write(index * 2048, &data)))
        .find(|(_, outcome)| outcome.status != 0);
    let (index, outcome) = refused.expect("the pool is full at some time");
    assert_eq!(outcome.sense, Some((7, 0x27, 7)));
    assert!(client.read(0, 64).data == data, "what was there is there");
    assert_eq!(
        client.write(0, &pattern(32 << 10, 4)).status,
        0,
        "and can be overwritten"
    );
    let mut list = vec![0; 24];
    list[1] = 22;
    list[3] = 16;
    list[16..20].copy_from_slice(&2048u32.to_be_bytes());
    assert_eq!(client.command(&cdb10(0x42, 0, 24), 24, &list).status, 0);
    assert_eq!(client.write(index * 2048, &data).status, 0, "there is room again");
}

#[test]
fn device_errors_come_as_sense_and_the_session_goes_on() {
    let rig = Rig::new();
    let mut client = Client::login(&rig);
    let medium = || IoError::Medium {
        detail: "a test".to_owned(),
    };
    rig.device.fail_next(medium());
    assert_eq!(client.read(0, 8).sense, Some((3, 0x11, 0)));
    rig.device.fail_next(medium());
    assert_eq!(client.write(0, &[1; 4096]).sense, Some((3, 0x0c, 0)));
    rig.device.fail_next(IoError::Stopped {
        reason: "a test".to_owned(),
    });
    let flush = client.command(&cdb10(0x35, 0, 0), 0, &[]);
    assert_eq!(
        flush.sense,
        Some((4, 0x44, 0)),
        "a flush that failed is never good"
    );
    // One segment of many.
    rig.device.fail_next(medium());
    assert_eq!(client.read(0, 2048).sense, Some((3, 0x11, 0)));
    assert_eq!(client.read(0, 2048).status, 0);
}

#[test]
fn damaged_block_is_named_and_what_was_not_sent_is_not_taken_as_read() {
    const WHOLE: u32 = 1 << 20;
    let rig = Rig::new();
    let mut client = Client::login(&rig);
    let damaged = |lba: u64| IoError::Corrupt {
        offset: lba * 512,
        detail: "a test".to_owned(),
    };
    let unrecovered = Some((3, 0x11, 0));
    // The first of four segments fails: whatever block it names, an initiator takes those before it as read, unless
    // the residual says that they have not come.
    rig.device.fail_next(damaged(1800));
    let read = client.read(0, 2048);
    assert_eq!((read.sense, read.information), (unrecovered, Some(1800)));
    assert_eq!(read.data.len() as i64 + read.residual, i64::from(WHOLE));
    assert!(read.data.len() < 512 << 10, "{}", read.data.len());
    // The block of the checksum is longer.
    rig.device.fail_next(damaged(8));
    let read = client.read(11, 2);
    assert_eq!((read.information, read.residual), (Some(11), 1024));
    rig.device.fail_next(damaged(24));
    let verify = client.command(&cdb10(0x2f, 16, 16), 0, &[]);
    assert_eq!((verify.sense, verify.information), (unrecovered, Some(24)));

    // Of a write the blocks before it need not have been written.
    rig.device.fail_next(damaged(24));
    let write = client.write(16, &[1; 8192]);
    assert_eq!((write.sense, write.information), (unrecovered, None));
    rig.device.fail_next(IoError::Medium {
        detail: "nobody knows where".to_owned(),
    });
    let read = client.read(0, 8);
    assert_eq!((read.sense, read.information), (unrecovered, None));
    assert_eq!(client.read(0, 2048).data.len(), WHOLE as usize);
}

#[test]
fn range_beyond_the_end_is_refused_until_the_device_grows() {
    let rig = Rig::with(1 << 20, |_| {}, &[grant(INITIATOR, Access::ReadWrite)]);
    let mut client = Client::login(&rig);
    assert_eq!(client.read(2047, 2).sense, Some((5, 0x21, 0)));
    assert_eq!(client.write(2048, &[1; 512]).sense, Some((5, 0x21, 0)));
    rig.device.extend(2 << 20);
    block_on(rig.target.size_changed(rig.volume)).unwrap();
    assert_eq!(
        client.read(0, 1).sense,
        Some((6, 0x2a, 9)),
        "CAPACITY DATA HAS CHANGED"
    );
    assert_eq!(client.write(2048, &[1; 512]).status, 0);
    let capacity = client.command(&[0x25], 8, &[]).data;
    assert_eq!(capacity, [0, 0, 0x0f, 0xff, 0, 0, 2, 0]);
}

#[test]
fn unmap_and_write_same_zero_and_patterns_repeat() {
    let rig = Rig::with(8 << 20, |_| {}, &[grant(INITIATOR, Access::ReadWrite)]);
    let mut client = Client::login(&rig);
    let data = pattern(1 << 15, 5);
    let fill = |client: &mut Client| assert_eq!(client.write(64, &data).status, 0);
    let mut same16 = vec![0x93, 0, 0, 0, 0, 0, 0, 0, 0, 72, 0, 0, 0, 16, 0, 0];

    fill(&mut client);
    same16[1] = 0x08 | 0x01; // UNMAP, NDOB
    assert_eq!(client.command(&same16, 0, &[]).status, 0);
    let mut expected = data.clone();
    expected[8 * 512..24 * 512].fill(0);
    assert!(client.read(64, 64).data == expected);

    fill(&mut client);
    same16[1] = 0;
    let block = pattern(512, 77);
    assert_eq!(client.command(&same16, 512, &block).status, 0);
    for index in 8..24 {
        expected[index * 512..(index + 1) * 512].copy_from_slice(&block);
    }
    assert!(client.read(64, 64).data == expected);

    // A list of two, of which one is beyond the end, changes nothing.
    let mut list = vec![0; 40];
    list[1] = 38;
    list[3] = 32;
    list[8 + 7] = 64;
    list[8 + 11] = 64;
    list[24..32].copy_from_slice(&(1u64 << 40).to_be_bytes());
    list[24 + 11] = 1;
    assert_eq!(
        client.command(&cdb10(0x42, 0, 40), 40, &list).sense,
        Some((5, 0x21, 0))
    );
    assert!(client.read(64, 64).data == expected);
    list.truncate(24);
    list[3] = 16;
    assert_eq!(client.command(&cdb10(0x42, 0, 24), 24, &list).status, 0);
    assert!(client.read(64, 64).data.iter().all(|byte| *byte == 0));
}

#[test]
fn verify_finds_the_first_byte_that_differs() {
    let rig = Rig::new();
    let mut client = Client::login(&rig);
    let mut data = pattern(4096, 6);
    client.write(16, &data);
    let mut verify = cdb10(0x2f, 16, 8);
    assert_eq!(client.command(&verify, 0, &[]).status, 0);
    verify[1] = 0x02;
    assert_eq!(client.command(&verify, 4096, &data).status, 0);
    data[3000] ^= 1;
    assert_eq!(client.command(&verify, 4096, &data).sense, Some((0x0e, 0x1d, 0)));
}

#[test]
fn other_luns_hold_nothing() {
    let rig = Rig::new();
    let mut client = Client::login(&rig);
    let mut to_lun_1 = |cdb: &[u8]| {
        let mut pdu = client.command_pdu(cdb, 96, 0xc1, &[]);
        pdu.header[9] = 1;
        client.send(&pdu);
        client.outcome(pdu.be32(16))
    };
    assert_eq!(to_lun_1(&[0x12, 0, 0, 0, 96, 0]).data[0], 0x7f);
    assert_eq!(to_lun_1(&cdb10(0x28, 0, 1)).sense, Some((5, 0x25, 0)));
    assert_eq!(to_lun_1(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 96]).data.len(), 16);
}

#[test]
fn identity_follows_from_the_volume_and_is_the_same_after_a_restart() {
    let pages = |rig: &Rig| {
        let mut client = Client::login(rig);
        let mut page = |number: u8| client.command(&[0x12, 1, number, 1, 0, 0], 256, &[]).data;
        (page(0x80), page(0x83))
    };
    let first = Rig::new();
    let before = pages(&first);
    assert_eq!(before.0[4..], *first.volume.to_string().as_bytes());
    assert_eq!(before.1[8] >> 4, 6, "the first designator is NAA 6");
    drop(first);
    assert_eq!(pages(&Rig::new()), before, "T2");
}

#[test]
fn digests_are_checked_and_sent_when_agreed_on() {
    use std::io::{Read, Write};
    let rig = Rig::new();
    let login = Login::to(&rig);
    let mut client = Client::connect(rig.address());
    client.authenticate(&login).unwrap();
    let keys = [
        ("HeaderDigest", "CRC32C"),
        ("DataDigest", "CRC32C"),
        ("InitialR2T", "No"),
    ];
    client.login_step(&login, 0x87, &keys).unwrap();
    let crc = |bytes: &[u8], damaged: bool| (crc32c::crc32c(bytes) ^ u32::from(damaged)).to_le_bytes();
    let mut sender = client.socket.try_clone().unwrap();
    let mut send = |pdu: Pdu, damage_header: bool, damage_data: bool| {
        let bytes = pdu.bytes();
        let (header, data) = bytes.split_at(48);
        let mut wire = header.to_vec();
        wire.extend_from_slice(&crc(header, damage_header));
        if !data.is_empty() {
            wire.extend_from_slice(data);
            wire.extend_from_slice(&crc(data, damage_data));
        }
        sender.write_all(&wire).unwrap();
    };
    let mut receive = || {
        let mut header = [0; 52];
        client.socket.read_exact(&mut header).unwrap();
        assert_eq!(header[48..], crc(&header[..48], false), "the header's digest");
        let len = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        let mut data = vec![0; len.next_multiple_of(4)];
        client.socket.read_exact(&mut data).unwrap();
        if len > 0 {
            let mut digest = [0; 4];
            client.socket.read_exact(&mut digest).unwrap();
            assert_eq!(digest, crc(&data, false), "the data's digest");
        }
        let ttt = u32::from_be_bytes(header[20..24].try_into().unwrap());
        (header[0], header[3], data, ttt)
    };
    let mut maker = Client::connect(rig.address());
    let command = |maker: &mut Client, cdb: &[u8], expected: u32, data: &[u8]| {
        maker.command_pdu(cdb, expected, if data.is_empty() { 0xc1 } else { 0xa1 }, data)
    };
    send(command(&mut maker, &[0], 0, &[]), false, false);
    assert_eq!(receive().1, 2, "the unit attention");
    let data = pattern(4096, 8);
    send(command(&mut maker, &cdb10(0x2a, 0, 8), 4096, &data), false, false);
    assert_eq!(receive().1, 0);
    send(command(&mut maker, &cdb10(0x28, 0, 8), 4096, &[]), false, false);
    assert!(receive().2 == data);

    send(
        command(&mut maker, &cdb10(0x2a, 0, 8), 4096, &[0; 4096]),
        false,
        true,
    );
    assert_eq!(receive().0, 0x3f, "a Reject");
    let (opcode, status, sense, _) = receive();
    assert_eq!((opcode, status), (0x21, 2), "and the command's failure");
    assert_eq!((sense[4], sense[14], sense[15]), (0x0b, 0x47, 0x05));
    send(command(&mut maker, &[0], 0, &[]), false, false);
    assert_eq!(receive().1, 0, "the session goes on");

    // Of two PDUs that an R2T has asked for the first is damaged: the command fails when both have come.
    let write = maker.command_pdu(&cdb10(0x2a, 0, 8), 4096, 0xa1, &[]);
    let data_out = |flags, data_sn, offset, ttt| {
        let data = Pdu::new(0x05, flags).put32(16, write.be32(16)).put32(20, ttt);
        let data = data.put32(36, data_sn).put32(40, offset);
        data.with_data(&[0; 2048])
    };
    send(write.clone(), false, false);
    let ttt = receive().3;
    send(data_out(0, 0, 0, ttt), false, true);
    assert_eq!(receive().0, 0x3f, "a Reject");
    send(data_out(0x80, 1, 2048, ttt), false, false);
    let (opcode, status, sense, _) = receive();
    assert_eq!((opcode, status), (0x21, 2), "and the command's failure");
    assert_eq!((sense[4], sense[14], sense[15]), (0x0b, 0x47, 0x05));

    send(command(&mut maker, &[0], 0, &[]), true, false);
    let mut byte = [0];
    let end = client.socket.read(&mut byte).unwrap();
    assert_eq!(end, 0, "after a damaged header nothing can be trusted");
    let mut other = Client::login(&rig);
    assert!(other.read(0, 8).data == data, "the damaged data was not written");
}

#[test]
fn many_large_writes_at_odd_places_all_end() {
    // Each leaves a segment that is all but full of unsolicited data, together more than the session's budget:
    // only the data that is still to be asked for can empty them.
    const WRITES: u32 = 120;
    const BYTES: usize = 384 << 10;
    const FIRST: usize = 256 << 10;
    let rig = Rig::new();
    let login = Login::to(&rig)
        .key("FirstBurstLength", &FIRST.to_string())
        .key("MaxBurstLength", &(1 << 20).to_string());
    let mut client = Client::log_in(&rig, &login).unwrap();
    let data = pattern(BYTES, 3);
    let lba = |number: u32| 510 + number * 1024;
    let mut tags = std::collections::HashSet::new();
    for number in 0..WRITES {
        let cdb = cdb10(0x2a, lba(number), (BYTES / 512) as u16);
        let write = client.command_pdu(&cdb, BYTES as u32, 0xa1, &data[..FIRST]);
        client.send(&write);
        tags.insert(write.be32(16));
    }
    while !tags.is_empty() {
        let pdu = client.receive().expect("an R2T or a status");
        match pdu.opcode() {
            0x31 => {
                let at = pdu.be32(40) as usize;
                let end = at + pdu.be32(44) as usize;
                let rest = Pdu::new(0x05, 0x80)
                    .put32(16, pdu.be32(16))
                    .put32(20, pdu.be32(20))
                    .put32(40, at as u32)
                    .with_data(&data[at..end]);
                client.send(&rest);
            }
            0x21 => {
                assert_eq!(pdu.header[3], 0);
                assert!(tags.remove(&pdu.be32(16)));
            }
            _ => panic!("unexpected PDU {pdu:x?}"),
        }
    }
    for number in [0, 1, WRITES - 1] {
        assert!(client.read(lba(number), (BYTES / 512) as u16).data == data);
    }
}

#[test]
fn four_sessions_with_many_commands_each_see_one_medium() {
    let rig = Rig::new();
    let threads: Vec<_> = (0..4u8)
        .map(|number| {
            let login = Login {
                isid: [0x40, 0, 0, 0, 0, number],
                ..Login::to(&rig)
            };
            let mut client = Client::log_in(&rig, &login).unwrap();
            std::thread::spawn(move || {
                for round in 0..50u8 {
                    // A window full of writes, then of reads.
                    let pieces: Vec<_> = (0..32u8).map(|at| pattern(4096, number ^ round ^ at)).collect();
                    let lba = |at: usize| u32::from(number) * 4096 + at as u32 * 8;
                    let mut tags = Vec::new();
                    for (at, piece) in pieces.iter().enumerate() {
                        let pdu = client.command_pdu(&cdb10(0x2a, lba(at), 8), 4096, 0xa1, piece);
                        client.send(&pdu);
                        tags.push(pdu.be32(16));
                    }
                    for _ in &tags {
                        let answer = client.receive().unwrap();
                        assert_eq!((answer.opcode(), answer.header[3]), (0x21, 0));
                        tags.iter()
                            .position(|tag| *tag == answer.be32(16))
                            .expect("one of ours");
                    }
                    for (at, piece) in pieces.iter().enumerate() {
                        assert!(client.read(lba(at), 8).data == *piece);
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(Arc::strong_count(&rig.target), 1);
}
