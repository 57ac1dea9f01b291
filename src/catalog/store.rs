//! The catalog's file: tables in redb, batches of changes, reads.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quarry_contract::{ShareId, ShareSnapshotId, ShareVersion, SnapshotId, VolumeId};
use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageBackend,
    StorageError, Table, TableDefinition,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::CatalogError;
use super::record::{
    AttachmentId, AttachmentRecord, ExportStateRecord, Moment, ObjectRecord, OperationId, OperationRecord,
    Progress, ShareRecord,
};

type Key = [u8; 16];

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const VOLUMES: TableDefinition<Key, &[u8]> = TableDefinition::new("volumes");
const SNAPSHOTS: TableDefinition<Key, &[u8]> = TableDefinition::new("snapshots");
const ATTACHMENTS: TableDefinition<Key, &[u8]> = TableDefinition::new("attachments");
/// (volume, attachment), for G4.
const ATTACHMENTS_BY_VOLUME: TableDefinition<(Key, Key), ()> = TableDefinition::new("attachments_by_volume");
const OPERATIONS: TableDefinition<Key, &[u8]> = TableDefinition::new("operations");
/// The operations that have not ended, so that a start need not read the whole journal.
const OPEN_OPERATIONS: TableDefinition<Key, ()> = TableDefinition::new("open_operations");
/// The caller's name for a call, and its operation.
const REQUESTS: TableDefinition<&str, Key> = TableDefinition::new("requests");

/// What the target is to remember of a volume's export.
const EXPORT_STATES: TableDefinition<Key, &[u8]> = TableDefinition::new("export_states");

/// The volumes that have been attached, deleted ones too: hosts know them by names that no other may have (G5).
const ATTACHED_ONCE: TableDefinition<Key, ()> = TableDefinition::new("attached_once");

/// What is kept of shares, and of snapshots of shares.
const SHARES: TableDefinition<Key, &[u8]> = TableDefinition::new("shares");
const SHARE_SNAPSHOTS: TableDefinition<Key, &[u8]> = TableDefinition::new("share_snapshots");

/// The pools that were in use, and their identities.
const POOLS: TableDefinition<&str, Key> = TableDefinition::new("pools");

/// The format of the tables above.
const FORMAT: u64 = 1;
/// The version of the records in them (G2).
const RECORD_VERSION: u16 = 1;

/// How long an ended operation is kept, in milliseconds: 24 hours.
const KEPT_MS: u64 = 24 * 60 * 60 * 1000;

/// One change of the catalog; see [`Catalog::commit`].
#[derive(Debug, Clone)]
pub enum Change {
    /// Writes what is kept of a volume.
    PutVolume(VolumeId, ObjectRecord),
    /// Forgets a volume.
    RemoveVolume(VolumeId),
    /// Writes what is kept of a snapshot.
    PutSnapshot(SnapshotId, ObjectRecord),
    /// Forgets a snapshot.
    RemoveSnapshot(SnapshotId),
    /// Writes an attachment.
    PutAttachment(AttachmentId, AttachmentRecord),
    /// Forgets an attachment.
    RemoveAttachment(AttachmentId),
    /// Writes what the target is to remember of a volume's export.
    PutExportState(VolumeId, ExportStateRecord),
    /// Forgets what the target was to remember.
    RemoveExportState(VolumeId),
    /// Writes what is kept of a share or a snapshot of one.
    PutShare(ShareVersion, ShareRecord),
    /// Forgets a share or a snapshot of one.
    RemoveShare(ShareVersion),
    /// Remembers which pool is in use under a name.
    PutPool(String, Uuid),
    /// Writes an operation.
    PutOperation(OperationId, OperationRecord),
}

/// The catalog, open.
#[derive(Clone)]
pub struct Catalog {
    database: Arc<Database>,
    node: Uuid,
    /// Set when a write has failed: nothing can be written until the next open.
    has_failed: Arc<AtomicBool>,
}

/// What stands around every record.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u16,
    record: T,
}

fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(&Versioned {
        version: RECORD_VERSION,
        record,
    })
    .expect("records are maps of strings and numbers, which JSON holds")
}

fn decode<T: DeserializeOwned>(object: impl Fn() -> String, bytes: &[u8]) -> Result<T, CatalogError> {
    #[derive(Deserialize)]
    struct Version {
        version: u16,
    }
    let damaged = |detail: String| CatalogError::Record {
        object: object(),
        detail,
    };
    let Version { version } = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
    if version > RECORD_VERSION {
        return Err(damaged(format!(
            "version {version} is newer than {RECORD_VERSION}"
        )));
    }
    let versioned: Versioned<T> = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
    Ok(versioned.record)
}

impl Catalog {
    /// Opens the catalog at `path`, making an empty one when there is none. Recovery after a crash is part of
    /// it.
    ///
    /// # Errors
    /// When the file is in use, damaged, of a newer format, or the operating system refuses it.
    pub fn open(path: &Path) -> Result<Self, CatalogError> {
        let file_error = |source| CatalogError::File {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(file_error)?;
        // The mode of a file that somebody else has copied here.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(file_error)?;
        let backend = FileBackend::new(file).map_err(|e| open_error(path, e))?;
        Self::open_on(backend, path)
    }

    /// Opens the catalog on any storage; `path` is for the errors.
    pub(crate) fn open_on(storage: impl StorageBackend, path: &Path) -> Result<Self, CatalogError> {
        let database = Builder::new()
            .create_with_backend(storage)
            .map_err(|e| open_error(path, e))?;
        let node = prepare(&database, path)?;
        Ok(Self {
            database: Arc::new(database),
            node,
            has_failed: Arc::default(),
        })
    }

    /// Returns the agent's identity, made when the catalog was.
    pub fn node(&self) -> Uuid {
        self.node
    }

    /// Tells whether a write has failed since the open. Calls that change something fail until the next one.
    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::SeqCst)
    }

    /// Makes a batch of changes durable, all of them or none (G1). It is finished even when the caller stops
    /// waiting.
    ///
    /// # Errors
    /// When the write fails; whether the batch is there is known after the next open only.
    pub async fn commit(&self, changes: Vec<Change>) -> Result<(), CatalogError> {
        let database = Arc::clone(&self.database);
        let write = move || commit_now(&database, &changes);
        tokio::task::spawn_blocking(write)
            .await
            .map_err(|_| CatalogError::Closed)?
    }

    /// Does the same on the caller's thread, which must not be one of the runtime's.
    ///
    /// # Errors
    /// As [`Catalog::commit`].
    pub fn commit_blocking(&self, changes: &[Change]) -> Result<(), CatalogError> {
        commit_now(&self.database, changes)
    }

    /// Returns what the target is to remember of a volume's export.
    ///
    /// # Errors
    /// When the read fails or the record is damaged.
    pub fn export_state(&self, volume: VolumeId) -> Result<Option<ExportStateRecord>, CatalogError> {
        self.get(EXPORT_STATES, volume.0, || {
            format!("the export of volume {volume}")
        })
    }

    /// Tells whether a volume with this id has ever been attached, whatever has become of it (G5).
    ///
    /// # Errors
    /// When the read fails.
    pub fn was_attached(&self, volume: VolumeId) -> Result<bool, CatalogError> {
        let read = self.database.begin_read().map_err(CatalogError::io)?;
        let table = read.open_table(ATTACHED_ONCE).map_err(CatalogError::io)?;
        let found = table.get(volume.0.into_bytes()).map_err(CatalogError::io)?;
        Ok(found.is_some())
    }

    /// Returns the volumes that have ever been attached, in order, whatever has become of them (G5).
    ///
    /// # Errors
    /// When the read fails.
    pub fn ever_attached(&self) -> Result<Vec<VolumeId>, CatalogError> {
        let read = self.database.begin_read().map_err(CatalogError::io)?;
        let table = read.open_table(ATTACHED_ONCE).map_err(CatalogError::io)?;
        let mut volumes = Vec::new();
        for entry in table.iter().map_err(CatalogError::io)? {
            let volume = entry.map_err(CatalogError::io)?.0.value();
            volumes.push(VolumeId(Uuid::from_bytes(volume)));
        }
        Ok(volumes)
    }

    /// Returns the pools that were in use, by name, with their identities.
    ///
    /// # Errors
    /// When the read fails.
    pub fn pools(&self) -> Result<BTreeMap<String, Uuid>, CatalogError> {
        let read = self.database.begin_read().map_err(CatalogError::io)?;
        let table = read.open_table(POOLS).map_err(CatalogError::io)?;
        let mut pools = BTreeMap::new();
        for entry in table.iter().map_err(CatalogError::io)? {
            let (name, uuid) = entry.map_err(CatalogError::io)?;
            pools.insert(name.value().to_owned(), Uuid::from_bytes(uuid.value()));
        }
        Ok(pools)
    }

    /// Returns what is kept of a volume.
    ///
    /// # Errors
    /// When the read fails or the record is damaged.
    pub fn volume(&self, id: VolumeId) -> Result<Option<ObjectRecord>, CatalogError> {
        self.get(VOLUMES, id.0, || format!("volume {id}"))
    }

    /// Returns what is kept of a snapshot.
    ///
    /// # Errors
    /// When the read fails or the record is damaged.
    pub fn snapshot(&self, id: SnapshotId) -> Result<Option<ObjectRecord>, CatalogError> {
        self.get(SNAPSHOTS, id.0, || format!("snapshot {id}"))
    }

    /// Returns what is kept of a share or a snapshot of one.
    ///
    /// # Errors
    /// When the read fails or the record is damaged.
    pub fn share(&self, version: ShareVersion) -> Result<Option<ShareRecord>, CatalogError> {
        let (table, id) = share_key(version);
        self.get(table, id, || version.to_string())
    }

    /// Returns the shares and snapshots of shares that have rules or take their share's.
    ///
    /// # Errors
    /// When a read fails or a record is damaged.
    pub fn shares_with_access(&self) -> Result<Vec<(ShareVersion, ShareRecord)>, CatalogError> {
        let has_access = |_, record: &ShareRecord| record.inherits || !record.rules.is_empty();
        let shares = self.page(SHARES, None, usize::MAX, "share", has_access)?;
        let snapshots = self.page(SHARE_SNAPSHOTS, None, usize::MAX, "share snapshot", has_access)?;
        let share = |(id, record)| (ShareVersion::Share(ShareId(id)), record);
        let snapshot = |(id, record)| (ShareVersion::Snapshot(ShareSnapshotId(id)), record);
        Ok(shares
            .into_iter()
            .map(share)
            .chain(snapshots.into_iter().map(snapshot))
            .collect())
    }

    /// Returns an attachment.
    ///
    /// # Errors
    /// When the read fails or the record is damaged.
    pub fn attachment(&self, id: AttachmentId) -> Result<Option<AttachmentRecord>, CatalogError> {
        self.get(ATTACHMENTS, id.0, || format!("attachment {id}"))
    }

    /// Returns the attachments of a volume, ordered by id.
    ///
    /// # Errors
    /// When a read fails or a record is damaged.
    pub fn attachments_of(
        &self,
        volume: VolumeId,
    ) -> Result<Vec<(AttachmentId, AttachmentRecord)>, CatalogError> {
        let volume = volume.0.into_bytes();
        let read = self.database.begin_read().map_err(CatalogError::io)?;
        let index = read.open_table(ATTACHMENTS_BY_VOLUME).map_err(CatalogError::io)?;
        let table = read.open_table(ATTACHMENTS).map_err(CatalogError::io)?;
        let range = (volume, [0; 16])..=(volume, [0xff; 16]);
        let mut found = Vec::new();
        for entry in index.range(range).map_err(CatalogError::io)? {
            let key = entry.map_err(CatalogError::io)?.0.value().1;
            let id = AttachmentId(Uuid::from_bytes(key));
            let object = || format!("attachment {id}");
            let value = table
                .get(key)
                .map_err(CatalogError::io)?
                .ok_or_else(|| CatalogError::Record {
                    object: object(),
                    detail: "it is in the index and not in the table".into(),
                })?;
            found.push((id, decode(object, value.value())?));
        }
        Ok(found)
    }

    /// Returns attachments ordered by id: those after `after`, at most `limit`, that `wanted` accepts.
    ///
    /// # Errors
    /// When a read fails or a record is damaged.
    pub fn attachments(
        &self,
        after: Option<AttachmentId>,
        limit: usize,
        wanted: impl Fn(&AttachmentRecord) -> bool,
    ) -> Result<Vec<(AttachmentId, AttachmentRecord)>, CatalogError> {
        let page = self.page(ATTACHMENTS, after.map(|id| id.0), limit, "attachment", |_, r| {
            wanted(r)
        })?;
        Ok(page
            .into_iter()
            .map(|(id, record)| (AttachmentId(id), record))
            .collect())
    }

    /// Returns an operation.
    ///
    /// # Errors
    /// When the read fails or the record is damaged.
    pub fn operation(&self, id: OperationId) -> Result<Option<OperationRecord>, CatalogError> {
        self.get(OPERATIONS, id.0, || format!("operation {id}"))
    }

    /// Returns operations, oldest first: those after `after`, at most `limit`, that `wanted` accepts.
    ///
    /// # Errors
    /// When a read fails or a record is damaged.
    pub fn operations(
        &self,
        after: Option<OperationId>,
        limit: usize,
        wanted: impl Fn(&OperationRecord) -> bool,
    ) -> Result<Vec<(OperationId, OperationRecord)>, CatalogError> {
        let page = self.page(OPERATIONS, after.map(|id| id.0), limit, "operation", |_, r| {
            wanted(r)
        })?;
        Ok(page
            .into_iter()
            .map(|(id, record)| (OperationId(id), record))
            .collect())
    }

    /// Returns the operations that have not ended, oldest first.
    ///
    /// # Errors
    /// When a read fails or a record is damaged.
    pub fn open_operations(&self) -> Result<Vec<(OperationId, OperationRecord)>, CatalogError> {
        let read = self.database.begin_read().map_err(CatalogError::io)?;
        let open = read.open_table(OPEN_OPERATIONS).map_err(CatalogError::io)?;
        let table = read.open_table(OPERATIONS).map_err(CatalogError::io)?;
        let mut found = Vec::new();
        for entry in open.iter().map_err(CatalogError::io)? {
            let key = entry.map_err(CatalogError::io)?.0.value();
            let id = OperationId(Uuid::from_bytes(key));
            if let Some(value) = table.get(key).map_err(CatalogError::io)? {
                found.push((id, decode(|| format!("operation {id}"), value.value())?));
            }
        }
        Ok(found)
    }

    /// Returns the operation that a caller named so, when it is remembered.
    ///
    /// # Errors
    /// When a read fails or the record is damaged.
    pub fn request(&self, name: &str) -> Result<Option<(OperationId, OperationRecord)>, CatalogError> {
        let read = self.database.begin_read().map_err(CatalogError::io)?;
        let requests = read.open_table(REQUESTS).map_err(CatalogError::io)?;
        let Some(key) = requests.get(name).map_err(CatalogError::io)? else {
            return Ok(None);
        };
        let id = OperationId(Uuid::from_bytes(key.value()));
        Ok(self.operation(id)?.map(|record| (id, record)))
    }

    /// Forgets operations that ended more than 24 hours before `now` (G3).
    ///
    /// # Errors
    /// When the write fails.
    pub async fn forget_old_operations(&self, now: Moment) -> Result<u64, CatalogError> {
        let database = Arc::clone(&self.database);
        let write = move || forget_before(&database, Moment(now.0.saturating_sub(KEPT_MS)));
        tokio::task::spawn_blocking(write)
            .await
            .map_err(|_| CatalogError::Closed)?
    }

    fn get<T: DeserializeOwned>(
        &self,
        table: TableDefinition<Key, &[u8]>,
        id: Uuid,
        object: impl Fn() -> String,
    ) -> Result<Option<T>, CatalogError> {
        let read = self.database.begin_read().map_err(CatalogError::io)?;
        let table = read.open_table(table).map_err(CatalogError::io)?;
        match table.get(id.into_bytes()).map_err(CatalogError::io)? {
            Some(value) => decode(object, value.value()).map(Some),
            None => Ok(None),
        }
    }

    fn page<T: DeserializeOwned>(
        &self,
        table: TableDefinition<Key, &[u8]>,
        after: Option<Uuid>,
        limit: usize,
        kind: &str,
        wanted: impl Fn(Uuid, &T) -> bool,
    ) -> Result<Vec<(Uuid, T)>, CatalogError> {
        let read = self.database.begin_read().map_err(CatalogError::io)?;
        let table = read.open_table(table).map_err(CatalogError::io)?;
        let first = after.map_or([0; 16], Uuid::into_bytes);
        let mut found = Vec::new();
        for entry in table.range(first..).map_err(CatalogError::io)? {
            if found.len() == limit {
                break;
            }
            let (key, value) = entry.map_err(CatalogError::io)?;
            let id = Uuid::from_bytes(key.value());
            if Some(id) == after {
                continue;
            }
            let record = decode(|| format!("{kind} {id}"), value.value())?;
            if wanted(id, &record) {
                found.push((id, record));
            }
        }
        Ok(found)
    }
}

fn share_key(version: ShareVersion) -> (TableDefinition<'static, Key, &'static [u8]>, Uuid) {
    match version {
        ShareVersion::Share(id) => (SHARES, id.0),
        ShareVersion::Snapshot(id) => (SHARE_SNAPSHOTS, id.0),
    }
}

fn open_error(path: &Path, error: DatabaseError) -> CatalogError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => CatalogError::InUse { path },
        DatabaseError::Storage(StorageError::Io(source)) if source.kind() != io::ErrorKind::InvalidData => {
            CatalogError::File { path, source }
        }
        other => CatalogError::Damaged {
            path,
            source: Box::new(other.into()),
        },
    }
}

/// Makes the tables of a new catalog, checks the format of an old one, and returns the agent's identity.
fn prepare(database: &Database, path: &Path) -> Result<Uuid, CatalogError> {
    let mut write = database.begin_write().map_err(CatalogError::io)?;
    write.set_two_phase_commit(true);
    let node = {
        let mut meta = write.open_table(META).map_err(CatalogError::io)?;
        let found = meta
            .get("format")
            .map_err(CatalogError::io)?
            .map(|value| value.value().to_vec());
        match found.as_deref().map(|bytes| number(bytes, path)).transpose()? {
            Some(found) if found > FORMAT => {
                return Err(CatalogError::NewerFormat {
                    path: path.to_owned(),
                    found,
                    known: FORMAT,
                });
            }
            Some(_) => {}
            None => {
                meta.insert("format", FORMAT.to_le_bytes().as_slice())
                    .map_err(CatalogError::io)?;
            }
        }
        let known = meta
            .get("node")
            .map_err(CatalogError::io)?
            .map(|value| value.value().to_vec());
        match known.and_then(|bytes| Uuid::from_slice(&bytes).ok()) {
            Some(node) => node,
            None => {
                let node = Uuid::new_v4();
                meta.insert("node", node.as_bytes().as_slice())
                    .map_err(CatalogError::io)?;
                node
            }
        }
    };
    for table in [
        VOLUMES,
        SNAPSHOTS,
        ATTACHMENTS,
        OPERATIONS,
        EXPORT_STATES,
        SHARES,
        SHARE_SNAPSHOTS,
    ] {
        write.open_table(table).map_err(CatalogError::io)?;
    }
    {
        let by_volume = write
            .open_table(ATTACHMENTS_BY_VOLUME)
            .map_err(CatalogError::io)?;
        let mut attached = write.open_table(ATTACHED_ONCE).map_err(CatalogError::io)?;
        // A catalog from before there was this table.
        if attached.is_empty().map_err(CatalogError::io)? {
            for entry in by_volume.iter().map_err(CatalogError::io)? {
                let (volume, _) = entry.map_err(CatalogError::io)?.0.value();
                attached.insert(volume, ()).map_err(CatalogError::io)?;
            }
        }
    }
    write.open_table(OPEN_OPERATIONS).map_err(CatalogError::io)?;
    write.open_table(REQUESTS).map_err(CatalogError::io)?;
    write.open_table(POOLS).map_err(CatalogError::io)?;
    write.commit().map_err(CatalogError::io)?;
    Ok(node)
}

fn number(bytes: &[u8], path: &Path) -> Result<u64, CatalogError> {
    let bytes: [u8; 8] = bytes.try_into().map_err(|_| CatalogError::Record {
        object: format!("the format of {}", PathBuf::from(path).display()),
        detail: format!("{} bytes where 8 belong", bytes.len()),
    })?;
    Ok(u64::from_le_bytes(bytes))
}

fn commit_now(database: &Database, changes: &[Change]) -> Result<(), CatalogError> {
    let mut write = database.begin_write().map_err(CatalogError::io)?;
    // Two phases: a torn commit is told from a whole one without relying on the checksum alone.
    write.set_two_phase_commit(true);
    {
        let mut volumes = write.open_table(VOLUMES).map_err(CatalogError::io)?;
        let mut snapshots = write.open_table(SNAPSHOTS).map_err(CatalogError::io)?;
        let mut attachments = write.open_table(ATTACHMENTS).map_err(CatalogError::io)?;
        let mut by_volume = write
            .open_table(ATTACHMENTS_BY_VOLUME)
            .map_err(CatalogError::io)?;
        let mut attached = write.open_table(ATTACHED_ONCE).map_err(CatalogError::io)?;
        let mut operations = write.open_table(OPERATIONS).map_err(CatalogError::io)?;
        let mut open = write.open_table(OPEN_OPERATIONS).map_err(CatalogError::io)?;
        let mut requests = write.open_table(REQUESTS).map_err(CatalogError::io)?;
        let mut pools = write.open_table(POOLS).map_err(CatalogError::io)?;
        let mut exports = write.open_table(EXPORT_STATES).map_err(CatalogError::io)?;
        let mut shares = write.open_table(SHARES).map_err(CatalogError::io)?;
        let mut share_snapshots = write.open_table(SHARE_SNAPSHOTS).map_err(CatalogError::io)?;
        for change in changes {
            match change {
                Change::PutPool(name, uuid) => {
                    pools
                        .insert(name.as_str(), uuid.into_bytes())
                        .map_err(CatalogError::io)?;
                }
                Change::PutShare(ShareVersion::Share(id), record) => put(&mut shares, id.0, record)?,
                Change::PutShare(ShareVersion::Snapshot(id), record) => {
                    put(&mut share_snapshots, id.0, record)?;
                }
                Change::RemoveShare(ShareVersion::Share(id)) => remove(&mut shares, id.0)?,
                Change::RemoveShare(ShareVersion::Snapshot(id)) => remove(&mut share_snapshots, id.0)?,
                Change::PutExportState(id, record) => put(&mut exports, id.0, record)?,
                Change::RemoveExportState(id) => remove(&mut exports, id.0)?,
                Change::PutVolume(id, record) => put(&mut volumes, id.0, record)?,
                Change::RemoveVolume(id) => remove(&mut volumes, id.0)?,
                Change::PutSnapshot(id, record) => put(&mut snapshots, id.0, record)?,
                Change::RemoveSnapshot(id) => remove(&mut snapshots, id.0)?,
                Change::PutAttachment(id, record) => {
                    put(&mut attachments, id.0, record)?;
                    let key = (record.volume.0.into_bytes(), id.0.into_bytes());
                    by_volume.insert(key, ()).map_err(CatalogError::io)?;
                    attached.insert(key.0, ()).map_err(CatalogError::io)?;
                }
                Change::RemoveAttachment(id) => {
                    let key = id.0.into_bytes();
                    let removed = attachments.remove(key).map_err(CatalogError::io)?;
                    if let Some(value) = removed {
                        let object = || format!("attachment {id}");
                        let record: AttachmentRecord = decode(object, value.value())?;
                        by_volume
                            .remove((record.volume.0.into_bytes(), key))
                            .map_err(CatalogError::io)?;
                    }
                }
                Change::PutOperation(id, record) => {
                    put(&mut operations, id.0, record)?;
                    let key = id.0.into_bytes();
                    match record.progress {
                        Progress::Running => open.insert(key, ()).map_err(CatalogError::io)?,
                        _ => open.remove(key).map_err(CatalogError::io)?,
                    };
                    // Only what has succeeded, and was answered, answers for a repeated call.
                    if let (Progress::Succeeded { .. }, Some(name), false) =
                        (&record.progress, &record.request_id, record.recovered)
                    {
                        requests.insert(name.as_str(), key).map_err(CatalogError::io)?;
                    }
                }
            }
        }
    }
    write.commit().map_err(CatalogError::io)
}

fn put<T: Serialize>(table: &mut Table<'_, Key, &[u8]>, id: Uuid, record: &T) -> Result<(), CatalogError> {
    table
        .insert(id.into_bytes(), encode(record).as_slice())
        .map_err(CatalogError::io)?;
    Ok(())
}

fn remove(table: &mut Table<'_, Key, &[u8]>, id: Uuid) -> Result<(), CatalogError> {
    table.remove(id.into_bytes()).map_err(CatalogError::io)?;
    Ok(())
}

fn forget_before(database: &Database, limit: Moment) -> Result<u64, CatalogError> {
    let mut write = database.begin_write().map_err(CatalogError::io)?;
    write.set_two_phase_commit(true);
    let mut forgotten = Vec::new();
    {
        let mut operations = write.open_table(OPERATIONS).map_err(CatalogError::io)?;
        for entry in operations.iter().map_err(CatalogError::io)? {
            let (key, value) = entry.map_err(CatalogError::io)?;
            let id = Uuid::from_bytes(key.value());
            let record: OperationRecord = decode(|| format!("operation {id}"), value.value())?;
            // Ids sort by time of creation: from here on everything is younger.
            if record.created >= limit {
                break;
            }
            if record.ended.is_some_and(|ended| ended < limit) {
                forgotten.push((key.value(), record.request_id));
            }
        }
        let mut requests = write.open_table(REQUESTS).map_err(CatalogError::io)?;
        for (key, name) in &forgotten {
            operations.remove(key).map_err(CatalogError::io)?;
            if let Some(name) = name {
                let is_its_own = requests
                    .get(name.as_str())
                    .map_err(CatalogError::io)?
                    .is_some_and(|v| v.value() == *key);
                if is_its_own {
                    requests.remove(name.as_str()).map_err(CatalogError::io)?;
                }
            }
        }
    }
    if forgotten.is_empty() {
        write.abort().map_err(CatalogError::io)?;
    } else {
        write.commit().map_err(CatalogError::io)?;
    }
    Ok(forgotten.len() as u64)
}

#[cfg(test)]
mod tests;
