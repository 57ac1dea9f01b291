//! Attachments: the right of one host to reach one volume.
//!
//! Rights are counted by (volume, initiator): all attachments of one host share its credentials, and the host
//! may do the most that any of them allows. An attachment is durable before its caller has it, and gone from
//! the target before its caller hears so.
//!
//! Failure: a call that fails leaves the target as the remaining attachments say; hosts that the call is not
//! about are never touched.

use std::collections::BTreeSet;
use std::sync::Arc;

use quarry_contract::{Capability, ChapCredentials, Grant, InitiatorName, SessionInfo, VolumeId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::warn;

use super::error::{Differences, Object, ResourceError};
use super::exports::grants_of;
use super::operations::{Done, Intent};
use super::volumes::{check_generation, refuse_generation};
use super::{Attachment, AttachmentState, ConnectionInfo, Mutation, Page, Resources};
use crate::catalog::Change;
use crate::catalog::record::{
    AccessMode, AttachmentId, AttachmentRecord, ChapRecord, Connector, Labels, Moment, Request,
};

/// An attachment to make.
#[derive(Debug, Clone)]
pub struct NewAttachment {
    /// Its id.
    pub id: AttachmentId,
    /// The volume.
    pub volume: VolumeId,
    /// The host; its initiator name is parsed here.
    pub connector: Connector,
    /// What it may do.
    pub mode: AccessMode,
    /// The caller's own keys.
    pub labels: Labels,
}

/// An attachment as made, with what its connection info is computed from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MadeAttachment {
    /// The attachment.
    pub attachment: Attachment,
    record: AttachmentRecord,
}

impl Resources {
    /// Attaches a volume to a host.
    ///
    /// # Errors
    /// `NotFound` for the volume, `SpecMismatch`, `ConnectorIncomplete`, `InvalidField`, and the driver's.
    pub async fn create_attachment(
        self: &Arc<Self>,
        mut new: NewAttachment,
        mutation: Mutation,
    ) -> Result<MadeAttachment, ResourceError> {
        new.connector.initiator = parse_initiator(&new.connector.initiator)?.to_string();
        refuse_generation(&mutation)?;
        let locks = vec![new.volume.into(), new.id.into()];
        let NewAttachment {
            id,
            volume,
            connector,
            mode,
            labels,
        } = new.clone();
        let request = Request::CreateAttachment {
            id,
            volume,
            connector,
            mode,
            labels,
        };
        self.mutate(locks, request, mutation, |model, intent| {
            Box::pin(model.attach(new, intent))
        })
        .await
    }

    async fn attach(
        &self,
        new: NewAttachment,
        intent: &mut Intent,
    ) -> Result<Done<MadeAttachment>, ResourceError> {
        if let Some(record) = self.catalog.attachment(new.id)? {
            compare(&record, &new)?;
            let attachment = self.attachment_view(new.id, record.clone()).await?;
            return Ok(Done::unchanged(MadeAttachment { attachment, record }));
        }
        let (pool, _) = self.existing_volume(new.volume).await?;
        let others = self.catalog.attachments_of(new.volume)?;
        let of_host = others
            .iter()
            .find(|(_, r)| r.connector.initiator == new.connector.initiator);
        let (chap, target_chap) = match of_host {
            Some((_, record)) => (record.chap.clone(), record.target_chap.clone()),
            None => {
                let generate = |side| generate_chap(side, new.volume, &new.connector.initiator);
                let (host, target) = (generate(Side::Host)?, generate(Side::Target)?);
                (ChapRecord::from(&host), Some(ChapRecord::from(&target)))
            }
        };
        let mut record = AttachmentRecord {
            volume: new.volume,
            connector: new.connector,
            mode: new.mode,
            chap,
            target_chap,
            // Known when the device is open, below.
            logical_block_bytes: 0,
            physical_block_bytes: 0,
            discard: pool
                .backend
                .capabilities()
                .features
                .contains(&Capability::Discard),
            labels: new.labels,
            generation: 1,
            created: Moment::now(),
        };
        let before = grants_of(others.iter().map(|(_, record)| record))?;
        let after = grants_of(others.iter().map(|(_, record)| record).chain([&record]))?;

        intent.open().await?;
        let limits = match self.sync_export(new.volume, after).await {
            Ok(limits) => limits,
            Err(error) => {
                self.take_back(new.volume, before).await;
                return Err(error);
            }
        };
        (record.logical_block_bytes, record.physical_block_bytes) = match (limits, others.first()) {
            (Some(limits), _) => (limits.logical_block_bytes, limits.physical_block_bytes),
            (None, Some((_, other))) => (other.logical_block_bytes, other.physical_block_bytes),
            (None, None) => {
                let detail = format!("volume {} is exported without an attachment", new.volume);
                return Err(ResourceError::Internal { detail });
            }
        };
        let attachment = Attachment {
            id: new.id,
            volume: new.volume,
            connector: record.connector.clone(),
            mode: record.mode,
            state: AttachmentState::Ready,
            session_count: 0,
            shared_on_host: of_host.is_some(),
            labels: record.labels.clone(),
            generation: record.generation,
            created: record.created,
        };
        let changes = vec![Change::PutAttachment(new.id, record.clone())];
        Ok(Done::changed(MadeAttachment { attachment, record }, changes))
    }

    /// Makes the target again what it was before a call that failed.
    async fn take_back(&self, volume: VolumeId, before: Vec<Grant>) {
        if let Err(error) = self.sync_export(volume, before).await {
            warn!(%volume, %error, "a failed attachment cannot be taken back; the next attachment call tries again");
        }
    }

    /// Detaches; with `force`, all attachments of the host to the volume. Returns whether the host has another one.
    ///
    /// # Errors
    /// `StaleGeneration`, and the driver's.
    pub async fn delete_attachment(
        self: &Arc<Self>,
        id: AttachmentId,
        force: bool,
        mutation: Mutation,
    ) -> Result<bool, ResourceError> {
        let volume = self.catalog.attachment(id)?.map(|record| record.volume);
        let locks = [Some(id.into()), volume.map(Into::into)]
            .into_iter()
            .flatten()
            .collect();
        let if_generation = mutation.if_generation;
        let request = Request::DeleteAttachment { id, force };
        self.mutate(locks, request, mutation, move |model, intent| {
            Box::pin(model.detach(id, force, volume, if_generation, intent))
        })
        .await
    }

    /// `locked` is the volume whose lock is held.
    pub(super) async fn detach(
        &self,
        id: AttachmentId,
        force: bool,
        locked: Option<VolumeId>,
        if_generation: Option<u64>,
        intent: &mut Intent,
    ) -> Result<Done<bool>, ResourceError> {
        let Some(record) = self.catalog.attachment(id)? else {
            return Ok(Done::unchanged(false));
        };
        if Some(record.volume) != locked {
            // It was made, or made anew, between the look for its volume and the lock.
            return Err(ResourceError::InUseByOperation(Object::attachment(id)));
        }
        check_generation(Object::attachment(id), record.generation, if_generation)?;
        let of_host = |other: &AttachmentRecord| other.connector.initiator == record.connector.initiator;
        let all = self.catalog.attachments_of(record.volume)?;
        let (leaving, remaining): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|(other, r)| *other == id || force && of_host(r));
        let host_still_attached = remaining.iter().any(|(_, r)| of_host(r));
        intent.open().await?;
        self.sync_export(
            record.volume,
            grants_of(remaining.iter().map(|(_, record)| record))?,
        )
        .await?;
        Ok(Done::changed(
            host_still_attached,
            leaving
                .into_iter()
                .map(|(id, _)| Change::RemoveAttachment(id))
                .collect(),
        ))
    }

    /// Returns one attachment, without its secret.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn attachment(&self, id: AttachmentId) -> Result<Attachment, ResourceError> {
        let record = self.attachment_record(id)?;
        self.attachment_view(id, record).await
    }

    /// Returns attachments, ordered by id: of one volume or of all, of one host or of all.
    ///
    /// # Errors
    /// When the catalog or the target cannot be read.
    pub async fn attachments(
        &self,
        page: Page<AttachmentId>,
        volume: Option<VolumeId>,
        initiator: Option<InitiatorName>,
    ) -> Result<Vec<Attachment>, ResourceError> {
        let records = match volume {
            Some(volume) => {
                let mut records = self.catalog.attachments_of(volume)?;
                records.retain(|(id, record)| {
                    page.after.is_none_or(|after| *id > after) && is_host(record, initiator.as_ref())
                });
                records.truncate(page.limit);
                records
            }
            None => self.catalog.attachments(page.after, page.limit, |record| {
                is_host(record, initiator.as_ref())
            })?,
        };
        let sessions = self.registry.target().target.sessions(volume).await?;
        records
            .into_iter()
            .map(|(id, record)| self.attachment_with(id, record, &sessions))
            .collect()
    }

    /// Returns how a host reaches a volume, secrets included.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn connection_info(&self, id: AttachmentId) -> Result<ConnectionInfo, ResourceError> {
        Ok(self.connection_info_of(&self.attachment_record(id)?))
    }

    /// Returns how a host reaches the volume of an attachment just made.
    pub fn connection_info_made(&self, made: &MadeAttachment) -> ConnectionInfo {
        self.connection_info_of(&made.record)
    }

    fn connection_info_of(&self, record: &AttachmentRecord) -> ConnectionInfo {
        let target = &self.registry.target().target;
        let address = target.address_of(record.volume);
        ConnectionInfo {
            volume: record.volume,
            portals: target.portals().into_iter().map(|portal| portal.0).collect(),
            target_name: address.target_name,
            lun: address.lun,
            chap: ChapCredentials::from(&record.chap),
            target_chap: record.target_chap.as_ref().map(ChapCredentials::from),
            mode: record.mode,
            multipath: record.connector.multipath,
            enforce_multipath: record.connector.enforce_multipath,
            discard: record.discard,
            logical_block_bytes: record.logical_block_bytes,
            physical_block_bytes: record.physical_block_bytes,
        }
    }

    /// Returns the open sessions on one volume or on all, ordered by volume, initiator and handle.
    ///
    /// # Errors
    /// When the target cannot be read.
    pub async fn sessions(&self, volume: Option<VolumeId>) -> Result<Vec<SessionInfo>, ResourceError> {
        let mut sessions = self.registry.target().target.sessions(volume).await?;
        sessions
            .sort_unstable_by(|a, b| (a.volume, &a.initiator, a.tsih).cmp(&(b.volume, &b.initiator, b.tsih)));
        Ok(sessions)
    }

    /// Returns the volumes that have attachments.
    pub(super) fn attached_volumes(&self) -> Result<BTreeSet<VolumeId>, ResourceError> {
        let all = self.catalog.attachments(None, usize::MAX, |_| true)?;
        Ok(all.into_iter().map(|(_, record)| record.volume).collect())
    }

    fn attachment_record(&self, id: AttachmentId) -> Result<AttachmentRecord, ResourceError> {
        self.catalog
            .attachment(id)?
            .ok_or_else(|| ResourceError::NotFound(Object::attachment(id)))
    }

    async fn attachment_view(
        &self,
        id: AttachmentId,
        record: AttachmentRecord,
    ) -> Result<Attachment, ResourceError> {
        let sessions = self
            .registry
            .target()
            .target
            .sessions(Some(record.volume))
            .await?;
        self.attachment_with(id, record, &sessions)
    }

    fn attachment_with(
        &self,
        id: AttachmentId,
        record: AttachmentRecord,
        sessions: &[SessionInfo],
    ) -> Result<Attachment, ResourceError> {
        let is_its = |session: &&SessionInfo| {
            session.volume == record.volume && session.initiator.as_str() == record.connector.initiator
        };
        let session_count = sessions.iter().filter(is_its).count();
        let state = match self.export_failure(record.volume) {
            Some(reason) => AttachmentState::Degraded { reason },
            None if session_count > 0 => AttachmentState::Active,
            None => AttachmentState::Ready,
        };
        let others = self.catalog.attachments_of(record.volume)?;
        let shared_on_host = others
            .iter()
            .any(|(other, r)| *other != id && r.connector.initiator == record.connector.initiator);
        Ok(Attachment {
            id,
            volume: record.volume,
            connector: record.connector,
            mode: record.mode,
            state,
            session_count: u32::try_from(session_count).unwrap_or(u32::MAX),
            shared_on_host,
            labels: record.labels,
            generation: record.generation,
            created: record.created,
        })
    }
}

fn is_host(record: &AttachmentRecord, initiator: Option<&InitiatorName>) -> bool {
    initiator.is_none_or(|name| record.connector.initiator == name.as_str())
}

fn parse_initiator(text: &str) -> Result<InitiatorName, ResourceError> {
    if text.is_empty() {
        let problem = "initiator is missing; iSCSI needs the host's initiator name".to_owned();
        return Err(ResourceError::ConnectorIncomplete { problem });
    }
    InitiatorName::parse(text).map_err(|problem| ResourceError::field("connector.initiator", problem))
}

fn compare(record: &AttachmentRecord, new: &NewAttachment) -> Result<(), ResourceError> {
    let mode = |mode: AccessMode| match mode {
        AccessMode::ReadOnly => "ro",
        AccessMode::ReadWrite => "rw",
    };
    let (is, asked) = (&record.connector, &new.connector);
    let mut differences = Differences::default();
    differences.compare("volume_id", record.volume, new.volume);
    differences.compare("mode", mode(record.mode), mode(new.mode));
    differences.compare("connector.initiator", &is.initiator, &asked.initiator);
    differences.compare("connector.host", &is.host, &asked.host);
    differences.compare("connector.ip", &is.ip, &asked.ip);
    differences.compare("connector.multipath", is.multipath, asked.multipath);
    differences.compare(
        "connector.enforce_multipath",
        is.enforce_multipath,
        asked.enforce_multipath,
    );
    differences.none_or(Object::attachment(new.id))
}

/// Who proves itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// The host, to the target.
    Host,
    /// The target, to the host.
    Target,
}

/// Makes one side's credentials for one host on one volume: a user name derived from both, and a random secret of 16
/// letters and digits (95 bits; RFC 7143 9.2.1 asks for 96 bits of a secret or protection by IPsec, initiators
/// take 12 to 16 characters).
fn generate_chap(side: Side, volume: VolumeId, initiator: &str) -> Result<ChapCredentials, ResourceError> {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    const LENGTH: usize = 16;
    let mut hash = Sha256::new();
    hash.update(volume.0.as_bytes());
    hash.update(initiator.as_bytes());
    let prefix = match side {
        Side::Host => "quarry",
        Side::Target => "quarry-target",
    };
    let username = format!("{prefix}-{}", hex::encode(&hash.finalize()[..8]));

    let mut secret = String::with_capacity(LENGTH);
    while secret.len() < LENGTH {
        let mut bytes = [0; 64];
        getrandom::fill(&mut bytes).map_err(|error| ResourceError::Internal {
            detail: format!("the operating system gives no random numbers: {error}"),
        })?;
        // The largest multiple of 62 in a byte: beyond it, the first letters would be likelier.
        let fair = bytes.iter().filter(|byte| **byte < 248);
        secret.extend(
            fair.map(|byte| char::from(ALPHABET[usize::from(byte % 62)]))
                .take(LENGTH - secret.len()),
        );
    }
    Ok(ChapCredentials {
        username,
        secret: secret.into(),
    })
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn chap_secrets_are_sixteen_letters_and_digits_and_never_twice_the_same() {
        let volume = VolumeId(Uuid::from_u128(1));
        let secrets: BTreeSet<String> = (0..100)
            .map(|_| {
                generate_chap(Side::Host, volume, "iqn.2026-11.io.x")
                    .unwrap()
                    .secret
                    .expose_secret()
                    .to_owned()
            })
            .collect();
        assert_eq!(secrets.len(), 100);
        assert!(
            secrets
                .iter()
                .all(|s| s.len() == 16 && s.bytes().all(|b| b.is_ascii_alphanumeric()))
        );
        let name = |initiator| generate_chap(Side::Host, volume, initiator).unwrap().username;
        assert_eq!(name("iqn.2026-11.io.x"), name("iqn.2026-11.io.x"));
        assert_ne!(name("iqn.2026-11.io.x"), name("iqn.2026-11.io.y"));
    }
}
