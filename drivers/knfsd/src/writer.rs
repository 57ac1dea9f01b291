//! The table of exports, with one writer for all callers.
//!
//! Invariants
//! - K1: the file is replaced as a whole, and loading it empties what the kernel remembers. What is loaded is read back
//!   and compared, and so is what the kernel remembers after that.
//! - K2: an export that is not loaded to the letter is taken out of the table: rather nobody than somebody too many.
//! - K3: a caller that has asked waits for a writing that began after it did; callers that wait share one.
//!
//! The kernel empties its caches by a clock of whole seconds: what is older than the emptying is no longer used, at once, but
//! emptied more than once a second, the clock of the emptying runs ahead, and until time has caught up, what is no longer
//! used is kept, and keeps file systems busy. So a few writings go one after the other, and more wait for the clock, and
//! are one writing then.
//!
//! Failure: what could not be written or loaded stays asked for, and the next writing tries it again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use quarry_contract::ShareVersion;
use quarry_daemon::files;
use tokio::process::Command;
use tracing::{error, warn};

use crate::caches::Caches;
use crate::config::KnfsdConfig;
use crate::table::{self, ExportRecord, LoadedLine, folder_of, parse_loaded};

/// What `exportfs` has loaded, and `rpc.mountd` answers from.
const LOADED: &str = "/var/lib/nfs/etab";
/// What the kernel remembers.
const ADDRESS_CACHE: &str = "/proc/net/rpc/auth.unix.ip/content";
const EXPORT_CACHE: &str = "/proc/net/rpc/nfsd.export/content";
/// When it was emptied, in seconds of the machine's clock.
const EMPTIED: &str = "/proc/net/rpc/nfsd.export/flush";
/// How far the clock of the emptying may run ahead.
const AHEAD: Duration = Duration::from_secs(3);
/// From where on it is not believed.
const FAR_AHEAD: Duration = Duration::from_secs(60);
const CLOCK_PAUSE: Duration = Duration::from_millis(20);
/// How long `exportfs` may take. With tens of thousands of different clients it takes minutes.
const LOAD_DEADLINE: Duration = Duration::from_secs(300);
/// How often the caches are emptied before that is a failure, and how long after the last time they are looked at again.
const CACHE_TRIES: u32 = 10;
const CACHE_PAUSE: Duration = Duration::from_millis(20);

/// What became of a writing: what was refused, and why; or why nothing is known of any.
type Written = Result<BTreeMap<ShareVersion, String>, String>;

/// Why an export is not as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WriteError {
    /// This one, which is not exported now (K2).
    #[error("it is not loaded as it was written: {0}")]
    Refused(String),
    /// All of them.
    #[error("{0}")]
    Failed(String),
}

pub(crate) struct Writer {
    config: Arc<KnfsdConfig>,
    asked: Mutex<Asked>,
    written: tokio::sync::Mutex<LastWritten>,
}

struct Asked {
    exports: BTreeMap<ShareVersion, ExportRecord>,
    /// How often something was asked for.
    number: u64,
}

struct LastWritten {
    /// Of what was asked for, as of that number.
    number: u64,
    became: Written,
    /// The file that `exportfs` wrote: another one is somebody else's.
    loaded: Option<(u64, i64, i64)>,
}

impl Writer {
    pub(crate) fn new(config: Arc<KnfsdConfig>, exports: BTreeMap<ShareVersion, ExportRecord>) -> Self {
        Self {
            config,
            asked: Mutex::new(Asked { exports, number: 1 }),
            written: tokio::sync::Mutex::new(LastWritten {
                number: 0,
                became: Ok(BTreeMap::new()),
                loaded: None,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what is exported, ordered.
    pub(crate) fn exports(&self) -> Vec<ShareVersion> {
        self.lock().exports.keys().copied().collect()
    }

    pub(crate) fn find(&self, version: ShareVersion) -> Option<ExportRecord> {
        self.lock().exports.get(&version).cloned()
    }

    /// Returns what is loaded for an export now.
    pub(crate) fn loaded(&self, version: ShareVersion) -> io::Result<Vec<LoadedLine>> {
        let mut loaded = parse_loaded(&fs::read_to_string(LOADED)?);
        Ok(loaded.remove(&self.path(version)).unwrap_or_default())
    }

    fn path(&self, version: ShareVersion) -> PathBuf {
        self.config.root.join(folder_of(version))
    }

    /// Exports with this record, or not at all. It holds when this returns.
    pub(crate) async fn change(
        &self,
        version: ShareVersion,
        record: Option<ExportRecord>,
    ) -> Result<(), WriteError> {
        let number = {
            let mut asked = self.lock();
            match record {
                Some(record) => asked.exports.insert(version, record),
                None => asked.exports.remove(&version),
            };
            asked.number += 1;
            asked.number
        };
        let mut written = self.written.lock().await;
        if written.number < number {
            self.write(&mut written).await;
        }
        match &written.became {
            Ok(refused) => match refused.get(&version) {
                Some(why) => Err(WriteError::Refused(why.clone())),
                None => Ok(()),
            },
            Err(why) => Err(WriteError::Failed(why.clone())),
        }
    }

    /// Writes and loads all that was asked for.
    pub(crate) async fn write_all(&self) -> Result<(), WriteError> {
        let mut written = self.written.lock().await;
        self.write(&mut written).await;
        let became = written.became.as_ref();
        became.map(drop).map_err(|why| WriteError::Failed(why.clone()))
    }

    /// Ends all exports.
    pub(crate) async fn clear(&self) -> Result<(), WriteError> {
        {
            let mut asked = self.lock();
            asked.exports.clear();
            asked.number += 1;
        }
        self.write_all().await
    }

    /// Writes again when somebody else has loaded something, or the kernel remembers an answer from before.
    pub(crate) async fn look_after(&self) {
        let mut written = self.written.lock().await;
        let is_changed = written.became.is_err() || written.loaded != identity(Path::new(LOADED));
        if is_changed {
            warn!(
                "what is exported was changed beside the agent, or could not be written; it is written again"
            );
            self.write(&mut written).await;
        } else if let Err(why) = self.empty_caches(&self.wanted().1).await {
            written.became = Err(why);
        }
    }

    /// Has the kernel let go of what it no longer uses, and of the file systems it kept busy with it.
    pub(crate) async fn purge(&self) -> Result<(), WriteError> {
        let _written = self.written.lock().await;
        wait_for_clock(Duration::ZERO).await;
        self.exportfs("-f").await.map(drop).map_err(WriteError::Failed)
    }

    fn wanted(&self) -> (u64, BTreeMap<ShareVersion, ExportRecord>) {
        let asked = self.lock();
        (asked.number, asked.exports.clone())
    }

    async fn write(&self, written: &mut LastWritten) {
        let mut refused = BTreeMap::new();
        loop {
            wait_for_clock(AHEAD).await;
            let (number, wanted) = self.wanted();
            written.number = number;
            let wrong = match self.load(&wanted).await {
                Ok(wrong) => wrong,
                Err(why) => {
                    error!(why, "what is exported cannot be written");
                    written.became = Err(why);
                    return;
                }
            };
            written.loaded = identity(Path::new(LOADED));
            if wrong.is_empty() {
                written.became = self.empty_caches(&wanted).await.map(|()| refused);
                return;
            }
            // K2. What was asked for meanwhile is another record.
            let mut asked = self.lock();
            for (version, why) in wrong {
                if asked.exports.get(&version) == wanted.get(&version) {
                    asked.exports.remove(&version);
                }
                error!(%version, why, "it is not loaded as it was written, and not exported");
                refused.insert(version, why);
            }
        }
    }

    /// Writes and loads, and returns what is not loaded to the letter.
    async fn load(
        &self,
        wanted: &BTreeMap<ShareVersion, ExportRecord>,
    ) -> Result<BTreeMap<ShareVersion, String>, String> {
        let text = table::render(&self.config.root, wanted.values());
        let path = &self.config.table;
        let written = match wanted.is_empty() {
            true => files::remove(path),
            false if fs::read_to_string(path).is_ok_and(|present| present == text) => Ok(()),
            false => files::replace(path, &text),
        };
        written.map_err(|error| format!("writing {}: {error}", path.display()))?;
        let said = self.exportfs("-r").await?;
        let loaded = fs::read_to_string(LOADED).map_err(|error| format!("reading {LOADED}: {error}"))?;
        let loaded = parse_loaded(&loaded);
        let lines = |version| loaded.get(&self.path(version)).map_or(&[][..], Vec::as_slice);
        let wrong = wanted
            .values()
            .filter(|record| !record.is_loaded_as(lines(record.version)));
        Ok(wrong
            .map(|record| {
                (
                    record.version,
                    format!("{LOADED} has {:?}; {said}", lines(record.version)),
                )
            })
            .collect())
    }

    /// Empties the caches until nothing in them contradicts the table (K1).
    async fn empty_caches(&self, wanted: &BTreeMap<ShareVersion, ExportRecord>) -> Result<(), String> {
        let each = |record: &ExportRecord| (self.path(record.version), record.networks());
        let lines = wanted.values().map(each).collect();
        let mut wrong = Default::default();
        for _ in 0..CACHE_TRIES {
            let read =
                |path: &str| fs::read_to_string(path).map_err(|error| format!("reading {path}: {error}"));
            let caches = Caches::parse(&read(ADDRESS_CACHE)?, &read(EXPORT_CACHE)?);
            wrong = caches.contradictions(&self.config.root, &lines);
            if wrong.is_empty() {
                return Ok(());
            }
            self.exportfs("-f").await?;
            tokio::time::sleep(CACHE_PAUSE).await;
        }
        Err(format!(
            "the kernel goes on with answers from before for {wrong:?}"
        ))
    }

    /// Runs `exportfs`, and returns what it said. It fails, too, for lines of others in the machine's own table.
    async fn exportfs(&self, argument: &str) -> Result<String, String> {
        let program = &self.config.programs.exportfs;
        let running = Command::new(program)
            .arg(argument)
            .env("LC_ALL", "C")
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(LOAD_DEADLINE, running)
            .await
            .map_err(|_| format!("{} {argument} does not end", program.display()))?
            .map_err(|error| format!("running {}: {error}", program.display()))?;
        Ok(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "))
    }
}

/// Waits until the next emptying is at most so far ahead of time.
async fn wait_for_clock(at_most: Duration) {
    loop {
        let emptied = fs::read_to_string(EMPTIED)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        // The next is in another second than the last.
        let next = Duration::from_secs(emptied.unwrap_or(0) + 1);
        // A clock that was set back would have this wait for long.
        if next <= now + at_most || next > now + FAR_AHEAD {
            return;
        }
        tokio::time::sleep(CLOCK_PAUSE).await;
    }
}

/// Returns what tells a file from another that was put in its place.
fn identity(path: &Path) -> Option<(u64, i64, i64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}
