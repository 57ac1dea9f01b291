//! `quarry pool check|repair|stat|dump` on the file of a stopped agent.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use quarry_contract::{
    DataSource, Durability, OpenMode, SnapshotId, SnapshotSpec, VersionId, VolumeId, VolumeSpec,
};
use quarry_thin::{FileDevice, FormatOptions, IoMode, OpenOptions as PoolOptions, Pool, PoolDevice};
use serde_json::Value;

use crate::agent_process::{AgentProcess, pool_file};
use crate::command;
use crate::initiator::attach;

/// Runs `quarry pool VERB FILE MORE -o json`.
fn pool(verb: &str, file: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quarry"))
        .args(["-o", "json", "pool", verb])
        .arg(file)
        .args(more)
        .output()
        .unwrap()
}

/// Reads what a command printed and checks what it exited with.
fn answer(output: &Output, code: i32) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_stopped_pool_is_looked_into_damaged_found_and_put_right() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("agent");
    let agent = AgentProcess::start_with(&dir, &["--dev-pool-size", "256MiB"]);
    let file = pool_file(&dir);
    // Its agent checks it, and a copy that has rotted meanwhile is found.
    let by_agent = |code: i32| {
        let ran = command::quarry(&agent, "pool check --pool default -o json");
        assert_eq!(ran.code(), code, "{}", ran.stderr());
        serde_json::from_str::<Value>(&ran.stdout()).unwrap()
    };
    assert_eq!(by_agent(0)["sound"], true);
    let medium = OpenOptions::new().read(true).write(true).open(&file).unwrap();
    medium.write_all_at(&[0xff; 4096], 4096).unwrap();
    medium.sync_all().unwrap();
    let findings = by_agent(5);
    assert!(
        findings["found"][0].as_str().unwrap().contains("superblock"),
        "{findings}"
    );
    // The pool has written it anew.
    assert_eq!(by_agent(0)["sound"], true);
    assert_eq!(command::quarry(&agent, "pool check --pool nope").code(), 3);

    let volume = command::volume(&agent, "64MiB");
    let attached = attach(&agent, volume);
    attached.qemu_io(&["write -P 0x31 0 4M", "flush"]).unwrap();
    let snapshot = command::snapshot(&agent, volume);
    attached.qemu_io(&["write -P 0x32 1M 64k", "flush"]).unwrap();

    // While the agent has it, nobody else looks at it, and the message says who has it.
    let output = pool("check", &file, &[]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&format!("process {}", agent.pid())), "{said}");
    // A checkpoint takes the log in when the pool has had nothing to do for a second.
    command::volume(&agent, "64MiB");
    agent.kill();

    // Killed with records in its log, and sound.
    let before = std::fs::read(&file).unwrap();
    let findings = answer(&pool("check", &file, &[]), 0);
    assert_eq!(findings["sound"], true);
    let stat = answer(&pool("stat", &file, &[]), 0);
    assert_eq!(
        (&stat["volume_count"], &stat["snapshot_count"]),
        (&2.into(), &1.into())
    );
    assert_eq!(
        stat["data_chunks"], 65,
        "4 MiB and a chunk that is not shared any more"
    );
    assert!(stat["log_used_bytes"].as_u64().unwrap() > 0);
    let log = answer(&pool("dump", &file, &["--what", "log"]), 0);
    assert!(log.to_string().contains("CreateVolume"), "{log}");
    let versions = answer(&pool("dump", &file, &[]), 0);
    assert_eq!(versions.as_array().unwrap().len(), 3, "{versions}");
    let map = |id: &str| answer(&pool("dump", &file, &["--what", "map", "--id", id]), 0);
    let of_volume = map(&volume.to_string());
    let total = |map: &Value| -> u64 {
        let runs = map.as_array().unwrap().iter();
        runs.map(|run| run["count"].as_u64().unwrap()).sum()
    };
    assert_eq!((total(&of_volume), total(&map(&snapshot.to_string()))), (64, 64));
    assert!(of_volume != map(&snapshot.to_string()));
    let unknown = pool(
        "dump",
        &file,
        &["--what", "map", "--id", &uuid::Uuid::new_v4().to_string()],
    );
    assert_eq!(unknown.status.code(), Some(3));
    assert!(
        std::fs::read(&file).unwrap() == before,
        "looking at the pool has changed it"
    );

    // A superblock copy and the bitmap are damaged: found, not touched by the check, put right by the repair.
    let mut superblock = [0; 4096];
    medium.read_exact_at(&mut superblock, 0).unwrap();
    let bitmap_start = u64::from_le_bytes(superblock[112..120].try_into().unwrap());
    medium.write_all_at(&[0xff; 4096], 4096).unwrap();
    medium.write_all_at(&[0xff; 8192], bitmap_start).unwrap();
    let damaged = std::fs::read(&file).unwrap();
    let findings = answer(&pool("check", &file, &[]), 5);
    assert_eq!(findings["sound"], false);
    assert!(
        !findings["found"].as_array().unwrap().is_empty() && findings["remaining"] == Value::Array(vec![])
    );
    assert!(
        std::fs::read(&file).unwrap() == damaged,
        "the check has changed it"
    );
    let refusal = AgentProcess::try_start(&dir, &[])
        .err()
        .expect("the agent does not start");
    assert!(refusal.stderr.contains("quarry pool check"), "{}", refusal.stderr);
    answer(&pool("repair", &file, &[]), 0);
    assert_eq!(
        answer(&pool("check", &file, &[]), 0)["found"],
        Value::Array(vec![])
    );

    let _agent = AgentProcess::start(&dir);
    attached
        .qemu_io(&["read -P 0x31 0 1M", "read -P 0x32 1M 64k", "read -P 0x31 2M 2M"])
        .unwrap();
}

/// Makes a pool file as a killed agent leaves it: with a partial chunk that borrows from an orphan, and one that borrows
/// nothing.
fn leave_partial_chunks(file: &Path) {
    const CHUNK: u64 = 64 << 10;
    /// One more than a step of the background work fills.
    const CHUNKS: u64 = 33;
    let device: Arc<dyn PoolDevice> = Arc::new(FileDevice::create(file, 128 << 20, IoMode::Threads).unwrap());
    let format = FormatOptions {
        chunk_bytes: CHUNK as u32,
        ..FormatOptions::default()
    };
    Pool::format(&*device, &format).unwrap();
    let pool = Pool::open(device, PoolOptions::default()).unwrap();
    let volume = VolumeId(uuid::Uuid::from_u128(1));
    let spec = VolumeSpec::new(volume, 1 << 30, DataSource::Blank);
    pool.create_volume(&spec).unwrap();
    let handle = pool
        .open_version(VersionId::Volume(volume), OpenMode::ReadWrite)
        .unwrap();
    let write = |offset: u64, length: u64| {
        let data = vec![0x31; length as usize];
        handle.write(offset, &data, Durability::Cached).unwrap();
    };
    write(0, CHUNKS * CHUNK);
    let id = SnapshotId(uuid::Uuid::from_u128(2));
    pool.create_snapshots(&[SnapshotSpec { id, volume }]).unwrap();
    for index in 0..CHUNKS {
        write(index * CHUNK + 2 * 4096, 4096);
        write(index * CHUNK + 5 * 4096, 2 * 4096);
    }
    pool.delete_snapshot(id).unwrap();
    pool.maintain().unwrap();
    write(100 * CHUNK + 15 * 4096, 4096);
    handle.flush().unwrap();
}

#[test]
fn partial_chunks_are_counted_and_shown_with_their_lenders() {
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("killed.pool");
    leave_partial_chunks(&file);
    let stat = answer(&pool("stat", &file, &[]), 0);
    assert_eq!(
        (
            &stat["data_chunks"],
            &stat["partial_chunks"],
            &stat["orphan_chunks"]
        ),
        (&35.into(), &2.into(), &1.into()),
        "{stat}"
    );
    let partials = answer(&pool("dump", &file, &["--what", "partials"]), 0);
    let own_blocks = |lends: bool| {
        let mut rows = partials.as_array().unwrap().iter();
        let row = rows.find(|row| row["lender"].is_u64() == lends).unwrap();
        assert_eq!(row["lender_is_orphan"], lends, "{row}");
        assert!(row["chunk"].is_u64() && row["chunk"] != row["lender"], "{row}");
        row["own_blocks"].to_string()
    };
    assert_eq!(partials.as_array().unwrap().len(), 2, "{partials}");
    assert_eq!(
        own_blocks(true),
        r#"[{"count":1,"first":2},{"count":2,"first":5}]"#
    );
    assert_eq!(own_blocks(false), r#"[{"count":1,"first":15}]"#);
    let table = Command::new(env!("CARGO_BIN_EXE_quarry"))
        .args(["pool", "dump", "--what", "partials"])
        .arg(&file)
        .output()
        .unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("(orphan)") && table.contains("2 5-6"), "{table}");
    answer(&pool("check", &file, &[]), 0);
}

#[test]
fn what_is_no_pool_is_refused_with_its_name() {
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("diary.txt");
    let absent = pool("check", &file, &[]);
    assert_eq!(absent.status.code(), Some(3));
    std::fs::write(&file, "Dear diary.\n".repeat(10_000)).unwrap();
    for verb in ["check", "repair", "stat", "dump"] {
        let output = pool(verb, &file, &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{verb}: {said}");
        assert!(
            said.contains("diary.txt") && said.contains("not a Quarry pool"),
            "{verb}: {said}"
        );
    }
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        "Dear diary.\n".repeat(10_000)
    );
}
