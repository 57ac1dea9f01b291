//! Makes the target equal to the attachments: a volume is exported exactly while it has one (R5).
//!
//! Called under the volume's lock by the calls that attach and detach, by recovery, and by the retry of exports
//! that failed. What the target has been told is kept here, so that only the host that changes is touched.
//!
//! Invariants
//! - E1: a grant not known to be in place is counted as unknown, and set or taken away again the next time.
//! - E2: the device is open exactly while the volume is exported; the target's is the only handle.
//!
//! Failure: an export that cannot be made is remembered with its reason; its attachments show as degraded, and
//! [`Resources::retry_exports`] tries again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quarry_contract::{
    Absence, Access, ChapCredentials, DeviceLimits, DriverError, ExportSpec, Grant, InitiatorName, IoLimits,
    Keeper, OpenMode, Target, VersionId, VolumeId,
};
use tracing::{info, warn};

use super::Resources;
use super::error::ResourceError;
use crate::catalog::record::{AttachmentRecord, ExportStateRecord};
use crate::catalog::{Catalog, CatalogError, Change};

/// What the target has been told.
#[derive(Default)]
pub(super) struct Exports {
    states: Mutex<HashMap<VolumeId, State>>,
}

/// What the target has been told of one volume.
enum State {
    /// Exported, with these grants; `None` is one that may or may not be in place (E1).
    Up(BTreeMap<InitiatorName, Option<Grant>>),
    /// It should be exported and is not.
    Failed(String),
}

impl Exports {
    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn applied(&self, volume: VolumeId) -> Option<BTreeMap<InitiatorName, Option<Grant>>> {
        match self.lock().get(&volume) {
            Some(State::Up(applied)) => Some(applied.clone()),
            Some(State::Failed(_)) | None => None,
        }
    }

    fn note(&self, volume: VolumeId, initiator: &InitiatorName, grant: Option<Grant>) {
        if let Some(State::Up(applied)) = self.lock().get_mut(&volume) {
            applied.insert(initiator.clone(), grant);
        }
    }

    fn forget(&self, volume: VolumeId, initiator: &InitiatorName) {
        if let Some(State::Up(applied)) = self.lock().get_mut(&volume) {
            applied.remove(initiator);
        }
    }
}

/// Keeps in the catalog what the target must remember.
struct CatalogKeeper(Catalog);

impl Keeper for CatalogKeeper {
    fn keep(&self, volume: VolumeId, state: &[u8]) -> Result<(), DriverError> {
        let change = match state {
            [] => Change::RemoveExportState(volume),
            _ => Change::PutExportState(volume, ExportStateRecord::of(state)),
        };
        self.0
            .commit_blocking(&[change])
            .map_err(|error| DriverError::Internal {
                detail: format!("writing the catalog: {error}"),
            })
    }
}

/// Computes who may log in to a volume from its attachments: one grant for each host, with the most that any of
/// its attachments allows.
pub(super) fn grants_of<'a>(
    attachments: impl IntoIterator<Item = &'a AttachmentRecord>,
) -> Result<Vec<Grant>, ResourceError> {
    let mut grants: BTreeMap<InitiatorName, Grant> = BTreeMap::new();
    for record in attachments {
        let initiator = initiator_of(record)?;
        let access = Access::from(record.mode);
        let grant = grants.entry(initiator.clone()).or_insert_with(|| Grant {
            initiator,
            access,
            chap: ChapCredentials::from(&record.chap),
            target_chap: record.target_chap.as_ref().map(ChapCredentials::from),
        });
        if access == Access::ReadWrite {
            grant.access = access;
        }
    }
    Ok(grants.into_values().collect())
}

fn initiator_of(record: &AttachmentRecord) -> Result<InitiatorName, ResourceError> {
    InitiatorName::parse(&record.connector.initiator).map_err(|problem| ResourceError::Internal {
        detail: format!("a stored initiator name cannot be parsed: {problem}"),
    })
}

impl Resources {
    fn target(&self) -> &Arc<dyn Target> {
        &self.registry.target().target
    }

    /// Makes the target admit exactly these hosts to a volume. Returns the limits of the device when it was
    /// opened for this. The volume's lock is held.
    pub(super) async fn sync_export(
        &self,
        volume: VolumeId,
        wanted: Vec<Grant>,
    ) -> Result<Option<DeviceLimits>, ResourceError> {
        if wanted.is_empty() {
            self.target().unexport(volume).await?;
            self.exports.lock().remove(&volume);
            // The target forgets what it has; of an export that could not be made it has nothing.
            if self.catalog.export_state(volume)?.is_some() {
                self.catalog
                    .commit(vec![Change::RemoveExportState(volume)])
                    .await?;
            }
            return Ok(None);
        }
        match self.exports.applied(volume) {
            None => self.export(volume, wanted).await.map(Some),
            Some(applied) => self.change_grants(volume, &applied, wanted).await.map(|()| None),
        }
    }

    async fn export(&self, volume: VolumeId, grants: Vec<Grant>) -> Result<DeviceLimits, ResourceError> {
        let (pool, _) = self.existing_volume(volume).await?;
        // Read-only grants are the target's to enforce: another host may write at any time.
        let device = pool
            .backend
            .open(VersionId::Volume(volume), OpenMode::ReadWrite)
            .await?;
        let limits = device.limits();
        let kept = match self.catalog.export_state(volume)? {
            Some(record) => record.state().ok_or_else(|| CatalogError::Record {
                object: format!("the export of volume {volume}"),
                detail: "its state is not hexadecimal".to_owned(),
            })?,
            None => Vec::new(),
        };
        let applied = grants
            .iter()
            .map(|grant| (grant.initiator.clone(), Some(grant.clone())))
            .collect();
        if let Err(error) = self
            .target()
            .export(ExportSpec {
                volume,
                device,
                grants,
                limits: self.volume_record(volume)?.limits,
                kept,
                keeper: Arc::new(CatalogKeeper(self.catalog.clone())),
            })
            .await
        {
            if let Err(left) = self.target().unexport(volume).await {
                warn!(%volume, error = %left, "a failed export cannot be taken back");
            }
            return Err(error.into());
        }
        self.exports.lock().insert(volume, State::Up(applied));
        Ok(limits)
    }

    async fn change_grants(
        &self,
        volume: VolumeId,
        applied: &BTreeMap<InitiatorName, Option<Grant>>,
        wanted: Vec<Grant>,
    ) -> Result<(), ResourceError> {
        for initiator in applied.keys() {
            if !wanted.iter().any(|grant| grant.initiator == *initiator) {
                self.exports.note(volume, initiator, None);
                self.target().revoke(volume, initiator).await?;
                self.exports.forget(volume, initiator);
            }
        }
        for grant in wanted {
            let present = applied.get(&grant.initiator).and_then(Option::as_ref);
            if present == Some(&grant) {
                continue;
            }
            let initiator = grant.initiator.clone();
            self.exports.note(volume, &initiator, None);
            self.target().grant(volume, grant.clone()).await?;
            self.exports.note(volume, &initiator, Some(grant));
        }
        Ok(())
    }

    /// Tells whether a volume is exported now.
    pub(super) fn is_exported(&self, volume: VolumeId) -> bool {
        self.exports.applied(volume).is_some()
    }

    /// Returns why a volume that should be exported is not.
    pub(super) fn export_failure(&self, volume: VolumeId) -> Option<String> {
        match self.exports.lock().get(&volume) {
            Some(State::Failed(reason)) => Some(reason.clone()),
            Some(State::Up(_)) | None => None,
        }
    }

    /// Returns the volumes that should be exported and are not, with the reasons.
    pub(super) fn export_failures(&self) -> Vec<(VolumeId, String)> {
        let states = self.exports.lock();
        let mut failed: Vec<(VolumeId, String)> = states
            .iter()
            .filter_map(|(volume, state)| match state {
                State::Failed(reason) => Some((*volume, reason.clone())),
                State::Up(_) => None,
            })
            .collect();
        failed.sort_unstable();
        failed
    }

    /// Makes the target keep a volume to these limits, when it is exported.
    pub(super) async fn apply_limits(&self, volume: VolumeId, limits: IoLimits) -> Result<(), ResourceError> {
        if self.is_exported(volume) {
            self.target().set_limits(volume, limits).await?;
        }
        Ok(())
    }

    /// Tells initiators the size of a volume, when it is exported.
    pub(super) async fn announce_size(&self, volume: VolumeId) -> Result<(), ResourceError> {
        if self.is_exported(volume) {
            self.target().size_changed(volume).await?;
        }
        Ok(())
    }

    /// Exports a volume as its attachments say. A failure is remembered and returned as `false`.
    pub(super) async fn restore_export(&self, volume: VolumeId) -> Result<bool, ResourceError> {
        let _held = self.locks.take([volume.into()]).await?;
        let attachments = self.catalog.attachments_of(volume)?;
        let grants = grants_of(attachments.iter().map(|(_, record)| record))?;
        match self.sync_export(volume, grants).await {
            Ok(_) => Ok(true),
            Err(error) => {
                let reason = error.to_string();
                // Said once, however often it is tried again.
                if self.export_failure(volume).as_ref() != Some(&reason) {
                    warn!(%volume, %error, "the volume cannot be exported");
                }
                self.exports.lock().insert(volume, State::Failed(reason));
                self.target().set_absent(volume, Absence::Unavailable);
                Ok(false)
            }
        }
    }

    /// Tells the target which volumes hosts have known and have no longer; `attached` they have.
    pub(super) fn recall_removed(&self, attached: &BTreeSet<VolumeId>) -> Result<(), ResourceError> {
        for volume in self.catalog.ever_attached()? {
            if !attached.contains(&volume) {
                self.target().set_absent(volume, Absence::Removed);
            }
        }
        Ok(())
    }

    /// Tries once more to make the exports that failed.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn retry_exports(&self) -> Result<(), ResourceError> {
        for (volume, _) in self.export_failures() {
            if self.restore_export(volume).await? {
                info!(%volume, "the volume is exported again");
            }
        }
        self.revive_shares().await;
        self.retry_share_exports().await;
        Ok(())
    }
}
