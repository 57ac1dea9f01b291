//! `quarry pool check|repair|stat|dump FILE`: looks into a pool's file or block device that no agent has open.
//!
//! The one part of the command line that asks no agent, but for `check --pool`. Everything but `repair` opens the medium for reading only;
//! all of it takes the pool's lock, so nobody changes the pool meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};
use quarry_thin::{
    Access, BitmapSource, DeviceSet, Discarded, FileDevice, FileDeviceError, IoMode, LogBatch, OpenOptions,
    Pool, PoolError, assemble, repair,
};
use serde::Serialize;
use uuid::Uuid;

use super::answer::{Answer, show_text};
use super::argument::parse_id;
use super::failure::{Exit, Failure, with_causes};
use super::findings::Findings;
use crate::size::show_size;

/// The verbs that take a file.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check a pool: its file while no agent has it open, or by its agent while it is in use
    #[command(after_help = "\
Every checksum is verified, and that every chunk and map page has exactly one owner. Nothing is written, but that a pool
in use writes again what it has in memory and finds damaged on its devices.
Exit codes: 0 sound, 5 something is wrong with it, 1 it cannot be checked.")]
    Check(CheckArgs),
    /// Put right what a check finds, as far as the pool says itself what belongs where
    #[command(after_help = "\
Put right: superblock copies, map pages of which one copy is left, the chunk bitmap, the chunk table; and from the
chunk table map pages of which no copy is left. What can only be guessed is named and left as it is. Make a copy of the
file first when the disk under it is failing.
Exit codes: 0 nothing is left, 5 something is left, 1 it cannot be repaired.")]
    Repair(RepairArgs),
    /// Show the figures of a pool file that no agent has open
    Stat(FileArgs),
    /// Show a structure of a pool file as it lies on the medium (docs/formats/pool.md)
    Dump(DumpArgs),
}

/// Which file.
#[derive(Debug, Args)]
pub struct FileArgs {
    /// The pool's file or block device
    file: PathBuf,
}

/// What to repair.
#[derive(Debug, Args)]
pub struct RepairArgs {
    /// The pool's file or block device
    file: PathBuf,
    /// Also make map pages below which something was discarded: it holds again what it held before
    #[arg(long)]
    discarded_may_come_back: bool,
}

/// What to check.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The pool's file or block device
    #[arg(required_unless_present = "pool")]
    file: Option<PathBuf>,
    /// The name of a pool that the agent has open: it is checked while it is in use
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    pool: Option<String>,
}

/// The options of `quarry pool dump`.
#[derive(Debug, Args)]
pub struct DumpArgs {
    /// The pool's file or block device
    file: PathBuf,
    /// Which structure
    #[arg(long, value_enum, default_value = "versions")]
    what: Structure,
    /// With --what map: the volume or snapshot
    #[arg(long, value_name = "UUID", value_parser = parse_id, required_if_eq("what", "map"))]
    id: Option<Uuid>,
}

/// What can be dumped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Structure {
    /// The four copies of the superblock
    Superblocks,
    /// Volumes, snapshots and what is left of deleted ones
    Versions,
    /// Which chunks a volume or snapshot maps, as runs
    Map,
    /// The chunks that hold only some of their blocks, and who lends them the others
    Partials,
    /// The batches that the next start applies
    Log,
}

impl Command {
    /// Returns the pool to ask an agent about; all else asks none.
    pub fn pool(&self) -> Option<&String> {
        match self {
            Command::Check(args) => args.pool.as_ref(),
            Command::Repair(_) | Command::Stat(_) | Command::Dump(_) => None,
        }
    }

    /// Tells whether an agent has to be asked.
    pub fn asks_agent(&self) -> bool {
        self.pool().is_some()
    }
}

/// Runs one verb on a file.
pub fn run(command: Command) -> Result<Answer, Failure> {
    match command {
        Command::Check(args) => check(&args.file.expect("clap requires a file or a pool")),
        Command::Repair(args) => repair_file(&args),
        Command::Stat(args) => stat(&args.file),
        Command::Dump(args) => dump(&args),
    }
}

fn check(file: &Path) -> Result<Answer, Failure> {
    let findings = findings(file, Access::ReadOnly, Discarded::StaysAway)?;
    Ok(findings.of_check(&file.display().to_string()))
}

fn repair_file(args: &RepairArgs) -> Result<Answer, Failure> {
    let discarded = match args.discarded_may_come_back {
        true => Discarded::MayComeBack,
        false => Discarded::StaysAway,
    };
    let findings = findings(&args.file, Access::ReadWrite, discarded)?;
    Ok(findings.of_repair(&args.file.display().to_string()))
}

fn findings(file: &Path, access: Access, discarded: Discarded) -> Result<Findings, Failure> {
    let device = open_device(file, access)?;
    let report = repair(&device, &OpenOptions::default(), access, discarded)
        .map_err(|error| pool_failure(file, &error))?;
    Ok(Findings {
        found: report.found,
        remaining: report.remaining,
        rebuilt: report.rebuilt,
    })
}

/// The figures as JSON.
#[derive(Serialize)]
struct StatRecord {
    uuid: String,
    generation: u64,
    device_bytes: u64,
    data_start_bytes: u64,
    chunk_bytes: u64,
    chunks: u64,
    data_chunks: u64,
    partial_chunks: u64,
    orphan_chunks: u64,
    key_chunks: u64,
    metadata_chunks: u64,
    free_chunks: u64,
    metadata_pages: u64,
    log_bytes: u64,
    log_used_bytes: u64,
    volume_count: u64,
    snapshot_count: u64,
    dead_version_count: u64,
    checksummed_version_count: u64,
    chunk_table_complete: bool,
}

fn stat(file: &Path) -> Result<Answer, Failure> {
    let stat = open_pool(file)?.stat();
    let record = StatRecord {
        uuid: stat.uuid.to_string(),
        generation: stat.generation,
        device_bytes: stat.device_bytes,
        data_start_bytes: stat.data_start_bytes,
        chunk_bytes: stat.chunk_bytes,
        chunks: stat.chunks,
        data_chunks: stat.data_chunks,
        partial_chunks: stat.partial_chunks,
        orphan_chunks: stat.orphan_chunks,
        key_chunks: stat.key_chunks,
        metadata_chunks: stat.metadata_chunks,
        free_chunks: stat.free_chunks,
        metadata_pages: stat.metadata_pages,
        log_bytes: stat.log_bytes,
        log_used_bytes: stat.log_used_bytes,
        volume_count: stat.volumes,
        snapshot_count: stat.snapshots,
        dead_version_count: stat.dead_versions,
        checksummed_version_count: stat.checksummed_versions,
        chunk_table_complete: stat.is_table_complete,
    };
    let chunks = |count: u64| format!("{count} ({})", show_size(count * stat.chunk_bytes));
    let properties = vec![
        ("uuid", record.uuid.clone()),
        ("checkpoints", stat.generation.to_string()),
        ("size", show_size(stat.device_bytes)),
        ("data begins at", show_size(stat.data_start_bytes)),
        ("chunk", show_size(stat.chunk_bytes)),
        ("chunks", chunks(stat.chunks)),
        ("chunks of data", chunks(stat.data_chunks)),
        ("of these partial", chunks(stat.partial_chunks)),
        ("of these orphaned lenders", chunks(stat.orphan_chunks)),
        ("of these for keys", chunks(stat.key_chunks)),
        ("chunks of map pages", chunks(stat.metadata_chunks)),
        ("free chunks", chunks(stat.free_chunks)),
        ("map pages", stat.metadata_pages.to_string()),
        ("log", show_size(stat.log_bytes)),
        ("log to apply", show_size(stat.log_used_bytes)),
        ("volumes", stat.volumes.to_string()),
        ("snapshots", stat.snapshots.to_string()),
        ("deleted, not reclaimed", stat.dead_versions.to_string()),
        ("of all with checksums", stat.checksummed_versions.to_string()),
        (
            "chunk table",
            if stat.is_table_complete {
                "complete"
            } else {
                "incomplete"
            }
            .to_owned(),
        ),
    ];
    Ok(Answer::show(properties, &record))
}

fn dump(args: &DumpArgs) -> Result<Answer, Failure> {
    match args.what {
        Structure::Superblocks => Ok(superblocks(&*open_pool(&args.file)?)),
        Structure::Versions => Ok(versions(&*open_pool(&args.file)?)),
        Structure::Map => map(args),
        Structure::Partials => Ok(partials(&*open_pool(&args.file)?)),
        Structure::Log => log(&args.file),
    }
}

#[derive(Serialize)]
struct SuperblockRecord {
    copy: usize,
    offset_bytes: u64,
    generation: Option<u64>,
    problem: Option<String>,
}

fn superblocks(pool: &Pool) -> Answer {
    let records: Vec<_> = pool
        .superblock_copies()
        .into_iter()
        .map(|copy| SuperblockRecord {
            copy: copy.copy,
            offset_bytes: copy.offset_bytes,
            generation: copy.generation.as_ref().ok().copied(),
            problem: copy.generation.err(),
        })
        .collect();
    let row = |record: &SuperblockRecord| {
        vec![
            record.copy.to_string(),
            record.offset_bytes.to_string(),
            or_dash(record.generation),
            show_text(record.problem.as_deref().unwrap_or_default()),
        ]
    };
    Answer::list(
        &["COPY", "OFFSET", "GENERATION", "PROBLEM"],
        records.iter().map(row).collect(),
        &records,
    )
}

#[derive(Serialize)]
struct VersionRecord {
    node: u64,
    kind: &'static str,
    id: String,
    dead: bool,
    parent: Option<u64>,
    depth: u32,
    source_id: Option<String>,
    size_bytes: u64,
    mapped_chunks: u64,
    own_chunks: i64,
    reap_cursor: u64,
    checksums: bool,
}

fn versions(pool: &Pool) -> Answer {
    let records: Vec<_> = pool
        .version_rows()
        .into_iter()
        .map(|row| VersionRecord {
            node: row.node,
            kind: row.kind,
            id: row.uuid.to_string(),
            dead: row.dead,
            parent: row.parent,
            depth: row.depth,
            source_id: row.source.map(|id| id.to_string()),
            size_bytes: row.size_bytes,
            mapped_chunks: row.mapped_chunks,
            own_chunks: row.own_chunks,
            reap_cursor: row.reap_cursor,
            checksums: row.checksums,
        })
        .collect();
    let row = |record: &VersionRecord| {
        vec![
            record.node.to_string(),
            format!("{}{}", record.kind, if record.dead { " (deleted)" } else { "" }),
            record.id.clone(),
            or_dash(record.parent),
            record.depth.to_string(),
            show_size(record.size_bytes),
            record.mapped_chunks.to_string(),
            record.own_chunks.to_string(),
        ]
    };
    Answer::list(
        &["NODE", "KIND", "ID", "PARENT", "DEPTH", "SIZE", "MAPPED", "OWN"],
        records.iter().map(row).collect(),
        &records,
    )
}

#[derive(Serialize)]
struct RunRecord {
    index: u64,
    chunk: u64,
    count: u64,
    birth: u32,
}

fn map(args: &DumpArgs) -> Result<Answer, Failure> {
    let id = args.id.expect("clap requires --id with --what map");
    let runs = open_pool(&args.file)?
        .map_runs(id)
        .map_err(|error| pool_failure(&args.file, &error))?;
    let Some(runs) = runs else {
        let message = format!("{} has no volume or snapshot {id}", args.file.display());
        return Err(Failure::new(Exit::NotFound, message)
            .with_next_step("quarry pool dump FILE --what versions shows what there is"));
    };
    let records: Vec<_> = runs
        .iter()
        .map(|run| RunRecord {
            index: run.index,
            chunk: run.chunk,
            count: run.count,
            birth: run.birth,
        })
        .collect();
    let row = |run: &RunRecord| {
        [run.index, run.chunk, run.count, u64::from(run.birth)]
            .map(|number| number.to_string())
            .into()
    };
    Ok(Answer::list(
        &["INDEX", "CHUNK", "COUNT", "BIRTH"],
        records.iter().map(row).collect(),
        &records,
    ))
}

#[derive(Serialize)]
struct PartialRecord {
    chunk: u64,
    lender: Option<u64>,
    lender_is_orphan: bool,
    own_blocks: Vec<BlockRun>,
}

#[derive(Serialize)]
struct BlockRun {
    first: u64,
    count: u64,
}

fn partials(pool: &Pool) -> Answer {
    let records: Vec<_> = pool
        .partial_chunks()
        .into_iter()
        .map(|partial| PartialRecord {
            chunk: partial.chunk,
            lender: partial.lender,
            lender_is_orphan: partial.lender_is_orphan,
            own_blocks: partial
                .own_blocks
                .into_iter()
                .map(|run| BlockRun {
                    first: run.start,
                    count: run.end - run.start,
                })
                .collect(),
        })
        .collect();
    let show_run = |run: &BlockRun| match run.count {
        1 => run.first.to_string(),
        count => format!("{}-{}", run.first, run.first + count - 1),
    };
    let row = |record: &PartialRecord| {
        let orphan = if record.lender_is_orphan { " (orphan)" } else { "" };
        let own: Vec<String> = record.own_blocks.iter().map(show_run).collect();
        vec![
            record.chunk.to_string(),
            or_dash(record.lender) + orphan,
            own.join(" "),
        ]
    };
    Answer::list(
        &["CHUNK", "LENDER", "OWN BLOCKS"],
        records.iter().map(row).collect(),
        &records,
    )
}

#[derive(Serialize)]
struct BatchRecord {
    batch: u64,
    blocks: u64,
    records: Vec<String>,
}

fn log(file: &Path) -> Result<Answer, Failure> {
    let device = open_device(file, Access::ReadOnly)?;
    let batches = LogBatch::read_all(&*device).map_err(|error| pool_failure(file, &error))?;
    let records: Vec<_> = batches
        .into_iter()
        .map(|batch| BatchRecord {
            batch: batch.number,
            blocks: batch.blocks,
            records: batch.records,
        })
        .collect();
    let rows = records.iter().flat_map(|batch| {
        let row = |record: &String| vec![batch.batch.to_string(), record.clone()];
        batch.records.iter().map(row)
    });
    Ok(Answer::list(&["BATCH", "RECORD"], rows.collect(), &records))
}

fn or_dash(number: Option<u64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

/// Opens a pool's file and the other devices that the pool is on.
fn open_device(file: &Path, access: Access) -> Result<Arc<DeviceSet>, Failure> {
    let open = |path: &Path| match access {
        Access::ReadOnly => FileDevice::open_read_only(path),
        Access::ReadWrite => FileDevice::open(path, IoMode::Threads),
    };
    match open(file) {
        Ok(device) => assemble(Arc::new(device), file, open).map_err(|error| pool_failure(file, &error)),
        Err(error @ FileDeviceError::NotFound { .. }) => {
            Err(Failure::new(Exit::NotFound, with_causes(&error)))
        }
        Err(error) => Err(Failure::new(Exit::Failed, with_causes(&error))),
    }
}

fn open_pool(file: &Path) -> Result<Arc<Pool>, Failure> {
    let device = open_device(file, Access::ReadOnly)?;
    let options = OpenOptions {
        access: Access::ReadOnly,
        bitmap: BitmapSource::Stored,
        ..OpenOptions::default()
    };
    Pool::open_set(device, options).map_err(|error| pool_failure(file, &error))
}

fn pool_failure(file: &Path, error: &PoolError) -> Failure {
    let exit = match error {
        PoolError::Damaged { .. } => Exit::Damaged,
        _ => Exit::Failed,
    };
    Failure::new(exit, format!("{}: {}", file.display(), with_causes(error)))
}
