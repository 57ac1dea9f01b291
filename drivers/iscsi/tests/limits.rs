//! A volume's limits on the wire (contract T8): that they hold, and that what waits can be ended.

mod client;
mod rig;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use client::{Client, Login, cdb10};
use quarry_contract::conformance::block_on;
use quarry_contract::memory::{MemoryDevice, MemoryKeeper};
use quarry_contract::{Access, ExportSpec, IoLimits, Rate, RateLimits, Target};
use rig::{DEADLINE, INITIATOR, Rig, eventually, grant, initiator, volume};

fn rate(per_second: u64) -> Option<Rate> {
    Some(Rate {
        per_second: NonZeroU64::new(per_second).unwrap(),
        burst: 0,
    })
}

fn commands(per_second: u64) -> RateLimits {
    RateLimits {
        commands: rate(per_second),
        bytes: None,
    }
}

fn bytes(per_second: u64) -> RateLimits {
    RateLimits {
        commands: None,
        bytes: rate(per_second),
    }
}

fn total(total: RateLimits) -> IoLimits {
    IoLimits {
        total,
        ..IoLimits::NONE
    }
}

fn limit(rig: &Rig, limits: IoLimits) {
    block_on(rig.target.set_limits(rig.volume, limits)).unwrap();
}

fn other_port(rig: &Rig, last: u8) -> Login {
    Login {
        isid: [0x40, 0, 0, 0, 0, last],
        ..Login::to(rig)
    }
}

/// A session that keeps `depth` commands of 4 KiB under way, and counts those that end well.
struct Load {
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Load {
    fn start(rig: &Rig, port: u8, opcode: u8, depth: usize) -> Self {
        let mut client = Client::log_in(rig, &other_port(rig, port)).unwrap();
        let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped) = (Arc::clone(&done), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut under_way = 0;
            while under_way > 0 || !stopped.load(Ordering::Relaxed) {
                while under_way < depth && !stopped.load(Ordering::Relaxed) {
                    let (flags, data): (u8, &[u8]) = match opcode {
                        0x28 => (0xc1, &[]),
                        _ => (0xa1, &[7; 4096]),
                    };
                    let pdu = client.command_pdu(&cdb10(opcode, 8, 8), 4096, flags, data);
                    client.send(&pdu);
                    under_way += 1;
                }
                let pdu = client.receive().expect("an answer");
                if pdu.opcode() == 0x21 || pdu.opcode() == 0x25 && pdu.header[1] & 1 != 0 {
                    assert_eq!(pdu.header[3], 0, "GOOD");
                    under_way -= 1;
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { done, stop, thread }
    }

    fn count(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// Returns how many commands of each load end in about `time`, and how long that was.
fn counts(loads: &[&Load], time: Duration) -> (Vec<u64>, Duration) {
    let begin = Instant::now();
    let before: Vec<u64> = loads.iter().map(|load| load.count()).collect();
    std::thread::sleep(time);
    let counts = loads.iter().zip(before);
    (
        counts.map(|(load, before)| load.count() - before).collect(),
        begin.elapsed(),
    )
}

/// Sends reads until one is not answered at once. Returns those that wait, `count` of them.
fn waiting_reads(client: &mut Client, count: usize) -> Vec<u32> {
    assert_eq!(client.read(0, 8).status, 0, "the first goes at once");
    (0..count)
        .map(|_| {
            let pdu = client.command_pdu(&cdb10(0x28, 0, 8), 4096, 0xc1, &[]);
            client.send(&pdu);
            pdu.be32(16)
        })
        .collect()
}

/// One command now, and the next in a minute and a half.
const SLOW: u64 = 4096 / 90;

#[test]
fn limits_hold_for_all_sessions_together_and_give_each_an_equal_share() {
    let rig = Rig::new();
    // Few enough that even the shallowest has the next command there in time on a busy machine: 160 ms.
    limit(&rig, total(commands(150)));
    let loads = [
        Load::start(&rig, 1, 0x28, 64),
        Load::start(&rig, 2, 0x2a, 24),
        Load::start(&rig, 3, 0x28, 8),
    ];
    // The first tenth of a second's worth goes at once.
    eventually("the burst is spent", || {
        loads.iter().map(Load::count).sum::<u64>() > 60
    });
    // A machine that stands still for a tenth of a second loses what was allowed then, but not every time.
    let is_near =
        |count: u64, expected: u64, percent: u64| count.abs_diff(expected) * 100 <= expected * percent;
    let measured = [(); 3].map(|()| counts(&[&loads[0], &loads[1], &loads[2]], Duration::from_secs(2)));
    let holds = |(shares, time): &(Vec<u64>, Duration)| {
        let expected = time.as_millis() as u64 * 150 / 1000;
        let are_equal = shares.iter().all(|share| is_near(*share, expected / 3, 20));
        are_equal && is_near(shares.iter().sum(), expected, 12)
    };
    assert!(measured.iter().any(holds), "{measured:?}");
    loads.into_iter().for_each(Load::end);
}

#[test]
fn limits_change_while_commands_wait_and_go_away() {
    let rig = Rig::new();
    limit(&rig, total(bytes(SLOW)));
    let mut client = Client::login(&rig);
    let waiting = waiting_reads(&mut client, 3);
    client.expect_silence();
    limit(&rig, total(commands(200)));
    for tag in waiting {
        assert_eq!(client.outcome(tag).status, 0);
    }
    let load = Load::start(&rig, 9, 0x2a, 16);
    let (slow, time) = counts(&[&load], Duration::from_secs(1));
    // A tenth of a second's worth goes at once, and what went before the count may be counted after.
    let allowed = 20 + 16 + time.as_millis() as u64 / 5;
    assert!(slow[0] <= allowed, "{} of {allowed}", slow[0]);
    limit(&rig, IoLimits::NONE);
    let (free, _) = counts(&[&load], Duration::from_secs(1));
    assert!(
        free[0] > 3 * slow[0],
        "{} without a limit, {} with one",
        free[0],
        slow[0]
    );
    load.end();
}

#[test]
fn a_limit_of_writes_holds_up_no_reads_of_the_same_session() {
    let rig = Rig::new();
    let write = bytes(SLOW);
    limit(
        &rig,
        IoLimits {
            write,
            ..IoLimits::NONE
        },
    );
    let mut client = Client::login(&rig);
    assert_eq!(client.write(0, &[1; 4096]).status, 0);
    let write = client.command_pdu(&cdb10(0x2a, 0, 8), 4096, 0xa1, &[2; 4096]);
    client.send(&write);
    for _ in 0..100 {
        assert_eq!(
            client.read(0, 8).data,
            [1; 4096],
            "reads go, and the write has not"
        );
    }
    // Nothing that is no I/O waits either.
    assert_eq!(client.command(&[0x00], 0, &[]).status, 0);
    assert_eq!(client.command(&cdb10(0x35, 0, 0), 0, &[]).status, 0, "a flush");
}

#[test]
fn waiting_commands_are_aborted_at_once_and_never_answered() {
    let rig = Rig::new();
    limit(&rig, total(bytes(SLOW)));
    let mut client = Client::login(&rig);
    let waiting = waiting_reads(&mut client, 3);
    let abort = client.management_pdu(1, waiting[1]);
    client.send(&abort);
    let answer = client.receive().unwrap();
    assert_eq!(
        (answer.opcode(), answer.be32(16), answer.header[2]),
        (0x22, abort.be32(16), 0)
    );
    let reset = client.management_pdu(5, 0);
    client.send(&reset);
    let answer = client.receive().unwrap();
    assert_eq!(
        (answer.opcode(), answer.be32(16), answer.header[2]),
        (0x22, reset.be32(16), 0)
    );
    limit(&rig, IoLimits::NONE);
    client.expect_silence();
    assert_eq!(client.command(&[0x00], 0, &[]).sense, Some((6, 0x29, 0x03)));
    assert_eq!(client.read(0, 8).status, 0);
}

#[test]
fn a_write_that_waits_asks_for_no_data() {
    let rig = Rig::new();
    limit(&rig, total(bytes(SLOW)));
    let login = Login::to(&rig)
        .key("InitialR2T", "Yes")
        .key("ImmediateData", "No");
    let mut client = Client::log_in(&rig, &login).unwrap();
    assert_eq!(client.read(0, 8).status, 0);
    let write = client.command_pdu(&cdb10(0x2a, 0, 8), 4096, 0xa1, &[]);
    client.send(&write);
    client.expect_silence();
    limit(&rig, IoLimits::NONE);
    let r2t = client.receive().unwrap();
    assert_eq!(
        (r2t.opcode(), r2t.be32(16)),
        (0x31, write.be32(16)),
        "an R2T once it may go"
    );
}

#[test]
fn logout_revoke_unexport_and_shutdown_do_not_wait_for_a_limit() {
    for what in ["logout", "revoke", "unexport", "shutdown"] {
        let rig = Rig::new();
        limit(&rig, total(bytes(SLOW)));
        let mut client = Client::login(&rig);
        waiting_reads(&mut client, 8);
        // What counts against no limit is answered when what came before it waits.
        assert_eq!(client.command(&[0; 6], 0, &[]).status, 0);
        let begin = Instant::now();
        match what {
            "logout" => {
                let itt = client.next_itt;
                let logout = client::Pdu::new(0x46, 0x80)
                    .put32(16, itt)
                    .put32(24, client.cmd_sn)
                    .put32(28, client.exp_stat_sn);
                client.send(&logout);
                assert_eq!(client.receive().unwrap().opcode(), 0x26);
            }
            "revoke" => drop(block_on(rig.target.revoke(rig.volume, &initiator(INITIATOR))).unwrap()),
            "unexport" => {
                block_on(rig.target.unexport(rig.volume)).unwrap();
                assert_eq!(Arc::strong_count(&rig.device), 1, "T5");
            }
            _ => block_on(rig.target.shutdown()),
        }
        client.expect_close();
        assert!(
            begin.elapsed() < DEADLINE / 2,
            "{what} took {:?}",
            begin.elapsed()
        );
    }
}

#[test]
fn a_volume_over_its_limit_holds_up_no_other_on_the_same_thread() {
    let rig = Rig::with(
        1 << 20,
        |config| config.reactors = 1,
        &[grant(INITIATOR, Access::ReadWrite)],
    );
    block_on(rig.target.export(ExportSpec {
        volume: rig::volume(2),
        device: MemoryDevice::of_size(1 << 20),
        grants: vec![grant(INITIATOR, Access::ReadWrite)],
        limits: IoLimits::NONE,
        kept: Vec::new(),
        keeper: MemoryKeeper::new(),
    }))
    .unwrap();
    limit(&rig, total(bytes(SLOW)));
    let mut stuck = Client::login(&rig);
    waiting_reads(&mut stuck, 8);
    let login = Login {
        target: rig.target.address_of(rig::volume(2)).target_name,
        ..Login::to(&rig)
    };
    let mut free = Client::log_in(&rig, &login).unwrap();
    for _ in 0..100 {
        assert_eq!(free.read(0, 8).status, 0);
    }
}

/// Writes are limited to 2 MiB a second: returns how long a command took.
fn time_at_two_mebibytes(client: &mut Client, cdb: &[u8], data: &[u8]) -> Duration {
    let begin = Instant::now();
    let outcome = client.command(cdb, data.len() as u32, data);
    assert_eq!((outcome.status, outcome.sense), (0, None));
    begin.elapsed()
}

#[test]
fn what_a_command_does_beyond_its_transfer_counts_part_by_part() {
    let rig = Rig::new();
    let write = bytes(2 << 20);
    limit(
        &rig,
        IoLimits {
            write,
            ..IoLimits::NONE
        },
    );
    let mut client = Client::login(&rig);
    let near_a_second = Duration::from_millis(600)..Duration::from_secs(5);
    // WRITE SAME of a block that is not zero.
    let took = time_at_two_mebibytes(&mut client, &cdb10(0x41, 0, 4096), &[9; 512]);
    assert!(near_a_second.contains(&took), "{took:?}");
    assert_eq!(client.read(4095, 1).data, [9; 512]);

    // EXTENDED COPY of these 4096 blocks to right behind them.
    let names = client.command(&[0x12, 1, 0x83, 0, 255, 0], 255, &[]).data;
    let mut list = vec![5, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0];
    let mut target = vec![0; 32];
    target[0] = 0xe4;
    target[4..24].copy_from_slice(&names[4..24]);
    target[30] = 2;
    list.extend_from_slice(&target);
    list.extend_from_slice(&[2, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0x10, 0]);
    list.extend_from_slice(&0u64.to_be_bytes());
    list.extend_from_slice(&4096u64.to_be_bytes());
    let mut copy = vec![0; 16];
    copy[0] = 0x83;
    copy[13] = list.len() as u8;
    let took = time_at_two_mebibytes(&mut client, &copy, &list);
    assert!(near_a_second.contains(&took), "{took:?}");
    assert_eq!(client.read(8191, 1).data, [9; 512]);

    // One that waits between its parts ends with an abort; its ranges are free again.
    let pdu = client.command_pdu(&copy, list.len() as u32, 0xa1, &list);
    client.send(&pdu);
    let abort = client.management_pdu(1, pdu.be32(16));
    client.send(&abort);
    let answer = client.receive().unwrap();
    assert_eq!((answer.opcode(), answer.be32(16)), (0x22, abort.be32(16)));
    assert_eq!(client.read(8191, 1).status, 0);

    // WRITE SAME (16) without data: zeroing moves none.
    limit(&rig, total(bytes(2 << 20)));
    let zero = [0x93, 0x09, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0];
    let took = time_at_two_mebibytes(&mut client, &zero, &[]);
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn a_discard_that_waits_is_not_answered_before_it_is_done() {
    let rig = Rig::new();
    let mut client = Client::login(&rig);
    assert_eq!(client.write(0, &[1; 64 << 10]).status, 0);
    limit(
        &rig,
        IoLimits {
            write: commands(1),
            ..IoLimits::NONE
        },
    );
    assert_eq!(client.write(512, &[1; 4096]).status, 0);
    // UNMAP of the first 128 blocks, its list as immediate data.
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0, 0]);
    let unmap = client.command_pdu(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], 24, 0xa1, &list);
    client.send(&unmap);
    client.expect_silence();
    limit(&rig, IoLimits::NONE);
    assert_eq!(client.outcome(unmap.be32(16)).status, 0);
    assert_eq!(client.read(0, 8).data, [0; 4096]);
}

/// Has reads of 256 KiB under way, and returns once the target has taken them all.
fn read_ahead(client: &mut Client, count: u32) {
    for number in 0..count {
        let read = client.command_pdu(&cdb10(0x28, number * 512, 512), 256 << 10, 0xc1, &[]);
        client.send(&read);
    }
    // TEST UNIT READY comes after them and needs no device.
    let ready = client.command_pdu(&[0; 6], 0, 0x81, &[]);
    client.send(&ready);
    assert_eq!(client.outcome(ready.be32(16)).status, 0);
}

fn end_reads(client: &mut Client, count: u32) {
    let mut ended = 0;
    while ended < count {
        let data = client.receive().expect("all reads end");
        assert_eq!(data.opcode(), 0x25);
        ended += u32::from(data.header[1] & 1);
    }
}

#[test]
fn beside_others_a_volume_has_no_more_at_the_disk_than_its_part() {
    // Both volumes are of one device, so that what is held is of both; 64 reads are what a session may have there.
    let rig = Rig::new();
    let other = volume(2);
    rig.export(other, &[grant(INITIATOR, Access::ReadWrite)]);
    let mut noisy = Client::login(&rig);
    let to_other = Login {
        target: rig.target.address_of(other).target_name,
        ..other_port(&rig, 2)
    };
    let mut quiet = Client::log_in(&rig, &to_other).unwrap();

    rig.device.hold();
    read_ahead(&mut noisy, 64);
    eventually("alone it has what is useful", || rig.device.held_requests() == 64);
    rig.device.release();
    end_reads(&mut noisy, 64);

    // The quiet one counts as used for half a second at least: what took longer than that to set up is done again.
    loop {
        rig.device.hold();
        let began = Instant::now();
        let read = quiet.command_pdu(&cdb10(0x28, 0, 8), 4096, 0xc1, &[]);
        quiet.send(&read);
        eventually("the quiet one is served", || rig.device.held_requests() == 1);
        read_ahead(&mut noisy, 64);
        let in_time = began.elapsed() < Duration::from_millis(500);
        if in_time {
            eventually("beside it 2 MiB", || rig.device.held_requests() == 1 + 8);
            read_ahead(&mut noisy, 0);
            assert_eq!(rig.device.held_requests(), 1 + 8);
        }
        rig.device.release();
        assert_eq!(quiet.outcome(read.be32(16)).status, 0);
        end_reads(&mut noisy, 64);
        if in_time {
            return;
        }
    }
}
