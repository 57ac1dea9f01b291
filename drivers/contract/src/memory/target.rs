//! A target that nobody can log in to: it keeps the books of exports and grants and no more.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use super::lock;
use crate::{
    Absence, BlockDevice, DriverError, ExportInfo, ExportSpec, Grant, InitiatorName, IoLimits, Keeper,
    Outcome, Portal, SessionInfo, Target, VolumeId,
};

/// A target in memory. It has no sessions, so what the contract says of them holds because there are none.
#[derive(Default)]
pub struct MemoryTarget {
    exports: Mutex<BTreeMap<VolumeId, Export>>,
    absent: Mutex<BTreeMap<VolumeId, Absence>>,
}

struct Export {
    device: Arc<dyn BlockDevice>,
    grants: BTreeMap<InitiatorName, Grant>,
    limits: IoLimits,
    announced_bytes: u64,
    kept: Vec<u8>,
    keeper: Arc<dyn Keeper>,
}

impl MemoryTarget {
    /// Makes a target without exports.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns what is exported, ordered.
    pub fn exports(&self) -> Vec<VolumeId> {
        lock(&self.exports).keys().copied().collect()
    }

    /// Returns the grants of an export, ordered by initiator; `None` when the volume is not exported.
    pub fn grants(&self, volume: VolumeId) -> Option<Vec<Grant>> {
        let exports = lock(&self.exports);
        exports
            .get(&volume)
            .map(|export| export.grants.values().cloned().collect())
    }

    /// Returns the limits of an export; `None` when the volume is not exported.
    pub fn limits(&self, volume: VolumeId) -> Option<IoLimits> {
        lock(&self.exports).get(&volume).map(|export| export.limits)
    }

    /// Returns the size that initiators were last told, in bytes; `None` when the volume is not exported.
    pub fn announced_bytes(&self, volume: VolumeId) -> Option<u64> {
        lock(&self.exports)
            .get(&volume)
            .map(|export| export.announced_bytes)
    }
}

impl MemoryTarget {
    /// Returns what an initiator would be told of a volume that is not exported (T9).
    pub fn absence(&self, volume: VolumeId) -> Option<Absence> {
        lock(&self.absent).get(&volume).copied()
    }

    /// Returns what the target remembers of an export; `None` when the volume is not exported.
    pub fn kept(&self, volume: VolumeId) -> Option<Vec<u8>> {
        lock(&self.exports).get(&volume).map(|export| export.kept.clone())
    }

    /// Has something kept of an export, as an initiator's command would.
    ///
    /// # Errors
    /// When the volume is not exported, or it cannot be kept.
    pub fn keep(&self, volume: VolumeId, state: &[u8]) -> Result<(), DriverError> {
        let mut exports = lock(&self.exports);
        let export = exports.get_mut(&volume).ok_or_else(|| not_exported(volume))?;
        export.keeper.keep(volume, state)?;
        export.kept = state.to_vec();
        Ok(())
    }
}

fn not_exported(volume: VolumeId) -> DriverError {
    DriverError::NotFound {
        object: format!("the export of volume {volume}"),
    }
}

#[async_trait]
impl Target for MemoryTarget {
    fn portals(&self) -> Vec<Portal> {
        vec![Portal(SocketAddr::from((Ipv4Addr::LOCALHOST, 3260)))]
    }

    fn address_of(&self, volume: VolumeId) -> ExportInfo {
        ExportInfo {
            target_name: format!("iqn.2026-11.io.quarry.memory:volume-{volume}"),
            lun: 0,
            serial: volume.0.simple().to_string(),
        }
    }

    async fn export(&self, spec: ExportSpec) -> Result<Outcome<ExportInfo>, DriverError> {
        let info = self.address_of(spec.volume);
        let grants: BTreeMap<InitiatorName, Grant> = spec
            .grants
            .into_iter()
            .map(|grant| (grant.initiator.clone(), grant))
            .collect();
        let mut exports = lock(&self.exports);
        if let Some(export) = exports.get_mut(&spec.volume) {
            let same = export.grants.len() == grants.len()
                && export.grants.values().zip(grants.values()).all(|(a, b)| a == b)
                && export.limits == spec.limits;
            export.grants = grants;
            export.limits = spec.limits;
            return Ok(if same {
                Outcome::Unchanged(info)
            } else {
                Outcome::Changed(info)
            });
        }
        lock(&self.absent).remove(&spec.volume);
        let announced_bytes = spec.device.size_bytes();
        exports.insert(
            spec.volume,
            Export {
                device: spec.device,
                grants,
                limits: spec.limits,
                announced_bytes,
                kept: spec.kept,
                keeper: spec.keeper,
            },
        );
        Ok(Outcome::Changed(info))
    }

    async fn grant(&self, volume: VolumeId, grant: Grant) -> Result<Outcome<()>, DriverError> {
        let mut exports = lock(&self.exports);
        let export = exports.get_mut(&volume).ok_or_else(|| not_exported(volume))?;
        let present = export.grants.get(&grant.initiator);
        if present == Some(&grant) {
            return Ok(Outcome::Unchanged(()));
        }
        export.grants.insert(grant.initiator.clone(), grant);
        Ok(Outcome::Changed(()))
    }

    async fn revoke(&self, volume: VolumeId, initiator: &InitiatorName) -> Result<Outcome<()>, DriverError> {
        let mut exports = lock(&self.exports);
        let removed = exports
            .get_mut(&volume)
            .and_then(|export| export.grants.remove(initiator));
        Ok(match removed {
            Some(_) => Outcome::Changed(()),
            None => Outcome::Unchanged(()),
        })
    }

    async fn unexport(&self, volume: VolumeId) -> Result<Outcome<()>, DriverError> {
        let removed = lock(&self.exports).remove(&volume);
        if let Some(absence) = lock(&self.absent).get_mut(&volume) {
            *absence = Absence::Removed;
        }
        Ok(match removed {
            Some(export) => {
                lock(&self.absent).insert(volume, Absence::Removed);
                if !export.kept.is_empty() {
                    export.keeper.keep(volume, &[])?;
                }
                Outcome::Changed(())
            }
            None => Outcome::Unchanged(()),
        })
    }

    fn set_absent(&self, volume: VolumeId, absence: Absence) {
        if !lock(&self.exports).contains_key(&volume) {
            lock(&self.absent).insert(volume, absence);
        }
    }

    async fn set_limits(&self, volume: VolumeId, limits: IoLimits) -> Result<Outcome<()>, DriverError> {
        let mut exports = lock(&self.exports);
        let export = exports.get_mut(&volume).ok_or_else(|| not_exported(volume))?;
        let before = std::mem::replace(&mut export.limits, limits);
        Ok(match before == limits {
            true => Outcome::Unchanged(()),
            false => Outcome::Changed(()),
        })
    }

    async fn size_changed(&self, volume: VolumeId) -> Result<(), DriverError> {
        let mut exports = lock(&self.exports);
        let export = exports.get_mut(&volume).ok_or_else(|| not_exported(volume))?;
        export.announced_bytes = export.device.size_bytes();
        Ok(())
    }

    async fn sessions(&self, _volume: Option<VolumeId>) -> Result<Vec<SessionInfo>, DriverError> {
        Ok(Vec::new())
    }

    async fn shutdown(&self) {
        lock(&self.exports).clear();
    }
}
