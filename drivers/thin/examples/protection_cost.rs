//! What encryption and checksums cost: the same I/O on a plain volume of a pool, on an encrypted one and on one with checksums,
//! by turns, from one thread, with the background work of the pool beside it.
//!
//! `protection_cost PATH [ROUNDS] [MILLISECONDS]`: PATH is created and removed; in /dev/shm no disk is in the way. Prints
//! the medians of the rounds, and the cipher alone.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{UsageWho, getrusage};
use quarry_contract::{
    BlockDevice, DataSource, Durability, IoBuffer, OpenMode, Request, Tag, Verb, VersionId, VolumeId,
    VolumeKey, VolumeSpec,
};
use quarry_thin::{
    FileDevice, FormatOptions, IoMode, Maintainer, OpenOptions, Pool, PoolDevice, VersionHandle,
    VolumeDevice, Workers,
};
use uuid::Uuid;

const VOLUME_BYTES: u64 = 512 << 20;

#[derive(Debug, Clone, Copy)]
struct Job {
    name: &'static str,
    writes: bool,
    bytes: usize,
    depth: usize,
}

const fn job(name: &'static str, writes: bool, bytes: usize, depth: usize) -> Job {
    Job {
        name,
        writes,
        bytes,
        depth,
    }
}

const JOBS: [Job; 8] = [
    job("r4k-q1", false, 4 << 10, 1),
    job("w4k-q1", true, 4 << 10, 1),
    job("r4k-q32", false, 4 << 10, 32),
    job("w4k-q32", true, 4 << 10, 32),
    job("r64k-q8", false, 64 << 10, 8),
    job("w64k-q8", true, 64 << 10, 8),
    job("r1m-q4", false, 1 << 20, 4),
    job("w1m-q4", true, 1 << 20, 4),
];

/// What one run came to.
#[derive(Debug, Clone, Copy)]
struct Figures {
    per_second: f64,
    cpu_us: f64,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, rest @ ..] = arguments.as_slice() else {
        bail!("usage: protection_cost PATH [ROUNDS] [MILLISECONDS]");
    };
    let rounds: usize = rest.first().map_or(Ok(5), |text| text.parse())?;
    let length = Duration::from_millis(rest.get(1).map_or(Ok(500), |text| text.parse())?);
    let path = Path::new(path);
    let device: Arc<dyn PoolDevice> = Arc::new(FileDevice::create(path, 4 << 30, IoMode::Auto)?);
    let outcome = measure_all(device, rounds, length);
    std::fs::remove_file(path)?;
    outcome
}

fn measure_all(device: Arc<dyn PoolDevice>, rounds: usize, length: Duration) -> anyhow::Result<()> {
    Pool::format(device.as_ref(), &FormatOptions::default())?;
    let pool = Pool::open(device, OpenOptions::default())?;
    let handles = [
        filled(&pool, 1, Kind::Plain)?,
        filled(&pool, 2, Kind::Encrypted)?,
        filled(&pool, 3, Kind::Checksums)?,
    ];
    while pool.maintain()?.more {}
    cipher(&handles[1], length)?;
    let _maintainer = Maintainer::start(Arc::clone(&pool))?;
    let workers = Workers::new();
    let volumes =
        handles.map(|handle| -> Arc<dyn BlockDevice> { VolumeDevice::new(handle, Arc::clone(&workers)) });
    println!(
        "| job | plain /s | CPU us | encrypted: ratio | CPU us | checksums: ratio | CPU us |\n|---|---|---|---|---|---|---|"
    );
    for job in JOBS {
        let mut figures = [const { Vec::new() }; 3];
        for _ in 0..rounds {
            for (volume, figures) in volumes.iter().zip(&mut figures) {
                figures.push(run(volume, job, length)?);
            }
        }
        let [plain, encrypted, checksums] = &figures;
        let ratio = |other: &[Figures]| {
            let rounds = plain.iter().zip(other);
            median(rounds.map(|(plain, other)| other.per_second / plain.per_second))
        };
        let cpu = |figures: &[Figures]| median(figures.iter().map(|one| one.cpu_us));
        println!(
            "| {} | {:.0} | {:.1} | {:.2} | {:.1} | {:.2} | {:.1} |",
            job.name,
            median(plain.iter().map(|one| one.per_second)),
            cpu(plain),
            ratio(encrypted),
            cpu(encrypted),
            ratio(checksums),
            cpu(checksums),
        );
    }
    Ok(())
}

/// How a volume is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Encrypted,
    Checksums,
}

fn filled(pool: &Arc<Pool>, number: u128, kind: Kind) -> anyhow::Result<Arc<VersionHandle>> {
    let id = VolumeId(Uuid::from_u128(number));
    let spec = VolumeSpec {
        checksums: kind == Kind::Checksums,
        ..VolumeSpec::new(id, VOLUME_BYTES, DataSource::Blank)
    };
    match kind {
        Kind::Encrypted => pool.create_encrypted_volume(&spec, &VolumeKey::new([7; 32]))?,
        Kind::Plain | Kind::Checksums => pool.create_volume(&spec)?,
    };
    let handle = pool.open_version(VersionId::Volume(id), OpenMode::ReadWrite)?;
    let megabyte = vec![0xA5; 1 << 20];
    for at in (0..VOLUME_BYTES).step_by(megabyte.len()) {
        handle.write(at, &megabyte, Durability::Cached)?;
    }
    handle.flush()?;
    Ok(handle)
}

/// The cipher without any I/O.
fn cipher(handle: &VersionHandle, length: Duration) -> anyhow::Result<()> {
    for bytes in [4 << 10, 1 << 20] {
        let mut buffer = vec![0xA5u8; bytes];
        let mut speed = |work: &dyn Fn(&mut [u8])| {
            let begin = Instant::now();
            let mut times = 0u32;
            while begin.elapsed() < length {
                work(&mut buffer);
                times += 1;
            }
            f64::from(times) * bytes as f64 / begin.elapsed().as_secs_f64() / 1e9
        };
        let encrypted = speed(&|bytes| handle.encrypt(0, bytes));
        let decrypted = speed(&|bytes| handle.decrypt(0, bytes));
        println!("{bytes} bytes at once: encrypted at {encrypted:.2} GB/s, decrypted at {decrypted:.2} GB/s");
    }
    println!();
    Ok(())
}

fn run(volume: &Arc<dyn BlockDevice>, job: Job, length: Duration) -> anyhow::Result<Figures> {
    let mut queue = Arc::clone(volume).open_queue(job.depth as u32)?;
    let mut free: Vec<IoBuffer> = (0..job.depth)
        .map(|_| IoBuffer::from_slice(&vec![0x5A; job.bytes]))
        .collect();
    let mut completions = Vec::new();
    let mut random = 0x9E37_79B9_7F4A_7C15u64;
    let mut finished = 0u64;
    let (started, cpu_before) = (Instant::now(), cpu_seconds()?);
    let mut running = true;
    while running || free.len() < job.depth {
        if running && !free.is_empty() {
            for buffer in free.drain(..) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let offset = random % (VOLUME_BYTES / job.bytes as u64) * job.bytes as u64;
                let verb = match job.writes {
                    true => Verb::Write {
                        offset,
                        buffer,
                        durability: Durability::Cached,
                    },
                    false => Verb::Read { offset, buffer },
                };
                let request = Request { tag: Tag(0), verb };
                queue.submit(request).ok().context("the depth is kept")?;
            }
            queue.kick();
        }
        queue.reap(&mut completions);
        if completions.is_empty() {
            let mut fds = [PollFd::new(queue.wake_fd(), PollFlags::POLLIN)];
            // EINTR only leads to another look.
            let _ = poll(&mut fds, PollTimeout::from(1000u16));
        }
        for completion in completions.drain(..) {
            completion.result?;
            free.extend(completion.buffer);
            finished += 1;
        }
        running = started.elapsed() < length;
    }
    Ok(Figures {
        per_second: finished as f64 / started.elapsed().as_secs_f64(),
        cpu_us: (cpu_seconds()? - cpu_before) * 1e6 / finished as f64,
    })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn cpu_seconds() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}
