//! What happens at start, before the first call is answered (R2): open intents are finished or undone, then the
//! exports are rebuilt from the attachments.
//!
//! | intent | what the driver promises (V2) | what recovery does |
//! |---|---|---|
//! | create volume, take snapshots | there or not | there: writes the record; not: undone |
//! | extend | old or new size | new: counts the change; old: undone |
//! | revert | old or new contents | reverts again: nobody can have written, it is not attached |
//! | delete volume, delete snapshot | there or not | deletes again |
//! | attach, limit | the target forgets with the process | undone |
//! | detach | the same | removes the record |
//! | create share, take snapshots of shares, resize | there or not | as for volumes |
//! | revert share | old or new contents | reverts again: it is exported only after the intent is closed |
//! | delete share, delete snapshot of one | there or not | deletes again |
//! | set access | the server has one list or the other | undone: the server is made equal to the record |
//!
//! The caller has had no answer, so both ends are right for it; it repeats the call and finds out.
//!
//! Failure: an intent that cannot be settled, because its pool does not answer, stops the start: to answer calls
//! on top of half a call would be a third state.

use std::sync::Arc;

use quarry_contract::{ErrorKind, ShareVersion};
use tracing::{info, warn};

use super::error::{Object, ObjectKind, ResourceError};
use super::operations::Intent;
use super::{RecoveryReport, Resources};
use crate::catalog::Change;
use crate::catalog::record::{ObjectRecord, OperationRecord, Request, ShareRecord};

impl Resources {
    /// Settles what the process before has left, rebuilds the exports, and lets initiators in as soon as theirs are
    /// there. Called once, before any other call.
    ///
    /// # Errors
    /// When the catalog or a pool does not answer.
    pub async fn recover(self: &Arc<Self>) -> Result<RecoveryReport, ResourceError> {
        let mut report = RecoveryReport::default();
        for (id, record) in self.catalog.open_operations()? {
            let intent = Intent::left_open(&self.catalog, id, record.clone());
            if self.settle_left_open(intent, &record).await? {
                report.operations_finished += 1;
                info!(operation = %id, target = %record.request.target(), "finished after a restart");
            } else {
                report.operations_undone += 1;
                info!(operation = %id, target = %record.request.target(), "undone after a restart");
            }
        }
        let attached = self.attached_volumes()?;
        self.recall_removed(&attached)?;
        for volume in attached {
            if self.restore_export(volume).await? {
                report.exports_restored += 1;
            } else {
                report.exports_failed += 1;
            }
        }
        // Initiators that wait are not to wait for shares too.
        self.registry.accept_logins();
        let (restored, failed) = self.recover_shares().await?;
        report.exports_restored += restored;
        report.exports_failed += failed;
        if report.exports_failed > 0 {
            warn!(
                failed = report.exports_failed,
                "some exports could not be rebuilt and are retried"
            );
        }
        *self
            .recovery
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = report;
        Ok(report)
    }

    /// Finishes one intent (`true`) or undoes it (`false`).
    async fn settle_left_open(
        &self,
        mut intent: Intent,
        record: &OperationRecord,
    ) -> Result<bool, ResourceError> {
        let result = match &record.request {
            Request::CreateVolume {
                id, labels, limits, ..
            } => match self.find_volume(*id).await? {
                Some(_) => {
                    let record = ObjectRecord {
                        created: Some(record.created),
                        limits: *limits,
                        ..ObjectRecord::created_now(labels.clone())
                    };
                    return finish(intent, vec![Change::PutVolume(*id, record)]).await;
                }
                None => Err(interrupted(Object::volume(id))),
            },
            Request::CreateSnapshots { members, labels } => match self.whole_group(members).await? {
                Some(_) => {
                    let record = ObjectRecord {
                        created: Some(record.created),
                        ..ObjectRecord::created_now(labels.clone())
                    };
                    let put = |id| Change::PutSnapshot(id, record.clone());
                    return finish(intent, members.iter().map(|(id, _)| put(*id)).collect()).await;
                }
                None => Err(interrupted(Object::snapshot(record.request.target()))),
            },
            Request::ExtendVolume { id, size_bytes } => match self.find_volume(*id).await? {
                Some((_, info)) if info.size_bytes == *size_bytes => {
                    let record = self.volume_record(*id)?.changed_now();
                    return finish(intent, vec![Change::PutVolume(*id, record)]).await;
                }
                _ => Err(interrupted(Object::volume(id))),
            },
            Request::ReserveVolume { id, reserved } => match self.find_volume(*id).await? {
                Some((_, info)) if info.reserved == *reserved => {
                    let record = self.volume_record(*id)?.changed_now();
                    return finish(intent, vec![Change::PutVolume(*id, record)]).await;
                }
                _ => Err(interrupted(Object::volume(id))),
            },
            Request::RevertVolume { id, snapshot } => {
                match self.revert(*id, *snapshot, None, &mut intent).await {
                    // Whether the first or this revert has changed the contents is not known: it counts.
                    Ok(_) => {
                        let record = self.volume_record(*id)?.changed_now();
                        return finish(intent, vec![Change::PutVolume(*id, record)]).await;
                    }
                    Err(error) => Err(error),
                }
            }
            Request::DeleteVolume { id, cascade } => self
                .delete(*id, *cascade, None, &mut intent)
                .await
                .map(|done| done.changes),
            Request::DeleteSnapshot { id } => self
                .remove_snapshot(*id, None, &mut intent)
                .await
                .map(|done| done.changes),
            Request::CreateAttachment { id, .. } => Err(interrupted(Object::attachment(*id))),
            Request::DeleteAttachment { id, force } => {
                let volume = self.catalog.attachment(*id)?.map(|record| record.volume);
                self.detach(*id, *force, volume, None, &mut intent)
                    .await
                    .map(|done| done.changes)
            }
            Request::CreateShare {
                id, squash, labels, ..
            }
            | Request::AdoptShare {
                id, squash, labels, ..
            } => {
                let version = ShareVersion::Share(*id);
                match self.find_share_version(version).await? {
                    Some(_) => {
                        let record = ShareRecord {
                            created: Some(record.created),
                            ..ShareRecord::created_now(labels.clone(), *squash)
                        };
                        return finish(intent, vec![Change::PutShare(version, record)]).await;
                    }
                    None => Err(interrupted(Object::share(version))),
                }
            }
            Request::CreateShareSnapshots { members, labels } => {
                match self.whole_share_group(members).await? {
                    Some(_) => {
                        let mut changes = Vec::new();
                        for (id, share) in members {
                            let record = ShareRecord {
                                created: Some(record.created),
                                ..self.record_of_snapshot(*share, labels.clone())?
                            };
                            changes.push(Change::PutShare(ShareVersion::Snapshot(*id), record));
                        }
                        return finish(intent, changes).await;
                    }
                    None => Err(interrupted(Object::new(
                        ObjectKind::ShareSnapshot,
                        record.request.target(),
                    ))),
                }
            }
            Request::ResizeShare { id, size_bytes } => {
                let version = ShareVersion::Share(*id);
                match self.find_share_version(version).await? {
                    Some((_, present)) if present == *size_bytes => {
                        let record = self.share_record(version)?.changed_now();
                        return finish(intent, vec![Change::PutShare(version, record)]).await;
                    }
                    _ => Err(interrupted(Object::share(version))),
                }
            }
            Request::RevertShare { id, snapshot } => self
                .replace_contents(*id, *snapshot, None, &mut intent)
                .await
                .map(|done| done.changes),
            Request::ReleaseShare { id, name } => self
                .give_up_share(*id, name, None, &mut intent)
                .await
                .map(|done| done.changes),
            Request::DeleteShare { id } => self
                .remove_share_version(ShareVersion::Share(*id), None, &mut intent)
                .await
                .map(|done| done.changes),
            Request::DeleteShareSnapshot { id } => self
                .remove_share_version(ShareVersion::Snapshot(*id), None, &mut intent)
                .await
                .map(|done| done.changes),
            // The exports are made equal to the records.
            Request::SetAccess { target, .. } => Err(interrupted(Object::share(*target))),
            // The exports are made anew with the limits that the record has.
            Request::LimitVolume { id, .. } => Err(interrupted(Object::volume(id))),
            // Its whole effect is in the batch that ends it.
            Request::UpdateVolume { id, .. } => Err(interrupted(Object::volume(id))),
        };
        match result {
            Ok(changes) => finish(intent, changes).await,
            Err(ResourceError::Driver(error))
                if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) =>
            {
                Err(error.into())
            }
            Err(error) => {
                intent.fail(&error).await?;
                Ok(false)
            }
        }
    }
}

async fn finish(intent: Intent, changes: Vec<Change>) -> Result<bool, ResourceError> {
    // The caller of then has gone. When it comes again under the same request id, the call runs again and finds
    // its end state.
    intent.succeed(changes, &()).await?;
    Ok(true)
}

fn interrupted(object: Object) -> ResourceError {
    ResourceError::Interrupted { object }
}
