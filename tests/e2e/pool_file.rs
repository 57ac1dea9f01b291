//! A pool file that is not what it should be: the agent does not start, says what is wrong with which file and
//! what to do, and leaves the file as it is. One that is cut off while the agent has it open takes no more writes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::agent_process::{AgentProcess, pool_file};
use crate::command;
use crate::initiator::{Attached, attach};

/// The size of the pool that is damaged.
const POOL_BYTES: u64 = 256 << 20;
/// A block of pool metadata.
const BLOCK: u64 = 4096;

/// A folder with a pool that holds data, and no agent.
struct Stopped {
    _temporary: tempfile::TempDir,
    dir: PathBuf,
    pool: PathBuf,
    attached: Attached,
}

impl Stopped {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("agent");
        let agent = AgentProcess::start_with(&dir, &["--dev-pool-size", &POOL_BYTES.to_string()]);
        let attached = attach(&agent, command::volume(&agent, "8MiB"));
        attached.qemu_io(&["write -P 0x71 0 1M", "flush"]).unwrap();
        agent.terminate();
        let pool = std::fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| std::fs::metadata(path).unwrap().len() == POOL_BYTES)
            .expect("a pool file in the agent's folder");
        Self {
            _temporary: temporary,
            dir,
            pool,
            attached,
        }
    }

    /// Starts the agent, which must refuse, and returns what it said.
    fn refusal(&self) -> String {
        let before = fingerprint(&self.pool);
        let refusal = AgentProcess::try_start(&self.dir, &[])
            .err()
            .expect("the agent must not start");
        assert!(!refusal.status.success());
        assert!(
            refusal.status.code().is_some(),
            "the agent crashed: {}",
            refusal.stderr
        );
        assert!(!refusal.stderr.contains("panicked"), "{}", refusal.stderr);
        let name = self.pool.to_string_lossy().into_owned();
        assert!(
            refusal.stderr.contains(&name),
            "no file name in: {}",
            refusal.stderr
        );
        assert!(fingerprint(&self.pool) == before, "the refused file was changed");
        refusal.stderr
    }

    fn open(&self) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.pool)
            .unwrap()
    }

    /// Changes every copy of the superblock in the same way, and makes its checksum right again.
    fn rewrite_superblocks(&self, change: impl Fn(&mut [u8])) {
        let file = self.open();
        for at in superblocks() {
            let mut block = [0u8; BLOCK as usize];
            file.read_exact_at(&mut block, at).unwrap();
            assert_eq!(
                &block[..8],
                b"QRYTHIN\0",
                "docs/formats/pool.md has moved the superblock"
            );
            change(&mut block);
            block[12..16].fill(0);
            let crc = crc32c::crc32c(&block);
            block[12..16].copy_from_slice(&crc.to_le_bytes());
            file.write_all_at(&block, at).unwrap();
        }
    }
}

fn fingerprint(path: &Path) -> (u64, u32) {
    let content = std::fs::read(path).unwrap();
    (content.len() as u64, crc32c::crc32c(&content))
}

/// Where the copies of the superblock are (docs/formats/pool.md, "Superblock").
fn superblocks() -> [u64; 4] {
    [0, BLOCK, POOL_BYTES - 2 * BLOCK, POOL_BYTES - BLOCK]
}

#[test]
fn a_truncated_pool_is_refused() {
    let stopped = Stopped::new();
    stopped.open().set_len(POOL_BYTES / 2).unwrap();
    let said = stopped.refusal();
    assert!(said.contains("truncated") || said.contains("shorter"), "{said}");
    stopped.open().set_len(0).unwrap();
    stopped.refusal();
}

#[test]
fn a_foreign_file_is_refused_and_not_formatted() {
    let stopped = Stopped::new();
    let text = "This is somebody's diary.\n".repeat(50_000);
    std::fs::write(&stopped.pool, &text).unwrap();
    let said = stopped.refusal();
    assert!(
        said.contains("not a Quarry pool") || said.contains("not a pool") || said.contains("no pool"),
        "{said}"
    );
    assert_eq!(std::fs::read_to_string(&stopped.pool).unwrap(), text);
}

#[test]
fn a_pool_of_a_newer_format_is_refused_and_the_version_is_named() {
    let stopped = Stopped::new();
    stopped.rewrite_superblocks(|block| block[8..12].copy_from_slice(&77u32.to_le_bytes()));
    let said = stopped.refusal();
    assert!(said.contains("77") && said.contains("newer"), "{said}");
}

#[test]
fn a_pool_with_an_unknown_incompatible_feature_is_refused_and_the_bit_is_named() {
    let stopped = Stopped::new();
    // The last of the incompat bits.
    stopped.rewrite_superblocks(|block| block[63] |= 0x80);
    let said = stopped.refusal();
    assert!(
        said.contains("0x8000000000000000") && said.contains("newer"),
        "{said}"
    );
}

#[test]
fn a_pool_with_an_unknown_read_only_feature_is_served_for_reading_and_the_bit_is_named() {
    let stopped = Stopped::new();
    // The last of the ro_compat bits.
    stopped.rewrite_superblocks(|block| block[55] |= 0x80);
    let before = fingerprint(&stopped.pool);
    let agent = AgentProcess::start(&stopped.dir);
    stopped.attached.qemu_io(&["read -P 0x71 0 1M"]).unwrap();
    let written = stopped.attached.qemu_io(&["write -P 0x72 0 64k"]);
    assert!(written.is_err(), "{written:?}");
    let said = command::refused(&agent, "volume create --size 8MiB", 4);
    assert!(said.contains("0x8000000000000000"), "{said}");
    let pool = command::json(&agent, "pool show default");
    assert!(pool.to_string().contains("0x8000000000000000"), "{pool}");
    agent.terminate();
    assert!(fingerprint(&stopped.pool) == before, "the pool was changed");
}

#[test]
fn a_pool_with_all_superblocks_damaged_is_refused() {
    let stopped = Stopped::new();
    for at in superblocks() {
        stopped.open().write_all_at(&[0xff; 64], at + 100).unwrap();
    }
    let said = stopped.refusal();
    assert!(said.contains("damaged") || said.contains("corrupt"), "{said}");
}

#[test]
fn a_pool_with_one_damaged_superblock_starts_and_has_its_data() {
    let stopped = Stopped::new();
    stopped.open().write_all_at(&[0xff; BLOCK as usize], 0).unwrap();
    let _agent = AgentProcess::start(&stopped.dir);
    stopped.attached.qemu_io(&["read -P 0x71 0 1M"]).unwrap();
}

#[test]
fn a_pool_file_that_is_gone_is_not_replaced_by_an_empty_one() {
    let stopped = Stopped::new();
    let aside = stopped.pool.with_extension("aside");
    std::fs::rename(&stopped.pool, &aside).unwrap();
    let refusal = AgentProcess::try_start(&stopped.dir, &[])
        .err()
        .expect("the agent must not make an empty pool in place of one that has attachments");
    let name = stopped.pool.to_string_lossy().into_owned();
    assert!(refusal.stderr.contains(&name), "{}", refusal.stderr);
    std::fs::rename(&aside, &stopped.pool).unwrap();
    let _agent = AgentProcess::start(&stopped.dir);
    stopped.attached.qemu_io(&["read -P 0x71 0 1M"]).unwrap();
}

#[test]
fn a_pool_that_is_cut_off_while_it_is_used_takes_no_writes_says_why_and_goes_on_when_it_is_whole_again() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("agent");
    let agent = AgentProcess::start_with(&dir, &["--dev-pool-size", &POOL_BYTES.to_string()]);
    let attached = attach(&agent, command::volume(&agent, "8MiB"));
    attached.qemu_io(&["write -P 0x71 0 1M", "flush"]).unwrap();
    let pool = pool_file(&dir);
    let file = OpenOptions::new().write(true).open(&pool).unwrap();
    file.set_len(POOL_BYTES / 2).unwrap();

    let complaint = attached.qemu_io(&["write -P 0x72 1M 1M", "flush"]).unwrap_err();
    assert!(complaint.contains("Input/output error"), "{complaint}");
    attached.qemu_io(&["read -P 0x71 0 1M"]).unwrap();
    let refused = command::refused(&agent, "volume create --size 8MiB", 4);
    let why = format!("{} has been cut off", pool.display());
    assert!(refused.contains(&why), "{refused}");
    let node = command::json(&agent, "node show");
    assert_eq!(node["health"]["state"], "degraded");
    let problem = node["health"]["problems"][0].as_str().unwrap();
    assert!(
        problem.contains("takes no writes") && problem.contains(&why),
        "{problem}"
    );
    assert_eq!(command::json(&agent, "pool list")[0]["state"], "read_only");

    // What was cut off held nothing but copies.
    file.set_len(POOL_BYTES).unwrap();
    agent.kill();
    let agent = AgentProcess::start(&dir);
    attached.qemu_io(&["read -P 0x71 0 1M"]).unwrap();
    attached
        .qemu_io(&["write -P 0x72 1M 1M", "flush", "read -P 0x72 1M 1M"])
        .unwrap();
    command::quarry(&agent, "pool check --pool default");
    let checked = command::quarry(&agent, "pool check --pool default");
    assert_eq!(checked.code(), 0, "copies are written anew: {}", checked.stdout());
}
