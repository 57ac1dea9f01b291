//! Control calls against live sessions (contract T3 to T6), task management, and the end of connections.

mod client;
mod rig;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use client::{Client, Login, Pdu, SILENCE, cdb10};
use quarry_contract::conformance::{block_on, target};
use quarry_contract::memory::{MemoryDevice, MemoryDeviceOptions, MemoryKeeper};
use quarry_contract::{Access, Target};
use quarry_iscsi::{IscsiTarget, TargetConfig};
use rig::{DEADLINE, INITIATOR, Rig, eventually, grant, initiator, loopback};

struct Fixture;

impl target::TargetFixture for Fixture {
    fn fresh(&mut self) -> Arc<dyn Target> {
        let mut config = TargetConfig::listening_on(vec![loopback()]);
        config.reactors = 2;
        Arc::new(IscsiTarget::start(config).expect("the target starts"))
    }
}

#[test]
fn target_keeps_its_contract() {
    target::run(&mut Fixture);
}

/// Sends a write that the held device keeps, and returns its tag.
fn held_write(rig: &Rig, client: &mut Client, lba: u32) -> u32 {
    let before = rig.device.held_requests();
    let write = client.command_pdu(&cdb10(0x2a, lba, 8), 4096, 0xa1, &[1; 4096]);
    client.send(&write);
    eventually("the write is at the device", || {
        rig.device.held_requests() > before
    });
    write.be32(16)
}

/// Runs a call on a thread of its own; the receiver hears when it has returned.
fn in_background<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(call()));
    receiver
}

#[test]
fn revoke_returns_when_the_sessions_writes_are_over_and_none_comes_after() {
    let rig = Rig::new();
    let mut client = Client::login(&rig);
    rig.device.hold();
    held_write(&rig, &mut client, 0);
    let (target, volume) = (Arc::clone(&rig.target), rig.volume);
    let revoked = in_background(move || block_on(target.revoke(volume, &initiator(INITIATOR))).unwrap());
    client.expect_close();
    assert!(
        revoked.recv_timeout(SILENCE).is_err(),
        "T4: a write is at the device, revoke must not return"
    );
    rig.device.release();
    assert!(revoked.recv_timeout(DEADLINE).unwrap().is_changed());
    assert_eq!(rig.session_count(), 0, "T4");
    assert_eq!(rig.device.held_requests(), 0, "T4");
    assert_eq!(Client::log_in(&rig, &Login::to(&rig)).err(), Some(0x0202), "T1");
}

#[test]
fn repeated_calls_wait_for_what_an_abandoned_one_began() {
    let rig = Rig::new();
    let mut client = Client::login(&rig);
    rig.device.hold();
    held_write(&rig, &mut client, 0);
    let abandon = |call: std::pin::Pin<Box<dyn Future<Output = ()> + '_>>| {
        let mut call = call;
        let waker = std::task::Waker::noop();
        assert!(
            call.as_mut()
                .poll(&mut std::task::Context::from_waker(waker))
                .is_pending()
        );
    };
    let host = initiator(INITIATOR);
    abandon(Box::pin(async {
        drop(rig.target.revoke(rig.volume, &host).await)
    }));
    client.expect_close();
    abandon(Box::pin(async {
        drop(rig.target.revoke(rig.volume, &host).await)
    }));
    abandon(Box::pin(async { drop(rig.target.unexport(rig.volume).await) }));
    let (target, volume) = (Arc::clone(&rig.target), rig.volume);
    let gone = in_background(move || block_on(target.unexport(volume)).unwrap());
    assert!(
        gone.recv_timeout(SILENCE).is_err(),
        "T4: a write is at the device"
    );
    rig.device.release();
    assert!(!gone.recv_timeout(DEADLINE).unwrap().is_changed());
    assert_eq!(Arc::strong_count(&rig.device), 1, "T5");
}

#[test]
fn an_export_waits_for_the_end_of_the_one_before_that_nobody_waited_for() {
    let rig = Rig::new();
    let mut client = Client::login(&rig);
    rig.device.hold();
    held_write(&rig, &mut client, 0);
    {
        let mut unexport = rig.target.unexport(rig.volume);
        let waker = std::task::Waker::noop();
        let polled = unexport.as_mut().poll(&mut std::task::Context::from_waker(waker));
        assert!(polled.is_pending());
    }
    let (target, spec) = (
        Arc::clone(&rig.target),
        rig.spec(rig.volume, &[grant(INITIATOR, Access::ReadWrite)]),
    );
    let exported = in_background(move || block_on(target.export(spec)).unwrap());
    assert!(
        exported.recv_timeout(SILENCE).is_err(),
        "T4: a write is at the device"
    );
    rig.device.release();
    exported.recv_timeout(DEADLINE).unwrap();
    assert_eq!(Client::login(&rig).read(0, 8).data.len(), 4096);
}

#[test]
fn revoke_under_load_lets_no_write_through_after_it_returns() {
    let rig = Rig::new();
    for round in 0..20u8 {
        block_on(rig.target.grant(rig.volume, grant(INITIATOR, Access::ReadWrite))).unwrap();
        let mut client = Client::login(&rig);
        let writer = std::thread::spawn(move || {
            use std::io::Write;
            loop {
                let write = client.command_pdu(&cdb10(0x2a, 0, 8), 4096, 0xa1, &[round | 0x80; 4096]);
                // Nobody reads the answers; the window closes, or the target closes the connection.
                client.cmd_sn = match client.socket.write_all(&write.bytes()) {
                    Ok(()) if client.next_itt < 100 => client.cmd_sn,
                    _ => return,
                };
            }
        });
        std::thread::yield_now();
        block_on(rig.target.revoke(rig.volume, &initiator(INITIATOR))).unwrap();
        let marker = vec![round; 4096];
        write_directly(&rig, &marker);
        writer.join().unwrap();
        assert!(
            read_directly(&rig) == marker,
            "T4: a write came after revoke had returned"
        );
    }
}

fn write_directly(rig: &Rig, data: &[u8]) {
    let device: Arc<dyn quarry_contract::BlockDevice> = Arc::clone(&rig.device) as _;
    let mut queue = quarry_contract::BlockingQueue::open(&device).unwrap();
    queue.write(0, data, quarry_contract::Durability::Cached).unwrap();
}

fn read_directly(rig: &Rig) -> Vec<u8> {
    let device: Arc<dyn quarry_contract::BlockDevice> = Arc::clone(&rig.device) as _;
    quarry_contract::BlockingQueue::open(&device)
        .unwrap()
        .read(0, 4096)
        .unwrap()
}

#[test]
fn initiators_are_told_that_their_sessions_end_when_access_is_taken_away() {
    let rig = Rig::new();
    let mut client = Client::login(&rig);
    block_on(rig.target.revoke(rig.volume, &initiator(INITIATOR))).unwrap();
    expect_drop_notice(&mut client, 0);
    rig.export(rig.volume, &[grant(INITIATOR, Access::ReadWrite)]);
    let mut client = Client::login(&rig);
    block_on(rig.target.unexport(rig.volume)).unwrap();
    expect_drop_notice(&mut client, 0);

    // One that takes nothing is not waited for.
    rig.export(rig.volume, &[grant(INITIATOR, Access::ReadWrite)]);
    let mut deaf = Client::login(&rig);
    for _ in 0..64 {
        let read = deaf.command_pdu(&cdb10(0x28, 0, 2048), 1 << 20, 0xc1, &[]);
        deaf.send(&read);
    }
    let begun = Instant::now();
    block_on(rig.target.revoke(rig.volume, &initiator(INITIATOR))).unwrap();
    assert!(begun.elapsed() < DEADLINE / 2);
}

#[test]
fn revoke_leaves_other_initiators_alone() {
    let other = "iqn.2026-11.io.quarry.test:other";
    let rig = Rig::with(
        1 << 20,
        |_| {},
        &[
            grant(INITIATOR, Access::ReadWrite),
            grant(other, Access::ReadWrite),
        ],
    );
    let mut first = Client::login(&rig);
    let login = Login {
        initiator: other.to_owned(),
        ..Login::to(&rig)
    };
    let mut second = Client::log_in(&rig, &login).unwrap();
    block_on(rig.target.revoke(rig.volume, &initiator(INITIATOR))).unwrap();
    first.expect_close();
    assert_eq!(second.read(0, 1).status, 0);
    // Exporting again with one grant less is a revoke too.
    rig.export(rig.volume, &[]);
    second.expect_close();
}

#[test]
fn unexport_waits_for_the_device_and_drops_it_with_all_queues() {
    let rig = Rig::new();
    let mut clients: Vec<Client> = (0..4u8)
        .map(|number| {
            let login = Login {
                isid: [0x40, 0, 0, 0, 0, number],
                ..Login::to(&rig)
            };
            Client::log_in(&rig, &login).unwrap()
        })
        .collect();
    rig.device.hold();
    for (at, client) in clients.iter_mut().enumerate() {
        held_write(&rig, client, at as u32 * 8);
    }
    let (target, volume) = (Arc::clone(&rig.target), rig.volume);
    let gone = in_background(move || block_on(target.unexport(volume)).unwrap());
    clients.iter_mut().for_each(Client::expect_close);
    assert!(gone.recv_timeout(SILENCE).is_err(), "T4");
    rig.device.release();
    gone.recv_timeout(DEADLINE).unwrap();
    assert_eq!(Arc::strong_count(&rig.device), 1, "T5");
}

#[test]
fn slow_device_does_not_delay_other_volumes() {
    let rig = Rig::with(
        1 << 20,
        |config| config.reactors = 1,
        &[grant(INITIATOR, Access::ReadWrite)],
    );
    let other = MemoryDevice::of_size(1 << 20);
    block_on(rig.target.export(quarry_contract::ExportSpec {
        volume: rig::volume(2),
        device: other,
        grants: vec![grant(INITIATOR, Access::ReadWrite)],
        limits: quarry_contract::IoLimits::NONE,
        kept: Vec::new(),
        keeper: MemoryKeeper::new(),
    }))
    .unwrap();
    let mut stuck = Client::login(&rig);
    rig.device.hold();
    held_write(&rig, &mut stuck, 0);
    let login = Login {
        target: rig.target.address_of(rig::volume(2)).target_name,
        ..Login::to(&rig)
    };
    let mut free = Client::log_in(&rig, &login).unwrap();
    assert_eq!(free.read(0, 8).status, 0, "T6");
    rig.device.release();
}

const SIMPLE: u8 = 1;
const ORDERED: u8 = 2;
const HEAD_OF_QUEUE: u8 = 3;

/// Sends a read with a task attribute, and returns its tag.
fn send_read(client: &mut Client, attribute: u8) -> u32 {
    let read = client.command_pdu(&cdb10(0x28, 0, 8), 4096, 0xc0 | attribute, &[]);
    client.send(&read);
    read.be32(16)
}

/// Receives the answers of commands, and returns their tags in order.
fn answered(client: &mut Client, count: usize) -> Vec<u32> {
    let mut tags = Vec::new();
    while tags.len() < count {
        let pdu = client.receive().expect("an answer");
        let is_last = pdu.opcode() == 0x21 || pdu.opcode() == 0x25 && pdu.header[1] & 0x01 != 0;
        assert!(is_last && pdu.header[3] == 0, "{pdu:x?}");
        tags.push(pdu.be32(16));
    }
    tags
}

/// Waits until so many requests are held, and asserts that no more come and nothing is answered.
fn expect_held(rig: &Rig, client: &mut Client, count: usize) {
    eventually("the requests are at the device", || {
        rig.device.held_requests() >= count
    });
    client.expect_silence();
    assert_eq!(rig.device.held_requests(), count);
}

#[test]
fn an_ordered_task_waits_for_all_before_it_and_all_after_it_wait_for_it() {
    let rig = Rig::new();
    let mut client = Client::login(&rig);
    rig.device.hold();
    let first = send_read(&mut client, SIMPLE);
    let ordered = send_read(&mut client, ORDERED);
    let last = send_read(&mut client, SIMPLE);
    expect_held(&rig, &mut client, 1);
    // One for the head of the queue waits for none of them.
    let head = send_read(&mut client, HEAD_OF_QUEUE);
    expect_held(&rig, &mut client, 2);
    rig.device.release();
    let mut tags = answered(&mut client, 4);
    tags[..2].sort_unstable();
    assert_eq!(tags, [first, head, ordered, last]);

    // It has started, too, when it waits for its own data.
    let write = client.command_pdu(&cdb10(0x2a, 0, 8), 4096, 0xa0 | ORDERED, &[]);
    client.send(&write);
    let r2t = client.receive().unwrap();
    assert_eq!(r2t.opcode(), 0x31);
    let last = send_read(&mut client, SIMPLE);
    client.expect_silence();
    let data = Pdu::new(0x05, 0x80)
        .put32(16, write.be32(16))
        .put32(20, r2t.be32(20))
        .with_data(&[9; 4096]);
    client.send(&data);
    assert_eq!(answered(&mut client, 2), [write.be32(16), last]);
}

#[test]
fn a_task_at_the_head_of_the_queue_is_waited_for_by_all_but_its_like() {
    let rig = Rig::new();
    let mut client = Client::login(&rig);
    rig.device.hold();
    let head = send_read(&mut client, HEAD_OF_QUEUE);
    let simple = send_read(&mut client, SIMPLE);
    let ordered = send_read(&mut client, ORDERED);
    expect_held(&rig, &mut client, 1);
    let second = send_read(&mut client, HEAD_OF_QUEUE);
    expect_held(&rig, &mut client, 2);
    rig.device.release();
    let mut tags = answered(&mut client, 4);
    tags[..2].sort_unstable();
    assert_eq!(tags, [head, second, simple, ordered]);
    assert_eq!(client.read(0, 8).status, 0);
}

#[test]
fn aborted_task_is_never_answered_and_the_abort_once_after_it() {
    let rig = Rig::new();
    let mut client = Client::login(&rig);
    rig.device.hold();
    let tag = held_write(&rig, &mut client, 0);
    let abort = client.management_pdu(1, tag);
    client.send(&abort);
    client.expect_silence();
    rig.device.release();
    let answer = client.receive().unwrap();
    assert_eq!((answer.opcode(), answer.be32(16)), (0x22, abort.be32(16)));
    assert_eq!(answer.header[2], 0);
    client.expect_silence();
    let again = client.management_pdu(1, tag);
    client.send(&again);
    assert_eq!(client.receive().unwrap().header[2], 1, "no such task");
    assert_eq!(client.read(0, 8).status, 0);
}

#[test]
fn abort_of_a_write_that_waits_for_data_needs_no_device() {
    let rig = Rig::new();
    let mut client = Client::login(&rig);
    let write = client.command_pdu(&cdb10(0x2a, 0, 64), 32768, 0xa1, &[]);
    client.send(&write);
    let r2t = client.receive().unwrap();
    assert_eq!(r2t.opcode(), 0x31);
    let abort = client.management_pdu(1, write.be32(16));
    client.send(&abort);
    let answer = client.receive().unwrap();
    assert_eq!((answer.opcode(), answer.header[2]), (0x22, 0));
    // The data it had asked for comes late and is dropped.
    let late = Pdu::new(0x05, 0x80)
        .put32(16, write.be32(16))
        .put32(20, r2t.be32(20))
        .with_data(&[9; 32768]);
    client.send(&late);
    assert_eq!(client.read(0, 1).data, vec![0; 512]);
}

#[test]
fn reset_ends_the_tasks_of_every_session_and_tells_them() {
    let rig = Rig::new();
    // Four sessions lie on both reactors.
    let mut clients: Vec<Client> = (0..4u8)
        .map(|number| {
            let login = Login {
                isid: [0x40, 0, 0, 0, 0, number],
                ..Login::to(&rig)
            };
            Client::log_in(&rig, &login).unwrap()
        })
        .collect();
    rig.device.hold();
    for (at, client) in clients.iter_mut().enumerate() {
        held_write(&rig, client, at as u32 * 8);
    }
    let reset = clients[0].management_pdu(5, 0xffff_ffff);
    clients[0].send(&reset);
    clients[0].expect_silence();
    rig.device.release();
    let answer = clients[0].receive().unwrap();
    assert_eq!((answer.opcode(), answer.header[2]), (0x22, 0));
    for client in &mut clients {
        assert_eq!(client.command(&[0], 0, &[]).sense, Some((6, 0x29, 3)));
        assert_eq!(client.command(&[0], 0, &[]).status, 0);
    }
}

#[test]
fn commands_outside_the_window_leave_no_trace() {
    let rig = Rig::new();
    let mut client = Client::login(&rig);
    let next = client.cmd_sn;
    for wrong in [next + 1000, next - 1, next.wrapping_add(0x8000_0000)] {
        client.cmd_sn = wrong;
        let write = client.command_pdu(&cdb10(0x2a, 0, 1), 512, 0xa1, &[9; 512]);
        client.send(&write);
    }
    client.expect_silence();
    client.cmd_sn = next;
    assert_eq!(client.read(0, 1).data, vec![0; 512]);
}

#[test]
fn window_closes_while_the_device_is_slow_and_opens_again() {
    let rig = Rig::new();
    let mut client = Client::login(&rig);
    rig.device.hold();
    for lba in 0..128 {
        let read = client.command_pdu(&cdb10(0x28, lba, 1), 512, 0xc1, &[]);
        client.send(&read);
    }
    eventually("all are at the device", || rig.device.held_requests() == 128);
    let beyond = client.command_pdu(&cdb10(0x28, 0, 1), 512, 0xc1, &[]);
    client.send(&beyond);
    client.expect_silence();
    rig.device.release();
    for _ in 0..128 {
        assert_eq!(client.receive().unwrap().opcode(), 0x25);
    }
    client.cmd_sn -= 1;
    assert_eq!(client.read(0, 1).status, 0);
}

#[test]
fn reads_wait_for_each_other_beyond_what_the_device_can_use() {
    const READS: u32 = 8;
    const BYTES: u32 = 1 << 20;
    let device = MemoryDevice::new(&MemoryDeviceOptions {
        useful_in_flight_bytes: BYTES,
        ..MemoryDeviceOptions::of_size(64 << 20)
    });
    let rig = Rig::over(device, |_| {}, &[grant(INITIATOR, Access::ReadWrite)]);
    let mut client = Client::login(&rig);
    rig.device.hold();
    for number in 0..READS {
        let blocks = BYTES / 512;
        let cdb = cdb10(0x28, number * blocks, blocks as u16);
        let read = client.command_pdu(&cdb, BYTES, 0xc1, &[]);
        client.send(&read);
    }
    // A mebibyte in segments of 256 KiB.
    eventually("the first is at the device", || rig.device.held_requests() == 4);
    client.expect_silence();
    assert_eq!(rig.device.held_requests(), 4);
    rig.device.release();
    let mut ended = 0;
    while ended < READS {
        let data = client.receive().expect("all reads end");
        assert_eq!(data.opcode(), 0x25);
        ended += u32::from(data.header[1] & 1);
    }
}

#[test]
fn ping_is_echoed_and_logout_answered_last() {
    let rig = Rig::new();
    let mut client = Client::login(&rig);
    let ping = Pdu::new(0x40, 0x80)
        .put32(16, 77)
        .put32(20, 0xffff_ffff)
        .put32(24, client.cmd_sn)
        .with_data(b"hello");
    client.send(&ping);
    let echo = client.receive().unwrap();
    assert_eq!(
        (echo.opcode(), echo.be32(16), echo.data.as_slice()),
        (0x20, 77, &b"hello"[..])
    );

    rig.device.hold();
    held_write(&rig, &mut client, 0);
    let logout = Pdu::new(0x46, 0x80).put32(16, 78).put32(24, client.cmd_sn);
    client.send(&logout);
    client.expect_silence();
    rig.device.release();
    let answer = client.receive().unwrap();
    assert_eq!((answer.opcode(), answer.header[2]), (0x26, 0));
    client.expect_close();
    eventually("the session is gone", || rig.session_count() == 0);
}

#[test]
fn initiator_that_answers_no_ping_is_given_up_and_one_that_does_is_not() {
    let rig = Rig::with(
        1 << 20,
        |config| config.ping_interval = Duration::from_millis(300),
        &[grant(INITIATOR, Access::ReadWrite)],
    );
    let mut client = Client::login(&rig);
    for _ in 0..4 {
        let ping = client.receive().unwrap();
        assert_eq!((ping.opcode(), ping.be32(16)), (0x20, 0xffff_ffff));
        let mut answer = Pdu::new(0x40, 0x80)
            .put32(16, 0xffff_ffff)
            .put32(20, ping.be32(20))
            .put32(24, client.cmd_sn);
        answer.header[8..16].copy_from_slice(&ping.header[8..16]);
        client.send(&answer);
    }
    client.expect_close();
}

#[test]
fn snack_and_unknown_task_functions_are_refused_politely() {
    let rig = Rig::new();
    let mut client = Client::login(&rig);
    let snack = Pdu::new(0x10, 0x80).put32(16, 0xffff_ffff);
    client.send(&snack);
    let reject = client.receive().unwrap();
    assert_eq!((reject.opcode(), reject.header[2]), (0x3f, 3));
    assert_eq!(reject.data, snack.header);
    for (function, response) in [(3, 5), (8, 4), (99, 5)] {
        let request = client.management_pdu(function, 0);
        client.send(&request);
        assert_eq!(client.receive().unwrap().header[2], response);
    }
}

/// Takes the request to log out that comes before a stop.
fn expect_logout_request(client: &mut Client, seconds: u8) {
    let asked = client.receive().unwrap();
    assert_eq!((asked.opcode(), asked.be32(16)), (0x32, 0xffff_ffff));
    assert_eq!(asked.header[36..44], [1, 0, 0, 0, 0, 0, 0, seconds]);
}

/// Takes what is said before a session is dropped: after how many seconds to come back.
fn expect_drop_notice(client: &mut Client, seconds: u8) {
    let told = client.receive().unwrap();
    assert_eq!(told.opcode(), 0x32);
    assert_eq!(told.header[36..44], [3, 0, 0, 0, 0, seconds, 0, 0]);
    client.expect_close();
}

#[test]
fn shutdown_asks_for_logouts_and_goes_on_until_they_come() {
    // Longer than a test may take: it does not end for the time having passed.
    let rig = Rig::with(
        1 << 20,
        |config| config.logout_seconds = 200,
        &[grant(INITIATOR, Access::ReadWrite)],
    );
    let mut clients = [1, 2, 3].map(|last| {
        let isid = [0x40, 0, 0, 0, 0, last];
        let login = Login {
            isid,
            ..Login::to(&rig)
        };
        Client::log_in(&rig, &login).unwrap()
    });
    let mut discovery = Client::connect(rig.address());
    let hello = [("InitiatorName", INITIATOR), ("SessionType", "Discovery")];
    discovery.login_step(&Login::to(&rig), 0x87, &hello).unwrap();
    let target = Arc::clone(&rig.target);
    let stopped = in_background(move || block_on(target.shutdown()));
    for client in &mut clients {
        expect_logout_request(client, 200);
    }
    discovery.expect_close();
    assert!(std::net::TcpStream::connect(rig.address()).is_err());
    for client in &mut clients {
        assert!(stopped.recv_timeout(SILENCE).is_err(), "a session is left");
        // What is under way, and even what is new, is still carried out.
        assert_eq!(client.write(0, &[7; 512]).status, 0);
        let logout = Pdu::new(0x06, 0x80).put32(16, 99).put32(24, client.cmd_sn);
        client.send(&logout);
        let answer = client.receive().unwrap();
        assert_eq!((answer.opcode(), answer.header[2]), (0x26, 0));
        client.expect_close();
    }
    stopped.recv_timeout(DEADLINE).unwrap();
}

#[test]
fn initiators_that_do_not_log_out_are_told_that_they_are_dropped() {
    for (seconds, busy) in [(1, true), (3, false)] {
        let rig = Rig::with(
            1 << 20,
            |config| config.logout_seconds = seconds.into(),
            &[grant(INITIATOR, Access::ReadWrite)],
        );
        let mut client = Client::login(&rig);
        if busy {
            rig.device.hold();
            held_write(&rig, &mut client, 0);
        }
        let target = Arc::clone(&rig.target);
        let begin = Instant::now();
        let stopped = in_background(move || block_on(target.shutdown()));
        expect_logout_request(&mut client, seconds);
        expect_drop_notice(&mut client, 1);
        // A silent one with nothing under way before the time is over, another one not.
        let time = Duration::from_secs(seconds.into());
        assert_eq!(begin.elapsed() >= time, busy, "{:?}", begin.elapsed());
        rig.device.release();
        stopped.recv_timeout(DEADLINE).unwrap();
    }
}

#[test]
fn shutdown_answers_what_the_device_finishes_in_time() {
    let rig = Rig::with(
        64 << 20,
        |config| config.logout_seconds = 0,
        &[grant(INITIATOR, Access::ReadWrite)],
    );
    let mut client = Client::login(&rig);
    rig.device.hold();
    let tag = held_write(&rig, &mut client, 0);
    let target = Arc::clone(&rig.target);
    let stopped = in_background(move || block_on(target.shutdown()));
    // The port is closed first.
    eventually("nobody is let in", || {
        std::net::TcpStream::connect(rig.address()).is_err()
    });
    rig.device.release();
    assert_eq!(client.receive().unwrap().opcode(), 0x32);
    assert_eq!(client.outcome(tag).status, 0);
    client.expect_close();
    stopped.recv_timeout(DEADLINE).unwrap();
}

#[test]
fn shutdown_waits_for_the_device_closes_everything_and_frees_the_port() {
    let rig = Rig::new();
    let address = rig.address();
    let mut client = Client::login(&rig);
    rig.device.hold();
    held_write(&rig, &mut client, 0);
    let target = Arc::clone(&rig.target);
    let stopped = in_background(move || block_on(target.shutdown()));
    client.expect_close();
    assert!(stopped.recv_timeout(SILENCE).is_err(), "a write is at the device");
    rig.device.release();
    stopped.recv_timeout(DEADLINE).unwrap();
    assert_eq!(Arc::strong_count(&rig.device), 1);
    let again = IscsiTarget::start(TargetConfig::listening_on(vec![address]));
    assert!(again.is_ok(), "the port is free");
}
