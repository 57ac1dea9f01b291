//! What many connections cost: idle sessions, thousands of them, and those that are there to do harm.
//!
//!     cargo bench -p quarry-iscsi --bench crowd [-- --quick]
//!
//! The target runs in a process of its own over a device in memory, so that its memory, threads and processor time can
//! be told from the initiators'. Each row has what it costs and how long 4 KiB reads of one other session take
//! meanwhile. Ends with 1 when something that must be bounded is not.

#[path = "../tests/client/wire.rs"]
mod wire;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use quarry_contract::conformance::block_on;
use quarry_contract::memory::{MemoryDevice, MemoryKeeper};
use quarry_contract::{
    Access, ChapCredentials, ExportSpec, Grant, InitiatorName, IoLimits, Target, VolumeId,
};
use quarry_iscsi::{IscsiTarget, TargetConfig};
use wire::{Client, Login, Pdu, cdb10};

const USER: &str = "user-1";
const SECRET: &str = "secret-secret-16";
const INITIATOR: &str = "iqn.2026-11.io.quarry.bench:crowd";

/// The size of the volume, in bytes.
const VOLUME_BYTES: u64 = 64 << 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--target") {
        serve();
        return ExitCode::SUCCESS;
    }
    let scale = match arguments.iter().any(|argument| argument == "--quick") {
        true => Scale {
            sessions: 1000,
            crowd: 2000,
            idle: Duration::from_secs(10),
            probe: Duration::from_secs(1),
        },
        false => Scale {
            sessions: 1000,
            crowd: 10_000,
            // Longer than a ping takes to come, 30 s.
            idle: Duration::from_secs(90),
            probe: Duration::from_secs(5),
        },
    };
    run(&scale)
}

/// The process that is measured: a target with one volume, until its standard input ends.
fn serve() {
    let mut config = TargetConfig::listening_on(vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))]);
    config.max_sessions = 20_000;
    // What is not bounded ends this process and no other.
    let most = 6 << 30;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_AS, most, most).expect("a limit");
    let target = IscsiTarget::start(config).expect("the target starts");
    let volume = VolumeId(uuid::Uuid::from_u128(1));
    let spec = ExportSpec {
        volume,
        device: MemoryDevice::of_size(VOLUME_BYTES),
        grants: vec![Grant {
            initiator: InitiatorName::parse(INITIATOR).expect("a valid name"),
            access: Access::ReadWrite,
            chap: ChapCredentials {
                username: USER.to_owned(),
                secret: SECRET.to_owned().into(),
            },
            target_chap: None,
        }],
        limits: IoLimits::NONE,
        kept: Vec::new(),
        keeper: MemoryKeeper::new(),
    };
    let info = block_on(target.export(spec)).expect("the export").into_inner();
    println!("{} {}", target.portals()[0], info.target_name);
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

struct Scale {
    sessions: usize,
    crowd: usize,
    idle: Duration,
    probe: Duration,
}

/// A target's process.
struct Served {
    child: Child,
    /// Its end ends the process.
    _stdin: ChildStdin,
    address: SocketAddr,
    name: String,
}

impl Served {
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .arg("--target")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the target's process");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("its line");
        let (address, name) = line.trim().split_once(' ').expect("address and name");
        Self {
            address: address.parse().expect("an address"),
            name: name.to_owned(),
            _stdin: child.stdin.take().expect("it is piped"),
            child,
        }
    }

    /// Returns a figure of /proc/PID/status (man 5 proc).
    fn status(&self, key: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(path).expect("the process's status");
        let line = text
            .lines()
            .find(|line| line.starts_with(key))
            .expect("the figure");
        let number = line.split_whitespace().nth(1).expect("a number");
        number.parse().expect("a number")
    }

    fn resident_kib(&self) -> u64 {
        self.status("VmRSS:")
    }

    fn threads(&self) -> u64 {
        self.status("Threads:")
    }

    /// Returns the processor time of all its threads: the first number of schedstat, in ns.
    fn cpu(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("its threads");
        let nanos = tasks.filter_map(|task| {
            let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanos.sum())
    }

    fn login(&self, number: usize) -> Login {
        let [high, middle, low] = [number >> 16, number >> 8, number].map(|byte| byte as u8);
        Login {
            initiator: INITIATOR.to_owned(),
            target: self.name.clone(),
            user: USER.to_owned(),
            secret: SECRET.to_owned(),
            isid: [0x80, 0, 0, high, middle, low],
            keys: Login::usual_keys(),
        }
    }

    fn log_in(&self, number: usize) -> Client {
        Client::log_in_at(self.address, &self.login(number)).expect("the login")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sessions that answer pings and do nothing else.
struct Idle {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Idle {
    fn sessions(mut clients: Vec<Client>) -> Self {
        for client in &mut clients {
            client.socket.set_nonblocking(true).expect("a socket");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_secs(1));
                clients.iter_mut().for_each(answer_ping);
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Answers a ping that has come (RFC 7143 11.18). It is a header and comes as a whole.
fn answer_ping(client: &mut Client) {
    let mut header = [0; 48];
    if client.socket.read(&mut header).is_ok_and(|bytes| bytes == 48) && header[0] & 0x3f == 0x20 {
        let mut answer = Pdu::new(0x40, 0x80)
            .put32(16, 0xffff_ffff)
            .put32(24, client.cmd_sn)
            .put32(28, client.exp_stat_sn);
        answer.header[20..24].copy_from_slice(&header[20..24]);
        let _ = client.socket.write_all(&answer.bytes());
    }
}

/// How long 4 KiB reads take, one after the other.
struct Latency {
    median: Duration,
    p99: Duration,
    longest: Duration,
}

fn probe(client: &mut Client, time: Duration) -> Latency {
    let mut taken = Vec::new();
    let end = Instant::now() + time;
    let mut lba = 0u32;
    while taken.is_empty() || Instant::now() < end {
        lba = lba.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let begin = Instant::now();
        let outcome = client.command(&cdb10(0x28, (lba >> 8) % 1000 * 8, 8), 4096, &[]);
        taken.push(begin.elapsed());
        assert_eq!(outcome.status, 0);
    }
    taken.sort_unstable();
    Latency {
        median: taken[taken.len() / 2],
        p99: taken[taken.len() * 99 / 100],
        longest: taken[taken.len() - 1],
    }
}

/// Prints a row; what it is about goes on meanwhile.
fn row(what: &str, served: &Served, quiet: &mut Client, time: Duration) -> u64 {
    let (begin, cpu) = (Instant::now(), served.cpu());
    let latency = probe(quiet, time);
    let busy = (served.cpu() - cpu).as_secs_f64() / begin.elapsed().as_secs_f64();
    let (resident, threads) = (served.resident_kib(), served.threads());
    println!(
        "| {what} | {} MiB | {threads} | {:.0} % | {} / {} / {} |",
        resident / 1024,
        busy * 100.0,
        latency.median.as_micros(),
        latency.p99.as_micros(),
        latency.longest.as_micros(),
    );
    resident
}

/// Something that goes on in threads until it is dropped.
struct Flood {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    fn start(threads: usize, attack: impl Fn(u64) + Send + Sync + 'static) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let attack = Arc::new(attack);
        let threads = (0..threads).map(|_| {
            let (stop, count, attack) = (Arc::clone(&stop), Arc::clone(&count), Arc::clone(&attack));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    attack(count.fetch_add(1, Ordering::Relaxed));
                }
            })
        });
        let threads = threads.collect();
        Self { stop, count, threads }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let _ = thread.join();
        }
        self.count.load(Ordering::Relaxed)
    }
}

fn run(scale: &Scale) -> ExitCode {
    let mut failures = Vec::new();
    let mut must = |what: &str, holds: bool| {
        if !holds {
            failures.push(what.to_owned());
        }
    };

    // Idle sessions.
    let served = Served::start();
    let first = served.log_in(0);
    let before = served.resident_kib();
    let idle = Idle::sessions((1..=scale.sessions).map(|number| served.log_in(number)).collect());
    let each = (served.resident_kib() - before) as f64 / scale.sessions as f64;
    let (begin, cpu) = (Instant::now(), served.cpu());
    thread::sleep(scale.idle);
    let cpu = (served.cpu() - cpu).as_secs_f64() / begin.elapsed().as_secs_f64();
    println!(
        "{} idle sessions: {each:.1} KiB each, {} threads, {:.3} % of a processor\n",
        scale.sessions,
        served.threads(),
        cpu * 100.0
    );
    must("an idle session takes less than 8 KiB", each < 8.0);
    must("idle sessions take less than 1 % of a processor", cpu < 0.01);
    drop((idle, first, served));

    println!(
        "| beside the quiet session | memory | threads | processor | its reads: p50 / p99 / longest, us |"
    );
    println!("|---|---|---|---|---|");
    let served = Served::start();
    let mut quiet = served.log_in(0);
    let threads = served.threads();
    let alone = row("nobody", &served, &mut quiet, scale.probe);

    let idle = Idle::sessions((1..=scale.crowd).map(|number| served.log_in(number)).collect());
    let what = format!("{} idle sessions", scale.crowd);
    let crowd = row(&what, &served, &mut quiet, scale.probe);
    must(
        "10,000 sessions take less than 100 MiB",
        crowd - alone < 100 << 10,
    );
    drop(idle);

    let served = Served::start();
    let address = served.address;
    let silent: Vec<TcpStream> = (0..scale.crowd)
        .filter_map(|_| TcpStream::connect(address).ok())
        .collect();
    let mut quiet = served.log_in(0);
    let what = format!("{} connections that say nothing", silent.len());
    let half_open = row(&what, &served, &mut quiet, scale.probe);
    must(
        "silent connections take less than 20 MiB",
        half_open - alone < 20 << 10,
    );
    drop(silent);

    let login = Login {
        secret: "not-the-secret-1".to_owned(),
        ..served.login(1)
    };
    let flood = Flood::start(4, move |_| {
        let _ = Client::connect(address).authenticate(&login);
    });
    let begin = Instant::now();
    let wrong = row(
        "logins with a wrong secret, 4 at a time",
        &served,
        &mut quiet,
        scale.probe,
    );
    let each_second = flood.end() as f64 / begin.elapsed().as_secs_f64();
    println!("| ({each_second:.0} of these logins a second) | | | | |");
    must("wrong logins take less than 20 MiB", wrong - alone < 20 << 10);

    let gone = Login {
        target: served.name.replace("0001", "0002"),
        ..served.login(1)
    };
    let flood = Flood::start(4, move |_| {
        let _ = Client::connect(address).authenticate(&gone);
    });
    let begin = Instant::now();
    row(
        "logins to a target that is not there, 4 at a time",
        &served,
        &mut quiet,
        scale.probe,
    );
    let each_second = flood.end() as f64 / begin.elapsed().as_secs_f64();
    println!("| ({each_second:.0} of these logins a second) | | | | |");

    let slow: Vec<Client> = (1..=scale.sessions).map(|number| served.log_in(number)).collect();
    let slow: Vec<Client> = slow.into_iter().map(ask_and_never_read).collect();
    let what = format!("{} sessions that ask for 32 MiB each, as they do", slow.len());
    row(&what, &served, &mut quiet, Duration::ZERO);
    let what = format!(
        "{} sessions that have asked for 32 MiB each and never read",
        slow.len()
    );
    let unread = row(&what, &served, &mut quiet, scale.probe);
    must(
        "data that nobody reads takes less than 1.5 GiB",
        unread - alone < 3 << 19,
    );
    must(
        "the number of threads is always the same",
        served.threads() == threads,
    );
    drop(slow);

    for failure in &failures {
        println!("\nFAILED: {failure}");
    }
    match failures.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Sends 128 reads of 256 KiB and leaves it at that. What this side's kernel would take is not to be measured: it is
/// another host's, outside this machine.
fn ask_and_never_read(mut client: Client) -> Client {
    let socket = socket2::SockRef::from(&client.socket);
    socket.set_recv_buffer_size(64 << 10).expect("a socket");
    for number in 0..128 {
        let read = client.command_pdu(&cdb10(0x28, number % 64 * 512, 512), 256 << 10, 0xc1, &[]);
        client.send(&read);
    }
    client
}
