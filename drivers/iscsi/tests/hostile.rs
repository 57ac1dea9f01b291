//! Input that nobody honest sends: it may end its own connection, and nothing else.

mod client;
mod rig;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Client, Login, Pdu, cdb10};
use quarry_contract::conformance::block_on;
use quarry_contract::memory::{MemoryDevice, MemoryKeeper};
use quarry_contract::{Access, BlockDevice, BlockingQueue, ExportSpec, Target};
use rig::{DEADLINE, INITIATOR, Rig, eventually, grant};

/// A generator that a seed makes repeatable (Steele, Lea, Flood 2014: SplitMix64).
struct SplitMix(u64);

impl SplitMix {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
}

/// Rounds of each random test; `QUARRY_HOSTILE_ROUNDS` makes it more.
fn rounds() -> u64 {
    let rounds = std::env::var("QUARRY_HOSTILE_ROUNDS").ok();
    rounds.and_then(|text| text.parse().ok()).unwrap_or(300)
}

/// Sends bytes, says that no more come, and waits until the target has closed too.
fn pour(client: &mut Client, bytes: &[u8]) {
    // The target may close before it has read everything.
    let _ = client.socket.write_all(bytes);
    let _ = client.socket.shutdown(Shutdown::Write);
    let mut rest = [0; 65536];
    while matches!(client.socket.read(&mut rest), Ok(1..)) {}
}

/// Asserts that an honest session goes on as if nothing was.
fn assert_unharmed(honest: &mut Client, data: &[u8]) {
    assert!(honest.read(0, 8).data == data, "another session's data changed");
    assert_eq!(honest.write(0, data).status, 0);
}

fn honest(rig: &Rig) -> (Client, Vec<u8>) {
    let login = Login {
        isid: [0x40, 0, 0, 0, 9, 9],
        ..Login::to(rig)
    };
    let mut client = Client::log_in(rig, &login).unwrap();
    let data = vec![0x5a; 4096];
    assert_eq!(client.write(0, &data).status, 0);
    (client, data)
}

#[test]
fn random_bytes_close_their_connection_only() {
    let rig = Rig::new();
    let (mut honest, data) = honest(&rig);
    let mut random = SplitMix::new(1);
    for _ in 0..rounds() {
        let len = random.below(3000) as usize;
        let mut bytes: Vec<u8> = (0..len).map(|_| random.next_u64() as u8).collect();
        if let Some(first) = bytes.first_mut()
            && random.below(2) == 0
        {
            *first = 0x43;
        }
        pour(&mut Client::connect(rig.address()), &bytes);
    }
    assert_unharmed(&mut honest, &data);
    eventually("only the honest session is left", || rig.session_count() == 1);
}

/// What an honest initiator sends in the full feature phase.
fn traffic(client: &mut Client) -> Vec<Vec<u8>> {
    let mut pdus = Vec::new();
    let mut list = vec![0; 24];
    list[1] = 22;
    list[3] = 16;
    list[14] = 4;
    list[19] = 8;
    let commands: [(&[u8], u32, u8, Vec<u8>); 8] = [
        (&cdb10(0x28, 1024, 8), 4096, 0xc1, vec![]),
        (&cdb10(0x2a, 1024, 16), 8192, 0xa1, vec![3; 4096]),
        (&cdb10(0x2a, 1024, 8), 4096, 0x21, vec![4; 1024]),
        (&cdb10(0x42, 0, 24), 24, 0xa1, list),
        (&cdb10(0x41, 2048, 8), 512, 0xa1, vec![5; 512]),
        (&[0x12, 1, 0x83, 1, 0, 0], 256, 0xc1, vec![]),
        (&cdb10(0x35, 0, 0), 0, 0x82, vec![]),
        (&[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0], 256, 0xc1, vec![]),
    ];
    for (cdb, expected, flags, data) in commands {
        let pdu = client.command_pdu(cdb, expected, flags, &data);
        pdus.push(pdu.bytes());
        if flags & 0x80 == 0 {
            let rest = Pdu::new(0x05, 0x80)
                .put32(16, pdu.be32(16))
                .put32(20, 0xffff_ffff)
                .put32(40, 1024)
                .with_data(&[4; 3072]);
            pdus.push(rest.bytes());
        }
    }
    pdus.push(client.management_pdu(1, 2).bytes());
    pdus.push(
        Pdu::new(0x44, 0x80)
            .put32(16, 900)
            .put32(20, 0xffff_ffff)
            .with_data(b"SendTargets=\0")
            .bytes(),
    );
    pdus.push(
        Pdu::new(0x40, 0x80)
            .put32(16, 901)
            .put32(20, 0xffff_ffff)
            .with_data(b"ping")
            .bytes(),
    );
    pdus.push(client.management_pdu(5, 0xffff_ffff).bytes());
    pdus
}

/// Changes some bits of some PDUs, cuts, doubles and swaps some.
fn mutate(pdus: &mut Vec<Vec<u8>>, random: &mut SplitMix) {
    for _ in 0..=random.below(3) {
        let at = random.below(pdus.len() as u64) as usize;
        let other = random.below(pdus.len() as u64) as usize;
        match random.below(6) {
            0 => {
                let copy = pdus[at].clone();
                pdus.insert(other, copy);
            }
            1 => pdus.swap(at, other),
            2 => {
                let len = random.below(pdus[at].len() as u64 + 1) as usize;
                pdus[at].truncate(len);
                if pdus[at].is_empty() {
                    pdus[at].push(0);
                }
            }
            _ => {
                let byte = random.below(pdus[at].len() as u64) as usize;
                pdus[at][byte] ^= 1 << random.below(8);
            }
        }
    }
}

#[test]
fn mutated_traffic_closes_its_connection_at_most() {
    let rig = Rig::new();
    // A mutated command that is valid may write anywhere on its own volume; the honest session has another.
    let volume = rig::volume(2);
    let device = MemoryDevice::of_size(1 << 20);
    block_on(rig.target.export(ExportSpec {
        volume,
        device: Arc::clone(&device) as Arc<dyn BlockDevice>,
        grants: vec![grant(INITIATOR, Access::ReadWrite)],
        limits: quarry_contract::IoLimits::NONE,
        kept: Vec::new(),
        keeper: MemoryKeeper::new(),
    }))
    .unwrap();
    let login = Login {
        target: rig.target.address_of(volume).target_name,
        ..Login::to(&rig)
    };
    let mut honest = Client::log_in(&rig, &login).unwrap();
    let data = vec![0xc3; 4096];
    assert_eq!(honest.write(0, &data).status, 0);
    let mut random = SplitMix::new(2);
    for _ in 0..rounds() {
        let mut hostile = Client::login(&rig);
        let mut pdus = traffic(&mut hostile);
        mutate(&mut pdus, &mut random);
        pour(&mut hostile, &pdus.concat());
        assert_unharmed(&mut honest, &data);
    }
    drop(honest);
    eventually("all sessions are gone", || rig.session_count() == 0);
    let rest = BlockingQueue::open(&(device as Arc<dyn BlockDevice>))
        .unwrap()
        .read(4096, (1 << 20) - 4096)
        .unwrap();
    assert!(rest.iter().all(|byte| *byte == 0), "another volume was written");
}

#[test]
fn mutated_logins_never_get_in() {
    let rig = Rig::new();
    let mut random = SplitMix::new(3);
    let login = Login {
        secret: "not-the-secret-1".into(),
        ..Login::to(&rig)
    };
    for _ in 0..rounds() {
        let mut client = Client::connect(rig.address());
        let text = format!(
            "InitiatorName={}\0TargetName={}\0SessionType=Normal\0AuthMethod=CHAP\0CHAP_A=5\0CHAP_N=u\0CHAP_R=0x00\0",
            login.initiator, login.target
        );
        let mut pdus: Vec<Vec<u8>> = [0x81, 0x81, 0x83, 0x87, 0x87]
            .map(|flags| Pdu::new(0x43, flags).with_data(text.as_bytes()).bytes())
            .to_vec();
        for _ in 0..4 {
            let at = random.below(pdus.len() as u64) as usize;
            let byte = random.below(pdus[at].len() as u64) as usize;
            pdus[at][byte] = random.next_u64() as u8;
        }
        pour(&mut client, &pdus.concat());
        assert_eq!(rig.session_count(), 0, "T1");
    }
}

#[test]
fn requests_longer_than_declared_are_not_waited_for() {
    let rig = Rig::with(
        1 << 20,
        |config| config.login_timeout = Duration::from_secs(60),
        &[grant(INITIATOR, Access::ReadWrite)],
    );
    let announce = |pdu: Pdu, bytes: u32| {
        let mut wire = pdu.bytes();
        wire[5..8].copy_from_slice(&bytes.to_be_bytes()[1..]);
        wire
    };
    let mut early = Client::connect(rig.address());
    early
        .socket
        .write_all(&announce(Pdu::new(0x43, 0), 0xff_ffff))
        .unwrap();
    early.expect_close();

    let requests = [
        Pdu::new(0x40, 0x80).put32(16, 1),
        Pdu::new(0x44, 0x80).put32(16, 1),
        Pdu::new(0x42, 0x81).put32(16, 1),
        Pdu::new(0x05, 0x80).put32(16, 1),
        Pdu::new(0x41, 0xa1).put32(16, 1).put32(20, 0xffff_ffff),
    ];
    for request in requests {
        let mut late = Client::login(&rig);
        late.socket.write_all(&announce(request, 0xff_ffff)).unwrap();
        late.expect_close();
    }
}

#[test]
fn data_that_was_not_asked_for_or_is_out_of_order_fails_the_command_and_is_not_written() {
    let rig = Rig::new();
    let wrongs: [fn(Pdu) -> Pdu; 4] = [
        |data| data.put32(36, 1),
        |data| data.put32(40, 512),
        |data| data.put32(20, 0x7777),
        |data| data.with_data(&[9; 16384 + 512]),
    ];
    for wrong in wrongs {
        let mut client = Client::login(&rig);
        let write = client.command_pdu(&cdb10(0x2a, 0, 32), 16384, 0xa1, &[]);
        client.send(&write);
        let r2t = client.receive().unwrap();
        let data = Pdu::new(0x05, 0x80)
            .put32(16, write.be32(16))
            .put32(20, r2t.be32(20))
            .with_data(&[9; 16384]);
        client.send(&wrong(data));
        let outcome = client.outcome(write.be32(16));
        assert_eq!(outcome.sense.map(|(key, ..)| key), Some(0x0b), "aborted command");
        assert!(client.read(0, 32).data.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn initiator_that_never_reads_is_not_listened_to_for_ever() {
    let rig = Rig::new();
    let mut deaf = Client::login(&rig);
    deaf.socket.set_write_timeout(Some(client::SILENCE)).unwrap();
    let ping = Pdu::new(0x40, 0x80)
        .put32(16, 1)
        .put32(20, 0xffff_ffff)
        .with_data(&[1; 32768])
        .bytes();
    // Far more than what the sockets' buffers and the target's bound can hold together.
    let taken = (0..4096)
        .take_while(|_| deaf.socket.write_all(&ping).is_ok())
        .count();
    assert!(taken < 4096, "the target must stop reading");
    let (mut other, data) = honest(&rig);
    assert_unharmed(&mut other, &data);
}

/// A session of its own port.
fn another(rig: &Rig, last: u8) -> Client {
    let login = Login {
        isid: [0x40, 0, 0, 0, 7, last],
        ..Login::to(rig)
    };
    Client::log_in(rig, &login).unwrap()
}

/// Sends reads of 256 KiB and returns their tags.
fn ask(client: &mut Client, count: u32) -> Vec<u32> {
    let send = |number| {
        let read = client.command_pdu(&cdb10(0x28, number % 64 * 512, 512), 256 << 10, 0xc1, &[]);
        client.send(&read);
        read.be32(16)
    };
    (0..count).map(send).collect()
}

/// Returns how many requests are held once their number has not changed for a while.
fn when_still(rig: &Rig) -> usize {
    let mut seen = rig.device.held_requests();
    loop {
        std::thread::sleep(2 * client::SILENCE);
        match rig.device.held_requests() {
            same if same == seen => return same,
            other => seen = other,
        }
    }
}

#[test]
fn sessions_get_along_with_little_when_others_hold_what_there_is() {
    let rig = Rig::with(
        64 << 20,
        |config| {
            config.reactors = 1;
            config.max_buffer_bytes = 1 << 20;
        },
        &[grant(INITIATOR, Access::ReadWrite)],
    );
    let (mut greedy, mut modest) = (another(&rig, 1), another(&rig, 2));
    rig.device.hold();
    let many = ask(&mut greedy, 128);
    eventually("the greedy one has more than there is", || {
        rig.device.held_requests() > 4
    });
    let taken = when_still(&rig);
    let few = ask(&mut modest, 4);
    eventually("the modest one has a request", || {
        rig.device.held_requests() > taken
    });
    let mut writer = another(&rig, 3);
    let write = writer.command_pdu(&cdb10(0x2a, 0, 8), 4096, 0xa1, &[1; 4096]);
    writer.send(&write);
    eventually("and so has a third", || rig.device.held_requests() > taken + 1);
    std::thread::sleep(client::SILENCE);
    assert_eq!(rig.device.held_requests(), taken + 2, "one each, and no more");
    rig.device.release();
    // All are answered, in whatever order they are read.
    for tag in few {
        assert_eq!(modest.outcome(tag).data.len(), 256 << 10);
    }
    for tag in many {
        assert_eq!(greedy.outcome(tag).data.len(), 256 << 10);
    }
    assert_eq!(writer.outcome(write.be32(16)).status, 0);
}

#[test]
fn writes_of_one_session_are_not_heard_when_they_are_many_and_buffers_scarce() {
    let rig = Rig::with(
        64 << 20,
        |config| {
            config.reactors = 1;
            config.max_buffer_bytes = 512 << 10;
        },
        &[grant(INITIATOR, Access::ReadWrite)],
    );
    let login = Login::to(&rig).key("FirstBurstLength", "262144");
    let mut client = Client::log_in(&rig, &login).unwrap();
    rig.device.hold();
    let mut writer = Client {
        socket: client.socket.try_clone().unwrap(),
        ..client
    };
    let tags: Vec<u32> = (writer.next_itt..).take(100).collect();
    let sends = std::thread::spawn(move || {
        for number in 0..100 {
            let data = vec![number as u8; 256 << 10];
            let write = writer.command_pdu(&cdb10(0x2a, number * 512, 512), 256 << 10, 0xa1, &data);
            writer.send(&write);
        }
    });
    // What is not heard stays in the initiator's and the system's buffers.
    eventually("some are at the device", || rig.device.held_requests() >= 2);
    let heard = when_still(&rig);
    assert!(heard < 24, "{heard} writes of 256 KiB are in memory");
    rig.device.release();
    for tag in tags {
        assert_eq!(client.outcome(tag).status, 0);
    }
    sends.join().unwrap();
}

#[test]
fn a_session_that_is_not_listened_to_for_a_slow_device_is_not_taken_for_a_silent_one() {
    const PING: Duration = Duration::from_millis(100);
    let rig = Rig::with(
        64 << 20,
        |config| {
            config.reactors = 1;
            config.max_buffer_bytes = 256 << 10;
            config.ping_interval = PING;
        },
        &[grant(INITIATOR, Access::ReadWrite)],
    );
    let login = Login::to(&rig).key("FirstBurstLength", "262144");
    let mut client = Client::log_in(&rig, &login).unwrap();
    rig.device.hold();
    let writes = [0, 512, 1024].map(|lba| {
        let data = vec![1; 256 << 10];
        let write = client.command_pdu(&cdb10(0x2a, lba, 512), 256 << 10, 0xa1, &data);
        client.send(&write);
        write.be32(16)
    });
    eventually("the first is at the device", || rig.device.held_requests() == 1);
    // What is tested is that time passes: it would be given up after twice the interval.
    std::thread::sleep(6 * PING);
    rig.device.release();
    for tag in writes {
        assert_eq!(client.outcome(tag).status, 0);
    }
}

#[test]
fn initiator_that_asks_and_does_not_read_is_closed_when_buffers_are_scarce() {
    for (limit, closes) in [(1 << 20, true), (1 << 30, false)] {
        let rig = Rig::with(
            64 << 20,
            |config| {
                config.reactors = 1;
                config.max_buffer_bytes = limit;
                config.ping_interval = Duration::from_millis(300);
            },
            &[grant(INITIATOR, Access::ReadWrite)],
        );
        let mut greedy = another(&rig, 1);
        ask(&mut greedy, 128);
        // It is not silent: it says something now and then.
        let time = if closes {
            DEADLINE
        } else {
            Duration::from_millis(1500)
        };
        let end = Instant::now() + time;
        while rig.session_count() == 1 && Instant::now() < end {
            let nop = Pdu::new(0x40, 0x80).put32(16, 0xffff_ffff).put32(20, 0xffff_ffff);
            let _ = greedy.socket.write_all(&nop.bytes());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(rig.session_count() == 0, closes);
        // Its place is free for another, which gets what it asks for.
        let mut other = another(&rig, 1);
        let tags = ask(&mut other, 8);
        for tag in tags {
            assert_eq!(other.outcome(tag).status, 0);
        }
    }
}
