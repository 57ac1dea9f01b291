//! What a process leaves in the middle: finished, or taken away.
//!
//! | killed | then it is |
//! |---|---|
//! | while making a share | not there: the volume is deleted |
//! | while taking a snapshot | there or not |
//! | while growing | as large as its volume; the file system follows at once, or at the next mount |
//! | while reverting, before the first rename | as before; the successor is deleted |
//! | after it | the successor takes the share's name (L3); the predecessor is deleted |
//! | while deleting | there or not |
//! | while mounting | mounted, or not; the view is deleted |
//!
//! One of LVM's tools that runs goes on without the process. It holds the lock that the next one waits for. Where it is killed,
//! too, it may leave a volume that holds everything back.

use std::collections::BTreeSet;

use quarry_contract::ShareVersion;
use quarry_xfs::error::StoreError;
use quarry_xfs::filesystem::size_bytes;
use quarry_xfs::mounts::Mounts;
use quarry_xfs::objects::Objects;
use tracing::{info, warn};

use crate::layout::{Role, is_unfinished, object_name, role_of, successor_name};
use crate::place::Taken;
use crate::tools::LogicalVolume;

/// What a pool holds once it is settled.
pub(crate) struct Settled {
    pub(crate) objects: Objects,
    /// The volumes of ours that have a device.
    pub(crate) active: BTreeSet<String>,
}

/// Lets volumes go on that hold everything back.
pub(crate) fn resume(taken: &Taken, volumes: &[LogicalVolume]) -> Result<(), StoreError> {
    for volume in volumes {
        if volume.is_suspended() && role_of(volume, &taken.pool).is_some() {
            warn!(volume = %volume.name, "it was left suspended; it goes on");
            taken.group.refresh(&volume.name)?;
        }
    }
    Ok(())
}

/// Settles what is in a pool, with what is mounted of it known.
pub(crate) fn settle(
    taken: &Taken,
    volumes: &[LogicalVolume],
    mounts: &Mounts,
) -> Result<Settled, StoreError> {
    let mut settled = Settled {
        objects: Objects::default(),
        active: BTreeSet::new(),
    };
    let ours = || {
        volumes
            .iter()
            .filter_map(|volume| Some((volume, role_of(volume, &taken.pool)?)))
    };
    for (volume, role) in ours() {
        let stays = match role {
            Role::Object(..) => !is_unfinished(volume),
            Role::View(id) => mounts.find(ShareVersion::Snapshot(id)).is_some(),
            // Both below.
            Role::Successor(_) | Role::Predecessor => continue,
        };
        if !stays {
            info!(volume = %volume.name, "it was being made; it is deleted");
            taken.group.remove(&volume.name)?;
            continue;
        }
        if let Role::Object(version, record) = role {
            settled
                .objects
                .insert(version, record, size_bytes(volume.length_bytes))?;
        }
        if volume.is_active() {
            settled.active.insert(volume.name.clone());
        }
    }
    for (volume, role) in ours() {
        let Role::Successor(id) = role else { continue };
        let share = ShareVersion::Share(id);
        if settled.objects.share(id).is_ok() {
            info!(%share, "a revert was cut short; it is as before");
            taken.group.remove(&volume.name)?;
            continue;
        }
        info!(%share, "a revert was cut short; it is done now");
        taken.group.rename(&successor_name(id), &object_name(share))?;
        let renamed = taken.group.volume(&object_name(share))?;
        if let Some(Role::Object(version, record)) = role_of(&renamed, &taken.pool) {
            settled
                .objects
                .insert(version, record, size_bytes(renamed.length_bytes))?;
        }
        if renamed.is_active() {
            settled.active.insert(renamed.name);
        }
    }
    for (volume, role) in ours() {
        if role == Role::Predecessor {
            taken.group.remove(&volume.name)?;
        }
    }
    Ok(settled)
}
